"""What the MPTCP options of a segment do after the handshake (RFC 8684 §3.3 to §3.7), and what it means when there are none."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mptcp.core.multipath import checksum_failure, unmapped
from mptcp.core.multipath.closing import delivered_by, handle_fastclose
from mptcp.core.multipath.fallback import FallbackReason, fall_back, take_infinite_mapping
from mptcp.core.multipath.mapping import Mapping
from mptcp.core.multipath.role import Role
from mptcp.core.tcp.extension import Verdict
from mptcp.core.wire.mptcp_options import (
    RST_MIDDLEBOX_INTERFERENCE,
    RST_MPTCP_SPECIFIC,
    AddAddr,
    Dss,
    MpCapable,
    MpFail,
    MpFastclose,
    MpJoinAck,
    MpJoinSyn,
    MpJoinSynAck,
    MpPrio,
    MptcpOption,
    MpTcprst,
    RemoveAddr,
)
from mptcp.core.wire.segment import FIN, RST, Segment
from mptcp.core.wire.sequence import unwrap32, unwrap64

if TYPE_CHECKING:
    from mptcp.core.multipath.subflow import Subflow

#: So many acknowledgements of data in a row without any MPTCP option are no accident.
MAX_OPTIONS_LOST = 8


def handle_dss(subflow: Subflow, dss: Dss, segment: Segment, now: int) -> Verdict:
    connection = subflow.connection
    if dss.data_ack is not None:
        sender = connection.data_sender
        near = sender.una
        data_ack = unwrap64(dss.data_ack, near) if dss.data_ack_wide else unwrap32(dss.data_ack, near)
        if not subflow.confirmed:
            subflow.confirm(now)
        subflow.dss_seen = True
        connection.handle_data_ack(subflow, data_ack, subflow.tcp.scaled_window(segment), now)
    if dss.dsn is None:
        return Verdict.ACCEPT
    subflow.dss_seen = True
    if not subflow.confirmed:
        subflow.confirm(now)
    near = connection.data_receiver.nxt
    dsn = unwrap64(dss.dsn, near) if dss.dsn_wide else unwrap32(dss.dsn, near)
    connection.data_receiver.wide_ack = dss.dsn_wide
    if dss.length == 0:
        # RFC 8684 §3.3.1: "setting the Data-Level Length field of the DSS option to the reserved value of 0"
        if connection.is_alone(subflow):
            if take_infinite_mapping(connection, subflow, dsn, dss.ssn):
                if connection.failure is not None:
                    checksum_failure.revert(connection, subflow, now)
                else:
                    fall_back(connection, subflow, FallbackReason.INFINITE_MAPPING, now)
                return Verdict.ACCEPT
            # Octets before it have lost their mapping on the way, and nobody will send them again.
            connection.counters.bump("infinite_mapping_gap")
            subflow.close_reason = "middlebox"
            subflow.reset_reason = MpTcprst(RST_MIDDLEBOX_INTERFERENCE)
            return Verdict.RESET
        connection.counters.bump("infinite_mapping_with_subflows")
        return _broken(subflow)
    if connection.version == 0 and not connection.checksum:
        # RFC 6824 §3.3: "If a checksum is present, but its use had not been negotiated in the MP_CAPABLE handshake,
        # the checksum field MUST be ignored."
        dss.checksum = None
    if (dss.checksum is None) == connection.checksum:
        # RFC 8684 §3.3: "If a checksum is present but its use had not been negotiated ..., the receiver MUST close
        # the subflow with a RST" and "If a checksum is not present when its use has been negotiated" likewise
        connection.counters.bump("dss_checksum_presence")
        return _broken(subflow)
    if dss.data_fin:
        if not connection.data_receiver.handle_fin(dsn + dss.length - 1):
            connection.counters.bump("data_fin_contradicts")
            return Verdict.ACCEPT
        subflow.tcp.ack_now()
        if dss.length == 1:
            return Verdict.ACCEPT
    return _add_mapping(subflow, dsn, dss.ssn, dss.length, dss.checksum, dss.data_fin, now)


def _add_mapping(
    subflow: Subflow, dsn: int, ssn: int, length: int, checksum: int | None, fin: bool, now: int
) -> Verdict:
    ssn = unwrap32(ssn, subflow.tcp.receiver.nxt - subflow.tcp.irs)
    mapping = subflow.mapping
    if mapping is not None and mapping.ssn == ssn and mapping.dsn == dsn:
        return Verdict.ACCEPT
    mapping = Mapping(dsn, ssn, length, checksum, fin)
    if mapping.end <= subflow.tcp.receiver.nxt - subflow.tcp.irs:
        return Verdict.ACCEPT  # of data long delivered
    wrong = subflow.mappings.add(mapping)
    if wrong:
        # RFC 8684 gives no answer to a mapping that changes; the subflow cannot be trusted any more.
        subflow.connection.counters.bump(wrong)
        return _broken(subflow)
    if subflow.unmapped is not None:
        for start, payload in unmapped.take(subflow):
            subflow.handle_data(start, payload, now)
    return Verdict.ACCEPT


def handle_signal(subflow: Subflow, option: MptcpOption, segment: Segment, now: int) -> Verdict:
    """Any option but a DSS, on a segment after the handshake."""
    connection = subflow.connection
    if isinstance(option, MpCapable):
        if option.data_length is not None and subflow.role is Role.CAPABLE_SERVER:
            # RFC 8684 §3.1: "the data parameters in an MP_CAPABLE are semantically equivalent to those in a DSS
            # option and can be used interchangeably"
            if (option.checksum is None) == connection.checksum:
                connection.counters.bump("dss_checksum_presence")
                return _broken(subflow)
            subflow.dss_seen = True
            if not subflow.confirmed:
                subflow.confirm(now)
            first = connection.remote_idsn + 1
            return _add_mapping(subflow, first, 1, option.data_length, option.checksum, False, now)
    elif isinstance(option, AddAddr):
        connection.paths.handle_add_addr(subflow, option, now)
    elif isinstance(option, RemoveAddr):
        connection.paths.handle_remove_addr(option, now)
    elif isinstance(option, MpPrio):
        connection.paths.handle_prio(subflow, option, now)
    elif isinstance(option, MpFastclose):
        return handle_fastclose(connection, subflow, option, segment, now)
    elif isinstance(option, MpFail):
        return checksum_failure.handle_fail(connection, subflow, now)
    elif isinstance(option, MpJoinAck):
        # The fourth packet was lost: RFC 8684 §3.2 has the third one repeated until it is acknowledged.
        if subflow.role is Role.JOIN_SERVER and not segment.length:
            subflow.tcp.send_ack()
    elif isinstance(option, MpJoinSynAck):
        subflow.tcp.send_ack()
    elif not isinstance(option, MpTcprst | MpJoinSyn):
        connection.counters.bump("option_unknown")
    return Verdict.ACCEPT


def handle_missing(subflow: Subflow, segment: Segment, now: int) -> Verdict:
    """A segment without any MPTCP option: harmless once, the mark of a middlebox when it shows a pattern."""
    connection = subflow.connection
    if segment.flags & (RST | FIN) or subflow.closing:
        # The acknowledgement of a FIN is not one of data, and a subflow that ends is nothing to fall back to.
        return Verdict.ACCEPT
    acknowledges_data = unwrap32(segment.ack, subflow.tcp.sender.una) > subflow.tcp.sender.una
    if acknowledges_data and connection.failure is not None:
        # The peer has reverted already: nobody there speaks of the data level any more.
        checksum_failure.revert(connection, subflow, now)
        return Verdict.ACCEPT
    if acknowledges_data and not subflow.dss_seen:
        # RFC 8684 §3.7: "If, however, an ACK is received for data (not just for the SYN) without a DSS option
        # containing a Data ACK, the sender determines that the path is not MPTCP capable."
        if subflow.is_join:
            connection.counters.bump("join_options_lost")
            subflow.close_reason = "middlebox"
            subflow.reset_reason = MpTcprst(RST_MIDDLEBOX_INTERFERENCE)
            return Verdict.RESET
        if connection.is_alone(subflow) and not subflow.tcp.fin_received:
            fall_back(connection, subflow, FallbackReason.NO_DATA_ACK, now, infinite=True)
            return Verdict.ACCEPT
    if segment.length and not subflow.dss_seen and not subflow.is_join and connection.is_alone(subflow):
        fall_back(connection, subflow, FallbackReason.NO_MAPPING, now)
    elif acknowledges_data:
        # RFC 8684 §3.7: "If a subflow breaks during operation, e.g., if it is rerouted and MPTCP options are no
        # longer permitted": the sender sees its data acknowledged, but never at the data level.
        # RFC 8684 §3.3.2: "the Data ACK is present in segments only when the Data ACK value advances, and this
        # behavior MUST be treated as valid." With several subflows it does not while octets of another are missing.
        if not connection.is_alone(subflow) and delivered_by(connection) is not subflow:
            return Verdict.ACCEPT
        subflow.options_lost += 1
        if subflow.options_lost >= MAX_OPTIONS_LOST:
            connection.counters.bump("options_lost")
            if connection.never_branched and connection.may_fall_back(subflow):
                fall_back(connection, subflow, FallbackReason.NO_DATA_ACK, now, infinite=True)
                return Verdict.ACCEPT
            subflow.close_reason = "middlebox"
            subflow.reset_reason = MpTcprst(RST_MIDDLEBOX_INTERFERENCE)
            return Verdict.RESET
    return Verdict.ACCEPT


def _broken(subflow: Subflow) -> Verdict:
    subflow.close_reason = "protocol"
    subflow.reset_reason = MpTcprst(RST_MPTCP_SPECIFIC)
    return Verdict.RESET
