"""The receiving half, mechanism by mechanism."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from mptcp.core.tcp.challenge import CHALLENGE_ACK_LIMIT, CHALLENGE_ACK_WINDOW_US, ChallengeAcks
from mptcp.core.tcp.config import TcpConfig
from mptcp.core.tcp.delayed_ack import DelayedAck
from mptcp.core.tcp.option_space import padded_bytes, sack_blocks_that_fit
from mptcp.core.tcp.reassembly import MAX_PIECES, MAX_RANGES, MAX_SACK_BLOCKS, Reassembly
from mptcp.core.tcp.receive_buffer import GATHER_BYTES, ReceiveBuffer
from mptcp.core.tcp.receive_window import BufferTuner, ReceiveWindow, window_scale_for
from mptcp.core.tcp.receiver import MAX_DUPLICATE_ACKS_OWED, Receiver
from mptcp.core.tcp.timestamps import Timestamps
from mptcp.core.units import MILLISECOND
from mptcp.core.wire.mptcp_options import Dss, MpPrio


# --- reassembly -----------------------------------------------------------------------------------------------------
@settings(max_examples=150, deadline=None)
@given(
    pieces=st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20)), min_size=1, max_size=40),
    base=st.sampled_from([0, 2**32 - 30]),
)
def test_reassembly_is_the_set_of_its_octets(pieces: list[tuple[int, int]], base: int) -> None:  # RFC 2018 §3
    queue = Reassembly()
    stream = bytes(range(100))
    model: set[int] = set()
    for start, length in pieces:
        octets = set(range(start, min(start + length, 80)))
        if not octets:
            continue
        duplicate = queue.insert(base + start, memoryview(stream)[start : max(octets) + 1])
        assert duplicate is not False
        assert (duplicate is not None) == bool(octets & model)
        if duplicate is not None:
            assert set(range(duplicate[0] - base, duplicate[1] - base)) <= octets & model
        model |= octets
        held = [n - base for r in queue.ranges for n in range(r.start, r.end)]
        assert held == sorted(model)
        assert queue.bytes_held == len(model)
        assert all(a.end < b.start for a, b in zip(queue.ranges, queue.ranges[1:], strict=False))
        first = queue.sack_blocks(4)[0]
        assert first[0] <= base + start < first[1]
    at = min(model)
    taken = queue.take(base + at)
    assert taken is not None
    joined = b"".join(taken)
    assert joined == stream[at : at + len(joined)]
    assert at + len(joined) not in model
    assert set(range(at, at + len(joined))) <= model


def test_take_drops_what_has_been_overtaken() -> None:
    queue = Reassembly()
    queue.insert(10, b"abc")
    queue.insert(20, b"defgh")
    assert queue.take(5) is None
    taken = queue.take(22)
    assert taken is not None
    assert b"".join(taken) == b"fgh"
    assert queue.ranges == []
    assert queue.recent == []
    assert queue.bytes_held == queue.pieces == 0


def test_reassembly_has_limits() -> None:
    queue = Reassembly()
    for index in range(MAX_RANGES + 10):
        queue.insert(index * 3, b"x")
    assert len(queue.ranges) == MAX_RANGES
    assert queue.insert(10**6, b"y") is False
    many = Reassembly()
    refused = sum(many.insert(1 + index, b"x") is False for index in range(MAX_PIECES + 5))
    assert refused == 5
    assert many.pieces == MAX_PIECES


def test_small_pieces_do_not_keep_their_packet() -> None:
    queue = Reassembly()
    packet = memoryview(bytes(65536))
    queue.insert(10, packet[:10])
    assert isinstance(queue.ranges[0].pieces[0], bytes)


def test_sack_blocks_are_the_most_recent_first() -> None:  # RFC 2018 §4
    queue = Reassembly()
    for start in (10, 30, 50, 70, 90):
        queue.insert(start, b"12345")
    assert queue.sack_blocks(3) == [(90, 95), (70, 75), (50, 55)]
    queue.insert(35, b"x")
    assert queue.sack_blocks(MAX_SACK_BLOCKS) == [(30, 36), (90, 95), (70, 75), (50, 55)]


def test_duplicate_acknowledgements_owed_have_a_limit() -> None:
    receiver = Receiver(TcpConfig())
    for _ in range(100):
        receiver.owe_duplicate_ack()
    assert receiver.duplicate_acks_owed == MAX_DUPLICATE_ACKS_OWED


# --- buffer ---------------------------------------------------------------------------------------------------------
@settings(max_examples=100, deadline=None)
@given(steps=st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 4000), st.booleans()), max_size=30))
def test_receive_buffer_is_a_queue(steps: list[tuple[int, int, bool]]) -> None:
    buffer, model = ReceiveBuffer(), bytearray()
    chance = random.Random(5)
    for put, get, peek in steps:
        data = chance.randbytes(put)
        buffer.append(memoryview(data))
        model += data
        got = buffer.read(get, peek)
        assert got == model[:get]
        if not peek:
            del model[: len(got)]
        assert buffer.length == len(model)
    target = bytearray(len(model) + 5)
    assert buffer.read_into(target) == len(model)
    assert target[: len(model)] == model
    assert buffer.read(1) == b""


def test_many_tiny_payloads_share_a_buffer() -> None:
    buffer = ReceiveBuffer()
    for _ in range(GATHER_BYTES):
        buffer.append(b"x")
    assert buffer._chunks is not None
    assert len(buffer._chunks) == 1
    assert buffer.clear() == GATHER_BYTES


# --- window ---------------------------------------------------------------------------------------------------------
def test_scale_is_the_smallest_that_shows_the_whole_buffer() -> None:  # RFC 7323 §2.2
    assert window_scale_for(65535) == 0
    assert window_scale_for(65536) == 1
    assert window_scale_for(6 << 20) == 7
    assert window_scale_for(1 << 40) == 14


def test_window_moves_by_whole_steps_only() -> None:  # RFC 9293 §3.8.6.2.2
    window = ReceiveWindow()
    assert window.advertise(0, 10_000, 1000) == 10_000
    assert window.advertise(4000, 6000, 1000) == 6000  # nothing read
    assert window.advertise(4000, 6999, 1000) == 6000  # 999 read: not worth telling
    assert window.advertise(4000, 7000, 1000) == 7000
    assert window.advertise(11_000, 0, 1000) == 0
    assert window.advertise(11_000, 500, 1000) == 0
    assert window.advertise(11_000, 1000, 1000) == 1000


@settings(max_examples=100, deadline=None)
@given(
    scale=st.integers(0, 10),
    steps=st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 5000)), max_size=60),
)
def test_promised_edge_never_recedes_nor_exceeds_the_buffer(scale: int, steps: list[tuple[int, int]]) -> None:
    # RFC 9293 §3.8.6.2.1, RFC 7323 §2.4
    window, size = ReceiveWindow(), 100_000
    window.scale = scale
    nxt = held = 0
    edge = 0
    for arrives, reads in steps:
        arrives = min(arrives, window.edge - nxt)
        nxt += arrives
        held += arrives
        held -= min(held, reads)
        field = window.advertise(nxt, max(0, size - held), 1460)
        assert 0 <= field <= 65535
        assert window.edge >= edge
        edge = window.edge
        assert nxt + (field << scale) <= edge
        assert edge - nxt - (field << scale) < 2 << scale  # rounding only
        assert edge <= nxt + max(0, size - held) + (2 << scale) or edge - nxt <= size


def test_tuner_grows_with_what_is_read_and_never_shrinks() -> None:
    tuner = BufferTuner(65536, 1 << 20)
    total, now, sizes = 0, 0, []
    for rate in (10_000, 60_000, 200_000, 200_000, 1000, 0):
        tuner.update(total, 20 * MILLISECOND, now)
        total += rate
        now += 21 * MILLISECOND
        sizes.append(tuner.size)
    assert sizes == sorted(sizes)
    assert sizes[-1] > 65536
    for _ in range(30):
        tuner.update(total, -1, now)
        total += 10_000_000
        now += 40 * MILLISECOND
    assert tuner.size == 1 << 20


# --- delayed acknowledgements ---------------------------------------------------------------------------------------
def test_segment_size_follows_the_peer_down() -> None:  # RFC 5681 §4.2
    ack = DelayedAck(40 * MILLISECOND)
    ack.handle_data(8960, 0, 0, False)
    assert ack.segment_bytes == 8960
    ack.handle_data(1460, 0, 0, False)
    assert ack.segment_bytes == 8960  # the end of a write, perhaps
    ack.handle_data(1460, 0, 0, False)
    assert ack.segment_bytes == 1460
    ack.handle_data(40_000, 1400, 0, False)  # coalesced by the device, which tells the size
    assert ack.segment_bytes == 1400


def test_conversation_delays_and_silence_does_not() -> None:
    ack = DelayedAck(40 * MILLISECOND)
    ack.handle_data(10, 0, 0, False)
    assert ack.due  # the peer may be in slow start
    ack.due, ack.unacked_bytes = False, 0
    ack.handle_data_sent(1000)
    ack.handle_data(10, 0, 2000, False)
    assert not ack.due
    assert ack.deadline == 2000 + 40 * MILLISECOND
    ack.handle_timeout()
    assert ack.due
    assert not ack.interactive


def test_delay_is_at_most_half_a_second() -> None:  # RFC 5681 §4.2, RFC 9293 §3.8.6.3 (MUST-40)
    assert DelayedAck(10_000 * MILLISECOND).delay_us == 500 * MILLISECOND


# --- options, timestamps, challenges --------------------------------------------------------------------------------
def test_room_for_sack_blocks() -> None:  # RFC 2018 §3
    assert [sack_blocks_that_fit(room) for room in (40, 28, 20, 12, 11, 0)] == [4, 3, 2, 1, 0, 0]
    assert padded_bytes((MpPrio(True),)) == 4
    assert padded_bytes((Dss(1, True, 2, True, 3, 4), MpPrio(True))) == 28 + 4  # RFC 8684 §3.3: 26 octets
    assert padded_bytes(()) == 0


def test_timestamp_echo_of_somebody_else_is_no_sample() -> None:
    clock = Timestamps(0xFFFFFFFF)
    value = clock.value(5_000_000)
    assert clock.echo_rtt_us(value, 5_030_000) == 30 * MILLISECOND
    assert clock.echo_rtt_us(value + 1000, 5_030_000) == -1


def test_challenges_are_limited_per_connection() -> None:  # RFC 5961 §7
    budget = ChallengeAcks(0)
    assert sum(budget.allow(n) for n in range(1000)) == CHALLENGE_ACK_LIMIT
    assert budget.allow(CHALLENGE_ACK_WINDOW_US)
