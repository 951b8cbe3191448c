"""The local policy (RFC 6897 §4.5): whether MPTCP is used by default, for whom, how, and with which bounds.

It comes from code (``Policy(...)``), a TOML file (``Policy.load(path)``) and the environment (``Policy.from_environment()``:
``MPTCP_POLICY`` names the file, ``MPTCP_ENABLE``, ``MPTCP_PROFILE`` and ``MPTCP_RACE_PLAIN_MS`` overrule it). docs/policy.md has
an example of every key.
"""

from __future__ import annotations

import ipaddress
import os
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from mptcp.core.multipath.config import ConnectionConfig
from mptcp.core.multipath.fallback import FailureCache
from mptcp.core.multipath.special_addresses import Network, is_host_identity
from mptcp.core.schedulers.earliest_completion import EarliestCompletion
from mptcp.core.units import MILLISECOND, NEVER, SECOND
from mptcp.errors import ConfigurationError
from mptcp.info import Endpoint
from mptcp.sockets.legacy import LegacyPolicy
from mptcp.sockets.profiles import profile_named

#: A connect without an answer is raced by one without MPTCP after this. RFC 6555 §5.5 suggests 150 to 250 ms between
#: attempts; a busy server answers later than that, and a race lost for that reason costs the connection its other paths. So:
#: when TCP itself would send its SYN again.
RACE_PLAIN_US = 1000 * MILLISECOND

#: Rules of one policy; each connect looks at all of them.
MAX_RULES = 1024

#: RFC 4584 §5: the kernel marks home addresses; the flag as /proc/net/if_inet6 has it (IFA_F_HOMEADDRESS).
_HOME_ADDRESS_FLAG = 0x10

_TRUE, _FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")


@dataclass(frozen=True, slots=True)
class Rule:
    """For connections to certain destinations. None and "": as the policy says. The first rule that fits is the one."""

    network: str = ""  # "192.0.2.0/24", an address, or "": any
    ports: tuple[int, ...] = ()  # (): any
    enable: bool | None = None
    profile: str = ""
    race_plain_us: int | None = None
    max_subflows: int | None = None
    _network: Network | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.network:
            object.__setattr__(self, "_network", network(self.network))
        if self.profile:
            profile_named(self.profile)
        if any(not 0 < port < 65536 for port in self.ports):
            raise ConfigurationError(f"policy: ports are 1 to 65535, not {self.ports}")
        _check_bounds(self.race_plain_us, self.max_subflows)

    def fits(self, remote: Endpoint) -> bool:
        if self.ports and remote.port not in self.ports:
            return False
        return self._network is None or self._network.covers(remote.address)


@dataclass(frozen=True, slots=True)
class Policy:
    """Times in microseconds. Immutable: ``changed`` gives a changed copy."""

    enable: bool = True  # for programs that have not asked for MPTCP; those that have get it in any case
    profile: str = ""  # what connections get that choose none
    race_plain_us: int = RACE_PLAIN_US  # NEVER: no race
    max_subflows: int | None = None  # None: as the configuration says
    max_remote_addresses: int | None = None
    no_delay_means_latency: bool = True  # RFC 6897 §4.4.2: "MAY use a different path scheduler algorithm"
    failure_first_us: int = 60 * SECOND  # how long a failure of MPTCP is remembered, per destination and interface
    failure_longest_us: int = 3600 * SECOND  # ... at most, doubling with every failure
    exclude: tuple[str, ...] = ()  # networks that are at neither end of further subflows
    detect_home_addresses: bool = True  # Mobile IPv6's, as far as the system marks them
    legacy: LegacyPolicy = field(default_factory=LegacyPolicy)
    rules: tuple[Rule, ...] = ()
    _networks: tuple[Network, ...] = field(default=(), repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.profile:
            profile_named(self.profile)
        if len(self.rules) > MAX_RULES:
            raise ConfigurationError(f"policy: more than {MAX_RULES} rules")
        if not 0 < self.failure_first_us <= self.failure_longest_us:
            raise ConfigurationError("policy: a failure is remembered for some time, and no longer than the longest")
        _check_bounds(self.race_plain_us, self.max_subflows)
        if self.max_remote_addresses is not None and self.max_remote_addresses < 0:
            raise ConfigurationError("policy: max_remote_addresses cannot be negative")
        networks = tuple(network(text) for text in self.exclude)
        if self.detect_home_addresses:
            networks += tuple(Network(address, 128) for address in home_addresses())
        object.__setattr__(self, "_networks", networks)

    def changed(self, **changes: Any) -> Policy:
        return replace(self, **changes)

    # --- where it comes from ----------------------------------------------------------------------------------------
    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Policy:
        """From a TOML file. ConfigurationError says what is wrong with it, and where."""
        try:
            with Path(path).open("rb") as file:
                return cls.from_mapping(tomllib.load(file), str(path))
        except OSError as error:
            raise ConfigurationError(f"policy {path}: {error.strerror}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"policy {path}: {error}") from error

    @classmethod
    def from_mapping(cls, table: Mapping[str, Any], where: str = "the mapping") -> Policy:
        """From what a TOML file says: keys are the names of the fields, times end in ``_ms`` or ``_s``."""
        given = _read(dict(table), _POLICY_KEYS, f"policy {where}")
        legacy = _read(given.pop("legacy", {}), _LEGACY_KEYS, f"policy {where}, legacy")
        if legacy.get("bind", "disable") not in ("disable", "restrict", "ignore"):
            raise ConfigurationError(f"policy {where}, legacy: bind is disable, restrict or ignore")
        rules = []
        for number, entry in enumerate(given.pop("rules", ()), 1):
            place = f"policy {where}, destination {number}"
            if not isinstance(entry, dict):
                raise ConfigurationError(f"{place}: write [[destination]] and its keys")
            rule = _read(entry, _RULE_KEYS, place)
            ports = rule.get("ports", [])
            if any(not isinstance(port, int) or isinstance(port, bool) for port in ports):
                raise ConfigurationError(f"{place}: ports is a list of numbers")
            with _place(place):
                rules.append(Rule(**(rule | {"ports": tuple(ports)})))
        exclude = given.get("exclude", [])
        if any(not isinstance(text, str) for text in exclude):
            raise ConfigurationError(f"policy {where}: exclude is a list of networks")
        with _place(f"policy {where}"):
            return cls(**(given | {"rules": tuple(rules), "exclude": tuple(exclude), "legacy": LegacyPolicy(**legacy)}))

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> Policy:
        """The file that ``MPTCP_POLICY`` names, or the defaults, and what other variables change of it."""
        path = environ.get("MPTCP_POLICY", "")
        policy = cls.load(path) if path else cls()
        changes: dict[str, object] = {}
        enable = environ.get("MPTCP_ENABLE", "").strip().lower()
        if enable:
            if enable not in _TRUE + _FALSE:
                raise ConfigurationError(f"MPTCP_ENABLE={enable}: it is 1 or 0")
            changes["enable"] = enable in _TRUE
        if environ.get("MPTCP_PROFILE"):
            changes["profile"] = environ["MPTCP_PROFILE"]
        race = environ.get("MPTCP_RACE_PLAIN_MS", "").strip()
        if race:
            if not race.isdigit():
                raise ConfigurationError(f"MPTCP_RACE_PLAIN_MS={race}: it is a number of milliseconds; 0: no race")
            changes["race_plain_us"] = int(race) * MILLISECOND or NEVER
        return policy.changed(**changes) if changes else policy

    # --- what it says -----------------------------------------------------------------------------------------------
    def rule_for(self, remote: Endpoint) -> Rule | None:
        return next((rule for rule in self.rules if rule.fits(remote)), None)

    def apply(
        self, config: ConnectionConfig, remote: Endpoint | None, *, aware: bool = False, chosen: bool = False
    ) -> ConnectionConfig:
        """``config`` as it is for a connection to ``remote`` (None: for those a listener accepts).

        ``aware``: the program has asked for MPTCP itself. ``chosen``: it has chosen its strategies itself.
        """
        rule = self.rule_for(remote) if remote is not None else None
        changes: dict[str, object] = {}
        reason = ""
        if config.multipath:
            if rule is not None and rule.enable is not None:
                reason = "" if rule.enable else "the policy turns MPTCP off for this destination"
            elif not self.enable and not aware:
                # RFC 6897 §4.5: "It is up to a local policy at the end system whether a network stack should automatically
                # enable MPTCP for sockets even if there is no explicit sign of MPTCP awareness"
                reason = "the policy turns MPTCP off for programs that do not ask for it"
            if remote is not None and is_host_identity(remote.address):
                # RFC 6897 §6.3: "multiaddressed MPTCP SHOULD NOT be enabled if a network stack uses SHIM6, HIP, or
                # Mobile IPv6."
                reason = "the destination is a host identity of HIP, which has several addresses of its own"
        if reason:
            changes = {"multipath": False, "disabled_reason": reason}
        if self._networks:
            changes["excluded_networks"] = config.excluded_networks + self._networks
        race = rule.race_plain_us if rule is not None and rule.race_plain_us is not None else self.race_plain_us
        if config.race_plain_us == NEVER:
            changes["race_plain_us"] = race
        limit = rule.max_subflows if rule is not None and rule.max_subflows is not None else self.max_subflows
        if limit is not None:
            changes["max_subflows"] = min(limit, config.max_subflows)
        if self.max_remote_addresses is not None:
            changes["max_remote_addresses"] = min(self.max_remote_addresses, config.max_remote_addresses)
        config = config.changed(**changes) if changes else config
        name = (rule.profile if rule is not None else "") or self.profile
        if name and not chosen:
            return profile_named(name).apply(config)
        return config if chosen else self.adapt(config)

    def bound_failures(self, failures: FailureCache) -> None:
        """How long a host's cache remembers that MPTCP did not get through."""
        failures.first_us, failures.longest_us = self.failure_first_us, self.failure_longest_us

    def adapt(self, config: ConnectionConfig) -> ConnectionConfig:
        """What TCP_NODELAY says of an application that has chosen no scheduler."""
        if self.no_delay_means_latency and config.tcp.no_delay and config.scheduler is None:
            # RFC 6897 §4.4.2: "the MPTCP protocol instance MAY use a different path scheduler algorithm if TCP_NODELAY
            # is present."
            return config.changed(scheduler=EarliestCompletion)
        return config


def _check_bounds(race_plain_us: int | None, max_subflows: int | None) -> None:
    if race_plain_us is not None and race_plain_us <= 0:
        raise ConfigurationError("policy: a race begins some time after the first SYN")
    if max_subflows is not None and max_subflows < 1:
        raise ConfigurationError("policy: a connection has at least one subflow")


def network(text: str) -> Network:
    """From "192.0.2.0/24" or an address. ConfigurationError."""
    try:
        parsed = ipaddress.ip_network(text, strict=False)
    except ValueError as error:
        raise ConfigurationError(f"policy: {text!r} is no network: {error}") from error
    return Network(parsed.network_address.packed, parsed.prefixlen)


def home_addresses(path: str = "/proc/net/if_inet6") -> list[bytes]:
    """This system's Mobile IPv6 home addresses, as far as the kernel marks them; none where it cannot be asked."""
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        columns = line.split()
        if len(columns) >= 5 and int(columns[4], 16) & _HOME_ADDRESS_FLAG:
            found.append(bytes.fromhex(columns[0]))
    return found


#: key of the file -> (type, field, unit)
_Keys = dict[str, tuple[type, str, int]]
_RULE_KEYS: _Keys = {
    "network": (str, "network", 1),
    "ports": (list, "ports", 1),
    "enable": (bool, "enable", 1),
    "profile": (str, "profile", 1),
    "race_plain_ms": (int, "race_plain_us", MILLISECOND),
    "max_subflows": (int, "max_subflows", 1),
}
_POLICY_KEYS: _Keys = {
    "enable": (bool, "enable", 1),
    "profile": (str, "profile", 1),
    "race_plain_ms": (int, "race_plain_us", MILLISECOND),
    "max_subflows": (int, "max_subflows", 1),
    "max_remote_addresses": (int, "max_remote_addresses", 1),
    "no_delay_means_latency": (bool, "no_delay_means_latency", 1),
    "failure_first_s": (int, "failure_first_us", SECOND),
    "failure_longest_s": (int, "failure_longest_us", SECOND),
    "exclude": (list, "exclude", 1),
    "detect_home_addresses": (bool, "detect_home_addresses", 1),
    "legacy": (dict, "legacy", 1),
    "destination": (list, "rules", 1),
}
_LEGACY_KEYS: _Keys = {
    "bind": (str, "bind", 1),
    "min_buffer_bytes": (int, "min_buffer_bytes", 1),
    "fate_sharing": (bool, "fate_sharing", 1),
}


@contextmanager
def _place(place: str) -> Iterator[None]:
    """Says where in a file what is wrong stands."""
    try:
        yield
    except ConfigurationError as error:
        raise ConfigurationError(f"{place}: {str(error).removeprefix('policy: ')}") from None


def _read(table: dict[str, Any], keys: _Keys, place: str) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in table.items():
        if key not in keys:
            raise ConfigurationError(f"{place}: there is no key {key!r}; there are {', '.join(keys)}")
        kind, name, unit = keys[key]
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise ConfigurationError(f"{place}: {key} is of type {kind.__name__}, not {type(value).__name__}")
        if kind is int:
            value = cast(int, value) * unit
            if name == "race_plain_us" and not value:
                value = NEVER  # 0: no race
        result[name] = value
    return result
