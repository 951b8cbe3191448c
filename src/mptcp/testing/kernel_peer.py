"""A peer on the kernel's own sockets, run as a script in a network namespace; ``netns.KernelServer`` drives it.

It imports nothing of this package, so that it starts in a few milliseconds: ``python -I -S kernel_peer.py JSON``. The
JSON object is the keyword arguments of ``main``. Each line it prints is a JSON object: ``{"event": "listening"}`` with
the port, then one ``{"event": "done"}`` a connection, with what was moved and how it ended.
"""

import contextlib
import ctypes
import hashlib
import json
import os
import random
import select
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

IPPROTO_MPTCP = 262
SOL_MPTCP, MPTCP_INFO = 284, 1
TCP_IS_MPTCP = 43
PR_SET_PDEATHSIG, SIGKILL, CLONE_NEWNET = 1, 9, 0x40000000
PATTERN_PERIOD = 1_000_003  # a prime, so that no block size of a transport hides a misplaced block
CHUNK = 1 << 18
UNTIL_ENOUGH = 1 << 50  # octets to send: until a line comes on standard input
_print_lock = threading.Lock()
_enough = threading.Event()


def pattern_block(seed: int = 0) -> bytes:
    """The octets that ``pattern`` repeats."""
    return random.Random(seed).randbytes(PATTERN_PERIOD)


def pattern_chunks(length: int, seed: int = 0, chunk: int = CHUNK) -> Iterator[memoryview]:
    """``length`` octets of test data in views of at most ``chunk``."""
    block = memoryview(pattern_block(seed) * 2)
    position = 0
    while position < length:
        size = min(chunk, length - position, PATTERN_PERIOD)
        start = position % PATTERN_PERIOD
        yield block[start : start + size]
        position += size


def pattern(length: int, seed: int = 0) -> bytes:
    """``length`` octets of test data, the same for the same seed, with a long period."""
    return b"".join(pattern_chunks(length, seed))


def pattern_sha256(length: int, seed: int = 0) -> str:
    """The SHA-256 of ``pattern(length, seed)``, without holding it."""
    digest = hashlib.sha256()
    for chunk in pattern_chunks(length, seed):
        digest.update(chunk)
    return digest.hexdigest()


def say(event: str, **values: Any) -> None:
    with _print_lock:
        print(json.dumps({"event": event, **values}), flush=True)


def mptcp_info(sock: socket.socket) -> dict[str, int]:
    """Fields of the kernel's ``struct mptcp_info``; empty when the connection is not (or no longer) MPTCP."""
    try:
        raw = sock.getsockopt(SOL_MPTCP, MPTCP_INFO, 512)
    except OSError:
        return {}
    raw = raw.ljust(96, b"\0")
    names = ("subflows", "add_addr_signal", "add_addr_accepted", "subflows_max", "signal_max", "accepted_max")
    info: dict[str, int] = dict(zip(names, raw, strict=False))
    info["flags"], info["token"] = struct.unpack_from("=II", raw, 8)
    info["checksum"] = raw[42]
    info["retransmits"] = struct.unpack_from("=I", raw, 44)[0]
    totals = ("bytes_retrans", "bytes_sent", "bytes_received", "bytes_acked")
    info.update(zip(totals, struct.unpack_from("=QQQQ", raw, 48), strict=True))
    info["subflows_total"] = raw[80]
    return info


class Transfer:
    """What one connection does: sends, receives or echoes, and how it ends."""

    def __init__(self, sock: socket.socket, options: dict[str, Any]) -> None:
        self.sock = sock
        self.send_bytes: int = options.get("send_bytes", 0)
        self.seed: int = options.get("seed", 0)
        self.echo: bool = options.get("echo", False)
        self.receive_bytes: int = options.get("receive_bytes", -1)  # -1: until the peer's FIN
        self.end: str = options.get("end", "close")  # close, fastclose, hold
        self.half_close: bool = options.get("half_close", True)  # FIN as soon as everything is sent
        self.fastclose_after: int = options.get("fastclose_after", -1)  # octets received
        self.chunk: int = options.get("chunk", CHUNK)
        self.pause_s: float = options.get("pause_s", 0.0)  # before anything is read or sent
        self.hashes: bool = options.get("digest", True)  # False: as fast as it goes
        self.digest = hashlib.sha256()
        self.received = self.sent = 0
        self.longest_gap_s = 0.0
        self.info: dict[str, int] = {}

    def run(self) -> None:
        start = time.monotonic()
        error = ""
        is_mptcp = self._is_mptcp()
        peer = ""
        try:
            peer = self.sock.getpeername()[0]
            time.sleep(self.pause_s)
            self._transfer()
        except OSError as failure:
            error = f"{type(failure).__name__}: {failure}"
        self.info = mptcp_info(self.sock) or self.info
        still = self._is_mptcp()
        with contextlib.suppress(OSError):
            if self.end == "fastclose":
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            if self.end != "hold":
                self.sock.close()
        say(
            "done",
            peer=peer,
            received=self.received,
            sent=self.sent,
            sha256=self.digest.hexdigest(),
            error=error,
            started_as_mptcp=is_mptcp,
            is_mptcp=still,
            duration_s=time.monotonic() - start,
            longest_gap_s=self.longest_gap_s,
            info=self.info,
        )

    def _is_mptcp(self) -> bool:
        try:
            return bool(self.sock.getsockopt(socket.IPPROTO_TCP, TCP_IS_MPTCP))
        except OSError:
            return False

    def _transfer(self) -> None:
        sender = threading.Thread(target=self._send, daemon=True)
        failure: list[OSError] = []
        self._failure = failure
        if self.send_bytes and not self.echo:
            sender.start()
        self._receive()
        if self.send_bytes and not self.echo:
            sender.join()
        elif self.half_close and self.end == "close":
            self.sock.shutdown(socket.SHUT_WR)
        if failure:
            raise failure[0]

    def _send(self) -> None:
        try:
            for chunk in pattern_chunks(self.send_bytes, self.seed, self.chunk):
                self.sock.sendall(chunk)
                self.sent += len(chunk)
                if _enough.is_set():
                    break
            self.info = mptcp_info(self.sock) or self.info
            if self.half_close:
                self.sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            self._failure.append(error)

    def _receive(self) -> None:
        buffer = bytearray(self.chunk)
        view = memoryview(buffer)
        last = time.monotonic()
        next_look = 0.0
        while self.receive_bytes < 0 or self.received < self.receive_bytes:
            count = self.sock.recv_into(buffer)
            if not count:
                break
            now = time.monotonic()
            self.longest_gap_s = max(self.longest_gap_s, now - last) if self.received else 0.0
            last = now
            self.received += count
            if self.hashes:
                self.digest.update(view[:count])
            if self.echo:
                self.sock.sendall(view[:count])
                self.sent += count
            if 0 <= self.fastclose_after <= self.received:
                self.end = "fastclose"
                return
            if now >= next_look:
                next_look = now + 0.05
                self.info = mptcp_info(self.sock) or self.info


def make_socket(address: str, protocol: str, options: dict[str, Any]) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM, IPPROTO_MPTCP if protocol == "mptcp" else socket.IPPROTO_TCP)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, options.get("congestion", "reno").encode())
    for name in ("rcvbuf", "sndbuf"):
        if name in options:
            sock.setsockopt(socket.SOL_SOCKET, getattr(socket, "SO_" + name.upper()), options[name])
    if options.get("nodelay"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def hear_enough() -> None:
    sys.stdin.readline()
    _enough.set()


def serve(address: str, port: int, protocol: str, connections: int, options: dict[str, Any]) -> None:
    listener = make_socket(address, protocol, options)
    listener.bind((address, port))
    listener.listen(options.get("backlog", 512))
    say("listening", port=listener.getsockname()[1])
    threads = []
    accepted = 0
    while not connections or accepted < connections:
        sock, _ = listener.accept()
        accepted += 1
        thread = threading.Thread(target=Transfer(sock, options).run)
        thread.start()
        if connections:
            threads.append(thread)
    for thread in threads:
        thread.join()


def connect(address: str, port: int, protocol: str, connections: int, options: dict[str, Any]) -> None:
    threads = []
    for _ in range(connections):
        thread = threading.Thread(target=_connect_one, args=(address, port, protocol, options))
        thread.start()
        threads.append(thread)
    for thread in threads:
        thread.join()


def _connect_one(address: str, port: int, protocol: str, options: dict[str, Any]) -> None:
    try:
        sock = make_socket(address, protocol, options)
        sock.settimeout(options.get("connect_timeout_s", 30))
        if "bind" in options:
            sock.bind((options["bind"], 0))
        sock.connect((address, port))
        sock.settimeout(None)
    except OSError as error:
        say("done", error=f"{type(error).__name__}: {error}", received=0, sent=0, sha256="", connect_failed=True)
        return
    Transfer(sock, options).run()


def main(
    role: str,
    address: str,
    port: int,
    *,
    namespace: int = -1,
    protocol: str = "mptcp",
    connections: int = 1,
    **options: Any,
) -> None:
    """``role`` "serve" or "connect"; ``namespace`` is an open file descriptor of the network namespace to enter."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0)
    if namespace >= 0:
        if libc.setns(namespace, CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns: " + os.strerror(ctypes.get_errno()))
        os.close(namespace)
    if options.get("send_bytes") == UNTIL_ENOUGH:
        threading.Thread(target=hear_enough, daemon=True).start()
    {"serve": serve, "connect": connect}[role](address, port, protocol, connections, options)
    if options.get("end") == "hold":
        # Ends when the parent closes our standard input, so that sockets stay open until then.
        select.select([sys.stdin], [], [])


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
