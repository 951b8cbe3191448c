"""What a connection of the kernel's looks like: full info and sock_diag together as this package's own vocabulary.

Every reading asks the kernel for the whole connection at one moment (full info: addresses, state, figures). What that does
not tell, namely backup flags, address ids, congestion control and interface, is looked up by sock_diag, once for each
subflow and then

- each time while the subflow is being established,
- when ``invalidate`` says that something may have changed (an own change, an event),
- and in any case when it is older than ``DETAILS_AGE_NS``: a peer may send MP_PRIO at any time, and without the
  privilege to hear of it nothing else shows.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct
import termios
import threading
import time
import weakref
from collections.abc import Mapping
from typing import Final

from mptcp.errors import NotSupportedError
from mptcp.forking import freed_in_child
from mptcp.info import ConnectionInfo, Endpoint, SubflowInfo, SubflowState
from mptcp.kernel import layout
from mptcp.kernel.addresses import LocalAddress, local_addresses
from mptcp.kernel.diag import FLAG_MCAP_REM, Diag, DiagSubflow
from mptcp.kernel.fallback import UNKNOWN, fallback_reason
from mptcp.kernel.layout import TcpInfo
from mptcp.kernel.namespace import NetNamespace
from mptcp.kernel.sockopt import FullInfo, SubflowEntry, congestion_control, full_info, names, tcp_info
from mptcp.kernel.subflow_ids import INITIAL, SubflowIds

#: What sock_diag said is asked again after this many nanoseconds.
DETAILS_AGE_NS: Final = 100_000_000
#: Which interface has an address is asked again after this many nanoseconds.
_INTERFACES_AGE_NS: Final = 2_000_000_000
#: Linux only has version 1 of the protocol.
MPTCP_VERSION: Final = 1

_LOOPBACK6: Final = bytes(15) + b"\1"
_INFINITE_SSTHRESH: Final = 0x7FFFFFFF
_NO_RTT: Final = 0xFFFFFFFF

#: ``tcpi_state`` -> state, where the number alone decides; dead and listening sockets are no subflows.
SUBFLOW_STATES: Final = {
    layout.ESTABLISHED: SubflowState.ACTIVE,
    layout.SYN_SENT: SubflowState.CONNECTING,
    layout.SYN_RECV: SubflowState.CONNECTING,
    layout.FIN_WAIT1: SubflowState.CLOSING,
    layout.FIN_WAIT2: SubflowState.CLOSING,
    layout.CLOSE_WAIT: SubflowState.CLOSING,
    layout.LAST_ACK: SubflowState.CLOSING,
    layout.CLOSING: SubflowState.CLOSING,
}
#: State of the connection, in the words of the user-space stack: a half-closed one is established.
CONNECTION_STATES: Final = {
    layout.ESTABLISHED: "established",
    layout.SYN_SENT: "connecting",
    layout.SYN_RECV: "connecting",
    layout.FIN_WAIT1: "established",
    layout.FIN_WAIT2: "established",
    layout.CLOSE_WAIT: "established",
    layout.CLOSING: "closing",
    layout.LAST_ACK: "closing",
}


class Surroundings:
    """What the connections of one namespace share when they are read: sock_diag, and which interface has which address.

    Either is absent where the system withholds it: then what comes from there is unknown (0, False, "").
    """

    __slots__ = ("__weakref__", "_diag", "_interfaces", "_interfaces_at", "_lock", "_namespace", "_pid")

    def __init__(self, namespace: NetNamespace) -> None:
        # The own one stays "the own one": entering a descriptor of it would need a privilege.
        self._namespace = namespace if namespace.is_own else namespace.duplicate()
        self._interfaces: dict[bytes, LocalAddress] = {}
        self._interfaces_at = 0
        self._diag: Diag | None = None
        self._pid = 0
        self._lock = freed_in_child(threading.Lock())

    @property
    def diag(self) -> Diag | None:
        """sock_diag; None where there is none."""
        if self._pid != os.getpid():
            with self._lock:
                if self._pid != os.getpid():
                    self._open()
        return self._diag

    def _open(self) -> None:
        # A forked child must not ask through its parent's socket: answers go to whoever reads first.
        old, self._diag = self._diag, None
        if old is not None:
            old.close()
        with contextlib.suppress(OSError):
            self._diag = Diag(self._namespace)
        self._pid = os.getpid()

    def lookup(self, local: Endpoint, remote: Endpoint) -> DiagSubflow | None:
        """What sock_diag knows of one subflow."""
        diag = self.diag
        if diag is None:
            return None
        try:
            # With an interface the lookup finds what is bound to it, and what is not bound at all.
            at = self._address(local)
            return diag.subflow(local, remote, at.interface if at is not None else 0)
        except OSError:
            return None

    def interface_of(self, local: Endpoint, bound: int) -> str:
        """The name of the interface with that address, or of the one a subflow is bound to."""
        if bound:
            with contextlib.suppress(OSError), self._namespace.entered():
                return socket.if_indextoname(bound)
        at = self._address(local)
        if at is None:
            return "lo" if local.address[:1] == b"\x7f" or local.address == _LOOPBACK6 else ""
        return at.name

    def _address(self, local: Endpoint) -> LocalAddress | None:
        now = time.monotonic_ns()
        if not self._interfaces_at or now - self._interfaces_at > _INTERFACES_AGE_NS:
            self._interfaces_at = now
            with contextlib.suppress(OSError):
                self._interfaces = {found.address: found for found in local_addresses(self._namespace)}
        return self._interfaces.get(local.address)

    def close(self) -> None:
        """Lets go of it all; nothing can be looked up any more."""
        diag, self._diag = self._diag, None
        if diag is not None:
            diag.close()
        self._namespace.close()

    def __del__(self) -> None:
        self.close()


_shared: weakref.WeakValueDictionary[tuple[int, int], Surroundings] = weakref.WeakValueDictionary()
_shared_lock = freed_in_child(threading.Lock())


def surroundings_of(namespace: NetNamespace) -> Surroundings:
    """The one for all connections of a namespace in this process, as long as one of them holds it."""
    key = namespace.identity
    with _shared_lock:
        found = _shared.get(key)
        if found is None:
            found = _shared[key] = Surroundings(namespace)
        return found


class Reading:
    """Reads one connection through its descriptor; keeps what must stay the same from one reading to the next.

    ``fd`` stays the caller's. ``ids``: who numbers the subflows, if somebody
    else does so, too. Without ``surroundings``, those of ``namespace``. ``accepted``: it came from a listening
    socket (None: not known). Any thread may read.
    """

    __slots__ = ("_accepted", "_counted", "_details", "_fd", "_ids", "_lock", "_names", "_namespace", "_reason",
                 "_surroundings", "_was_multipath")  # fmt: skip

    def __init__(
        self,
        fd: int,
        namespace: NetNamespace | None = None,
        *,
        ids: SubflowIds | None = None,
        surroundings: Surroundings | None = None,
        accepted: bool | None = None,
    ) -> None:
        self._fd = fd
        self._namespace = namespace or NetNamespace()
        self._surroundings = surroundings or surroundings_of(self._namespace)
        self._accepted = accepted
        self._was_multipath = False
        self._counted: Mapping[str, int] | None = None
        self._reason = ""
        self._names: tuple[Endpoint, Endpoint] | None = None
        self._details: dict[int, _Details] = {}
        self._ids = ids or SubflowIds()
        self._lock = freed_in_child(threading.Lock())

    def subflows(self) -> list[SubflowInfo]:
        """The subflows there are, by their ids; of plain TCP its one. Empty when not connected. OSError of getsockopt.

        About 26 µs with three subflows, 150 µs when sock_diag is asked about each (benchmarks/kernel_reading.py).
        """
        try:
            full = full_info(self._fd)
        except NotSupportedError:
            return self._plain()
        with self._lock:
            return self._read(full)

    def connection(self) -> ConnectionInfo:
        """The connection with its subflows. ``remote_token`` is 0 until this side has opened a further subflow: the
        kernel tells it only then. ``missed_events`` belongs to whoever listens."""
        try:
            full = full_info(self._fd)
        except NotSupportedError:
            return self._plain_connection()
        with self._lock:
            subflows = self._read(full)
            remote_token = next((d.remote_token for d in self._details.values() if d.remote_token), 0)
        mptcp = full.mptcp
        alive = [entry.tcp for entry in full.subflows if entry.tcp.state in SUBFLOW_STATES]
        in_flight = sum(s.in_flight_bytes for s in subflows)
        return ConnectionInfo(
            is_multipath=True,
            fallback_reason="",
            token=mptcp.token,
            remote_token=remote_token,
            version=MPTCP_VERSION,
            checksum=mptcp.checksum,
            state=self._state(mptcp.token, subflows),
            bytes_sent=mptcp.bytes_sent if mptcp.has_counters else sum(s.bytes_sent for s in subflows),
            bytes_acked=mptcp.bytes_acked if mptcp.has_counters else sum(s.bytes_acked for s in subflows),
            bytes_received=mptcp.bytes_received if mptcp.has_counters else sum(s.bytes_received for s in subflows),
            bytes_retransmitted=sum(s.bytes_retransmitted for s in subflows),
            receive_window_bytes=max((tcp.rcv_wnd for tcp in alive), default=0),
            send_window_bytes=max(0, max((tcp.snd_wnd for tcp in alive), default=0) - in_flight),
            send_buffered_bytes=_queued(self._fd, termios.TIOCOUTQ),
            receive_buffered_bytes=_queued(self._fd, termios.FIONREAD),
            subflows=subflows,
        )

    @property
    def fallback_reason(self) -> str:
        """Why the connection is plain TCP, as far as it can be known; "" while it is MPTCP."""
        if self._reason:
            return self._reason  # what other connections make the counters say later is none of this one's
        reason = fallback_reason(
            self._fd,
            self._namespace,
            was_multipath=self._was_multipath or self._was_capable(),
            accepted=self._accepted,
            before=self._counted,
        )
        if reason != UNKNOWN:
            self._reason = reason
        return reason

    def _was_capable(self) -> bool:
        """Whether sock_diag says that the handshake was MPTCP's, of a connection first looked at when it was plain."""
        try:
            told = self._surroundings.lookup(*names(self._fd))
        except OSError:
            return False
        return told is not None and bool(told.flags & FLAG_MCAP_REM)

    def note_multipath(self, counted: Mapping[str, int]) -> None:
        """The connection is MPTCP; ``counted``: the namespace's counters, not later than this."""
        self._was_multipath, self._counted = True, counted

    def invalidate(self) -> None:
        """Something has changed, or may have: the next reading asks sock_diag about every subflow."""
        with self._lock:
            for details in self._details.values():
                details.settled = False

    def tuple_of(self, subflow_id: int) -> tuple[Endpoint, Endpoint] | None:
        """(local, remote) of a subflow of the last reading, or of the initial one even if it is gone."""
        with self._lock:
            details = self._details.get(subflow_id)
            if details is not None:
                return details.local, details.remote
            return self._names if subflow_id == INITIAL else None

    def _read(self, full: FullInfo) -> list[SubflowInfo]:
        now = time.monotonic_ns()
        found: list[SubflowInfo] = []
        details_of, see = self._details, self._ids.see
        for entry in full.subflows:
            state = SUBFLOW_STATES.get(entry.tcp.state)
            if state is None:
                continue
            number = see(entry)
            details = details_of.get(number)
            if details is None or not details.settled or now - details.read_at > DETAILS_AGE_NS:
                details = self._look_up(entry, number, now)
            if state is SubflowState.ACTIVE:
                if is_stale(entry.tcp):
                    state = SubflowState.STALE
                elif details.pending:
                    state = SubflowState.PENDING
            found.append(_subflow_info(number, entry, state, details))
        if len(details_of) > len(found):
            self._forget({info.id for info in found})
        if found and not self._was_multipath:
            self._was_multipath = full.mptcp.token != 0
            self._names = names(self._fd)
        return found

    def _look_up(self, entry: SubflowEntry, number: int, now: int) -> _Details:
        told = self._surroundings.lookup(entry.local, entry.remote)
        details = self._details.get(number)
        if details is None:
            details = self._details[number] = _Details(entry.local, entry.remote)
        details.read_at = now
        if told is not None:
            details.learn(told)
        else:
            details.initial = number == INITIAL
            details.settled = entry.tcp.state == layout.ESTABLISHED
        bound = told.interface if told is not None else 0
        details.interface = self._surroundings.interface_of(entry.local, bound)
        return details

    def _forget(self, alive: set[int]) -> None:
        for number in self._details.keys() - alive:
            del self._details[number]
            self._ids.forget(number)

    def _state(self, token: int, subflows: list[SubflowInfo]) -> str:
        if not token:
            return "connecting" if subflows else "closed"
        diag = self._surroundings.diag
        if diag is not None:
            with contextlib.suppress(OSError):
                sock = diag.mptcp_socket(token)
                return CONNECTION_STATES.get(sock.state, "closed") if sock is not None else "closed"
        return "established"

    def _plain(self) -> list[SubflowInfo]:
        tcp = tcp_info(self._fd)
        state = SUBFLOW_STATES.get(tcp.state)
        if state is None:
            return []
        if state is SubflowState.ACTIVE and is_stale(tcp):
            state = SubflowState.STALE
        local, remote = names(self._fd)
        details = _Details(local, remote)
        details.initial = True
        details.interface = self._surroundings.interface_of(local, 0)
        details.congestion_control = congestion_control(self._fd)
        return [_subflow_info(INITIAL, SubflowEntry(INITIAL, local, remote, tcp), state, details)]

    def _plain_connection(self) -> ConnectionInfo:
        subflows = self._plain()
        tcp = tcp_info(self._fd)
        return ConnectionInfo(
            is_multipath=False,
            fallback_reason=self.fallback_reason,
            token=0,
            remote_token=0,
            version=-1,
            checksum=False,
            state=CONNECTION_STATES.get(tcp.state, "closed"),
            bytes_sent=sum(s.bytes_sent for s in subflows),
            bytes_acked=sum(s.bytes_acked for s in subflows),
            bytes_received=sum(s.bytes_received for s in subflows),
            bytes_retransmitted=sum(s.bytes_retransmitted for s in subflows),
            receive_window_bytes=tcp.rcv_wnd,
            send_window_bytes=max(0, tcp.snd_wnd - sum(s.in_flight_bytes for s in subflows)),
            send_buffered_bytes=_queued(self._fd, termios.TIOCOUTQ),
            receive_buffered_bytes=_queued(self._fd, termios.FIONREAD),
            subflows=subflows,
        )


class _Details:
    """What sock_diag has told of one subflow."""

    __slots__ = ("backup", "congestion_control", "initial", "interface", "local", "local_id", "pending", "read_at", "remote",
                 "remote_id", "remote_token", "settled")  # fmt: skip

    def __init__(self, local: Endpoint, remote: Endpoint) -> None:
        self.local, self.remote = local, remote
        self.backup = self.pending = self.settled = self.initial = False
        self.local_id = self.remote_id = self.remote_token = 0
        self.congestion_control = self.interface = ""
        self.read_at = 0  # monotonic nanoseconds

    def learn(self, told: DiagSubflow) -> None:
        self.backup = told.backup
        self.initial = not told.is_join
        self.local_id, self.remote_id = told.local_id, told.remote_id
        self.remote_token = told.token_remote
        self.congestion_control = told.congestion_control
        connected = told.state == layout.ESTABLISHED
        # RFC 8684 §3.2: whoever opened a subflow may use it after the fourth ACK.
        self.pending = connected and told.is_join and not told.fully_established
        self.settled = connected and not self.pending


def _subflow_info(number: int, entry: SubflowEntry, state: SubflowState, details: _Details) -> SubflowInfo:
    info = subflow_info(number, entry.local, entry.remote, entry.tcp, state)
    info.local_address_id, info.remote_address_id = details.local_id, details.remote_id
    info.backup, info.initial = details.backup, details.initial
    info.congestion_control = details.congestion_control
    info.interface = details.interface
    return info


def subflow_info(number: int, local: Endpoint, remote: Endpoint, tcp: TcpInfo, state: SubflowState) -> SubflowInfo:
    """The figures of ``tcp_info`` in this package's units: octets where the kernel counts segments."""
    mss = tcp.snd_mss
    in_flight = tcp.unacked - tcp.sacked - tcp.lost + tcp.retrans
    # The kernel counts SYN and FIN among the octets acknowledged.
    unique = tcp.bytes_sent - tcp.bytes_retrans
    return SubflowInfo(
        id=number,
        local=local,
        remote=remote,
        local_address_id=0,
        remote_address_id=0,
        state=state,
        srtt_us=tcp.rtt,
        rttvar_us=tcp.rttvar,
        rtt_min_us=0 if tcp.min_rtt == _NO_RTT else tcp.min_rtt,
        rto_us=tcp.rto,
        mss_bytes=mss,
        cwnd_bytes=tcp.snd_cwnd * mss,
        ssthresh_bytes=0 if tcp.snd_ssthresh >= _INFINITE_SSTHRESH else tcp.snd_ssthresh * mss,
        in_flight_bytes=in_flight * mss if in_flight > 0 else 0,
        bytes_sent=tcp.bytes_sent,
        bytes_acked=min(tcp.bytes_acked, unique),
        bytes_received=tcp.bytes_received,
        bytes_retransmitted=tcp.bytes_retrans,
        segments_sent=tcp.segs_out,
        segments_received=tcp.segs_in,
        retransmissions=tcp.total_retrans,
        timeouts=tcp.total_rto,
    )


def is_stale(tcp: TcpInfo) -> bool:
    """Whether the retransmission timer of an established subflow has run out since the last acknowledgement."""
    return bool(tcp.retransmits and tcp.unacked)


def _queued(fd: int, request: int) -> int:
    """Octets in a queue of the socket (FIONREAD: to be read; TIOCOUTQ: not yet acknowledged)."""
    try:
        count: int = struct.unpack("=i", fcntl.ioctl(fd, request, bytes(4)))[0]
    except OSError:
        return 0
    return max(0, count)
