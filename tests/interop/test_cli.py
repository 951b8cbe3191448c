"""The ``mptcp`` command as a user runs it, with the kernel's MPTCP at the far end."""

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mptcp.cli import demo_server
from mptcp.links.pcap import read_pcapng
from mptcp.testing.netns import Lab, Namespace
from mptcp.testing.processes import Peer

SOURCE = Path(__file__).parents[2] / "src"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(SOURCE), "PYTHONUNBUFFERED": "1"}
SIZE = 6_000_000
#: So little that the paths are the limit, also on a machine that is busy with other things.
RATE_MBIT = 8


def mptcp(namespace: Namespace, *arguments: str, cwd: Path) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "mptcp", *arguments]
    return namespace.popen(*command, cwd=cwd, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def finish(process: "subprocess.Popen[bytes]") -> tuple[int, str, str]:
    out, err = process.communicate(timeout=100)
    return process.returncode, out.decode(), err.decode()


def links(lab: Lab) -> list[str]:
    texts = []
    for path in range(1, lab.paths + 1):
        texts += ["--link", f"packet:c{path}={lab.client_interface(path)},via={lab.server_address(path)}"]
    return texts


@pytest.fixture
def slow_lab(kernel_mptcp: None, make_lab: Callable[..., Lab]) -> Lab:
    lab = make_lab(2, rate_mbit=(RATE_MBIT, RATE_MBIT))
    lab.server.mptcp_limits(subflows=8, add_addr_accepted=8)
    return lab


@pytest.fixture
def body(tmp_path: Path) -> bytes:
    (tmp_path / "site").mkdir()
    octets = os.urandom(SIZE)
    (tmp_path / "site" / "file.bin").write_bytes(octets)
    # A Last-Modified that is older than the answer is a strong validator (RFC 9110 §8.8.2.2).
    os.utime(tmp_path / "site" / "file.bin", (1_600_000_000, 1_600_000_000))
    return octets


@pytest.fixture
def url(slow_lab: Lab, tmp_path: Path, body: bytes) -> Iterator[str]:
    descriptor = slow_lab.server.fileno()
    arguments = {"namespace": descriptor, "directory": str(tmp_path / "site"), "address": "0.0.0.0"}
    with Peer(demo_server.__file__, arguments, (descriptor,)) as peer:
        port = peer.wait_event("listening")["port"]
        yield f"http://{slow_lab.server_address(1)}:{port}/file.bin"


def test_get_uses_both_paths(slow_lab: Lab, url: str, tmp_path: Path, body: bytes) -> None:
    before = slow_lab.server.counters()
    process = mptcp(
        slow_lab.client, "get", url, *links(slow_lab), "--json", "--sha256", "--pcap", "x.pcapng", cwd=tmp_path
    )
    status, out, err = finish(process)
    assert (status, err) == (0, "")
    report = json.loads(out)
    assert report["sha256"] == hashlib.sha256(body).hexdigest()
    assert (tmp_path / "file.bin").read_bytes() == body
    assert report["is_multipath"] is True
    carried = {row["local"].partition(":")[0]: row["bytes_received"] for row in report["subflows"]}
    assert min(carried[slow_lab.client_address(path)] for path in (1, 2)) > SIZE // 5
    assert report["goodput_bits_per_second"] > 1.2e6 * RATE_MBIT  # more than either path could carry
    after = slow_lab.server.counters()
    assert after["MPTcpExtMPCapableACKRX"] - before["MPTcpExtMPCapableACKRX"] == 1
    assert after["MPTcpExtMPJoinAckRx"] - before["MPTcpExtMPJoinAckRx"] >= 1
    packets = read_pcapng(tmp_path / "x.pcapng")
    assert {packet.interface for packet in packets} == {"c1", "c2"}
    assert sum(packet.length for packet in packets) > SIZE


def test_interrupted_get_is_continued(slow_lab: Lab, url: str, tmp_path: Path, body: bytes) -> None:
    process = mptcp(slow_lab.client, "get", url, *links(slow_lab), "-q", cwd=tmp_path)
    part = tmp_path / "file.bin.part"
    deadline = time.monotonic() + 60
    while (not part.exists() or part.stat().st_size < SIZE // 4) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    status, out, err = finish(process)
    assert status == 130
    assert out == ""
    assert err.startswith("mptcp: interrupted;")
    assert err.count("\n") == 1
    kept = part.read_bytes()
    assert SIZE // 4 <= len(kept) < SIZE
    assert kept == body[: len(kept)]

    # http.server of the standard library knows no ranges: it sends the whole file again, and the old part must not
    # spoil it. Our own server continues (tests/unit/cli).
    status, out, err = finish(mptcp(slow_lab.client, "get", url, *links(slow_lab), "--json", "--sha256", cwd=tmp_path))
    assert (status, err) == (0, "")
    assert json.loads(out)["sha256"] == hashlib.sha256(body).hexdigest()
    assert (tmp_path / "file.bin").read_bytes() == body
    assert not part.exists()


def test_serve_to_the_kernel(slow_lab: Lab, tmp_path: Path, body: bytes) -> None:
    process = mptcp(slow_lab.client, "serve", "site", "--port", "80", *links(slow_lab), cwd=tmp_path)
    try:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(b"serving site at http://10.77.1.1:80/")
        with slow_lab.server.entered():
            sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)
        with sock:
            sock.settimeout(60)
            sock.connect((slow_lab.client_address(1), 80))
            sock.sendall(b"GET /file.bin HTTP/1.1\r\nHost: x\r\nRange: bytes=1000-\r\nConnection: close\r\n\r\n")
            with sock.makefile("rb") as stream:
                head, _, got = stream.read().partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 206")
        assert b"Content-Range: bytes 1000-5999999/6000000" in head
        assert got == body[1000:]
    finally:
        process.send_signal(signal.SIGINT)
        status, out, err = finish(process)
    assert status == 130
    assert err == "mptcp: interrupted\n"
    assert "/file.bin: 5.7 MiB in" in out


def test_demo_with_the_kernel(kernel_mptcp: None, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mptcp", "demo", "--size", "4", "--rates", "15,10", "--json"]
    done = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr.decode()
    report = json.loads(done.stdout)
    assert report["verified"] is True
    assert "kernel" in report["peer"]
    assert report["size_bytes"] == 4 << 20
    first, second = report["paths"]
    assert first["was_cut"] is True
    assert first["bytes_received"] > 1 << 19
    assert second["bytes_received"] > 1 << 20  # all that was left at the cut, which a busy machine makes late
    assert first["bytes_received"] + second["bytes_received"] >= 4 << 20
    assert report["before_cut_bits"] > 1.3 * max(first["alone_bits"], second["alone_bits"])
    assert 0 < report["longest_stall_s"] < 5
    assert report["peer_counters"]["fallbacks"] == 0
    assert list(tmp_path.iterdir()) == []
