"""Where ``mptcp events`` gets its events: the kernel's own, what two looks at its connections differ in, or user-space stacks."""

from __future__ import annotations

import contextlib
import errno
import select
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Self

from mptcp.cli.connection_list import KernelSource, Row
from mptcp.core.multipath.events import Event, EventKind
from mptcp.info import Endpoint, SubflowState
from mptcp.kernel import features
from mptcp.kernel.addresses import AddressWatch
from mptcp.kernel.connection_events import UNKNOWN, close_reason
from mptcp.kernel.destroyed import DestroyedSockets
from mptcp.kernel.fallback import difference, fallbacks, reason_of_counters, resets
from mptcp.kernel.layout import ESTABLISHED
from mptcp.kernel.listing import ListedConnection, Listing
from mptcp.kernel.monitor import CONFIRM_S, FALLBACK_S
from mptcp.kernel.namespace import NetNamespace
from mptcp.kernel.pm_events import EventsLost, PmEvent, PmEventKind, PmEventSocket
from mptcp.kernel.processes import Process
from mptcp.sockets import publish
from mptcp.sockets.inspection_json import printable

#: Without privilege, connections are looked at so often (seconds).
LOOK_S: Final = 0.2
#: ... or less often, so that it takes no more than this share of a processor, ...
LOOK_SHARE: Final = 0.1
#: ... and so soon (seconds) after sock_diag tells that a socket has ended.
SOON_S: Final = 0.02
#: New stacks are looked for so often.
SEARCH_S: Final = 1.0
#: Connections whose addresses are remembered for events that only have a token.
MAX_KNOWN: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class Told:
    """One event, and whose it is: ``local`` and ``remote`` of the connection, None if it is nobody's."""

    event: Event
    local: Endpoint | None = None
    remote: Endpoint | None = None
    token: int = 0
    process: Process | None = None
    interface: str = ""  # the name of ``event.interface``


class EventSource(ABC):
    """Events as they come. ``note`` says in a sentence what is told, and what is not; ``is_complete``: nothing is missed."""

    note = ""
    is_complete = True

    @abstractmethod
    def read(self, timeout_s: float) -> list[Told]:
        """Waits so long at most."""

    @abstractmethod
    def close(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _clock_us() -> int:
    return time.time_ns() // 1000


def _closed(opened: AddressWatch | DestroyedSockets | PmEventSocket | None) -> None:
    if opened is not None:
        opened.close()


class _Addresses:
    """Local addresses as they come and go; nothing where rtnetlink is withheld."""

    def __init__(self, namespace: NetNamespace) -> None:
        self.watch: AddressWatch | None = None
        with contextlib.suppress(OSError):
            self.watch = AddressWatch(namespace)

    def read(self) -> list[Told]:
        if self.watch is None:
            return []
        told = []
        for change in self.watch.read():
            kind = EventKind.LOCAL_ADDRESS_AVAILABLE if change.available else EventKind.LOCAL_ADDRESS_UNAVAILABLE
            local = change.local
            event = Event(kind, _clock_us(), local=Endpoint(local.address), interface=local.interface)
            told.append(Told(event, interface=local.name))
        return told


_Ends = tuple[Endpoint, Endpoint]


class _Unsaid:
    """What the kernel only counts: that a connection fell back to TCP after its handshake, and that it has itself reset a
    subflow for what came in on it. When it has, sock_diag is asked which that was; nothing where that is withheld."""

    def __init__(self, namespace: NetNamespace) -> None:
        self._namespace = namespace
        self._counted = features.counters(namespace)
        self.next_look = time.monotonic() + FALLBACK_S
        self._fallen: set[tuple[_Ends, int]] = set()
        self._open: dict[int, set[_Ends]] = {}  # subflows by the token of their connection
        self._missing: set[tuple[int, _Ends]] = set()  # those not listed at the last look, and not told
        self._told: set[tuple[int, _Ends]] = set()  # closed ones of which the kernel has told nothing, or not yet
        self._listing: Listing | None = None
        with contextlib.suppress(OSError):
            self._listing = Listing(namespace)
            for connection in self._listing.read()[0]:
                self._see(connection)

    def _see(self, connection: ListedConnection) -> bool:
        """Whether it has fallen back."""
        token = connection.info.token
        if token and connection.info.is_multipath and len(self._open) < MAX_KNOWN:
            self._open[token] = _working(connection)
        info = connection.socket.info
        if info is None or not info.fell_back or not info.key_received:
            return False
        self._open.pop(token, None)
        self._fallen.add(((connection.local, connection.remote), token))
        return True

    def is_news(self, event: PmEvent) -> bool:
        """Keeps what an event of the kernel's says; False if that has been told already."""
        token, ends = event.token, (event.local, event.remote)
        if event.kind is PmEventKind.CLOSED:
            self._open.pop(token, None)
            self._told = {each for each in self._told if each[0] != token}
        elif ends[0] is None or ends[1] is None:
            return True
        elif event.kind in {PmEventKind.ESTABLISHED, PmEventKind.SUBFLOW_ESTABLISHED}:
            self._told.discard((token, (ends[0], ends[1])))
            if token in self._open or len(self._open) < MAX_KNOWN:
                self._open.setdefault(token, set()).add((ends[0], ends[1]))
        elif event.kind is PmEventKind.SUBFLOW_CLOSED:
            self._open.get(token, set()).discard((ends[0], ends[1]))
            if (token, (ends[0], ends[1])) in self._told:
                self._told.discard((token, (ends[0], ends[1])))
                return False
        return True

    def read(self) -> list[Told]:
        if time.monotonic() < self.next_look or self._listing is None:
            return []
        self.next_look = time.monotonic() + FALLBACK_S
        counted = features.counters(self._namespace)
        since = difference(counted, self._counted)
        if not fallbacks(since) and not resets(since) and not self._missing:
            self._counted = counted
            return []
        try:
            connections = self._listing.read()[0]
        except OSError:
            return []  # at the next look
        self._counted = counted
        told = []
        missing, self._missing = self._missing, set()
        before, self._fallen = self._fallen, set()
        for connection in connections:
            ends, token = (connection.local, connection.remote), connection.info.token
            known = self._open.get(token, set()) if connection.info.is_multipath else set()
            if self._see(connection) and (ends, token) not in before:
                reason = reason_of_counters(since, was_multipath=True)
                told.append(Told(Event(EventKind.FELL_BACK, _clock_us(), reason=reason), *ends, token))
            for gone in known - self._open.get(token, set()):
                if (token, gone) not in missing:
                    # Its event may be on its way: it is told if it is still missing in a moment.
                    self._missing.add((token, gone))
                    self._open[token].add(gone)
                    continue
                if len(self._told) < MAX_KNOWN:
                    self._told.add((token, gone))
                event = Event(EventKind.SUBFLOW_CLOSED, _clock_us(), local=gone[0], remote=gone[1], reason=UNKNOWN)
                told.append(Told(event, *ends, token))
        if self._missing:
            self.next_look = time.monotonic() + CONFIRM_S
        return told

    def close(self) -> None:
        if self._listing is not None:
            self._listing.close()


def _working(connection: ListedConnection) -> set[_Ends]:
    return {(subflow.local, subflow.remote) for subflow in connection.subflows if subflow.state == ESTABLISHED}


class KernelEvents(EventSource):
    """All that the kernel tells of the connections of a namespace, and what it only counts. PermissionError without
    CAP_NET_ADMIN."""

    note = "the kernel's events, as they happen; after up to 2 s: fallbacks to TCP, and subflows that this side resets"

    def __init__(self, namespace: NetNamespace) -> None:
        self._events = PmEventSocket(namespace)
        self._addresses = _Addresses(namespace)
        self._unsaid = _Unsaid(namespace)
        self._known: dict[int, tuple[Endpoint, Endpoint]] = {}
        with contextlib.suppress(OSError), Listing(namespace) as listing:
            self._known = {c.info.token: (c.local, c.remote) for c in listing.read()[0] if c.info.token}

    def read(self, timeout_s: float) -> list[Told]:
        waiting: list[PmEventSocket | AddressWatch] = [self._events]
        if self._addresses.watch is not None:
            waiting.append(self._addresses.watch)
        pause = max(0.0, min(timeout_s, self._unsaid.next_look - time.monotonic()))
        if not select.select(waiting, [], [], pause)[0]:
            return self._unsaid.read()
        try:
            events = self._events.read()
        except EventsLost:
            return [
                Told(Event(EventKind.MISSED, _clock_us(), missed=1, reason="events came faster than they were read"))
            ]
        told = [told for event in events if (told := self._told(event)) is not None]
        return told + self._addresses.read() + self._unsaid.read()

    def _told(self, event: PmEvent) -> Told | None:
        if event.kind in {PmEventKind.CREATED, PmEventKind.ESTABLISHED} and event.local and event.remote:
            if len(self._known) >= MAX_KNOWN:
                self._known.clear()
            self._known[event.token] = event.local, event.remote
        local, remote = self._known.get(event.token, (None, None))
        if event.kind is PmEventKind.CLOSED:
            self._known.pop(event.token, None)
        made = event_of(event) if self._unsaid.is_news(event) else None
        return None if made is None else Told(made, local, remote, event.token)

    def close(self) -> None:
        _closed(self._events)
        _closed(self._addresses.watch)
        self._unsaid.close()


_KINDS: Final = {
    PmEventKind.ESTABLISHED: EventKind.ESTABLISHED,
    PmEventKind.CLOSED: EventKind.CLOSED,
    PmEventKind.ANNOUNCED: EventKind.ADDRESS_ANNOUNCED,
    PmEventKind.REMOVED: EventKind.ADDRESS_REMOVED,
    PmEventKind.SUBFLOW_ESTABLISHED: EventKind.SUBFLOW_ESTABLISHED,
    PmEventKind.SUBFLOW_CLOSED: EventKind.SUBFLOW_CLOSED,
    PmEventKind.SUBFLOW_PRIORITY: EventKind.PRIORITY_CHANGED,
}


def event_of(event: PmEvent) -> Event | None:
    """In the words of both stacks; None of what they have no word for (created, listeners of announced ports)."""
    kind = _KINDS.get(event.kind)
    if kind is None:
        return None
    made = Event(kind, _clock_us(), local=event.local, remote=event.remote, interface=event.interface)
    if event.kind in {PmEventKind.ANNOUNCED, PmEventKind.REMOVED}:
        return replace(made, local=None, address_id=event.remote_id)
    if event.kind is PmEventKind.SUBFLOW_CLOSED:
        return replace(made, reason=close_reason(event) if event.error else "")
    return replace(made, backup=event.backup)


class ComparedEvents(EventSource):
    """What differs between two looks at the connections: for whoever has no privilege."""

    is_complete = False

    def __init__(self, namespace: NetNamespace, reason: str = "without CAP_NET_ADMIN") -> None:
        self.note = (
            f"{reason} the kernel's own events are not to be had: connections are compared up to {round(1 / LOOK_S)} "
            "times a second, so that what is shorter is not seen, nor are announced addresses and the reasons for an end"
        )
        self._source = KernelSource(namespace)
        self._addresses = _Addresses(namespace)
        self._destroyed: DestroyedSockets | None = None
        with contextlib.suppress(OSError):
            self._destroyed = DestroyedSockets(namespace)
        self._compare = Comparison(self._rows())
        self._next_look = time.monotonic() + LOOK_S

    def _rows(self) -> list[Row]:
        return self._source.read(processes=False).rows

    def read(self, timeout_s: float) -> list[Told]:
        waiting = [each for each in (self._addresses.watch, self._destroyed) if each is not None]
        pause = max(0.0, min(timeout_s, self._next_look - time.monotonic()))
        ready = select.select(waiting, [], [], pause)[0]
        told = self._addresses.read()
        if self._destroyed is not None and self._destroyed in ready:
            with contextlib.suppress(EventsLost):
                self._destroyed.read()
        # What ends is looked at soon, but a busy namespace does not get all of a processor for it.
        if ready:
            self._next_look = min(self._next_look, time.monotonic() + SOON_S)
        if time.monotonic() >= self._next_look:
            start = time.monotonic()
            told += self._compare.update(self._rows())
            end = time.monotonic()
            self._next_look = end + max(LOOK_S, (end - start) / LOOK_SHARE)
        return told

    def close(self) -> None:
        self._source.close()
        _closed(self._addresses.watch)
        _closed(self._destroyed)


class Comparison:
    """From one list of connections to the next: what must have happened in between."""

    __slots__ = ("_last",)

    def __init__(self, rows: list[Row]) -> None:
        self._last = {row.key: row for row in rows}

    def update(self, rows: list[Row], now_us: int | None = None) -> list[Told]:
        now = _clock_us() if now_us is None else now_us
        told: list[Told] = []
        there = {row.key: row for row in rows}
        for key, row in there.items():
            before = self._last.get(key)
            if before is None and row.info.state == "connecting":
                continue
            if before is None or before.info.state == "connecting":
                told.append(_of(row, Event(EventKind.ESTABLISHED, now, local=row.local, remote=row.remote)))
            if before is not None and before.info.is_multipath and not row.info.is_multipath:
                told.append(_of(row, Event(EventKind.FELL_BACK, now, reason=row.info.fallback_reason)))
            told += _subflows(before, row, now)
        for key, row in self._last.items():
            if key not in there and row.info.state != "connecting":
                told += [_of(row, Event(EventKind.CLOSED, now))]
        self._last = there
        return told


def _of(row: Row, event: Event) -> Told:
    return Told(event, row.local, row.remote, row.info.token)


_OPEN: Final = {SubflowState.ACTIVE, SubflowState.STALE, SubflowState.PENDING}


def _subflows(before: Row | None, row: Row, now: int) -> list[Told]:
    told = []
    known = {s.id: s for s in before.info.subflows if s.state in _OPEN} if before is not None else {}
    there = {s.id: s for s in row.info.subflows if s.state in _OPEN}
    for number, subflow in there.items():
        old = known.get(number)
        event = Event(EventKind.SUBFLOW_ESTABLISHED, now, number, subflow.local, subflow.remote, backup=subflow.backup)
        if old is None:
            if not (before is None and subflow.initial):
                told.append(_of(row, event))
        elif old.backup != subflow.backup:
            told.append(_of(row, replace(event, kind=EventKind.PRIORITY_CHANGED)))
    for number, subflow in known.items():
        if number not in there:
            told.append(_of(row, Event(EventKind.SUBFLOW_CLOSED, now, number, subflow.local, subflow.remote)))
    return told


class UserEvents(EventSource):
    """Of every user-space stack that a process of this user has published, those published later included."""

    note = "events of this user's user-space stacks"

    def __init__(self) -> None:
        self._streams: dict[Path, tuple[publish.PublishedLines, Process]] = {}
        self._next_search = 0.0
        self._search()

    def _search(self) -> None:
        self._next_search = time.monotonic() + SEARCH_S
        for path in publish.published():
            if path in self._streams:
                continue
            with contextlib.suppress(OSError, ValueError):
                lines = publish.PublishedLines(path, b"events\n")
                head = next(iter(lines), {})
                pid, program = head.get("pid"), head.get("program")
                if isinstance(pid, int) and isinstance(program, str):
                    self._streams[path] = lines, Process(pid, printable(program))
                else:
                    lines.close()

    def read(self, timeout_s: float) -> list[Told]:
        pause = max(0.0, min(timeout_s, self._next_search - time.monotonic()))
        if not self._streams:
            time.sleep(pause)
        waiting = [lines for lines, _ in self._streams.values()]
        ready = [lines for lines in waiting if lines.has_line]  # what came together with the first line, for one
        if not ready and waiting:
            ready = select.select(waiting, [], [], pause)[0]
        told: list[Told] = []
        for path, (lines, process) in list(self._streams.items()):
            if lines not in ready:
                continue
            try:
                told += [_published(line, process) for line in lines.read()]
            except (OSError, ValueError):
                lines.close()
                del self._streams[path]
        if time.monotonic() >= self._next_search:
            self._search()
        return told

    def close(self) -> None:
        for lines, _ in self._streams.values():
            lines.close()
        self._streams.clear()


def _published(line: dict[str, Any], process: Process) -> Told:
    local, remote, event = publish.event_of(line)
    # The stack's clock starts anywhere: what a reader can compare is the time of day.
    return Told(replace(event, at_us=_clock_us()), local, remote, publish.token_of(line), process)


def open_events(namespace: NetNamespace | None) -> EventSource:
    """The best source there is for a namespace; None: the user-space stacks."""
    if namespace is None:
        return UserEvents()
    try:
        return KernelEvents(namespace)
    except OSError as error:
        if error.errno in {errno.EPERM, errno.EACCES}:
            return ComparedEvents(namespace)
        if error.errno == errno.EOPNOTSUPP:
            return ComparedEvents(namespace, "on this kernel")
        raise
