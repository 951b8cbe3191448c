"""asyncio over the stack: transports and protocols, what they promise, and each error."""

from __future__ import annotations

import asyncio
import gc
import io
import socket as std
from typing import Any

import pytest

import mptcp
from mptcp.sockets import aio
from mptcp.sockets.aio_transport import StreamTransport

from .aio_stacks import Recorder, Stacks, echo, pair, run


def test_protocol_hears_everything_in_order(stacks: Stacks) -> None:
    async def main() -> None:
        client, far, _ = await pair(stacks)
        client.transport.writelines([b"one", bytearray(b"two"), memoryview(b"three")])
        client.transport.write(memoryview(b"four"))
        client.transport.write(b"")
        client.transport.close()
        assert client.transport.is_closing()
        assert await far.lost is None
        assert bytes(far.data) == b"onetwothreefour"
        assert far.said == ["made", "eof", "lost"]
        assert await client.lost is None
        assert client.said == ["made", "lost"]

    run(main)


def test_half_close(stacks: Stacks) -> None:
    async def main() -> None:
        client, far, _ = await pair(stacks, keep_open=True)
        assert client.transport.can_write_eof()
        client.transport.write(b"question")
        client.transport.write_eof()
        with pytest.raises(RuntimeError, match="Cannot call write"):
            client.transport.write(b"x")
        with pytest.raises(RuntimeError, match="Cannot call writelines"):
            client.transport.writelines([b"x"])
        while "eof" not in far.said:
            await asyncio.sleep(0.001)
        assert bytes(far.data) == b"question"
        far.transport.write(b"answer")
        far.transport.close()
        await client.came.wait()
        while len(client.data) < 6:
            await asyncio.sleep(0.001)
        assert bytes(client.data) == b"answer"
        client.transport.close()
        await client.lost

    run(main)


def test_data_that_is_none(stacks: Stacks) -> None:
    async def main() -> None:
        client, _, _ = await pair(stacks)
        with pytest.raises(TypeError, match="bytes-like"):
            client.transport.write("text")
        client.transport.write(b"works on")
        client.transport.close()

    run(main)


def test_water_marks(stacks: Stacks) -> None:
    async def main() -> None:
        client, far, _ = await pair(stacks)
        far.transport.pause_reading()
        assert not far.transport.is_reading()
        client.transport.set_write_buffer_limits(high=100_000, low=1000)
        assert client.transport.get_write_buffer_limits() == (1000, 100_000)
        total = 0
        block = bytes(1 << 20)
        while "pause" not in client.said:
            client.transport.write(block)
            total += len(block)
            await asyncio.sleep(0)
        assert client.transport.get_write_buffer_size() > 100_000
        far.transport.resume_reading()
        assert far.transport.is_reading()
        while "resume" not in client.said:
            await asyncio.sleep(0.001)
        assert client.transport.get_write_buffer_size() <= 1000
        client.transport.close()
        await far.lost
        assert len(far.data) == total

    run(main)


def test_a_paused_reader_reads_nothing(stacks: Stacks) -> None:
    async def main() -> None:
        client, far, _ = await pair(stacks)
        far.transport.pause_reading()
        client.transport.write(b"later")
        await asyncio.sleep(0.01)
        assert not far.data
        far.transport.resume_reading()
        await far.came.wait()
        assert bytes(far.data) == b"later"
        client.transport.close()

    run(main)


def test_what_is_written_before_close_arrives(stacks: Stacks) -> None:
    async def main() -> None:
        client, far, _ = await pair(stacks)
        data = bytes(12 << 20)  # more than the connection's own buffer
        client.transport.write(data)
        client.transport.close()
        assert await far.lost is None
        assert len(far.data) == len(data)
        assert await client.lost is None

    run(main)


def test_abort_resets(stacks: Stacks) -> None:
    async def main() -> None:
        client, far, _ = await pair(stacks)
        client.transport.write(b"x")
        client.transport.abort()
        assert await client.lost is None
        error = await far.lost
        assert isinstance(error, ConnectionResetError)
        assert isinstance(error.__cause__, mptcp.ConnectionWasReset)

    run(main)


def test_writing_after_the_end_is_no_error_but_a_warning(stacks: Stacks) -> None:
    async def main() -> None:
        client, far, _ = await pair(stacks)
        far.transport.abort()
        assert isinstance(await client.lost, ConnectionResetError)
        for _ in range(5):
            client.transport.write(b"x")
        with pytest.warns(ResourceWarning, match="connection that is lost"):
            client.transport.write(b"x")

    run(main)


def test_a_protocol_that_raises_loses_its_connection_only(stacks: Stacks) -> None:
    async def main() -> None:
        class Broken(Recorder):
            def data_received(self, data: bytes) -> None:
                raise ZeroDivisionError

        told: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(context))
        _, client = await _broken(stacks, Broken)
        client.transport.write(b"x")
        assert isinstance(await client.lost, ConnectionResetError)
        assert isinstance(told[0]["exception"], ZeroDivisionError)
        assert "data_received" in told[0]["message"]

    async def _broken(stacks: Stacks, kind: Any) -> Any:
        with mptcp.use(stacks.server):
            await aio.create_server(kind, stacks.there, 80)
        return await stacks.connect(Recorder)

    run(main)


def test_buffered_protocol(stacks: Stacks) -> None:
    async def main() -> None:
        class Buffered(asyncio.BufferedProtocol):
            def __init__(self) -> None:
                self.space = bytearray(1000)
                self.data = bytearray()
                self.lost: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

            def get_buffer(self, sizehint: int) -> bytearray:
                return self.space

            def buffer_updated(self, nbytes: int) -> None:
                self.data += self.space[:nbytes]

            def connection_lost(self, exc: BaseException | None) -> None:
                self.lost.set_result(exc)

        made: list[Buffered] = []

        def factory() -> Buffered:
            made.append(Buffered())
            return made[-1]

        with mptcp.use(stacks.server):
            await aio.create_server(factory, stacks.there, 80)
        _, client = await stacks.connect(Recorder)
        data = bytes(range(256)) * 1000
        client.transport.write(data)
        client.transport.close()
        await client.lost
        while not made:
            await asyncio.sleep(0)
        assert await made[0].lost is None
        assert bytes(made[0].data) == data

    run(main)


def test_sendfile(stacks: Stacks) -> None:
    async def main() -> None:
        client, far, _ = await pair(stacks)
        data = bytes(range(256)) * 4000
        sent = await asyncio.get_running_loop().sendfile(client.transport, io.BytesIO(data), 100, 500_000)
        assert sent == 500_000
        client.transport.close()
        await far.lost
        assert bytes(far.data) == data[100:500_100]

    run(main)


def test_the_stack_closes_under_a_transport(stacks: Stacks) -> None:
    async def main() -> None:
        client, _, _ = await pair(stacks)
        stacks.client.close(0)
        error = await client.lost
        assert isinstance(error, OSError)

    run(main)


@pytest.mark.parametrize("family", [std.AF_INET, std.AF_INET6], ids=["v4", "v6"])
def test_a_connected_socket_becomes_a_transport(family: int) -> None:
    stacks = Stacks(background=True, family=family)

    async def main() -> None:
        await stacks.serve(echo)
        sock = stacks.client.socket(stacks.family)
        await asyncio.to_thread(sock.connect, (stacks.there, 80))
        reader, writer = await stacks.open(None, None, sock=sock)
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"hello"
        assert writer.get_extra_info("socket") is sock
        writer.close()

    run(main)
    stacks.close()


def test_unclosed_transport_warns(stacks: Stacks) -> None:
    async def main() -> None:
        _, far, _ = await pair(stacks)
        far.transport.abort()

    def forget() -> None:
        run(main)
        gc.collect()

    with pytest.warns(ResourceWarning, match="unclosed"):
        forget()


def test_transport_says_what_it_is(stacks: Stacks) -> None:
    async def main() -> None:
        client, _, server = await pair(stacks)
        assert isinstance(client.transport, StreamTransport)
        assert repr(client.transport).startswith("<mptcp transport open ")
        assert stacks.here in repr(client.transport)
        assert client.transport.get_protocol() is client
        client.transport.close()
        await client.lost
        assert "closed" in repr(client.transport)
        assert "mptcp Server" in repr(server)

    run(main)
