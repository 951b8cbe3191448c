"""The records that are sent and not yet cumulatively acknowledged: the SACK scoreboard, and the bytes in flight."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Sequence
from heapq import heappop, heappush
from operator import attrgetter, itemgetter

from mptcp.core.tcp.record import Record
from mptcp.core.wire.segment import Payload

#: A SACK edge inside a record cuts it at a segment boundary, or elsewhere only if both parts are at least this long:
#: no peer can make us hold a record per octet by acknowledging every second one.
MIN_PIECE_BYTES = 256
#: Acknowledged records are dropped from the front of the list in batches of this many.
_COMPACT = 64

_start_of = attrgetter("start")
_sent_of = itemgetter(0)


def cut(payloads: Sequence[Payload], count: int) -> tuple[list[Payload], list[Payload]]:
    """Splits a sequence of views after ``count`` octets, without copying."""
    left: list[Payload] = []
    for index, view in enumerate(payloads):
        size = len(view)
        if count < size:
            rest = list(payloads[index:])
            if count:
                whole = memoryview(view)
                left.append(whole[:count])
                rest[0] = whole[count:]
            return left, rest
        left.append(view)
        count -= size
    return left, []


class RetransmitQueue:
    """Sent records in the order of their sequence numbers, each in one of three states.

    *in flight* (neither flag set: sent, or sent again, and believed to be in the network), *sacked*, or *lost* (waiting
    to be sent again). ``in_flight``, ``sacked`` and ``lost`` count the sequence numbers in each state, exactly.
    It is as long as the peer's window and the congestion window let it be.
    """

    __slots__ = (
        "_head", "_lost", "_push_count", "_resent_head", "_sack_ends", "_sack_starts", "in_flight", "lost",
        "records", "resent", "sacked", "scan_from", "una",
    )  # fmt: skip

    def __init__(self, una: int) -> None:
        self.una = una
        self.records: list[Record] = []  # from index _head on
        self._head = 0
        self.in_flight = 0
        self.sacked = 0
        self.lost = 0
        self.scan_from = una  # every record before it is sacked, lost, or was sent more than once
        self._sack_starts: list[int] = []  # runs of sacked records, disjoint and not touching
        self._sack_ends: list[int] = []
        self._lost: list[tuple[int, int, Record]] = []  # heap of (start, tie, record); may hold what is no longer lost
        self._push_count = 0
        self.resent: list[tuple[int, Record]] = []  # (time, record) in order of retransmission; may be outdated
        self._resent_head = 0

    # --- looking ------------------------------------------------------------------------------------------------
    def __len__(self) -> int:
        return len(self.records) - self._head

    @property
    def first(self) -> Record | None:
        """The oldest record not acknowledged."""
        return self.records[self._head] if self._head < len(self.records) else None

    @property
    def last(self) -> Record | None:
        return self.records[-1] if self._head < len(self.records) else None

    @property
    def sacked_runs(self) -> list[tuple[int, int]]:
        """Runs of sacked records above the cumulative acknowledgement, ascending."""
        return list(zip(self._sack_starts, self._sack_ends, strict=True))

    @property
    def highest_sacked(self) -> int:
        """End of the highest sacked record; ``una`` if there is none."""
        return self._sack_ends[-1] if self._sack_ends else self.una

    def highest_runs(self, count: int) -> list[tuple[int, int]]:
        """The ``count`` highest runs of sacked records, from the top down."""
        starts, ends = self._sack_starts, self._sack_ends
        return [(starts[i], ends[i]) for i in range(len(starts) - 1, max(len(starts) - 1 - count, -1), -1)]

    def index_of(self, number: int) -> int:
        """Index of the record that contains ``number``, or would follow it."""
        records = self.records
        index = bisect_right(records, number, self._head, key=_start_of)
        if index > self._head and records[index - 1].end > number:
            index -= 1
        return index

    # --- sending ------------------------------------------------------------------------------------------------
    def append(self, record: Record) -> None:
        """``record`` is sent for the first time, directly after the last one."""
        self.records.append(record)
        self.in_flight += record.end - record.start

    def note_resent(self, record: Record, now: int) -> None:
        """``record`` is sent again at ``now``: it is in flight whatever it was (but not sacked)."""
        if record.lost:
            record.lost = False
            size = record.end - record.start
            self.lost -= size
            self.in_flight += size
        record.last_sent_us = now
        record.transmissions += 1
        resent = self.resent
        if self._resent_head > _COMPACT and self._resent_head * 2 > len(resent):
            del resent[: self._resent_head]
            self._resent_head = 0
        resent.append((now, record))

    def split(self, index: int, at: int) -> Record:
        """Cuts ``records[index]`` before sequence number ``at`` (inside it); returns the new right part."""
        record = self.records[index]
        length = at - record.start
        assert 0 < length <= record.length
        assert at < record.end
        left, rest = cut(record.payloads, length)
        right = Record(at, rest, record.length - length, record.mapping, record.fin)
        record.end = at
        record.payloads = left
        record.length = length
        record.fin = False
        right.first_sent_us = record.first_sent_us
        right.last_sent_us = record.last_sent_us
        right.transmissions = record.transmissions
        right.sacked = record.sacked
        self.records.insert(index + 1, right)
        if record.lost:
            right.lost = True
            self._push_lost(right)
        elif record.transmissions > 1 and not record.sacked:
            insort(self.resent, (record.last_sent_us, right), lo=self._resent_head, key=_sent_of)
        return right

    # --- acknowledgements ---------------------------------------------------------------------------------------
    def acknowledge(self, ack: int) -> list[Record]:
        """Everything before ``ack`` has arrived: returns those records in order, each still with its flags.

        A record that is acknowledged in part is cut; its first part (without payload) is among the returned.
        """
        records = self.records
        head = index = self._head
        count = len(records)
        while index < count and records[index].end <= ack:
            index += 1
        acked = records[head:index]
        if self.sacked or self.lost:
            for record in acked:
                size = record.end - record.start
                if record.sacked:
                    self.sacked -= size
                elif record.lost:
                    self.lost -= size
                else:
                    self.in_flight -= size
        elif acked:
            self.in_flight -= acked[-1].end - acked[0].start
        if index < count and records[index].start < ack:
            acked.append(self._trim(records[index], ack))
        if index == count:
            self._clear()
        elif index >= _COMPACT and index * 2 >= count:
            del records[:index]
            self._head = 0
        else:
            for position in range(head, index):
                records[position] = _GONE
            self._head = index
        self.una = ack
        if self.scan_from < ack:
            self.scan_from = ack
        if self._sack_starts:
            self._forget_runs(ack)
        return acked

    def _trim(self, record: Record, ack: int) -> Record:
        size = ack - record.start
        part = Record(record.start, (), size, record.mapping)
        part.first_sent_us = record.first_sent_us
        part.last_sent_us = record.last_sent_us
        part.transmissions = record.transmissions
        part.sacked = record.sacked
        part.lost = record.lost
        if size <= record.length:
            record.payloads = cut(record.payloads, size)[1]
            record.length -= size
        record.start = ack
        if record.sacked:
            self.sacked -= size
        elif record.lost:
            self.lost -= size
        else:
            self.in_flight -= size
        return part

    def _clear(self) -> None:
        self.records = []
        self._head = 0
        if self._lost:
            self._lost = []
        if self.resent:
            self.resent = []
            self._resent_head = 0

    def _forget_runs(self, ack: int) -> None:
        gone = bisect_right(self._sack_ends, ack)
        del self._sack_starts[:gone], self._sack_ends[:gone]
        if self._sack_starts and self._sack_starts[0] < ack:
            self._sack_starts[0] = ack

    def sack(self, left: int, right: int, mss: int) -> list[Record]:
        """Marks what a SACK block ``left <= n < right`` covers; returns the records that it covers newly.

        Costs what is new (and a bisection), not what was sacked before.
        """
        newly: list[Record] = []
        if left < self.una:
            left = self.una
        records = self.records
        if self._head == len(records):
            return newly
        if right > records[-1].end:
            right = records[-1].end
        starts, ends = self._sack_starts, self._sack_ends
        run = bisect_right(starts, left)
        if run and ends[run - 1] > left:
            left = ends[run - 1]
        while left < right:
            stop = starts[run] if run < len(starts) and starts[run] < right else right
            if left < stop:
                self._mark_sacked(left, stop, mss, newly)
            if stop == right:
                break
            left = ends[run]
            run += 1
        first = 0
        while first < len(newly):
            final = first
            while final + 1 < len(newly) and newly[final + 1].start == newly[final].end:
                final += 1
            self._add_run(newly[first].start, newly[final].end)
            first = final + 1
        return newly

    def _mark_sacked(self, left: int, right: int, mss: int, newly: list[Record]) -> None:
        """Records of ``left <= n < right``, none of them sacked yet."""
        records = self.records
        index = self.index_of(left)
        if index < len(records) and records[index].start < left:
            if _may_split(records[index], left, mss):
                self.split(index, left)
            index += 1
        while index < len(records):
            record = records[index]
            if record.start >= right:
                return
            if record.end > right:
                if not _may_split(record, right, mss):
                    return
                self.split(index, right)
            size = record.end - record.start
            if record.lost:
                record.lost = False
                self.lost -= size
            else:
                self.in_flight -= size
            record.sacked = True
            self.sacked += size
            newly.append(record)
            index += 1

    def _add_run(self, left: int, right: int) -> None:
        starts, ends = self._sack_starts, self._sack_ends
        first = bisect_left(ends, left)  # runs that end before ``left`` do not touch it
        last = bisect_right(starts, right)
        if first < last:
            left = min(left, starts[first])
            right = max(right, ends[last - 1])
        starts[first:last] = [left]
        ends[first:last] = [right]

    def renege(self) -> None:
        """The peer has thrown away what it had selectively acknowledged (RFC 2018 §8): forget all of it."""
        for index in range(self._head, len(self.records)):
            record = self.records[index]
            if record.sacked:
                record.sacked = False
                size = record.end - record.start
                self.sacked -= size
                self.in_flight += size
        self._sack_starts = []
        self._sack_ends = []
        self.scan_from = self.una

    # --- losses -------------------------------------------------------------------------------------------------
    def _push_lost(self, record: Record) -> None:
        self._push_count += 1
        heappush(self._lost, (record.start, self._push_count, record))

    def mark_lost(self, record: Record) -> None:
        """``record`` (not sacked) has to be sent again."""
        if not record.lost:
            size = record.end - record.start
            record.lost = True
            self.in_flight -= size
            self.lost += size
            self._push_lost(record)

    def mark_all_lost(self) -> None:
        """Everything that is not sacked."""
        for index in range(self._head, len(self.records)):
            record = self.records[index]
            if not record.sacked:
                self.mark_lost(record)
        if self.records:
            self.scan_from = self.records[-1].end

    def unmark_lost(self) -> None:
        """The loss was none: everything that waits to be sent again is in flight after all."""
        for index in range(self._head, len(self.records)):
            record = self.records[index]
            if record.lost:
                record.lost = False
        self.in_flight += self.lost
        self.lost = 0
        self._lost = []
        self.scan_from = self.una

    def next_lost(self) -> Record | None:
        """The lost record with the lowest number."""
        heap = self._lost
        una = self.una
        while heap:
            record = heap[0][2]
            if record.lost and record.end > una:
                return record
            heappop(heap)
        return None

    def next_resent(self) -> Record | None:
        """Of the records sent again and still in flight, the one whose last transmission is the oldest."""
        resent = self.resent
        una = self.una
        while self._resent_head < len(resent):
            sent_us, record = resent[self._resent_head]
            if record.end > una and not record.sacked and not record.lost and record.last_sent_us == sent_us:
                return record
            self._resent_head += 1
        if resent:
            self.resent = []
            self._resent_head = 0
        return None


def _may_split(record: Record, at: int, mss: int) -> bool:
    offset = at - record.start
    return offset % mss == 0 or (offset >= MIN_PIECE_BYTES and record.end - at >= MIN_PIECE_BYTES)


#: Takes the place of an acknowledged record until the list is compacted, so that its octets are let go of at once.
_GONE = Record(0, (), 0)
