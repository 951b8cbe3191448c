"""Options that Linux refuses on MPTCP sockets: the table is true, and has all of them; what becomes of each."""

from __future__ import annotations

import asyncio
import errno
import select
import socket as std
from collections.abc import Iterator
from typing import Any

import pytest

import mptcp
from mptcp.core.multipath.config import ConnectionConfig
from mptcp.kernel.launch.options import CANDIDATES
from mptcp.sockets import kernel_options
from mptcp.sockets.kernel import KernelStack
from mptcp.sockets.kernel_options import REFUSED_BY_LINUX, Refusal, Treatment
from mptcp.testing.netns import Namespace

TCP, SOL = std.IPPROTO_TCP, std.SOL_SOCKET
REFUSALS = (errno.ENOPROTOOPT, errno.EOPNOTSUPP)
LEVELS = {"SO_": SOL, "TCP_": TCP, "IP_": std.IPPROTO_IP, "IPV6_": std.IPPROTO_IPV6}
#: What options take: switches, figures, structures (linger, ip_mreq, group_req), names.
VALUES = (1, 3, 64, 600, 5000, b"", b"\1\0\0\0\0\0\0\0", bytes(12), bytes(16), b"lo", b"reno")


@pytest.fixture
def stack(host_namespace: Namespace) -> Iterator[KernelStack]:
    with KernelStack(namespace=host_namespace.fileno()) as made:
        yield made


@pytest.fixture
def host(family: int) -> str:
    return "127.0.0.1" if family == 4 else "::1"


@pytest.fixture
def kind(family: int) -> int:
    return std.AF_INET if family == 4 else std.AF_INET6


@pytest.fixture
def silent(host_namespace: Namespace, host: str, monkeypatch: pytest.MonkeyPatch) -> tuple[str, int]:
    """An address that does not answer, and a clock on which a first SYN is repeated after 20 ms."""
    host_namespace.nft("table inet t { chain c { type filter hook input priority 0; tcp dport 9 drop; }\n}")
    monkeypatch.setattr(kernel_options, "_FIRST_SYN_RTO_S", 0.02)
    return host, 9


def listening(host: str) -> Any:
    """Of the stack in use."""
    return mptcp.create_server((host, 0), family=std.AF_INET6 if ":" in host else std.AF_INET)


def protocol(sock: std.socket) -> int:
    return sock.getsockopt(SOL, std.SO_PROTOCOL)


def family_of(level: int) -> int:
    return std.AF_INET6 if level == std.IPPROTO_IPV6 else std.AF_INET


def taken(namespace: Namespace, protocol: int, level: int, option: int) -> tuple[bool, bool]:
    """Whether the kernel lets an option be set to some value, and be read, on a fresh socket of its own."""

    def sockets() -> Iterator[std.socket]:
        while True:
            with namespace.entered():
                sock = std.socket(family_of(level), std.SOCK_STREAM, protocol)
            with sock:
                yield sock

    def is_set(sock: std.socket, value: int | bytes) -> bool:
        try:
            sock.setsockopt(level, option, value)
        except OSError as error:
            return error.errno not in (*REFUSALS, errno.EINVAL, errno.EPROTO)
        return True

    def is_read(sock: std.socket, size: int) -> bool:
        try:
            sock.getsockopt(level, option, size)
        except OSError:
            return False
        return True

    return (
        any(is_set(sock, value) for sock, value in zip(sockets(), VALUES, strict=False)),
        any(is_read(sock, size) for sock, size in zip(sockets(), (0, 4, 16, 256), strict=False)),
    )


@pytest.mark.parametrize("prefix", LEVELS)
def test_whatever_tcp_has_and_mptcp_not_is_in_the_table(host_namespace: Namespace, prefix: str) -> None:
    level = LEVELS[prefix]
    named = {getattr(std, name): name for name in dir(std) if name.startswith(prefix)}
    named |= {option: name for (of, option), name in CANDIDATES.items() if of == level}
    assert len(named) > 8
    missing = []
    for option, name in named.items():
        tcp, ours = (taken(host_namespace, number, level, option) for number in (TCP, 262))
        if (tcp[0] > ours[0] or tcp[1] > ours[1]) and (level, option) not in REFUSED_BY_LINUX:
            missing.append(name)
    assert missing == []


#: Options of IPv4 are there on IPv6 sockets, too.
ON_EITHER_FAMILY = [
    pytest.param(kind, entry, id=f"{kind.name}-{entry.name}")
    for kind in (std.AF_INET, std.AF_INET6)
    for entry in REFUSED_BY_LINUX.values()
    if kind == std.AF_INET6 or entry.level != std.IPPROTO_IPV6
]


@pytest.mark.parametrize(("kind", "entry"), ON_EITHER_FAMILY)
def test_what_linux_refuses_on_mptcp_sockets(
    stack: KernelStack, host_namespace: Namespace, kind: int, entry: Refusal
) -> None:
    with host_namespace.entered():
        raw = std.socket(kind, std.SOCK_STREAM, 262)
    with raw, pytest.raises(OSError) as caught:  # the kernel itself: the table is true
        raw.setsockopt(entry.level, entry.option, 1)
    number = caught.value.errno
    with stack.socket(kind, proto=262) as aware:
        if entry.treatment is Treatment.KEPT or entry.name == "TCP_SYNCNT":
            assert aware.getsockopt(entry.level, entry.option) == entry.default
            aware.setsockopt(entry.level, entry.option, 3)
            assert aware.getsockopt(entry.level, entry.option) == 3
            assert aware.getsockopt(entry.level, entry.option, 4) == b"\3\0\0\0"
            return
        with pytest.raises(OSError, match=entry.name) as caught:
            aware.setsockopt(entry.level, entry.option, 1)
        assert caught.value.errno == number in REFUSALS
        assert protocol(aware) == 262


def test_options_of_ipv6_are_none_of_an_ipv4_socket(stack: KernelStack) -> None:
    # Neither has TCP them there: nothing is won by becoming TCP.
    for proto in (0, 262):
        with stack.socket(proto=proto) as sock:
            for option in (std.IPV6_TCLASS, std.IPV6_UNICAST_HOPS, 9999):
                with pytest.raises(OSError, match="IPv4 has no options of IPv6") as caught:
                    sock.setsockopt(std.IPPROTO_IPV6, option, 8)
                assert caught.value.errno == errno.ENOPROTOOPT
                with pytest.raises(OSError, match="IPv4 has no options of IPv6") as caught:
                    sock.getsockopt(std.IPPROTO_IPV6, option)
                assert caught.value.errno == errno.EOPNOTSUPP
            assert protocol(sock) == 262


def test_a_program_that_knows_nothing_of_mptcp_gets_tcp_for_what_only_tcp_has(
    stack: KernelStack, host: str, kind: int
) -> None:
    with mptcp.use(stack), listening(host) as listener, stack.socket(kind) as sock:
        sock.setsockopt(TCP, std.TCP_QUICKACK, 0)
        assert protocol(sock) == 262
        sock.setsockopt(TCP, std.TCP_USER_TIMEOUT, 5000)
        assert protocol(sock) == 6
        assert sock.getsockopt(TCP, std.TCP_USER_TIMEOUT) == 5000
        sock.connect(listener.getsockname())
        assert sock.getsockopt(TCP, std.TCP_USER_TIMEOUT) == 5000
        assert sock.fallback_reason == "TCP_USER_TIMEOUT was set, which only TCP has"


def test_an_option_in_no_table_is_of_tcp_if_tcp_takes_it(
    stack: KernelStack, kind: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    hops = (std.IPPROTO_IP, std.IP_TTL) if kind == std.AF_INET else (std.IPPROTO_IPV6, std.IPV6_UNICAST_HOPS)
    others = {option: entry for option, entry in REFUSED_BY_LINUX.items() if option != hops}
    for module in ("kernel_options", "kernel_sockopt"):
        monkeypatch.setattr(f"mptcp.sockets.{module}.REFUSED_BY_LINUX", others)
    with stack.socket(kind) as sock:
        sock.setsockopt(*hops, 9)
        assert protocol(sock) == 6
        assert sock.getsockopt(*hops) == 9
    with stack.socket(kind) as sock:
        with pytest.raises(OSError, match=r"option 9999 of level 6: Linux has it for no MPTCP socket") as caught:
            sock.setsockopt(TCP, 9999, 1)
        assert caught.value.errno in REFUSALS
        assert protocol(sock) == 262


def test_what_was_only_kept_is_set_where_the_descriptor_becomes_tcp(stack: KernelStack, kind: int) -> None:
    with stack.socket(kind) as sock:
        sock.setsockopt(TCP, std.TCP_SYNCNT, 3)
        sock.setsockopt(TCP, std.TCP_NODELAY, 1)
        sock.setsockopt(TCP, std.TCP_USER_TIMEOUT, 5000)
        assert protocol(sock) == 6
        with std.socket(fileno=sock.dup().detach()) as bare:
            assert bare.getsockopt(TCP, std.TCP_SYNCNT) == 3
            assert bare.getsockopt(TCP, std.TCP_NODELAY) == 1
        sock.setsockopt(TCP, std.TCP_SYNCNT, 4)
        assert sock.getsockopt(TCP, std.TCP_SYNCNT) == 4


def test_the_path_mtu_is_the_smallest_of_the_subflows(
    stack: KernelStack, host_namespace: Namespace, host: str, kind: int
) -> None:
    mtu = (std.IPPROTO_IP, 14) if kind == std.AF_INET else (std.IPPROTO_IPV6, 24)
    host_namespace.ip("link set lo mtu 4000")
    with mptcp.use(stack), listening(host) as listener:
        with mptcp.create_connection(listener.getsockname()[:2], 5) as client, listener.accept()[0]:
            assert client.getsockopt(*mtu) == 4000
        with stack.socket(kind) as sock:
            with pytest.raises(OSError) as caught:
                sock.getsockopt(*mtu)
            assert caught.value.errno == errno.ENOTCONN


# --- TCP_SYNCNT -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("timeout", [None, 30], ids=["blocking", "with a timeout"])
def test_syn_retries_end_a_connect_that_blocks(
    stack: KernelStack, silent: tuple[str, int], kind: int, timeout: float | None
) -> None:
    with stack.socket(kind, proto=262) as sock:
        sock.settimeout(timeout)
        sock.setsockopt(TCP, std.TCP_SYNCNT, 1)
        with pytest.raises(TimeoutError) as caught:
            sock.connect(silent)
        assert caught.value.errno == errno.ETIMEDOUT
        assert sock.gettimeout() == timeout
        assert sock.connect_ex(silent) == errno.ETIMEDOUT
        with pytest.raises(OSError) as refused:
            sock.setsockopt(TCP, std.TCP_SYNCNT, 0)
        assert refused.value.errno == errno.EINVAL


@pytest.mark.parametrize("asked_by", ["SO_ERROR", "SO_ERROR as bytes", "connect", "connect_ex"])
def test_syn_retries_end_a_connect_that_does_not_block(
    stack: KernelStack, silent: tuple[str, int], host: str, kind: int, asked_by: str
) -> None:
    with mptcp.use(stack), listening(host) as listener, stack.socket(kind, proto=262) as sock:
        sock.setsockopt(TCP, std.TCP_SYNCNT, 1)
        sock.setblocking(False)
        assert sock.connect_ex(silent) == errno.EINPROGRESS
        assert sock.getsockopt(SOL, std.SO_ERROR) == 0
        assert sock.connect_ex(silent) == errno.EALREADY
        assert select.select([], [sock], [], 30)[1] == [sock]
        match asked_by:
            case "SO_ERROR":
                assert sock.getsockopt(SOL, std.SO_ERROR) == errno.ETIMEDOUT
                assert sock.getsockopt(SOL, std.SO_ERROR) == 0
            case "SO_ERROR as bytes":
                assert sock.getsockopt(SOL, std.SO_ERROR, 4) == errno.ETIMEDOUT.to_bytes(4, "little")
            case "connect":
                with pytest.raises(TimeoutError) as caught:
                    sock.connect(silent)
                assert caught.value.errno == errno.ETIMEDOUT
            case _:
                assert sock.connect_ex(silent) == errno.ETIMEDOUT
        # It can be tried again, where somebody answers.
        sock.setblocking(True)
        sock.connect(listener.getsockname())
        assert sock.is_multipath


def test_syn_retries_leave_a_connection_alone(
    stack: KernelStack, host: str, kind: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel_options, "_FIRST_SYN_RTO_S", 0.02)
    with mptcp.use(stack), listening(host) as listener, stack.socket(kind, proto=262) as sock:
        sock.setsockopt(TCP, std.TCP_SYNCNT, 1)
        sock.setblocking(False)
        assert sock.connect_ex(listener.getsockname()) == errno.EINPROGRESS
        with listener.accept()[0] as accepted:
            accepted.settimeout(0.2)  # longer than the attempt may take
            with pytest.raises(TimeoutError):
                accepted.recv(1)
            assert sock.getsockopt(SOL, std.SO_ERROR) == 0
            sock.send(b"x")
            assert accepted.recv(1) == b"x"


def test_syn_retries_in_an_event_loop(stack: KernelStack, silent: tuple[str, int], kind: int) -> None:
    config = ConnectionConfig(tcp=mptcp.TcpConfig(syn_retries=1))

    async def main() -> None:
        with pytest.raises(TimeoutError) as caught:
            await mptcp.open_connection(*silent, config=config)
        assert caught.value.errno == errno.ETIMEDOUT
        with stack.socket(kind, config=config) as sock:
            sock.setblocking(False)
            with pytest.raises(TimeoutError) as caught:
                await asyncio.get_running_loop().sock_connect(sock, silent)
            assert caught.value.errno == errno.ETIMEDOUT

    with mptcp.use(stack):
        asyncio.run(asyncio.wait_for(main(), 30))
