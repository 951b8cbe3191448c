"""What makes a host run: packets from links to the host and back, its timers, and the threads that wait for it.

There is no thread that must run for data to move. A thread that waits for something drives the host itself until it
has what it wants, so that a bulk transfer needs no switch between threads. Of several waiting threads one drives and
the others are parked. Where no thread of the application has driven for a moment, ``background`` does.
"""

from __future__ import annotations

import errno
import threading
import weakref
from collections.abc import Callable, Sequence
from os import register_at_fork
from select import EPOLLOUT
from typing import TYPE_CHECKING, Any, cast

from mptcp.core.counters import Counters
from mptcp.core.units import NEVER, SECOND
from mptcp.errors import NotSupportedError
from mptcp.runtime.background import Background
from mptcp.runtime.clock import monotonic_us
from mptcp.runtime.port import Port
from mptcp.runtime.seat import Seat
from mptcp.runtime.waiting import Parked, Source

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

    from mptcp.core.host import Host
    from mptcp.core.multipath.connection import Connection
    from mptcp.core.multipath.listener import Listener
    from mptcp.core.packet import Packet
    from mptcp.links.base import Link
    from mptcp.runtime.aio import LoopDriver

#: Packets taken from one link before what answers them is sent: acknowledgements must not wait for a whole burst.
RECEIVE_BATCH = 64

#: Where nobody drives, a thread that sends or receives without having to wait looks at the links this often: less than
#: the background thread's patience, so that a busy thread keeps it away.
POLL_AFTER_US = 1000

#: Octets of data a link is given before it is asked whether it could take them: what it could not take waits in order
#: behind it, and can go nowhere else any more.
ROUND_BYTES = 256 * 1024

#: A thread that was the only one served this often in a row drives for itself, whoever drives now.
REGULAR_SERVICES = 2


class Pump:
    """Joins one host, its links and a clock.

    Every method but ``close`` is called with ``lock`` held, and so is every use of the host, its connections and its
    listeners. Order of a use: change something in the host, then ``flush``; or ``wait`` until something is so.
    """

    def __init__(
        self,
        host: Host,
        links: Sequence[tuple[Link, int]],
        clock: Callable[[], int] = monotonic_us,
        *,
        background: bool = True,
    ) -> None:
        """``links``: each with the number of its interface in ``host``. Without ``background`` somebody else must call
        ``step`` (an event loop)."""
        # Re-entrant only so that ``is_held`` can be asked: a finalizer may run anywhere, also while the lock is held.
        self.lock = threading.RLock()
        self.host = host
        self.clock = clock
        self.counters: Counters = host.counters
        self.ports = [Port(link, index) for link, index in links]
        self.closing = False  # its connections are being ended: that is no end of stream
        self.closed = False
        self.forked = False
        self.unusable = False  # closed, forked or failed: one flag for the hot path
        self.failure: Exception | None = None  # a bug of ours ended the background thread
        self._driver_ready: Callable[[], bool] | None = None  # what the application's thread that drives waits for
        self.shifts = 0  # how often a driver has begun or ended: while it grows, the background stays away
        self.driver: Seat | None = None
        self.orphans: list[Connection | Listener] = []  # to be closed: what forgotten sockets have left
        for port in self.ports:
            host.set_interface_busy(port.index, False, ROUND_BYTES)
        self._by_fd = {port.fd: port for port in self.ports}
        self._by_index = {port.index: port for port in self.ports}
        self._seats: list[Seat] = []  # all
        self._free_seats: list[Seat] = []
        self._parked: list[Parked] = []
        self._local = threading.local()
        self._retry_us = NEVER  # the earliest of the ports'
        self._alarms: weakref.WeakKeyDictionary[Source, int] | None = None
        self._alarm_us = NEVER  # the earliest of those
        self._stepped_us = 0  # when a driver last handled what had come
        self._served = 0  # the thread whose wait ended last, and how often in a row
        self._services = 0
        self.loops: list[LoopDriver] = []  # event loops with users of this pump; the first to come drives
        self._background = Background(self) if background else None
        _pumps.add(self)
        if self._background is not None:
            self._background.start()

    def is_held(self) -> bool:
        """Whether this very thread holds the lock: then it is a finalizer or a signal handler that asks."""
        return bool(cast(Any, self.lock)._is_owned())

    # --- for the application's threads ----------------------------------------------------------------------------
    def check(self) -> None:
        """Raises if this pump cannot be used: closed, broken, or inherited by a forked process."""
        if self.forked:
            raise NotSupportedError("this stack belongs to the process that made it: make a new one after fork")
        if self.failure is not None:
            raise OSError(errno.EIO, "the stack has failed") from self.failure
        if self.closed:
            raise OSError(errno.ENETDOWN, "the stack is closed")

    def flush(self) -> int:
        """Sends what a change in the host made sendable, tells who is concerned; the time."""
        now = self.clock()
        driver = self.driver
        if driver is None and now - self._stepped_us >= POLL_AFTER_US:
            self.poll()  # nobody has looked at the links for a while, and this thread is awake anyway
            return now
        self._transmit(now)
        self._notify()
        if driver is not None and driver.asleep_until:
            ready = self._driver_ready
            if driver.asleep_until > self.poll_deadline() or (ready is not None and ready()):
                driver.rouse()
        return now

    def wait(self, source: Source, ready: Callable[[], bool], deadline: int = NEVER) -> bool:
        """Until ``ready()``, driving or parked; False when ``deadline`` (clock time) came first.

        The lock is released meanwhile. ``ready`` must also hold when nothing better will ever come (error, close).
        """
        if ready():
            return True
        me = threading.get_ident()
        while not ready():
            if self.clock() >= deadline:
                return False
            driver = self.driver
            if driver is None or self.is_resting(driver):
                self._drive(ready, deadline)
            elif self._served == me and self._services >= REGULAR_SERVICES:
                # A bulk transfer: its thread has been woken by another one for every step. It takes the seat; the
                # other is parked. The price of a switch is paid once instead of always.
                self._drive(ready, deadline)
            else:
                self._park(source, ready, deadline)
            if self.unusable:
                self.check()
        if self._served == me:
            self._services += 1
        else:
            self._served = me
            self._services = 0
        return True

    def alarm(self, source: Source, at_us: int) -> None:
        """``source.handle_ready`` is called at that time, too; the earliest of several counts."""
        if self._alarms is None:
            self._alarms = weakref.WeakKeyDictionary()
        self._alarms[source] = min(at_us, self._alarms.get(source, NEVER))
        self._alarm_us = min(self._alarm_us, at_us)

    def poll(self) -> None:
        """Handles what has already come in, without waiting, unless a thread of the application drives anyway."""
        driver = self.driver
        if driver is not None and driver.is_looped:
            self.step(driver, 0)  # on behalf of the loop, which keeps its seat
            if not driver.asleep_until:
                driver.interrupt()  # ``step`` may have taken the news that was meant to make the loop look
            elif driver.asleep_until > self.poll_deadline():
                driver.rouse()
        elif driver is None or self.is_resting(driver):
            seat = self.take_seat()
            try:
                self.step(seat, 0)
            finally:
                if self.leave_seat(seat):
                    self.hand_over(to_parked=False)

    def rouse(self) -> None:
        """A condition that somebody waits for has changed by other means than a packet or a timer."""
        if self.driver is not None:
            self.driver.rouse()

    def is_unattended(self, seat: Seat) -> bool:
        """Whether it is the seat of an event loop that does not run (now, or any more)."""
        return seat.is_looped and not any(driver.seat is seat and driver.loop.is_running() for driver in self.loops)

    def loop_driver(self, loop: AbstractEventLoop) -> LoopDriver:
        """In ``loop``, while it runs: what drives this pump from there, made at the first call."""
        for driver in self.loops:
            if driver.loop is loop:
                return driver
        return self._new_loop_driver(loop)

    def _new_loop_driver(self, loop: AbstractEventLoop) -> LoopDriver:
        from mptcp.runtime.aio import LoopDriver  # asyncio costs a program that does not use it nothing

        return LoopDriver(self, loop)

    # --- for whoever drives ---------------------------------------------------------------------------------------
    def step(self, seat: Seat, deadline: int) -> None:
        """Waits for packets, a timer or ``deadline`` (0: does not wait), and handles what there is.

        The lock is released while it waits.
        """
        host = self.host
        now = self.clock()
        until = min(deadline, self.poll_deadline())
        if self.orphans:
            self.close_orphans(now)
            until = 0
        if until > now:
            seat.asleep_until = until
            timeout = (until - now) / SECOND if until < NEVER else -1
            self.lock.release()
            try:
                events = seat.poll(timeout)
            finally:
                self._relock()
                seat.asleep_until = 0
            if self.closed or self.driver is not seat:
                return  # the next driver finds what there is: its poller is level-triggered, too
            now = self.clock()
        else:
            events = seat.poll(0)
        self._stepped_us = now
        for fd, mask in events:
            port = self._by_fd.get(fd)
            if port is None:
                seat.clear()
                continue
            if mask & ~EPOLLOUT:  # of an error, too, reading tells why
                self._receive(port, now)
            # An in-process link has no "writable" of its own: it makes itself readable when there is room again.
            if port.queued:
                self._retry(port, now)
        if self._retry_us <= now:
            for port in self.ports:
                if port.retry_us <= now:
                    self._retry(port, now)
        if host.poll_deadline() <= now:
            host.handle_timeout(now)
        self._transmit(now)
        self._notify()
        if self._alarm_us <= now:
            self._ring(now)

    def take_seat(self) -> Seat:
        """The caller drives from now on, until ``self.driver`` is another seat; the last driver is told to leave."""
        if self.driver is not None:
            self.driver.rouse()
        if self._free_seats:
            seat = self._free_seats.pop()
        else:
            seat = Seat()
            for port in self.ports:
                if port.failed is None:
                    seat.watch(port.fd, port.wants_write)
            self._seats.append(seat)
        self.driver = seat
        self._driver_ready = None
        self.shifts += 1
        return seat

    def leave_seat(self, seat: Seat) -> bool:
        """The caller drives no more; whether it was still the driver, and so nobody drives now."""
        if self.closed:
            seat.close()
        else:
            self._free_seats.append(seat)
        if self.driver is not seat:
            return False
        self.driver = None
        self.shifts += 1
        return True

    def hand_over(self, to_parked: bool = True) -> None:
        """Nobody drives now: somebody that waits, an event loop or the background thread is asked to."""
        if to_parked and self._parked:
            self._parked[0].wake()
        elif not any(loop.stand_by() for loop in self.loops) and self._background is not None:
            self._background.stand_by()

    def abandon_later(self, left: Sequence[Connection | Listener]) -> None:
        """Without the lock, from a finalizer: whoever drives closes what nobody holds any more."""
        self.orphans.extend(left)
        driver = self.driver
        if driver is not None and not self.forked:
            driver.interrupt()

    # --- inside ---------------------------------------------------------------------------------------------------
    def poll_deadline(self) -> int:
        """When ``step`` is to be called at the latest; NEVER."""
        deadline = self.host.poll_deadline()
        return min(self._retry_us, self._alarm_us, deadline)

    def is_resting(self, seat: Seat) -> bool:
        """Whether whoever sits there waits for nothing itself, and gives way to any thread that does: the background
        thread, or an event loop (which may be stopped, or be what called the thread that wants to wait)."""
        return seat.is_looped or (self._background is not None and self._background.seat is seat)

    def _drive(self, ready: Callable[[], bool], deadline: int) -> None:
        seat = self.take_seat()
        self._driver_ready = ready
        try:
            while self.driver is seat and not self.closed and not ready() and self.clock() < deadline:
                self.step(seat, deadline)
        finally:
            if self.leave_seat(seat):
                self._driver_ready = None
                regular = self._served == threading.get_ident() and self._services >= REGULAR_SERVICES
                # A regular will be back at once: to hand the seat over and to take it back would be two switches.
                # Should it not come, the background thread notices.
                self.hand_over(to_parked=not regular)

    def _park(self, source: Source, ready: Callable[[], bool], deadline: int) -> None:
        parked: Parked | None = getattr(self._local, "parked", None)
        if parked is None:
            parked = self._local.parked = Parked()
        parked.prepare(ready)
        source.add_waiter(parked)
        self._parked.append(parked)
        timeout = -1.0 if deadline >= NEVER else min((deadline - self.clock()) / SECOND, threading.TIMEOUT_MAX)
        self.lock.release()
        try:
            parked.park(max(timeout, 0.0) if timeout != -1.0 else -1.0)
        finally:
            self._relock()
            self._parked.remove(parked)
            source.remove_waiter(parked)
            if self.driver is None:
                # Woken to drive, perhaps, and leaving instead: somebody else must.
                self.hand_over()

    def _relock(self) -> None:
        """Takes the lock even if a signal handler raises meanwhile: the caller's ``with`` will release it."""
        interruption: BaseException | None = None
        while True:
            try:
                self.lock.acquire()
            except BaseException as error:  # noqa: BLE001 raised again below
                interruption = error
                continue
            break
        if interruption is not None:
            raise interruption

    def _receive(self, port: Port, now: int) -> None:
        try:
            packets = port.link.receive(RECEIVE_BATCH)
        except OSError as error:
            self._fail(port, error, now)
            return
        handle_packet = self.host.handle_packet
        index = port.index
        for data, gso_size, checksum_valid in packets:
            handle_packet(index, data, now, gso_size, checksum_valid)

    def _transmit(self, now: int) -> None:
        # Each round ends with the news whether the links could take it, and only then is there more.
        while packets := self.host.poll_packets(now):
            self._transmit_round(packets, now)

    def _transmit_round(self, packets: list[tuple[int, Packet]], now: int) -> None:
        if len(self.ports) == 1:
            self._send(self.ports[0], [packet for _, packet in packets], now)
            return
        by_index: dict[int, list[Packet]] = {}
        for index, packet in packets:
            batch = by_index.get(index)
            if batch is None:
                by_index[index] = [packet]
            else:
                batch.append(packet)
        for index, batch in by_index.items():
            self._send(self._by_index[index], batch, now)

    def _send(self, port: Port, packets: list[Packet], now: int) -> None:
        if port.failed is not None:
            self.counters.bump("link_failed_packet", len(packets))
            return
        before = port.wants_write
        dropped = port.dropped
        try:
            port.send(packets)
        except OSError as error:
            self._fail(port, error, now)
            return
        self.host.set_interface_busy(port.index, port.queued > 0, ROUND_BYTES)
        if port.dropped != dropped:
            self.counters.bump("link_queue_overflow", port.dropped - dropped)
        if port.wants_write != before:
            self._watch(port)

    def _retry(self, port: Port, now: int) -> None:
        before = port.wants_write
        try:
            port.retry(now)
        except OSError as error:
            self._fail(port, error, now)
            return
        self.host.set_interface_busy(port.index, port.queued > 0, ROUND_BYTES)
        self._retry_us = min(port.retry_us for port in self.ports)
        if port.wants_write != before:
            self._watch(port)

    def _watch(self, port: Port) -> None:
        for seat in self._seats:
            seat.watch(port.fd, port.wants_write)

    def _fail(self, port: Port, error: OSError, now: int) -> None:
        """A link is gone: as far as the host is concerned its interface is down."""
        self.counters.bump("link_failed")
        port.fail(error)
        for seat in self._seats:
            seat.forget(port.fd)
        self.host.set_interface_busy(port.index, False, ROUND_BYTES)
        self.host.set_interface_up(port.index, False, now)

    def _notify(self) -> None:
        for item in self.host.poll_ready():
            self.tell_owner(item)

    def tell_owner(self, item: Connection | Listener) -> None:
        """With the lock: the socket that owns it looks at it again."""
        owner = item.owner
        if isinstance(owner, weakref.ReferenceType):
            source = owner()
            if source is not None:
                source.handle_ready()

    def close_orphans(self, now: int) -> None:
        """With the lock."""
        while self.orphans:
            orphan = self.orphans.pop()
            orphan.owner = None
            if orphan in self.host.listeners.values():
                self.host.close_listener(cast("Listener", orphan), now)
            else:
                orphan.close(now)

    def _ring(self, now: int) -> None:
        alarms = self._alarms
        assert alarms is not None
        due = [source for source, at_us in alarms.items() if at_us <= now]
        for source in due:
            del alarms[source]
        self._alarm_us = min(alarms.values(), default=NEVER)
        for source in due:
            source.handle_ready()

    # --- end ------------------------------------------------------------------------------------------------------
    def fail(self, error: Exception) -> None:
        """A bug of ours ended the background thread: every later use of the stack says so."""
        self.failure = error
        self.unusable = True
        self._wake_all()

    def close(self) -> None:
        """Stops driving and closes the links; a thread that waits gets ENETDOWN. Without the lock."""
        if self.forked:
            return
        with self.lock:
            if self.closed:
                return
            self.closed = self.unusable = True
            self._wake_all()
        if self._background is not None:
            self._background.stop()
        with self.lock:
            for loop in list(self.loops):
                loop.end()
            for seat in self._free_seats:  # one that is in use is closed by its driver
                seat.close()
            self._free_seats.clear()
            for port in self.ports:
                port.link.close()
        _pumps.discard(self)

    def abandon(self) -> None:
        """In the child after fork: the lock and the threads stayed in the parent."""
        self.forked = self.unusable = True
        self.lock = threading.RLock()

    def _wake_all(self) -> None:
        for loop in list(self.loops):
            loop.wake_all()
        for parked in self._parked:
            parked.wake()
        if self.driver is not None:
            self.driver.rouse()


_pumps: weakref.WeakSet[Pump] = weakref.WeakSet()


def _after_fork() -> None:
    for pump in list(_pumps):
        pump.abandon()


register_at_fork(after_in_child=_after_fork)
