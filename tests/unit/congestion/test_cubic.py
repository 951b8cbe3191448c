"""RFC 8312."""

from __future__ import annotations

import pytest

from mptcp.core.congestion.cubic import BETA, C, Cubic
from mptcp.core.units import SECOND

MSS = 1000
RTT = 100_000


def after_loss(segments: int) -> Cubic:
    """A controller that has just left recovery from a window of so many segments."""
    cubic = Cubic(MSS, segments * MSS)
    cubic.on_congestion_event(0, segments * MSS)
    cubic.on_recovery_exit(0)
    return cubic


def run(cubic: Cubic, start_us: int, seconds: float, rtt_us: int = RTT) -> None:
    """A window's worth of acknowledgements, spread over each round trip."""
    now = start_us
    while now < start_us + seconds * SECOND:
        acks = max(cubic.cwnd_bytes // (2 * MSS), 1)
        for _ in range(acks):
            now += rtt_us // acks
            cubic.on_ack(2 * MSS, now, rtt_us, rtt_us, True)


def test_slow_start_until_the_first_loss() -> None:  # RFC 8312 §4.8
    cubic = Cubic(MSS, 10 * MSS)
    cubic.on_ack(10 * MSS, 0, RTT, RTT, True)
    assert cubic.cwnd_bytes == 20 * MSS


def test_multiplicative_decrease_is_beta() -> None:  # RFC 8312 §4.5
    cubic = after_loss(100)
    assert cubic.cwnd_bytes == cubic.ssthresh_bytes == int(100 * MSS * BETA)
    small = Cubic(MSS, 2 * MSS)
    small.on_congestion_event(0, 2 * MSS)
    assert small.ssthresh_bytes == 2 * MSS


def test_plateau_is_reached_after_k() -> None:  # RFC 8312 §4.1 Eq. 1, Eq. 2
    cubic = after_loss(1000)
    k = (1000 * (1 - BETA) / C) ** (1 / 3)  # 9.1 s
    run(cubic, 0, k / 2)
    expected = 1000 - C * (k / 2) ** 3
    assert cubic.cwnd_bytes / MSS == pytest.approx(expected, rel=0.03)
    run(cubic, int(k / 2 * SECOND), k / 2)
    assert cubic.cwnd_bytes / MSS == pytest.approx(1000, rel=0.02)
    run(cubic, int(k * SECOND), 5)  # convex: beyond the plateau it accelerates
    assert cubic.cwnd_bytes / MSS == pytest.approx(1000 + C * 5**3, rel=0.03)


def test_short_round_trips_grow_as_reno_does() -> None:  # RFC 8312 §4.2
    cubic = after_loss(20)
    run(cubic, 0, 1.0, rtt_us=5_000)  # 200 round trips
    alpha = 3 * (1 - BETA) / (1 + BETA)
    assert cubic.cwnd_bytes / MSS == pytest.approx(14 + alpha * 200, rel=0.1)


def test_fast_convergence_gives_way() -> None:  # RFC 8312 §4.6
    def growth_after_second_loss(window: int) -> int:
        cubic = after_loss(1000)
        cubic.cwnd_bytes = window * MSS
        cubic.on_congestion_event(0, 0)
        cubic.cwnd_bytes = 560 * MSS
        run(cubic, 0, 4)
        return cubic.cwnd_bytes

    # the plateau is at 0.85 of the window when it has shrunk
    assert growth_after_second_loss(800) < growth_after_second_loss(1000)


def test_after_a_timeout_the_curve_starts_at_its_plateau() -> None:  # RFC 8312 §4.7
    cubic = Cubic(MSS, 100 * MSS)
    cubic.on_timeout(0, 100 * MSS, True)
    assert (cubic.cwnd_bytes, cubic.ssthresh_bytes) == (MSS, 70 * MSS)
    cubic.on_ack(69 * MSS, SECOND, RTT, RTT, True)
    assert cubic.cwnd_bytes == 70 * MSS
    run(cubic, SECOND, 1)
    assert 70 * MSS < cubic.cwnd_bytes < 78 * MSS


def test_time_without_use_does_not_count() -> None:  # RFC 8312 §5.8
    busy, idle = after_loss(200), after_loss(200)
    run(busy, 0, 3)
    run(idle, 0, 3)
    assert busy.cwnd_bytes == idle.cwnd_bytes
    idle.on_ack(MSS, 4 * SECOND, RTT, RTT, False)  # application-limited for a minute
    before = idle.cwnd_bytes
    idle.on_ack(2 * MSS, 64 * SECOND, RTT, RTT, True)
    assert idle.cwnd_bytes - before < 2 * MSS
    run(busy, 3 * SECOND, 2)
    run(idle, 64 * SECOND, 2)
    assert idle.cwnd_bytes == pytest.approx(busy.cwnd_bytes, rel=0.05)


def test_growth_is_bounded_by_half_a_window_per_round_trip() -> None:
    cubic = after_loss(10)
    run(cubic, 0, 0.1)
    before = cubic.cwnd_bytes
    for _ in range(before // (2 * MSS)):
        cubic.on_ack(2 * MSS, 1000 * SECOND, RTT, RTT, True)
    assert cubic.cwnd_bytes <= before * 1.51 + MSS


def test_undo() -> None:
    cubic = Cubic(MSS, 100 * MSS)
    cubic.on_congestion_event(0, 100 * MSS)
    cubic.on_recovery_exit(0)
    cubic.undo(100 * MSS, 1 << 40)
    assert cubic.cwnd_bytes == 100 * MSS
    assert cubic.in_slow_start
