"""asyncio over the stack: who drives it, loops and threads."""

from __future__ import annotations

import asyncio
import socket as std
import threading

import pytest

from .aio_stacks import Stacks, echo, run, send

FAMILIES = pytest.mark.parametrize("family", [std.AF_INET, std.AF_INET6], ids=["v4", "v6"])


def test_no_thread_is_needed(stacks: Stacks) -> None:
    before = set(threading.enumerate())

    async def main() -> None:
        await stacks.serve(echo)
        reader, writer = await stacks.open()
        writer.write(b"x")
        await reader.readexactly(1)
        assert not [t for t in set(threading.enumerate()) - before if t.name == "mptcp-pump"]
        writer.close()

    run(main)


@FAMILIES
def test_the_loop_takes_over_from_the_background_and_gives_back(family: int) -> None:
    stacks = Stacks(background=True, family=family)
    listening = stacks.server.socket(stacks.family)
    listening.bind((stacks.there, 80))
    listening.listen()

    def serve_blocking() -> None:
        sock, _ = listening.accept()
        with sock:
            while data := sock.recv(65536):
                sock.sendall(data)

    thread = threading.Thread(target=serve_blocking)
    thread.start()

    async def main() -> None:
        reader, writer = await stacks.open()
        driver = stacks.client.pump.loops[0]
        assert stacks.client.pump.driver is driver.seat
        data = bytes(3 << 20)
        sending = asyncio.create_task(send(writer, data))
        assert await reader.readexactly(len(data)) == data
        await sending
        writer.close()
        await writer.wait_closed()

    run(main)
    thread.join(30)
    assert not thread.is_alive()
    assert not stacks.client.pump.loops
    listening.close()
    # After the loop a blocking socket works as ever, and so does another loop.
    again = stacks.server.socket(stacks.family)
    again.bind((stacks.there, 81))
    again.listen()
    client = stacks.client.socket(stacks.family)
    client.settimeout(30)
    client.connect((stacks.there, 81))
    client.close()
    again.close()
    stacks.close()


def test_a_blocking_call_within_the_loop_drives(stacks: Stacks) -> None:
    async def main() -> None:
        server = await stacks.serve(echo)
        _, writer = await stacks.open()
        # The server's stack is driven by this very loop; its handshake ends in the kernel of neither.
        sock = stacks.client.socket(stacks.family)
        sock.settimeout(0.05)
        with pytest.raises(TimeoutError):
            sock.connect((stacks.nowhere, 80))
        sock.close()
        writer.close()
        server.close()

    run(main)


@FAMILIES
def test_two_loops_share_a_stack(family: int) -> None:
    stacks = Stacks(background=True, family=family)
    started = threading.Event()
    finish = threading.Event()

    async def other() -> None:
        server = await stacks.serve(echo, port=81)
        started.set()
        await asyncio.to_thread(finish.wait)
        server.close()
        await server.wait_closed()

    async def main() -> None:
        server = await stacks.serve(echo, port=80)
        for port in (80, 81):
            reader, writer = await stacks.open(port=port)
            data = bytes(1 << 20)
            sending = asyncio.create_task(send(writer, data))
            assert await reader.readexactly(len(data)) == data
            await sending
            writer.close()
            await writer.wait_closed()
        assert len(stacks.server.pump.loops) == 2
        finish.set()
        server.close()

    thread = threading.Thread(target=lambda: asyncio.run(other()))
    thread.start()
    assert started.wait(30)
    run(main)
    thread.join(30)
    assert not thread.is_alive()
    stacks.close()


@FAMILIES
def test_blocking_threads_and_a_loop_on_one_stack(family: int) -> None:
    stacks = Stacks(background=True, family=family)
    failures: list[BaseException] = []

    def client(number: int) -> None:
        try:
            sock = stacks.client.socket(stacks.family)
            sock.settimeout(30)
            sock.connect((stacks.there, 80))
            data = bytes([number]) * 200_000
            sender = threading.Thread(target=sock.sendall, args=(data,))
            sender.start()
            assert sock.recv(len(data), std.MSG_WAITALL) == data
            sender.join()
            sock.close()
        except BaseException as error:  # noqa: BLE001 told to the test
            failures.append(error)

    async def main() -> None:
        server = await stacks.serve(echo)
        threads = [threading.Thread(target=client, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        reader, writer = await stacks.open()
        data = bytes(1 << 20)
        sending = asyncio.create_task(send(writer, data))
        assert await reader.readexactly(len(data)) == data
        await sending
        writer.close()
        for thread in threads:
            await asyncio.to_thread(thread.join, 30)
        server.close()

    run(main)
    assert not failures
    stacks.close()


@FAMILIES
def test_a_loop_that_is_closed_without_a_word_is_noticed(family: int) -> None:
    stacks = Stacks(background=True, family=family)
    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(stacks.serve(echo))
    server.close()
    loop.close()
    # Its seat is still taken; the background thread looks now and then whether the loop runs.
    sock = stacks.server.socket(stacks.family)
    sock.bind((stacks.there, 90))
    sock.listen()
    client = stacks.client.socket(stacks.family)
    client.settimeout(30)
    client.connect((stacks.there, 90))
    accepted, _ = sock.accept()
    for one in (client, accepted, sock):
        one.close()
    stacks.close()


@pytest.mark.parametrize(("backlog", "family"), [(2000, std.AF_INET), (100, std.AF_INET6)])
def test_many_connections_echo_and_lose_nothing(backlog: int, family: int) -> None:
    """2,000 at once, 1 KiB each. All begin in one and the same round of the loop: the link must hold that many SYNs. With
    a small backlog most of those are answered with cookies."""
    count = 2000
    stacks = Stacks(queue_packets=8 * count, family=family)

    async def one(number: int) -> None:
        reader, writer = await stacks.open()
        data = number.to_bytes(4, "big") * 256
        writer.write(data)
        assert await reader.readexactly(1024) == data
        open_now.add(number)
        if len(open_now) == count:
            everybody.set()
        await everybody.wait()  # all of them are connected at the same time
        writer.close()
        await writer.wait_closed()

    open_now: set[int] = set()
    everybody = asyncio.Event()

    async def main() -> None:
        server = await stacks.serve(echo, backlog=backlog)
        await asyncio.gather(*[one(number) for number in range(count)])
        assert len(open_now) == count
        server.close()
        await server.wait_closed()

    run(main)
    stacks.close()
