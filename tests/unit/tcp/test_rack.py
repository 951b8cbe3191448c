"""RFC 8985: RACK and TLP, in the terms of its own examples (segments P0, P1, ...)."""

from __future__ import annotations

from mptcp.core.tcp.config import TcpConfig
from mptcp.core.tcp.rack import PTO_MIN_US, REO_WND_PERSIST, Rack, TailLossProbe
from mptcp.core.tcp.record import Record
from mptcp.core.tcp.rtt import RttEstimator
from mptcp.core.tcp.sender import Sender, SendState, TimeoutKind, make_congestion
from mptcp.core.units import MILLISECOND, NEVER, SECOND

MSS = 1000
RTT = 40 * MILLISECOND
WINDOW = 1_000_000


def sender(segments: int, now: int = 0) -> Sender:
    """With an RTT sample, and ``segments`` segments in flight, one record each, sent one millisecond apart."""
    config = TcpConfig(no_delay=True)
    made = Sender(config, make_congestion(config, MSS), 0, MSS, 0)
    made.set_window(WINDOW)
    made.rtt.on_sample(RTT, 0)
    for number in range(segments):
        made.write(bytes(MSS))
        assert made.poll(now + number * MILLISECOND) is not None
    return made


def sack(target: Sender, now: int, *segments: int, ack: int = 0) -> None:
    """The peer has ``segments`` (numbers), and everything before segment ``ack``."""
    blocks = [(number * MSS, (number + 1) * MSS) for number in segments]
    target.handle_ack(ack * MSS, WINDOW, now, sack_blocks=blocks)


def lost(target: Sender) -> list[int]:
    return [record.start // MSS for record in target.queue.records if record.lost]


def test_three_sacked_segments_mean_loss_at_once() -> None:  # RFC 8985 §6.2 step 4, DupThresh
    target = sender(5)
    sack(target, RTT, 1)
    assert lost(target) == []
    sack(target, RTT + 1, 1, 2)
    assert lost(target) == []
    sack(target, RTT + 2, 1, 2, 3)
    assert target.state is SendState.RECOVERY
    record = target.poll(RTT + 3)
    assert record is not None
    assert (record.start, record.transmissions) == (0, 2)


def test_one_sacked_segment_means_loss_after_the_reordering_window() -> None:  # RFC 8985 §6.2 step 5
    target = sender(2)
    sack(target, RTT + MILLISECOND, 1)
    # P1 was sent at 1 ms and took one RTT; P0, sent at 0, has a quarter of the minimum RTT to go
    assert target.deadline == 0 + RTT + RTT // 4
    assert target.handle_timeout(target.deadline - 1) is TimeoutKind.NONE
    assert target.handle_timeout(target.deadline) is TimeoutKind.RACK
    assert (lost(target), target.state) == ([0], SendState.RECOVERY)


def test_a_lost_retransmission_is_detected() -> None:  # RFC 8985 §3.1, figure 2
    target = sender(6)
    sack(target, RTT + 5, 1, 2, 3)
    resent = target.poll(RTT + 6)
    assert resent is not None
    assert resent.start == 0
    target.write(bytes(MSS))
    new = target.poll(RTT + 6 * MILLISECOND)
    sack(target, 2 * RTT, 4, 5)
    if new is None:
        new = target.poll(2 * RTT)
    assert new is not None
    assert new.start == 6 * MSS
    # the new segment, sent after the retransmission, arrives
    target.handle_ack(0, WINDOW, 4 * RTT, sack_blocks=[(MSS, 7 * MSS)])
    assert lost(target) == [0]
    assert target.timeouts == 0


def test_the_order_of_equal_times_is_the_order_of_numbers() -> None:  # RFC 8985 §6.2 RACK_sent_after
    target = sender(0)
    for _ in range(4):
        target.write(bytes(MSS))
        target.poll(5)
    sack(target, RTT, 2)
    target.handle_timeout(NEVER - 1)
    assert lost(target) == [0, 1]


def test_reordering_once_seen_stops_the_count_of_three() -> None:  # RFC 8985 §6.2 steps 3 and 4
    target = sender(2)
    sack(target, RTT, 1)
    sack(target, RTT + 1, ack=2)  # P0 arrives after P1, not retransmitted
    target.write(bytes(6 * MSS))
    while target.poll(2 * RTT) is not None:
        pass
    sack(target, 3 * RTT, 3, 4, 5, 6, ack=2)
    assert target.state is SendState.OPEN
    assert target.deadline == 3 * RTT + target.rtt.min_us // 4


def test_each_round_with_a_duplicate_report_widens_the_window() -> None:  # RFC 8985 §6.2 step 4
    rtt = RttEstimator(SECOND, 1, 60 * SECOND)
    rtt.on_sample(RTT, 0)
    rack = Rack(0)
    rack.reordering_seen = True
    rack.update_window(rtt, 0, 100, True, False, False)
    assert rack.reo_wnd_us == 2 * RTT // 4
    rack.update_window(rtt, 50, 150, True, False, False)  # the same round
    assert rack.reo_wnd_us == 2 * RTT // 4
    rack.update_window(rtt, 100, 200, True, False, False)
    assert rack.reo_wnd_us == 3 * RTT // 4
    for round_end in range(200, 1000, 100):
        rack.update_window(rtt, round_end, round_end + 100, True, False, False)
    assert rack.reo_wnd_us == rtt.srtt_us  # the bound
    for _ in range(REO_WND_PERSIST):
        rack.on_recovery_exit()
    rack.update_window(rtt, 5000, 5001, False, False, False)
    assert rack.reo_wnd_us == RTT // 4


def test_an_ambiguous_retransmission_is_no_evidence() -> None:  # RFC 8985 §6.2 step 2
    rack = Rack(0)
    record = Record(0, (bytes(MSS),), MSS)
    record.transmissions = 2
    record.last_sent_us = 100_000
    rack.on_delivered([record], 105_000, RTT, -1)  # faster than half the minimum: it was the original
    assert rack.xmit_us == -1
    rack.on_delivered([record], 150_000, RTT, 50_000)  # the timestamp is the original's
    assert rack.xmit_us == -1
    rack.on_delivered([record], 150_000, RTT, 99_999)
    assert rack.xmit_us == 100_000


def test_after_a_timeout_only_the_old_is_lost() -> None:  # RFC 8985 §6.3
    target = sender(3)
    sack(target, RTT, ack=1)
    target.write(bytes(MSS))
    late = target.deadline
    target.handle_timeout(late)  # the probe sends the last segment
    assert target.poll(late) is not None
    fires = target.deadline
    assert target.handle_timeout(fires) is TimeoutKind.RTO
    assert lost(target)[0] == 1


# --- tail loss probe


def test_probe_interval() -> None:  # RFC 8985 §7.2
    rtt = RttEstimator(SECOND, 200 * MILLISECOND, 60 * SECOND)
    probe = TailLossProbe()
    rtt.on_sample(RTT, 0)
    assert probe.interval_us(rtt, False) == 2 * RTT
    assert probe.interval_us(rtt, True) == 2 * RTT + 200 * MILLISECOND
    fast = RttEstimator(SECOND, 200 * MILLISECOND, 60 * SECOND)
    fast.on_sample(50, 0)
    assert probe.interval_us(fast, False) == PTO_MIN_US


def test_probe_is_never_later_than_the_timeout() -> None:  # RFC 8985 §7.2
    target = sender(1)
    assert target.deadline == target.rtt.timeout_us < 2 * RTT + 200 * MILLISECOND


def test_without_a_sample_the_timeout_is_not_put_off() -> None:  # RFC 8985 §7.3, RFC 6298 §2.1
    config = TcpConfig(no_delay=True)
    target = Sender(config, make_congestion(config, MSS), 0, MSS, 0)
    target.set_window(WINDOW)
    target.write(bytes(MSS))
    target.poll(0)
    assert target.deadline == SECOND
    assert target.handle_timeout(SECOND) is TimeoutKind.RTO


def test_probe_repeats_the_last_segment_and_then_the_timeout_is_the_resort() -> None:  # RFC 8985 §7.3
    target = sender(4)
    sent_at = 3 * MILLISECOND
    assert target.deadline == sent_at + 2 * RTT
    assert target.handle_timeout(target.deadline) is TimeoutKind.TLP
    probe_at = sent_at + 2 * RTT
    record = target.poll(probe_at)
    assert record is not None
    assert (record.start, record.transmissions) == (3 * MSS, 2)
    assert target.poll(probe_at) is None
    assert target.deadline == probe_at + target.rtt.timeout_us
    assert target.handle_timeout(target.deadline) is TimeoutKind.RTO


def test_probe_prefers_new_data_over_the_congestion_window() -> None:  # RFC 8985 §7.3
    target = sender(10)
    target.write(bytes(3 * MSS))
    assert target.poll(9 * MILLISECOND) is None  # the window of ten is full
    due = target.deadline
    assert target.handle_timeout(due) is TimeoutKind.TLP
    record = target.poll(due)
    assert record is not None
    assert (record.start, record.length, record.transmissions) == (10 * MSS, MSS, 1)
    assert target.poll(due) is None
    target.handle_ack(11 * MSS, WINDOW, due + RTT)  # "TLP of new data delivered"
    assert target.congestion.in_slow_start


def test_no_second_probe_without_a_new_sample() -> None:  # RFC 8985 §7.3
    rtt = RttEstimator(SECOND, 200 * MILLISECOND, 60 * SECOND)
    probe = TailLossProbe()
    assert not probe.may_probe(rtt)
    rtt.on_sample(RTT, 0)
    assert probe.may_probe(rtt)
    probe.on_sent(1000, True, rtt)
    assert not probe.may_probe(rtt)
    probe.reset()
    assert not probe.may_probe(rtt)
    rtt.on_sample(RTT, 0)
    assert probe.may_probe(rtt)


def probed(segments: int) -> tuple[Sender, int]:
    target = sender(segments)
    due = target.deadline
    target.handle_timeout(due)
    assert target.poll(due) is not None
    return target, due


def test_a_loss_the_probe_repaired_reduces_the_window() -> None:  # RFC 8985 §7.4.2
    target, due = probed(4)
    before = target.congestion.cwnd_bytes
    target.handle_ack(4 * MSS, WINDOW, due + RTT)
    target.write(bytes(MSS))
    target.poll(due + RTT)
    target.handle_ack(5 * MSS, WINDOW, due + 2 * RTT)  # covers more than the probe, and no duplicate was reported
    assert target.congestion.ssthresh_bytes < before
    assert target.state is SendState.OPEN


def test_an_unnecessary_probe_does_not() -> None:  # RFC 8985 §7.4.2 case 1
    target, due = probed(4)
    target.handle_ack(4 * MSS, WINDOW, due + 1000)  # the originals were only late
    target.handle_ack(4 * MSS, WINDOW, due + RTT, sack_blocks=[(3 * MSS, 4 * MSS)])
    target.write(bytes(MSS))
    target.poll(due + RTT)
    target.handle_ack(5 * MSS, WINDOW, due + 2 * RTT)
    assert target.congestion.in_slow_start
    assert target.congestion.ssthresh_bytes > WINDOW


def test_no_probe_in_recovery() -> None:  # RFC 8985 §7.2
    target = sender(6)
    sack(target, RTT + 5, 1, 2, 3)
    target.poll(RTT + 6)
    assert target.handle_timeout(target.deadline) is TimeoutKind.RTO
