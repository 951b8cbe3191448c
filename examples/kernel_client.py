"""The kernel's MPTCP under asyncio: fetch something by HTTP; list subflows, print events. Needs no privilege.

python examples/kernel_client.py                 from a server of its own
python examples/kernel_client.py HOST [PORT]     from another one
"""

import asyncio
import sys

import mptcp

SIZE = 10_000_000


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.0 200 OK\r\n\r\n" + bytes(SIZE))
    await writer.drain()
    writer.close()


async def print_events(sock: mptcp.KernelSocket) -> None:
    async for event in sock.events():
        print(f"event: {event.kind.value} {event.local or ''} {event.remote or ''} {event.reason}".rstrip())


async def main(host: str = "", port: str = "80") -> None:
    stack = mptcp.current_stack()  # where no other is in use: the kernel's
    print(f"stack: {stack!r}, events: {stack.supports('events').reason or 'the kernel tells them'}")
    server = None
    if not host:
        listener = mptcp.create_server(("127.0.0.1", 0))
        host, port = listener.getsockname()
        server = await mptcp.start_server(answer, sock=listener)

    reader, writer = await mptcp.open_connection(host, int(port))
    sock = writer.get_extra_info("socket")  # a socket.socket, with more methods
    printing = asyncio.create_task(print_events(sock))
    print(f"multipath: {sock.is_multipath} {sock.fallback_reason}".rstrip())
    writer.write(f"GET / HTTP/1.0\r\nHost: {host}\r\n\r\n".encode())
    print(f"read {len(await reader.read()):,} octets")
    for subflow in sock.subflows():
        print(
            f"subflow {subflow.id}: {subflow.local} > {subflow.remote} {subflow.state.value}, "
            f"{subflow.bytes_received:,} octets received, round trip {subflow.srtt_us / 1000:.1f} ms"
        )
    writer.close()
    await writer.wait_closed()
    await printing
    if server is not None:
        server.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
