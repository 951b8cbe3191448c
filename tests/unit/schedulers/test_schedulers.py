"""Which path a scheduler picks, from facts alone."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from mptcp.core.schedulers.base import Redundancy, Scheduler, eligible, quickest
from mptcp.core.schedulers.blest import LEAST_LAMBDA, MOST_LAMBDA, Blest
from mptcp.core.schedulers.earliest_completion import EarliestCompletion
from mptcp.core.schedulers.overflow import Overflow
from mptcp.core.schedulers.registry import SCHEDULERS
from mptcp.core.schedulers.round_robin import RoundRobin
from mptcp.core.schedulers.steady import Steady
from mptcp.core.schedulers.weighted import Weighted
from mptcp.core.units import MILLISECOND, SECOND
from mptcp.info import Endpoint, PathInfo

MSS = 1000


def path(number: int, srtt_ms: int = 10, **facts: object) -> PathInfo:
    """One that can send ten segments, with a window of twenty and ten in flight; IPv6 where the number is even."""
    local, remote = (
        (Endpoint(bytes(4)), Endpoint(bytes(4))) if number % 2 else (Endpoint(bytes(16)), Endpoint(bytes(16)))
    )
    made = PathInfo(
        number, local, remote, srtt_us=srtt_ms * MILLISECOND, mss_bytes=MSS, cwnd_bytes=20 * MSS,
        in_flight_bytes=10 * MSS, sendable_bytes=10 * MSS,
    )  # fmt: skip
    for name, value in facts.items():
        setattr(made, name, value)
    return made


def full(number: int, srtt_ms: int = 10, **facts: object) -> PathInfo:
    """Its window is used up."""
    return path(number, srtt_ms, sendable_bytes=0, in_flight_bytes=20 * MSS, **facts)


def chosen(scheduler: Scheduler, paths: Sequence[PathInfo], length: int = 5 * MSS) -> int:
    """The id of the path, 0 for none; what is given counts."""
    picked = scheduler.select(paths, length, 0)
    if picked is None:
        return 0
    assert picked.sendable_bytes > 0
    scheduler.on_given(picked, min(length, picked.sendable_bytes))
    return picked.id


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_uses_backups_only_without_regular_paths(name: str) -> None:  # RFC 8684 §3.3.8
    for spare in ({"backup": True}, {"weight": 0}):
        scheduler = SCHEDULERS[name]()
        assert chosen(scheduler, [path(1, 50), path(2, 5, **spare)]) == 1
        assert chosen(scheduler, [full(1, 50), path(2, 5, **spare)]) == 0
        assert chosen(scheduler, [path(2, 5, **spare)]) == 2
        assert chosen(scheduler, [path(1, 5, stale=True), path(2, 50, **spare)]) == 2


@pytest.mark.parametrize("name", SCHEDULERS)
def test_no_scheduler_picks_a_path_that_cannot_send(name: str) -> None:
    scheduler = SCHEDULERS[name]()
    assert chosen(scheduler, [full(1), full(2)]) == 0
    assert scheduler.select_reinjection([full(1), full(2)], MSS, 0) is None
    only = scheduler.select_reinjection([full(1), path(2, 300)], MSS, 0)
    assert only is not None
    assert only.id == 2
    assert scheduler.name == name


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_blocked_path_with_nothing_in_flight_is_never_waited_for(name: str) -> None:
    """No acknowledgement would come to ask again: its link is busy, or its window closed."""
    blocked = path(1, 1, sendable_bytes=0, in_flight_bytes=0)
    assert chosen(SCHEDULERS[name](), [blocked, path(2, 300)], MSS) == 2


def test_eligible_and_quickest() -> None:
    paths = [path(1, backup=True), path(2, stale=True), path(3, 30), path(4, 0), path(5, 20, sendable_bytes=0)]
    assert [p.id for p in eligible(paths)] == [3, 4, 5]
    assert [p.id for p in eligible(paths[:2])] == [1]
    assert [p.id for p in eligible(paths[1:2])] == [2]
    best = quickest(paths[2:])
    assert best is not None
    assert best.id == 3  # the one without a sample comes last


def test_round_robin_takes_turns_and_passes_over_what_is_full() -> None:
    scheduler = RoundRobin()
    paths = [path(1), path(2), path(5)]
    assert [chosen(scheduler, paths) for _ in range(5)] == [1, 2, 5, 1, 2]
    assert [chosen(scheduler, [path(1), path(2), full(5)]) for _ in range(3)] == [1, 2, 1]


def test_weighted_gives_shares_by_weight() -> None:
    scheduler = Weighted()
    paths = [path(1, weight=3), path(2, weight=1)]
    picks = [chosen(scheduler, paths, MSS) for _ in range(400)]
    assert picks.count(1) == 300


def test_weighted_lets_a_newcomer_start_where_the_others_are() -> None:
    scheduler = Weighted()
    for _ in range(100):
        chosen(scheduler, [path(1)], MSS)
    picks = [chosen(scheduler, [path(1), path(2)], MSS) for _ in range(20)]
    assert picks.count(1) == 10


def test_weighted_strict_waits_for_the_path_whose_turn_it_is() -> None:
    paths = [full(1, weight=3), path(2)]
    loose, strict = Weighted(), Weighted(strict=True)
    assert [chosen(loose, paths) for _ in range(3)] == [2, 2, 2]
    assert chosen(strict, paths) == 0


def test_overflow_fills_the_first_before_the_second_is_touched() -> None:
    scheduler = Overflow()
    assert chosen(scheduler, [path(1, 100), path(2, 5)]) == 1  # order counts, not speed
    assert chosen(scheduler, [path(1), path(2, weight=2)]) == 2  # unless a preference says otherwise
    # 20 segments in 10 ms: a backlog of 400 segments takes the first path 200 ms, one of 600 takes it 300 ms
    assert chosen(scheduler, [full(1), path(2)], 400 * MSS) == 0
    assert chosen(scheduler, [full(1), path(2)], 600 * MSS) == 2
    assert chosen(Overflow(spill_us=0), [full(1), path(2)], MSS) == 2


def test_earliest_completion_waits_where_waiting_is_quicker() -> None:
    scheduler = EarliestCompletion()
    assert chosen(scheduler, [path(1, 10), path(2, 100)]) == 1
    # Twenty segments fit into the next window of the fast path: 20 ms, against 100 ms over the slow one.
    assert chosen(scheduler, [full(1, 10), path(2, 100)], 20 * MSS) == 0
    # Twenty windows of it do not.
    assert chosen(scheduler, [full(1, 10), path(2, 100)], 400 * MSS) == 2
    # Nor does it pay where the paths are alike.
    assert chosen(scheduler, [full(1, 80), path(2, 100)], 20 * MSS) == 2


def test_earliest_completion_does_not_try_an_unknown_path_with_what_a_known_one_takes_at_once() -> None:
    assert chosen(EarliestCompletion(), [full(1, 10), path(2, 0)], 10 * MSS) == 0
    assert chosen(EarliestCompletion(), [full(1, 10), path(2, 0)], 100 * MSS) == 2


def test_steady_stays_on_its_path() -> None:
    scheduler = Steady()
    calm, restless = path(1, 50, rttvar_us=1_000), path(2, 10, rttvar_us=30_000)
    assert chosen(scheduler, [calm, restless]) == 1
    assert chosen(scheduler, [full(1, 50, rttvar_us=1_000), restless], SECOND) == 0
    calm.rttvar_us = 15_000
    restless.rttvar_us = 100
    assert chosen(scheduler, [calm, restless]) == 1
    calm.rttvar_us = 40_000  # and leaves it only for one that is much calmer
    assert chosen(scheduler, [calm, restless]) == 2
    assert chosen(scheduler, [calm]) == 1


def test_steady_fills_up_to_the_rate_that_is_needed_and_no_further() -> None:
    # 20 segments of 1000 octets in 10 ms are 16 Mbit/s.
    assert chosen(Steady(rate_bps=10_000_000), [full(1), path(2)]) == 0
    assert chosen(Steady(rate_bps=20_000_000), [full(1), path(2)]) == 2
    assert chosen(Steady(rate_bps=20_000_000), [full(1), full(2), path(3)]) == 0
    # One that can still send and lags behind all the same is held up by something else than its window: 10 segments in
    # 10 ms are 8 Mbit/s.
    assert chosen(Steady(rate_bps=10_000_000), [path(1), path(2)], 100 * MSS) == 2
    assert chosen(Steady(rate_bps=10_000_000), [path(1), path(2)], 10 * MSS) == 1
    assert chosen(Steady(rate_bps=7_000_000), [path(1), path(2)], 100 * MSS) == 1


def test_redundancy_is_ordered_and_named() -> None:
    assert Redundancy.NONE < Redundancy.ON_RETRANSMISSION < Redundancy.ALL
    assert SCHEDULERS["redundant"]().redundancy is Redundancy.ALL
    assert SCHEDULERS["redundant-retransmission"]().redundancy is Redundancy.ON_RETRANSMISSION
    assert SCHEDULERS["lowest-rtt"]().redundancy is Redundancy.NONE
    copies = SCHEDULERS["redundant"]().select_copies([path(1), path(2, backup=True)], 0)
    assert [p.id for p in copies] == [1]


# --- BLEST -----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("window", "expected"), [(30 * MSS, 0), (250 * MSS, 0), (400 * MSS, 2)])
def test_blest_leaves_a_slow_path_alone_that_would_block_the_window(window: int, expected: int) -> None:
    # In 100 ms the fast path sends ten windows of twenty segments, growing by one each: (20 + 4.5) * 10 segments, times
    # 1.2; the slow one has ten in flight.
    scheduler = Blest()
    scheduler.on_window(window, 1)
    assert chosen(scheduler, [full(1, 10), path(2, 100)]) == expected


def test_blest_uses_the_fast_path_and_one_that_nothing_is_known_of() -> None:
    scheduler = Blest()
    scheduler.on_window(30 * MSS, 1)
    assert chosen(scheduler, [path(1, 10), path(2, 100)]) == 1
    assert chosen(scheduler, [full(1, 10), path(2, 0)]) == 2


def test_blest_learns_from_windows_that_were_full() -> None:
    scheduler = Blest()
    paths = [full(1, 10), path(2, 100)]
    seen = []
    for blocked in (True, False):
        for number in range(60):
            scheduler.on_window(300 * MSS, 0 if blocked else 1)
            scheduler.select(paths, MSS, (len(seen) * 60 + number) * 10 * MILLISECOND)
        seen.append(scheduler._lambda)
    assert seen == [MOST_LAMBDA, LEAST_LAMBDA]
