"""Faults on purpose: a wrapper around any link that drops, duplicates, reorders and corrupts packets, from a seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from typing import Final

from mptcp.core.counters import Counters
from mptcp.core.entropy import Entropy
from mptcp.core.packet import Packet
from mptcp.core.wire.offload import finish
from mptcp.errors import ConfigurationError
from mptcp.links._wire import from_device, received_on_the_wire
from mptcp.links.base import Link, ReceivedPacket

#: Packets that may be held back at a time, in each direction, to be delivered behind later ones; more are not held.
MAX_HELD: Final = 64


class FaultKind(Enum):
    """What happens to a packet."""

    DROP = "drop"
    DUPLICATE = "duplicate"
    REORDER = "reorder"  # delivered behind the ``distance`` packets that follow it
    CORRUPT = "corrupt"  # one bit inverted, behind the IP header
    REWRITE = (
        "rewrite"  # one bit of TCP's payload, and its checksum made right again: what a box does that edits content
    )


class Fault:
    """One fault: which packets it meets, and how often.

    A packet meets it when ``when`` (if given) says so of its octets, from the IP header on, and then either every
    ``every``-th time or with ``probability``; at most ``limit`` times (0: no limit). ``applied`` counts.
    """

    __slots__ = ("applied", "distance", "every", "kind", "limit", "probability", "seen", "when")

    def __init__(
        self,
        kind: FaultKind,
        probability: float = 1.0,
        *,
        every: int = 0,
        when: Callable[[bytes], bool] | None = None,
        limit: int = 0,
        distance: int = 1,
    ) -> None:
        if not 0 <= probability <= 1 or every < 0 or limit < 0 or distance < 1:
            raise ConfigurationError(
                f"a fault needs a probability from 0 to 1 (not {probability}), every and limit >= 0, distance >= 1"
            )
        self.kind, self.probability, self.every, self.when = kind, probability, every, when
        self.limit, self.distance = limit, distance
        self.seen = self.applied = 0

    def meets(self, data: bytes, entropy: Entropy) -> bool:
        """Whether this packet has this fault now."""
        if (self.limit and self.applied >= self.limit) or (self.when is not None and not self.when(data)):
            return False
        self.seen += 1
        if self.every:
            hit = self.seen % self.every == 0
        else:
            hit = self.probability >= 1 or entropy.fraction() < self.probability
        self.applied += hit
        return hit


class _Direction:
    """The faults of one direction, and the packets they hold back."""

    __slots__ = ("blackhole", "counters", "entropy", "faults", "held", "prefix")

    def __init__(self, faults: Sequence[Fault], entropy: Entropy, counters: Counters, prefix: str) -> None:
        self.faults = list(faults)
        self.entropy, self.counters, self.prefix = entropy, counters, prefix
        self.blackhole = False
        self.held: list[tuple[int, bytes]] = []  # (packets still to pass before it, packet)

    @property
    def active(self) -> bool:
        """Whether packets may leave otherwise than they came."""
        return bool(self.faults or self.held or self.blackhole)

    def apply(self, data: bytes) -> list[bytes]:
        """What becomes of one packet: none, itself, copies, and others that were held back until now."""
        counters, prefix = self.counters, self.prefix
        if self.blackhole:
            counters.bump(f"fault_{prefix}_blackholed")  # by direction: outgoing, incoming
            return []
        copies, hold = 1, 0
        for fault in self.faults:
            if not fault.meets(data, self.entropy):
                continue
            counters.bump(f"fault_{prefix}_{fault.kind.value}")  # by direction and kind
            match fault.kind:
                case FaultKind.DROP:
                    return []
                case FaultKind.DUPLICATE:
                    copies += 1
                case FaultKind.REORDER:
                    hold = fault.distance
                case FaultKind.CORRUPT:
                    data = self._corrupted(data)
                case FaultKind.REWRITE:
                    data = self._rewritten(data)
        if not hold or len(self.held) >= MAX_HELD:
            return [data] * copies + self._passed(copies)
        copies -= 1  # a duplicate overtakes its original
        passed = self._passed(copies)
        self.held.append((hold, data))
        return [data] * copies + passed

    def _passed(self, count: int) -> list[bytes]:
        """The held packets that are free after ``count`` more have gone by."""
        if not self.held or not count:
            return []
        free = [data for left, data in self.held if left <= count]
        self.held = [(left - count, data) for left, data in self.held if left > count]
        return free

    def _corrupted(self, data: bytes) -> bytes:
        # The IP header stays: a packet that lost its destination would not get here. TCP has to find the rest.
        start = (data[0] & 15) * 4 if data[0] >> 4 == 4 else 40
        if len(data) <= start:
            return data
        changed = bytearray(data)
        changed[start + self.entropy.below(len(data) - start)] ^= 1 << self.entropy.below(8)
        return bytes(changed)

    def _rewritten(self, data: bytes) -> bytes:
        packet = from_device(memoryview(data), 0)
        if packet is None or not packet.payloads:
            return data
        payload = bytearray(packet.payloads[0])
        payload[self.entropy.below(len(payload))] ^= 1 << self.entropy.below(8)
        return finish(Packet(packet.header, (bytes(payload),), packet.length, packet.transport_offset, 0, True))[0]


class FaultLink(Link):
    """Faults in both directions of a link; the same seed and the same packets give the same faults.

    While a direction has faults its super-segments are cut, so that each packet of the wire meets its own fate (then
    ``receive`` may give more than ``limit``). There is no clock here: a packet that is reordered waits for those behind
    it, for ever if none come. ``set_blackhole`` makes a direction swallow everything, silently.
    """

    __slots__ = ("_backlog", "_incoming", "_outgoing", "counters", "gso_max_bytes", "link", "mtu", "name")

    def __init__(
        self,
        link: Link,
        entropy: Entropy,
        *,
        outgoing: Sequence[Fault] = (),
        incoming: Sequence[Fault] = (),
        counters: Counters | None = None,
    ) -> None:
        self.link = link
        self.name, self.mtu, self.gso_max_bytes = link.name, link.mtu, link.gso_max_bytes
        self.counters = Counters() if counters is None else counters
        self._outgoing = _Direction(outgoing, entropy.child("outgoing"), self.counters, "outgoing")
        self._incoming = _Direction(incoming, entropy.child("incoming"), self.counters, "incoming")
        self._backlog: list[Packet] = []  # what became of one packet, while the link below is full

    @property
    def outgoing(self) -> list[Fault]:
        """The faults of packets that leave; the list may be changed at any time."""
        return self._outgoing.faults

    @property
    def incoming(self) -> list[Fault]:
        """The faults of packets that come in; the list may be changed at any time."""
        return self._incoming.faults

    def set_blackhole(self, on: bool, *, outgoing: bool = True, incoming: bool = True) -> None:
        """Swallows everything in the directions named, until switched off."""
        if outgoing:
            self._outgoing.blackhole = on
        if incoming:
            self._incoming.blackhole = on

    def fileno(self) -> int:
        return self.link.fileno()

    def receive(self, limit: int = 64) -> Sequence[ReceivedPacket]:
        self._flush()
        received = self.link.receive(limit)
        direction = self._incoming
        if not direction.active:
            return received
        result: list[ReceivedPacket] = []
        for data, gso_size, checksum_valid in received:
            for piece in received_on_the_wire(data, gso_size, checksum_valid):
                result += [(memoryview(changed), 0, False) for changed in direction.apply(piece)]
        return result

    def _flush(self) -> bool:
        if self._backlog:
            del self._backlog[: self.link.send(self._backlog)]
        return not self._backlog

    def send(self, packets: Sequence[Packet]) -> int:
        if not self._flush():
            return 0
        direction = self._outgoing
        if not direction.active:
            return self.link.send(packets)
        for taken, packet in enumerate(packets):
            if not self._flush():
                return taken
            for piece in finish(packet):
                self._backlog += [Packet(data, (), len(data)) for data in direction.apply(piece)]
        self._flush()
        return len(packets)

    def close(self) -> None:
        self.link.close()
