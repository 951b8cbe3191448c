"""The kernel's stack by itself: what it falls back to, what becomes of options, descriptors, TLS. In a namespace of its own."""

from __future__ import annotations

import array
import errno
import os
import select
import signal
import socket as std
import ssl
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import trustme

import mptcp
from mptcp.core.multipath.config import ConnectionConfig
from mptcp.core.schedulers.round_robin import RoundRobin
from mptcp.errors import NotSupportedError
from mptcp.sockets.kernel import KernelStack
from mptcp.sockets.kernel_socket import KernelSocket
from mptcp.testing.netns import Namespace

TCP, SOL = std.IPPROTO_TCP, std.SOL_SOCKET


@pytest.fixture
def stack(host_namespace: Namespace) -> Iterator[KernelStack]:
    with KernelStack(namespace=host_namespace.fileno()) as made:
        yield made


def protocol(sock: std.socket) -> int:
    return sock.getsockopt(SOL, std.SO_PROTOCOL)


@pytest.fixture
def host(family: int) -> str:
    """The loopback address of either family."""
    return "127.0.0.1" if family == 4 else "::1"


def kind_of(host: str) -> int:
    return std.AF_INET6 if ":" in host else std.AF_INET


def listening(host: str) -> Any:
    """Of the stack in use."""
    return mptcp.create_server((host, 0), family=kind_of(host))


def connected(stack: KernelStack, host: str, **arguments: Any) -> tuple[KernelSocket, KernelSocket]:
    with mptcp.use(stack), listening(host) as listener:
        client: Any = mptcp.create_connection(listener.getsockname()[:2], 5, **arguments)
        accepted: Any = listener.accept()[0]
        accepted.settimeout(5)
    return client, accepted


# --- what it is -------------------------------------------------------------------------------------------------------
def test_it_is_a_socket_and_data_goes_by_the_c_methods(stack: KernelStack) -> None:
    assert issubclass(KernelSocket, std.socket)
    for name in (
        "send", "sendall", "sendmsg", "sendto", "recv", "recv_into", "recvmsg", "recvfrom", "recvmsg_into", "recvfrom_into",
        "sendfile", "fileno", "settimeout", "shutdown",
    ):  # fmt: skip
        assert getattr(KernelSocket, name) is getattr(std.socket, name), name
    with stack.socket() as sock:
        assert (sock.proto, protocol(sock), sock.type, sock.family) == (6, 262, std.SOCK_STREAM, std.AF_INET)
        assert "MPTCP" in repr(sock)


def test_accept_gives_our_class(stack: KernelStack, host: str) -> None:
    client, accepted = connected(stack, host)
    with client, accepted:
        assert type(accepted) is KernelSocket
        assert client.is_multipath
        assert accepted.is_multipath
        assert accepted.proto == 6
        assert (client.fallback_reason, accepted.fallback_reason) == ("", "")


def test_select_dup_detach_and_passing_descriptors(stack: KernelStack, host: str) -> None:
    client, accepted = connected(stack, host)
    accepted.sendall(b"abc")
    assert select.select([client], [], [], 5)[0] == [client]
    with client.dup() as copy:
        assert copy.is_multipath
        assert copy.recv(1) == b"a"
    near, far = std.socketpair()
    with near, far:
        near.sendmsg([b"x"], [(SOL, std.SCM_RIGHTS, array.array("i", [client.fileno()]))])
        _, [(_, _, octets)], _, _ = far.recvmsg(1, 64)
    with stack.socket(fileno=int.from_bytes(octets[:4], "little")) as passed:
        assert passed.is_multipath
        assert passed.recv(1) == b"b"
    with stack.socket(fileno=client.detach()) as again:
        assert client.fileno() == -1
        assert again.connection_id
        assert again.recv(1) == b"c"
    accepted.close()


def test_sendfile(stack: KernelStack, tmp_path: Any, host: str) -> None:
    (tmp_path / "file").write_bytes(bytes(range(256)) * 400)
    client, accepted = connected(stack, host)
    with client, accepted, (tmp_path / "file").open("rb") as file:
        thread = threading.Thread(target=lambda: (client.sendfile(file), client.shutdown(std.SHUT_WR)))
        thread.start()
        received = b"".join(iter(lambda: accepted.recv(65536), b""))
        thread.join()
    assert received == bytes(range(256)) * 400


# --- where there is no MPTCP ------------------------------------------------------------------------------------------
def test_without_mptcp_it_is_tcp_and_says_why(stack: KernelStack, host_namespace: Namespace, host: str) -> None:
    host_namespace.sysctl("net.mptcp.enabled", 0)
    client, accepted = connected(stack, host)
    with client, accepted:
        assert (protocol(client), protocol(accepted)) == (6, 6)
        assert not client.is_multipath
        assert "net.mptcp.enabled=0" in client.fallback_reason
        assert len(client.subflows()) == 1
        assert client.info().fallback_reason == client.fallback_reason
        with pytest.raises(OSError, match=r"net\.mptcp\.enabled") as caught:
            client.open_subflow()
        assert caught.value.errno == errno.EOPNOTSUPP
    support = stack.supports("open_subflow")
    assert not support
    assert "net.mptcp.enabled" in support.reason
    assert stack.supports("send")


def test_a_peer_without_mptcp(stack: KernelStack, host_namespace: Namespace, host: str) -> None:
    with host_namespace.entered():
        listener = std.create_server((host, 0), family=kind_of(host))
    with listener, mptcp.use(stack), mptcp.create_connection(listener.getsockname()[:2]) as client:
        assert protocol(client) == 262  # type: ignore[arg-type]
        assert not client.is_multipath
        assert client.fallback_reason
        event = client.events().get(5)
        assert event is not None
        assert event.kind is mptcp.EventKind.FELL_BACK


def test_a_client_without_mptcp(stack: KernelStack, host_namespace: Namespace, host: str) -> None:
    with mptcp.use(stack), listening(host) as listener:
        with host_namespace.entered():
            client = std.create_connection(listener.getsockname()[:2])
        accepted = listener.accept()[0]
        with client, accepted:
            assert not accepted.is_multipath
            assert "MP_CAPABLE" in accepted.fallback_reason


# --- MPTCP or TCP: the descriptor is replaced -------------------------------------------------------------------------
def test_a_descriptor_that_becomes_tcp_keeps_its_options_its_mode_and_its_name(stack: KernelStack, host: str) -> None:
    with mptcp.use(stack), listening(host) as listener, stack.socket(kind_of(host)) as sock:
        number = sock.fileno()
        sock.setsockopt(TCP, std.TCP_NODELAY, 1)
        sock.setsockopt(SOL, std.SO_KEEPALIVE, 1)
        sock.bind(("", 0))
        port = sock.getsockname()[1]
        sock.set_inheritable(True)
        sock.settimeout(3)
        sock.multipath_enabled = False
        assert protocol(sock) == 262
        sock.connect(listener.getsockname())
        assert (protocol(sock), sock.fileno(), sock.getsockname()[1]) == (6, number, port)
        assert sock.getsockopt(TCP, std.TCP_NODELAY) == 1
        assert sock.getsockopt(SOL, std.SO_KEEPALIVE) == 1
        assert sock.get_inheritable()
        assert sock.gettimeout() == 3
        assert not os.get_blocking(number)
        assert "TCP_MULTIPATH_ENABLE" in sock.fallback_reason


@pytest.mark.parametrize(("allowed", "denied"), [("127.0.0.1", "127.0.0.2"), ("::1", "fd00::9")])
def test_rules_of_the_policy_decide_at_connect(host_namespace: Namespace, allowed: str, denied: str) -> None:
    host_namespace.ip("addr add fd00::9/128 dev lo nodad")
    policy = mptcp.Policy(rules=(mptcp.Rule(network=denied, enable=False),))
    stack = KernelStack(namespace=host_namespace.fileno(), policy=policy)
    with stack, mptcp.use(stack), mptcp.create_server(("", 0), family=kind_of(allowed)) as listener:
        port = listener.getsockname()[1]
        for host, expected in ((allowed, True), (denied, False)):
            with mptcp.create_connection((host, port)) as client, listener.accept()[0]:
                assert client.is_multipath is expected
                assert ("policy" in client.fallback_reason) is not expected


def test_endpoints_of_the_namespace_hinder_a_listener_only_where_they_would_be_announced(
    stack: KernelStack, host_namespace: Namespace, host: str
) -> None:
    """As NetworkManager leaves a host: an endpoint for every address, to open subflows from."""
    host_namespace.ip("addr add 10.8.8.8/32 dev lo")
    host_namespace.ip("mptcp limits set subflows 4")
    host_namespace.ip("mptcp endpoint add 10.8.8.8 dev lo subflow fullmesh")
    client, accepted = connected(stack, host)
    with client, accepted:
        client.sendall(b"a")
        assert accepted.recv(1) == b"a"
        accepted.sendall(b"b")
        assert client.recv(1) == b"b"
        assert client.is_multipath
        assert accepted.is_multipath
        assert [subflow.local.host for subflow in accepted.subflows()] == [host]
    host_namespace.ip("mptcp endpoint flush")
    host_namespace.ip("mptcp endpoint add 10.8.8.8 dev lo signal")
    with pytest.raises(NotSupportedError, match=r"would use 10\.8\.8\.8, too"):
        connected(stack, host)


def test_enabled_by_the_program_against_the_policy(host_namespace: Namespace, host: str) -> None:
    stack = KernelStack(namespace=host_namespace.fileno(), policy=mptcp.Policy(enable=False))
    with stack, mptcp.use(stack), listening(host) as listener:
        for enabled in (None, True):
            with stack.socket(kind_of(host)) as sock:
                assert protocol(sock) == 6
                if enabled:
                    sock.setsockopt(TCP, mptcp.TCP_MULTIPATH_ENABLE, 1)
                sock.connect(listener.getsockname())
                listener.accept()[0].close()
                assert sock.is_multipath is bool(enabled)


def test_a_connect_that_failed_can_be_repeated(stack: KernelStack, host: str) -> None:
    with mptcp.use(stack), listening(host) as listener, stack.socket(kind_of(host), proto=262) as sock:
        sock.setsockopt(TCP, std.TCP_NODELAY, 1)
        with pytest.raises(ConnectionRefusedError):
            sock.connect((host, 1))
        assert sock.connect_ex((host, 1)) == errno.ECONNREFUSED
        sock.connect(listener.getsockname())
        assert sock.is_multipath
        assert sock.getsockopt(TCP, std.TCP_NODELAY) == 1
        with pytest.raises(OSError) as caught:
            sock.connect(listener.getsockname())
        assert caught.value.errno == errno.EISCONN


# --- options ----------------------------------------------------------------------------------------------------------
def test_settings_of_a_configuration_become_options(host_namespace: Namespace) -> None:
    config = ConnectionConfig(tcp=mptcp.TcpConfig(no_delay=True, keepalive=True))
    with KernelStack(namespace=host_namespace.fileno(), config=config) as stack, stack.socket() as sock:
        assert sock.getsockopt(TCP, std.TCP_NODELAY) == 1
        assert sock.getsockopt(SOL, std.SO_KEEPALIVE) == 1


# --- what cannot be had -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["set_scheduler", "redundancy", "set_weight", "half_close", "fate_sharing", "ktls"])
def test_what_linux_has_not_is_said(stack: KernelStack, name: str) -> None:
    support = stack.supports(name)
    assert not support
    assert support.reason
    assert support.fix


def test_strategies_that_cannot_be_had_fail_at_once(stack: KernelStack) -> None:
    with stack.socket(proto=262) as sock:
        for call in (
            lambda: sock.set_scheduler("round-robin"),
            lambda: setattr(sock, "redundancy", "all"),
            lambda: setattr(sock, "profile", "reliable"),
            lambda: setattr(sock, "profile", "overflow"),
            lambda: setattr(sock, "fate_sharing", True),
        ):
            with pytest.raises(NotSupportedError):
                call()
        assert (sock.profile, sock.redundancy, sock.scheduler) == ("", "none", "default")
        sock.redundancy = "none"
    for config in (
        ConnectionConfig(scheduler=RoundRobin),
        ConnectionConfig(version=0),
        ConnectionConfig(checksum=True),
    ):
        with pytest.raises(NotSupportedError):
            stack.socket(config=config)


def test_settings_that_no_option_has(stack: KernelStack, host: str) -> None:
    for config in (mptcp.TcpConfig(ecn=True), mptcp.TcpConfig(window_scaling=False), mptcp.TcpConfig(data_retries=3)):
        with pytest.raises(NotSupportedError, match=r"TcpConfig\..*: the kernel's stack has no option for it"):
            stack.socket(kind_of(host), config=ConnectionConfig(tcp=config))


def test_what_a_connection_cannot_have(stack: KernelStack, host_namespace: Namespace, host: str) -> None:
    host_namespace.sysctl("net.mptcp.pm_type", 1)
    client, accepted = connected(stack, host)
    with client, accepted:
        for call, number in (
            (lambda: client.set_weight(1, 2), errno.EOPNOTSUPP),
            (lambda: client.set_scheduler("round-robin"), errno.EOPNOTSUPP),
            (lambda: client.close_subflow(1, how=std.SHUT_WR), errno.EOPNOTSUPP),
            (lambda: setattr(client, "fate_sharing", True), errno.EOPNOTSUPP),
            (lambda: client.add_address(host), errno.EADDRNOTAVAIL),  # none that a path could begin at
        ):
            with pytest.raises(mptcp.MptcpError) as caught:
                call()
            assert caught.value.errno == number  # type: ignore[attr-defined]
            assert len(str(caught.value)) > 20
        client.sendall(b"on")
        assert accepted.recv(2) == b"on"


def test_profiles_that_can_be_had(stack: KernelStack) -> None:
    for name in ("bulk", "latency", "steady", "hot-standby", "handover", "interactive"):
        with stack.socket(proto=262) as sock:
            sock.profile = name
            assert sock.getsockopt(TCP, std.TCP_NODELAY) == (sock.profile == "latency")
    assert stack.supports("profile:latency")
    assert not stack.supports("profile:reliable")
    assert not stack.supports("profile:none")
    assert not stack.supports("nonsense")


def test_a_connection_says_what_can_be_done_with_it(stack: KernelStack, host_namespace: Namespace, host: str) -> None:
    client, accepted = connected(stack, host)
    with client, accepted:
        assert client.supports("subflows")
        assert not client.supports("set_scheduler")
        support = client.supports("open_subflow")
        assert not support
        assert "path manager" in support.reason
        assert client.supports("reset_subflow")
        client.sendall(b"?")
        accepted.recv(1)
        with pytest.raises(OSError, match="path_manager=userspace") as caught:
            client.open_subflow(local=(host, 0))
        assert caught.value.errno == errno.EOPNOTSUPP
    host_namespace.sysctl("net.mptcp.pm_type", 1)
    assert stack.supports("open_subflow")
    assert stack.supports("events")


# --- TLS --------------------------------------------------------------------------------------------------------------
def test_tls_keeps_the_interface(stack: KernelStack, host: str) -> None:
    authority = trustme.CA(key_type=trustme.KeyType.ECDSA)
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("server", key_type=trustme.KeyType.ECDSA).configure_cert(server_context)
    client_context = mptcp.create_default_context()
    authority.configure_trust(client_context)
    with mptcp.use(stack), listening(host) as listener:
        found: list[Any] = []

        def serve() -> None:
            accepted: Any = listener.accept()[0]
            with mptcp.wrap_socket(server_context, accepted, server_side=True) as tls:
                found.append((type(tls), tls.is_multipath))
                tls.sendall(tls.recv(5).upper())

        thread = threading.Thread(target=serve)
        thread.start()
        sock: Any = mptcp.create_connection(listener.getsockname()[:2], 5)
        with client_context.wrap_socket(sock, server_hostname="server") as tls:
            assert isinstance(tls, ssl.SSLSocket)
            assert isinstance(tls, mptcp.KernelSocket)
            assert sock.fileno() == -1
            assert tls.is_multipath
            assert len(tls.subflows()) == 1
            tls.sendall(b"hello")
            assert tls.recv(5) == b"HELLO"
            assert tls.version() == "TLSv1.3"
        thread.join(5)
    assert found == [(mptcp.KernelTlsSocket, True)]


def test_closing_the_stack(host_namespace: Namespace, host: str) -> None:
    stack = KernelStack(namespace=host_namespace.fileno())
    client, accepted = connected(stack, host)
    client.events()
    stack.close()
    stack.close()
    with pytest.raises(OSError) as caught:
        stack.socket()
    assert caught.value.errno == errno.ENETDOWN
    with client, accepted:
        client.sendall(b"on")
        assert accepted.recv(2) == b"on"


@pytest.mark.parametrize("family", [4])  # a lock is a lock
def test_a_child_forked_while_other_threads_work_on_the_connection(stack: KernelStack, host: str) -> None:
    client, accepted = connected(stack, host)
    events = client.events()
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            client.subflows()
            client.info()
            accepted.info()
            stack.control.supports("events")

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    codes = []
    for _ in range(100):
        child = os.fork()
        if not child:
            status = 1
            try:
                # A lock that a thread of the parent held would be held for ever here.
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
                signal.alarm(10)
                status = 0 if len(client.subflows()) == 1 and client.info().token and stack.monitor else 2
                client.close()
                accepted.close()
            finally:
                os._exit(status)
        codes.append(os.waitpid(child, 0)[1])
    stop.set()
    for thread in threads:
        thread.join()
    client.close()
    accepted.close()
    events.close()
    assert codes == [0] * 100


def test_a_forked_child_does_not_disturb_its_parent(stack: KernelStack, host: str) -> None:
    client, accepted = connected(stack, host)
    events = client.events()
    child = os.fork()
    if not child:
        status = 1
        try:
            right = len(client.subflows()) == 1 and client.connection_id
            client.close()
            accepted.close()
            status = 0 if right else 2
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    with client, accepted:
        client.sendall(b"on")
        assert accepted.recv(2) == b"on"
        for sock in (accepted, client):
            sock.shutdown(std.SHUT_WR)
        assert [event.kind for event in events][-1] is mptcp.EventKind.CLOSED
