"""All MPTCP connections of a namespace with their subflows, seen from outside: sock_diag, without privilege."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, Self

from mptcp.info import ConnectionInfo, Endpoint, SubflowState
from mptcp.kernel import layout
from mptcp.kernel.diag import FLAG_MCAP_LOC, Diag, DiagSubflow, MptcpSocket
from mptcp.kernel.layout import MptcpInfo
from mptcp.kernel.namespace import NetNamespace
from mptcp.kernel.processes import Process
from mptcp.kernel.reading import (
    CONNECTION_STATES,
    MPTCP_VERSION,
    SUBFLOW_STATES,
    Surroundings,
    is_stale,
    subflow_info,
    surroundings_of,
)
from mptcp.kernel.subflow_ids import SubflowIds

_U64: Final = (1 << 64) - 1
_EMPTY: Final = MptcpInfo.parse(b"")


@dataclass(slots=True)
class ListedConnection:
    """One connection. ``local`` and ``remote`` are those of its first subflow, also when that is gone.

    ``opened_here``: this side connected, the other accepted; None where nothing is left that tells. ``inode`` is that of
    the descriptor, 0 after the program has closed it.
    """

    local: Endpoint
    remote: Endpoint
    info: ConnectionInfo
    uid: int
    inode: int
    opened_here: bool | None
    socket: MptcpSocket
    subflows: list[DiagSubflow]
    processes: list[Process] = field(default_factory=list)


class Listing:
    """Lists again and again: subflows keep their numbers, which count from 1 within each connection.

    The kernel's own numbers are only told through a connection's descriptor: these need not be the same. Nor is how much a
    program has not read yet: ``receive_buffered_bytes`` is the memory it takes.
    """

    __slots__ = ("_diag", "_ids", "_surroundings")

    def __init__(self, namespace: NetNamespace | None = None) -> None:
        namespace = namespace or NetNamespace()
        self._diag = Diag(namespace)
        self._surroundings = surroundings_of(namespace)
        self._ids: dict[tuple[int, Endpoint, Endpoint], SubflowIds] = {}

    def read(self) -> tuple[list[ListedConnection], list[MptcpSocket]]:
        """(connections, listening sockets), each in the order of their addresses."""
        sockets = self._diag.mptcp_sockets()
        subflows = self._diag.subflows()
        listening = [sock for sock in sockets if sock.state == layout.LISTEN]
        connected = [sock for sock in sockets if sock.state != layout.LISTEN and sock.remote.port]
        connections = join(connected, subflows, self._ids, self._surroundings)
        there = {_key(connection.socket) for connection in connections}
        self._ids = {key: ids for key, ids in self._ids.items() if key in there}
        connections.sort(key=lambda c: (c.local.family, c.local, c.remote))
        listening.sort(key=lambda sock: (sock.local.family, sock.local))
        return connections, listening

    def close(self) -> None:
        self._diag.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _key(sock: MptcpSocket) -> tuple[int, Endpoint, Endpoint]:
    return sock.token, sock.local, sock.remote


def join(
    sockets: Iterable[MptcpSocket],
    subflows: Iterable[DiagSubflow],
    ids: dict[tuple[int, Endpoint, Endpoint], SubflowIds] | None = None,
    surroundings: Surroundings | None = None,
) -> list[ListedConnection]:
    """Each MPTCP socket with the subflows that have its token; those without a token by the inode."""
    ids = {} if ids is None else ids
    by_token: dict[int, list[DiagSubflow]] = {}
    by_inode: dict[int, list[DiagSubflow]] = {}
    for subflow in subflows:
        if subflow.token_local:
            by_token.setdefault(subflow.token_local, []).append(subflow)
        elif subflow.inode:
            by_inode.setdefault(subflow.inode, []).append(subflow)
    found = []
    for sock in sockets:
        own = by_token.get(sock.token, []) if sock.token else []
        own = own + (by_inode.get(sock.inode, []) if sock.inode else [])
        # The first one first; the others in an order that does not depend on the kernel's tables.
        own.sort(key=lambda s: (s.is_join, s.local_id, s.remote_id, s.local, s.remote))
        found.append(_listed(sock, own, ids.setdefault(_key(sock), SubflowIds()), surroundings))
    return found


def _listed(
    sock: MptcpSocket, subflows: list[DiagSubflow], ids: SubflowIds, surroundings: Surroundings | None
) -> ListedConnection:
    mptcp = sock.info or _EMPTY
    info = ConnectionInfo(
        is_multipath=not mptcp.fell_back and bool(mptcp.token),
        fallback_reason="",
        token=mptcp.token,
        remote_token=next((s.token_remote for s in subflows if s.token_remote), 0),
        version=-1 if mptcp.fell_back else MPTCP_VERSION,
        checksum=mptcp.checksum,
        state=CONNECTION_STATES.get(sock.state, "closed"),
        send_buffered_bytes=(mptcp.write_seq - mptcp.snd_una) & _U64,
        receive_buffered_bytes=sock.receive_queue,
    )
    opened_here: bool | None = None
    windows, sent, acked, received = [0], 0, 0, 0
    for subflow in subflows:
        if not subflow.is_join:
            opened_here = bool(subflow.flags & FLAG_MCAP_LOC)
        tcp = subflow.tcp
        state = SUBFLOW_STATES.get(subflow.state)
        if tcp is None or state is None:
            continue
        if state is SubflowState.ACTIVE:
            if is_stale(tcp):
                state = SubflowState.STALE
            elif subflow.is_join and not subflow.fully_established:
                state = SubflowState.PENDING
        shown = subflow_info(ids.number(subflow.local, subflow.remote), subflow.local, subflow.remote, tcp, state)
        shown.local_address_id, shown.remote_address_id = subflow.local_id, subflow.remote_id
        shown.backup, shown.initial = subflow.backup, not subflow.is_join
        shown.congestion_control = subflow.congestion_control
        if surroundings is not None:
            shown.interface = surroundings.interface_of(subflow.local, subflow.interface)
        info.subflows.append(shown)
        info.bytes_retransmitted += tcp.bytes_retrans
        info.receive_window_bytes = max(info.receive_window_bytes, tcp.rcv_wnd)
        windows.append(tcp.snd_wnd)
        sent, acked, received = sent + shown.bytes_sent, acked + shown.bytes_acked, received + shown.bytes_received
    counted = mptcp.has_counters and not mptcp.fell_back
    info.bytes_sent = mptcp.bytes_sent if counted else sent
    info.bytes_acked = mptcp.bytes_acked if counted else acked
    info.bytes_received = mptcp.bytes_received if counted else received
    info.send_window_bytes = max(0, max(windows) - sum(s.in_flight_bytes for s in info.subflows))
    return ListedConnection(sock.local, sock.remote, info, sock.uid, sock.inode, opened_here, sock, subflows)
