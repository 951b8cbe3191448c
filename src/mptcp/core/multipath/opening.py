"""How connections begin: MP_CAPABLE in both roles (RFC 8684 §3.1), and further subflows with MP_JOIN (§3.2)."""

from __future__ import annotations

from mptcp.core.multipath.config import ConnectionConfig
from mptcp.core.multipath.connection import Connection
from mptcp.core.multipath.creation import create_subflow
from mptcp.core.multipath.environment import Environment
from mptcp.core.multipath.fallback import FallbackReason, become_plain
from mptcp.core.multipath.role import Role
from mptcp.core.wire.mptcp_options import (
    FLAG_CHECKSUM,
    FLAG_DENY_JOIN_INITIAL,
    FLAG_EXTENSIBLE,
    FLAG_HMAC_SHA256,
    MpCapable,
)
from mptcp.core.wire.segment import Segment
from mptcp.info import Endpoint


def connect(
    environment: Environment, config: ConnectionConfig, local: Endpoint, remote: Endpoint, now: int
) -> Connection:
    """Active open; the SYN goes out at the next ``poll_segments``."""
    connection = Connection(environment, config, local, remote, True)
    connection.opened_us = now
    role = Role.CAPABLE_CLIENT
    if config.multipath:
        connection.take_key()
    subflow = create_subflow(connection, role, local, remote, now, multipath=config.multipath)
    if not config.multipath:
        connection.fallback = FallbackReason.DISABLED
        become_plain(connection, subflow)
    subflow.tcp.open(now)
    connection.touch()
    return connection


def accept(
    environment: Environment,
    config: ConnectionConfig,
    local: Endpoint,
    remote: Endpoint,
    syn: Segment,
    now: int,
) -> Connection:
    """Passive open, from the SYN; the SYN/ACK goes out at the next ``poll_segments``."""
    connection = Connection(environment, config, local, remote, False)
    connection.opened_us = now
    capable = next((o for o in syn.options.mptcp if isinstance(o, MpCapable)), None)
    reason = _judge_capable_syn(config, capable)
    if reason is FallbackReason.NONE:
        assert capable is not None
        # RFC 8684 §3.1: a responder answers with the highest version that it supports and that was offered
        connection.version = min(capable.version, 1)
        connection.checksum = config.checksum or bool(capable.flags & FLAG_CHECKSUM)
        connection.remote_denies_join = bool(capable.flags & FLAG_DENY_JOIN_INITIAL) and connection.version > 0
        connection.take_key()
        if connection.version == 0 and capable.sender_key is not None:
            connection.set_remote_key(capable.sender_key, connection.checksum)
    else:
        connection.fallback = reason
    multipath = reason is FallbackReason.NONE
    subflow = create_subflow(connection, Role.CAPABLE_SERVER, local, remote, now, multipath=multipath)
    if not multipath:
        become_plain(connection, subflow)
    subflow.tcp.accept_syn(syn, now)
    connection.touch()
    return connection


def must_ignore(syn: Segment) -> bool:
    """Whether a SYN is not to be answered at all."""
    # RFC 6824 §3.1: "If receiving a message with the 'B' flag set to 1, and this is not understood, then this SYN MUST be
    # silently ignored; the sender is expected to retry with a format compatible with this legacy specification."
    for option in syn.options.mptcp:
        if isinstance(option, MpCapable) and option.version == 0 and option.flags & FLAG_EXTENSIBLE:
            return True
    return False


def _judge_capable_syn(config: ConnectionConfig, capable: MpCapable | None) -> FallbackReason:
    if not config.multipath:
        return FallbackReason.DISABLED
    if capable is None:
        return FallbackReason.CLIENT_WITHOUT_MPTCP
    # RFC 8684 §3.1: "If receiving a message with the "B" flag set to 1 and this is not understood, then the
    # MP_CAPABLE in this SYN MUST be silently ignored"; "If flag bits "D" through "H" are all 0, the MP_CAPABLE
    # option MUST be treated as invalid and ignored"
    # "If a responder does not support (or does not want to support) any of the initiator's proposals, it MUST respond
    # without an MP_CAPABLE option, thus forcing a fallback to regular TCP."
    if capable.flags & FLAG_EXTENSIBLE or not capable.flags & FLAG_HMAC_SHA256:
        return FallbackReason.BAD_CAPABLE
    if capable.version == 0 and capable.sender_key is None:
        return FallbackReason.BAD_CAPABLE
    return FallbackReason.NONE
