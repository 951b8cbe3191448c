"""A descriptor that select, poll and epoll find readable and writable exactly when a socket of this package is."""

from __future__ import annotations

import contextlib
import socket as std
import weakref

#: Larger than what the small send buffer below takes, so that one write fills it.
_FILLER = bytes(4096)


class Notifier:
    """One end of a pair of AF_UNIX sockets is shown to the outside.

    A byte in it makes it readable; its own octets, unread at the other end, fill its small send buffer and make it not
    writable. Both stay so until ``show`` says otherwise, so level-triggered pollers need nothing else. It never shows
    a hang-up as such: what the program has to learn of, it learns by reading or writing.
    """

    __slots__ = ("__weakref__", "_finalizer", "_inner", "_outer", "_readable", "_writable")

    def __init__(self) -> None:
        self._outer, self._inner = std.socketpair(std.AF_UNIX, std.SOCK_STREAM)
        self._outer.setblocking(False)
        self._inner.setblocking(False)
        self._outer.setsockopt(std.SOL_SOCKET, std.SO_SNDBUF, 1)  # the kernel makes it its minimum
        self._readable = False
        self._writable = True
        # Somebody may forget to close a socket; the pair must not warn a second time.
        self._finalizer = weakref.finalize(self, _close, self._outer, self._inner)

    def fileno(self) -> int:
        return self._outer.fileno()

    def show(self, readable: bool, writable: bool) -> None:
        """Brings the descriptor up to date; costs a system call only where something has changed."""
        if writable != self._writable:
            self._writable = writable
            if writable:
                _drain(self._inner)
            else:
                with contextlib.suppress(BlockingIOError):
                    while True:
                        self._outer.send(_FILLER)
        # After "writable": who waits for a connect to end must see that first.
        if readable != self._readable:
            self._readable = readable
            if readable:
                self._inner.send(b"\0")
            else:
                _drain(self._outer)

    def detach(self) -> int:
        """The descriptor, which is the caller's to close from now on."""
        self._finalizer.detach()
        self._inner.close()
        return self._outer.detach()

    def close(self) -> None:
        self._finalizer()


def _drain(end: std.socket) -> None:
    with contextlib.suppress(BlockingIOError):
        while end.recv(65536):
            pass


def _close(outer: std.socket, inner: std.socket) -> None:
    outer.close()
    inner.close()
