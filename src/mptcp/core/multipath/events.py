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
    PRIORITY_CHANGED = "priority-changed"
    FELL_BACK = "fell-back"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class Event:
    """``subflow_id`` is -1 and the endpoints are None where they make no sense."""

    kind: EventKind
    at_us: int
    subflow_id: int = -1
    local: Endpoint | None = None
    remote: Endpoint | None = None
    address_id: int = -1
    backup: bool = False
    reason: str = ""


class EventQueue:
    """Bounded; made when the first event happens."""

    __slots__ = ("_events", "missed")

    def __init__(self) -> None:
        self._events: list[Event] = []
        self.missed = 0

    def put(self, event: Event) -> None:
        if len(self._events) >= MAX_EVENTS:
            self.missed += 1
        else:
            self._events.append(event)

    def poll(self) -> Event | None:
        return self._events.pop(0) if self._events else None
