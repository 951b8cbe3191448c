"""Steering one connection: subflows opened, closed, prioritised; addresses announced and withdrawn. And its traps."""

from __future__ import annotations

import errno
import os
import re
import socket
from collections.abc import Callable
from typing import Any

import pytest

from mptcp.core.multipath.events import EventKind
from mptcp.errors import NotSupportedError, PathError
from mptcp.info import Endpoint, SubflowState
from mptcp.kernel.connection import KernelConnection
from mptcp.kernel.control import DirectControl, NoControl, find_control
from mptcp.kernel.monitor import Monitor
from mptcp.kernel.namespace import NetNamespace
from mptcp.testing import netns

Make = Callable[..., Any]
Wait = Callable[..., None]


def error_of(call: Callable[[], object]) -> int | None:
    with pytest.raises(OSError) as caught:
        call()
    return caught.value.errno


def active(connection: KernelConnection) -> list[int]:
    return [s.id for s in connection.subflows() if s.state is SubflowState.ACTIVE]


# --- subflows ---------------------------------------------------------------------------------------------------------
def test_open_and_close_both_ways(make_steered: Make, eventually: Wait) -> None:
    pair = make_steered()
    number = pair.client.open_subflow(pair.local(2), pair.remote(2))
    assert number == 2
    eventually(lambda: active(pair.client) == [1, 2] and active(pair.server) == [1, 2])
    info = pair.client.subflows()[1]
    assert (info.local.address, info.remote) == (pair.local(2).address, pair.remote(2))
    pair.exchange()
    pair.client.close_subflow(number)
    eventually(lambda: active(pair.client) == [1] and active(pair.server) == [1])
    pair.exchange()


@pytest.mark.usefixtures("room_for_options")
def test_the_server_opens_a_subflow_to_a_client_that_listens(make_steered: Make, eventually: Wait) -> None:
    # A client has no listener: its address with a port at which there is one is what the server can connect to.
    pair = make_steered()
    kind = socket.AF_INET if pair.family == 4 else socket.AF_INET6
    with pair.lab.client.entered(), socket.socket(kind, socket.SOCK_STREAM, 262) as listener:
        listener.bind((pair.local(2).host, 0))
        listener.listen()
        port = listener.getsockname()[1]
        pair.client.add_address(pair.local(2, port))
        eventually(lambda: list(pair.server.remote_addresses().values()) == [pair.local(2, port)])
        number = pair.server.open_subflow(Endpoint(pair.remote(2).address), pair.local(2, port))
        eventually(lambda: len(active(pair.client)) == 2 and number in active(pair.server))
    pair.exchange()


def test_reset(make_steered: Make, eventually: Wait) -> None:
    pair = make_steered()
    number = pair.client.open_subflow(pair.local(2), pair.remote(2))
    eventually(lambda: len(active(pair.server)) == 2)
    pair.client.close_subflow(number, reset=True)
    eventually(lambda: active(pair.client) == [1] and len(active(pair.server)) == 1)
    pair.exchange()


@pytest.mark.parametrize("reset", [False, True])
def test_the_initial_subflow_goes_and_names_stay(make_steered: Make, eventually: Wait, reset: bool) -> None:
    pair = make_steered()
    names = pair.client_socket.getsockname(), pair.client_socket.getpeername()
    pair.client.open_subflow(pair.local(2), pair.remote(2))
    eventually(lambda: len(active(pair.server)) == 2)
    pair.client.close_subflow(1, reset)
    eventually(lambda: active(pair.client) == [2])
    assert (pair.client_socket.getsockname(), pair.client_socket.getpeername()) == names
    pair.exchange()
    assert error_of(lambda: pair.client.close_subflow(1)) == errno.EINVAL


def test_break_before_make(make_steered: Make, eventually: Wait) -> None:
    pair = make_steered()
    pair.client.close_subflow(1)
    eventually(lambda: not active(pair.client))
    pair.client_socket.sendall(b"waiting")
    pair.client.open_subflow(pair.local(2), pair.remote(2))
    assert pair.server_socket.recv(7) == b"waiting"


def test_several_between_the_same_addresses(make_steered: Make, eventually: Wait) -> None:
    pair = make_steered()
    numbers = [pair.client.open_subflow(pair.local(2), pair.remote(2)) for _ in range(4)]
    eventually(lambda: len(active(pair.server)) == 5 and active(pair.client) == sorted([1, *numbers]))
    assert len({s.local_address_id for s in pair.client.subflows()}) == 2
    pair.client.close_subflow(numbers[1])
    eventually(lambda: len(active(pair.server)) == 4 and numbers[1] not in active(pair.client))


def test_from_the_initial_address_and_with_a_port_of_ones_own(make_steered: Make, eventually: Wait) -> None:
    pair = make_steered()
    pair.client.open_subflow(pair.local(1), pair.remote(2))
    first = pair.client.open_subflow(pair.local(2, 12345), pair.remote(2))
    second = pair.client.open_subflow(pair.local(2), pair.remote(2))
    third = pair.client.open_subflow(pair.local(1, 23456), pair.remote(2))
    eventually(lambda: len(active(pair.server)) == 5)
    locals_ = {s.id: s.local for s in pair.client.subflows()}
    assert locals_[first] == pair.local(2, 12345)
    assert locals_[third] == pair.local(1, 23456)
    assert locals_[second].port not in {0, 12345}


@pytest.mark.parametrize("family", [6])
def test_four_and_six_mix_on_an_ipv6_socket(make_steered: Make, eventually: Wait) -> None:
    pair = make_steered()
    number = pair.client.open_subflow(pair.local(2, family=4), pair.remote(2, family=4))
    eventually(lambda: active(pair.client) == [1, number] and len(active(pair.server)) == 2)
    pair.client.close_subflow(number)
    eventually(lambda: active(pair.client) == [1])


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("family", [4])
def test_an_ipv4_connection_of_an_ipv6_socket_is_closed_like_any_other(
    steered_lab: netns.Lab, make_steered: Make, eventually: Wait, reset: bool
) -> None:
    # The kernel keeps its addresses IPv4-mapped and finds them only that way.
    pair = make_steered()
    namespace = NetNamespace(steered_lab.client.fileno())
    control = DirectControl(namespace)
    monitor = Monitor(namespace, control)
    with steered_lab.client.entered(), socket.socket(socket.AF_INET6, socket.SOCK_STREAM, 262) as sock:
        sock.connect((f"::ffff:{steered_lab.server_address(1)}", pair.port))
        connection = KernelConnection(sock.fileno(), namespace, control, monitor)
        sock.sendall(b"x")
        connection.open_subflow(pair.local(2), pair.remote(2), wait=True)
        eventually(lambda: active(connection) == [1, 2])
        connection.set_backup(1, True)
        connection.close_subflow(1, reset)
        eventually(lambda: active(connection) == [2])
        connection.close()
    monitor.close()


def test_priority_both_ways(make_steered: Make, eventually: Wait) -> None:
    pair = make_steered()
    number = pair.client.open_subflow(pair.local(2), pair.remote(2), backup=True)
    eventually(lambda: len(active(pair.server)) == 2)
    assert [s.backup for s in pair.client.subflows()] == [s.backup for s in pair.server.subflows()] == [False, True]
    pair.client.set_backup(number, False)
    eventually(lambda: not pair.server.subflows()[1].backup)
    pair.server.set_backup(1, True)
    eventually(lambda: pair.client.subflows()[0].backup)


def test_interface(make_steered: Make, eventually: Wait) -> None:
    pair = make_steered()
    number = pair.client.open_subflow(pair.local(2), pair.remote(2), interface=102)
    eventually(lambda: len(active(pair.server)) == 2)
    assert next(s.interface for s in pair.client.subflows() if s.id == number) == "c2"
    assert error_of(lambda: pair.client.open_subflow(pair.local(2), pair.remote(2), interface=999)) == errno.ENODEV
    assert error_of(lambda: pair.client.open_subflow(pair.local(2), pair.remote(2), interface=-1)) == errno.ENODEV
    assert error_of(lambda: pair.client.open_subflow(pair.local(2), pair.remote(2), interface=1 << 40)) == errno.ENODEV


def test_wrong_addresses(make_steered: Make) -> None:
    pair = make_steered()
    open_ = pair.client.open_subflow
    assert error_of(lambda: open_(pair.nowhere(), pair.remote(2))) == errno.EADDRNOTAVAIL
    assert error_of(lambda: open_(pair.local(2), Endpoint(pair.remote(2).address, 0))) == errno.EADDRNOTAVAIL
    assert error_of(lambda: open_(pair.local(2), Endpoint(bytes(len(pair.local(2).address)), 5))) == errno.EADDRNOTAVAIL
    for near, far in ((4, 6), (6, 4), (6, 6))[: 3 if pair.family == 4 else 2]:  # IPv4 may join an AF_INET6 socket
        call = lambda near=near, far=far: open_(pair.local(2, family=near), pair.remote(2, family=far))  # noqa: E731
        assert error_of(call) == errno.EINVAL
    port = pair.client_socket.getsockname()[1]
    assert error_of(lambda: open_(pair.local(1, port), pair.remote(1))) == errno.EADDRINUSE
    assert error_of(lambda: pair.client.close_subflow(77)) == errno.EINVAL
    assert error_of(lambda: pair.client.set_backup(77, True)) == errno.EINVAL
    # None of these has cost anything: neither a number nor an id.
    assert open_(pair.local(2), pair.remote(2)) == 2
    assert pair.client.address_ids()[pair.local(2)] == 1
    pair.exchange()


def test_limit_of_subflows(make_steered: Make) -> None:
    pair = make_steered()
    pair.client.max_subflows = 3
    for _ in range(2):
        pair.client.open_subflow(pair.local(2), pair.remote(2))
    assert error_of(lambda: pair.client.open_subflow(pair.local(2), pair.remote(2))) == errno.ENOBUFS


@pytest.mark.parametrize("family", [6])
def test_more_subflows_than_the_kernels_counter_holds(make_steered: Make, eventually: Wait) -> None:
    # mptcp_info counts in one octet; what is listed is right nevertheless.
    pair = make_steered()
    pair.client.max_subflows = 1000
    for _ in range(270):
        pair.client.open_subflow(pair.local(2), pair.remote(2))
    eventually(lambda: len(active(pair.client)) == 271)
    assert pair.client.subflows()[-1].id == 271
    pair.client.remove_address(pair.local(2).address)
    eventually(lambda: active(pair.client) == [1])


# --- not fully established --------------------------------------------------------------------------------------------
def test_before_the_peer_has_shown_that_options_pass(make_steered: Make, eventually: Wait) -> None:
    pair = make_steered(full=False)
    assert error_of(lambda: pair.client.open_subflow(pair.local(2), pair.remote(2))) == errno.EAGAIN
    assert not pair.client.is_usable
    usable: list[int] = []
    pair.client.when_usable(lambda: usable.append(len(active(pair.client))))
    number = pair.client.open_subflow(pair.local(2), pair.remote(2), wait=True)
    assert active(pair.client) == [1]
    assert not usable
    pair.client_socket.sendall(b"first data")
    assert pair.server_socket.recv(100) == b"first data"
    eventually(lambda: active(pair.client) == [1, number] and usable)
    assert usable == [1]
    pair.client.when_usable(lambda: usable.append(2))
    assert usable == [1, 2]


def test_after_one_direction_was_shut_down_nothing_is_opened(make_steered: Make) -> None:
    pair = make_steered()
    pair.client_socket.shutdown(socket.SHUT_WR)
    for wait in (False, True):
        with pytest.raises(PathError, match="shut down") as caught:
            pair.client.open_subflow(pair.local(2), pair.remote(2), wait=wait)
        assert caught.value.errno == errno.ENOTCONN


def test_a_wish_that_cannot_be_granted_ends_as_an_event(make_steered: Make, eventually: Wait) -> None:
    pair = make_steered(full=False)
    number = pair.client.open_subflow(pair.nowhere(), pair.remote(2), wait=True)
    pair.exchange()
    eventually(lambda: pair.client.waiting_events == 3)
    events = [pair.client.poll_event() for _ in range(3)]
    assert (events[2].kind, events[2].subflow_id) == (EventKind.SUBFLOW_CLOSED, number)
    assert pair.nowhere().host in events[2].reason


def test_an_announcement_of_the_peer_is_enough(make_steered: Make, eventually: Wait) -> None:
    pair = make_steered(full=False)
    number = pair.client.open_subflow(pair.local(2), pair.remote(2), wait=True)
    pair.server.add_address(Endpoint(pair.remote(3).address))
    eventually(lambda: number in active(pair.client))


def test_wishes_are_bounded(make_steered: Make) -> None:
    pair = make_steered(full=False)
    for _ in range(64):
        pair.client.when_usable(lambda: None)
    assert error_of(lambda: pair.client.when_usable(lambda: None)) == errno.ENOBUFS
    assert error_of(lambda: pair.client.open_subflow(pair.local(2), pair.remote(2), wait=True)) == errno.ENOBUFS


# --- addresses --------------------------------------------------------------------------------------------------------
def test_announce_and_withdraw(make_steered: Make, eventually: Wait) -> None:
    pair = make_steered()
    local = Endpoint(pair.remote(2).address)
    number = pair.server.add_address(local)
    eventually(lambda: pair.client.remote_addresses() == {number: pair.remote(2)})
    pair.client.open_subflow(pair.local(2), pair.remote(2))
    eventually(lambda: len(active(pair.server)) == 2)
    pair.server.remove_address(local.address)
    eventually(lambda: not pair.client.remote_addresses() and active(pair.client) == [1])
    assert error_of(lambda: pair.server.remove_address(local.address)) == errno.EADDRNOTAVAIL
    pair.exchange()


def test_announcing_after_the_peer_has_joined(make_steered: Make, eventually: Wait) -> None:
    # The kernel gave that address an id by itself when the peer connected to it.
    pair = make_steered()
    pair.client.open_subflow(pair.local(2), pair.remote(2))
    eventually(lambda: len(active(pair.server)) == 2)
    number = pair.server.add_address(Endpoint(pair.remote(2).address))
    eventually(lambda: pair.client.remote_addresses() == {number: pair.remote(2)})
    assert pair.server.address_ids()[Endpoint(pair.remote(2).address)] == number


def test_removing_what_the_peer_has_joined(make_steered: Make, eventually: Wait) -> None:
    pair = make_steered()
    pair.client.open_subflow(pair.local(2), pair.remote(2))
    eventually(lambda: len(active(pair.server)) == 2)
    pair.server.remove_address(pair.remote(2).address)
    eventually(lambda: active(pair.client) == [1])


def test_remove_after_one_subflow_was_closed(make_steered: Make, eventually: Wait) -> None:
    # Closing by FIN makes the kernel forget the address; withdrawing it would fail then.
    pair = make_steered()
    numbers = [pair.client.open_subflow(pair.local(2), pair.remote(2)) for _ in range(3)]
    eventually(lambda: len(active(pair.server)) == 4)
    pair.client.close_subflow(numbers[0])
    eventually(lambda: len(active(pair.server)) == 3)
    pair.client.remove_address(pair.local(2).address)
    eventually(lambda: active(pair.client) == [1] and len(active(pair.server)) == 1)
    # The address can be used again.
    pair.client.open_subflow(pair.local(2), pair.remote(2))
    eventually(lambda: len(active(pair.server)) == 2)
    pair.exchange()


def test_removing_the_initial_address(make_steered: Make, eventually: Wait) -> None:
    pair = make_steered()
    pair.client.open_subflow(pair.local(2), pair.remote(2))
    eventually(lambda: len(active(pair.server)) == 2)
    pair.client.remove_address(pair.local(1).address)
    eventually(lambda: active(pair.client) == [2])
    pair.exchange()


def test_what_cannot_be_announced(make_steered: Make) -> None:
    pair = make_steered()
    assert error_of(lambda: pair.client.add_address(pair.local(1))) == errno.EINVAL
    assert error_of(lambda: pair.client.add_address(pair.client.initial_local)) == errno.EINVAL
    assert error_of(lambda: pair.client.remove_address(pair.local(3).address)) == errno.EADDRNOTAVAIL


def test_a_closed_listener_means_no_further_subflow(make_steered: Make, eventually: Wait) -> None:
    pair = make_steered(keep_listener=False)
    number = pair.client.open_subflow(pair.local(2), pair.remote(2))
    eventually(lambda: pair.client.waiting_events == 3)
    events = [pair.client.poll_event() for _ in range(3)]
    assert (events[2].kind, events[2].subflow_id, events[2].reason) == (EventKind.SUBFLOW_CLOSED, number, "refused")


# --- who may, and on what ---------------------------------------------------------------------------------------------
def test_the_in_kernel_path_manager_lets_nothing_but_a_reset_through(
    make_lab: Callable[..., netns.Lab], make_pair: Make, eventually: Wait, family: int
) -> None:
    lab = make_lab(2)
    lab.client.mptcp_limits(subflows=8, add_addr_accepted=8)
    lab.client.mptcp_endpoint(lab.client_address(2, family), "subflow")
    kind = socket.AF_INET if family == 4 else socket.AF_INET6
    client, _ = make_pair(lab.client, lab.server_address(1, family), kind, server_in=lab.server)
    namespace = NetNamespace(lab.client.fileno())
    control = DirectControl(namespace)
    monitor = Monitor(namespace, control)
    connection = KernelConnection(client.fileno(), namespace, control, monitor)
    eventually(lambda: active(connection) == [1, 2])
    remote = connection.initial_remote
    for call in (
        lambda: connection.open_subflow(Endpoint.parse(lab.client_address(2, family)), remote),
        lambda: connection.close_subflow(2),
        lambda: connection.set_backup(2, True),
        lambda: connection.add_address(Endpoint.parse(lab.client_address(2, family))),
    ):
        with pytest.raises(NotSupportedError, match=r"net\.mptcp\.path_manager=userspace"):
            call()
    support = connection.supports("create_subflow")
    assert not support
    assert "path_manager" in support.fix
    connection.close_subflow(2, reset=True)
    eventually(lambda: active(connection) == [1])
    connection.close()
    monitor.close()


def test_a_plain_connection(steered_lab: netns.Lab, make_steered: Make) -> None:
    pair = make_steered(server_protocol=0, full=False)
    assert not pair.client.is_multipath
    assert pair.client.fallback_reason
    for call in (
        lambda: pair.client.open_subflow(pair.local(2), pair.remote(2)),
        lambda: pair.client.close_subflow(1),
        lambda: pair.client.remove_address(pair.local(1).address),
    ):
        with pytest.raises(NotSupportedError, match="plain TCP"):
            call()
    assert not pair.client.supports("create_subflow")
    pair.exchange()


def test_nobody_who_could(make_steered: Make) -> None:
    pair = make_steered(privileged=False, heard=False)
    control = NoControl(pair.client.supports("create_subflow"))
    for call in (
        lambda: pair.client.open_subflow(pair.local(2), pair.remote(2)),
        lambda: pair.client.close_subflow(1),
        lambda: pair.client.close_subflow(1, reset=True),
        lambda: pair.client.set_backup(1, True),
        lambda: pair.client.add_address(pair.local(2)),
        lambda: pair.client.remove_address(pair.local(1).address),
        lambda: pair.client.set_subflow_option(1, socket.IPPROTO_TCP, socket.TCP_NODELAY, bytes(4)),
        lambda: pair.client.get_subflow_option(1, socket.IPPROTO_TCP, socket.TCP_NODELAY, 4),
        control.event_source,
    ):
        with pytest.raises(PermissionError, match="CAP_NET_ADMIN"):
            call()
    assert not control.supports("events")
    control.close()
    pair.exchange()


def test_foreign_sockets_are_not_touched(make_steered: Make, make_pair: Make) -> None:
    pair = make_steered()
    other = make_steered()
    control = DirectControl(NetNamespace(pair.lab.client.fileno()))
    ends = other.client.initial_local, other.client.initial_remote
    fd, token = pair.client_socket.fileno(), pair.client.token
    assert error_of(lambda: control.reset_subflow(fd, token, *ends)) == errno.ENOENT
    assert error_of(lambda: control.destroy_subflow(fd, token, *ends)) == errno.ENOENT
    assert error_of(lambda: control.set_backup(fd, token, *ends, True)) == errno.ENOENT
    assert error_of(lambda: control.set_subflow_option(fd, token, *ends, 6, 1, bytes(4))) == errno.ENOENT
    assert error_of(lambda: control.remove(fd, token ^ 1, 1)) == errno.ENOTCONN
    other.exchange()
    control.close()


def test_a_connection_that_is_over(make_steered: Make, eventually: Wait) -> None:
    pair = make_steered()
    pair.client_socket.shutdown(socket.SHUT_WR)
    pair.server_socket.shutdown(socket.SHUT_WR)
    eventually(lambda: pair.client.is_ended)
    assert error_of(lambda: pair.client.open_subflow(pair.local(2), pair.remote(2))) == errno.ENOTCONN


def test_a_descriptor_that_is_anothers_by_now(make_steered: Make, eventually: Wait) -> None:
    # The program closed the socket behind our back and the number went to another connection.
    pair, other = make_steered(), make_steered()
    fd = pair.client_socket.fileno()
    pair.client_socket.detach()
    os.dup2(other.client_socket.fileno(), fd)
    try:
        assert error_of(lambda: pair.client.open_subflow(pair.local(2), pair.remote(2))) == errno.ENOTCONN
        assert error_of(lambda: pair.client.close_subflow(1)) == errno.ENOTCONN
        pair.client.synchronise()
        assert pair.client.is_ended
    finally:
        os.close(fd)
    other.exchange()


def test_find_control(steered_lab: netns.Lab) -> None:
    namespace = NetNamespace(steered_lab.client.fileno())
    control = find_control(namespace)
    assert isinstance(control, DirectControl)
    assert control.supports("create_subflow")
    assert control.supports("events")
    assert not control.supports("levitate")
    control.close()
    control.close()


def test_errors_name_what_was_asked(make_steered: Make) -> None:
    pair = make_steered()
    with pytest.raises(
        PathError, match=rf"opening a subflow from {re.escape(str(pair.nowhere()))} .*address of this host"
    ):
        pair.client.open_subflow(pair.nowhere(), pair.remote(2))
