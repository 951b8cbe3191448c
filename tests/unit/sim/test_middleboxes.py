"""What the boxes do to packets, octet by octet; the packets are built here, not by the stack's codec."""

from __future__ import annotations

from struct import pack, pack_into

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mptcp.core.entropy import Entropy
from mptcp.sim.clock import VirtualClock
from mptcp.sim.middlebox import Middlebox
from mptcp.sim.middleboxes import (
    ACK,
    FIN,
    PSH,
    SYN,
    AckProxy,
    ChangePayload,
    CoalesceSegments,
    CorruptPayload,
    DropSynWithOptions,
    NarrowLink,
    Nat,
    RewriteSequence,
    SplitSegments,
    StripOptions,
    Way,
)
from mptcp.sim.rawtcp import TcpPacket, checksum_is_valid, complete_checksum, fold, split_options

CLIENT, SERVER = bytes((10, 0, 0, 1)), bytes((10, 0, 0, 2))
MSS_OPTION = bytes((2, 4, 5, 180))
MP_CAPABLE = bytes((30, 4, 1, 1))
DSS = bytes((30, 8, 0x20, 1)) + bytes(4)


def packet(
    flags: int = ACK,
    payload: bytes = b"",
    options: bytes = b"",
    seq: int = 1000,
    ack: int = 5000,
    *,
    forward: bool = True,
    v6: bool = False,
) -> bytes:
    source, destination, ports = (CLIENT, SERVER, (40_000, 80)) if forward else (SERVER, CLIENT, (80, 40_000))
    options += bytes(-len(options) % 4)
    length = 20 + len(options) + len(payload)
    tcp = pack("!HHIIBBHHH", *ports, seq & 0xFFFFFFFF, ack, (20 + len(options)) << 2, flags, 0xFFFF, 0, 0)
    if v6:
        network = pack("!IHBB", 6 << 28, length, 6, 64) + bytes(12) + source + bytes(12) + destination
    else:
        header = bytearray(pack("!BBHHHBBH", 0x45, 0, 20 + length, 7, 0x4000, 64, 6, 0) + source + destination)
        pack_into("!H", header, 10, 0xFFFF - fold(bytes(header)))
        network = bytes(header)
    return complete_checksum(network + tcp + options + payload)


def parse(data: bytes) -> TcpPacket:
    assert checksum_is_valid(data)
    if data[0] >> 4 == 4:
        assert fold(data[:20]) == 0xFFFF
    found = TcpPacket.parse(data)
    assert found is not None
    return found


def words(data: bytes) -> int:
    """RFC 1071, literally."""
    data += bytes(len(data) & 1)
    total = sum(data[index] << 8 | data[index + 1] for index in range(0, len(data), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


@given(st.binary(max_size=64))
def test_fold_is_the_sum_of_rfc_1071(data: bytes) -> None:
    assert fold(data) == words(data)


@pytest.mark.parametrize("v6", [False, True])
def test_taking_apart_and_putting_together_changes_nothing(v6: bool) -> None:
    data = packet(SYN, b"abc", MSS_OPTION + MP_CAPABLE, v6=v6)
    assert parse(data).emit() == data
    broken = data[:-1] + b"x"
    assert not checksum_is_valid(broken)
    assert complete_checksum(broken)[-1:] == b"x"
    assert checksum_is_valid(complete_checksum(broken))


@given(st.binary(max_size=80))
@settings(max_examples=200)
def test_no_octets_upset_a_box(data: bytes) -> None:
    TcpPacket.parse(data)
    TcpPacket.parse(packet()[:20] + data)
    complete_checksum(data)
    checksum_is_valid(data)
    split_options(data)


def test_fragments_are_not_taken_for_tcp() -> None:
    data = bytearray(packet(payload=b"x" * 8))
    data[6] = 0x20
    assert TcpPacket.parse(bytes(data)) is None


def test_strip_options_from_everything() -> None:
    box = StripOptions()
    for data in (packet(SYN, options=MSS_OPTION + MP_CAPABLE), packet(options=DSS, payload=b"x")):
        (out,) = box.process(data, True, 0)
        assert not parse(out).has_option(30)
        assert len(out) == len(data)
    (out,) = box.process(packet(SYN, options=MSS_OPTION + MP_CAPABLE), False, 0)
    assert parse(out).has_option(2)
    plain = packet(options=MSS_OPTION)
    assert box.process(plain, True, 0) == (plain,)
    assert box.stripped == 3


def test_strip_options_by_kind_of_segment_time_and_way() -> None:
    syn, data = packet(SYN, options=MP_CAPABLE), packet(options=DSS)

    def stripped(box: Middlebox, octets: bytes, forward: bool = True, now: int = 0) -> bool:
        return not parse(box.process(octets, forward, now)[0]).has_option(30)

    box = StripOptions(syn_only=True)
    assert (stripped(box, syn), stripped(box, data)) == (True, False)
    box = StripOptions(spare_syn=True)
    assert (stripped(box, syn), stripped(box, data)) == (False, True)
    box = StripOptions(since_us=100)
    assert (stripped(box, data, now=99), stripped(box, data, now=100)) == (False, True)
    box = StripOptions(way=Way.BACKWARD)
    assert (stripped(box, data), stripped(box, data, forward=False)) == (False, True)
    box = StripOptions(every=2)
    assert [stripped(box, data) for _ in range(4)] == [False, True, False, True]


def test_drop_syn_with_options() -> None:
    box = DropSynWithOptions(until_us=100)
    assert box.process(packet(SYN, options=MP_CAPABLE), True, 0) == ()
    assert len(box.process(packet(SYN, options=MP_CAPABLE), True, 100)) == 1
    assert len(box.process(packet(SYN, options=MSS_OPTION), True, 0)) == 1
    assert len(box.process(packet(options=DSS), True, 0)) == 1
    assert box.dropped == 1


def test_nat_translates_there_and_back_and_forgets() -> None:
    outside = bytes((192, 0, 2, 1))
    box = Nat(outside, first_port=50_000, timeout_us=1_000)
    (out,) = box.process(packet(SYN), True, 0)
    translated = parse(out)
    assert (translated.source, translated.source_port) == (outside, 50_000)
    reply = parse(packet(SYN | ACK, forward=False))
    reply.destination, reply.destination_port = outside, 50_000
    (back,) = box.process(reply.emit(), False, 500)
    assert (parse(back).destination, parse(back).destination_port) == (CLIENT, 40_000)
    assert box.process(reply.emit(), False, 1_501) == ()
    (out,) = box.process(packet(), True, 2_000)
    assert parse(out).source_port == 50_001
    assert box.dropped == 1


@pytest.mark.parametrize("copy_options", [True, False])
def test_split_segments(copy_options: bool) -> None:
    box = SplitSegments(300, copy_options=copy_options)
    pieces = [parse(out) for out in box.process(packet(ACK | PSH | FIN, b"ab" * 350, DSS, 0xFFFFFF00), True, 0)]
    assert [len(piece.payload) for piece in pieces] == [300, 300, 100]
    assert [piece.seq for piece in pieces] == [0xFFFFFF00, 44, 344]
    assert [piece.flags for piece in pieces] == [ACK, ACK, ACK | PSH | FIN]
    assert [piece.has_option(30) for piece in pieces] == [True, copy_options, copy_options]
    assert b"".join(piece.payload for piece in pieces) == b"ab" * 350


def test_coalesce_segments_joins_neighbours_and_lets_go_in_time() -> None:
    clock = VirtualClock()
    injected: list[tuple[int, bytes, bool]] = []
    box = CoalesceSegments(1_000, hold_us=500)
    box.attach(clock, lambda data, forward: injected.append((clock.now, data, forward)))
    assert box.process(packet(payload=b"a" * 400, options=DSS, seq=1), True, 0) == []
    assert box.process(packet(payload=b"b" * 400, seq=401), True, 0) == []
    assert box.process(packet(payload=b"c" * 400, seq=801), True, 0)[0] == packet(
        payload=b"a" * 400 + b"b" * 400, options=DSS, seq=1
    )
    clock.run_instant()
    assert injected == [(500, packet(payload=b"c" * 400, seq=801), True)]
    # A gap is not closed, and nothing waits for ever behind it.
    assert box.process(packet(payload=b"a" * 10, seq=1), True, 0) == []
    assert box.process(packet(payload=b"b" * 10, seq=20), True, 0) == [packet(payload=b"a" * 10, seq=1)]
    assert box.process(packet(ACK | FIN, b"c", seq=30), True, 0) == [packet(ACK | FIN, b"bbbbbbbbbbc", seq=20)]


@pytest.mark.parametrize("fix_sack", [True, False])
def test_rewrite_sequence_numbers(fix_sack: bool) -> None:
    box = RewriteSequence(Entropy(3), fix_sack=fix_sack)
    offset = (parse(box.process(packet(SYN, seq=100, ack=0), True, 0)[0]).seq - 100) & 0xFFFFFFFF
    assert offset
    syn_ack = parse(box.process(packet(SYN | ACK, seq=900, ack=101 + offset & 0xFFFFFFFF, forward=False), False, 0)[0])
    assert syn_ack.ack == 101
    back = (syn_ack.seq - 900) & 0xFFFFFFFF
    data = parse(box.process(packet(payload=b"x", seq=101, ack=901 + back & 0xFFFFFFFF), True, 0)[0])
    assert (data.seq, data.ack) == (101 + offset & 0xFFFFFFFF, 901)
    sack = b"\x05\x0a" + pack("!II", 200 + offset & 0xFFFFFFFF, 300 + offset & 0xFFFFFFFF)
    reply = parse(box.process(packet(ack=101 + offset & 0xFFFFFFFF, options=sack, forward=False), False, 0)[0])
    expected = (200, 300) if fix_sack else (200 + offset & 0xFFFFFFFF, 300 + offset & 0xFFFFFFFF)
    assert (reply.ack, reply.sack_blocks()) == (101, [expected])


@pytest.mark.parametrize("new", [b"a longer word", b"wd", b""])
def test_change_payload_keeps_both_ends_in_step(new: bytes) -> None:
    box = ChangePayload(b"word", new)
    shift = len(new) - 4
    first = packet(payload=b"one word two", seq=1_000)
    (out,) = box.process(first, True, 0)
    assert parse(out).payload == b"one " + new + b" two"
    assert parse(out).seq == 1_000
    (after,) = box.process(packet(payload=b" word", seq=1_012), True, 0)
    assert (parse(after).seq, parse(after).payload) == (1_012 + shift, b" word")
    (again,) = box.process(first, True, 0)
    assert again == out  # a retransmission is changed in the same way
    (back,) = box.process(packet(ack=1_012 + shift, forward=False), False, 0)
    assert parse(back).ack == 1_012
    assert box.changed == 1


def test_ack_proxy_acknowledges_first_and_repeats_what_got_lost() -> None:
    clock = VirtualClock()
    injected: list[tuple[bytes, bool]] = []
    box = AckProxy(retry_us=1_000)
    box.attach(clock, lambda data, forward: injected.append((data, forward)))
    box.process(packet(SYN, seq=999), True, 0)
    box.process(packet(SYN | ACK, seq=4_999, ack=1_000, forward=False), False, 0)
    box.process(packet(seq=5_000, ack=1_000, options=DSS, forward=False), False, 0)
    data = packet(payload=b"x" * 100, seq=1_000)
    assert box.process(data, True, 0) == (data,)
    early, forward = injected.pop()
    assert (parse(early).ack, parse(early).has_option(30), forward) == (1_100, False, False)
    clock.run_instant()  # the receiver has not acknowledged: the box sends again
    assert injected == [(data, True)]
    box.process(packet(seq=5_000, ack=1_100, forward=False), False, 0)
    injected.clear()
    clock.run_instant()
    assert injected == []
    assert clock.run_instant() == 0


@pytest.mark.parametrize("silent", [True, False])
def test_a_narrow_link_drops_and_reports(silent: bool) -> None:
    injected: list[tuple[bytes, bool]] = []
    box = NarrowLink(600, reporter=bytes((192, 0, 2, 254)), silent=silent)
    box.attach(VirtualClock(), lambda data, forward: injected.append((data, forward)))
    assert len(box.process(packet(payload=bytes(560)), True, 0)) == 1
    too_long = packet(payload=bytes(561))
    assert box.process(too_long, True, 0) == ()
    assert box.dropped == 1
    if silent:
        assert injected == []
        return
    ((error, forward),) = injected
    assert not forward
    assert (error[9], error[16:20]) == (1, CLIENT)  # ICMP, back to the sender
    assert error[20:22] == bytes((3, 4))  # RFC 1191 §4: destination unreachable, fragmentation needed
    assert int.from_bytes(error[26:28], "big") == 600
    assert error[28:48] == too_long[:20]


def test_corrupt_payload_keeps_the_checksum_right() -> None:
    box = CorruptPayload(2, limit=1)
    data = packet(payload=b"abcde")
    assert box.process(data, True, 0) == (data,)
    (out,) = box.process(data, True, 0)
    assert parse(out).payload != b"abcde"
    assert [box.process(data, True, 0) for _ in range(4)] == [(data,)] * 4
    assert box.corrupted == 1
