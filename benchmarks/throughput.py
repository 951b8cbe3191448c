"""How fast data moves between this stack and the kernel, against what the machine allows a Python loop at all.

    python -m benchmarks.throughput [--seconds S]       (as root, or anywhere user namespaces are allowed)

Sending is compared with the bare loop of ``tun_limit.py`` (no TCP: packets into a TUN device as fast as Python can), at
the same segment size; receiving with the kernel sending to the kernel over veth. All use reno where the kernel sends.
Rows are interleaved over several rounds, so that a change in the machine's speed hits all alike; medians are shown.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

import mptcp
from mptcp.core.multipath.config import ConnectionConfig
from mptcp.links.tun import TunLink
from mptcp.testing.netns import become_namespace_root, needs_kernel_mptcp, needs_namespaces, needs_tun

IPPROTO_MPTCP = 262
PORT = 5201
BUFFER = 1 << 20
HERE = Path(__file__).parent


def kernel_socket(protocol: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, protocol)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")
    return sock


def kernel_peer(address: str, *, sends: bool, protocol: int, port: int) -> int:
    """A process that accepts one connection and sends, or takes, octets until it is killed; its pid."""
    listener = kernel_socket(protocol)
    listener.bind((address, port))
    listener.listen(1)
    pid = os.fork()
    if pid:
        listener.close()
        return pid
    try:
        peer, _ = listener.accept()
        block = bytearray(BUFFER)
        while True:
            if sends:
                peer.sendall(block)
            elif not peer.recv_into(block):
                break
    except OSError:
        pass
    finally:
        os._exit(0)


def bare(segment: int, seconds: float) -> float:
    """Gbit/s of the bare loop."""
    command = [sys.executable, str(HERE / "tun_limit.py"), "--seconds", str(seconds), str(segment)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(json.loads(output)["gbit_s"])


def ours(seconds: float, *, sends: bool, multipath: bool, segmentation: bool, port: int) -> float:
    """Gbit/s through our blocking socket."""
    link = TunLink("bench%d", kernel_addresses=["10.78.0.1/24"], segmentation_offload=segmentation)
    pid = kernel_peer("10.78.0.1", sends=not sends, protocol=IPPROTO_MPTCP if multipath else 0, port=port)
    try:
        with mptcp.UserStack([link], ["10.78.0.2/24"], config=ConnectionConfig(multipath=multipath)) as stack:
            sock = stack.socket()
            sock.settimeout(5)
            sock.connect(("10.78.0.1", port))
            total = transfer(sock, seconds, sends)
            if sock.is_multipath != multipath:
                raise SystemExit(f"the connection was not what was to be measured: {sock.fallback_reason}")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            sock.close()
            return total
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def transfer(sock: socket.socket | mptcp.Socket, seconds: float, sends: bool) -> float:
    block = bytes(BUFFER)
    space = bytearray(BUFFER)
    total = 0
    start = time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        if sends:
            sock.sendall(block)
            total += BUFFER
        else:
            total += sock.recv_into(space)
    return total * 8 / elapsed / 1e9


def kernel_to_kernel(other: OtherNamespace, seconds: float, *, multipath: bool, port: int) -> float:
    """Gbit/s from one kernel socket to another over veth, the receiver a Python loop as ours."""
    protocol = IPPROTO_MPTCP if multipath else 0
    script = (
        "import socket, sys\n"
        f"s = socket.socket(socket.AF_INET, socket.SOCK_STREAM, {protocol})\n"
        "s.setsockopt(1, 2, 1); s.setsockopt(6, 13, b'reno'); s.bind(('10.79.0.2', int(sys.argv[1]))); s.listen(1)\n"
        "print(flush=True); c, _ = s.accept(); b = bytes(1 << 20)\n"
        "while True: c.sendall(b)\n"
    )
    peer = subprocess.Popen(
        [*other.command(), sys.executable, "-c", script, str(port)],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        assert peer.stdout is not None
        peer.stdout.readline()
        sock = kernel_socket(protocol)
        sock.settimeout(5)
        sock.connect(("10.79.0.2", port))
        return transfer(sock, seconds, False)
    finally:
        peer.kill()
        peer.wait()


class OtherNamespace:
    """A second network namespace, joined to this one by veth: 10.79.0.1 here, 10.79.0.2 there; made when first asked for."""

    def __init__(self) -> None:
        self.pid = 0

    def command(self) -> list[str]:
        """What to put before a command to run it there."""
        if not self.pid:
            self.pid = subprocess.Popen(["unshare", "-n", "sleep", "1000000"]).pid
            time.sleep(0.3)
            there = f"nsenter --net=/proc/{self.pid}/ns/net"
            for command in (
                f"ip link add bv0 type veth peer name bv1 netns {self.pid}",
                "ip addr add 10.79.0.1/24 dev bv0",
                "ip link set bv0 up",
                f"{there} ip addr add 10.79.0.2/24 dev bv1",
                f"{there} ip link set bv1 up",
            ):
                subprocess.run(command.split(), check=True)
            time.sleep(0.5)
        return ["nsenter", f"--net=/proc/{self.pid}/ns/net"]

    def close(self) -> None:
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    reason = needs_namespaces() or needs_tun() or needs_kernel_mptcp()
    if reason:
        print(f"throughput: not measured here: {reason}")
        return 0
    become_namespace_root()
    seconds, rounds = arguments.seconds, arguments.rounds
    ports = iter(range(PORT, PORT + 1000))
    other = OtherNamespace()
    measure = {
        "bare loop, 1,460": lambda: bare(1460, seconds),
        "bare loop, 65,000": lambda: bare(65_000, seconds),
        "kernel to kernel, MPTCP": lambda: kernel_to_kernel(other, seconds, multipath=True, port=next(ports)),
        "kernel to kernel, TCP": lambda: kernel_to_kernel(other, seconds, multipath=False, port=next(ports)),
        "send, MPTCP": lambda: ours(seconds, sends=True, multipath=True, segmentation=True, port=next(ports)),
        "send, TCP": lambda: ours(seconds, sends=True, multipath=False, segmentation=True, port=next(ports)),
        "send, MPTCP, 1,460": lambda: ours(seconds, sends=True, multipath=True, segmentation=False, port=next(ports)),
        "send, TCP, 1,460": lambda: ours(seconds, sends=True, multipath=False, segmentation=False, port=next(ports)),
        "receive, MPTCP": lambda: ours(seconds, sends=False, multipath=True, segmentation=True, port=next(ports)),
        "receive, TCP": lambda: ours(seconds, sends=False, multipath=False, segmentation=True, port=next(ports)),
    }
    results: dict[str, list[float]] = {name: [] for name in measure}
    try:
        for _ in range(rounds):
            for name, run in measure.items():
                results[name].append(run())
    finally:
        other.close()
    median = {name: statistics.median(values) for name, values in results.items()}
    against = {
        "send, MPTCP": ("bare loop, 65,000", 0.25),
        "send, TCP": ("bare loop, 65,000", 0.25),
        "send, MPTCP, 1,460": ("bare loop, 1,460", 0.35),
        "send, TCP, 1,460": ("bare loop, 1,460", 0.35),
        "receive, MPTCP": ("kernel to kernel, MPTCP", 0.20),
        "receive, TCP": ("kernel to kernel, TCP", 0.20),
    }
    print(f"{'':26} {'Gbit/s':>8} {'min':>8} {'max':>8}   {'of':28} {'ratio':>6} {'target':>7}")
    for name, values in results.items():
        row = f"{name:26} {median[name]:8.2f} {min(values):8.2f} {max(values):8.2f}"
        if name in against:
            other, target = against[name]
            row += f"   {other:28} {median[name] / median[other]:6.2f} {target:7.2f}"
        print(row)
    return 0


if __name__ == "__main__":
    sys.exit(main())
