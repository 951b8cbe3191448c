"""TLS with the standard ``ssl`` module: blocking sockets and asyncio, against each other and against the kernel's TCP."""

from __future__ import annotations

import asyncio
import http.client
import http.server
import socket as std
import ssl
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
import trustme

import mptcp
from mptcp.links.loopback import LoopbackLink
from mptcp.sockets import aio

HOSTS = ["10.0.0.2", "fd00::2"]


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA(key_type=trustme.KeyType.ECDSA)


@pytest.fixture(scope="module")
def server_tls(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("10.0.0.2", "fd00::2", "server", key_type=trustme.KeyType.ECDSA).configure_cert(context)
    context.set_alpn_protocols(["echo"])
    return context


@pytest.fixture(scope="module")
def client_tls(authority: trustme.CA) -> ssl.SSLContext:
    context = mptcp.create_default_context()
    authority.configure_trust(context)
    context.set_alpn_protocols(["echo"])
    return context


@pytest.fixture
def stacks() -> Iterator[tuple[mptcp.UserStack, mptcp.UserStack]]:
    near, far = LoopbackLink.pair()
    with (
        mptcp.UserStack([near], ["10.0.0.1", "fd00::1"], seed=1) as client,
        mptcp.UserStack([far], ["10.0.0.2", "fd00::2"], seed=2) as server,
    ):
        yield client, server


def family_of(host: str) -> int:
    return std.AF_INET6 if ":" in host else std.AF_INET


class EchoServer:
    """Accepts one TLS connection and echoes until the end."""

    def __init__(self, stack: mptcp.UserStack, context: ssl.SSLContext, host: str) -> None:
        self.listening = stack.socket(family_of(host))
        self.listening.bind(("", 443))
        self.listening.listen()
        self.context = context
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._serve)
        self.thread.start()

    def _serve(self) -> None:
        try:
            sock, _ = self.listening.accept()
            with mptcp.wrap_socket(self.context, sock, server_side=True) as tls:
                tls.settimeout(30)
                while data := tls.recv(65536):
                    tls.sendall(data)
        except OSError as error:
            self.error = error

    def finish(self) -> None:
        self.thread.join(30)
        assert not self.thread.is_alive()
        self.listening.close()


@pytest.fixture(params=HOSTS)
def host(request: pytest.FixtureRequest) -> str:
    """The server's address, of either family."""
    address: str = request.param
    return address


@pytest.fixture
def pair(stacks: Any, server_tls: ssl.SSLContext, client_tls: mptcp.SSLContext, host: str) -> Iterator[mptcp.TlsSocket]:
    client, server = stacks
    echo = EchoServer(server, server_tls, host)
    sock = client.socket(family_of(host))
    sock.settimeout(30)
    sock.connect((host, 443))
    tls = client_tls.wrap_socket(sock, server_hostname=host)
    yield tls
    tls.close()
    echo.finish()
    assert echo.error is None


def test_echo(stacks: Any, server_tls: ssl.SSLContext, client_tls: mptcp.SSLContext, host: str) -> None:
    client, server = stacks
    echo = EchoServer(server, server_tls, host)
    with mptcp.use(client):
        sock = mptcp.create_connection((host, 443), 10)
    with mptcp.wrap_socket(client_tls, sock, host) as tls:
        data = bytes(range(256)) * 4096
        got = bytearray()
        reader = threading.Thread(target=lambda: got.extend(_read(tls, len(data))))
        reader.start()  # one thread reads while another writes
        tls.sendall(data)
        reader.join(30)
        assert got == data
        assert tls.version() == "TLSv1.3"
        assert tls.selected_alpn_protocol() == "echo"
        assert tls.cipher() is not None
        assert any(kind == "IP Address" for kind, _ in tls.getpeercert()["subjectAltName"])
        assert tls.is_multipath  # everything else is the socket's
        assert tls.getpeername()[:2] == (host, 443)
    echo.finish()
    assert echo.error is None


def _read(tls: mptcp.TlsSocket, count: int) -> bytes:
    got = bytearray()
    while len(got) < count and (data := tls.recv(65536)):
        got += data
    return bytes(got)


def test_the_octets_on_the_wire_are_encrypted(
    stacks: Any, server_tls: ssl.SSLContext, client_tls: mptcp.SSLContext, host: str
) -> None:
    client, server = stacks
    secret = b"nobody shall read this"
    seen = bytearray()
    link = server.pump.ports[0].link
    receive = link.receive

    def spy(limit: int = 64) -> Any:
        packets = receive(limit)
        for data, _, _ in packets:
            seen.extend(data)
        return packets

    class Spy(type(link)):  # type: ignore[misc]
        __slots__ = ()

        def receive(self, limit: int = 64) -> Any:
            return spy(limit)

    link.__class__ = Spy
    echo = EchoServer(server, server_tls, host)
    with mptcp.use(client):
        sock = mptcp.create_connection((host, 443), 10)
    with mptcp.wrap_socket(client_tls, sock, host) as tls:
        tls.sendall(secret)
        assert _read(tls, len(secret)) == secret
    echo.finish()
    assert len(seen) > 500
    assert secret not in seen


def test_wrong_name(stacks: Any, server_tls: ssl.SSLContext, client_tls: mptcp.SSLContext, host: str) -> None:
    client, server = stacks
    echo = EchoServer(server, server_tls, host)
    with mptcp.use(client):
        sock = mptcp.create_connection((host, 443), 10)
    with pytest.raises(ssl.SSLCertVerificationError, match="not valid for"):
        mptcp.wrap_socket(client_tls, sock, "other.example")
    sock.close()
    echo.finish()
    assert isinstance(echo.error, ssl.SSLError)  # it was told, by an alert


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("name", ["first", "other"])
def test_a_certificate_is_compared_with_the_first_address_whatever_subflows_there_are(
    authority: trustme.CA, client_tls: mptcp.SSLContext, family: int, name: str
) -> None:
    # RFC 6897 §6.1: "When TLS compares any addresses used by MPTCP against names or addresses present in X.509
    # certificates, it MUST only compare them with the address that MPTCP used to start the initial subflow"
    near, far = zip(*(LoopbackLink.pair(network) for network in "ab"), strict=True)
    networks = ["10.0.0.", "10.0.1."] if family == 4 else ["fd00::", "fd01::"]
    first, second = (f"{network}2" for network in networks)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(first, key_type=trustme.KeyType.ECDSA).configure_cert(context)
    with (
        mptcp.UserStack(near, {link.name: [f"{n}1"] for link, n in zip(near, networks, strict=True)}) as client,
        mptcp.UserStack(far, {link.name: [f"{n}2"] for link, n in zip(far, networks, strict=True)}) as server,
    ):
        echo = EchoServer(server, context, first)
        with mptcp.use(client):
            sock = mptcp.create_connection((first, 443), 10)
        initial = next(s.id for s in sock.subflows() if s.initial)
        events = sock.events()
        while (event := events.get(30)) is not None:
            if event.kind is mptcp.EventKind.SUBFLOW_ESTABLISHED and event.subflow_id != initial:
                break
        sock.close_subflow(initial)
        assert sock.getpeername()[0] == first
        if name == "first":
            with mptcp.wrap_socket(client_tls, sock, sock.getpeername()[0]) as tls:
                tls.sendall(b"over another subflow")
                assert _read(tls, 20) == b"over another subflow"
        else:
            with pytest.raises(ssl.SSLCertVerificationError, match="not valid for"):
                mptcp.wrap_socket(client_tls, sock, second)
            sock.close()
        echo.finish()


def test_wrong_arguments(stacks: Any, client_tls: mptcp.SSLContext, server_tls: ssl.SSLContext, host: str) -> None:
    client, _ = stacks
    sock = client.socket(family_of(host))
    with pytest.raises(ValueError, match="check_hostname requires server_hostname"):
        mptcp.wrap_socket(client_tls, sock)
    with pytest.raises(ValueError, match="client mode"):
        mptcp.wrap_socket(server_tls, sock, "name", server_side=True)
    tls = mptcp.wrap_socket(client_tls, sock, host)
    with pytest.raises(ValueError, match="No TLS around"):
        tls.do_handshake()
    with pytest.raises(ConnectionRefusedError):
        tls.connect((host, 444))
    sock.close()


def test_connect_after_wrapping(
    stacks: Any, server_tls: ssl.SSLContext, client_tls: mptcp.SSLContext, host: str
) -> None:
    client, server = stacks
    echo = EchoServer(server, server_tls, host)
    tls = mptcp.wrap_socket(client_tls, client.socket(family_of(host)), host)
    tls.settimeout(30)
    tls.connect((host, 443))
    with pytest.raises(ValueError, match="already-connected"):
        tls.connect((host, 443))
    tls.sendall(b"x")
    assert tls.recv(10) == b"x"
    tls.close()
    echo.finish()


def test_calls_that_make_no_sense_with_tls(pair: mptcp.TlsSocket) -> None:
    for call in (pair.recvfrom, pair.sendto):
        with pytest.raises(ValueError, match="not allowed"):
            call(1)
    for call in (pair.recvmsg, pair.sendmsg):
        with pytest.raises(NotImplementedError):
            call(1)
    with pytest.raises(ValueError, match="non-zero flags"):
        pair.recv(1, std.MSG_PEEK)
    with pytest.raises(ValueError, match="detached"):
        pair.detach()
    pair.sendall(b"works on")
    assert _read(pair, 8) == b"works on"


def test_files_and_recv_into(pair: mptcp.TlsSocket) -> None:
    with pair.makefile("rwb") as file:
        file.write(b"first\nsecond\n")
        file.flush()
        assert file.readline() == b"first\n"
        space = bytearray(10)
        assert file.readline() == b"second\n"
        pair.sendall(b"abc")
        while (count := pair.recv_into(space)) == 0:
            pass
        assert bytes(space[:count]) == b"abc"


def test_timeout(pair: mptcp.TlsSocket) -> None:
    pair.settimeout(0.02)
    with pytest.raises(TimeoutError):
        pair.recv(1)
    pair.settimeout(30)
    pair.sendall(b"works on")
    assert _read(pair, 8) == b"works on"


def test_non_blocking(pair: mptcp.TlsSocket) -> None:
    pair.sendall(b"x")
    assert pair.recv(1) == b"x"
    pair.setblocking(False)
    with pytest.raises(ssl.SSLWantReadError):
        pair.recv(1)
    data = bytes(64 << 20)
    sent = 0
    try:
        while sent < len(data):
            sent += pair.send(memoryview(data)[sent:])
    except ssl.SSLWantWriteError:
        assert sent
    else:
        pytest.fail("64 MiB that nobody reads cannot have fitted")
    pair.settimeout(30)
    got = 0
    while got < sent:
        got += len(pair.recv(65536))
    assert got == sent  # each octet once


def test_a_reader_does_not_wait_for_a_writer(pair: mptcp.TlsSocket) -> None:
    """More than all buffers hold goes round: the writer can only end if the reader reads meanwhile."""
    data = bytes(range(256)) * 4 * 32768
    pair.raw.setsockopt(std.SOL_SOCKET, std.SO_SNDBUF, 64 * 1024)
    writer = threading.Thread(target=pair.sendall, args=(data,))
    writer.start()
    assert _read(pair, len(data)) == data
    writer.join(30)
    assert not writer.is_alive()


def test_unwrap_gives_the_socket_back(
    stacks: Any, server_tls: ssl.SSLContext, client_tls: mptcp.SSLContext, host: str
) -> None:
    client, server = stacks
    listening = server.socket(family_of(host))
    listening.bind((host, 443))
    listening.listen()
    got: list[bytes] = []

    def serve() -> None:
        sock, _ = listening.accept()
        tls = mptcp.wrap_socket(server_tls, sock, server_side=True)
        got.append(tls.recv(10))
        raw = tls.unwrap()
        got.append(raw.recv(10))
        raw.close()

    thread = threading.Thread(target=serve)
    thread.start()
    with mptcp.use(client):
        sock = mptcp.create_connection((host, 443), 10)
    tls = mptcp.wrap_socket(client_tls, sock, host)
    tls.sendall(b"secret")
    raw = tls.unwrap()
    assert raw is sock
    raw.sendall(b"plain")
    thread.join(30)
    assert got == [b"secret", b"plain"]
    raw.close()
    listening.close()


def test_http_client_and_server_of_the_standard_library(
    stacks: Any, server_tls: ssl.SSLContext, client_tls: mptcp.SSLContext, host: str
) -> None:
    client, server = stacks

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "5")
            self.end_headers()
            self.wfile.write(b"hello")

        def log_message(self, *args: Any) -> None:
            return

    httpd = http.server.HTTPServer((host, 443), Handler, bind_and_activate=False)
    httpd.socket.close()
    listening = server.socket(family_of(host))
    listening.bind((host, 443))
    listening.listen()
    httpd.socket = mptcp.wrap_socket(server_tls, listening, server_side=True)  # type: ignore[assignment]
    thread = threading.Thread(target=httpd.handle_request)
    thread.start()
    connection = http.client.HTTPSConnection(host, 443, context=client_tls, timeout=30)
    with mptcp.use(client):
        connection._create_connection = mptcp.create_connection  # type: ignore[attr-defined]
        connection.request("GET", "/")
        assert connection.getresponse().read() == b"hello"
    connection.close()
    thread.join(30)
    httpd.server_close()


@pytest.mark.parametrize("local", ["127.0.0.1", "::1"])
def test_a_context_takes_the_kernels_sockets_as_ever(
    server_tls: ssl.SSLContext, client_tls: mptcp.SSLContext, local: str
) -> None:
    listening = std.create_server((local, 0), family=family_of(local))

    def serve() -> None:
        sock, _ = listening.accept()
        with suppress(OSError), server_tls.wrap_socket(sock, server_side=True) as tls:
            tls.sendall(b"kernel")

    thread = threading.Thread(target=serve)
    thread.start()
    with client_tls.wrap_socket(std.create_connection(listening.getsockname()[:2]), server_hostname="server") as tls:
        assert isinstance(tls, ssl.SSLSocket)
        assert tls.recv(10) == b"kernel"
    thread.join(30)
    listening.close()


# --- asyncio ------------------------------------------------------------------------------------------------------------
def test_asyncio_tls(stacks: Any, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext, host: str) -> None:
    client, server = stacks

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()

    async def main() -> None:
        async with asyncio.timeout(20):
            with mptcp.use(server):
                listening = await mptcp.start_server(echo, host, 443, ssl=server_tls)
            with mptcp.use(client):
                reader, writer = await mptcp.open_connection(host, 443, ssl=client_tls)
            data = bytes(range(256)) * 8192

            async def send() -> None:
                writer.write(data)
                await writer.drain()

            sending = asyncio.create_task(send())
            assert await reader.readexactly(len(data)) == data
            await sending
            assert writer.get_extra_info("ssl_object").version() == "TLSv1.3"
            assert isinstance(writer.get_extra_info("socket"), mptcp.Socket)
            writer.close()
            await writer.wait_closed()
            listening.close()

    asyncio.run(main())


def test_asyncio_wrong_certificate(stacks: Any, server_tls: ssl.SSLContext, host: str) -> None:
    client, server = stacks

    async def main() -> None:
        async with asyncio.timeout(20):
            with mptcp.use(server):
                await mptcp.start_server(lambda r, w: None, host, 443, ssl=server_tls)
            with mptcp.use(client), pytest.raises(ssl.SSLCertVerificationError):
                await mptcp.open_connection(host, 443, ssl=True)
            with mptcp.use(client), pytest.raises(ValueError, match="server_hostname"):
                await aio.create_connection(asyncio.Protocol, sock=client.socket(family_of(host)), ssl=True)

    asyncio.run(main())


def test_start_tls_in_the_middle(
    stacks: Any, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext, host: str
) -> None:
    client, server = stacks

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.readline() == b"STARTTLS\n"
        writer.write(b"go\n")
        await writer.start_tls(server_tls)
        writer.write(await reader.readline())
        await writer.drain()
        writer.close()

    async def main() -> None:
        async with asyncio.timeout(20):
            with mptcp.use(server):
                await mptcp.start_server(serve, host, 443)
            with mptcp.use(client):
                reader, writer = await mptcp.open_connection(host, 443)
            writer.write(b"STARTTLS\n")
            assert await reader.readline() == b"go\n"
            await writer.start_tls(client_tls, server_hostname=host)
            writer.write(b"encrypted\n")
            assert await reader.readline() == b"encrypted\n"
            assert writer.get_extra_info("ssl_object") is not None
            writer.close()

    asyncio.run(main())
