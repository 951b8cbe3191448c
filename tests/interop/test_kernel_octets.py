"""What the kernel's MPTCP says on a loopback device, parsed and said again: the same octets, header by header."""

from __future__ import annotations

import subprocess
import sys

import pytest

from mptcp.core.wire import checksum, dump, ip, mptcp_options, tcp
from mptcp.core.wire.segment import ACK, SYN, Segment

# Runs in a network namespace of its own: two kernel sockets talk to each other over ``lo`` while a packet socket listens.
SCRIPT = r"""
import socket, struct, subprocess, sys, time

def run(command):
    subprocess.run(command.split(), check=True, capture_output=True)

def sysctl(name, value):
    with open("/proc/sys/net/" + name.replace(".", "/"), "w") as file:
        file.write(value)

version6, checksums = sys.argv[1] == "6", sys.argv[2]
first, second = ("fd00::1", "fd00::2") if version6 else ("10.9.9.1", "10.9.9.2")
run("ip link set lo up")
for address in (first, second):
    run(f"ip addr add {address}/{128 if version6 else 32} dev lo" + (" nodad" if version6 else ""))
sysctl("mptcp.checksum_enabled", checksums)
sysctl("ipv4.tcp_congestion_control", "reno")
run("ip mptcp limits set subflows 4 add_addr_accepted 4")
capture = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3))
capture.bind(("lo", 3))
capture.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 24)
capture.setblocking(False)
packets = []

def counted():
    with open("/proc/net/netstat") as file:
        lines = file.read().splitlines()
    names, values = next((a, b) for a, b in zip(lines[::2], lines[1::2]) if a.startswith("MPTcpExt:"))
    return dict(zip(names.split()[1:], map(int, values.split()[1:])))

def collect(counter="", count=0):
    # until the kernel has counted that, and nothing more has come for a moment
    until = time.monotonic() + 20
    quiet = time.monotonic() + 0.05
    while time.monotonic() < until and (time.monotonic() < quiet or counter and counted()[counter] < count):
        try:
            data, address = capture.recvfrom(1 << 17)
        except BlockingIOError:
            time.sleep(0.002)
            continue
        quiet = time.monotonic() + 0.05
        if address[2] == socket.PACKET_OUTGOING:
            packets.append(data)

family = socket.AF_INET6 if version6 else socket.AF_INET
server = socket.socket(family, socket.SOCK_STREAM, 262)
server.bind(("", 0))
server.listen()
# Alone at first: an address to announce would let the server speak before the client's first data, which would then
# not be in an MP_CAPABLE.
for way in ("alone", "close", "abort"):
    if way != "alone":
        run(f"ip mptcp endpoint add {second} id 7 signal")
    client = socket.socket(family, socket.SOCK_STREAM, 262)
    client.connect((first, server.getsockname()[1]))
    peer, _ = server.accept()
    client.sendall(b"q" * 333)
    joined = {"alone": 0, "close": 1, "abort": 2}[way]
    collect("MPJoinAckRx", joined)
    peer.sendall(bytes(range(256)) * 500)
    received = 0
    while received < 128000:
        received += len(client.recv(1 << 17))
    client.sendall(b"odd")
    if way == "alone":
        client.close()
        peer.close()
    elif way == "close":
        run("ip mptcp endpoint change id 7 backup")
        collect("MPPrioRx", 1)
        run("ip mptcp endpoint del id 7")
        collect("RmAddr", 1)
        client.close()
        peer.close()
    else:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        collect()
        client.close()
        collect("MPFastcloseRx", 1)
    collect()
for packet in packets:
    print(packet.hex())
"""


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("checksums", [False, True])
def test_the_kernels_headers_are_emitted_octet_by_octet(kernel_mptcp: None, family: int, checksums: bool) -> None:
    command = ["unshare", "-n", sys.executable, "-c", SCRIPT, str(family), str(int(checksums))]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    seen: set[str] = set()
    shapes: set[int] = set()
    for line in result.stdout.split():
        packet = bytes.fromhex(line)
        view = memoryview(packet)
        header = ip.parse(view)
        assert header is not None, line
        if header.protocol != ip.TCP:
            continue
        text = dump.format_packet(packet)
        start = header.transport_offset
        segment = tcp.parse(view, start, header.end)
        assert segment is not None, text
        ports = int.from_bytes(view[start : start + 2], "big"), int.from_bytes(view[start + 2 : start + 4], "big")
        pseudo = checksum.pseudo_sum(header.source, header.destination, 6)
        assert not any(isinstance(option, mptcp_options.MpUnknown) for option in segment.options.mptcp), text
        assert not segment.options.unknown, text
        # On loopback the kernel leaves the checksum partial (but for a RST that no socket sends): that, too, is to be
        # the same number.
        partial = not checksum.verify_tcp(view, start, header.end, pseudo)
        again = tcp.emit(segment, *ports, pseudo, partial=partial) + segment.payload
        assert again == packet[start : header.end], text
        assert emit_ip(header, len(again), packet) == packet[:start], text
        assert all(check_dss(option, segment, checksums) for option in segment.options.mptcp), text
        seen |= {type(option).__name__ for option in segment.options.mptcp}
        shapes |= {
            mptcp_options.length(option)
            for option in segment.options.mptcp
            if isinstance(option, mptcp_options.MpCapable)
        }
        if segment.flags & SYN:
            assert segment.options.mss is not None, text
    assert seen >= {
        "MpCapable", "MpJoinSyn", "MpJoinSynAck", "MpJoinAck", "Dss", "AddAddr", "RemoveAddr", "MpPrio", "MpFastclose",
    }  # fmt: skip
    assert shapes >= {4, 12, 20, 24 if checksums else 22}


def check_dss(option: mptcp_options.MptcpOption, segment: Segment, checksums: bool) -> bool:
    """Whether a mapping has a checksum just when that was negotiated, and it is right where the segment holds it all."""
    if not isinstance(option, mptcp_options.Dss) or option.dsn is None:
        return True
    if not checksums or option.checksum is None:
        return option.checksum is None and not checksums
    if option.length != segment.length + option.data_fin or not option.dsn_wide:
        return True
    # RFC 8684 §3.3.1, Figure 10
    pseudo = option.dsn.to_bytes(8, "big") + option.ssn.to_bytes(4, "big") + option.length.to_bytes(2, "big") + b"\0\0"
    total = checksum.add(pseudo, checksum.add(segment.payload) + option.checksum)
    return bool(segment.flags & ACK) and total == 0xFFFF


def emit_ip(header: ip.IpHeader, octets: int, packet: bytes) -> bytes:
    if header.version == 6:
        return ip.emit_ipv6(
            header.source,
            header.destination,
            octets,
            hop_limit=header.hop_limit,
            traffic_class=header.traffic_class,
            flow_label=int.from_bytes(packet[1:4], "big") & 0xFFFFF,
        )
    return ip.emit_ipv4(
        header.source,
        header.destination,
        octets,
        identification=header.identification,
        hop_limit=header.hop_limit,
        traffic_class=header.traffic_class,
        dont_fragment=header.dont_fragment,
    )
