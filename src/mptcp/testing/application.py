"""One asyncio program with no word of this package in it: it runs over TUN, in the simulator and on the kernel's stack."""

from __future__ import annotations

import asyncio
from typing import Any


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """What a server does with a client."""
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


async def exchange(host: str, port: int, size: int) -> dict[int, int]:
    """Sends ``size`` octets (rounded down to 256) to an echo and checks what comes back; octets sent by subflow."""
    reader, writer = await asyncio.open_connection(host, port)
    data = bytes(range(256)) * (size // 256)

    async def send() -> None:
        writer.write(data)
        await writer.drain()

    sending = asyncio.create_task(send())
    assert await reader.readexactly(len(data)) == data
    await sending
    sock: Any = writer.get_extra_info("socket")
    shares = {subflow.id: subflow.bytes_sent for subflow in sock.subflows()}
    writer.write_eof()
    assert await reader.read(-1) == b""
    writer.close()
    await writer.wait_closed()
    return shares
