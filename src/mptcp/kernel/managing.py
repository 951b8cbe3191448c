"""The core's path managers on connections of the kernel, and what the watchdog says carried out.

Facts come from the kernel's events and from rtnetlink, actions go through the kernel's commands. ``ManagedConnection`` is
one connection; ``Managing`` looks after all that a process (or a namespace, for ``mptcp pm``) has, in the monitor's thread.
"""

from __future__ import annotations

import errno
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Final

from mptcp.core.multipath.special_addresses import is_special
from mptcp.core.path_managers.base import (
    Action,
    AnnounceAddress,
    CloseSubflow,
    Facts,
    OpenSubflow,
    PathManager,
    SetBackup,
    WithdrawAddress,
)
from mptcp.core.units import MILLISECOND, NEVER, SECOND
from mptcp.forking import freed_in_child
from mptcp.info import Endpoint, PathInfo
from mptcp.kernel.addresses import AddressChange
from mptcp.kernel.connection_events import Announced, close_reason
from mptcp.kernel.layout import ESTABLISHED
from mptcp.kernel.monitor import HungUp, Notice, Overflow, PollTurn, ResetsCounted, Subscriber
from mptcp.kernel.pm_events import FLAG_DENY_JOIN_ID0, PmEvent, PmEventKind
from mptcp.kernel.reading import SUBFLOW_STATES
from mptcp.kernel.steering import Steering, now_us
from mptcp.kernel.watchdog import Failing, FailurePolicy, OpenFresh, Reset, Verdict, Watchdog

#: What a path manager asks for at one call; more is its fault and is not done.
MAX_ACTIONS: Final = 64
#: Actions of one connection that wait until it is fully established, or for the kernel to be able to.
MAX_PENDING: Final = 64
#: Addresses of a peer.
MAX_REMOTES: Final = 64
#: A subflow whose SYN nobody answers shows in no event: after this it counts as lost.
CONNECT_TIMEOUT_US: Final = 30 * SECOND
#: What has to wait is tried again after 20, 40, 80, ... ms, so many times; then only when data has moved.
RETRY_US: Final = 20 * MILLISECOND
MAX_RETRIES: Final = 6
#: How often a path manager that waits for data is asked.
DATA_INTERVAL_US: Final = 100 * MILLISECOND
#: Looks that are not urgent are at multiples of this: many connections have theirs at one wake-up.
GRID_US: Final = 125 * MILLISECOND
_GONE: Final = (errno.ENOENT, errno.EINVAL)


class _Path:
    __slots__ = ("copies", "info", "is_open", "is_wished", "lost_at")

    def __init__(self, info: PathInfo, is_open: bool, lost_at: int) -> None:
        self.info = info
        self.copies = 1  # so many were opened between the same addresses, and their local ports are not known yet
        self.is_open = is_open
        self.is_wished = False  # the path manager has asked for it, whoever has opened it
        self.lost_at = lost_at  # when it counts as lost, if it is not open by then


class _Wish:
    """What the path manager has asked for; ``known``: the numbers of the paths that it knew of then. ``info``: what the
    path manager sees while a subflow waits to be opened, so that it does not ask again."""

    __slots__ = ("action", "info", "known")

    def __init__(self, action: Action, known: frozenset[int], info: PathInfo | None) -> None:
        self.action, self.known, self.info = action, known, info


class ManagedConnection(Subscriber):
    """One connection under a path manager (None: none) and a watchdog (None: none).

    Notices come by ``inbox`` and ``work``; ``turn`` is called when ``next_us`` has come. Any thread may call either.
    ``announced``: what the peer has told before, asked for by ``start``.
    ``head_start_us``: subflows are opened so much later, for the program itself may open them. A subflow that somebody
    else has opened since the path manager asked for one between its addresses is that one.
    """

    def __init__(
        self,
        steering: Steering,
        manager: PathManager | None,
        policy: FailurePolicy | None,
        *,
        is_client: bool,
        local: Endpoint,
        remote: Endpoint,
        announced: Callable[[], Announced] = Announced,
        lock: threading.RLock | None = None,
        head_start_us: int = 0,
    ) -> None:
        self.inbox: deque[Notice] = deque()
        self.is_over = False
        self.next_us = 0
        self.failed_actions = 0
        self.local, self.remote, self.is_client = local, remote, is_client
        self.on_sooner: Callable[[], None] | None = None
        self.on_report: Callable[[str], None] | None = None
        self._lock = lock or freed_in_child(threading.RLock())
        self._steering = steering
        self._manager = manager
        self._watchdog = Watchdog(policy) if policy is not None else None
        self._announced = announced
        self._denies_join = False
        self._remotes: dict[int, Endpoint] = {}
        self._paths: dict[tuple[Endpoint, Endpoint], _Path] = {}
        self._missing: set[tuple[Endpoint, Endpoint]] = set()  # open ones that the kernel did not list
        self._expected = 0  # paths that are not open yet
        self._next_id = 1
        self._started = False
        self._reasons: dict[tuple[Endpoint, Endpoint], str] = {}  # why this side has closed what is about to close
        self._head_start_us = head_start_us
        self._pending: list[_Wish] = []
        self._tries = 0
        self._retry_at = NEVER
        self._moved = (-1, -1)
        self._look_at = 0

    # --- from outside --------------------------------------------------------------------------------------------------
    @property
    def manager_name(self) -> str:
        return self._manager.name if self._manager is not None else ""

    def start(self) -> None:
        """Reads what there is already, and lets the path manager begin with it; once notices come."""
        with self._lock:
            # Only now: what is told from here on comes as a notice, too, and nothing in between is missed.
            denies_join, remotes = self._announced()
            self._denies_join |= denies_join
            for number, remote in remotes.items():
                self._note_announced(number, remote)
            self._synchronise()
            self._begin()
            self._plan()

    def replace(self, manager: PathManager | None) -> None:
        """Another path manager takes over; it hears of what there is as of a connection just established."""
        with self._lock:
            self._manager = None
            self._synchronise()  # the new one is to see, and to be able to close, what has just been established
            self._manager = manager
            self._pending.clear()
            self._started = False
            self._begin()
            self._plan()

    def note_closed(self, local: Endpoint, remote: Endpoint, reason: str = "local") -> None:
        """The program itself is about to close this subflow: no failure, and not to be opened again."""
        self._reasons[local, remote] = reason

    def note_remote(self, remote: Endpoint) -> None:
        """The program knows another address of the peer."""
        with self._lock:
            if remote not in self._remotes.values() and len(self._remotes) < MAX_REMOTES:
                self._remotes[-1 - len(self._remotes)] = remote
                self._ask(lambda manager, facts: manager.on_remote_address(facts, remote))
            self._plan()

    def note_local(self, addresses: Iterable[bytes], available: bool) -> None:
        """The program allows these addresses of the host to the connection, or takes them away (and leaves them itself)."""
        with self._lock:
            self._synchronise()  # what has just been closed there is no path any more
            for address in addresses:
                self._ask(partial(_on_local_address, address, available))
            self._plan()

    def work(self) -> None:
        with self._lock:
            while self.inbox:
                notice = self.inbox.popleft()
                if not self.is_over:
                    self._handle(notice)
            self._plan()

    def turn(self, now: int) -> None:
        """Timers, what has to be tried again, and a look at how the subflows are doing."""
        with self._lock:
            if self.is_over:
                return
            if self._expected:
                for ends, path in list(self._paths.items()):
                    if not path.is_open and path.lost_at <= now:
                        self._closed(ends, "timeout")
            if self._manager is not None and self._manager.deadline() <= now:
                self._ask(lambda manager, facts: manager.on_timer(facts))
            if self._look_at <= now:
                self._look(now)
            if self._retry_at <= now:
                self._retry(now)
            self._plan()

    # --- notices -------------------------------------------------------------------------------------------------------
    def _handle(self, notice: Notice) -> None:
        match notice:
            case PmEvent():
                self._handle_event(notice)
            case AddressChange():
                self._handle_address(notice.local.address, notice.available)
            case Overflow() | PollTurn():
                self._synchronise()
            case ResetsCounted():
                self._synchronise(confirming=True)
            case HungUp():
                self.is_over = True

    def _handle_event(self, event: PmEvent) -> None:
        local, remote = event.local, event.remote
        match event.kind:
            case PmEventKind.ESTABLISHED:
                self._denies_join = bool(event.flags & FLAG_DENY_JOIN_ID0)
                self._opened((self.local, self.remote), False)
                self._begin()
            case PmEventKind.SUBFLOW_ESTABLISHED if local is not None and remote is not None:
                self._opened((local, remote), event.backup)
                # A join that succeeded shows that the connection is fully established.
                self._retry_at = min(self._retry_at, now_us() + self._head_start_us) if self._pending else NEVER
            case PmEventKind.SUBFLOW_CLOSED if local is not None and remote is not None:
                reason = "peer" if event.error == 0 else close_reason(event)
                self._closed((local, remote), self._reasons.pop((local, remote), reason))
            case PmEventKind.SUBFLOW_PRIORITY if local is not None and remote is not None:
                path = self._find((local, remote))
                if path is not None:
                    path.info.backup = event.backup
            case PmEventKind.ANNOUNCED if remote is not None:
                self._note_announced(
                    event.remote_id, remote if remote.port else Endpoint(remote.address, self.remote.port)
                )
            case PmEventKind.REMOVED:
                self._remotes.pop(event.remote_id, None)
            case PmEventKind.CLOSED:
                self.is_over = True

    def _note_announced(self, number: int, remote: Endpoint) -> None:
        if number not in self._remotes and len(self._remotes) >= MAX_REMOTES:
            return
        self._remotes[number] = remote
        if self._started:  # or it hears of them with all the rest
            self._ask(lambda manager, facts: manager.on_remote_address(facts, remote))

    def _handle_address(self, address: bytes, available: bool) -> None:
        if not available:
            # The kernel takes no notice of an address that goes: what started there cannot work any more, and the peer has
            # to hear of it (RFC 8684 §3.4.2). REMOVE_ADDR first: it also closes what the kernel knows to be from there, and
            # the acknowledgement that carries it must not leave by a subflow that is about to be reset.
            gone = [ends for ends in self._paths if ends[0].address == address]
            if gone:
                self._reasons.update(dict.fromkeys(gone, "address-removed"))
                self._attempt(partial(self._steering.withdraw, address))
            for ends in gone:
                self._attempt(partial(self._steering.close_subflow, *ends, True, "address-removed"), *_GONE)
        self._ask(partial(_on_local_address, address, available))

    def _opened(self, ends: tuple[Endpoint, Endpoint], backup: bool) -> None:
        path = self._find(ends)
        if path is None:
            path = self._add(ends, backup)
        elif path.is_open:
            return
        path.is_open = True
        self._expected -= 1
        # Of the B flags, the event has the peer's; that of our own SYN is in the path already.
        path.info.backup = path.info.backup or backup
        if self._started:
            self._ask(lambda manager, facts: manager.on_subflow_established(facts, *ends))

    def _closed(self, ends: tuple[Endpoint, Endpoint], reason: str) -> None:
        path = self._find(ends)
        if path is None:
            return
        del self._paths[path.info.local, path.info.remote]
        self._expected -= not path.is_open
        self._ask(lambda manager, facts: manager.on_subflow_closed(facts, *ends, reason))

    def _find(self, ends: tuple[Endpoint, Endpoint]) -> _Path | None:
        """The path with these ends; an expected one whose local port nobody knew gets it."""
        path = self._paths.get(ends)
        if path is None:
            expected = (Endpoint(ends[0].address, 0), ends[1])
            path = self._paths.pop(expected, None)
            if path is not None:
                path.info.local = ends[0]
                self._paths[ends] = path
                if path.copies > 1:
                    rest = self._add(expected, path.info.backup)
                    rest.copies, rest.is_wished = path.copies - 1, True
                    path.copies = 1
        return path

    def _add(self, ends: tuple[Endpoint, Endpoint], backup: bool) -> _Path:
        info = PathInfo(self._number(), *ends, backup)
        path = self._paths[ends] = _Path(info, False, now_us() + CONNECT_TIMEOUT_US)
        self._expected += 1
        return path

    def _number(self) -> int:
        number = self._next_id
        self._next_id += 1
        return number

    def _synchronise(self, *, confirming: bool = False) -> None:
        """Compares with what the kernel lists now. ``confirming``: what is missing counts as closed at the second time."""
        try:
            full = self._steering.read()
        except OSError as error:
            self._end(error)
            return
        there = {(entry.local, entry.remote) for entry in full.subflows if entry.tcp.state == ESTABLISHED}
        if not confirming:
            for ends in there:
                self._opened(ends, False)
        missing = {ends for ends, path in self._paths.items() if path.is_open and ends not in there}
        gone = missing & self._missing if confirming else missing
        self._missing = missing - gone
        for ends in gone:
            self._closed(ends, self._reasons.pop(ends, "unknown"))

    def _end(self, error: OSError) -> None:
        """There is nothing more to manage."""
        self.is_over = True
        if error.errno == errno.EOPNOTSUPP:
            self._report("it fell back to TCP: no further subflows")

    # --- the path manager ------------------------------------------------------------------------------------------------
    def _begin(self) -> None:
        if not self._started and not self.is_over and self._paths:
            self._started = True
            self._ask(lambda manager, facts: manager.on_established(facts))

    def _ask(self, question: Callable[[PathManager, Facts], Sequence[Action]]) -> None:
        """Puts a question to the manager, and does what it answers."""
        if self._manager is None or self.is_over:
            return
        for action in question(self._manager, self._facts())[:MAX_ACTIONS]:
            self._wish(action)

    def _facts(self) -> Facts:
        remotes = [] if self._denies_join else [self.remote]
        remotes += [endpoint for endpoint in self._remotes.values() if endpoint not in remotes]
        return Facts(
            self.is_client,
            [address for address in self._steering.local_addresses() if not is_special(address)],
            [endpoint for endpoint in remotes if not is_special(endpoint.address)],
            self.local,
            self.remote,
            [
                *(path.info for path in self._paths.values()),
                *(wish.info for wish in self._pending if wish.info is not None),
            ],
            now_us(),
        )

    def _carry_out(self, wish: _Wish) -> bool:
        """Whether it was done here and now."""
        action = wish.action
        try:
            if isinstance(action, OpenSubflow) and self._is_fulfilled(wish, action):
                self._report(f"{_sentence(action)}: somebody else does")
            else:
                self._do(action)
                return True
        except OSError as error:
            # Before data has gone both ways the kernel opens nothing; and what an address family or a port forbids it
            # will never do. The manager hears of what happens as facts.
            if error.errno == errno.EAGAIN and len(self._pending) < MAX_PENDING:
                self._later(wish, RETRY_US)
                return False
            self.failed_actions += 1
            self._report(f"{_sentence(action)} failed: {error.strerror or error}")
        return False

    def _wish(self, action: Action) -> None:
        info = None
        if isinstance(action, OpenSubflow):
            info = PathInfo(self._number(), action.local, action.remote, action.backup)
        wish = _Wish(action, frozenset(path.info.id for path in self._paths.values()), info)
        if self._head_start_us and isinstance(action, OpenSubflow) and len(self._pending) < MAX_PENDING:
            self._later(wish, self._head_start_us)
        else:
            self._carry_out(wish)

    def _later(self, wish: _Wish, delay_us: int) -> None:
        self._pending.append(wish)
        if self._retry_at == NEVER:
            self._tries = 0
            self._retry_at = now_us() + delay_us

    def _is_fulfilled(self, wish: _Wish, action: OpenSubflow) -> bool:
        """Somebody else has opened a subflow between these addresses since it was wished for. OSError: it is over."""
        if action.local.port:
            return False
        between = {
            ends: path for ends, path in self._paths.items() if _is_between(ends, action.local.address, action.remote)
        }
        path = next((p for p in between.values() if p.info.id not in wish.known and not p.is_wished), None)
        if path is None:
            listed = [
                (entry.local, entry.remote)
                for entry in self._steering.read(fresh=True).subflows
                if entry.tcp.state in SUBFLOW_STATES
                and _is_between((entry.local, entry.remote), action.local.address, action.remote)
            ]
            if len(listed) <= sum(path.copies for path in between.values()):
                return False
            unknown = next(ends for ends in listed if ends not in between)
            path = self._add(unknown, action.backup)
        path.is_wished = True
        return True

    def _do(self, action: Action) -> None:
        steering = self._steering
        match action:
            case OpenSubflow(local, remote, backup):
                steering.open_subflow(local, remote, backup)
                path = self._find((local, remote))
                if path is None:
                    path = self._add((local, remote), backup)
                else:
                    path.copies += 1
                path.is_wished = True
            case CloseSubflow(subflow_id, reset):
                ends = self._ends(subflow_id)
                self._reasons[ends] = "local"
                steering.close_subflow(*ends, reset, "local")
            case AnnounceAddress(local):
                steering.announce(local)
            case WithdrawAddress(address):
                steering.withdraw(address)
            case SetBackup(subflow_id, backup):
                ends = self._ends(subflow_id)
                steering.set_backup(*ends, backup)
                self._paths[ends].info.backup = backup
        self._report(f"{_sentence(action)}")

    def _ends(self, subflow_id: int) -> tuple[Endpoint, Endpoint]:
        for ends, path in self._paths.items():
            if path.info.id == subflow_id:
                return ends
        raise OSError(errno.ENOENT, f"no subflow has the number {subflow_id}")

    def _attempt(self, action: Callable[[], None], *expected: int) -> None:
        """Errors whose numbers are ``expected`` mean that it has been done already."""
        try:
            action()
        except OSError as error:
            if error.errno in expected:
                return
            self.failed_actions += 1
            self._report(f"failed: {error.strerror or error}")

    def _report(self, line: str) -> None:
        if self.on_report is not None:
            self.on_report(line)

    # --- time ------------------------------------------------------------------------------------------------------------
    def _retry(self, now: int) -> None:
        pending, self._pending = self._pending, []
        self._tries += 1
        self._retry_at = now + (RETRY_US << self._tries) if self._tries < MAX_RETRIES else NEVER - 1
        for number, wish in enumerate(pending, 1):
            done = self._carry_out(wish)
            if done and self._head_start_us and isinstance(wish.action, OpenSubflow) and not self._pending:
                # One at a time: what has just been opened may be what the program has been waiting for, too.
                self._pending = pending[number:]
                self._tries, self._retry_at = 0, now + self._head_start_us
                break
        if not self._pending:
            self._retry_at = NEVER

    def _look(self, now: int) -> None:
        """How the subflows are doing, and whether data has moved."""
        interval = DATA_INTERVAL_US
        try:
            moved = self._steering.position()
            if self._watchdog is not None:
                if moved[1]:
                    self._obey(self._watchdog.judge(self._steering.read(), now))
                else:
                    self._watchdog.rest()
                interval = self._watchdog.interval_us
        except OSError as error:
            self._end(error)
            return
        if moved != self._moved:
            self._moved = moved
            if self._pending:
                self._retry_at = min(self._retry_at, now + self._head_start_us)
        manager = self._manager
        if manager is not None and manager.watches_data:
            interval = min(interval, DATA_INTERVAL_US)
            if manager.is_needed(moved[0], moved[1], now):
                self._ask(lambda manager, facts: manager.on_needed(facts))
        self._look_at = now + interval
        if interval >= GRID_US:
            self._look_at -= self._look_at % GRID_US

    def _obey(self, verdicts: Sequence[Verdict]) -> None:
        for verdict in verdicts:
            ends = (verdict.local, verdict.remote)
            path = self._find(ends)
            match verdict:
                case Failing(_, _, timeouts) if path is not None:
                    self._ask(partial(_on_failing, path.info.id, timeouts))
                case Reset() if path is not None:
                    self._reasons[ends] = "timeout"
                    self._attempt(partial(self._steering.close_subflow, *ends, True, "timeout"), *_GONE)
                    self._report(f"reset the subflow from {ends[0]} to {ends[1]}: it timed out, another one works")
                case OpenFresh() if self.is_client:  # nobody listens where the peer has connected from
                    self._attempt(partial(self._open_beside, *ends))

    def _open_beside(self, local: Endpoint, remote: Endpoint) -> None:
        # On a path that the user wants to be a backup, the fresh subflow is one, too.
        backup = self._steering.is_backup(local, remote)
        self._wish(OpenSubflow(Endpoint(local.address, 0), remote, backup))

    def _plan(self) -> None:
        """When the next ``turn`` is due."""
        if self.is_over:
            self.next_us = NEVER
            return
        due = self._retry_at
        if self._manager is not None:
            due = min(due, self._manager.deadline())
        if self._watchdog is not None or self._pending or (self._manager is not None and self._manager.watches_data):
            due = min(due, self._look_at)
        if self._expected:
            due = min([due, *(path.lost_at for path in self._paths.values() if not path.is_open)])
        sooner = due < self.next_us
        self.next_us = due
        if sooner and self.on_sooner is not None:
            self.on_sooner()


def _is_between(ends: tuple[Endpoint, Endpoint], local: bytes, remote: Endpoint) -> bool:
    return ends[0].address == local and ends[1] == remote


def _on_failing(subflow_id: int, timeouts: int, manager: PathManager, facts: Facts) -> Sequence[Action]:
    return manager.on_subflow_failing(facts, subflow_id, timeouts)


def _on_local_address(address: bytes, available: bool, manager: PathManager, facts: Facts) -> Sequence[Action]:
    return manager.on_local_address(facts, address, available)


def _sentence(action: Action) -> str:
    match action:
        case OpenSubflow(local, remote, backup):
            return f"opening a {'backup ' if backup else ''}subflow from {local.host} to {remote}"
        case CloseSubflow(subflow_id):
            return f"closing subflow {subflow_id}"
        case AnnounceAddress(local):
            return f"announcing {local.host}"
        case WithdrawAddress(address):
            return f"withdrawing {Endpoint(address).host}"
        case SetBackup(subflow_id, backup):
            return f"subflow {subflow_id} {'is a backup' if backup else 'is no backup any more'}"
