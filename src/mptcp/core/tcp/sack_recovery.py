"""Loss detection without time: from SACK information (RFC 6675), or from duplicate acknowledgements alone (RFC 6582)."""

from __future__ import annotations

from mptcp.core.tcp.retransmit_queue import RetransmitQueue

DUP_THRESH = 3


def loss_boundary(queue: RetransmitQueue, mss: int) -> int:
    """Everything before this number that is not sacked is lost in the sense of IsLost() (RFC 6675 §4)."""
    # RFC 6675 §4: "The routine returns true when either DupThresh discontiguous SACKed sequences have arrived above
    # 'SeqNum' or more than (DupThresh - 1) * SMSS bytes with sequence numbers greater than 'SeqNum' have been SACKed."
    # So at most the three highest runs matter.
    octets = 0
    runs = queue.highest_runs(DUP_THRESH)
    for count, (left, right) in enumerate(runs, start=1):
        octets += right - left
        if count == DUP_THRESH or octets > (DUP_THRESH - 1) * mss:
            return left
    return queue.una


def mark_losses(queue: RetransmitQueue, mss: int) -> None:
    """Marks what was sent once and is lost by SACK information; a lost retransmission is left to the timer."""
    boundary = loss_boundary(queue, mss)
    if boundary <= queue.scan_from:
        return
    records = queue.records
    index = queue.index_of(queue.scan_from)
    while index < len(records) and records[index].end <= boundary:
        record = records[index]
        if not (record.sacked or record.lost or record.transmissions > 1):
            queue.mark_lost(record)
        index += 1
    queue.scan_from = records[index].start if index < len(records) else records[-1].end


class DuplicateAcks:
    """RFC 6582: recovery of a peer without SACK. Each duplicate acknowledgement says that one segment has left."""

    __slots__ = ("count", "credit_bytes")

    def __init__(self) -> None:
        self.count = 0
        self.credit_bytes = 0  # left the network, though we do not know which octets

    def reset(self) -> None:
        self.count = 0
        self.credit_bytes = 0

    def on_duplicate(self, outstanding_bytes: int, mss: int) -> int:
        """One more; returns the octets it says have arrived."""
        self.count += 1
        credit = min(self.credit_bytes + mss, max(outstanding_bytes - mss, 0))
        delivered = max(credit - self.credit_bytes, 0)
        self.credit_bytes = credit
        return delivered

    def on_partial(self, acked_bytes: int, outstanding_bytes: int, mss: int) -> int:
        """New data acknowledged during recovery; returns the octets not counted before by duplicates."""
        # RFC 6582 §3.2 (3): "Deflate the congestion window by the amount of new data acknowledged by the Cumulative
        # Acknowledgment field. If the partial ACK acknowledges at least one SMSS of new data, then add back SMSS
        # bytes": all but the retransmitted segment had been counted.
        counted = min(self.credit_bytes, max(acked_bytes - mss, 0))
        self.credit_bytes = min(self.credit_bytes - counted, max(outstanding_bytes - mss, 0))
        return acked_bytes - counted
