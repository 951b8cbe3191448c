"""Which way the system would send from one address to another: rtnetlink, RTM_GETROUTE."""

from __future__ import annotations

import errno
import os
import struct
from typing import Final, NamedTuple

from mptcp.kernel.layout import AF_INET, AF_INET6
from mptcp.kernel.namespace import NetNamespace
from mptcp.kernel.netlink import NETLINK_ROUTE, NetlinkError, NetlinkSocket, attribute, attributes, unsigned

_RTM_GETROUTE: Final = 26
_RTA_DST: Final = 1
_RTA_SRC: Final = 2
_RTA_OIF: Final = 4
#: ``struct rtmsg``: family, lengths of destination and source, tos, table, protocol, scope, type, flags.
_ROUTE: Final = struct.Struct("=8BI")
_UNREACHABLE: Final = frozenset({errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL, errno.ESRCH})


class Way(NamedTuple):
    """``interface``: the index packets leave by; 0: there is no way (``error`` says why)."""

    interface: int
    error: str = ""


class Routes:
    """Asks about the routes of a namespace; needs no privilege."""

    __slots__ = ("_netlink",)

    def __init__(self, namespace: NetNamespace | None = None) -> None:
        self._netlink = NetlinkSocket(NETLINK_ROUTE, namespace)

    def way(self, source: bytes, destination: bytes, interface: int = 0) -> Way:
        """How a packet of a socket bound to ``source`` (and ``interface``) would leave. Addresses of one family."""
        bits = len(destination) * 8
        family = AF_INET if bits == 32 else AF_INET6
        body = _ROUTE.pack(family, bits, bits, 0, 0, 0, 0, 0, 0)
        body += attribute(_RTA_DST, destination) + attribute(_RTA_SRC, source)
        if interface:
            body += attribute(_RTA_OIF, struct.pack("=I", interface))
        try:
            answers = self._netlink.request(_RTM_GETROUTE, body, what="asking for a route")
        except NetlinkError as error:
            if error.errno in _UNREACHABLE:
                return Way(0, os.strerror(error.errno or errno.EIO).lower())
            raise
        for answer in answers:
            if len(answer.payload) < _ROUTE.size:
                continue
            found = unsigned(dict(attributes(answer.payload[_ROUTE.size :])).get(_RTA_OIF))
            if found:
                return Way(found)
        return Way(0, "the system names no interface")

    def close(self) -> None:
        self._netlink.close()
