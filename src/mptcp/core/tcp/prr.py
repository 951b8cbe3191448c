"""Proportional Rate Reduction (RFC 6937): how much may be sent for each acknowledgement during recovery."""

from __future__ import annotations


class Prr:
    """The state of one recovery episode, in octets."""

    __slots__ = ("delivered", "out", "recover_flight")

    def __init__(self) -> None:
        self.delivered = 0
        self.out = 0
        self.recover_flight = 1

    def begin(self, flight_bytes: int) -> None:
        """Recovery starts with ``flight_bytes`` (SND.NXT - SND.UNA) outstanding."""
        # RFC 6937 §3: "prr_delivered = 0; prr_out = 0; RecoverFS = snd.nxt-snd.una"
        self.delivered = 0
        self.out = 0
        self.recover_flight = max(flight_bytes, 1)

    def on_ack(self, delivered_bytes: int, pipe_bytes: int, ssthresh_bytes: int, mss: int) -> int:
        """``delivered_bytes`` have newly arrived; returns how many octets may be sent now (never negative)."""
        self.delivered += delivered_bytes
        if pipe_bytes > ssthresh_bytes:
            # RFC 6937 §3: "sndcnt = CEIL(prr_delivered * ssthresh / RecoverFS) - prr_out"
            count = -(-self.delivered * ssthresh_bytes // self.recover_flight) - self.out
            # CEIL to whole segments, as in the figures of §3.1; the next acknowledgements make up for it
            count = -(-count // mss) * mss
        else:
            # RFC 6937 §3: "limit = MAX(prr_delivered - prr_out, DeliveredData) + MSS; Attempt to catch up, as permitted
            # by limit: sndcnt = MIN(ssthresh - pipe, limit)" (PRR-SSRB)
            limit = max(self.delivered - self.out, delivered_bytes) + mss
            count = min(ssthresh_bytes - pipe_bytes, limit)
        return max(count, 0)

    def on_sent(self, size_bytes: int) -> None:
        """Anything was sent, new or again."""
        # RFC 6937 §3: "On any data transmission or retransmission: prr_out += (data sent)"
        self.out += size_bytes
