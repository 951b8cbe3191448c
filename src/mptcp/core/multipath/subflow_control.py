"""What an application may do to one subflow (draft-hesmans-mptcp-socket-03 §3.3, §3.5): options, half closes."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from mptcp.core.tcp.config import TcpConfig
from mptcp.core.wire.mptcp_options import MpPrio
from mptcp.errors import PathError

if TYPE_CHECKING:
    from mptcp.core.multipath.connection import Connection
    from mptcp.core.multipath.subflow import Subflow

#: Fields of ``TcpConfig`` that belong to the connection: there is one stream, and one buffer for each direction.
OF_THE_CONNECTION = frozenset({"send_buffer_bytes", "receive_buffer_bytes", "receive_buffer_max_bytes"})


def find(connection: Connection, subflow_id: int) -> Subflow:
    """PathError: EOPNOTSUPP after fallback, EINVAL for an id that no open subflow has."""
    if not connection.is_multipath:
        raise PathError(f"this connection is regular TCP: {connection.fallback_reason}", errno.EOPNOTSUPP)
    subflow = connection.subflows_by_id.get(subflow_id)
    if subflow is None or subflow.tcp.is_over:
        raise PathError(f"no subflow has the id {subflow_id}")
    return subflow


def config_of(connection: Connection, subflow_id: int) -> TcpConfig:
    return find(connection, subflow_id).tcp.config


def set_options(connection: Connection, subflow_id: int, changes: dict[str, object]) -> None:
    """Fields of ``TcpConfig`` for one subflow; they hold until the connection is given the same field."""
    subflow = find(connection, subflow_id)
    wrong = OF_THE_CONNECTION & changes.keys()
    if wrong:
        raise PathError("buffers belong to the connection: set them there", errno.ENOPROTOOPT)
    subflow.overrides = {**(subflow.overrides or {}), **changes}
    subflow.tcp.set_config(subflow.tcp.config.changed(**changes))
    connection.touch()


def stop_sending(connection: Connection, subflow_id: int, now: int) -> None:
    """SHUT_WR: nothing more is given to the subflow; its FIN goes out after what it has."""
    subflow = find(connection, subflow_id)
    subflow.closing = True
    subflow.close_reason = subflow.close_reason or "local"
    subflow.tcp.shutdown_write(now)
    connection.touch()


def stop_receiving(connection: Connection, subflow_id: int) -> None:
    """SHUT_RD: the peer is asked to send over the others. What it sends here all the same belongs to the one stream of
    the connection and is taken: TCP has no way to refuse it, either."""
    subflow = find(connection, subflow_id)
    # RFC 8684 §3.3.8: "a subflow where the receiver has indicated that B=1 SHOULD NOT be used to send data unless there
    # are no usable subflows where B=0". What we send ourselves is not affected.
    subflow.local_backup = True
    subflow.signal(MpPrio(True))
