"""Software offload: cutting is exact, coalescing is its inverse and refuses whatever cutting could not give back."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mptcp.core.packet import Packet
from mptcp.core.wire import checksum, ip, offload, tcp
from mptcp.core.wire.mptcp_options import Dss
from mptcp.core.wire.offload import finish, split
from mptcp.core.wire.segment import ACK, CWR, ECE, FIN, NO_OPTIONS, PSH, SYN, URG, Options, Payload, Segment
from mptcp.info import Endpoint

A4, B4 = bytes((10, 0, 0, 1)), bytes((10, 0, 0, 2))
A6, B6, S6 = (bytes.fromhex("fd00") + bytes(13) + bytes((n,)) for n in (1, 2, 5))
DATA = bytes(range(256)) * 40
MAPPED = Options(timestamp_value=1, timestamp_echo=2, mptcp=(Dss(7, True, 9, True, 1, 5000),))


def build(
    family: int = 4,
    payloads: tuple[Payload, ...] = (DATA[:5000],),
    *,
    seq: int = 1000,
    ack: int = 7,
    flags: int = ACK,
    window: int = 99,
    options: Options = MAPPED,
    gso_size: int = 1400,
    partial: bool = True,
    identification: int = 5,
    dont_fragment: bool = True,
    hop_limit: int = 64,
    traffic_class: int = 0,
    segments: tuple[bytes, ...] = (),
    ports: tuple[int, int] = (40000, 80),
    urgent_pointer: int = 0,
) -> Packet:
    source, destination = (A4, B4) if family == 4 else (A6, B6)
    pseudo = checksum.pseudo_sum(source, destination, 6)
    segment = Segment(seq, ack, flags, window, options, payloads, urgent_pointer=urgent_pointer)
    transport = tcp.emit(segment, *ports, pseudo, partial=partial)
    octets = len(transport) + segment.length
    if family == 4:
        head = ip.emit_ipv4(
            source,
            destination,
            octets,
            identification=identification,
            dont_fragment=dont_fragment,
            hop_limit=hop_limit,
            traffic_class=traffic_class,
        )
    else:
        head = ip.emit_ipv6(
            source, destination, octets, hop_limit=hop_limit, traffic_class=traffic_class, segments=segments
        )
    return Packet(head + transport, payloads, len(head) + octets, len(head), gso_size, partial)


def parse(data: bytes | memoryview) -> tuple[ip.IpHeader, Segment]:
    """Both headers, after every length and checksum has been found right."""
    view = memoryview(data)
    header = ip.parse(view)
    assert header is not None
    assert header.end == len(view)
    pseudo = checksum.pseudo_sum(header.source, header.final_destination, 6)
    assert checksum.verify_tcp(view, header.transport_offset, header.end, pseudo)
    segment = tcp.parse(view, header.transport_offset, header.end)
    assert segment is not None
    return header, segment


def received(*packets: Packet) -> list[offload.Received]:
    return [(memoryview(piece), 0, False) for packet in packets for piece in offload.finish(packet)]


@pytest.mark.parametrize(("family", "segments"), [(4, ()), (6, ()), (6, (S6,))])
def test_pieces_of_a_super_segment(family: int, segments: tuple[bytes, ...]) -> None:
    packet = build(
        family,
        (DATA[:777], memoryview(DATA)[777:5000]),
        seq=0xFFFFFC00,
        flags=ACK | PSH | FIN | CWR | ECE,
        identification=0xFFFE,
        segments=segments,
    )
    pieces = [parse(piece) for piece in offload.finish(packet)]
    assert [segment.length for _, segment in pieces] == [1400, 1400, 1400, 800]
    assert b"".join(segment.payload for _, segment in pieces) == DATA[:5000]
    assert [segment.seq for _, segment in pieces] == [0xFFFFFC00, 0x178, 0x6F0, 0xC68]
    assert [segment.flags & ~ACK for _, segment in pieces] == [CWR | ECE, ECE, ECE, PSH | FIN | ECE]
    assert all(segment.options == MAPPED and (segment.ack, segment.window) == (7, 99) for _, segment in pieces)
    if family == 4:
        assert [header.identification for header, _ in pieces] == [0xFFFE, 0xFFFF, 0, 1]


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("payloads", [(), (b"",), (b"odd",), (b"odd", b"even", b"o")])
def test_partial_checksum_is_completed(family: int, payloads: tuple[bytes, ...]) -> None:
    (piece,) = offload.finish(build(family, payloads, gso_size=0))
    assert parse(piece)[1].payload == b"".join(payloads)
    assert piece == bytes(build(family, payloads, gso_size=0, partial=False))


def test_packet_that_needs_nothing_is_left_alone() -> None:
    packet = build(4, (b"abc",), gso_size=0, partial=False)
    assert offload.finish(packet) == [bytes(packet)]


def test_super_segment_no_longer_than_a_piece() -> None:
    (piece,) = offload.finish(build(4, (DATA[:1400],), flags=ACK | PSH | CWR))
    assert parse(piece)[1].flags == ACK | PSH | CWR


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from([4, 6]),
    st.lists(st.integers(0, 900), min_size=1, max_size=5),
    st.integers(1, 600),
    st.integers(0, 0xFFFFFFFF),
    st.sampled_from([ACK, ACK | PSH, ACK | FIN, ACK | PSH | CWR, ACK | ECE]),
    st.sampled_from([NO_OPTIONS, MAPPED]),
)
def test_cutting_and_coalescing_are_inverse(
    family: int, lengths: list[int], size: int, seq: int, flags: int, options: Options
) -> None:
    size += sum(lengths) // offload.MAX_COALESCED_SEGMENTS
    payloads = tuple(DATA[n : n + length] for n, length in enumerate(lengths))
    whole = build(family, payloads, gso_size=size, seq=seq, flags=flags, options=options)
    pieces = offload.finish(whole)
    assert b"".join(parse(piece)[1].payload for piece in pieces) == b"".join(payloads)
    (joined,) = offload.coalesce([(memoryview(piece), 0, False) for piece in pieces])
    if len(pieces) == 1:
        assert bytes(joined[0]) == pieces[0]
        return
    assert joined[1:] == (size, True)
    # The device's way of handing over: a partial checksum. It is the very packet that was cut.
    assert bytes(joined[0]) == bytes(whole)


def joined_lengths(*packets: Packet) -> list[int]:
    result = offload.coalesce(received(*packets))
    return [parse_lenient(data) for data, _, _ in result]


def parse_lenient(data: memoryview) -> int:
    header = ip.parse(data)
    assert header is not None
    segment = tcp.parse(data, header.transport_offset, header.end)
    assert segment is not None
    return segment.length


def small(seq: int, length: int = 100, **changes: object) -> Packet:
    arguments: dict[str, object] = {"gso_size": 0, "options": NO_OPTIONS, **changes}
    return build(payloads=(DATA[:length],), seq=seq, **arguments)  # type: ignore[arg-type]


def test_segments_in_order_become_one() -> None:
    assert joined_lengths(small(0), small(100), small(200, 40)) == [240]


@pytest.mark.parametrize(
    "second",
    [
        small(101),  # a gap
        small(99),  # an overlap
        small(0),  # the same again
        small(100, 101),  # longer than the first
        small(100, ack=8),
        small(100, window=98),
        small(100, hop_limit=63),
        small(100, traffic_class=3),  # CE
        small(100, options=Options(timestamp_value=1)),
        small(100, flags=ACK | ECE),
        small(100, flags=ACK | CWR),
        small(100, flags=ACK | URG, urgent_pointer=1),
        small(100, flags=ACK | SYN),
        small(100, flags=FIN),
        small(100, ports=(40001, 80)),
        small(100, family=6),
        small(100, 0),
    ],
)
def test_segments_that_differ_stay_apart(second: Packet) -> None:
    before = received(small(0), second)
    assert offload.coalesce(before) == before


def test_nothing_follows_a_short_segment_a_push_or_a_fin() -> None:
    assert joined_lengths(small(0), small(100, 50), small(150)) == [150, 100]
    assert joined_lengths(small(0), small(100, flags=ACK | PSH), small(200)) == [200, 100]
    assert joined_lengths(small(0, flags=ACK | FIN), small(100)) == [100, 100]


def test_identification_must_count_up_where_fragments_may_be() -> None:  # RFC 6864 §4
    loose = {"dont_fragment": False}
    assert joined_lengths(small(0, **loose), small(100, identification=6, **loose)) == [200]
    assert joined_lengths(small(0, **loose), small(100, identification=9, **loose)) == [100, 100]
    assert joined_lengths(small(0), small(100, identification=9)) == [200]


def test_other_flows_in_between_do_not_matter_but_order_within_a_flow_does() -> None:
    other = {"ports": (5, 6)}
    assert joined_lengths(small(0), small(0, 70, **other), small(100), small(70, 70, **other)) == [200, 140]
    # A pure acknowledgement of the same flow must not be overtaken.
    assert joined_lengths(small(0), small(100, 0), small(100)) == [100, 0, 100]


def test_wrong_checksum_is_left_for_the_host_to_count() -> None:
    first, second, third = received(small(0), small(100), small(200))
    broken = bytearray(second[0])
    broken[-1] ^= 1
    packets = [first, (memoryview(broken), 0, False), third]
    assert offload.coalesce(packets) == packets
    vouched = offload.coalesce([first, (memoryview(broken), 0, True), third])
    assert [parse_lenient(data) for data, _, _ in vouched] == [300]


def test_limits() -> None:
    many = [small(100 * n) for n in range(offload.MAX_COALESCED_SEGMENTS + 1)]
    assert joined_lengths(*many) == [100 * offload.MAX_COALESCED_SEGMENTS, 100]
    large = [build(6, (DATA,), seq=n * len(DATA), gso_size=0, options=NO_OPTIONS) for n in range(7)]
    lengths = joined_lengths(*large)
    assert sum(lengths) == 7 * len(DATA)
    assert max(lengths) + 60 <= offload.MAX_PACKET_OCTETS


def test_packets_of_other_kinds_pass() -> None:
    packets: list[offload.Received] = [
        (memoryview(octets), 0, False)
        for octets in (b"", b"E" * 40, bytes(100), ip.emit_ipv6(A6, B6, 20, segments=(S6,)) + bytes(20), b"\x60" * 60)
    ]
    packets.append((received(small(0))[0][0], 100, True))
    assert offload.coalesce(packets) == packets


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 255)), max_size=4))
def test_random_changes_never_raise_and_lose_nothing(changes: list[tuple[int, int]]) -> None:
    first, second = received(small(0), small(100))
    octets = bytearray(second[0])
    for position, value in changes:
        octets[position] = value
    changed: offload.Received = (memoryview(octets), 0, True)
    result = offload.coalesce([first, changed])
    if len(result) == 2:
        assert result == [first, changed]
    else:
        assert parse_lenient(result[0][0]) > 100


@pytest.mark.parametrize("size", [1, 999, 1000, 1001, 3000, 4500])
@pytest.mark.parametrize("ipv6", [False, True])
def test_split_is_cut_with_the_checksums_left_to_the_device(size: int, ipv6: bool) -> None:
    source, destination = (Endpoint.parse("fd00::1"), Endpoint.parse("fd00::2")) if ipv6 else (
        Endpoint.parse("10.0.0.1"), Endpoint.parse("10.0.0.2")
    )  # fmt: skip
    payload = bytes(range(256)) * 20
    payloads = (payload[: size // 3], memoryview(payload)[size // 3 : size])
    segment = Segment(0xFFFFFF00, 7, ACK | PSH | FIN | CWR, 99, payloads=payloads)
    pseudo = checksum.pseudo_sum(source.address, destination.address, 6)
    transport = tcp.emit(segment, 1, 2, pseudo, partial=True)
    emit_ip = ip.emit_ipv6 if ipv6 else ip.emit_ipv4
    head = emit_ip(source.address, destination.address, len(transport) + size)
    packet = Packet(head + transport, payloads, len(head) + len(transport) + size, len(head), 1000, True)
    cut = finish(packet) if size > 1000 else finish(Packet(packet.header, payloads, packet.length, len(head), 0, True))
    completed = [
        octets
        for header, part in split(packet)
        for octets in finish(Packet(header, (part,), len(header) + len(part), len(head), 0, True))
    ]

    def without_identification(octets: bytes) -> bytes:
        return octets if ipv6 else octets[:4] + octets[6:10] + octets[12:]

    assert [without_identification(o) for o in completed] == [without_identification(o) for o in cut]
    if not ipv6:
        assert all(checksum.add(o[:20]) == 65535 for o in completed)
