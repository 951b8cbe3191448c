"""The monitor with sources of its own making: what is kept, for whom, and what happens when a source fails."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator

import pytest

from mptcp.info import Endpoint, Support
from mptcp.kernel import monitor as module
from mptcp.kernel.control import NoControl
from mptcp.kernel.monitor import (
    MAX_INBOX,
    MAX_UNCLAIMED,
    MAX_UNCLAIMED_EVENTS,
    HungUp,
    Monitor,
    Notice,
    Overflow,
    PollTurn,
    ResetsCounted,
    Subscriber,
)
from mptcp.kernel.namespace import NetNamespace
from mptcp.kernel.pm_events import EventsLost, PmEvent, PmEventKind, PmEventSource


class Source(PmEventSource):
    """Gives what it is told to give."""

    def __init__(self) -> None:
        self.wake = os.eventfd(0, os.EFD_NONBLOCK)
        self.answers: deque[list[PmEvent] | Exception] = deque()
        self.watched: list[tuple[int, int]] = []
        self.unwatched: list[int] = []

    def give(self, answer: list[PmEvent] | Exception) -> None:
        self.answers.append(answer)
        os.eventfd_write(self.wake, 1)

    def fileno(self) -> int:
        return self.wake

    def read(self) -> list[PmEvent]:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.wake)
        answer = self.answers.popleft()
        if self.answers:
            os.eventfd_write(self.wake, 1)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def watch(self, fd: int, token: int) -> None:
        self.watched.append((fd, token))

    def unwatch(self, token: int) -> None:
        self.unwatched.append(token)

    def close(self) -> None:
        if self.wake >= 0:
            os.close(self.wake)
            self.wake = -1


class Giver(NoControl):
    """A control whose only use is its sources."""

    __slots__ = ("sources",)

    def __init__(self, *sources: Source) -> None:
        super().__init__(Support(False, "out of sources", "bring some"))
        self.sources = deque(sources)

    def event_source(self) -> PmEventSource:
        if not self.sources:
            raise OSError(errno.ENOENT, "no source")
        return self.sources.popleft()


class Listener(Subscriber):
    def __init__(self, fails: bool = False) -> None:
        self.inbox: deque[Notice] = deque()
        self.heard: list[Notice] = []
        self.fails = fails

    def work(self) -> None:
        while self.inbox:
            self.heard.append(self.inbox.popleft())
        if self.fails:
            raise RuntimeError("this one is broken")

    @property
    def events(self) -> list[PmEvent]:
        return [notice for notice in self.heard if isinstance(notice, PmEvent)]


def event(token: int, kind: PmEventKind = PmEventKind.SUBFLOW_ESTABLISHED, number: int = 0) -> PmEvent:
    return PmEvent(kind, token, Endpoint(bytes(4), number))


def eventually(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.001)


@pytest.fixture
def source() -> Source:
    return Source()


@pytest.fixture
def monitor(source: Source) -> Iterator[Monitor]:
    made = Monitor(NetNamespace(), Giver(source))
    yield made
    made.close()


def test_each_hears_of_its_own(monitor: Monitor, source: Source) -> None:
    first, second, everything = Listener(), Listener(), Listener()
    monitor.subscribe(1, first)
    monitor.subscribe(2, second)
    monitor.subscribe_all(everything)
    told = [event(1), event(2), event(1, number=5), PmEvent(PmEventKind.LISTENER_CREATED)]
    source.give(told)
    eventually(lambda: len(everything.heard) == 4)
    assert (first.events, second.events, everything.events) == ([told[0], told[2]], [told[1]], told)


def test_what_came_before_is_kept_in_order_and_bounded(monitor: Monitor, source: Source) -> None:
    probe = Listener()
    monitor.subscribe(9, probe)
    source.give([event(1, number=i) for i in range(MAX_UNCLAIMED_EVENTS + 10)])
    source.give([event(token) for token in range(100, 100 + MAX_UNCLAIMED)])
    source.give([event(9)])
    eventually(lambda: probe.heard)
    late, latest = Listener(), Listener()
    monitor.subscribe(1, late)
    assert late.events == []  # the oldest made room
    monitor.subscribe(99 + MAX_UNCLAIMED, latest)
    assert len(latest.events) == 1
    source.give([event(2, number=i) for i in range(MAX_UNCLAIMED_EVENTS + 10)])
    source.give([event(9)])
    eventually(lambda: len(probe.heard) == 2)
    full = Listener()
    monitor.subscribe(2, full)
    assert [e.local and e.local.port for e in full.events] == list(range(MAX_UNCLAIMED_EVENTS))


def test_a_token_used_again_starts_anew(monitor: Monitor, source: Source) -> None:
    probe, late = Listener(), Listener()
    monitor.subscribe(9, probe)
    source.give([event(1, PmEventKind.CLOSED), event(1, PmEventKind.CREATED), event(9)])
    eventually(lambda: probe.heard)
    monitor.subscribe(1, late)
    assert [e.kind for e in late.events] == [PmEventKind.CREATED]


def test_lost_events(monitor: Monitor, source: Source) -> None:
    listener, late = Listener(), Listener()
    monitor.subscribe(1, listener)
    source.give([event(2)])
    source.give(EventsLost())
    eventually(lambda: any(isinstance(notice, Overflow) for notice in listener.heard))
    monitor.subscribe(2, late)
    assert late.heard == []


def test_one_that_fails_is_not_the_end_of_the_others(
    monitor: Monitor, source: Source, caplog: pytest.LogCaptureFixture
) -> None:
    good = Listener()
    broken = Listener()
    monitor.subscribe(1, broken)
    broken.fails = True
    monitor.subscribe(1, good)
    source.give([event(1)])
    source.give([event(1)])
    eventually(lambda: len(good.heard) == 2)
    assert "this one is broken" in caplog.text


def test_an_inbox_that_nobody_empties_becomes_one_overflow(monitor: Monitor, source: Source) -> None:
    class Lazy(Listener):
        def work(self) -> None:
            self.heard.append(Overflow())

    lazy = Lazy()
    monitor.subscribe(1, lazy)
    source.give([event(1)] * (MAX_INBOX + 5))
    eventually(lambda: len(lazy.heard) == 2)
    assert isinstance(lazy.inbox[0], Overflow)
    assert len(lazy.inbox) == 5


def test_unsubscribing(monitor: Monitor, source: Source) -> None:
    listener, probe = Listener(), Listener()
    with socket.socket() as sock:
        monitor.subscribe(1, listener, sock.fileno())
        monitor.subscribe(9, probe)
        assert source.watched == [(sock.fileno(), 1)]
        before = len(listener.heard)
        monitor.unsubscribe(1, listener)
        monitor.unsubscribe(1, listener)
        assert source.unwatched == [1]
        source.give([event(1), event(9)])
        eventually(lambda: probe.heard)
        assert listener.events == []
        assert len(listener.heard) - before <= 1


def test_the_end_of_a_connection_shows_on_its_descriptor(monitor: Monitor) -> None:
    ours, theirs = socket.socketpair()
    listener = Listener()
    monitor.subscribe(1, listener, ours.fileno())
    assert listener.heard == []
    theirs.send(b"data is no end")
    theirs.close()
    eventually(lambda: listener.heard)
    assert isinstance(listener.heard[0], HungUp)
    monitor.unsubscribe(1, listener)
    ours.close()


def test_what_was_said_of_a_descriptor_before_is_not_said_of_the_next_with_its_number(monitor: Monitor) -> None:
    ours, theirs = socket.socketpair()
    listener = Listener()
    monitor.subscribe(1, listener, ours.fileno())
    # The monitor's thread has this from epoll, and comes to it when the number is another socket's.
    monitor._hung_up(ours.fileno(), select.EPOLLHUP)
    assert listener.heard == []
    theirs.close()
    eventually(lambda: listener.heard)
    monitor.unsubscribe(1, listener)
    ours.close()


def test_a_timer_that_fails_is_not_the_end_of_the_others(monitor: Monitor, caplog: pytest.LogCaptureFixture) -> None:
    class Clock:
        def __init__(self) -> None:
            self.rings = 0

        def ring(self) -> None:
            self.rings += 1

        def fail(self) -> None:
            raise RuntimeError("this clock is broken")

    clock = Clock()
    monitor.call_later(0, clock.fail)
    eventually(lambda: "this clock is broken" in caplog.text)
    monitor.call_later(0, clock.ring)
    eventually(lambda: clock.rings == 1)


def test_a_source_that_fails_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY_S", (0.01, 0.02))
    monkeypatch.setattr(module, "POLL_S", 0.01)
    first, second = Source(), Source()
    monitor = Monitor(NetNamespace(), Giver(first))
    listener = Listener()
    with socket.socket() as sock:
        monitor.subscribe(1, listener, sock.fileno())
        assert not monitor.is_polling
        first.give(OSError(errno.ECONNRESET, "the broker went away"))
        eventually(lambda: any(isinstance(notice, PollTurn) for notice in listener.heard))
        assert monitor.is_polling
        assert not monitor.supports()
        giver = monitor._control
        assert isinstance(giver, Giver)
        giver.sources.append(second)
        eventually(lambda: not monitor.is_polling)
        assert monitor.supports()
        eventually(lambda: second.watched == [(sock.fileno(), 1)])
        second.give([event(1)])
        eventually(lambda: listener.events)
        monitor.unsubscribe(1, listener)
    monitor.close()


def test_a_fallback_shows_in_the_namespaces_counters(monkeypatch: pytest.MonkeyPatch, source: Source) -> None:
    counted = {"MPFallbackTokenInit": 1, "InfiniteMapRx": 0, "MPJoinSynTx": 5}
    monkeypatch.setattr(module, "FALLBACK_S", 0.005)
    monkeypatch.setattr(module.features, "counters", lambda _: dict(counted))
    monitor = Monitor(NetNamespace(), Giver(source))
    listener = Listener()
    monitor.subscribe(1, listener)
    counted["MPJoinSynTx"] = 6
    time.sleep(0.03)
    assert listener.heard == []
    counted["InfiniteMapRx"] = 1
    eventually(lambda: listener.heard)
    assert isinstance(listener.heard[0], PollTurn)
    monitor.close()


@pytest.mark.parametrize(
    ("name", "kinds"), [("MPCapableDataFallback", [PollTurn]), ("MPRstTx", [ResetsCounted, ResetsCounted])]
)
def test_what_is_counted_before_the_first_look_is_told(
    monkeypatch: pytest.MonkeyPatch, source: Source, name: str, kinds: list[type[object]]
) -> None:
    """A fallback once; that this side has reset a subflow twice, so that its event may come in between."""
    counted = {"MPCapableDataFallback": 7, "MPRstTx": 7}
    monkeypatch.setattr(module, "FALLBACK_S", 0.02)
    monkeypatch.setattr(module, "CONFIRM_S", 0.01)
    monkeypatch.setattr(module.features, "counters", lambda _: dict(counted))
    monitor = Monitor(NetNamespace(), Giver(source))
    listener = Listener()
    monitor.subscribe(1, listener)
    counted[name] += 1
    eventually(lambda: len(listener.heard) >= len(kinds))
    looks: list[int] = []
    monkeypatch.setattr(module.features, "counters", lambda _: looks.append(1) or dict(counted))  # type: ignore[func-returns-value]
    eventually(lambda: len(looks) > 2)
    assert [type(heard) for heard in listener.heard] == kinds
    monitor.close()


def test_polling_takes_no_more_of_a_processor_the_more_connections_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POLL_S", 0.01)
    monkeypatch.setattr(module, "POLL_COST_S", 0.05)
    monitor = Monitor(NetNamespace(), Giver())
    assert "no source" in monitor.supports().reason or "out of sources" in monitor.supports().reason
    listeners = [Listener() for _ in range(3)]
    for token, listener in enumerate(listeners, 1):
        monitor.subscribe(token, listener)
    eventually(lambda: all(listener.heard for listener in listeners))
    time.sleep(0.05)
    # The next turn is 3 * 0.05 s / POLL_SHARE away.
    assert all(len(listener.heard) == 1 for listener in listeners)
    monitor.close()


def test_a_closed_monitor(source: Source) -> None:
    monitor = Monitor(NetNamespace(), Giver(source))
    monitor.close()
    monitor.close()
    assert source.wake == -1
    assert not monitor._thread.is_alive()
    # A connection that began at that very moment hears nothing, and nothing else happens to it.
    with socket.socket() as sock:
        for _ in range(2):
            monitor.subscribe(1, Listener(), sock.fileno())
