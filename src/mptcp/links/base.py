"""What a link is: the place where packets leave for the network and come from it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from mptcp.core.packet import Packet

#: (packet, gso_size, checksum_valid): the octets from the IP header on; ``gso_size`` > 0 when the device coalesced TCP
#: segments of that many octets; ``checksum_valid`` when the device vouches for the transport checksum (or left it partial).
ReceivedPacket = tuple[memoryview, int, bool]


class Link(ABC):
    """A non-blocking source and sink of IP packets. Wrappers (capture, faults) are links around a link."""

    name: str
    mtu: int
    #: The largest TCP payload of one super-segment that ``send`` takes; 0: none larger than one segment.
    gso_max_bytes: int

    @abstractmethod
    def fileno(self) -> int:
        """Readable when ``receive`` has something."""

    @abstractmethod
    def receive(self, limit: int = 64) -> Sequence[ReceivedPacket]:
        """Up to ``limit`` packets, without waiting; empty when there are none. Never raises for what came in."""

    @abstractmethod
    def send(self, packets: Sequence[Packet]) -> int:
        """Hands packets over, in order; how many were taken. Fewer means: full now, offer the rest when writable.

        A packet the link can never carry (too long, interface down) is dropped and counted, as a network would.
        """

    @abstractmethod
    def close(self) -> None: ...
