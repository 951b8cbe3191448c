"""Opening: RFC 9293 §3.5 and §3.10.7.1 to .3, and the options of SYNs."""

from __future__ import annotations

import pytest

from mptcp.core.counters import Counters
from mptcp.core.entropy import Entropy
from mptcp.core.tcp.config import TcpConfig
from mptcp.core.tcp.connection import Connection
from mptcp.core.tcp.departure import reset_for
from mptcp.core.tcp.isn import InitialSequenceNumbers
from mptcp.core.tcp.states import OPENING, SENDING, SYNCHRONIZED, TRANSITIONS, State
from mptcp.core.units import MILLISECOND, SECOND
from mptcp.core.wire.segment import ACK, CWR, ECE, FIN, RST, SYN, Options, Segment
from mptcp.errors import ConnectionRefused, ConnectionTimedOut
from mptcp.info import Endpoint
from mptcp.testing.tcp_pair import CLIENT, CLIENT_ISN, SERVER, SERVER_ISN, ScriptedPeer, TcpPair


def test_every_state_has_its_transitions_and_leads_to_closed() -> None:  # RFC 9293 §3.3.2, figure 5
    assert set(TRANSITIONS) == set(State)
    assert SYNCHRONIZED | OPENING | {State.CLOSED} == set(State)
    assert SENDING < SYNCHRONIZED
    reached = {State.CLOSED}
    while True:
        more = {s for s, nexts in TRANSITIONS.items() if nexts & reached} | reached
        if more == reached:
            break
        reached = more
    assert reached == set(State)


def test_an_illegal_transition_is_our_bug() -> None:
    peer = ScriptedPeer().establish()
    with pytest.raises(AssertionError):
        peer.tcp.become(State.SYN_SENT)


def test_syn_offers_what_the_configuration_says() -> None:  # RFC 9293 §3.7.1, RFC 7323 §2, §3, RFC 2018 §2
    peer = ScriptedPeer(TcpConfig(receive_buffer_max_bytes=6 << 20))
    peer.tcp.open(peer.now)
    (syn,) = peer.sent()
    assert (syn.seq, syn.ack, syn.flags) == (CLIENT_ISN, 0, SYN)
    assert syn.options.mss == 1460
    assert syn.options.window_scale == 7
    assert syn.options.sack_permitted
    assert syn.options.timestamp_value is not None
    assert syn.window == 65535  # RFC 7323 §2.2: not scaled


def test_syn_offers_nothing_that_is_off() -> None:
    peer = ScriptedPeer(TcpConfig(timestamps=False, sack=False, window_scaling=False, max_segment_bytes=1000))
    peer.tcp.open(peer.now)
    (syn,) = peer.sent()
    assert syn.options == Options(mss=1000)


def test_third_ack_and_what_was_agreed() -> None:  # RFC 9293 §3.5, figure 6
    peer = ScriptedPeer(timestamps=True, window_scale=9, mss=1300)
    peer.tcp.open(peer.now)
    peer.sent()
    peer.now += 30 * MILLISECOND
    (ack,) = peer.gives(SYN | ACK, seq=0, ack=1, options=peer.syn_options())
    assert ack.flags == ACK
    assert peer.relative(ack) == (1, 1)
    assert ack.options.timestamp_echo == peer.timestamp_value
    assert peer.tcp.send_scale == 9
    assert peer.tcp.receiver.window.scale == 7
    assert peer.tcp.sender.mss == 1300 - 12
    assert peer.tcp.sender.rtt.srtt_us == 30 * MILLISECOND
    assert peer.tcp.state is State.ESTABLISHED


def test_syn_ack_answers_only_what_was_offered() -> None:  # RFC 7323 §1.3
    peer = ScriptedPeer(TcpConfig(), sack=False)
    peer.tcp.accept_syn(peer.segment(SYN, seq=0, options=Options(mss=1400)), peer.now)
    (answer,) = peer.sent()
    assert answer.flags == SYN | ACK
    assert peer.relative(answer) == (0, 1)
    assert answer.options == Options(mss=1460)
    assert peer.tcp.receiver.window.scale == 0


def test_no_mss_option_means_536_or_1220() -> None:  # RFC 9293 §3.7.1 (MUST-15)
    peer = ScriptedPeer(mss=None).establish()
    assert peer.tcp.sender.mss == 536
    six = (Endpoint.parse("fd00::1", 1), Endpoint.parse("fd00::2", 2))
    tcp = Connection(TcpConfig(), *six, Entropy(1), Counters(), mtu=1500)
    assert tcp.peer_mss == 1220


def test_tiny_mss_is_not_believed() -> None:
    peer = ScriptedPeer(mss=1).establish()
    assert peer.tcp.sender.mss == 88


def test_window_scale_above_14_is_14() -> None:  # RFC 7323 §2.3
    peer = ScriptedPeer(window_scale=15).establish()
    assert peer.tcp.send_scale == 14
    assert peer.counters["window_scale_too_large"] == 1


def test_window_of_a_syn_ack_is_not_scaled() -> None:  # RFC 7323 §2.2
    peer = ScriptedPeer(window_scale=7, window=1000).establish()
    assert peer.tcp.sender.window_edge - peer.tcp.sender.una == 1000


@pytest.mark.parametrize("ack", [0, 2, -1, 1 << 31])
def test_syn_sent_resets_an_unacceptable_ack(ack: int) -> None:  # RFC 9293 §3.10.7.3, first
    peer = ScriptedPeer()
    peer.tcp.open(peer.now)
    peer.sent()
    (reset,) = peer.gives(SYN | ACK, seq=0, ack=ack)
    assert reset.flags == RST
    assert reset.seq == (CLIENT_ISN + ack) & 0xFFFFFFFF
    assert peer.gives(RST | ACK, seq=0, ack=ack) == []
    assert peer.tcp.state is State.SYN_SENT


def test_syn_sent_reset_is_a_refusal() -> None:  # RFC 9293 §3.10.7.3, second
    peer = ScriptedPeer()
    peer.tcp.open(peer.now)
    peer.sent()
    assert peer.gives(RST, seq=0) == []
    assert peer.tcp.state is State.SYN_SENT
    assert peer.gives(RST | ACK, seq=0, ack=1) == []
    assert isinstance(peer.tcp.error, ConnectionRefused)
    assert peer.tcp.is_closed


def test_syn_sent_drops_what_is_neither() -> None:  # RFC 9293 §3.10.7.3, fifth
    peer = ScriptedPeer()
    peer.tcp.open(peer.now)
    peer.sent()
    assert peer.gives(ACK, seq=0, ack=1) == []
    assert peer.gives(FIN, seq=0) == []
    assert peer.tcp.state is State.SYN_SENT


def test_simultaneous_open() -> None:  # RFC 9293 §3.5, figure 7
    pair = TcpPair()
    pair.server_listens = False
    pair.client.open(pair.now)
    pair.server.open(pair.now)
    pair.flush()
    pair.run_until(lambda: pair.client.is_established and pair.server.is_established)
    states = [segment.flags for _, _, segment in pair.trace]
    assert states.count(SYN) == 2
    assert states.count(SYN | ACK) == 2
    data = bytes(range(256)) * 50
    assert pair.transfer(pair.client, pair.server, data) == data


def test_simultaneous_open_reset_is_a_refusal() -> None:  # RFC 9293 §3.10.7.4, second
    peer = ScriptedPeer()
    peer.tcp.open(peer.now)
    peer.sent()
    (answer,) = peer.gives(SYN, seq=0, options=peer.syn_options())
    assert answer.flags == SYN | ACK
    assert peer.tcp.state is State.SYN_RECEIVED
    peer.gives(RST | ACK, seq=1, ack=1)
    assert isinstance(peer.tcp.error, ConnectionRefused)


def test_syn_is_retransmitted_with_doubling_and_then_given_up() -> None:  # RFC 6298 §5.5
    peer = ScriptedPeer(TcpConfig(syn_retries=3))
    peer.tcp.open(peer.now)
    start = peer.now
    times = []
    while not peer.tcp.is_closed:
        times += [peer.now - start for _ in peer.sent()]
        peer.now = max(peer.now, peer.tcp.poll_deadline())
        peer.tcp.handle_timeout(peer.now)
    assert times == [0, 1 * SECOND, 3 * SECOND, 7 * SECOND]
    assert peer.now - start == 15 * SECOND
    assert isinstance(peer.tcp.error, ConnectionTimedOut)


def test_lost_syns_shrink_the_initial_window() -> None:  # RFC 5681 §3.1
    peer = ScriptedPeer()
    peer.tcp.open(peer.now)
    peer.wait(4 * SECOND)
    assert peer.tcp.syn_retransmissions == 2
    peer.gives(SYN | ACK, seq=0, ack=1, options=peer.syn_options())
    assert peer.tcp.sender.congestion.cwnd_bytes == 1460
    assert peer.tcp.sender.rtt.timeout_us >= 3 * SECOND  # RFC 6298 §5.7


def test_first_congestion_window_is_ten_segments_of_the_agreed_size() -> None:  # RFC 6928 §2
    assert ScriptedPeer(mss=1000).establish().tcp.sender.congestion.cwnd_bytes == 10_000


def test_duplicate_syn_gets_the_syn_ack_again() -> None:
    peer = ScriptedPeer()
    syn = peer.segment(SYN, seq=0, options=peer.syn_options())
    peer.tcp.accept_syn(syn, peer.now)
    first = peer.sent()
    peer.tcp.handle_segment(syn, peer.now)
    again = peer.sent()
    assert [s.flags for s in first + again] == [SYN | ACK] * 2
    assert peer.tcp.syn_retransmissions == 0


def test_syn_ack_is_given_up_after_its_retries() -> None:
    peer = ScriptedPeer(TcpConfig(syn_ack_retries=2))
    peer.tcp.accept_syn(peer.segment(SYN, seq=0, options=peer.syn_options()), peer.now)
    sent = peer.wait(100 * SECOND)
    assert [s.flags for s in sent] == [SYN | ACK] * 3
    assert peer.tcp.is_closed
    assert peer.counters["syn_ack_timeout"] == 1


@pytest.mark.parametrize("ack", [0, 2, -5])
def test_syn_received_resets_an_unacceptable_ack(ack: int) -> None:  # RFC 9293 §3.10.7.4, fifth
    peer = ScriptedPeer()
    peer.tcp.accept_syn(peer.segment(SYN, seq=0, options=peer.syn_options()), peer.now)
    peer.sent()
    (reset,) = peer.gives(ACK, seq=1, ack=ack)
    assert reset.flags == RST
    assert reset.seq == (CLIENT_ISN + ack) & 0xFFFFFFFF
    assert peer.tcp.state is State.SYN_RECEIVED


def test_syn_received_reset_goes_back_to_nothing() -> None:  # RFC 9293 §3.10.7.4, second
    peer = ScriptedPeer()
    peer.tcp.accept_syn(peer.segment(SYN, seq=0, options=peer.syn_options()), peer.now)
    peer.sent()
    (challenge,) = peer.gives(RST, seq=2)  # RFC 5961 §3.2: in the window, but not exactly the next number
    assert challenge.flags == ACK
    assert peer.tcp.state is State.SYN_RECEIVED
    assert peer.gives(RST, seq=1) == []
    assert peer.tcp.is_closed


def test_third_ack_may_carry_data_and_fin() -> None:  # RFC 9293 §3.10.7.4, "continue processing"
    peer = ScriptedPeer()
    peer.tcp.accept_syn(peer.segment(SYN, seq=0, options=peer.syn_options()), peer.now)
    peer.sent()
    (ack,) = peer.gives(ACK | FIN, seq=1, ack=1, data=b"hello")
    assert peer.relative(ack) == (1, 7)
    assert peer.tcp.read(10) == b"hello"
    assert peer.tcp.eof
    assert peer.tcp.state is State.CLOSE_WAIT


def test_data_on_a_syn_is_left_for_later() -> None:
    peer = ScriptedPeer()
    peer.tcp.accept_syn(peer.segment(SYN, seq=0, data=b"early", options=peer.syn_options()), peer.now)
    (answer,) = peer.sent()
    assert peer.relative(answer) == (0, 1)
    assert peer.counters["syn_data_ignored"] == 1
    peer.gives(ACK, seq=1, ack=1, data=b"early")
    assert peer.tcp.read(10) == b"early"


def test_written_before_established_goes_out_after() -> None:
    peer = ScriptedPeer()
    peer.tcp.open(peer.now)
    peer.tcp.write(b"soon")
    peer.tcp.shutdown_write(peer.now)
    peer.sent()
    sent = peer.gives(SYN | ACK, seq=0, ack=1, options=peer.syn_options())
    assert [(s.payload, s.flags & FIN) for s in sent] == [(b"soon", FIN)]
    assert peer.tcp.state is State.FIN_WAIT_1


def test_close_in_syn_sent_forgets_it() -> None:  # RFC 9293 §3.10.4
    peer = ScriptedPeer()
    peer.tcp.open(peer.now)
    peer.sent()
    peer.tcp.close(peer.now)
    assert peer.tcp.is_closed
    assert peer.sent() == []


def test_ecn_is_agreed_on_with_the_right_flags() -> None:  # RFC 3168 §6.1.1
    pair = TcpPair(TcpConfig(ecn=True)).connect()
    flags = [segment.flags for _, _, segment in pair.trace[:2]]
    assert flags == [SYN | ECE | CWR, SYN | ACK | ECE]
    assert pair.client.ecn is not None
    assert pair.server.ecn is not None


def test_ecn_is_not_agreed_on_with_a_reflecting_box() -> None:  # RFC 3168 §6.1.1
    peer = ScriptedPeer(TcpConfig(ecn=True, timestamps=False))
    peer.tcp.open(peer.now)
    peer.sent()
    peer.gives(SYN | ACK | ECE | CWR, seq=0, ack=1, options=peer.syn_options())
    assert peer.tcp.is_established
    assert peer.tcp.ecn is None


def test_ecn_is_not_asked_for_by_later_syns() -> None:  # RFC 3168 §6.1.1.1
    peer = ScriptedPeer(TcpConfig(ecn=True))
    peer.tcp.open(peer.now)
    sent = peer.wait(10 * SECOND)
    assert [s.flags & (ECE | CWR) for s in sent] == [ECE | CWR, ECE | CWR, 0, 0]


def test_reset_for_a_segment_of_no_connection() -> None:  # RFC 9293 §3.10.7.1
    reset = reset_for(Segment(seq=0xFFFFFFFF, flags=SYN, length=0))
    assert reset is not None
    assert (reset.seq, reset.ack, reset.flags) == (0, 0, RST | ACK)
    reset = reset_for(Segment(seq=5, ack=77, flags=ACK, length=0))
    assert reset is not None
    assert (reset.seq, reset.flags) == (77, RST)
    assert reset_for(Segment(seq=5, flags=RST, length=0)) is None


def test_initial_sequence_numbers() -> None:  # RFC 6528 §3
    isn = InitialSequenceNumbers(Entropy(1))
    first = isn.number(CLIENT, SERVER, 1_000_000)
    assert isn.number(CLIENT, SERVER, 1_000_400) == (first + 100) & 0xFFFFFFFF  # 4 us per tick
    assert isn.number(CLIENT, Endpoint(SERVER.address, 81), 1_000_000) != first
    assert InitialSequenceNumbers(Entropy(2)).number(CLIENT, SERVER, 1_000_000) != first
    assert SERVER_ISN != CLIENT_ISN
