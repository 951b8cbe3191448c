"""The commands of generic netlink ``mptcp_pm`` that steer one connection, named by its token.

They work on connections that got the user-space path manager (``net.mptcp.path_manager=userspace`` when the socket was
made, or when the SYN was accepted), and need CAP_NET_ADMIN. Errors are ``NetlinkError`` with the kernel's sentence.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from mptcp.info import Endpoint
from mptcp.kernel.generic_netlink import GenericFamily
from mptcp.kernel.namespace import NetNamespace
from mptcp.kernel.netlink import attribute, attributes, nested, unsigned

FAMILY: Final = "mptcp_pm"
EVENT_GROUP: Final = "mptcp_pm_events"

#: MPTCP_PM_CMD_* (linux/mptcp_pm.h)
CMD_ADD_ADDR: Final = 1
CMD_DEL_ADDR: Final = 2
CMD_GET_ADDR: Final = 3
CMD_FLUSH_ADDRS: Final = 4
CMD_SET_LIMITS: Final = 5
CMD_GET_LIMITS: Final = 6
CMD_SET_FLAGS: Final = 7
CMD_ANNOUNCE: Final = 8
CMD_REMOVE: Final = 9
CMD_SUBFLOW_CREATE: Final = 10
CMD_SUBFLOW_DESTROY: Final = 11

ATTR_ADDR: Final = 1
ATTR_RCV_ADD_ADDRS: Final = 2
ATTR_SUBFLOWS: Final = 3
ATTR_TOKEN: Final = 4
ATTR_LOC_ID: Final = 5
ATTR_ADDR_REMOTE: Final = 6

_ADDR_FAMILY: Final = 1
_ADDR_ID: Final = 2
_ADDR_ADDR4: Final = 3
_ADDR_ADDR6: Final = 4
_ADDR_PORT: Final = 5
_ADDR_FLAGS: Final = 6
_ADDR_IF_IDX: Final = 7

#: MPTCP_PM_ADDR_FLAG_*
FLAG_SIGNAL: Final = 1
FLAG_SUBFLOW: Final = 2
FLAG_BACKUP: Final = 4
FLAG_FULLMESH: Final = 8
FLAG_IMPLICIT: Final = 16
FLAG_LAMINAR: Final = 32

_AF_INET: Final = 2
_AF_INET6: Final = 10
_U8: Final = struct.Struct("=B")
_U16: Final = struct.Struct("=H")
_U32: Final = struct.Struct("=I")
_S32: Final = struct.Struct("=i")


@dataclass(frozen=True, slots=True)
class PmAddress:
    """An address as the path manager keeps it: of a connection, or an endpoint of the namespace."""

    local: Endpoint  # port 0: the connection's own
    id: int
    flags: int = 0
    interface: int = 0

    @property
    def backup(self) -> bool:
        return bool(self.flags & FLAG_BACKUP)


def emit_address(
    kind: int, endpoint: Endpoint | None, address_id: int | None = None, flags: int | None = None, interface: int = 0
) -> bytes:
    """A nested address. What is None (or 0 of ``interface`` and the port) is left out. The port is in host order here."""
    inner: list[bytes] = []
    if endpoint is not None:
        is_v4 = len(endpoint.address) == 4
        inner.append(attribute(_ADDR_FAMILY, _U16.pack(_AF_INET if is_v4 else _AF_INET6)))
        inner.append(attribute(_ADDR_ADDR4 if is_v4 else _ADDR_ADDR6, endpoint.address))
        if endpoint.port:
            inner.append(attribute(_ADDR_PORT, _U16.pack(endpoint.port)))
    if address_id is not None:
        inner.append(attribute(_ADDR_ID, _U8.pack(address_id)))
    if flags is not None:
        inner.append(attribute(_ADDR_FLAGS, _U32.pack(flags)))
    if interface:
        inner.append(attribute(_ADDR_IF_IDX, _S32.pack(interface)))
    return nested(kind, *inner)


def parse_address(data: memoryview) -> PmAddress | None:
    """A nested address; None without an IPv4 or IPv6 address in it."""
    fields = dict(attributes(data))
    for kind, length in ((_ADDR_ADDR4, 4), (_ADDR_ADDR6, 16)):
        address = fields.get(kind)
        if address is not None and len(address) == length:
            return PmAddress(
                Endpoint(bytes(address), unsigned(fields.get(_ADDR_PORT)) or 0),
                unsigned(fields.get(_ADDR_ID)) or 0,
                unsigned(fields.get(_ADDR_FLAGS)) or 0,
                unsigned(fields.get(_ADDR_IF_IDX)) or 0,
            )
    return None


def _token(token: int) -> bytes:
    return attribute(ATTR_TOKEN, _U32.pack(token))


class PathManagerNetlink:
    """Steers connections of a namespace by their (local) token. NotSupportedError if the kernel has no path manager."""

    __slots__ = ("family",)

    def __init__(self, namespace: NetNamespace | None = None) -> None:
        self.family = GenericFamily(FAMILY, namespace)

    def announce(self, token: int, local: Endpoint, address_id: int, flags: int = 0, interface: int = 0) -> None:
        """ADD_ADDR to the peer. A port other than 0 needs an MPTCP listener there, of whoever announces it."""
        self.family.command(
            CMD_ANNOUNCE,
            _token(token),
            emit_address(ATTR_ADDR, local, address_id, FLAG_SIGNAL | flags, interface),
            what=f"announcing {local} with id {address_id}",
        )

    def remove(self, token: int, address_id: int) -> None:
        """REMOVE_ADDR to the peer, and FIN on every subflow from that address."""
        self.family.command(
            CMD_REMOVE,
            _token(token),
            attribute(ATTR_LOC_ID, _U8.pack(address_id)),
            what=f"withdrawing the address with id {address_id}",
        )

    def create_subflow(
        self,
        token: int,
        local: Endpoint,
        local_id: int,
        remote: Endpoint,
        flags: int = 0,
        interface: int = 0,
        remote_id: int = 0,
    ) -> None:
        """Sends the SYN of a subflow. Returns before there is an answer; a refused one is only told as an event."""
        self.family.command(
            CMD_SUBFLOW_CREATE,
            _token(token),
            emit_address(ATTR_ADDR, local, local_id, flags, interface),
            emit_address(ATTR_ADDR_REMOTE, remote, remote_id or None),
            what=f"opening a subflow from {local} (id {local_id}) to {remote}",
        )

    def destroy_subflow(self, token: int, local: Endpoint, remote: Endpoint) -> None:
        """FIN on the subflow with exactly these addresses and ports."""
        self.family.command(
            CMD_SUBFLOW_DESTROY,
            _token(token),
            emit_address(ATTR_ADDR, local),
            emit_address(ATTR_ADDR_REMOTE, remote),
            what=f"closing the subflow from {local} to {remote}",
        )

    def set_flags(self, token: int, local: Endpoint, remote: Endpoint, flags: int) -> None:
        """FLAG_BACKUP or 0: MP_PRIO on that subflow."""
        self.family.command(
            CMD_SET_FLAGS,
            _token(token),
            emit_address(ATTR_ADDR, local, None, flags),
            emit_address(ATTR_ADDR_REMOTE, remote),
            what=f"priority of the subflow from {local} to {remote}",
        )

    def addresses(self, token: int) -> list[PmAddress]:
        """The addresses the path manager keeps for a connection. Needs no privilege (Linux 6.10)."""
        answers = self.family.dump(CMD_GET_ADDR, _token(token), what="addresses of a connection")
        return list(filter(None, (parse_address(v) for a in answers for k, v in attributes(a) if k == ATTR_ADDR)))

    def close(self) -> None:
        self.family.close()
