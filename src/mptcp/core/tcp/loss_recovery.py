"""What acknowledgements and timeouts tell the sender: which octets arrived, which are lost, how large the window is now."""

from __future__ import annotations

from collections.abc import Sequence

from mptcp.core.tcp.frto import Frto, FrtoVerdict
from mptcp.core.tcp.prr import Prr
from mptcp.core.tcp.record import Record
from mptcp.core.tcp.sack_recovery import DUP_THRESH, DuplicateAcks, mark_losses
from mptcp.core.tcp.sender_state import Probe, SenderState, SendState, TimeoutKind
from mptcp.core.tcp.undo import Undo
from mptcp.core.units import NEVER


class LossRecovery(SenderState):
    """The sender's side of ``handle_ack``, ``handle_timeout`` and ``handle_path_mtu``."""

    __slots__ = ()

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
            # RFC 1191 §6.5: "a retransmission caused by a Datagram Too Big message should not change the congestion
            # window." It also says to slow-start; like Linux we let the window that is there decide.
            self._plain_sailing = False
            if self._undo is not None:
                self._undo.end()  # these are lost for certain
            if self.state is SendState.OPEN:
                self.state = SendState.LOSS
                self._recovery_point = self.nxt
            self._probe = Probe.HEAD
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
        # RFC 6298 §3: "TCP MUST use Karn's algorithm [KP87] for taking RTT samples"; here nothing was sent twice. The
        # oldest octets give the sample.
        rtt.on_sample(now - acked[0].last_sent_us, now, (nxt - una) // (size + 2 * self.mss) or 1)
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
        flight = self.nxt - una
        sacked_before = queue.sacked
        dsack: tuple[int, int] | None = None
        if not self.sack_enabled:
            sack_blocks = ()
        elif sack_blocks:
            sack_blocks, dsack = _separate_dsack(sack_blocks, max(ack, una))
            if dsack is not None:
                self.dsacks += 1
        advanced = ack > una
        size = 0
        arrived: list[Record] = []  # newly acknowledged, cumulatively or selectively
        if advanced:
            size = ack - una
            arrived = [record for record in queue.acknowledge(ack) if not record.sacked]
            self.una = una = ack
            self.bytes_acked += size
            self.consecutive_timeouts = 0
        for left, right in sack_blocks:
            if left < right <= self.nxt:
                arrived += queue.sack(left, right, self.mss)
        delivered = size + queue.sacked - sacked_before
        if queue.resent:
            queue.next_resent()  # lets go of what is acknowledged
        echo_us = now - rtt_echo_us if rtt_echo_us >= 0 else -1
        rtt_us = self._take_sample(arrived, advanced, rtt_echo_us, flight, now)
        if arrived:
            # An ACK that does not advance echoes the last segment in order, not the one it reports (RFC 7323 §4.3).
            self._rack.on_delivered(arrived, now, self.rtt.min_us, echo_us if advanced else -1)
        duplicate = plain and not advanced and ack == una != self.nxt and not ece
        if not self.sack_enabled:
            delivered = self._count_duplicates(duplicate, size)

        self._judge_episode(ack, advanced, duplicate, arrived, dsack, echo_us, now)
        reducing = self.state in (SendState.RECOVERY, SendState.CWR)
        if self.state is not SendState.OPEN and una >= self._recovery_point:
            self._leave_recovery(now)
        if self._tlp.on_ack(ack, dsack, duplicate and not sack_blocks) and self.state is SendState.OPEN:
            # RFC 8985 §7.4.2: "The sender then SHOULD invoke a congestion control response equivalent to a fast
            # recovery."
            self._reduce(flight, now)
            self.congestion.on_recovery_exit(now)

        self._detect_losses(now, dsack is not None)
        if queue.lost and self.state in (SendState.OPEN, SendState.CWR):
            self._enter_recovery(flight, now)
        elif self.state is SendState.RECOVERY and not self.sack_enabled and advanced:
            # RFC 6582 §3.2 (3): "If this ACK does *not* acknowledge all of the data up to and including recover, then
            # this is a partial ACK. In this case, retransmit the first unacknowledged segment."
            self._mark_first_segment_lost()
            self._probe = Probe.HEAD
        # RFC 3168 §6.1.2: "TCP should not react to congestion indications more than once every window of data"
        if ece and flight and self.state is SendState.OPEN and una > self._ecn_point:
            self._reduce(flight, now)
            self.state = SendState.CWR
            self._recovery_point = self._ecn_point = self.nxt
            self._prr_of().begin(flight)
            self.ecn_reductions += 1

        if delivered > 0:
            if self.state in (SendState.RECOVERY, SendState.CWR):
                self._reduce_proportionally(delivered)
                self._may_guess = self.state is SendState.RECOVERY and self.sack_enabled and not self.timestamps_enabled
            elif (size or self.sack_enabled) and not reducing:
                congestion = self.congestion
                if self.state is SendState.LOSS and not self.sack_enabled:
                    # most of it may have arrived long ago: RFC 3465 §2.3 allows two segments per ACK then
                    delivered = min(delivered, 2 * self.mss)
                limited = (
                    self._cwnd_limited
                    or self.state is SendState.LOSS
                    or (congestion.in_slow_start and congestion.cwnd_bytes < 2 * self._max_flight)
                )
                congestion.on_ack(delivered, now, self.rtt.srtt_us, rtt_us, limited)
        self._rearm(advanced, now)
        return size

    def _rearm(self, advanced: bool, now: int) -> None:
        """The timers after an acknowledgement, and whether the next one may take the short way."""
        queue = self.queue
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

    def _take_sample(self, arrived: list[Record], advanced: bool, rtt_echo_us: int, flight: int, now: int) -> int:
        """Feeds the estimator; returns the RTT of the most recently sent of ``arrived`` (0: not known)."""
        oldest = newest = -1
        octets = 2 * self.mss
        for record in arrived:
            # RFC 6298 §3: "RTT samples MUST NOT be made using segments that were retransmitted (and thus for which it
            # is ambiguous whether the reply was for the first instance of the packet or a later instance)."
            if record.transmissions == 1:
                if oldest < 0:
                    oldest = record.last_sent_us
                newest = record.last_sent_us
                octets += record.length
        if oldest >= 0:
            self.rtt.on_sample(now - oldest, now, flight // octets or 1)
            return now - newest
        # RFC 7323 §4.1: "A TSecr value received in a segment MAY be used to update the averaged RTT measurement only if
        # the segment advances the left edge of the send window". Its clock is coarse, so it comes second.
        if advanced and rtt_echo_us >= 0:
            self.rtt.on_sample(rtt_echo_us, now)
            return rtt_echo_us
        return 0

    def _count_duplicates(self, duplicate: bool, size: int) -> int:
        """A peer without SACK: how many octets have newly left the network; ``size`` are newly acknowledged."""
        dupacks = self._dupacks
        outstanding = self.nxt - self.una
        if duplicate:
            if self.state is SendState.LOSS:
                return 0  # go-back-N: what is sent again and had arrived gives duplicates that mean nothing
            if dupacks is None:
                dupacks = self._dupacks = DuplicateAcks()
            return dupacks.on_duplicate(outstanding, self.mss)
        if not size or dupacks is None:
            return size
        if self.state is SendState.RECOVERY and self.una < self._recovery_point:
            return dupacks.on_partial(size, outstanding, self.mss)
        counted = dupacks.credit_bytes
        dupacks.reset()
        return max(size - counted, 0)

    def _judge_episode(
        self,
        ack: int,
        advanced: bool,
        duplicate: bool,
        arrived: list[Record],
        dsack: tuple[int, int] | None,
        echo_us: int,
        now: int,
    ) -> None:
        """Was the last reduction, or the last timeout, a mistake?"""
        undo = self._undo
        if undo is not None and undo.active:
            by_time = advanced and echo_us >= 0 and self.state is not SendState.OPEN
            if (by_time and undo.is_spurious_by_timestamp(echo_us)) or (dsack is not None and undo.on_dsack(*dsack)):
                self._take_back(now)
        frto = self._frto
        if frto is None or not frto.step or not (advanced or duplicate or arrived):
            return
        old_data = any(record.transmissions == 1 for record in arrived)
        step = frto.step
        match frto.on_ack(ack, self.nxt, advanced, self.sack_enabled, self.queue.highest_sacked, old_data):
            case FrtoVerdict.SPURIOUS:
                self._take_back(now)
            case FrtoVerdict.SEND_NEW:
                self._frto_room = 2 * self.mss
            case FrtoVerdict.CONVENTIONAL if step == 3:
                # RFC 5682 §2.1 (3a): "The congestion window can be set to 3 * MSS, because two round-trip times have
                # elapsed since the RTO, and a conventional TCP sender would have increased cwnd to 3 during the same
                # time."
                self.congestion.cwnd_bytes = 3 * self.mss

    def _reduce_proportionally(self, delivered: int) -> None:
        congestion = self.congestion
        pipe = self.in_flight_bytes
        count = self._prr_of().on_ack(delivered, pipe, congestion.ssthresh_bytes, self.mss)
        congestion.cwnd_bytes = max(pipe + count, self.mss)

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
            self._undo_of().begin(cwnd, ssthresh, self.una, False)
        self.state = SendState.RECOVERY
        self.fast_recoveries += 1
        self._recovery_point = self.nxt
        self._prr_of().begin(flight)
        # RFC 6675 §5 (4.3): "Retransmit the first data segment presumed dropped", whatever the window says
        self._probe = Probe.HEAD
        self._tlp.reset()
        self._rescue_point = -1
        self._rto_at = now + self.rtt.timeout_us

    def _leave_recovery(self, now: int) -> None:
        if self.state is not SendState.LOSS:
            self.congestion.on_recovery_exit(now)
        if self.state is not SendState.CWR:
            self._rack.on_recovery_exit()
        self.state = SendState.OPEN
        self._may_guess = False
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
        self.cwr_pending = False
        if undo.is_timeout:
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
            # RFC 8985 §6.2 step 4 counts segments ("RACK.segs_sacked >= DupThresh"); this counts octets, as RFC 6675 does
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

    def handle_timeout(self, now: int) -> TimeoutKind:
        """``deadline`` has come (harmless if not). At most one thing happens; call again while ``deadline`` is due."""
        kind = TimeoutKind.NONE
        if self._reo_at <= now:
            self._detect_losses(now, False)
            if self.queue.lost:
                kind = TimeoutKind.RACK
                if self.state in (SendState.OPEN, SendState.CWR):
                    self._enter_recovery(self.nxt - self.una, now)
                if self.state is SendState.RECOVERY:
                    self._reduce_proportionally(0)
        elif self._pto_at <= now:
            kind = self._on_probe_timeout(now)
        elif self._rto_at <= now:
            self._on_retransmission_timeout(now)
            kind = TimeoutKind.RTO
        elif self._persist.at <= now and self._persist.on_timeout():
            kind = TimeoutKind.PERSIST
            self._persist.arm_probe(now, self.rtt.rto_us, self._rto_max_us)
        self._set_deadline()
        return kind

    def _on_probe_timeout(self, now: int) -> TimeoutKind:
        self._pto_at = NEVER
        # RFC 8985 §7.3: "After attempting to send a loss probe, regardless of whether a loss probe was sent, the sender
        # MUST re-arm the RTO timer, not the PTO timer, if the FlightSize is not zero."
        self._rto_at = now + self.rtt.timeout_us
        if not self._may_probe_tail() or not self._tlp.may_probe(self.rtt):
            return TimeoutKind.NONE
        # RFC 8985 §7.3: "the sender SHOULD transmit a previously unsent data segment, if one exists and the receive
        # window allows"; else "the sender SHOULD retransmit the highest-sequence segment sent so far"
        unsent = min(self.end - self.nxt, self.mss)
        self._probe = Probe.NEW if unsent and self.nxt + unsent <= self.window_edge else Probe.TAIL
        self._plain_sailing = False
        self.tlp_probes += 1
        return TimeoutKind.TLP

    def _on_retransmission_timeout(self, now: int) -> None:
        queue = self.queue
        congestion = self.congestion
        first = queue.first
        assert first is not None  # the timer runs only while something is outstanding
        self.timeouts += 1
        again = self.state is SendState.LOSS and self.consecutive_timeouts > 0
        in_recovery = self.state in (SendState.RECOVERY, SendState.LOSS) and not again
        self.consecutive_timeouts += 1
        if first.sacked:
            # RFC 2018 §8: the data receiver may discard what it has reported; it must not be the oldest then
            queue.renege()
        undo = self._undo_of()
        if not (self.state in (SendState.RECOVERY, SendState.LOSS) and undo.active):
            undo.begin(congestion.cwnd_bytes, congestion.ssthresh_bytes, self.una, True)
        # RFC 5681 §3.1: "On the other hand, when a TCP sender detects segment loss using the retransmission timer and
        # the given segment has already been retransmitted by way of the retransmission timer at least once, the value
        # of ssthresh is held constant."
        congestion.on_timeout(now, self.nxt - self.una, not again)
        self.cwr_pending = True
        self.state = SendState.LOSS
        self._may_guess = False
        self._recovery_point = self.nxt
        if self._dupacks is not None:
            self._dupacks.reset()
        if self.sack_enabled and self.timestamps_enabled:
            self._rack.mark_losses_on_timeout(queue, now)
        else:
            queue.mark_all_lost()
        # RFC 6298 §5.4: "Retransmit the earliest segment that has not been acknowledged by the TCP receiver."
        self._probe = Probe.HEAD
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


def _separate_dsack(
    blocks: Sequence[tuple[int, int]], ack: int
) -> tuple[Sequence[tuple[int, int]], tuple[int, int] | None]:
    """Takes the duplicate report off the SACK blocks, if the first of them is one."""
    left, right = blocks[0]
    if left >= right:
        return blocks[1:], None
    # RFC 2883 §4: "the first block of the SACK option should be a D-SACK block specifying the sequence numbers for the
    # duplicate segment". It is one if it lies below the cumulative acknowledgement (§4.1), or (4) within "the second
    # SACK block in that SACK option".
    if right <= ack or (len(blocks) > 1 and blocks[1][0] <= left and right <= blocks[1][1]):
        return blocks[1:], (left, right)
    return blocks, None
