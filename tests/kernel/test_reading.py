"""A connection of the kernel's as this package shows it: ids that stay, states, flags that change, and plain TCP."""

import errno
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mptcp.info import Endpoint, SubflowInfo, SubflowState
from mptcp.kernel import reading as reading_module
from mptcp.kernel import sockopt
from mptcp.kernel.diag import Diag
from mptcp.kernel.fallback import CLIENT_WITHOUT_MPTCP, NEVER_MPTCP, NOT_ASKED, PEER_WITHOUT_MPTCP
from mptcp.kernel.namespace import NetNamespace
from mptcp.kernel.reading import Reading, Surroundings, surroundings_of
from mptcp.testing.netns import Lab, Namespace

Pair = Callable[..., tuple[socket.socket, socket.socket]]
Eventually = Callable[..., None]


def read(sock: socket.socket, namespace: Namespace, **options: object) -> Reading:
    return Reading(sock.fileno(), NetNamespace(namespace.fileno()), **options)  # type: ignore[arg-type]


@pytest.fixture
def limits(lab: Lab) -> Lab:
    for namespace in (lab.client, lab.server):
        namespace.mptcp_limits(subflows=8, add_addr_accepted=8)
    return lab


def kind_of(family: int) -> int:
    return socket.AF_INET if family == 4 else socket.AF_INET6


def across(lab: Lab, make_pair: Pair, family: int, **options: object) -> tuple[socket.socket, socket.socket]:
    return make_pair(lab.client, lab.server_address(1, family), kind_of(family), server_in=lab.server, **options)


def two(lab: Lab, make_pair: Pair, eventually: Eventually, family: int = 4, *flags: str) -> tuple[Reading, Reading]:
    """Both ends of a connection whose client opens a second subflow."""
    lab.client.mptcp_endpoint(lab.client_address(2, family), "subflow", *flags, id=9)
    client, server = across(lab, make_pair, family)
    readings = read(client, lab.client), read(server, lab.server)
    for each in readings:
        eventually(lambda each=each: [s.state for s in each.subflows()] == [SubflowState.ACTIVE] * 2)
    return readings


def test_both_ends_of_two_subflows(limits: Lab, make_pair: Pair, eventually: Eventually, family: int) -> None:
    lab = limits
    client, server = two(lab, make_pair, eventually, family)
    first, second = client.subflows()
    assert (first.id, second.id) == (1, 2)
    assert (first.initial, second.initial) == (True, False)
    assert (first.local_address_id, second.local_address_id) == (0, 9)
    assert first.local.host == lab.client_address(1, family)
    assert second.local.host == lab.client_address(2, family)
    assert (first.interface, second.interface) == ("c1", "c2")
    assert {s.congestion_control for s in (first, second)} == {"reno"}
    assert first.srtt_us > 0
    assert first.cwnd_bytes >= 10 * first.mss_bytes > 0
    assert first.bytes_sent == first.bytes_acked == first.bytes_received == 1
    far = server.subflows()
    assert [s.remote_address_id for s in far] == [0, 9]
    assert [(s.remote, s.local) for s in far] == [(first.local, first.remote), (second.local, second.remote)]
    assert [s.initial for s in far] == [True, False]

    here, there = client.connection(), server.connection()
    assert here.is_multipath
    assert here.state == "established"
    assert here.version == 1
    assert here.remote_token == there.token != 0, "told by the subflow that this side opened"
    assert (here.bytes_sent, here.bytes_acked, here.bytes_received) == (1, 1, 1)
    assert here.receive_window_bytes > 0
    assert here.send_window_bytes > 0
    assert here.fallback_reason == ""
    assert [s.id for s in here.subflows] == [1, 2]


def test_ids_stay_when_the_first_subflow_is_reset(
    limits: Lab, make_pair: Pair, eventually: Eventually, family: int
) -> None:
    client, server = two(limits, make_pair, eventually, family)
    first, second = client.subflows()
    with Diag(NetNamespace(limits.client.fileno())) as diag:
        diag.destroy(first.local, first.remote)
    for each in (client, server):
        eventually(lambda each=each: len(each.subflows()) == 1)
    [left] = client.subflows()
    assert (left.id, left.local, left.remote, left.initial) == (2, second.local, second.remote, False)
    assert client.tuple_of(1) == (first.local, first.remote), "the kernel says 0.0.0.0 of it now"
    assert client.tuple_of(2) == (second.local, second.remote)
    assert client.tuple_of(3) is None
    assert [s.id for s in server.subflows()] == [2]
    assert client.connection().is_multipath


def test_a_subflow_of_the_second_kind_is_never_the_initial_one(
    limits: Lab, make_pair: Pair, eventually: Eventually, family: int
) -> None:
    """Somebody who looks for the first time after the initial subflow is gone."""
    client, _ = two(limits, make_pair, eventually, family)
    first, _ = client.subflows()
    with Diag(NetNamespace(limits.client.fileno())) as diag:
        diag.destroy(first.local, first.remote)
    eventually(lambda: len(client.subflows()) == 1)
    fresh = Reading(client._fd, client._namespace)
    [left] = fresh.subflows()
    assert not left.initial


def test_backup_of_either_side_is_seen(limits: Lab, make_pair: Pair, eventually: Eventually, family: int) -> None:
    client, server = two(limits, make_pair, eventually, family, "backup")
    assert [s.backup for s in client.subflows()] == [False, True]
    assert [s.backup for s in server.subflows()] == [False, True]
    limits.client.mptcp_endpoint_change(9, "nobackup")  # MP_PRIO
    for each in (client, server):
        eventually(lambda each=each: [s.backup for s in each.subflows()] == [False, False])


def test_details_are_asked_for_when_told_or_old(
    limits: Lab, make_pair: Pair, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, _ = two(limits, make_pair, eventually)
    asked: list[Endpoint] = []
    real = Surroundings.lookup

    def lookup(self: Surroundings, local: Endpoint, remote: Endpoint) -> object:
        asked.append(local)
        return real(self, local, remote)

    monkeypatch.setattr(Surroundings, "lookup", lookup)
    monkeypatch.setattr(reading_module, "DETAILS_AGE_NS", 1 << 62)
    client.subflows()
    asked.clear()
    client.subflows()
    assert not asked
    client.invalidate()
    client.subflows()
    assert len(asked) == 2
    monkeypatch.setattr(reading_module, "DETAILS_AGE_NS", -1)
    client.subflows()
    assert len(asked) == 4


def test_connecting_and_stale(limits: Lab, make_pair: Pair, eventually: Eventually) -> None:
    """A path that swallows everything: a subflow that opens there is connecting, one that sends there turns stale."""
    client_socket, server_socket = make_pair(limits.client, limits.server_address(1), server_in=limits.server)
    client = read(client_socket, limits.client)
    limits.blackhole(2)
    limits.client.mptcp_endpoint(limits.client_address(2), "subflow")
    eventually(lambda: [s.state for s in client.subflows()] == [SubflowState.ACTIVE, SubflowState.CONNECTING])
    limits.blackhole(1)
    client_socket.sendall(b"into the hole")
    eventually(lambda: client.subflows()[0].state is SubflowState.STALE)
    assert client.subflows()[0].in_flight_bytes > 0
    assert client.connection().send_buffered_bytes == len(b"into the hole")
    limits.heal(1)
    assert server_socket.recv(13, socket.MSG_WAITALL) == b"into the hole"
    eventually(lambda: client.subflows()[0].state is SubflowState.ACTIVE)


def test_before_during_and_after(
    host_namespace: Namespace, make_pair: Pair, eventually: Eventually, family: int
) -> None:
    host = "127.0.0.1" if family == 4 else "::1"
    with host_namespace.entered(), socket.socket(kind_of(family), socket.SOCK_STREAM, 262) as sock:
        unconnected = read(sock, host_namespace)
        assert unconnected.subflows() == []
        assert unconnected.connection().state == "closed"
        sock.bind((host, 0))
        sock.listen()
        assert unconnected.subflows() == []
        assert unconnected.connection().state == "closed"
    client_socket, server_socket = make_pair(host_namespace, host, kind_of(family))
    client, server = read(client_socket, host_namespace), read(server_socket, host_namespace)
    client_socket.shutdown(socket.SHUT_WR)
    server_socket.sendall(b"x" * 10)
    eventually(lambda: client.connection().receive_buffered_bytes == 10)
    assert client.connection().state == server.connection().state == "established"
    server_socket.close()
    eventually(lambda: client.connection().state != "established" and client.subflows() == [])


def test_v4_in_v6(host_namespace: Namespace, make_pair: Pair) -> None:
    client, _ = make_pair(host_namespace, "::ffff:127.0.0.1", socket.AF_INET6)
    [subflow] = read(client, host_namespace).subflows()
    assert subflow.local.address == bytes([127, 0, 0, 1])
    assert subflow.congestion_control == "reno", "sock_diag has found it"


@pytest.mark.parametrize(
    ("client", "server", "reasons"),
    [
        (262, 0, (PEER_WITHOUT_MPTCP, NEVER_MPTCP)),
        (0, 262, (NEVER_MPTCP, NEVER_MPTCP)),
    ],
)
def test_plain_tcp(lab: Lab, make_pair: Pair, family: int, client: int, server: int, reasons: tuple[str, str]) -> None:
    protocols = {"client_protocol": client, "server_protocol": server}
    sockets = across(lab, make_pair, family, **protocols)
    for sock, namespace, reason in zip(sockets, (lab.client, lab.server), reasons, strict=True):
        info = read(sock, namespace).connection()
        assert not info.is_multipath
        assert info.fallback_reason == reason
        assert (info.token, info.version, info.state) == (0, -1, "established")
        assert (info.bytes_sent, info.bytes_received) == (1, 1)
        [subflow] = info.subflows
        assert subflow.initial
        assert (subflow.id, subflow.congestion_control) == (1, "reno")
        assert subflow.local == Endpoint.parse(*sock.getsockname()[:2])
        assert subflow.remote == Endpoint.parse(*sock.getpeername()[:2])
        assert subflow.interface


def test_reason_where_the_role_is_known(lab: Lab, make_pair: Pair, family: int) -> None:
    client, server = across(lab, make_pair, family, client_protocol=0)
    assert read(client, lab.client, accepted=False).fallback_reason == NOT_ASKED
    assert read(server, lab.server, accepted=True).fallback_reason == CLIENT_WITHOUT_MPTCP


def test_options_stripped_from_the_handshake(lab: Lab, make_pair: Pair, family: int) -> None:
    lab.strip_mptcp(syn_only=True)
    client, server = across(lab, make_pair, family)
    assert read(client, lab.client).fallback_reason == PEER_WITHOUT_MPTCP
    assert read(server, lab.server, accepted=True).fallback_reason == CLIENT_WITHOUT_MPTCP


def test_options_stripped_from_data(lab: Lab, make_pair: Pair, family: int) -> None:
    client_socket, server_socket = across(lab, make_pair, family)
    client, server = read(client_socket, lab.client), read(server_socket, lab.server)
    assert client.fallback_reason == server.fallback_reason == ""
    assert client.subflows()
    assert server.subflows()
    lab.strip_mptcp(data_only=True)
    for _ in range(3):
        client_socket.sendall(b".")
        server_socket.recv(1)
        server_socket.sendall(b".")
        client_socket.recv(1)
    for each in (client, server):
        assert each.fallback_reason.startswith("data came without a mapping")
        [subflow] = each.subflows()
        assert subflow.id == 1


def test_a_closed_descriptor(host_namespace: Namespace, make_pair: Pair) -> None:
    client, _ = make_pair(host_namespace, "127.0.0.1")
    reading = read(client, host_namespace)
    client.close()
    for call in (reading.subflows, reading.connection):
        with pytest.raises(OSError) as caught:
            call()
        assert caught.value.errno == errno.EBADF


def test_without_sock_diag(host_namespace: Namespace, make_pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a seccomp filter withholds netlink, figures are still there."""

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "no netlink here")

    monkeypatch.setattr(reading_module, "Diag", refuse)
    monkeypatch.setattr(reading_module, "local_addresses", refuse)
    client, _ = make_pair(host_namespace, "127.0.0.1")
    namespace = NetNamespace(host_namespace.fileno())
    reading = Reading(client.fileno(), namespace, surroundings=Surroundings(namespace))
    [subflow] = reading.subflows()
    assert subflow.state is SubflowState.ACTIVE
    assert subflow.initial
    assert subflow.congestion_control == ""
    assert reading.connection().state == "established"


def test_without_full_info(
    limits: Lab, make_pair: Pair, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel before 6.5 gives no ids: they stay nevertheless."""
    monkeypatch.setattr(sockopt, "_read_full", lambda fd, buffers: -errno.EOPNOTSUPP)
    client, _ = two(limits, make_pair, eventually)
    first, second = client.subflows()
    assert (first.id, second.id) == (1, 2)
    with Diag(NetNamespace(limits.client.fileno())) as diag:
        diag.destroy(first.local, first.remote)
    eventually(lambda: len(client.subflows()) == 1)
    assert [s.id for s in client.subflows()] == [2]


def test_connections_of_a_namespace_share_their_surroundings(host_namespace: Namespace, namespaces: None) -> None:
    one, other = NetNamespace(host_namespace.fileno()), NetNamespace(host_namespace.fileno())
    shared = surroundings_of(one)
    assert surroundings_of(other) is shared
    assert surroundings_of(NetNamespace()) is not shared


def test_a_forked_child_uses_what_it_inherited(host_namespace: Namespace, make_pair: Pair) -> None:
    client, _ = make_pair(host_namespace, "127.0.0.1")
    fd = client.fileno()
    program = (
        "import os, sys\n"
        "from mptcp.kernel.namespace import NetNamespace\n"
        "from mptcp.kernel.reading import Reading\n"
        "fd, where = int(sys.argv[1]), NetNamespace(int(sys.argv[2]))\n"
        "reading = Reading(fd, where); reading.subflows()\n"
        "pid = os.fork()\n"
        "for _ in range(300):\n"
        "    reading.invalidate()\n"
        "    assert [s.congestion_control for s in reading.subflows()] == ['reno']\n"
        "if not pid: os._exit(0)\n"
        "assert os.waitpid(pid, 0)[1] == 0\n"
        "print('both')\n"
    )
    source = str(Path(reading_module.__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", program, str(fd), str(host_namespace.fileno())],
        check=False, capture_output=True, text=True, pass_fds=(fd, host_namespace.fileno()), timeout=30,
        env={**os.environ, "PYTHONPATH": source},
    )  # fmt: skip
    assert done.stdout == "both\n", done.stderr


def test_a_subflow_bound_to_an_interface(lab: Lab, eventually: Eventually) -> None:
    with lab.server.entered(), socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262) as listener:
        listener.bind(("0.0.0.0", 0))
        listener.listen()
        with lab.client.entered(), socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"c2")
            client.connect((lab.server_address(2), listener.getsockname()[1]))
            [subflow] = read(client, lab.client).subflows()
            assert (subflow.interface, subflow.congestion_control) == ("c2", "reno")


def test_snapshots_are_the_callers(host_namespace: Namespace, make_pair: Pair) -> None:
    client, _ = make_pair(host_namespace, "127.0.0.1")
    reading = read(client, host_namespace)
    [info] = reading.subflows()
    info.local_address_id = 77
    [again] = reading.subflows()
    assert isinstance(again, SubflowInfo)
    assert again.local_address_id == 0
