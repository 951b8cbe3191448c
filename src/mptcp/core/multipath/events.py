"""What a connection tells its user of: one small value an event, in the order they happened."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from mptcp.info import Endpoint

#: Events kept for a reader that does not read; further ones are counted in ``EventQueue.missed``.
MAX_EVENTS = 256


class EventKind(Enum):
    ESTABLISHED = "established"  # the connection itself
    SUBFLOW_ESTABLISHED = "subflow-established"
    SUBFLOW_CLOSED = "subflow-closed"
    ADDRESS_ANNOUNCED = "address-announced"  # by the peer
    ADDRESS_REMOVED = "address-removed"
    LOCAL_ADDRESS_AVAILABLE = "local-address-available"
    LOCAL_ADDRESS_UNAVAILABLE = "local-address-unavailable"
    PRIORITY_CHANGED = "priority-changed"
    FELL_BACK = "fell-back"
    CLOSED = "closed"
    MISSED = "missed"  # here so many events are missing that did not find room


@dataclass(frozen=True, slots=True)
class Event:
    """``subflow_id`` is -1 and the endpoints are None where they make no sense.

    ``at_us``: the stack's clock, microseconds. ``interface``: of a local address, counted from 1 as ``if_idx`` of the
    draft is; 0 where it makes no sense. ``missed``: of MISSED, how many events were dropped before this one.
    """

    kind: EventKind
    at_us: int
    subflow_id: int = -1
    local: Endpoint | None = None
    remote: Endpoint | None = None
    address_id: int = -1
    backup: bool = False
    reason: str = ""
    interface: int = 0
    missed: int = 0


class EventQueue:
    """Bounded; made when the first event happens. What found no room is told where it is missing."""

    __slots__ = ("_events", "_gap", "_gap_us", "missed")

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._gap = 0  # events dropped since the last one that is kept
        self._gap_us = 0
        self.missed = 0

    def __len__(self) -> int:
        return len(self._events) + bool(self._gap)

    def put(self, event: Event) -> None:
        if len(self._events) >= MAX_EVENTS - bool(self._gap):
            self.missed += 1
            self._gap += 1
            self._gap_us = event.at_us
            return
        if self._gap:
            self._events.append(self._take_gap())
        self._events.append(event)

    def peek(self) -> Event | None:
        """What ``poll`` would give."""
        if self._gap and not self._events:
            self._events.append(self._take_gap())
        return self._events[0] if self._events else None

    def poll(self) -> Event | None:
        event = self.peek()
        if event is not None:
            del self._events[0]
        return event

    def _take_gap(self) -> Event:
        event = Event(EventKind.MISSED, self._gap_us, missed=self._gap)
        self._gap = 0
        return event
