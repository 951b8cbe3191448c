"""What the application has written and TCP has not yet sent: views, in order, cut without copying."""

from __future__ import annotations

from mptcp.core.wire.segment import Payload

#: A write shorter than this is copied behind a short predecessor, so that octet-sized writes do not cost a view each.
SMALL_WRITE_BYTES = 512
#: How large a piece may grow by such copying.
MERGED_PIECE_BYTES = 2048
#: Consumed views are dropped from the front of the list in batches of this many.
_COMPACT = 64


class SendBuffer:
    """A queue of views. ``append`` at the tail, ``take(n)`` from the head; ``length`` octets are in it.

    It has no limit of its own: the sender bounds it by ``TcpConfig.send_buffer_bytes``.
    """

    __slots__ = ("_head", "_offset", "_views", "length")

    def __init__(self) -> None:
        self._views: list[Payload] = []
        self._head = 0  # index of the first view not used up
        self._offset = 0  # octets of that view already taken
        self.length = 0

    def append(self, payload: Payload) -> None:
        """Adds a view, which must not change afterwards."""
        size = len(payload)
        if not size:
            return
        self.length += size
        views = self._views
        if size < SMALL_WRITE_BYTES and len(views) - self._head > (1 if self._offset else 0):
            last = views[-1]
            if len(last) + size <= MERGED_PIECE_BYTES:
                views[-1] = b"".join((last, payload))
                return
        views.append(payload)

    def take(self, count: int) -> list[Payload]:
        """Removes ``count`` octets (at most ``length``) from the head and returns them as views."""
        assert 0 <= count <= self.length
        self.length -= count
        taken: list[Payload] = []
        views = self._views
        while count:
            view = views[self._head]
            offset = self._offset
            left = len(view) - offset
            if left <= count:
                taken.append(memoryview(view)[offset:] if offset else view)
                count -= left
                views[self._head] = b""  # lets go of the octets before the list is compacted
                self._head += 1
                self._offset = 0
            else:
                taken.append(memoryview(view)[offset : offset + count])
                self._offset = offset + count
                count = 0
        if not self.length:
            if views:
                self._views = []
            self._head = 0
        elif self._head >= _COMPACT and self._head * 2 >= len(views):
            del views[: self._head]
            self._head = 0
        return taken
