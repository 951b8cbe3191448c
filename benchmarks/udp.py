"""How fast data moves between two stacks over UDP on loopback, in two processes of an ordinary user.

    python -m benchmarks.udp [--seconds S] [--rounds N]

The bound is what Python can do without any of this: one process that sends datagrams of the same size over a connected
UDP socket as fast as it can, another that reads them; with UDP_SEGMENT and UDP_GRO where the row has them. Rows are
interleaved over several rounds; medians are shown. Nothing here needs privilege; whoever has it gets larger buffers.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import statistics
import struct
import sys
import time
from collections.abc import Callable

import mptcp
from mptcp.links.udp_frames import HEADER_BYTES
from mptcp.links.udp_socket import MAX_DATAGRAM, SOL_UDP, UDP_GRO, UDP_SEGMENT

PORT = 8000
BUFFER = 1 << 20
HOSTS = {4: "127.0.0.1", 6: "::1"}


def child(work: Callable[[], None]) -> int:
    """A process that does ``work`` until it is killed; its pid."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    try:
        work()
    finally:
        os._exit(0)


def end(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def free_port() -> int:
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
        probe.bind(("::", 0))
        port: int = probe.getsockname()[1]
        return port


def connected(stack: mptcp.UdpStack, address: tuple[str, int]) -> mptcp.Socket:
    """The other process may have its stack, and not yet its listener."""
    for _ in range(50):
        try:
            return stack.connect_udp(address, PORT, timeout=10)
        except ConnectionRefusedError:
            time.sleep(0.05)
    raise SystemExit("the other process does not listen")


def ours(seconds: float, addresses: list[str], *, mtu: int = 0, offload: bool = True) -> float:
    """Gbit/s that arrive at the application, over one path or several."""
    port = free_port()
    options = {"mtu": mtu, "offload": offload}

    def serve() -> None:
        with mptcp.UdpStack(addresses, port, link_options=options) as stack, mptcp.use(stack):
            listener = mptcp.create_server(("::", PORT), family=socket.AF_INET6)
            sock, _ = listener.accept()
            block = bytes(BUFFER)
            while True:
                sock.sendall(block)

    pid = child(serve)
    try:
        with mptcp.UdpStack(addresses, link_options=options) as stack:
            sock = connected(stack, (addresses[0], port))
            space = bytearray(BUFFER)
            deadline = time.perf_counter() + 0.3  # slow start, and further subflows
            while time.perf_counter() < deadline:
                sock.recv_into(space)
            total, start = 0, time.perf_counter()
            while (elapsed := time.perf_counter() - start) < seconds:
                total += sock.recv_into(space)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            sock.close()
            return total * 8 / elapsed / 1e9
    finally:
        end(pid)


def bare(seconds: float, family: int, size: int, *, offload: bool) -> float:
    """Gbit/s of datagrams of ``size`` octets that arrive at a loop that does nothing with them."""
    kind = socket.AF_INET6 if family == 6 else socket.AF_INET
    with socket.socket(kind, socket.SOCK_DGRAM) as receiver:
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        receiver.bind((HOSTS[family], 0))
        receiver.settimeout(5)
        if offload:
            receiver.setsockopt(SOL_UDP, UDP_GRO, 1)
        target = receiver.getsockname()

        def send() -> None:
            with socket.socket(kind, socket.SOCK_DGRAM) as sender:
                sender.connect(target)
                count = min(64, MAX_DATAGRAM // size) if offload else 1
                if count > 1:
                    sender.setsockopt(SOL_UDP, UDP_SEGMENT, struct.pack("=i", size))
                block = bytes(size * count)
                while True:
                    sender.send(block)

        pid = child(send)
        try:
            space = bytearray(65_536)
            receiver.recv_into(space)
            total, start = 0, time.perf_counter()
            while (elapsed := time.perf_counter() - start) < seconds:
                total += receiver.recv_into(space)
            return total * 8 / elapsed / 1e9
        finally:
            end(pid)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    seconds = arguments.seconds
    ethernet = 1500 - 28 - HEADER_BYTES
    measure: dict[str, Callable[[], float]] = {
        "bare UDP, 65,507": lambda: bare(seconds, 4, 65_507, offload=False),
        "bare UDP, 1,472, GSO and GRO": lambda: bare(seconds, 4, 1472, offload=True),
        "bare UDP, 1,472": lambda: bare(seconds, 4, 1472, offload=False),
        "ours, MTU of loopback": lambda: ours(seconds, [HOSTS[4]]),
        "ours, MTU of loopback, IPv6": lambda: ours(seconds, [HOSTS[6]]),
        "ours, MTU of loopback, 4 subflows": lambda: ours(seconds, ["127.0.0.1", "127.0.0.2"]),
        "ours, MTU of Ethernet": lambda: ours(seconds, [HOSTS[4]], mtu=ethernet),
        "ours, MTU of Ethernet, no offload": lambda: ours(seconds, [HOSTS[4]], mtu=ethernet, offload=False),
    }
    against = {
        "ours, MTU of loopback": "bare UDP, 65,507",
        "ours, MTU of loopback, IPv6": "bare UDP, 65,507",
        "ours, MTU of loopback, 4 subflows": "bare UDP, 65,507",
        "ours, MTU of Ethernet": "bare UDP, 1,472, GSO and GRO",
        "ours, MTU of Ethernet, no offload": "bare UDP, 1,472",
    }
    results: dict[str, list[float]] = {name: [] for name in measure}
    for _ in range(arguments.rounds):
        for name, run in measure.items():
            results[name].append(run())
    median = {name: statistics.median(values) for name, values in results.items()}
    print(f"{'':36} {'Gbit/s':>8} {'min':>8} {'max':>8}   {'of':28} {'ratio':>6}")
    for name, values in results.items():
        row = f"{name:36} {median[name]:8.2f} {min(values):8.2f} {max(values):8.2f}"
        if name in against:
            row += f"   {against[name]:28} {median[name] / median[against[name]]:6.2f}"
        print(row)
    return 0


if __name__ == "__main__":
    sys.exit(main())
