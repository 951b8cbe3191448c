"""Programs that know nothing of this package, in one process, over the kernel's stack."""

from __future__ import annotations

import asyncio
import http.server
import socket
import threading
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

import mptcp
from mptcp.sockets.kernel import KernelStack
from mptcp.sockets.unmodified import patched
from mptcp.testing.netns import Namespace


@pytest.fixture
def patch(host_namespace: Namespace) -> Iterator[Namespace]:
    with KernelStack(namespace=host_namespace.fileno()) as stack, patched(stack):
        yield host_namespace


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"content" * 1000)

    def log_message(self, *args: object) -> None:
        pass


def test_urllib_and_http_server(patch: Namespace) -> None:
    with http.server.ThreadingHTTPServer(("", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/", timeout=5) as response:
                assert response.read() == b"content" * 1000
        finally:
            server.shutdown()
            thread.join()
    assert patch.counters()["MPTcpExtMPCapableSYNRX"] == 1
    assert patch.counters()["MPTcpExtMPCapableFallbackACK"] == 0


def test_what_a_socket_is(patch: Namespace) -> None:
    with socket.socket() as stream, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagram:
        assert isinstance(stream, mptcp.KernelSocket)
        assert isinstance(stream, socket.socket)
        assert not isinstance(datagram, mptcp.KernelSocket)
    with socket.create_server(("", 0)) as server, socket.create_connection(server.getsockname()) as client:
        assert client.is_multipath  # type: ignore[attr-defined]


def test_asyncio(patch: Namespace) -> None:
    async def main() -> None:
        async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(await reader.read(5))
            writer.close()

        server: Any = await asyncio.start_server(echo, "0.0.0.0", 0)
        reader, writer = await asyncio.open_connection("127.0.0.1", server.sockets[0].getsockname()[1])
        writer.write(b"hello")
        assert await reader.read() == b"hello"
        assert writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
        writer.close()
        server.close()

    asyncio.run(main())
    assert patch.counters()["MPTcpExtMPCapableSYNRX"] == 1
