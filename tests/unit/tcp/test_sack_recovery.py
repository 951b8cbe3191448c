"""Loss detection without time: RFC 6675 with SACK, RFC 6582 without; undoing by D-SACK (RFC 2883)."""

from __future__ import annotations

from mptcp.core.congestion.newreno import NewReno
from mptcp.core.tcp.config import TcpConfig
from mptcp.core.tcp.sender import Sender, SendState, TimeoutKind
from mptcp.core.units import MILLISECOND

MSS = 1000
RTT = 40 * MILLISECOND
WINDOW = 1_000_000


def make(segments: int, *, waiting: int = 0, sack: bool = True, timestamps: bool = False) -> Sender:
    config = TcpConfig(sack=sack, timestamps=timestamps, no_delay=True)
    sender = Sender(config, NewReno(MSS, segments * MSS), 0, MSS, 0)
    sender.congestion.ssthresh_bytes = segments * MSS
    sender.set_window(WINDOW)
    sender.rtt.on_sample(RTT, 0)
    sender.write(bytes((segments + waiting) * MSS))
    assert len(drain(sender, 0)) == segments
    return sender


def drain(sender: Sender, now: int = RTT) -> list[int]:
    """Numbers of the segments sent now."""
    sent = []
    while (record := sender.poll(now)) is not None:
        sent.extend(range(record.start // MSS, -(-record.end // MSS)))
    return sent


def sack(sender: Sender, *blocks: tuple[int, int], ack: int = 0, now: int = RTT) -> None:
    """Blocks and acknowledgement in segments."""
    sender.handle_ack(ack * MSS, WINDOW, now, sack_blocks=[(left * MSS, right * MSS) for left, right in blocks])


def duplicate(sender: Sender, ack: int = 0, now: int = RTT) -> None:
    sender.handle_ack(ack * MSS, WINDOW - ack * MSS, now)


# --- RFC 6675


def test_more_than_two_segments_above_mean_loss() -> None:  # RFC 6675 §4 IsLost()
    sender = make(8)
    sack(sender, (2, 4))
    assert sender.state is SendState.OPEN
    sack(sender, (2, 5))
    assert sender.state is SendState.RECOVERY
    assert drain(sender) == [0]  # first at once, the second as the window allows
    sack(sender, (2, 6))
    assert 1 in drain(sender) + [r.start // MSS for r in sender.queue.records if r.lost]


def test_three_separate_runs_mean_loss() -> None:  # RFC 6675 §4 IsLost(): "DupThresh discontiguous SACKed sequences"
    sender = make(10)
    small = [(3, 4), (5, 6)]
    sack(sender, *small)
    assert sender.state is SendState.OPEN
    sender.handle_ack(0, WINDOW, RTT, sack_blocks=[(7 * MSS, 8 * MSS), (5 * MSS, 6 * MSS), (3 * MSS, 4 * MSS)])
    assert sender.state is SendState.RECOVERY
    lost = [r.start // MSS for r in sender.queue.records if r.lost]
    assert lost == [0, 1, 2]


def test_limited_transmit() -> None:  # RFC 6675 §5 (3), RFC 3042
    sender = make(8, waiting=5)
    sack(sender, (1, 2))
    assert drain(sender) == [8]
    sack(sender, (1, 3))
    assert drain(sender) == [9]
    sack(sender, (1, 4))
    assert drain(sender) == [0]


def test_window_is_halved_once_per_recovery() -> None:  # RFC 6675 §5 (4.2)
    sender = make(20)
    for right in range(2, 12):
        sack(sender, (1, right))
        drain(sender)
    sack(sender, (13, 18), (1, 12))
    assert sender.congestion.ssthresh_bytes == 10 * MSS
    assert sender.fast_recoveries == 1


def test_uncertain_segment_is_sent_rather_than_nothing() -> None:  # RFC 6675 §4 NextSeg() (3)
    sender = make(12)
    sack(sender, (1, 4))
    drain(sender)
    # 4 is not lost by IsLost(): only two segments above it have arrived
    sack(sender, (1, 4), (5, 7), ack=0, now=RTT + 1)
    assert not any(record.lost for record in sender.queue.records)
    assert drain(sender, RTT + 1) == [4]


def test_rescue_of_the_tail_once_per_recovery() -> None:  # RFC 6675 §4 NextSeg() (4)
    sender = make(10)
    sack(sender, (1, 4))
    assert drain(sender) == [0, 9]
    for ack in (4, 5, 6):
        sack(sender, ack=ack, now=2 * RTT)
        assert drain(sender, 2 * RTT) == []


# --- RFC 6582


def test_third_duplicate_retransmits_the_first_segment() -> None:  # RFC 5681 §3.2 (2)
    sender = make(10, waiting=10, sack=False)
    duplicate(sender)
    duplicate(sender)
    assert drain(sender) == [10, 11]  # limited transmit
    duplicate(sender)
    assert drain(sender)[0] == 0
    assert sender.state is SendState.RECOVERY
    assert sender.congestion.ssthresh_bytes == 6 * MSS


def test_partial_acknowledgement_retransmits_the_next_hole() -> None:  # RFC 6582 §3.2 (3)
    sender = make(10, waiting=4, sack=False)
    for _ in range(3):
        duplicate(sender)
        drain(sender)
    sender.handle_ack(4 * MSS, WINDOW, 2 * RTT)
    assert drain(sender, 2 * RTT)[0] == 4
    assert sender.state is SendState.RECOVERY
    assert sender.fast_recoveries == 1
    sender.handle_ack(sender.nxt, WINDOW, 3 * RTT)
    assert sender.state is SendState.OPEN
    assert sender.retransmissions == 2


def test_duplicates_after_a_timeout_do_not_start_recovery() -> None:  # RFC 6582 §3.2 (2), §4
    sender = make(10, sack=False)
    now = sender.deadline
    assert sender.handle_timeout(now) is TimeoutKind.RTO
    drain(sender, now)
    sender.handle_ack(10 * MSS, WINDOW, now + RTT)
    sender.write(bytes(5 * MSS))
    drain(sender, now + RTT)
    for _ in range(5):
        duplicate(sender, ack=10, now=now + RTT)
    assert sender.fast_recoveries == 0


def test_what_is_no_duplicate() -> None:  # RFC 5681 §2: the definition of a duplicate acknowledgement
    sender = make(10, sack=False)
    for window in range(WINDOW + 1, WINDOW + 5):
        sender.handle_ack(0, window, RTT)  # window updates
    for _ in range(5):
        sender.handle_ack(0, WINDOW + 4, RTT, pure=False)  # with data
    assert sender.state is SendState.OPEN
    empty = make(0, sack=False)
    for _ in range(5):
        duplicate(empty)
    assert empty.state is SendState.OPEN


# --- RFC 2883


def test_duplicate_report_of_all_that_was_sent_again_undoes() -> None:  # RFC 2883 §5
    sender = make(10, timestamps=True)
    sack(sender, (2, 5))
    now = RTT
    for _ in range(10):
        drain(sender, now)
        if sender.queue.lost:
            sack(sender, (2, 5 + _ % 5), now=now)
    resent = sender.bytes_retransmitted // MSS
    assert resent
    assert sender.congestion.ssthresh_bytes == 5 * MSS
    sender.handle_ack(10 * MSS, WINDOW, now + 1000)  # the originals were only late
    for number in range(resent):
        sack(sender, (number, number + 1), ack=10, now=now + RTT)
    assert sender.dsacks == resent
    assert sender.spurious_recoveries == 1
    assert sender.congestion.cwnd_bytes >= 10 * MSS
    assert sender.congestion.ssthresh_bytes == 10 * MSS


def test_duplicate_report_inside_the_second_block() -> None:  # RFC 2883 §4
    sender = make(10)
    sack(sender, (4, 5), (3, 6))
    assert sender.dsacks == 1
    assert sender.queue.sacked == 3 * MSS
