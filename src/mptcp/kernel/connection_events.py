"""What happens to one connection of the kernel's, in the vocabulary of ``core.multipath.events``.

The kernel's events name subflows by their addresses; here they get numbers, reasons and an order, and what was missed (an
overflow, no privilege, a subscription that came late) is found out by comparing what the kernel lists now with what was
told so far.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from mptcp.core.multipath.events import Event, EventKind, EventQueue
from mptcp.errors import NotSupportedError
from mptcp.forking import freed_in_child
from mptcp.info import Endpoint
from mptcp.kernel import sockopt
from mptcp.kernel.addresses import AddressChange
from mptcp.kernel.diag import FLAG_BACKUP_REM
from mptcp.kernel.fallback import CLIENT_WITHOUT_MPTCP, NOT_ASKED
from mptcp.kernel.layout import ESTABLISHED
from mptcp.kernel.monitor import HungUp, Monitor, Notice, Overflow, PollTurn, ResetsCounted, Subscriber
from mptcp.kernel.pm_events import FLAG_DENY_JOIN_ID0, PmEvent, PmEventKind
from mptcp.kernel.reading import SUBFLOW_STATES, Reading, Surroundings
from mptcp.kernel.subflow_ids import SubflowIds

#: Addresses that the peer has announced, of one connection: as many as there are ids.
MAX_REMOTE_ADDRESSES: Final = 256
#: ``PmEvent.reset_flags``: the peer may be asked again (RFC 8684 §3.6, T).
_RESET_TRANSIENT: Final = 1

#: Why a subflow has ended, where the kernel has not told and nothing else shows.
UNKNOWN: Final = "unknown"


class Announced(NamedTuple):
    """What a peer has told of its addresses: by their ids, and whether the one it was reached at takes no joins (C)."""

    denies_join_to_initial: bool = False
    remotes: Mapping[int, Endpoint] = {}


class ConnectionEvents(Subscriber):
    """The events of one connection, kept for one reader. ``lock`` guards it; whoever waits for events waits on ``changed``.

    ``on_news`` is called with the lock held when there is an event more, or the end. Subflows are told by the numbers of
    ``ids``. Made when the connection is established; the socket behind ``fd`` stays the caller's.
    """

    def __init__(
        self,
        fd: int,
        monitor: Monitor,
        reading: Reading,
        ids: SubflowIds,
        surroundings: Surroundings,
        lock: threading.RLock | None = None,
    ) -> None:
        self.inbox: deque[Notice] = deque()
        self.lock = lock or freed_in_child(threading.RLock())
        self.changed = threading.Condition(self.lock)
        self.on_news: Callable[[], None] | None = None
        self.ids = ids
        #: Of the initial subflow, for ever (RFC 6897 §5.3.3).
        self.initial_local, self.initial_remote = sockopt.names(fd)
        #: The peer does not want subflows to the address and port of the initial one (RFC 8684 §3.1, C).
        self.denies_join_to_initial = False
        self.is_ended = False
        self._fd, self._monitor, self._reading, self._surroundings = fd, monitor, reading, surroundings
        self._queue: EventQueue | None = None
        self._is_news = False
        self._told_established = False
        self._open: dict[int, bool] = {}  # numbers of the subflows told of; whether the peer called them backups
        self._missing: frozenset[int] | set[int] = frozenset()  # numbers of the told ones that the kernel did not list
        self._pending: dict[int, bool] = {}  # numbers of those this side opens; whether the kernel has been asked
        self._closing: dict[int, str] = {}  # what this side has done to them
        self._remote_addresses: dict[int, Endpoint] = {}
        self._withdrawn: set[int] = set()
        try:
            self.token = sockopt.mptcp_info(fd).token
        except NotSupportedError:
            self.token = 0
        self._was_multipath = self.token != 0
        if self._was_multipath:
            reading.note_multipath(monitor.counted)
        monitor.subscribe(self.token, self, fd)
        with self.lock:
            if not self._told_established and not self.is_ended:
                self._begin()
            elif not self.is_ended:
                self._check_fallback()  # it may have fallen back before anybody listened
            self._tell_news()

    # --- reading -----------------------------------------------------------------------------------------------------
    @property
    def waiting_events(self) -> int:
        return len(self._queue) if self._queue is not None else 0

    @property
    def missed_events(self) -> int:
        """How many events found no room (``MAX_EVENTS`` wait)."""
        return self._queue.missed if self._queue is not None else 0

    def peek_event(self) -> Event | None:
        """What ``poll_event`` would give."""
        with self.lock:
            return self._queue.peek() if self._queue is not None else None

    def poll_event(self) -> Event | None:
        """The next event, if there is one."""
        with self.lock:
            return self._queue.poll() if self._queue is not None else None

    def remote_addresses(self) -> dict[int, Endpoint]:
        """What the peer has announced and not withdrawn, by its address ids. Not without privilege."""
        with self.lock:
            return dict(self._remote_addresses)

    def announced(self) -> Announced:
        """What the peer has told so far, the events that wait to be handled included."""
        with self.lock:
            self.work()
            return Announced(self.denies_join_to_initial, dict(self._remote_addresses))

    # --- for the connection ------------------------------------------------------------------------------------------
    def stop(self) -> None:
        """No further events: the socket is about to be closed. Twice is as good as once."""
        self._monitor.unsubscribe(self.token, self)
        with self.lock:
            self._end()
            self._tell_news()

    def synchronise(self) -> None:
        """Compares what the kernel lists now with what was told so far."""
        with self.lock:
            self._compare()
            self._tell_news()

    def work(self) -> None:
        with self.lock:
            while self.inbox:
                self._handle(self.inbox.popleft())
            self._tell_news()

    # --- inside, with the lock ---------------------------------------------------------------------------------------
    def _handle(self, notice: Notice) -> None:
        if self.is_ended:
            return
        match notice:
            case PmEvent():
                self._handle_pm_event(notice)
            case AddressChange():
                kind = EventKind.LOCAL_ADDRESS_AVAILABLE if notice.available else EventKind.LOCAL_ADDRESS_UNAVAILABLE
                local = notice.local
                self._put(Event(kind, _now(), local=Endpoint(local.address), interface=local.interface))
            case HungUp():
                self._hung_up(notice.failed)
            case Overflow():
                self._compare()
            case ResetsCounted():
                self._look_for_resets()
            case PollTurn():
                if self._monitor.is_polling:
                    self._compare()
                else:
                    self._check_fallback()

    def _handle_pm_event(self, event: PmEvent) -> None:
        match event.kind:
            case PmEventKind.ESTABLISHED:
                self.denies_join_to_initial = bool(event.flags & FLAG_DENY_JOIN_ID0)
                self._begin(told=True)
            case PmEventKind.SUBFLOW_ESTABLISHED if event.local is not None and event.remote is not None:
                self._begin()
                number = self.ids.number(event.local, event.remote)
                if number not in self._open:
                    # RFC 8684 §3.2: the B flag of the peer's MP_JOIN shows in the event, too; ours is no news to us.
                    self._pending.pop(number, None)
                    self._open[number] = event.backup
                    self._put_subflow(EventKind.SUBFLOW_ESTABLISHED, number, event.local, event.remote)
                self._reading.invalidate()
                self.note_usable()
            case PmEventKind.SUBFLOW_CLOSED if event.local is not None and event.remote is not None:
                self._subflow_closed(event, event.local, event.remote)
            case PmEventKind.SUBFLOW_PRIORITY if event.local is not None and event.remote is not None:
                number = self.ids.number(event.local, event.remote)
                self._open[number] = event.backup
                self._reading.invalidate()
                self._put_subflow(EventKind.PRIORITY_CHANGED, number, event.local, event.remote, backup=event.backup)
            case PmEventKind.ANNOUNCED if event.remote is not None:
                remote = event.remote if event.remote.port else Endpoint(event.remote.address, self.initial_remote.port)
                self._remote_addresses[event.remote_id] = remote
                self._withdrawn.discard(event.remote_id)
                self._put(Event(EventKind.ADDRESS_ANNOUNCED, _now(), remote=remote, address_id=event.remote_id))
                self.note_usable()
            case PmEventKind.REMOVED:
                self._withdrawn.add(event.remote_id)
                gone = self._remote_addresses.pop(event.remote_id, None)
                self._put(Event(EventKind.ADDRESS_REMOVED, _now(), remote=gone, address_id=event.remote_id))
            case PmEventKind.CLOSED:
                self._close("")

    def _begin(self, *, told: bool = False) -> None:
        """The connection is established, and so is its initial subflow. ``told``: what followed will be, too."""
        if self._told_established:
            return
        self._told_established = True
        now = _now()
        if not self._was_multipath:
            reason = self._reading.fallback_reason
            if reason not in {"", NOT_ASKED, CLIENT_WITHOUT_MPTCP}:
                self._put(Event(EventKind.FELL_BACK, now, -1, self.initial_local, self.initial_remote, reason=reason))
            self._put(Event(EventKind.ESTABLISHED, now, -1, self.initial_local, self.initial_remote))
            return
        number = self.ids.number(self.initial_local, self.initial_remote)
        self._open[number] = False
        self._put(Event(EventKind.ESTABLISHED, now, number, self.initial_local, self.initial_remote))
        self._put_subflow(EventKind.SUBFLOW_ESTABLISHED, number, self.initial_local, self.initial_remote)
        if not told:
            self._compare()

    def _subflow_closed(self, event: PmEvent, local: Endpoint, remote: Endpoint) -> None:
        number = self.ids.number(local, remote)
        known = number in self._open or number in self._pending
        self._open.pop(number, None)
        self._pending.pop(number, None)
        own = self._closing.pop(number, "")
        self.ids.forget(number)
        self.note_gone(number)
        if not known:
            return  # told already, from what the kernel lists; or it never came to anything, and was not ours
        if own:
            reason = own
        elif event.error == 0:
            reason = "address-removed" if event.remote_id in self._withdrawn else "peer"
        else:
            reason = close_reason(event)
        self._reading.invalidate()
        self._put_subflow(EventKind.SUBFLOW_CLOSED, number, local, remote, reason=reason)

    def _compare(self) -> None:
        if not self._was_multipath or self.is_ended:
            return
        if not self._told_established:
            self._begin()  # which comes back here: first things first
            return
        try:
            full = sockopt.full_info(self._fd)
        except NotSupportedError:
            self._fell_back()
            return
        except OSError:
            self._close("")
            return
        if full.mptcp.token != self.token:
            # The connection failed (the kernel has forgotten its token), or the descriptor is another's now.
            self._close("" if full.mptcp.token else UNKNOWN)
            return
        polling = self._monitor.is_polling
        alive: set[int] = set()
        for entry in full.subflows:
            if entry.tcp.state not in SUBFLOW_STATES:
                continue
            number = self.ids.see(entry)
            alive.add(number)
            if entry.tcp.state == ESTABLISHED and (number not in self._open or polling):
                self._seen(number, entry.local, entry.remote)
        for number in [number for number in self._open if number not in alive]:
            self._gone(number)
        for number in [number for number, asked in self._pending.items() if asked and number not in alive]:
            self._gone(number)
        self._monitor.note_subflows(
            self.token, self, ((e.local, e.remote) for e in full.subflows if e.tcp.state in SUBFLOW_STATES)
        )

    def _look_for_resets(self) -> None:
        """Tells of the subflows that were missing at the last look already, and are still not told of."""
        if not self._was_multipath or self.is_ended:
            return
        try:
            full = sockopt.full_info(self._fd)
        except NotSupportedError:
            self._fell_back()
            return
        except OSError:
            return  # it is over, and epoll says so
        if full.mptcp.token != self.token:
            return
        alive = {self.ids.see(entry) for entry in full.subflows if entry.tcp.state in SUBFLOW_STATES}
        missing = self._open.keys() - alive
        for number in missing & self._missing:
            self._gone(number)
        self._missing = missing - self._missing

    def _seen(self, number: int, local: Endpoint, remote: Endpoint) -> None:
        told = self._surroundings.lookup(local, remote)
        before = self._open.get(number)
        # Of one that has ended since it was listed, nothing is told: that is no change of its priority.
        backup = bool(told.flags & FLAG_BACKUP_REM) if told is not None else bool(before)
        self._open[number] = backup
        self._pending.pop(number, None)
        if before is None:
            self._put_subflow(EventKind.SUBFLOW_ESTABLISHED, number, local, remote)
            self.note_usable()
        elif before != backup:
            self._put_subflow(EventKind.PRIORITY_CHANGED, number, local, remote, backup=backup)

    def _gone(self, number: int) -> None:
        self._open.pop(number, None)
        self._pending.pop(number, None)
        ends = self.ids.endpoints(number)
        self.ids.forget(number)
        self.note_gone(number)
        local, remote = ends if ends is not None else (None, None)
        reason = self._closing.pop(number, UNKNOWN)
        self._put_subflow(EventKind.SUBFLOW_CLOSED, number, local, remote, reason=reason)

    def _hung_up(self, failed: bool) -> None:
        """epoll says so: both directions are over. No event of the kernel's comes before the socket is closed."""
        self._close("the connection was reset or failed" if failed else "")

    def _check_fallback(self) -> None:
        if self._was_multipath:
            try:
                if not sockopt.is_mptcp(self._fd):
                    self._fell_back()
            except OSError:
                self._close("")

    def _fell_back(self) -> None:
        self._was_multipath = False
        self._open.clear()
        for number in list(self._pending):
            self._closing.setdefault(number, "the connection fell back to TCP")
            self._gone(number)
        self.note_fell_back()
        self._put(
            Event(
                EventKind.FELL_BACK, _now(), self.ids.number(self.initial_local, self.initial_remote),
                self.initial_local, self.initial_remote, reason=self._reading.fallback_reason,
            )
        )  # fmt: skip

    def _close(self, reason: str) -> None:
        if self.is_ended:
            return
        for number in sorted(self._open):
            self._closing.setdefault(number, "connection closed")
            self._gone(number)
        self._put(Event(EventKind.CLOSED, _now(), reason=reason))
        self._end()

    def _end(self) -> None:
        self._is_news = self._is_news or not self.is_ended
        self.is_ended = True

    def _put_subflow(
        self, kind: EventKind, number: int, local: Endpoint | None, remote: Endpoint | None, *,
        backup: bool = False, reason: str = "",
    ) -> None:  # fmt: skip
        self._put(Event(kind, _now(), number, local, remote, backup=backup, reason=reason))

    def _put(self, event: Event) -> None:
        if self._queue is None:
            self._queue = EventQueue()
        self._queue.put(event)
        self._is_news = True

    def _tell_news(self) -> None:
        if self._is_news:
            self._is_news = False
            self.changed.notify_all()
            if self.on_news is not None:
                self.on_news()

    def note_gone(self, number: int) -> None:
        """With the lock: that subflow is no more."""

    def note_fell_back(self) -> None:
        """With the lock: it is plain TCP from here on."""

    def note_usable(self) -> None:
        """With the lock: the peer has shown that further subflows are possible."""


def close_reason(event: PmEvent) -> str:
    """Why a subflow was closed that neither side closed in good order, in the words of the user-space stack."""
    match event.error:
        case errno.ECONNRESET if event.reset_reason >= 0:
            return "reset-transient" if event.reset_flags & _RESET_TRANSIENT else f"reset-{event.reset_reason}"
        case errno.ECONNRESET:
            return "reset"
        case errno.ECONNREFUSED:
            return "refused"
        case errno.ETIMEDOUT:
            return "timeout"
        case errno.ECONNABORTED:
            return "closed"  # SOCK_DESTROY, by another process
        case errno.EHOSTUNREACH | errno.ENETUNREACH:
            return "unreachable"
        case other:
            return os.strerror(other)


def _now() -> int:
    return time.monotonic_ns() // 1000
