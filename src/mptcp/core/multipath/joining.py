"""Further subflows (RFC 8684 §3.2): opening one with MP_JOIN, answering the peer's."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from mptcp.core.multipath import local_addresses
from mptcp.core.multipath.creation import create_subflow
from mptcp.core.multipath.handshake import is_full
from mptcp.core.multipath.role import Role
from mptcp.core.multipath.special_addresses import is_special
from mptcp.core.wire.mptcp_options import (
    RST_ADMINISTRATIVELY_PROHIBITED,
    RST_LACK_OF_RESOURCES,
    RST_MPTCP_SPECIFIC,
    MpJoinSyn,
    MpTcprst,
)
from mptcp.core.wire.segment import Segment
from mptcp.errors import PathError
from mptcp.info import Endpoint

if TYPE_CHECKING:
    from mptcp.core.multipath.connection import Connection

#: Joins of the peer whose third packet has not come yet, per connection; an older one gives way to a newer one.
MAX_HALF_OPEN_JOINS = 8

#: Segments on the way of a subflow: each costs 16 octets of every packet.
MAX_SEGMENTS = 16


def open_subflow(
    connection: Connection,
    local: Endpoint,
    remote: Endpoint,
    now: int,
    backup: bool = False,
    *,
    interface: int = -1,
    segments: tuple[bytes, ...] = (),
) -> int:
    """MP_JOIN from one of our addresses to one of the peer's; the subflow's id. PathError says why not.

    ``interface``: leave by this one, not by the address's. ``segments``: IPv6 addresses that its packets visit before
    they reach ``remote`` (RFC 8754); of at most MAX_SEGMENTS.
    """
    if not connection.is_multipath:
        raise PathError(f"this connection is regular TCP: {connection.fallback_reason}", errno.EOPNOTSUPP)
    if not connection.is_fully_established or connection.is_closing:
        # RFC 8684 §3.1: "new subflows MUST NOT be established ... until a DSS option has been successfully
        # received across the path"
        raise PathError(
            "further subflows can be opened once the peer has acknowledged data, and until the end of the stream",
            errno.ENOTCONN if connection.is_closing else errno.EAGAIN,
        )
    if remote == connection.remote and connection.remote_denies_join:
        # RFC 8684 §3.1, flag C: "the receiver MUST NOT try to open any additional subflows toward this address"
        raise PathError("the peer accepts no further subflows to its initial address", errno.ECONNREFUSED)
    if len(local.address) != len(remote.address):
        raise PathError("local and remote address are of different families")
    for end in (local, remote):
        if is_special(end.address, connection.config.excluded_networks):
            # RFC 6897 §6.3: not beside SHIM6, HIP or Mobile IPv6; and a link-local address means another host elsewhere
            raise PathError(f"{end.host} is no address for a further subflow: it is special or excluded")
    if len(connection.open_subflows()) >= connection.config.max_subflows:
        raise PathError(f"the limit of {connection.config.max_subflows} subflows is reached", errno.ENOBUFS)
    if connection.environment.route(local.address, interface) is None:
        raise PathError(f"{local.host} is not a usable address of this host", errno.EADDRNOTAVAIL)
    if segments and (len(segments) > MAX_SEGMENTS or len(remote.address) != 16 or any(len(s) != 16 for s in segments)):
        raise PathError(f"segments are up to {MAX_SEGMENTS} IPv6 addresses on the way to one")
    if connection.paths.local_id(local.address) < 0:
        raise PathError("all 255 address identifiers of this connection are in use", errno.ENOBUFS)
    # RFC 8684 §3.9.1: "The local port for such SYNs SHOULD also be the same as the port for the first subflow"
    port = local.port or connection.environment.new_port(local.address, remote, connection.local.port)
    if not port:
        raise PathError("no local port is free", errno.EADDRNOTAVAIL)
    if local.port and connection.environment.new_port(local.address, remote, local.port) != local.port:
        raise PathError(f"{local} is connected to {remote} already", errno.EADDRINUSE)
    local = Endpoint(local.address, port)
    subflow = create_subflow(
        connection, Role.JOIN_CLIENT, local, remote, now, backup=backup, interface=interface, segments=segments
    )
    subflow.local_nonce = connection.environment.entropy.bits(32)
    subflow.tcp.open(now)
    connection.touch()
    return subflow.id


def accept_join(
    connection: Connection, local: Endpoint, remote: Endpoint, syn: Segment, join: MpJoinSyn, now: int
) -> MpTcprst | None:
    """A SYN with our token. None if it is being answered, else what the RST that refuses it says."""
    if not connection.is_multipath or not connection.remote_key or connection.is_closing:
        return MpTcprst(RST_MPTCP_SPECIFIC)
    if connection.config.deny_join_initial and local == connection.local:
        return MpTcprst(RST_ADMINISTRATIVELY_PROHIBITED)
    if is_special(local.address, connection.config.excluded_networks):
        connection.counters.bump("join_special_address")
        return MpTcprst(RST_ADMINISTRATIVELY_PROHIBITED)
    if not local_addresses.allows(connection, local.address):
        # RFC 6897 §5.3.2: "MPTCP MUST respect the application's choice and only use addresses that are explicitly
        # provided by the application."
        connection.counters.bump("join_address_not_allowed")
        return MpTcprst(RST_ADMINISTRATIVELY_PROHIBITED)
    if is_full(connection):
        return MpTcprst(RST_LACK_OF_RESOURCES, True)
    if connection.paths.local_id(local.address) < 0:
        return MpTcprst(RST_LACK_OF_RESOURCES)
    half_open = [s for s in connection.open_subflows() if s.is_half_open]
    if len(half_open) >= MAX_HALF_OPEN_JOINS:
        # RFC 7430 §3: "The attacker can simply exhaust this limit by sending multiple SYN+MP_JOINs with different
        # 5-tuples." The oldest makes room, without a word to an address that may never have asked.
        connection.counters.bump("join_recycled")
        half_open[0].tcp.end(None, now)
    subflow = create_subflow(connection, Role.JOIN_SERVER, local, remote, now, backup=join.backup)
    subflow.local_backup = False
    subflow.remote_id = join.address_id
    subflow.remote_nonce = join.nonce
    subflow.local_nonce = connection.environment.entropy.bits(32)
    subflow.tcp.accept_syn(syn, now)
    connection.touch()
    return None
