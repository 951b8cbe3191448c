"""Fallback to regular TCP (RFC 8684 §3.7): the reasons, how it is done, and the memory of destinations where MPTCP failed (§3.9.3)."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

from mptcp.core.multipath import unmapped
from mptcp.core.multipath.connection_state import ConnectionState
from mptcp.core.multipath.events import EventKind
from mptcp.core.units import NEVER, SECOND
from mptcp.core.wire.mptcp_options import Dss, MpFail, MptcpOption
from mptcp.core.wire.sequence import unwrap32

if TYPE_CHECKING:
    from mptcp.core.multipath.connection import Connection
    from mptcp.core.multipath.subflow import Subflow


class FallbackReason(Enum):
    """Why a connection is regular TCP; the value is the sentence shown to a user."""

    NONE = ""
    DISABLED = "multipath was not asked for"
    LEARNED = "multipath failed to this destination, or over this interface, a short while ago"
    PEER_WITHOUT_MPTCP = "the SYN/ACK carried no MP_CAPABLE: the peer has no MPTCP, or a middlebox removed the option"
    CLIENT_WITHOUT_MPTCP = "the SYN carried no MP_CAPABLE"
    SYN_UNANSWERED = "SYNs with MP_CAPABLE got no answer, one without did"
    LOST_RACE = "a SYN with MP_CAPABLE got no answer in time, one without did"
    VERSION = "the peer speaks another version of MPTCP"
    BAD_CAPABLE = "the peer's MP_CAPABLE was not acceptable"
    NO_THIRD_ACK = "the third packet of the handshake carried no MP_CAPABLE"
    NO_DATA_ACK = "data was acknowledged without a DATA_ACK: a middlebox removes options"
    NO_MAPPING = "data came without a mapping: a middlebox removes options"
    INFINITE_MAPPING = "the peer signalled an infinite mapping"
    CHECKSUM = "a data checksum failed: a middlebox changes the payload"
    MP_FAIL = "the peer saw a data checksum fail"


#: Destinations remembered at most; the oldest is forgotten.
MAX_REMEMBERED = 4096

#: So many destinations that fail one after the other, with none between them that works, mean the interface they share.
INTERFACE_FAILURES = 5

#: In the place of an address: all of an interface.
_ANYWHERE = b""


class FailureCache:
    """Where MPTCP failed lately: per destination address and interface, and over a whole interface; with doubling memory."""

    # RFC 8684 §3.9.3: "A host may keep a system-wide cache of such information, so that it can back off from using
    # MPTCP, firstly for that particular destination host and, eventually, on a whole interface, if MPTCP connections
    # continue to fail."
    __slots__ = ("_entries", "_rows", "first_us", "longest_us")

    def __init__(self, first_us: int = 60 * SECOND, longest_us: int = 3600 * SECOND) -> None:
        self.first_us = first_us
        self.longest_us = longest_us
        self._entries: dict[tuple[bytes, int], tuple[int, int]] = {}  # (address, interface) -> (expires, failures)
        self._rows: dict[int, set[bytes]] = {}  # interface -> destinations that failed since one worked

    def failed(self, address: bytes, interface: int, now: int) -> None:
        self._remember(address, interface, now)
        if interface < 0:
            return  # the address has gone, and with it what is known of its interface
        row = self._rows.setdefault(interface, set())
        if len(row) < INTERFACE_FAILURES:
            row.add(address)
        if len(row) == INTERFACE_FAILURES:
            self._remember(_ANYWHERE, interface, now)

    def _remember(self, address: bytes, interface: int, now: int) -> None:
        _, failures = self._entries.pop((address, interface), (0, 0))
        span = min(self.first_us << min(failures, 16), self.longest_us)
        if len(self._entries) >= MAX_REMEMBERED:
            del self._entries[next(iter(self._entries))]
        self._entries[address, interface] = (now + span, failures + 1)

    def worked(self, address: bytes, interface: int) -> None:
        self._entries.pop((address, interface), None)
        if self._rows.pop(interface, None):
            self._entries.pop((_ANYWHERE, interface), None)

    def should_avoid(self, address: bytes, interface: int, now: int) -> bool:
        return any(
            entry is not None and now < entry[0]
            for entry in (self._entries.get((address, interface)), self._entries.get((_ANYWHERE, interface)))
        )


def fall_back(
    connection: Connection,
    subflow: Subflow,
    reason: FallbackReason,
    now: int,
    infinite: bool = False,
) -> None:
    """From here on regular TCP over ``subflow`` (RFC 8684 §3.7); other subflows are reset."""
    if connection.plain is not None:
        return
    # RFC 8684 §3.7: "all MPTCP subflows will have to be terminated except one"
    for other in connection.open_subflows():
        if other is not subflow:
            other.tcp.abort(now)
    if connection.failure is None:
        connection.fallback = reason
        connection.counters.bump("fallback_" + reason.name.lower())
    if reason is FallbackReason.SYN_UNANSWERED:
        connection.environment.mptcp_failed(connection, now)
    flush_held(connection, subflow)
    sender = connection.data_sender
    final: MptcpOption | None = None
    if infinite and subflow.tcp.is_established:
        # RFC 8684 §3.7: "The sender will send one final Data Sequence Mapping, with the Data-Level Length value of 0
        # indicating an infinite mapping"
        final = infinite_mapping(connection, subflow)
    become_plain(connection, subflow, final)
    assert connection.plain is not None
    for view in sender.stream.take(sender.stream.length):
        connection.plain.sender.adopt(view)
    if sender.fin_dsn >= 0:
        connection.plain.shutdown_write(now)
    sender.forget()
    for _, piece in unmapped.take(subflow):
        connection.data_receiver.buffer.append(piece)
    if connection.state is ConnectionState.CONNECTING and subflow.tcp.is_established:
        connection.state = ConnectionState.ESTABLISHED
    if connection.was_multipath and connection.failure is None:
        connection.event(EventKind.FELL_BACK, now, subflow=subflow, reason=reason.value)


def become_plain(connection: Connection, subflow: Subflow, final: MptcpOption | None = None) -> None:
    """``subflow`` is regular TCP from here on, and all there is. ``final``: what its next data still carries."""
    connection.plain = subflow.tcp
    subflow.pending = False
    # An MP_FAIL that has not gone out yet still has to.
    waiting = subflow.signals.waiting if subflow.signals is not None else ()
    parting = [option for option in waiting if isinstance(option, MpFail)]
    subflow.signals = None
    subflow.join_deadline = subflow.deadline = NEVER
    subflow.tcp.become_plain(connection.data_receiver, parting, final)
    if connection.token:
        connection.environment.release_token(connection.token)
        connection.token = 0
    connection.paths.forget()
    connection.touch()


def follow_plain(connection: Connection, now: int) -> None:
    """Regular TCP keeps the state itself; this translates it."""
    tcp = connection.plain
    assert tcp is not None
    if connection.state is ConnectionState.CONNECTING and tcp.is_established:
        connection.state = ConnectionState.ESTABLISHED
        connection.event(EventKind.ESTABLISHED, now)
    if tcp.is_over and connection.state is not ConnectionState.CLOSED:
        connection.end(tcp.error, now)


def flush_held(connection: Connection, subflow: Subflow) -> None:
    """Octets whose checksum waits for the rest of their mapping are delivered: the rest will have none."""
    for mapping in subflow.mappings:
        held, mapping.held = mapping.held, None
        dsn = mapping.dsn
        for piece in held or ():
            connection.data_receiver.handle_data(dsn, piece)
            dsn += len(piece)


def take_infinite_mapping(connection: Connection, subflow: Subflow, dsn: int, ssn: int) -> bool:
    """The peer's subflow octets from ``ssn`` on (as on the wire) are the stream from ``dsn`` on. Delivers what waited for
    a mapping; False if what this subflow has brought does not join on to the stream."""
    receiver = connection.data_receiver
    position = subflow.tcp.receiver.nxt - subflow.tcp.irs
    ssn = unwrap32(ssn, position)
    flush_held(connection, subflow)
    for start, piece in unmapped.take(subflow):
        receiver.handle_data(dsn + start - ssn, piece)
    return receiver.nxt == dsn + position - ssn and not (receiver.reorder is not None and len(receiver.reorder))


def infinite_mapping(connection: Connection, subflow: Subflow) -> MptcpOption:
    sender = connection.data_sender
    # RFC 8684 §3.7: "acts retroactively, referring to the start of the subflow sequence number of the most recent
    # segment that was known to be delivered intact (i.e., was successfully DATA_ACKed)"
    ssn = subflow.tcp.sender.end - subflow.tcp.iss - (sender.nxt - sender.una)
    checksum = 0 if connection.checksum else None
    return Dss(None, False, sender.una & 0xFFFFFFFFFFFFFFFF, True, ssn & 0xFFFFFFFF, 0, checksum)
