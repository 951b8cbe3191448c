"""``mptcp run PROGRAM`` with programs as they come from the distribution, in a namespace of their own."""

from __future__ import annotations

import contextlib
import functools
import http.server
import importlib.util
import os
import platform
import pty
import select
import shutil
import signal
import socket
import socketserver
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import mptcp
from mptcp.kernel.launch import launcher
from mptcp.kernel.launch.exceptions import Exceptions
from mptcp.testing.netns import Namespace

IPPROTO_MPTCP, TCP_IS_MPTCP, SO_PROTOCOL = 262, 43, 38
TIMEOUT_S = 30
SOURCE = str(Path(mptcp.__file__).parents[1])
#: What ``mptcp run -v`` does, without the command line's half second of imports.
LAUNCH = (
    "import os, sys; sys.path.insert(0, os.environ['MPTCP_SOURCE'])\n"
    "from mptcp.kernel.launch import launcher; from mptcp.kernel.launch.exceptions import Exceptions\n"
    "networks = [word for word in os.environ.get('MPTCP_EXCEPT', '').split(',') if word]\n"
    "launcher.launch(launcher.find_program(sys.argv[1]), sys.argv[1:], Exceptions.parse(networks),"
    " verbose='MPTCP_QUIET' not in os.environ, log=os.environ.get('MPTCP_LOG', ''))"
)
#: Prints the protocol of a socket that was made as any program makes one.
PROTOCOL = "import socket; print(socket.socket().getsockopt(1, 38), flush=True)"


@pytest.fixture(autouse=True)
def able(namespaces: None) -> None:
    if not (able := launcher.support()):
        pytest.skip(able.reason)


class Machine:
    """A namespace with a web server whose connections are counted, and programs under ``mptcp run``."""

    def __init__(self, namespace: Namespace, folder: Path) -> None:
        self.namespace = namespace
        self.folder = folder
        self.is_multipath: list[bool] = []
        machine = self

        class Handler(http.server.SimpleHTTPRequestHandler):
            def setup(self) -> None:
                super().setup()
                machine.is_multipath.append(bool(self.connection.getsockopt(socket.IPPROTO_TCP, TCP_IS_MPTCP)))

            def log_message(self, *_: object) -> None:
                pass

        class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
            daemon_threads = True

            def server_bind(self) -> None:
                socketserver.TCPServer.server_bind(self)
                self.server_name, self.server_port = "localhost", self.server_address[1]

        self.server = Server(
            ("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)), bind_and_activate=False
        )
        self.server.socket.close()
        with namespace.entered():
            self.server.socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_MPTCP)
        self.server.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.server.server_bind()
        self.server.server_activate()
        self.port = self.server.server_port
        self._thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self._thread.start()

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}/{path}"

    def start(self, *command: str, before: tuple[str, ...] = (), **options: str) -> subprocess.Popen[bytes]:
        """Starts a program under supervision; ``options`` are environment variables of ``LAUNCH``."""
        environment = {**os.environ, "MPTCP_SOURCE": SOURCE, **options}
        return self.namespace.popen(
            *before, sys.executable, "-c", LAUNCH, *command,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, cwd=self.folder,
        )  # fmt: skip

    def run(self, *command: str, before: tuple[str, ...] = (), **options: str) -> tuple[int, bytes, str]:
        """Exit status, output, and what was said on standard error until the last of the program's processes ended."""
        with self.start(*command, before=before, **options) as process:
            try:
                output, errors = process.communicate(timeout=TIMEOUT_S)
            except BaseException:
                process.kill()
                raise
        return process.returncode, output, errors.decode()

    def plain(self, *command: str) -> bytes:
        """The output of the program without supervision."""
        with self.namespace.popen(
            *command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=self.folder
        ) as process:
            return process.communicate(timeout=TIMEOUT_S)[0]

    def counter(self, name: str) -> int:
        return self.namespace.counters().get(f"MPTcpExt{name}", 0)

    def close(self) -> None:
        self.server.shutdown()
        self._thread.join()
        self.server.server_close()


@pytest.fixture
def machine(host_namespace: Namespace, tmp_path: Path) -> Iterator[Machine]:
    (tmp_path / "file.bin").write_bytes(os.urandom(300_000))
    made = Machine(host_namespace, tmp_path)
    yield made
    made.close()


def need(*programs: str) -> None:
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed (.ci/run installs it)")


def test_curl(machine: Machine) -> None:
    need("curl")
    status, output, said = machine.run("curl", "-sS", machine.url("file.bin"))
    assert (status, output) == (0, (machine.folder / "file.bin").read_bytes())
    assert machine.is_multipath == [True]
    assert machine.counter("MPCapableSYNTX") == 1
    assert machine.counter("MPCapableACKRX") == 1
    assert said.startswith("mptcp run: curl[")
    assert said.endswith("(IPv4) is MPTCP\n")
    assert said.count("\n") == 1


def test_curl_to_where_tcp_is_to_stay(machine: Machine) -> None:
    need("curl")
    status, output, said = machine.run("curl", "-sS", machine.url("file.bin"), MPTCP_EXCEPT="127.0.0.0/8")
    assert (status, output) == (0, (machine.folder / "file.bin").read_bytes())
    assert machine.is_multipath == [False]
    assert f"is TCP now: 127.0.0.1 port {machine.port} is excepted" in said


def test_a_server_without_mptcp(machine: Machine) -> None:
    """The program's connection falls back, and the program notices nothing."""
    need("curl")
    with machine.namespace.entered(), socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.0 200 OK\r\n\r\nplain")

        thread = threading.Thread(target=serve)
        thread.start()
        status, output, _ = machine.run("curl", "-sS", f"http://127.0.0.1:{server.getsockname()[1]}/")
        thread.join()
    assert (status, output) == (0, b"plain")


def test_git_over_http(machine: Machine) -> None:
    need("git", "curl")
    if not os.path.exists(os.path.join(machine.plain("git", "--exec-path").decode().strip(), "git-remote-http")):
        pytest.skip("git has no git-remote-http")
    identity = ("-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false")
    for command in (
        ("init", "-q", "work"),
        ("-C", "work", "add", "."),
        ("-C", "work", *identity, "commit", "-q", "--allow-empty", "-m", "a commit"),
        ("clone", "-q", "--bare", "work", "repository.git"),
        ("-C", "repository.git", "update-server-info"),
    ):
        machine.plain("git", *command)
    status, output, said = machine.run("git", "clone", "-q", machine.url("repository.git"), "copy")
    assert (status, output) == (0, b""), said
    assert machine.plain("git", "-C", "copy", "log", "--format=%s") == b"a commit\n"
    assert machine.is_multipath
    assert all(machine.is_multipath)
    assert "git-remote-http[" in said


NGINX = """
daemon off; {roles} worker_processes 2; pid nginx.pid; error_log error.log;
events {{ worker_connections 64; }}
http {{
    access_log access.log; client_body_temp_path t1; proxy_temp_path t2; fastcgi_temp_path t3; uwsgi_temp_path t4; scgi_temp_path t5;
    server {{
        listen 127.0.0.1:8080; listen [::1]:8080;
        location / {{ root {folder}; }}
        location /up/ {{ proxy_pass http://127.0.0.1:{port}/; }}
    }}
}}
"""


@pytest.mark.parametrize("excepted", [False, True], ids=["multipath upstream", "upstream excepted"])
def test_nginx(machine: Machine, excepted: bool) -> None:
    """As a server, and as a client of another one, to which it adds the socket to its epoll set before it connects."""
    need("nginx", "curl")
    # Workers give up groups, which a user namespace of `unshare -Ur` forbids; files of the test are only their owner's.
    roles = "user root;" if _is_mapped(65534) else "user root; master_process off;"
    text = NGINX.format(folder=machine.folder, port=machine.port, roles=roles)
    (machine.folder / "nginx.conf").write_text(text)
    options = {"MPTCP_EXCEPT": "127.0.0.1/32"} if excepted else {}
    nginx = machine.start("nginx", "-p", str(machine.folder), "-c", "nginx.conf", "-e", "error.log", **options)
    try:
        body = (machine.folder / "file.bin").read_bytes()
        _until(lambda: _listens(machine.namespace, "::1", 8080) or nginx.poll() is not None)
        # ::1 is not excepted: the listener there is MPTCP in any case.
        fetch = ("curl", "-sS")
        status, output, said = machine.run(*fetch, "http://[::1]:8080/file.bin")
        assert (status, output) == (0, body), (said, _log(machine))
        assert machine.counter("MPCapableACKRX") == 1
        status, output, said = machine.run(*fetch, "http://[::1]:8080/up/file.bin")
        assert (status, output) == (0, body), (said, _log(machine))
        assert machine.is_multipath == [not excepted]
        # Its own signals, sent to the process that was started: workers are replaced, then all end in good order.
        if "master_process off" not in roles:  # where nginx itself answers wrongly after a reload
            os.kill(nginx.pid, signal.SIGHUP)
            status, output, said = machine.run(*fetch, "http://[::1]:8080/up/file.bin")
            assert (status, output) == (0, body), (said, _log(machine))
    finally:
        nginx.send_signal(signal.SIGQUIT)
        try:
            _, errors = nginx.communicate(timeout=TIMEOUT_S)
        except BaseException:
            nginx.kill()
            raise
    assert nginx.returncode == 0
    assert b"nginx[" in errors
    assert (b"is TCP now" in errors) is excepted


def _listens(namespace: Namespace, address: str, port: int) -> bool:
    with namespace.entered(), contextlib.suppress(OSError), socket.create_connection((address, port), TIMEOUT_S):
        return True
    return False


def _log(machine: Machine) -> str:
    with contextlib.suppress(OSError):
        return (machine.folder / "error.log").read_text()
    return ""


def _is_mapped(uid: int) -> bool:
    """Whether this user exists in the user namespace (in one of ``unshare -Ur`` only root does)."""
    lines = [tuple(map(int, line.split())) for line in Path("/proc/self/uid_map").read_text().splitlines()]
    return any(first <= uid < first + count for first, _, count in lines)


def static_elf(port: int) -> bytes:
    """A program for x86_64 without a single library: socket, connect to 127.0.0.1, copy what comes to standard output."""
    base, address, buffer = 0x400000, 0x400178, 0x401000
    mov_eax, mov_edi, mov_esi, mov_edx, syscall = b"\xb8", b"\xbf", b"\xbe", b"\xba", b"\x0f\x05"

    def word(value: int) -> bytes:
        return struct.pack("<I", value)

    start = (
        mov_edi + word(2) + mov_esi + word(1) + mov_edx + word(0) + mov_eax + word(41) + syscall
        + b"\x89\xc3\x89\xc7" + mov_esi + word(address) + mov_edx + word(16) + mov_eax + word(42) + syscall
    )  # fmt: skip
    read = b"\x89\xdf" + mov_esi + word(buffer) + mov_edx + word(4096) + mov_eax + word(0) + syscall
    write = b"\x89\xc2" + mov_edi + word(1) + mov_esi + word(buffer) + mov_eax + word(1) + syscall
    loop = read + b"\x85\xc0\x7e" + bytes([len(write) + 2]) + write  # test eax, eax; jle out
    loop += b"\xeb" + struct.pack("<b", -(len(loop) + 2))
    code = start + loop + mov_edi + word(0) + mov_eax + word(60) + syscall
    sockaddr = struct.pack("<H", 2) + struct.pack("!H", port) + bytes([127, 0, 0, 1]) + bytes(8)
    header = b"\x7fELF\x02\x01\x01" + bytes(9)
    header += struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, base + 120, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    image = (code.ljust(address - base - 120, b"\0")) + sockaddr
    segment = struct.pack("<IIQQQQQQ", 1, 7, 0, base, base, 120 + len(image), 0x3000, 0x1000)
    return header + segment + image


def test_a_static_program_without_any_library(machine: Machine) -> None:
    """Neither a dynamic linker nor a C library takes part: what Go programs are like."""
    if platform.machine() != "x86_64":
        pytest.skip("the program is written in x86_64's machine code")
    server = machine.namespace.serve("127.0.0.1", send_bytes=100_000)
    program = machine.folder / "static"
    program.write_bytes(static_elf(server.port))
    program.chmod(0o755)
    status, output, said = machine.run(str(program))
    assert (status, len(output)) == (0, 100_000)
    assert server.result()["started_as_mptcp"]
    assert "static[" in said


STATIC_C = """
#include <arpa/inet.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>
static int made, failed;
static void tick(int number) { (void)number; }
static void *work(void *port) {
    for (int i = 0; i < 50; i++) {
        int protocol = 0;
        socklen_t size = sizeof protocol;
        int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        getsockopt(fd, SOL_SOCKET, SO_PROTOCOL, &protocol, &size);
        __sync_fetch_and_add(protocol == 262 ? &made : &failed, 1);
        close(fd);
    }
    return port;
}
int main(void) {
    struct sigaction action = { .sa_handler = tick, .sa_flags = SA_RESTART };
    struct itimerval often = { { 0, 500 }, { 0, 500 } };
    pthread_t threads[8];
    sigaction(SIGALRM, &action, 0);
    setitimer(ITIMER_REAL, &often, 0);
    for (int i = 0; i < 8; i++) pthread_create(&threads[i], 0, work, 0);
    for (int i = 0; i < 8; i++) pthread_join(threads[i], 0);
    printf("%d %d\\n", made, failed);
    return 0;
}
"""


def test_a_static_c_program_with_threads_and_signals(machine: Machine) -> None:
    """Signals at 2 kHz, as Go's runtime sends them to itself, lose no call and leak no descriptor."""
    need("cc")
    (machine.folder / "threads.c").write_text(STATIC_C)
    build = ["cc", "-static", "-pthread", "-o", "threads", "threads.c"]
    built = subprocess.run(build, cwd=machine.folder, capture_output=True, text=True, check=False)
    if built.returncode:
        pytest.skip(f"no static C library: {built.stderr.strip()[-200:]}")
    status, output, _ = machine.run("./threads", MPTCP_QUIET="1")
    assert (status, output) == (0, b"400 0\n")


def test_uvloop(machine: Machine) -> None:
    """libuv makes its sockets in C: a patched ``socket`` module would not see them."""
    if importlib.util.find_spec("uvloop") is None:
        pytest.skip("uvloop is not installed (the dev extra has it)")
    script = (
        "import asyncio, sys, uvloop\n"
        "async def main():\n"
        "    server = await asyncio.start_server(lambda r, w: (w.write(b'hello'), w.close()), '127.0.0.1', 0)\n"
        "    port = server.sockets[0].getsockname()[1]\n"
        "    for _ in range(3):\n"
        "        reader, writer = await asyncio.open_connection('127.0.0.1', port)\n"
        "        assert await reader.read() == b'hello'\n"
        "        writer.close()\n"
        "    print(type(asyncio.get_running_loop()).__module__)\n"
        "asyncio.run(main(), loop_factory=uvloop.new_event_loop) if sys.version_info >= (3, 12) else uvloop.run(main())\n"
    )
    status, output, said = machine.run(sys.executable, "-c", script)
    assert (status, output) == (0, b"uvloop\n"), said
    assert machine.counter("MPCapableSYNRX") == 3
    assert machine.counter("MPCapableACKRX") == 3


def test_asyncio_in_a_python_program(machine: Machine) -> None:
    script = (
        "import asyncio, socket\n"
        "async def main():\n"
        f"    reader, writer = await asyncio.open_connection('localhost', {machine.port})\n"
        "    sock = writer.get_extra_info('socket')\n"
        "    print(sock.proto, sock.getsockopt(6, 43), sock.getsockopt(6, socket.TCP_NODELAY))\n"
        "    writer.close()\n"
        "asyncio.run(main())\n"
    )
    assert machine.run(sys.executable, "-c", script)[:2] == (0, b"6 1 1\n")


def test_children_and_their_children(machine: Machine) -> None:
    need("curl")
    command = f"curl -sS {machine.url('file.bin')} | wc -c; sh -c 'curl -sS {machine.url('file.bin')} & wait' | wc -c"
    assert machine.run("sh", "-c", command)[:2] == (0, b"300000\n300000\n")
    assert machine.is_multipath == [True, True]


def test_without_any_privilege(machine: Machine) -> None:
    need("setpriv")
    dropped = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")
    program = "import socket\nprint(socket.socket().getsockopt(1, 38))\nprint(open('/proc/self/status').read())\n"
    status, output, said = machine.run(sys.executable, "-c", program, before=dropped)
    text = output.decode()
    assert (status, text.split()[0]) == (0, str(IPPROTO_MPTCP)), said
    assert "CapEff:\t0000000000000000" in text
    assert "NoNewPrivs:\t1" in text
    status, output, _ = machine.run(sys.executable, "-c", program)
    assert "NoNewPrivs:\t0" in output.decode(), "who is privileged keeps set-user-id programs"


def test_as_an_ordinary_user(machine: Machine) -> None:
    need("curl")
    if not _is_mapped(65534):
        pytest.skip("there is only one user in this user namespace")
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:  # in this interpreter, whose files an ordinary user may be unable to read
            with machine.namespace.entered():
                os.setgroups([])
                os.setresgid(65534, 65534, 65534)
                os.setresuid(65534, 65534, 65534)
                os.dup2(writing, 1)
                launcher.launch(launcher.find_program("curl"), ["curl", "-sS", machine.url("file.bin")], Exceptions())
        finally:
            os._exit(99)
    os.close(writing)
    with open(reading, "rb") as pipe:
        assert pipe.read() == (machine.folder / "file.bin").read_bytes()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert machine.is_multipath == [True]


def test_a_socket_belongs_to_the_user_who_asked(machine: Machine) -> None:
    if not _is_mapped(65534):
        pytest.skip("there is only one user in this user namespace")
    script = (
        "import os, socket\nos.setgid(65534); os.setuid(65534)\nsock = socket.socket()\nstatus = os.fstat(sock.fileno())\n"
        "print(sock.getsockopt(1, 38), status.st_uid, status.st_gid)\n"
    )
    assert machine.run(sys.executable, "-c", script)[1] == b"262 65534 65534\n"


def test_a_socket_belongs_to_the_namespace_of_who_asked(machine: Machine) -> None:
    script = (
        "import ctypes, socket\nlibc = ctypes.CDLL(None, use_errno=True)\nassert libc.unshare(0x40000000) == 0\n"
        "stream, datagram = socket.socket(), socket.socket(type=socket.SOCK_DGRAM)\n"
        "cookies = [s.getsockopt(1, 71, 8) for s in (stream, datagram)]\n"
        "print(stream.getsockopt(1, 38), cookies[0] == cookies[1])\n"
    )
    assert machine.run(sys.executable, "-c", script)[1] == b"262 True\n"


def test_the_exit_status_is_the_programs(machine: Machine) -> None:
    assert machine.run("sh", "-c", "exit 42")[0] == 42
    assert machine.run("sh", "-c", "kill -TERM $$")[0] == -signal.SIGTERM
    with machine.start("sleep", "60") as process:
        _until(lambda: _comm(process.pid) == "sleep")
        process.send_signal(signal.SIGINT)
        assert process.wait(TIMEOUT_S) == -signal.SIGINT


def _comm(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)


def test_the_program_finds_what_it_would_find_without_us(machine: Machine) -> None:
    """Process, group, session, descriptors, signals, environment, children."""
    script = (
        "import os, signal, sys\n"
        "same = [os.getpgrp() == int(sys.argv[1] or 0) or True, os.getsid(0) != os.getpid()]\n"
        "print(sorted(os.listdir('/proc/self/fd'))[:-1], os.getcwd(), sorted(os.environ), same)\n"
        "status = open('/proc/self/status').read().splitlines()\n"
        "print([line for line in status if line.startswith(('Sig', 'Shd', 'Uid', 'Cap', 'Groups'))])\n"
        "try:\n    print(os.waitpid(-1, os.WNOHANG))\nexcept ChildProcessError:\n    print('no children')\n"
    )
    # Python changes SIGPIPE and SIGXFSZ at its start, in the same way each time.
    environment = {**os.environ, "MPTCP_SOURCE": SOURCE}
    command = (sys.executable, "-c", script, "0")
    with machine.namespace.popen(*command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment, cwd=machine.folder) as process:  # fmt: skip
        expected = process.communicate(timeout=TIMEOUT_S)[0]
    status, output, said = machine.run(*command)
    assert (status, said) == (0, "")
    assert output == expected
    assert b"no children" in output
    ignored = machine.run("grep", "SigIgn", "/proc/self/status")[1]
    assert ignored == machine.plain("grep", "SigIgn", "/proc/self/status")


def test_ctrl_c_at_the_terminal(machine: Machine) -> None:
    """It reaches the program, as without us, and not the supervisor: what the program does afterwards still works."""
    script = (
        "import signal, socket, time\n"
        "def handler(*_): print('interrupted', socket.socket().getsockopt(1, 38), flush=True); raise SystemExit(3)\n"
        "signal.signal(signal.SIGINT, handler)\nprint('ready', flush=True)\ntime.sleep(60)\n"
    )
    environment = {**os.environ, "MPTCP_SOURCE": SOURCE, "MPTCP_QUIET": "1"}
    pid, terminal = pty.fork()
    if pid == 0:
        with contextlib.suppress(BaseException), machine.namespace.entered():
            os.execve(sys.executable, [sys.executable, "-c", LAUNCH, sys.executable, "-c", script], environment)
        os._exit(99)
    shown = b""

    def reads(word: bytes) -> bool:
        nonlocal shown
        if select.select([terminal], [], [], 0)[0]:
            with contextlib.suppress(OSError):  # EIO: the other end is closed
                shown += os.read(terminal, 4096)
        return word in shown

    _until(lambda: reads(b"ready"))
    os.write(terminal, b"\x03")
    _until(lambda: reads(b"interrupted 262"))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3
    os.close(terminal)


def supervisors(mark: str) -> list[int]:
    """Processes whose command line has ``mark``."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            if mark.encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
    return found


def test_the_supervisor_ends_with_the_last_process(machine: Machine) -> None:
    mark = f"mark-{os.urandom(8).hex()}"
    with machine.start("sh", "-c", "sleep 60 & echo $!; exec >&- 2>&-", mark, MPTCP_QUIET="1") as process:
        assert process.stdout is not None
        last = int(process.stdout.readline())
        assert process.wait(TIMEOUT_S) == 0
        (supervisor,) = supervisors(mark)
        # It is nobody's child who could be waited for, in a session of its own, and holds none of the program's files.
        assert os.getsid(supervisor) == supervisor
        files = {os.readlink(f"/proc/{supervisor}/fd/{number}") for number in range(3)}
        assert files == {os.devnull}
        for polite in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
            os.kill(supervisor, polite)
        os.kill(last, signal.SIGKILL)
        _until(lambda: not supervisors(mark))


def test_a_daemon_keeps_its_supervisor_and_lets_go_of_the_terminal(machine: Machine) -> None:
    log = machine.folder / "log"
    release = machine.folder / "release"
    script = (
        "import os, socket, time\n"
        "if os.fork(): raise SystemExit\n"
        f"os.setsid(); [os.close(n) for n in range(3)]\nwhile not os.path.exists({str(release)!r}): time.sleep(0.01)\n"
        f"open({str(machine.folder / 'result')!r}, 'w').write(str(socket.socket().getsockopt(1, 38)) + '.')\n"
    )
    # The end of standard error comes although the daemon and its supervisor live on.
    status, _, said = machine.run(sys.executable, "-c", script, MPTCP_LOG=str(log))
    assert (status, said) == (0, "")
    release.touch()
    result = machine.folder / "result"
    _until(lambda: result.exists() and result.read_text().endswith("."))
    assert result.read_text() == f"{IPPROTO_MPTCP}."
    _until(lambda: log.read_text().endswith("(IPv4) is MPTCP\n"))


def test_mptcp_switched_off_while_the_program_runs(machine: Machine) -> None:
    script = f"{PROTOCOL}\ninput()\n{PROTOCOL}\n"
    environment = {**os.environ, "MPTCP_SOURCE": SOURCE}
    process = machine.namespace.popen(
        sys.executable, "-c", LAUNCH, sys.executable, "-c", script,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment,
    )  # fmt: skip
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"262\n"
        machine.namespace.sysctl("net.mptcp.enabled", 0)
        output, errors = process.communicate(b"\n", timeout=TIMEOUT_S)
    assert output == b"6\n"
    assert b"socket stays TCP: Protocol not available" in errors


def cli(machine: Machine, *arguments: str) -> tuple[int, str, str]:
    environment = {**os.environ, "PYTHONPATH": SOURCE}
    with machine.namespace.popen(
        sys.executable, "-m", "mptcp", "run", *arguments,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, cwd=machine.folder,
    ) as process:  # fmt: skip
        output, errors = process.communicate(timeout=TIMEOUT_S)
    return process.returncode, output.decode(), errors.decode()


def test_the_command(machine: Machine) -> None:
    script = machine.folder / "script.py"
    script.write_text(f"import sys\n{PROTOCOL}\nprint(sys.argv[1:])\n")
    status, output, said = cli(machine, "-v", "--stack", "kernel", "--except-port", "22", str(script), "-v", "x")
    assert (status, output) == (0, "262\n['-v', 'x']\n")
    assert "is MPTCP" in said
    (machine.folder / "ours.py").write_text(PROTOCOL)
    assert cli(machine, "--stack", "kernel", "-m", "ours") == (0, "262\n", "")
    name = Path(os.path.realpath(sys.executable)).name
    assert cli(machine, "--except-program", name, sys.executable, "-c", PROTOCOL)[1] == "6\n"


def test_without_mptcp_the_program_runs_all_the_same_unless_the_user_is_strict(machine: Machine) -> None:
    machine.namespace.sysctl("net.mptcp.enabled", 0)
    status, output, said = cli(machine, sys.executable, "-c", PROTOCOL)
    assert (status, output) == (0, "6\n")
    assert said.count("\n") == 1
    assert "MPTCP is off here (net.mptcp.enabled = 0) (sysctl net.mptcp.enabled=1)" in said
    status, output, said = cli(machine, "--strict", sys.executable, "-c", PROTOCOL)
    assert (status, output) == (1, "")
    assert "MPTCP is off here" in said
