"""Virtual time: a heap of events. Nothing here waits, and nothing depends on the time of the machine."""

from __future__ import annotations

import heapq
from collections.abc import Callable

from mptcp.core.units import NEVER

Action = Callable[[], None]


class VirtualClock:
    """Integer microseconds since the start of a simulation, and what is to happen when.

    Events of one instant run in the order in which they were scheduled, so a run has no ties left to chance.
    """

    __slots__ = ("_cancelled", "_heap", "_serial", "now")

    def __init__(self) -> None:
        self.now = 0
        self._serial = 0
        self._heap: list[tuple[int, int, Action]] = []
        self._cancelled: set[int] = set()

    def at(self, time: int, action: Action) -> int:
        """Runs ``action`` at ``time`` (now, if that has passed). The number returned can cancel it."""
        serial = self._serial = self._serial + 1
        if time < self.now:
            time = self.now
        heapq.heappush(self._heap, (time, serial, action))
        return serial

    def after(self, delay_us: int, action: Action) -> int:
        return self.at(self.now + delay_us, action)

    def cancel(self, serial: int) -> None:
        """The event will not run. Only for an event that has not run yet."""
        self._cancelled.add(serial)

    @property
    def next_time(self) -> int:
        """When the next event is due; NEVER if there is none."""
        heap = self._heap
        while self._cancelled and heap and heap[0][1] in self._cancelled:
            self._cancelled.discard(heapq.heappop(heap)[1])
        return heap[0][0] if heap else NEVER

    def run_instant(self) -> int:
        """Advances to the next event and runs everything due at that time; how many events ran."""
        heap = self._heap
        time = self.next_time
        if time == NEVER:
            return 0
        self.now = time
        ran = 0
        while heap and heap[0][0] == time:
            _, serial, action = heapq.heappop(heap)
            if self._cancelled and serial in self._cancelled:
                self._cancelled.discard(serial)
                continue
            action()
            ran += 1
        return ran
