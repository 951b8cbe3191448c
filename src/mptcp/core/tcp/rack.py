"""RACK-TLP (RFC 8985): loss detection by time, and a probe for the loss of the last segments."""

from __future__ import annotations

from collections.abc import Iterable

from mptcp.core.tcp.record import Record
from mptcp.core.tcp.retransmit_queue import RetransmitQueue
from mptcp.core.tcp.rtt import RttEstimator
from mptcp.core.tcp.undo import TIMESTAMP_GRANULARITY_US
from mptcp.core.units import MILLISECOND, NEVER

DUP_THRESH = 3
#: RFC 8985 §6.2 step 4: how many recoveries a widened reordering window lasts.
REO_WND_PERSIST = 16
#: RFC 8985 §7.2 TLP.max_ack_delay: what the peer may wait when a single segment is outstanding.
MAX_ACK_DELAY_US = 200 * MILLISECOND
#: A probe never comes earlier than this: below it, what is measured is the timers of the machine (Linux: 2 jiffies).
PTO_MIN_US = 10 * MILLISECOND


class Rack:
    """The state of RFC 8985 §5.3 and the algorithm of §6.2. Times in microseconds."""

    __slots__ = (
        "_dsack_round", "_reo_wnd_mult", "_reo_wnd_persist", "end_seq", "fack", "reo_wnd_us", "reordering_seen",
        "rtt_us", "xmit_us",
    )  # fmt: skip

    def __init__(self, first_seq: int) -> None:
        self.xmit_us = -1  # last transmission time of the most recently sent segment that has been delivered
        self.end_seq = first_seq
        self.rtt_us = 0
        self.fack = first_seq
        self.reordering_seen = False
        self.reo_wnd_us = 0
        self._dsack_round = -1  # -1: None
        self._reo_wnd_mult = 1
        self._reo_wnd_persist = REO_WND_PERSIST

    def on_delivered(self, records: Iterable[Record], now: int, rtt_min_us: int, echo_us: int) -> None:
        """``records`` are newly acknowledged, cumulatively or selectively; ``echo_us``: as in ``Undo``, -1: unknown."""
        for record in records:
            sent_us, end = record.last_sent_us, record.end
            # RFC 8985 §6.2 step 3: "If Segment.end_seq > RACK.fack: RACK.fack = Segment.end_seq; Else if Segment.end_seq
            # < RACK.fack AND Segment.retransmitted is FALSE: RACK.reordering_seen = TRUE"
            if end > self.fack:
                self.fack = end
            elif end < self.fack and record.transmissions == 1:
                self.reordering_seen = True
            rtt_us = now - sent_us
            # RFC 8985 §6.2 step 2: "If Segment.retransmitted is TRUE: If ACK.ts_option.echo_reply < Segment.xmit_ts:
            # Continue; If rtt < RACK.min_rtt: Continue". We take half of min_rtt: what gave it may have been bursts of
            # 64 KiB, and a segment that is sent again alone is quicker by the time the link needs for a burst.
            if record.transmissions > 1 and (
                0 <= echo_us < sent_us - TIMESTAMP_GRANULARITY_US or 2 * rtt_us < rtt_min_us
            ):
                continue
            self.rtt_us = rtt_us
            if sent_us > self.xmit_us or (sent_us == self.xmit_us and end > self.end_seq):
                self.xmit_us = sent_us
                self.end_seq = end

    def update_window(
        self, rtt: RttEstimator, una: int, nxt: int, dsack: bool, recovering: bool, many_sacked: bool
    ) -> None:
        """RFC 8985 §6.2 step 4. ``many_sacked``: at least DupThresh segments are selectively acknowledged."""
        if self._dsack_round >= 0 and una >= self._dsack_round:
            self._dsack_round = -1
        if self._dsack_round < 0 and dsack:
            self._dsack_round = nxt
            self._reo_wnd_mult += 1
            self._reo_wnd_persist = REO_WND_PERSIST
        if not self.reordering_seen and (recovering or many_sacked):
            self.reo_wnd_us = 0
        elif rtt.samples:
            # RFC 8985 §6.2 step 4: "Return min(RACK.reo_wnd_mult * RACK.min_RTT / 4, SRTT)"
            self.reo_wnd_us = min(self._reo_wnd_mult * rtt.min_us // 4, rtt.srtt_us)

    def on_recovery_exit(self) -> None:
        """Fast recovery or RTO recovery is over."""
        # RFC 8985 §6.2 step 4: "RACK.reo_wnd_persist -= 1; If RACK.reo_wnd_persist <= 0: RACK.reo_wnd_mult = 1"
        self._reo_wnd_persist -= 1
        if self._reo_wnd_persist <= 0:
            self._reo_wnd_mult = 1

    def detect_losses(self, queue: RetransmitQueue, now: int) -> int:
        """Marks what is lost by now; returns when to look again (NEVER: no need).

        RFC 8985 §6.2 step 5 arms the timer for the last of the waiting segments, this for the first of them: no loss
        is found later, and one step costs what it finds.
        """
        xmit_us, end_seq = self.xmit_us, self.end_seq
        wait_us = self.rtt_us + self.reo_wnd_us
        again = NEVER
        # sent once: their order by number is their order by time
        records = queue.records
        index = queue.index_of(queue.scan_from)
        while index < len(records):
            record = records[index]
            if not (record.sacked or record.lost or record.transmissions > 1):
                sent_us = record.last_sent_us
                # RFC 8985 §6.2 step 5: "If RACK_sent_after(RACK.xmit_ts, RACK.end_seq, Segment.xmit_ts,
                # Segment.end_seq): remaining = Segment.xmit_ts + RACK.rtt + RACK.reo_wnd - Now(); If remaining <= 0:
                # Segment.lost = TRUE"
                if not (xmit_us > sent_us or (xmit_us == sent_us and end_seq > record.end)):
                    break
                if sent_us + wait_us > now:
                    again = sent_us + wait_us
                    break
                queue.mark_lost(record)
            index += 1
        if index < len(records):
            queue.scan_from = max(queue.scan_from, records[index].start)
        elif records:
            queue.scan_from = records[-1].end
        # sent again: in the order of their last transmission
        while (resent := queue.next_resent()) is not None:
            sent_us = resent.last_sent_us
            if not (xmit_us > sent_us or (xmit_us == sent_us and end_seq > resent.end)):
                break
            if sent_us + wait_us > now:
                again = min(again, sent_us + wait_us)
                break
            queue.mark_lost(resent)
        return again

    def mark_losses_on_timeout(self, queue: RetransmitQueue, now: int) -> None:
        """RFC 8985 §6.3: the first segment, and whatever was sent long enough ago."""
        wait_us = self.rtt_us + self.reo_wnd_us
        first = queue.first
        for index in range(queue.index_of(queue.una), len(queue.records)):
            record = queue.records[index]
            # RFC 8985 §6.3: "If SEG.SEQ == SND.UNA OR Segment.xmit_ts + RACK.rtt + RACK.reo_wnd - Now() <= 0:
            # Segment.lost = TRUE"
            if not record.sacked and (record is first or record.last_sent_us + wait_us <= now):
                queue.mark_lost(record)


class TailLossProbe:
    """The state of RFC 8985 §5.4 and the decisions of §7."""

    __slots__ = ("end_seq", "is_retransmission", "samples_at_probe")

    def __init__(self) -> None:
        self.end_seq = -1  # -1: None
        self.is_retransmission = False
        self.samples_at_probe = 0

    def reset(self) -> None:
        # RFC 8985 §7.1: "Reset TLP.is_retrans and TLP.end_seq when initiating a connection, fast recovery, or RTO
        # recovery."
        self.end_seq = -1
        self.is_retransmission = False

    def interval_us(self, rtt: RttEstimator, one_segment: bool) -> int:
        """RFC 8985 §7.2: the PTO; the caller limits it by the time the RTO would fire. There is an SRTT, because without
        one no probe may be sent (``may_probe``) and the timer is not armed."""
        interval = max(2 * rtt.srtt_us, PTO_MIN_US)
        return interval + MAX_ACK_DELAY_US if one_segment else interval

    def may_probe(self, rtt: RttEstimator) -> bool:
        # RFC 8985 §7.3: "First, there is no other previous loss probe still in flight. ... Second, the sender has
        # obtained an RTT measurement since the last loss probe transmission or the start of the connection"
        return self.end_seq < 0 and rtt.samples > self.samples_at_probe

    def on_sent(self, end_seq: int, is_retransmission: bool, rtt: RttEstimator) -> None:
        """The probe was sent; ``end_seq`` is SND.NXT after it."""
        self.end_seq = end_seq
        self.is_retransmission = is_retransmission
        self.samples_at_probe = rtt.samples

    def on_ack(self, ack: int, dsack: tuple[int, int] | None, plain_duplicate: bool) -> bool:
        """True if the probe has repaired a loss, which congestion control has to be told of (RFC 8985 §7.4.2)."""
        if self.end_seq < 0 or ack < self.end_seq:
            return False
        repaired = False
        if not self.is_retransmission:
            pass  # "TLP of new data delivered"
        elif dsack is not None and dsack[1] in (self.end_seq, self.end_seq - 1):  # with or without a FIN
            pass  # "Case 1": both copies arrived
        elif ack > self.end_seq:
            repaired = True  # "Repaired the single loss"
        elif not plain_duplicate:
            return False  # "Case 2" would be a duplicate ACK without SACK: nothing known yet
        self.end_seq = -1
        return repaired
