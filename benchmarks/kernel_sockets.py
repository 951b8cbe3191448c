"""What this package's socket costs on the kernel's stack: against a raw ``socket.socket(..., IPPROTO_MPTCP)`` with buffers of
64 KiB and 1 MiB, and its asyncio streams against asyncio's own over the same raw sockets.

    python -m benchmarks.kernel_sockets [SECONDS [ROUNDS]]

Sender and receiver are in two network namespaces joined by a veth pair (over loopback the kernel's MPTCP has two speeds, a
hundred times apart, whoever uses it): the blocking sockets in two processes on two processors, by the clock; the streams in
one loop on one processor, by the processor's time, because between two the kernel has several speeds for streams and chooses
one for each connection. Kinds take turns within a round; the figure is the median over the rounds of each kind's rate divided
by its opponent's of the same round. The last row says how far that can be trusted.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import socket as std
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import mptcp
from mptcp.core.units import KIB, MIB
from mptcp.sockets.kernel import KernelStack
from mptcp.testing.netns import Lab, become_namespace_root, needs_namespaces

SECONDS = 0.3
ROUNDS = 41
STREAM_BYTES = 64 * KIB
STREAM_SIZE = 32 * MIB
#: Of the sockets beneath streams, on both sides: with buffers that it chooses by itself the kernel has several speeds, up to
#: fifty times apart, and which one it is changes from connection to connection.
STREAM_BUFFER = 256 * KIB
IPPROTO_MPTCP = 262


class World:
    """The two ends: ``sides[0]`` sends, ``sides[1]`` receives."""

    def __init__(self, lab: Lab) -> None:
        self.sides = (lab.client, lab.server)
        self.stacks = tuple(KernelStack(namespace=side.fileno()) for side in self.sides)
        self.address = lab.server_address(1)

    def raw(self, side: int) -> std.socket:
        with self.sides[side].entered():
            return std.socket(std.AF_INET, std.SOCK_STREAM, IPPROTO_MPTCP)

    def ours(self, side: int) -> Any:
        return self.stacks[side].socket(std.AF_INET, std.SOCK_STREAM, IPPROTO_MPTCP)


def settle(which: int) -> None:
    """This process keeps to one processor: where the two ends share one, or change it, rates are worlds apart."""
    processors = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {processors[which % len(processors)]})


def receive(listener: Any, size: int, done: Any) -> None:
    """Counts octets from the first to the last: (octets, seconds)."""
    settle(-1)
    sock = listener.accept()[0]
    buffer = bytearray(size)
    total = sock.recv_into(buffer)
    begun = time.perf_counter()
    while count := sock.recv_into(buffer):
        total += count
    done.send((total, time.perf_counter() - begun))


@contextlib.contextmanager
def settled() -> Iterator[None]:
    """Within it this process keeps to another processor than the receiver's."""
    before = os.sched_getaffinity(0)
    settle(0)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def send(sock: Any, size: int, seconds: float) -> None:
    data = bytes(size)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        sock.sendall(data)
    sock.close()


def blocking(world: World, make: Callable[[int], Any], size: int, seconds: float) -> float:
    """Octets per second through two sockets that ``make`` makes, with buffers of ``size``."""
    listener = make(1)
    listener.bind((world.address, 0))
    listener.listen()
    ours, theirs = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(target=receive, args=(listener, size, theirs))
    child.start()
    sock = make(0)
    sock.connect(listener.getsockname())
    with settled():
        send(sock, size, seconds)
    total, taken = ours.recv()
    child.join()
    listener.close()
    return float(total) / float(taken)


def steady(sock: Any) -> Any:
    for option in (std.SO_SNDBUF, std.SO_RCVBUF):
        sock.setsockopt(std.SOL_SOCKET, option, STREAM_BUFFER // 2)  # the kernel doubles it
    return sock


class Plain:
    """asyncio's own streams over raw sockets; the loop only takes connected ones of that protocol."""

    def __init__(self, world: World) -> None:
        self.world = world

    async def serve(self, callback: Any) -> Any:
        listener = steady(self.world.raw(1))
        listener.bind((self.world.address, 0))
        return await asyncio.start_server(callback, sock=listener)

    async def connect(self, port: int) -> Any:
        sock = steady(self.world.raw(0))
        sock.connect((self.world.address, port))
        sock.setblocking(False)
        # asyncio does not see that this is TCP (proto is 262) and leaves it off.
        sock.setsockopt(std.IPPROTO_TCP, std.TCP_NODELAY, 1)
        return await asyncio.open_connection(sock=sock)


class Ours:
    """This package's."""

    def __init__(self, world: World) -> None:
        self.world = world

    async def serve(self, callback: Any) -> Any:
        listener = steady(self.world.ours(1))
        listener.bind((self.world.address, 0))
        with mptcp.use(self.world.stacks[1]):
            return await mptcp.start_server(callback, sock=listener)

    async def connect(self, port: int) -> Any:
        sock = steady(self.world.ours(0))
        sock.connect((self.world.address, port))
        sock.setblocking(False)
        sock.setsockopt(std.IPPROTO_TCP, std.TCP_NODELAY, 1)
        with mptcp.use(self.world.stacks[0]):
            return await mptcp.open_connection(sock=sock)


async def carry(kind: Any) -> float:
    """Moves ``STREAM_SIZE`` octets from one end to the other, both in this loop: octets per second of processor time."""
    finished: asyncio.Future[float] = asyncio.get_running_loop().create_future()

    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        total = len(await reader.read(STREAM_BYTES))
        begun = time.process_time()
        while data := await reader.read(STREAM_BYTES):
            total += len(data)
        finished.set_result(total / (time.process_time() - begun))
        writer.close()

    server = await kind.serve(client)
    _, writer = await kind.connect(server.sockets[0].getsockname()[1])
    data = bytes(STREAM_BYTES)
    for _ in range(STREAM_SIZE // STREAM_BYTES):
        writer.write(data)
        await writer.drain()
    writer.close()
    rate = await finished
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    server.close()
    return rate


def streams(kind: Any) -> float:
    """Octets per second through streams, both ends in one loop on one processor."""
    with settled():
        return asyncio.run(carry(kind))


def compare(name: str, raw: Callable[[], float], ours: Callable[[], float], wanted: float, rounds: int) -> None:
    """Prints one row of the table."""
    pairs = []
    for turn in range(rounds + 1):
        # Who begins has the warmer caches or the colder ones: it changes every round. The first round is for warmth.
        first, second = (raw, ours) if turn % 2 else (ours, raw)
        one, two = first(), second()
        if turn:
            pairs.append((one, two) if turn % 2 else (two, one))
    ratio = statistics.median(b / a for a, b in pairs)
    raw_rate, our_rate = (statistics.median(rates) * 8 / 1e9 for rates in zip(*pairs, strict=True))
    verdict = "ok" if ratio >= wanted else "BELOW"
    print(f"{name:28} {raw_rate:10.2f} {our_rate:10.2f} {ratio:8.3f}   >= {wanted:.2f} {verdict}", flush=True)


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else SECONDS
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else ROUNDS
    if needs_namespaces() and not become_namespace_root():
        sys.exit("network namespaces cannot be made here: run as root or under `unshare -Urn`")
    with Lab(1, client_kernel=True) as lab:
        lab.wait_ready()
        world = World(lab)
        print(f"{'':28} {'raw Gbit/s':>10} {'ours':>10} {'ratio':>8}   (median of {rounds} rounds of {seconds:g} s)")
        for size in (64 * KIB, 1 * MIB):
            compare(
                f"socket, {size // KIB} KiB buffers",
                lambda size=size: blocking(world, world.raw, size, seconds),  # type: ignore[misc]
                lambda size=size: blocking(world, world.ours, size, seconds),  # type: ignore[misc]
                0.98, rounds,
            )  # fmt: skip
        plain, ours = Plain(world), Ours(world)
        for name, other in (("asyncio streams, 64 KiB", ours), ("asyncio's against itself", plain)):
            compare(name, lambda: streams(plain), lambda: streams(other), 0.97, rounds)  # noqa: B023
        for stack in world.stacks:
            stack.close()


if __name__ == "__main__":
    main()
