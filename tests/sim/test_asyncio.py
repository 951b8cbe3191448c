"""asyncio and blocking sockets in virtual time: the same programs, hours in seconds, the same packets for the same seed."""

from __future__ import annotations

import asyncio
import errno
import socket as std
import time
from typing import Any

import pytest

import mptcp
from mptcp.core.units import MBIT, MILLISECOND, SECOND
from mptcp.links.loopback import LoopbackLink
from mptcp.sim.aio import Deadlock, SimLoop, SimStack, run
from mptcp.sim.conditions import Conditions
from mptcp.sim.world import World
from mptcp.testing.application import echo, exchange

PATHS = [(50, 10), (20, 40)]


def make(seed: int = 1, *, trace: bool = False) -> tuple[World, SimStack, SimStack]:
    """A client with two paths to a server, IPv4 and IPv6."""
    world = World(seed, trace=trace)
    client, server = world.add_host("client"), world.add_host("server")
    door = server.add_interface("10.9.0.1", "fd09::1")
    for index, (rate, delay) in enumerate(PATHS):
        port = client.add_interface(f"10.0.{index}.1", f"fd00:{index}::1")
        world.join(port, door, Conditions(rate_bps=rate * MBIT, delay_us=delay * MILLISECOND))
    return world, SimStack(client), SimStack(server)


@pytest.mark.parametrize("host", ["server", "10.9.0.1", "fd09::1"])
def test_an_unmodified_asyncio_program_uses_both_paths(host: str) -> None:
    world, near, far = make()

    async def main() -> dict[int, int]:
        with mptcp.use(far):
            server = await asyncio.start_server(echo, None, 80)
        with mptcp.use(near):
            shares = await exchange(host, 80, 4 << 20)
        server.close()
        await server.wait_closed()
        return shares

    shares = run(world, main())
    assert len(shares) == 4  # two paths, in each of two families
    assert sorted(shares.values())[-2] > 500_000
    assert 0.6 * SECOND < world.now < 3 * SECOND  # 4 MiB at 70 Mbit/s
    near.close()
    far.close()


def test_hours_take_no_time() -> None:
    world, near, far = make()

    async def main() -> float:
        loop = asyncio.get_running_loop()
        with mptcp.use(far):
            await asyncio.start_server(echo, None, 80)
        with mptcp.use(near):
            reader, writer = await asyncio.open_connection("server", 80)
        for _ in range(24):
            await asyncio.sleep(3600)
            writer.write(b"still there")
            assert await reader.readexactly(11) == b"still there"
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(60):
                await reader.read(1)
        writer.close()
        return loop.time()

    began = time.monotonic()
    assert run(world, main()) == pytest.approx(24 * 3600 + 60, abs=5)
    assert time.monotonic() - began < 60
    near.close()
    far.close()


def test_the_same_seed_gives_the_same_packets() -> None:
    def digest(seed: int) -> object:
        world, near, far = make(seed, trace=True)

        async def main() -> None:
            with mptcp.use(far):
                await asyncio.start_server(echo, None, 80)
            with mptcp.use(near):
                await asyncio.gather(exchange("server", 80, 1 << 20), exchange("10.9.0.1", 80, 1 << 20))

        run(world, main())
        assert world.trace is not None
        found: Any = world.trace.digest
        near.close()
        far.close()
        return found() if callable(found) else found

    assert digest(7) == digest(7)
    assert digest(7) != digest(8)


def test_a_path_dies_under_an_asyncio_program() -> None:
    world, near, far = make()
    world.paths[0].cut(at_us=SECOND // 4)

    async def main() -> None:
        with mptcp.use(far):
            await asyncio.start_server(echo, None, 80)
        with mptcp.use(near):
            await exchange("server", 80, 4 << 20)

    run(world, main())
    assert world.now < 20 * SECOND
    near.close()
    far.close()


def test_names_that_nobody_has() -> None:
    world, near, _ = make()

    async def main() -> None:
        with mptcp.use(near), pytest.raises(std.gaierror, match="no host of this world"):
            await asyncio.open_connection("elsewhere", 80)

    run(world, main())


def test_refused_and_unreachable() -> None:
    world, near, _ = make()

    async def main() -> None:
        with mptcp.use(near):
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection("server", 81)
            with pytest.raises(TimeoutError):
                await asyncio.open_connection("10.77.0.1", 80)  # two minutes of SYNs

    run(world, main())
    assert world.now > 60 * SECOND


def test_waiting_for_what_can_never_happen_is_told() -> None:
    world, _, far = make()

    async def main() -> None:
        with mptcp.use(far):
            server = await asyncio.start_server(echo, None, 80)
        await server.serve_forever()

    with pytest.raises(Deadlock):
        run(world, main())


def test_what_has_no_place_in_virtual_time() -> None:
    world, near, _ = make()
    link, other = LoopbackLink.pair()
    real = mptcp.UserStack([link], ["10.5.0.1"], background=False)

    async def in_the_world() -> None:
        assert await asyncio.to_thread(lambda: 42) == 42  # called at once
        with pytest.raises(mptcp.NotSupportedError, match="no place in virtual time"):
            asyncio.get_running_loop().add_reader(0, print)
        with pytest.raises(mptcp.NotSupportedError, match="no place in virtual time"):
            asyncio.get_running_loop().add_writer(0, print)
        with mptcp.use(real), pytest.raises(mptcp.NotSupportedError):
            await mptcp.open_connection("10.5.0.2", 80)

    async def outside() -> None:
        with mptcp.use(near), pytest.raises(mptcp.NotSupportedError, match="simulated world"):
            await mptcp.open_connection("10.9.0.1", 80)

    run(world, in_the_world())
    asyncio.run(outside())
    real.close(0)
    other.close()


def test_executors_hand_errors_on() -> None:
    world, _, _ = make()

    def fail() -> None:
        raise ZeroDivisionError

    async def main() -> None:
        with pytest.raises(ZeroDivisionError):
            await asyncio.to_thread(fail)

    run(world, main())


def test_blocking_sockets_work_too_one_at_a_time() -> None:
    world, near, far = make()
    listening = far.socket()
    listening.bind(("", 80))
    listening.listen()
    client = near.socket()
    client.settimeout(5)
    client.connect(("10.9.0.1", 80))
    accepted, peer = listening.accept()
    assert peer[0] == "10.0.0.1"
    client.sendall(b"hello")
    assert accepted.recv(5, std.MSG_WAITALL) == b"hello"
    before = world.now
    with pytest.raises(TimeoutError):
        client.recv(1)
    assert world.now - before == pytest.approx(5 * SECOND, abs=10_000)
    accepted.close()
    assert client.recv(1) == b""
    client.settimeout(None)
    client.close()
    idle = near.socket()
    idle.bind(("", 90))
    idle.listen()
    with pytest.raises(OSError) as caught:
        idle.accept()
    assert caught.value.errno == errno.EDEADLK
    for sock in (listening, idle):
        sock.close()
    near.close()
    far.close()


def test_the_loops_own_socket_calls() -> None:
    world, near, far = make()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        listening: Any = far.socket()
        listening.setblocking(False)
        listening.bind(("", 80))
        listening.listen()
        accepting = asyncio.create_task(loop.sock_accept(listening))
        client: Any = near.socket()
        with pytest.raises(ValueError, match="non-blocking"):
            await loop.sock_recv(client, 1)
        client.setblocking(False)
        await loop.sock_connect(client, ("10.9.0.1", 80))
        accepted, _ = await accepting
        data = bytes(6 << 20)
        sending = asyncio.create_task(loop.sock_sendall(client, data))
        space = bytearray(1000)
        got = await loop.sock_recv_into(accepted, space)
        while got < len(data):
            got += len(await loop.sock_recv(accepted, 1 << 20))
        await sending
        for sock in (accepted, client, listening):
            sock.close()

    run(world, main())
    near.close()
    far.close()


def test_http_in_virtual_time() -> None:
    """A library of others: aiohttp, client and server, none of it knowing where it is."""
    aiohttp = pytest.importorskip("aiohttp")
    world, near, far = make()

    async def hello(request: Any) -> Any:
        await asyncio.sleep(600)
        return aiohttp.web.Response(text="hello " + request.path)

    async def main() -> None:
        from aiohttp import web

        app = web.Application()
        app.router.add_get("/{tail:.*}", hello)
        with mptcp.use(far):
            runner = web.AppRunner(app, keepalive_timeout=3600)
            await runner.setup()
            await web.TCPSite(runner, "0.0.0.0", 80).start()
        with mptcp.use(near):
            from mptcp.adapters.aiohttp import Connector

            timeout = aiohttp.ClientTimeout(total=3600)
            session = aiohttp.ClientSession(connector=Connector(), timeout=timeout)
            async with session, session.get("http://10.9.0.1/there") as answer:
                assert await answer.text() == "hello /there"
        await runner.cleanup()

    run(world, main())
    assert world.now > 600 * SECOND
    near.close()
    far.close()


def test_a_simulated_loop_is_an_event_loop() -> None:
    world, _, _ = make()
    with asyncio.Runner(loop_factory=lambda: SimLoop(world)) as runner:
        loop = runner.get_loop()
        assert loop.time() == 0
        order: list[str] = []

        async def tick(name: str, delay: float) -> None:
            await asyncio.sleep(delay)
            order.append(name)

        async def main() -> None:
            await asyncio.gather(tick("late", 2), tick("early", 1), tick("now", 0))

        runner.run(main())
        assert order == ["now", "early", "late"]
        assert loop.time() == 2


def test_events_reach_a_task_in_virtual_time() -> None:
    world, near, far = make()
    seen: list[Any] = []

    async def watch(sock: Any) -> None:
        async for event in sock.events():
            seen.append(event)  # noqa: PERF401 it never ends

    async def main() -> None:
        with mptcp.use(far):
            await asyncio.start_server(echo, None, 80)
        with mptcp.use(near):
            _, writer = await mptcp.open_connection("server", 80)
        watching = asyncio.create_task(watch(writer.get_extra_info("socket")))
        await asyncio.sleep(1)
        writer.close()
        await watching

    run(world, main())
    kinds = [event.kind.value for event in seen]
    assert kinds[0] == "established"
    assert kinds.count("subflow-established") >= 2
    near.close()
    far.close()
