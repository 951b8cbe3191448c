"""Forward RTO-Recovery (RFC 5682): was the retransmission timeout spurious? With and without SACK."""

from __future__ import annotations

from enum import Enum


class FrtoVerdict(Enum):
    """What the acknowledgement after a timeout says."""

    WAIT = "wait"  # nothing yet
    SEND_NEW = "send new"  # transmit up to two segments of new data
    CONVENTIONAL = "conventional"  # a real timeout: retransmit in slow start
    SPURIOUS = "spurious"  # the original segments arrive: nothing was lost


class Frto:
    """``step`` is the step of the algorithm (RFC 5682 §2.1, §3.1) that the next acknowledgement is for; 0: none."""

    __slots__ = ("recover", "retransmitted_end", "step")

    def __init__(self) -> None:
        self.step = 0
        self.recover = 0
        self.retransmitted_end = 0  # what was retransmitted for the timeout ends here

    def begin(self, retransmitted_end: int) -> None:
        """The timer expired and the segment that ends at ``retransmitted_end`` goes out again."""
        self.step = 2
        self.retransmitted_end = retransmitted_end

    def cancel(self) -> None:
        self.step = 0

    def on_ack(
        self, ack: int, nxt: int, advanced: bool, sack: bool, highest_sacked: int, old_data: bool
    ) -> FrtoVerdict:
        """``old_data``: this acknowledgement covers octets that were never retransmitted and not covered before."""
        if self.step == 2:
            if not advanced:
                # RFC 5682 §3.1 (2): "If duplicate ACKs arrive before the cumulative acknowledgment for retransmitted
                # data, adjust the scoreboard according to the incoming SACK information. Stay in step 2"
                if sack:
                    return FrtoVerdict.WAIT
                # RFC 5682 §2.1 (2a): "If the acknowledgment is a duplicate ACK ... revert to the conventional RTO
                # recovery"
                return self._end(FrtoVerdict.CONVENTIONAL)
            self.recover = nxt
            # RFC 5682 §2.1 (2a): "OR the Acknowledgment field covers "recover" but not more than "recover", OR the
            # acknowledgment does not acknowledge all of the data that was retransmitted in step 1"
            if ack >= nxt or ack < self.retransmitted_end:
                return self._end(FrtoVerdict.CONVENTIONAL)
            # RFC 5682 §2.1 (2b): "transmit up to two new (previously unsent) segments and enter step 3"
            self.step = 3
            return FrtoVerdict.SEND_NEW
        # RFC 5682 §3.1 (3a): "If the Cumulative Acknowledgment field or the SACK information covers more than
        # "RecoveryPoint" ... proceed with the conventional RTO recovery"
        if ack > self.recover or highest_sacked > self.recover:
            return self._end(FrtoVerdict.CONVENTIONAL)
        # RFC 5682 §3.1 (3b): "AND it acknowledges data that was not acknowledged earlier ... declare the timeout
        # spurious"; without SACK (§2.1 3b): "If the acknowledgment advances the window"
        if old_data:
            return self._end(FrtoVerdict.SPURIOUS)
        return self._end(FrtoVerdict.CONVENTIONAL)

    def _end(self, verdict: FrtoVerdict) -> FrtoVerdict:
        self.step = 0
        return verdict
