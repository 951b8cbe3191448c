"""While a command runs, its stack can be looked at: ``mptcp ls --stack user``, ``mptcp events --stack user``."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from mptcp.sockets.user import UserStack


@contextlib.contextmanager
def shown(stack: UserStack, program: str) -> Iterator[None]:
    """Publishes ``stack`` under the name of ``program``; a system where that cannot be is none to stop for."""
    with contextlib.ExitStack() as exits:
        with contextlib.suppress(OSError):
            exits.callback(stack.publish(program).close)
        yield
