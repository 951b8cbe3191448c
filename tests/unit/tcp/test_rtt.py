"""RFC 6298, and what RFC 7323 adds to it."""

from __future__ import annotations

import pytest

from mptcp.core.tcp.rtt import MIN_RTT_WINDOW_US, RttEstimator
from mptcp.core.units import MILLISECOND, NEVER, SECOND


def estimator(rto_min_us: int = 200 * MILLISECOND) -> RttEstimator:
    return RttEstimator(1 * SECOND, rto_min_us, 120 * SECOND)


def test_before_any_sample_the_rto_is_one_second() -> None:  # RFC 6298 §2.1
    rtt = estimator()
    assert (rtt.rto_us, rtt.timeout_us, rtt.srtt_us, rtt.min_us) == (SECOND, SECOND, 0, NEVER)


def test_first_sample() -> None:  # RFC 6298 §2.2
    rtt = estimator()
    rtt.on_sample(100_000, 0)
    assert (rtt.srtt_us, rtt.rttvar_us, rtt.rto_us) == (100_000, 50_000, 300_000)


def test_next_samples() -> None:  # RFC 6298 §2.3
    rtt = estimator(1)
    rtt.on_sample(100_000, 0)
    rtt.on_sample(180_000, 0)
    # RTTVAR = 3/4 * 50 + 1/4 * |100 - 180| = 57.5 before SRTT = 7/8 * 100 + 1/8 * 180 = 110
    assert (rtt.srtt_us, rtt.rttvar_us) == (110_000, 57_500)
    assert rtt.rto_us == 110_000 + 4 * 57_500


def test_variation_term_has_a_floor() -> None:  # RFC 6298 §2.4, as Linux does it
    rtt = estimator()
    for _ in range(100):
        rtt.on_sample(10_000, 0)
    assert rtt.rto_us == 210_000


def test_timeout_backs_off_to_the_maximum_and_a_sample_collapses_it() -> None:  # RFC 6298 §5.5, §2.5, §5
    rtt = estimator()
    rtt.on_sample(100_000, 0)
    timeouts = []
    for _ in range(12):
        rtt.on_timeout()
        timeouts.append(rtt.timeout_us)
    assert timeouts[:3] == [600_000, 1_200_000, 2_400_000]
    assert timeouts[-1] == 120 * SECOND
    assert rtt.rto_us == 300_000
    rtt.on_sample(100_000, 0)
    assert rtt.timeout_us == rtt.rto_us
    assert rtt.backoff == 0


def test_a_lost_syn_makes_it_three_seconds() -> None:  # RFC 6298 §5.7
    rtt = estimator()
    rtt.on_syn_timeout()
    assert rtt.timeout_us == 3 * SECOND
    rtt.on_sample(50_000, 0)
    rtt.on_syn_timeout()
    assert rtt.timeout_us == 250_000


@pytest.mark.parametrize("per_round_trip", [1, 10, 100])
def test_many_samples_have_the_history_of_one(per_round_trip: int) -> None:  # RFC 7323 §4.2, appendix G
    rtt = estimator(1)
    rtt.on_sample(100_000, 0)
    for _ in range(8 * per_round_trip):  # eight round trips at the new value
        rtt.on_sample(200_000, 0, per_round_trip)
    # 1 - (7/8)^8 = 0.66 of the step
    assert rtt.srtt_us == pytest.approx(164_000, abs=3000)


def test_minimum_is_windowed() -> None:  # RFC 8985 §6.2 step 1
    rtt = estimator()
    rtt.on_sample(10_000, 0)
    rtt.on_sample(30_000, 1)
    assert rtt.min_us == 10_000
    rtt.on_sample(30_000, MIN_RTT_WINDOW_US + 1)
    assert rtt.min_us == 10_000
    rtt.on_sample(30_000, 2 * MIN_RTT_WINDOW_US + 2)
    rtt.on_sample(30_000, 3 * MIN_RTT_WINDOW_US + 3)
    assert rtt.min_us == 30_000


def test_no_sample_is_below_one_microsecond() -> None:
    rtt = estimator()
    rtt.on_sample(-5, 0)
    rtt.on_sample(0, 0)
    assert rtt.srtt_us == rtt.min_us == 1
