"""One subflow: a TCP connection and what MPTCP adds to it (RFC 8684 §3.1 to §3.3). TCP calls it as its ``Extension``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mptcp.core.multipath import checksum_failure, handshake, keys, option_arrival, subflow_failure, unmapped
from mptcp.core.multipath.closing import handle_fastclose
from mptcp.core.multipath.fallback import FallbackReason, fall_back
from mptcp.core.multipath.mapping import Mapping, ReceivedMappings, dss_checksum
from mptcp.core.multipath.role import Role
from mptcp.core.multipath.signals import Signals
from mptcp.core.tcp.extension import Extension, Verdict
from mptcp.core.units import NEVER
from mptcp.core.wire.mptcp_options import (
    FLAG_CHECKSUM,
    FLAG_DENY_JOIN_INITIAL,
    FLAG_HMAC_SHA256,
    RST_MPTCP_SPECIFIC,
    Dss,
    MpCapable,
    MpFail,
    MpFastclose,
    MpJoinAck,
    MpJoinSyn,
    MpJoinSynAck,
    MptcpOption,
    MpTcprst,
)
from mptcp.core.wire.segment import ACK, Segment
from mptcp.core.wire.sequence import MASK64
from mptcp.info import PathInfo, SubflowState

if TYPE_CHECKING:
    from mptcp.core.multipath.connection import Connection
    from mptcp.core.multipath.unmapped import Unmapped
    from mptcp.core.tcp.connection import Connection as TcpConnection
    from mptcp.core.tcp.record import Record

#: DSS with two 8-octet numbers, subflow number, length, checksum: the most that data carries (28 octets).
DATA_OVERHEAD = 28

#: How often our HMAC is sent again when no fourth packet answers it.
MAX_JOIN_TRIES = 6


class Subflow(Extension):
    """Created and owned by a ``Connection``; the host finds it by addresses and ports."""

    __slots__ = (
        "bytes_copied", "bytes_reinjected", "close_reason", "closing", "confirmed", "connection", "deadline", "dss_seen",
        "emission", "fin_signal", "id", "interface", "join_deadline", "join_tries", "key_repeated", "local_backup",
        "local_id", "local_nonce", "lost_seen", "mapping", "mappings", "options_lost", "overrides", "path", "pending",
        "pinned", "proved_us", "remote_id", "remote_nonce", "reset_reason", "role", "segments", "signals", "stale",
        "tcp", "unmapped", "without_capable",
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
        self.signals: Signals | None = None
        self.fin_signal = False  # the next ACK carries the DATA_FIN
        self.key_repeated = False  # the last ACK repeated our key, this one may carry something else
        self.deadline = NEVER  # the next of: ``join_deadline``, a pause of ``signals``, the patience with ``unmapped``
        self.join_deadline = NEVER  # when the third packet of MP_JOIN is sent again
        self.join_tries = 0
        self.proved_us = NEVER  # when our HMAC went out last, in the third packet of MP_JOIN
        self.mappings = ReceivedMappings()
        self.mapping: Mapping | None = None  # the one that covers the next octet, most likely
        self.unmapped: Unmapped | None = None
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
                if self.fin_signal or (self.signals is not None and self.signals.waiting):
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
        if self.signals is not None and self.signals.waiting:
            return self.signals.options(self, room)
        if self.fin_signal:
            self.fin_signal = False
            dsn = connection.data_sender.fin_dsn
            # RFC 8684 §3.3.3: a DATA_FIN without data has the subflow sequence number 0 and the length 1
            checksum = dss_checksum(dsn, 0, 1, ()) if connection.checksum else None
            return (Dss(*receiver.data_ack, dsn & MASK64, True, 0, 1, checksum, True),)
        return (Dss(*receiver.data_ack),)

    @property
    def claims_whole_ack(self) -> bool:
        return self.signals is not None and self.confirmed and self.signals.claims_whole_ack

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
            self.signals = Signals()
        self.signals.add(self, option)

    def send_held_signals(self) -> None:
        """What ``signal`` was given while acknowledgements still had to carry the handshake's option."""
        if self.signals is not None and self.signals.waiting:
            self.tcp.send_ack()

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
            if not segment.flags & ACK:
                return handshake.handle_crossing_join(self, segment)
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
            return option_arrival.handle_missing(self, segment, now)
        for option in options:
            if type(option) is Dss:
                self.options_lost = 0
                verdict = option_arrival.handle_dss(self, option, segment, now)
                if verdict is not Verdict.ACCEPT:
                    return verdict
            else:
                verdict = option_arrival.handle_signal(self, option, segment, now)
                if verdict is not Verdict.ACCEPT:
                    return verdict
            if connection.is_plain:
                break
        return Verdict.ACCEPT

    def activate(self, now: int) -> None:
        self.pending = False
        self.join_deadline = NEVER
        self.arm()
        self.connection.subflow_active(self, now)

    def refuse(self, reason: int) -> Verdict:
        self.close_reason = "refused"
        self.reset_reason = MpTcprst(reason)
        return Verdict.RESET

    def confirm(self, now: int) -> None:
        """The peer has shown that our options reach it."""
        self.confirmed = True
        self.send_held_signals()
        if not self.is_join:
            self.connection.fully_established(self, now)

    def handle_data(self, ssn: int, payload: memoryview, now: int) -> None:
        connection = self.connection
        while True:
            mapping = self.mapping
            if mapping is None or not mapping.ssn <= ssn < mapping.end:
                mapping = self.mapping = self.mappings.find(ssn)
                if mapping is None:
                    unmapped.hold(self, ssn, payload, now)
                    if connection.failure is not None:
                        checksum_failure.revert(connection, self, now)  # an infinite mapping that was lost on the way
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
        return checksum_failure.handle_mismatch(connection, self, mapping, held, now)

    # --- what happens -----------------------------------------------------------------------------------------------------
    def handle_fin(self, now: int) -> None:
        if self.unmapped is not None:
            # Nothing more comes that could map what is held: a FIN of ours would say that it has been delivered.
            unmapped.give_up(self)
            return
        subflow_failure.handle_fin(self.connection, self, now)

    def handle_established(self, now: int) -> None:
        if self.role is Role.JOIN_CLIENT:
            self.join_deadline = now + self.tcp.sender.rtt.rto_us
            self.join_tries = 0
            self.arm()
        elif self.role is Role.CAPABLE_CLIENT:
            self.pending = False
        self.connection.subflow_established(self, now)

    def handle_acked(self, una_ssn: int, now: int) -> None:
        if self.stale:
            self.stale = False
            self.connection.counters.bump("subflow_recovered")
            subflow_failure.relieve(self.connection, now)

    def handle_timeout(self, now: int) -> None:
        subflow_failure.handle_timeout(self.connection, self, now)

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
        subflow_failure.handle_closed(self.connection, self, error, now)

    # --- time ---------------------------------------------------------------------------------------------------------------
    def arm(self) -> None:
        """One of the deadlines has changed."""
        deadline = self.join_deadline
        if self.signals is not None:
            deadline = min(deadline, self.signals.resume_at)
        if self.unmapped is not None:
            deadline = min(deadline, self.unmapped.deadline)
        self.deadline = deadline

    def handle_deadline(self, now: int) -> None:
        if self.signals is not None and self.signals.resume_at <= now:
            self.signals.handle_pause_over(self)
        if self.unmapped is not None and self.unmapped.deadline <= now:
            unmapped.give_up(self)
        if self.join_deadline <= now:
            self._repeat_third_packet(now)
        self.arm()

    def _repeat_third_packet(self, now: int) -> None:
        # RFC 8684 §3.2: "the packet MUST be retransmitted if this ACK is not received"
        self.join_tries += 1
        if self.join_tries > MAX_JOIN_TRIES:
            self.join_deadline = NEVER
            self.close_reason = "timeout"
            self.connection.break_subflow(self, MpTcprst(RST_MPTCP_SPECIFIC))
            return
        self.join_deadline = now + (self.tcp.sender.rtt.rto_us << self.join_tries)
        self.tcp.send_ack()
