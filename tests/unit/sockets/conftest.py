"""Two worlds for the same tests, each in both families: the kernel's TCP sockets, which say what is right, and ours."""

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
    """A client's and a server's side, with sockets of one family; every socket made here is closed at the end.

    ``nobody``: an address that neither has.
    """

    is_ours = False

    def __init__(self, family: int) -> None:
        self.family = family
        self.client_host = self.server_host = "127.0.0.1" if family == std.AF_INET else "::1"
        self.wildcard, self.nobody = ("0.0.0.0", "192.0.2.1") if family == std.AF_INET else ("::", "2001:db8::1")
        self._sockets: list[Any] = []

    def client(self) -> Any:
        return self._kept(std.socket(self.family, std.SOCK_STREAM))

    def server(self) -> Any:
        return self._kept(std.socket(self.family, std.SOCK_STREAM))

    def name(self, host: str, port: int) -> tuple[Any, ...]:
        """As ``getsockname`` has it."""
        return (host, port) if self.family == std.AF_INET else (host, port, 0, 0)

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
    """Each stack has an address of both families: the first is ``client_host``, or ``server_host``."""

    is_ours = True

    def __init__(self, family: int, exits: ExitStack) -> None:
        super().__init__(family)
        near, far = LoopbackLink.pair()
        self.near_link, self.far_link = near, far
        self.client_hosts, self.server_hosts = [["10.0.0.1", "fd00::1"], ["10.0.0.2", "fd00::2"]]
        if family == std.AF_INET6:
            self.client_hosts.reverse()
            self.server_hosts.reverse()
        self.client_host, self.server_host = self.client_hosts[0], self.server_hosts[0]
        self.client_stack = exits.enter_context(UserStack([near], self.client_hosts, seed=1))
        self.server_stack = exits.enter_context(UserStack([far], self.server_hosts, seed=2))

    def client(self, family: int = 0) -> Any:
        return self._kept(self.client_stack.socket(family or self.family))

    def server(self, family: int = 0) -> Any:
        # Bound to one address: only a program that knows of MPTCP gets it then (RFC 6897 §5.3.2).
        return self._kept(self.server_stack.socket(family or self.family, proto=IPPROTO_MPTCP))

    def listen(self, backlog: int = 16) -> Any:
        server = super().listen(backlog)
        server.add_addresses(self.server_hosts[1:])
        return server


FAMILIES = {"v4": std.AF_INET, "v6": std.AF_INET6}


@pytest.fixture(params=[f"{kind}-{family}" for kind in ("kernel", "ours") for family in FAMILIES])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    kind, _, family = request.param.partition("-")
    with ExitStack() as exits:
        made = World(FAMILIES[family]) if kind == "kernel" else OurWorld(FAMILIES[family], exits)
        exits.callback(made.close)
        yield made


@pytest.fixture(params=FAMILIES)
def ours(request: pytest.FixtureRequest) -> Iterator[OurWorld]:
    with ExitStack() as exits:
        made = OurWorld(FAMILIES[request.param], exits)
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
