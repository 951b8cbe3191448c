"""What the sender sends and holds back: windows, small segments, probes, FIN, records of a layer above."""

from __future__ import annotations

import pytest

from mptcp.core.congestion.newreno import NewReno
from mptcp.core.tcp.config import TcpConfig
from mptcp.core.tcp.persist import OVERRIDE_TIMEOUT_US
from mptcp.core.tcp.record import Record
from mptcp.core.tcp.sender import Sender, SendState, TimeoutKind, initial_window_bytes, make_congestion
from mptcp.core.units import MILLISECOND, NEVER, SECOND

MSS = 1000
RTT = 40 * MILLISECOND


def make(*, window: int = 100_000, cwnd: int = 50, gso: int = 1, **settings: bool | int) -> Sender:
    config = TcpConfig(congestion=NewReno).changed(**settings)
    sender = Sender(config, NewReno(MSS, cwnd * MSS), 0, MSS, 0)
    sender.gso_max_bytes = gso * MSS
    sender.set_window(window)
    return sender


def drain(sender: Sender, now: int = 0) -> list[int]:
    """Lengths of what is sent now."""
    return [record.length for record in records(sender, now)]


def records(sender: Sender, now: int = 0) -> list[Record]:
    sent = []
    while (record := sender.poll(now)) is not None:
        sent.append(record)
    return sent


# --- stream into records


def test_initial_window() -> None:  # RFC 6928 §2
    assert initial_window_bytes(1460) == 14600
    assert initial_window_bytes(500) == 5000
    assert initial_window_bytes(9000) == 18000
    assert make_congestion(TcpConfig(), 1460).cwnd_bytes == 14600


def test_records_are_as_long_as_the_link_takes() -> None:
    sender = make(gso=8)
    sender.gso_max_bytes += 123  # not whole segments
    sender.write(bytes(20 * MSS))
    assert drain(sender) == [8000, 8000, 4000]
    assert sender.segments_sent == 20
    assert (sender.bytes_sent, sender.in_flight_bytes, sender.queued_bytes) == (20_000, 20_000, 0)


def test_congestion_window_is_never_exceeded() -> None:
    sender = make(cwnd=3, gso=8)
    sender.write(bytes(10 * MSS))
    assert drain(sender) == [3000]


def test_rather_a_large_record_soon_than_a_small_one_now() -> None:
    sender = make(cwnd=40, gso=40, no_delay=True)
    sender.write(bytes(100 * MSS))
    assert drain(sender) == [40_000]
    sender.congestion.ssthresh_bytes = 40 * MSS
    sender.handle_ack(2 * MSS, 100_000, RTT)
    assert drain(sender, RTT) == []
    sender.handle_ack(12 * MSS, 100_000, RTT)
    assert drain(sender, RTT) == [12_000]


def test_write_takes_what_there_is_room_for() -> None:
    sender = make(window=0, send_buffer_bytes=2500)
    assert [sender.write(bytes(1000)) for _ in range(4)] == [1000, 1000, 500, 0]
    assert sender.free_bytes == 0
    sender.set_window(1000)
    sender.handle_ack(0, 1000, 0)
    assert drain(sender) == [1000]
    sender.handle_ack(1000, 0, RTT)
    assert sender.write(bytes(5000)) == 1000


# --- small segments


def test_nagle_holds_a_second_small_segment() -> None:  # RFC 9293 §3.7.4
    sender = make()
    sender.write(b"a")
    assert drain(sender) == [1]
    sender.write(b"b")
    sender.write(b"c")
    assert drain(sender) == []
    sender.handle_ack(1, 100_000, RTT)
    assert drain(sender, RTT) == [2]


def test_full_segments_are_not_held_and_the_tail_of_a_large_write_neither() -> None:
    sender = make()
    sender.write(bytes(2500))
    assert drain(sender) == [1000, 1000, 500]
    sender.write(bytes(1200))
    assert drain(sender) == [1000]  # a small one is outstanding now


def test_no_delay() -> None:  # RFC 9293 §3.7.4: "MUST be a way for an application to disable the Nagle algorithm"
    sender = make(no_delay=True)
    for _ in range(3):
        sender.write(b"a")
        assert drain(sender) == [1]


def test_cork_waits_for_a_full_segment_but_not_for_ever() -> None:
    sender = make(cork=True)
    sender.write(bytes(1200))
    assert drain(sender) == [1000]
    sender.handle_ack(1000, 100_000, RTT)
    assert drain(sender, RTT) == []
    assert sender.deadline == RTT + OVERRIDE_TIMEOUT_US
    assert sender.handle_timeout(sender.deadline) is TimeoutKind.NONE
    assert drain(sender, sender.deadline) == [200]
    sender.write(bytes(300))
    sender.set_config(TcpConfig(cork=False, no_delay=True))
    assert drain(sender, 2 * RTT) == [300]


def test_fin_sends_the_rest() -> None:
    sender = make(cork=True)
    sender.write(bytes(1200))
    drain(sender)
    sender.finish()
    (record,) = records(sender)
    assert (record.start, record.end, record.length, record.fin) == (1000, 1201, 200, True)
    assert sender.fin_sent
    assert sender.write(b"late") == 0
    sender.handle_ack(1201, 100_000, RTT)
    assert sender.fin_acked
    assert sender.is_all_acked
    assert sender.deadline == NEVER


def test_fin_alone() -> None:
    sender = make()
    sender.finish()
    (record,) = records(sender)
    assert (record.start, record.end, record.length, record.fin) == (0, 1, 0, True)


def test_fin_waits_for_its_own_number_in_the_window() -> None:
    sender = make(window=1000)
    sender.write(bytes(1000))
    sender.finish()
    (data,) = records(sender)
    assert (data.length, data.fin) == (1000, False)
    sender.handle_ack(1000, 0, RTT)
    assert records(sender, RTT) == []
    assert sender.handle_timeout(sender.deadline) is TimeoutKind.PERSIST
    sender.handle_ack(1000, 1, 2 * RTT)
    (fin,) = records(sender, 2 * RTT)
    assert (fin.start, fin.end, fin.fin) == (1000, 1001, True)


def test_fin_is_retransmitted_with_the_data_it_belongs_to() -> None:
    sender = make(gso=4)
    sender.write(bytes(3 * MSS))
    sender.finish()
    (record,) = records(sender)
    assert record.fin
    sender.handle_ack(2 * MSS, 100_000, RTT)
    now = sender.deadline
    sender.handle_timeout(now)
    if (again := sender.poll(now)) is None:
        now = sender.deadline
        sender.handle_timeout(now)
        again = sender.poll(now)
    assert again is not None
    assert (again.start, again.end, again.fin) == (2 * MSS, 3 * MSS + 1, True)


def test_silly_window_is_not_used() -> None:  # RFC 9293 §3.8.6.2.1
    sender = make(window=10_000)
    sender.write(bytes(20 * MSS))
    assert len(drain(sender)) == 10
    sender.handle_ack(10_000, 300, RTT)  # a crumb
    assert drain(sender, RTT) == []
    assert sender.handle_timeout(RTT + OVERRIDE_TIMEOUT_US) is TimeoutKind.NONE
    assert drain(sender, RTT + OVERRIDE_TIMEOUT_US) == [300]  # "(4) or if the override timeout occurs"


def test_half_of_the_largest_window_is_used() -> None:  # RFC 9293 §3.8.6.2.1 (3)
    sender = make(window=800)
    sender.write(bytes(5 * MSS))
    assert drain(sender) == [800]
    sender.handle_ack(800, 399, RTT)
    assert drain(sender, RTT) == []
    sender.handle_ack(800, 400, RTT)
    assert drain(sender, RTT) == [400]


# --- a closed window


def test_probes_of_a_closed_window_back_off_and_do_not_give_up() -> None:  # RFC 9293 §3.8.6.1
    sender = make(window=1000)
    sender.write(bytes(3 * MSS))
    assert drain(sender) == [1000]
    sender.handle_ack(1000, 0, RTT)
    assert drain(sender, RTT) == []
    gaps = []
    now = RTT
    for _ in range(5):
        gaps.append(sender.deadline - now)
        now = sender.deadline
        assert not sender.poll_probe()
        assert sender.handle_timeout(now) is TimeoutKind.PERSIST
        assert sender.poll_probe()
        assert not sender.poll_probe()
    rto = sender.rtt.rto_us
    assert gaps == [rto, 2 * rto, 4 * rto, 8 * rto, 16 * rto]
    assert sender.unanswered_probes == 5
    sender.handle_ack(1000, 0, now + RTT)
    assert sender.unanswered_probes == 0
    assert sender.timeouts == 0
    sender.handle_ack(1000, 5000, now + 2 * RTT)
    assert drain(sender, now + 2 * RTT) == [1000, 1000]
    sender.handle_ack(3000, 0, now + 3 * RTT)
    assert sender.deadline == NEVER  # nothing waits


def test_probes_for_what_waits_above() -> None:  # RFC 8684 §3.3.1
    sender = make(window=1000)
    sender.send_mapped([bytes(1000)], 1000, "mapping")
    drain(sender)
    sender.handle_ack(1000, 0, RTT)
    assert sender.deadline == NEVER
    sender.upper_waiting = True
    assert sender.poll(RTT) is None
    assert sender.handle_timeout(sender.deadline) is TimeoutKind.PERSIST
    sender.set_window(9000)
    assert sender.deadline == NEVER


def test_probes_for_a_fin() -> None:
    sender = make(window=0)
    sender.finish()
    assert sender.poll(0) is None
    assert sender.handle_timeout(sender.deadline) is TimeoutKind.PERSIST


def test_what_was_sent_is_sent_again_in_spite_of_a_shrunken_window() -> None:  # RFC 7323 §2.4
    sender = make()
    sender.write(bytes(3 * MSS))
    drain(sender)
    sender.rtt.on_sample(RTT, 0)
    sender.handle_ack(0, 0, RTT)
    while (kind := sender.handle_timeout(sender.deadline)) is not TimeoutKind.RTO:
        drain(sender, SECOND)
        assert kind is TimeoutKind.TLP
    assert drain(sender, SECOND) == [1000]


# --- records of a layer above


def test_mapped_records_keep_their_mapping_when_cut() -> None:
    sender = make(window=2500, cwnd=2, no_delay=True)
    payload = bytes(range(200)) * 20
    assert sender.send_mapped([payload[:1500], payload[1500:]], 4000, "a") == 0
    (first,) = records(sender)
    assert (first.length, first.mapping, b"".join(first.payloads)) == (2000, "a", payload[:2000])
    assert sender.queued_bytes == 2000
    sender.handle_ack(500, 100_000, RTT)
    (second,) = records(sender, RTT)
    assert (second.start, second.mapping, b"".join(second.payloads)) == (2000, "a", payload[2000 : second.end])


def test_only_the_lost_part_of_a_record_is_sent_again() -> None:
    sender = make(no_delay=True, timestamps=False, gso=10)
    payload = bytes(n // 100 for n in range(10 * MSS))
    sender.send_mapped([memoryview(payload)], 10 * MSS, "m")
    drain(sender)
    sender.handle_ack(2 * MSS, 100_000, RTT, sack_blocks=[(4 * MSS, 10 * MSS)])
    (again,) = records(sender, RTT)
    assert (again.start, again.end, again.mapping, again.transmissions) == (2 * MSS, 4 * MSS, "m", 2)
    assert b"".join(again.payloads) == payload[2 * MSS : 4 * MSS]
    assert sender.bytes_retransmitted == 2 * MSS


def test_sendable_bytes() -> None:
    sender = make(cwnd=10, window=8500, gso=4, no_delay=True)
    assert sender.sendable_bytes() == 8500
    sender.send_mapped([bytes(4000)], 4000, None)
    assert sender.sendable_bytes() == 4500  # queued octets are spoken for
    sender.send_mapped([bytes(4000)], 4000, None)
    assert sender.sendable_bytes() == 0  # 500: a crumb
    assert drain(sender) == [4000, 4000]
    sender.handle_ack(8000, 500, RTT)
    assert sender.sendable_bytes() == 500  # nothing else is on its way
    sender.finish()
    assert sender.sendable_bytes() == 0


def test_records_go_out_as_sendable_bytes_promised() -> None:
    sender = make(cwnd=23, window=17_300, gso=7, no_delay=True)
    while room := sender.sendable_bytes():
        length = min(room, 7 * MSS)
        sender.send_mapped([bytes(length)], length, None)
        assert drain(sender) == [length]


def test_a_long_queue_of_records_goes_out_in_order() -> None:
    sender = make(window=10_000, cwnd=100, no_delay=True)
    for number in range(100):
        sender.send_mapped([bytes([number])], 1, number)
    sender.congestion.cwnd_bytes = 1000
    sender.set_window(50)
    assert [record.mapping for record in records(sender)] == list(range(50))
    assert sender.queued_bytes == 50
    sender.set_window(100)
    assert [record.mapping for record in records(sender)] == list(range(50, 100))
    assert sender.unacked_bytes == 100


def test_a_stream_may_follow_mapped_records() -> None:  # fallback to plain TCP
    sender = make(no_delay=True)
    sender.send_mapped([b"x" * 100], 100, "m")
    sender.write(b"y" * 50)
    sender.finish()
    assert [(r.start, r.end, r.mapping) for r in records(sender)] == [(0, 100, "m"), (100, 151, None)]


# --- path MTU


def test_smaller_path_mtu_sends_again_without_a_reduction() -> None:  # RFC 1191 §6.5
    sender = make(no_delay=True, gso=4)
    sender.write(bytes(4000))
    sender.write(bytes(400))
    drain(sender)
    cwnd = sender.congestion.cwnd_bytes
    sender.handle_path_mtu(500, 10)
    assert sender.mss == sender.congestion.mss_bytes == 500
    again = records(sender, 10)
    assert sum(record.length for record in again) == 4000
    assert sender.congestion.cwnd_bytes == cwnd
    assert (sender.timeouts, sender.fast_recoveries) == (0, 0)
    sender.handle_ack(4400, 100_000, RTT)
    assert sender.state is SendState.OPEN
    sender.handle_path_mtu(900, 20)  # larger: not believed
    assert sender.mss == 500


# --- congestion window: use, idleness, ECN


def test_a_window_not_filled_does_not_grow() -> None:
    sender = make(cwnd=40, no_delay=True)
    now = 0
    for _ in range(20):
        sender.write(bytes(2 * MSS))
        drain(sender, now)
        now += RTT
        sender.handle_ack(sender.nxt, 100_000, now)
    assert sender.congestion.cwnd_bytes == 40 * MSS
    sender.write(bytes(60 * MSS))
    drain(sender, now)
    sender.handle_ack(sender.nxt, 200_000, now + RTT)
    assert sender.congestion.cwnd_bytes > 40 * MSS


def test_restart_after_idle() -> None:  # RFC 5681 §4.1
    sender = make(cwnd=50)
    sender.write(bytes(MSS))
    drain(sender)
    sender.handle_ack(MSS, 100_000, RTT)
    sender.write(bytes(40 * MSS))
    assert len(drain(sender, RTT + SECOND)) == 10


@pytest.mark.parametrize("gso", [1, 10])
def test_ecn_echo_reduces_once_per_window(gso: int) -> None:  # RFC 3168 §6.1.2
    sender = make(cwnd=10, no_delay=True, gso=gso)
    sender.congestion.ssthresh_bytes = 10 * MSS
    sender.write(bytes(60 * MSS))
    drain(sender)
    sender.handle_ack(2 * MSS, 100_000, RTT, ece=True)
    assert (sender.state, sender.congestion.ssthresh_bytes, sender.cwr_pending) == (SendState.CWR, 5 * MSS, True)
    drain(sender, RTT)
    for ack in (4, 6, 8, 10):
        sender.handle_ack(ack * MSS, 100_000, RTT + ack, ece=True)
        drain(sender, RTT + ack)
    assert sender.congestion.cwnd_bytes == 5 * MSS
    assert sender.ecn_reductions == 1
    assert sender.retransmissions == 0
    sender.handle_ack(sender.nxt, 100_000, 2 * RTT, ece=True)  # the next window, and the echo goes on
    assert sender.ecn_reductions == 2


# --- hostile or odd acknowledgements


def test_numbers_never_sent_are_ignored() -> None:
    sender = make()
    sender.write(bytes(5 * MSS))
    drain(sender)
    assert sender.handle_ack(5001, 100, RTT) == 0
    assert sender.window_edge == 100_000
    blocks = [(9_000, 8_000), (4000, 9_000), (-10, 10**9), (7000, 7000)]
    sender.handle_ack(0, 100_000, RTT, sack_blocks=blocks)
    assert sender.queue.sacked == 0
    assert sender.handle_ack(1000, 100_000, RTT, sack_blocks=[(10**12, -5)]) == 1000


def test_old_acknowledgements_change_nothing() -> None:
    sender = make(no_delay=True)
    sender.write(bytes(5 * MSS))
    drain(sender)
    sender.handle_ack(3 * MSS, 50_000, RTT)
    edge = sender.window_edge
    assert sender.handle_ack(1 * MSS, 90_000, RTT) == 0
    assert (sender.una, sender.window_edge, sender.in_flight_bytes) == (3 * MSS, edge, 2 * MSS)


def test_a_window_of_minus_one_leaves_the_edge() -> None:
    sender = make()
    sender.write(bytes(5 * MSS))
    drain(sender)
    sender.handle_ack(1000, -1, RTT)
    assert sender.window_edge == 100_000
