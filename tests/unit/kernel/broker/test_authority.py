"""What a rule lets a client do: addresses, interfaces, ports, options, numbers."""

import dataclasses
import errno
import socket
import sys
from typing import Any

import pytest

from mptcp.info import Endpoint
from mptcp.kernel.broker import authority, options
from mptcp.kernel.broker.authority import Refused, check_request, normalized
from mptcp.kernel.broker.options import OPTIONS, ORDINARY, check_value
from mptcp.kernel.broker.policy import Peer, Policy, Rule
from mptcp.kernel.broker.proof import Proof
from mptcp.kernel.broker.protocol import Operation, Request

from .conftest import HOST

PEER = Peer(1, 1000, frozenset({1000}))
REMOTE = Endpoint.parse("192.0.2.1", 443)


class Connection(Proof):
    """From 10.0.0.1, with as many subflows as a test wants."""

    count = 1

    def subflows(self) -> list[tuple[Endpoint, Endpoint]]:
        return [(Endpoint.parse("127.0.0.1", 1000 + i), REMOTE) for i in range(self.count)]


def rule(text: str = "") -> Rule:
    return Policy.parse("[[rule]]\n" + text).rules[0]


def proof(count: int = 1, uid: int = 1000) -> Proof:
    connection = Connection(-1, 1, 1, uid, False)
    Connection.count = count
    return connection


def check(rule_: Rule, request: Request, count: int = 1) -> None:
    check_request(rule_, normalized(request), proof(count), lambda: HOST)


def create(local: str, port: int = 0, remote: Endpoint = REMOTE, interface: int = 0) -> Request:
    return Request(Operation.CREATE_SUBFLOW, 1, Endpoint.parse(local, port), remote, 1, interface=interface)


def announce(local: str, port: int = 0, interface: int = 0) -> Request:
    return Request(Operation.ANNOUNCE, 1, Endpoint.parse(local, port), address_id=1, interface=interface)


@pytest.mark.parametrize("make", [create, announce])
@pytest.mark.parametrize(
    ("text", "address", "reason"),
    [
        ("", "10.0.0.1", ""),
        ("", "fd00::1", ""),
        ("", "::ffff:10.0.0.1", ""),
        ("", "127.0.0.1", ""),  # where the connection is
        ("", "127.0.0.2", "127.0.0.2 is not an address of this host"),
        ("", "8.8.8.8", "not an address of this host"),
        ("", "fd00::2", "fd00::2 is not an address of this host"),
        ("addresses = ['10.0.0.0/24']", "10.0.0.1", ""),
        ("addresses = ['10.0.0.0/24']", "10.0.0.77", ""),  # the kernel says whether it is ours
        ("addresses = ['10.0.0.0/24']", "10.9.0.1", "not in `addresses`"),
        ("addresses = ['10.0.0.0/24']", "::ffff:10.9.0.1", "10.9.0.1 is not in `addresses`"),
        ("addresses = ['::/0']", "10.0.0.1", "not in `addresses`"),
        ("addresses = ['any']", "8.8.8.8", ""),
        ("addresses = []", "10.0.0.1", "not in `addresses`"),
        ("interfaces = ['wlan*']", "10.9.0.1", ""),
        ("interfaces = ['wlan*']", "fd00::1", ""),
        ("interfaces = ['wlan*']", "10.0.0.1", "the interface of 10.0.0.1 \\(eth0\\) is not in `interfaces`"),
        ("interfaces = ['wlan*']\naddresses = ['any']", "8.8.8.8", "8.8.8.8, of no interface"),
        ("interfaces = []", "10.0.0.1", "not in `interfaces`"),
    ],
)
def test_local_addresses(make: Any, text: str, address: str, reason: str) -> None:
    if not reason:
        check(rule(text), make(address))
        return
    with pytest.raises(Refused, match=reason) as caught:
        check(rule(text), make(address))
    assert caught.value.errno == errno.EPERM


def test_an_unspecified_source_is_all_addresses() -> None:
    check(rule(), create("0.0.0.0"))
    check(rule("addresses = ['any']"), create("::"))
    for text in ("addresses = ['10.0.0.0/8']", "interfaces = ['eth0']"):
        with pytest.raises(Refused, match="an address has to be named"):
            check(rule(text), create("0.0.0.0"))
    with pytest.raises(Refused, match="no address that a peer could reach") as caught:
        check(rule("addresses = ['any']"), announce("0.0.0.0"))
    assert caught.value.errno == errno.EINVAL


@pytest.mark.parametrize("make", [create, announce])
def test_privileged_ports_are_not_the_brokers_to_give(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(authority, "_first_unprivileged_port", lambda: 1024)
    check(rule(), make("10.0.0.1", 1024))
    with pytest.raises(Refused, match="port 1023 is privileged"):
        check(rule(), make("10.0.0.1", 1023))


def test_the_first_unprivileged_port_is_the_systems() -> None:
    assert 0 <= authority._first_unprivileged_port() <= 65535


@pytest.mark.parametrize("make", [create, announce])
def test_interfaces_by_index(make: Any) -> None:
    index, name = socket.if_nameindex()[0]
    check(rule(f"interfaces = ['{name}', 'eth0']"), make("10.0.0.1", interface=index))
    with pytest.raises(Refused, match=f"the interface {name} is not in"):
        check(rule("interfaces = ['eth0', 'x*']"), make("10.0.0.1", interface=index))
    for unknown in (1 << 30, (1 << 31) - 1):
        with pytest.raises(Refused, match="no interface with index") as caught:
            check(rule(), make("10.0.0.1", interface=unknown))
        assert caught.value.errno == errno.ENODEV


def test_remotes() -> None:
    only = rule("remotes = ['192.0.2.0/24', '2001:db8::/32']")
    check(only, create("10.0.0.1"))
    check(only, create("fd00::1", remote=Endpoint.parse("2001:db8::1", 80)))
    for remote in ("192.0.3.1", "2001:db9::1"):
        with pytest.raises(Refused, match="not in `remotes`"):
            check(only, create("10.0.0.1", remote=Endpoint.parse(remote, 80)))
    for remote, port in (("0.0.0.0", 80), ("::", 80), ("224.0.0.1", 80), ("ff02::1", 80), ("192.0.2.1", 0)):
        with pytest.raises(Refused, match="no address and port of a peer") as caught:
            check(rule(), create("10.0.0.1", remote=Endpoint.parse(remote, port)))
        assert caught.value.errno == errno.EINVAL


def test_the_number_of_subflows() -> None:
    check(rule("max_subflows = 3"), create("10.0.0.1"), count=2)
    with pytest.raises(Refused, match="has 3 subflows already"):
        check(rule("max_subflows = 3"), create("10.0.0.1"), count=3)


def test_sockets_of_others() -> None:
    authority.check_owner(rule(), proof(uid=1000), PEER)
    authority.check_owner(rule("sockets_of_others = true"), proof(uid=0), PEER)
    for uid in (0, 1001):
        with pytest.raises(Refused, match=f"made by uid {uid}"):
            authority.check_owner(rule(), proof(uid=uid), PEER)
    with pytest.raises(Refused):
        authority.check_owner(rule(), proof(uid=1000), dataclasses.replace(PEER, uid=0))


def test_operations() -> None:
    only = rule("allow = ['events', 'remove']")
    for operation in (Operation.EVENTS, Operation.WATCH, Operation.UNWATCH, Operation.REMOVE):
        authority.check_operation(only, operation)
    for operation in set(Operation) - {*only.allow, Operation.WATCH, Operation.UNWATCH, Operation.SUPPORTS}:
        with pytest.raises(Refused, match=f"{operation.label} is not in `allow`"):
            authority.check_operation(only, operation)


# options of one subflow


def set_option(name: str, value: bytes) -> Request:
    level, option = OPTIONS.get(name, (6, 4711))
    local = Endpoint.parse("127.0.0.1", 1000)
    return Request(Operation.SET_SUBFLOW_OPTION, 1, local, REMOTE, level=level, name=option, value=value)


@pytest.mark.parametrize("name", sorted(OPTIONS))
def test_what_an_ordinary_user_could_set_on_tcp_is_allowed_and_the_rest_is_not(name: str) -> None:
    value = b"reno\0" if name == "TCP_CONGESTION" else bytes(4)
    check(rule("options = ['ordinary', 'SO_MARK']"), set_option("SO_MARK", value))
    if name in ORDINARY:
        check(rule(), set_option(name, value))
    else:
        with pytest.raises(Refused, match=f"the option {name} is not in `options`"):
            check(rule(), set_option(name, value))
    with pytest.raises(Refused, match=name):
        check(rule("options = []"), set_option(name, value))


def test_an_option_nobody_knows_is_refused() -> None:
    with pytest.raises(Refused, match="the option 6, 4711 is not in"):
        check(rule(), set_option("?", bytes(4)))


def test_any_option_may_be_read() -> None:
    request = dataclasses.replace(set_option("SO_MARK", b""), operation=Operation.GET_SUBFLOW_OPTION, size=4)
    check(rule("options = []"), request)


def test_congestion_controls_are_those_the_system_gives_to_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setattr(options, "_ALLOWED_CONGESTION", tmp_path / "allowed")
    level, option = OPTIONS["TCP_CONGESTION"]
    (tmp_path / "allowed").write_text("reno cubic\n")
    check_value(level, option, b"cubic\0\0\0")
    check_value(level, option, b"reno")
    for value in (b"bbr", b"ren", b"\0reno", b"\xff\xff", b"cubic reno"):
        with pytest.raises(OSError, match="tcp_allowed_congestion_control") as caught:
            check_value(level, option, value)
        assert caught.value.errno == errno.EPERM
    (tmp_path / "allowed").unlink()
    with pytest.raises(OSError, match="tcp_allowed_congestion_control"):
        check_value(level, option, b"reno")


@pytest.mark.parametrize(("priority", "allowed"), [(0, True), (6, True), (7, False), (-1, False), (1 << 30, False)])
def test_priorities_are_those_of_an_ordinary_user(priority: int, allowed: bool) -> None:
    request = set_option("SO_PRIORITY", priority.to_bytes(4, sys.byteorder, signed=True))
    if allowed:
        check(rule(), request)
    else:
        with pytest.raises(Refused, match="needs CAP_NET_ADMIN"):
            check(rule(), request)


def test_what_is_ordinary_is_an_option() -> None:
    assert set(OPTIONS) > ORDINARY
    assert not {"SO_MARK", "SO_BINDTODEVICE", "SO_BINDTOIFINDEX", "SO_RCVLOWAT"} & ORDINARY
    assert not [name for name in ORDINARY if "BPF" in name]


def test_numbers_of_options_are_the_systems() -> None:
    for name, (level, option) in OPTIONS.items():
        if hasattr(socket, name):
            assert getattr(socket, name) == option, name
        expected = {"SO": socket.SOL_SOCKET, "TCP": 6, "IP": 0, "IPV6": 41}[name.partition("_")[0]]
        assert level == expected
