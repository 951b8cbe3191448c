"""asyncio on the kernel's stack: streams, transports, servers, TLS; the loop's own transports carry the sockets."""

from __future__ import annotations

import asyncio
import socket as std
import ssl
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
import trustme

import mptcp
from mptcp.kernel.watchdog import FailurePolicy
from mptcp.sockets import aio
from mptcp.sockets.kernel import KernelStack
from mptcp.testing.netns import Lab, Namespace

TCP = std.IPPROTO_TCP


@pytest.fixture(params=["127.0.0.1", "::1"])
def host(request: pytest.FixtureRequest, host_namespace: Namespace) -> Iterator[str]:
    """An address of the namespace whose stack is in use."""
    stack = KernelStack(namespace=host_namespace.fileno())
    with stack, mptcp.use(stack):
        yield request.param


@pytest.fixture(params=["asyncio", "mptcp.EventLoop", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[[Awaitable[Any]], Any]:
    """Runs a coroutine on a loop of that kind."""
    if request.param == "uvloop":
        factory: Any = pytest.importorskip("uvloop").new_event_loop
    else:
        factory = asyncio.new_event_loop if request.param == "asyncio" else mptcp.EventLoop

    def runner(coroutine: Any) -> Any:
        with asyncio.Runner(loop_factory=factory) as made:
            return made.run(asyncio.wait_for(coroutine, 60))

    return runner


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


def test_streams(host: str, run: Callable[[Any], Any]) -> None:
    async def main() -> None:
        server = await mptcp.start_server(echo, host, 0)
        port = server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]
        reader, writer = await mptcp.open_connection(host, port)
        data = bytes(range(256)) * 4000
        writer.write(data)
        assert await reader.readexactly(len(data)) == data
        writer.close()
        await writer.wait_closed()
        server.close()
        await server.wait_closed()

    run(main())


def test_the_socket_of_a_writer_has_the_whole_interface(host: str) -> None:
    async def main() -> None:
        served: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        async def client_connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            served.set_result(writer.get_extra_info("socket"))
            await echo(reader, writer)

        async with await mptcp.start_server(client_connected, host, 0) as server:
            reader, writer = await mptcp.open_connection(host, server.sockets[0].getsockname()[1])  # type: ignore[attr-defined]
            for sock in (writer.get_extra_info("socket"), await served):
                assert isinstance(sock, mptcp.KernelSocket)
                assert sock.is_multipath
                assert len(sock.subflows()) == 1
                assert sock.getsockopt(TCP, std.TCP_NODELAY) == 1
                async for event in sock.events():
                    assert event.kind is mptcp.EventKind.ESTABLISHED
                    break
            writer.close()
            assert await reader.read() == b""

    asyncio.run(main())


def test_protocols_find_the_socket_when_they_are_made(host: str) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        found: asyncio.Queue[Any] = asyncio.Queue()

        class Protocol(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                found.put_nowait(transport.get_extra_info("socket"))

        server: Any = await aio.create_server(Protocol, host, 0)
        transport, protocol = await aio.create_connection(Protocol, host, server.sockets[0].getsockname()[1])
        assert isinstance(protocol, Protocol)
        assert {type(await found.get()), type(await found.get())} == {mptcp.KernelSocket}
        assert "connection_made" not in vars(protocol)
        transport.abort()
        server.close()
        with pytest.raises(ConnectionRefusedError):
            await mptcp.open_connection(host, 1)
        assert loop is asyncio.get_running_loop()

    asyncio.run(main())


def test_the_loop_of_this_package_serves_what_libraries_ask_it_for(host: str) -> None:
    async def main() -> None:
        server = await asyncio.start_server(echo, host, 0)
        reader, writer = await asyncio.open_connection(host, server.sockets[0].getsockname()[1])
        assert writer.get_extra_info("socket").is_multipath
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"hello"
        writer.close()
        server.close()
        loop = asyncio.get_running_loop()
        with mptcp.create_server((host, 0), family=std.AF_INET6 if ":" in host else std.AF_INET) as listener:
            listener.setblocking(False)
            with mptcp.socket(listener.family) as sock:
                sock.setblocking(False)
                accepting = loop.create_task(loop.sock_accept(listener))  # type: ignore[arg-type]
                await loop.sock_connect(sock, listener.getsockname())  # type: ignore[arg-type]
                accepted: Any = (await accepting)[0]
                await loop.sock_sendall(sock, b"raw")  # type: ignore[arg-type]
                assert await loop.sock_recv(accepted, 3) == b"raw"
                assert accepted.is_multipath
                accepted.close()

    with asyncio.Runner(loop_factory=mptcp.EventLoop) as runner:
        runner.run(asyncio.wait_for(main(), 60))


def test_tls(host: str, run: Callable[[Any], Any]) -> None:
    authority = trustme.CA(key_type=trustme.KeyType.ECDSA)
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(host, "server", key_type=trustme.KeyType.ECDSA).configure_cert(server_context)
    client_context = ssl.create_default_context()
    authority.configure_trust(client_context)

    async def main() -> None:
        server: Any = await mptcp.start_server(echo, host, 0, ssl=server_context)
        port = server.sockets[0].getsockname()[1]
        reader, writer = await mptcp.open_connection(host, port, ssl=client_context, server_hostname="server")
        data = bytes(300_000)
        writer.write(data)
        assert await reader.readexactly(len(data)) == data
        assert writer.get_extra_info("ssl_object").version() == "TLSv1.3"
        if isinstance(asyncio.get_running_loop(), asyncio.BaseEventLoop):
            assert writer.get_extra_info("socket").is_multipath
        writer.close()
        server.close()

    run(main())


def test_names_are_resolved_and_a_server_may_have_several_addresses(host_namespace: Namespace) -> None:
    stack = KernelStack(namespace=host_namespace.fileno())

    async def main() -> None:
        async with await mptcp.start_server(echo, ["127.0.0.1", "::1"], 0) as server:
            sockets: Any = server.sockets  # type: ignore[attr-defined]
            assert [sock.family for sock in sockets] == [std.AF_INET, std.AF_INET6]
            for name in ("localhost", "127.0.0.1", "::1"):
                reader, writer = await mptcp.open_connection(name, sockets[0].getsockname()[1])
                assert writer.get_extra_info("socket").is_multipath
                writer.write(b"x")
                assert await reader.readexactly(1) == b"x"
                writer.close()

    with stack, mptcp.use(stack):
        asyncio.run(asyncio.wait_for(main(), 60))


def test_a_second_subflow_of_an_asyncio_connection(lab: Lab) -> None:
    for namespace in (lab.client, lab.server):
        namespace.sysctl("net.mptcp.pm_type", 1)
    # On a busy machine a timer runs out though no path is dead, and no subflow is to be missing for it.
    policy = FailurePolicy(timeouts=6)
    near, far = (KernelStack(namespace=each.fileno(), failure_policy=policy) for each in (lab.client, lab.server))

    async def main() -> None:
        with mptcp.use(far):
            server: Any = await mptcp.start_server(echo, "0.0.0.0", 0)
        port = server.sockets[0].getsockname()[1]
        with mptcp.use(near):
            reader, writer = await mptcp.open_connection(lab.server_address(1), port)
        sock: Any = writer.get_extra_info("socket")
        writer.write(b"?")
        assert await reader.readexactly(1) == b"?"
        number = sock.open_subflow((lab.server_address(2), port), (lab.client_address(2), 0))
        async for event in sock.events():
            if event.kind is mptcp.EventKind.SUBFLOW_ESTABLISHED and event.subflow_id == number:
                break
        assert len(sock.subflows()) == 2
        data = bytes(1 << 20)
        writer.write(data)
        assert await reader.readexactly(len(data)) == data
        writer.close()
        server.close()

    with near, far:
        asyncio.run(asyncio.wait_for(main(), 60))


def test_uvloop_takes_a_connected_socket(host: str) -> None:
    uvloop = pytest.importorskip("uvloop")

    async def main() -> None:
        loop = asyncio.get_running_loop()
        server: Any = await mptcp.start_server(echo, host, 0)
        sock: Any = await aio.connected_socket(host, server.sockets[0].getsockname()[1])
        transport, _ = await loop.create_connection(asyncio.Protocol, sock=sock)
        assert sock.is_multipath  # the program keeps the socket: uvloop shows one of its own making
        transport.close()
        server.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(asyncio.wait_for(main(), 60))
