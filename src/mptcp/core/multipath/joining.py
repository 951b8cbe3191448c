"""Further subflows (RFC 8684 §3.2): opening one with MP_JOIN, answering the peer's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mptcp.core.multipath.role import Role
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


def open_subflow(connection: Connection, local: Endpoint, remote: Endpoint, now: int, backup: bool = False) -> int:
    """MP_JOIN from one of our addresses to one of the peer's; the subflow's id. PathError says why not."""
    if connection.plain is not None:
        raise PathError(f"this connection is regular TCP: {connection.fallback_reason}")
    if not connection.is_fully_established or connection.is_closing:
        # RFC 8684 §3.1: "new subflows MUST NOT be established ... until a DSS option has been successfully
        # received across the path"
        raise PathError("further subflows can be opened once the connection is fully established")
    if remote == connection.remote and connection.remote_denies_join:
        # RFC 8684 §3.1, flag C: "the receiver MUST NOT try to open any additional subflows toward this address"
        raise PathError("the peer accepts no further subflows to its initial address")
    if len(local.address) != len(remote.address):
        raise PathError("local and remote address are of different families")
    if len(connection.open_subflows()) >= connection.config.max_subflows:
        raise PathError(f"the limit of {connection.config.max_subflows} subflows is reached")
    if connection.environment.route(local.address) is None:
        raise PathError(f"{local.host} is not a usable address of this host")
    if connection.paths.local_id(local.address) < 0:
        raise PathError("all 255 address identifiers of this connection are in use")
    # RFC 8684 §3.9.1: "The local port for such SYNs SHOULD also be the same as the port for the first subflow"
    port = local.port or connection.environment.new_port(local.address, remote, connection.local.port)
    if not port:
        raise PathError("no local port is free")
    local = Endpoint(local.address, port)
    subflow = connection.new_subflow(Role.JOIN_CLIENT, local, remote, now, backup=backup)
    subflow.local_nonce = connection.environment.entropy.bits(32)
    subflow.tcp.open(now)
    connection.touch()
    return subflow.id


def accept_join(
    connection: Connection, local: Endpoint, remote: Endpoint, syn: Segment, join: MpJoinSyn, now: int
) -> MpTcprst | None:
    """A SYN with our token. None if it is being answered, else what the RST that refuses it says."""
    if connection.plain is not None or not connection.remote_key or connection.is_closing:
        return MpTcprst(RST_MPTCP_SPECIFIC)
    if connection.config.deny_join_initial and local == connection.local:
        return MpTcprst(RST_ADMINISTRATIVELY_PROHIBITED)
    if len(connection.open_subflows()) >= connection.config.max_subflows:
        # RFC 8684 §3.2: "the host wants to refuse subflow establishment (for example, due to a limit ...)"
        connection.counters.bump("join_limit")
        return MpTcprst(RST_LACK_OF_RESOURCES, True)
    if connection.paths.local_id(local.address) < 0:
        return MpTcprst(RST_LACK_OF_RESOURCES)
    subflow = connection.new_subflow(Role.JOIN_SERVER, local, remote, now, backup=join.backup)
    subflow.local_backup = False
    subflow.remote_id = join.address_id
    subflow.remote_nonce = join.nonce
    subflow.local_nonce = connection.environment.entropy.bits(32)
    subflow.tcp.accept_syn(syn, now)
    connection.touch()
    return None
