"""Who may have what done by the broker: a TOML file of rules, of which the first that fits a client counts (docs/broker.md)."""

from __future__ import annotations

import fnmatch
import grp
import ipaddress
import os
import pwd
import re
import stat
import tomllib
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from mptcp.errors import ConfigurationError
from mptcp.kernel.broker.options import OPTIONS, ORDINARY
from mptcp.kernel.broker.protocol import Operation

#: Where the policy is when nothing else is said; without it ``Policy()`` holds.
DEFAULT_PATH: Final = "/etc/mptcp/broker.toml"
MAX_FILE: Final = 64 * 1024
MAX_RULES: Final = 256
#: Entries of one list in the file.
MAX_ENTRIES: Final = 256

#: What a policy's ``allow`` can have; to watch is to have events.
ALLOWABLE: Final = frozenset(Operation) - {Operation.WATCH, Operation.UNWATCH, Operation.SUPPORTS}

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class Peer:
    """A client as the kernel vouches for it (SO_PEERCRED, SO_PEERGROUPS)."""

    pid: int
    uid: int
    gids: frozenset[int]

    def __str__(self) -> str:
        return f"uid {self.uid} pid {self.pid}"


@dataclass(frozen=True, slots=True)
class Addresses:
    """Which addresses are meant. ``host``: whatever this host has; ``everything``: any at all."""

    networks: tuple[_Network, ...] = ()
    host: bool = False
    everything: bool = False

    def __str__(self) -> str:
        words = ["any"] * self.everything + ["host"] * self.host
        return ", ".join(words + [str(network) for network in self.networks]) or "none"

    def covers(self, address: bytes, of_host: Collection[bytes] = ()) -> bool:
        if self.everything or (self.host and address in of_host):
            return True
        parsed = ipaddress.ip_address(address)
        return any(parsed in network for network in self.networks if network.version == parsed.version)


@dataclass(frozen=True, slots=True)
class Rule:
    """For whom, and what. ``users`` and ``groups`` both None: everybody."""

    users: frozenset[int] | None = None
    groups: frozenset[int] | None = None
    allow: frozenset[Operation] = ALLOWABLE
    addresses: Addresses = field(default_factory=lambda: Addresses(host=True))  # our end of subflows, announcements
    remotes: Addresses = field(default_factory=lambda: Addresses(everything=True))
    interfaces: tuple[str, ...] = ("*",)  # shell patterns of names
    options: frozenset[str] = ORDINARY  # of one subflow, by name
    sockets_of_others: bool = False  # made by another user than the client
    max_subflows: int = 8  # of one connection
    max_clients: int = 32  # of one user, at a time
    max_watched: int = 1024  # connections of one client whose events it gets
    rate_per_s: int = 200  # operations of one user; what comes sooner waits
    burst: int = 400

    def fits(self, peer: Peer) -> bool:
        if self.users is None and self.groups is None:
            return True
        return peer.uid in (self.users or ()) or not peer.gids.isdisjoint(self.groups or ())

    def __str__(self) -> str:
        who = [f"user {uid}" for uid in sorted(self.users or ())] + [
            f"group {gid}" for gid in sorted(self.groups or ())
        ]
        whom = "everybody" if self.users is None and self.groups is None else " or ".join(who) or "nobody"
        may = ", ".join(operation.label for operation in sorted(self.allow)) or "nothing"
        lines = [
            f"{whom} may: {may}",
            f"from {self.addresses} on interfaces {', '.join(self.interfaces) or 'none'} to {self.remotes}",
            f"options {', '.join(sorted(self.options)) or 'none'}",
            f"sockets of others: {'yes' if self.sockets_of_others else 'no'}",
            (
                f"at most {self.max_subflows} subflows, {self.max_clients} clients, {self.max_watched} watched, "
                f"{self.rate_per_s} operations a second (at once: {self.burst})"
            ),
        ]
        return "\n   ".join(lines)

    @property
    def any_interface(self) -> bool:
        return "*" in self.interfaces

    def allows_interface(self, name: str) -> bool:
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in self.interfaces)


@dataclass(frozen=True, slots=True)
class Policy:
    """Rules in order. By default everybody steers connections of their own, on addresses of this host."""

    rules: tuple[Rule, ...] = (Rule(),)
    max_clients: int = 256
    where: str = "the default policy"

    def rule_for(self, peer: Peer) -> Rule | None:
        """The first rule that fits; None: this client gets nothing."""
        return next((rule for rule in self.rules if rule.fits(peer)), None)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Policy:
        """From a file. ConfigurationError names what is wrong, and the line; OSError if it cannot be read."""
        # A named pipe would have the open wait for a writer; what is no file is refused below.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ConfigurationError(f"{os.fspath(path)} is no file")
            if status.st_mode & 0o022 or status.st_uid not in {0, os.geteuid()}:
                raise ConfigurationError(
                    f"{os.fspath(path)} can be changed by others: it has to belong to root, and to be writable by nobody else"
                )
            data = file.read(MAX_FILE + 1)
        if len(data) > MAX_FILE:
            raise ConfigurationError(f"{os.fspath(path)}: a policy has at most {MAX_FILE} octets")
        try:
            text = data.decode()
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            raise ConfigurationError(f"{os.fspath(path)}, line {line}: this is not UTF-8") from None
        return cls.parse(text, os.fspath(path))

    @classmethod
    def parse(cls, text: str, where: str = "policy") -> Policy:
        """From TOML. ConfigurationError says what is wrong, and in which line."""
        return _Reader(text, where).policy()


class _Fault(Exception):
    """What is wrong with one value."""


class _Reader:
    """One file on its way to a ``Policy``; it knows in which line what stands."""

    __slots__ = ("_text", "_where")

    def __init__(self, text: str, where: str) -> None:
        self._text = text
        self._where = where

    def policy(self) -> Policy:
        try:
            table = tomllib.loads(self._text)
        except tomllib.TOMLDecodeError as error:
            raise ConfigurationError(self._syntax(str(error))) from None
        except RecursionError:
            raise ConfigurationError(f"{self._where}: lists are nested too deep") from None
        rules = table.pop("rule", [])
        if not isinstance(rules, list) or not all(isinstance(rule, dict) for rule in rules):
            raise self._error(0, "rule", "write [[rule]] above the keys of each rule")
        if len(rules) > MAX_RULES:
            raise ConfigurationError(f"{self._where}: there are at most {MAX_RULES} rules, not {len(rules)}")
        top = self._read(table, _POLICY_KEYS, 0, "[[rule]]")
        if not rules:
            raise ConfigurationError(
                f"{self._where}: without a [[rule]] nobody may do anything; leave the file away for the default policy"
            )
        read = tuple(Rule(**self._read(rule, _RULE_KEYS, number)) for number, rule in enumerate(rules, 1))
        return Policy(read, where=self._where, **top)

    def _read(
        self, table: dict[str, Any], keys: dict[str, Callable[[Any], Any]], rule: int, *tables: str
    ) -> dict[str, Any]:
        given = {}
        for key, value in table.items():
            if key not in keys:
                raise self._error(rule, key, f"there is no key {key!r} here; there are {', '.join([*keys, *tables])}")
            try:
                given[key] = keys[key](value)
            except _Fault as fault:
                raise self._error(rule, key, f"{key}: {fault}") from None
        return given

    def _syntax(self, message: str) -> str:
        found = re.fullmatch(r"(.*) \(at line (\d+), column (\d+)\)", message, re.DOTALL)
        if found:
            return f"{self._where}, line {found[2]}, column {found[3]}: {found[1]}"
        line = len(self._text.splitlines()) or 1
        return f"{self._where}, line {line}: {message.removesuffix(' (at end of document)')}: the file ends too soon"

    def _error(self, rule: int, key: str, sentence: str) -> ConfigurationError:
        line = self._line_of(rule, key) or self._line_of(0, "rule")
        return ConfigurationError(f"{self._where}{f', line {line}' if line else ''}: {sentence}")

    def _line_of(self, rule: int, key: str) -> int:
        """The line in which ``key`` of a rule (counted from 1; 0: of none) gets its value; 0 if it cannot be told.

        tomllib gives no positions of what it has read. A line that looks like the one sought is it, if all before it is
        whole TOML (so that it is no part of a longer string or list), has that many rules and not yet that key.
        """
        lines = self._text.splitlines()
        name = re.escape(key)
        sought = re.compile(rf"""\s*(\[+\s*)?["']?{name}["']?\s*[]=.]""")
        for number, line in enumerate(lines):
            if not sought.match(line):
                continue
            try:
                before = tomllib.loads("\n".join(lines[:number]))
                after = tomllib.loads("\n".join(lines[: number + 1])) if line.lstrip().startswith("[") else None
            except (tomllib.TOMLDecodeError, RecursionError):
                continue
            rules = before.get("rule", [])
            count = len(rules) if isinstance(rules, list) else 0
            if after is not None and not rule and key in after:
                return number + 1
            if count == rule and key not in (rules[-1] if rule else before):
                return number + 1
        return 0


# what a value of the file means


def _number(least: int, most: int) -> Callable[[Any], int]:
    def read(value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise _Fault(f"a number from {least} to {most}, not {value!r}")
        return value

    return read


def _truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise _Fault(f"true or false, not {value!r}")
    return value


def _entries(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list) or len(value) > MAX_ENTRIES:
        raise _Fault(f"a list of {what}, of at most {MAX_ENTRIES}")
    return value


def _texts(value: Any, what: str) -> list[str]:
    for entry in _entries(value, what):
        if not isinstance(entry, str):
            raise _Fault(f"a list of {what}, each in quotation marks; {entry!r} is none")
    return list(value)


def _identities(what: str, lookup: Callable[[str], int]) -> Callable[[Any], frozenset[int]]:
    def read(value: Any) -> frozenset[int]:
        found = set()
        for entry in _entries(value, f"names or numbers of {what}s"):
            if isinstance(entry, str):
                try:
                    found.add(lookup(entry))
                except (KeyError, ValueError):
                    raise _Fault(f"there is no {what} {entry!r} on this system") from None
            elif isinstance(entry, int) and not isinstance(entry, bool) and 0 <= entry < (1 << 32) - 1:
                found.add(entry)
            else:
                raise _Fault(f"a {what} is a name or a number, not {entry!r}")
        return frozenset(found)

    return read


def _operations(value: Any) -> frozenset[Operation]:
    known = {operation.label: operation for operation in ALLOWABLE}
    return frozenset(known[name] for name in _known(_texts(value, "operations"), known, "operation"))


def _options(value: Any) -> frozenset[str]:
    names = _known(_texts(value, "options"), {*OPTIONS, "ordinary"}, "option")
    return frozenset(names) - {"ordinary"} | (ORDINARY if "ordinary" in names else frozenset())


def _known(names: list[str], known: Collection[str], what: str) -> Iterable[str]:
    for name in names:
        if name not in known:
            raise _Fault(f"there is no {what} {name!r}; there are {', '.join(sorted(known))}")
    return names


def _addresses(*words: str) -> Callable[[Any], Addresses]:
    def read(value: Any) -> Addresses:
        networks = []
        given = set()
        for entry in _texts(value, f"networks ({', '.join(map(repr, words))})"):
            if entry in words:
                given.add(entry)
                continue
            try:
                networks.append(ipaddress.ip_network(entry))
            except ValueError as error:
                raise _Fault(f"a network like '192.0.2.0/24', an address, or {' or '.join(words)}: {error}") from None
        return Addresses(tuple(networks), "host" in given, "any" in given)

    return read


def _patterns(value: Any) -> tuple[str, ...]:
    patterns = _texts(value, "names of interfaces")
    if any(not 0 < len(pattern) <= 64 for pattern in patterns):
        raise _Fault("the name of an interface, or a pattern of names like 'wlan*', has 1 to 64 characters")
    return tuple(patterns)


_POLICY_KEYS: Final[dict[str, Callable[[Any], Any]]] = {"max_clients": _number(1, 4096)}
_RULE_KEYS: Final[dict[str, Callable[[Any], Any]]] = {
    "users": _identities("user", lambda name: pwd.getpwnam(name).pw_uid),
    "groups": _identities("group", lambda name: grp.getgrnam(name).gr_gid),
    "allow": _operations,
    "addresses": _addresses("host", "any"),
    "remotes": _addresses("any"),
    "interfaces": _patterns,
    "options": _options,
    "sockets_of_others": _truth,
    "max_subflows": _number(1, 64),
    "max_clients": _number(1, 4096),
    "max_watched": _number(0, 65536),
    "rate_per_s": _number(1, 100_000),
    "burst": _number(1, 100_000),
}
