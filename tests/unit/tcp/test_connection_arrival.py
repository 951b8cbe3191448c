"""SEGMENT ARRIVES in the synchronized states: RFC 9293 §3.10.7.4, RFC 5961, RFC 7323, RFC 2018, RFC 2883."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mptcp.core.tcp.challenge import CHALLENGE_ACK_LIMIT
from mptcp.core.tcp.config import TcpConfig
from mptcp.core.tcp.states import State
from mptcp.core.tcp.time_wait import may_be_replaced, next_isn
from mptcp.core.tcp.timestamps import TS_RECENT_LIFETIME_US
from mptcp.core.units import MILLISECOND, SECOND
from mptcp.core.wire.segment import ACK, CE, CWR, ECE, ECT0, FIN, NOT_ECT, PSH, RST, SYN, URG, Options, Segment
from mptcp.core.wire.sequence import MASK32
from mptcp.errors import ConnectionWasReset
from mptcp.testing.tcp_pair import SERVER_ISN, ScriptedPeer

FIXED = TcpConfig(timestamps=False, receive_buffer_bytes=65535, receive_buffer_max_bytes=65535, window_scaling=False)


def wire(*blocks: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    """SACK blocks as they are sent, from relative numbers."""
    return tuple(((SERVER_ISN + left) & MASK32, (SERVER_ISN + right) & MASK32) for left, right in blocks)


# --- first: the sequence number -------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("seq", "data", "taken"),
    [
        (1, b"abc", b"abc"),
        (-2, b"xyzabc", b"abc"),  # old octets trimmed off
        (-2, b"xyz", b""),  # all old
        (65536, b"abc", b""),  # beyond the window
        (65535, b"abc", b""),  # out of order, and only its first octet is within the window
    ],
)
def test_acceptability(seq: int, data: bytes, taken: bytes) -> None:  # RFC 9293 §3.10.7.4, first, table 6
    peer = ScriptedPeer(FIXED).establish()
    answers = peer.gives(ACK, seq=seq, data=data)
    assert len(answers) == 1
    assert peer.relative(answers[0]) == (1, 1 + len(taken))
    assert peer.tcp.read(100) == taken


def test_last_octet_within_the_window_is_taken_when_its_turn_comes() -> None:
    peer = ScriptedPeer(FIXED).establish()
    peer.gives(ACK, seq=65535, data=b"abc")
    for start in range(1, 65535, 1400):
        peer.gives(ACK, seq=start, data=b"." * min(1400, 65535 - start))
    assert peer.tcp.readable_bytes == 65535
    assert peer.tcp.read(70000).endswith(b".a")


def test_zero_window_takes_acks_and_resets_but_no_data() -> None:  # RFC 9293 §3.10.7.4
    config = TcpConfig(timestamps=False, receive_buffer_bytes=3000, receive_buffer_max_bytes=3000, window_scaling=False)
    peer = ScriptedPeer(config).establish()
    peer.tcp.write(b"question")
    peer.sent()
    for start in range(0, 3000, 1000):
        peer.gives(ACK, seq=1 + start, data=b"x" * 1000)
    peer.wait(SECOND)
    assert peer.tcp.receiver.window.edge == peer.tcp.receiver.nxt
    (answer,) = peer.gives(ACK, seq=3001, ack=9, data=b"y")
    assert answer.window == 0
    assert peer.relative(answer)[1] == 3001
    assert peer.tcp.sender.una == peer.tcp.sender.nxt
    assert peer.tcp.readable_bytes == 3000
    peer.gives(RST, seq=3001)
    assert isinstance(peer.tcp.error, ConnectionWasReset)


def test_old_duplicates_without_content_are_answered_at_a_limited_rate() -> None:  # RFC 5961 §7
    peer = ScriptedPeer(FIXED).establish()
    answers = sum(len(peer.gives(ACK, seq=-100)) for _ in range(50))
    assert answers == CHALLENGE_ACK_LIMIT
    assert peer.counters["challenge_ack_limited"] == 50 - CHALLENGE_ACK_LIMIT
    peer.now += 6 * SECOND
    assert len(peer.gives(ACK, seq=-100)) == 1


# --- second: RST ----------------------------------------------------------------------------------------------------
def test_reset_with_exactly_the_next_number() -> None:  # RFC 5961 §3.2
    peer = ScriptedPeer(FIXED).establish()
    assert peer.gives(RST, seq=1) == []
    assert peer.tcp.is_closed
    assert isinstance(peer.tcp.error, ConnectionWasReset)


def test_reset_within_the_window_is_challenged() -> None:  # RFC 5961 §3.2
    peer = ScriptedPeer(FIXED).establish()
    (challenge,) = peer.gives(RST, seq=1000)
    assert challenge.flags == ACK
    assert peer.relative(challenge) == (1, 1)
    assert peer.tcp.is_established


@pytest.mark.parametrize("seq", [0, -1, 65536, 1 << 31])
def test_reset_outside_the_window_is_ignored(seq: int) -> None:  # RFC 5961 §3.2
    peer = ScriptedPeer(FIXED).establish()
    assert peer.gives(RST, seq=seq) == []
    assert peer.tcp.is_established


def test_what_was_read_before_a_reset_can_still_be_read() -> None:
    peer = ScriptedPeer(FIXED).establish()
    peer.gives(ACK, seq=1, data=b"last words")
    peer.gives(RST, seq=11)
    assert peer.tcp.read(100) == b"last words"
    with pytest.raises(ConnectionWasReset):
        peer.tcp.write(b"x")


# --- fourth: SYN ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("seq", [1, 500, 0, -5, 1 << 20])
def test_syn_is_challenged_wherever_it_is(seq: int) -> None:  # RFC 5961 §4.2
    peer = ScriptedPeer(FIXED).establish()
    (challenge,) = peer.gives(SYN, seq=seq)
    assert challenge.flags == ACK
    assert peer.relative(challenge) == (1, 1)
    assert peer.tcp.is_established


# --- fifth: ACK -----------------------------------------------------------------------------------------------------
def test_segment_without_ack_is_dropped() -> None:
    peer = ScriptedPeer(FIXED).establish()
    assert peer.gives(PSH, seq=1, data=b"abc") == []
    assert peer.tcp.readable_bytes == 0


@pytest.mark.parametrize("ack", [2, 1000, -65536, 1 << 31])
def test_acknowledgement_out_of_range_discards_the_segment(ack: int) -> None:  # RFC 5961 §5.2
    peer = ScriptedPeer(FIXED).establish()
    (answer,) = peer.gives(ACK, seq=1, ack=ack, data=b"injected")
    assert peer.relative(answer) == (1, 1)
    assert peer.tcp.readable_bytes == 0


def test_old_acknowledgement_within_the_window_is_taken() -> None:  # RFC 5961 §5.2
    peer = ScriptedPeer(FIXED).establish()
    peer.gives(ACK, seq=1, ack=-65534, data=b"reordered")
    assert peer.tcp.read(100) == b"reordered"


def test_window_comes_from_the_newest_segment_only() -> None:  # RFC 9293 §3.10.7.4: SND.WL1, SND.WL2
    peer = ScriptedPeer(FIXED).establish()
    peer.gives(ACK, seq=2, data=b"b", window=1000)
    peer.gives(ACK, seq=1, data=b"a", window=5000)
    assert peer.tcp.sender.window_edge == peer.tcp.sender.una + 1000
    peer.gives(ACK, seq=3, window=7000)
    assert peer.tcp.sender.window_edge == peer.tcp.sender.una + 7000


def test_duplicate_acknowledgements_retransmit_after_three() -> None:  # RFC 5681 §3.2
    peer = ScriptedPeer(FIXED, sack=False).establish()
    peer.tcp.write(b"z" * 14600)
    first = peer.sent()
    assert len(first) == 10
    peer.now += 10 * MILLISECOND
    assert peer.gives(ACK, seq=1, ack=1) == []
    assert peer.gives(ACK, seq=1, ack=1) == []
    again = peer.gives(ACK, seq=1, ack=1)
    assert again
    assert again[0].seq == first[0].seq


# --- sixth: URG -----------------------------------------------------------------------------------------------------
def test_urgent_data_is_in_line_and_marked() -> None:  # RFC 9293 §3.8.5
    peer = ScriptedPeer(FIXED).establish()
    peer.gives(ACK | URG, seq=1, data=b"abc!def", urgent_pointer=4)
    assert peer.tcp.urgent_bytes == 4
    assert peer.tcp.read(4) == b"abc!"
    assert peer.tcp.urgent_bytes == 0
    assert peer.tcp.read(10) == b"def"


def test_urgent_data_is_sent_with_its_pointer() -> None:  # RFC 9293 §3.8.5 (MUST-60, -61)
    peer = ScriptedPeer(FIXED).establish()
    peer.tcp.write(b"calm")
    peer.tcp.write_urgent(b"now!")
    (segment,) = peer.sent()
    assert segment.flags & URG
    assert segment.urgent_pointer == 8
    peer.gives(ACK, seq=1, ack=9)
    peer.tcp.write(b"calm again")
    assert not peer.sent()[0].flags & URG


# --- seventh: text --------------------------------------------------------------------------------------------------
def test_out_of_order_is_kept_reported_and_delivered_once() -> None:  # RFC 2018 §4, RFC 5681 §4.2
    peer = ScriptedPeer(FIXED).establish()
    (a,) = peer.gives(ACK, seq=11, data=b"K" * 10)
    (b,) = peer.gives(ACK, seq=31, data=b"M" * 10)
    assert a.options.sack_blocks == wire((11, 21))
    assert b.options.sack_blocks == wire((31, 41), (11, 21))
    (c,) = peer.gives(ACK, seq=1, data=b"J" * 10)
    assert peer.relative(c)[1] == 21
    assert c.options.sack_blocks == wire((31, 41))
    (d,) = peer.gives(ACK, seq=21, data=b"L" * 10)
    assert peer.relative(d)[1] == 41
    assert d.options.sack_blocks == ()
    assert peer.tcp.read(100) == b"J" * 10 + b"K" * 10 + b"L" * 10 + b"M" * 10
    assert peer.tcp.receiver.reassembly is None


def test_duplicate_is_reported_first() -> None:  # RFC 2883 §4.1, §4.2
    peer = ScriptedPeer(FIXED).establish()
    peer.gives(ACK, seq=1, data=b"0123456789")
    (again,) = peer.gives(ACK, seq=1, data=b"01234")
    assert again.options.sack_blocks == (((SERVER_ISN + 1) & MASK32, (SERVER_ISN + 6) & MASK32),)
    (once,) = peer.gives(ACK, seq=50, data=b"x")
    assert len(once.options.sack_blocks) == 1
    (twice,) = peer.gives(ACK, seq=50, data=b"x")
    assert twice.options.sack_blocks == (((SERVER_ISN + 50) & MASK32, (SERVER_ISN + 51) & MASK32),) * 2


def test_no_sack_blocks_without_agreement() -> None:  # RFC 2018 §2
    peer = ScriptedPeer(FIXED, sack=False).establish()
    peer.tcp.handle_segment(peer.segment(ACK, seq=11, data=b"K"), peer.now)
    peer.tcp.handle_segment(peer.segment(ACK, seq=12, data=b"K"), peer.now)
    answers = peer.sent()
    # each is a duplicate acknowledgement of its own: the peer counts them
    assert [(peer.relative(s), s.options) for s in answers] == [((1, 1), Options())] * 2


def test_acknowledgements_of_a_batch_are_aggregated() -> None:  # RFC 9293 §3.10.7.4 (MUST-58, -59)
    peer = ScriptedPeer(FIXED).establish()
    for index in range(10):
        peer.tcp.handle_segment(peer.segment(ACK, seq=1 + 1460 * index, data=b"x" * 1460), peer.now)
    (ack,) = peer.sent()
    assert peer.relative(ack) == (1, 14601)


def test_second_segment_is_acknowledged_at_once_and_a_single_one_later() -> None:  # RFC 5681 §4.2
    peer = ScriptedPeer(FIXED).establish()
    seq = 1
    for _ in range(20):  # past the quick phase
        peer.gives(ACK, seq=seq, data=b"x" * 1000)
        seq += 1000
        peer.tcp.read(1000)
    peer.wait(SECOND // 2)
    assert peer.gives(ACK, seq=seq, data=b"x" * 1000) == []
    (delayed,) = peer.wait(45 * MILLISECOND)
    assert peer.relative(delayed)[1] == seq + 1000
    assert peer.gives(ACK, seq=seq + 1000, data=b"x" * 1000) == []
    (at_once,) = peer.gives(ACK, seq=seq + 2000, data=b"x" * 1000)
    assert peer.relative(at_once)[1] == seq + 3000


def test_acknowledgement_rides_on_the_answer() -> None:  # RFC 9293 §3.10.7.4: "piggybacked"
    peer = ScriptedPeer(FIXED).establish()
    peer.tcp.handle_segment(peer.segment(ACK, seq=1, data=b"question"), peer.now)
    peer.tcp.write(b"answer")
    (segment,) = peer.sent()
    assert segment.payload == b"answer"
    assert peer.relative(segment) == (1, 9)


def test_window_update_rides_on_data() -> None:  # RFC 9293 §3.8.6
    config = TcpConfig(timestamps=False, receive_buffer_bytes=8000, receive_buffer_max_bytes=8000, window_scaling=False)
    peer = ScriptedPeer(config).establish()
    for start in range(1, 7001, 1000):
        peer.gives(ACK, seq=start, data=b"x" * 1000)
    peer.tcp.write(b"small window")
    (segment,) = peer.sent()
    assert segment.window == 1000
    peer.tcp.read(7000)
    peer.tcp.window_update(peer.now)
    peer.tcp.write(b"large window")
    peer.gives(ACK, seq=7001, ack=13)
    assert peer.tcp.receiver.window.told - peer.tcp.receiver.nxt == 8000


# --- eighth: FIN ----------------------------------------------------------------------------------------------------
def test_fin_before_its_turn_waits() -> None:  # RFC 9293 §3.10.7.4, eighth
    peer = ScriptedPeer(FIXED).establish()
    peer.gives(ACK | FIN, seq=4, data=b"def")
    assert not peer.tcp.fin_received
    assert not peer.tcp.eof
    (ack,) = peer.gives(ACK, seq=1, data=b"abc")
    assert peer.relative(ack)[1] == 8
    assert peer.tcp.state is State.CLOSE_WAIT
    assert peer.tcp.read(10) == b"abcdef"
    assert peer.tcp.eof


def test_data_beyond_the_fin_is_not_taken() -> None:
    peer = ScriptedPeer(FIXED).establish()
    peer.gives(ACK | FIN, seq=4, data=b"def")
    peer.gives(ACK, seq=5, data=b"EFGHIJ")
    peer.gives(ACK, seq=1, data=b"abc")
    assert peer.tcp.read(100) == b"abcdef"
    peer.gives(ACK, seq=8, data=b"more")
    assert peer.tcp.readable_bytes == 0


def test_fin_with_data_already_held_does_not_rewind() -> None:
    peer = ScriptedPeer(FIXED).establish()
    peer.gives(ACK, seq=1, data=b"abcdef")
    peer.gives(ACK | FIN, seq=1, data=b"abc")
    assert peer.tcp.state is State.ESTABLISHED


def test_data_after_close_is_answered_with_a_reset() -> None:  # RFC 9293 §3.6.1 (SHLD-3)
    peer = ScriptedPeer(FIXED).establish()
    peer.tcp.close(peer.now)
    (fin,) = peer.sent()
    assert fin.flags & FIN
    peer.gives(ACK, seq=1, ack=2)
    (reset,) = peer.gives(ACK, seq=1, ack=2, data=b"too late")
    assert reset.flags & RST
    assert peer.tcp.is_closed


def test_close_with_unread_data_is_a_reset() -> None:  # RFC 9293 §3.6.1 (SHLD-3)
    peer = ScriptedPeer(FIXED).establish()
    peer.gives(ACK, seq=1, data=b"never read")
    peer.tcp.close(peer.now)
    (reset,) = peer.sent()
    assert reset.flags & RST
    assert peer.relative(reset)[0] == 1


def test_abort_sends_a_reset_that_will_be_believed() -> None:  # RFC 9293 §3.10.5
    peer = ScriptedPeer(FIXED).establish()
    peer.tcp.write(b"12345")
    peer.sent()
    peer.tcp.abort(peer.now)
    assert not peer.tcp.is_closed
    (reset,) = peer.sent()
    assert reset.flags == RST | ACK
    assert peer.relative(reset) == (6, 1)
    assert peer.tcp.is_closed


# --- TIME-WAIT ------------------------------------------------------------------------------------------------------
def in_time_wait(timestamps: bool = False) -> ScriptedPeer:
    peer = ScriptedPeer(timestamps=timestamps).establish()
    peer.tcp.close(peer.now)
    peer.sent()
    peer.gives(ACK, seq=1, ack=2)
    peer.gives(ACK | FIN, seq=1, ack=2)
    assert peer.tcp.state is State.TIME_WAIT
    return peer


def test_time_wait_lasts_and_acknowledges_a_repeated_fin() -> None:  # RFC 9293 §3.10.7.4, (MUST-13)
    peer = in_time_wait()
    peer.now += 50 * SECOND
    (ack,) = peer.gives(ACK | FIN, seq=1, ack=2)
    assert peer.relative(ack) == (2, 2)
    assert peer.tcp.poll_deadline() == peer.now + 60 * SECOND
    peer.wait(61 * SECOND)
    assert peer.tcp.is_closed
    assert peer.tcp.error is None


def test_time_wait_gives_way_to_a_larger_sequence_number() -> None:  # RFC 9293 §3.6.1 (MAY-2)
    peer = in_time_wait()
    assert may_be_replaced(peer.tcp, peer.segment(SYN, seq=100))
    assert not may_be_replaced(peer.tcp, peer.segment(SYN, seq=-100))
    assert not may_be_replaced(peer.tcp, peer.segment(SYN | ACK, seq=100))
    assert (next_isn(peer.tcp) - peer.tcp.sender.nxt) & MASK32 < 1 << 31
    assert not may_be_replaced(ScriptedPeer().establish().tcp, peer.segment(SYN, seq=100))


def test_time_wait_gives_way_to_a_larger_timestamp() -> None:  # RFC 6191 §2
    peer = in_time_wait(timestamps=True)
    assert may_be_replaced(peer.tcp, peer.segment(SYN, seq=-100, options=Options(timestamp_value=1001)))
    assert not may_be_replaced(peer.tcp, peer.segment(SYN, seq=100, options=Options(timestamp_value=999)))


# --- timestamps -----------------------------------------------------------------------------------------------------
def test_paws_discards_the_old_and_acknowledges() -> None:  # RFC 7323 §5.3 R1
    peer = ScriptedPeer(timestamps=True).establish()
    peer.timestamp_value = 999
    (ack,) = peer.gives(ACK, seq=1, data=b"from long ago")
    assert peer.relative(ack) == (1, 1)
    assert peer.counters["paws_rejected"] == 1
    assert peer.tcp.readable_bytes == 0
    peer.gives(RST, seq=1)  # RFC 7323 §5.2: not applied to RST
    assert peer.tcp.is_closed


def test_paws_forgets_after_24_days() -> None:  # RFC 7323 §5.5
    peer = ScriptedPeer(timestamps=True).establish()
    peer.now += TS_RECENT_LIFETIME_US + 1
    peer.timestamp_value = 5
    peer.gives(ACK, seq=1, data=b"still here")
    assert peer.tcp.readable_bytes == 10
    assert peer.tcp.timestamps.recent == 5


def test_echo_is_of_the_first_segment_not_acknowledged_yet() -> None:  # RFC 7323 §4.3
    peer = ScriptedPeer(timestamps=True).establish()
    for index, value in enumerate((2000, 2010)):
        peer.timestamp_value = value
        peer.tcp.handle_segment(peer.segment(ACK, seq=1 + index * 1000, data=b"x" * 1000), peer.now)
    (ack,) = peer.sent()
    assert ack.options.timestamp_echo == 2000
    # a hole: the echo stays that of the last segment in order
    peer.timestamp_value = 2020
    (dup,) = peer.gives(ACK, seq=5001, data=b"x")
    assert dup.options.timestamp_echo == 2000
    peer.timestamp_value = 2030
    (filled,) = peer.gives(ACK, seq=2001, data=b"x" * 3000)
    assert filled.options.timestamp_echo == 2030


def test_missing_timestamp_is_tolerated() -> None:
    peer = ScriptedPeer(timestamps=True).establish()
    peer.gives(ACK, seq=1, data=b"stripped", options=Options())
    assert peer.tcp.read(10) == b"stripped"
    assert peer.counters["timestamp_missing"] == 1


# --- ECN ------------------------------------------------------------------------------------------------------------
def ecn_peer() -> ScriptedPeer:
    peer = ScriptedPeer(TcpConfig(ecn=True, timestamps=False))
    peer.tcp.open(peer.now)
    peer.sent()
    peer.now += 10 * MILLISECOND
    peer.gives(SYN | ACK | ECE, seq=0, ack=1, options=peer.syn_options())
    assert peer.tcp.ecn is not None
    return peer


def test_ce_is_echoed_until_cwr() -> None:  # RFC 3168 §6.1.3
    peer = ecn_peer()
    (first,) = peer.gives(ACK, seq=1, data=b"x", ecn=CE)
    (second,) = peer.gives(ACK, seq=2, data=b"x", ecn=ECT0)
    (third,) = peer.gives(ACK | CWR, seq=3, data=b"x", ecn=ECT0)
    assert [s.flags & ECE for s in (first, second, third)] == [ECE, ECE, 0]
    assert {s.ecn for s in (first, second, third)} == {NOT_ECT}  # §6.1.4: pure ACKs are not ECT


def test_echo_reduces_once_and_says_so() -> None:  # RFC 3168 §6.1.2
    peer = ecn_peer()
    peer.tcp.write(b"x" * 14600)
    sent = peer.sent()
    assert {s.ecn for s in sent} == {ECT0}
    window = peer.tcp.sender.congestion.cwnd_bytes
    peer.now += 10 * MILLISECOND
    peer.tcp.write(b"y" * 100_000)
    more = peer.gives(ACK | ECE, seq=1, ack=1461) + peer.gives(ACK | ECE, seq=1, ack=2921)
    for ack in range(4381, 14601, 1460):
        more += peer.gives(ACK | ECE, seq=1, ack=ack)
    assert peer.tcp.sender.congestion.cwnd_bytes < window
    assert peer.tcp.sender.ecn_reductions == 1
    assert sum(1 for s in more if s.flags & CWR) == 1


def test_retransmissions_are_not_ect() -> None:  # RFC 3168 §6.1.5
    peer = ecn_peer()
    peer.tcp.write(b"x")
    peer.sent()
    again = peer.wait(3 * SECOND)
    assert again
    assert {s.ecn for s in again} == {NOT_ECT}


# --- hostile --------------------------------------------------------------------------------------------------------
wild = st.builds(
    Segment,
    seq=st.one_of(st.integers(0, MASK32), st.integers(-50, 70000).map(lambda n: (SERVER_ISN + n) & MASK32)),
    ack=st.one_of(st.integers(0, MASK32), st.integers(-50, 50).map(lambda n: (0xFFFFFFF0 + n) & MASK32)),
    flags=st.integers(0, 0x1FF),
    window=st.integers(0, 65535),
    options=st.builds(
        Options,
        mss=st.none() | st.integers(0, 65535),
        window_scale=st.none() | st.integers(0, 255),
        sack_permitted=st.booleans(),
        sack_blocks=st.lists(st.tuples(st.integers(0, MASK32), st.integers(0, MASK32)), max_size=4).map(tuple),
        timestamp_value=st.none() | st.integers(0, MASK32),
        timestamp_echo=st.integers(0, MASK32),
    ),
    payloads=st.binary(max_size=60).map(lambda b: (memoryview(b),) if b else ()),
    ecn=st.integers(0, 3),
    urgent_pointer=st.integers(0, 65535),
    mss=st.sampled_from([0, 10]),
)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(segments=st.lists(wild, max_size=40), timestamps=st.booleans(), writes=st.booleans(), opening=st.booleans())
def test_wild_segments_never_raise(segments: list[Segment], timestamps: bool, writes: bool, opening: bool) -> None:
    peer = ScriptedPeer(timestamps=timestamps)
    if opening:
        peer.tcp.open(peer.now)
        peer.sent()
    else:
        peer.establish()
    for index, segment in enumerate(segments):
        if writes and peer.tcp.writable_bytes:
            peer.tcp.write(b"w" * 100)
        peer.tcp.handle_segment(segment, peer.now)
        peer.sent()
        peer.wait(index * 10 * MILLISECOND)


blind = st.builds(
    Segment,
    # everything but what an attacker in the path would know: the exact next number, or an acceptable acknowledgement
    seq=st.integers(100_000, MASK32 - 100_000).map(lambda n: (SERVER_ISN + n) & MASK32),
    ack=st.integers(0, MASK32),
    flags=st.integers(0, 0x1FF),
    window=st.integers(0, 65535),
    payloads=st.binary(max_size=60).map(lambda b: (memoryview(b),) if b else ()),
)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(segments=st.lists(blind, max_size=40))
def test_blind_segments_do_no_harm(segments: list[Segment]) -> None:  # RFC 5961 §1
    peer = ScriptedPeer(FIXED).establish()
    peer.tcp.write(b"request")
    peer.sent()
    for segment in segments:
        peer.tcp.handle_segment(segment, peer.now)
        peer.sent()
    assert peer.tcp.is_established
    peer.gives(ACK, seq=1, ack=8, data=b"response")
    assert peer.tcp.read(100) == b"response"
    assert peer.tcp.sender.una == peer.tcp.sender.nxt
