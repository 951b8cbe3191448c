"""Every block of docs/adapters.md and docs/asyncio.md that is a program runs as it stands there, and prints what it should."""

from __future__ import annotations

import ast
import asyncio
import re
import socket as std
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import mptcp
from mptcp.adapters import uvicorn as uvicorn_adapter
from mptcp.adapters import websockets as websockets_adapter

from .conftest import Stacks

DOCS = Path(__file__).parents[3] / "docs"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = BLOCK.findall((DOCS / "adapters.md").read_text())
GREETING = "hello"


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": GREETING.encode()})


async def _echo(websocket: Any) -> None:
    async for message in websocket:
        await websocket.send(message)


class Servers:
    """HTTP at 8000 and WebSocket at 8765, in an event loop of their own."""

    def __init__(self, stacks: Stacks) -> None:
        self.loop = mptcp.EventLoop()
        self.stacks = stacks
        self.started = threading.Event()
        self.thread = threading.Thread(target=self._main)
        self.thread.start()
        assert self.started.wait(60)

    def _main(self) -> None:
        with mptcp.use(self.stacks.server):
            self.loop.run_until_complete(self._serve())
        self.loop.close()

    async def _serve(self) -> None:
        import uvicorn

        self.stop = asyncio.Event()
        config = uvicorn.Config(app, host="", port=8000, log_level="critical", lifespan="off")
        self.http = uvicorn_adapter.Server(config)
        serving = asyncio.create_task(self.http.serve())
        async with websockets_adapter.serve(_echo, "", 8765):
            while not self.http.started:
                await asyncio.sleep(0.001)
            self.started.set()
            await self.stop.wait()
        self.http.should_exit = True
        await serving

    def finish(self) -> None:
        self.loop.call_soon_threadsafe(self.stop.set)
        self.thread.join(60)
        assert not self.thread.is_alive()


@pytest.fixture
def servers(stacks: Stacks, monkeypatch: pytest.MonkeyPatch) -> Iterator[Servers]:
    real = std.getaddrinfo

    def getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
        return real("10.0.0.2" if host in ("server.example", b"server.example") else host, *args, **kwargs)

    monkeypatch.setattr(std, "getaddrinfo", getaddrinfo)
    made = Servers(stacks)
    yield made
    made.finish()


def test_every_library_has_a_block() -> None:
    text = "\n".join(BLOCKS)
    modules = {path.stem for path in (DOCS.parent / "src/mptcp/adapters").glob("*.py")} - {"__init__"}
    assert modules
    assert not {name for name in modules if f"mptcp.adapters.{name}" not in text}


@pytest.mark.parametrize(
    "block", [block for block in BLOCKS if "server.example" in block], ids=lambda block: block.split("mptcp.adapters.")[1].split(" ")[0]
)  # fmt: skip
def test_a_client_block(stacks: Stacks, servers: Servers, block: str, capsys: pytest.CaptureFixture[str]) -> None:
    code = compile(block, "docs/adapters.md", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)

    async def main() -> None:
        async with asyncio.timeout(60):
            await eval(code, {})

    with mptcp.use(stacks.client):
        if "await" in block:
            asyncio.run(main())
        else:
            exec(code, {})
    assert capsys.readouterr().out.strip() == GREETING


def test_the_uvicorn_block(stacks: Stacks, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = [block for block in BLOCKS if "uvicorn.run" in block]
    served = threading.Event()
    kept: list[Any] = []

    class Kept(uvicorn_adapter.Server):
        async def serve(self, sockets: Any = None) -> None:
            kept.append(self)
            served.set()
            await super().serve(sockets)

    monkeypatch.setattr(uvicorn_adapter, "Server", Kept)

    def run() -> None:
        with mptcp.use(stacks.server):
            exec(block, {"app": app})

    thread = threading.Thread(target=run)
    thread.start()
    assert served.wait(60)
    with mptcp.use(stacks.client):
        end = time.monotonic() + 30
        while True:
            try:
                sock = mptcp.create_connection(("10.0.0.2", 8080), 30)
                break
            except ConnectionRefusedError:
                assert time.monotonic() < end
                time.sleep(0.01)
    with sock:
        sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert sock.makefile("rb").read().endswith(GREETING.encode())
    kept[0].should_exit = True
    thread.join(60)
    assert not thread.is_alive()


def test_the_loop_block() -> None:
    (block,) = [block for block in BLOCKS if "loop_factory" in block]
    seen: list[Any] = []

    async def main() -> None:
        seen.append(asyncio.get_running_loop())

    exec(block, {"main": main})
    assert isinstance(seen[0], mptcp.EventLoop)


def test_the_first_block_of_the_asyncio_page(stacks: Stacks, capsys: pytest.CaptureFixture[str]) -> None:
    block = BLOCK.findall((DOCS / "asyncio.md").read_text())[0]
    exec(block, {"server_stack": stacks.server, "client_stack": stacks.client, "__name__": "docs"})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "b'hello'"
    assert lines[1].startswith("[SubflowInfo(id=")
