"""asyncio over the stack: servers."""

from __future__ import annotations

import asyncio

import pytest

from .aio_stacks import HOSTS, Stacks, echo, pair, run


def test_server_object(stacks: Stacks) -> None:
    async def main() -> None:
        server = await stacks.serve(echo, stacks.there, start_serving=False)
        assert not server.is_serving()
        assert server.get_loop() is asyncio.get_running_loop()
        with pytest.raises(ConnectionRefusedError):
            await stacks.open()
        await server.start_serving()
        assert server.is_serving()
        reader, writer = await stacks.open()
        assert server.sockets[0].getsockname()[:2] == (stacks.there, 80)
        writer.write(b"1")
        assert await reader.readexactly(1) == b"1"
        server.close()
        assert server.sockets == ()
        with pytest.raises(ConnectionRefusedError):
            await stacks.open()
        waiting = asyncio.create_task(server.wait_closed())
        writer.write(b"2")
        assert await reader.readexactly(1) == b"2"
        assert not waiting.done()  # a client is still there
        writer.close()
        await waiting
        with pytest.raises(RuntimeError, match="closed"):
            await server.serve_forever()

    run(main)


def test_serve_forever_ends_with_its_task(stacks: Stacks) -> None:
    async def main() -> None:
        server = await stacks.serve(echo, start_serving=False)
        task = asyncio.create_task(server.serve_forever())
        _, writer = await stacks.open()
        with pytest.raises(RuntimeError, match="already being awaited"):
            await server.serve_forever()
        writer.close()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not server.is_serving()

    run(main)


def test_every_family_at_once_and_one_port(stacks: Stacks) -> None:
    async def main() -> None:
        server = await stacks.serve(echo, None, 0)
        ports = {sock.getsockname()[1] for sock in server.sockets}
        assert len(server.sockets) == 2
        assert len(ports) == 1
        for host in HOSTS:
            reader, writer = await stacks.open(host, ports.copy().pop())
            writer.write(b"x")
            assert await reader.readexactly(1) == b"x"
            writer.close()
        server.close_clients()
        server.close()
        await server.wait_closed()

    run(main)


def test_clients_can_be_aborted(stacks: Stacks) -> None:
    async def main() -> None:
        client, far, server = await pair(stacks)
        server.abort_clients()
        assert isinstance(await client.lost, ConnectionResetError)
        await far.lost
        server.close()
        await server.wait_closed()

    run(main)
