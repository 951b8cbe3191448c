"""Who drives, and when: the pump over a host that only counts and answers what it is told to."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from mptcp.core.counters import Counters
from mptcp.core.packet import Packet
from mptcp.core.units import NEVER
from mptcp.links.base import Link, ReceivedPacket
from mptcp.runtime.background import GRACE_S
from mptcp.runtime.port import MAX_QUEUED_PACKETS, Port
from mptcp.runtime.pump import Pump
from mptcp.runtime.waiting import Source

#: Far beyond what anything here takes, on a machine that is busy with other things.
PATIENCE_S = 30.0


class Pipe(Link):
    """A link whose other end is the test."""

    name, mtu, gso_max_bytes = "pipe", 1500, 0

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_NONBLOCK)
        self.waiting: list[bytes] = []
        self.sent: list[bytes] = []
        self.room = 1 << 30
        self.error: OSError | None = None
        self.readers: list[str] = []  # the thread of every receive that found something

    def fileno(self) -> int:
        return self.fd

    def arrive(self, *packets: bytes) -> None:
        self.waiting.extend(packets)
        os.eventfd_write(self.fd, 1)

    def receive(self, limit: int = 64) -> Sequence[ReceivedPacket]:
        if self.error is not None:
            raise self.error
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.fd)
        packets, self.waiting = self.waiting[:limit], self.waiting[limit:]
        if self.waiting:
            os.eventfd_write(self.fd, 1)
        if packets:
            self.readers.append(threading.current_thread().name)
        return [(memoryview(p), 0, True) for p in packets]

    def send(self, packets: Sequence[Packet]) -> int:
        taken = min(self.room, len(packets))
        self.room -= taken
        self.sent += [bytes(p) for p in packets[:taken]]
        return taken

    def close(self) -> None:
        os.close(self.fd)


class Item:
    def __init__(self, owner: Source) -> None:
        self.owner = weakref.ref(owner)


class EchoHost:
    """Answers every packet with the same one, tells the owner; has one timer."""

    def __init__(self) -> None:
        self.counters = Counters()
        self.received: list[bytes] = []
        self.out: list[tuple[int, Packet]] = []
        self.deadline = NEVER
        self.timeouts: list[int] = []
        self.items: list[Item] = []
        self.ready: list[Item] = []
        self.down: list[int] = []
        self.busy: list[bool] = []  # what was said of the interface, without repetition
        self.bug: Exception | None = None

    def handle_packet(self, interface: int, data: memoryview, now: int, gso_size: int, valid: bool) -> None:
        if self.bug is not None:
            raise self.bug
        self.received.append(bytes(data))
        self.out.append((interface, Packet(bytes(data))))
        self.ready = list(self.items)

    def handle_timeout(self, now: int) -> None:
        self.timeouts.append(now)
        self.deadline = NEVER

    def poll_deadline(self) -> int:
        return self.deadline

    def poll_packets(self, now: int) -> list[tuple[int, Packet]]:
        out, self.out = self.out, []
        return out

    def poll_ready(self) -> list[Item]:
        ready, self.ready = self.ready, []
        return ready

    def set_interface_up(self, index: int, up: bool, now: int) -> None:
        self.down.append(index)

    def set_interface_busy(self, index: int, busy: bool, room: int) -> None:
        assert room > 0
        if self.busy[-1:] != [busy]:
            self.busy.append(busy)


class Waiter(Source):
    """Ready as often as told to be."""

    def __init__(self, host: EchoHost, count: Callable[[], bool]) -> None:
        super().__init__()
        self.ready = count
        host.items.append(Item(self))

    def handle_ready(self) -> None:
        self.wake_ready()


@pytest.fixture
def host() -> EchoHost:
    return EchoHost()


@pytest.fixture
def link() -> Pipe:
    return Pipe()


@pytest.fixture
def pump(host: EchoHost, link: Pipe) -> Iterator[Pump]:
    made = Pump(host, [(link, 0)])  # type: ignore[arg-type]
    yield made
    made.close()


def wait_for(pump: Pump, source: Waiter, seconds: float = PATIENCE_S) -> bool:
    with pump.lock:
        return pump.wait(source, source.ready, pump.clock() + int(seconds * 1e6))


def wait_until(condition: Callable[[], bool], seconds: float = PATIENCE_S) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.0005)


def is_driving(pump: Pump, source: Waiter) -> bool:
    """Whether the thread that waits for ``source`` sleeps in the driver's seat."""
    with pump.lock:
        driver = pump.driver
        if driver is None or pump.is_resting(driver):
            return False
        return pump._driver_ready is source.ready and driver.asleep_until > 0


def is_waiting(pump: Pump, source: Waiter) -> bool:
    """Whether a thread waits for ``source``, there or parked."""
    with pump.lock:
        return is_driving(pump, source) or any(parked.ready is source.ready for parked in pump._parked)


def arrive_once_waiting(pump: Pump, source: Waiter, link: Pipe, *packets: bytes) -> None:
    """In a thread of its own: ``packets`` come as soon as somebody waits for ``source``."""

    def run() -> None:
        wait_until(lambda: is_waiting(pump, source))
        link.arrive(*packets)

    threading.Thread(target=run).start()


def test_who_waits_drives(pump: Pump, host: EchoHost, link: Pipe) -> None:
    source = Waiter(host, lambda: len(host.received) >= 2)
    arrive_once_waiting(pump, source, link, b"one", b"two")
    assert wait_for(pump, source)
    assert link.readers == [threading.current_thread().name]
    assert link.sent == [b"one", b"two"]


def test_the_background_drives_where_nobody_waits(pump: Pump, host: EchoHost, link: Pipe) -> None:
    link.arrive(b"x")
    wait_until(lambda: link.sent == [b"x"])
    assert link.readers == ["mptcp-pump"]
    with pump.lock:
        host.deadline = pump.clock() + 2000
        pump.flush()  # the thread that sleeps for ever hears of the earlier deadline
    wait_until(lambda: len(host.timeouts) == 1)


def test_a_wait_takes_the_seat_from_the_background_and_gives_it_back(pump: Pump, host: EchoHost, link: Pipe) -> None:
    wait_until(lambda: pump.driver is not None)
    for round_ in range(3):
        source = Waiter(host, lambda count=round_: len(host.received) > count)  # type: ignore[misc]
        arrive_once_waiting(pump, source, link, b"x")
        assert wait_for(pump, source)
    assert set(link.readers) == {threading.current_thread().name}
    link.arrive(b"later")
    wait_until(lambda: link.sent[-1:] == [b"later"])
    assert link.readers[-1] == "mptcp-pump"


def test_the_background_stays_away_from_a_driver_that_waits_long(pump: Pump, host: EchoHost, link: Pipe) -> None:
    source = Waiter(host, lambda: bool(host.received))
    thread = threading.Thread(target=wait_for, args=(pump, source), name="app")
    thread.start()
    wait_until(lambda: is_waiting(pump, source))
    time.sleep(GRACE_S * 40)
    link.arrive(b"x")
    thread.join(PATIENCE_S)
    assert link.readers == ["app"]
    link.arrive(b"y")  # it was asleep; the leaving driver has told it
    wait_until(lambda: link.readers == ["app", "mptcp-pump"])


def test_timeout_of_a_wait(pump: Pump, host: EchoHost) -> None:
    begin = time.monotonic()
    assert not wait_for(pump, Waiter(host, bool), 0.01)
    assert time.monotonic() - begin >= 0.01


def test_several_wait_and_one_drives(pump: Pump, host: EchoHost, link: Pipe) -> None:
    results: list[int] = []

    def run(number: int) -> None:
        assert wait_for(pump, Waiter(host, lambda: len(host.received) > number))
        results.append(number)

    threads = [threading.Thread(target=run, args=(number,), name=f"app{number}") for number in range(8)]
    for thread in threads:
        thread.start()
    for number in range(8):
        time.sleep(0.002)
        link.arrive(b"%d" % number)
        wait_until(lambda count=number: len(results) > count)  # type: ignore[misc]
    for thread in threads:
        thread.join(PATIENCE_S)
    assert sorted(results) == list(range(8))
    assert link.sent == [b"%d" % number for number in range(8)]


def test_the_seat_is_handed_over_when_the_driver_leaves(pump: Pump, host: EchoHost, link: Pipe) -> None:
    done: list[str] = []

    def run(name: str, source: Waiter) -> None:
        wait_for(pump, source)
        done.append(name)

    first, second = Waiter(host, lambda: len(host.received) >= 1), Waiter(host, lambda: len(host.received) >= 2)
    for name, source in (("first", first), ("second", second)):
        threading.Thread(target=run, args=(name, source), name=name).start()
        wait_until(lambda source=source: is_waiting(pump, source))  # type: ignore[misc]
    link.arrive(b"x")
    wait_until(lambda: done == ["first"] and is_driving(pump, second))
    link.arrive(b"y")
    wait_until(lambda: done == ["first", "second"])
    assert link.readers == ["first", "second"]


def test_a_regular_takes_the_seat(pump: Pump, host: EchoHost, link: Pipe) -> None:
    stop = threading.Event()
    idler = Waiter(host, stop.is_set)
    idle = threading.Thread(target=wait_for, args=(pump, idler), name="idle")
    idle.start()
    wait_until(lambda: is_waiting(pump, idler))

    def work() -> None:
        for number in range(30):
            source = Waiter(host, lambda count=number: len(host.received) > count)  # type: ignore[misc]
            arrive_once_waiting(pump, source, link, b"x")
            assert wait_for(pump, source)

    busy = threading.Thread(target=work, name="busy")
    busy.start()
    busy.join(PATIENCE_S)
    assert link.readers[0] == "idle"
    assert link.readers[-10:].count("busy") >= 8, "woken for every packet by a thread that does not want them"
    stop.set()
    with pump.lock:
        pump.rouse()
    link.arrive(b"end")
    idle.join(PATIENCE_S)
    assert not idle.is_alive()


def test_what_another_thread_changes_ends_the_drivers_wait(pump: Pump, host: EchoHost) -> None:
    flag: list[bool] = []
    source = Waiter(host, lambda: bool(flag))
    thread = threading.Thread(target=wait_for, args=(pump, source))
    thread.start()
    wait_until(lambda: is_waiting(pump, source))
    with pump.lock:
        flag.append(True)
        pump.flush()
    thread.join(PATIENCE_S / 3)  # sooner than the wait would end by itself
    assert not thread.is_alive()


def test_poll_handles_what_has_come_without_waiting(host: EchoHost, link: Pipe) -> None:
    pump = Pump(host, [(link, 0)], background=False)  # type: ignore[arg-type]
    link.arrive(b"x")
    with pump.lock:
        pump.poll()
        assert link.sent == [b"x"]
        pump.poll()
        seat = pump.take_seat()  # as an event loop would
        link.arrive(b"y")
        pump.step(seat, 0)
        pump.leave_seat(seat)
    assert link.sent == [b"x", b"y"]
    pump.close()


def test_a_full_link_gets_the_rest_later_and_in_order(pump: Pump, host: EchoHost, link: Pipe) -> None:
    link.room = 1
    link.arrive(b"1", b"2", b"3")
    wait_until(lambda: link.sent == [b"1"])
    time.sleep(0.005)
    link.room = 1 << 30
    wait_until(lambda: link.sent == [b"1", b"2", b"3"])
    wait_until(lambda: host.busy == [False, True, False])  # so that connections send elsewhere meanwhile


def test_the_queue_of_a_link_is_bounded() -> None:
    link = Pipe()
    link.room = 0
    port = Port(link, 0)
    port.send([Packet(b"%d" % n) for n in range(MAX_QUEUED_PACKETS + 10)])
    assert (port.queued, port.dropped, port.wants_write) == (MAX_QUEUED_PACKETS, 10, True)
    port.retry(1000)
    assert port.retry_us > 1000  # "writable", and yet it takes nothing
    link.room = 1 << 30
    port.retry(3000)
    assert (port.queued, port.retry_us, port.wants_write) == (0, NEVER, False)
    assert link.sent == [b"%d" % n for n in range(MAX_QUEUED_PACKETS)]
    link.close()


def test_a_link_that_fails_is_an_interface_that_is_down(pump: Pump, host: EchoHost, link: Pipe) -> None:
    link.error = OSError(errno.ENODEV, "gone")
    link.arrive(b"x")
    wait_until(lambda: host.down == [0])
    assert host.counters["link_failed"] == 1
    with pump.lock:
        host.out.append((0, Packet(b"x")))
        pump.flush()
    assert host.counters["link_failed_packet"] == 1


def test_a_bug_in_the_background_is_told_to_everybody(host: EchoHost, link: Pipe) -> None:
    pump = Pump(host, [(link, 0)])  # type: ignore[arg-type]
    host.bug = ZeroDivisionError("a bug")
    link.arrive(b"x")
    wait_until(lambda: pump.failure is not None)
    with pytest.raises(OSError) as caught, pump.lock:
        pump.check()
    assert caught.value.errno == errno.EIO
    assert caught.value.__cause__ is host.bug
    pump.close()


def test_close_ends_every_wait(host: EchoHost, link: Pipe) -> None:
    pump = Pump(host, [(link, 0)])  # type: ignore[arg-type]
    codes: list[int | None] = []

    def run(source: Waiter) -> None:
        try:
            wait_for(pump, source)
        except OSError as error:
            codes.append(error.errno)

    stop = [threading.Event() for _ in range(3)]
    sources = [Waiter(host, event.is_set) for event in stop]
    threads = [threading.Thread(target=run, args=(source,)) for source in sources]
    for thread in threads:
        thread.start()
    wait_until(lambda: all(is_waiting(pump, source) for source in sources))
    pump.close()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert codes == [errno.ENETDOWN] * 3
    pump.close()


def test_an_interrupted_wait_leaves_the_lock_and_the_seat_in_order(pump: Pump, host: EchoHost, link: Pipe) -> None:
    import signal

    class Interrupted(Exception):
        pass

    def interrupt(*args: Any) -> None:
        raise Interrupted

    def interrupt_once_waiting(source: Waiter) -> None:
        wait_until(lambda: is_waiting(pump, source))
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGALRM)

    previous = signal.signal(signal.SIGALRM, interrupt)
    try:
        for _ in range(3):
            source = Waiter(host, threading.Event().is_set)
            sender = threading.Thread(target=interrupt_once_waiting, args=(source,))
            sender.start()
            with pytest.raises(Interrupted):
                wait_for(pump, source)
            sender.join()
    finally:
        signal.signal(signal.SIGALRM, previous)
    assert pump.lock.acquire(timeout=1)
    pump.lock.release()
    link.arrive(b"x")
    wait_until(lambda: link.sent == [b"x"])
