"""What keeps TCP by the user's wish (``--except``, ``--except-port``, ``--except-program``)."""

from __future__ import annotations

import ipaddress
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, TypeAlias

from mptcp.errors import ConfigurationError

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

#: ``struct sockaddr_in`` and ``sockaddr_in6`` up to the end of the address.
MAX_SOCKADDR: Final = 128
MAX_EXCEPTIONS: Final = 1024


@dataclass(frozen=True, slots=True)
class Exceptions:
    """Sockets that connect or are bound to one of ``networks`` or ``ports`` (first, last), and sockets of ``programs``."""

    networks: tuple[Network, ...] = ()
    ports: tuple[tuple[int, int], ...] = ()
    programs: frozenset[str] = frozenset()

    @classmethod
    def parse(cls, networks: Iterable[str] = (), ports: Iterable[str] = (), programs: Iterable[str] = ()) -> Exceptions:
        """From words: "127.0.0.0/8", "::1"; "22", "6000-6010"; "ssh", "/usr/bin/ssh". ConfigurationError names the wrong one."""
        made = cls(
            tuple(_network(word) for word in networks),
            tuple(_ports(word) for word in ports),
            frozenset(_program(word) for word in programs),
        )
        if len(made.networks) + len(made.ports) + len(made.programs) > MAX_EXCEPTIONS:
            raise ConfigurationError(f"more than {MAX_EXCEPTIONS} exceptions")
        return made

    @property
    def need_addresses(self) -> bool:
        """Whether it matters where a socket connects to."""
        return bool(self.networks or self.ports)

    def match_address(self, address: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int) -> bool:
        """Whether a socket that connects there, or is bound there, keeps TCP. An IPv4 address in an IPv6 one counts as IPv4."""
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        return any(address in network for network in self.networks) or any(
            first <= port <= last for first, last in self.ports
        )


def parse_sockaddr(raw: bytes) -> tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, int] | None:
    """Address and port of a ``struct sockaddr``; None for other families and for what is too short."""
    if len(raw) < 8:
        return None
    family, port = struct.unpack_from("=H", raw)[0], struct.unpack_from("!H", raw, 2)[0]
    if family == socket.AF_INET:
        return ipaddress.IPv4Address(raw[4:8]), port
    if family == socket.AF_INET6 and len(raw) >= 24:
        return ipaddress.IPv6Address(raw[8:24]), port
    return None


def _network(word: str) -> Network:
    try:
        return ipaddress.ip_network(word, strict=False)
    except ValueError:
        raise ConfigurationError(
            f"--except takes an address or a network (127.0.0.0/8, fd00::/8), not {word!r}"
        ) from None


def _ports(word: str) -> tuple[int, int]:
    first, dash, last = word.partition("-")
    if all(text.isascii() and text.isdecimal() and len(text) < 6 for text in (first, last if dash else first)):
        low, high = int(first), int(last if dash else first)
        if 0 < low <= high <= 65535:
            return low, high
    raise ConfigurationError(f"--except-port takes a port or a range (22, 6000-6010), not {word!r}")


def _program(word: str) -> str:
    name = word.rpartition("/")[2]
    if not name:
        raise ConfigurationError(f"--except-program takes the name of a program, not {word!r}")
    return name
