"""One link in use: the packets it could not take yet, and what became of them."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from mptcp.core.packet import Packet
from mptcp.core.units import MILLISECOND, NEVER

if TYPE_CHECKING:
    from mptcp.links.base import Link

#: Packets kept for a link that is full; further ones are dropped and counted, as a network card's queue would do.
MAX_QUEUED_PACKETS = 1024

#: A link that says "writable" and yet takes nothing (an in-process one does) is asked again after this time.
RETRY_US = 1 * MILLISECOND


class Port:
    """A link, its interface number in the host, and its queue.

    ``dropped`` counts packets that found the queue full. ``failed``: the link raised; it is not used any more.
    """

    __slots__ = ("_queue", "dropped", "failed", "fd", "index", "link", "retry_us", "wants_write")

    def __init__(self, link: Link, index: int) -> None:
        self.link = link
        self.index = index
        self.fd = link.fileno()
        self.dropped = 0
        self.failed: OSError | None = None
        self.wants_write = False  # the poller is to say when the link can take more
        self.retry_us = NEVER
        self._queue: deque[Packet] | None = None

    @property
    def queued(self) -> int:
        return len(self._queue) if self._queue else 0

    def send(self, packets: list[Packet]) -> None:
        """Hands packets to the link, behind those that already wait."""
        if self._queue:
            self._enqueue(packets)
            return
        taken = self.link.send(packets)
        if taken < len(packets):
            self._enqueue(packets[taken:])
            self.wants_write = True

    def retry(self, now: int) -> None:
        """The link is said to be writable, or it is time to try."""
        queue = self._queue
        self.retry_us = NEVER
        if not queue:
            self.wants_write = False
            return
        taken = self.link.send(list(queue))
        if taken >= len(queue):
            queue.clear()
            self.wants_write = False
            return
        for _ in range(taken):
            queue.popleft()
        self.wants_write = taken > 0
        if not self.wants_write:
            self.retry_us = now + RETRY_US

    def fail(self, error: OSError) -> None:
        self.failed = error
        self._queue = None
        self.wants_write = False
        self.retry_us = NEVER

    def _enqueue(self, packets: list[Packet]) -> None:
        if self._queue is None:
            self._queue = deque()
        room = MAX_QUEUED_PACKETS - len(self._queue)
        self._queue.extend(packets[:room])
        self.dropped += max(0, len(packets) - room)
