"""RFC 5682: F-RTO, step by step, with and without SACK; and the timeout it looks at (RFC 6298 §5)."""

from __future__ import annotations

import pytest

from mptcp.core.congestion.newreno import NewReno
from mptcp.core.tcp.config import TcpConfig
from mptcp.core.tcp.sender import Sender, SendState, TimeoutKind
from mptcp.core.units import MILLISECOND

MSS = 1000
RTT = 40 * MILLISECOND
WINDOW = 1_000_000


def timed_out(sack: bool, *, segments: int = 6, waiting: int = 10) -> tuple[Sender, int]:
    """``segments`` in flight, the timer has expired, the first of them is sent again; ``waiting`` more are queued."""
    config = TcpConfig(sack=sack, timestamps=False, no_delay=True)
    sender = Sender(config, NewReno(MSS, segments * MSS), 0, MSS, 0)
    sender.set_window(WINDOW)
    sender.rtt.on_sample(RTT, 0)
    sender.write(bytes((segments + waiting) * MSS))
    assert len(drain(sender, 0)) == segments
    now = sender.deadline
    assert sender.handle_timeout(now) is TimeoutKind.RTO
    assert drain(sender, now) == [0]
    assert (sender.state, sender.congestion.cwnd_bytes) == (SendState.LOSS, MSS)
    return sender, now


def drain(sender: Sender, now: int) -> list[int]:
    """Which segments are sent now, by number."""
    sent = []
    while (record := sender.poll(now)) is not None:
        sent.append(record.start // MSS)
    return sent


BOTH = pytest.mark.parametrize("sack", [False, True], ids=["basic", "sack"])


@BOTH
def test_spurious_timeout(sack: bool) -> None:  # RFC 5682 §2.1 (2b), (3b); §3.1 (2b), (3b)
    sender, now = timed_out(sack)
    sender.handle_ack(MSS, WINDOW, now + 1000)
    assert drain(sender, now + 1000) == [6, 7]  # two new segments
    sender.handle_ack(2 * MSS, WINDOW, now + 2000)
    assert (sender.spurious_timeouts, sender.state) == (1, SendState.OPEN)
    assert sender.congestion.cwnd_bytes >= 6 * MSS
    assert sender.queue.lost == 0
    assert all(number > 7 for number in drain(sender, now + 2000))
    assert sender.retransmissions == 1


@BOTH
def test_genuine_timeout(sack: bool) -> None:  # RFC 5682 §2.1 (3a); §3.1 (3a)
    sender, now = timed_out(sack)
    sender.handle_ack(MSS, WINDOW, now + 1000)
    assert drain(sender, now + 1000) == [6, 7]
    blocks = [(6 * MSS, 7 * MSS)] if sack else []
    sender.handle_ack(MSS, WINDOW, now + RTT, sack_blocks=blocks)  # the new segment arrived, the old ones did not
    assert sender.spurious_timeouts == 0
    assert sender.congestion.cwnd_bytes in {3 * MSS, 4 * MSS}
    assert drain(sender, now + RTT)[0] == 1
    assert sender.state is SendState.LOSS


def test_basic_duplicate_in_step_2() -> None:  # RFC 5682 §2.1 (2a)
    sender, now = timed_out(False)
    sender.handle_ack(0, WINDOW, now + 1000)
    sender.handle_ack(MSS, WINDOW, now + 2000)
    assert drain(sender, now + 2000) == [1, 2]  # slow start through what is outstanding


def test_sack_duplicates_leave_step_2_open() -> None:  # RFC 5682 §3.1 (2)
    sender, now = timed_out(True)
    sender.handle_ack(0, WINDOW, now + 1000, sack_blocks=[(MSS, 2 * MSS)])
    sender.handle_ack(2 * MSS, WINDOW, now + 2000)
    assert drain(sender, now + 2000)[:2] == [6, 7]
    sender.handle_ack(3 * MSS, WINDOW, now + 3000)
    assert sender.spurious_timeouts == 1


@BOTH
def test_everything_acknowledged_is_no_proof(sack: bool) -> None:  # RFC 5682 §2.1 (2a): 'covers "recover"'
    sender, now = timed_out(sack)
    sender.handle_ack(6 * MSS, WINDOW, now + 1000)
    assert sender.spurious_timeouts == 0
    assert sender.state is SendState.OPEN


@BOTH
def test_acknowledging_part_of_the_retransmission_is_no_proof(sack: bool) -> None:  # RFC 5682 §2.1 (2a)
    sender, now = timed_out(sack)
    sender.handle_ack(MSS // 2, WINDOW, now + 1000)
    sender.handle_ack(MSS, WINDOW, now + 2000)
    sender.handle_ack(2 * MSS, WINDOW, now + 3000)
    assert sender.spurious_timeouts == 0


@BOTH
def test_without_new_data_it_is_conventional(sack: bool) -> None:  # RFC 5682 §2.1 (2b)
    sender, now = timed_out(sack, waiting=0)
    sender.handle_ack(MSS, WINDOW, now + 1000)
    assert drain(sender, now + 1000)[0] == 1


@BOTH
def test_window_full_it_is_conventional(sack: bool) -> None:  # RFC 5682 §2.1 (2b)
    sender, now = timed_out(sack)
    sender.handle_ack(MSS, 5 * MSS, now + 1000)
    assert drain(sender, now + 1000)[0] == 1


def test_timestamps_tell_at_the_first_acknowledgement() -> None:  # the Eifel detection of RFC 3522
    sender, now = timed_out(True)
    sender.timestamps_enabled = True
    sender.handle_ack(MSS, WINDOW, now + 1000, rtt_echo_us=now + 1000)  # the echo is of time 0
    assert sender.spurious_timeouts == 1
    assert sender.state is SendState.OPEN


def test_back_to_back_timeouts_halve_once_and_back_off() -> None:  # RFC 5681 §3.1, RFC 6298 §5.5
    sender, now = timed_out(True)
    threshold = sender.congestion.ssthresh_bytes
    timeout = sender.rtt.timeout_us
    for expected in (2, 4, 8):
        now = sender.deadline
        assert sender.handle_timeout(now) is TimeoutKind.RTO
        assert drain(sender, now) == [0]
        assert sender.rtt.timeout_us == timeout * expected
    assert sender.congestion.ssthresh_bytes == threshold
    assert sender.consecutive_timeouts == 4
    sender.handle_ack(MSS, WINDOW, now + RTT)
    assert sender.consecutive_timeouts == 0


def test_timer_restarts_with_new_acknowledgements_and_stops_with_the_last() -> None:  # RFC 6298 §5.2, §5.3
    config = TcpConfig(timestamps=False, no_delay=True)
    sender = Sender(config, NewReno(MSS, 10 * MSS), 0, MSS, 0)
    sender.set_window(WINDOW)
    sender.write(bytes(3 * MSS))
    drain(sender, 0)
    assert sender.deadline == 1_000_000
    sender.handle_ack(MSS, WINDOW, RTT)
    assert sender.deadline == RTT + sender.rtt.timeout_us
    sender.handle_ack(3 * MSS, WINDOW, 2 * RTT)
    assert sender.deadline > 1 << 60


def test_reneging_is_forgiven_at_a_timeout() -> None:  # RFC 2018 §8
    config = TcpConfig(timestamps=False, no_delay=True)
    sender = Sender(config, NewReno(MSS, 10 * MSS), 0, MSS, 0)
    sender.set_window(WINDOW)
    sender.write(bytes(3 * MSS))
    drain(sender, 0)
    sender.handle_ack(0, WINDOW, RTT, sack_blocks=[(MSS, 3 * MSS)])
    sender.handle_ack(MSS, WINDOW, 2 * RTT)  # and yet what it had reported is not acknowledged
    now = sender.deadline
    assert sender.handle_timeout(now) is TimeoutKind.RTO
    assert drain(sender, now) == [1]
    assert sender.queue.sacked == 0
