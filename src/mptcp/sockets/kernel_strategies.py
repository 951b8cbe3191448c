"""The strategies of a socket of the kernel's stack: which paths there are is ours to say, which one data takes is not.

Linux has one scheduler for a namespace and no redundancy: what asks for another one fails, and says so.
"""

from __future__ import annotations

import socket as std
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mptcp.core.path_managers.base import PathManager
from mptcp.core.schedulers.base import Redundancy
from mptcp.errors import NotSupportedError
from mptcp.info import Support
from mptcp.sockets.advanced import AdvancedInterface, AdvancedSettings
from mptcp.sockets.kernel_addresses import KernelAddresses
from mptcp.sockets.profiles import PROFILES, Profile

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
    if name in PROFILES_HERE:
        return Support(True, PROFILES_HERE[name])
    profile = PROFILES[name]
    reason = NO_REDUNDANCY if profile.redundancy is not Redundancy.NONE else NO_SCHEDULER
    return Support(False, f"profile {name!r}: {reason}", "use the user-space stack")


class KernelStrategies(AdvancedInterface, KernelAddresses):
    """Profiles and path managers as far as subflows and options are enough for them."""

    __slots__ = ()

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
            self._advanced = settings
            try:
                self._apply_options(settings, before)
                if self._manager_key(settings) != self._manager_key(before):
                    self._change_manager()
            except BaseException:
                self._advanced = before
                raise

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

    def _wants_manager(self) -> bool:
        """A path manager of this package is to run on the connection."""
        return self._manager_factory() is not None

    def _manager_factory(self) -> Callable[[], PathManager] | None:
        return self._manager_of(self._advanced) or self._config.path_manager

    def _change_manager(self) -> None:
        """The connection, if there is one, gets the path manager of the settings; it begins with what is there."""

    def _tell_manager(self) -> None:
        """What the connection may use has changed."""

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
