"""The strategies of a socket of the kernel's stack: which paths there are is ours to say, which one data takes is not.

Linux has one scheduler for a namespace and no redundancy: what asks for another one fails, and says so.
"""

from __future__ import annotations

import errno
import socket as std
import threading
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from mptcp.core.path_managers.base import PathManager
from mptcp.core.path_managers.restore import Restore
from mptcp.core.schedulers.base import Redundancy
from mptcp.errors import NotSupportedError, PathError
from mptcp.info import Endpoint, Support
from mptcp.kernel.connection import KernelConnection
from mptcp.kernel.managing import ManagedConnection
from mptcp.kernel.steering import ConnectionSteering
from mptcp.sockets.advanced import AdvancedInterface, AdvancedSettings
from mptcp.sockets.kernel_addresses import KernelAddresses
from mptcp.sockets.profiles import PROFILES, Profile, profile_named

#: What Linux does of each profile; one that is not here asks for what it lacks.
PROFILES_HERE = {
    "bulk": "a full mesh of subflows; the kernel's scheduler",
    "latency": "TCP_NODELAY and a small send buffer; the kernel's scheduler, no copies on retransmission",
    "steady": "one path, the others established as backups",
    "hot-standby": "one path, the others established as backups",
}

NO_SCHEDULER = (
    "Linux has one scheduler for a whole namespace (net.mptcp.scheduler): the user-space stack has one a connection"
)
NO_REDUNDANCY = "Linux sends nothing over two subflows on purpose: the user-space stack does"
NO_WEIGHTS = "Linux' scheduler knows no weights: use set_backup, or the user-space stack"


def profile_support(name: str) -> Support:
    """What the kernel does of a profile."""
    name = profile_named(name).name
    if name in PROFILES_HERE:
        return Support(True, PROFILES_HERE[name])
    profile = PROFILES[name]
    reason = NO_REDUNDANCY if profile.redundancy is not Redundancy.NONE else NO_SCHEDULER
    return Support(False, f"profile {name!r}: {reason}", "use the user-space stack")


class _Steering(ConnectionSteering):
    """A path manager's subflows come from the ports that the program has named with their addresses.

    The socket is not held: one that its program forgets is closed.
    """

    __slots__ = ("_socket",)

    def __init__(self, sock: KernelStrategies, fd: int, connection: KernelConnection) -> None:
        self._socket = reference = weakref.ref(sock)
        super().__init__(fd, connection, lambda: _usable_addresses(reference))

    def open_subflow(self, local: Endpoint, remote: Endpoint, backup: bool) -> None:
        port, named = self._held()._port_of(local.address) if not local.port else (local.port, True)
        try:
            super().open_subflow(Endpoint(local.address, port), remote, backup)
        except PathError as error:
            if named or error.errno not in (errno.EADDRINUSE, errno.EADDRNOTAVAIL):
                raise
            super().open_subflow(Endpoint(local.address), remote, backup)

    def announce(self, local: Endpoint) -> None:
        port, named = self._held()._port_of(local.address)
        super().announce(Endpoint(local.address, local.port or (port if named else 0)))

    def _check(self) -> None:
        self._held()
        super()._check()

    def _held(self) -> KernelStrategies:
        sock = self._socket()
        if sock is None:
            raise PathError("the connection is over", errno.ENOTCONN)
        return sock


def _usable_addresses(reference: weakref.ref[KernelStrategies]) -> Sequence[bytes]:
    sock = reference()
    return sock._usable_addresses() if sock is not None else ()


class KernelStrategies(AdvancedInterface, KernelAddresses):
    """Profiles and path managers as far as subflows and options are enough for them."""

    __slots__ = ()

    _accepted: bool
    _lock: threading.RLock

    if TYPE_CHECKING:

        def setsockopt(self, level: int, optname: int, value: Any, optlen: Any = None) -> None: ...

    # --- inside, with the lock except for the first ------------------------------------------------------------------
    def _tell(self, settings: AdvancedSettings) -> None:
        with self.event_lock:
            self._check_open()
            before = self._advanced
            if settings.scheduler is not None:
                raise NotSupportedError(NO_SCHEDULER)
            if settings.redundancy not in (None, Redundancy.NONE):
                raise NotSupportedError(NO_REDUNDANCY)
            profile = settings.profile
            if profile is not None and not (support := self._profile_support(profile)):
                raise NotSupportedError(support.reason)
            explicit = settings.path_manager, settings.wanted, settings.setup
            if any(explicit) and explicit != (before.path_manager, before.wanted, before.setup):
                self._check_manageable()
            self._advanced = settings
            try:
                self._apply_options(settings, before)
                if self._manager_key(settings) != self._manager_key(before):
                    self._change_manager()
            except BaseException:
                self._advanced = before
                raise

    def _check_manageable(self) -> None:
        """A path manager that could do nothing is not taken. (A profile is: paths are only a part of it.)"""
        connection = self._find_connection()
        if self._stack.multipath and (connection is None or connection.is_multipath):
            self._stack.check_steering("a path manager", "create_subflow", connection)

    def _adopt_profile(self, remote: Endpoint | None) -> None:
        """The policy's for this destination, where the program has chosen nothing. NotSupportedError."""
        if self._advanced.has_strategies:
            return
        policy = self._stack.policy
        rule = policy.rule_for(remote) if remote is not None else None
        name = (rule.profile if rule is not None else "") or policy.profile
        if name:
            self.profile = name

    def _profile_support(self, profile: Profile) -> Support:
        if profile.name in PROFILES:
            return profile_support(profile.name)
        if profile.redundancy is not Redundancy.NONE:
            return Support(False, NO_REDUNDANCY)
        return Support(True)

    def _apply_options(self, settings: AdvancedSettings, before: AdvancedSettings) -> None:
        """TCP's part of a profile, and the buffers for a rate that is known."""
        if settings.profile is before.profile and settings.expected == before.expected:
            return
        old, new = self._config.tcp, settings.apply(self._config).tcp
        if new.no_delay != old.no_delay:
            self.setsockopt(std.IPPROTO_TCP, std.TCP_NODELAY, int(new.no_delay))
        if new.send_buffer_bytes != old.send_buffer_bytes:
            self.setsockopt(std.SOL_SOCKET, std.SO_SNDBUF, new.send_buffer_bytes)
        if new.receive_buffer_max_bytes > old.receive_buffer_max_bytes and settings.expected.rate_bps is not None:
            self.setsockopt(std.SOL_SOCKET, std.SO_RCVBUF, new.receive_buffer_max_bytes)

    def _manager_of(self, settings: AdvancedSettings) -> Callable[[], PathManager] | None:
        """What makes the path manager these settings ask for; None: none, the kernel's or the policy of the stack."""
        return settings.apply(self._config.changed(path_manager=None)).path_manager

    def _manager_key(self, settings: AdvancedSettings) -> object:
        return settings.profile, settings.expected, settings.setup, settings.path_manager, settings.wanted

    @property
    def wants_manager(self) -> bool:
        """A path manager of this package was chosen for the connection."""
        return self._manager_factory() is not None

    def _manager_factory(self) -> Callable[[], PathManager] | None:
        return self._manager_of(self._advanced) or self._config.path_manager

    def _default_manager(self) -> Callable[[], PathManager] | None:
        """Paths are the program's own or the namespace's business: only what is lost is opened again."""
        return Restore if self._stack.looks_after else None

    def _change_manager(self) -> None:
        """The connection, if there is one, gets the path manager of the settings; it begins with what is there."""
        factory = self._manager_factory()
        if self._managed is not None:
            chosen = factory or self._default_manager()
            self._managed.replace(chosen() if chosen is not None else None)
        elif factory is not None and self._find_connection() is not None:
            self._check_multipath()
            self._start_managing()

    def _start_managing(self) -> None:
        """The connection that there is now gets its path manager, if one is wanted and there is none yet."""
        connection, factory = self._connection, self._manager_factory() or self._default_manager()
        if connection is None or factory is None or not connection.token or self._managed is not None:
            return
        managed = ManagedConnection(
            _Steering(self, self.fileno(), connection), factory(), self._stack.failure_policy,
            is_client=not self._accepted, local=connection.initial_local, remote=connection.initial_remote,
            announced=connection.announced, lock=self._lock,
        )  # fmt: skip
        for remote in self._remotes:
            managed.note_remote(remote)
        connection.expect_subflows()
        self._managed = managed
        connection.on_own_close = managed.note_closed
        self._stack.start_managing(managed, connection.token)

    def _port_of(self, address: bytes) -> tuple[int, bool]:
        """The port that subflows from a local address have, and whether ADD has named it (else the bound one, if it is
        free there, or 0: any)."""
        for endpoint in self._settings.listed:
            if endpoint.address == address and endpoint.port:
                return endpoint.port, True
        return (self._bound.port if self._bound is not None else 0), False

    def _stop_managing(self) -> None:
        managed, self._managed = self._managed, None
        if managed is not None and self._connection is not None:
            self._stack.stop_managing(managed, self._connection.token)

    def _tell_manager(self, addresses: Iterable[bytes], available: bool) -> None:
        if self._managed is not None:
            self._managed.note_local(addresses, available)

    def _most_subflows(self) -> int:
        return self._config.max_subflows

    def _scheduler_name(self) -> str:
        return self._stack.scheduler

    def _path_manager_name(self) -> str:
        made = self._manager_factory()
        return made().name if made is not None else self._stack.path_manager

    def _set_weight(self, subflow_id: int, weight: int) -> None:
        raise NotSupportedError(NO_WEIGHTS)

    def _redundancy_level(self) -> Redundancy:
        return Redundancy.NONE
