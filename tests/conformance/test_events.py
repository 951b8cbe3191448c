"""Events (draft-hesmans-mptcp-socket-03 §4, RFC 6897 REQ14): the iterator, its descriptor, ``async for``, recvmsg."""

from __future__ import annotations

import asyncio
import errno
import select
import socket as std
import threading
from typing import Any

import pytest

import mptcp
from mptcp import EventKind
from mptcp.core.multipath.config import ConnectionConfig
from mptcp.core.multipath.events import MAX_EVENTS
from mptcp.sockets.structures import ALL_EVENTS, EVENT_NUMBERS, unpack_event

TCP = std.IPPROTO_TCP


def kinds(stream: Any) -> list[EventKind]:
    result = []
    while (event := stream.poll()) is not None:
        result.append(event.kind)
    return result


def wait_for(stream: Any, kind: EventKind) -> Any:
    while (event := stream.get(30)) is not None:
        if event.kind is kind:
            return event
    raise AssertionError(f"the stream ended without {kind}")


def test_none_is_lost_between_connect_and_subscribe(world: Any) -> None:
    client, _, number = world.two_paths()
    events = client.events()
    first, second, third = (events.get(30) for _ in range(3))
    assert [e.kind for e in (first, second, third)] == [
        EventKind.ESTABLISHED, EventKind.SUBFLOW_ESTABLISHED, EventKind.SUBFLOW_ESTABLISHED,
    ]  # fmt: skip
    # §4.1: "The event should contain the identification of the subflow."
    assert (second.subflow_id, third.subflow_id) == (1, number)
    assert (third.local.host, third.remote.host) == (world.client_addresses[1], world.server_addresses[1])
    assert first.at_us <= second.at_us <= third.at_us
    assert events.poll() is None
    assert events.missed == 0


@pytest.mark.parametrize(("reset", "ours", "theirs"), [(False, "local", "peer"), (True, "closed", "reset-3")])
def test_a_closed_subflow_says_why(world: Any, reset: bool, ours: str, theirs: str) -> None:
    # §4.2: "Moreover, the reason of the deletion must be stated."
    if world.name == "kernel" and reset:
        theirs = "reset-0"  # of MP_TCPRST: Linux gives no reason for what a user has closed
    client, accepted, number = world.two_paths()
    near, far = client.events(), accepted.events()
    client.close_subflow(number, reset)
    mine, other = (wait_for(stream, EventKind.SUBFLOW_CLOSED) for stream in (near, far))
    assert (mine.subflow_id, mine.reason) == (number, ours)
    assert (other.subflow_id, other.reason) == (accepted.subflows()[0].id + 1, theirs)


def test_a_new_local_address_with_all_that_is_needed_to_use_it(world: Any) -> None:
    # §4.3: "the application should receive all the informations needed to use the new address"
    client, accepted = world.pair()
    events = client.events()
    fresh = "10.0.1.77" if world.family == 4 else "fd00:0:0:1::77"
    world.add_address(fresh, 1)
    event = wait_for(events, EventKind.LOCAL_ADDRESS_AVAILABLE)
    assert (event.local.host, event.interface) == (fresh, world.if_index(1))
    client.open_subflow((world.server_addresses[1], 8080), (event.local.host, 0), interface=event.interface)
    world.wait_active(client, 2)
    world.remove_address(fresh, 1)
    gone = wait_for(events, EventKind.LOCAL_ADDRESS_UNAVAILABLE)
    assert (gone.local.host, gone.interface) == (fresh, world.if_index(1))
    assert wait_for(events, EventKind.SUBFLOW_CLOSED).reason == "address-removed"
    world.echo(client, accepted)


def test_remote_addresses_announced_and_withdrawn(world: Any) -> None:
    world.make_room_for_options()
    client, accepted = world.pair()
    events = client.events()
    accepted.add_address(world.server_addresses[1], 9090)
    event = wait_for(events, EventKind.ADDRESS_ANNOUNCED)
    assert (event.remote.host, event.remote.port) == (world.server_addresses[1], 9090)
    accepted.remove_address(world.server_addresses[1])
    assert wait_for(events, EventKind.ADDRESS_REMOVED).address_id == event.address_id > 0


def test_a_changed_priority(world: Any) -> None:
    # §4.5: "The event must contain the identification of the subflow and the new prio."
    client, accepted, number = world.two_paths()
    events = accepted.events()
    client.set_backup(number, True)
    event = wait_for(events, EventKind.PRIORITY_CHANGED)
    assert (event.subflow_id, event.backup) == (accepted.subflows()[1].id, True)
    client.set_backup(number, False)
    assert not wait_for(events, EventKind.PRIORITY_CHANGED).backup


def test_fallback_is_an_event(world: Any) -> None:
    world.refuse_multipath()
    client, _ = world.pair()
    event = wait_for(client.events(), EventKind.FELL_BACK)
    assert event.reason == client.fallback_reason != ""


def test_the_end_of_the_connection_ends_the_stream(world: Any) -> None:
    client, accepted = world.pair()
    events = client.events()
    accepted.shutdown(std.SHUT_WR)
    client.shutdown(std.SHUT_WR)
    seen = [event.kind for event in events]  # a for loop ends by itself
    assert seen[0] is EventKind.ESTABLISHED
    assert EventKind.CLOSED in seen
    assert events.is_over


def test_a_reset_connection_says_why(world: Any) -> None:
    client, accepted = world.pair()
    events = client.events()
    accepted.setsockopt(std.SOL_SOCKET, std.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    accepted.close()
    assert wait_for(events, EventKind.CLOSED).reason


def test_a_connection_that_was_refused(world: Any) -> None:
    client = world.client()
    events = client.events()
    with pytest.raises(ConnectionRefusedError):
        client.connect((world.server_addresses[0], 1))
    event = events.get(30)
    assert (event.kind, bool(event.reason)) == (EventKind.CLOSED, True)


def test_events_before_connect_and_the_descriptor(world: Any) -> None:
    client = world.client()
    events = client.events()
    assert client.events() is events
    fd = events.fileno()
    assert not select.select([fd], [], [], 0)[0]
    world.connect(client)
    assert select.select([fd], [], [], 30)[0] == [fd]
    assert kinds(events)[0] is EventKind.ESTABLISHED
    assert not select.select([fd], [], [], 0)[0]
    events.close()


def test_closing_the_socket_ends_a_thread_that_waits(world: Any) -> None:
    client, _ = world.pair()
    events = client.events()
    seen: list[EventKind] = []
    thread = threading.Thread(target=lambda: seen.extend(event.kind for event in events))
    client.settimeout(None)
    thread.start()
    world.until(lambda: len(seen) == 2)
    client.close()
    thread.join(30)
    assert not thread.is_alive()


def test_waiting_and_not_waiting(world: Any) -> None:
    client, _ = world.pair()
    events = client.events()
    kinds(events)
    with pytest.raises(TimeoutError):
        events.get(0.01)
    with pytest.raises(BlockingIOError):
        events.get(0)
    client.setblocking(False)
    with pytest.raises(BlockingIOError):
        next(events)


def test_async_for(world: Any) -> None:
    client, accepted, number = world.two_paths()

    async def read() -> list[EventKind]:
        found = []
        async for event in client.events():
            found.append(event.kind)
            if len(found) == 3:
                asyncio.get_running_loop().call_soon(client.close_subflow, number)
            elif len(found) == 4:
                accepted.shutdown(std.SHUT_WR)
                client.shutdown(std.SHUT_WR)
        return found

    found = asyncio.run(asyncio.wait_for(read(), 60))
    assert found[:3] == [EventKind.ESTABLISHED, EventKind.SUBFLOW_ESTABLISHED, EventKind.SUBFLOW_ESTABLISHED]
    assert found[3] is EventKind.SUBFLOW_CLOSED
    assert found[-1] in (EventKind.CLOSED, EventKind.SUBFLOW_CLOSED)


def test_a_slow_reader_is_told_how_many_it_missed(world: Any) -> None:
    client, accepted, number = world.two_paths()
    events = accepted.events()
    flips = MAX_EVENTS + 20
    for turn in range(flips):
        before = accepted.subflows()[1].backup
        client.set_backup(number, turn % 2 == 0)
        world.until(lambda before=before: accepted.subflows()[1].backup != before)
    # What is waiting: those that are kept, and one for those that are not.
    world.until(lambda: events.waiting - 1 + events.missed == flips + 3)
    seen = []
    while (event := events.poll()) is not None:
        seen.append(event)
    assert seen[-1].kind is EventKind.MISSED
    assert len(seen) == MAX_EVENTS + 1 or len(seen) == MAX_EVENTS
    assert seen[-1].missed == events.missed == flips + 3 - (len(seen) - 1) > 0
    client.set_backup(number, not client.subflows()[1].backup)
    assert events.get(30).kind is EventKind.PRIORITY_CHANGED


def test_a_listener_has_no_events(world: Any) -> None:
    with pytest.raises(OSError) as caught:
        world.listen().events()
    assert caught.value.errno == errno.EINVAL


# --- recvmsg ----------------------------------------------------------------------------------------------------------
def test_ancillary_data_of_recvmsg(world: Any) -> None:
    client, accepted, number = world.two_paths()
    stream = client.events()
    world.until(lambda: stream.waiting == 3)
    wanted = (EventKind.SUBFLOW_ESTABLISHED, EventKind.SUBFLOW_CLOSED)
    client.setsockopt(TCP, mptcp.MPTCP_EVENTS, sum(1 << EVENT_NUMBERS[kind] for kind in wanted))
    assert client.getsockopt(TCP, mptcp.MPTCP_EVENTS) == sum(1 << EVENT_NUMBERS[kind] for kind in wanted)
    accepted.sendall(b"data")
    data, ancillary, flags, _ = client.recvmsg(4, 4096)
    assert (data, flags) == (b"data", 0)
    assert [(level, kind) for level, kind, _ in ancillary] == [(TCP, mptcp.MPTCP_EVENTS)] * 2
    found = [unpack_event(message) for _, _, message in ancillary]
    assert [event.kind for event in found] == [EventKind.SUBFLOW_ESTABLISHED] * 2
    assert [event.subflow_id for event in found] == [1, number]
    assert found[1].local.host == world.client_addresses[1]


def test_ancillary_data_that_finds_no_room_waits(world: Any) -> None:
    client, accepted, _ = world.two_paths()
    stream = client.events()
    world.until(lambda: stream.waiting == 3)
    client.setsockopt(TCP, mptcp.MPTCP_EVENTS, ALL_EVENTS)
    accepted.sendall(b"abc")
    assert client.recvmsg(1)[1:3] == ([], 0)
    _, ancillary, flags, _ = client.recvmsg(1, std.CMSG_SPACE(100))
    assert (len(ancillary), flags) == (1, std.MSG_CTRUNC)
    data, ancillary, flags, _ = client.recvmsg(0, 4096, std.MSG_ERRQUEUE)
    assert (data, len(ancillary), flags) == (b"", 2, std.MSG_ERRQUEUE)
    with pytest.raises(BlockingIOError):
        client.recvmsg(0, 4096, std.MSG_ERRQUEUE)
    assert client.recv(1) == b"c"


def test_events_not_subscribed_to_are_not_given(world: Any) -> None:
    client, _ = world.pair()
    client.setblocking(False)
    with pytest.raises(BlockingIOError):
        client.recvmsg(0, 4096, std.MSG_ERRQUEUE)
    assert len(kinds(client.events())) == 2
    with pytest.raises(OSError) as caught:
        client.setsockopt(TCP, mptcp.MPTCP_EVENTS, 1)
    assert caught.value.errno == errno.EINVAL


def test_a_subscription_of_a_listener_is_inherited(world: Any) -> None:
    world.client_stack_is(config=ConnectionConfig())
    listener = world.listen()
    listener.setsockopt(TCP, mptcp.MPTCP_EVENTS, ALL_EVENTS)
    client, accepted = world.pair()
    client.sendall(b"x")
    _, ancillary, _, _ = accepted.recvmsg(1, 4096)
    assert unpack_event(ancillary[0][2]).kind is EventKind.ESTABLISHED
