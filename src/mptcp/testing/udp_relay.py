"""A small NAT for UDP in a thread: datagrams to one endpoint come out of another, until it forgets or is told to lose."""

from __future__ import annotations

import random
import select
import socket
import threading
from types import TracebackType
from typing import Any, Self

_Address = tuple[Any, ...]


class UdpRelay:
    """Between clients of ``address`` and the server at ``target``, both (host, port).

    Each client gets a socket of its own on the server's side, as with a NAT that translates addresses and ports.
    ``forget`` gives all of them new ones; ``loss`` is the share of datagrams that vanish, each way; ``is_cut``: all do.
    """

    def __init__(self, target: tuple[str, int], host: str = "127.0.0.1", *, seed: int = 0) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._target = target
        self._family = family
        self._inside = socket.socket(family, socket.SOCK_DGRAM)
        self._inside.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self._inside.bind((host, 0))
        self._outside: dict[_Address, socket.socket] = {}
        self._retired: list[socket.socket] = []
        self._lock = threading.Lock()
        self._chance = random.Random(seed)
        self.loss = 0.0
        self.is_cut = False
        self.forwarded = 0  # datagrams, both ways
        self._is_closed = False
        self._thread = threading.Thread(target=self._main, daemon=True)
        self._thread.start()

    @property
    def address(self) -> tuple[str, int]:
        """Where clients send to."""
        host, port = self._inside.getsockname()[:2]
        return host, port

    def forget(self) -> None:
        """As when a NAT's entries have timed out: what goes on comes from new ports; answers to the old ones are lost."""
        with self._lock:
            self._retired += self._outside.values()
            self._outside.clear()

    def _main(self) -> None:
        while not self._is_closed:
            with self._lock:
                sockets = [self._inside, *self._outside.values()]
                for sock in self._retired:
                    sock.close()
                self._retired.clear()
                clients = {sock: client for client, sock in self._outside.items()}
            ready, _, _ = select.select(sockets, [], [], 0.02)
            for sock in ready:
                for _ in range(64):
                    try:
                        data, source = sock.recvfrom(65_536, socket.MSG_DONTWAIT)
                    except OSError:
                        break
                    if self.is_cut or (self.loss and self._chance.random() < self.loss):
                        continue
                    self.forwarded += 1
                    try:
                        if sock is self._inside:
                            self._outside_of(source).sendto(data, self._target)
                        else:
                            self._inside.sendto(data, clients[sock])
                    except OSError:
                        break

    def _outside_of(self, client: _Address) -> socket.socket:
        with self._lock:
            sock = self._outside.get(client)
            if sock is None:
                sock = self._outside[client] = socket.socket(self._family, socket.SOCK_DGRAM)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
            return sock

    def close(self) -> None:
        self._is_closed = True
        self._thread.join()
        for sock in (self._inside, *self._outside.values(), *self._retired):
            sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
