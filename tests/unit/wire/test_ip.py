"""IP headers: vectors by hand, round trips, extension headers, malformed and hostile chains."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mptcp.core.wire import checksum, ip

A4, B4 = bytes((192, 168, 0, 1)), bytes((192, 168, 0, 199))
A6, B6, S1, S2 = (bytes.fromhex("20010db8") + bytes(11) + bytes((n,)) for n in (1, 2, 0x51, 0x52))


def parse(data: bytes) -> ip.IpHeader | None:
    return ip.parse(memoryview(data))


def parsed(data: bytes) -> ip.IpHeader:
    header = parse(data)
    assert header is not None
    return header


def test_ipv4_by_hand() -> None:  # RFC 791 §3.1; a header whose checksum, b861, is in every textbook
    head = bytes.fromhex("4500 0073 0000 4000 4011 b861 c0a80001 c0a800c7")
    assert ip.emit_ipv4(A4, B4, 0x73 - 20, protocol=17) == head
    header = parsed(head + bytes(0x73 - 20))
    assert (header.version, header.source, header.destination, header.protocol) == (4, A4, B4, 17)
    assert (header.transport_offset, header.end, header.hop_limit) == (20, 0x73, 64)
    assert header.dont_fragment
    assert not header.is_fragment


@settings(deadline=None, max_examples=100)
@given(
    st.binary(min_size=4, max_size=4),
    st.binary(min_size=4, max_size=4),
    st.tuples(st.integers(0, 500), st.integers(0, 0xFFFF), st.integers(0, 255), st.integers(0, 255), st.booleans()),
    st.integers(0, 10).flatmap(lambda n: st.binary(min_size=4 * n, max_size=4 * n)),
)
def test_ipv4_round_trip(
    source: bytes, destination: bytes, numbers: tuple[int, int, int, int, bool], options: bytes
) -> None:
    length, identification, hop_limit, traffic_class, dont_fragment = numbers
    head = ip.emit_ipv4(
        source,
        destination,
        length,
        identification=identification,
        hop_limit=hop_limit,
        traffic_class=traffic_class,
        dont_fragment=dont_fragment,
        options=options,
    )
    assert len(head) == 20 + len(options)
    header = parsed(head + bytes(length) + b"padding of the link")
    assert (header.source, header.destination, header.identification) == (source, destination, identification)
    assert (header.hop_limit, header.traffic_class, header.ecn) == (hop_limit, traffic_class, traffic_class & 3)
    assert (header.dont_fragment, header.transport_offset) == (dont_fragment, len(head))
    assert header.end == len(head) + length


# RFC 1122 §3.2.1.2: "A host MUST verify the IP header checksum on every received datagram and silently discard every
# datagram that has a bad checksum."
@pytest.mark.parametrize("options", [b"", b"\x94\x04\x00\x00"])
def test_every_flipped_bit_of_an_ipv4_header_is_noticed(options: bytes) -> None:
    head = ip.emit_ipv4(A4, B4, 0, identification=7, options=options)
    assert parse(head) is not None
    for bit in range(8 * len(head)):
        if bit == 5:
            continue  # 4 becomes 6: no IPv4 header any more
        flipped = bytearray(head)
        flipped[bit >> 3] ^= 1 << (bit & 7)
        assert parse(bytes(flipped) + bytes(64)) is None


def with_checksum(head: bytearray) -> bytes:
    head[10:12] = b"\0\0"
    head[10:12] = checksum.complement(checksum.add(head[: (head[0] & 15) * 4])).to_bytes(2, "big")
    return bytes(head)


@pytest.mark.parametrize(
    ("position", "value"), [(0, 0x44), (0, 0x40), (0, 0x4F), (0, 0x55), (0, 0x05), (3, 19), (3, 21), (2, 1)]
)
def test_ipv4_lengths_and_version_must_hold(position: int, value: int) -> None:
    head = bytearray(ip.emit_ipv4(A4, B4, 0))
    head[position] = value
    assert parse(with_checksum(head)) is None


@pytest.mark.parametrize(
    ("offset", "more", "is_fragment"), [(0, False, False), (0, True, True), (1480, False, True), (1480, True, True)]
)
def test_ipv4_fragments(offset: int, more: bool, is_fragment: bool) -> None:
    head = ip.emit_ipv4(A4, B4, 8, dont_fragment=False, fragment_offset=offset, more_fragments=more, identification=9)
    header = parsed(head + bytes(8))
    assert (header.is_fragment, header.fragment_offset, header.identification) == (is_fragment, offset, 9)


def test_ipv6_by_hand() -> None:  # RFC 8200 §3
    head = ip.emit_ipv6(A6, B6, 20, traffic_class=0xA1, flow_label=0x12345, hop_limit=63)
    assert head == bytes.fromhex("6a112345 0014 06 3f") + A6 + B6
    header = parsed(head + bytes(20) + b"pad")
    assert (header.version, header.source, header.destination, header.protocol) == (6, A6, B6, 6)
    assert (header.transport_offset, header.end, header.hop_limit) == (40, 60, 63)
    assert (header.traffic_class, header.ecn) == (0xA1, 1)
    assert header.final_destination == B6


# RFC 8754 §6.1: "At its SR Policy headend, the Segment List <S1,S2,S3> results in SRH (S3,S2,S1; SL=2)"
def test_segment_routing_header_by_hand() -> None:
    head = ip.emit_ipv6(A6, B6, 20, segments=(S1, S2))
    srh = bytes.fromhex("06 06 04 02 02 00 0000") + B6 + S2 + S1
    assert head == bytes.fromhex("60000000 004c 2b 40") + A6 + S1 + srh
    header = parsed(head + bytes(20))
    assert (header.destination, header.final_destination, header.protocol) == (S1, B6, 6)
    assert (header.segments, header.segments_left) == ((S1, S2, B6), 2)
    assert (header.transport_offset, header.end) == (96, 116)
    # The destination may be given as the last segment, too.
    assert ip.emit_ipv6(A6, B6, 20, segments=(S1, S2, B6)) == head


def test_segment_routing_at_its_end() -> None:
    srh = ip.emit_segment_routing((S1,), B6, 6, segments_left=0)
    header = parsed(ip.emit_ipv6(A6, B6, len(srh), next_header=ip.ROUTING) + srh)
    assert (header.segments_left, header.destination, header.final_destination) == (0, B6, B6)
    assert header.protocol == 6


# RFC 8754 §4.3.1.1 S10, S11
@pytest.mark.parametrize(
    ("position", "value", "accepted"),
    [
        (3, 2, True),  # Segments Left = Last Entry + 1: a reduced SRH (§4.1.1)
        (3, 3, False),
        (4, 2, False),  # more entries than octets
        (4, 255, False),
        (1, 255, False),  # longer than the packet
        (1, 2, False),  # shorter than its entries
    ],
)
def test_contradictory_segment_routing_headers(position: int, value: int, accepted: bool) -> None:
    packet = bytearray(ip.emit_ipv6(A6, B6, 20, segments=(S1,)) + bytes(20))
    packet[40 + position] = value
    assert (parse(bytes(packet)) is not None) == accepted


def test_unknown_routing_type_is_passed_over_and_told() -> None:  # RFC 8200 §4.4
    routing = bytes((6, 0, 99, 1)) + bytes(4)
    header = parsed(ip.emit_ipv6(A6, B6, 8, next_header=ip.ROUTING) + routing)
    assert (header.protocol, header.segments_left, header.transport_offset) == (6, 1, 48)


def chain(*headers: tuple[int, bytes], last: int = 6, transport: bytes = bytes(20)) -> bytes:
    """An IPv6 packet with extension headers (kind, octets after the next-header field)."""
    kinds = [kind for kind, _ in headers] + [last]
    body = b"".join(bytes((kinds[place + 1],)) + rest for place, (_, rest) in enumerate(headers))
    return ip.emit_ipv6(A6, B6, len(body) + len(transport), next_header=kinds[0]) + body + transport


PADDING = b"\x00\x01\x04\0\0\0\0"  # 8 octets with the next-header field: PadN


def test_hop_by_hop_destination_and_fragment_headers() -> None:
    packet = chain(
        (ip.HOP_BY_HOP, PADDING),
        (ip.DESTINATION_OPTIONS, b"\x01\x01\x0c" + bytes(12)),
        (ip.FRAGMENT, bytes.fromhex("00 0001 00abcdef")),
    )
    header = parsed(packet)
    assert (header.protocol, header.transport_offset, header.end) == (6, 40 + 8 + 16 + 8, len(packet))
    assert (header.is_fragment, header.fragment_offset, header.identification) == (True, 0, 0xABCDEF)


# RFC 8200 §4.5: a fragment header with neither offset nor M flag is a whole packet
def test_atomic_fragment_is_no_fragment() -> None:
    header = parsed(chain((ip.FRAGMENT, bytes.fromhex("00 0000 00abcdef"))))
    assert not header.is_fragment
    assert header.transport_offset == 48


def test_chain_is_not_followed_into_a_later_fragment() -> None:
    fragment = ip.emit_fragment_header(ip.DESTINATION_OPTIONS, 1448, True, 7)
    header = parsed(ip.emit_ipv6(A6, B6, 16, next_header=ip.FRAGMENT) + fragment + b"\xff" * 8)
    assert (header.is_fragment, header.fragment_offset, header.protocol) == (True, 1448, ip.DESTINATION_OPTIONS)
    assert header.transport_offset == 48


@pytest.mark.parametrize(
    "packet",
    [
        b"",
        bytes(19),
        ip.emit_ipv6(A6, B6, 0)[:39],
        ip.emit_ipv6(A6, B6, 1),
        chain((ip.HOP_BY_HOP, PADDING), (ip.HOP_BY_HOP, PADDING)),  # RFC 8200 §4.1: only immediately after the header
        chain(*[(ip.DESTINATION_OPTIONS, PADDING)] * (ip.MAX_EXTENSION_HEADERS + 1)),
        chain((ip.DESTINATION_OPTIONS, b"\x09" + bytes(6))),
        ip.emit_ipv6(A6, B6, 7, next_header=ip.DESTINATION_OPTIONS) + bytes(7),
        ip.emit_ipv6(A6, B6, 0, next_header=ip.HOP_BY_HOP),
    ],
)
def test_malformed(packet: bytes) -> None:
    assert parse(packet) is None


def test_longest_chain_that_is_followed() -> None:
    header = parsed(chain(*[(ip.DESTINATION_OPTIONS, PADDING)] * ip.MAX_EXTENSION_HEADERS))
    assert header.protocol == 6


@settings(deadline=None, max_examples=400)
@given(st.binary(max_size=120), st.sampled_from([None, 0x45, 0x46, 0x60]), st.sampled_from([None, 0, 43, 44, 60]))
def test_random_octets_never_raise(data: bytes, first: int | None, next_header: int | None) -> None:
    octets = bytearray(data)
    if first is not None and octets:
        octets[0] = first
    if next_header is not None and len(octets) >= 40:
        octets[6] = next_header
        octets[4:6] = (len(octets) - 40).to_bytes(2, "big")
    header = parse(bytes(octets))
    assert header is None or 20 <= header.transport_offset <= header.end <= len(octets)
