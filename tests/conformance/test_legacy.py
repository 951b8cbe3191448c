"""RFC 6897 §4: programs that know nothing of MPTCP."""

from __future__ import annotations

import errno
import socket as std
from typing import Any

import pytest

import mptcp
from mptcp.core.multipath.config import ConnectionConfig
from mptcp.core.wire.mptcp_options import AddAddr, Dss, MpCapable, MpFastclose, MpJoinSyn
from mptcp.core.wire.segment import FIN

TCP, SOL = std.IPPROTO_TCP, std.SOL_SOCKET


def tos(packet: Any) -> int:
    return packet.header.traffic_class & 0xFC


# --- §4.2.1 -----------------------------------------------------------------------------------------------------------
def test_a_specific_address_turns_multipath_off(world: Any) -> None:
    # §4.2.1: "will disable the use of MPTCP on this connection"
    client = world.client(0)
    client.bind((world.client_addresses[1], 0))
    client, accepted = world.connect(client)
    assert not client.is_multipath
    assert "bound" in client.fallback_reason
    assert client.getsockname()[0] == world.client_addresses[1]
    assert not world.packets(MpCapable)
    assert error_of(lambda: client.open_subflow(local=(world.client_addresses[0], 0))) == errno.EOPNOTSUPP
    world.echo(client, accepted)


def test_a_listener_at_a_specific_address_speaks_tcp(world: Any) -> None:
    listener = world.server(0)
    listener.bind((world.server_addresses[0], 8080))
    listener.listen()
    world.listener = listener
    client, accepted = world.pair()
    assert not client.is_multipath
    assert "bound" in accepted.fallback_reason


def test_the_wildcard_leaves_it_on(world: Any) -> None:
    # §4.2.1: "a local policy MAY allow MPTCP to automatically set up multiple subflows on such a connection"
    world.client_stack_is(config=ConnectionConfig())
    client = world.client(0)
    client.bind(("", 0))
    client, _ = world.connect(client)
    world.wait_active(client, 3)


def test_a_device_turns_multipath_off(world: Any) -> None:
    client = world.client(0)
    name = world.link_name(1)
    client.setsockopt(SOL, std.SO_BINDTODEVICE, name.encode() + b"\0")
    assert client.getsockopt(SOL, std.SO_BINDTODEVICE, 16) == name.encode() + b"\0"
    client, accepted = world.connect(client)
    assert not client.is_multipath
    assert "device" in client.fallback_reason
    assert client.getsockname()[0] == world.client_addresses[1]  # the one that is there
    assert {p.link for p in world.packets()} == {1}
    world.echo(client, accepted)


def test_enabled_and_bound_uses_that_address_only(world: Any) -> None:
    # §5.3.2: "if an application enables MPTCP but binds to a specific address or interface, MPTCP MUST be enabled, but
    # MPTCP MUST respect the application's choice"
    world.client_stack_is(config=ConnectionConfig())
    client = world.client(0)
    client.bind((world.client_addresses[0], 0))
    client.setsockopt(TCP, mptcp.TCP_MULTIPATH_ENABLE, 1)
    client, accepted = world.connect(client)
    assert client.is_multipath
    world.echo(client, accepted)
    assert [s.local.host for s in client.subflows()] == [world.client_addresses[0]]
    # "it would be possible for an application to use the legacy bindings and then expand on them by using
    # TCP_MULTIPATH_ADD"
    client.add_addresses([world.client_addresses[2]])
    world.wait_active(client, 2)
    assert {s.local.host for s in client.subflows()} == {world.client_addresses[0], world.client_addresses[2]}


def test_enabled_and_bound_to_a_device_uses_all_its_addresses(world: Any) -> None:
    # §5.3.2: "it is possible for more than one local address to be initially available to MPTCP in this case, if an
    # application has bound to a specific interface with multiple addresses"
    world.client_stack_is(config=ConnectionConfig())
    client = world.client(0)
    client.setsockopt(SOL, std.SO_BINDTODEVICE, world.link_name(0).encode())
    client.multipath_enabled = True
    client, accepted = world.connect(client)
    world.wait_active(client, 2)
    world.echo(client, accepted)
    assert {s.local.host for s in client.subflows()} == {world.client_addresses[0], world.client_addresses[2]}
    assert {p.link for p in world.packets()} == {0}


def test_a_device_that_is_not_there(world: Any) -> None:
    client = world.client(0)
    assert error_of(lambda: client.setsockopt(SOL, std.SO_BINDTODEVICE, b"nowhere0\0")) == errno.ENODEV
    client.setsockopt(SOL, std.SO_BINDTODEVICE, world.link_name(1).encode())
    client.setsockopt(SOL, std.SO_BINDTODEVICE, b"\0")
    client, _ = world.connect(client)
    assert client.is_multipath
    name = world.link_name(0).encode()
    assert error_of(lambda: client.setsockopt(SOL, std.SO_BINDTODEVICE, name)) == errno.EISCONN


@pytest.mark.parametrize(("bind", "subflows"), [("restrict", 1), ("ignore", 3)])
def test_the_policy_of_a_stack_overrules(world: Any, bind: Any, subflows: int) -> None:
    world.client_stack_is(legacy_policy=mptcp.LegacyPolicy(bind=bind), config=ConnectionConfig())
    client = world.client(0)
    client.bind((world.client_addresses[1], 0))
    client, accepted = world.connect(client)
    world.wait_active(client, subflows)
    world.echo(client, accepted)
    assert len(client.subflows()) == subflows
    assert client.getsockname()[0] == world.client_addresses[1]


# --- §4.2.2 -----------------------------------------------------------------------------------------------------------
def test_names_are_the_first_subflows_for_ever(world: Any) -> None:
    # §4.2.2: "the MPTCP stack MUST always return the addresses and port numbers of the first subflow of an MPTCP
    # connection, in all circumstances, even if that particular subflow is no longer in use"
    client, accepted, _ = world.two_paths()
    names = [sock.getsockname() for sock in (client, accepted)], [sock.getpeername() for sock in (client, accepted)]
    first = next(s.id for s in client.subflows() if s.initial)
    client.close_subflow(first)
    world.until(lambda: len(client.subflows()) == 1 and len(accepted.subflows()) == 1)
    world.echo(client, accepted)
    assert names == (
        [sock.getsockname() for sock in (client, accepted)], [sock.getpeername() for sock in (client, accepted)],
    )  # fmt: skip


@pytest.mark.kernel_differs("Linux keeps a connection whose first subflow has ended", errno=errno.EOPNOTSUPP)
@pytest.mark.parametrize("reset", [False, True])
def test_fate_sharing_ends_the_connection_with_its_first_subflow(world: Any, reset: bool) -> None:
    # §4.2.2: "the MPTCP stack MAY close the whole MPTCP connection if the first subflow is closed (i.e., fate-sharing"
    client, accepted, _ = world.two_paths()
    assert not client.fate_sharing
    client.fate_sharing = True
    first = next(s.id for s in client.subflows() if s.initial)
    client.close_subflow(first, reset)
    with pytest.raises(ConnectionAbortedError if reset else ConnectionResetError):
        client.recv(1)
    with pytest.raises(ConnectionResetError):
        accepted.recv(1)
    assert world.packets(MpFastclose)


@pytest.mark.kernel_differs("Linux keeps a connection whose first subflow has ended", errno=errno.EOPNOTSUPP)
def test_fate_sharing_as_a_policy(world: Any) -> None:
    world.client_stack_is(legacy_policy=mptcp.LegacyPolicy(fate_sharing=True), config=ConnectionConfig())
    client, accepted = world.pair()
    assert client.fate_sharing
    world.wait_active(client, 3)
    # A further subflow may come and go.
    client.close_subflow(client.subflows()[1].id)
    world.until(lambda: len(client.subflows()) == 2)
    world.echo(client, accepted)
    # The end of both streams is no misfortune.
    client.shutdown(std.SHUT_WR)
    accepted.shutdown(std.SHUT_WR)
    assert (client.recv(1), accepted.recv(1)) == (b"", b"")


# --- §4.3 -------------------------------------------------------------------------------------------------------------
def test_close_is_data_fin(world: Any) -> None:
    # §4.3.1: "MPTCP will then close the MPTCP connection via Data FIN messages."
    client, accepted, _ = world.two_paths()
    client.sendall(b"last")
    client.close()
    assert world.read(accepted, 4) == b"last"
    assert accepted.recv(1) == b""
    accepted.close()
    sent = world.packets()
    data_fin = next(i for i, p in enumerate(sent) if p.has(Dss) and p.option(Dss).data_fin)
    world.until(lambda: any(p.segment.flags & FIN for p in world.packets()))
    assert not any(p.segment.flags & FIN for p in sent[:data_fin])


# --- §4.4 -------------------------------------------------------------------------------------------------------------
@pytest.mark.needs_support("set_subflow_option")
@pytest.mark.kernel_differs("IPV6_TCLASS is refused on MPTCP sockets", errno=errno.EOPNOTSUPP, family=6)
def test_options_apply_to_all_subflows_present_and_future(world: Any) -> None:
    # §4.4.1: "existing APIs therefore SHOULD apply to all subflows within one connection, as far as possible"
    client, accepted, _ = world.two_paths()
    level, option = (std.IPPROTO_IP, std.IP_TOS) if world.family == 4 else (std.IPPROTO_IPV6, std.IPV6_TCLASS)
    client.setsockopt(level, option, 0x48)
    before = len(world.wire)
    client.open_subflow(local=(world.client_addresses[2], 0))
    world.wait_active(client, 3)
    for number in [s.id for s in client.subflows()]:
        assert client.get_subflow_option(number, level, option) == 0x48
    world.echo(client, accepted)
    after = [p for p in world.wire[before:] if p.outgoing]
    assert {tos(p) for p in after} == {0x48}
    assert any(p.has(MpJoinSyn) for p in after)


@pytest.mark.only_on("user", "a subflow of the kernel's has the options of its own family only")
def test_options_act_on_subflows_of_both_families(world: Any) -> None:
    world.client_stack_is(config=ConnectionConfig(), server_path_manager=None)
    client = world.client()
    both = (world.client_addresses[0], world.other_family_client)
    client.add_addresses(both)
    client, accepted = world.connect(client)
    world.until(lambda: {s.local.host for s in client.subflows() if s.state.value == "active"} == set(both))
    level = std.IPPROTO_IP if world.family == 4 else std.IPPROTO_IPV6
    options = (std.IP_TOS, std.IP_TTL) if world.family == 4 else (std.IPV6_TCLASS, std.IPV6_UNICAST_HOPS)
    for option, value in zip(options, (0x48, 33), strict=True):
        client.setsockopt(level, option, value)
    client.set_scheduler("round-robin")
    before = len(world.wire)
    world.echo(client, accepted)
    marked = {(p.header.version, tos(p), p.header.hop_limit) for p in world.wire[before:] if p.outgoing}
    assert marked == {(4, 0x48, 33), (6, 0x48, 33)}


@pytest.mark.needs_support("set_subflow_option")
def test_no_delay_is_for_the_connection(world: Any) -> None:
    # §4.4.2: "It then SHOULD disable the Nagle algorithm for the MPTCP connection, i.e., all subflows."
    client, _, _ = world.two_paths()
    client.setsockopt(TCP, std.TCP_NODELAY, 1)
    assert {client.get_subflow_option(s.id, TCP, std.TCP_NODELAY) for s in client.subflows()} == {1}


@pytest.mark.parametrize("option", [std.SO_SNDBUF, std.SO_RCVBUF])
def test_small_buffers_mean_no_multipath(world: Any, option: int) -> None:
    # §4.4.3: "treat a small buffer size request as an implicit request not to use MPTCP"
    bound = mptcp.LegacyPolicy().min_buffer_bytes
    small, enough, enabled = (world.client(0) for _ in range(3))
    small.setsockopt(SOL, option, bound - 1)
    enough.setsockopt(SOL, option, bound)
    enabled.setsockopt(SOL, option, bound - 1)
    enabled.setsockopt(TCP, mptcp.TCP_MULTIPATH_ENABLE, 1)
    for client, expected in ((small, False), (enough, True), (enabled, True)):
        client, accepted = world.connect(client)
        assert client.is_multipath is expected
        world.echo(client, accepted, 30_000)
    assert "buffers" in small.fallback_reason


@pytest.mark.kernel_differs("urgent data is sent as any other")
def test_urgent_data_is_refused(world: Any) -> None:
    # §4.4.4: "its use is not recommended in general, and specifically not with MPTCP"
    client, accepted = world.pair()
    if world.name == "kernel":
        assert client.send(b"!", std.MSG_OOB) == 1
        assert accepted.recv(1) == b"!"
        return
    assert error_of(lambda: client.send(b"!", std.MSG_OOB)) == errno.EOPNOTSUPP


def test_nothing_but_the_first_subflow_where_nothing_was_asked_of_paths(world: Any) -> None:
    client, accepted = world.pair(0)
    world.echo(client, accepted)
    assert not world.packets(AddAddr)
    assert len(client.subflows()) == 1


def error_of(call: Any) -> int:
    with pytest.raises(OSError) as caught:
        call()
    assert len(str(caught.value)) > 8
    assert caught.value.errno is not None
    return caught.value.errno
