"""Events of connections of the kernel's: with its own events, and without the privilege to hear them."""

from __future__ import annotations

import gc
import socket
import struct
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from mptcp.core.multipath.events import MAX_EVENTS, Event, EventKind
from mptcp.info import Endpoint, SubflowState, Support
from mptcp.kernel.connection import KernelConnection
from mptcp.kernel.control import DirectControl, NoControl
from mptcp.kernel.monitor import Monitor
from mptcp.kernel.namespace import NetNamespace
from mptcp.kernel.pm_events import PmEventSocket, PmEventSource
from mptcp.testing import netns

Make = Callable[..., Any]
Wait = Callable[..., None]

LINGER_RESET = struct.pack("ii", 1, 0)


def taken(connection: KernelConnection) -> list[Event]:
    found = []
    while (event := connection.poll_event()) is not None:
        found.append(event)
    return found


def next_of(connection: KernelConnection, kind: EventKind, seconds: float = 30) -> Event:
    """The next event of a kind; others are passed over."""
    deadline = time.monotonic() + seconds
    with connection.lock:
        while True:
            while (event := connection.poll_event()) is not None:
                if event.kind is kind:
                    return event
            left = deadline - time.monotonic()
            assert left > 0, f"no {kind}"
            assert not connection.is_ended, f"ended without {kind}"
            connection.changed.wait(left)


def joined(pair: Any, path: int = 2, **options: object) -> int:
    """A further subflow that both sides have heard of."""
    number = pair.client.open_subflow(pair.local(path), pair.remote(path), **options)
    for side in (pair.client, pair.server):
        while next_of(side, EventKind.SUBFLOW_ESTABLISHED).remote == side.initial_remote:
            pass
    return number


# --- from the kernel --------------------------------------------------------------------------------------------------
def test_none_is_lost_between_connect_and_subscribe(
    steered_lab: netns.Lab, make_pair: Make, eventually: Wait, family: int
) -> None:
    namespace = NetNamespace(steered_lab.client.fileno())
    control = DirectControl(namespace)
    monitor = Monitor(namespace, control)
    far = PmEventSocket(NetNamespace(steered_lab.server.fileno()))
    kind = socket.AF_INET if family == 4 else socket.AF_INET6
    client, server = make_pair(
        steered_lab.client, steered_lab.server_address(1, family), kind, server_in=steered_lab.server, bind=""
    )
    # All of this happens before anybody asks.
    early = KernelConnection(client.fileno(), namespace, control, Monitor(namespace, control))
    local = Endpoint.parse(steered_lab.client_address(2, family))
    remote = Endpoint.parse(steered_lab.server_address(2, family), server.getsockname()[1])
    number = early.open_subflow(local, remote)
    eventually(lambda: early.waiting_events == 3)
    early.close_subflow(number)
    early.open_subflow(local, remote)
    eventually(lambda: early.waiting_events == 5)
    # CREATED, ESTABLISHED, and three of subflows: the other monitor has heard all of them, too.
    eventually(lambda: len(monitor._unclaimed[early.token][1]) == 5)
    late = KernelConnection(client.fileno(), namespace, control, monitor)
    assert late.waiting_events == 5
    events = taken(late)
    assert [e.kind for e in events] == [
        EventKind.ESTABLISHED, EventKind.SUBFLOW_ESTABLISHED, EventKind.SUBFLOW_ESTABLISHED, EventKind.SUBFLOW_CLOSED,
        EventKind.SUBFLOW_ESTABLISHED,
    ]  # fmt: skip
    assert [e.subflow_id for e in events] == [1, 1, 2, 2, 3]
    assert events[1].local == late.initial_local
    assert (events[4].remote, events[4].local.address if events[4].local else b"") == (remote, local.address)
    assert late.missed_events == 0
    early.close()
    late.close()
    monitor.close()
    far.close()


def test_what_nobody_heard_is_read_off_the_kernel(make_steered: Make, steered_lab: netns.Lab) -> None:
    pair = make_steered()
    joined(pair)
    # A monitor that came later has heard nothing of this connection.
    namespace = NetNamespace(steered_lab.client.fileno())
    control = DirectControl(namespace)
    monitor = Monitor(namespace, control)
    late = KernelConnection(pair.client_socket.fileno(), namespace, control, monitor)
    assert [(e.kind, e.subflow_id) for e in taken(late)] == [
        (EventKind.ESTABLISHED, 1), (EventKind.SUBFLOW_ESTABLISHED, 1), (EventKind.SUBFLOW_ESTABLISHED, 2)
    ]  # fmt: skip
    late.close()
    monitor.close()


@pytest.mark.parametrize(("reset", "ours", "theirs"), [(False, "local", "peer"), (True, "closed", "reset-0")])
def test_a_closed_subflow_says_why(make_steered: Make, reset: bool, ours: str, theirs: str) -> None:
    pair = make_steered()
    number = joined(pair)
    pair.client.close_subflow(number, reset)
    mine, other = (next_of(side, EventKind.SUBFLOW_CLOSED) for side in (pair.client, pair.server))
    assert (mine.subflow_id, mine.reason) == (number, ours)
    assert (other.subflow_id, other.reason) == (2, theirs)
    assert mine.local is not None
    assert (mine.local, mine.remote) == (other.remote, other.local)


def test_a_refused_subflow(make_steered: Make) -> None:
    pair = make_steered()
    number = pair.client.open_subflow(pair.local(2), pair.remote(2, 9))
    event = next_of(pair.client, EventKind.SUBFLOW_CLOSED)
    assert (event.subflow_id, event.reason, event.remote) == (number, "refused", pair.remote(2, 9))


def test_priority(make_steered: Make) -> None:
    pair = make_steered()
    number = joined(pair)
    pair.client.set_backup(number, True)
    event = next_of(pair.server, EventKind.PRIORITY_CHANGED)
    assert (event.subflow_id, event.backup) == (2, True)
    pair.client.set_backup(number, False)
    assert not next_of(pair.server, EventKind.PRIORITY_CHANGED).backup


@pytest.mark.usefixtures("room_for_options")
def test_remote_addresses(make_steered: Make) -> None:
    pair = make_steered()
    number = pair.server.add_address(pair.remote(2, 9090))
    event = next_of(pair.client, EventKind.ADDRESS_ANNOUNCED)
    assert (event.remote, event.address_id) == (pair.remote(2, 9090), number)
    without_port = pair.server.add_address(Endpoint(pair.remote(3).address))
    event = next_of(pair.client, EventKind.ADDRESS_ANNOUNCED)
    assert (event.remote, event.address_id) == (pair.remote(3), without_port)
    pair.server.remove_address(pair.remote(2).address)
    event = next_of(pair.client, EventKind.ADDRESS_REMOVED)
    assert (event.remote, event.address_id) == (pair.remote(2, 9090), number)


def test_a_withdrawn_address_takes_its_subflows_along(make_steered: Make) -> None:
    pair = make_steered()
    joined(pair)
    pair.client.remove_address(pair.local(2).address)
    assert next_of(pair.client, EventKind.SUBFLOW_CLOSED).reason == "address-removed"
    assert next_of(pair.server, EventKind.SUBFLOW_CLOSED).reason == "address-removed"


@pytest.mark.parametrize("heard", [True, False])
def test_local_addresses(make_steered: Make, steered_lab: netns.Lab, heard: bool) -> None:
    pair = make_steered(heard=heard)
    fresh, size = (Endpoint.parse("10.99.0.7"), "24") if pair.family == 4 else (Endpoint.parse("fd99::7"), "64")
    steered_lab.client.ip(f"addr add {fresh.host}/{size} dev c3{' nodad' if pair.family == 6 else ''}")
    event = next_of(pair.client, EventKind.LOCAL_ADDRESS_AVAILABLE)
    assert (event.local, event.interface) == (fresh, 103)
    steered_lab.client.ip(f"addr del {fresh.host}/{size} dev c3")
    event = next_of(pair.client, EventKind.LOCAL_ADDRESS_UNAVAILABLE)
    assert (event.local, event.interface) == (fresh, 103)


def test_a_link_that_goes_down_takes_its_addresses_along(make_lab: Make, make_pair: Make, family: int) -> None:
    lab = make_lab(2)
    kind, second = (socket.AF_INET if family == 4 else socket.AF_INET6), lab.client_address(2, family)
    client, _ = make_pair(lab.client, lab.server_address(1, family), kind, server_in=lab.server)
    namespace = NetNamespace(lab.client.fileno())
    control = DirectControl(namespace)
    monitor = Monitor(namespace, control)
    connection = KernelConnection(client.fileno(), namespace, control, monitor)
    lab.client.ip("link set c2 down")
    while next_of(connection, EventKind.LOCAL_ADDRESS_UNAVAILABLE).local != Endpoint.parse(second):
        pass  # the one of the other family
    lab.client.ip("link set c2 up")
    if family == 6:  # Linux has forgotten it
        lab.client.ip(f"addr add {second}/64 dev c2 nodad")
    while next_of(connection, EventKind.LOCAL_ADDRESS_AVAILABLE).local != Endpoint.parse(second):
        pass
    assert Endpoint.parse(second).address in {a.address for a in monitor.local_addresses()}
    connection.close()
    monitor.close()


@pytest.mark.parametrize("heard", [True, False])
def test_a_server_without_mptcp(make_steered: Make, heard: bool) -> None:
    pair = make_steered(server_protocol=0, full=False, heard=heard)
    fell_back, established = taken(pair.client)
    assert (fell_back.kind, established.kind) == (EventKind.FELL_BACK, EventKind.ESTABLISHED)
    assert fell_back.reason
    pair.client_socket.shutdown(socket.SHUT_WR)
    pair.server_socket.shutdown(socket.SHUT_WR)
    assert next_of(pair.client, EventKind.CLOSED).reason == ""


@pytest.mark.parametrize("heard", [True, False])
def test_the_end_of_the_connection(make_steered: Make, heard: bool) -> None:
    pair = make_steered(heard=heard)
    pair.client_socket.shutdown(socket.SHUT_WR)
    pair.server_socket.shutdown(socket.SHUT_WR)
    for side in (pair.client, pair.server):
        assert next_of(side, EventKind.SUBFLOW_CLOSED).reason == "connection closed"
        assert next_of(side, EventKind.CLOSED).reason == ""
        assert side.is_ended
        assert side.poll_event() is None


@pytest.mark.parametrize("heard", [True, False])
def test_a_reset_connection(make_steered: Make, heard: bool) -> None:
    pair = make_steered(heard=heard)
    pair.server.close()
    pair.server_socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_RESET)
    pair.server_socket.close()
    assert next_of(pair.client, EventKind.CLOSED).reason
    # Finding that out has not taken the error from the program.
    with pytest.raises(ConnectionResetError):
        pair.client_socket.recv(1)


def test_events_of_other_connections_stay_there(make_steered: Make) -> None:
    pair, other = make_steered(), make_steered()
    taken(other.client)
    number = joined(pair)
    pair.client.close_subflow(number)
    next_of(pair.client, EventKind.SUBFLOW_CLOSED)
    assert taken(other.client) == []


def test_a_reader_that_does_not_read_is_told_how_many_it_missed(make_steered: Make, eventually: Wait) -> None:
    pair = make_steered()
    number = joined(pair)
    taken(pair.server)
    flips = MAX_EVENTS + 50
    for turn in range(flips):
        pair.client.set_backup(number, turn % 2 == 0)
        wanted = turn % 2 == 0
        eventually(lambda wanted=wanted: pair.server.subflows()[1].backup is wanted)
    eventually(lambda: pair.server.missed_events == flips - MAX_EVENTS)
    events = taken(pair.server)
    assert events[-1].kind is EventKind.MISSED
    assert events[-1].missed == pair.server.missed_events
    assert len(events) == MAX_EVENTS + 1
    assert all(e.kind is EventKind.PRIORITY_CHANGED for e in events[:-1])


class Narrow(DirectControl):
    """Its sources of events have hardly any room."""

    def event_source(self) -> PmEventSource:
        source = super().event_source()
        assert isinstance(source, PmEventSocket)
        source._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 0)
        return source


def test_an_overflow_is_answered_by_reading_everything(
    make_steered: Make, steered_lab: netns.Lab, eventually: Wait, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = make_steered()
    first = joined(pair)
    namespace = NetNamespace(steered_lab.client.fileno())
    control = Narrow(namespace)
    monitor = Monitor(namespace, control)
    slow = KernelConnection(pair.client_socket.fileno(), namespace, control, monitor)
    taken(slow)
    compared: list[int] = []
    compare = slow._compare
    monkeypatch.setattr(slow, "_compare", lambda: (compared.append(1), compare()))
    with slow.lock:
        # The monitor's thread waits for this lock with the first event; the others pile up.
        pair.client.close_subflow(first)
        numbers = [pair.client.open_subflow(pair.local(2), pair.remote(2)) for _ in range(6)]
        for turn in range(20):
            pair.client.set_backup(numbers[0], turn % 2 == 0)
        for number in numbers[:3]:
            pair.client.close_subflow(number)
        eventually(lambda: len([s for s in pair.client.subflows() if s.state is SubflowState.ACTIVE]) == 4)
    eventually(lambda: compared)
    open_: set[Endpoint | None] = {pair.client.initial_local}
    now = {s.local for s in slow.subflows()}
    assert len(now) == 4

    def all_told() -> bool:
        open_.update(event.local for event in taken(slow) if event.kind is EventKind.SUBFLOW_ESTABLISHED)
        return now <= open_

    eventually(all_told)
    slow.close()
    monitor.close()
    control.close()


def test_a_monitor_that_nobody_holds_ends_its_thread(steered_lab: netns.Lab, eventually: Wait) -> None:
    namespace = NetNamespace(steered_lab.client.fileno())
    monitor = Monitor(namespace, DirectControl(namespace))
    thread = monitor._thread
    gone = weakref.ref(monitor)
    assert thread.is_alive()
    del monitor
    gc.collect()
    eventually(lambda: not thread.is_alive())
    assert gone() is None


def test_a_connection_that_nobody_holds_is_let_go(make_pair: Make, steered_lab: netns.Lab, eventually: Wait) -> None:
    client, _ = make_pair(steered_lab.client, steered_lab.server_address(1), server_in=steered_lab.server)
    namespace = NetNamespace(steered_lab.client.fileno())
    control = DirectControl(namespace)
    monitor = Monitor(namespace, control)
    connection = KernelConnection(client.fileno(), namespace, control, monitor)
    gone = weakref.ref(connection)
    del connection
    gc.collect()
    eventually(lambda: gone() is None)
    monitor.close()


def test_closing_wakes_whoever_waits(make_steered: Make) -> None:
    pair = make_steered()
    taken(pair.client)
    seen: list[bool] = []
    waits = threading.Event()

    def wait() -> None:
        with pair.client.lock:
            waits.set()  # nobody else gets the lock before this thread waits
            seen.append(pair.client.changed.wait(30))

    thread = threading.Thread(target=wait)
    thread.start()
    waits.wait()
    pair.client.close()
    pair.client.close()
    thread.join()
    assert seen == [True]
    assert pair.client.is_ended


def test_timers(steered_lab: netns.Lab, eventually: Wait) -> None:
    namespace = NetNamespace(steered_lab.client.fileno())
    monitor = Monitor(namespace, DirectControl(namespace))

    class Clock:
        def __init__(self) -> None:
            self.calls: list[str] = []

        def first(self) -> None:
            self.calls.append("first")

        def second(self) -> None:
            self.calls.append("second")

        def third(self) -> None:
            self.calls.append("third")

    clock, forgotten = Clock(), Clock()
    calls = forgotten.calls
    began = time.monotonic()
    monitor.call_later(3600, clock.third)  # who sleeps for so long is woken for those below
    monitor.call_later(0.0, clock.first)
    eventually(lambda: clock.calls == ["first"])
    monitor.call_later(0.02, clock.second)
    monitor.call_later(0.0, forgotten.first)
    del forgotten
    eventually(lambda: clock.calls == ["first", "second"])
    assert time.monotonic() - began >= 0.02
    assert calls in ([], ["first"])
    monitor.close()
    monitor.close()


# --- without privilege ------------------------------------------------------------------------------------------------
def test_without_privilege_subflows_are_seen_all_the_same(make_steered: Make) -> None:
    pair = make_steered(heard=False)
    keep = make_steered()  # somebody has to listen, or the server's kernel answers no join
    support = pair.client.supports("events")
    assert not support
    assert "CAP_NET_ADMIN" in support.reason
    assert "full info" in support.reason
    assert [e.kind for e in taken(pair.client)] == [EventKind.ESTABLISHED, EventKind.SUBFLOW_ESTABLISHED]
    taken(pair.server)
    number = pair.client.open_subflow(pair.local(2), pair.remote(2))
    assert next_of(pair.client, EventKind.SUBFLOW_ESTABLISHED).subflow_id == number
    event = next_of(pair.server, EventKind.SUBFLOW_ESTABLISHED)
    assert (event.subflow_id, event.remote and event.remote.address) == (2, pair.local(2).address)
    pair.client.set_backup(number, True)
    assert next_of(pair.server, EventKind.PRIORITY_CHANGED).backup
    pair.client.close_subflow(number, reset=True)
    assert next_of(pair.client, EventKind.SUBFLOW_CLOSED).reason == "closed"
    assert next_of(pair.server, EventKind.SUBFLOW_CLOSED).reason == "unknown"
    keep.exchange()


def test_without_privilege_the_end_of_a_subflow_is_told_by_sock_diag(
    make_steered: Make, eventually: Wait, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mptcp.kernel.monitor.POLL_S", 60.0)
    pair = make_steered(heard=False)
    keep = make_steered()
    number = pair.client.open_subflow(pair.local(2), pair.remote(2))
    eventually(lambda: [s.state for s in pair.server.subflows()] == [SubflowState.ACTIVE] * 2)
    pair.server.synchronise()
    keep.exchange()
    assert next_of(pair.server, EventKind.SUBFLOW_ESTABLISHED).subflow_id == 1
    assert next_of(pair.server, EventKind.SUBFLOW_ESTABLISHED).subflow_id == 2
    pair.client.close_subflow(number, reset=True)
    assert next_of(pair.server, EventKind.SUBFLOW_CLOSED).subflow_id == 2


def test_supports_events(steered_lab: netns.Lab, make_steered: Make) -> None:
    assert make_steered().client.supports("events")
    namespace = NetNamespace(steered_lab.client.fileno())
    monitor = Monitor(namespace, NoControl(Support(False, "nobody listens here", "listen")))
    support = monitor.supports()
    assert (support.ok, support.fix) == (False, "listen")
    assert "nobody listens here" in support.reason
    assert monitor.is_polling
    monitor.close()
