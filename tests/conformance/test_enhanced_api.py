"""draft-hesmans-mptcp-socket-03: subflows listed, opened, closed and configured, by methods and by the draft's structures."""

from __future__ import annotations

import ctypes
import errno
import shutil
import socket as std
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest

import mptcp
from mptcp.core.multipath.config import ConnectionConfig
from mptcp.core.wire.mptcp_options import MpJoinSyn, MpPrio, MpTcprst
from mptcp.core.wire.segment import FIN, RST, SYN
from mptcp.info import Endpoint
from mptcp.sockets import privileges, structures
from mptcp.sockets.structures import SubflowTuple, pack_close_sub_id, pack_sub_sockopt, unpack_sub_ids

TCP = std.IPPROTO_TCP
SO_SNDBUFFORCE = 32


def error_of(call: Any) -> int:
    with pytest.raises(OSError) as caught:
        call()
    assert len(str(caught.value)) > 8
    assert caught.value.errno is not None
    return caught.value.errno


def tuple_for(world: Any, local: str, remote: str, port: int = 8080, local_port: int = 0, **more: Any) -> SubflowTuple:
    return SubflowTuple(Endpoint.parse(local, local_port), Endpoint.parse(remote, port), **more)


def tos_option(world: Any) -> tuple[int, int]:
    return (std.IPPROTO_IP, std.IP_TOS) if world.family == 4 else (std.IPPROTO_IPV6, std.IPV6_TCLASS)


# --- §3.1 MPTCP_GET_SUB_IDS -------------------------------------------------------------------------------------------
def test_sub_ids(world: Any) -> None:
    client, _, number = world.two_paths()
    client.set_backup(number, True)
    octets = client.getsockopt(TCP, mptcp.MPTCP_GET_SUB_IDS, 42)
    assert octets == bytes((2, 0, 1, 0, number, 1))
    assert unpack_sub_ids(octets) == [(1, False), (number, True)]
    buffer = bytearray(42)  # as C passes it
    assert client.getsockopt(TCP, mptcp.MPTCP_GET_SUB_IDS, buffer) == octets
    assert buffer[:6] == octets


def test_sub_ids_may_be_empty(world: Any) -> None:
    # §3.1: "This call may return an empty array if the connection does not contain any subflow."
    client, _ = world.pair()
    client.close_subflow(1, how=mptcp.RST)
    assert client.getsockopt(TCP, mptcp.MPTCP_GET_SUB_IDS, 42) == bytes(2)


def test_sub_ids_need_room(world: Any) -> None:
    # §3.1: "The call may return the error "EINVAL" if the buffer passed by the application is too small"
    client, _, _ = world.two_paths()
    assert error_of(lambda: client.getsockopt(TCP, mptcp.MPTCP_GET_SUB_IDS, 5)) == errno.EINVAL
    assert len(client.getsockopt(TCP, mptcp.MPTCP_GET_SUB_IDS, 6)) == 6


def test_ids_fit_into_eight_bits_however_many_there_were(world: Any) -> None:
    client, _ = world.pair()
    local = (world.client_addresses[1], 0)
    events = client.events()
    seen = set()
    for _ in range(260):
        number = client.open_subflow(local=local)
        seen.add(number & 0xFF)
        assert (number & 0xFF) not in (0, 1)
        client.close_subflow(number, how=mptcp.RST)
        while events.get(30).kind is not mptcp.EventKind.SUBFLOW_CLOSED:
            pass
    assert len(seen) == 254 if world.name == "user" else len(seen) > 250


# --- §3.2 MPTCP_OPEN_SUB_TUPLE ----------------------------------------------------------------------------------------
def test_open_a_subflow_with_the_structure(world: Any) -> None:
    client, accepted = world.pair()
    wanted = tuple_for(world, world.client_addresses[1], world.server_addresses[1], local_port=12345, backup=True)
    buffer = bytearray(wanted.pack())
    result = client.getsockopt(TCP, mptcp.MPTCP_OPEN_SUB_TUPLE, buffer)
    # §3.2: "The "id" field is an output."
    assert result[0] == buffer[0] == 2
    world.wait_active(client, 2)
    join = world.packets(MpJoinSyn)[0]
    assert (join.source, join.destination) == (world.client_addresses[1], world.server_addresses[1])
    assert (join.source_port, join.destination_port) == (12345, 8080)
    assert join.option(MpJoinSyn).backup
    assert client.subflows()[1].backup
    world.echo(client, accepted)


def test_open_with_setsockopt(world: Any) -> None:
    client, _ = world.pair()
    wanted = tuple_for(world, world.client_addresses[1], world.server_addresses[0])
    client.setsockopt(TCP, mptcp.MPTCP_OPEN_SUB_TUPLE, wanted.pack())
    world.wait_active(client, 2)


def test_a_structure_without_if_idx_is_taken(world: Any) -> None:
    client, _ = world.pair()
    octets = tuple_for(world, world.client_addresses[1], world.server_addresses[0]).pack()
    size = 16 if world.family == 4 else 28
    client.getsockopt(TCP, mptcp.MPTCP_OPEN_SUB_TUPLE, octets[: 2 + 2 * size])
    world.wait_active(client, 2)


def test_a_wildcard_source_is_chosen(world: Any) -> None:
    # §3.2: "In this case, the kernel chooses the source address to be used for the new subflow."
    client, _ = world.pair()
    anything = "0.0.0.0" if world.family == 4 else "::"
    for expected in ({2}, {2, 3}, {2, 3, 4}):
        client.getsockopt(TCP, mptcp.MPTCP_OPEN_SUB_TUPLE, tuple_for(world, anything, world.server_addresses[0]).pack())
        world.wait_active(client, 1 + len(expected))
    # The addresses that were not in use come first; then one is used again, with another port.
    assert {s.local.host for s in client.subflows()[:3]} == set(world.client_addresses)
    assert client.subflows()[3].local.host in world.client_addresses


def test_if_idx_chooses_the_interface(world: Any) -> None:
    # §3.2: "If a single source address is used for multiple interfaces, the caller may choose the interface to be used"
    client, accepted = world.pair()
    third = world.client_addresses[2]  # of the first link
    world.answer_over(third, 1)
    client.getsockopt(
        TCP,
        mptcp.MPTCP_OPEN_SUB_TUPLE,
        tuple_for(world, third, world.server_addresses[1], interface=world.if_index(1)).pack(),
    )
    world.wait_active(client, 2)
    world.echo(client, accepted)
    assert {p.link for p in world.packets() if p.source == third} == {1}
    number = client.open_subflow((world.server_addresses[1], 8080), (world.client_addresses[0], 0))
    world.wait_active(client, 3)
    assert {p.link for p in world.packets() if p.source == world.client_addresses[0]} == {0}
    assert number == 3


@pytest.mark.parametrize(
    ("local", "remote", "port", "interface", "number"),
    [
        ("unknown", 0, 8080, 0, errno.EADDRNOTAVAIL),
        (0, "other", 8080, 0, errno.EINVAL),
        (1, 0, 0, 0, errno.EADDRNOTAVAIL),
        (1, 0, 8080, 9, errno.ENODEV),
        (1, 0, 8080, -1, errno.ENODEV),
    ],
)
def test_open_with_wrong_addresses(world: Any, local: Any, remote: Any, port: int, interface: int, number: int) -> None:
    # §3.2: "Errors returned by either "bind()" or "connect()" are returned if an error occurred during the process."
    client, accepted = world.pair()
    source = (
        ("192.0.2.9" if world.family == 4 else "2001:db8::9") if local == "unknown" else world.client_addresses[local]
    )
    target = world.other_family_server if remote == "other" else world.server_addresses[remote]
    octets = tuple_for(world, source, target, port, interface=interface).pack()
    assert error_of(lambda: client.getsockopt(TCP, mptcp.MPTCP_OPEN_SUB_TUPLE, octets)) == number
    assert len(client.subflows()) == 1
    world.echo(client, accepted)


def test_open_with_malformed_structures(world: Any) -> None:
    client, accepted = world.pair()
    good = tuple_for(world, world.client_addresses[1], world.server_addresses[0]).pack()
    for octets, number in (
        (b"", errno.EINVAL),
        (good[:1], errno.EINVAL),
        (good[:17], errno.EINVAL),
        (good[:30], errno.EINVAL),
        (good[:2] + b"\1\0" + good[4:], errno.EAFNOSUPPORT),
    ):
        assert error_of(lambda octets=octets: client.getsockopt(TCP, mptcp.MPTCP_OPEN_SUB_TUPLE, octets)) == number
    assert error_of(lambda: client.getsockopt(TCP, mptcp.MPTCP_OPEN_SUB_TUPLE, 64)) == errno.EINVAL
    assert error_of(lambda: client.setsockopt(TCP, mptcp.MPTCP_OPEN_SUB_TUPLE, 64)) == errno.EINVAL
    world.echo(client, accepted)


def test_open_what_is_there_already(world: Any) -> None:
    client, _ = world.pair()
    port = client.getsockname()[1]
    octets = tuple_for(world, world.client_addresses[0], world.server_addresses[0], local_port=port).pack()
    assert error_of(lambda: client.getsockopt(TCP, mptcp.MPTCP_OPEN_SUB_TUPLE, octets)) == errno.EADDRINUSE


def test_open_too_many(world: Any) -> None:
    client, accepted = world.pair()
    for _ in range(7):
        client.open_subflow(local=(world.client_addresses[1], 0))
    assert error_of(lambda: client.open_subflow(local=(world.client_addresses[1], 0))) == errno.ENOBUFS
    world.echo(client, accepted)


def test_open_before_the_peer_has_shown_that_options_pass(world: Any) -> None:
    world.listen()
    client = world.client()
    assert error_of(lambda: client.open_subflow(local=(world.client_addresses[1], 0))) == errno.ENOTCONN
    client.connect((world.server_addresses[0], 8080))
    assert error_of(lambda: client.open_subflow(local=(world.client_addresses[1], 0))) == errno.EAGAIN


def test_privileged_ports(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # §6: "Multipath TCP should restrict the ability of the users to create subflows on privileged ports through the
    # "MPTCP_OPEN_SUB_TUPLE""
    client, _ = world.pair()
    octets = tuple_for(world, world.client_addresses[1], world.server_addresses[0], local_port=1000).pack()
    monkeypatch.setattr(privileges, "first_unprivileged_port", lambda: 1024)
    monkeypatch.setattr(privileges, "has_capability", lambda number: False)
    assert error_of(lambda: client.getsockopt(TCP, mptcp.MPTCP_OPEN_SUB_TUPLE, octets)) == errno.EACCES
    if world.name == "user":  # the kernel looks for itself
        assert error_of(lambda: world.client().bind((world.client_addresses[0], 1000))) == errno.EACCES
    monkeypatch.setattr(privileges, "has_capability", lambda number: number == privileges.CAP_NET_BIND_SERVICE)
    client.getsockopt(TCP, mptcp.MPTCP_OPEN_SUB_TUPLE, octets)
    world.wait_active(client, 2)
    assert client.subflows()[1].local.port == 1000


# --- §3.3 MPTCP_CLOSE_SUB_ID ------------------------------------------------------------------------------------------
def test_close_by_fin(world: Any) -> None:
    client, accepted, number = world.two_paths()
    client.getsockopt(TCP, mptcp.MPTCP_CLOSE_SUB_ID, pack_close_sub_id(number))
    world.until(lambda: len(accepted.subflows()) == 1 and len(client.subflows()) == 1)
    sent = [p for p in world.packets() if p.source == world.client_addresses[1]]
    assert any(p.segment.flags & FIN for p in sent)
    assert not any(p.segment.flags & RST for p in sent)
    world.echo(client, accepted)


def test_close_by_rst(world: Any) -> None:
    # §3.3: "In addition to this set, "RST" can be used to indicates that the subflow should be terminated by sending an
    # "RST"."
    client, accepted, number = world.two_paths()
    client.setsockopt(TCP, mptcp.MPTCP_CLOSE_SUB_ID, pack_close_sub_id(number, mptcp.RST))
    world.until(lambda: len(accepted.subflows()) == 1)
    last = [p for p in world.packets() if p.source == world.client_addresses[1]][-1]
    assert last.segment.flags & RST
    assert last.has(MpTcprst)
    assert len(client.subflows()) == 1
    world.echo(client, accepted)


@pytest.mark.kernel_differs("Linux closes a subflow for both directions only", errno=errno.EOPNOTSUPP)
def test_close_for_writing(world: Any) -> None:
    client, accepted, number = world.two_paths()
    client.close_subflow(number, how=std.SHUT_WR)
    world.echo(client, accepted)
    sent = [p for p in world.packets() if p.source == world.client_addresses[1]]
    assert any(p.segment.flags & FIN for p in sent)
    assert not any(p.segment.length for p in sent[next(i for i, p in enumerate(sent) if p.segment.flags & FIN) + 1 :])
    world.until(lambda: len(client.subflows()) == 1)


@pytest.mark.kernel_differs("Linux closes a subflow for both directions only", errno=errno.EOPNOTSUPP)
def test_close_for_reading_asks_the_peer_to_send_elsewhere(world: Any) -> None:
    client, accepted, number = world.two_paths()
    client.close_subflow(number, how=std.SHUT_RD)
    world.until(lambda: accepted.subflows()[1].backup)
    prio = world.packets(MpPrio)[-1]
    assert prio.option(MpPrio).backup
    assert prio.source == world.client_addresses[1]
    before = len(world.wire)
    world.echo(client, accepted)
    came = [p for p in world.wire[before:] if not p.outgoing and p.segment.length]
    assert came
    assert {p.destination for p in came} == {world.client_addresses[0]}
    assert not client.subflows()[1].backup  # our own sending is not affected


def test_close_of_what_is_not_there(world: Any) -> None:
    # §3.3: "If the "id" is invalid, "EINVAL" is returned."
    client, accepted, number = world.two_paths()
    for octets in (pack_close_sub_id(99), pack_close_sub_id(number, 7), b"", pack_close_sub_id(number)[:7]):
        assert error_of(lambda octets=octets: client.setsockopt(TCP, mptcp.MPTCP_CLOSE_SUB_ID, octets)) == errno.EINVAL
    assert error_of(lambda: client.close_subflow(99)) == errno.EINVAL
    assert error_of(lambda: client.close_subflow(number, how=9)) == errno.EINVAL
    assert len(client.subflows()) == 2
    world.echo(client, accepted)


def test_break_before_make(world: Any) -> None:
    # §2: "Now that the WiFi subflow is active, the application can use "MPTCP_CLOSE_SUB_ID" to close the cellular"
    client, accepted, number = world.two_paths()
    client.sendall(bytes(200_000))
    client.close_subflow(1)
    assert len(world.read(accepted, 200_000)) == 200_000
    world.echo(client, accepted)
    assert [s.id for s in client.subflows() if s.state.value == "active"] == [number]


# --- §3.4 MPTCP_GET_SUB_TUPLE -----------------------------------------------------------------------------------------
def test_sub_tuple(world: Any) -> None:
    client, _, number = world.two_paths()
    buffer = bytearray(100)
    buffer[0] = number
    octets = client.getsockopt(TCP, mptcp.MPTCP_GET_SUB_TUPLE, buffer)
    found = SubflowTuple.unpack(octets)
    info = client.subflows()[1]
    assert (found.local, found.remote, found.id, found.backup) == (info.local, info.remote, number, False)
    assert found.interface == world.if_index(1)
    assert buffer[: len(octets)] == octets
    family, port = struct.unpack_from("=H", octets, 2)[0], struct.unpack_from("!H", octets, 4)[0]
    assert (family, port) == (world.kind, info.local.port)


def test_sub_tuple_errors(world: Any) -> None:
    client, _ = world.pair()
    assert error_of(lambda: client.getsockopt(TCP, mptcp.MPTCP_GET_SUB_TUPLE, b"\x63" + bytes(99))) == errno.EINVAL
    assert error_of(lambda: client.getsockopt(TCP, mptcp.MPTCP_GET_SUB_TUPLE, b"\1" + bytes(32))) == errno.EINVAL
    assert error_of(lambda: client.getsockopt(TCP, mptcp.MPTCP_GET_SUB_TUPLE, 100)) == errno.EINVAL
    assert error_of(lambda: client.setsockopt(TCP, mptcp.MPTCP_GET_SUB_TUPLE, bytes(100))) == errno.ENOPROTOOPT


# --- §3.5 MPTCP_SUB_GETSOCKOPT, MPTCP_SUB_SETSOCKOPT ------------------------------------------------------------------
def sub_set(sock: Any, number: int, level: int, name: int, value: bytes) -> None:
    content = ctypes.create_string_buffer(value, len(value))
    pointer = ctypes.addressof(content)
    sock.setsockopt(TCP, mptcp.MPTCP_SUB_SETSOCKOPT, pack_sub_sockopt(number, level, name, pointer, len(value)))


def sub_get(sock: Any, number: int, level: int, name: int, room: int = 4) -> bytes:
    content = ctypes.create_string_buffer(max(room, 1))
    length = ctypes.c_uint(room)
    structure = pack_sub_sockopt(number, level, name, ctypes.addressof(content), ctypes.addressof(length))
    sock.getsockopt(TCP, mptcp.MPTCP_SUB_GETSOCKOPT, structure)
    return content.raw[: length.value]


@pytest.mark.needs_support("set_subflow_option")
def test_an_option_of_one_subflow(world: Any) -> None:
    # §3.5, figure 9: IP_TOS of one subflow
    client, accepted, number = world.two_paths()
    level, name = tos_option(world)
    sub_set(client, number, level, name, (0x28).to_bytes(4, "little"))
    assert sub_get(client, number, level, name) == (0x28).to_bytes(4, "little")
    assert sub_get(client, 1, level, name) == bytes(4)
    assert sub_get(client, number, level, name, 2) == b"\x28\0"
    before = len(world.wire)
    for _ in range(20):
        world.echo(client, accepted, 200_000)
        if {p.source for p in world.wire[before:] if p.outgoing} >= set(world.client_addresses[:2]):
            break
    marked = {(p.source, p.header.traffic_class & 0xFC) for p in world.wire[before:] if p.outgoing}
    assert marked == {(world.client_addresses[0], 0), (world.client_addresses[1], 0x28)}


@pytest.mark.needs_support("set_subflow_option")
@pytest.mark.kernel_differs("IPV6_TCLASS is refused on MPTCP sockets", errno=errno.EOPNOTSUPP, family=6)
def test_it_holds_until_the_connection_is_given_the_same(world: Any) -> None:
    client, _, number = world.two_paths()
    level, name = tos_option(world)
    client.set_subflow_option(number, level, name, 0x28)
    client.setsockopt(TCP, std.TCP_NODELAY, 1)  # another one does not disturb it
    assert client.get_subflow_option(number, level, name) == 0x28
    client.setsockopt(level, name, 0x10)
    assert [client.get_subflow_option(i, level, name) for i in (1, number)] == [0x10, 0x10]


@pytest.mark.needs_support("set_subflow_option")
def test_an_option_of_ipv6_for_a_subflow_of_ipv4(world: Any) -> None:
    client, accepted, number = world.two_paths()
    tclass = std.IPPROTO_IPV6, std.IPV6_TCLASS
    if world.family == 6:
        client.set_subflow_option(number, *tclass, 0x28)
        assert client.get_subflow_option(number, *tclass) == 0x28
        return
    assert error_of(lambda: client.set_subflow_option(number, *tclass, 0x28)) == errno.ENOPROTOOPT
    assert error_of(lambda: client.get_subflow_option(number, *tclass)) == errno.ENOPROTOOPT
    world.echo(client, accepted)


@pytest.mark.needs_support("set_subflow_option")
def test_tcp_info_of_one_subflow(world: Any) -> None:
    client, accepted, number = world.two_paths()
    world.echo(client, accepted)
    infos = {s.id: s for s in client.subflows()}
    for identity in (1, number):
        info = sub_get(client, identity, TCP, std.TCP_INFO, 232)
        assert len(info) == 232
        assert struct.unpack_from("=I", info, 16)[0] == infos[identity].mss_bytes  # tcpi_snd_mss
        assert sub_get(client, identity, TCP, std.TCP_MAXSEG) == infos[identity].mss_bytes.to_bytes(4, "little")


@pytest.mark.needs_support("set_subflow_option")
def test_congestion_control_of_one_subflow(world: Any) -> None:
    client, accepted, number = world.two_paths()
    before = client.get_subflow_option(1, TCP, std.TCP_CONGESTION)
    other = "reno" if not before.startswith(b"reno") else "cubic"
    client.set_subflow_option(number, TCP, std.TCP_CONGESTION, other.encode())
    assert client.get_subflow_option(number, TCP, std.TCP_CONGESTION).rstrip(b"\0") == other.encode()
    assert client.get_subflow_option(1, TCP, std.TCP_CONGESTION) == before
    world.until(lambda: {s.id: s.congestion_control for s in client.subflows()}[number].endswith(other))
    world.echo(client, accepted)


@pytest.mark.needs_support("set_subflow_option")
def test_sub_sockopt_errors(world: Any) -> None:
    client, accepted, number = world.two_paths()
    level, name = tos_option(world)
    content = ctypes.create_string_buffer(b"\1\0\0\0", 4)
    at = ctypes.addressof(content)
    for structure, expected in (
        (b"", errno.EINVAL),
        (pack_sub_sockopt(number, level, name, at, 4)[:31], errno.EINVAL),
        (pack_sub_sockopt(99, level, name, at, 4), errno.EINVAL),
        (pack_sub_sockopt(number, level, name, 16, 4), errno.EFAULT),
        (pack_sub_sockopt(number, level, name, at, 1 << 20), errno.EINVAL),
        (pack_sub_sockopt(number, level, 9999, at, 4), errno.ENOPROTOOPT),
        (pack_sub_sockopt(number, std.SOL_SOCKET, std.SO_SNDBUF, at, 4), errno.ENOPROTOOPT),
    ):
        call = lambda structure=structure: client.setsockopt(TCP, mptcp.MPTCP_SUB_SETSOCKOPT, structure)  # noqa: E731
        assert error_of(call) == expected
    if world.name == "user":  # the kernel takes an octet for IP_TOS
        short = pack_sub_sockopt(number, level, name, at, 3)
        assert error_of(lambda: client.setsockopt(TCP, mptcp.MPTCP_SUB_SETSOCKOPT, short)) == errno.EINVAL
    assert error_of(lambda: sub_get(client, 99, level, name)) == errno.EINVAL
    assert error_of(lambda: sub_get(client, number, level, 9999)) == errno.ENOPROTOOPT
    structure = pack_sub_sockopt(number, level, name, at, 16)
    assert error_of(lambda: client.getsockopt(TCP, mptcp.MPTCP_SUB_GETSOCKOPT, structure)) == errno.EFAULT
    assert error_of(lambda: client.getsockopt(TCP, mptcp.MPTCP_SUB_SETSOCKOPT, structure)) == errno.ENOPROTOOPT
    assert error_of(lambda: client.setsockopt(TCP, mptcp.MPTCP_SUB_GETSOCKOPT, structure)) == errno.ENOPROTOOPT
    world.echo(client, accepted)


@pytest.mark.needs_support("set_subflow_option")
def test_privileged_options(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # §6: "the "MPTCP_SUB_SETSOCKOPT" socket option should not enable an unprivileged user to retrieve or modify a socket
    # option on a subflow if he is not allowed to perform such actions on a regular TCP connection"
    client, _, number = world.two_paths()
    monkeypatch.setattr(privileges, "has_capability", lambda number: False)
    for call in (
        lambda: client.set_subflow_option(number, std.SOL_SOCKET, SO_SNDBUFFORCE, 100_000),
        lambda: client.get_subflow_option(number, std.SOL_SOCKET, SO_SNDBUFFORCE),
        lambda: client.setsockopt(std.SOL_SOCKET, SO_SNDBUFFORCE, 100_000),
    )[: 3 if world.name == "user" else 2]:  # of its own sockets the kernel looks for itself
        assert error_of(call) == errno.EPERM
    monkeypatch.setattr(privileges, "has_capability", lambda number: number == privileges.CAP_NET_ADMIN)
    client.setsockopt(std.SOL_SOCKET, SO_SNDBUFFORCE, 100_000)
    # socket(7): "The kernel doubles this value"
    assert client.getsockopt(std.SOL_SOCKET, std.SO_SNDBUF) == (100_000 if world.name == "user" else 200_000)


# --- after fallback ---------------------------------------------------------------------------------------------------
def test_after_fallback(world: Any) -> None:
    # §3: "Otherwise (e.g. after a fallback), they return an error and set errno to "EOPNOTSUPP" is returned."
    world.refuse_multipath()
    client, accepted = world.pair()
    level, name = tos_option(world)
    structure = tuple_for(world, world.client_addresses[1], world.server_addresses[0]).pack()
    for call in (
        lambda: client.getsockopt(TCP, mptcp.MPTCP_GET_SUB_IDS, 64),
        lambda: client.getsockopt(TCP, mptcp.MPTCP_GET_SUB_TUPLE, b"\1" + bytes(99)),
        lambda: client.getsockopt(TCP, mptcp.MPTCP_OPEN_SUB_TUPLE, structure),
        lambda: client.setsockopt(TCP, mptcp.MPTCP_CLOSE_SUB_ID, pack_close_sub_id(1)),
        lambda: sub_get(client, 1, level, name),
        lambda: sub_set(client, 1, level, name, bytes(4)),
        client.open_subflow,
        lambda: client.close_subflow(1),
        lambda: client.set_backup(1, True),
        lambda: client.set_subflow_option(1, level, name, 0),
    ):
        assert error_of(call) == errno.EOPNOTSUPP
    world.echo(client, accepted)
    for option in (mptcp.MPTCP_GET_SUB_IDS, mptcp.MPTCP_GET_SUB_TUPLE):
        assert error_of(lambda option=option: world.client().getsockopt(TCP, option, bytes(64))) == errno.ENOTCONN


# --- §3.6 Segment Routing ---------------------------------------------------------------------------------------------
SEGMENTS = ("2001:db8:2222::1", "2001:db8:2222::2")


@pytest.fixture
def routed(world6: Any) -> Any:
    """A world whose server's links are routers that visit the segments of a packet before they deliver it."""
    world6.visited = []

    def visit(octets: bytearray) -> None:
        while octets[6] == 43 and octets[40 + 3]:
            left = octets[40 + 3] = octets[40 + 3] - 1
            world6.visited.append(std.inet_ntop(std.AF_INET6, bytes(octets[24:40])))
            octets[24:40] = octets[48 + 16 * left : 64 + 16 * left]

    class Router(world6.__class__.link_base):  # type: ignore[name-defined,misc]
        def receive(self, limit: int = 64) -> Any:
            found = []
            for data, gso_size, checksum_valid in self.inner.receive(limit):
                octets = bytearray(data)
                visit(octets)
                found.append((memoryview(octets), gso_size, checksum_valid))
            return found

    world6.wrap_server_link = lambda link: Router(link, 0, [])
    return world6


@pytest.mark.only_on(
    "user", "its world's links are routers; of the kernel's stack tests/kernel/test_segment_routing.py tells"
)
def test_segment_routing_puts_a_header_on_every_packet_of_that_subflow(routed: Any) -> None:
    client, accepted = routed.pair()
    srh = structures.pack_segment_routing(SEGMENTS)
    # Draft figure 11: hdrlen, type, segments_left, first_segment, and the place of the destination left zero.
    assert srh[:8] == bytes((0, 6, 4, 2, 2, 0, 0, 0))
    assert srh[8:24] == bytes(16)
    memory = ctypes.create_string_buffer(srh, len(srh))
    wanted = tuple_for(
        routed, routed.client_addresses[1], routed.server_addresses[1], ipv6_srh=ctypes.addressof(memory)
    )
    assert len(wanted.pack()) == 16 + 2 * 28  # §3.6: sizeof(struct mptcp_sub_tuple) + 2 * sizeof(struct sockaddr_in6)
    client.getsockopt(TCP, mptcp.MPTCP_OPEN_SUB_TUPLE, wanted.pack())
    routed.wait_active(client, 2)
    client.close_subflow(1, how=std.SHUT_WR)
    routed.echo(client, accepted)
    mine = [p for p in routed.packets() if p.source == routed.client_addresses[1]]
    assert mine
    for p in mine:
        # RFC 8754 §4.1: "The DA of the packet is set with the value of the first segment."
        assert p.header.destination == Endpoint.parse(SEGMENTS[0]).address
        assert p.header.segments == tuple(Endpoint.parse(s).address for s in (*SEGMENTS, routed.server_addresses[1]))
        assert p.header.segments_left == 2
    assert all(not p.header.segments for p in routed.packets() if p.source == routed.client_addresses[0])
    assert set(routed.visited) == set(SEGMENTS)
    # The header takes 56 octets of every packet: the segments are that much smaller.
    sizes = {s.id: s.mss_bytes for s in client.subflows()}
    syn = next(p for p in mine if p.segment.flags & SYN)
    assert syn.segment.options.mss == 1500 - 60 - 56
    if 1 in sizes:
        assert sizes[2] == sizes[1] - 56


@pytest.mark.only_on(
    "user", "its world's links are routers; of the kernel's stack tests/kernel/test_segment_routing.py tells"
)
def test_segments_by_name(routed: Any) -> None:
    client, accepted = routed.pair()
    number = client.open_subflow(
        (routed.server_addresses[1], 8080), (routed.client_addresses[1], 0), segments=SEGMENTS[:1]
    )
    routed.wait_active(client, 2)
    assert {s.id: s.mss_bytes for s in client.subflows()}[number] == client.subflows()[0].mss_bytes - 40
    client.close_subflow(1, how=std.SHUT_WR)
    routed.echo(client, accepted, 500_000)
    assert set(routed.visited) == {SEGMENTS[0]}


@pytest.mark.only_on(
    "user", "its world's links are routers; of the kernel's stack tests/kernel/test_segment_routing.py tells"
)
def test_segment_routing_errors(routed: Any) -> None:
    client, accepted = routed.pair()
    local, remote = routed.client_addresses[1], routed.server_addresses[1]
    good = structures.pack_segment_routing(SEGMENTS)
    for octets in (
        b"\0\6\3" + good[3:],  # another type
        b"\0\5" + good[2:],  # not a whole number of segments
        good[:3] + b"\1" + good[4:],  # under way already
        good[:4] + b"\1" + good[5:],
    ):
        memory = ctypes.create_string_buffer(octets, len(octets))
        wanted = tuple_for(routed, local, remote, ipv6_srh=ctypes.addressof(memory)).pack()
        call = lambda wanted=wanted: client.getsockopt(TCP, mptcp.MPTCP_OPEN_SUB_TUPLE, wanted)  # noqa: E731
        assert error_of(call) == errno.EINVAL
    bad = tuple_for(routed, local, remote, ipv6_srh=8).pack()
    assert error_of(lambda: client.getsockopt(TCP, mptcp.MPTCP_OPEN_SUB_TUPLE, bad)) == errno.EFAULT
    assert error_of(lambda: client.open_subflow(local=(local, 0), segments=["10.0.0.1"])) == errno.EINVAL
    assert error_of(lambda: client.open_subflow(local=(local, 0), segments=["x"])) == errno.EINVAL
    assert error_of(lambda: client.open_subflow(local=(local, 0), segments=[SEGMENTS[0]] * 17)) == errno.EINVAL
    routed.echo(client, accepted)


# --- the structures as a C compiler makes them ------------------------------------------------------------------------
C_SOURCE = r"""
#include <stdio.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <netinet/in.h>
struct mptcp_sub_status { uint8_t id; uint16_t low_prio:1; };
struct mptcp_sub_ids { uint8_t sub_count; struct mptcp_sub_status sub_status[]; };
struct mptcp_sub_tuple { uint8_t id; uint8_t prio; uint8_t addrs[0]; int if_idx; };
struct mptcp_sub_tuple_sr { uint8_t id; uint8_t prio; uint8_t addrs[0]; int if_idx; void *ipv6_srh; };
struct mptcp_close_sub_id { uint8_t id; int how; };
struct mptcp_sub_getsockopt { uint8_t id; int level; int optname; char *optval; unsigned int *optlen; };
struct mptcp_sub_setsockopt { uint8_t id; int level; int optname; char *optval; unsigned int optlen; };
static void show(const void *p, size_t n) {
    for (size_t i = 0; i < n; i++) printf("%02x", ((const unsigned char *)p)[i]);
    printf("\n");
}
int main(void) {
    unsigned char room[16]; memset(room, 0, sizeof room);
    struct mptcp_sub_ids *ids = (void *)room;
    ids->sub_count = 2; ids->sub_status[0].id = 1; ids->sub_status[1].id = 7; ids->sub_status[1].low_prio = 1;
    show(room, sizeof *ids + 2 * sizeof(struct mptcp_sub_status));
    struct mptcp_close_sub_id closing; memset(&closing, 0, sizeof closing); closing.id = 3; closing.how = 2;
    show(&closing, sizeof closing);
    struct mptcp_sub_setsockopt set; memset(&set, 0, sizeof set);
    set.id = 3; set.level = 6; set.optname = 1; set.optval = (char *)0x1122334455667788; set.optlen = 4;
    show(&set, sizeof set);
    struct sockaddr_in in; memset(&in, 0, sizeof in);
    in.sin_family = AF_INET; in.sin_port = htons(12345); in.sin_addr.s_addr = htonl(0x0a000001);
    show(&in, sizeof in);
    struct sockaddr_in6 in6; memset(&in6, 0, sizeof in6);
    in6.sin6_family = AF_INET6; in6.sin6_port = htons(12345); in6.sin6_addr.s6_addr[0] = 0xfd; in6.sin6_addr.s6_addr[15] = 1;
    show(&in6, sizeof in6);
    printf("%zu %zu %zu %zu %zu\n", offsetof(struct mptcp_sub_tuple, addrs), sizeof(struct mptcp_sub_tuple),
           sizeof(struct mptcp_sub_tuple_sr), sizeof(struct mptcp_sub_getsockopt), sizeof in6);
    return 0;
}
"""


def test_structures_are_what_a_c_compiler_makes(tmp_path: Path) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    (tmp_path / "layout.c").write_text(C_SOURCE)
    subprocess.run([compiler, "-o", tmp_path / "layout", tmp_path / "layout.c"], check=True, capture_output=True)
    lines = subprocess.run([tmp_path / "layout"], check=True, capture_output=True, text=True).stdout.split("\n")
    four, six = Endpoint.parse("10.0.0.1", 12345), Endpoint.parse("fd00::1", 12345)
    assert [bytes.fromhex(line) for line in lines[:5]] == [
        structures.pack_sub_ids([(1, False), (7, True)]),
        pack_close_sub_id(3, std.SHUT_RDWR),
        pack_sub_sockopt(3, 6, 1, 0x1122334455667788, 4),
        structures.pack_sockaddr(four),
        structures.pack_sockaddr(six),
    ]
    addrs, size, size_sr, size_get, _ = map(int, lines[5].split())
    assert addrs == 2
    assert len(SubflowTuple(four, four).pack()) == size + 2 * 16
    assert len(SubflowTuple(six, six).pack()) == size + 2 * 28
    assert len(SubflowTuple(six, six).pack(True)) == size_sr + 2 * 28
    assert len(pack_sub_sockopt(1, 2, 3, 4, 5)) == size_get


def test_a_stack_without_multipath_has_no_subflow_options(world: Any) -> None:
    world.client_stack_is(config=ConnectionConfig(multipath=False))
    client, _ = world.pair(0)
    assert error_of(lambda: client.getsockopt(TCP, mptcp.MPTCP_GET_SUB_IDS, 64)) == errno.EOPNOTSUPP
