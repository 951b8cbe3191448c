"""The receiving side of the data level (RFC 8684 §3.3.4): order, the shared receive window, DATA_FIN."""

from __future__ import annotations

from mptcp.core.multipath.reorder import ReorderQueue
from mptcp.core.tcp.connection import StreamReceiver
from mptcp.core.tcp.receive_buffer import ReceiveBuffer
from mptcp.core.tcp.receive_window import BufferTuner
from mptcp.core.wire.sequence import MASK32, MASK64

#: The window opens by no less, unless the buffer is tiny.
WINDOW_STEP = 1460


class DataReceiver(StreamReceiver):
    """All numbers are plain integers in the peer's data sequence space; ``nxt`` is the DATA_ACK to send."""

    __slots__ = (
        "buffer", "bytes_received", "edge", "fin_dsn", "fin_received", "nxt", "reorder", "tuner", "wide_ack",
    )  # fmt: skip

    def __init__(self, limit_bytes: int, limit_max_bytes: int) -> None:
        self.nxt = 0
        self.edge = limit_bytes  # right edge of the window: never shrinks
        self.buffer = ReceiveBuffer()
        # RFC 8684 §3.3.4: "A tight upper bound would be the maximum round-trip time (RTT) of any path multiplied by
        # the total bandwidth available across all paths": the tuner is given the longest RTT of all subflows.
        self.tuner = BufferTuner(limit_bytes, limit_max_bytes)
        self.reorder: ReorderQueue | None = None
        self.fin_dsn = -1  # once the peer has declared it
        self.fin_received = False
        # RFC 8684 §3.3.2: "If data is received with a 64-bit DSN, it MUST be acknowledged with a 64-bit Data ACK."
        self.wide_ack = True
        self.bytes_received = 0

    def start(self, first_dsn: int) -> None:
        """The peer's key is known now, and with it its IDSN."""
        self.edge += first_dsn - self.nxt
        self.nxt = first_dsn

    def handle_data(self, dsn: int, piece: memoryview) -> bool:
        """Takes octets of the stream; False if they were outside of the window and are dropped."""
        nxt = self.nxt
        end = dsn + len(piece)
        if end > self.edge:
            # RFC 8684 §3.8: "DSN out of window (during normal operation): drop the data; do not send Data ACKs"
            if dsn >= self.edge:
                return False
            piece = piece[: self.edge - dsn]
            end = self.edge
        if self.fin_dsn >= 0 and end > self.fin_dsn:
            return False
        if dsn > nxt:
            if self.reorder is None:
                self.reorder = ReorderQueue()
            self.reorder.insert(dsn, piece)
            return True
        if end <= nxt:
            return True  # a duplicate: RFC 8684 §3.3.6 "a receiver will ignore these retransmissions"
        if dsn < nxt:
            piece = piece[nxt - dsn :]
        self.buffer.append(piece)
        nxt = end
        reorder = self.reorder
        if reorder is not None and len(reorder):
            while (more := reorder.take(nxt)) is not None:
                self.buffer.append(more)
                nxt += len(more)
        self.bytes_received += nxt - self.nxt
        self.nxt = nxt
        if nxt == self.fin_dsn:
            self._finish()
        return True

    def handle_fin(self, fin_dsn: int) -> bool:
        """The peer's DATA_FIN has number ``fin_dsn``; False if that contradicts what came before."""
        if self.fin_received or self.fin_dsn >= 0:
            return fin_dsn == self.fin_dsn
        if fin_dsn < self.nxt:
            return False
        self.fin_dsn = fin_dsn
        if fin_dsn == self.nxt:
            self._finish()
        return True

    def _finish(self) -> None:
        # RFC 8684 §3.3.3: the DATA_FIN occupies one octet of data sequence space
        self.nxt = self.fin_dsn + 1
        self.fin_received = True

    @property
    def data_ack(self) -> tuple[int, bool]:
        """The DATA_ACK as on the wire, and whether it has eight octets."""
        return (self.nxt & MASK64, True) if self.wide_ack else (self.nxt & MASK32, False)

    # --- the window -----------------------------------------------------------------------------------------------
    def window(self) -> int:
        """Octets to advertise beyond the DATA_ACK."""
        # RFC 8684 §3.3.4: "a receiver MUST NOT shrink the right edge of the receive window"
        edge = self.nxt + self.tuner.size - self.buffer.length
        # RFC 9293 §3.8.6.2.2, silly window syndrome: by a segment or half the buffer at least, or not at all
        if edge - self.edge >= min(WINDOW_STEP, self.tuner.size >> 1):
            self.edge = edge
        return max(0, self.edge - self.nxt)
