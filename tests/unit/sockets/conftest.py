"""Two worlds for the same tests: the kernel's TCP sockets, which say what is right, and ours."""

from __future__ import annotations

import gc
import socket as std
import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from mptcp.links.loopback import LoopbackLink
from mptcp.sockets.options import IPPROTO_MPTCP
from mptcp.sockets.user import UserStack

from .aio_stacks import Stacks


class World:
    """A client's and a server's side; every socket made here is closed at the end."""

    client_host = server_host = "127.0.0.1"
    is_ours = False

    def __init__(self) -> None:
        self._sockets: list[Any] = []

    def client(self) -> Any:
        return self._kept(std.socket(std.AF_INET, std.SOCK_STREAM))

    def server(self) -> Any:
        return self._kept(std.socket(std.AF_INET, std.SOCK_STREAM))

    def _kept(self, sock: Any) -> Any:
        self._sockets.append(sock)
        return sock

    def listen(self, backlog: int = 16) -> Any:
        server = self.server()
        server.bind((self.server_host, 0))
        server.listen(backlog)
        return server

    def pair(self) -> tuple[Any, Any]:
        """(client, server) of one connection."""
        server = self.listen()
        client = self.client()
        client.connect(server.getsockname())
        accepted, _ = server.accept()
        server.close()
        return client, self._kept(accepted)

    def close(self) -> None:
        for sock in self._sockets:
            sock.close()


class OurWorld(World):
    client_host, server_host = "10.0.0.1", "10.0.0.2"
    is_ours = True

    def __init__(self, exits: ExitStack) -> None:
        super().__init__()
        near, far = LoopbackLink.pair()
        self.near_link, self.far_link = near, far
        self.client_stack = exits.enter_context(UserStack([near], [self.client_host, "fd00::1"], seed=1))
        self.server_stack = exits.enter_context(UserStack([far], [self.server_host, "fd00::2"], seed=2))

    def client(self, family: int = std.AF_INET) -> Any:
        return self._kept(self.client_stack.socket(family))

    def server(self, family: int = std.AF_INET) -> Any:
        # Bound to one address: only a program that knows of MPTCP gets it then (RFC 6897 §5.3.2).
        return self._kept(self.server_stack.socket(family, proto=IPPROTO_MPTCP))

    def listen(self, backlog: int = 16) -> Any:
        server = super().listen(backlog)
        server.add_addresses(["fd00::2"])
        return server


@pytest.fixture(params=["kernel", "ours"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    with ExitStack() as exits:
        made = World() if request.param == "kernel" else OurWorld(exits)
        exits.callback(made.close)
        yield made


@pytest.fixture
def ours() -> Iterator[OurWorld]:
    with ExitStack() as exits:
        made = OurWorld(exits)
        exits.callback(made.close)
        yield made


@pytest.fixture(params=[std.AF_INET, std.AF_INET6], ids=["v4", "v6"])
def stacks(request: pytest.FixtureRequest) -> Iterator[Stacks]:
    made = Stacks(family=request.param)
    yield made
    made.close()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()
