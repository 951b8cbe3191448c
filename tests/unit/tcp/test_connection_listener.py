"""Passive opens in numbers: bounded queues (RFC 4987), retransmitted SYN/ACKs, the accept queue."""

from __future__ import annotations

from mptcp.core.counters import Counters
from mptcp.core.entropy import Entropy
from mptcp.core.tcp.config import TcpConfig
from mptcp.core.tcp.connection import Connection
from mptcp.core.tcp.listener import Listener
from mptcp.core.wire.segment import ACK, RST, SYN, Options, Segment
from mptcp.core.wire.sequence import MASK32
from mptcp.info import Endpoint
from mptcp.testing.tcp_pair import SERVER

NOW = 1_000_000
SYN_SEGMENT = Segment(seq=0xFFFFFFFF, flags=SYN, window=1000, options=Options(mss=1460), length=0)


def remote(number: int) -> Endpoint:
    return Endpoint(bytes((10, 1, number >> 8, number & 255)), 1000)


def listener(backlog: int = 4, max_half_open: int = 8) -> Listener:
    return Listener(TcpConfig(), SERVER, Entropy(1), Counters(), backlog=backlog, max_half_open=max_half_open)


def half_open(at: Listener, number: int) -> Connection | None:
    return at.handle_syn(SYN_SEGMENT, SERVER, remote(number), NOW, mtu=1500)


def finish(at: Listener, connection: Connection) -> bool:
    (syn_ack,) = [connection.poll_segment(NOW)]
    assert syn_ack is not None
    if not at.may_complete(connection):
        return False
    connection.handle_segment(Segment(seq=0, ack=(syn_ack.seq + 1) & MASK32, flags=ACK, window=1000, length=0), NOW)
    return at.update(connection)


def test_a_finished_handshake_can_be_accepted() -> None:
    at = listener()
    connection = half_open(at, 1)
    assert connection is not None
    assert at.accept() is None
    assert finish(at, connection)
    assert at.half_open == {}
    assert at.accept() is connection
    assert at.accept() is None
    assert at.accepted_total == 1


def test_oldest_half_open_makes_room() -> None:  # RFC 4987 §3.4
    at = listener(max_half_open=3)
    made = [half_open(at, n) for n in range(5)]
    assert len(at.half_open) == 3
    assert [c.is_closed for c in made if c is not None] == [True, True, False, False, False]
    assert at.counters["half_open_recycled"] == 2


def test_full_accept_queue_holds_syns_and_acks_back() -> None:
    at = listener(backlog=1)
    first, second = half_open(at, 1), half_open(at, 2)
    assert first is not None
    assert second is not None
    assert finish(at, first)
    assert not finish(at, second)
    assert half_open(at, 3) is None
    assert at.counters["listen_overflow"] == 1
    assert at.counters["accept_queue_overflow"] == 1
    assert at.accept() is first
    assert at.may_complete(second)


def test_only_syns_open() -> None:  # RFC 9293 §3.10.7.2
    at = listener()
    for flags in (RST, ACK, SYN | ACK, SYN | RST, 0):
        assert at.handle_syn(Segment(flags=flags, length=0), SERVER, remote(1), NOW, mtu=1500) is None
    assert at.counters["listen_not_a_syn"] == 5


def test_half_open_that_is_reset_is_forgotten() -> None:
    at = listener()
    connection = half_open(at, 1)
    assert connection is not None
    connection.poll_segment(NOW)
    connection.handle_segment(Segment(seq=0, flags=RST, length=0), NOW)
    assert not at.update(connection)
    assert at.half_open == {}
    assert at.accept() is None


def test_close_resets_what_nobody_took() -> None:
    at = listener()
    first, second = half_open(at, 1), half_open(at, 2)
    assert first is not None
    assert second is not None
    finish(at, first)
    second.poll_segment(NOW)
    closed = at.close(NOW)
    assert {id(c) for c in closed} == {id(first), id(second)}
    for connection in closed:
        reset = connection.poll_segment(NOW)
        assert reset is not None
        assert reset.flags & RST
        assert connection.is_closed
