"""RFC 6897 §5.3: TCP_MULTIPATH_ENABLE, _ADD, _REMOVE, _SUBFLOWS, _CONNID, and the first draft's _BIND."""

from __future__ import annotations

import errno
import socket as std
from typing import Any

import pytest

import mptcp
from mptcp.core.multipath.config import ConnectionConfig
from mptcp.core.wire.mptcp_options import AddAddr, MpCapable, MpJoinSyn, RemoveAddr
from mptcp.core.wire.segment import FIN, SYN
from mptcp.info import Endpoint
from mptcp.sockets import privileges
from mptcp.sockets.options import IPPROTO_MPTCP
from mptcp.sockets.structures import pack_addresses, unpack_pairs

TCP = std.IPPROTO_TCP


def addresses(*hosts: str, port: int = 0) -> bytes:
    return pack_addresses(Endpoint.parse(host, port) for host in hosts)


def error_of(call: Any) -> int:
    """The errno; the text says what to do."""
    with pytest.raises(OSError) as caught:
        call()
    assert len(str(caught.value)) > 8
    assert caught.value.errno is not None
    return caught.value.errno


# --- TCP_MULTIPATH_ENABLE ---------------------------------------------------------------------------------------------
def test_enable_false_means_no_mptcp(world: Any) -> None:
    # §5.3.2: "In that case, MPTCP MUST NOT be used on that connection."
    client = world.client()
    client.setsockopt(TCP, mptcp.TCP_MULTIPATH_ENABLE, 0)
    assert client.getsockopt(TCP, mptcp.TCP_MULTIPATH_ENABLE) == 0
    client, accepted = world.connect(client)
    assert not client.is_multipath
    assert "TCP_MULTIPATH_ENABLE" in client.fallback_reason
    assert not world.packets(MpCapable)
    world.echo(client, accepted)


def test_enable_true_means_mptcp_is_negotiated(world: Any) -> None:
    client = world.client(0)
    client.setsockopt(TCP, mptcp.TCP_MULTIPATH_ENABLE, b"\1\0\0\0")
    client, accepted = world.connect(client)
    assert client.getsockopt(TCP, mptcp.TCP_MULTIPATH_ENABLE) == 1
    assert client.getsockopt(TCP, mptcp.TCP_MULTIPATH_ENABLE, 4) == b"\1\0\0\0"
    assert accepted.multipath_enabled
    assert world.packets(MpCapable)[0].segment.flags & SYN


def test_enable_overrides_a_stack_without_mptcp(world: Any) -> None:
    world.client_stack_is(config=ConnectionConfig(multipath=False))
    assert not world.pair(0)[0].is_multipath
    client = world.client(0)
    client.multipath_enabled = True
    assert world.connect(client)[0].is_multipath


def test_enable_read_after_the_establishment_says_whether_the_peer_has_mptcp(world: Any) -> None:
    # §5.3.2: "A value of "false" then means lack of MPTCP support."
    world.refuse_multipath()
    client, _ = world.pair()
    assert client.getsockopt(TCP, mptcp.TCP_MULTIPATH_ENABLE) == 0


def test_enable_is_for_before_the_connection(world: Any) -> None:
    client, accepted = world.pair()
    for sock in (client, accepted):
        assert error_of(lambda sock=sock: sock.setsockopt(TCP, mptcp.TCP_MULTIPATH_ENABLE, 0)) == errno.EISCONN
    world.echo(client, accepted)  # the connection goes on


@pytest.mark.kernel_differs("a listening socket of the kernel stays MPTCP or TCP", errno=errno.EOPNOTSUPP)
def test_enable_on_a_listener_is_for_what_it_accepts_from_now_on(world: Any) -> None:
    listener = world.listen()
    assert world.pair()[1].is_multipath
    listener.setsockopt(TCP, mptcp.TCP_MULTIPATH_ENABLE, 0)
    assert not world.pair()[1].is_multipath


# --- TCP_MULTIPATH_ADD ------------------------------------------------------------------------------------------------
def test_add_before_connect_is_remembered_and_restricts(world: Any) -> None:
    # §5.3.1: "If used before, it controls the local addresses that an MPTCP connection can use."
    world.client_stack_is(config=ConnectionConfig())  # full mesh
    client = world.client()
    first, second, third = world.client_addresses
    client.setsockopt(TCP, mptcp.TCP_MULTIPATH_ADD, addresses(second, first))
    client, accepted = world.connect(client)
    world.wait_active(client, 2)
    assert client.getsockname()[0] == second  # in the order given
    world.echo(client, accepted)
    assert {s.local.host for s in client.subflows()} == {first, second}
    assert not [p for p in world.packets() if p.source == third]


@pytest.mark.kernel_differs("an AF_INET socket has IPv4 subflows only", errno=errno.EOPNOTSUPP, family=4)
def test_add_takes_both_families_in_one_call(world: Any) -> None:
    # §5.3.3: "these operations SHOULD support both IPv4 and IPv6 addresses, potentially in the same call"
    world.client_stack_is(config=ConnectionConfig(), server_path_manager=None)
    client = world.client()
    both = (world.client_addresses[0], world.other_family_client)
    client.setsockopt(TCP, mptcp.TCP_MULTIPATH_ADD, addresses(*both))
    client, _ = world.connect(client)
    world.until(lambda: {s.local.host for s in client.subflows()} == set(both))


def test_add_during_the_connection_extends_it(world: Any) -> None:
    world.client_stack_is(config=ConnectionConfig())
    client = world.client()
    first, second, _ = world.client_addresses
    client.add_addresses([first])
    client, accepted = world.connect(client)
    world.echo(client, accepted)
    assert len(client.subflows()) == 1
    client.setsockopt(TCP, mptcp.TCP_MULTIPATH_ADD, addresses(second))
    world.wait_active(client, 2)
    assert {p.source for p in world.packets(MpJoinSyn)} == {second}


def test_add_with_a_port_binds_subflows_to_it(world: Any) -> None:
    # §5.3.3: "a TCP port number that, if specified, MPTCP MUST attempt to bind to"
    world.client_stack_is(config=ConnectionConfig())
    client = world.client()
    client.add_addresses([(world.client_addresses[0], 5001), (world.client_addresses[1], 5002)])
    client, _ = world.connect(client)
    world.wait_active(client, 2)
    assert client.getsockname()[:2] == (world.client_addresses[0], 5001)
    assert {(s.local.host, s.local.port) for s in client.subflows()} == {
        (world.client_addresses[0], 5001), (world.client_addresses[1], 5002),
    }  # fmt: skip


@pytest.mark.kernel_differs("each subflow has a port of its own")
def test_without_a_port_it_is_the_same_across_all_subflows(world: Any) -> None:
    # §5.3.3: "it is RECOMMENDED that it is the same across all subflows"
    world.client_stack_is(config=ConnectionConfig())
    client, _ = world.pair()
    world.wait_active(client, 3)
    assert len({s.local.port for s in client.subflows()}) == (1 if world.name == "user" else 3)


@pytest.mark.kernel_differs("joins are accepted where a socket listens, at one address or at all")
def test_add_on_a_server_is_announced_and_nothing_else_is(world: Any) -> None:
    # §5.3.3: "By extension, this operation will also control the list of addresses that can be advertised to the peer"
    world.client_stack_is(config=ConnectionConfig(), server_path_manager=None)
    first, second = world.server_addresses
    if world.name == "user":
        world.listen(first, prepare=lambda sock: sock.add_addresses([second]))
    else:
        world.listen(prepare=lambda sock: sock.add_addresses([first, second]))
    client, accepted = world.pair()
    world.until(lambda: any(s.remote.host == second for s in client.subflows()))
    announced = {
        p.option(AddAddr).address for p in world.packets(AddAddr, outgoing=False) if not p.option(AddAddr).echo
    }
    assert announced == {Endpoint.parse(second).address}  # not the one of the other family
    world.echo(client, accepted)


@pytest.mark.kernel_differs("a port that is announced needs a listener of the program's own there")
def test_a_port_added_on_a_server_is_announced(world: Any) -> None:
    world.client_stack_is(config=ConnectionConfig(), server_path_manager=None)
    first, second = world.server_addresses
    world.make_room_for_options()
    if world.name == "kernel":
        world.listen(second, 9090)
    world.listen(first, prepare=lambda sock: sock.add_addresses([(second, 9090)]))
    client, _ = world.pair()
    world.until(lambda: any((s.remote.host, s.remote.port) == (second, 9090) for s in client.subflows()))


def test_listening_after_add_is_at_those_addresses_only(world: Any) -> None:
    world.listen(prepare=lambda sock: sock.add_addresses([world.server_addresses[1]]))
    client = world.client()
    assert error_of(lambda: client.connect((world.server_addresses[0], 8080))) == errno.ECONNREFUSED
    client.connect((world.server_addresses[1], 8080))


@pytest.mark.parametrize("option", [mptcp.TCP_MULTIPATH_ADD, mptcp.TCP_MULTIPATH_REMOVE, mptcp.TCP_MULTIPATH_BIND])
@pytest.mark.parametrize("connected", [False, True])
def test_lists_that_are_wrong(world: Any, option: int, connected: bool) -> None:
    sock, accepted = world.pair() if connected else (world.client(), None)
    for octets, number in (
        (b"", errno.EINVAL),
        (addresses(world.client_addresses[0])[:-1], errno.EINVAL),
        (addresses(world.client_addresses[0]) + b"\2", errno.EINVAL),
        (b"\1\0" + bytes(14), errno.EAFNOSUPPORT),
        (addresses("192.0.2.1"), errno.EADDRNOTAVAIL),
        (addresses(world.client_addresses[1], "2001:db8::1"), errno.EADDRNOTAVAIL),
        (addresses(world.client_addresses[0]) * 300, errno.EINVAL),
    ):
        assert error_of(lambda octets=octets: sock.setsockopt(TCP, option, octets)) == number
    assert error_of(lambda: sock.setsockopt(TCP, option, 1)) == errno.EINVAL
    assert error_of(lambda: sock.getsockopt(TCP, option, 16)) == errno.ENOPROTOOPT
    if connected:
        world.echo(sock, accepted)
        assert len(sock.subflows()) == 1
    else:
        assert sock.local_addresses() == []


def test_add_of_the_wildcard_is_refused(world: Any) -> None:
    wildcard = "0.0.0.0" if world.family == 4 else "::"
    assert error_of(lambda: world.client().add_addresses([wildcard])) == errno.EINVAL
    assert error_of(lambda: world.client().add_addresses(["nonsense"])) == errno.EINVAL


def test_add_of_a_privileged_port(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    client = world.client()
    monkeypatch.setattr(privileges, "has_capability", lambda number: False)
    monkeypatch.setattr(privileges, "first_unprivileged_port", lambda: 1024)
    assert error_of(lambda: client.add_addresses([(world.client_addresses[0], 1023)])) == errno.EACCES
    client.add_addresses([(world.client_addresses[0], 1024)])


@pytest.mark.parametrize("option", [mptcp.TCP_MULTIPATH_ADD, mptcp.TCP_MULTIPATH_REMOVE, mptcp.TCP_MULTIPATH_BIND])
def test_lists_after_fallback(world: Any, option: int) -> None:
    world.refuse_multipath()
    client, accepted = world.pair()
    assert error_of(lambda: client.setsockopt(TCP, option, addresses(world.client_addresses[0]))) == errno.EOPNOTSUPP
    world.echo(client, accepted)


# --- hidden addresses -------------------------------------------------------------------------------------------------
def test_hidden_addresses_stay_unannounced_unless_added(world: Any) -> None:
    # §7: "MPTCP might advertise those addresses to the other connection endpoint, which could learn IP addresses of
    # interfaces that are not visible otherwise"
    first, second, hidden = world.client_addresses
    world.client_stack_is(config=ConnectionConfig(), hidden=[hidden])
    client, accepted = world.pair()
    world.wait_active(client, 2)
    world.echo(client, accepted)
    assert {s.local.host for s in client.subflows()} == {first, second}
    assert not [p for p in world.packets() if p.source == hidden]
    assert Endpoint.parse(hidden).address not in [p.option(AddAddr).address for p in world.packets(AddAddr)]
    client.add_addresses([hidden])
    world.wait_active(client, 3)
    assert {s.local.host for s in client.subflows()} == {first, second, hidden}


# --- TCP_MULTIPATH_REMOVE ---------------------------------------------------------------------------------------------
def test_remove_closes_the_subflows_and_tells_the_peer(world: Any) -> None:
    # §5.3.3: "MPTCP MUST close any corresponding subflows ... and signal the removal of the address to the peer."
    client, accepted, number = world.two_paths()
    join = world.packets(MpJoinSyn)[0]
    client.setsockopt(TCP, mptcp.TCP_MULTIPATH_REMOVE, addresses(world.client_addresses[1]))
    world.until(lambda: len(client.subflows()) == 1 and len(accepted.subflows()) == 1)
    assert [s.id for s in client.subflows()] != [number]
    removal = world.packets(RemoveAddr)[0]
    assert removal.option(RemoveAddr).address_ids == (join.option(MpJoinSyn).address_id,)
    fin = next(p for p in world.packets() if p.source == world.client_addresses[1] and p.segment.flags & FIN)
    assert fin.source_port == join.source_port
    world.echo(client, accepted)


def test_remove_establishes_alternatives_first(world: Any) -> None:
    # §5.3.3: "an MPTCP implementation SHOULD establish alternative subflows before undertaking the address removal"
    client, accepted = world.pair()
    first = world.client_addresses[0]
    name = client.getsockname()
    client.setsockopt(TCP, mptcp.TCP_MULTIPATH_REMOVE, addresses(first))
    world.until(lambda: {s.local.host for s in accepted.subflows()} == set() or first not in {
        s.local.host for s in client.subflows()
    })  # fmt: skip
    world.echo(client, accepted)
    sent = world.packets()
    joined = next(i for i, p in enumerate(sent) if p.has(MpJoinSyn))
    closed = next(i for i, p in enumerate(sent) if p.source == first and p.segment.flags & FIN)
    told = next(i for i, p in enumerate(sent) if p.has(RemoveAddr))
    assert joined < closed
    assert joined < told
    assert sent[told].option(RemoveAddr).address_ids == (0,)
    assert sent[told].source != first
    assert client.getsockname() == name  # the first subflow's, for ever
    assert accepted.getpeername()[:2] == name[:2]


def test_remove_on_a_server_asks_for_an_alternative_first(world: Any) -> None:
    world.client_stack_is(config=ConnectionConfig())
    client, accepted = world.pair()
    world.wait_active(client, 3)
    first, second = world.server_addresses
    accepted.remove_addresses([first])
    world.until(lambda: first not in {s.remote.host for s in client.subflows()})
    assert second in {s.remote.host for s in client.subflows()}
    received = world.packets(outgoing=False)
    announced = next(i for i, p in enumerate(received) if p.has(AddAddr) and not p.option(AddAddr).echo)
    removed = next(i for i, p in enumerate(received) if p.has(RemoveAddr))
    assert announced < removed
    world.echo(client, accepted)


def test_remove_of_the_only_address_waits_for_another_to_come(world: Any) -> None:
    client = world.client()
    first, second, _ = world.client_addresses
    client.add_addresses([first])
    client, accepted = world.connect(client)
    client.remove_addresses([first])
    world.until(lambda: not client.subflows())
    client.sendall(b"held")
    client.add_addresses([second])
    client.open_subflow(local=(second, 0))
    assert accepted.recv(4) == b"held"
    world.until(lambda: bool(world.packets(RemoveAddr)))  # what nobody could carry before
    world.echo(client, accepted)


def test_removed_addresses_are_not_used_again_until_added(world: Any) -> None:
    world.client_stack_is(config=ConnectionConfig())
    client, _ = world.pair()
    world.wait_active(client, 3)
    third = world.client_addresses[2]
    client.remove_addresses([third])
    world.wait_active(client, 2)
    assert (third, client.getsockname()[1]) not in [a[:2] for a in client.local_addresses()]
    client.add_addresses([third])
    world.wait_active(client, 3)


def test_remove_before_connect(world: Any) -> None:
    # §5.3.1: "In both cases, it removes an address from the list of local addresses that may be used by subflows."
    world.client_stack_is(config=ConnectionConfig())
    client = world.client()
    first, second, third = world.client_addresses
    client.setsockopt(TCP, mptcp.TCP_MULTIPATH_REMOVE, addresses(first))
    client, accepted = world.connect(client)
    world.wait_active(client, 2)
    assert {s.local.host for s in client.subflows()} <= {second, third}
    world.echo(client, accepted)


def test_remove_of_what_the_connection_has_not(world: Any) -> None:
    client = world.client()
    client.add_addresses([world.client_addresses[0]])
    client, accepted = world.connect(client)
    assert error_of(lambda: client.remove_addresses([world.client_addresses[1]])) == errno.EADDRNOTAVAIL
    world.echo(client, accepted)


# --- TCP_MULTIPATH_BIND -----------------------------------------------------------------------------------------------
def test_bind_gives_the_full_list_at_once(world: Any) -> None:
    world.client_stack_is(config=ConnectionConfig())
    client = world.client()
    first, second, third = world.client_addresses
    client.setsockopt(TCP, mptcp.TCP_MULTIPATH_BIND, addresses(first, second))
    client, accepted = world.connect(client)
    world.wait_active(client, 2)
    client.setsockopt(TCP, mptcp.TCP_MULTIPATH_BIND, addresses(second, third))
    world.until(lambda: {s.local.host for s in client.subflows() if s.state.value == "active"} == {second, third})
    world.echo(client, accepted)


# --- TCP_MULTIPATH_SUBFLOWS, TCP_MULTIPATH_CONNID ---------------------------------------------------------------------
def test_subflows_are_pairs_of_addresses(world: Any) -> None:
    client, accepted, _ = world.two_paths()
    pairs = unpack_pairs(client.getsockopt(TCP, mptcp.TCP_MULTIPATH_SUBFLOWS, 1024))
    assert [(local.host, remote.host) for local, remote in pairs] == [
        (world.client_addresses[0], world.server_addresses[0]), (world.client_addresses[1], world.server_addresses[1]),
    ]  # fmt: skip
    assert {remote.port for _, remote in pairs} == {8080}
    mirrored = unpack_pairs(accepted.getsockopt(TCP, mptcp.TCP_MULTIPATH_SUBFLOWS, 1024))
    assert mirrored == [(remote, local) for local, remote in pairs]
    assert [local[:2] for local, _ in client.subflow_addresses()] == [(p.host, p.port) for p, _ in pairs]


def test_subflows_lists_established_ones_only(world: Any) -> None:
    # §5.3.4: "The list MUST only include established subflows."
    client, _ = world.pair()
    client.open_subflow(("192.0.2.9" if world.family == 4 else "2001:db8::9", 99), (world.client_addresses[1], 0))
    assert len(client.subflows()) == 2
    assert len(client.subflow_addresses()) == 1


@pytest.mark.kernel_differs("the peer's token is known once this side has opened a further subflow")
def test_connid_is_unique_and_the_same_for_ever(world: Any) -> None:
    clients = [world.pair() for _ in range(3)]
    numbers = [client.getsockopt(TCP, mptcp.TCP_MULTIPATH_CONNID) for client, _ in clients]
    assert len(set(numbers)) == 3
    for (client, accepted), number in zip(clients, numbers, strict=True):
        assert client.getsockopt(TCP, mptcp.TCP_MULTIPATH_CONNID, 4) == number.to_bytes(4, "little")
        assert client.connection_id == number == client.info().token
        assert accepted.info().remote_token == (number if world.name == "user" else 0)


@pytest.mark.parametrize("option", [mptcp.TCP_MULTIPATH_SUBFLOWS, mptcp.TCP_MULTIPATH_CONNID])
def test_reading_at_the_wrong_time(world: Any, option: int) -> None:
    assert error_of(lambda: world.client().getsockopt(TCP, option, 64)) == errno.ENOTCONN
    client, _ = world.pair()
    assert error_of(lambda: client.setsockopt(TCP, option, b"1234")) == errno.ENOPROTOOPT
    plain = world.client()
    plain.multipath_enabled = False
    plain, _ = world.connect(plain)
    assert error_of(lambda: plain.getsockopt(TCP, option, 64)) == errno.EOPNOTSUPP


def test_subflows_need_room(world: Any) -> None:
    client, _ = world.pair()
    assert error_of(lambda: client.getsockopt(TCP, mptcp.TCP_MULTIPATH_SUBFLOWS, 31)) == errno.EINVAL


def test_the_peer_may_not_join_at_an_address_that_is_not_allowed(world: Any) -> None:
    # §5.3.2: "MPTCP MUST respect the application's choice and only use addresses that are explicitly provided"
    first, second = world.server_addresses
    world.listen(first)
    client, accepted = world.connect(world.client(IPPROTO_MPTCP))
    number = client.open_subflow((second, 8080), (world.client_addresses[1], 0))
    world.until(lambda: number not in [s.id for s in client.subflows()])
    assert len(accepted.subflows()) == 1
    world.echo(client, accepted)
