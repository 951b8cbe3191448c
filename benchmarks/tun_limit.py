#!/usr/bin/env python3
"""What this machine lets a bare Python loop push into its kernel through a TUN device: the speed limit of a stack in Python.

It is no TCP: a handshake, then segments of one size whenever the window has room, acknowledgements read and nothing else done.
Prints one line of JSON a segment size: {"segment": bytes, "gbit_s": ..., "segments_s": ...}.

    unshare -Urn python benchmarks/tun_limit.py [--seconds S] [SEGMENT ...]      # or as root; default sizes 1460 and 65000

Exit status 3 where the machine allows no TUN device.
"""

import argparse
import fcntl
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import time

TUNSETIFF, TUNSETOFFLOAD = 0x400454CA, 0x400454D0
IFF_TUN, IFF_NO_PI, IFF_VNET_HDR = 0x1, 0x1000, 0x4000
TUN_F_CSUM, TUN_F_TSO4 = 1, 2
LOCAL, REMOTE, PORT, MSS = "10.77.0.2", "10.77.0.1", 5001, 1460
SRC, DST = socket.inet_aton(LOCAL), socket.inet_aton(REMOTE)


def sum16(data: bytes) -> int:
    """One's complement sum of big-endian 16-bit words."""
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def open_tun() -> int:
    name = b"lim%d" % (os.getpid() % 1000)
    fd = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH14x", name, IFF_TUN | IFF_NO_PI | IFF_VNET_HDR))
    fcntl.ioctl(fd, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4)
    dev = name.decode()
    subprocess.run(["ip", "addr", "add", f"{REMOTE}/24", "dev", dev], check=True)
    subprocess.run(["ip", "link", "set", dev, "up", "mtu", "1500"], check=True)
    return fd


def emit(fd: int, port: int, seq: int, ack: int, flags: int, payload: bytes = b"", options: bytes = b"") -> None:
    length = 20 + len(options) + len(payload)
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + length, 0, 0x4000, 64, 6, 0) + SRC + DST
    ip = ip[:10] + struct.pack("!H", 0xFFFF - sum16(ip)) + ip[12:]
    pseudo = sum16(SRC + DST + struct.pack("!BBH", 0, 6, length))
    tcp = struct.pack(
        "!HHIIBBHHH",
        port,
        PORT,
        seq & 0xFFFFFFFF,
        ack & 0xFFFFFFFF,
        (5 + len(options) // 4) << 4,
        flags,
        65535,
        pseudo,
        0,
    )
    gso = len(payload) > MSS
    vnet = struct.pack("<BBHHHH", 1, 1 if gso else 0, 40 + len(options), MSS if gso else 0, 20, 16)
    os.writev(fd, [vnet, ip, tcp + options, payload])


def measure(fd: int, segment: int, seconds: float) -> dict:
    server = socket.socket()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8_000_000)
    server.bind((REMOTE, PORT))
    server.listen(1)
    child = os.fork()
    if child == 0:
        try:
            peer, _ = server.accept()
            sink = bytearray(1 << 20)
            while peer.recv_into(sink):
                pass
        finally:
            os._exit(0)
    server.close()
    port = 4000 + segment % 1000
    emit(fd, port, 1000, 0, 2, options=struct.pack("!BBHBBBB", 2, 4, MSS, 3, 3, 10, 0))
    while True:
        packet = os.read(fd, 70000)[10:]
        if packet[0] >> 4 == 4 and packet[9] == 6 and packet[33] == 0x12:
            break
    _, _, seq, _, offset, _, window = struct.unpack("!HHIIBBH", packet[20:36])
    options, scale, i = packet[40 : 20 + (offset >> 4) * 4], 0, 0
    while i < len(options) and options[i]:
        if options[i] == 1:
            i += 1
            continue
        if options[i] == 3:
            scale = options[i + 2]
        i += options[i + 1]
    una = nxt = 1001
    emit(fd, port, nxt, seq + 1, 16)
    payload, room, count = bytes(segment), window << scale, 0
    os.set_blocking(fd, False)
    start = time.perf_counter()
    while time.perf_counter() - start < seconds:
        limit = min(2_000_000, room) - segment
        while nxt - una < limit:
            emit(fd, port, nxt, seq + 1, 24, payload)
            nxt += segment
            count += 1
        try:
            while True:
                packet = os.read(fd, 70000)
                _, _, _, ack, _, _, window = struct.unpack_from("!HHIIBBH", packet, 30)
                step = (ack - una) & 0xFFFFFFFF
                if step < 1 << 31:
                    una, room = una + step, window << scale
        except BlockingIOError:
            pass
        if nxt - una >= limit:
            select.select([fd], [], [], 0.1)
    elapsed = time.perf_counter() - start
    emit(fd, port, nxt, seq + 1, 4)
    os.set_blocking(fd, True)
    os.kill(child, signal.SIGTERM)
    os.waitpid(child, 0)
    return {
        "segment": segment,
        "gbit_s": round((una - 1001) * 8 / elapsed / 1e9, 3),
        "segments_s": round(count / elapsed),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("segment", type=int, nargs="*", default=[MSS, 65000])
    args = parser.parse_args()
    try:
        fd = open_tun()
    except OSError as error:
        print(f"no TUN device here: {error}", file=sys.stderr)
        return 3
    for segment in args.segment:
        print(json.dumps(measure(fd, segment, args.seconds)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
