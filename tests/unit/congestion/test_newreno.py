"""RFC 5681."""

from __future__ import annotations

from mptcp.core.congestion.newreno import NewReno

MSS = 1000


def test_slow_start_doubles_per_round_trip() -> None:  # RFC 5681 §3.1
    reno = NewReno(MSS, 10 * MSS)
    for _ in range(10):
        reno.on_ack(MSS, 0, 10_000, 10_000, True)
    assert reno.cwnd_bytes == 20 * MSS
    assert reno.in_slow_start


def test_congestion_avoidance_adds_one_segment_per_round_trip() -> None:  # RFC 5681 §3.1
    reno = NewReno(MSS, 10 * MSS)
    reno.ssthresh_bytes = 10 * MSS
    for _ in range(10):
        reno.on_ack(MSS, 0, 10_000, 10_000, True)
    assert reno.cwnd_bytes == 11 * MSS
    for _ in range(11):
        reno.on_ack(MSS, 0, 10_000, 10_000, True)
    assert reno.cwnd_bytes == 12 * MSS


def test_slow_start_ends_at_the_threshold_and_the_rest_counts_on() -> None:
    reno = NewReno(MSS, 10 * MSS)
    reno.ssthresh_bytes = 12 * MSS
    reno.on_ack(14 * MSS, 0, 10_000, 10_000, True)  # 2 to the threshold, 12 are a whole window
    assert reno.cwnd_bytes == 13 * MSS


def test_a_window_that_is_not_used_does_not_grow() -> None:  # RFC 7661 §1
    reno = NewReno(MSS, 10 * MSS)
    reno.on_ack(10 * MSS, 0, 10_000, 10_000, False)
    assert reno.cwnd_bytes == 10 * MSS


def test_loss_halves_the_flight_but_not_below_two_segments() -> None:  # RFC 5681 §3.1 (4)
    reno = NewReno(MSS, 10 * MSS)
    reno.on_congestion_event(0, 8 * MSS)
    assert (reno.ssthresh_bytes, reno.cwnd_bytes) == (4 * MSS, 10 * MSS)  # cwnd is left to PRR
    reno.on_congestion_event(0, 3 * MSS)
    assert reno.ssthresh_bytes == 2 * MSS


def test_timeout_starts_from_one_segment_and_halves_once() -> None:  # RFC 5681 §3.1 (4), (5)
    reno = NewReno(MSS, 20 * MSS)
    reno.on_timeout(0, 20 * MSS, True)
    assert (reno.ssthresh_bytes, reno.cwnd_bytes) == (10 * MSS, MSS)
    reno.on_timeout(0, 20 * MSS, False)
    assert reno.ssthresh_bytes == 10 * MSS


def test_restart_after_idle() -> None:  # RFC 5681 §4.1
    reno = NewReno(MSS, 50 * MSS)
    reno.on_idle(100, 200, 10 * MSS)
    assert reno.cwnd_bytes == 50 * MSS
    reno.on_idle(300, 200, 10 * MSS)
    assert reno.cwnd_bytes == 10 * MSS


def test_undo_restores_both() -> None:
    reno = NewReno(MSS, 20 * MSS)
    reno.on_timeout(0, 20 * MSS, True)
    reno.undo(20 * MSS, 1 << 40)
    assert (reno.cwnd_bytes, reno.in_slow_start) == (20 * MSS, True)
