"""The standard library's HTTP client and server, and socketserver, run on these sockets unchanged but for their making."""

from __future__ import annotations

import http.client
import http.server
import socket as std
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import mptcp


class Connection(http.client.HTTPConnection):
    def connect(self) -> None:
        self.sock = mptcp.create_connection((self.host, self.port), self.timeout)


def on_stack(base: type[Any]) -> type[Any]:
    """A server class of the standard library, listening on a socket of the stack in use."""

    class Server(base):  # type: ignore[misc]
        def __init__(self, address: tuple[str, int], handler: type[Any]) -> None:
            self.address_family = std.AF_INET6 if ":" in address[0] else std.AF_INET
            super().__init__(address, handler, bind_and_activate=False)
            self.socket.close()
            self.socket = mptcp.create_server(address, family=self.address_family, backlog=self.request_queue_size)
            self.server_address = self.socket.getsockname()

    return Server


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = b"you asked for " + self.path.encode() + b" " + b"x" * int(self.headers.get("Size", "0"))
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[::-1])

    def log_message(self, *args: Any) -> None:
        return


class Upper(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        for line in self.rfile:
            self.wfile.write(line.upper())


@contextmanager
def running(ours: Any, kind: type[Any], handler: type[Any]) -> Iterator[tuple[str, int]]:
    with mptcp.use(ours.server_stack):
        server = on_stack(kind)((ours.server_host, 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server.server_address[:2]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_get_and_post_on_one_connection(ours: Any) -> None:
    with (
        running(ours, http.server.ThreadingHTTPServer, Handler) as (host, port),
        mptcp.use(ours.client_stack),
    ):
        client = Connection(host, port, timeout=30)
        for path in ("/a", "/b"):
            client.request("GET", path)
            assert client.getresponse().read() == b"you asked for " + path.encode() + b" "
        client.request("POST", "/", b"abc" * 100_000)
        assert client.getresponse().read() == b"cba" * 100_000
        client.close()


@pytest.mark.parametrize("kind", [http.server.HTTPServer, http.server.ThreadingHTTPServer])
def test_large_answers_to_several_clients(ours: Any, kind: type[Any]) -> None:
    sizes: list[int] = []

    def get(number: int) -> None:
        with mptcp.use(ours.client_stack):
            client = Connection(host, port, timeout=30)
        client.sock = ours.client()
        client.sock.settimeout(30)
        client.sock.connect((host, port))
        client.request("GET", "/", headers={"Size": str(200_000 + number), "Connection": "close"})
        sizes.append(len(client.getresponse().read()) - len(b"you asked for / "))
        client.close()

    with running(ours, kind, Handler) as (host, port):
        threads = [threading.Thread(target=get, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert sorted(sizes) == [200_000, 200_001, 200_002, 200_003]


def test_socketserver_streams(ours: Any) -> None:
    with (
        running(ours, socketserver.ThreadingTCPServer, Upper) as address,
        mptcp.use(ours.client_stack),
        mptcp.create_connection(address, timeout=30) as client,
        client.makefile("rwb") as file,
    ):
        for word in (b"one\n", b"two\n"):
            file.write(word)
            file.flush()
            assert file.readline() == word.upper()
