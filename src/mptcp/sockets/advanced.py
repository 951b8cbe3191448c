"""The advanced API (RFC 6897 Appendix A.3, REQ5 to REQ12): profiles, expectations, strategies, numbers of subflows, usage.

What is set before the connection is kept for it; what is set during it takes effect at once. A connection that fell back
to regular TCP has one path: what needs several fails there with PathError EOPNOTSUPP, and what only prefers is kept.
"""

from __future__ import annotations

import errno
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace

from mptcp.core.multipath import strategy
from mptcp.core.multipath.config import ConnectionConfig
from mptcp.core.path_managers.base import PathManager
from mptcp.core.path_managers.registry import PATH_MANAGERS
from mptcp.core.schedulers.base import Redundancy, Scheduler
from mptcp.core.schedulers.lowest_rtt import LowestRtt
from mptcp.core.schedulers.registry import SCHEDULERS
from mptcp.core.units import NEVER, SECOND
from mptcp.errors import PathError
from mptcp.info import Endpoint, SubflowState
from mptcp.sockets.multipath_options import BasicInterface
from mptcp.sockets.profiles import NOTHING, Expectation, Profile, Setup, profile_named, setup_named


@dataclass(frozen=True, slots=True)
class AdvancedSettings:
    """What a socket was told of its strategies. Shared by all that were told nothing."""

    profile: Profile | None = None
    expected: Expectation = NOTHING
    setup: Setup | None = None
    scheduler: Callable[[], Scheduler] | None = None
    path_manager: Callable[[], PathManager] | None = None
    redundancy: Redundancy | None = None
    wanted: int = 0  # subflows; 0: as the path manager likes

    @property
    def has_strategies(self) -> bool:
        """The program has chosen for itself: no heuristics then."""
        return self != UNTOLD

    def apply(self, config: ConnectionConfig) -> ConnectionConfig:
        """First the profile, then what was set besides it."""
        profile = self.profile
        if profile is None and (self.setup is not None or self.expected != NOTHING):
            profile = Profile("", "", config.scheduler or LowestRtt, redundancy=config.redundancy)
        if profile is not None:
            config = profile.apply(config, self.expected, self.setup)
        changes: dict[str, object] = {}
        if self.scheduler is not None:
            changes["scheduler"] = self.scheduler
        if self.path_manager is not None:
            changes["path_manager"] = self.path_manager
        if self.wanted:
            changes["path_manager"] = strategy.wanted_manager(self.wanted)
        if self.redundancy is not None:
            changes["redundancy"] = self.redundancy
        return config.changed(**changes) if changes else config


UNTOLD = AdvancedSettings()

REDUNDANCIES = {
    "none": Redundancy.NONE, "on-retransmission": Redundancy.ON_RETRANSMISSION, "all": Redundancy.ALL,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class SubflowUsage:
    """What one subflow has carried, and its share of what all that are open have (REQ6); 0 where nothing was carried."""

    id: int
    local: Endpoint
    remote: Endpoint
    state: SubflowState
    bytes_sent: int
    bytes_received: int
    sent_share: float
    received_share: float
    srtt_us: int
    retransmitted_share: float  # of the octets sent here, those that were not sent for the first time
    copied_bytes: int  # sent here although another subflow carries them, too


class AdvancedInterface(BasicInterface):
    """Methods and properties of a socket; OSError EBADF once it is closed."""

    __slots__ = ()

    _advanced: AdvancedSettings

    # --- REQ8: profiles ----------------------------------------------------------------------------------------------
    @property
    def profile(self) -> str:
        """The name of the profile; "" if none was chosen. To set: a name of ``profiles.PROFILES`` or one of Apple's."""
        profile = self._advanced.profile
        return profile.name if profile is not None else ""

    @profile.setter
    def profile(self, name: str | Profile) -> None:
        profile = name if isinstance(name, Profile) else profile_named(name)
        # A profile replaces what was set piece by piece; later pieces change it.
        self._tell(AdvancedSettings(profile, self._advanced.expected, self._advanced.setup))

    # --- REQ9: what is to come ---------------------------------------------------------------------------------------
    def expect(
        self,
        *,
        bytes: int | None = None,  # noqa: A002 what it is in
        seconds: float | None = None,
        rate_bps: int | None = None,
    ) -> None:
        """What the application knows of its traffic: octets in all, seconds, bits per second. Without an explicit setup
        it decides when further subflows are opened; a rate also sizes the buffers, and the steady profile keeps to it."""
        self._tell(replace(self._advanced, expected=Expectation(bytes, seconds, rate_bps)))

    @property
    def expected(self) -> Expectation:
        return self._advanced.expected

    # --- REQ10: when subflows are set up -----------------------------------------------------------------------------
    def set_subflow_setup(
        self, when: str | Setup = "", *, after_bytes: int | None = None, after_seconds: float | None = None
    ) -> None:
        """``when``: "at-once", "after-data" (256 KiB), "on-demand" (the path is saturated), "when-failed", "never"; or
        after so many octets, or seconds, whichever comes first."""
        if when or (after_bytes is None and after_seconds is None):
            setup = setup_named(when or "at-once")
        else:
            if (after_bytes or 0) < 0 or (after_seconds or 0) < 0:
                raise PathError("subflows cannot have been set up in the past")
            setup = Setup(
                after_bytes=NEVER if after_bytes is None else after_bytes,
                after_us=NEVER if after_seconds is None else int(after_seconds * SECOND),
            )
        self._tell(replace(self._advanced, setup=setup, path_manager=None, wanted=0))

    # --- REQ7: how many ----------------------------------------------------------------------------------------------
    @property
    def wanted_subflows(self) -> int:
        """The number that was asked for; 0: none was. To set: subflows are opened or closed until there are as many.

        PathError: EINVAL for a number that cannot be, EOPNOTSUPP after fallback.
        """
        return self._advanced.wanted

    @wanted_subflows.setter
    def wanted_subflows(self, count: int) -> None:
        with self.event_lock:
            self._check_open()
            if self._uses_multipath() is False and count != 1:
                self._check_multipath()
            most = self._most_subflows()
            if not 1 <= count <= most:
                raise PathError(f"the number of subflows must be between 1 and {most}", errno.EINVAL)
        self._tell(replace(self._advanced, wanted=count, path_manager=None))

    # --- REQ11: scheduler, path manager, preferences ------------------------------------------------------------------
    @property
    def scheduler(self) -> str:
        """The name of the scheduler in use, or of the one that will be."""
        with self.event_lock:
            return self._scheduler_name()

    def set_scheduler(self, scheduler: str | Callable[[], Scheduler]) -> None:
        """By name (``core.schedulers.registry``), or whatever makes one: a class, a function. At any time."""
        if isinstance(scheduler, str):
            factory = SCHEDULERS.get(scheduler)
            if factory is None:
                raise PathError(
                    f"no scheduler is called {scheduler!r}: there are {', '.join(SCHEDULERS)}", errno.ENOENT
                )
        else:
            factory = scheduler
        self._tell(replace(self._advanced, scheduler=factory))

    @property
    def path_manager(self) -> str:
        """The name of the path manager in use, or of the one that will be."""
        with self.event_lock:
            return self._path_manager_name()

    def set_path_manager(self, manager: str | Callable[[], PathManager]) -> None:
        """By name (``core.path_managers.registry``), or whatever makes one. It begins with the subflows there are."""
        if isinstance(manager, str):
            factory = PATH_MANAGERS.get(manager)
            if factory is None:
                names = ", ".join(PATH_MANAGERS)
                raise PathError(f"no path manager is called {manager!r}: there are {names}", errno.ENOENT)
        else:
            factory = manager
        self._tell(replace(self._advanced, path_manager=factory, setup=None, wanted=0))

    def set_weight(self, subflow_id: int, weight: int) -> None:
        """A preference: shares of the stream with the scheduler "weighted", the order with "overflow"; 0: only when nothing
        else works, without telling the peer. PathError; NotSupportedError if the scheduler knows no such weight."""
        with self.event_lock:
            self._set_weight(subflow_id, weight)

    # --- REQ12: redundancy -------------------------------------------------------------------------------------------
    @property
    def redundancy(self) -> str:
        """ "none", "on-retransmission" or "all"; the most that the socket, its profile or its scheduler ask for."""
        with self.event_lock:
            level = self._redundancy_level()
            return next(name for name, other in REDUNDANCIES.items() if other is level)

    @redundancy.setter
    def redundancy(self, level: str | Redundancy) -> None:
        if isinstance(level, str):
            found = REDUNDANCIES.get(level)
            if found is None:
                raise PathError(f"no redundancy is called {level!r}: there are {', '.join(REDUNDANCIES)}", errno.EINVAL)
            level = found
        self._tell(replace(self._advanced, redundancy=level))

    # --- REQ6: usage -------------------------------------------------------------------------------------------------
    def usage(self) -> list[SubflowUsage]:
        """What each open subflow has carried. ``info()`` has the sums, and everything else that is counted."""
        infos = self.subflows()
        sent, received = sum(i.bytes_sent for i in infos), sum(i.bytes_received for i in infos)
        return [
            SubflowUsage(
                i.id, i.local, i.remote, i.state, i.bytes_sent, i.bytes_received,
                i.bytes_sent / sent if sent else 0.0,
                i.bytes_received / received if received else 0.0,
                i.srtt_us,
                i.bytes_retransmitted / i.bytes_sent if i.bytes_sent else 0.0,
                i.bytes_copied,
            )
            for i in infos
        ]  # fmt: skip

    # --- what a stack's socket does, with the lock except for the first ------------------------------------------------
    @abstractmethod
    def _tell(self, settings: AdvancedSettings) -> None:
        """They are in force from now on, or nothing is changed: PathError, NotSupportedError."""

    @abstractmethod
    def _most_subflows(self) -> int: ...

    @abstractmethod
    def _scheduler_name(self) -> str: ...

    @abstractmethod
    def _path_manager_name(self) -> str: ...

    @abstractmethod
    def _set_weight(self, subflow_id: int, weight: int) -> None: ...

    @abstractmethod
    def _redundancy_level(self) -> Redundancy: ...
