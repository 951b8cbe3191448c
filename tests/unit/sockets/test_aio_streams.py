"""asyncio over the stack: streams, and how a connection is opened."""

from __future__ import annotations

import asyncio
import errno
import socket as std
from typing import Any

import pytest

import mptcp

from .aio_stacks import HOSTS, Stacks, echo, run, send


@pytest.mark.parametrize("host", HOSTS)
def test_streams_echo(stacks: Stacks, host: str) -> None:
    async def main() -> None:
        server = await stacks.serve(echo)  # at every address: at one alone it would be single path (RFC 6897 §4.2.1)
        reader, writer = await stacks.open(host)
        data = bytes(range(256)) * 8192
        sending = asyncio.create_task(send(writer, data))
        assert await reader.readexactly(len(data)) == data
        await sending
        writer.write_eof()
        assert await reader.read() == b""
        sock = writer.get_extra_info("socket")
        assert isinstance(sock, mptcp.Socket)
        assert sock.is_multipath
        assert writer.get_extra_info("peername")[:2] == (host, 80)
        assert writer.get_extra_info("sockname")[:2] == sock.getsockname()[:2]
        writer.close()
        await writer.wait_closed()
        server.close()
        await server.wait_closed()

    run(main)


def test_nodelay_is_on_as_asyncio_has_it(stacks: Stacks) -> None:
    async def main() -> None:
        seen: list[int] = []

        async def on_client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            seen.append(writer.get_extra_info("socket").getsockopt(std.IPPROTO_TCP, std.TCP_NODELAY))
            writer.close()

        await stacks.serve(on_client)
        reader, writer = await stacks.open()
        assert writer.get_extra_info("socket").getsockopt(std.IPPROTO_TCP, std.TCP_NODELAY)
        await reader.read()
        assert seen == [1]
        writer.close()

    run(main)


def test_connection_refused(stacks: Stacks) -> None:
    async def main() -> None:
        with pytest.raises(ConnectionRefusedError) as caught:
            await stacks.open(port=81)
        assert isinstance(caught.value.__cause__, mptcp.ConnectionRefused)

    run(main)


def test_wrong_arguments(stacks: Stacks) -> None:
    async def main() -> None:
        with pytest.raises(ValueError, match="host and port was not specified"):
            await stacks.open(None, None)
        with pytest.raises(ValueError, match="server_hostname is only meaningful with ssl"):
            await stacks.open(server_hostname="x")
        with pytest.raises(ValueError, match="ssl_handshake_timeout is only meaningful with ssl"):
            await stacks.open(ssl_handshake_timeout=1)
        with pytest.raises(TypeError, match="SSLContext"):
            await stacks.open(ssl="yes")
        with pytest.raises(TypeError, match="SSLContext for a server"):
            await stacks.serve(echo, ssl=True)
        with pytest.raises(ValueError, match="Neither host/port nor sock"):
            await stacks.serve(echo, port=None)
        sock = stacks.client.socket(stacks.family)
        with pytest.raises(ValueError, match="can not be specified at the same time"):
            await stacks.open(sock=sock)
        sock.close()

    run(main)


def test_a_port_in_use_says_so(stacks: Stacks) -> None:
    async def main() -> None:
        await stacks.serve(echo)
        with pytest.raises(OSError, match="error while attempting to bind on address") as caught:
            await stacks.serve(echo)
        assert caught.value.errno == errno.EADDRINUSE

    run(main)


def test_an_address_that_is_not_ours(stacks: Stacks) -> None:
    async def main() -> None:
        with pytest.raises(OSError) as caught:
            await stacks.open(local_addr=("10.9.9.9" if stacks.family == std.AF_INET else "fd09::9", 0))
        assert caught.value.errno == errno.EADDRNOTAVAIL
        with pytest.raises(OSError, match="no matching local address"):
            await stacks.open(local_addr=("fd00::1" if stacks.family == std.AF_INET else "10.0.0.1", 0))

    run(main)


def test_several_addresses_until_one_answers(stacks: Stacks, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        await stacks.serve(echo, "10.0.0.2")
        loop = asyncio.get_running_loop()

        async def found(*args: Any, **kwargs: Any) -> list[Any]:
            ends = [(std.AF_INET6, ("fd00::2", args[1], 0, 0)), (std.AF_INET, ("10.0.0.2", args[1]))]
            return [(family, std.SOCK_STREAM, 6, "", end) for family, end in ends]

        monkeypatch.setattr(loop, "getaddrinfo", found)
        for delay in (None, 0.05):
            _, writer = await stacks.open("server.example", happy_eyeballs_delay=delay)
            assert writer.get_extra_info("peername") == ("10.0.0.2", 80)  # fd00::2 refuses
            writer.close()
        with pytest.raises(ExceptionGroup) as caught:
            await stacks.open("server.example", 81, all_errors=True)
        assert len(caught.value.exceptions) == 2

    run(main)


def test_happy_eyeballs_does_not_wait_for_an_address_that_is_silent(
    stacks: Stacks, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        await stacks.serve(echo)
        loop = asyncio.get_running_loop()

        async def found(*args: Any, **kwargs: Any) -> list[Any]:
            hosts = (stacks.nowhere, stacks.there)  # nobody has the first
            return [(stacks.family, std.SOCK_STREAM, 6, "", (host, 80)) for host in hosts]

        monkeypatch.setattr(loop, "getaddrinfo", found)
        before = loop.time()
        _, writer = await stacks.open("server.example", happy_eyeballs_delay=0.05)
        assert 0.04 < loop.time() - before < 0.9
        assert writer.get_extra_info("peername")[:2] == (stacks.there, 80)
        writer.close()
        await asyncio.sleep(0)
        assert len(stacks.client.pump.host.connections) == 1  # the loser is gone

    run(main)


def test_cancelled_connect_leaves_nothing(stacks: Stacks) -> None:
    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await stacks.open(stacks.nowhere)
        assert not stacks.client.pump.host.connections

    run(main)
