"""The supervisor's decisions about a watched child, and that whoever waits is always answered."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Callable

import pytest

from mptcp.kernel.launch import options
from mptcp.kernel.launch import supervisor as module
from mptcp.kernel.launch.exceptions import Exceptions
from mptcp.kernel.launch.filter import own_architecture
from mptcp.kernel.launch.options import IPPROTO_MPTCP
from mptcp.kernel.launch.supervisor import Report, Settings, Supervisor

from .conftest import Watched

Watch = Callable[..., Watched]
SO_PROTOCOL = 38
TCP, MPTCP = socket.IPPROTO_TCP, IPPROTO_MPTCP


class Scene:
    """A child, and a supervisor whose report is read from a pipe."""

    def __init__(self, child: Watched, excepted: Exceptions, watched: tuple[tuple[int, int], ...]) -> None:
        self.child = child
        self._reading, writing = os.pipe()
        self.report = Report(writing)
        self.supervisor = Supervisor(child.listener, own_architecture(), Settings(excepted, watched), self.report)

    def run(self) -> str:
        """Answers until the child has ended; its result."""
        self.supervisor.run()
        return self.child.result()

    def said(self) -> list[str]:
        for fd in self.report._fds[:]:
            self.report.let_go(fd)
        with open(self._reading) as file:
            return [line.rstrip("\n") for line in file]


@pytest.fixture
def scene(watch: Watch) -> Callable[..., Scene]:
    def make(
        work: Callable[[], object], excepted: Exceptions | None = None, watched: tuple[tuple[int, int], ...] = ()
    ) -> Scene:
        excepted = excepted or Exceptions()
        if taken := set(watched) - set(options.refused_options()):
            pytest.skip(f"this kernel's MPTCP takes {', '.join(options.option_name(*key) for key in taken)}")
        return Scene(watch(work, watched, addresses=excepted.need_addresses), excepted, watched)

    return make


def protocol(sock: socket.socket) -> int:
    return sock.getsockopt(socket.SOL_SOCKET, SO_PROTOCOL)


def test_sockets_are_mptcp_with_their_flags(scene: Callable[..., Scene]) -> None:
    def work() -> object:
        plain = socket.socket()
        waiting_not = socket.socket(socket.AF_INET6, socket.SOCK_STREAM | socket.SOCK_NONBLOCK, TCP)
        datagram = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        return (
            protocol(plain), os.get_blocking(plain.fileno()), os.get_inheritable(plain.fileno()),
            protocol(waiting_not), os.get_blocking(waiting_not.fileno()), protocol(datagram),
        )  # fmt: skip

    stage = scene(work)
    assert stage.run() == repr((MPTCP, True, False, MPTCP, False, 17))
    four, six = stage.said()
    assert four.startswith("mptcp run: ")
    assert f"[{stage.child.pid}]: socket " in four
    assert four.endswith("(IPv4) is MPTCP")
    assert six.endswith("(IPv6) is MPTCP")


def test_where_the_kernel_refuses_the_call_goes_on(
    scene: Callable[..., Scene], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.ENOPROTOOPT, "Protocol not available")

    stage = scene(lambda: protocol(socket.socket()))
    monkeypatch.setattr(options, "make_socket", refuse)
    assert stage.run() == str(TCP)
    assert stage.said()[0].endswith("socket stays TCP: Protocol not available")


@pytest.mark.parametrize(
    "error", [RuntimeError("a mistake of ours"), FileNotFoundError(), ValueError("/proc"), OSError()]
)
def test_whatever_happens_the_program_is_answered(
    scene: Callable[..., Scene], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object) -> bool:
        raise error

    stage = scene(lambda: protocol(socket.socket()))
    monkeypatch.setattr(Supervisor, "_decide", fail)
    assert stage.run() == str(TCP)


def test_programs_by_name(scene: Callable[..., Scene]) -> None:
    name = os.path.basename(os.readlink("/proc/self/exe"))
    stage = scene(lambda: protocol(socket.socket()), Exceptions.parse(programs=[name]))
    assert stage.run() == str(TCP)
    assert stage.said()[0].endswith(f"socket stays TCP: {name} is excepted")
    assert scene(lambda: protocol(socket.socket()), Exceptions.parse(programs=["other"])).run() == str(MPTCP)


def kind_of(host: str) -> int:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


@pytest.mark.usefixtures("loopback")
@pytest.mark.parametrize(
    ("host", "networks", "ports", "expected"),
    [
        ("127.0.0.1", ["127.0.0.0/8"], [], TCP),
        ("127.0.0.1", [], ["1-65535"], TCP),
        ("127.0.0.1", ["10.0.0.0/8"], [], MPTCP),
        ("127.0.0.1", ["::1"], [], MPTCP),
        ("::1", ["::/64"], [], TCP),
        ("::1", [], ["1-65535"], TCP),
        ("::1", ["fd00::/8"], [], MPTCP),
        ("::1", ["127.0.0.1"], [], MPTCP),
        ("::ffff:127.0.0.1", ["127.0.0.0/8"], [], TCP),
    ],
)
def test_destinations(
    scene: Callable[..., Scene], host: str, networks: list[str], ports: list[str], expected: int
) -> None:
    with socket.create_server(
        (host.removeprefix("::ffff:"), 0), family=kind_of(host.removeprefix("::ffff:"))
    ) as server:

        def work() -> object:
            sock = socket.socket(kind_of(host))
            sock.settimeout(30)
            sock.connect((host, server.getsockname()[1]))
            return protocol(sock), sock.getpeername()[0] == host, sock.gettimeout()

        assert scene(work, Exceptions.parse(networks, ports)).run() == repr((expected, True, 30.0))


@pytest.mark.usefixtures("loopback")
@pytest.mark.parametrize(("host", "wildcard"), [("127.0.0.1", "0.0.0.0"), ("::1", "::")])
def test_listeners_on_an_excepted_address(scene: Callable[..., Scene], host: str, wildcard: str) -> None:
    def work() -> object:
        return [protocol(socket.create_server((each, 0), family=kind_of(host))) for each in (host, wildcard)]

    stage = scene(work, Exceptions.parse([host]))
    assert stage.run() == repr([TCP, MPTCP])
    assert any(f"is TCP now: {host} port 0 is excepted" in line for line in stage.said())


@pytest.mark.usefixtures("loopback")
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_bound_socket_stays_and_the_user_is_told(scene: Callable[..., Scene], host: str) -> None:
    with socket.create_server((host, 0), family=kind_of(host)) as server:

        def work() -> object:
            sock = socket.socket(kind_of(host))
            sock.bind(("", 0))
            sock.connect(server.getsockname())
            return protocol(sock)

        stage = scene(work, Exceptions.parse([host]))
        assert stage.run() == str(MPTCP)
        assert stage.said()[-1].endswith("it has been bound before")


def test_addresses_in_no_memory_are_the_kernels_business(scene: Callable[..., Scene]) -> None:
    def work() -> object:
        import ctypes

        libc = ctypes.CDLL(None, use_errno=True)
        sock = socket.socket()
        errors = []
        for address, length in ((0, 16), (1 << 63, 16), ((1 << 64) - 1, 128), (8, -1), (0, 0), (8, 1 << 30)):
            libc.connect(sock.fileno(), ctypes.c_void_p(address), length)
            errors.append(ctypes.get_errno())
        return errors, protocol(sock)

    allowed, excepted = scene(work).run(), scene(work, Exceptions.parse(["127.0.0.0/8"])).run()
    assert allowed == excepted
    assert str(errno.EFAULT) in allowed


USER_TIMEOUT, QUICKACK, TCLASS = (6, 18), (6, 12), (41, 67)


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_an_option_of_tcp_makes_a_fresh_socket_tcp(scene: Callable[..., Scene], family: int) -> None:
    def work() -> object:
        sock = socket.socket(family)
        sock.setsockopt(*USER_TIMEOUT, 1000)
        return protocol(sock), sock.getsockopt(*USER_TIMEOUT)

    stage = scene(work, None, (USER_TIMEOUT,))
    assert stage.run() == repr((TCP, 1000))
    assert stage.said()[-1].endswith("is TCP now: TCP_USER_TIMEOUT is for TCP only")


@pytest.mark.usefixtures("loopback")
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_later_the_option_fails_as_the_kernel_says(scene: Callable[..., Scene], host: str) -> None:
    def work() -> object:
        sock = socket.create_server((host, 0), family=kind_of(host))
        with contextlib.suppress(OSError):
            sock.setsockopt(*USER_TIMEOUT, 1000)
            return "it did not fail"
        return protocol(sock)

    stage = scene(work, None, (USER_TIMEOUT,))
    assert stage.run() == str(MPTCP)
    assert "TCP_USER_TIMEOUT fails" in stage.said()[-1]


def test_a_program_that_makes_mptcp_itself_is_left_alone(scene: Callable[..., Scene]) -> None:
    def work() -> object:
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, MPTCP)
        errors = []
        for option in (USER_TIMEOUT, QUICKACK):
            try:
                sock.setsockopt(*option, 1)
            except OSError as error:
                errors.append(error.errno)
        with contextlib.suppress(OSError):
            sock.connect(("127.0.0.1", 1))
        return protocol(sock), errors

    stage = scene(work, Exceptions.parse(["127.0.0.1"]), (USER_TIMEOUT, QUICKACK))
    assert stage.run() == repr((MPTCP, [errno.ENOPROTOOPT, errno.ENOPROTOOPT]))
    assert stage.said() == []


def test_only_so_many_sockets_are_remembered(scene: Callable[..., Scene], monkeypatch: pytest.MonkeyPatch) -> None:
    def work() -> object:
        socks = [socket.socket() for _ in range(3)]
        for sock in socks:
            with contextlib.suppress(OSError):
                sock.setsockopt(*USER_TIMEOUT, 1000)
        return [protocol(sock) for sock in socks]

    monkeypatch.setattr(module, "MAX_KNOWN_SOCKETS", 2)
    assert scene(work, None, (USER_TIMEOUT,)).run() == repr([MPTCP, TCP, TCP])


@pytest.mark.usefixtures("loopback")
def test_what_is_only_a_hint_counts_as_done(scene: Callable[..., Scene]) -> None:
    def work() -> object:
        fresh = socket.socket(socket.AF_INET6)
        fresh.setsockopt(*QUICKACK, 1)
        server = socket.create_server(("::1", 0), family=socket.AF_INET6)
        fresh.connect(server.getsockname())
        fresh.setsockopt(*QUICKACK, 1)
        fresh.setsockopt(*TCLASS, 8)
        marked = socket.socket(socket.AF_INET6)
        marked.setsockopt(*TCLASS, 8)
        return protocol(fresh), protocol(marked)

    stage = scene(work, None, (QUICKACK, TCLASS))
    assert stage.run() == repr((MPTCP, TCP))
    assert sum("is ignored" in line for line in stage.said()) == 3


@pytest.mark.usefixtures("loopback")
def test_options_of_ipv6_do_not_cost_an_ipv4_socket_its_mptcp(scene: Callable[..., Scene]) -> None:
    def work() -> object:
        fresh, connected = socket.socket(), socket.socket()
        server = socket.create_server(("127.0.0.1", 0))
        connected.connect(server.getsockname())
        errors = []
        for sock in (fresh, connected):
            try:
                sock.setsockopt(*TCLASS, 8)
            except OSError as error:
                errors.append(error.errno in (errno.ENOPROTOOPT, errno.EOPNOTSUPP))
        return errors, protocol(fresh), protocol(connected)

    stage = scene(work, None, (TCLASS,))
    assert stage.run() == repr(([True, True], MPTCP, MPTCP))


def test_options_of_other_sockets_are_none_of_its_business(scene: Callable[..., Scene]) -> None:
    def work() -> object:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 9)
        errors = []
        for fd in (9999, 0, -1):
            try:
                socket.socket.setsockopt(socket.socket(fileno=os.dup(sock.fileno())), 0, socket.IP_TTL, 9)
                with open(os.devnull) as file:
                    import ctypes

                    libc = ctypes.CDLL(None, use_errno=True)
                    libc.setsockopt(file.fileno() if fd == 0 else fd, 0, socket.IP_TTL, b"\1\0\0\0", 4)
                    errors.append(ctypes.get_errno())
            except OSError as error:
                errors.append(error.errno or 0)
        return sock.getsockopt(socket.IPPROTO_IP, socket.IP_TTL), errors

    stage = scene(work, None, ((0, socket.IP_TTL),))
    assert stage.run() == repr((9, [errno.EBADF, errno.ENOTSOCK, errno.EBADF]))


def test_a_report_that_nobody_reads_never_waits() -> None:
    reading, writing = os.pipe()
    report = Report(writing)
    line = "x" * 3000
    for _ in range(40):
        report.say(line)
    first = os.read(reading, 1 << 20)
    assert 0 < first.count(b"\n") < 40
    report.say("again")
    last = os.read(reading, 1 << 20)
    missed = 40 - first.count(b"x\n")
    assert f"({missed} lines before this one are missing)".encode() in last
    report.say("once more")
    assert b"missing" not in os.read(reading, 1 << 20)
    os.close(reading)
    report.say("to nobody")
    assert not report


def test_lines_are_cut() -> None:
    reading, writing = os.pipe()
    Report(writing).say("é" * 10_000)
    assert len(os.read(reading, 1 << 20)) == module.MAX_LINE
    os.close(reading)
    os.close(writing)


def test_refused_options_are_asked_of_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        os.close(options.make_socket(socket.AF_INET, MPTCP))
    except OSError as error:
        pytest.skip(f"the kernel makes no MPTCP socket: {error}")
    refused = options.refused_options()
    assert set(refused) <= set(options.CANDIDATES)
    assert (6, 14) in refused, "TCP_MD5SIG and MPTCP exclude each other"
    assert (6, socket.TCP_NODELAY) not in refused

    def none(*_: object) -> int:
        raise OSError(errno.EPROTONOSUPPORT, "Protocol not supported")

    monkeypatch.setattr(options, "make_socket", none)
    assert options.refused_options() == []


def test_names_of_options() -> None:
    assert options.option_name(6, 31) == "TCP_ULP"
    assert options.option_name(6, 999) == "option 999 of level 6"
