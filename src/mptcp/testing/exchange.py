"""Our side of a transfer with a peer: sends ``pattern``, hashes what comes, in threads, and says how it went."""

from __future__ import annotations

import hashlib
import socket as std
import struct
import threading
import time
from typing import Any, Final

from mptcp.info import ConnectionInfo, SubflowInfo, SubflowState
from mptcp.sockets.socket import Socket
from mptcp.testing.kernel_peer import CHUNK, pattern_chunks, pattern_sha256

#: Octets that go before ``subflows`` are waited for: the peer's answer makes the connection fully established.
FIRST_BYTES: Final = 1000
#: What SO_LINGER takes for "reset at close".
LINGER_ZERO: Final = struct.pack("ii", 1, 0)


class Exchange:
    """Begins at once. ``join`` waits for both directions and returns this object; then all attributes are final.

    ``send_bytes`` of ``pattern(seed)`` go out, ended by a half-close if ``half_close``; ``receive_bytes`` come in (-1:
    until the end of the stream). ``subflows``: after the first octets both directions wait for that many active ones,
    so that a short transfer uses them all. ``send_bytes`` ``kernel_peer.UNTIL_ENOUGH``: until ``enough`` is called, for a test that has to
    do something in the middle of a transfer, however long that takes; ``sent`` says how many. ``end``: "close", "abort" (SO_LINGER 0), "hold" (the caller closes).
    """

    def __init__(
        self,
        sock: Socket,
        *,
        send_bytes: int = 0,
        receive_bytes: int = -1,
        seed: int = 0,
        half_close: bool = True,
        subflows: int = 1,
        chunk: int = CHUNK,
        end: str = "close",
        abort_after: int = -1,
        timeout_s: float = 60.0,
    ) -> None:
        self.sock = sock
        self.sent = self.received = 0
        self.error: OSError | None = None
        self.info: ConnectionInfo | None = None
        self.longest_gap_s = 0.0
        self.was_multipath = False
        self.fallback_reason = ""
        self._options = (send_bytes, receive_bytes, seed, half_close, subflows, chunk)
        self._abort_after = abort_after
        self._end = end
        self._digest = hashlib.sha256()
        self._enough = threading.Event()
        self._deadline = time.monotonic() + timeout_s
        sock.settimeout(timeout_s)
        self._threads = [threading.Thread(target=self._receive, daemon=True)]
        if send_bytes:
            self._threads.append(threading.Thread(target=self._send, daemon=True))
        for thread in self._threads:
            thread.start()

    @property
    def moved(self) -> int:
        """Octets sent or received, whichever are more."""
        return max(self.sent, self.received)

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def got(self, count: int, seed: int = 0) -> bool:
        """Exactly ``pattern(count, seed)`` has arrived."""
        return self.received == count and self.sha256 == pattern_sha256(count, seed)

    def _wait_subflows(self) -> None:
        count = self._options[4]
        if count > 1:
            wait_subflows(self.sock, count, max(0.1, self._deadline - time.monotonic()))

    def _send(self) -> None:
        send_bytes, _, seed, half_close, _, chunk = self._options
        try:
            for view in pattern_chunks(send_bytes, seed, chunk):
                if not self.sent:
                    self.sock.sendall(view[:FIRST_BYTES])
                    self._wait_subflows()
                    self.sock.sendall(view[FIRST_BYTES:])
                else:
                    self.sock.sendall(view)
                self.sent += len(view)
                if self._enough.is_set():
                    break
            if half_close:
                self.sock.shutdown(std.SHUT_WR)
        except OSError as error:
            self.error = self.error or error

    def _receive(self) -> None:
        receive_bytes = self._options[1]
        buffer = bytearray(self._options[5])
        view = memoryview(buffer)
        last = 0.0
        try:
            while receive_bytes < 0 or self.received < receive_bytes:
                count = self.sock.recv_into(buffer)
                if not count:
                    break
                now = time.monotonic()
                if not self.received:
                    self._wait_subflows()
                    last = time.monotonic()
                self.longest_gap_s = max(self.longest_gap_s, now - last)
                last = now
                self._digest.update(view[:count])
                self.received += count
                if 0 <= self._abort_after <= self.received:
                    self._end = "abort"
                    break
        except OSError as error:
            self.error = self.error or error

    def enough(self) -> None:
        """Nothing is sent any more but what has been begun."""
        self._enough.set()

    def join(self) -> Exchange:
        """Waits for the end of both directions, then closes as asked. TimeoutError if it takes too long."""
        for thread in self._threads:
            thread.join(max(0.1, self._deadline + 1 - time.monotonic()))
            if thread.is_alive():
                raise TimeoutError(f"still moving data: {self.received} received, {self.sent} sent: {self.sock!r}")
        self.info = self.sock.info()
        self.was_multipath, self.fallback_reason = self.sock.is_multipath, self.sock.fallback_reason
        if self._end == "abort":
            self.sock.setsockopt(std.SOL_SOCKET, std.SO_LINGER, LINGER_ZERO)
        if self._end != "hold":
            self.sock.close()
        return self

    def wait_moved(self, count: int, timeout_s: float = 60.0) -> None:
        """Until ``count`` octets have been sent or received. OSError: what ended the transfer before."""
        wait_until(lambda: self.moved >= count or self.error is not None, timeout_s, f"{count} octets moved")
        if self.moved < count and self.error is not None:
            raise self.error


def wait_until(condition: Any, timeout_s: float, what: str) -> None:
    """Until ``condition()`` holds; TimeoutError with ``what`` did not happen."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {timeout_s:.1f} s: {what}")
        time.sleep(0.002)


def wait_subflows(sock: Socket, count: int, timeout_s: float = 30.0) -> list[SubflowInfo]:
    """Until exactly ``count`` subflows are active (or known as stale), and no other is open."""
    deadline = time.monotonic() + timeout_s
    while True:
        infos = sock.subflows()
        if len(infos) == count and all(i.state in (SubflowState.ACTIVE, SubflowState.STALE) for i in infos):
            return infos
        if time.monotonic() > deadline:
            raise TimeoutError(f"not {count} subflows within {timeout_s:.1f} s, but {infos}")
        time.sleep(0.002)
