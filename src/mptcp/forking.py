"""Locks that a forked child finds free.

A child has only the thread that forked. A lock that another thread held at that moment would stay held for ever: here,
the thread that listens for the kernel's events works on connections at any time.
"""

from __future__ import annotations

import os
import weakref
from typing import Any, TypeVar

_Lock = TypeVar("_Lock")
_locks: weakref.WeakSet[Any] = weakref.WeakSet()


def freed_in_child(lock: _Lock) -> _Lock:
    """``lock`` (a ``threading.Lock`` or ``RLock``), free in a forked child unless the thread that forks holds it itself.

    What the lock guards may be half changed there: for objects that a child makes anew.
    """
    _locks.add(lock)
    return lock


def _after_fork() -> None:
    for lock in _locks:
        if not getattr(lock, "_is_owned", bool)():
            lock._at_fork_reinit()  # as logging and threading do with theirs


os.register_at_fork(after_in_child=_after_fork)
