"""The coupled controllers against the formulas of their papers."""

from __future__ import annotations

import pytest

from mptcp.core.congestion.balia import BALIA
from mptcp.core.congestion.base import CongestionControl
from mptcp.core.congestion.coupled import Coupled, CoupledControl
from mptcp.core.congestion.lia import LIA, alpha
from mptcp.core.congestion.olia import OLIA
from mptcp.core.congestion.wvegas import WVEGAS
from mptcp.core.units import MILLISECOND, SECOND

MSS = 1000
RTTS = (20 * MILLISECOND, 80 * MILLISECOND)
NOW = 10 * SECOND


def pair(factory: Coupled, windows: tuple[int, int] = (20, 40)) -> list[CoupledControl]:
    """Two subflows in congestion avoidance, with windows in segments and the round-trip times above."""
    group = factory.for_connection()
    members = [group(MSS, 10 * MSS) for _ in windows]
    for member, window, rtt in zip(members, windows, RTTS, strict=True):
        assert isinstance(member, CoupledControl)
        member.cwnd_bytes = member.ssthresh_bytes = window * MSS
        member.srtt_us, member.acked_at_us = rtt, NOW
    return group.members


def grow(member: CongestionControl, segments: int = 1, rtt_us: int = 0) -> float:
    """By how much the window grows for each of many acknowledged segments; the window itself is put back."""
    before, total = member.cwnd_bytes, 0
    for _ in range(1000):
        member.on_ack(segments * MSS, NOW, 0, rtt_us, True)
        total += member.cwnd_bytes - before
        member.cwnd_bytes = before
    return total / 1000


def test_lia_increase_is_equation_1_with_the_alpha_of_equation_2() -> None:  # RFC 6356 §3
    first, second = pair(LIA)
    w, r = (20_000, 40_000), RTTS
    expected = 60_000 * max(w[0] / r[0] ** 2, w[1] / r[1] ** 2) / (w[0] / r[0] + w[1] / r[1]) ** 2
    assert alpha([first, second]) == pytest.approx(expected)
    linked = expected * MSS * MSS / 60_000
    assert grow(first) == pytest.approx(min(linked, MSS * MSS / 20_000), rel=0.01)
    assert grow(second) == pytest.approx(min(linked, MSS * MSS / 40_000), rel=0.01)


def test_lia_is_never_more_aggressive_than_tcp_on_the_same_path() -> None:  # RFC 6356 §3: the second argument to min
    first, second = pair(LIA, (1000, 2))
    assert grow(second) <= MSS * MSS / 2_000
    assert grow(first) <= MSS * MSS / 1_000_000


def test_lia_alone_is_tcp() -> None:
    control = LIA(MSS, 10 * MSS)
    control.ssthresh_bytes = 10 * MSS
    for _ in range(10):
        control.on_ack(MSS, NOW, 20_000, 20_000, True)
    assert control.cwnd_bytes == pytest.approx(11 * MSS, rel=0.01)


def test_a_subflow_in_recovery_counts_with_its_threshold() -> None:  # RFC 6356 §3
    _, second = pair(LIA)
    second.on_congestion_event(NOW, 40 * MSS)
    second.cwnd_bytes = 50 * MSS
    assert second.window_bytes == 20 * MSS
    second.on_recovery_exit(NOW)
    assert second.window_bytes == second.cwnd_bytes == 20 * MSS


def test_a_subflow_with_nothing_in_flight_counts_for_nothing() -> None:  # RFC 6356 §3: app limited
    first, second = pair(LIA)
    assert first.group.at_work(NOW, first) == [first, second]
    assert first.group.at_work(NOW + 2 * SECOND, first) == [first]


def test_a_subflow_that_ends_leaves() -> None:
    first, second = pair(LIA)
    second.on_close()
    second.on_close()
    assert first.group.members == [first]


def test_connections_are_not_coupled_with_one_another() -> None:
    assert LIA.for_connection() is not LIA.for_connection()
    one, other = LIA(MSS, MSS), LIA(MSS, MSS)
    assert isinstance(one, CoupledControl)
    assert isinstance(other, CoupledControl)
    assert one.group is not other.group


@pytest.mark.parametrize("factory", [LIA, OLIA, BALIA], ids=lambda factory: str(factory.name))
def test_slow_start_and_a_window_not_used_are_as_in_tcp(factory: Coupled) -> None:  # RFC 6356 §3
    group = factory.for_connection()
    control = group(MSS, 10 * MSS)
    for _ in range(10):
        control.on_ack(MSS, NOW, 20_000, 20_000, True)
    assert control.cwnd_bytes == 20 * MSS
    control.on_ack(MSS, NOW, 20_000, 20_000, False)
    assert control.cwnd_bytes == 20 * MSS
    control.ssthresh_bytes = 22 * MSS
    control.on_ack(5 * MSS, NOW, 20_000, 20_000, True)  # 2 to the threshold
    assert 22 * MSS <= control.cwnd_bytes <= 23 * MSS


@pytest.mark.parametrize("factory", [LIA, OLIA], ids=lambda factory: str(factory.name))
def test_a_loss_halves_what_is_in_flight(factory: Coupled) -> None:  # RFC 6356 §3: "unmodified TCP behavior"
    first, _ = pair(factory)
    first.on_congestion_event(NOW, 20 * MSS)
    assert first.ssthresh_bytes == 10 * MSS
    first.on_timeout(NOW, 20 * MSS, True)
    assert first.cwnd_bytes == MSS
    first.undo(20 * MSS, 15 * MSS)
    assert (first.cwnd_bytes, first.ssthresh_bytes, first.in_recovery) == (20 * MSS, 15 * MSS, False)


def test_olia_moves_window_to_the_best_path_that_has_less() -> None:  # draft-khalili §3
    first, second = pair(OLIA)
    for member, acked in ((first, 400), (second, 100)):
        member.on_ack(acked * MSS, NOW, 0, 0, False)
    rate = 20_000 / RTTS[0] + 40_000 / RTTS[1]
    shared = [w / r**2 / rate**2 * MSS * MSS for w, r in zip((20_000, 40_000), RTTS, strict=True)]
    # The first path has the best quality and the smaller window: it gains what the second one gives.
    assert grow(first) == pytest.approx(shared[0] + 0.5 / 20_000 * MSS * MSS, rel=0.02)
    assert second.increase(MSS, [first, second]) == pytest.approx(shared[1] - 0.5 / 40_000 * MSS * MSS, rel=0.02)


def test_olia_without_a_better_path_moves_nothing() -> None:
    first, second = pair(OLIA)
    second.on_ack(1000 * MSS, NOW, 0, 0, False)  # the best path has the largest window already
    rate = 20_000 / RTTS[0] + 40_000 / RTTS[1]
    assert first.increase(MSS, [first, second]) == pytest.approx(20_000 / RTTS[0] ** 2 / rate**2 * MSS * MSS)


def test_balia_increase_and_decrease() -> None:  # draft-walid §3.1
    first, second = pair(BALIA)
    x = (20_000 / RTTS[0], 40_000 / RTTS[1])
    for member, own, rtt in ((first, x[0], RTTS[0]), (second, x[1], RTTS[1])):
        ratio = max(x) / own
        expected = own / rtt / sum(x) ** 2 * (1 + ratio) / 2 * (4 + ratio) / 5 * MSS * MSS
        assert member.increase(MSS, [first, second]) == pytest.approx(expected)
    second.on_congestion_event(NOW, 40 * MSS)  # alpha = 2, and so half of it times 1.5
    assert second.ssthresh_bytes == 10 * MSS
    first.on_congestion_event(NOW, 20 * MSS)
    assert first.ssthresh_bytes == 10 * MSS


def test_wvegas_grows_until_its_share_is_queued_and_then_stays() -> None:
    first, second = pair(WVEGAS)
    second.on_close()
    base = 20 * MILLISECOND

    def rounds(count: int, rtt_us: int) -> None:
        for _ in range(count):
            first.on_ack(first.cwnd_bytes, NOW, rtt_us, rtt_us, True)

    rounds(1, base)
    before = first.cwnd_bytes
    rounds(3, base)
    assert first.cwnd_bytes == before + 3 * MSS  # nothing is queued: one segment per round
    for _ in range(200):
        window = first.cwnd_bytes / MSS
        rounds(1, int(base * max(1.0, window / 25)))  # a path that holds 25 segments; the rest is queued
    assert 25 <= first.cwnd_bytes / MSS <= 25 + 10 + 2


def test_wvegas_leaves_slow_start_when_a_queue_builds_up() -> None:
    control = WVEGAS(MSS, 10 * MSS)
    control.on_ack(10 * MSS, NOW, 20_000, 20_000, True)
    assert control.in_slow_start
    control.on_ack(control.cwnd_bytes, NOW, 40_000, 40_000, True)
    assert not control.in_slow_start


def test_wvegas_gives_the_faster_subflow_the_larger_share() -> None:
    first, second = pair(WVEGAS, (20, 20))
    assert first.group.members == [first, second]
    weights = [member.weight(NOW) for member in (first, second)]  # type: ignore[attr-defined]
    assert weights == pytest.approx([0.8, 0.2])
