"""Two links in one process, joined to each other: what one sends, the other receives."""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Sequence
from typing import Final

from mptcp.core.counters import Counters
from mptcp.core.packet import Packet
from mptcp.links.base import Link, ReceivedPacket

#: Largest TCP payload of a super-segment, as on a TUN device.
GSO_MAX_BYTES: Final = 65_455
QUEUE_PACKETS: Final = 1024
QUEUE_BYTES: Final = 16 * 1024 * 1024


class LoopbackLink(Link):
    """One end of a pair (``LoopbackLink.pair``); the two ends may live in different threads.

    Each direction holds at most ``queue_packets`` packets and ``queue_bytes`` octets. A full direction takes no more:
    ``send`` returns fewer, and the sender's ``fileno`` becomes readable (with nothing to receive) when there is room.
    Checksums are not completed and super-segments not cut; the receiver is told so, as by a device with offload.
    """

    __slots__ = (
        "_blocked", "_bytes", "_closed", "_fd", "_peer", "_queue",
        "counters", "gso_max_bytes", "mtu", "name", "queue_bytes", "queue_packets",
    )  # fmt: skip

    def __init__(
        self, name: str, *, mtu: int = 1500, gso_max_bytes: int = GSO_MAX_BYTES,
        queue_packets: int = QUEUE_PACKETS, queue_bytes: int = QUEUE_BYTES,
    ) -> None:  # fmt: skip
        self.name, self.mtu, self.gso_max_bytes = name, mtu, gso_max_bytes
        self.queue_packets, self.queue_bytes = queue_packets, queue_bytes
        self.counters = Counters()
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._queue: deque[tuple[bytes, int, bool]] = deque()  # what this end shall receive
        self._bytes = 0  # approximate across threads: a limit, not an account
        self._blocked = False  # this end wants to know when the peer's queue has room
        self._closed = False
        self._peer = self

    @classmethod
    def pair(
        cls, name: str = "loopback", *, mtu: int = 1500, gso_max_bytes: int = GSO_MAX_BYTES,
        queue_packets: int = QUEUE_PACKETS, queue_bytes: int = QUEUE_BYTES,
    ) -> tuple[LoopbackLink, LoopbackLink]:  # fmt: skip
        """Two links, ``<name>a`` and ``<name>b``. ``gso_max_bytes`` 0: no super-segments."""
        first, second = (
            cls(
                name + letter,
                mtu=mtu,
                gso_max_bytes=gso_max_bytes,
                queue_packets=queue_packets,
                queue_bytes=queue_bytes,
            )
            for letter in "ab"
        )
        first._peer, second._peer = second, first
        return first, second

    def fileno(self) -> int:
        return self._fd

    def _wake(self) -> None:
        # BlockingIOError: it is readable already; EBADF, ValueError (-1): it was closed meanwhile
        with contextlib.suppress(OSError, ValueError):
            os.eventfd_write(self._fd, 1)

    def receive(self, limit: int = 64) -> list[ReceivedPacket]:
        queue = self._queue
        if self._closed:
            return []
        # The event is cleared before the queue is looked at: what is put in later sets it again.
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._fd)
        received: list[ReceivedPacket] = []
        while queue and len(received) < limit:
            data, gso_size, checksum_valid = queue.popleft()
            self._bytes -= len(data)
            received.append((memoryview(data), gso_size, checksum_valid))
        if queue:
            self._wake()
        else:
            self._bytes = 0
        peer = self._peer
        if peer._blocked and received:
            peer._blocked = False
            peer._wake()
        return received

    def send(self, packets: Sequence[Packet]) -> int:
        peer = self._peer
        if self._closed or peer._closed:
            self.counters.bump("loopback_send_closed", len(packets))  # one of the two ends is closed
            return len(packets)
        queue = peer._queue
        taken = 0
        for packet in packets:
            if len(queue) >= self.queue_packets or (peer._bytes >= self.queue_bytes and queue):
                self._blocked = True
                if not queue:  # emptied by another thread before it could see the flag: there is room after all
                    self._wake()
                break
            taken += 1
            gso_size = packet.gso_size
            if (len(packet.header) + gso_size if gso_size else packet.length) > self.mtu:
                self.counters.bump("loopback_send_too_long")  # longer than the MTU
                continue
            data = b"".join((packet.header, *packet.payloads))
            peer._bytes += len(data)
            queue.append((data, gso_size, packet.checksum_partial))
        if taken:
            peer._wake()
        return taken

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._queue.clear()
            fd, self._fd = self._fd, -1
            os.close(fd)
