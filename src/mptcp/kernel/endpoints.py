"""Endpoints and limits of the in-kernel path manager. They hold for a whole network namespace: all its connections, those
that exist and those to come, are changed by each call. Reading needs no privilege, changing CAP_NET_ADMIN.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from mptcp.info import Endpoint
from mptcp.kernel.generic_netlink import GenericFamily
from mptcp.kernel.namespace import NetNamespace
from mptcp.kernel.netlink import attribute, attributes, unsigned
from mptcp.kernel.path_manager import (
    ATTR_ADDR,
    ATTR_RCV_ADD_ADDRS,
    ATTR_SUBFLOWS,
    CMD_ADD_ADDR,
    CMD_DEL_ADDR,
    CMD_FLUSH_ADDRS,
    CMD_GET_ADDR,
    CMD_GET_LIMITS,
    CMD_SET_FLAGS,
    CMD_SET_LIMITS,
    FAMILY,
    FLAG_SUBFLOW,
    PmAddress,
    emit_address,
    parse_address,
)

#: What the kernel takes at most, of endpoints in a namespace and as a limit (MPTCP_PM_ADDR_MAX).
MAX_ENDPOINTS: Final = 8

_U32: Final = struct.Struct("=I")


class Limits(NamedTuple):
    """Of each connection: further subflows, and announced addresses it takes up (0 by default)."""

    subflows: int
    add_addr_accepted: int


class Endpoints:
    """The in-kernel path manager of a namespace. Errors: ``NetlinkError`` (EEXIST, ERANGE, EINVAL, EPERM)."""

    __slots__ = ("_family",)

    def __init__(self, namespace: NetNamespace | None = None) -> None:
        self._family = GenericFamily(FAMILY, namespace)

    def list(self) -> list[PmAddress]:
        answers = self._family.dump(CMD_GET_ADDR, what="endpoints")
        return [
            found
            for answer in answers
            for kind, value in attributes(answer)
            if kind == ATTR_ADDR and (found := parse_address(value)) is not None
        ]

    def add(self, local: Endpoint, flags: int = FLAG_SUBFLOW, address_id: int = 0, interface: int = 0) -> PmAddress:
        """Adds an endpoint; with ``address_id`` 0 the kernel chooses one. What it is now."""
        self._family.command(
            CMD_ADD_ADDR,
            emit_address(ATTR_ADDR, local, address_id or None, flags, interface),
            what=f"adding the endpoint {local}",
        )
        for endpoint in self.list():
            if endpoint.local == local and (not address_id or endpoint.id == address_id):
                return endpoint
        return PmAddress(local, address_id, flags, interface)  # somebody took it away again

    def delete(self, address_id: int, local: Endpoint | None = None) -> None:
        """Removes an endpoint: FIN on its subflows, REMOVE_ADDR. With id 0 ``local`` says which."""
        self._family.command(
            CMD_DEL_ADDR, emit_address(ATTR_ADDR, local, address_id), what=f"removing the endpoint with id {address_id}"
        )

    def flush(self) -> None:
        """Removes all."""
        self._family.command(CMD_FLUSH_ADDRS, emit_address(ATTR_ADDR, None), what="removing all endpoints")

    def set_flags(self, address_id: int, flags: int) -> None:
        """FLAG_BACKUP, FLAG_FULLMESH or 0; MP_PRIO on every subflow from that endpoint."""
        self._family.command(
            CMD_SET_FLAGS,
            emit_address(ATTR_ADDR, None, address_id, flags),
            what=f"flags of the endpoint with id {address_id}",
        )

    def limits(self) -> Limits:
        fields = {k: v for answer in self._family.command(CMD_GET_LIMITS, what="limits") for k, v in attributes(answer)}
        return Limits(unsigned(fields.get(ATTR_SUBFLOWS)) or 0, unsigned(fields.get(ATTR_RCV_ADD_ADDRS)) or 0)

    def set_limits(self, subflows: int, add_addr_accepted: int) -> None:
        """Each 0 to MAX_ENDPOINTS."""
        self._family.command(
            CMD_SET_LIMITS,
            attribute(ATTR_RCV_ADD_ADDRS, _U32.pack(add_addr_accepted)),
            attribute(ATTR_SUBFLOWS, _U32.pack(subflows)),
            what="setting limits",
        )

    def close(self) -> None:
        self._family.close()
