"""``mptcp get`` and ``mptcp serve`` over the kernel's stack, as a user runs them."""

import contextlib
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mptcp.testing.netns import Lab, Namespace

SOURCE = Path(__file__).parents[2] / "src"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(SOURCE), "PYTHONUNBUFFERED": "1"}
SIZE = 3_000_000


def start(namespace: Namespace, *arguments: str, cwd: Path) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "mptcp", *arguments]
    return namespace.popen(*command, cwd=cwd, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def finish(process: "subprocess.Popen[bytes]") -> tuple[int, str, str]:
    out, err = process.communicate(timeout=60)
    return process.returncode, out.decode(), err.decode()


@pytest.fixture
def body(tmp_path: Path) -> bytes:
    (tmp_path / "site").mkdir()
    octets = os.urandom(SIZE)
    (tmp_path / "site" / "file.bin").write_bytes(octets)
    return octets


@contextlib.contextmanager
def serving(namespace: Namespace, *arguments: str, cwd: Path, files: int = 0) -> Iterator[list[str]]:
    """``mptcp serve site``; the lines it says at first, and in the end those of so many ``files`` that it has sent."""
    process = start(namespace, "serve", "site", "--port", "80", *arguments, cwd=cwd)
    try:
        assert process.stdout is not None
        lines = [process.stdout.readline().decode() for _ in range(4)]
        assert all(line.startswith("serving site at ") for line in lines), (lines, process.poll())
        yield lines
        lines += [process.stdout.readline().decode() for _ in range(files)]
    finally:
        process.send_signal(signal.SIGINT)
        status, _, err = finish(process)
    assert (status, err) == (130, "mptcp: interrupted\n")


@pytest.mark.parametrize("family", [4, 6])
def test_get_and_serve_use_both_paths(make_lab: Callable[..., Lab], tmp_path: Path, body: bytes, family: int) -> None:
    """Which paths there are is the business of the namespace's path manager."""
    lab = make_lab(2, rate_mbit=(40, 40))
    lab.server.mptcp_limits(subflows=8, add_addr_accepted=8)
    lab.client.mptcp_limits(subflows=8, add_addr_accepted=8)
    lab.client.mptcp_endpoint(lab.client_address(2, family), "subflow", dev="c2")
    host = lab.server_address(1, family)
    with serving(lab.server, cwd=tmp_path, files=1) as lines:
        assert f"serving site at http://{host if family == 4 else f'[{host}]'}:80/\n" in lines
        url = f"http://{host if family == 4 else f'[{host}]'}/file.bin"
        status, out, err = finish(start(lab.client, "get", url, "--json", "--sha256", cwd=tmp_path))
    assert (status, err) == (0, "")
    report = json.loads(out)
    assert report["sha256"] == hashlib.sha256(body).hexdigest()
    assert (tmp_path / "file.bin").read_bytes() == body
    assert report["is_multipath"] is True
    assert len(report["subflows"]) == 2
    assert min(row["bytes_received"] for row in report["subflows"]) > SIZE // 10
    counters = lab.server.counters()
    assert counters["MPTcpExtMPCapableACKRX"] == counters["MPTcpExtMPJoinAckRx"] == 1
    assert lines[-1].startswith(f"{lab.client_address(1, family)} /file.bin: ")
    assert lab.client_address(1, family) in lines[-1].partition("/file.bin")[2]
    assert lab.client_address(2, family) in lines[-1]


def test_under_the_user_space_path_manager_it_opens_the_paths_itself(
    make_lab: Callable[..., Lab], tmp_path: Path, body: bytes
) -> None:
    lab = make_lab(2, rate_mbit=(40, 40))
    lab.server.mptcp_limits(subflows=8, add_addr_accepted=8)
    lab.client.sysctl("net.mptcp.path_manager", "userspace")
    backup = lab.client_address(2)
    with serving(lab.server, cwd=tmp_path):
        url = f"http://{lab.server_address(1)}/file.bin"
        command = ["get", url, "--json", "--sha256", "--stack", "kernel"]
        for more in ([], ["--backup", backup]):
            status, out, err = finish(start(lab.client, *command, *more, cwd=tmp_path))
            assert (status, err) == (0, "")
            report = json.loads(out)
            assert report["sha256"] == hashlib.sha256(body).hexdigest()
            carried = {row["local"].partition(":")[0]: row["bytes_received"] for row in report["subflows"]}
            assert set(carried) == {lab.client_address(1), backup}
            assert (carried[backup] > SIZE // 10) == (not more)


def test_where_the_kernel_has_no_mptcp_it_is_tcp_and_says_so(lab: Lab, tmp_path: Path, body: bytes) -> None:
    lab.client.sysctl("net.mptcp.enabled", 0)
    with serving(lab.server, cwd=tmp_path, files=1) as lines:
        url = f"http://{lab.server_address(1)}/file.bin"
        status, out, _ = finish(start(lab.client, "get", url, cwd=tmp_path))
    assert status == 0
    assert (tmp_path / "file.bin").read_bytes() == body
    assert "plain TCP: " in out
    assert "net.mptcp.enabled=0" in out
    assert "plain TCP" in lines[-1]


def test_a_backup_that_nobody_can_make_one(lab: Lab, tmp_path: Path) -> None:
    url = f"http://{lab.server_address(1)}/file.bin"
    status, out, err = finish(start(lab.client, "get", url, "--backup", lab.client_address(2), cwd=tmp_path))
    assert (status, out) == (1, "")
    assert "net.mptcp.path_manager=userspace" in err
    assert err.count("\n") == 1


def test_a_port_that_is_taken_is_one_sentence(host_namespace: Namespace, tmp_path: Path, body: bytes) -> None:
    with host_namespace.entered():
        other = socket.create_server(("0.0.0.0", 80))
    status, out, err = finish(start(host_namespace, "serve", "site", "--port", "80", cwd=tmp_path))
    other.close()
    assert (status, out) == (1, "")
    assert "Address already in use" in err
    assert err.count("\n") == 1
