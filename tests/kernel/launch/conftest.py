"""A namespace with a web server, and programs under ``mptcp run`` in it."""

from __future__ import annotations

import contextlib
import functools
import http.server
import json
import os
import shutil
import socket
import socketserver
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


def is_mapped(uid: int) -> bool:
    """Whether this user exists in the user namespace (in one of ``unshare -Ur`` only root does)."""
    lines = [tuple(map(int, line.split())) for line in Path("/proc/self/uid_map").read_text().splitlines()]
    return any(first <= uid < first + count for first, _, count in lines)


def comm(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)


def listens(namespace: Namespace, address: str, port: int) -> bool:
    with namespace.entered(), contextlib.suppress(OSError), socket.create_connection((address, port), TIMEOUT_S):
        return True
    return False


class Nobody:
    """An ordinary user's process in this interpreter, whose files such a user may be unable to read.

    It is forked before there are threads, and waits for the command that it is to run.
    """

    def __init__(self, namespace: Namespace) -> None:
        self._pipes = os.pipe(), os.pipe(), os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                for number, (_, writing) in enumerate(self._pipes[1:], 1):
                    os.dup2(writing, number)
                os.close(self._pipes[0][1])
                with open(self._pipes[0][0]) as commands, namespace.entered():
                    os.setgroups([])
                    os.setresgid(65534, 65534, 65534)
                    os.setresuid(65534, 65534, 65534)
                    command = json.loads(commands.read())
                    launcher.launch(launcher.find_program(command[0]), command, Exceptions(), verbose=True)
            finally:
                os._exit(99)
        os.close(self._pipes[0][0])
        for _, writing in self._pipes[1:]:
            os.close(writing)

    def run(self, *command: str) -> tuple[int, bytes, str]:
        """As ``Machine.run``; once."""
        with open(self._pipes[0][1], "w") as commands:
            commands.write(json.dumps(command))
        texts = []
        for reading, _ in self._pipes[1:]:
            with open(reading, "rb") as pipe:
                texts.append(pipe.read())
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1]), texts[0], texts[1].decode()


@pytest.fixture
def nobody(host_namespace: Namespace) -> Nobody:
    if not is_mapped(65534):
        pytest.skip("there is only one user in this user namespace")
    return Nobody(host_namespace)
