"""Ctrl-C, SIGTERM and a terminal that hangs up: each ends a verb in the same good order, and has a status of its own."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any, NoReturn

#: What shells show of a process that a signal has ended.
_SIGNALLED = 128


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP. What tidies up after Ctrl-C does so after these: partial files, namespaces, sysctls."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def status_of(interruption: KeyboardInterrupt) -> int:
    """The exit status: 130 of Ctrl-C, 143 of SIGTERM, 129 of SIGHUP."""
    return _SIGNALLED + (interruption.number if isinstance(interruption, Terminated) else signal.SIGINT)


@contextlib.contextmanager
def signals_interrupt() -> Iterator[None]:
    """SIGTERM and SIGHUP raise ``Terminated`` in the main thread; a second one ends the process at once.

    One that is ignored (``nohup``) stays so. In other threads, which hear no signals, it does nothing.
    """
    before: dict[int, Any] = {}

    def interrupt(number: int, _frame: FrameType | None) -> NoReturn:
        for each, handler in before.items():
            signal.signal(each, handler)
        raise Terminated(number)

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_DFL:
                before[number] = signal.signal(number, interrupt)
    try:
        yield
    finally:
        for each, handler in before.items():
            if signal.getsignal(each) is interrupt:
                signal.signal(each, handler)
