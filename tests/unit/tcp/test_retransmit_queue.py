"""The scoreboard: exact sums, exact cuts, bounded work and bounded memory."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mptcp.core.tcp.record import Record
from mptcp.core.tcp.retransmit_queue import MIN_PIECE_BYTES, RetransmitQueue, cut

MSS = 1000


def queue_of(*lengths: int, fin: bool = False) -> RetransmitQueue:
    queue = RetransmitQueue(0)
    start = 0
    for index, length in enumerate(lengths):
        payload = bytes((start + n) % 251 for n in range(length))
        record = Record(start, (memoryview(payload),), length, "m", fin and index == len(lengths) - 1)
        record.transmissions = 1
        queue.append(record)
        start = record.end
    return queue


def shape(queue: RetransmitQueue) -> str:
    """One word per record: state letter and start."""
    return " ".join(
        f"{'S' if r.sacked else 'L' if r.lost else 'f'}{r.start}" for r in queue.records[queue.index_of(queue.una) :]
    )


def test_cumulative_acknowledgement_inside_a_record() -> None:
    queue = queue_of(3000, 3000)
    (part,) = queue.acknowledge(1200)
    assert (part.start, part.end, part.transmissions) == (0, 1200, 1)
    first = queue.first
    assert first is not None
    assert (first.start, first.end, first.length) == (1200, 3000, 1800)
    assert b"".join(first.payloads) == bytes(n % 251 for n in range(1200, 3000))
    assert queue.in_flight == 4800
    assert [r.end for r in queue.acknowledge(4000)] == [3000, 4000]
    assert queue.in_flight == 2000


def test_sack_splits_at_both_edges() -> None:
    queue = queue_of(6000)
    newly = queue.sack(2000, 4000, MSS)
    assert shape(queue) == "f0 S2000 f4000"
    assert [(r.start, r.end) for r in newly] == [(2000, 4000)]
    assert (queue.in_flight, queue.sacked, queue.highest_sacked) == (4000, 2000, 4000)
    assert all(r.mapping == "m" and r.transmissions == 1 for r in queue.records)


def test_growing_blocks_report_only_what_is_new() -> None:
    queue = queue_of(*[1000] * 6)
    assert len(queue.sack(1000, 2000, MSS)) == 1
    assert [r.start for r in queue.sack(1000, 4000, MSS)] == [2000, 3000]
    assert queue.sack(1000, 4000, MSS) == []
    assert [r.start for r in queue.sack(5000, 6000, MSS)] == [5000]
    assert [r.start for r in queue.sack(0, 6000, MSS)] == [0, 4000]
    assert queue.sacked_runs == [(0, 6000)]


def test_edges_inside_a_segment_are_rounded_to_what_is_whole() -> None:
    queue = queue_of(3000)
    queue.sack(1100, 2950, MSS)  # 1100 splits (both parts are long enough); 2950 is too near to the end
    assert shape(queue) == "f0 f1100"
    queue.sack(1100, 3000, MSS)
    assert shape(queue) == "f0 S1100"


def test_fin_is_a_number_of_its_own() -> None:
    queue = queue_of(1000, fin=True)
    queue.sack(0, 1000, MSS)
    assert shape(queue) == "S0 f1000"
    assert [(r.length, r.fin) for r in queue.records] == [(1000, False), (0, True)]
    assert len(queue.sack(0, 1001, MSS)) == 1
    queue = queue_of(1000, fin=True)
    queue.acknowledge(1000)
    first = queue.first
    assert first is not None
    assert (first.start, first.end, first.length, first.fin, list(first.payloads)) == (1000, 1001, 0, True, [])


def test_a_peer_cannot_make_a_record_per_octet() -> None:
    queue = queue_of(60_000)
    for start in range(0, 60_000, 2):
        queue.sack(start, start + 1, MSS)
    assert len(queue) <= 60_000 // MIN_PIECE_BYTES + 1


def test_lost_records_come_back_lowest_first() -> None:
    queue = queue_of(*[1000] * 5)
    for index in (3, 1, 2):
        queue.mark_lost(queue.records[index])
    assert (queue.in_flight, queue.lost) == (2000, 3000)
    order = []
    while (record := queue.next_lost()) is not None:
        order.append(record.start)
        queue.note_resent(record, 100)
    assert order == [1000, 2000, 3000]
    assert (queue.in_flight, queue.lost) == (5000, 0)


def test_lost_and_then_acknowledged_after_all() -> None:
    queue = queue_of(*[1000] * 4)
    queue.mark_all_lost()
    queue.sack(2000, 3000, MSS)
    queue.acknowledge(1500)
    assert shape(queue) == "L1500 S2000 L3000"
    assert (queue.in_flight, queue.lost, queue.sacked) == (0, 1500, 1000)
    record = queue.next_lost()
    assert record is not None
    assert record.start == 1500
    queue.unmark_lost()
    assert (queue.in_flight, queue.lost) == (1500, 0)
    assert queue.next_lost() is None


def test_retransmissions_in_order_of_time() -> None:
    queue = queue_of(*[1000] * 4)
    queue.mark_all_lost()
    for index, now in ((2, 10), (0, 20), (2, 30)):
        queue.note_resent(queue.records[index], now)
    seen = queue.next_resent()
    assert seen is queue.records[0]
    queue.acknowledge(1000)
    seen = queue.next_resent()
    assert seen is not None
    assert (seen.start, seen.last_sent_us) == (2000, 30)
    queue.sack(2000, 3000, MSS)
    assert queue.next_resent() is None
    assert queue.resent == []


def test_both_parts_of_a_split_retransmission_are_watched() -> None:
    queue = queue_of(4000)
    queue.mark_all_lost()
    queue.note_resent(queue.records[0], 10)
    queue.sack(1000, 2000, MSS)
    watched = []
    while (record := queue.next_resent()) is not None:
        watched.append(record.start)
        queue.mark_lost(record)
    assert watched == [0, 2000]


def test_reneging_forgets_all() -> None:
    queue = queue_of(*[1000] * 3)
    queue.sack(1000, 3000, MSS)
    queue.renege()
    assert shape(queue) == "f0 f1000 f2000"
    assert (queue.in_flight, queue.sacked, queue.sacked_runs) == (3000, 0, [])


@pytest.mark.parametrize(
    ("count", "left", "right"),
    [(0, [], ["abc", "de"]), (2, ["ab"], ["c", "de"]), (3, ["abc"], ["de"]), (5, ["abc", "de"], [])],
)
def test_cut(count: int, left: Sequence[str], right: Sequence[str]) -> None:
    got = cut([b"abc", memoryview(b"de")], count)
    assert [[bytes(view).decode() for view in side] for side in got] == [list(left), list(right)]


@given(
    st.lists(st.integers(1, 3000), min_size=1, max_size=12),
    st.lists(st.tuples(st.sampled_from(["sack", "ack", "lose", "resend"]), st.integers(0, 99), st.integers(0, 99))),
)
def test_sums_are_exact(lengths: list[int], steps: list[tuple[str, int, int]]) -> None:
    queue = queue_of(*lengths)
    end = sum(lengths)
    sacked_octets: set[int] = set()
    for now, (what, a, b) in enumerate(steps):
        left, right = sorted((queue.una + (end - queue.una) * a // 99, queue.una + (end - queue.una) * b // 99))
        if what == "sack":
            for record in queue.sack(left, right, MSS):
                assert left <= record.start
                assert record.end <= right
                assert sacked_octets.isdisjoint(range(record.start, record.end))
                sacked_octets.update(range(record.start, record.end))
        elif what == "ack" and left > queue.una:
            before = queue.una
            acked = queue.acknowledge(left)
            assert (acked[0].start, acked[-1].end) == (before, left)
        elif what == "lose":
            for record in queue.records[queue.index_of(left) :][:2]:
                if not record.sacked:
                    queue.mark_lost(record)
        elif (record := queue.next_lost()) is not None:
            queue.note_resent(record, now)
        held = queue.records[queue.index_of(queue.una) :]
        for state in ("sacked", "lost"):
            assert getattr(queue, state) == sum(r.end - r.start for r in held if getattr(r, state))
        assert queue.in_flight + queue.lost + queue.sacked == end - queue.una
        for record in held:
            expected = bytes(n % 251 for n in range(record.start, record.end))
            assert b"".join(record.payloads) == expected


def test_work_does_not_grow_with_the_window() -> None:
    """A thousand growing SACK blocks over 10,000 records look at each record once."""
    queue = queue_of(*[10] * 10_000)
    touched = sum(len(queue.sack(10, 10 * n, MSS)) for n in range(2, 10_000, 10))
    assert touched == (9_992 - 1)
    assert queue.highest_runs(3) == [(10, 99_920)]
