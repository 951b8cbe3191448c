"""What the links alone do: packets a second and Gbit/s through TUN and AF_PACKET, both ways, without any TCP.

Run as root or under ``unshare -Urn``: ``python benchmarks/links.py [seconds]``. Sent packets are dropped where the kernel
takes them (nftables, ingress); received ones come from another process that writes to the same device.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable

from mptcp.core.packet import Packet
from mptcp.core.wire import checksum, ip, tcp
from mptcp.core.wire.segment import ACK, Segment
from mptcp.info import Endpoint
from mptcp.links.base import Link
from mptcp.links.packet import PACKET_VNET_HDR, SOL_PACKET, PacketLink
from mptcp.links.tun import NEEDS_CSUM, VNET_HEADER, TunLink
from mptcp.testing.netns import Lab, Namespace, needs_namespaces, needs_tun

OURS, THEIRS = Endpoint.parse("10.77.1.1", 1000), Endpoint.parse("10.77.1.2", 2000)
MSS = 1460
SIZES = (MSS, 64_000)
BATCH = 32


def packet(size: int, source: Endpoint, destination: Endpoint) -> Packet:
    """A TCP segment of ``size`` payload octets, a super-segment if need be."""
    payload = bytes(size)
    pseudo = checksum.pseudo_sum(source.address, destination.address, 6)
    transport = tcp.emit(
        Segment(1, 1, ACK, 1000, payloads=(payload,)), source.port, destination.port, pseudo, partial=True
    )
    header = ip.emit_ipv4(source.address, destination.address, len(transport) + size)
    return Packet(header + transport, (payload,), 40 + size, 20, MSS if size > MSS else 0, True)


def blast(namespace: Namespace, device: str, ethernet: bytes, size: int) -> int:
    """A process that writes packets to a device until it is killed; its pid."""
    content = packet(size, THEIRS, OURS)
    lead = len(ethernet)
    vnet = VNET_HEADER.pack(NEEDS_CSUM, 1 if content.gso_size else 0, lead + 40, content.gso_size, lead + 20, 16)
    pid = os.fork()
    if pid:
        return pid
    try:
        with namespace.entered():
            sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            sock.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
            sock.bind((device, 0x0800))
        data = b"".join((vnet, ethernet, bytes(content)))
        while True:
            try:
                sock.send(data)
            except OSError:
                time.sleep(0.0001)  # the queue is full
    finally:
        os._exit(0)


def measure_send(link: Link, size: int, seconds: float) -> tuple[float, float]:
    """(packets, octets of payload) a second."""
    batch = [packet(size, OURS, THEIRS)] * BATCH
    count = 0
    start = time.perf_counter()
    end = start + seconds
    while (now := time.perf_counter()) < end:
        taken = link.send(batch)
        count += taken
        if taken < BATCH:
            select.select([], [link], [], 0.1)
    return count / (now - start), count * size / (now - start)


def measure_receive(link: Link, seconds: float) -> tuple[float, float]:
    """(packets, octets of payload) a second."""
    count = octets = 0
    start = time.perf_counter()
    end = start + seconds
    while (now := time.perf_counter()) < end:
        received = link.receive(BATCH)
        if not received:
            select.select([link], [], [], 0.1)
        for data, _, _ in received:
            if len(data) >= 40 + MSS:
                count += 1
                octets += len(data) - 40
    return count / (now - start), octets / (now - start)


def report(name: str, size: int, rates: tuple[float, float]) -> None:
    print(f"{name:<22}{size:>8}{rates[0]:>12,.0f}{rates[1] * 8 / 1e9:>10.2f}", flush=True)


def drop(namespace: Namespace, device: str) -> Callable[[], str]:
    """Drops everything that comes in at a device; gives the way to undo it."""
    namespace.nft(
        f"table netdev d {{ chain i {{ type filter hook ingress device {device} priority 0; policy drop; }}\n}}"
    )
    return lambda: namespace.run("nft", "delete", "table", "netdev", "d")


def run(name: str, link: Link, far: Namespace, device: str, near_ethernet: bytes, seconds: float) -> None:
    for size in SIZES:
        undo = drop(far, device)
        report(f"{name} send", size, measure_send(link, size, seconds))
        undo()
        link.receive(1000)
        child = blast(far, device, near_ethernet, size)
        try:
            report(f"{name} receive", size, measure_receive(link, seconds))
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def main() -> int:
    reason = needs_namespaces() or needs_tun()
    if reason:
        print(f"skipped: {reason}")
        return 0
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 1.0
    print(f"{'link':<22}{'octets':>8}{'packets/s':>12}{'Gbit/s':>10}")
    with Lab(1) as lab:
        lab.server.ip("addr flush dev s1", "addr add 10.77.1.2/24 dev s1")
        with lab.client.entered():
            link = PacketLink("c1", ["10.77.1.1/24"])
        # One request, so that both know each other's hardware address before anything is dropped.
        with lab.server.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"x", (OURS.host, 9))
            select.select([link], [], [], 1)
            link.receive()
            hardware = bytes.fromhex(
                lab.client.run("ip", "-o", "link", "show", "c1").split("link/ether ")[1][:17].replace(":", "")
            )
        run("AF_PACKET", link, lab.server, "s1", hardware + bytes(6) + struct.pack("!H", 0x0800), seconds)
        link.close()
    with Lab(1) as lab:
        lab.server.ip("addr flush dev s1")
        with lab.server.entered():
            tun = TunLink(kernel_addresses=["10.77.1.2/24"])
        run("TUN", tun, lab.server, tun.name, b"", seconds)
        tun.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
