"""``mptcp run PROGRAM`` with programs as they come from the distribution, in a namespace of their own."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import platform
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest

from mptcp.testing.netns import Lab

from .conftest import LAUNCH, SOURCE, TIMEOUT_S, Machine, is_mapped, listens, need, until


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
    roles = "user root;" if is_mapped(65534) else "user root; master_process off;"
    text = NGINX.format(folder=machine.folder, port=machine.port, roles=roles)
    (machine.folder / "nginx.conf").write_text(text)
    options = {"MPTCP_EXCEPT": "127.0.0.1/32"} if excepted else {}
    nginx = machine.start("nginx", "-p", str(machine.folder), "-c", "nginx.conf", "-e", "error.log", **options)
    try:
        body = (machine.folder / "file.bin").read_bytes()
        until(lambda: listens(machine.namespace, "::1", 8080) or nginx.poll() is not None)
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


def _log(machine: Machine) -> str:
    with contextlib.suppress(OSError):
        return (machine.folder / "error.log").read_text()
    return ""


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


def test_both_paths_between_two_machines(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(2)
    lab.client.mptcp_limits(subflows=2, add_addr_accepted=2)
    lab.server.mptcp_limits(subflows=2, add_addr_accepted=2)
    lab.client.mptcp_endpoint(lab.client_address(2), "subflow", dev="c2")
    server = lab.server.serve(send_bytes=2_000_000)
    program = (
        f"import socket\nsock = socket.create_connection(({lab.server_address(1)!r}, {server.port}))\ntotal = 0\n"
        "while data := sock.recv(65536): total += len(data)\nprint(total)\n"
    )
    environment = {**os.environ, "MPTCP_SOURCE": SOURCE, "MPTCP_QUIET": "1"}
    command = (sys.executable, "-c", LAUNCH, sys.executable, "-c", program)
    with lab.client.popen(*command, stdout=subprocess.PIPE, env=environment) as process:
        assert process.communicate(timeout=TIMEOUT_S)[0] == b"2000000\n"
    assert lab.client.counters()["MPTcpExtMPCapableSYNTX"] == 1
    until(lambda: lab.client.counters()["MPTcpExtMPJoinSynAckRx"] == 1)
    assert server.result()["started_as_mptcp"]
