"""A path manager for every MPTCP connection of a namespace, whosever it is: what ``mptcp pm`` runs.

Connections that the in-kernel path manager has keep it: those are only watched (a dead subflow of theirs can be reset).
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterator
from functools import partial
from typing import Final

from mptcp.core.path_managers.base import PathManager
from mptcp.core.units import MILLISECOND
from mptcp.errors import NotSupportedError
from mptcp.info import Endpoint
from mptcp.kernel import features
from mptcp.kernel.addresses import AddressChange
from mptcp.kernel.connection_events import Announced
from mptcp.kernel.control import DirectControl
from mptcp.kernel.diag import Diag
from mptcp.kernel.layout import ESTABLISHED, LISTEN
from mptcp.kernel.managing import ManagedConnection
from mptcp.kernel.monitor import Monitor, Notice, Overflow, Subscriber
from mptcp.kernel.namespace import NetNamespace
from mptcp.kernel.path_manager import PathManagerNetlink
from mptcp.kernel.pm_events import FLAG_DENY_JOIN_ID0, PmEvent, PmEventKind
from mptcp.kernel.steering import SNAPSHOT_AGE_US, Snapshot, TokenSteering
from mptcp.kernel.turns import Managing
from mptcp.kernel.watchdog import FailurePolicy

#: As many connections are managed at a time; those beyond are left alone, and that is said.
MAX_CONNECTIONS: Final = 16384
#: A program that manages its connection itself opens subflows first, and what it opens is seen by then.
HEAD_START_US: Final = SNAPSHOT_AGE_US + 15 * MILLISECOND


class PathManagerService(Subscriber):
    """``factory`` makes the path manager of each connection (None: only the watchdog), ``policy`` the watchdog's (None:
    only the path manager). ``addresses``: those to use (none: all of the host). ``report`` hears what is done.

    OSError EPERM without CAP_NET_ADMIN. Ends with ``close``.
    """

    def __init__(
        self,
        namespace: NetNamespace,
        factory: Callable[[], PathManager] | None,
        policy: FailurePolicy | None,
        *,
        addresses: Collection[bytes] = (),
        report: Callable[[str], None] | None = None,
    ) -> None:
        self.inbox: deque[Notice] = deque()
        self._factory, self._policy, self._report = factory, policy, report
        self._addresses = frozenset(addresses)
        self._connections: dict[int, ManagedConnection] = {}
        self._lock = threading.Lock()
        self._full = False
        self._control = DirectControl(namespace)
        self._control.event_source().close()  # PermissionError here and now, not as a monitor that polls
        self._commands = PathManagerNetlink(namespace)
        self._diag = Diag(namespace)
        self._snapshot = Snapshot(self._diag)
        self._monitor = Monitor(namespace, self._control)
        self._managing = Managing(self._monitor)
        self._monitor.subscribe_all(self)
        with self._lock:
            self._find_connections()

    def __len__(self) -> int:
        return len(self._connections)

    def close(self) -> None:
        """The connections stay as they are; nobody manages them any more."""
        self._monitor.close()
        for token in list(self._connections):
            self._let_go(token)
        self._commands.close()
        self._diag.close()
        self._control.close()

    # --- notices -------------------------------------------------------------------------------------------------------
    def work(self) -> None:
        with self._lock:
            self._work()

    # --- inside, with the lock -----------------------------------------------------------------------------------------
    def _work(self) -> None:
        while True:
            try:
                notice = self.inbox.popleft()
            except IndexError:
                return
            match notice:
                case PmEvent(kind=PmEventKind.ESTABLISHED, local=Endpoint() as local, remote=Endpoint() as remote):
                    denied = bool(notice.flags & FLAG_DENY_JOIN_ID0)
                    self._take(notice.token, local, remote, not notice.server_side, denied)
                case PmEvent(kind=PmEventKind.CLOSED):
                    self._let_go(notice.token)
                case AddressChange():
                    for connection in list(self._connections.values()):
                        connection.inbox.append(notice)
                        connection.work()
                case Overflow():
                    self._find_connections()
                case _:
                    pass

    def _find_connections(self) -> None:
        """Those that were there before anybody listened: who opened them shows in where somebody listens."""
        sockets = self._diag.mptcp_sockets()
        listening = {sock.local.port for sock in sockets if sock.state == LISTEN}
        there = {}
        for sock in sockets:
            if sock.state == ESTABLISHED and sock.info is not None and sock.info.token and not sock.info.fell_back:
                there[sock.info.token] = sock
        for token in [token for token in self._connections if token not in there]:
            self._let_go(token)
        for token, sock in there.items():
            self._take(token, sock.local, sock.remote, sock.local.port not in listening, False)

    def _take(self, token: int, local: Endpoint, remote: Endpoint, is_client: bool, denied: bool) -> None:
        if token in self._connections or _is_loopback(local.address):
            return
        if len(self._connections) >= MAX_CONNECTIONS:
            if not self._full:
                self._say(f"{MAX_CONNECTIONS} connections are managed; the others are left alone")
            self._full = True
            return
        self._full = False
        size = len(local.address)

        def usable() -> list[bytes]:
            # A socket of one family takes no subflow of the other, and whether this is one only its owner can see.
            found = [here.address for here in self._monitor.local_addresses() if len(here.address) == size]
            return [address for address in found if not self._addresses or address in self._addresses]

        manager = self._factory() if self._factory is not None else None
        try:
            steering = TokenSteering(token, local, self._commands, self._snapshot, usable)
        except NotSupportedError:
            manager = None  # the in-kernel path manager has it
            steering = TokenSteering(token, local, self._commands, self._snapshot, usable, steered=False)
        except OSError:
            return  # it is over already
        if manager is None and self._policy is None:
            return
        managed = ManagedConnection(
            steering, manager, self._policy, is_client=is_client, local=local, remote=remote,
            announced=partial(Announced, denied), head_start_us=HEAD_START_US,
        )  # fmt: skip
        name = f"{token:08x}"
        managed.on_report = lambda line: self._say(f"{name}: {line}")
        self._connections[token] = managed
        how = f"manager {manager.name}" if manager is not None else "the kernel's path manager, watched"
        self._say(f"{name}: {local} {'>' if is_client else '<'} {remote}, {how}")
        self._managing.add(managed, token)

    def _let_go(self, token: int) -> None:
        managed = self._connections.pop(token, None)
        if managed is not None:
            self._managing.remove(managed, token)
            self._say(f"{token:08x}: closed")

    def _say(self, line: str) -> None:
        if self._report is not None:
            self._report(line)


def _is_loopback(address: bytes) -> bool:
    return address[0] == 127 if len(address) == 4 else address == bytes(15) + b"\1"


@contextlib.contextmanager
def user_space_manager(namespace: NetNamespace) -> Iterator[bool]:
    """Within the block new connections of the namespace get the user-space path manager; whether that had to be set.

    OSError where it cannot be; afterwards it is as before, unless somebody else has changed it meanwhile.
    """
    before = features.path_manager(namespace)
    if before == features.USER_SPACE_MANAGER:
        yield False
        return
    features.set_path_manager(namespace, features.USER_SPACE_MANAGER)
    try:
        yield True
    finally:
        if features.path_manager(namespace) == features.USER_SPACE_MANAGER:
            with contextlib.suppress(OSError):
                features.set_path_manager(namespace, before)
