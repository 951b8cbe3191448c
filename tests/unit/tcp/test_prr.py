"""RFC 6937, its figures and its formulas."""

from __future__ import annotations

import pytest

from mptcp.core.congestion.newreno import NewReno
from mptcp.core.tcp.config import TcpConfig
from mptcp.core.tcp.prr import Prr
from mptcp.core.tcp.sender import Sender, SendState

MSS = 1000


def full_window(segments: int) -> Sender:
    """``segments`` in flight, more waiting, RFC 6675 loss detection, Reno's half."""
    config = TcpConfig(timestamps=False, congestion=NewReno)
    sender = Sender(config, NewReno(MSS, segments * MSS), 0, MSS, 0)
    sender.congestion.ssthresh_bytes = segments * MSS  # congestion avoidance, as in the figures
    sender.set_window(10_000_000)
    sender.write(bytes(1_000_000))
    assert drain(sender) == ["N"] * segments
    return sender


def drain(sender: Sender) -> list[str]:
    """What is sent now: N for new data, R for a retransmission."""
    sent = []
    while (record := sender.poll(1000)) is not None:
        sent.append("R" if record.transmissions > 1 else "N")
    return sent


def test_first_figure() -> None:  # RFC 6937 §3.1: one segment of 20 is lost
    sender = full_window(20)
    sent = []
    for number in range(1, 20):
        sender.handle_ack(0, 10_000_000, 2000, sack_blocks=((MSS, (number + 1) * MSS),))
        sent.append("".join(drain(sender)))
    assert sent == "N N R . N . N . N . N . N . N . . N N".replace(".", "").split(" ")  # the "PRR" line
    assert sender.in_flight_bytes == 11 * MSS
    assert sender.congestion.ssthresh_bytes == 11 * MSS


def test_second_figure() -> None:  # RFC 6937 §3.1: segments 0 to 14 of 20 are lost
    sender = full_window(20)
    sent = []
    for number in range(15, 20):
        sender.handle_ack(0, 10_000_000, 2000, sack_blocks=((15 * MSS, (number + 1) * MSS),))
        sent.append("".join(drain(sender)))
    # "PRR-SSRB: sent: N N 2R 2R 2R"
    assert sent == ["N", "N", "RR", "RR", "RR"]


def test_window_is_the_threshold_when_recovery_ends() -> None:
    sender = full_window(20)
    for number in range(1, 20):
        sender.handle_ack(0, 10_000_000, 2000, sack_blocks=((MSS, (number + 1) * MSS),))
        drain(sender)
    assert sender.state is SendState.RECOVERY
    sender.handle_ack(sender.nxt, 10_000_000, 3000)
    assert sender.state is SendState.OPEN
    assert sender.congestion.cwnd_bytes == 11 * MSS


@pytest.mark.parametrize(
    ("delivered", "pipe", "ssthresh", "expected"),
    [
        (1000, 18_000, 10_000, 1000),  # proportional: CEIL(1 segment * 10 / 20)
        (2001, 18_000, 10_000, 2000),
        (1000, 9_500, 10_000, 500),  # up to the threshold
        (1000, 2_000, 10_000, 2_000),  # DeliveredData + MSS
        (0, 2_000, 10_000, 1_000),
    ],
)
def test_sndcnt(delivered: int, pipe: int, ssthresh: int, expected: int) -> None:  # RFC 6937 §3
    prr = Prr()
    prr.begin(20_000)
    assert prr.on_ack(delivered, pipe, ssthresh, MSS) == expected


def test_never_negative() -> None:
    prr = Prr()
    prr.begin(20_000)
    prr.on_sent(5_000)
    assert prr.on_ack(1000, 18_000, 10_000, MSS) == 0
