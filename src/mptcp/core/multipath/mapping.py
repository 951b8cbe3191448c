"""Data sequence mappings (RFC 8684 §3.3.1): which subflow octets are which octets of the connection's stream."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mptcp.core.wire import checksum
from mptcp.core.wire.segment import Payload

#: How many mappings of one subflow may wait for their octets; a peer that sends more is broken.
MAX_WAITING_MAPPINGS = 4096


class Mapping:
    """Subflow octets ``ssn .. ssn+length`` are data octets ``dsn .. dsn+length`` (plain integers, ``ssn`` relative).

    ``length`` counts a DATA_FIN (``data_fin``), which has no octet on the subflow. ``checksum`` is the one on the
    wire or None. On the receiving side of a checksummed connection ``held`` gathers the octets until all are there.
    """

    __slots__ = ("checksum", "data_fin", "dsn", "end", "held", "length", "ssn")

    def __init__(self, dsn: int, ssn: int, length: int, checksum: int | None = None, data_fin: bool = False) -> None:
        self.dsn = dsn
        self.ssn = ssn
        self.length = length
        self.end = ssn + length - data_fin
        self.checksum = checksum
        self.data_fin = data_fin
        self.held: list[memoryview] | None = None


def dss_checksum(dsn: int, ssn: int, length: int, payloads: Sequence[Payload]) -> int:
    """The checksum of RFC 8684 §3.3.1, Figure 10: the data, then a pseudo-header with the 64-bit DSN."""
    # "the data sequence number used in the pseudo-header is always the 64-bit value"
    pseudo = (
        (dsn & 0xFFFFFFFFFFFFFFFF).to_bytes(8, "big") + (ssn & 0xFFFFFFFF).to_bytes(4, "big")
        + length.to_bytes(2, "big") + b"\0\0"
    )  # fmt: skip
    total = checksum.add(pseudo, checksum.add_views(payloads))
    return ~total & 0xFFFF


class ReceivedMappings:
    """The mappings a peer has declared on one subflow and whose octets have not all been delivered yet.

    They are kept in the order of their subflow sequence numbers; nearly always there is one.
    """

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: list[Mapping] = []

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, mapping: Mapping) -> str:
        """Remembers ``mapping``. Empty if fine (also for a repetition), else the name of what is wrong with it."""
        waiting = self._waiting
        index = len(waiting)
        while index and waiting[index - 1].ssn >= mapping.ssn:
            index -= 1
            known = waiting[index]
            if known.ssn == mapping.ssn:
                # RFC 8684 §3.3.1: "A sender MUST NOT change this mapping after it has been declared". Segmentation
                # offload and retransmission repeat it, which is fine.
                if known.dsn == mapping.dsn and known.length == mapping.length:
                    return ""
                return "mapping_changed"
        if index and waiting[index - 1].end > mapping.ssn:
            return "mapping_overlaps"
        if index < len(waiting) and waiting[index].ssn < mapping.end:
            return "mapping_overlaps"
        if len(waiting) >= MAX_WAITING_MAPPINGS:
            return "too_many_mappings"
        waiting.insert(index, mapping)
        return ""

    def find(self, ssn: int) -> Mapping | None:
        """The mapping that covers ``ssn``; those wholly before it are forgotten."""
        waiting = self._waiting
        while waiting:
            first = waiting[0]
            if ssn < first.end:
                return first if ssn >= first.ssn else None
            del waiting[0]
        return None

    def __iter__(self) -> Iterator[Mapping]:
        return iter(self._waiting)

    def clear(self) -> None:
        self._waiting.clear()
