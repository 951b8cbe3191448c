"""A data checksum that fails on the only subflow: MP_FAIL both ways, then the infinite mapping (RFC 8684 §3.7).

From MP_FAIL on the connection is as good as regular TCP, and users see it as that. But each end leaves the data level only
with the infinite mapping of the other, or with its own: until then mappings tell which octets are new, and a peer that gets
no DATA_ACK cannot send what its infinite mapping would ride on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mptcp.core.multipath.events import EventKind
from mptcp.core.multipath.fallback import FallbackReason, fall_back
from mptcp.core.multipath.mapping import Mapping
from mptcp.core.tcp.extension import Verdict
from mptcp.core.wire.mptcp_options import MpFail
from mptcp.core.wire.sequence import MASK64

if TYPE_CHECKING:
    from mptcp.core.multipath.connection import Connection
    from mptcp.core.multipath.subflow import Subflow


class ChecksumFailure:
    """One of the two ends has seen a checksum fail. ``answered``: the peer has said MP_FAIL."""

    __slots__ = ("answered", "reason")

    def __init__(self, reason: FallbackReason) -> None:
        self.reason = reason
        self.answered = False


def handle_mismatch(
    connection: Connection, subflow: Subflow, mapping: Mapping, held: list[memoryview], now: int
) -> bool:
    """The octets of ``mapping`` are not those of its checksum. False: the subflow is reset, and they are lost with it."""
    fail = MpFail(mapping.dsn & MASK64)
    if connection.failure is None:
        if not connection.may_fall_back(subflow) or mapping.dsn != connection.data_receiver.nxt:
            # RFC 8684 §3.7: "the affected subflow must be immediately closed with a RST that includes an MP_FAIL option"
            subflow.close_reason = "checksum"
            connection.break_subflow(subflow, fail)
            return False
        _begin(connection, subflow, FallbackReason.CHECKSUM, now)
    # RFC 8684 §3.7: "if a receiver identifies a checksum failure when there is only one path, it will send back an MP_FAIL
    # option on the subflow-level ACK". The octets are delivered as the middlebox made them: nobody would have noticed in
    # regular TCP, which this is about to be.
    dsn = mapping.dsn
    for piece in held:
        connection.data_receiver.handle_data(dsn, piece)
        dsn += len(piece)
    if connection.failure is not None and not connection.failure.answered:
        subflow.signal(fail)
    return True


def handle_fail(connection: Connection, subflow: Subflow, now: int) -> Verdict:
    """MP_FAIL on an ACK: the peer has one subflow and its checksum failed, or it answers to ours."""
    connection.counters.bump("mp_fail_received")
    fail = MpFail(connection.data_receiver.nxt & MASK64)
    if connection.failure is None:
        if not connection.may_fall_back(subflow):
            subflow.reset_reason = fail
            subflow.close_reason = "middlebox"
            return Verdict.RESET
        # RFC 8684 §3.7: "the receiver of an MP_FAIL MUST also respond with an MP_FAIL in the reverse direction and
        # entirely revert to a regular TCP session"
        _begin(connection, subflow, FallbackReason.MP_FAIL, now)
        subflow.signal(fail)
    assert connection.failure is not None
    connection.failure.answered = True
    connection.touch()
    return Verdict.ACCEPT


def _begin(connection: Connection, subflow: Subflow, reason: FallbackReason, now: int) -> None:
    connection.failure = ChecksumFailure(reason)
    connection.fallback = reason
    connection.counters.bump("fallback_" + reason.name.lower())
    connection.paths.forget()
    connection.event(EventKind.FELL_BACK, now, subflow=subflow, reason=reason.value)


def push(connection: Connection, now: int) -> bool:
    """There may be new data to send. False: it waits, or has become regular TCP's; True: it goes under mappings still."""
    failure = connection.failure
    assert failure is not None
    if not failure.answered:
        return True
    # RFC 8684 §3.7: "This infinite mapping will be a DSS option on the first new packet". Without data there is none that
    # could carry it, and a DATA_FIN, which the peer still understands, does as well.
    if not connection.data_sender.stream.length:
        return True
    subflow = next((s for s in connection.subflows_by_id.values() if s.is_usable), None)
    if subflow is not None and subflow.tcp.sendable_bytes(now) > 0:
        revert(connection, subflow, now, infinite=True)
    return False


def revert(connection: Connection, subflow: Subflow, now: int, *, infinite: bool = False) -> None:
    """Nothing is left of the data level."""
    assert connection.failure is not None
    fall_back(connection, subflow, connection.failure.reason, now, infinite=infinite or connection.failure.answered)
