"""Which local addresses and ports the sockets of one stack have bound."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from mptcp.info import Endpoint
from mptcp.sockets.address import os_error
from mptcp.sockets.privileges import check_port

if TYPE_CHECKING:
    from mptcp.runtime.pump import Pump

#: Where port 0 takes its ports from (RFC 6335 §6 begins at 49152; Linux, and we, below).
EPHEMERAL_PORTS = range(32768, 61000)


class Ports:
    """Endpoints that sockets are bound to, each with how many hold it and whether they share it (SO_REUSEADDR)."""

    __slots__ = ("_bound", "_later", "_pump")

    def __init__(self, pump: Pump) -> None:
        self._pump = pump
        self._bound: dict[Endpoint, tuple[int, bool]] = {}
        self._later: list[Endpoint] = []

    def reserve(self, local: Endpoint, reuse_address: bool) -> Endpoint:
        """``local``, with a port if it has none. OSError: EADDRNOTAVAIL, EADDRINUSE, EACCES (a privileged port)."""
        self._settle()
        check_port(local.port)
        host = self._pump.host
        if not local.is_unspecified and host.route(local.address) is None:
            raise os_error(errno.EADDRNOTAVAIL)
        if local.port:
            if self._is_taken(local, reuse_address):
                raise os_error(errno.EADDRINUSE)
        else:
            local = Endpoint(local.address, self._free_port(local.address))
        holders = self._bound.get(local, (0, False))[0]
        self._bound[local] = (holders + 1, reuse_address)
        return local

    def release(self, local: Endpoint) -> None:
        holders, shared = self._bound.get(local, (0, False))
        if holders > 1:
            self._bound[local] = (holders - 1, shared)
        else:
            self._bound.pop(local, None)

    def release_later(self, local: Endpoint) -> None:
        """Without the lock, from a finalizer: takes effect with the next ``reserve``."""
        self._later.append(local)

    def _settle(self) -> None:
        while self._later:
            self.release(self._later.pop())

    def _is_taken(self, local: Endpoint, reuse_address: bool) -> bool:
        for other, (_, shared) in self._bound.items():
            if other.port != local.port or not _overlap(other, local):
                continue
            if not (reuse_address and shared) or other in self._listening():
                return True
        if reuse_address:
            return False
        # As Linux: without SO_REUSEADDR a port is in use as long as any connection uses it, be it in TIME-WAIT.
        return any(c.local.port == local.port and _overlap(c.local, local) for c in self._pump.host.connections)

    def _listening(self) -> set[Endpoint]:
        return {listener.local for listener in self._pump.host.listeners.values()}

    def _free_port(self, address: bytes) -> int:
        entropy = self._pump.host.entropy
        first = entropy.below(len(EPHEMERAL_PORTS))
        for step in range(len(EPHEMERAL_PORTS)):
            port = EPHEMERAL_PORTS[(first + step) % len(EPHEMERAL_PORTS)]
            if not self._is_taken(Endpoint(address, port), False):
                return port
        raise os_error(errno.EADDRINUSE)


def _overlap(one: Endpoint, other: Endpoint) -> bool:
    if one.is_unspecified or other.is_unspecified:
        # "::" covers IPv4, too, unless told otherwise; the exact rule would need the options of both.
        return (
            one.family == other.family
            or (one.is_unspecified and one.family == 6)
            or (other.is_unspecified and other.family == 6)
        )
    return one.address == other.address
