"""What a network device with offloads does, in software: complete checksums, cut super-segments, coalesce segments."""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct
from typing import Final

from mptcp.core.packet import Packet
from mptcp.core.wire.checksum import add, add_views, pseudo_sum, verify_tcp
from mptcp.core.wire.segment import ACK, CWR, ECE, FIN, PSH

#: An IP packet holds no more; ``coalesce`` stops there.
MAX_PACKET_OCTETS: Final = 65535
#: Segments that ``coalesce`` puts into one.
MAX_COALESCED_SEGMENTS: Final = 64

_SHORT = Struct("!H")
_TWO_SHORTS = Struct("!HH")
_LONG = Struct("!I")
_TCP = Struct("!HHIIHHHH")

#: (packet, gso_size, checksum_valid), as links hand them over.
Received = tuple[memoryview, int, bool]


def finish(packet: Packet) -> list[bytes]:
    """The packets to put on a wire that has no offloads: checksums complete, none with more than ``gso_size`` octets."""
    payload_octets = packet.length - len(packet.header)
    if packet.gso_size and payload_octets > packet.gso_size:
        return _cut(packet, payload_octets)
    if not packet.checksum_partial:
        return [bytes(packet)]
    header = bytearray(packet.header)
    offset = packet.transport_offset
    # The field holds the sum of the pseudo-header, so it is summed up with the rest.
    total = add_views(packet.payloads, add(header[offset:])) if packet.payloads else add(header[offset:])
    _SHORT.pack_into(header, offset + 16, 65535 - total)
    return [b"".join((header, *packet.payloads))]


def _cut(packet: Packet, payload_octets: int) -> list[bytes]:
    """Segments of ``gso_size`` octets. Each has the options of the whole: a DSS mapping may cover many segments, and
    RFC 8684 §3.3.1 wants it so "to assist with compatibility with situations where TCP/IP segmentation [...] is
    undertaken separately from the stack"."""
    assert packet.checksum_partial, "a super-segment without partial checksum"
    size = packet.gso_size
    offset = packet.transport_offset
    header = bytearray(packet.header)
    head_octets = len(header)
    tcp_octets = head_octets - offset
    _, _, first_seq, _, bits, _, pseudo, _ = _TCP.unpack_from(header, offset)
    # The sum of what is the same in all pieces: the pseudo-header without length, the TCP header without the three
    # fields that change.
    header[offset + 4 : offset + 8] = b"\0\0\0\0"
    header[offset + 12 : offset + 14] = b"\0\0"
    header[offset + 16 : offset + 18] = b"\0\0"
    base = pseudo + (-(tcp_octets + payload_octets) % 65535) + int.from_bytes(header[offset:], "big") + tcp_octets
    is_ipv4 = header[0] >> 4 == 4
    identification = ip_base = 0
    if is_ipv4:
        identification = header[4] << 8 | header[5]
        header[2:6] = b"\0\0\0\0"
        header[10:12] = b"\0\0"
        ip_base = add(header[: (header[0] & 0xF) << 2])
    payloads = packet.payloads
    payload = memoryview(payloads[0] if len(payloads) == 1 else b"".join(payloads))
    middle_bits = bits & ~(FIN | PSH | CWR)
    pieces = []
    for start in range(0, payload_octets, size):
        part = payload[start : start + size]
        count = len(part)
        piece_bits = middle_bits
        if start == 0:
            # RFC 3168 §6.1.2: CWR answers one mark; on every piece it would answer as many.
            piece_bits |= bits & CWR
        if start + count >= payload_octets:
            piece_bits |= bits & (FIN | PSH)
        seq = first_seq + start & 0xFFFFFFFF
        checksum = (base + seq + piece_bits + count + add(part)) % 65535 or 65535
        _LONG.pack_into(header, offset + 4, seq)
        _SHORT.pack_into(header, offset + 12, piece_bits)
        _SHORT.pack_into(header, offset + 16, 65535 - checksum)
        if is_ipv4:
            total = head_octets + count
            _TWO_SHORTS.pack_into(header, 2, total, identification)
            _SHORT.pack_into(header, 10, 65535 - ((ip_base + total + identification) % 65535 or 65535))
            identification = identification + 1 & 0xFFFF
        else:
            _SHORT.pack_into(header, 4, head_octets - 40 + count)
        pieces.append(b"".join((header, part)))
    return pieces


def split(packet: Packet) -> list[tuple[bytes, memoryview]]:
    """(header, payload) of the segments of a super-segment, their checksums left partial, for a device that completes
    those but does not cut. Full-sized segments differ in nothing but the sequence number."""
    assert packet.checksum_partial, "a super-segment without partial checksum"
    size = packet.gso_size
    offset = packet.transport_offset
    payload_octets = packet.length - len(packet.header)
    payloads = packet.payloads
    payload = memoryview(payloads[0] if len(payloads) == 1 else b"".join(payloads))
    _, _, first_seq, _, bits, _, pseudo, _ = _TCP.unpack_from(packet.header, offset)
    middle_bits = bits & ~(FIN | PSH | CWR)
    pieces: list[tuple[bytes, memoryview]] = []
    before = after = b""
    for start in range(0, payload_octets, size):
        part = payload[start : start + size]
        seq = first_seq + start & 0xFFFFFFFF
        is_last = start + size >= payload_octets
        if start == 0 or is_last:
            piece_bits = middle_bits | (bits & CWR if start == 0 else 0) | (bits & (FIN | PSH) if is_last else 0)
            header = _short_header(packet, pseudo, piece_bits, payload_octets, len(part))
            pieces.append((header[: offset + 4] + _LONG.pack(seq) + header[offset + 8 :], part))
            continue
        if not before:
            header = _short_header(packet, pseudo, middle_bits, payload_octets, size)
            before, after = header[: offset + 4], header[offset + 8 :]
        # RFC 6864 §4.1: "Originating sources MAY set the IPv4 ID field of atomic datagrams to any value": to the same.
        pieces.append((before + _LONG.pack(seq) + after, part))
    return pieces


def _short_header(packet: Packet, pseudo: int, bits: int, payload_octets: int, count: int) -> bytes:
    """The header of a super-segment for a segment of ``count`` payload octets: lengths, flags, partial checksum."""
    header = bytearray(packet.header)
    offset = packet.transport_offset
    _SHORT.pack_into(header, offset + 12, bits)
    _SHORT.pack_into(header, offset + 16, (pseudo - payload_octets + count) % 65535 or 65535)
    if header[0] >> 4 == 4:
        _SHORT.pack_into(header, 2, len(header) + count)
        header[10:12] = b"\0\0"
        _SHORT.pack_into(header, 10, 65535 - add(header[: (header[0] & 0xF) << 2]))
    else:
        _SHORT.pack_into(header, 4, len(header) - 40 + count)
    return bytes(header)


class _Run:
    """Segments of one flow that will become one packet."""

    __slots__ = (
        "bits", "constant", "identification", "index", "next_seq", "octets", "offset", "packet",
        "parts", "size",
    )  # fmt: skip

    def __init__(
        self, index: int, packet: memoryview, offset: int, constant: bytes, bits: int, next_seq: int, size: int
    ) -> None:
        self.index = index
        self.packet = packet
        self.offset = offset
        self.constant = constant
        self.bits = bits
        self.next_seq = next_seq
        self.size = size
        self.octets = len(packet)
        self.identification = packet[4] << 8 | packet[5]
        self.parts = [packet]


def coalesce(packets: Sequence[Received]) -> list[Received]:
    """The same packets, in which consecutive TCP segments of one flow have become one (generic receive offload).

    Segments are joined only if cutting the result (``finish``) would give them back: in order, same addresses, ports,
    class, hop limit, acknowledgement, window and options, all but the last of one size, flags alike but for PSH and FIN
    on the last and CWR on the first. IPv4's identification may count up, or be anything where DF is set (RFC 6864 §4).
    A segment with a wrong checksum is left alone, for the host to count. Order within a flow is kept. Never raises.
    """
    if len(packets) < 2:
        return list(packets)
    result: list[Received] = []
    runs: dict[bytes, _Run] = {}
    grown: list[_Run] = []
    for packet in packets:
        data, gso_size, checksum_valid = packet
        flow = _flow(data)
        run = runs.pop(flow, None) if flow else None
        if not flow or gso_size:
            result.append(packet)
            continue
        is_ipv4 = data[0] == 0x45
        offset = 20 if is_ipv4 else 40
        _, _, seq, _, bits, _, _, _ = _TCP.unpack_from(data, offset)
        payload_start = offset + (bits >> 10 & 0x3C)
        count = len(data) - payload_start
        if bits & 0x1FF & ~(ACK | PSH | FIN | ECE | CWR) or count <= 0 or bits < 0x5000 or not bits & ACK:
            result.append(packet)
            continue
        constant = _constant(data, is_ipv4, offset, payload_start)
        if not checksum_valid and not verify_tcp(data, offset, len(data), pseudo_sum(flow[:-4], b"", 6)):
            result.append(packet)
            continue
        if (
            run is not None
            and seq == run.next_seq
            and count <= run.size
            and not bits & CWR
            and constant == run.constant
            and not (bits ^ run.bits) & ~(PSH | FIN | CWR)
            and run.octets + count <= MAX_PACKET_OCTETS
            and len(run.parts) < MAX_COALESCED_SEGMENTS
            and (
                not is_ipv4 or data[6] & 0x40 or data[4] << 8 | data[5] == run.identification + len(run.parts) & 0xFFFF
            )
        ):
            if len(run.parts) == 1:
                grown.append(run)
            run.parts.append(data[payload_start:])
            run.octets += count
            run.bits |= bits
        else:
            run = _Run(len(result), data, offset, constant, bits, seq, count)
            result.append(packet)
        run.next_seq = seq + count & 0xFFFFFFFF
        if count == run.size and not bits & (PSH | FIN):
            runs[flow] = run
    for run in grown:
        result[run.index] = (_joined(run), run.size, True)
    return result


def _flow(data: memoryview) -> bytes:
    """Addresses and ports of a whole TCP packet without IP options or extension headers; empty for any other."""
    octets = len(data)
    if octets >= 40 and data[0] == 0x45:
        # All of it, no fragment, TCP, and a header checksum that is right.
        if (
            data[9] != 6
            or (data[2] << 8 | data[3]) != octets
            or (data[6] & 0x3F) | data[7]
            or int.from_bytes(data[:20], "big") % 65535
        ):
            return b""
        return bytes(data[12:24])
    if octets >= 60 and data[0] >> 4 == 6 and data[6] == 6 and (data[4] << 8 | data[5]) == octets - 40:
        return bytes(data[8:44])
    return b""


def _constant(data: memoryview, is_ipv4: bool, offset: int, payload_start: int) -> bytes:
    """What has to be the same in every segment of a run, the TCP flags and IPv4's identification excepted."""
    tcp = (data[offset + 8 : offset + 12], data[offset + 14 : offset + 16], data[offset + 18 : payload_start])
    if is_ipv4:
        return b"".join((data[:2], data[6:9], *tcp))
    return b"".join((data[:4], data[7:8], *tcp))


def _joined(run: _Run) -> memoryview:
    joined = bytearray().join(run.parts)
    offset = run.offset
    octets = run.octets
    _SHORT.pack_into(joined, offset + 12, run.bits)
    if offset == 20:
        _SHORT.pack_into(joined, 2, octets)
        joined[10:12] = b"\0\0"
        _SHORT.pack_into(joined, 10, 65535 - add(joined[:20]))
        total = pseudo_sum(bytes(joined[12:16]), bytes(joined[16:20]), 6)
    else:
        _SHORT.pack_into(joined, 4, octets - 40)
        total = pseudo_sum(bytes(joined[8:24]), bytes(joined[24:40]), 6)
    # Partial, as a device leaves it: ``finish`` would complete it.
    _SHORT.pack_into(joined, offset + 16, (total + octets - offset) % 65535 or 65535)
    return memoryview(joined)
