"""One subflow: a TCP connection and what MPTCP adds to it (RFC 8684 §3.1 to §3.3). TCP calls it as its ``Extension``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mptcp.core.multipath import handshake, keys
from mptcp.core.multipath.closing import delivered_by, handle_fastclose
from mptcp.core.multipath.fallback import FallbackReason, checksum_failed, fall_back, handle_fail, take_infinite_mapping
from mptcp.core.multipath.mapping import Mapping, ReceivedMappings, dss_checksum
from mptcp.core.multipath.role import Role
from mptcp.core.tcp.extension import Extension, Verdict
from mptcp.core.units import MILLISECOND, NEVER, SECOND
from mptcp.core.wire.mptcp_options import (
    FLAG_CHECKSUM,
    FLAG_DENY_JOIN_INITIAL,
    FLAG_HMAC_SHA256,
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
from mptcp.core.wire.mptcp_options import padded_length as options_length
from mptcp.core.wire.segment import FIN, RST, Segment
from mptcp.core.wire.sequence import MASK64, unwrap32, unwrap64
from mptcp.info import PathInfo, SubflowState

if TYPE_CHECKING:
    from mptcp.core.multipath.connection import Connection
    from mptcp.core.tcp.connection import Connection as TcpConnection
    from mptcp.core.tcp.record import Record

#: DSS with two 8-octet numbers, subflow number, length, checksum: the most that data carries (28 octets).
DATA_OVERHEAD = 28

#: Signalling options waiting for a pure ACK of one subflow.
MAX_SIGNALS = 32
#: RFC 8684 §3: "an MPTCP implementation SHOULD NOT send more than two duplicate ACKs in a row for the purposes of sending
#: MPTCP options alone": then there is a pause of a round trip, of this at least.
MAX_SIGNAL_BURST = 2
SIGNAL_PAUSE_MIN_US = 10 * MILLISECOND

#: So many acknowledgements of data in a row without any MPTCP option are no accident.
MAX_OPTIONS_LOST = 8

#: Octets without a mapping that are held in the hope of one (RFC 8684 §3.3.1: "for a short while").
MAX_UNMAPPED = 256 * 1024
#: The pieces in which they may come, and for how long a mapping is waited for.
MAX_UNMAPPED_PIECES = 1024
UNMAPPED_PATIENCE_US = SECOND


class Subflow(Extension):
    """Created and owned by a ``Connection``; the host finds it by addresses and ports."""

    __slots__ = (
        "_mapping", "bytes_copied", "bytes_reinjected", "close_reason", "closing", "confirmed", "connection", "dss_seen", "emission",
        "fin_signal",
        "id", "interface", "join_deadline", "join_tries", "key_repeated", "local_backup", "local_id", "local_nonce", "lost_seen", "mappings",
        "options_lost", "overrides", "path", "pending", "pinned", "proved_us", "remote_id", "remote_nonce", "reset_reason", "role",
        "segments", "signal_burst", "signals", "stale",
        "tcp", "unmapped", "unmapped_bytes", "unmapped_since", "without_capable",
    )  # fmt: skip

    def __init__(self, connection: Connection, subflow_id: int, role: Role, local_id: int, remote_id: int) -> None:
        self.connection = connection
        self.id = subflow_id
        self.role = role
        self.local_id = local_id
        self.remote_id = remote_id
        self.interface = -1
        self.pinned = False  # the application has chosen the interface
        self.segments: tuple[bytes, ...] = ()  # IPv6: addresses its packets visit on their way (RFC 8754)
        self.overrides: dict[str, object] | None = None  # fields of TcpConfig that are this subflow's own
        self.emission: object = None  # the host's: what all its packets have in common
        self.local_nonce = 0
        self.remote_nonce = 0
        self.local_backup = False  # we ask the peer to use this subflow as backup only
        self.pending = True  # the MPTCP handshake of this subflow is not complete: no data may be sent
        self.confirmed = False  # the peer has shown that our options reach it
        self.dss_seen = False
        self.closing = False
        self.stale = False  # its last retransmission timeout has not been followed by an acknowledgement
        self.options_lost = 0
        self.without_capable = False  # the last SYN went without MP_CAPABLE
        self.close_reason = ""
        self.reset_reason: MptcpOption | None = None
        self.signals: list[MptcpOption] | None = None
        self.signal_burst = 0  # of them have gone since the last pause
        self.fin_signal = False  # the next ACK carries the DATA_FIN
        self.key_repeated = False  # the last ACK repeated our key, this one may carry something else
        self.join_deadline = NEVER
        self.join_tries = 0
        self.proved_us = NEVER  # when our HMAC went out last, in the third packet of MP_JOIN
        self.mappings = ReceivedMappings()
        self._mapping: Mapping | None = None  # the one that covers the next octet, most likely
        self.unmapped: list[tuple[int, memoryview]] | None = None
        self.unmapped_bytes = self.unmapped_since = 0
        self.bytes_reinjected = 0
        self.bytes_copied = 0  # sent here although another subflow carries them, too
        self.lost_seen = (0, 0)  # octets lost and retransmissions, when ``redundancy`` looked last
        self.tcp: TcpConnection  # set right after TCP has been made with this extension
        self.path: PathInfo

    # --- state ------------------------------------------------------------------------------------------------------
    @property
    def is_join(self) -> bool:
        return self.role in (Role.JOIN_CLIENT, Role.JOIN_SERVER)

    @property
    def is_half_open(self) -> bool:
        """The peer's join, as long as nothing proves that it is the peer's."""
        return self.pending and self.role is Role.JOIN_SERVER

    @property
    def repeats_syn_ack(self) -> bool:
        # RFC 7430 §4: "the attacker uses SYN+MP_JOIN messages to amplify the SYN flooding attack". A joining host repeats
        # its SYN until it has an answer, so that one answer to each is enough.
        return self.role is not Role.JOIN_SERVER

    @property
    def is_usable(self) -> bool:
        """New data may be given to it."""
        return not self.pending and not self.closing and self.tcp.is_established

    @property
    def state(self) -> SubflowState:
        if self.closing:
            return SubflowState.CLOSING
        if not self.tcp.is_established:
            return SubflowState.CLOSED if self.tcp.is_over else SubflowState.CONNECTING
        if self.pending:
            return SubflowState.PENDING
        return SubflowState.STALE if self.stale else SubflowState.ACTIVE

    # --- what we send -------------------------------------------------------------------------------------------------
    def syn_options(self) -> tuple[MptcpOption, ...]:
        connection = self.connection
        match self.role:
            case Role.CAPABLE_CLIENT:
                if self.without_capable:
                    return ()
                key = connection.local_key if connection.version == 0 else None
                return (MpCapable(connection.version, self._capable_flags(), key),)
            case Role.CAPABLE_SERVER:
                # RFC 8684 §3.1: "If a SYN does not contain an MP_CAPABLE option, the SYN/ACK MUST NOT contain one"
                return (MpCapable(connection.version, self._capable_flags(), connection.local_key),)
            case Role.JOIN_CLIENT:
                return (MpJoinSyn(connection.remote_token, self.local_nonce, self.local_id, self.local_backup),)
            case Role.JOIN_SERVER:
                mac = self.own_hmac()[:8]  # RFC 8684 §3.2: "a truncated (leftmost 64 bits) HMAC"
                return (MpJoinSynAck(mac, self.local_nonce, self.local_id, self.local_backup),)

    def ack_options(self, room: int) -> tuple[MptcpOption, ...]:
        connection = self.connection
        if not self.confirmed:
            if self.role is Role.CAPABLE_CLIENT and room >= 20 and not self.key_repeated:
                # RFC 8684 §3.1: "If A does not immediately have data to send, it MUST include the MP_CAPABLE on the
                # first ACK" and it is repeated until the peer has shown that it knows our key. A DATA_FIN or a signal
                # has no room beside it and follows in an ACK of its own.
                if self.fin_signal or self.signals:
                    self.key_repeated = True
                    self.tcp.send_ack()
                return (
                    MpCapable(connection.version, self._capable_flags(), connection.local_key, connection.remote_key),
                )
            self.key_repeated = False
            if self.role is Role.JOIN_CLIENT and room >= 24:
                self.proved_us = connection.environment.now
                return (MpJoinAck(self.own_hmac()[:20]),)
        receiver = connection.data_receiver
        if self.signals and self.signals[0] is not None:
            return self._signal_options(room)
        if self.fin_signal:
            self.fin_signal = False
            dsn = connection.data_sender.fin_dsn
            # RFC 8684 §3.3.3: a DATA_FIN without data has the subflow sequence number 0 and the length 1
            checksum = dss_checksum(dsn, 0, 1, ()) if connection.checksum else None
            return (Dss(*receiver.data_ack, dsn & MASK64, True, 0, 1, checksum, True),)
        return (Dss(*receiver.data_ack),)

    @property
    def claims_whole_ack(self) -> bool:
        # An ADD_ADDR with IPv6 address, port and HMAC takes 32 octets; with timestamps there are 28. It goes on a pure
        # ACK without timestamps, which RFC 7323 §3.2 lets a receiver drop; repetition until the echo is what there is.
        signals = self.signals
        return signals is not None and self.confirmed and options_length(signals[0]) > 28

    def _signal_options(self, room: int) -> tuple[MptcpOption, ...]:
        assert self.signals
        option = self.signals[0]
        receiver = self.connection.data_receiver
        if self.signal_burst >= MAX_SIGNAL_BURST:
            return (Dss(*receiver.data_ack),)
        size = options_length(option)
        if size > room:
            # Beside data there is less room: a pure ACK of its own takes it.
            self.tcp.send_ack()
            return (Dss(*receiver.data_ack),) if room >= 12 else ()
        self.signals.pop(0)
        fits = room - size >= 12
        self.signal_burst += 1
        if not self.pending:
            pause = max(self.tcp.sender.rtt.srtt_us, SIGNAL_PAUSE_MIN_US)
            self.join_deadline = min(self.join_deadline, self.connection.environment.now + pause)
        if self.signals or not fits:
            # Also for the DATA_ACK that finds no room beside a long ADD_ADDR: the peer's data waits for it.
            self.tcp.send_ack()
        if not self.signals:
            self.signals = None
        return (option, Dss(*receiver.data_ack)) if fits else (option,)

    def data_options(self, record: Record, room: int) -> tuple[MptcpOption, ...]:
        mapping = record.mapping
        connection = self.connection
        if mapping is None:
            return self.ack_options(room)
        assert isinstance(mapping, Mapping)
        if not self.confirmed and mapping.ssn == 1 and self.role is Role.CAPABLE_CLIENT and connection.version:
            # RFC 8684 §3.1: "When A does have data to send, it must repeat the sending of the MP_CAPABLE option from
            # the first ACK, with additional data parameters. This MP_CAPABLE option is used in place of the DSS"
            return (
                MpCapable(
                    connection.version, self._capable_flags(), connection.local_key, connection.remote_key,
                    mapping.length, mapping.checksum,
                ),
            )  # fmt: skip
        receiver = connection.data_receiver
        # RFC 8684 §3.7: "A sender MUST include a DSS option with Data Sequence Mapping in every segment until one of
        # the sent segments has been acknowledged with a DSS option containing a Data ACK." Every segment has it here.
        return (
            Dss(
                *receiver.data_ack, mapping.dsn, True, mapping.ssn, mapping.length, mapping.checksum,
                mapping.data_fin,
            ),
        )  # fmt: skip

    def reset_options(self) -> tuple[MptcpOption, ...]:
        if self.connection.version == 0:
            # RFC 6824 knows MP_FAIL on a RST (§3.6), and neither MP_TCPRST nor MP_FASTCLOSE there.
            return (self.reset_reason,) if isinstance(self.reset_reason, MpFail) else ()
        if self.reset_reason is None:
            return (MpTcprst(0),)
        if isinstance(self.reset_reason, MpTcprst):
            return (self.reset_reason,)
        # RFC 8684 §3.5, §3.7: RST with MP_FASTCLOSE, or with MP_FAIL
        return (self.reset_reason,)

    @property
    def data_overhead_bytes(self) -> int:
        return DATA_OVERHEAD

    @property
    def wants_to_send(self) -> bool:
        sender = self.connection.data_sender
        return self.is_usable and (sender.stream.length > 0 or sender.has_reinjections)

    def receive_window(self) -> int:
        return self.connection.data_receiver.window()

    def signal(self, option: MptcpOption) -> None:
        """Sends ``option`` on a pure ACK of this subflow."""
        if self.signals is None:
            self.signals = []
        if len(self.signals) < MAX_SIGNALS and option not in self.signals:
            self.signals.append(option)
            if self.signal_burst < MAX_SIGNAL_BURST:
                self.tcp.send_ack()
            self.connection.mark(self)

    def _capable_flags(self) -> int:
        connection = self.connection
        flags = FLAG_HMAC_SHA256
        if connection.checksum:
            flags |= FLAG_CHECKSUM
        if connection.config.deny_join_initial and connection.version:
            flags |= FLAG_DENY_JOIN_INITIAL
        return flags

    def own_hmac(self) -> bytes:
        c = self.connection
        return keys.join_hmac(c.local_key, c.remote_key, self.local_nonce, self.remote_nonce, c.version)

    def expected_hmac(self) -> bytes:
        c = self.connection
        return keys.join_hmac(c.remote_key, c.local_key, self.remote_nonce, self.local_nonce, c.version)

    # --- what comes in: SYNs --------------------------------------------------------------------------------------------
    def handle_syn_options(self, segment: Segment, now: int) -> Verdict:
        if self.role is Role.CAPABLE_CLIENT:
            reason = handshake.handle_capable_syn_ack(self, segment)
            if reason is not FallbackReason.NONE:
                fall_back(self.connection, self, reason, now)
            return Verdict.ACCEPT
        if self.role is Role.JOIN_CLIENT:
            return handshake.handle_join_syn_ack(self, segment)
        return Verdict.ACCEPT  # the SYN itself was judged by the listener, or by Connection.accept_join

    # --- what comes in: later segments ------------------------------------------------------------------------------------
    def handle_options(self, segment: Segment, now: int) -> Verdict:
        options = segment.options.mptcp
        connection = self.connection
        if self.pending:
            verdict = handshake.complete(self, segment, now)
            if verdict is not Verdict.ACCEPT or connection.is_plain or self.role is Role.JOIN_SERVER:
                return verdict
        if not options:
            return self._handle_missing_options(segment, now)
        for option in options:
            if type(option) is Dss:
                self.options_lost = 0
                verdict = self._handle_dss(option, segment, now)
                if verdict is not Verdict.ACCEPT:
                    return verdict
            else:
                verdict = self._handle_rare(option, segment, now)
                if verdict is not Verdict.ACCEPT:
                    return verdict
            if connection.is_plain:
                break
        return Verdict.ACCEPT

    def activate(self, now: int) -> None:
        self.pending = False
        self.join_deadline = NEVER
        self.connection.subflow_active(self, now)

    def refuse(self, reason: int) -> Verdict:
        self.close_reason = "refused"
        self.reset_reason = MpTcprst(reason)
        return Verdict.RESET

    def _handle_missing_options(self, segment: Segment, now: int) -> Verdict:
        """A segment without any MPTCP option: harmless once, the mark of a middlebox when it shows a pattern."""
        connection = self.connection
        if segment.flags & (RST | FIN) or self.closing:
            # The acknowledgement of a FIN is not one of data, and a subflow that ends is nothing to fall back to.
            return Verdict.ACCEPT
        acknowledges_data = unwrap32(segment.ack, self.tcp.sender.una) > self.tcp.sender.una
        if acknowledges_data and not self.dss_seen:
            # RFC 8684 §3.7: "If, however, an ACK is received for data (not just for the SYN) without a DSS option
            # containing a Data ACK, the sender determines that the path is not MPTCP capable."
            if self.is_join:
                connection.counters.bump("join_options_lost")
                self.close_reason = "middlebox"
                self.reset_reason = MpTcprst(RST_MIDDLEBOX_INTERFERENCE)
                return Verdict.RESET
            if connection.is_alone(self) and not self.tcp.fin_received:
                fall_back(connection, self, FallbackReason.NO_DATA_ACK, now, infinite=True)
                return Verdict.ACCEPT
        if segment.length and not self.dss_seen and not self.is_join and connection.is_alone(self):
            fall_back(connection, self, FallbackReason.NO_MAPPING, now)
        elif acknowledges_data:
            # RFC 8684 §3.7: "If a subflow breaks during operation, e.g., if it is rerouted and MPTCP options are no
            # longer permitted": the sender sees its data acknowledged, but never at the data level.
            # RFC 8684 §3.3.2: "the Data ACK is present in segments only when the Data ACK value advances, and this
            # behavior MUST be treated as valid." With several subflows it does not while octets of another are missing.
            if not connection.is_alone(self) and delivered_by(connection) is not self:
                return Verdict.ACCEPT
            self.options_lost += 1
            if self.options_lost >= MAX_OPTIONS_LOST:
                connection.counters.bump("options_lost")
                if connection.never_branched and connection.may_fall_back(self):
                    fall_back(connection, self, FallbackReason.NO_DATA_ACK, now, infinite=True)
                    return Verdict.ACCEPT
                self.close_reason = "middlebox"
                self.reset_reason = MpTcprst(RST_MIDDLEBOX_INTERFERENCE)
                return Verdict.RESET
        return Verdict.ACCEPT

    def _handle_dss(self, dss: Dss, segment: Segment, now: int) -> Verdict:
        connection = self.connection
        if dss.data_ack is not None:
            sender = connection.data_sender
            near = sender.una
            data_ack = unwrap64(dss.data_ack, near) if dss.data_ack_wide else unwrap32(dss.data_ack, near)
            if not self.confirmed:
                self._confirm(now)
            self.dss_seen = True
            connection.handle_data_ack(self, data_ack, self.tcp.scaled_window(segment), now)
        if dss.dsn is None:
            return Verdict.ACCEPT
        self.dss_seen = True
        if not self.confirmed:
            self._confirm(now)
        near = connection.data_receiver.nxt
        dsn = unwrap64(dss.dsn, near) if dss.dsn_wide else unwrap32(dss.dsn, near)
        connection.data_receiver.wide_ack = dss.dsn_wide
        if dss.length == 0:
            # RFC 8684 §3.3.1: "setting the Data-Level Length field of the DSS option to the reserved value of 0"
            if connection.is_alone(self):
                if take_infinite_mapping(connection, self, dsn, dss.ssn):
                    fall_back(connection, self, FallbackReason.INFINITE_MAPPING, now)
                    return Verdict.ACCEPT
                # Octets before it have lost their mapping on the way, and nobody will send them again.
                connection.counters.bump("infinite_mapping_gap")
                self.close_reason = "middlebox"
                self.reset_reason = MpTcprst(RST_MIDDLEBOX_INTERFERENCE)
                return Verdict.RESET
            connection.counters.bump("infinite_mapping_with_subflows")
            return self._broken(RST_MPTCP_SPECIFIC)
        if connection.version == 0 and not connection.checksum:
            # RFC 6824 §3.3: "If a checksum is present, but its use had not been negotiated in the MP_CAPABLE handshake,
            # the checksum field MUST be ignored."
            dss.checksum = None
        if (dss.checksum is None) == connection.checksum:
            # RFC 8684 §3.3: "If a checksum is present but its use had not been negotiated ..., the receiver MUST close
            # the subflow with a RST" and "If a checksum is not present when its use has been negotiated" likewise
            connection.counters.bump("dss_checksum_presence")
            return self._broken(RST_MPTCP_SPECIFIC)
        if dss.data_fin:
            if not connection.handle_data_fin(dsn + dss.length - 1, now):
                connection.counters.bump("data_fin_contradicts")
                return Verdict.ACCEPT
            self.tcp.ack_now()
            if dss.length == 1:
                return Verdict.ACCEPT
        return self._add_mapping(dsn, dss.ssn, dss.length, dss.checksum, dss.data_fin, now)

    def _add_mapping(self, dsn: int, ssn: int, length: int, checksum: int | None, fin: bool, now: int) -> Verdict:
        ssn = unwrap32(ssn, self.tcp.receiver.nxt - self.tcp.irs)
        mapping = self._mapping
        if mapping is not None and mapping.ssn == ssn and mapping.dsn == dsn:
            return Verdict.ACCEPT
        mapping = Mapping(dsn, ssn, length, checksum, fin)
        if mapping.end <= self.tcp.receiver.nxt - self.tcp.irs:
            return Verdict.ACCEPT  # of data long delivered
        wrong = self.mappings.add(mapping)
        if wrong:
            # RFC 8684 gives no answer to a mapping that changes; the subflow cannot be trusted any more.
            self.connection.counters.bump(wrong)
            return self._broken(RST_MPTCP_SPECIFIC)
        if self.unmapped:
            held, self.unmapped = self.unmapped, None
            for start, payload in held:
                self.handle_data(start, payload, now)
        return Verdict.ACCEPT

    def _broken(self, reason: int) -> Verdict:
        self.close_reason = "protocol"
        self.reset_reason = MpTcprst(reason)
        return Verdict.RESET

    def _confirm(self, now: int) -> None:
        self.confirmed = True
        self.send_held_signals()
        if not self.is_join:
            self.connection.fully_established(self, now)

    def send_held_signals(self) -> None:
        """What ``signal`` was given while acknowledgements still had to carry the handshake's option."""
        if self.signals:
            self.tcp.send_ack()

    def _handle_rare(self, option: MptcpOption, segment: Segment, now: int) -> Verdict:
        connection = self.connection
        if isinstance(option, MpCapable):
            if option.data_length is not None and self.role is Role.CAPABLE_SERVER:
                # RFC 8684 §3.1: "the data parameters in an MP_CAPABLE are semantically equivalent to those in a DSS
                # option and can be used interchangeably"
                if (option.checksum is None) == connection.checksum:
                    connection.counters.bump("dss_checksum_presence")
                    return self._broken(RST_MPTCP_SPECIFIC)
                self.dss_seen = True
                if not self.confirmed:
                    self._confirm(now)
                first = connection.remote_idsn + 1
                return self._add_mapping(first, 1, option.data_length, option.checksum, False, now)
        elif isinstance(option, AddAddr):
            connection.paths.handle_add_addr(self, option, now)
        elif isinstance(option, RemoveAddr):
            connection.paths.handle_remove_addr(option, now)
        elif isinstance(option, MpPrio):
            connection.paths.handle_prio(self, option, now)
        elif isinstance(option, MpFastclose):
            return handle_fastclose(connection, self, option, segment, now)
        elif isinstance(option, MpFail):
            return handle_fail(connection, self, option, now)
        elif isinstance(option, MpJoinAck):
            # The fourth packet was lost: RFC 8684 §3.2 has the third one repeated until it is acknowledged.
            if self.role is Role.JOIN_SERVER and not segment.length:
                self.tcp.send_ack()
        elif isinstance(option, MpJoinSynAck):
            self.tcp.send_ack()
        elif not isinstance(option, MpTcprst | MpJoinSyn):
            connection.counters.bump("option_unknown")
        return Verdict.ACCEPT

    def handle_data(self, ssn: int, payload: memoryview, now: int) -> None:
        connection = self.connection
        while True:
            mapping = self._mapping
            if mapping is None or not mapping.ssn <= ssn < mapping.end:
                mapping = self._mapping = self.mappings.find(ssn)
                if mapping is None:
                    self._hold(ssn, payload, now)
                    return
            if self.unmapped is not None:
                # In order, and mapped again: what is held lies before it, and its mapping is lost. The peer sees that
                # the data level does not acknowledge it, and sends it again.
                self.unmapped = None
            room = mapping.end - ssn
            rest = None
            if len(payload) > room:
                rest = payload[room:]
                payload = payload[:room]
            if mapping.checksum is None:
                if not connection.data_receiver.handle_data(mapping.dsn + ssn - mapping.ssn, payload):
                    connection.counters.bump("data_out_of_window")
            else:
                if mapping.held is None:
                    mapping.held = []
                mapping.held.append(payload)
                if ssn + len(payload) == mapping.end and not self._release(mapping, now):
                    if rest is not None and connection.is_plain:
                        connection.data_receiver.buffer.append(rest)
                    return
            if rest is None:
                return
            ssn = mapping.end
            payload = rest

    def _release(self, mapping: Mapping, now: int) -> bool:
        """All octets of a checksummed mapping are there: delivers them if the checksum is right."""
        connection = self.connection
        assert mapping.held is not None
        held, mapping.held = mapping.held, None
        if dss_checksum(mapping.dsn, mapping.ssn, mapping.length, held) == mapping.checksum:
            dsn = mapping.dsn
            for piece in held:
                if not connection.data_receiver.handle_data(dsn, piece):
                    connection.counters.bump("data_out_of_window")
                dsn += len(piece)
            return True
        connection.counters.bump("data_checksum_failed")
        checksum_failed(connection, self, mapping, held, now)
        return False

    def _hold(self, ssn: int, payload: memoryview, now: int) -> None:
        # RFC 8684 §3.7: a subflow whose options are lost in mid-connection "SHOULD be treated as broken and closed with a
        # RST, since no data can be delivered to the application layer and no fallback signal can be reliably sent". Linux
        # falls back here when there never was another subflow. We do not: a sender that has not noticed sends again what
        # gets no DATA_ACK, as new octets of the subflow, and without a mapping nobody can tell them from new data.
        # RFC 8684 §3.3.1: "Implementations MAY hold onto such unmapped data for a short while, in the expectation
        # that a mapping will arrive shortly."
        if self.unmapped is None:
            self.unmapped = []
            self.unmapped_bytes = 0
            self.unmapped_since = now
            self.join_deadline = min(self.join_deadline, now + UNMAPPED_PATIENCE_US)
        self.unmapped.append((ssn, payload))
        self.unmapped_bytes += len(payload)
        self.connection.counters.bump("data_without_mapping")
        if (
            self.unmapped_bytes > MAX_UNMAPPED
            or len(self.unmapped) > MAX_UNMAPPED_PIECES
            or now - self.unmapped_since > UNMAPPED_PATIENCE_US
        ):
            # "If a mapping ... does not arrive within a receive window of data, that subflow SHOULD be treated as
            # broken, closed with a RST, and any unmapped data silently discarded." A sender whose data is never
            # acknowledged at the data level sends but little of it, and so a moment without a mapping is enough.
            self._give_up_unmapped()

    def _give_up_unmapped(self) -> None:
        self.unmapped = None
        self.close_reason = "middlebox"
        self.connection.break_subflow(self, MpTcprst(RST_MIDDLEBOX_INTERFERENCE))

    # --- what happens -----------------------------------------------------------------------------------------------------
    def handle_fin(self, now: int) -> None:
        if self.unmapped is not None:
            # Nothing more comes that could map what is held: a FIN of ours would say that it has been delivered.
            self._give_up_unmapped()
            return
        self.connection.subflow_finished(self, now)

    def handle_established(self, now: int) -> None:
        if self.role is Role.JOIN_CLIENT:
            self.join_deadline = now + self.tcp.sender.rtt.rto_us
            self.join_tries = 0
        elif self.role is Role.CAPABLE_CLIENT:
            self.pending = False
        self.connection.subflow_established(self, now)

    def handle_join_deadline(self, now: int) -> None:
        """No fourth ACK yet: the third one is sent again. Later: signals that had to wait, no mapping for data."""
        if not self.pending:
            self.join_deadline = NEVER
            self.signal_burst = 0
            if self.signals:
                self.tcp.send_ack()
            if self.unmapped is not None:
                self.join_deadline = self.unmapped_since + UNMAPPED_PATIENCE_US
                if now >= self.join_deadline:
                    self.join_deadline = NEVER
                    self._give_up_unmapped()
            return
        # RFC 8684 §3.2: "the packet MUST be retransmitted if this ACK is not received"
        self.join_tries += 1
        if self.join_tries > 6:
            self.join_deadline = NEVER
            self.close_reason = "timeout"
            self.connection.break_subflow(self, MpTcprst(RST_MPTCP_SPECIFIC))
            return
        self.join_deadline = now + (self.tcp.sender.rtt.rto_us << self.join_tries)
        self.tcp.send_ack()

    def handle_acked(self, una_ssn: int, now: int) -> None:
        if self.stale:
            self.stale = False
            self.connection.counters.bump("subflow_recovered")
            self.connection.relieve_failing(now)

    def handle_timeout(self, now: int) -> None:
        self.connection.handle_subflow_timeout(self, now)

    def handle_syn_timeout(self, count: int, now: int) -> None:
        # RFC 8684 §3.1: "It is expected that a sender will eventually fall back to single-path TCP (i.e., without the
        # MP_CAPABLE option) in order to work around middleboxes that may drop packets with unknown options"
        if self.role is Role.CAPABLE_CLIENT and count >= self.connection.config.capable_syns:
            self.without_capable = True

    def handle_reset(self, segment: Segment, now: int) -> None:
        for option in segment.options.mptcp:
            if isinstance(option, MpFastclose):
                handle_fastclose(self.connection, self, option, segment, now)
            elif isinstance(option, MpFail):
                self.connection.counters.bump("mp_fail_received")
            elif isinstance(option, MpTcprst):
                # RFC 8684 §3.6: "If the error condition is considered to be Permanent, the receiver of the RST segment
                # SHOULD NOT try to re-establish a subflow for this connection over this path."
                self.close_reason = "reset-transient" if option.transient else f"reset-{option.reason}"
        if not self.close_reason:
            self.close_reason = "refused" if self.pending else "reset"

    def handle_closed(self, error: Exception | None, now: int) -> None:
        self.connection.subflow_closed(self, error, now)
