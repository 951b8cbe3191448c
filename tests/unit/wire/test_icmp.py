"""ICMP errors: every code of both versions, what they quote, and hostile quotes."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mptcp.core.wire import checksum, icmp, ip, tcp
from mptcp.core.wire.icmp import IcmpError, IcmpKind
from mptcp.core.wire.segment import ACK, Segment

A4, B4, R4 = bytes((10, 0, 0, 1)), bytes((10, 0, 0, 2)), bytes((10, 9, 9, 9))
A6, B6, R6, S6 = (bytes.fromhex("fd00") + bytes(13) + bytes((n,)) for n in (1, 2, 9, 5))


def packet(source: bytes, destination: bytes, payload: bytes = b"x" * 1400, segments: tuple[bytes, ...] = ()) -> bytes:
    pseudo = checksum.pseudo_sum(source, destination, 6)
    segment = Segment(0xCAFEBABE, 7, ACK, 100, payloads=(payload,))
    transport = tcp.emit(segment, 40000, 80, pseudo, partial=False) + payload
    if len(source) == 4:
        return ip.emit_ipv4(source, destination, len(transport)) + transport
    return ip.emit_ipv6(source, destination, len(transport), segments=segments) + transport


def parse(data: bytes) -> IcmpError | None:
    view = memoryview(data)
    header = ip.parse(view)
    assert header is not None
    return icmp.parse(view, header)


def parsed(data: bytes) -> IcmpError:
    error = parse(data)
    assert error is not None
    return error


@pytest.mark.parametrize("kind", list(IcmpKind))
@pytest.mark.parametrize(("source", "destination", "reporter"), [(A4, B4, R4), (A6, B6, R6)])
def test_parse_gives_back_what_was_emitted(kind: IcmpKind, source: bytes, destination: bytes, reporter: bytes) -> None:
    mtu = 1300 if kind is IcmpKind.PACKET_TOO_BIG else 0
    data = icmp.emit(kind, packet(source, destination), reporter, mtu=mtu)
    error = parsed(data)
    assert (error.kind, error.mtu, error.reporter) == (kind, mtu, reporter)
    assert (error.source, error.source_port) == (source, 40000)
    assert (error.destination, error.destination_port, error.seq) == (destination, 80, 0xCAFEBABE)
    header = ip.parse(memoryview(data))
    assert header is not None
    assert (header.source, header.destination) == (reporter, source)
    # RFC 1812 §4.3.2.3, RFC 4443 §2.4(c)
    assert len(data) == (icmp.MAX_V4_ERROR_OCTETS if len(source) == 4 else icmp.MAX_V6_ERROR_OCTETS)


V4 = {
    (3, 0): "NETWORK_UNREACHABLE",
    (3, 1): "HOST_UNREACHABLE",
    (3, 2): "PROTOCOL_UNREACHABLE",
    (3, 3): "PORT_UNREACHABLE",
    (3, 4): "PACKET_TOO_BIG",
    (3, 5): "SOURCE_ROUTE_FAILED",
    (3, 6): "NETWORK_UNREACHABLE",
    (3, 7): "HOST_UNREACHABLE",
    (3, 8): "HOST_UNREACHABLE",
    (3, 9): "PROHIBITED",
    (3, 10): "PROHIBITED",
    (3, 11): "NETWORK_UNREACHABLE",
    (3, 12): "HOST_UNREACHABLE",
    (3, 13): "PROHIBITED",
    (3, 14): "PROHIBITED",
    (3, 15): "PROHIBITED",
    (11, 0): "TIME_EXCEEDED",
    (11, 1): "TIME_EXCEEDED",
    (12, 0): "PARAMETER_PROBLEM",
    (12, 1): "PARAMETER_PROBLEM",
    (12, 2): "PARAMETER_PROBLEM",
}
V6 = {
    (1, 0): "NETWORK_UNREACHABLE",
    (1, 1): "PROHIBITED",
    (1, 2): "NETWORK_UNREACHABLE",
    (1, 3): "HOST_UNREACHABLE",
    (1, 4): "PORT_UNREACHABLE",
    (1, 5): "PROHIBITED",
    (1, 6): "PROHIBITED",
    (1, 7): "SOURCE_ROUTE_FAILED",
    **{(2, code): "PACKET_TOO_BIG" for code in range(256)},  # RFC 4443 §3.2: "ignored by the receiver"
    (3, 0): "TIME_EXCEEDED",
    (3, 1): "TIME_EXCEEDED",
    **{(4, code): "PARAMETER_PROBLEM" for code in range(256)},
    (4, 1): "PROTOCOL_UNREACHABLE",
}


@pytest.mark.parametrize(("version", "table"), [(4, V4), (6, V6)])
def test_every_type_and_code(version: int, table: dict[tuple[int, int], str]) -> None:
    for number in range(256):
        for code in range(256):
            kind = icmp.classify(version, number, code)
            assert (kind and kind.name) == table.get((number, code))


def test_frag_needed_by_hand() -> None:  # RFC 1191 §4
    data = icmp.emit(IcmpKind.PACKET_TOO_BIG, packet(A4, B4, b""), R4, mtu=1400)
    # type 3, code 4, checksum; unused; MTU; the quoted header, its first 64 bits and the rest that fits
    assert data[20:22] == b"\x03\x04"
    assert data[24:28] == b"\0\0\x05\x78"
    assert data[28:] == packet(A4, B4, b"")
    assert checksum.add(data[20:]) == 0xFFFF


def refreshed(data: bytearray) -> bytes:
    """``data`` with an ICMP checksum that is right again (IPv4)."""
    data[22:24] = b"\0\0"
    data[22:24] = checksum.complement(checksum.add(data[20:])).to_bytes(2, "big")
    return bytes(data)


# RFC 1191 §5: routers older than that RFC leave the MTU zero
@pytest.mark.parametrize(("quoted_length", "mtu"), [(1500, 1492), (1492, 1006), (576, 508), (65535, 32000), (60, 68)])
def test_router_that_does_not_say_its_mtu(quoted_length: int, mtu: int) -> None:
    data = bytearray(icmp.emit(IcmpKind.PACKET_TOO_BIG, packet(A4, B4), R4, mtu=0))
    data[30:32] = quoted_length.to_bytes(2, "big")
    assert parsed(refreshed(data)).mtu == mtu


def test_eight_quoted_octets_are_enough_and_seven_are_not() -> None:  # RFC 792: "the first 64 bits"
    for kind in (IcmpKind.PORT_UNREACHABLE, IcmpKind.TIME_EXCEEDED):
        assert parsed(icmp.emit(kind, packet(A4, B4)[:28], R4)).seq == 0xCAFEBABE
        assert parse(icmp.emit(kind, packet(A4, B4)[:27], R4)) is None
        assert parsed(icmp.emit(kind, packet(A6, B6)[:48], R6)).seq == 0xCAFEBABE
        assert parse(icmp.emit(kind, packet(A6, B6)[:47], R6)) is None


def test_quoted_segment_routing_names_the_final_destination() -> None:
    error = parsed(icmp.emit(IcmpKind.TIME_EXCEEDED, packet(A6, B6, segments=(S6,)), R6))
    assert (error.destination, error.seq) == (B6, 0xCAFEBABE)


def test_hardness() -> None:  # RFC 9293 §3.9.2.2
    soft = [IcmpKind.NETWORK_UNREACHABLE, IcmpKind.HOST_UNREACHABLE, IcmpKind.SOURCE_ROUTE_FAILED,
            IcmpKind.TIME_EXCEEDED, IcmpKind.PARAMETER_PROBLEM, IcmpKind.PACKET_TOO_BIG]  # fmt: skip
    for kind in IcmpKind:
        assert parsed(icmp.emit(kind, packet(A4, B4), R4, mtu=1000)).is_hard == (kind not in soft)


@pytest.mark.parametrize(("data", "start"), [
    (icmp.emit(IcmpKind.PORT_UNREACHABLE, packet(A4, B4, b"")[:28], R4), 20),
    (icmp.emit(IcmpKind.PORT_UNREACHABLE, packet(A6, B6, b"")[:48], R6), 40),
])  # fmt: skip
def test_wrong_checksum_is_refused(data: bytes, start: int) -> None:
    assert parse(data) is not None
    for position in range(start, len(data)):
        flipped = bytearray(data)
        flipped[position] ^= 0x10
        assert parse(bytes(flipped)) is None


@pytest.mark.parametrize(
    ("position", "value"),
    [
        (28, 0x65),  # quotes IPv6
        (28, 0x44),  # quotes a header of 16 octets
        (28, 0x4F),  # header longer than the quote
        (34, 0x01),  # a later fragment
        (35, 0x01),
        (37, 17),  # UDP
    ],
)
def test_quotes_that_are_no_tcp_header(position: int, value: int) -> None:
    data = bytearray(icmp.emit(IcmpKind.PORT_UNREACHABLE, packet(A4, B4, b""), R4))
    data[position] = value
    assert parse(refreshed(data)) is None


def test_other_messages_are_no_errors() -> None:
    echo = bytes.fromhex("0800f7ff00000000")
    assert parse(ip.emit_ipv4(R4, A4, 8, protocol=ip.ICMP) + echo) is None
    assert parse(ip.emit_ipv4(R4, A4, 4, protocol=ip.ICMP) + echo[:4]) is None
    quench = bytearray(icmp.emit(IcmpKind.PORT_UNREACHABLE, packet(A4, B4), R4))
    quench[20:22] = b"\x04\x00"  # RFC 6633 §2: source quench is ignored
    assert parse(refreshed(quench)) is None


def test_error_under_the_wrong_protocol_number_is_refused() -> None:
    message = icmp.emit(IcmpKind.PORT_UNREACHABLE, packet(A4, B4), R4)[20:]
    assert parse(ip.emit_ipv4(R4, A4, len(message), protocol=ip.ICMPV6) + message) is None


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=120), st.sampled_from([1, 2, 3, 4, 11, 12]), st.booleans())
def test_random_quotes_never_raise(quote: bytes, number: int, version_6: bool) -> None:
    body = bytes((number, 0, 0, 0)) + bytes(4) + quote
    if version_6:
        total = checksum.pseudo_sum(R6, A6, ip.ICMPV6) + len(body)
        head = ip.emit_ipv6(R6, A6, len(body), next_header=ip.ICMPV6)
    else:
        total = 0
        head = ip.emit_ipv4(R4, A4, len(body), protocol=ip.ICMP)
    field = checksum.complement(checksum.add(body, total)).to_bytes(2, "big")
    error = parse(head + body[:2] + field + body[4:])
    assert error is None or len(error.source) == (16 if version_6 else 4)
