"""How a subflow is made, whatever its role: identifier, route, TCP connection, place among the others."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from mptcp.core.multipath import strategy
from mptcp.core.multipath.role import Role
from mptcp.core.multipath.subflow import Subflow
from mptcp.core.tcp.connection import Connection as TcpConnection
from mptcp.core.units import NEVER
from mptcp.errors import PathError
from mptcp.info import Endpoint, PathInfo

if TYPE_CHECKING:
    from mptcp.core.multipath.connection import Connection


def create_subflow(
    connection: Connection, role: Role, local: Endpoint, remote: Endpoint, now: int, *, multipath: bool = True, backup: bool = False,
    interface: int = -1, segments: tuple[bytes, ...] = (),
) -> Subflow:  # fmt: skip
    """Registered with the host and not opened yet. PathError if there is no way from ``local``."""
    environment = connection.environment
    route = environment.route(local.address, interface)
    if route is None:
        raise PathError(f"{local.host} is not a usable address of this host", errno.EADDRNOTAVAIL)
    initial = role in (Role.CAPABLE_CLIENT, Role.CAPABLE_SERVER)
    subflow = Subflow(
        connection, _new_id(connection), role, 0 if initial else connection.paths.local_id(local.address),
        0 if initial else connection.paths.remote_id(remote),
    )  # fmt: skip
    subflow.local_backup = backup
    subflow.interface = route.interface
    subflow.pinned = interface >= 0
    subflow.segments = segments
    # RFC 8754 §2: eight octets, and sixteen for each segment and the final destination
    extra = 8 + 16 * len({*segments, remote.address}) if segments else 0
    subflow.tcp = TcpConnection(
        strategy.tcp_config(connection), local, remote, environment.entropy, environment.counters, mtu=route.mtu,
        gso_max_bytes=max(0, route.gso_max_bytes - extra), extension=subflow if multipath else None,
        isn=environment.new_isn(local, remote, now), extra_header_bytes=extra,
    )  # fmt: skip
    subflow.path = PathInfo(subflow.id, local, remote)
    subflow.path.backup = backup
    connection.subflows_by_id[subflow.id] = subflow
    environment.register(subflow)
    if role is not Role.JOIN_SERVER:
        connection.lonely_since_us = NEVER  # a join of the peer has yet to prove itself
    return subflow


def _new_id(connection: Connection) -> int:
    """Counts up, past numbers whose low eight bits another subflow has: the draft's structures have room for those."""
    number = connection.next_id
    taken = {other & 0xFF for other in connection.subflows_by_id}
    while len(taken) < 255 and (not number & 0xFF or number & 0xFF in taken):
        number += 1
    connection.next_id = number + 1
    return number
