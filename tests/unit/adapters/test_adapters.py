"""Each adapter against the real library: plain and with TLS, over IPv4 and IPv6, and what it raises.

A test is the three lines of docs/adapters.md, and one that the octets went over the stack: the connection is MPTCP.
"""

from __future__ import annotations

import asyncio
import http.server
import ssl
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

import mptcp

from .conftest import Stacks

BODY = bytes(range(256)) * 1024


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(BODY)

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers["Content-Length"])))

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Multipath", str(int(self.connection.is_multipath)))  # type: ignore[attr-defined]
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        return


class Httpd(http.server.ThreadingHTTPServer):
    """The standard library's server with listening sockets of ours, until it is closed."""

    daemon_threads = True

    def __init__(self, stacks: Stacks, context: ssl.SSLContext | None) -> None:
        super().__init__(("", 0), Handler, bind_and_activate=False)
        self.socket.close()
        with mptcp.use(stacks.server):
            listening: Any = mptcp.create_server(("", 8000), family=10, dualstack_ipv6=True)
        self.socket = mptcp.wrap_socket(context, listening, server_side=True) if context else listening
        self.thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def handle_error(self, request: Any, client_address: Any) -> None:
        return

    def finish(self) -> None:
        self.shutdown()
        self.thread.join(60)
        self.server_close()


@pytest.fixture
def httpd(stacks: Stacks) -> Iterator[str]:
    server = Httpd(stacks, None)
    yield "http://10.0.0.2:8000/"
    server.finish()


@pytest.fixture(params=["10.0.0.2", "[fd00::2]"])
def place(request: pytest.FixtureRequest) -> str:
    """The server's address of either family, as URLs have it."""
    text: str = request.param
    return text


@pytest.fixture
def httpsd(stacks: Stacks, server_tls: ssl.SSLContext, place: str) -> Iterator[str]:
    server = Httpd(stacks, server_tls)
    yield f"https://{place}:8000/"
    server.finish()


@pytest.fixture
def authority_file(authority: Any, tmp_path: Any) -> str:
    path = tmp_path / "authority.pem"
    authority.cert_pem.write_to_path(str(path))
    return str(path)


def run(main: Callable[[], Awaitable[None]], factory: Callable[[], asyncio.AbstractEventLoop] | None = None) -> None:
    async def limited() -> None:
        async with asyncio.timeout(100):
            await main()

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(limited())


LOOPS = pytest.mark.parametrize("factory", [None, mptcp.EventLoop], ids=["any loop", "our loop"])


# --- requests and urllib3 -----------------------------------------------------------------------------------------------
def test_requests(stacks: Stacks, httpd: str) -> None:
    from mptcp.adapters.requests import Session

    with mptcp.use(stacks.client), Session() as session:
        for url in (httpd, "http://[fd00::2]:8000/"):
            answer = session.get(url, timeout=60)
            assert answer.content == BODY
            assert answer.headers["X-Multipath"] == "1"
            assert session.post(url, data=b"posted", timeout=60).content == b"posted"


def test_requests_tls(stacks: Stacks, httpsd: str, authority_file: str) -> None:
    import requests

    from mptcp.adapters.requests import Session

    with mptcp.use(stacks.client), Session() as session:
        assert session.get(httpsd, verify=authority_file, timeout=60).content == BODY
        with pytest.raises(requests.exceptions.SSLError, match="CERTIFICATE_VERIFY_FAILED"):
            session.get(httpsd, timeout=60)


def test_requests_errors(stacks: Stacks) -> None:
    import requests

    from mptcp.adapters.requests import Session

    with mptcp.use(stacks.client), Session() as session:
        with stacks.server.socket() as listening:
            listening.bind(("", 9000))  # so that the server's stack has somebody who drives it
            with pytest.raises(requests.exceptions.ConnectionError, match="refused"):
                session.get("http://10.0.0.2:8001/", timeout=60)
        with pytest.raises(requests.exceptions.ConnectTimeout):
            session.get("http://10.0.0.77:8001/", timeout=0.05)


def test_urllib3(stacks: Stacks, httpd: str) -> None:
    from mptcp.adapters.urllib3 import PoolManager

    with mptcp.use(stacks.client), PoolManager() as pool:
        answer = pool.request("GET", httpd)
        assert answer.data == BODY
        assert answer.headers["X-Multipath"] == "1"


def test_urllib3_tls(stacks: Stacks, httpsd: str, authority_file: str) -> None:
    import urllib3

    from mptcp.adapters.urllib3 import PoolManager

    with mptcp.use(stacks.client):
        with PoolManager(ca_certs=authority_file) as pool:
            assert pool.request("GET", httpsd).data == BODY
        with PoolManager() as pool, pytest.raises(urllib3.exceptions.MaxRetryError, match="CERTIFICATE_VERIFY_FAILED"):
            pool.request("GET", httpsd, retries=0)


def test_urllib3_errors(stacks: Stacks) -> None:
    import urllib3

    from mptcp.adapters.urllib3 import PoolManager

    with mptcp.use(stacks.client), PoolManager(retries=False) as pool:
        with pytest.raises(urllib3.exceptions.NewConnectionError, match="refused"):
            pool.request("GET", "http://10.0.0.2:8001/")
        with pytest.raises(urllib3.exceptions.ConnectTimeoutError):
            pool.request("GET", "http://10.0.0.77:8001/", timeout=0.05)
        with pytest.raises(urllib3.exceptions.NameResolutionError):
            pool.request("GET", "http://no-such-host.invalid/")


# --- httpx and httpcore -------------------------------------------------------------------------------------------------
def test_httpx(stacks: Stacks, httpd: str) -> None:
    import httpx

    from mptcp.adapters.httpx import Transport

    with mptcp.use(stacks.client), httpx.Client(transport=Transport()) as client:
        for url in (httpd, "http://[fd00::2]:8000/"):
            answer = client.get(url)
            assert answer.content == BODY
            assert answer.headers["X-Multipath"] == "1"
            assert client.post(url, content=b"posted").content == b"posted"


def test_httpx_tls(stacks: Stacks, httpsd: str, client_tls: ssl.SSLContext) -> None:
    import httpx

    from mptcp.adapters.httpx import Transport

    with mptcp.use(stacks.client):
        with httpx.Client(transport=Transport(verify=client_tls)) as client:
            assert client.get(httpsd).content == BODY
        with httpx.Client(transport=Transport()) as client, pytest.raises(httpx.ConnectError, match="VERIFY_FAILED"):
            client.get(httpsd)


def test_httpx_errors(stacks: Stacks) -> None:
    import httpx

    from mptcp.adapters.httpx import Transport

    with mptcp.use(stacks.client), httpx.Client(transport=Transport(), timeout=0.05) as client:
        with pytest.raises(httpx.ConnectError, match="refused"):
            client.get("http://10.0.0.2:8001/", timeout=60)
        with pytest.raises(httpx.ConnectTimeout):
            client.get("http://10.0.0.77:8001/")


def test_httpx_async(stacks: Stacks, httpd: str) -> None:
    import httpx

    from mptcp.adapters.httpx import AsyncTransport

    async def main() -> None:
        with mptcp.use(stacks.client):
            async with httpx.AsyncClient(transport=AsyncTransport()) as client:
                answer = await client.get(httpd)
                assert answer.content == BODY
                assert answer.headers["X-Multipath"] == "1"
                both = await asyncio.gather(client.get(httpd), client.post(httpd, content=b"posted"))
                assert [one.content for one in both] == [BODY, b"posted"]
                with pytest.raises(httpx.ConnectError):
                    await client.get("http://10.0.0.2:8001/")
                with pytest.raises(httpx.ConnectTimeout):
                    await client.get("http://10.0.0.77:8001/", timeout=0.05)

    run(main)


def test_httpx_async_tls(stacks: Stacks, httpsd: str, client_tls: ssl.SSLContext) -> None:
    import httpx

    from mptcp.adapters.httpx import AsyncTransport

    async def main() -> None:
        with mptcp.use(stacks.client):
            async with httpx.AsyncClient(transport=AsyncTransport(verify=client_tls)) as client:
                assert (await client.get(httpsd)).content == BODY
            async with httpx.AsyncClient(transport=AsyncTransport()) as client:
                with pytest.raises(httpx.ConnectError, match="VERIFY_FAILED"):
                    await client.get(httpsd)

    run(main)


def test_httpcore(stacks: Stacks, httpsd: str, place: str, client_tls: ssl.SSLContext) -> None:
    import httpcore

    from mptcp.adapters.httpcore import AsyncNetworkBackend, NetworkBackend

    with mptcp.use(stacks.client):
        backend = NetworkBackend()
        with httpcore.ConnectionPool(network_backend=backend, ssl_context=client_tls) as pool:
            answer = pool.request("GET", httpsd)
            assert answer.content == BODY
            with pool.stream("GET", httpsd) as answer:
                stream = answer.extensions["network_stream"]
                assert stream.get_extra_info("server_addr")[:2] == (place.strip("[]"), 8000)
                assert stream.get_extra_info("ssl_object").version() == "TLSv1.3"
                answer.read()
        with pytest.raises(httpcore.ConnectError):
            backend.connect_unix_socket("/nowhere")

    async def main() -> None:
        with mptcp.use(stacks.client):
            backend = AsyncNetworkBackend()
            async with httpcore.AsyncConnectionPool(network_backend=backend, ssl_context=client_tls) as pool:
                assert (await pool.request("GET", httpsd)).content == BODY
            with pytest.raises(httpcore.ConnectError):
                await backend.connect_unix_socket("/nowhere")

    run(main)


# --- aiohttp ------------------------------------------------------------------------------------------------------------
@LOOPS
def test_aiohttp(stacks: Stacks, httpd: str, factory: Any) -> None:
    import aiohttp

    from mptcp.adapters.aiohttp import Connector

    async def main() -> None:
        with mptcp.use(stacks.client):
            async with aiohttp.ClientSession(connector=Connector()) as session:
                for url in (httpd, "http://[fd00::2]:8000/"):
                    async with session.get(url) as answer:
                        assert await answer.read() == BODY
                        assert answer.headers["X-Multipath"] == "1"
                with pytest.raises(aiohttp.ClientConnectorError):
                    await session.get("http://10.0.0.2:8001/")

    run(main, factory)


@LOOPS
def test_aiohttp_tls(stacks: Stacks, httpsd: str, client_tls: ssl.SSLContext, factory: Any) -> None:
    import aiohttp

    from mptcp.adapters.aiohttp import Connector

    async def main() -> None:
        with mptcp.use(stacks.client):
            async with aiohttp.ClientSession(connector=Connector()) as session:
                async with session.get(httpsd, ssl=client_tls) as answer:
                    assert await answer.read() == BODY
                with pytest.raises(aiohttp.ClientConnectorCertificateError):
                    await session.get(httpsd)

    run(main, factory)


@LOOPS
def test_aiohttp_server(stacks: Stacks, factory: Any) -> None:
    import aiohttp
    from aiohttp import web

    from mptcp.adapters.aiohttp import Connector, Site

    async def hello(request: web.Request) -> web.Response:
        return web.Response(body=await request.read() or BODY)

    async def main() -> None:
        app = web.Application()
        app.router.add_route("*", "/", hello)
        runner = web.AppRunner(app)
        await runner.setup()
        with mptcp.use(stacks.server):
            await Site(runner, "", 8000).start()
        with mptcp.use(stacks.client):
            async with aiohttp.ClientSession(connector=Connector()) as session:
                async with session.get("http://10.0.0.2:8000/") as answer:
                    assert await answer.read() == BODY
                async with session.post("http://10.0.0.2:8000/", data=b"posted") as answer:
                    assert await answer.read() == b"posted"
        await runner.cleanup()

    run(main, factory)


# --- websockets ---------------------------------------------------------------------------------------------------------
async def _echo(websocket: Any) -> None:
    async for message in websocket:
        await websocket.send(message)


@LOOPS
@pytest.mark.parametrize("secure", [False, True], ids=["ws", "wss"])
def test_websockets(
    stacks: Stacks, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext, place: str, factory: Any, secure: bool
) -> None:
    from mptcp.adapters.websockets import connect, serve

    async def main() -> None:
        with mptcp.use(stacks.server):
            server = await serve(_echo, place.strip("[]"), 8000, **({"ssl": server_tls} if secure else {}))
        url = f"wss://{place}:8000/" if secure else f"ws://{place}:8000/"
        with mptcp.use(stacks.client):
            async with await connect(url, **({"ssl": client_tls} if secure else {})) as websocket:
                for message in ("hello", BODY):
                    await websocket.send(message)
                    assert await websocket.recv() == message
            with pytest.raises(ConnectionRefusedError):
                await connect(f"ws://{place}:8001/")
        server.close()
        await server.wait_closed()

    run(main, factory)


@pytest.mark.parametrize("secure", [False, True], ids=["ws", "wss"])
def test_websockets_blocking(
    stacks: Stacks, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext, place: str, secure: bool
) -> None:
    from mptcp.adapters.websockets import connect_sync, serve_sync

    def echo(websocket: Any) -> None:
        for message in websocket:
            websocket.send(message)

    with mptcp.use(stacks.server):
        server = serve_sync(echo, place.strip("[]"), 8000, ssl=server_tls if secure else None)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    with mptcp.use(stacks.client):
        url = f"wss://{place}:8000/" if secure else f"ws://{place}:8000/"
        with connect_sync(url, ssl=client_tls if secure else None) as websocket:
            for message in ("hello", BODY):
                websocket.send(message)
                assert websocket.recv(60) == message
        with pytest.raises(ConnectionRefusedError):
            connect_sync(f"ws://{place}:8001/")
    server.shutdown()
    thread.join(60)
    assert not thread.is_alive()


# --- uvicorn ------------------------------------------------------------------------------------------------------------
async def _app(scope: Any, receive: Any, send: Any) -> None:
    """An ASGI application without a framework: echoes what is posted."""
    if scope["type"] != "http":
        return
    body = b""
    more = True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x-path", scope["path"].encode())]})
    await send({"type": "http.response.body", "body": body or BODY})


@LOOPS
def test_uvicorn(stacks: Stacks, place: str, factory: Any) -> None:
    import httpx
    import uvicorn

    from mptcp.adapters.httpx import AsyncTransport
    from mptcp.adapters.uvicorn import Server

    async def main() -> None:
        server = Server(
            uvicorn.Config(
                _app, host="" if place == "10.0.0.2" else "::", port=8000, log_level="critical", lifespan="off"
            )
        )
        with mptcp.use(stacks.server):
            serving = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.001)
        with mptcp.use(stacks.client):
            async with httpx.AsyncClient(transport=AsyncTransport()) as client:
                answer = await client.get(f"http://{place}:8000/path")
                assert answer.content == BODY
                assert answer.headers["x-path"] == "/path"
                assert (await client.post(f"http://{place}:8000/", content=b"posted")).content == b"posted"
        server.should_exit = True
        await serving

    run(main, factory)


def test_uvicorn_run(stacks: Stacks) -> None:
    from mptcp.adapters import uvicorn as adapter
    from mptcp.adapters.requests import Session

    stop = threading.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await _app(scope, receive, send)

    class Once(adapter.Server):
        async def main_loop(self) -> None:
            await asyncio.to_thread(stop.wait, 100)

    def serve() -> None:
        with mptcp.use(stacks.server):
            adapter.run(app, host="", port=8000, log_level="critical", lifespan="off")

    original, adapter.Server = adapter.Server, Once  # type: ignore[misc]
    try:
        thread = threading.Thread(target=serve)
        thread.start()
        with mptcp.use(stacks.client), Session() as session:
            end = time.monotonic() + 30
            while True:
                try:
                    answer = session.get("http://10.0.0.2:8000/", timeout=30)
                    break
                except OSError:
                    assert time.monotonic() < end
                    time.sleep(0.01)
            assert answer.content == BODY
        stop.set()
        thread.join(60)
        assert not thread.is_alive()
    finally:
        adapter.Server = original  # type: ignore[misc]
