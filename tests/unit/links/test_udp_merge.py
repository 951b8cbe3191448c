"""What UDP_GRO has put together becomes the super-segment that was cut; anything else stays as it came."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mptcp.core.packet import Packet
from mptcp.core.wire import checksum, ip, tcp
from mptcp.core.wire.offload import split
from mptcp.core.wire.segment import ACK, CWR, FIN, PSH, Segment
from mptcp.links import udp_frames as frames
from mptcp.links.udp_merge import merge

SOURCE, DESTINATION = frames.virtual_address(b"sourcenr", 1), frames.virtual_address(b"destinat", 2)
LEAD = frames.header(frames.DATA, 99, frames.PARTIAL_CHECKSUM)


def super_segment(payload: bytes, size: int, *, seq: int = 7, flags: int = ACK, ack: int = 5) -> Packet:
    segment = Segment(seq, ack, flags, 1000, payloads=(payload,))
    header = tcp.emit(segment, 1000, 2000, checksum.pseudo_sum(SOURCE, DESTINATION, 6), partial=True)
    head = ip.emit_ipv6(SOURCE, DESTINATION, len(header) + len(payload)) + header
    return Packet(head, (payload,), len(head) + len(payload), 40, size, True)


def datagrams(packet: Packet) -> list[bytes]:
    return [LEAD + header + bytes(part) for header, part in split(packet)]


def merged(pieces: list[bytes], size: int) -> list[tuple[bytes, int]]:
    data = memoryview(b"".join(pieces))
    result, at = [], 0
    while at < len(data):
        inner, gso_size, following = merge(data, size, at)
        assert following > at
        result.append((bytes(inner), gso_size))
        at = following
    return result


def same_but_checksum(one: bytes, other: bytes) -> bool:
    return one[:56] == other[:56] and one[58:] == other[58:]


@settings(max_examples=60)
@given(
    st.integers(1, 12_000), st.integers(100, 1400), st.sampled_from([ACK, ACK | PSH, ACK | FIN, ACK | PSH | FIN]),
    st.sampled_from([0, 0xFFFFFF00]),
)  # fmt: skip
def test_a_super_segment_there_and_back(length: int, size: int, flags: int, seq: int) -> None:
    packet = super_segment(bytes(i % 251 for i in range(length)), size, seq=seq, flags=flags)
    pieces = datagrams(packet)
    results = merged(pieces, len(pieces[0]))
    if flags == ACK or length > 2 * size or len(pieces) == 1:
        assert len(results) == 1
    octets = b"".join(octets[60:] for octets, _ in results)
    assert octets == bytes(packet.payloads[0])
    assert results[-1][0][53] == flags
    if len(results) == 1:
        assert same_but_checksum(results[0][0], bytes(packet))
        assert results[0][1] == (size if len(pieces) > 1 else 0)


@pytest.mark.parametrize(
    "changed",
    [
        {"seq": 7 + 1000},  # of one flow, but not the next
        {"seq": 7 + 3000, "ack": 6},  # another acknowledgement
        {"seq": 7 + 3000, "flags": ACK | CWR},
    ],
)
def test_what_does_not_follow_is_left_alone(changed: dict[str, int]) -> None:
    first = datagrams(super_segment(bytes(3000), 1000))
    second = datagrams(super_segment(bytes(3000), 1000, **changed))
    results = merged(first + second, len(first[0]))
    assert results[0][1] == 1000
    assert len(results[0][0]) == 60 + 3000
    assert b"".join(octets[60:] for octets, _ in results) == bytes(6000)
    assert len(results) >= 2


def test_another_frame_ends_the_run() -> None:
    pieces = datagrams(super_segment(bytes(2000), 1000))
    other_tag = frames.header(frames.DATA, 98, frames.PARTIAL_CHECKSUM) + pieces[1][8:]
    assert len(merged([pieces[0], other_tag], len(pieces[0]))) == 2
    complete = frames.header(frames.DATA, 99) + pieces[1][8:]
    assert len(merged([pieces[0], complete], len(pieces[0]))) == 2


@settings(max_examples=200)
@given(st.binary(min_size=1, max_size=300), st.integers(9, 120), st.integers(0, 300), st.integers(0, 255))
def test_hostile_octets_never_raise(octets: bytes, size: int, at: int, value: int) -> None:
    pieces = b"".join(datagrams(super_segment(bytes(150), 40)))
    hostile = bytearray(pieces if at % 2 else octets)
    hostile[at % len(hostile)] = value
    merged([bytes(hostile)], size)


def test_lengths_that_lie() -> None:
    pieces = datagrams(super_segment(bytes(2000), 1000))
    for position, value in ((8 + 5, 1), (8 + 52, 0xF0), (8 + 52, 0x10), (8 + 6, 17), (8, 0x45)):
        changed = [bytearray(piece) for piece in pieces]
        for piece in changed:
            piece[position] = value
        results = merged([bytes(piece) for piece in changed], len(pieces[0]))
        assert [octets for octets, _ in results] == [bytes(piece[8:]) for piece in changed]
        assert [size for _, size in results] == [0, 0]
