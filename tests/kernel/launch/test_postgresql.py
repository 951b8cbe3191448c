"""libpq under ``mptcp run``: a PostgreSQL server, and clients that make their sockets in its C library."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from mptcp.kernel.diag import Diag
from mptcp.kernel.layout import ESTABLISHED
from mptcp.kernel.namespace import NetNamespace
from mptcp.testing.netns import Lab, Namespace

from .conftest import IPPROTO_MPTCP, LAUNCH, SOURCE, TIMEOUT_S, need, until

PORT = 5432
ROWS = 65_536
#: 2 MiB in one value; and what it must be.
QUERY = f"SELECT string_agg(md5(i::text), '' ORDER BY i) FROM generate_series(1, {ROWS}) AS i"
ANSWER = hashlib.sha256("".join(hashlib.md5(b"%d" % i).hexdigest() for i in range(1, ROWS + 1)).encode()).hexdigest()
#: initdb and postgres refuse to run as root: whoever runs the tests is another user in a user namespace of their own.
NOT_ROOT = ("unshare", "--user", "--map-user=1000", "--map-group=1000")
SERVER_OPTIONS = {
    "fsync": "off", "shared_buffers": "1MB", "max_connections": "8", "autovacuum": "off", "wal_level": "minimal", "max_wal_senders": "0",
}  # fmt: skip
#: A large answer, a large parameter and its digest, and the socket that libpq has made; then waits for the end of its input.
CLIENT = f"""
import hashlib, json, os, socket, sys
import psycopg
with psycopg.connect(sys.argv[1]) as connection, socket.socket(fileno=os.dup(connection.fileno())) as sock:
    value = connection.execute({QUERY!r}).fetchone()[0]
    data = os.urandom(1 << 20)
    digest = connection.execute("SELECT sha256(%b)", [data]).fetchone()[0]
    inet = sock.family != socket.AF_UNIX
    print(json.dumps(dict(
        answer=hashlib.sha256(value.encode()).hexdigest(), exact=digest == hashlib.sha256(data).digest(),
        implementation=psycopg.pq.__impl__, family=int(sock.family), protocol=sock.getsockopt(socket.SOL_SOCKET, 38),
        is_mptcp=sock.getsockopt(socket.IPPROTO_TCP, 43) if inet else 0,
    )), flush=True)
    sys.stdin.read()
    assert connection.execute("SELECT 1").fetchone() == (1,)
"""


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "MPTCP_SOURCE": SOURCE, "PGCONNECT_TIMEOUT": "10", **more}


class Server:
    """A database's files, and the server's process while there is one, in the lab's server namespace."""

    def __init__(self, programs: Path, folder: Path) -> None:
        self.programs, self.folder = programs, folder
        self.data = folder / "data"
        command = [programs / "initdb", "-D", self.data, "-U", "test", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"]  # fmt: skip
        done = subprocess.run([*NOT_ROOT, *command], capture_output=True, text=True, check=False, timeout=60)
        if done.returncode:
            raise OSError(f"initdb: {done.stderr}")
        with (self.data / "pg_hba.conf").open("a") as access:
            access.write("host all all all trust\n")

    @contextlib.contextmanager
    def running(self, lab: Lab, *before: str) -> Iterator[Path]:
        """Serves the lab's addresses; ``before`` are the words of what it runs under. Gives the file of its messages."""
        addresses = ",".join(lab.server_address(1, family) for family in (4, 6))
        options = {**SERVER_OPTIONS, "listen_addresses": addresses, "port": str(PORT), "unix_socket_directories": str(self.folder)}  # fmt: skip
        words = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
        messages = self.folder / "messages"
        with messages.open("wb") as log:
            command = [*NOT_ROOT, *before, str(self.programs / "postgres"), "-D", str(self.data), *words]
            process = lab.server.popen(*command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment())
        try:
            until(lambda: "ready to accept connections" in messages.read_text() or process.poll() is not None)
            assert process.poll() is None, messages.read_text()
            yield messages
        finally:
            process.send_signal(signal.SIGINT)  # its own way of ending with open connections
            try:
                process.wait(TIMEOUT_S)
            except BaseException:
                process.kill()
                process.wait()
                raise
        assert process.returncode == 0, messages.read_text()


@pytest.fixture(scope="module")
def server(namespaces: None) -> Iterator[Server]:
    need("unshare")
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    if not found:
        pytest.skip("PostgreSQL is not installed (.ci/run installs it)")
    allowed = subprocess.run([*NOT_ROOT, "true"], capture_output=True, text=True, check=False)
    if allowed.returncode:
        pytest.skip(f"PostgreSQL does not run as root, and there is nobody else to be: {allowed.stderr.strip()}")
    # Not pytest's folder: the path of a Unix-domain socket has 107 octets at most.
    with tempfile.TemporaryDirectory() as folder:
        yield Server(found[-1].parent, Path(folder))


@contextlib.contextmanager
def client(namespace: Namespace, host: str) -> Iterator[dict[str, object]]:
    """What a Python program with libpq says of its connection, under ``mptcp run``; it is open meanwhile."""
    if importlib.util.find_spec("psycopg") is None:
        pytest.skip("psycopg is not installed (the dev extra has it)")
    where = f"host={host} port={PORT} user=test dbname=postgres"
    with namespace.popen(
        sys.executable, "-c", LAUNCH, sys.executable, "-c", CLIENT, where,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(),
    ) as process:  # fmt: skip
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            said: dict[str, object] = json.loads(line) if line else {}
            if said:
                yield said
            _, errors = process.communicate(timeout=TIMEOUT_S)
        except BaseException:
            process.kill()
            raise
    assert (process.returncode, bool(said)) == (0, True), errors.decode()
    said["errors"] = errors.decode()


def established(namespace: Namespace, host: str) -> list[tuple[int, bool]]:
    """(token, whether it has fallen back) of the MPTCP connections that sock_diag lists to or from the server's address."""
    with NetNamespace(namespace.fileno()) as where, Diag(where) as diag:
        return [
            (sock.token, sock.info is None or sock.info.fell_back)
            for sock in diag.mptcp_sockets()
            if sock.state == ESTABLISHED and host in {sock.local.host, sock.remote.host}
        ]


def counter(namespace: Namespace, name: str) -> int:
    return namespace.counters()[f"MPTcpExt{name}"]


@pytest.mark.parametrize("family", [4, 6])
def test_libpq_in_a_python_program_and_the_server(lab: Lab, server: Server, family: int) -> None:
    host = lab.server_address(1, family)
    for namespace in (lab.client, lab.server):
        namespace.mptcp_limits(subflows=2, add_addr_accepted=2)
    lab.client.mptcp_endpoint(lab.client_address(2, family), "subflow", dev="c2")
    with server.running(lab, sys.executable, "-c", LAUNCH) as messages:
        with client(lab.client, host) as said:
            assert (said["answer"], said["exact"]) == (ANSWER, True)
            # Not psycopg's Python implementation with another library: libpq as its wheel brings it.
            assert said["implementation"] == "binary"
            assert (said["protocol"], said["is_mptcp"]) == (IPPROTO_MPTCP, 1)
            for namespace in (lab.client, lab.server):
                [(token, fell_back)] = established(namespace, host)
                assert (token != 0, fell_back) == (True, False)
                shown = namespace.run("ss", "-HnM", "state", "established", f"( sport = :{PORT} or dport = :{PORT} )")
                assert len(shown.splitlines()) == 1, shown
            until(lambda: counter(lab.client, "MPJoinSynAckRx") == 1)
        assert f"(IPv{family}) is MPTCP" in str(said["errors"])
        assert counter(lab.client, "MPCapableSYNTX") == counter(lab.client, "MPCapableSYNACKRX") == 1
        assert counter(lab.server, "MPCapableSYNRX") == counter(lab.server, "MPCapableACKRX") == 1
        assert counter(lab.client, "MPCapableFallbackSYNACK") == counter(lab.server, "MPCapableFallbackACK") == 0
    said_by_server = messages.read_text()
    assert "(IPv4) is MPTCP" in said_by_server
    assert "(IPv6) is MPTCP" in said_by_server


def test_psql(lab: Lab, server: Server) -> None:
    """The system's own libpq, in the program that comes with the server."""
    with server.running(lab, sys.executable, "-c", LAUNCH):
        with lab.client.popen(
            sys.executable, "-c", LAUNCH, str(server.programs / "psql"), "-XAtq", "-h", lab.server_address(1), "-U", "test",
            "-d", "postgres", "-c", QUERY, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(),
        ) as psql:  # fmt: skip
            output, errors = psql.communicate(timeout=TIMEOUT_S)
        assert (psql.returncode, hashlib.sha256(output.rstrip(b"\n")).hexdigest()) == (0, ANSWER), errors.decode()
        assert "psql[" in errors.decode()
        assert counter(lab.server, "MPCapableACKRX") == 1


def test_libpq_to_a_server_without_mptcp(lab: Lab, server: Server) -> None:
    host = lab.server_address(1)
    with server.running(lab):
        with client(lab.client, host) as said:
            assert (said["answer"], said["exact"]) == (ANSWER, True)
            assert (said["protocol"], said["is_mptcp"]) == (IPPROTO_MPTCP, 0)
            assert established(lab.server, host) == []
        assert counter(lab.client, "MPCapableSYNTX") == counter(lab.client, "MPCapableFallbackSYNACK") == 1
        assert counter(lab.server, "MPCapableSYNRX") == 0


def test_libpq_over_a_unix_domain_socket(lab: Lab, server: Server) -> None:
    """Neither end's socket is touched, nor spoken of."""
    with server.running(lab, sys.executable, "-c", LAUNCH) as messages:
        before = messages.read_text().count("mptcp run:")
        with client(lab.client, str(server.folder)) as said:
            assert (said["answer"], said["exact"]) == (ANSWER, True)
            assert (said["family"], said["protocol"]) == (socket.AF_UNIX, 0)
        assert said["errors"] == ""
        assert messages.read_text().count("mptcp run:") == before
        assert counter(lab.client, "MPCapableSYNTX") == counter(lab.server, "MPCapableSYNRX") == 0
