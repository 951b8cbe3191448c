"""Errors of sockets that no other test provokes, on a connection of either family that goes on after each of them."""

from __future__ import annotations

import errno
import io
import pickle
import socket as std
import struct
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import mptcp
from mptcp.core.multipath.local_addresses import MAX_LISTED_ADDRESSES
from mptcp.errors import ConfigurationError, NotSupportedError, PathError
from mptcp.links.loopback import LoopbackLink
from mptcp.sockets import structures
from mptcp.sockets.policy import MAX_RULES, Policy, Rule

TCP = std.IPPROTO_TCP
ADDRESSES = {std.AF_INET: ("10.0.0.1", "10.0.0.2"), std.AF_INET6: ("fd00::1", "fd00::2")}


class Connected:
    """``near`` and ``far`` are connected; each stack has one address, of that family."""

    def __init__(self, family: int) -> None:
        self.family = family
        self.here, self.there = ADDRESSES[std.AddressFamily(family)]
        links = LoopbackLink.pair()
        self.client, self.server = (
            mptcp.UserStack([link], [address]) for link, address in zip(links, (self.here, self.there), strict=True)
        )
        with mptcp.use(self.server):
            self.listener = mptcp.create_server((self.there, 80), family=family)
        self.near = self.client.socket(family)
        self.near.settimeout(30)
        self.near.connect((self.there, 80))
        far, _ = self.listener.accept()
        assert isinstance(far, mptcp.Socket)
        self.far = far
        self.far.settimeout(30)

    def check(self) -> None:
        for one, other in ((self.near, self.far), (self.far, self.near)):
            one.sendall(b"goes on")
            assert other.recv(7, std.MSG_WAITALL) == b"goes on"

    def close(self) -> None:
        for sock in (self.near, self.far, self.listener):
            sock.close()
        self.client.close(0.2)
        self.server.close(0.2)


@pytest.fixture(params=[std.AF_INET, std.AF_INET6], ids=["v4", "v6"])
def world(request: pytest.FixtureRequest) -> Iterator[Connected]:
    made = Connected(request.param)
    yield made
    made.close()


def other_host(family: int, number: int) -> str:
    return f"10.1.{number >> 8}.{number & 255}" if family == std.AF_INET else f"fd01::{number:x}"


def endpoint(host: str, port: int = 0) -> mptcp.Endpoint:
    return mptcp.Endpoint.parse(host, port)


OPTIONS: dict[str, tuple[Callable[[mptcp.Socket], Any], int]] = {
    "TCP_CONGESTION takes a name": (lambda s: s.setsockopt(TCP, std.TCP_CONGESTION, 1), errno.EINVAL),
    "SO_BINDTODEVICE takes a name": (lambda s: s.setsockopt(std.SOL_SOCKET, std.SO_BINDTODEVICE, 1), errno.EINVAL),
    "SO_RCVTIMEO takes a timeval": (lambda s: s.setsockopt(std.SOL_SOCKET, std.SO_RCVTIMEO, 1), errno.EINVAL),
    "a timeval cut short": (lambda s: s.setsockopt(std.SOL_SOCKET, std.SO_SNDTIMEO, b"\0" * 15), errno.EINVAL),
    "a second of more than a second": (
        lambda s: s.setsockopt(std.SOL_SOCKET, std.SO_SNDTIMEO, struct.pack("ll", 1, 1_000_000)), errno.EDOM,
    ),
    "SO_LINGER takes a structure": (lambda s: s.setsockopt(std.SOL_SOCKET, std.SO_LINGER, 1), errno.EINVAL),
    "a value that is none": (lambda s: s.setsockopt(TCP, std.TCP_NODELAY, None), errno.EFAULT),
    "IPV6_V6ONLY once it is bound": (lambda s: _bound(s).setsockopt(std.IPPROTO_IPV6, std.IPV6_V6ONLY, 0), errno.EINVAL),
    "a buffer of 1025 octets": (lambda s: s.getsockopt(TCP, std.TCP_INFO, 1025), errno.EINVAL),
    "a buffer of -1 octets": (lambda s: s.getsockopt(TCP, std.TCP_INFO, -1), errno.EINVAL),
    "no such option to get": (lambda s: s.getsockopt(TCP, 9999, 4), errno.ENOPROTOOPT),
    "no such option to set": (lambda s: s.setsockopt(TCP, 9999, 4), errno.ENOPROTOOPT),
    "an empty list of addresses": (lambda s: s.add_addresses([]), errno.EINVAL),
    "the structure of a subflow without an id": (
        lambda s: s.getsockopt(TCP, mptcp.MPTCP_GET_SUB_TUPLE, bytearray()), errno.EINVAL,
    ),
    "urgent data": (lambda s: s.recv(1, std.MSG_OOB), errno.EINVAL),
    "an error queue": (lambda s: s.recv(1, std.MSG_ERRQUEUE), errno.EOPNOTSUPP),
    "truncation": (lambda s: s.recv(1, std.MSG_TRUNC), errno.EOPNOTSUPP),
    "ancillary data to send": (lambda s: s.sendmsg([b"x"], [(std.SOL_SOCKET, std.SCM_RIGHTS, b"1234")]), errno.EINVAL),
    "inheritance": (lambda s: s.set_inheritable(True), errno.EOPNOTSUPP),
    "a number of subflows below 1": (lambda s: setattr(s, "wanted_subflows", -1), errno.EINVAL),
}  # fmt: skip


def _bound(sock: mptcp.Socket) -> mptcp.Socket:
    other = sock._stack.socket(std.AF_INET6)
    other.bind(("::", 0))
    return other


@pytest.mark.parametrize("what", OPTIONS)
def test_errors_with_an_errno(world: Connected, what: str) -> None:
    provoke, number = OPTIONS[what]
    with pytest.raises(OSError) as caught:
        provoke(world.near)
    assert caught.value.errno == number
    world.check()


CALLS: dict[str, tuple[Callable[[mptcp.Socket], Any], type[Exception], str]] = {
    "recv of -1": (lambda s: s.recv(-1), ValueError, "negative buffersize in recv"),
    "recv_into of -1": (lambda s: s.recv_into(bytearray(1), -1), ValueError, "negative buffersize in recv_into"),
    "recv_into of more than there is": (lambda s: s.recv_into(bytearray(1), 2), ValueError, "buffer too small"),
    "sendto nobody": (lambda s: s.sendto(b"x"), TypeError, "takes 2 or 3 arguments"),
    "sendfile of nothing": (lambda s: s.sendfile(io.BytesIO(b"x"), 0, 0), ValueError, "must be a positive integer"),
    "a socket in a pickle": (pickle.dumps, TypeError, "cannot pickle"),
    "an address that is none": (lambda s: s.add_addresses(["somewhere"]), PathError, "is no IP address"),
    "a profile that is none": (lambda s: setattr(s, "profile", "?"), ConfigurationError, "no profile is called"),
}


@pytest.mark.parametrize("what", CALLS)
def test_wrong_calls(world: Connected, what: str) -> None:
    provoke, kind, text = CALLS[what]
    with pytest.raises(kind, match=text):
        provoke(world.near)
    world.check()


def test_sendfile_needs_a_socket_that_waits(world: Connected) -> None:
    world.near.setblocking(False)
    with pytest.raises(ValueError, match="non-blocking"):
        world.near.sendfile(io.BytesIO(b"x"))
    world.near.settimeout(30)
    world.check()


def test_more_addresses_than_a_connection_takes(world: Connected) -> None:
    for family in ADDRESSES:  # whatever the family of the socket
        names = [other_host(family, number) for number in range(1, MAX_LISTED_ADDRESSES + 2)]
        for name in names:
            world.client.add_address(name, world.client.pump.ports[0].link.name, hidden=True)
        sock = world.client.socket(world.family)
        with pytest.raises(PathError, match=f"takes {MAX_LISTED_ADDRESSES} addresses") as caught:
            sock.add_addresses(names)
        assert caught.value.errno == errno.ENOBUFS
        with pytest.raises(PathError) as caught:
            sock.remove_addresses(names)
        assert caught.value.errno == errno.ENOBUFS
        assert sock.local_addresses() is not None
    world.check()


def test_a_wildcard_source_where_the_host_has_no_address_of_that_family(world: Connected) -> None:
    other = std.AF_INET6 if world.family == std.AF_INET else std.AF_INET
    world.check()
    world.check()
    with pytest.raises(PathError) as caught:
        world.near.open_subflow((ADDRESSES[other][1], 80))
    assert caught.value.errno == errno.EADDRNOTAVAIL
    tuple_ = mptcp.SubflowTuple(
        endpoint("::" if other == std.AF_INET6 else "0.0.0.0"), endpoint(ADDRESSES[other][1], 80)
    )
    with pytest.raises(OSError) as raw:
        world.near.getsockopt(TCP, mptcp.MPTCP_OPEN_SUB_TUPLE, bytearray(tuple_.pack()))
    assert raw.value.errno == errno.EADDRNOTAVAIL
    world.check()


def test_an_ipv6_only_socket_does_not_connect_to_a_mapped_address() -> None:
    near, far = LoopbackLink.pair()
    with mptcp.UserStack([near], ["10.0.0.1"]) as client, mptcp.UserStack([far], ["10.0.0.2"]) as server:
        with mptcp.use(server):
            listener = mptcp.create_server(("", 80))
        for only, expected in ((1, errno.ENETUNREACH), (0, 0)):
            with client.socket(std.AF_INET6) as sock:
                sock.setsockopt(std.IPPROTO_IPV6, std.IPV6_V6ONLY, only)
                assert sock.connect_ex(("::ffff:10.0.0.2", 80)) == expected
        listener.close()


def test_a_listener_that_is_shut_down_or_where_another_listens(world: Connected) -> None:
    second = world.server.socket(world.family)
    second.setsockopt(std.SOL_SOCKET, std.SO_REUSEADDR, 1)
    with pytest.raises(OSError) as caught:
        second.bind((world.there, 80))
    assert caught.value.errno == errno.EADDRINUSE
    second.close()
    world.listener.shutdown(std.SHUT_RDWR)
    with pytest.raises(OSError) as caught:
        world.listener.accept()
    assert caught.value.errno == errno.EINVAL
    world.check()


def test_the_stack_is_closed_under_a_reader(world: Connected) -> None:
    world.client.close(0)
    for call in (lambda: world.near.recv(1), lambda: world.near.send(b"x"), world.near.getsockname):
        with pytest.raises(OSError) as caught:
            call()
        assert caught.value.errno == errno.ENETDOWN


def test_an_event_that_is_none() -> None:
    good = structures.pack_event(mptcp.Event(mptcp.EventKind.CLOSED, 5, reason="x"))
    assert structures.unpack_event(good).reason == "x"
    for wrong in (good[:-200], b"\xff\xff" + good[2:], b""):
        with pytest.raises(OSError) as caught:
            structures.unpack_event(wrong)
        assert caught.value.errno == errno.EINVAL


def test_a_policy_of_too_many_rules() -> None:
    with pytest.raises(ConfigurationError, match=f"more than {MAX_RULES} rules"):
        Policy(rules=(Rule(),) * (MAX_RULES + 1))


def test_what_a_stack_cannot_do_says_what_to_do_instead(world: Connected) -> None:
    assert not world.client.supports("inheritable")
    assert world.client.supports("inheritable").fix
    with pytest.raises(NotSupportedError):
        world.near.set_inheritable(True)


# --- links and addresses ----------------------------------------------------------------------------------------------
def errno_of(call: Callable[[], Any]) -> int | None:
    """The errno; the sentence is in the error, or in its cause where the standard library has an error of its own."""
    with pytest.raises(OSError) as caught:
        call()
    assert isinstance(caught.value, PathError) or isinstance(caught.value.__cause__, PathError)
    return caught.value.errno


def test_a_stack_whose_links_or_addresses_cannot_be(world: Connected) -> None:
    near, far = LoopbackLink.pair("same")
    with pytest.raises(ConfigurationError, match="names of their own: samea, samea"):
        mptcp.UserStack([near, near], {near.name: [world.here]})
    with pytest.raises(ConfigurationError, match="hidden addresses are addresses of the stack"):
        mptcp.UserStack([near], [world.here], hidden=[world.there])
    with pytest.raises(ConfigurationError, match="no link is called 'nowhere'"):
        world.client.add_address(other_host(world.family, 1), "nowhere")
    near.close()
    far.close()
    world.check()


def test_a_link_that_is_down(world: Connected) -> None:
    world.check()
    index, name = world.client.interfaces()[0]
    world.client.set_link_up(name, False)
    local = (world.here, 0)
    for interface in (index, name):
        call = lambda interface=interface: world.near.open_subflow(local=local, interface=interface)  # noqa: E731
        assert errno_of(call) == errno.ENETDOWN
    assert errno_of(
        lambda: world.client.socket(world.family).setsockopt(std.SOL_SOCKET, std.SO_BINDTODEVICE, name.encode())
    ) == errno.ENETDOWN  # fmt: skip
    world.client.set_link_up(name, True)
    world.near.open_subflow(local=local)
    world.check()


def test_a_device_or_addresses_of_the_other_family_only(world: Connected) -> None:
    other = std.AF_INET6 if world.family == std.AF_INET else std.AF_INET
    with world.client.socket(other) as sock:
        sock.setsockopt(std.SOL_SOCKET, std.SO_BINDTODEVICE, world.client.interfaces()[0][1].encode())
        assert errno_of(lambda: sock.connect((ADDRESSES[other][1], 80))) == errno.EADDRNOTAVAIL
    with world.server.socket(other) as sock:
        if other == std.AF_INET6:
            sock.setsockopt(std.IPPROTO_IPV6, std.IPV6_V6ONLY, 1)
        sock.add_addresses([world.there])
        sock.bind(("", 81))
        assert errno_of(sock.listen) == errno.EADDRNOTAVAIL
    world.check()


def test_a_connection_that_is_not_there_yet(world: Connected) -> None:
    sock = world.client.socket(world.family)
    sock.setblocking(False)
    assert sock.connect_ex((other_host(world.family, 9), 80)) == errno.EINPROGRESS
    assert errno_of(sock.subflow_addresses) == errno.ENOTCONN
    assert errno_of(lambda: sock.getsockopt(TCP, mptcp.TCP_MULTIPATH_SUBFLOWS, 64)) == errno.ENOTCONN
    sock.close()
    world.check()
