"""Where features are tried: a client's stack with two local addresses, and a server that does what one octet tells it."""

from __future__ import annotations

import socket as std
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mptcp.sockets.base import Stack
from mptcp.sockets.options import IPPROTO_MPTCP

#: What the server is told to do, and answers with the same octet.
ECHO, ANNOUNCE, PRIORITY, CLOSE, WITHDRAW = b"e", b"a", b"p", b"c", b"w"
WAIT_S = 4.0


class NoEffect(Exception):
    """The call was taken, but what it stands for did not come about."""


@dataclass
class Scene:
    """``local`` and ``remote``: addresses on the first path, and on the second, all of one family. ``managed``: the
    in-kernel path manager opens the second subflow."""

    stack: Stack
    local: tuple[str, str]
    remote: tuple[str, str]
    port: int
    managed: bool = False

    @property
    def family(self) -> int:
        """4 or 6."""
        return 6 if ":" in self.local[0] else 4

    def socket(self) -> Any:
        sock = self.stack.socket(std.AF_INET6 if self.family == 6 else std.AF_INET, std.SOCK_STREAM, IPPROTO_MPTCP)
        sock.settimeout(WAIT_S)
        return sock

    def connect(self, sock: Any = None) -> Any:
        """A connection that has carried data both ways."""
        sock = sock if sock is not None else self.socket()
        sock.connect((self.remote[0], self.port))
        self.tell(sock, ECHO)
        return sock

    def two_subflows(self) -> tuple[Any, int]:
        """... with a second subflow, however this stack comes by one: (socket, its id)."""
        sock = self.connect()
        if not self.managed:
            sock.open_subflow((self.remote[1], self.port), (self.local[1], 0))
        self.until(lambda: self.active(sock) >= 2)
        return sock, next(s.id for s in sock.subflows() if s.local.host == self.local[1])

    def active(self, sock: Any) -> int:
        return sum(s.state.value == "active" for s in sock.subflows())

    def tell(self, sock: Any, command: bytes) -> None:
        """The server does it, and has answered."""
        sock.sendall(command)
        if sock.recv(1) != command:
            raise NoEffect("the server has gone")

    def until(self, condition: Callable[[], object], what: str = "nothing came of it") -> None:
        deadline = time.monotonic() + WAIT_S
        while not condition():
            if time.monotonic() > deadline:
                raise NoEffect(what)
            time.sleep(0.005)


class Server:
    """Accepts on ``stack`` until it is closed, each connection in a thread, in the family of ``further``, an address that it
    announces when it is told to."""

    def __init__(self, stack: Stack, further: str) -> None:
        self._stack, self._further = stack, further
        family = std.AF_INET6 if ":" in further else std.AF_INET
        self._listener: Any = stack.socket(family, std.SOCK_STREAM, IPPROTO_MPTCP)
        self._listener.setsockopt(std.SOL_SOCKET, std.SO_REUSEADDR, 1)
        self._listener.bind(("", 0))
        self._listener.listen()
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: Any) -> None:
        with sock:
            try:
                while command := sock.recv(1):
                    self._obey(sock, command)
                    sock.sendall(command)
            except OSError:
                return

    def _obey(self, sock: Any, command: bytes) -> None:
        if command == ANNOUNCE:
            sock.add_address(self._further)
        elif command == WITHDRAW:
            sock.remove_address(self._further)
        elif command in (PRIORITY, CLOSE):
            further = next(s for s in sock.subflows() if not s.initial and s.state.value == "active")
            if command == PRIORITY:
                sock.set_backup(further.id, True)
            else:
                sock.close_subflow(further.id, reset=True)

    def close(self) -> None:
        self._listener.close()
        self._thread.join(2)


def linger_reset(sock: Any) -> None:
    """Closes without waiting: the next feature is tried on a connection of its own."""
    sock.setsockopt(std.SOL_SOCKET, std.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()
