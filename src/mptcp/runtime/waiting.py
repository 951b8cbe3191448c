"""How threads and event loops wait for something of a host: a source that can become ready, and who waits until it does."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable


class Waiter(ABC):
    """Who waits for a source: ``wake`` is called when ``ready()`` holds."""

    __slots__ = ("ready",)

    def __init__(self, ready: Callable[[], bool]) -> None:
        self.ready = ready

    @abstractmethod
    def wake(self) -> None:
        """With the pump's lock; never blocks or raises."""


class Parked(Waiter):
    """One thread that waits while another drives. Made once per thread, used again for every wait."""

    __slots__ = ("_gate", "_woken")

    def __init__(self) -> None:
        super().__init__(bool)
        self._gate = threading.Lock()
        self._gate.acquire()
        self._woken = False

    def prepare(self, ready: Callable[[], bool]) -> None:
        """With the pump's lock: from now on ``wake`` ends the next ``park``."""
        self.ready = ready
        self._woken = False
        self._gate.acquire(blocking=False)

    def park(self, timeout: float) -> None:
        """Without the pump's lock: sleeps until woken or for ``timeout`` seconds (negative: for ever)."""
        self._gate.acquire(timeout=timeout)

    def wake(self) -> None:
        """With the pump's lock; more than once is as good as once."""
        if not self._woken:
            self._woken = True
            self._gate.release()


class Source(ABC):
    """What an application waits for: it owns a connection or a listener.

    ``connection.owner`` is a weak reference to it, so that one that is forgotten is collected (and closed).
    """

    __slots__ = ("parked",)

    def __init__(self) -> None:
        self.parked: list[Waiter] | None = None  # who waits for this while another drives

    def add_waiter(self, waiter: Waiter) -> None:
        """With the pump's lock: from now on ``wake_ready`` asks this one, too."""
        if self.parked is None:
            self.parked = []
        self.parked.append(waiter)

    def remove_waiter(self, waiter: Waiter) -> None:
        """With the pump's lock; one that is not there is no error."""
        if self.parked is not None and waiter in self.parked:
            self.parked.remove(waiter)
            if not self.parked:
                self.parked = None

    def wake_ready(self) -> None:
        """With the pump's lock: wakes those whose condition holds now."""
        if self.parked:
            for parked in self.parked:
                if parked.ready():
                    parked.wake()

    @abstractmethod
    def handle_ready(self) -> None:
        """With the pump's lock: readability, writability, state or events may have changed. Never blocks or raises."""
