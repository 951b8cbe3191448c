"""Everything about what one TCP connection sends: stream, records, acknowledgements, windows and timers.

The mechanisms are in files of their own (``retransmit_queue``, ``rtt``, ``rack``, ``sack_recovery``, ``prr``, ``frto``,
``undo``, ``persist``); this class decides which of them is to act.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

from mptcp.core.congestion.base import CongestionControl
from mptcp.core.congestion.cubic import Cubic
from mptcp.core.tcp.config import TcpConfig
from mptcp.core.tcp.frto import Frto, FrtoVerdict
from mptcp.core.tcp.persist import PersistTimer
from mptcp.core.tcp.prr import Prr
from mptcp.core.tcp.rack import Rack, TailLossProbe
from mptcp.core.tcp.record import Record
from mptcp.core.tcp.retransmit_queue import RetransmitQueue, cut
from mptcp.core.tcp.rtt import RttEstimator
from mptcp.core.tcp.sack_recovery import DUP_THRESH, DuplicateAcks, mark_losses
from mptcp.core.tcp.send_buffer import SendBuffer
from mptcp.core.tcp.undo import Undo
from mptcp.core.units import NEVER
from mptcp.core.wire.segment import Payload

#: The most octets one record may have (the length field of a DSS mapping, and of an IP packet, has 16 bits).
MAX_RECORD_BYTES = 65_535


class TimeoutKind(Enum):
    """What ``handle_timeout`` did."""

    NONE = "none"  # nothing that concerns others (also: a held-back piece may now be sent)
    RTO = "rto"  # the retransmission timer: the oldest record goes out again
    TLP = "tlp"  # a tail loss probe is about to be sent
    RACK = "rack"  # the reordering window has passed: some records are lost
    PERSIST = "persist"  # a window probe is due (``poll_probe``)


class SendState(Enum):
    """Where congestion control is."""

    OPEN = "open"
    CWR = "cwr"  # reducing the window after an ECN echo
    RECOVERY = "recovery"  # fast recovery
    LOSS = "loss"  # after a retransmission timeout, or a smaller path MTU


class _Probe(Enum):
    NONE = 0
    NEW = 1  # one segment of new data, whatever the congestion window says
    TAIL = 2  # the last segment again
    HEAD = 3  # the first lost segment, whatever the congestion window says


def initial_window_bytes(mss: int, segments: int = 10) -> int:
    """RFC 6928 §2: "min (10*MSS, max (2*MSS, 14600))", for any number of segments."""
    return min(segments * mss, max(2 * mss, segments * 1460))


def make_congestion(config: TcpConfig, mss: int) -> CongestionControl:
    """The controller of a new connection, as its configuration says."""
    return (config.congestion or Cubic)(mss, initial_window_bytes(mss, config.initial_window_segments))


class Sender:
    """Order of calls: ``set_window`` once the handshake has told it, then ``write`` or ``send_mapped`` at any time,
    ``handle_ack`` for each acceptable segment, ``poll`` until None, ``poll_probe``, ``handle_timeout`` when ``deadline``
    has come. Numbers are unwrapped sequence numbers; sizes are octets; times are microseconds.

    ``sack_enabled`` and ``timestamps_enabled`` say what was negotiated and choose the loss detection: RACK-TLP with
    both, RFC 6675 with SACK alone, NewReno without.
    """

    __slots__ = (
        "_cork", "_cwnd_limited", "_ecn_point", "_frto_room", "_fin_state", "_last_sent_us", "_mapped", "_mapped_bytes",
        "_mapped_head", "_max_flight", "_max_window", "_no_delay", "_plain_sailing", "_probe", "_prr", "_rack",
        "_recovery_point", "_small_end", "_stream", "_usage_end", "_tlp", "_undo", "_frto", "_dupacks", "_persist",
        "_pto_at", "_reo_at", "_rto_at", "_rto_max_us", "_send_buffer_bytes", "_initial_window_bytes",
        "bytes_acked", "bytes_retransmitted", "bytes_sent", "congestion", "consecutive_timeouts", "cwr_pending",
        "deadline", "dsacks", "ecn_reductions", "end", "fast_recoveries", "fin_sent", "first_seq", "gso_max_bytes",
        "mss", "nxt", "queue", "retransmissions", "rtt", "sack_enabled", "segments_sent", "spurious_recoveries",
        "spurious_timeouts", "state", "timeouts", "timestamps_enabled", "tlp_probes", "una", "upper_waiting",
        "window_edge",
    )  # fmt: skip

    def __init__(self, config: TcpConfig, congestion: CongestionControl, first_seq: int, mss: int, now: int) -> None:
        self.congestion = congestion
        self.first_seq = first_seq
        self.mss = mss
        self.gso_max_bytes = mss  # the longest record made of the stream; rounded down to segments
        self.una = first_seq  # oldest number not acknowledged
        self.nxt = first_seq  # next number never sent
        self.end = first_seq  # ``nxt`` after all that is queued
        self.window_edge = first_seq  # first number the peer does not want yet
        self.upper_waiting = False  # data waits above that only the peer's window holds back
        self.sack_enabled = config.sack
        self.timestamps_enabled = config.timestamps
        self.cwr_pending = False  # the next segment with new data carries CWR; the connection clears it
        self.fin_sent = False
        self.state = SendState.OPEN
        self.rtt = RttEstimator(config.rto_initial_us, config.rto_min_us, config.rto_max_us)
        self.queue = RetransmitQueue(first_seq)
        self.deadline = NEVER
        self.consecutive_timeouts = 0  # RTOs since the last acknowledgement of new data
        self.bytes_sent = 0
        self.bytes_acked = 0
        self.bytes_retransmitted = 0
        self.segments_sent = 0
        self.retransmissions = 0
        self.timeouts = 0
        self.spurious_timeouts = 0
        self.spurious_recoveries = 0
        self.tlp_probes = 0
        self.fast_recoveries = 0
        self.ecn_reductions = 0
        self.dsacks = 0
        self._fin_state = False  # finish() was called
        self._stream: SendBuffer | None = None
        self._mapped: list[Record] | None = None
        self._mapped_head = 0
        self._mapped_bytes = 0
        self._max_window = 0  # largest window the peer has offered
        self._small_end = first_seq  # end of the last segment sent that was not full-sized
        self._last_sent_us = now
        self._rto_at = NEVER
        self._pto_at = NEVER
        self._reo_at = NEVER
        self._recovery_point = first_seq - 1  # a state other than OPEN ends when this is acknowledged
        self._ecn_point = first_seq - 1  # no second reaction to ECN echoes before more than this is acknowledged
        self._frto_room = 0  # octets of new data that F-RTO still lets out
        self._cwnd_limited = False
        self._max_flight = 0
        self._usage_end = first_seq
        self._plain_sailing = True  # nothing sacked, lost, retransmitted, reduced, probed: the short way is enough
        self._probe = _Probe.NONE
        self._rack = Rack(first_seq)
        self._tlp = TailLossProbe()
        self._persist = PersistTimer()
        # made when first needed
        self._prr: Prr | None = None
        self._undo: Undo | None = None
        self._frto: Frto | None = None
        self._dupacks: DuplicateAcks | None = None
        self._initial_window_bytes = congestion.cwnd_bytes
        self.set_config(config)

    def set_config(self, config: TcpConfig) -> None:
        """Takes over TCP_NODELAY, TCP_CORK and sizes; what was negotiated stays."""
        self._no_delay = config.no_delay
        self._cork = config.cork
        self._rto_max_us = config.rto_max_us
        self._send_buffer_bytes = config.send_buffer_bytes

    # --- looking ------------------------------------------------------------------------------------------------
    @property
    def queued_bytes(self) -> int:
        """Octets handed over and never sent."""
        stream = self._stream
        return self._mapped_bytes + (stream.length if stream is not None else 0)

    @property
    def unacked_bytes(self) -> int:
        """Sequence numbers sent and not cumulatively acknowledged."""
        return self.nxt - self.una

    @property
    def in_flight_bytes(self) -> int:
        """What is believed to be in the network: ``pipe`` of RFC 6675."""
        credit = self._dupacks
        return self.queue.in_flight if credit is None else max(self.queue.in_flight - credit.credit_bytes, 0)

    @property
    def free_bytes(self) -> int:
        """How much ``write`` would take now."""
        return max(self._send_buffer_bytes - (self.end - self.una), 0)

    @property
    def is_all_acked(self) -> bool:
        """Everything queued, and the FIN if there is one, is acknowledged."""
        return self.una == self.end

    @property
    def fin_acked(self) -> bool:
        return self.fin_sent and self.una == self.nxt

    @property
    def oldest_unacked_us(self) -> int:
        """When the oldest octet not acknowledged was first sent; NEVER if there is none."""
        first = self.queue.first
        return first.first_sent_us if first is not None else NEVER

    @property
    def unanswered_probes(self) -> int:
        """Window probes since the peer was last heard of."""
        return self._persist.unanswered

    @property
    def ssthresh_bytes(self) -> int:
        return self.congestion.ssthresh_bytes

    def sendable_bytes(self) -> int:
        """What ``send_mapped`` may be given now to be sent at once; 0 rather than a crumb that is not worth a record."""
        queue = self.queue
        pipe = queue.in_flight + queue.lost
        if self._dupacks is not None:
            pipe = max(pipe - self._dupacks.credit_bytes, 0)
        queued = self.end - self.nxt
        room = self.congestion.cwnd_bytes - pipe - queued
        window = self.window_edge - self.end
        if self._fin_state or room <= 0 or window <= 0:
            if room <= 0:
                self._cwnd_limited = True
            return 0
        if pipe + queued:
            mss = self.mss
            if window < room:
                # RFC 9293 §3.8.6.2.1: "min(D,U) >= Eff.snd.MSS" or "min(D,U) >= Fs * Max(SND.WND)", Fs = 1/2
                return window if window >= mss or 2 * window >= self._max_window else 0
            # While acknowledgements are outstanding, rather a large record soon than a small one now.
            share = self.congestion.cwnd_bytes >> 2
            if room < mss or (room < share and room < self.gso_max_bytes):
                self._cwnd_limited = True
                return 0
        return room if room < window else window

    # --- from the application -----------------------------------------------------------------------------------
    def write(self, payload: Payload) -> int:
        """Octets of the stream; returns how many there was room for. The view must not change afterwards."""
        room = self._send_buffer_bytes - (self.end - self.una)
        size = len(payload)
        if self._fin_state or room <= 0 or not size:
            return 0
        if size > room:
            payload = memoryview(payload)[:room]
            size = room
        if self._stream is None:
            self._stream = SendBuffer()
        self._stream.append(payload)
        self.end += size
        return size

    def send_mapped(self, payloads: Sequence[Payload], length: int, mapping: object) -> int:
        """Queues one record of ``length`` octets under ``mapping``; returns its first number (``end`` before the call).

        Bounded by ``sendable_bytes``, which the caller has asked. Not after ``write`` with octets still unsent.
        """
        start = self.end
        assert 0 < length <= MAX_RECORD_BYTES and not self._fin_state and (self._stream is None or not self._stream.length)
        record = Record(start, payloads, length, mapping)
        if self._mapped is None:
            self._mapped = [record]
        else:
            self._mapped.append(record)
        self._mapped_bytes += length
        self.end = start + length
        return start

    def finish(self) -> None:
        """A FIN follows everything queued so far; nothing can be added afterwards."""
        if not self._fin_state:
            self._fin_state = True
            self.end += 1

    # --- from the network ---------------------------------------------------------------------------------------
    def set_window(self, edge: int) -> None:
        """The peer takes numbers below ``edge`` (it may also have moved to the left)."""
        self.window_edge = edge
        if edge - self.una > self._max_window:
            self._max_window = edge - self.una
        if edge > self.nxt:
            self._end_probing()

    def set_mss(self, mss: int) -> None:
        """Payload octets per segment from now on."""
        if mss != self.mss:
            self.mss = mss
            self.congestion.on_mss(mss)

    def handle_path_mtu(self, mss: int, now: int) -> None:
        """Segments longer than ``mss`` do not pass: makes them smaller, and sends again what was too long."""
        if mss >= self.mss:
            return
        old = self.mss
        self.set_mss(mss)
        queue = self.queue
        for record in queue.records[queue.index_of(self.una) :]:
            if not record.sacked and min(record.length, old) > mss:
                queue.mark_lost(record)
        if queue.lost:
            # RFC 1191 §6.5: "a TCP connection ... SHOULD NOT change the congestion window" for what a router refused:
            # the losses are no sign of congestion.
            self._plain_sailing = False
            if self.state is SendState.OPEN:
                self.state = SendState.LOSS
                self._recovery_point = self.nxt
            self._probe = _Probe.HEAD
        self._set_deadline()

    def handle_ack(
        self,
        ack: int,
        window: int,
        now: int,
        *,
        sack_blocks: Sequence[tuple[int, int]] = (),
        rtt_echo_us: int = -1,
        ece: bool = False,
        pure: bool = True,
    ) -> int:
        """An acceptable segment acknowledges everything before ``ack`` and offers ``window`` octets from there.

        ``window`` < 0 leaves the window as it is. ``sack_blocks`` are unwrapped; ``rtt_echo_us`` is ``now`` minus the
        echoed timestamp (-1: none); ``pure``: the segment carries no data, SYN or FIN. Returns the octets newly
        acknowledged (the FIN counts as one).
        """
        una = self.una
        nxt = self.nxt
        if ack > nxt:
            return 0  # of what was never sent: the connection answers that
        edge_moved = False
        if window >= 0 and ack >= una:
            edge = ack + window
            if edge != self.window_edge:
                edge_moved = True
                self.window_edge = edge
            if window > self._max_window:
                self._max_window = window
        persist = self._persist
        if persist.unanswered:
            persist.unanswered = 0
        if not (self._plain_sailing and ack > una) or sack_blocks or ece:
            return self._handle_ack_in_full(ack, now, sack_blocks, rtt_echo_us, ece, pure and not edge_moved)
        # The usual case: octets sent once are acknowledged in order.
        queue = self.queue
        acked = queue.acknowledge(ack)
        size = ack - una
        self.una = ack
        self.bytes_acked += size
        self.consecutive_timeouts = 0
        last = acked[-1]
        rtt_us = now - last.last_sent_us
        rtt = self.rtt
        per_ack = size if size > 2 * self.mss else 2 * self.mss
        # RFC 6298 §3: "TCP MUST use Karn's algorithm"; here nothing was sent twice. The oldest octets give the sample.
        rtt.on_sample(now - acked[0].last_sent_us, now, (nxt - una) // per_ack or 1)
        rack = self._rack
        rack.rtt_us = rtt_us
        rack.xmit_us = last.last_sent_us
        rack.end_seq = rack.fack = ack
        congestion = self.congestion
        limited = self._cwnd_limited or (
            congestion.cwnd_bytes < 2 * self._max_flight and congestion.cwnd_bytes < congestion.ssthresh_bytes
        )
        congestion.on_ack(size, now, rtt.srtt_us, rtt_us, limited)
        if ack == nxt:
            # RFC 6298 §5.2: "When all outstanding data has been acknowledged, turn off the retransmission timer."
            self._rto_at = self._pto_at = NEVER
            if persist.at != NEVER or self.window_edge <= nxt:
                self._update_persist(now)
            self.deadline = persist.at
        else:
            # RFC 6298 §5.3: "When an ACK is received that acknowledges new data, restart the retransmission timer so
            # that it will expire after RTO seconds (for the current value of RTO)."
            self._rto_at = now + rtt.timeout_us
            self._arm_pto(now)
        return size

    def _handle_ack_in_full(
        self, ack: int, now: int, sack_blocks: Sequence[tuple[int, int]], rtt_echo_us: int, ece: bool, plain: bool
    ) -> int:
        una = self.una
        queue = self.queue
        mss = self.mss
        flight = self.nxt - una
        sacked_before = queue.sacked
        dsack: tuple[int, int] | None = None
        if sack_blocks and self.sack_enabled:
            sack_blocks, dsack = _separate_dsack(sack_blocks, max(ack, una))
            if dsack is not None:
                self.dsacks += 1
        advanced = ack > una
        size = ack - una if advanced else 0
        acked: list[Record] = []
        if advanced:
            acked = queue.acknowledge(ack)
            self.una = ack
            self.bytes_acked += size
            self.consecutive_timeouts = 0
        delivered_records = [record for record in acked if not record.sacked]
        newly_sacked: list[Record] = []
        if self.sack_enabled:
            for left, right in sack_blocks:
                if left < right <= self.nxt:
                    newly_sacked += queue.sack(left, right, mss)
            delivered_records += newly_sacked
        delivered = size + queue.sacked - sacked_before
        if queue.resent:
            queue.next_resent()  # lets go of what is acknowledged
        echo_us = now - rtt_echo_us if rtt_echo_us >= 0 else -1
        rtt_us = self._take_sample(delivered_records, advanced, rtt_echo_us, now)
        old_data = any(record.transmissions == 1 for record in delivered_records)
        if delivered_records:
            self._rack.on_delivered(delivered_records, now, self.rtt.min_us, echo_us)
        outstanding = self.nxt - self.una

        # --- duplicate acknowledgements of a peer without SACK
        duplicate = plain and not advanced and outstanding > 0 and ack == una and not ece
        if not self.sack_enabled:
            dupacks = self._dupacks
            if duplicate:
                if dupacks is None:
                    dupacks = self._dupacks = DuplicateAcks()
                delivered = dupacks.on_duplicate(outstanding, mss)
            elif advanced and dupacks is not None:
                if self.state is SendState.RECOVERY and ack < self._recovery_point:
                    delivered = dupacks.on_partial(size, outstanding, mss)
                else:
                    delivered = max(size - dupacks.credit_bytes, 0)
                    dupacks.reset()

        # --- was the last reduction, or the last timeout, a mistake?
        undo = self._undo
        if undo is not None and undo.active:
            if advanced and echo_us >= 0 and self.state is not SendState.OPEN and undo.is_spurious_by_timestamp(echo_us):
                self._take_back(now)
            elif dsack is not None and undo.on_dsack(*dsack):
                self._take_back(now)
        frto = self._frto
        if frto is not None and frto.step and (advanced or duplicate or newly_sacked):
            verdict = frto.on_ack(ack, self.nxt, advanced, self.sack_enabled, queue.highest_sacked, old_data)
            if verdict is FrtoVerdict.SPURIOUS:
                self._take_back(now)
            elif verdict is FrtoVerdict.SEND_NEW:
                self._frto_room = 2 * mss
            elif verdict is FrtoVerdict.CONVENTIONAL:
                # RFC 5682 §2.1 (3a): "set the congestion window to no more than 3 * MSS"
                self.congestion.cwnd_bytes = min(self.congestion.cwnd_bytes, 3 * mss)

        # --- the end of an episode
        if self.state is not SendState.OPEN and self.una >= self._recovery_point:
            self._leave_recovery(now)
        if self._tlp.on_ack(ack, dsack, duplicate and not sack_blocks) and self.state is SendState.OPEN:
            # RFC 8985 §7.4.2: "The sender then SHOULD invoke a congestion control response equivalent to a fast
            # recovery."
            self._reduce(flight, now)
            self.congestion.on_recovery_exit(now)

        # --- losses
        self._detect_losses(now, dsack is not None)
        if queue.lost and self.state in (SendState.OPEN, SendState.CWR):
            self._enter_recovery(flight, now)
        elif self.state is SendState.RECOVERY and not self.sack_enabled and advanced and outstanding:
            # RFC 6582 §3.2 (3): "Partial acknowledgments: ... retransmit the first unacknowledged segment"
            self._mark_first_segment_lost()
        # RFC 3168 §6.1.2: "the TCP source ... SHOULD NOT react to congestion indications more than once every window"
        if ece and self.state is SendState.OPEN and flight and self.una > self._ecn_point:
            self._reduce(flight, now)
            self.state = SendState.CWR
            self._recovery_point = self._ecn_point = self.nxt
            self._prr_of().begin(flight)
            self.ecn_reductions += 1

        # --- the congestion window
        congestion = self.congestion
        if self.state in (SendState.RECOVERY, SendState.CWR):
            if delivered or self._probe is _Probe.HEAD:
                pipe = self.in_flight_bytes
                congestion.cwnd_bytes = max(
                    pipe + self._prr_of().on_ack(delivered, pipe, congestion.ssthresh_bytes, mss), mss
                )
        elif delivered:
            limited = self._cwnd_limited or self.state is SendState.LOSS or (
                congestion.in_slow_start and congestion.cwnd_bytes < 2 * self._max_flight
            )  # fmt: skip
            congestion.on_ack(delivered, now, self.rtt.srtt_us, rtt_us, limited)

        # --- timers
        if self.una == self.nxt:
            self._rto_at = self._pto_at = self._reo_at = NEVER
        elif advanced:
            self._rto_at = now + self.rtt.timeout_us
        self._plain_sailing = (
            self.state is SendState.OPEN
            and not queue.sacked
            and not queue.lost
            and not queue.resent
            and self._tlp.end_seq < 0
            and (self._dupacks is None or not self._dupacks.count)
        )
        if not self._may_probe_tail():
            self._pto_at = NEVER
        elif advanced:
            self._arm_pto(now)
        self._update_persist(now)
        self._set_deadline()
        return size

    def _take_sample(self, records: list[Record], advanced: bool, rtt_echo_us: int, now: int) -> int:
        """Feeds the estimator; returns the RTT of the most recently sent of ``records`` (0: not known)."""
        oldest = newest = -1
        for record in records:
            # RFC 6298 §3: "RTT samples MUST NOT be made using segments that were retransmitted (and thus for which it
            # is ambiguous whether the reply was for the first instance of the packet or a later instance)."
            if record.transmissions == 1:
                if oldest < 0:
                    oldest = record.last_sent_us
                newest = record.last_sent_us
        if oldest >= 0:
            self.rtt.on_sample(now - oldest, now)
            return now - newest
        # RFC 7323 §4.1: "A TSecr value received in a segment MAY be used to update the averaged RTT measurement only if
        # the segment advances the left edge of the send window". Its clock is coarse, so it comes second.
        if advanced and rtt_echo_us >= 0:
            self.rtt.on_sample(rtt_echo_us, now)
            return rtt_echo_us
        return 0

    # --- episodes of loss recovery ------------------------------------------------------------------------------
    def _prr_of(self) -> Prr:
        if self._prr is None:
            self._prr = Prr()
        return self._prr

    def _undo_of(self) -> Undo:
        if self._undo is None:
            self._undo = Undo()
        return self._undo

    def _reduce(self, flight: int, now: int) -> None:
        """One congestion event; not to be taken back."""
        if self._undo is not None:
            self._undo.end()
        self.congestion.on_congestion_event(now, flight)
        # RFC 3168 §6.1.2: "When an ECN-Capable TCP sender reduces its congestion window for any reason ... the TCP
        # sender sets the CWR flag in the TCP header of the first new data packet sent after the window reduction."
        self.cwr_pending = True

    def _enter_recovery(self, flight: int, now: int) -> None:
        congestion = self.congestion
        cwnd, ssthresh = congestion.cwnd_bytes, congestion.ssthresh_bytes
        if self.state is SendState.OPEN:
            self._reduce(flight, now)
            self._undo_of().begin(cwnd, ssthresh, self.una)
        self.state = SendState.RECOVERY
        self.fast_recoveries += 1
        self._recovery_point = self.nxt
        self._prr_of().begin(flight)
        # RFC 6675 §5 (4.3): "Retransmit the first data segment presumed dropped", whatever the window says
        self._probe = _Probe.HEAD
        self._tlp.reset()
        self._rto_at = now + self.rtt.timeout_us

    def _leave_recovery(self, now: int) -> None:
        if self.state is not SendState.LOSS:
            self.congestion.on_recovery_exit(now)
        if self.state is not SendState.CWR:
            self._rack.on_recovery_exit()
        self.state = SendState.OPEN
        if self._dupacks is not None:
            self._dupacks.reset()
        if self._frto is not None:
            self._frto.cancel()

    def _take_back(self, now: int) -> None:
        """The retransmissions of this episode were unnecessary: as if it had not happened."""
        undo = self._undo
        if undo is None or not undo.active:
            return
        undo.end()
        self.congestion.undo(undo.cwnd_bytes, undo.ssthresh_bytes)
        if self.state is SendState.LOSS or self.state is SendState.OPEN and self._frto is not None and self._frto.step:
            self.spurious_timeouts += 1
            self.rtt.reset_backoff()
        else:
            self.spurious_recoveries += 1
        if self.queue.lost:
            self.queue.unmark_lost()
        self.state = SendState.OPEN
        # RFC 5682 §2.1 (3b): "set the value of the "recover" variable to SND.UNA"
        self._recovery_point = self.una - 1
        if self._frto is not None:
            self._frto.cancel()
        if self._dupacks is not None:
            self._dupacks.reset()

    def _detect_losses(self, now: int, dsack: bool) -> None:
        queue = self.queue
        self._reo_at = NEVER
        if not self.sack_enabled:
            dupacks = self._dupacks
            # RFC 6582 §3.2 (2): "the Cumulative Acknowledgment field covers more than recover" guards against the
            # duplicates that follow a timeout
            if (
                dupacks is not None
                and dupacks.count >= DUP_THRESH
                and self.state in (SendState.OPEN, SendState.CWR)
                and self.una > self._recovery_point
            ):
                self._mark_first_segment_lost()
        elif not self.timestamps_enabled:
            if queue.sacked:
                mark_losses(queue, self.mss)
        elif queue.sacked or queue.resent or dsack:
            recovering = self.state in (SendState.RECOVERY, SendState.LOSS)
            # RFC 8985 §6.2 step 4 counts segments: "RACK.segs_sacked >= DupThresh"
            many = queue.sacked > (DUP_THRESH - 1) * self.mss
            self._rack.update_window(self.rtt, self.una, self.nxt, dsack, recovering, many)
            self._reo_at = self._rack.detect_losses(queue, now)

    def _mark_first_segment_lost(self) -> None:
        queue = self.queue
        first = queue.first
        if first is not None and first.transmissions == 1 and not first.lost and not first.sacked:
            if first.length > self.mss:
                queue.split(queue.index_of(first.start), first.start + self.mss)
            queue.mark_lost(first)

    # --- timers -------------------------------------------------------------------------------------------------
    def _set_deadline(self) -> None:
        self.deadline = min(self._rto_at, self._pto_at, self._reo_at, self._persist.at)

    def _may_probe_tail(self) -> bool:
        # RFC 8985 §7.2: "unless it is already in fast recovery, RTO recovery, or segments have been SACKed"
        return (
            self.state is SendState.OPEN
            and self.sack_enabled
            and self.timestamps_enabled
            and not self.queue.sacked
            and self.una != self.nxt
        )

    def _arm_pto(self, now: int) -> None:
        """The probe timer, where the short way is enough; sets ``deadline``. The retransmission timer runs."""
        rto_at = self._rto_at
        if self.sack_enabled and self.timestamps_enabled:
            pto_at = now + self._tlp.interval_us(self.rtt, self.nxt - self.una <= self.mss)
            # RFC 8985 §7.2: "If Now() + PTO > TCP_RTO_expiration(): PTO = TCP_RTO_expiration() - Now()"
            self._pto_at = pto_at = pto_at if pto_at < rto_at else rto_at
            self.deadline = pto_at
        else:
            self.deadline = rto_at

    def _update_persist(self, now: int) -> None:
        persist = self._persist
        if self.una == self.nxt and self.window_edge <= self.nxt and (self.end > self.nxt or self.upper_waiting):
            persist.arm_probe(now, self.rtt.rto_us, self._rto_max_us)
        elif not persist.is_override and (persist.at != NEVER or persist.probe_due or persist.backoff):
            persist.cancel()

    def _end_probing(self) -> None:
        if not self._persist.is_override:
            self._persist.cancel()
            self._set_deadline()

    def handle_timeout(self, now: int) -> TimeoutKind:
        """``deadline`` has come (harmless if not). At most one thing happens; call again while ``deadline`` is due."""
        kind = TimeoutKind.NONE
        if self._reo_at <= now:
            self._detect_losses(now, False)
            if self.queue.lost:
                kind = TimeoutKind.RACK
                if self.state in (SendState.OPEN, SendState.CWR):
                    self._enter_recovery(self.nxt - self.una, now)
                    pipe = self.in_flight_bytes
                    self.congestion.cwnd_bytes = max(pipe, self.mss)
        elif self._pto_at <= now:
            kind = self._on_probe_timeout(now)
        elif self._rto_at <= now:
            self._on_retransmission_timeout(now)
            kind = TimeoutKind.RTO
        elif self._persist.at <= now:
            if self._persist.on_timeout():
                kind = TimeoutKind.PERSIST
                self._persist.arm_probe(now, self.rtt.rto_us, self._rto_max_us)
        self._set_deadline()
        return kind

    def _on_probe_timeout(self, now: int) -> TimeoutKind:
        self._pto_at = NEVER
        if self.una == self.nxt:
            return TimeoutKind.NONE
        # RFC 8985 §7.3: "After attempting to send a loss probe, regardless of whether a loss probe was sent, the sender
        # MUST re-arm the RTO timer, not the PTO timer, if the FlightSize is not zero."
        self._rto_at = now + self.rtt.timeout_us
        if not self._may_probe_tail() or not self._tlp.may_probe(self.rtt):
            return TimeoutKind.NONE
        # RFC 8985 §7.3: "the sender SHOULD transmit a previously unsent data segment, if one exists and the receive
        # window allows"; else "the sender SHOULD retransmit the highest-sequence segment sent so far"
        unsent = min(self.end - self.nxt, self.mss)
        self._probe = _Probe.NEW if unsent and self.nxt + unsent <= self.window_edge else _Probe.TAIL
        self._plain_sailing = False
        self.tlp_probes += 1
        return TimeoutKind.TLP

    def _on_retransmission_timeout(self, now: int) -> None:
        queue = self.queue
        congestion = self.congestion
        first = queue.first
        if first is None:
            self._rto_at = NEVER
            return
        self.timeouts += 1
        again = self.state is SendState.LOSS and self.consecutive_timeouts > 0
        in_recovery = self.state in (SendState.RECOVERY, SendState.LOSS) and not again
        self.consecutive_timeouts += 1
        if first.sacked:
            # RFC 2018 §8: the data receiver may discard what it has reported; it must not be the oldest then
            queue.renege()
        undo = self._undo_of()
        if not (self.state in (SendState.RECOVERY, SendState.LOSS) and undo.active):
            undo.begin(congestion.cwnd_bytes, congestion.ssthresh_bytes, self.una)
        # RFC 5681 §3.1: "On the other hand, when a TCP sender detects segment loss using the retransmission timer and
        # the given segment has already been retransmitted by way of the retransmission timer at least once, the value
        # of ssthresh is held constant."
        congestion.on_timeout(now, self.nxt - self.una, not again)
        self.cwr_pending = True
        self.state = SendState.LOSS
        self._recovery_point = self.nxt
        if self._dupacks is not None:
            self._dupacks.reset()
        if self.sack_enabled and self.timestamps_enabled:
            self._rack.mark_losses_on_timeout(queue, now)
        else:
            queue.mark_all_lost()
        # RFC 6298 §5.4: "Retransmit the earliest segment that has not been acknowledged by the TCP receiver."
        self._probe = _Probe.HEAD
        self._plain_sailing = False
        self._tlp.reset()
        self._pto_at = self._reo_at = NEVER
        if self._frto is None:
            self._frto = Frto()
        # RFC 5682 §2.1 (1): "If the TCP sender is already in RTO recovery AND "recover" is larger than or equal to
        # SND.UNA ..., do not enter step 2"; §2: nor "when earlier fast recovery is underway"
        if in_recovery:
            self._frto.cancel()
        else:
            self._frto.begin(min(first.end, first.start + self.mss))
        self.rtt.on_timeout()
        # RFC 6298 §5.6: "Start the retransmission timer, such that it expires after RTO seconds (for the value of RTO
        # after the doubling operation outlined in 5.5)."
        self._rto_at = now + self.rtt.timeout_us

    # --- out ----------------------------------------------------------------------------------------------------
    def poll_probe(self) -> bool:
        """True once for each window probe that is due: a segment with number ``una - 1`` and no data."""
        due = self._persist.probe_due
        self._persist.probe_due = False
        return due

    def poll(self, now: int) -> Record | None:
        """The next record to put into a segment, lost ones first; it counts as sent. None: nothing may go now."""
        if self.queue.lost or self._probe is not _Probe.NONE:
            record = self._poll_again(now)
            if record is not None or self.queue.lost:
                return record
        if self.end == self.nxt:
            if self.una == self.nxt and (self.upper_waiting or self._persist.at != NEVER):
                self._update_persist(now)
                self._set_deadline()
            return None
        return self._poll_new(now, -1)

    def _poll_again(self, now: int) -> Record | None:
        """What has to be sent again, or has to be sent as a probe."""
        queue = self.queue
        mss = self.mss
        probe = self._probe
        self._probe = _Probe.NONE
        if probe is _Probe.NEW:
            record = self._poll_new(now, mss)
            if record is not None:
                self._tlp.on_sent(self.nxt, False, self.rtt)
                self._pto_at = NEVER
                self._set_deadline()
            return record
        if probe is _Probe.TAIL:
            last = queue.last
            if last is None or last.lost or last.sacked:
                return None
            if last.length > mss:
                last = queue.split(len(queue.records) - 1, last.start + (last.length - 1) // mss * mss)
            self._tlp.on_sent(self.nxt, True, self.rtt)
            return self._sent_again(last, now)
        lost = queue.next_lost()
        if lost is None:
            return None
        frto = self._frto
        if frto is not None and frto.step == 3:
            if self._frto_room:
                record = self._poll_new(now, self._frto_room) if self.end > self.nxt else None
                if record is not None:
                    self._frto_room = max(self._frto_room - max(record.length, mss), 0)
                    return record
                if self._frto_room < 2 * mss:
                    return None  # one new segment is out: its acknowledgement is waited for
                # RFC 5682 §2.1 (2b): "If the TCP sender does not have any new data to send, or the advertised window
                # prohibits new transmissions, the recommended action is to skip step 3"
                frto.cancel()
            else:
                return None
        room = self.congestion.cwnd_bytes - self.in_flight_bytes
        if probe is _Probe.HEAD and room < mss:
            room = mss
        # RFC 7323 §2.4: "On first retransmission, or if the sequence number is out of window by less than
        # 2^Rcv.Wind.Shift, then do normal retransmission(s) without regard to the receiver window"; "Subsequent
        # retransmissions MAY only be sent if they are within the window"
        if lost.start >= self.window_edge and lost.transmissions > 1 and lost.start != self.una:
            return None
        limit = max(self.gso_max_bytes - self.gso_max_bytes % mss, mss)
        size = min(room, limit)
        if lost.length > size:
            size -= size % mss
            if size <= 0:
                return None
            queue.split(queue.index_of(lost.start), lost.start + size)
        return self._sent_again(lost, now)

    def _sent_again(self, record: Record, now: int) -> Record:
        size = record.end - record.start
        self.queue.note_resent(record, now)
        self.bytes_retransmitted += size
        self.retransmissions += 1
        self._count_sent(record)
        if self._undo is not None and self._undo.active:
            self._undo.on_resent(size, now)
        if self.state in (SendState.RECOVERY, SendState.CWR):
            self._prr_of().on_sent(size)
        if record.start == self.una or self._rto_at == NEVER:
            # the oldest octets get a whole timeout from their latest transmission
            self._rto_at = now + self.rtt.timeout_us
        self._last_sent_us = now
        self._set_deadline()
        return record

    def _count_sent(self, record: Record) -> None:
        length = record.length
        self.bytes_sent += length
        self.segments_sent += (length + self.mss - 1) // self.mss or 1

    def _poll_new(self, now: int, forced_room: int) -> Record | None:
        """New data, as far as windows and the rules against small segments let it go. ``forced_room`` >= 0 stands for
        what the congestion window would allow."""
        queue = self.queue
        mss = self.mss
        nxt = self.nxt
        idle = self.una == nxt
        congestion = self.congestion
        if idle and now - self._last_sent_us > self.rtt.rto_us and self._last_sent_us >= 0 and self.bytes_sent:
            # RFC 5681 §4.1: "a TCP SHOULD set cwnd to no more than RW before beginning transmission if the TCP has not
            # sent data in an interval exceeding the retransmission timeout."
            congestion.on_idle(now - self._last_sent_us, self.rtt.rto_us, self._initial_window_bytes)
            self._last_sent_us = now
        if forced_room >= 0:
            room = forced_room
        else:
            room = congestion.cwnd_bytes - queue.in_flight
            if self._dupacks is not None:
                room += min(self._dupacks.credit_bytes, queue.in_flight)
        window = self.window_edge - nxt
        allowed = room if room < window else window
        mapped = self._mapped
        if mapped is not None:
            record = mapped[self._mapped_head]
            length = record.length
            if length > allowed:
                allowed = self._whole_segments(allowed, room, window, idle, now)
                if allowed <= 0:
                    return None
                record = self._cut_queued(record, allowed)
                length = allowed
            else:
                self._drop_queued()
            self._mapped_bytes -= length
        else:
            stream = self._stream
            unsent = stream.length if stream is not None else 0
            limit = self.gso_max_bytes
            limit = limit - limit % mss or mss
            size = unsent if unsent < limit else limit
            if size > allowed:
                share = congestion.cwnd_bytes >> 2
                if forced_room < 0 and not idle and room < window and room < share and room < limit:
                    self._cwnd_limited = True
                    return None
                size = self._whole_segments(allowed, room, window, idle, now)
                if size <= 0:
                    return None
            elif size < unsent:
                pass  # ``limit`` is whole segments
            elif self._fin_state:
                if window <= size:
                    if not size:
                        self._update_persist(now)
                        self._set_deadline()
                        return None
                    return self._take_stream(size, False, now)
                return self._take_stream(size, True, now)
            elif forced_room < 0:
                size = self._held_by_nagle(size, idle, now)
                if not size:
                    return None
            return self._take_stream(size, False, now)
        self._sent_new(record, now, room - length)
        return record

    def _take_stream(self, size: int, fin: bool, now: int) -> Record:
        stream = self._stream
        payloads: list[Payload] = stream.take(size) if stream is not None and size else []
        record = Record(self.nxt, payloads, size, None, fin)
        if size % self.mss:
            self._small_end = record.end
        if fin:
            self.fin_sent = True
        self._persist.may_override = False
        room = self.congestion.cwnd_bytes - self.in_flight_bytes - size
        self._sent_new(record, now, room)
        return record

    def _held_by_nagle(self, size: int, idle: bool, now: int) -> int:
        """How much of the last ``size`` octets may go now."""
        tail = size % self.mss
        if not tail or self._persist.may_override:
            return size
        if self._cork:
            size -= tail
            if not size and idle:
                self._persist.arm_override(now)
                self._set_deadline()
            return size
        # RFC 9293 §3.7.4: "If there is unacknowledged data (i.e., SND.NXT > SND.UNA), then the sending TCP endpoint
        # buffers all user data (regardless of the PSH bit) until the outstanding data has been acknowledged or until the
        # TCP endpoint can send a full-sized segment". Linux holds it only while a segment that was not full-sized is
        # outstanding (Minshall); we do that, because the last part of a large write else waits for a delayed ACK.
        if not self._no_delay and not idle and self._small_end > self.una:
            return size - tail
        return size

    def _whole_segments(self, allowed: int, room: int, window: int, idle: bool, now: int) -> int:
        """More waits than is ``allowed``: how much of it is sensible to send now (RFC 9293 §3.8.6.2.1)."""
        mss = self.mss
        if allowed >= mss:
            return allowed - allowed % mss
        if window > room:
            self._cwnd_limited = True
            return 0
        if window <= 0:
            if idle:
                self._update_persist(now)
                self._set_deadline()
            return 0
        # "Fs = 1/2 is recommended": "(3) ... if [SND.NXT = SND.UNA and]: min(D,U) >= Fs * Max(SND.WND)"
        if 2 * window >= self._max_window or self._persist.may_override:
            self._persist.may_override = False
            return window
        if idle:
            # "(4) or if the override timeout occurs"
            self._persist.arm_override(now)
            self._set_deadline()
        return 0

    def _drop_queued(self) -> None:
        """The first queued record goes out."""
        mapped = self._mapped
        assert mapped is not None
        head = self._mapped_head + 1
        if head == len(mapped):
            self._mapped = None
            self._mapped_head = 0
        elif head >= 32:
            del mapped[:head]
            self._mapped_head = 0
        else:
            self._mapped_head = head

    def _cut_queued(self, record: Record, size: int) -> Record:
        """Takes the first ``size`` octets off the first queued record."""
        left, rest = cut(record.payloads, size)  # type: ignore[arg-type]
        part = Record(record.start, left, size, record.mapping)
        record.payloads = rest
        record.start += size
        record.length -= size
        return part

    def _sent_new(self, record: Record, now: int, room: int) -> None:
        record.first_sent_us = record.last_sent_us = self._last_sent_us = now
        record.transmissions = 1
        queue = self.queue
        queue.append(record)
        self.nxt = nxt = record.end
        self._count_sent(record)
        limited = room < self.mss
        flight = queue.in_flight
        # RFC 7661 §4.3 in the form Linux has: the window is in use if in this round trip it was once filled
        if limited or self.una >= self._usage_end or (not self._cwnd_limited and flight > self._max_flight):
            self._cwnd_limited = limited
            self._max_flight = flight
            self._usage_end = nxt
        # RFC 6298 §5.1: "Every time a packet containing data is sent (including a retransmission), if the timer is not
        # running, start it running so that it will expire after RTO seconds"
        if self._rto_at == NEVER:
            self._rto_at = now + self.rtt.timeout_us
        if self._plain_sailing:
            self._arm_pto(now)
        else:
            if self.state in (SendState.RECOVERY, SendState.CWR):
                self._prr_of().on_sent(record.length)
            self._pto_at = NEVER
            if self._tlp.end_seq < 0 and self._may_probe_tail():
                self._arm_pto(now)
            self._set_deadline()


def _separate_dsack(
    blocks: Sequence[tuple[int, int]], ack: int
) -> tuple[Sequence[tuple[int, int]], tuple[int, int] | None]:
    """Takes the duplicate report off the SACK blocks, if the first of them is one."""
    left, right = blocks[0]
    # RFC 2883 §4: "If the sequence number in the first block is less than the cumulative acknowledgment ... or if it is
    # contained in the second block, it is a D-SACK block"
    if right <= ack or (len(blocks) > 1 and blocks[1][0] <= left and right <= blocks[1][1]):
        return blocks[1:], (left, right)
    return blocks, None
