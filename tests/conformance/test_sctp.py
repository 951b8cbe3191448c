"""SCTP's names over MPTCP (RFC 6458 §9, RFC 6897 §6.2 and A.4)."""

from __future__ import annotations

import errno
from typing import Any

import pytest

import mptcp
from mptcp import SCTP_BINDX_ADD_ADDR, SCTP_BINDX_REM_ADDR
from mptcp.core.multipath.config import ConnectionConfig
from mptcp.sockets import sctp


def hosts(addresses: list[Any]) -> list[str]:
    return [address[0] for address in addresses]


def error_of(call: Any) -> int:
    with pytest.raises(OSError) as caught:
        call()
    assert len(str(caught.value)) > 8
    assert caught.value.errno is not None
    return caught.value.errno


def test_bindx_restricts_a_client(world: Any) -> None:
    world.client_stack_is(config=ConnectionConfig())
    client = world.client()
    first, second, third = world.client_addresses
    assert mptcp.sctp_bindx(client, [(first, 7000), (second, 0)], SCTP_BINDX_ADD_ADDR) == 0
    assert hosts(mptcp.sctp_getladdrs(client)) == [first, second]
    assert {address[1] for address in mptcp.sctp_getladdrs(client)} == {7000}
    client, accepted = world.connect(client)
    world.wait_active(client, 2)
    assert {(s.local.host, s.local.port) for s in client.subflows()} == {(first, 7000), (second, 7000)}
    # "to change the peers' address lists": on an established association it adds and removes as well
    mptcp.sctp_bindx(client, [(third, 0)], SCTP_BINDX_ADD_ADDR)
    world.wait_active(client, 3)
    mptcp.sctp_bindx(client, [(second, 7000)], SCTP_BINDX_REM_ADDR)
    world.until(lambda: {s.local.host for s in client.subflows()} == {first, third})
    assert hosts(mptcp.sctp_getladdrs(client)) == [first, third]
    world.echo(client, accepted)


@pytest.mark.kernel_differs("a listening socket of the kernel stays where it listens", errno=errno.EOPNOTSUPP)
def test_bindx_of_a_listener(world: Any) -> None:
    listener = world.server()
    first, second = world.server_addresses
    mptcp.sctp_bindx(listener, [(first, 8080), (second, 8080)], SCTP_BINDX_ADD_ADDR)
    listener.listen()
    world.listener = listener
    for index in (0, 1):
        client, _ = world.connect(world.client(), index)
        assert client.is_multipath
    mptcp.sctp_bindx(listener, [(second, 0)], SCTP_BINDX_REM_ADDR)
    assert hosts(mptcp.sctp_getladdrs(listener)) == [first]
    # "so that no new association accepted will be associated with these addresses"
    assert error_of(lambda: world.client().connect((second, 8080))) == errno.ECONNREFUSED
    mptcp.sctp_bindx(listener, [(second, 0)], SCTP_BINDX_ADD_ADDR)
    assert world.connect(world.client(), 1)[0].is_multipath


def test_bindx_of_the_wildcard(world: Any) -> None:
    client = world.client()
    wildcard = "0.0.0.0" if world.family == 4 else "::"
    mptcp.sctp_bindx(client, [(wildcard, 7001)], SCTP_BINDX_ADD_ADDR)
    client, _ = world.connect(client)
    assert client.getsockname()[1] == 7001


def test_bindx_errors(world: Any) -> None:
    first, second, _ = world.client_addresses
    wildcard = "0.0.0.0" if world.family == 4 else "::"
    strange = "192.0.2.1" if world.family == 4 else "2001:db8::1"
    client = world.client()
    for addresses, flags, number in (
        ([(first, 0)], 0, errno.EINVAL),
        ([(first, 0)], SCTP_BINDX_ADD_ADDR | SCTP_BINDX_REM_ADDR, errno.EINVAL),
        ([], SCTP_BINDX_ADD_ADDR, errno.EINVAL),
        ([(first, 7000), (second, 7001)], SCTP_BINDX_ADD_ADDR, errno.EINVAL),
        ([(first, 0), (wildcard, 0)], SCTP_BINDX_ADD_ADDR, errno.EINVAL),
        ([(first, 0), (strange, 0)], SCTP_BINDX_ADD_ADDR, errno.EADDRNOTAVAIL),
    ):
        assert error_of(lambda a=addresses, f=flags: mptcp.sctp_bindx(client, a, f)) == number
    assert mptcp.sctp_getladdrs(client) == []  # it is all or nothing
    assert client.getsockname()[1] == 0
    mptcp.sctp_bindx(client, [(first, 7000)], SCTP_BINDX_ADD_ADDR)
    assert error_of(lambda: mptcp.sctp_bindx(client, [(second, 7002)], SCTP_BINDX_ADD_ADDR)) == errno.EINVAL
    # "A caller may not remove all addresses from a socket; sctp_bindx() will reject such an attempt with EINVAL."
    assert error_of(lambda: mptcp.sctp_bindx(client, [(first, 0)], SCTP_BINDX_REM_ADDR)) == errno.EINVAL
    if world.family == 4:
        assert error_of(lambda: mptcp.sctp_bindx(client, [("fd00::1", 0)], SCTP_BINDX_ADD_ADDR)) == errno.EINVAL


def test_bindx_on_regular_tcp(world: Any) -> None:
    world.refuse_multipath()
    client, _ = world.pair()
    call = lambda: mptcp.sctp_bindx(client, [(world.client_addresses[1], 0)], SCTP_BINDX_ADD_ADDR)  # noqa: E731
    assert error_of(call) == errno.EOPNOTSUPP


def test_connectx_uses_all_addresses(world: Any) -> None:
    # RFC 6458 §9.9: "the stack will try to make use of all of the addresses in the list when needed"
    world.client_stack_is(config=ConnectionConfig())
    listener = world.listen()
    client = world.client()
    first, second = world.server_addresses
    number = mptcp.sctp_connectx(client, [(first, 8080), (second, 8080)])
    accepted = world.keep(listener.accept()[0])
    world.echo(client, accepted, 100)
    world.until(lambda: {s.remote.host for s in client.subflows() if s.state.value == "active"} == {first, second})
    assert number == client.connection_id != 0
    assert hosts(mptcp.sctp_getpaddrs(client)) == [first, second]
    world.echo(client, accepted)


def test_connectx_goes_on_to_the_next_address(world: Any) -> None:
    listener = world.listen(world.server_addresses[1])
    client = world.client()
    mptcp.sctp_connectx(client, [(world.server_addresses[0], 8080), (world.server_addresses[1], 8080)])
    assert client.getpeername()[0] == world.server_addresses[1]
    world.keep(listener.accept()[0])


def test_connectx_errors(world: Any) -> None:
    client = world.client()
    assert error_of(lambda: mptcp.sctp_connectx(client, [])) == errno.EINVAL
    world.listen(world.server_addresses[1])
    assert error_of(lambda: mptcp.sctp_connectx(client, [(world.server_addresses[0], 8080)])) == errno.ECONNREFUSED
    mptcp.sctp_connectx(client, [(world.server_addresses[1], 8080)])
    assert error_of(lambda: mptcp.sctp_connectx(client, [(world.server_addresses[1], 8080)])) == errno.EISCONN


def test_the_lists_and_their_free_functions(world: Any) -> None:
    fresh = world.client()
    assert mptcp.sctp_getladdrs(fresh) == []  # "If the socket is unbound, sctp_getladdrs() returns 0"
    assert mptcp.sctp_getpaddrs(fresh) == []  # "If there is no association on this socket, sctp_getpaddrs() returns 0"
    client, accepted, _ = world.two_paths()
    mine, theirs = mptcp.sctp_getladdrs(client), mptcp.sctp_getpaddrs(client)
    assert set(world.client_addresses) <= set(hosts(mine))
    assert hosts(theirs) == world.server_addresses
    assert hosts(mptcp.sctp_getpaddrs(accepted)) == world.client_addresses[:2]
    mptcp.sctp_freeladdrs(mine)
    mptcp.sctp_freepaddrs(theirs)
    assert (mine, theirs) == ([], [])


@pytest.mark.parametrize("name", ["sctp_peeloff", "sctp_opt_info", "sctp_sendv", "sctp_recvv"])
def test_what_mptcp_has_not(world: Any, name: str) -> None:
    arguments = {"sctp_peeloff": (1,), "sctp_opt_info": (0, 1, 4), "sctp_sendv": (), "sctp_recvv": ()}[name]
    assert error_of(lambda: getattr(sctp, name)(world.client(), *arguments)) == errno.EOPNOTSUPP
