"""What the public sockets, and asyncio's streams, cost on top of the runtime: octets per second, and time to the program.

    python -m benchmarks.sockets [--seconds S] [--rounds N]

The kernel's MPTCP takes, or sends, the stream over a TUN device. This process does the other half: with the bare runtime
(``Pump.step`` and the connection's own ``read_into`` and ``write``, no sockets), with a blocking socket, with asyncio
streams, with an asyncio protocol. Rows are interleaved over several rounds, so that a change in the machine's speed hits
all alike; medians are shown, and the median of the rounds' ratios.

The time to the program: from the arrival of a packet at the link to the application's code that takes its octets, for
a blocking socket and for a protocol in an event loop.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import statistics
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import mptcp
from benchmarks.throughput import kernel_peer
from mptcp.core.entropy import Entropy
from mptcp.core.host import Host
from mptcp.core.multipath.connection_state import ConnectionState
from mptcp.core.units import NEVER
from mptcp.info import Endpoint
from mptcp.links.loopback import LoopbackLink
from mptcp.links.tun import TunLink
from mptcp.runtime.pump import Pump
from mptcp.sockets import aio
from mptcp.testing.netns import become_namespace_root, needs_kernel_mptcp, needs_namespaces, needs_tun

IPPROTO_MPTCP = 262
BUFFER = 1 << 20
TARGET = 0.8


def link() -> TunLink:
    return TunLink("bsock%d", kernel_addresses=["10.78.0.1/24"])


# --- the layers -----------------------------------------------------------------------------------------------------------
def bare(port: int, seconds: float, sends: bool) -> float:
    """The runtime alone: one host, one pump, one thread that drives; octets a second."""
    tun = link()
    host = Host(Entropy(os.urandom(32)))
    index = host.add_interface(tun.name, tun.mtu, tun.gso_max_bytes)
    pump = Pump(host, [(tun, index)], background=False)
    with pump.lock:
        host.add_address("10.78.0.2", index, pump.clock())
        connection = host.connect(Endpoint.parse("10.78.0.1", port), pump.clock())
        pump.flush()
        seat = pump.take_seat()
        while connection.state is ConnectionState.CONNECTING:
            pump.step(seat, pump.clock() + 1_000_000)
        block = bytes(BUFFER)
        view = memoryview(block)
        space = memoryview(bytearray(BUFFER))
        total = 0
        start = time.perf_counter()
        while (elapsed := time.perf_counter() - start) < seconds:
            if sends:
                done = 0
                while done < BUFFER:
                    taken = connection.write(view[done:] if done else block, pump.clock())
                    done += taken
                    pump.flush()
                    if done < BUFFER and not taken:
                        pump.step(seat, NEVER)
                total += done
            elif connection.readable_bytes:
                total += connection.read_into(space)
                pump.flush()
            else:
                pump.step(seat, NEVER)
        connection.abort(pump.clock())
        pump.flush()
        pump.leave_seat(seat)
    pump.close()
    return total / elapsed


def blocking(port: int, seconds: float, sends: bool) -> float:
    with mptcp.UserStack([link()], ["10.78.0.2"]) as stack, stack.socket() as sock:
        sock.settimeout(10)
        sock.connect(("10.78.0.1", port))
        block = bytes(BUFFER)
        space = bytearray(BUFFER)
        total = 0
        start = time.perf_counter()
        while (elapsed := time.perf_counter() - start) < seconds:
            if sends:
                sock.sendall(block)
                total += BUFFER
            else:
                total += sock.recv_into(space)
        sock.setsockopt(1, 13, b"\1\0\0\0\0\0\0\0")
        return total / elapsed


def streams(port: int, seconds: float, sends: bool) -> float:
    async def main() -> float:
        with mptcp.use(stack):
            reader, writer = await mptcp.open_connection("10.78.0.1", port)
        block = bytes(BUFFER)
        total = 0
        start = time.perf_counter()
        while (elapsed := time.perf_counter() - start) < seconds:
            if sends:
                writer.write(block)
                await writer.drain()
                total += BUFFER
            else:
                total += len(await reader.read(BUFFER))
        if sends:
            total -= writer.transport.get_write_buffer_size()
        writer.transport.abort()
        await asyncio.sleep(0)
        return total / elapsed

    with mptcp.UserStack([link()], ["10.78.0.2"], background=False) as stack:
        return asyncio.run(main())


class _Mover(asyncio.BufferedProtocol):
    def __init__(self, sends: bool) -> None:
        self.sends = sends
        self.total = 0
        self.space = bytearray(BUFFER)
        self.block = bytes(BUFFER)
        self.paused = False
        self.over = False

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        if self.sends:
            self.resume_writing()

    def get_buffer(self, sizehint: int) -> bytearray:
        return self.space

    def buffer_updated(self, nbytes: int) -> None:
        self.total += nbytes

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False
        while not self.paused and not self.over:
            self.transport.write(self.block)
            self.total += BUFFER


def protocol(port: int, seconds: float, sends: bool) -> float:
    async def main() -> float:
        with mptcp.use(stack):
            transport, mover = await aio.create_connection(lambda: _Mover(sends), "10.78.0.1", port)
        start = time.perf_counter()
        begun = mover.total
        await asyncio.sleep(seconds)
        rate = (mover.total - begun) / (time.perf_counter() - start)
        mover.over = True
        transport.abort()
        await asyncio.sleep(0)
        return rate

    with mptcp.UserStack([link()], ["10.78.0.2"], background=False) as stack:
        return asyncio.run(main())


LAYERS: dict[str, Callable[[int, float, bool], float]] = {
    "runtime, no sockets": bare,
    "blocking socket": blocking,
    "asyncio streams": streams,
    "asyncio protocol": protocol,
}


# --- time to the program --------------------------------------------------------------------------------------------------
def latency(rounds: int, *, in_loop: bool) -> list[float]:
    """Microseconds from the packet's arrival at the link to the application's code, for small messages."""
    near, far = LoopbackLink.pair()
    sender = mptcp.UserStack([near], ["10.0.0.1"], seed=1, background=False)
    receiver = mptcp.UserStack([far], ["10.0.0.2"], seed=2, background=False)
    samples: list[float] = []

    async def main() -> None:
        arrived: asyncio.Future[float] | None = None

        class Receiver(asyncio.Protocol):
            def data_received(self, data: bytes) -> None:
                if arrived is not None and not arrived.done():
                    arrived.set_result(time.perf_counter())

        with mptcp.use(receiver):
            await aio.create_server(Receiver, None, 80)
        with mptcp.use(sender):
            _, writer = await mptcp.open_connection("10.0.0.2", 80)
        sock = writer.get_extra_info("socket")
        loop = asyncio.get_running_loop()
        for _ in range(rounds):
            await asyncio.sleep(0.0005)
            arrived = loop.create_future()
            sock.setblocking(True)
            sock.send(b"x" * 100)  # in the link when this returns
            begun = time.perf_counter()
            samples.append((await arrived - begun) * 1e6)
        writer.transport.abort()

    def threads() -> None:
        listening = receiver.socket()
        listening.bind(("", 80))
        listening.listen()
        stamp = [0.0]
        ready = threading.Event()

        def receive() -> None:
            sock, _ = listening.accept()
            with sock:
                ready.set()
                while sock.recv(1000):
                    samples.append((time.perf_counter() - stamp[0]) * 1e6)
                    ready.set()

        thread = threading.Thread(target=receive)
        thread.start()
        with sender.socket() as sock:
            sock.connect(("10.0.0.2", 80))
            sock.setsockopt(6, 1, 1)
            for _ in range(rounds):
                ready.wait(5)
                ready.clear()
                time.sleep(0.0005)
                stamp[0] = time.perf_counter()
                sock.send(b"x" * 100)
            ready.wait(5)
        thread.join(5)
        listening.close()

    if in_loop:
        asyncio.run(main())
    else:
        threads()
    sender.close(0)
    receiver.close(0)
    return samples


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--seconds", type=float, default=1.5, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    samples = {name: latency(2000, in_loop=loop) for name, loop in (("event loop", True), ("blocking thread", False))}
    print(f"{'from the wire to the program, us':34} {'median':>8} {'90 %':>8} {'99 %':>8}")
    for name, values in samples.items():
        row = [percentile(values, share) for share in (0.5, 0.9, 0.99)]
        print(f"{name:34} {row[0]:8.0f} {row[1]:8.0f} {row[2]:8.0f}")
    reason = needs_namespaces() or needs_tun() or needs_kernel_mptcp()
    if reason:
        print(f"throughput: not measured here: {reason}")
        return 0
    become_namespace_root()
    results: dict[tuple[str, bool], list[float]] = {}
    port = 5301
    for _ in range(arguments.rounds):
        for sends in (True, False):
            for name, move in LAYERS.items():
                port += 1
                pid = _peer(port, sends=not sends)
                try:
                    results.setdefault((name, sends), []).append(move(port, arguments.seconds, sends))
                finally:
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
    print(f"\n{'Gbit/s, with the kernel over TUN':34} {'median':>8} {'min':>8} {'max':>8} {'ratio':>7} {'target':>7}")
    for (name, sends), values in sorted(results.items(), key=lambda item: not item[0][1]):
        base = results["runtime, no sockets", sends]
        rates = [value * 8 / 1e9 for value in values]
        row = f"{('send, ' if sends else 'receive, ') + name:34} {statistics.median(rates):8.2f}"
        row += f" {min(rates):8.2f} {max(rates):8.2f}"
        if name != "runtime, no sockets":
            ratio = statistics.median(value / bare_value for value, bare_value in zip(values, base, strict=True))
            row += f" {ratio:7.2f} {TARGET:7.2f}"
        print(row)
    return 0


def _peer(port: int, *, sends: bool) -> int:
    """The kernel's end: it listens at every address, because the TUN device's is not there yet."""
    return kernel_peer("0.0.0.0", sends=sends, protocol=IPPROTO_MPTCP, port=port)


if __name__ == "__main__":
    sys.exit(main())
