"""Errors of the methods, where no other file of this suite provokes them: the errno, a sentence, and a connection that goes on."""

from __future__ import annotations

import errno
import socket as std
from collections.abc import Callable
from typing import Any

import pytest

import mptcp
from mptcp.core.multipath.config import ConnectionConfig
from mptcp.sockets import privileges

TCP = std.IPPROTO_TCP


def error_of(call: Callable[[], Any]) -> int:
    """The errno; the text says what to do."""
    with pytest.raises(OSError) as caught:
        call()
    assert len(str(caught.value)) > 8
    assert caught.value.errno is not None
    return caught.value.errno


def strange(world: Any) -> str:
    return "192.0.2.9" if world.family == 4 else "2001:db8::9"


OF_SUBFLOWS: dict[str, Callable[[Any], Any]] = {
    "subflows": lambda sock: sock.subflows(),
    "open_subflow": lambda sock: sock.open_subflow(),
    "close_subflow": lambda sock: sock.close_subflow(1),
    "set_backup": lambda sock: sock.set_backup(1, True),
    "set_subflow_option": lambda sock: sock.set_subflow_option(1, TCP, std.TCP_NODELAY, 1),
    "get_subflow_option": lambda sock: sock.get_subflow_option(1, TCP, std.TCP_NODELAY),
    "subflow_addresses": lambda sock: sock.subflow_addresses(),
    "usage": lambda sock: sock.usage(),
    "info": lambda sock: sock.info(),
}
OF_THE_CONNECTION: dict[str, Callable[[Any], Any]] = {
    "profile": lambda sock: setattr(sock, "profile", "bulk"),
    "expect": lambda sock: sock.expect(bytes=1),
    "set_subflow_setup": lambda sock: sock.set_subflow_setup("at-once"),
    "wanted_subflows": lambda sock: setattr(sock, "wanted_subflows", 2),
    "set_path_manager": lambda sock: sock.set_path_manager("fullmesh"),
    "add_addresses": lambda sock: sock.add_addresses(["10.0.0.1"]),
    "multipath_enabled": lambda sock: setattr(sock, "multipath_enabled", True),
    "events": lambda sock: sock.events(),
    "MPTCP_EVENTS": lambda sock: sock.setsockopt(TCP, mptcp.MPTCP_EVENTS, 2),
    "TCP_MULTIPATH_ENABLE": lambda sock: sock.getsockopt(TCP, mptcp.TCP_MULTIPATH_ENABLE),
    "MPTCP_GET_SUB_IDS": lambda sock: sock.getsockopt(TCP, mptcp.MPTCP_GET_SUB_IDS, 64),
    "getsockname": lambda sock: sock.getsockname(),
}


def test_before_the_connection_there_are_no_subflows(world: Any) -> None:
    client = world.client()
    assert {name: error_of(lambda call=call: call(client)) for name, call in OF_SUBFLOWS.items()} == dict.fromkeys(
        OF_SUBFLOWS, errno.ENOTCONN
    )
    assert client.remote_addresses() == []
    world.echo(*world.connect(client))


def test_after_close_there_is_nothing(world: Any) -> None:
    fresh, (connected, _) = world.client(), world.pair()
    calls = {**OF_SUBFLOWS, **OF_THE_CONNECTION}
    for sock in (fresh, connected):
        sock.close()
        found = {name: error_of(lambda call=call, sock=sock: call(sock)) for name, call in calls.items()}
        assert found == dict.fromkeys(calls, errno.EBADF)


def test_a_subflow_that_is_not_there(world: Any) -> None:
    client, accepted = world.pair()
    for call in (lambda: client.close_subflow(77), lambda: client.set_backup(77, True)):
        assert error_of(call) == errno.EINVAL
    world.echo(client, accepted)


def test_ends_of_two_families(world: Any) -> None:
    # Draft §3.2: "both addresses must be of the same type"
    client, accepted = world.pair()
    here, there = world.client_addresses[1], world.server_addresses[1]
    for remote, local in ((world.other_family_server, here), (there, world.other_family_client)):
        call = lambda remote=remote, local=local: client.open_subflow((remote, 8080), (local, 0))  # noqa: E731
        assert error_of(call) == errno.EINVAL
    assert len(client.subflows()) == 1
    world.echo(client, accepted)


# --- addresses --------------------------------------------------------------------------------------------------------
def test_announcing_what_cannot_be(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    client, accepted = world.pair()
    wildcard = "0.0.0.0" if world.family == 4 else "::"
    assert error_of(lambda: client.add_address(strange(world))) == errno.EADDRNOTAVAIL
    assert error_of(lambda: client.add_address(wildcard)) == errno.EINVAL
    assert error_of(lambda: client.add_address("nonsense")) == errno.EINVAL
    assert error_of(lambda: client.remove_address(strange(world))) == errno.EADDRNOTAVAIL
    assert error_of(lambda: client.remove_address("nonsense")) == errno.EINVAL
    monkeypatch.setattr(privileges, "has_capability", lambda number: False)
    monkeypatch.setattr(privileges, "first_unprivileged_port", lambda: 1024)
    assert error_of(lambda: client.add_address(world.client_addresses[1], 1023)) == errno.EACCES
    assert len(accepted.remote_addresses()) == 1
    world.echo(client, accepted)


@pytest.mark.kernel_differs("the kernel announces no address that the peer knows", errno=errno.EINVAL)
def test_announcing_what_the_peer_knows(world: Any) -> None:
    client, accepted = world.pair()
    client.add_address(world.client_addresses[0])
    world.echo(client, accepted)
    assert len(accepted.remote_addresses()) == 1
    assert len(client.subflows()) == 1


@pytest.mark.kernel_differs("the kernel keeps it until it can be sent")
def test_announcing_before_the_peer_has_shown_that_options_pass(world: Any) -> None:
    listener, client = world.listen(), world.client()
    client.connect((world.server_addresses[0], 8080))
    accepted = world.keep(listener.accept()[0])
    if world.name == "user":
        assert error_of(lambda: client.add_address(world.client_addresses[1])) == errno.EAGAIN
        world.echo(client, accepted)
    client.add_address(world.client_addresses[1])
    world.echo(client, accepted)
    world.until(lambda: world.client_addresses[1] in [address[0] for address in accepted.remote_addresses()])


def test_announcing_on_regular_tcp(world: Any) -> None:
    world.refuse_multipath()
    client, accepted = world.pair()
    assert error_of(lambda: client.add_address(world.client_addresses[1])) == errno.EOPNOTSUPP
    assert error_of(lambda: client.remove_address(world.client_addresses[0])) == errno.EOPNOTSUPP
    assert error_of(client.subflow_addresses) == errno.EOPNOTSUPP
    assert error_of(lambda: setattr(client, "wanted_subflows", 2)) == errno.EOPNOTSUPP
    world.echo(client, accepted)


def test_checking_changes_nothing(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    client = world.client()
    first, second, _ = world.client_addresses
    wildcard = "0.0.0.0" if world.family == 4 else "::"
    for addresses, number in (
        ([first, strange(world)], errno.EADDRNOTAVAIL),
        ([wildcard], errno.EINVAL),
        (["nonsense"], errno.EINVAL),
    ):
        assert error_of(lambda addresses=addresses: client.check_addresses(addresses)) == number
    client.check_addresses([first, second])
    monkeypatch.setattr(privileges, "has_capability", lambda number: False)
    monkeypatch.setattr(privileges, "first_unprivileged_port", lambda: 1024)
    assert error_of(lambda: client.check_addresses([(first, 1023)])) == errno.EACCES
    assert client.local_addresses() == []


def test_a_peer_that_takes_no_joins_at_its_first_address(world: Any) -> None:
    # RFC 8684 §3.1, flag C: "the receiver MUST NOT try to open any additional subflows toward this address"
    world.refuse_joins()
    client, accepted = world.pair()
    local = (world.client_addresses[1], 0)
    if world.name == "kernel":  # it tells so in an event
        world.until(lambda: client.info() and client._connection.denies_join_to_initial)
    assert error_of(lambda: client.open_subflow(local=local)) == errno.ECONNREFUSED
    assert len(client.subflows()) == 1
    client.open_subflow((world.server_addresses[1], 8080), local)
    world.wait_active(client, 2)
    world.echo(client, accepted)


# --- SCTP's names -----------------------------------------------------------------------------------------------------
def test_bindx_to_a_port_that_is_taken_or_privileged(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    first = world.client_addresses[0]
    other, client = world.client(), world.client()
    other.bind((first, 7003))
    call = lambda: mptcp.sctp_bindx(client, [(first, 7003)], mptcp.SCTP_BINDX_ADD_ADDR)  # noqa: E731
    assert error_of(call) == errno.EADDRINUSE
    assert mptcp.sctp_getladdrs(client) == []
    monkeypatch.setattr(privileges, "has_capability", lambda number: False)
    monkeypatch.setattr(privileges, "first_unprivileged_port", lambda: 1024)
    call = lambda: mptcp.sctp_bindx(client, [(first, 1000)], mptcp.SCTP_BINDX_ADD_ADDR)  # noqa: E731
    if world.name == "user":  # the kernel looks for itself when it binds
        assert error_of(call) == errno.EACCES
        assert mptcp.sctp_getladdrs(client) == []


# --- strategies -------------------------------------------------------------------------------------------------------
def test_names_and_numbers_that_are_none(world: Any) -> None:
    world.client_stack_is(config=ConnectionConfig())
    client, accepted = world.pair()
    for call, number in (
        (lambda: client.set_scheduler("nonsense"), errno.ENOENT),
        (lambda: client.set_path_manager("nonsense"), errno.ENOENT),
        (lambda: setattr(client, "redundancy", "nonsense"), errno.EINVAL),
        (lambda: setattr(client, "wanted_subflows", 0), errno.EINVAL),
        (lambda: setattr(client, "wanted_subflows", 99), errno.EINVAL),
        (lambda: client.set_subflow_setup(after_bytes=-1), errno.EINVAL),
        (lambda: client.set_subflow_setup(after_seconds=-1), errno.EINVAL),
    ):
        assert error_of(call) == number
    for wrong in (
        lambda: setattr(client, "profile", "nonsense"),
        lambda: client.set_subflow_setup("nonsense"),
        lambda: client.expect(bytes=-1),
    ):
        with pytest.raises(mptcp.ConfigurationError):
            wrong()
    world.echo(client, accepted)
