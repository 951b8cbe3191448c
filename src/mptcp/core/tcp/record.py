"""One stretch of sequence space that has been, or is about to be, sent: the unit of retransmission."""

from __future__ import annotations

from collections.abc import Sequence

from mptcp.core.wire.segment import Payload


class Record:
    """Sequence numbers ``start <= n < end`` (unwrapped), their octets, and what became of them.

    ``mapping`` belongs to the extension (the DSS mapping the octets travel under); a part cut off a record keeps it.
    A record may be longer than a segment; the link cuts it (``Segment.mss``).
    """

    __slots__ = (
        "end", "fin", "first_sent_us", "last_sent_us", "length", "lost", "mapping", "payloads", "sacked", "start",
        "transmissions",
    )  # fmt: skip

    def __init__(
        self, start: int, payloads: Sequence[Payload], length: int, mapping: object = None, fin: bool = False
    ) -> None:
        self.start = start
        self.end = start + length + fin
        self.payloads = payloads
        self.length = length
        self.mapping = mapping
        self.fin = fin
        self.first_sent_us = 0
        self.last_sent_us = 0
        self.transmissions = 0
        self.sacked = False
        self.lost = False
