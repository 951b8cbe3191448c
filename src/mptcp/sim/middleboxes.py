"""Boxes that real paths have, and what they do to TCP: strip, drop, translate, split, merge, renumber, rewrite.

Each is a ``Middlebox`` for ``Path.add_middlebox``. ``Way`` says in which direction a box acts.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

from mptcp.core.entropy import Entropy
from mptcp.core.units import NEVER
from mptcp.core.wire import icmp
from mptcp.sim.clock import VirtualClock
from mptcp.sim.middlebox import Inject, Middlebox
from mptcp.sim.rawtcp import OPTION_MPTCP, OPTION_NOP, TcpPacket

FIN, SYN, RST, PSH, ACK = 0x01, 0x02, 0x04, 0x08, 0x10
#: Flows that one box remembers; the oldest is forgotten, as real boxes do.
MAX_FLOWS = 4096


class Way(Enum):
    """Directions of a path."""

    FORWARD = "forward"
    BACKWARD = "backward"
    BOTH = "both"

    def covers(self, forward: bool) -> bool:
        return self is Way.BOTH or (self is Way.FORWARD) is forward


class StripOptions(Middlebox):
    """Removes options of these kinds, as many firewalls do with those that they do not know (RFC 6181, RFC 8041).

    ``syn_only``: only from segments with SYN; ``spare_syn``: only from those without; ``since_us``: from then on;
    ``every``: one segment in so many.
    """

    __slots__ = ("_every", "_kinds", "_seen", "_since_us", "_spare_syn", "_syn_only", "_way", "stripped")

    def __init__(
        self,
        kinds: Sequence[int] = (OPTION_MPTCP,),
        *,
        syn_only: bool = False,
        spare_syn: bool = False,
        since_us: int = 0,
        every: int = 1,
        way: Way = Way.BOTH,
    ) -> None:
        self._kinds = frozenset(kinds)
        self._syn_only = syn_only
        self._spare_syn = spare_syn
        self._since_us = since_us
        self._every = every
        self._way = way
        self._seen = 0
        self.stripped = 0

    def process(self, data: bytes, forward: bool, now: int) -> Sequence[bytes]:
        if now < self._since_us or not self._way.covers(forward):
            return (data,)
        packet = TcpPacket.parse(data)
        if packet is None or not any(kind in self._kinds for kind, _ in packet.options):
            return (data,)
        if packet.flags & SYN:
            if self._spare_syn:
                return (data,)
        elif self._syn_only:
            return (data,)
        self._seen += 1
        if self._seen % self._every:
            return (data,)
        self.stripped += 1
        # Overwritten with NOPs, not cut out: the length of the packet stays.
        packet.options = [
            (OPTION_NOP, bytes((OPTION_NOP,)) * len(option)) if kind in self._kinds else (kind, option)
            for kind, option in packet.options
        ]
        return (packet.emit(),)


class DropSynWithOptions(Middlebox):
    """Drops SYNs (and SYN/ACKs) that carry one of these options, without a word."""

    __slots__ = ("_kinds", "_until_us", "_way", "dropped")

    def __init__(self, kinds: Sequence[int] = (OPTION_MPTCP,), *, until_us: int = NEVER, way: Way = Way.BOTH) -> None:
        self._kinds = frozenset(kinds)
        self._until_us = until_us
        self._way = way
        self.dropped = 0

    def process(self, data: bytes, forward: bool, now: int) -> Sequence[bytes]:
        if now >= self._until_us or not self._way.covers(forward):
            return (data,)
        packet = TcpPacket.parse(data)
        if packet is None or not packet.flags & SYN or not any(kind in self._kinds for kind, _ in packet.options):
            return (data,)
        self.dropped += 1
        return ()


class Nat(Middlebox):
    """Translates source address and port of flows that start in the forward direction (a NAPT at the first port).

    Mappings are forgotten after ``timeout_us`` without a packet; what comes back for none is dropped. ICMP errors are
    not translated, so they reach nobody.
    """

    __slots__ = ("_address", "_by_inside", "_by_outside", "_next_port", "_timeout_us", "dropped")

    def __init__(self, address: bytes, *, first_port: int = 20_000, timeout_us: int = NEVER) -> None:
        self._address = address
        self._next_port = first_port
        self._timeout_us = timeout_us
        #: (inside address, port) -> [outside port, time of the last packet]
        self._by_inside: dict[tuple[bytes, int], list[int]] = {}
        self._by_outside: dict[int, tuple[bytes, int]] = {}
        self.dropped = 0

    def process(self, data: bytes, forward: bool, now: int) -> Sequence[bytes]:
        packet = TcpPacket.parse(data)
        if packet is None:
            return (data,)
        if forward:
            if len(packet.source) != len(self._address):
                return (data,)
            packet.source_port = self._outside_port((packet.source, packet.source_port), now)
            packet.source = self._address
            return (packet.emit(),)
        if packet.destination != self._address:
            return (data,)
        inside = self._by_outside.get(packet.destination_port)
        if inside is None or now - self._by_inside[inside][1] > self._timeout_us:
            self.dropped += 1
            return ()
        self._by_inside[inside][1] = now
        packet.destination, packet.destination_port = inside
        return (packet.emit(),)

    def _outside_port(self, inside: tuple[bytes, int], now: int) -> int:
        entry = self._by_inside.get(inside)
        if entry is not None and now - entry[1] > self._timeout_us:
            del self._by_outside[self._by_inside.pop(inside)[0]]
            entry = None
        if entry is None:
            if len(self._by_inside) >= MAX_FLOWS:
                oldest = next(iter(self._by_inside))
                del self._by_outside[self._by_inside.pop(oldest)[0]]
            port = self._next_port
            self._next_port = port + 1 if port < 0xFFFF else 1024
            entry = self._by_inside[inside] = [port, now]
            self._by_outside[port] = inside
        entry[1] = now
        return entry[0]


class SplitSegments(Middlebox):
    """Cuts data segments into pieces, as a card without knowledge of MPTCP would: options are copied to each piece,
    or kept on the first one only. PSH and FIN stay on the last piece."""

    __slots__ = ("_copy_options", "_max_bytes", "_way", "split")

    def __init__(self, max_bytes: int = 500, *, copy_options: bool = True, way: Way = Way.BOTH) -> None:
        self._max_bytes = max_bytes
        self._copy_options = copy_options
        self._way = way
        self.split = 0

    def process(self, data: bytes, forward: bool, now: int) -> Sequence[bytes]:
        if not self._way.covers(forward):
            return (data,)
        packet = TcpPacket.parse(data)
        if packet is None or len(packet.payload) <= self._max_bytes or packet.flags & SYN:
            return (data,)
        self.split += 1
        pieces = []
        payload, flags, seq = packet.payload, packet.flags, packet.seq
        for start in range(0, len(payload), self._max_bytes):
            piece = packet.copy()
            piece.payload = payload[start : start + self._max_bytes]
            piece.seq = seq + start
            if start + self._max_bytes < len(payload):
                piece.flags = flags & ~(FIN | PSH)
            if start and not self._copy_options:
                piece.options = [(kind, option) for kind, option in packet.options if kind != OPTION_MPTCP]
            pieces.append(piece.emit())
        return pieces


class CoalesceSegments(Middlebox):
    """Joins data segments that follow one another; the options of the first are kept, the others' are lost.

    A segment waits at most ``hold_us`` for the next one.
    """

    __slots__ = ("_clock", "_held", "_hold_us", "_inject", "_max_bytes", "_way", "coalesced")

    def __init__(self, max_bytes: int = 2800, *, hold_us: int = 1_000, way: Way = Way.BOTH) -> None:
        self._max_bytes = max_bytes
        self._hold_us = hold_us
        self._way = way
        self._clock: VirtualClock | None = None
        self._inject: Inject | None = None
        #: flow -> (packet, number of the clock's event, forward)
        self._held: dict[tuple[bytes, int, bytes, int], tuple[TcpPacket, int, bool]] = {}
        self.coalesced = 0

    def attach(self, clock: VirtualClock, inject: Inject) -> None:
        self._clock = clock
        self._inject = inject

    def process(self, data: bytes, forward: bool, now: int) -> Sequence[bytes]:
        packet = TcpPacket.parse(data)
        if packet is None or not self._way.covers(forward) or self._clock is None:
            return (data,)
        flow = packet.flow
        held = self._held.pop(flow, None)
        out = []
        if held is not None:
            first, event, _ = held
            self._clock.cancel(event)
            follows = packet.seq == (first.seq + len(first.payload)) & 0xFFFFFFFF
            room = len(first.payload) + len(packet.payload) <= self._max_bytes
            if follows and room and packet.payload and not packet.flags & (SYN | RST):
                self.coalesced += 1
                first.payload += packet.payload
                first.flags |= packet.flags & (FIN | PSH)
                first.ack = packet.ack
                first.header[14:16] = packet.header[14:16]
                packet = first
            else:
                out.append(first.emit())
        may_wait = packet.payload and not packet.flags & (SYN | RST | FIN) and len(packet.payload) < self._max_bytes
        if may_wait and len(self._held) < MAX_FLOWS:
            event = self._clock.after(self._hold_us, lambda: self._release(flow))
            self._held[flow] = (packet, event, forward)
            return out
        out.append(packet.emit())
        return out

    def _release(self, flow: tuple[bytes, int, bytes, int]) -> None:
        held = self._held.pop(flow, None)
        if held is not None and self._inject is not None:
            self._inject(held[0].emit(), held[2])


class RewriteSequence(Middlebox):
    """An initial-sequence-number randomiser: adds an offset of its own to each flow's numbers and takes it off again
    from what acknowledges them; SACK blocks too, unless it is one of those that forget (``fix_sack``)."""

    __slots__ = ("_entropy", "_fix_sack", "_offsets", "rewritten")

    def __init__(self, entropy: Entropy, *, fix_sack: bool = True) -> None:
        self._entropy = entropy
        self._fix_sack = fix_sack
        self._offsets: dict[tuple[bytes, int, bytes, int], int] = {}
        self.rewritten = 0

    def process(self, data: bytes, forward: bool, now: int) -> Sequence[bytes]:
        packet = TcpPacket.parse(data)
        if packet is None:
            return (data,)
        flow = packet.flow
        if packet.flags & SYN and flow not in self._offsets:
            if len(self._offsets) >= MAX_FLOWS:
                del self._offsets[next(iter(self._offsets))]
            self._offsets[flow] = self._entropy.bits(32)
        there = self._offsets.get(flow, 0)
        back = self._offsets.get((flow[2], flow[3], flow[0], flow[1]), 0)
        self.rewritten += 1
        packet.seq += there
        if packet.flags & ACK:
            packet.ack -= back
        if self._fix_sack:
            blocks = packet.sack_blocks()
            if blocks:
                packet.set_sack_blocks([(left - back, right - back) for left, right in blocks])
        return (packet.emit(),)


class ChangePayload(Middlebox):
    """An application-level gateway: replaces octets in the stream, also by fewer or more of them, and keeps the
    sequence numbers of both ends consistent (RFC 8684 §3.3 has checksums against it).

    ``count`` limits how many replacements are made. Only what lies within one segment is found.
    """

    __slots__ = ("_count", "_new", "_old", "_shifts", "_way", "changed")

    def __init__(self, old: bytes, new: bytes, *, count: int = 1, way: Way = Way.FORWARD) -> None:
        self._old = old
        self._new = new
        self._count = count
        self._way = way
        #: flow -> [(sequence number behind the replacement, as the sender counts; octets added)], oldest first
        self._shifts: dict[tuple[bytes, int, bytes, int], list[tuple[int, int]]] = {}
        self.changed = 0

    def process(self, data: bytes, forward: bool, now: int) -> Sequence[bytes]:
        packet = TcpPacket.parse(data)
        if packet is None:
            return (data,)
        flow = packet.flow
        reverse = (flow[2], flow[3], flow[0], flow[1])
        touched = False
        if packet.flags & ACK and reverse in self._shifts:
            packet.ack = self._to_sender(reverse, packet.ack)
            blocks = packet.sack_blocks()
            if blocks:
                packet.set_sack_blocks([(self._to_sender(reverse, a), self._to_sender(reverse, b)) for a, b in blocks])
            touched = True
        seq = packet.seq
        if flow in self._shifts:
            packet.seq = seq + sum(added for edge, added in self._shifts[flow] if not _before(seq, edge))
            # What was changed before is changed in the same way when it is sent again.
            for edge, _ in self._shifts[flow]:
                position = (edge - len(self._old) - seq) & 0xFFFFFFFF
                if packet.payload[position : position + len(self._old)] == self._old and position < len(packet.payload):
                    packet.payload = packet.payload[:position] + self._new + packet.payload[position + len(self._old) :]
                    return (packet.emit(),)
            touched = True
        position = packet.payload.find(self._old) if self._way.covers(forward) and self.changed < self._count else -1
        if position >= 0 and len(self._shifts) < MAX_FLOWS:
            self.changed += 1
            packet.payload = packet.payload[:position] + self._new + packet.payload[position + len(self._old) :]
            edge = (seq + position + len(self._old)) & 0xFFFFFFFF
            self._shifts.setdefault(flow, []).append((edge, len(self._new) - len(self._old)))
            touched = True
        return (packet.emit(),) if touched else (data,)

    def _to_sender(self, flow: tuple[bytes, int, bytes, int], number: int) -> int:
        """A number of the receiver's counting in the sender's; what lies inside a replacement counts as before it."""
        for edge, added in reversed(self._shifts[flow]):
            if not _before(number, edge + added):
                number -= added
            elif added > 0 and not _before(number, edge):
                number = edge - len(self._old)
        return number & 0xFFFFFFFF


class AckProxy(Middlebox):
    """A performance-enhancing proxy: acknowledges data to its sender before the receiver has it.

    It keeps what it has acknowledged and sends it again when the receiver's own acknowledgements stand still, so TCP
    survives it; it has no idea of data-level acknowledgements (RFC 8684 §3.3.2 keeps them apart for that reason).
    """

    __slots__ = ("_clock", "_flows", "_inject", "_max_bytes", "_retry_us", "_way", "early_acks")

    def __init__(self, *, max_bytes: int = 256 * 1024, retry_us: int = 300_000, way: Way = Way.FORWARD) -> None:
        self._max_bytes = max_bytes
        self._retry_us = retry_us
        self._way = way
        self._clock: VirtualClock | None = None
        self._inject: Inject | None = None
        self._flows: dict[tuple[bytes, int, bytes, int], _ProxiedFlow] = {}
        self.early_acks = 0

    def attach(self, clock: VirtualClock, inject: Inject) -> None:
        self._clock = clock
        self._inject = inject

    def process(self, data: bytes, forward: bool, now: int) -> Sequence[bytes]:
        packet = TcpPacket.parse(data)
        if packet is None or self._clock is None or self._inject is None:
            return (data,)
        if not self._way.covers(forward):
            self._see_acknowledgement(packet)
            return (data,)
        flow = self._flows.get(packet.flow)
        if packet.flags & RST:
            self._flows.pop(packet.flow, None)
        elif packet.flags & SYN:
            if len(self._flows) < MAX_FLOWS:
                self._flows[packet.flow] = _ProxiedFlow((packet.seq + 1) & 0xFFFFFFFF)
        elif (
            flow is not None
            and flow.template is not None
            and packet.payload
            and not packet.flags & FIN
            and packet.seq == flow.taken
            and flow.size + len(packet.payload) <= self._max_bytes
        ):
            self._acknowledge(flow, flow.template, packet, data, forward)
        return (data,)

    def _acknowledge(
        self, flow: _ProxiedFlow, template: TcpPacket, packet: TcpPacket, data: bytes, forward: bool
    ) -> None:
        assert self._clock is not None
        assert self._inject is not None
        flow.taken = (flow.taken + len(packet.payload)) & 0xFFFFFFFF
        flow.kept.append((flow.taken, data))
        flow.size += len(packet.payload)
        self.early_acks += 1
        early = template.copy()
        # The timestamp stays that of an earlier acknowledgement: not too old for anyone (RFC 7323 §5.3).
        early.seq, early.ack = packet.ack, flow.taken
        self._inject(early.emit(), not forward)
        if len(flow.kept) == 1:
            una = flow.una
            self._clock.after(self._retry_us, lambda: self._retry(flow, una, forward))

    def _see_acknowledgement(self, packet: TcpPacket) -> None:
        source, source_port, destination, destination_port = packet.flow
        flow = self._flows.get((destination, destination_port, source, source_port))
        if flow is None or not packet.flags & ACK or packet.flags & (SYN | RST | FIN):
            return
        if not packet.payload:
            # A pure acknowledgement, without MPTCP's: the form of our own.
            flow.template = packet.copy()
            flow.template.options = [entry for entry in packet.options if entry[0] not in (OPTION_MPTCP, 5)]
        if _before(flow.una, packet.ack):
            flow.una = packet.ack
        while flow.kept and not _before(packet.ack, flow.kept[0][0]):
            flow.size -= (flow.kept[0][0] - flow.start) & 0xFFFFFFFF
            flow.start = flow.kept.pop(0)[0]
        if not flow.kept:
            flow.start, flow.size = flow.taken, 0

    def _retry(self, flow: _ProxiedFlow, una: int, forward: bool) -> None:
        if not flow.kept or self._clock is None or self._inject is None:
            return
        if flow.una == una:
            self._inject(flow.kept[0][1], forward)
        una = flow.una
        self._clock.after(self._retry_us, lambda: self._retry(flow, una, forward))


class _ProxiedFlow:
    __slots__ = ("kept", "size", "start", "taken", "template", "una")

    def __init__(self, start: int) -> None:
        self.start = start  # first octet that is kept
        self.taken = start  # behind the last octet that we have acknowledged
        self.una = start  # what the receiver has acknowledged
        self.kept: list[tuple[int, bytes]] = []  # (behind the last octet, packet)
        self.size = 0
        self.template: TcpPacket | None = None


class NarrowLink(Middlebox):
    """A hop with a smaller MTU: drops what is longer, and says so by ICMP, or, ``silent``, does not (a black hole).

    Everything is taken to have DF set, as TCP's packets have (RFC 1191 §3).
    """

    __slots__ = ("_inject", "_mtu", "_reporter", "_silent", "_way", "dropped")

    def __init__(self, mtu: int, *, reporter: bytes, silent: bool = False, way: Way = Way.BOTH) -> None:
        self._mtu = mtu
        self._reporter = reporter  # the router's address, of the packets' family
        self._silent = silent
        self._way = way
        self._inject: Inject | None = None
        self.dropped = 0

    def attach(self, clock: VirtualClock, inject: Inject) -> None:
        self._inject = inject

    def process(self, data: bytes, forward: bool, now: int) -> Sequence[bytes]:
        if len(data) <= self._mtu or not self._way.covers(forward):
            return (data,)
        self.dropped += 1
        if not self._silent and self._inject is not None:
            error = icmp.emit(icmp.IcmpKind.PACKET_TOO_BIG, data, self._reporter, mtu=self._mtu)
            self._inject(error, not forward)
        return ()


class CorruptPayload(Middlebox):
    """Changes one payload octet in every ``every``-th data segment and repairs the TCP checksum: only the checksum of
    MPTCP can notice (RFC 8684 §3.3)."""

    __slots__ = ("_every", "_limit", "_seen", "_since_us", "_way", "corrupted")

    def __init__(self, every: int = 100, *, limit: int = 1 << 30, since_us: int = 0, way: Way = Way.FORWARD) -> None:
        self._every = every
        self._limit = limit
        self._since_us = since_us
        self._way = way
        self._seen = 0
        self.corrupted = 0

    def process(self, data: bytes, forward: bool, now: int) -> Sequence[bytes]:
        if not self._way.covers(forward) or now < self._since_us or self.corrupted >= self._limit:
            return (data,)
        packet = TcpPacket.parse(data)
        if packet is None or not packet.payload:
            return (data,)
        self._seen += 1
        if self._seen % self._every:
            return (data,)
        self.corrupted += 1
        middle = len(packet.payload) // 2
        packet.payload = (
            packet.payload[:middle] + bytes((packet.payload[middle] ^ 0x55,)) + packet.payload[middle + 1 :]
        )
        return (packet.emit(),)


def _before(first: int, second: int) -> bool:
    """RFC 9293 §3.4: comparison modulo 2**32."""
    return (first - second) & 0xFFFFFFFF >= 0x80000000
