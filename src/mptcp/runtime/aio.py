"""An event loop as the driver of a pump: no threads, the loop waits for the links and for the next deadline.

The loop watches the descriptor of a seat (one epoll over all links). Each time it is readable, or a deadline has come,
one ``Pump.step`` that does not wait handles what there is, and then, without the lock, those are called whose sockets
have become ready. Writes are collected and sent once per round.

Several loops may use one pump: the first drives, and hands news over to the others in their own threads. A thread that
waits for a blocking socket takes the seat from a loop for as long as it waits. When a loop ends (``asyncio.run``
returns) another loop, or the background thread, drives on.
"""

from __future__ import annotations

import asyncio
import contextlib
from abc import abstractmethod
from collections.abc import AsyncGenerator, Callable
from typing import TYPE_CHECKING

from mptcp.core.units import KIB, NEVER, SECOND
from mptcp.runtime.waiting import Source, Waiter

if TYPE_CHECKING:
    from mptcp.runtime.pump import Pump
    from mptcp.runtime.seat import Seat

#: Octets written by one round of callbacks that are sent at once instead of at its end: the links shall not idle.
FLUSH_BYTES = 256 * KIB


def _always() -> bool:
    return True


class LoopWaiter(Waiter):
    """Something in an event loop that a source's news concern: ``on_ready`` is called there, without the lock."""

    __slots__ = ("driver", "is_queued")

    def __init__(self, driver: LoopDriver, ready: Callable[[], bool] = _always) -> None:
        super().__init__(ready)
        self.driver = driver
        self.is_queued = False

    def wake(self) -> None:
        self.driver.queue(self)

    @abstractmethod
    def on_ready(self) -> None:
        """In the loop's thread, without the pump's lock; also called when the pump is closed or has failed."""


class _Once(LoopWaiter):
    """Ends a future."""

    __slots__ = ("future",)

    def __init__(self, driver: LoopDriver, ready: Callable[[], bool]) -> None:
        super().__init__(driver, ready)
        self.future: asyncio.Future[None] = driver.loop.create_future()

    def on_ready(self) -> None:
        if not self.future.done():
            self.future.set_result(None)


async def until(pump: Pump, source: Source, ready: Callable[[], bool]) -> None:
    """Waits in the running loop until ``ready()``, which is asked, with the lock, whenever ``source`` has news.

    OSError ENETDOWN when the pump is closed meanwhile.
    """
    driver = pump.loop_driver(asyncio.get_running_loop())
    while True:
        with pump.lock:
            pump.check()
            if ready():
                return
            waiter = _Once(driver, ready)
            driver.add(source, waiter)
        try:
            await waiter.future
        finally:
            driver.remove(source, waiter)


class LoopDriver:
    """One event loop's part in one pump. Made by ``Pump.loop_driver``, in the loop, while it runs."""

    __slots__ = (
        "__weakref__", "_anchor", "_dispatching", "_flush_wanted", "_is_inside", "_ready", "_scheduled", "_timer", "_timer_us",
        "_unsent_bytes", "_waiters", "loop", "pump", "seat",
    )  # fmt: skip

    def __init__(self, pump: Pump, loop: asyncio.AbstractEventLoop) -> None:
        self.pump = pump
        self.loop = loop
        self.seat: Seat | None = None  # while this loop drives, and until it has noticed that it does no more
        self._ready: list[LoopWaiter] = []
        self._waiters: dict[LoopWaiter, Source] = {}
        self._scheduled = False  # ``_dispatch`` will be called by the loop
        self._dispatching = False  # it is being called
        self._is_inside = (
            False  # with the lock: this loop's thread is in ``step`` or ``flush`` and dispatches afterwards
        )
        self._flush_wanted = False
        self._unsent_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_us = NEVER
        self._anchor: AsyncGenerator[None, None] | None = None
        with pump.lock:
            pump.loops.append(self)
            try:
                self._begin()
            except BaseException:
                pump.loops.remove(self)
                raise

    def _begin(self) -> None:
        """With the lock: drives from now on, unless somebody else does."""
        # A loop tells the asynchronous generators begun in it that it ends, and nobody else.
        self._anchor = self._end_with_loop()
        with contextlib.suppress(StopIteration):
            self._anchor.__anext__().__await__().send(None)
        self._stand_in()

    async def _end_with_loop(self) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            with self.pump.lock:
                self.end()

    # --- for transports and the like ----------------------------------------------------------------------------------
    def add(self, source: Source, waiter: LoopWaiter) -> None:
        """With the lock: ``waiter`` hears of ``source`` from now on."""
        source.add_waiter(waiter)
        self._waiters[waiter] = source

    def remove(self, source: Source, waiter: LoopWaiter) -> None:
        with self.pump.lock:
            source.remove_waiter(waiter)
            self._waiters.pop(waiter, None)

    def again(self, waiter: LoopWaiter) -> None:
        """In the loop: ``on_ready`` is called once more, after others have had their turn."""
        if not waiter.is_queued:
            waiter.is_queued = True
            self._ready.append(waiter)
        self._schedule()

    def flush_soon(self, written: int = 0) -> None:
        """In the loop, without the lock: what was changed, or ``written``, is sent at the end of this round."""
        self._unsent_bytes += written
        if self._unsent_bytes >= FLUSH_BYTES:
            self._flush()
        elif not self._flush_wanted:
            self._flush_wanted = True
            if not self._dispatching:
                self.loop.call_soon(self._flush_if_wanted)

    # --- news -----------------------------------------------------------------------------------------------------------
    def queue(self, waiter: LoopWaiter) -> None:
        """With the lock, in any thread: ``waiter.on_ready`` is to be called in the loop."""
        if waiter.is_queued:
            return
        waiter.is_queued = True
        self._ready.append(waiter)
        if not self._is_inside and not self._scheduled:
            self._scheduled = True
            self._post(self._dispatch)

    def _post(self, callback: Callable[[], None]) -> bool:
        """From any thread; False if the loop is closed."""
        try:
            self.loop.call_soon_threadsafe(callback)
        except RuntimeError:
            return False
        return True

    def _schedule(self) -> None:
        if not self._scheduled and not self._dispatching:
            self._scheduled = True
            self.loop.call_soon(self._dispatch)

    def _dispatch(self) -> None:
        """In the loop, without the lock: one turn for each that is ready."""
        self._scheduled = False
        ready, self._ready = self._ready, []
        self._dispatching = True
        done = 0
        try:
            for waiter in ready:
                done += 1
                waiter.is_queued = False
                waiter.on_ready()
        finally:
            self._dispatching = False
            if done < len(ready):
                self._ready[:0] = ready[done:]
            if self._flush_wanted:
                self._flush()
            if self._ready:
                self._schedule()

    def _flush_if_wanted(self) -> None:
        if self._flush_wanted:
            self._flush()

    def _flush(self) -> None:
        self._flush_wanted = False
        self._unsent_bytes = 0
        pump = self.pump
        with pump.lock:
            if pump.unusable:
                return
            seat = self.seat
            self._is_inside = True
            if seat is not None:
                seat.asleep_until = 0  # it need not be roused, it is here
            try:
                pump.flush()
            finally:
                self._is_inside = False
                if seat is not None and seat is pump.driver:
                    self._arm(seat)
        if self._ready:
            self._schedule()

    # --- driving --------------------------------------------------------------------------------------------------------
    def stand_by(self) -> bool:
        """With the lock, in any thread: nobody drives now; whether this loop will."""
        if self.loop.is_closed():
            self.pump.loops.remove(self)
            return False
        return self._post(self._stand_in_later) and self.loop.is_running()

    def _stand_in_later(self) -> None:
        with self.pump.lock:
            self._stand_in()

    def _stand_in(self) -> None:
        """With the lock, in the loop: takes the seat, if nobody has it who is waiting for something."""
        pump = self.pump
        if pump.unusable or self not in pump.loops:
            return
        if self.seat is not None:
            if pump.driver is None:
                pump.driver = self.seat
            if pump.driver is self.seat:
                return
            self._leave(self.seat)
        driver = pump.driver
        if driver is not None and (
            not pump.is_resting(driver) or (driver.is_looped and not pump.is_unattended(driver))
        ):
            return
        seat = self.seat = pump.take_seat()
        seat.is_looped = True
        self.loop.add_reader(seat.fileno(), self._turn)
        self._arm(seat)

    def _leave(self, seat: Seat) -> bool:
        """With the lock: gives the seat up; whether nobody drives now."""
        self.seat = None
        if not self.loop.is_closed():
            self.loop.remove_reader(seat.fileno())
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._timer_us = NEVER
        seat.is_looped = False
        seat.asleep_until = 0
        return self.pump.leave_seat(seat)

    def _turn(self) -> None:
        pump = self.pump
        with pump.lock:
            seat = self.seat
            if seat is None:
                return
            if pump.driver is not seat:  # a thread that waits has taken over, and will call back
                self._leave(seat)
                self._stand_in()
                return
            self._is_inside = True
            seat.asleep_until = 0
            try:
                pump.step(seat, 0)
            except Exception as error:
                pump.fail(error)
                self._leave(seat)
                raise
            finally:
                self._is_inside = False
            self._arm(seat)
        if self._ready:
            self._dispatch()

    def _arm(self, seat: Seat) -> None:
        """With the lock: the loop looks again by the next deadline. One that moves later costs nothing: the timer looks
        again when it fires."""
        deadline = self.pump.poll_deadline()
        if deadline < self._timer_us:
            if self._timer is not None:
                self._timer.cancel()
            delay = max(0, deadline - self.pump.clock() + 1) / SECOND
            self._timer = self.loop.call_later(delay, self._ring)
            self._timer_us = deadline
        seat.asleep_until = self._timer_us

    def _ring(self) -> None:
        self._timer = None
        self._timer_us = NEVER
        self._turn()

    # --- end ------------------------------------------------------------------------------------------------------------
    def wake_all(self) -> None:
        """With the lock, in any thread: the pump is closed or has failed."""
        for waiter in self._waiters:
            self.queue(waiter)

    def end(self) -> None:
        """With the lock: this loop is done with the pump, or the pump is closed."""
        if self in self.pump.loops:
            self.pump.loops.remove(self)
        for waiter, source in self._waiters.items():
            source.remove_waiter(waiter)
        if self.seat is None:
            return
        if self.loop.is_running() and not is_running_here(self.loop):
            self._post(self._end_later)  # only the loop's own thread may touch what it watches
        elif self._leave(self.seat) and not self.pump.closed:
            self.pump.hand_over()

    def _end_later(self) -> None:
        with self.pump.lock:
            self.end()


def is_running_here(loop: asyncio.AbstractEventLoop) -> bool:
    """Whether the calling thread is within a callback of ``loop``."""
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False
