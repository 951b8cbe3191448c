"""The MPTCP part of a subflow's handshake: what the peer's MP_CAPABLE and MP_JOIN make of it (RFC 8684 §3.1, §3.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mptcp.core.multipath import keys
from mptcp.core.multipath.fallback import FallbackReason, fall_back
from mptcp.core.multipath.role import Role
from mptcp.core.tcp.extension import Verdict
from mptcp.core.wire.mptcp_options import (
    FLAG_CHECKSUM,
    FLAG_DENY_JOIN_INITIAL,
    FLAG_EXTENSIBLE,
    FLAG_HMAC_SHA256,
    RST_LACK_OF_RESOURCES,
    RST_MPTCP_SPECIFIC,
    Dss,
    MpCapable,
    MpJoinAck,
    MpJoinSyn,
    MpJoinSynAck,
    MpTcprst,
)
from mptcp.core.wire.segment import ACK, RST, Segment

if TYPE_CHECKING:
    from mptcp.core.multipath.connection import Connection
    from mptcp.core.multipath.subflow import Subflow


def handle_capable_syn_ack(subflow: Subflow, segment: Segment) -> FallbackReason:
    connection = subflow.connection
    capable = _find_capable(segment)
    if not segment.flags & ACK:
        return FallbackReason.PEER_WITHOUT_MPTCP  # simultaneous open: RFC 8684 gives it no meaning
    if capable is None:
        # RFC 8684 §3.1: "If a SYN contains an MP_CAPABLE option but the SYN/ACK does not ... the MPTCP session
        # MUST operate as a regular, single-path TCP session."
        return FallbackReason.SYN_UNANSWERED if subflow.without_capable else FallbackReason.PEER_WITHOUT_MPTCP
    if capable.version != connection.version:
        return FallbackReason.VERSION
    # RFC 8684 §3.1: "The responder responds with only 1 bit set -- this is the chosen algorithm." There is but one.
    if capable.sender_key is None or not capable.flags & FLAG_HMAC_SHA256 or capable.flags & FLAG_EXTENSIBLE:
        return FallbackReason.BAD_CAPABLE
    # RFC 8684 §3.1: "if either host requires the use of checksums, checksums MUST be used"
    connection.set_remote_key(capable.sender_key, bool(capable.flags & FLAG_CHECKSUM))
    connection.remote_denies_join = bool(capable.flags & FLAG_DENY_JOIN_INITIAL) and connection.version > 0
    return FallbackReason.NONE


def handle_join_syn_ack(subflow: Subflow, segment: Segment) -> Verdict:
    for option in segment.options.mptcp:
        if isinstance(option, MpJoinSynAck):
            subflow.remote_nonce = option.nonce
            if keys.same(option.hmac, subflow.expected_hmac()[:8]):
                subflow.remote_id = option.address_id
                subflow.path.backup = subflow.local_backup or option.backup  # either side may want it so
                return Verdict.ACCEPT
            # RFC 8684 §3.2: "the HMAC returned to Host A does not match the one expected, Host A MUST close the
            # subflow with a TCP RST"
            subflow.connection.counters.bump("join_bad_hmac")
            break
    else:
        # RFC 8684 §3.2: "If the SYN/ACK as received at Host A does not have an MP_JOIN option, Host A MUST close
        # the subflow with a TCP RST."
        subflow.connection.counters.bump("join_without_option")
    subflow.close_reason = "middlebox"  # the peer has not refused anything
    subflow.reset_reason = MpTcprst(RST_MPTCP_SPECIFIC)
    return Verdict.RESET


def handle_crossing_join(subflow: Subflow, segment: Segment) -> Verdict:
    """A SYN of the peer in the place of an answer to ours."""
    # RFC 8684 §3.9.2: "both communicating hosts may simultaneously try to set up a subflow between the same pair of
    # addresses", and "standard TCP simultaneous-open logic should take care of this situation and only one subflow will be
    # established". The RFC has no SYN/ACK that asks and answers at once, so that one side has to give way: who opened the
    # connection remains the one that joins, and the other answers.
    connection = subflow.connection
    join = next((o for o in segment.options.mptcp if isinstance(o, MpJoinSyn)), None)
    if join is None or join.token != connection.token or connection.is_client:
        connection.counters.bump("join_crossed_ignored")  # a SYN where our own waits for its answer, and stands
        return Verdict.DROP
    connection.counters.bump("join_crossed")  # both ends have opened the same subflow, and this one has given way
    subflow.role = Role.JOIN_SERVER
    subflow.remote_id = join.address_id
    subflow.remote_nonce = join.nonce
    subflow.path.backup = subflow.local_backup or join.backup
    return Verdict.ACCEPT


def complete(subflow: Subflow, segment: Segment, now: int) -> Verdict:
    match subflow.role:
        case Role.CAPABLE_CLIENT:
            subflow.pending = False  # our SYN is answered; whether our key has arrived, ``confirmed`` tells
        case Role.CAPABLE_SERVER:
            return _handle_third_ack(subflow, segment, now)
        case Role.JOIN_CLIENT:
            # RFC 8684 §3.2: "it moves to the ESTABLISHED state only on receipt of an ACK from the receiver"
            # A bare acknowledgement sooner than ours can have been there and back is of something else, a challenge for
            # instance: the peer, still without our HMAC, would reset a subflow that sends data.
            too_soon = now - subflow.proved_us < subflow.tcp.sender.rtt.srtt_us >> 1
            if not segment.flags & RST and (segment.options.mptcp or not too_soon):
                subflow.confirmed = True
                subflow.send_held_signals()
                subflow.activate(now)
        case Role.JOIN_SERVER:
            for option in segment.options.mptcp:
                if isinstance(option, MpJoinAck):
                    if not keys.same(option.hmac, subflow.expected_hmac()[:20]):
                        subflow.connection.counters.bump("join_bad_hmac")
                        return subflow.refuse(RST_MPTCP_SPECIFIC)
                    if is_full(subflow.connection):
                        return subflow.refuse(RST_LACK_OF_RESOURCES)
                    subflow.confirmed = True
                    # RFC 8684 §3.2: "receipt of this packet MUST trigger a regular TCP ACK in response"
                    subflow.tcp.ack_now()
                    subflow.activate(now)
                    return Verdict.ACCEPT
            if segment.flags & RST:
                return Verdict.ACCEPT
            # RFC 8684 §3.2: "the MP_JOIN option is missing from the ACK, it MUST close the subflow with a TCP RST"
            subflow.connection.counters.bump("join_without_option")
            return subflow.refuse(RST_MPTCP_SPECIFIC)
    return Verdict.ACCEPT


def is_full(connection: Connection) -> bool:
    """Whether as many subflows work, or are being opened by us, as the connection may have."""
    if sum(not s.is_half_open for s in connection.open_subflows()) < connection.config.max_subflows:
        return False
    # RFC 8684 §3.2: "the host wants to refuse subflow establishment (for example, due to a limit ...)"
    connection.counters.bump("join_limit")
    return True


def _handle_third_ack(subflow: Subflow, segment: Segment, now: int) -> Verdict:
    connection = subflow.connection
    capable = _find_capable(segment)
    if capable is None:
        if segment.flags & RST:
            return Verdict.ACCEPT
        if any(type(o) is Dss for o in segment.options.mptcp):
            if connection.version == 0:
                # RFC 6824 §3.1: the key was in the SYN; its repetition is lost or late, and the path carries options.
                subflow.pending = False
                return Verdict.ACCEPT
            # A later packet has overtaken the third one, or that one is lost: without the client's key nothing can
            # be made of a DSS. Our SYN/ACK, sent again, makes the client repeat its key.
            connection.counters.bump("data_before_key")
            return Verdict.DROP
        # RFC 8684 §3.1: "If the third packet (the ACK) does not contain the MP_CAPABLE option, then the session
        # MUST fall back to operating as a regular, single-path TCP session."
        fall_back(connection, subflow, FallbackReason.NO_THIRD_ACK, now)
        return Verdict.ACCEPT
    if (
        capable.sender_key is None
        or capable.receiver_key != connection.local_key
        or (connection.version == 0 and capable.sender_key != connection.remote_key)
    ):
        connection.counters.bump("capable_bad_key")
        fall_back(connection, subflow, FallbackReason.BAD_CAPABLE, now)
        return Verdict.ACCEPT
    subflow.pending = False
    connection.set_remote_key(capable.sender_key, bool(capable.flags & FLAG_CHECKSUM))
    return Verdict.ACCEPT


def _find_capable(segment: Segment) -> MpCapable | None:
    for option in segment.options.mptcp:
        if isinstance(option, MpCapable):
            return option
    return None
