"""Events: each client hears of the connections it has shown, and of no other."""

import errno
import itertools
import os
import select
import socket
import struct
import time
from collections import deque
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mptcp.kernel.broker import protocol, relay
from mptcp.kernel.broker.client import BrokerControl
from mptcp.kernel.broker.protocol import Operation, Request
from mptcp.kernel.monitor import Monitor, Notice, Overflow, Subscriber
from mptcp.kernel.namespace import NetNamespace
from mptcp.kernel.netlink import attribute
from mptcp.kernel.pm_events import EventsLost, PmEvent, PmEventKind, PmEventSource, event_token, parse_event

from .conftest import Pair, Running


def event(kind: PmEventKind, token: int, local_id: int = 0) -> bytes:
    """As the kernel says it."""
    return (
        struct.pack("=BBH", kind, 1, 0)
        + attribute(1, struct.pack("=I", token))
        + attribute(3, struct.pack("=B", local_id))
    )


def heard(source: PmEventSource, count: int) -> list[PmEvent]:
    """So many events, and no more for a moment."""
    found: list[PmEvent] = []
    while len(found) < count and select.select([source], [], [], 30)[0]:
        found += source.read()
    assert not select.select([source], [], [], 0.02)[0]
    return found


def ids(source: PmEventSource, count: int) -> list[int]:
    return [found.local_id for found in heard(source, count)]


OPENED = PmEventKind.SUBFLOW_ESTABLISHED


def test_a_client_hears_of_what_it_has_shown_only(
    running: Running, control: BrokerControl, make_pair: Callable[[], Pair]
) -> None:
    mine, other = make_pair(), make_pair()
    source = control.event_source()
    source.watch(mine.fd, 12345)  # the token is the broker's own reading
    running.events.happen(
        event(OPENED, other.token, 1), event(OPENED, mine.token, 2), event(PmEventKind.LISTENER_CREATED, 0)
    )
    running.events.happen(event(OPENED, 0xDEADBEEF, 3), event(PmEventKind.SUBFLOW_CLOSED, mine.token, 4))
    first, second = heard(source, 2)
    assert (first.kind, first.token, first.local_id) == (OPENED, mine.token, 2)
    assert (second.kind, second.local_id) == (PmEventKind.SUBFLOW_CLOSED, 4)
    source.close()


def test_two_clients_hear_of_their_own_each(running: Running, make_pair: Callable[[], Pair]) -> None:
    pairs = [make_pair(), make_pair()]
    controls = [BrokerControl(running.path) for _ in pairs]
    sources = [control.event_source() for control in controls]
    for source, pair in zip(sources, pairs, strict=True):
        source.watch(pair.fd, pair.token)
    for number, pair in enumerate(pairs):
        running.events.happen(event(OPENED, pair.token, number))
    assert [ids(source, 1) for source in sources] == [[0], [1]]
    for source in sources:
        source.close()


def test_two_clients_may_share_a_connection(running: Running, control: BrokerControl, pair: Pair) -> None:
    sources = [control.event_source(), control.event_source()]
    for source in sources:
        source.watch(pair.fd, pair.token)
        source.watch(pair.fd, pair.token)  # twice is as good as once
    running.events.happen(event(OPENED, pair.token, 1))
    assert [ids(source, 1) for source in sources] == [[1], [1]]
    sources[0].close()
    running.events.happen(event(OPENED, pair.token, 2))
    assert ids(sources[1], 1) == [2]
    sources[1].close()


def test_what_came_before_the_connection_was_shown_is_not_lost(
    running: Running, control: BrokerControl, pair: Pair, eventually: Callable[..., None]
) -> None:
    source = control.event_source()
    # An earlier connection with the same token is another's business.
    running.events.happen(event(PmEventKind.CREATED, pair.token, 9), event(PmEventKind.CLOSED, pair.token, 9))
    running.events.happen(event(PmEventKind.CREATED, pair.token, 1), event(PmEventKind.ESTABLISHED, pair.token, 2))
    eventually(lambda: len(running.broker._relay._recent) == 4)
    source.watch(pair.fd, pair.token)
    running.events.happen(event(OPENED, pair.token, 3))
    assert ids(source, 3) == [1, 2, 3]
    source.close()


def test_what_came_long_before_is_forgotten(
    running: Running,
    control: BrokerControl,
    pair: Pair,
    monkeypatch: pytest.MonkeyPatch,
    eventually: Callable[..., None],
) -> None:
    running.events.happen(event(OPENED, pair.token, 1))
    eventually(lambda: running.broker._relay._recent)
    monkeypatch.setattr(relay, "RECENT_S", 0.0)
    source = control.event_source()
    source.watch(pair.fd, pair.token)
    running.events.happen(event(OPENED, pair.token, 2))
    assert ids(source, 1) == [2]
    source.close()


def test_when_there_was_no_room_for_the_past_the_client_is_told(
    running: Running,
    control: BrokerControl,
    pair: Pair,
    monkeypatch: pytest.MonkeyPatch,
    eventually: Callable[..., None],
) -> None:
    monkeypatch.setattr(relay, "MAX_RECENT", 3)
    running.events.happen(event(OPENED, pair.token, 1), *(event(OPENED, 1000 + number) for number in range(3)))
    eventually(lambda: len(running.broker._relay._recent) == 3)
    source = control.event_source()
    source.watch(pair.fd, pair.token)
    assert select.select([source], [], [], 30)[0]
    with pytest.raises(EventsLost):
        source.read()
    running.events.happen(event(OPENED, pair.token, 2))
    assert ids(source, 1) == [2]
    source.close()


def test_a_broker_that_has_just_begun_says_that_it_has_not_heard_the_past(
    running: Running, control: BrokerControl, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running.broker._relay, "_evicted_at", time.monotonic())
    source = control.event_source()
    source.watch(pair.fd, pair.token)
    assert select.select([source], [], [], 30)[0]
    with pytest.raises(EventsLost):
        source.read()
    source.close()


def test_after_the_end_of_a_connection_its_token_is_nobodys(
    running: Running, control: BrokerControl, pair: Pair, eventually: Callable[..., None]
) -> None:
    source = control.event_source()
    source.watch(pair.fd, pair.token)
    running.events.happen(event(PmEventKind.CLOSED, pair.token, 1))
    running.events.happen(event(PmEventKind.CREATED, pair.token, 2))  # of somebody else
    assert ids(source, 1) == [1]
    eventually(lambda: pair.token not in running.broker._relay._watchers)
    source.close()


def test_a_connection_that_ended_before_it_was_shown_tells_its_end(
    running: Running, control: BrokerControl, pair: Pair, eventually: Callable[..., None]
) -> None:
    running.events.happen(event(PmEventKind.CREATED, pair.token, 1), event(PmEventKind.CLOSED, pair.token, 2))
    eventually(lambda: len(running.broker._relay._recent) == 2)
    source = control.event_source()
    source.watch(pair.fd, pair.token)
    assert ids(source, 2) == [1, 2]
    eventually(lambda: not running.broker._relay._watchers)
    source.close()


def test_what_is_no_longer_watched_is_not_told(
    running: Running, control: BrokerControl, make_pair: Callable[[], Pair]
) -> None:
    pairs = [make_pair(), make_pair()]
    source = control.event_source()
    for pair in pairs:
        source.watch(pair.fd, pair.token)
    source.unwatch(pairs[0].token)
    source.unwatch(0xFFFFFFFF)
    running.events.happen(event(OPENED, pairs[0].token, 1), event(OPENED, pairs[1].token, 2))
    assert ids(source, 1) == [2]
    source.close()


def test_a_client_watches_so_many(start: Callable[..., Running], make_pair: Callable[[], Pair]) -> None:
    running = start("[[rule]]\nmax_watched = 2\n")
    control = BrokerControl(running.path)
    source = control.event_source()
    pairs = [make_pair() for _ in range(3)]
    for pair in pairs[:2]:
        source.watch(pair.fd, pair.token)
    source.watch(pairs[0].fd, 0)
    with pytest.raises(PermissionError, match="watches 2 connections already"):
        source.watch(pairs[2].fd, 0)
    running.events.happen(event(PmEventKind.CLOSED, pairs[0].token))
    heard(source, 1)
    source.watch(pairs[2].fd, 0)
    source.close()
    control.close()


def test_a_watch_needs_a_socket_of_events_and_a_proof(running: Running, pair: Pair, control: BrokerControl) -> None:
    with running.connect() as sock:
        protocol.send(sock, Request(Operation.WATCH).emit(), pair.fd)
        answer = protocol.Answer.parse(protocol.receive(sock, protocol.MAX_ANSWER).data)
        assert answer.error == errno.ENOTCONN
    source = control.event_source()
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as plain, pytest.raises(OSError, match="TCP"):
        source.watch(plain.fileno(), pair.token)
    running.events.happen(event(OPENED, pair.token, 1))
    assert not select.select([source], [], [], 0.02)[0]
    source.close()


def test_events_follow_the_policy(start: Callable[..., Running]) -> None:
    control = BrokerControl(start("[[rule]]\nallow = ['announce']\n").path)
    with pytest.raises(PermissionError, match="events is not in `allow`"):
        control.event_source()
    assert not control.supports("events")
    control.close()


def test_a_client_has_one_socket_of_events(running: Running, pair: Pair, eventually: Callable[..., None]) -> None:
    with running.connect() as sock:
        received = []
        for _ in range(3):
            protocol.send(sock, Request(Operation.EVENTS).emit())
            received.append(protocol.receive(sock, protocol.MAX_ANSWER).take())
        for fd in received[:2]:
            assert os.read(fd, 10) == b""
        assert len(running.broker._relay._channels) == 1
        for fd in received:
            os.close(fd)
    eventually(lambda: not running.broker._relay._channels)


def fill(running: Running, token: int, count: int) -> None:
    running.events.happen(*(event(OPENED, token, number & 0xFF) for number in range(count)))


def test_a_slow_reader_loses_events_and_is_told_where(
    running: Running, control: BrokerControl, pair: Pair, make_pair: Callable[[], Pair], eventually: Callable[..., None]
) -> None:
    slow, quick = control.event_source(), control.event_source()
    other = make_pair()
    slow.watch(pair.fd, pair.token)
    quick.watch(other.fd, other.token)
    fill(running, pair.token, 20_000)
    running.events.happen(event(OPENED, other.token, 5))
    assert ids(quick, 1) == [5]  # nobody else waits for the slow one
    (channel,) = (channel for channel in running.broker._relay._channels if channel.lags)
    assert channel._missed > 1000
    read = lost = 0
    while not lost:
        assert select.select([slow], [], [], 30)[0]
        try:
            read += len(slow.read())
        except EventsLost:
            lost += 1
    running.events.happen(event(OPENED, pair.token, 99))
    assert ids(slow, 1) == [99]
    assert read < 20_000
    slow.close()
    quick.close()


def test_who_does_not_read_for_long_gets_no_more(
    running: Running,
    control: BrokerControl,
    pair: Pair,
    monkeypatch: pytest.MonkeyPatch,
    eventually: Callable[..., None],
) -> None:
    monkeypatch.setattr(relay, "SLOW_S", 0.05)
    monkeypatch.setattr(relay, "_LAG_S", 0.01)
    source = control.event_source()
    source.watch(pair.fd, pair.token)
    fill(running, pair.token, 20_000)
    eventually(lambda: not running.broker._relay._channels)

    def read_all() -> None:
        for _ in itertools.repeat(None):
            source.read()

    with pytest.raises(OSError, match="gives no more events"):
        read_all()
    source.close()
    assert control.supports("remove")  # requests are heard as before


def test_who_is_let_go_stands_in_nobodys_way(
    running: Running,
    control: BrokerControl,
    pair: Pair,
    make_pair: Callable[[], Pair],
    monkeypatch: pytest.MonkeyPatch,
    eventually: Callable[..., None],
) -> None:
    monkeypatch.setattr(relay, "SLOW_S", 0.05)
    monkeypatch.setattr(relay, "_LAG_S", 0.01)
    slow, later, other = control.event_source(), control.event_source(), make_pair()
    slow.watch(pair.fd, pair.token)
    fill(running, pair.token, 20_000)
    eventually(lambda: len(running.broker._relay._channels) == 1)
    slow.watch(other.fd, other.token)  # heard, and in vain
    running.events.happen(event(PmEventKind.CREATED, other.token, 1))
    eventually(lambda: running.broker._relay._recent)
    later.watch(other.fd, other.token)
    assert ids(later, 1) == [1]  # kept for whoever asks, as if nobody had asked
    slow.close()
    later.close()


def test_lost_events_are_told_to_everybody(
    running: Running, make_pair: Callable[[], Pair], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pairs = [make_pair(), make_pair()]
    control = BrokerControl(running.path)
    sources = [control.event_source() for _ in pairs]
    for source, pair in zip(sources, pairs, strict=True):
        source.watch(pair.fd, pair.token)
    # The second connection ended among what was lost, and its token belongs to somebody else by now.
    now = {pairs[0].token: pairs[0].inode, pairs[1].token: pairs[1].inode + 1}
    monkeypatch.setattr(running.broker._relay, "_connections", lambda: now)
    running.events.happen(EventsLost())
    for source in sources:
        assert select.select([source], [], [], 30)[0]
        with pytest.raises(EventsLost):
            source.read()
    for pair in pairs:
        running.events.happen(event(OPENED, pair.token, 7))
    assert ids(sources[0], 1) == [7]
    assert ids(sources[1], 0) == []
    assert "faster than they could be read" in caplog.text
    for source in sources:
        source.close()
    control.close()


def test_connections_are_those_of_the_system(make_pair: Callable[[], Pair]) -> None:
    from mptcp.kernel.broker.service import _connections

    pairs = [make_pair(), make_pair()]
    found = _connections()
    for pair in pairs:
        assert found[pair.token] == pair.inode


def test_when_the_source_fails_another_is_opened(
    running: Running,
    control: BrokerControl,
    pair: Pair,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(relay, "_RETRY_S", 0.01)
    source = control.event_source()
    source.watch(pair.fd, pair.token)
    first = running.events
    running.events.happen(OSError(errno.ENODEV, "gone"))
    assert select.select([source], [], [], 30)[0]
    with pytest.raises(EventsLost):
        source.read()
    assert running.events is not first
    running.events.happen(event(OPENED, pair.token, 3))
    assert ids(source, 1) == [3]
    assert "can no longer be read: gone" in caplog.text
    source.close()


def test_clients_read_the_end_when_the_broker_stops(start: Callable[..., Running], pair: Pair) -> None:
    running = start()
    control = BrokerControl(running.path)
    source = control.event_source()
    source.watch(pair.fd, pair.token)
    running.stop()
    assert select.select([source], [], [], 30)[0]
    with pytest.raises(OSError, match="gives no more events") as caught:
        source.read()
    assert caught.value.errno == errno.ECONNRESET
    source.close()
    control.close()


class Listener(Subscriber):
    def __init__(self) -> None:
        self.inbox: deque[Notice] = deque()

    def work(self) -> None:
        pass

    def ids(self) -> list[int]:
        return [notice.local_id for notice in self.inbox if isinstance(notice, PmEvent)]


def test_a_monitor_finds_the_broker_again(
    start: Callable[..., Running], pair: Pair, monkeypatch: pytest.MonkeyPatch, eventually: Callable[..., None]
) -> None:
    monkeypatch.setattr("mptcp.kernel.monitor.RETRY_S", (0.01, 0.05))
    first = start()
    control = BrokerControl(first.path)
    monitor = Monitor(NetNamespace(), control)
    listener = Listener()
    monitor.subscribe(pair.token, listener, pair.fd)
    first.events.happen(event(OPENED, pair.token, 1))
    eventually(lambda: listener.ids() == [1])
    assert monitor.supports()
    first.stop()
    eventually(lambda: any(isinstance(notice, Overflow) for notice in listener.inbox))
    listener.inbox.clear()
    second = start()
    eventually(lambda: pair.token in second.broker._relay._watchers)
    second.events.happen(event(OPENED, pair.token, 2))
    eventually(lambda: listener.ids() == [2])
    monitor.unsubscribe(pair.token, listener)
    eventually(lambda: not second.broker._relay._watchers)
    monitor.close()
    control.close()


@given(st.binary(max_size=200))
def test_any_octets_are_about_a_connection_or_not(data: bytes) -> None:
    token = event_token(memoryview(data))
    assert 0 <= token < 1 << 64
    parse_event(memoryview(data))


def test_whose_event_it_is_reads_the_same_as_the_event() -> None:
    for token in (1, 0xFFFFFFFF):
        data = memoryview(event(OPENED, token, 3))
        parsed = parse_event(data)
        assert parsed is not None
        assert event_token(data) == parsed.token == token
