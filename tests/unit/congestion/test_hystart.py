"""HyStart++ (RFC 9406): when the first slow start ends, and when it does not."""

from __future__ import annotations

from mptcp.core.congestion.base import INFINITE_SSTHRESH
from mptcp.core.congestion.cubic import Cubic
from mptcp.core.congestion.hystart import CSS_GROWTH_DIVISOR, CSS_ROUNDS, N_RTT_SAMPLE, HyStart
from mptcp.core.units import MILLISECOND

MSS = 1000
BASE_US = 40 * MILLISECOND


class Path:
    """Round trips of a sender that its window limits: a segment, an acknowledgement, a sample."""

    def __init__(self, cwnd_segments: int = 10) -> None:
        self.cwnd_bytes = cwnd_segments * MSS
        self.hystart = HyStart(self.cwnd_bytes)

    def round(self, rtt_us: int) -> float:
        """By what factor the window grows in one."""
        before = self.cwnd_bytes
        for _ in range(-(-before // MSS)):
            self.cwnd_bytes += self.hystart.on_ack(MSS, rtt_us, self.cwnd_bytes)
        return self.cwnd_bytes / before


def test_doubles_while_the_round_trip_time_stays() -> None:
    path = Path()
    assert [path.round(BASE_US + jitter) for jitter in (0, 1000, 2000, 4000, 500)] == [2] * 5
    assert not path.hystart.is_over


def test_a_round_trip_time_that_grows_by_an_eighth_slows_it_down_and_ends_it() -> None:
    path = Path()
    path.round(BASE_US)
    longer = BASE_US + BASE_US // 8
    first = path.round(longer)
    assert path.hystart.is_conservative
    assert 1 + 1 / CSS_GROWTH_DIVISOR < first < 2  # doubling up to the eighth sample
    rounds = 1
    while not path.hystart.is_over:
        assert path.round(longer) < 1.3
        rounds += 1
    assert rounds == CSS_ROUNDS


def test_thresholds_have_bounds() -> None:
    for base_ms, unnoticed_ms, noticed_ms in ((8, 3, 4), (40, 4, 5), (400, 15, 16)):
        for more_ms, noticed in ((unnoticed_ms, False), (noticed_ms, True)):
            path = Path()
            path.round(base_ms * MILLISECOND)
            path.round((base_ms + more_ms) * MILLISECOND)
            assert path.hystart.is_conservative == noticed, (base_ms, more_ms)


def test_slow_start_goes_on_when_the_delay_was_none_of_ours() -> None:
    path = Path()
    path.round(BASE_US)
    path.round(BASE_US * 2)
    assert path.hystart.is_conservative
    path.round(BASE_US)
    assert not path.hystart.is_conservative
    assert path.round(BASE_US) == 2
    assert not path.hystart.is_over


def test_few_samples_prove_nothing() -> None:
    path = Path(N_RTT_SAMPLE - 1)
    path.round(BASE_US)
    path.cwnd_bytes = (N_RTT_SAMPLE - 1) * MSS
    path.hystart = HyStart(path.cwnd_bytes)
    path.round(BASE_US)
    for _ in range(N_RTT_SAMPLE - 1):
        path.hystart.on_ack(MSS, 3 * BASE_US, path.cwnd_bytes)
    assert not path.hystart.is_conservative
    path.hystart.on_ack(MSS, 3 * BASE_US, path.cwnd_bytes)
    assert path.hystart.is_conservative


def test_without_samples_it_is_plain_slow_start() -> None:
    path = Path()
    assert [path.round(0) for _ in range(8)] == [2] * 8


def grow(cubic: Cubic, rtt_us: int) -> None:
    for _ in range(cubic.cwnd_bytes // MSS):
        cubic.on_ack(MSS, 0, rtt_us, rtt_us, True)


def test_cubic_takes_the_window_it_ends_with_as_threshold() -> None:
    cubic = Cubic(MSS, 10 * MSS)
    grow(cubic, BASE_US)
    assert (cubic.cwnd_bytes, cubic.ssthresh_bytes) == (20 * MSS, INFINITE_SSTHRESH)
    while cubic.ssthresh_bytes == INFINITE_SSTHRESH:
        grow(cubic, 2 * BASE_US)
    assert not cubic.in_slow_start
    assert 20 * MSS < cubic.cwnd_bytes < 160 * MSS
    # RFC 8312 §4.8: "K is set to 0, and W_max is set to the congestion window size at the beginning of the current
    # congestion avoidance": flat at first
    before = cubic.cwnd_bytes
    grow(cubic, 2 * BASE_US)
    assert before <= cubic.cwnd_bytes < before + 2 * MSS


def test_later_slow_starts_of_cubic_have_a_threshold_already() -> None:
    cubic = Cubic(MSS, 10 * MSS)
    grow(cubic, BASE_US)
    cubic.on_timeout(0, cubic.cwnd_bytes, True)
    threshold = cubic.ssthresh_bytes
    for rtt_us in (BASE_US, 2 * BASE_US, 4 * BASE_US):
        grow(cubic, rtt_us)
    assert cubic.ssthresh_bytes == threshold
    assert cubic.cwnd_bytes == 8 * MSS
