"""Two stacks under one event loop, and what the tests of asyncio say to them."""

from __future__ import annotations

import asyncio
import socket as std
from collections.abc import Awaitable, Callable
from typing import Any

import mptcp
from mptcp.links.loopback import LoopbackLink
from mptcp.sockets import aio

HOSTS = ["10.0.0.2", "fd00::2"]


class Stacks:
    """Two stacks, one process; nothing but the event loop drives them unless ``background``. Both have addresses of both
    families; ``family`` is that of ``here`` (the client), ``there`` (the server) and ``nowhere``."""

    def __init__(self, background: bool = False, queue_packets: int = 1024, family: int = std.AF_INET) -> None:
        self.family = family
        network = "10.0.0." if family == std.AF_INET else "fd00::"
        self.here, self.there, self.nowhere = f"{network}1", f"{network}2", f"{network}77"
        near, far = LoopbackLink.pair(queue_packets=queue_packets)
        self.client = mptcp.UserStack([near], ["10.0.0.1", "fd00::1"], seed=1, background=background)
        self.server = mptcp.UserStack([far], ["10.0.0.2", "fd00::2"], seed=2, background=background)

    async def serve(self, callback: Any, host: str | None = None, port: int | None = 80, **arguments: Any) -> Any:
        with mptcp.use(self.server):
            return await mptcp.start_server(callback, host, port, **arguments)

    def drive(self) -> None:
        for stack in (self.client, self.server):
            with mptcp.use(stack):
                aio.attach()

    async def open(self, host: str | None = "", port: int = 80, **arguments: Any) -> Any:
        self.drive()
        with mptcp.use(self.client):
            return await mptcp.open_connection(self.there if host == "" else host, port, **arguments)

    async def connect(self, factory: Any, host: str | None = "", port: int = 80, **arguments: Any) -> Any:
        self.drive()
        with mptcp.use(self.client):
            return await aio.create_connection(factory, self.there if host == "" else host, port, **arguments)

    def close(self) -> None:
        self.client.close(0)
        self.server.close(0)


def run(main: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(280):
            await main()

    asyncio.run(limited())


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


class Recorder(asyncio.Protocol):
    """Writes down what it is told."""

    def __init__(self, keep_open: bool = False) -> None:
        self.said: list[str] = []
        self.data = bytearray()
        self.transport: Any = None
        self.keep_open = keep_open
        self.lost: asyncio.Future[BaseException | None] = asyncio.get_running_loop().create_future()
        self.came = asyncio.Event()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.said.append("made")

    def data_received(self, data: bytes) -> None:
        self.data += data
        self.came.set()

    def eof_received(self) -> bool:
        self.said.append("eof")
        self.came.set()
        return self.keep_open

    def pause_writing(self) -> None:
        self.said.append("pause")

    def resume_writing(self) -> None:
        self.said.append("resume")

    def connection_lost(self, exc: BaseException | None) -> None:
        self.said.append("lost")
        self.lost.set_result(exc)


async def pair(stacks: Stacks, **arguments: Any) -> tuple[Recorder, Recorder, Any]:
    """(client, server, the server object)."""
    accepted: asyncio.Future[Recorder] = asyncio.get_running_loop().create_future()

    def factory() -> Recorder:
        protocol = Recorder(**arguments)
        accepted.set_result(protocol)
        return protocol

    with mptcp.use(stacks.server):
        server = await aio.create_server(factory, stacks.there, 80)
    _, client = await stacks.connect(lambda: Recorder(**arguments))
    far = await accepted
    while far.transport is None:
        await asyncio.sleep(0)
    return client, far, server


async def send(writer: asyncio.StreamWriter, data: bytes) -> None:
    for offset in range(0, len(data), 100_000):
        writer.write(data[offset : offset + 100_000])
        await writer.drain()
