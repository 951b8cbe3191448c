"""The driver's seat: a poller over all links, and a way to rouse whoever sits in it."""

from __future__ import annotations

import contextlib
import os
import select


class Seat:
    """One epoll instance with an eventfd of its own.

    Each driver has its own, so that the next one may begin before the last one has woken up and left. All but
    ``poll``, ``interrupt`` and ``fileno`` are called with the pump's lock.
    """

    __slots__ = ("_epoll", "_wake_fd", "asleep_until", "is_looped")

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._wake_fd, select.EPOLLIN)
        self.asleep_until = 0  # while its driver waits: when it will look again by itself
        self.is_looped = False  # an event loop sits here

    def fileno(self) -> int:
        """Readable when a link or ``rouse`` wants attention."""
        return self._epoll.fileno()

    def watch(self, fd: int, write: bool) -> None:
        """Watches ``fd``: always for reading, for writing if ``write``; again with another ``write`` changes it."""
        mask = select.EPOLLIN | (select.EPOLLOUT if write else 0)
        try:
            self._epoll.modify(fd, mask)
        except FileNotFoundError:
            self._epoll.register(fd, mask)

    def forget(self, fd: int) -> None:
        with contextlib.suppress(OSError):  # closed by its owner: epoll has forgotten it by itself
            self._epoll.unregister(fd)

    def poll(self, timeout: float) -> list[tuple[int, int]]:
        """(fd, events); waits up to ``timeout`` seconds, negative: for ever. The only method that needs no lock."""
        return self._epoll.poll(timeout)

    def rouse(self) -> None:
        """Ends the ``poll`` that waits now, if one does."""
        if self.asleep_until:
            self.asleep_until = 0
            os.eventfd_write(self._wake_fd, 1)

    def interrupt(self) -> None:
        """As ``rouse``, but needs no lock: for finalizers, which may run anywhere."""
        os.eventfd_write(self._wake_fd, 1)

    def clear(self) -> None:
        """``poll`` has returned a descriptor that is no link's: ``rouse`` has done its work."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wake_fd)

    def close(self) -> None:
        self._epoll.close()
        os.close(self._wake_fd)
