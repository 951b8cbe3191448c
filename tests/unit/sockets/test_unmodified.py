"""Programs and libraries that know nothing of this package, over its sockets: http.server, urllib, requests, httpx, aiohttp,
uvicorn, and asyncio's own loop. Clients and servers are in this process, each on a stack of its own."""

from __future__ import annotations

import asyncio
import http.client
import http.server
import os
import select
import socket
import socketserver
import ssl
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

# urllib3 finds out when it is imported whether there is IPv6, by a bind to ::1; docs/run.md says what to do.
with suppress(ImportError):
    import urllib3.util.connection  # noqa: F401

import mptcp
from mptcp.links.loopback import LoopbackLink
from mptcp.sockets.unmodified import StreamOrSystemSocket, patched
from mptcp.sockets.user import UserStack

CONTENT = os.urandom(200_000)
HOSTS = {"v4": ("10.0.0.1", "10.0.0.2"), "v6": ("fd00::1", "fd00::2")}


class Sides:
    """The stack of the unmodified program, and that of its peer, which is ours and knows it."""

    def __init__(self, program: UserStack, peer: UserStack) -> None:
        self.program = program
        self.peer = peer


@pytest.fixture
def sides() -> Iterator[Sides]:
    near, far = LoopbackLink.pair()
    with (
        UserStack([near], [HOSTS["v4"][0], HOSTS["v6"][0]], seed=1) as program,
        UserStack([far], [HOSTS["v4"][1], HOSTS["v6"][1]], seed=2) as peer,
        patched(program),
    ):
        yield Sides(program, peer)


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT)

    def log_message(self, *args: object) -> None:
        pass


class PeerServer(http.server.HTTPServer):
    """An HTTP server on the peer's stack."""

    def __init__(self, stack: UserStack) -> None:
        super().__init__(("", 0), Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = stack.socket(socket.AF_INET6)  # type: ignore[assignment]
        self.socket.bind(("::", 8000))
        self.socket.listen()


@contextmanager
def running(server: socketserver.BaseServer) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join(30)


@pytest.fixture
def served(sides: Sides) -> Iterator[str]:
    with running(PeerServer(sides.peer)):
        yield f"http://{HOSTS['v4'][1]}:8000/"


def fetch(stack: UserStack, host: str, port: int, *, multipath: bool = True) -> bytes:
    """What a client on that stack gets from an HTTP server. A server bound to one address has regular TCP (RFC 6897
    §4.2.1)."""
    with stack.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, proto=mptcp.IPPROTO_MPTCP) as sock:
        sock.settimeout(30)
        sock.connect((host, port))
        sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        response = http.client.HTTPResponse(sock)  # type: ignore[arg-type]
        response.begin()
        assert sock.is_multipath is multipath
        return response.read()


# --- what is patched --------------------------------------------------------------------------------------------------
def test_streams_are_ours_and_everything_else_is_the_systems(sides: Sides) -> None:
    with socket.socket() as stream, socket.socket(socket.AF_INET6, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as other:
        assert isinstance(stream, mptcp.Socket)
        assert isinstance(other, mptcp.Socket)
        assert isinstance(stream, socket.socket)
        assert not other.getblocking()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagram, socket.socket(socket.AF_UNIX) as unix:
        assert not isinstance(datagram, mptcp.Socket)
        assert isinstance(datagram, socket.socket)
        assert not isinstance(unix, mptcp.Socket)
        assert socket.socket(fileno=os.dup(unix.fileno())).close() is None
    first, second = socket.socketpair()
    first.close()
    second.close()
    assert not isinstance("a string", socket.socket)


def test_a_subclass_is_a_socket_of_the_system(sides: Sides) -> None:
    class Own(socket.socket):
        pass

    with Own(socket.AF_INET, socket.SOCK_STREAM) as own:
        assert isinstance(own, Own)
        assert not isinstance(own, mptcp.Socket)


def test_afterwards_everything_is_as_before() -> None:
    before = socket.socket, ssl.SSLContext.wrap_socket
    near, far = LoopbackLink.pair()
    with UserStack([near], ["10.0.0.1"]) as stack:
        with patched(stack), pytest.raises(RuntimeError, match="already"), patched(stack):
            pass
        assert (socket.socket, ssl.SSLContext.wrap_socket) == before
        assert socket.socket is not StreamOrSystemSocket
    far.close()


@pytest.mark.parametrize(("family", "strange"), [("v4", "127.0.0.1"), ("v6", "::1")])
def test_what_the_stack_cannot_reach_fails_as_the_system_says_it(sides: Sides, family: str, strange: str) -> None:
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((HOSTS[family][1], 9), timeout=30)
    with pytest.raises(OSError, match="assign"):
        socket.create_server((strange, 0), family=socket.AF_INET6 if family == "v6" else socket.AF_INET)


# --- clients ----------------------------------------------------------------------------------------------------------
def with_urllib(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=30) as response:
        content: bytes = response.read()
        return content


def with_requests(url: str) -> bytes:
    requests = pytest.importorskip("requests")
    if "[" in url and not pytest.importorskip("urllib3.util.connection").HAS_IPV6:
        pytest.skip("urllib3 takes no IPv6 address where the machine's loopback has none")
    content: bytes = requests.get(url, timeout=30).content
    return content


def with_httpx(url: str) -> bytes:
    httpx = pytest.importorskip("httpx")
    content: bytes = httpx.get(url, timeout=30).content
    return content


def with_httpx_async(url: str) -> bytes:
    httpx = pytest.importorskip("httpx")

    async def main() -> bytes:
        async with httpx.AsyncClient() as client:
            content: bytes = (await client.get(url, timeout=30)).content
            return content

    return asyncio.run(main())


def with_aiohttp(url: str) -> bytes:
    aiohttp = pytest.importorskip("aiohttp")

    async def main() -> bytes:
        async with aiohttp.ClientSession() as session, session.get(url) as response:
            content: bytes = await response.read()
            return content

    return asyncio.run(main())


def with_asyncio(url: str) -> bytes:
    host = url.split("/")[2]

    async def main() -> bytes:
        name, _, port = host.rpartition(":")
        reader, writer = await asyncio.open_connection(name.strip("[]"), int(port))
        assert isinstance(writer.get_extra_info("socket")._sock, mptcp.Socket)
        writer.write(b"GET / HTTP/1.0\r\n\r\n")
        content = await asyncio.wait_for(reader.read(), 30)
        writer.close()
        await writer.wait_closed()
        return content.partition(b"\r\n\r\n")[2]

    return asyncio.run(main())


CLIENTS = [with_urllib, with_requests, with_httpx, with_httpx_async, with_aiohttp, with_asyncio]


@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.__name__.removeprefix("with_"))
@pytest.mark.parametrize("family", HOSTS)
def test_clients(served: str, client: Callable[[str], bytes], family: str, sides: Sides) -> None:
    url = served if family == "v4" else f"http://[{HOSTS['v6'][1]}]:8000/"
    assert client(url) == CONTENT


# --- servers ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("family", HOSTS)
def test_http_server(sides: Sides, family: str) -> None:
    class Server(http.server.ThreadingHTTPServer):
        address_family = socket.AF_INET6 if family == "v6" else socket.AF_INET

    server = Server(("", 8080), Handler)
    assert isinstance(server.socket, mptcp.Socket)
    with running(server):
        assert fetch(sides.peer, HOSTS[family][0], 8080) == CONTENT


@pytest.mark.parametrize("family", HOSTS)
def test_select_and_a_thread_that_accepts(sides: Sides, family: str) -> None:
    kind = socket.AF_INET6 if family == "v6" else socket.AF_INET
    server = socket.create_server((HOSTS[family][0], 8081), family=kind)
    client = sides.peer.socket(kind)
    client.connect(server.getsockname())
    assert select.select([server], [], [], 30)[0] == [server]
    accepted, address = server.accept()
    assert address == client.getsockname()
    client.sendall(b"hello")
    with accepted, accepted.makefile("rb") as file:
        assert file.read(5) == b"hello"
    client.close()
    server.close()


class LoopThread:
    """An event loop in a thread of its own."""

    def __init__(self, main: Callable[[LoopThread], Any]) -> None:
        self.ready = threading.Event()
        self.ended: asyncio.Event
        self.loop: asyncio.AbstractEventLoop
        self._main = main
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    async def _run(self) -> None:
        self.loop, self.ended = asyncio.get_running_loop(), asyncio.Event()
        await self._main(self)

    def __enter__(self) -> None:
        self._thread.start()
        assert self.ready.wait(30)

    def __exit__(self, *exc_info: object) -> None:
        self.loop.call_soon_threadsafe(self.ended.set)
        self._thread.join(30)
        assert not self._thread.is_alive()


@pytest.mark.parametrize(("family", "everywhere"), [("v4", "0.0.0.0"), ("v6", "::")])
def test_uvicorn(sides: Sides, family: str, everywhere: str) -> None:
    uvicorn = pytest.importorskip("uvicorn")

    async def application(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            headers = [(b"content-length", str(len(CONTENT)).encode())]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": CONTENT})

    async def main(thread: LoopThread) -> None:
        config = uvicorn.Config(
            application, host=everywhere, port=8082, lifespan="off", log_level="critical", loop="asyncio"
        )
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server._serve(None))
        while not server.started:
            await asyncio.sleep(0.01)
        thread.ready.set()
        await thread.ended.wait()
        server.should_exit = True
        await serving

    with LoopThread(main):
        assert fetch(sides.peer, HOSTS[family][0], 8082) == CONTENT


@pytest.mark.parametrize("family", HOSTS)
def test_an_aiohttp_server_that_sends_a_file(sides: Sides, tmp_path: Path, family: str) -> None:
    """Its files go by ``loop.sendfile``, which the kernel cannot do with a connection that it does not see."""
    web = pytest.importorskip("aiohttp.web")
    (tmp_path / "file").write_bytes(CONTENT)

    async def answer(request: Any) -> Any:
        return web.FileResponse(tmp_path / "file")

    async def main(thread: LoopThread) -> None:
        application = web.Application()
        application.router.add_get("/", answer)
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, HOSTS[family][0], 8083).start()
        thread.ready.set()
        await thread.ended.wait()
        await runner.cleanup()

    with LoopThread(main):
        assert fetch(sides.peer, HOSTS[family][0], 8083, multipath=False) == CONTENT
