"""The receiving half of a connection: what is acceptable, what is in order, what to tell the sender."""

from __future__ import annotations

from typing import Final

from mptcp.core.tcp.config import TcpConfig
from mptcp.core.tcp.delayed_ack import DelayedAck
from mptcp.core.tcp.reassembly import Reassembly
from mptcp.core.tcp.receive_buffer import ReceiveBuffer
from mptcp.core.tcp.receive_window import BufferTuner, ReceiveWindow
from mptcp.core.units import NEVER
from mptcp.core.wire.segment import Payload
from mptcp.core.wire.sequence import MASK32

#: Without SACK each segment out of order is answered by a duplicate acknowledgement of its own; at most so many wait.
MAX_DUPLICATE_ACKS_OWED: Final = 16


class Receiver:
    """Sequence numbers are unwrapped. ``nxt`` is RCV.NXT; ``window.edge`` is RCV.NXT + RCV.WND, as promised.

    ``take`` is called with acceptable data only, and returns what is now in order; the connection hands that on (to
    the extension, or to ``buffer``).
    """

    __slots__ = (
        "ack", "buffer", "bytes_received", "duplicate", "duplicate_acks_owed", "fin_seq", "last_ack_sent", "nxt",
        "out_of_order_segments", "reassembly", "sack_enabled", "tuner", "window",
    )  # fmt: skip

    def __init__(self, config: TcpConfig) -> None:
        self.nxt = 0
        self.last_ack_sent = 0
        self.window = ReceiveWindow()
        self.buffer = ReceiveBuffer()
        self.tuner = BufferTuner(config.receive_buffer_bytes, config.receive_buffer_max_bytes)
        self.ack = DelayedAck(config.delayed_ack_us)
        self.reassembly: Reassembly | None = None
        self.fin_seq = -1  # where the peer's stream ends; -1: not known
        self.sack_enabled = False
        self.duplicate: tuple[int, int] | None = None  # to be reported as D-SACK
        self.duplicate_acks_owed = 0
        self.bytes_received = 0
        self.out_of_order_segments = 0

    def start(self, irs: int) -> None:
        """The peer's SYN has sequence number ``irs``."""
        self.nxt = self.last_ack_sent = self.window.edge = irs + 1

    @property
    def ack_wanted(self) -> bool:
        return self.ack.due or self.duplicate_acks_owed > 0

    @property
    def deadline(self) -> int:
        return NEVER if self.ack.due else self.ack.deadline

    @property
    def free_bytes(self) -> int:
        """Room in our own buffer (not the extension's)."""
        return max(0, self.tuner.size - self.buffer.length)

    def is_acceptable(self, seq: int, sequence_length: int, edge: int) -> bool:
        """RFC 9293 §3.10.7.4, table 6. ``edge``: right edge of what is accepted."""
        nxt = self.nxt
        if sequence_length == 0:
            return seq == nxt if edge <= nxt else nxt <= seq < edge
        if edge <= nxt:
            return False
        return nxt <= seq < edge or nxt <= seq + sequence_length - 1 < edge

    def take(self, seq: int, payload: Payload, edge: int, mss: int, now: int, quick_ack: bool) -> list[Payload] | None:
        """Octets from ``seq`` on, of which part may be old or beyond the window. In-order pieces come back.

        ``nxt`` has then moved behind them. None: nothing is in order.
        """
        nxt = self.nxt
        limit = edge if self.fin_seq < 0 else min(edge, self.fin_seq)
        end = seq + len(payload)
        if end > limit:
            payload = memoryview(payload)[: max(0, limit - seq)]
            end = limit
            if seq >= end:
                self.ack.due = True
                return None
        if end <= nxt:
            # RFC 2883 §4: "the first block of the SACK option should be a D-SACK block specifying the sequence numbers
            # for the duplicate segment that triggers the acknowledgement"
            self.duplicate = (seq, end)
            self.owe_duplicate_ack()
            return None
        reassembly = self.reassembly
        if seq > nxt:
            # RFC 5681 §4.2: "Out-of-order data segments SHOULD be acknowledged immediately"
            if reassembly is None:
                reassembly = self.reassembly = Reassembly()
            self.out_of_order_segments += 1
            result = reassembly.insert(seq, payload)
            if result is not None and result is not False:
                self.duplicate = result
            self.owe_duplicate_ack()
            return None
        if seq < nxt:
            self.duplicate = (seq, nxt)
            payload = memoryview(payload)[nxt - seq :]
        pieces: list[Payload] = [payload]
        count = end - nxt
        self.nxt = end
        if reassembly is None:
            self.ack.handle_data(count, mss, now, quick_ack)
        else:
            # RFC 5681 §4.2: "the receiver SHOULD send an immediate ACK when it receives a data segment that fills in
            # all or part of a gap in the sequence space"
            self.ack.due = True
            more = reassembly.take(end)
            if more is not None:
                pieces += more
                self.nxt += sum(map(len, more))
            if not reassembly.ranges:
                self.reassembly = None
        self.bytes_received += self.nxt - nxt
        return pieces

    def owe_duplicate_ack(self) -> None:
        """An acknowledgement at once; without SACK, one for each such segment: the peer counts them."""
        self.ack.due = True
        if not self.sack_enabled and self.duplicate_acks_owed < MAX_DUPLICATE_ACKS_OWED:
            self.duplicate_acks_owed += 1

    def handle_ack_sent(self) -> None:
        if self.duplicate_acks_owed:
            self.duplicate_acks_owed -= 1
        self.duplicate = None
        self.last_ack_sent = self.nxt
        ack = self.ack
        ack.due = self.duplicate_acks_owed > 0
        ack.deadline = NEVER
        ack.unacked_bytes = 0

    @property
    def has_sack_blocks(self) -> bool:
        return self.sack_enabled and (self.reassembly is not None or self.duplicate is not None)

    def sack_blocks(self, limit: int) -> tuple[tuple[int, int], ...]:
        """Up to ``limit`` blocks, as on the wire; a duplicate to report comes first (RFC 2883 §4)."""
        blocks: list[tuple[int, int]] = []
        if self.duplicate is not None and limit > 0:
            blocks.append(self.duplicate)
        if self.reassembly is not None:
            blocks += self.reassembly.sack_blocks(limit - len(blocks))
        return tuple([(left & MASK32, right & MASK32) for left, right in blocks])

    def discard(self) -> None:
        """The connection is over: what waited out of order is of no use. What is in order may still be read."""
        self.reassembly = None
        self.duplicate = None
        self.duplicate_acks_owed = 0
        self.ack.due = False
        self.ack.deadline = NEVER
