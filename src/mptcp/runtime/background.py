"""The driver of last resort: a thread that drives a host while no thread of the application does."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from mptcp.core.units import NEVER

if TYPE_CHECKING:
    from mptcp.runtime.pump import Pump
    from mptcp.runtime.seat import Seat

#: Seconds without a driver after which the background thread drives. Each look costs a switch of threads.
GRACE_S = 0.002

#: Looks at one and the same driver after which the thread sleeps until that driver leaves.
LOOKS_BEFORE_SLEEP = 20


#: Seconds between two looks, while an event loop drives, whether it still runs.
LOOP_GRACE_S = 0.5


class Background:
    """Three moods. *Driving*: it waits in the poller, for ever if need be, until a thread of the application takes the
    seat. *Watching*: it looks every ``GRACE_S`` whether somebody has driven since. *Asleep*: somebody has been driving
    all the time; ``stand_by`` ends it. Where an event loop drives, it looks every ``LOOP_GRACE_S`` whether that still runs.
    """

    __slots__ = ("_asleep", "_gate", "_pump", "_thread", "seat")

    def __init__(self, pump: Pump) -> None:
        self._pump = pump
        self._gate = threading.Lock()
        self._gate.acquire()
        self._asleep = False
        self._thread = threading.Thread(target=self._main, name="mptcp-pump", daemon=True)
        self.seat: Seat | None = None  # while it drives, and until it has noticed that it does no more

    def start(self) -> None:
        self._thread.start()

    def stand_by(self) -> None:
        """With the pump's lock: nobody drives now."""
        if self._asleep:
            self._asleep = False
            self._gate.release()

    def stop(self) -> None:
        """Without the lock, after the pump was marked closed."""
        with self._pump.lock:
            self.stand_by()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _main(self) -> None:
        pump = self._pump
        seen = 0
        looks = 0
        while True:
            with pump.lock:
                if pump.closed:
                    return
                self._gate.acquire(blocking=False)  # ``stand_by`` may have come after the time was over
                self._asleep = False
                looks = looks + 1 if pump.shifts == seen else 0
                driver = pump.driver
                if looks > 0 and (driver is None or pump.is_unattended(driver)):
                    try:
                        self._drive()
                    except Exception as error:  # noqa: BLE001 told to every user of the stack
                        pump.fail(error)
                        return
                    looks = 0
                seen = pump.shifts
                driver = pump.driver
                timeout = GRACE_S
                if driver is not None and looks >= LOOKS_BEFORE_SLEEP:
                    self._asleep = True
                    timeout = LOOP_GRACE_S if driver.is_looped else -1
            self._gate.acquire(timeout=timeout)

    def _drive(self) -> None:
        pump = self._pump
        seat = self.seat = pump.take_seat()
        try:
            while pump.driver is seat and not pump.closed:
                pump.step(seat, NEVER)
        finally:
            self.seat = None
            pump.leave_seat(seat)
