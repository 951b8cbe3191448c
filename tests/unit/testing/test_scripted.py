"""The scripted host and the scripted peer, against the real host."""

from __future__ import annotations

import pytest

from mptcp.core.units import SECOND
from mptcp.core.wire.mptcp_options import Dss, MpCapable, MpTcprst
from mptcp.testing.builders import mp_join, syn
from mptcp.testing.matchers import is_ack, is_data, is_rst, is_syn, is_syn_ack
from mptcp.testing.peer import PEER_KEY, ScriptedPeer
from mptcp.testing.scripted import ScriptedHost


def test_a_syn_to_no_listener_is_reset() -> None:  # RFC 9293 §3.10.7.1
    host = ScriptedHost()
    host.receives(syn(), to_port=81)
    assert host.sends() == [is_rst()]


def test_join_with_unknown_token_is_reset() -> None:  # RFC 8684 §3.2
    host = ScriptedHost()
    host.listen(80)
    host.receives(syn(mp_join(token=0xDEADBEEF)), to_port=80)
    assert host.sends() == [is_rst(mptcp=MpTcprst)]


def test_time_passes_only_when_told_and_timers_run_on_the_way() -> None:
    host = ScriptedHost()
    host.connect()
    assert host.sends() == [is_syn(mptcp=MpCapable)]
    host.advance(SECOND // 2)
    assert host.sends() == []
    host.advance(10 * SECOND)
    sent = host.sends_to()
    assert len(sent) >= 2  # the SYN again, with its timeout doubled each time
    assert sent[0].time_us == SECOND
    with pytest.raises(AssertionError, match="already"):
        host.advance(0)


@pytest.mark.parametrize("checksum", [False, True])
def test_a_scripted_client_sends_and_receives_mapped_data(checksum: bool) -> None:
    host = ScriptedHost()
    listener = host.listen(80)
    peer = ScriptedPeer.connects(host, 80, checksum=checksum)
    peer.sends(b"hello")
    connection = listener.accept()
    assert connection is not None
    assert connection.is_multipath
    assert connection.read(100) == b"hello"
    assert connection.write(b"world", host.now) == 5
    segments = [segment for segment in peer.takes() if segment.length]
    assert segments == [is_data(payload=b"world", mptcp=Dss)]
    peer.acknowledges()
    peer.sends(b"again")
    assert connection.read(100) == b"again"


def test_a_scripted_server_answers_the_hosts_syn() -> None:
    host = ScriptedHost()
    connection = host.connect()
    peer = ScriptedPeer.accepts(host)
    assert peer.host_key is not None
    assert connection.write(b"request", host.now) == 7
    assert [s.payload for s in peer.takes() if s.length] == [b"request"]
    peer.sends(b"response")
    assert connection.read(100) == b"response"
    assert connection.is_multipath


def test_a_scripted_peer_without_mptcp_is_regular_tcp() -> None:
    host = ScriptedHost()
    connection = host.connect()
    peer = ScriptedPeer.accepts(host, key=None)
    connection.write(b"request", host.now)
    assert [segment for segment in peer.takes() if segment.length] == [is_data(payload=b"request", mptcp=())]
    peer.sends(b"response")
    assert connection.read(100) == b"response"
    assert not connection.is_multipath


def test_a_second_subflow_joins_and_carries_data() -> None:
    host = ScriptedHost()
    listener = host.listen(80)
    peer = ScriptedPeer.connects(host, 80)
    peer.sends(b"one ")
    connection = listener.accept()
    assert connection is not None
    second = peer.joins(address="10.0.1.2")
    assert second.takes() == [is_ack()]  # RFC 8684 §3.2: the fourth ACK
    second.sends(b"two ")
    peer.sends(b"three")
    assert connection.read(100) == b"one two three"
    assert len(connection.subflows()) == 2
    assert peer.key == PEER_KEY


def test_a_fallen_back_client_gets_a_plain_syn_ack() -> None:
    host = ScriptedHost()
    host.listen(80)
    host.receives(syn(), to_port=80)
    assert host.sends() == [is_syn_ack(mptcp=())]
