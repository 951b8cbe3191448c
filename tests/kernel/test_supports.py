"""What ``supports`` says of each name is what comes of it: options tried on sockets of both stacks, methods by their names."""

from __future__ import annotations

import socket as std
from collections.abc import Iterator
from typing import Any

import pytest

import mptcp
from mptcp.links.loopback import LoopbackLink
from mptcp.sockets.advanced import AdvancedInterface
from mptcp.sockets.kernel import KernelStack
from mptcp.sockets.kernel_options import REFUSED_BY_LINUX
from mptcp.sockets.kernel_socket import KernelSocket
from mptcp.sockets.socket import Socket
from mptcp.sockets.supported import OWN_OPTIONS, PARTS, is_known
from mptcp.sockets.user import UserStack
from mptcp.testing.netns import Namespace

LEVELS = {"SO_": std.SOL_SOCKET, "TCP_": std.IPPROTO_TCP, "IP_": std.IPPROTO_IP, "IPV6_": std.IPPROTO_IPV6}
VALUES = (1, 64, 600, 5000, b"", b"\1\0\0\0\0\0\0\0", bytes(16), b"lo", b"reno")
#: Taken, or read, though nothing comes of it.
TO_NO_PURPOSE = (
    "SO_REUSEPORT",
    "SO_MAX_PACING_RATE",
    "SO_ZEROCOPY",
    "SO_TXTIME",
    "SO_PASSCRED",
    "SO_PASSSEC",
    "TCP_ULP",
)
#: Of other levels; values, not options.
NO_OPTIONS = ("SO_J1939", "SO_VM", "IP_DEFAULT", "IP_MAX", "IPV6_RTHDR_TYPE")


@pytest.fixture
def user() -> Iterator[UserStack]:
    near, far = LoopbackLink.pair()
    with UserStack([near], ["10.0.0.1", "fd00::1"], seed=1) as stack:
        yield stack
    far.close()


@pytest.fixture
def kernel(host_namespace: Namespace) -> Iterator[KernelStack]:
    with KernelStack(namespace=host_namespace.fileno()) as stack:
        yield stack


def works(stack: UserStack | KernelStack, level: int, option: int) -> bool:
    """Whether it can be set to some value, or read, on a socket that has asked for MPTCP."""
    family = std.AF_INET6 if level == std.IPPROTO_IPV6 else std.AF_INET

    def attempt(method: str, *arguments: Any) -> bool:
        with stack.socket(family, std.SOCK_STREAM, mptcp.IPPROTO_MPTCP) as sock:
            try:
                getattr(sock, method)(level, option, *arguments)
            except OSError:
                return False
            return True

    return any(attempt("setsockopt", value) for value in VALUES) or any(attempt("getsockopt", n) for n in (0, 16, 256))


@pytest.mark.parametrize("which", ["user", "kernel"])
@pytest.mark.parametrize("prefix", LEVELS)
def test_options_of_the_standard_library(which: str, prefix: str, request: pytest.FixtureRequest) -> None:
    stack = request.getfixturevalue(which)
    names = [name for name in dir(std) if name.startswith(prefix)]
    assert len(names) > 8
    lies = []
    for name in names:
        if name in TO_NO_PURPOSE or name.startswith(NO_OPTIONS):
            continue
        told = stack.supports(name)
        if bool(told) != works(stack, LEVELS[prefix], getattr(std, name)) or not (told or told.reason):
            lies.append((name, told))
    assert lies == []


@pytest.mark.parametrize("which", ["user", "kernel"])
def test_every_public_name_is_known(which: str, request: pytest.FixtureRequest) -> None:
    stack = request.getfixturevalue(which)
    names = {*dir(AdvancedInterface), *dir(std.socket), *(set(dir(Socket)) & set(dir(KernelSocket)))}
    names = {name for name in names if not name.startswith("_")}
    for name in (names - {"sendmsg_afalg"}) | PARTS | OWN_OPTIONS:
        told = stack.supports(name)
        assert "nothing this package knows of" not in told.reason, name
        assert told or told.fix, name
    for name in ("nonsense", "_kept", "__init__", "TCP_NONSENSE", "sendmsg_afalg", ""):
        assert not is_known(name)
        assert not stack.supports(name), name


def test_refused_options_and_a_descriptor_that_is_tcp(kernel: KernelStack) -> None:
    for entry in REFUSED_BY_LINUX.values():
        assert kernel.supports(entry.name) or kernel.supports(entry.name).fix
    with kernel.socket() as sock:
        told = sock.supports("TCP_USER_TIMEOUT")
        assert not told
        assert "set_subflow_option" in told.fix
        sock.setsockopt(std.IPPROTO_TCP, std.TCP_USER_TIMEOUT, 5000)  # it becomes TCP
        assert sock.supports("TCP_USER_TIMEOUT")
        assert sock.supports("TCP_NODELAY")


def test_segments(host_namespace: Namespace, kernel: KernelStack, user: UserStack) -> None:
    assert user.supports("segments")
    host_namespace.sysctl("net.mptcp.path_manager", "kernel")
    told = kernel.supports("segments")
    assert not told
    assert "path_manager=userspace" in told.fix
    host_namespace.sysctl("net.mptcp.path_manager", "userspace")
    assert kernel.supports("segments")
    with kernel.socket(std.AF_INET6) as sock:
        assert sock.supports("segments")
    with kernel.socket(std.AF_INET) as sock:
        assert sock.supports("segments").fix == "make it AF_INET6"
    host_namespace.sysctl("net.ipv6.conf.all.disable_ipv6", 1)
    told = kernel.supports("segments")
    assert not told
    assert "disable_ipv6=0" in told.fix


def test_segments_without_privilege() -> None:
    """In the namespace of the tests' own process nobody may change routes who has no capability there."""
    from mptcp.kernel import features
    from mptcp.kernel.namespace import NetNamespace

    namespace = NetNamespace()
    told = features.segment_routing(namespace)
    assert bool(told) == features.has_capability(features.CAP_NET_ADMIN, namespace)
    assert told or told.fix
