"""The TCP header: a vector by hand, round trips with checksums, malformed headers."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mptcp.core.wire import checksum, tcp
from mptcp.core.wire.mptcp_options import Dss
from mptcp.core.wire.segment import ACK, AE, FIN, NO_OPTIONS, PSH, SYN, URG, Options, Segment

PSEUDO = checksum.pseudo_sum(bytes((10, 0, 0, 1)), bytes((10, 0, 0, 2)), 6)
bits32 = st.integers(0, 0xFFFFFFFF)
bits16 = st.integers(0, 0xFFFF)


def test_header_by_hand() -> None:  # RFC 9293 §3.1, Figure 1
    segment = Segment(0x01020304, 0xA1A2A3A4, PSH | ACK | URG | AE, 0xBEEF, payloads=(b"abc",), urgent_pointer=2)
    data = tcp.emit(segment, 80, 8080, PSEUDO, partial=True)
    # offset 5, reserved 0, AE; the checksum is 0a00 + 0001 + 0a00 + 0002 + 6 + 23 octets
    assert data.hex(" ", 2) == "0050 1f90 0102 0304 a1a2 a3a4 5138 beef 1420 0002"
    parsed = tcp.parse(memoryview(data + b"abc"), 0, 23)
    assert parsed is not None
    assert (parsed.seq, parsed.ack, parsed.flags, parsed.window) == (0x01020304, 0xA1A2A3A4, 0x138, 0xBEEF)
    assert (parsed.urgent_pointer, parsed.payload, parsed.length, parsed.options) == (2, b"abc", 3, NO_OPTIONS)


@settings(deadline=None, max_examples=200)
@given(
    st.tuples(bits32, bits32, st.integers(0, 0x1FF), bits16, bits16),
    st.lists(st.binary(max_size=9), max_size=4),
    st.sampled_from(
        [
            NO_OPTIONS,
            Options(timestamp_value=1, timestamp_echo=2),
            Options(timestamp_value=3, timestamp_echo=4, mptcp=(Dss(5, True, 6, True, 7, 8, 9),)),
            Options(sack_blocks=((1, 2),)),
        ]
    ),
    st.integers(0, 7),
)
def test_parse_gives_back_what_was_emitted(
    numbers: tuple[int, int, int, int, int], payloads: list[bytes], options: Options, offset: int
) -> None:
    seq, ack, flags, window, urgent_pointer = numbers
    segment = Segment(seq, ack, flags, window, options, payloads, urgent_pointer=urgent_pointer)
    data = tcp.emit(segment, 1, 65535, PSEUDO, partial=False) + b"".join(payloads)
    view = memoryview(bytes(offset) + data + b"trailer")
    end = offset + len(data)
    assert checksum.verify_tcp(view, offset, end, PSEUDO)
    parsed = tcp.parse(view, offset, end)
    assert parsed is not None
    assert (parsed.seq, parsed.ack, parsed.flags, parsed.window) == (seq, ack, flags, window)
    assert (parsed.urgent_pointer, parsed.options) == (urgent_pointer, options)
    assert parsed.payload == b"".join(payloads)
    assert parsed.length == len(parsed.payload)


def test_payload_is_a_view_not_a_copy() -> None:
    buffer = bytearray(tcp.emit(Segment(payloads=(b"abcd",)), 1, 2, PSEUDO, partial=True) + b"abcd")
    parsed = tcp.parse(memoryview(buffer), 0, len(buffer))
    assert parsed is not None
    buffer[-1:] = b"Z"
    assert parsed.payload == b"abcZ"


def test_sequence_length_counts_syn_and_fin() -> None:  # RFC 9293 §3.4
    assert Segment(flags=SYN | FIN, payloads=(b"abc",)).sequence_length == 5


@pytest.mark.parametrize("offset_field", range(16))
def test_data_offset_must_hold_the_header_and_lie_within(offset_field: int) -> None:
    header = bytearray(tcp.emit(Segment(), 1, 2, PSEUDO, partial=True) + b"\x01" * 16)
    header[12] = offset_field << 4
    parsed = tcp.parse(memoryview(header), 0, len(header))
    assert (parsed is not None) == (5 <= offset_field <= 9)
    if parsed is not None:
        assert parsed.length == 36 - 4 * offset_field


@pytest.mark.parametrize("octets", range(20))
def test_short_header_is_malformed(octets: int) -> None:
    assert tcp.parse(memoryview(bytes(20)), 0, octets) is None


def test_reserved_bits_are_ignored() -> None:  # RFC 9293 §3.1: "Must be zero in generated segments and must be ignored"
    header = bytearray(tcp.emit(Segment(flags=ACK), 1, 2, PSEUDO, partial=True))
    header[12] |= 0x0E
    parsed = tcp.parse(memoryview(header), 0, 20)
    assert parsed is not None
    assert parsed.flags == ACK


def test_malformed_options_make_the_segment_malformed() -> None:
    header = bytearray(tcp.emit(Segment(), 1, 2, PSEUDO, partial=True) + b"\x02\x00\x00\x00")
    header[12] = 6 << 4
    assert tcp.parse(memoryview(header), 0, 24) is None


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=90))
def test_random_octets_never_raise(data: bytes) -> None:
    result = tcp.parse(memoryview(data), 0, len(data))
    assert result is None or result.length <= len(data) - 20
