"""Virtual time: order, ties, cancelling."""

from mptcp.core.units import NEVER
from mptcp.sim.clock import VirtualClock


def test_events_run_in_order_of_time_and_then_of_scheduling() -> None:
    clock = VirtualClock()
    ran: list[str] = []
    clock.at(20, lambda: ran.append("c"))
    clock.at(10, lambda: ran.append("a"))
    clock.at(10, lambda: ran.append("b"))
    assert clock.run_instant() == 2
    assert (ran, clock.now) == (["a", "b"], 10)
    assert clock.run_instant() == 1
    assert (ran, clock.now) == (["a", "b", "c"], 20)
    assert clock.next_time == NEVER
    assert clock.run_instant() == 0


def test_what_an_event_schedules_for_now_runs_in_the_same_instant() -> None:
    clock = VirtualClock()
    ran: list[int] = []
    clock.at(5, lambda: clock.at(3, lambda: ran.append(clock.now)))
    clock.run_instant()
    assert ran == [5]


def test_a_cancelled_event_neither_runs_nor_moves_time() -> None:
    clock = VirtualClock()
    ran: list[str] = []
    first = clock.at(10, lambda: ran.append("never"))
    clock.at(30, lambda: ran.append("later"))
    clock.cancel(first)
    assert clock.next_time == 30
    clock.run_instant()
    assert (ran, clock.now) == (["later"], 30)
