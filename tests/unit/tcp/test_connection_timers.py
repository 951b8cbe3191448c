"""What time does to a connection: retransmission limits, keep-alive, user timeout, FIN-WAIT-2, path MTU, ICMP."""

from __future__ import annotations

import pytest

from mptcp.core.tcp.config import TcpConfig
from mptcp.core.tcp.path_mtu import MIN_MTU_V6, RAISE_AFTER_ICMP_US, PathMtu
from mptcp.core.tcp.states import State
from mptcp.core.units import MILLISECOND, NEVER, SECOND
from mptcp.core.wire.icmp import IcmpError, IcmpKind
from mptcp.core.wire.segment import ACK, FIN, RST
from mptcp.core.wire.sequence import MASK32
from mptcp.errors import ConnectionRefused, ConnectionTimedOut, HostUnreachable, NetworkUnreachable
from mptcp.testing.tcp_pair import CLIENT, CLIENT_ISN, SERVER, ScriptedPeer, TcpPair

PLAIN = TcpConfig(timestamps=False)


def icmp(kind: IcmpKind, seq: int, mtu: int = 0) -> IcmpError:
    return IcmpError(kind, CLIENT.address, CLIENT.port, SERVER.address, SERVER.port, (CLIENT_ISN + seq) & MASK32, mtu)


def test_idle_connection_has_no_deadline() -> None:
    pair = TcpPair().connect()
    pair.run_for(SECOND)
    assert pair.client.poll_deadline() == NEVER
    assert pair.server.poll_deadline() == NEVER


def test_retransmissions_end_in_a_timeout() -> None:  # RFC 9293 §3.8.3 (MUST-20)
    peer = ScriptedPeer(TcpConfig(timestamps=False, data_retries=4, path_mtu_discovery=False)).establish()
    peer.tcp.write(b"is anybody there?")
    sent = peer.wait(100 * SECOND)
    assert isinstance(peer.tcp.error, ConnectionTimedOut)
    assert [s.payload for s in sent[:-1]] == [b"is anybody there?"] * len(sent[:-1])
    assert sent[-1].flags & RST
    assert peer.counters["retransmission_limit"] == 1


def test_orphan_is_given_up_earlier() -> None:
    lengths = []
    for close in (True, False):
        peer = ScriptedPeer(PLAIN).establish()
        peer.tcp.write(b"bye")
        if close:
            peer.tcp.close(peer.now)
        start = peer.now
        while not peer.tcp.is_closed:
            peer.sent()
            peer.now = max(peer.now, peer.tcp.poll_deadline())
            peer.tcp.handle_timeout(peer.now)
            peer.sent()
        lengths.append(peer.now - start)
    assert lengths[0] < lengths[1] // 4


def test_fin_wait_2_of_an_orphan_ends() -> None:
    peer = ScriptedPeer(PLAIN).establish()
    peer.tcp.close(peer.now)
    peer.sent()
    peer.gives(ACK, seq=1, ack=2)
    assert peer.tcp.state is State.FIN_WAIT_2
    peer.wait(59 * SECOND)
    assert not peer.tcp.is_closed
    peer.wait(2 * SECOND)
    assert peer.tcp.is_closed
    assert peer.tcp.error is None


def test_fin_wait_2_of_a_reader_does_not_end() -> None:  # RFC 9293 §3.6: half-close
    peer = ScriptedPeer(PLAIN).establish()
    peer.tcp.shutdown_write(peer.now)
    peer.sent()
    peer.gives(ACK, seq=1, ack=2)
    peer.wait(1000 * SECOND)
    assert peer.tcp.state is State.FIN_WAIT_2
    peer.gives(ACK, seq=1, ack=2, data=b"at last")
    assert peer.tcp.read(10) == b"at last"


def test_fin_is_retransmitted() -> None:
    peer = ScriptedPeer(PLAIN).establish()
    peer.tcp.close(peer.now)
    sent = peer.wait(SECOND)
    assert len(sent) > 1
    assert all(s.flags & FIN and peer.relative(s)[0] == 1 for s in sent)


# --- keep-alive -----------------------------------------------------------------------------------------------------
KEEPALIVE = TcpConfig(
    timestamps=False,
    keepalive=True,
    keepalive_idle_us=60 * SECOND,
    keepalive_interval_us=10 * SECOND,
    keepalive_count=3,
)


def test_keepalive_is_off_by_default() -> None:  # RFC 9293 §3.8.4 (MUST-25)
    peer = ScriptedPeer(PLAIN).establish()
    assert peer.wait(100_000 * SECOND) == []


def test_keepalive_probes_and_gives_up() -> None:  # RFC 9293 §3.8.4
    peer = ScriptedPeer(KEEPALIVE).establish()
    assert peer.wait(59 * SECOND) == []
    probes = peer.wait(2 * SECOND)
    assert [(peer.relative(s), s.length) for s in probes] == [((0, 1), 0)]
    rest = peer.wait(40 * SECOND)
    assert len([s for s in rest if not s.flags & RST]) == 2
    assert isinstance(peer.tcp.error, ConnectionTimedOut)


def test_keepalive_answer_starts_over() -> None:  # RFC 9293 §3.8.4 (MUST-29)
    peer = ScriptedPeer(KEEPALIVE).establish()
    for _ in range(5):
        probes = peer.wait(61 * SECOND)
        assert len(probes) == 1
        peer.gives(ACK, seq=1, ack=1)
    assert peer.tcp.is_established


def test_peer_answers_keepalive_probes() -> None:  # RFC 9293 §3.8.4
    pair = TcpPair(KEEPALIVE, PLAIN).connect()
    pair.run_for(3600 * SECOND)
    assert pair.client.is_established
    assert pair.client.keepalive is not None
    assert pair.client.keepalive.probes <= 1


def test_keepalive_can_be_switched_on_later() -> None:
    peer = ScriptedPeer(PLAIN).establish()
    peer.now += 5 * SECOND
    peer.tcp.set_config(KEEPALIVE, peer.now)
    assert peer.tcp.poll_deadline() == peer.now + 60 * SECOND
    peer.tcp.set_config(PLAIN, peer.now)
    assert peer.tcp.poll_deadline() == NEVER


# --- user timeout ---------------------------------------------------------------------------------------------------
def test_user_timeout_ends_the_wait() -> None:  # RFC 9293 §3.9.1, RFC 5482 §1
    peer = ScriptedPeer(TcpConfig(timestamps=False, user_timeout_us=3 * SECOND)).establish()
    peer.wait(100 * SECOND)
    peer.tcp.write(b"hello?")
    start = peer.now
    while not peer.tcp.is_closed and peer.now < start + 60 * SECOND:
        peer.wait(100 * MILLISECOND)
    assert isinstance(peer.tcp.error, ConnectionTimedOut)
    assert 3 * SECOND <= peer.now - start <= 4 * SECOND


def test_user_timeout_counts_from_the_last_progress() -> None:
    peer = ScriptedPeer(TcpConfig(timestamps=False, user_timeout_us=3 * SECOND)).establish()
    for index in range(5):
        peer.tcp.write(b"x")
        peer.wait(2 * SECOND)
        peer.gives(ACK, seq=1, ack=2 + index)
    assert peer.tcp.is_established
    peer.wait(100 * SECOND)
    assert peer.tcp.is_established


# --- ICMP -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("kind", "error"),
    [
        (IcmpKind.PORT_UNREACHABLE, ConnectionRefused),
        (IcmpKind.HOST_UNREACHABLE, HostUnreachable),
        (IcmpKind.NETWORK_UNREACHABLE, NetworkUnreachable),
        (IcmpKind.PROHIBITED, HostUnreachable),
    ],
)
def test_icmp_ends_an_attempt_to_connect(kind: IcmpKind, error: type[Exception]) -> None:  # RFC 1122 §4.2.3.9
    peer = ScriptedPeer(PLAIN)
    peer.tcp.open(peer.now)
    peer.sent()
    peer.tcp.handle_icmp(icmp(kind, 1), peer.now)
    assert peer.tcp.state is State.SYN_SENT  # not our sequence number
    peer.tcp.handle_icmp(icmp(kind, 0), peer.now)
    assert isinstance(peer.tcp.error, error)


def test_icmp_does_not_end_a_connection() -> None:  # RFC 1122 §4.2.3.9, RFC 5927 §5.2
    peer = ScriptedPeer(TcpConfig(timestamps=False, data_retries=2)).establish()
    peer.tcp.write(b"x" * 100)
    peer.sent()
    peer.tcp.handle_icmp(icmp(IcmpKind.HOST_UNREACHABLE, 50), peer.now)
    assert peer.tcp.is_established
    peer.wait(60 * SECOND)
    assert isinstance(peer.tcp.error, HostUnreachable)


def test_icmp_that_quotes_nothing_outstanding_is_ignored() -> None:  # RFC 5927 §4.1
    peer = ScriptedPeer(PLAIN).establish()
    peer.tcp.write(b"x" * 100)
    peer.sent()
    for seq in (0, 101, 5000, -1000):
        peer.tcp.handle_icmp(icmp(IcmpKind.PACKET_TOO_BIG, seq, 1000), peer.now)
    assert peer.tcp.path_mtu.mtu == 1500
    assert peer.counters["icmp_bad_sequence"] == 4


def test_too_big_shrinks_segments_and_sends_again() -> None:  # RFC 1191 §6.5, RFC 8201 §5.3
    peer = ScriptedPeer(PLAIN).establish()
    peer.tcp.write(b"x" * 4380)
    assert [s.length for s in peer.sent()] == [1460] * 3
    window = peer.tcp.sender.congestion.cwnd_bytes
    peer.tcp.handle_icmp(icmp(IcmpKind.PACKET_TOO_BIG, 1, 1000), peer.now)
    again = peer.sent()
    assert again
    assert again[0].length == 960 or again[0].mss == 960
    assert peer.relative(again[0])[0] == 1
    assert peer.tcp.sender.congestion.cwnd_bytes >= window
    assert peer.tcp.poll_deadline() <= peer.now + RAISE_AFTER_ICMP_US


def test_too_big_does_not_enlarge_nor_go_below_the_minimum() -> None:  # RFC 8201 §4
    mtu = PathMtu(1500, is_v6=True)
    assert not mtu.handle_too_big(2000, 0, 0)
    assert mtu.handle_too_big(68, 0, 0)
    assert mtu.mtu == MIN_MTU_V6
    old_router = PathMtu(1500, is_v6=False)
    assert old_router.handle_too_big(0, 1500, 0)
    assert old_router.mtu == 1492  # RFC 1191 §5


def test_larger_packets_are_tried_again() -> None:  # RFC 1191 §6.3
    mtu = PathMtu(1500, is_v6=False)
    mtu.handle_too_big(1000, 0, 0)
    assert mtu.raise_at == RAISE_AFTER_ICMP_US
    assert mtu.handle_raise(5000, mtu.raise_at)
    assert mtu.mtu == 1492
    mtu.handle_acked(10_000)
    assert mtu.trial_end == -1
    assert mtu.handle_raise(10_000, mtu.raise_at)
    assert (mtu.mtu, mtu.raise_at) == (1500, NEVER)
    assert mtu.handle_timeouts(2, 1500, 0)  # the trial fails: back to what worked
    assert mtu.mtu == 1492


def test_black_hole_is_found_and_left() -> None:  # RFC 4821 §7.7
    limit = 1100
    pair = TcpPair(PLAIN)
    pair.wire = lambda segment, chance: [] if segment.length + 40 > limit else [5 * MILLISECOND]
    pair.connect()
    data = bytes(range(256)) * 40
    assert pair.transfer(pair.client, pair.server, data) == data
    assert pair.client_counters["path_mtu_black_hole"] >= 1
    assert pair.client.sender.mss + 40 <= limit
    # later the path is what it was: larger segments return
    pair.wire = lambda segment, chance: [5 * MILLISECOND]
    pair.run_for(30 * SECOND)
    assert pair.transfer(pair.client, pair.server, data) == data
    pair.run_for(300 * SECOND)
    assert pair.transfer(pair.client, pair.server, data) == data
    assert pair.client.sender.mss == 1460
