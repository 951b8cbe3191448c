"""Profiles: what an application needs of its transport, in one word (RFC 6897 Appendix A.2 and A.3, REQ8 to REQ10).

A profile is a set of strategies for the connection it is given to. It rules what this end sends; of what the peer sends it
changes what subflows and priorities (MP_PRIO) change: where they are, and which are for emergencies.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mptcp.core.congestion.base import CongestionFactory
from mptcp.core.multipath.config import ConnectionConfig
from mptcp.core.path_managers.base import PathManager
from mptcp.core.path_managers.fullmesh import FullMesh
from mptcp.core.path_managers.none import NoSubflows
from mptcp.core.path_managers.on_demand import AFTER_BYTES, OnDemand
from mptcp.core.schedulers.base import Redundancy, Scheduler
from mptcp.core.schedulers.earliest_completion import EarliestCompletion
from mptcp.core.schedulers.lowest_rtt import LowestRtt
from mptcp.core.schedulers.overflow import Overflow
from mptcp.core.schedulers.steady import Steady
from mptcp.core.units import KIB, MIB, MILLISECOND, NEVER, SECOND
from mptcp.errors import ConfigurationError
from mptcp.info import Support

#: What is through before a further subflow could be of use (REQ9): octets, and seconds.
SHORT_BYTES = 64 * KIB
SHORT_SECONDS = 1.0
#: From here on every path helps, and they are opened at once.
LONG_BYTES = 1 * MIB
LONG_SECONDS = 10.0
#: A rate that any path carries: a second one would be for emergencies only.
LOW_RATE_BPS = 128_000
#: Buffers for a rate that is known hold what is sent in this time.
BUFFERED_US = 500 * MILLISECOND
#: The "overflow" profile opens its second path when data has waited for so long without a break.
SATURATED_US = 200 * MILLISECOND


@dataclass(frozen=True, slots=True)
class Expectation:
    """What the application knows of its traffic in advance (REQ9); None: nothing. Octets it will send or receive in all,
    seconds the connection will last, bits per second it will offer."""

    bytes: int | None = None
    seconds: float | None = None
    rate_bps: int | None = None

    def __post_init__(self) -> None:
        for value in (self.bytes, self.seconds, self.rate_bps):
            if value is not None and value < 0:
                raise ConfigurationError("what is expected cannot be negative")

    @property
    def is_short(self) -> bool:
        """Over before another subflow would be there; the octets say more than the seconds."""
        if self.bytes is not None:
            return self.bytes <= SHORT_BYTES
        return self.seconds is not None and self.seconds <= SHORT_SECONDS

    @property
    def is_long(self) -> bool:
        if self.bytes is not None:
            return self.bytes >= LONG_BYTES
        if self.seconds is not None and self.seconds < LONG_SECONDS:
            return False
        if self.rate_bps is not None:
            return self.rate_bps * (self.seconds if self.seconds is not None else LONG_SECONDS) / 8 >= LONG_BYTES
        return self.seconds is not None


NOTHING = Expectation()


@dataclass(frozen=True, slots=True)
class Setup:
    """When further subflows are set up (REQ10). ``after_bytes``, ``after_us``, ``saturated_us``: as in
    ``core.path_managers.on_demand``; without any of them at once. ``held``: not before one of these, or a failure.
    ``never``: only those that are asked for one by one."""

    never: bool = False
    held: bool = False
    after_bytes: int = NEVER
    after_us: int = NEVER
    saturated_us: int = NEVER

    @property
    def at_once(self) -> bool:
        return not self.never and not self.held and self.after_bytes == self.after_us == self.saturated_us == NEVER

    def wrap(self, make: Callable[[], PathManager]) -> Callable[[], PathManager]:
        """The path manager that ``make`` makes, at the right time."""
        if self.never:
            return NoSubflows
        if self.at_once:
            return make
        return lambda: OnDemand(
            make(), after_bytes=self.after_bytes, after_us=self.after_us, saturated_us=self.saturated_us
        )


AT_ONCE = Setup()
NEVER_SET_UP = Setup(never=True)
#: "wait until there is a bunch of data"
AFTER_DATA = Setup(after_bytes=AFTER_BYTES)
#: When the path there is is not enough; what is received shows that only by its amount.
WHEN_SATURATED = Setup(saturated_us=SATURATED_US, after_bytes=LONG_BYTES)
#: Nothing but the loss of the only subflow is demand.
WHEN_FAILED = Setup(held=True)

SETUPS: dict[str, Setup] = {
    "at-once": AT_ONCE,
    "after-data": AFTER_DATA,
    "on-demand": WHEN_SATURATED,
    "when-failed": WHEN_FAILED,
    "never": NEVER_SET_UP,
}


@dataclass(frozen=True, slots=True)
class Profile:
    """What a profile sets. None and 0: left as it is."""

    name: str
    purpose: str
    scheduler: Callable[[], Scheduler]
    setup: Setup = AT_ONCE
    standby: bool = False  # further subflows are backups
    redundancy: Redundancy = Redundancy.NONE
    congestion: CongestionFactory | None = None
    no_delay: bool | None = None
    send_buffer_bytes: int = 0
    receive_buffer_max_bytes: int = 0

    def apply(
        self, config: ConnectionConfig, expected: Expectation = NOTHING, setup: Setup | None = None
    ) -> ConnectionConfig:
        """``config`` with this profile; ``setup`` overrules when subflows are set up, and then nothing is guessed from what
        is expected."""
        scheduler, standby, when = self.scheduler, self.standby, setup or self._setup(expected)
        tcp: dict[str, Any] = {}
        if self.congestion is not None:
            tcp["congestion"] = self.congestion
        if self.no_delay is not None:
            tcp["no_delay"] = self.no_delay
        if self.send_buffer_bytes:
            tcp["send_buffer_bytes"] = self.send_buffer_bytes
        if self.receive_buffer_max_bytes:
            tcp["receive_buffer_max_bytes"] = max(self.receive_buffer_max_bytes, config.tcp.receive_buffer_bytes)
        rate = expected.rate_bps
        if rate is not None:
            # What the application offers in half a second is more than it can have under way.
            held = max(config.tcp.receive_buffer_bytes, rate * BUFFERED_US // (8 * SECOND))
            tcp["receive_buffer_max_bytes"] = max(config.tcp.receive_buffer_max_bytes, held)
            tcp["send_buffer_bytes"] = max(tcp.get("send_buffer_bytes", config.tcp.send_buffer_bytes), held)
            if self.scheduler is Steady and rate > LOW_RATE_BPS:
                scheduler, standby = (lambda: Steady(rate)), False
        limit, backups = config.max_subflows, standby
        return config.changed(
            scheduler=scheduler,
            path_manager=when.wrap(lambda: FullMesh(limit, standby=backups)),
            redundancy=self.redundancy,
            tcp=config.tcp.changed(**tcp) if tcp else config.tcp,
        )

    def _setup(self, expected: Expectation) -> Setup:
        if self.redundancy is Redundancy.ALL or self.standby:
            return self.setup  # the further paths are not there for what they carry
        if expected.is_short or (expected.rate_bps is not None and expected.rate_bps <= LOW_RATE_BPS):
            return WHEN_FAILED
        return AT_ONCE if expected.is_long else self.setup


BULK = Profile("bulk", "as much as all paths together give", LowestRtt)
LATENCY = Profile(
    "latency",
    "small messages soon: nothing waits for a slow path, or for the rest of a segment",
    EarliestCompletion,
    redundancy=Redundancy.ON_RETRANSMISSION,
    no_delay=True,
    send_buffer_bytes=256 * KIB,  # what waits there is late already
)
STEADY = Profile(
    "steady",
    "a bandwidth that does not jump when paths come and go: one path, the others in reserve",
    Steady,
    standby=True,
)
RELIABLE = Profile(
    "reliable",
    "everything over every path: no stall when one fails",
    LowestRtt,
    redundancy=Redundancy.ALL,
    no_delay=True,
)
HOT_STANDBY = Profile(
    "hot-standby", "one path; a second one is established, idle, and takes over", LowestRtt, standby=True
)
OVERFLOW = Profile("overflow", "the first path; others only for what it cannot carry", Overflow, setup=WHEN_SATURATED)

#: The names of iOS (``URLSessionConfiguration.MultipathServiceType``) and what they mean here.
ALIASES = {"handover": "hot-standby", "interactive": "latency", "aggregate": "bulk"}

PROFILES: dict[str, Profile] = {
    profile.name: profile for profile in (BULK, LATENCY, STEADY, RELIABLE, HOT_STANDBY, OVERFLOW)
}


def profile_known(name: str) -> Support:
    """Whether a profile, or one of Apple's names, is called so."""
    key = ALIASES.get(name, name)
    if key in PROFILES:
        return Support(True)
    return Support(False, f"no profile is called {name!r}", f"one of {', '.join([*PROFILES, *ALIASES])}")


def profile_named(name: str) -> Profile:
    """By its name or Apple's; blanks and underscores are as good as hyphens. ConfigurationError: there is none."""
    key = name.strip().lower().replace(" ", "-").replace("_", "-")
    found = PROFILES.get(ALIASES.get(key, key))
    if found is None:
        raise ConfigurationError(f"no profile is called {name!r}: there are {', '.join([*PROFILES, *ALIASES])}")
    return found


def setup_named(when: str | Setup) -> Setup:
    if isinstance(when, Setup):
        return when
    found = SETUPS.get(when.strip().lower().replace(" ", "-").replace("_", "-"))
    if found is None:
        raise ConfigurationError(f"no time to set up subflows is called {when!r}: there are {', '.join(SETUPS)}")
    return found
