"""Options of one subflow by BPF: every option of the table, on that subflow and on no other."""

import errno
import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mptcp.info import Endpoint, SubflowState
from mptcp.kernel import bpf, sockopt
from mptcp.kernel.bpf.option_table import MAX_VALUE, OPTIONS, SOL_IPV6, SOL_SOCKET, SOL_TCP, SubflowOption
from mptcp.kernel.bpf.subflow_options import SubflowOptions
from mptcp.kernel.namespace import NetNamespace
from mptcp.testing.netns import Namespace

Pair = tuple[socket.socket, socket.socket]

#: What to set where 1 would not do.
VALUES = {
    "SO_SNDBUF": 50_000, "SO_RCVBUF": 50_000, "SO_MARK": 34, "SO_MAX_PACING_RATE": 1_000_000, "TCP_MAXSEG": 1_000,
    "TCP_KEEPIDLE": 77, "TCP_USER_TIMEOUT": 1_234, "TCP_WINDOW_CLAMP": 60_000, "TCP_NOTSENT_LOWAT": 12_345,
    "TCP_RTO_MAX_MS": 5_000, "TCP_BPF_IW": 20, "TCP_BPF_SNDCWND_CLAMP": 20, "TCP_BPF_DELACK_MAX": 50_000,
    "TCP_BPF_RTO_MIN": 50_000, "IP_TOS": 0x10, "IPV6_TCLASS": 0x10,
}  # fmt: skip
#: What is read where it is not what was set; None: that depends.
READ = {
    "SO_SNDBUF": 100_000,
    "SO_RCVBUF": 100_000,
    "TCP_MAXSEG": None,
    "TCP_BPF_DELACK_MAX": None,
    "TCP_BPF_RTO_MIN": None,
}


def ends(sock: socket.socket) -> tuple[Endpoint, Endpoint]:
    local, remote = sock.getsockname(), sock.getpeername()
    return Endpoint.parse(*local[:2]), Endpoint.parse(*remote[:2])


@pytest.fixture(scope="module")
def namespace(namespaces: None) -> Iterator[Namespace]:
    told = SubflowOptions().supports()
    if not told:
        pytest.skip(f"{told.reason}: {told.fix}")
    with Namespace("options") as namespace:
        namespace.ip("link set lo up")
        namespace.sysctl("net.ipv4.tcp_congestion_control", "reno")
        yield namespace


@pytest.fixture(scope="module")
def options(namespace: Namespace) -> Iterator[SubflowOptions]:
    with SubflowOptions(NetNamespace(namespace.fileno())) as options:
        yield options


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.label)
def test_each_option_as_the_table_says(
    namespace: Namespace, options: SubflowOptions, make_pair: Callable[..., Pair], option: SubflowOption
) -> None:
    family, host = (socket.AF_INET6, "::1") if option.level == SOL_IPV6 else (socket.AF_INET, "127.0.0.1")
    sock, peer = make_pair(namespace, host, family, full=False)
    subflow, other = ends(sock), ends(peer)
    value: bytes = struct.pack("=i", VALUES.get(option.label, 1))
    if option.label == "TCP_CONGESTION":
        value = b"cubic" if "cubic" in namespace.sysctl("net.ipv4.tcp_available_congestion_control") else b"reno"
    elif option.label == "SO_BINDTODEVICE":
        value = b"lo"
    before = None
    if option.can_get:
        before = options.get(*other, option.level, option.name, option.size)
    else:
        with pytest.raises(OSError, match=option.label) as caught:
            options.get(*subflow, option.level, option.name, option.size)
        assert caught.value.errno == errno.ENOPROTOOPT
    if not option.can_set:
        with pytest.raises(OSError, match=option.label) as caught:
            options.set(*subflow, option.level, option.name, value)
        assert caught.value.errno == errno.ENOPROTOOPT
        return
    try:
        options.set(*subflow, option.level, option.name, value)
    except OSError as error:
        if error.errno == errno.ENOPROTOOPT and option.note.startswith("Linux "):
            pytest.skip(f"this kernel does not know {option.label} ({option.note})")
        raise
    if option.can_get:
        got = options.get(*subflow, option.level, option.name, option.size)
        if option.size == 4:
            number = struct.unpack("=i", got)[0]
            expected = READ.get(option.label, struct.unpack("=i", value)[0])
            assert number == expected if expected is not None else number > 0
        else:
            assert got.rstrip(b"\0") == value
        # Not on the other end of the connection, which is on the same host.
        assert options.get(*other, option.level, option.name, option.size) == before
    elif option.label == "SO_BINDTODEVICE":
        bound = options.get(*subflow, SOL_SOCKET, 62)
        assert struct.unpack("=i", bound)[0] == 1


@pytest.mark.parametrize(("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_one_subflow_of_two_that_share_their_ports(
    namespace: Namespace, options: SubflowOptions, family: int, host: str
) -> None:
    """Only the addresses tell them apart."""
    near = ["127.0.0.1", "127.0.0.2"] if family == socket.AF_INET else ["::1", "fd00::9"]
    namespace.ip("address replace fd00::9/128 dev lo nodad", family=6)
    opened: list[socket.socket] = []
    with namespace.entered():
        listener = socket.create_server((host, 0), family=family)
        opened.append(listener)
        port = 0
        for address in near:
            sock = socket.socket(family, socket.SOCK_STREAM)
            opened.append(sock)
            sock.bind((address, port))
            port = sock.getsockname()[1]
            sock.connect(listener.getsockname())
    first, second = (ends(sock) for sock in opened[1:])
    options.set(*second, SOL_TCP, socket.TCP_USER_TIMEOUT, struct.pack("=i", 777))
    assert struct.unpack("=i", options.get(*second, SOL_TCP, socket.TCP_USER_TIMEOUT)) == (777,)
    assert struct.unpack("=i", options.get(*first, SOL_TCP, socket.TCP_USER_TIMEOUT)) == (0,)
    for sock in opened:
        sock.close()


def test_ipv4_on_an_ipv6_socket(namespace: Namespace, options: SubflowOptions) -> None:
    """Whichever way its addresses are written."""
    with namespace.entered():
        listener = socket.socket(socket.AF_INET6, socket.SOCK_STREAM, 262)
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind(("::", 0))
        listener.listen()
        client = socket.create_connection(("127.0.0.1", listener.getsockname()[1]))
    server, _ = listener.accept()
    local, remote = ends(server)
    assert server.family == socket.AF_INET6
    options.set(local, remote, SOL_SOCKET, socket.SO_PRIORITY, struct.pack("=i", 5))
    plain = tuple(Endpoint(end.address[-4:], end.port) for end in (local, remote))
    assert options.get(*plain, SOL_SOCKET, socket.SO_PRIORITY) == struct.pack("=i", 5)
    for sock in (server, client, listener):
        sock.close()


def test_the_namespace_counts(
    host_namespace: Namespace, options: SubflowOptions, make_pair: Callable[..., Pair]
) -> None:
    """The same addresses and ports in another namespace are another subflow."""
    sock, _ = make_pair(host_namespace, "127.0.0.1")
    with pytest.raises(OSError, match=r"no subflow from 127\.0\.0\.1") as caught:
        options.get(*ends(sock), SOL_TCP, socket.TCP_NODELAY)
    assert caught.value.errno == errno.ENOENT
    with SubflowOptions(NetNamespace(host_namespace.fileno())) as here:
        assert here.get(*ends(sock), SOL_TCP, socket.TCP_NODELAY) == bytes(4)


def test_wrong_values(
    namespace: Namespace, options: SubflowOptions, make_pair: Callable[..., Pair], family: int
) -> None:
    kind, host = (socket.AF_INET, "127.0.0.1") if family == 4 else (socket.AF_INET6, "::1")
    subflow = ends(make_pair(namespace, host, kind)[0])
    for value, number in ((struct.pack("=i", -5), errno.EINVAL), (b"", errno.EINVAL), (b"\1", errno.EINVAL)):
        with pytest.raises(OSError, match="TCP_USER_TIMEOUT does not take this value") as caught:
            options.set(*subflow, SOL_TCP, socket.TCP_USER_TIMEOUT, value)
        assert caught.value.errno == number
    with pytest.raises(OSError, match="no congestion control of that name") as caught:
        options.set(*subflow, SOL_TCP, socket.TCP_CONGESTION, b"nosuch")
    assert caught.value.errno == errno.ENOENT
    with pytest.raises(OSError, match="option 4242 of level 6 cannot be set") as caught:
        options.set(*subflow, SOL_TCP, 4242, bytes(4))
    assert caught.value.errno == errno.ENOPROTOOPT
    with pytest.raises(OSError, match="option 1 of level 284 cannot be read") as caught:
        options.get(*subflow, sockopt.SOL_MPTCP, 1)
    assert caught.value.errno == errno.ENOPROTOOPT
    with pytest.raises(OSError, match=f"at most {MAX_VALUE} octets") as caught:
        options.set(*subflow, SOL_TCP, socket.TCP_CONGESTION, bytes(MAX_VALUE + 1))
    assert caught.value.errno == errno.EINVAL
    with pytest.raises(OSError, match="at least one octet") as caught:
        options.get(*subflow, SOL_TCP, socket.TCP_USER_TIMEOUT, 0)
    assert caught.value.errno == errno.EINVAL
    with pytest.raises(OSError, match="cannot be set") as caught:
        options.set(*subflow, socket.SOL_SOCKET, socket.SO_RCVLOWAT, bytes(4))
    assert caught.value.errno == errno.ENOPROTOOPT
    for wrong, says, number in (
        (
            (subflow[0], Endpoint.parse("2001:db8::1" if family == 4 else "192.0.2.1", 9)),
            "not of the same family",
            errno.EINVAL,
        ),
        ((subflow[0], Endpoint(subflow[1].address, 1 << 16)), "no addresses with ports", errno.EINVAL),
        ((subflow[0], Endpoint(subflow[1].address, 9)), "there is no subflow from", errno.ENOENT),
    ):
        with pytest.raises(OSError, match=says) as caught:
            options.get(*wrong, SOL_TCP, socket.TCP_USER_TIMEOUT)
        assert caught.value.errno == number
    assert options.get(*subflow, SOL_TCP, socket.TCP_USER_TIMEOUT, 2) == b"\0\0"


def test_threads_do_not_mix_their_answers(
    namespace: Namespace, options: SubflowOptions, make_pair: Callable[..., Pair]
) -> None:
    subflows = [ends(make_pair(namespace, "127.0.0.1", full=False)[0]) for _ in range(4)]
    wrong: list[tuple[int, int]] = []

    def work(number: int) -> None:
        for i in range(10):
            wanted = 1000 * number + i + 1
            options.set(*subflows[number], SOL_TCP, socket.TCP_USER_TIMEOUT, struct.pack("=i", wanted))
            (got,) = struct.unpack("=i", options.get(*subflows[number], SOL_TCP, socket.TCP_USER_TIMEOUT))
            if got != wanted:
                wrong.append((wanted, got))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_after_a_fork_the_child_has_a_program_of_its_own(
    namespace: Namespace, options: SubflowOptions, make_pair: Callable[..., Pair]
) -> None:
    subflow = ends(make_pair(namespace, "127.0.0.1")[0])
    options.set(*subflow, SOL_TCP, socket.TCP_USER_TIMEOUT, struct.pack("=i", 321))
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.write(writer, options.get(*subflow, SOL_TCP, socket.TCP_USER_TIMEOUT))
        finally:
            os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert os.read(reader, 4) == struct.pack("=i", 321)
    os.close(reader)
    os.close(writer)
    assert options.get(*subflow, SOL_TCP, socket.TCP_USER_TIMEOUT) == struct.pack("=i", 321)


def test_closing_lets_go_of_everything(namespace: Namespace, make_pair: Callable[..., Pair]) -> None:
    subflow = ends(make_pair(namespace, "127.0.0.1")[0])
    before = set(os.listdir("/proc/self/fd"))
    here = NetNamespace(namespace.fileno())
    options = SubflowOptions(here)
    options.get(*subflow, SOL_TCP, socket.TCP_NODELAY)
    options.close()
    options.close()
    assert options.get(*subflow, SOL_TCP, socket.TCP_NODELAY) == bytes(4), "it can be used again"
    options.close()
    here.close()
    assert not set(os.listdir("/proc/self/fd")) - before


def test_without_the_capabilities(namespaces: None) -> None:
    """Root of a user namespace is not enough, and is told so."""
    program = (
        "from mptcp.kernel.bpf.subflow_options import SubflowOptions; from mptcp.info import Endpoint\n"
        "options, end = SubflowOptions(), Endpoint.parse('127.0.0.1', 1)\n"
        "told = options.supports(); print(told.ok, '|', told.reason)\n"
        "try: options.get(end, end, 6, 1)\n"
        "except OSError as error: print(error.errno, '|', error.strerror)"
    )
    source = str(Path(bpf.__file__).parents[3])
    done = subprocess.run(
        ["unshare", "-Urn", sys.executable, "-c", program],
        check=False, capture_output=True, text=True, timeout=30, env={**os.environ, "PYTHONPATH": source},
    )  # fmt: skip
    if done.stderr.startswith("unshare"):
        pytest.skip(f"user namespaces cannot be nested here: {done.stderr.strip()}")
    told, error = done.stdout.splitlines()
    if "does not describe its types" in told:
        pytest.skip(told)
    assert told.startswith("False | options of one subflow need CAP_BPF and CAP_PERFMON"), done
    assert error.startswith(f"{errno.EPERM} | "), done
    assert "CAP_BPF and CAP_PERFMON" in error


def test_of_a_connection_by_the_number_of_a_subflow(
    make_steered: Callable[..., Any], eventually: Callable[..., None], options: SubflowOptions
) -> None:
    """Through ``KernelConnection``; TCP_INFO without any privilege."""
    pair = make_steered()
    number = pair.client.open_subflow(pair.local(2), pair.remote(2))
    eventually(lambda: [s.state for s in pair.client.subflows()] == [SubflowState.ACTIVE] * 2)
    pair.client.set_subflow_option(number, SOL_TCP, socket.TCP_USER_TIMEOUT, struct.pack("=i", 999))
    read = [pair.client.get_subflow_option(n, SOL_TCP, socket.TCP_USER_TIMEOUT, 4) for n in (1, number)]
    assert [struct.unpack("=i", value)[0] for value in read] == [0, 999]
    for info in pair.client.subflows():
        octets = pair.client.get_subflow_option(info.id, SOL_TCP, socket.TCP_INFO, 104)
        assert len(octets) == 104
        assert struct.unpack_from("=I", octets, 16) == (info.mss_bytes,)
    with pytest.raises(OSError, match="no subflow 77") as caught:
        pair.client.get_subflow_option(77, SOL_TCP, socket.TCP_INFO, 104)
    assert caught.value.errno == errno.EINVAL
    # The one errno that means two things: no such subflow, and no such congestion control.
    for missing, expected in ((77, errno.EINVAL), (number, errno.ENOENT)):
        with pytest.raises(OSError) as caught:
            pair.client.set_subflow_option(missing, SOL_TCP, socket.TCP_CONGESTION, b"nosuch")
        assert caught.value.errno == expected
