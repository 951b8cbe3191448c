"""A data checksum that fails on the only subflow (RFC 8684 §3.7): MP_FAIL, its answer, infinite mappings, in both roles."""

from __future__ import annotations

import pytest

from mptcp.core.multipath.config import ConnectionConfig
from mptcp.core.multipath.connection import Connection
from mptcp.core.multipath.connection_state import ConnectionState
from mptcp.core.multipath.events import EventKind
from mptcp.core.units import MBIT, MILLISECOND, SECOND
from mptcp.core.wire import options as tcp_options
from mptcp.core.wire.mptcp_options import Dss, MpFail, MpJoinSyn, MptcpOption
from mptcp.core.wire.segment import FIN, RST, Segment
from mptcp.errors import PathError
from mptcp.info import Endpoint
from mptcp.sim.conditions import Conditions
from mptcp.sim.middleboxes import CorruptPayload, Way
from mptcp.testing import builders, connected
from mptcp.testing.pair import Pair
from mptcp.testing.peer import ScriptedPeer
from mptcp.testing.scripted import ScriptedHost

MASK64 = (1 << 64) - 1
WRONG = 0xBEEF
ROLES = pytest.mark.parametrize("role", ["client", "server"])


def setup(role: str) -> tuple[ScriptedHost, ScriptedPeer, Connection]:
    make = connected.client if role == "client" else connected.server
    host, peer, connection = make(checksum=True)
    peer.takes()
    return host, peer, connection


def options_of(segments: list[Segment]) -> list[MptcpOption]:
    return [o for s in segments for o in s.options.mptcp]


def rewritten(peer: ScriptedPeer, payload: bytes) -> None:
    """Data whose checksum is not that of its octets."""
    ssn = (peer.seq - peer.isn) & 0xFFFFFFFF
    option = builders.dss(data_ack=peer.data_ack, dsn=peer.data_seq, ssn=ssn, length=len(payload), checksum=WRONG)
    peer.send_segment(builders.data(payload, option, seq=peer.seq, ack=peer.ack))
    peer.seq += len(payload)
    peer.data_seq += len(payload)


@ROLES
def test_data_acks_go_on_until_the_infinite_mapping(role: str) -> None:
    # RFC 8684 §3.7: "The receiver SHOULD stop generating Data ACKs after it receives an infinite mapping."
    host, peer, connection = setup(role)
    start = peer.data_seq
    rewritten(peer, b"WRONG")
    host.advance(host.now + 100 * MILLISECOND)
    sent = options_of(peer.takes())
    assert sent.count(MpFail(start & MASK64)) == 1
    assert max(o.data_ack for o in sent if isinstance(o, Dss) and o.data_ack is not None) == (start + 5) & MASK64
    assert connection.read(10) == b"WRONG"
    assert not connection.is_multipath
    assert "checksum" in connection.fallback_reason
    # The peer answers, and what it has sent before it knew is mapped, acknowledged, and delivered once however often it comes
    peer.acknowledges(MpFail(7))
    peer.sends(b"mapped ")
    again = builders.dss(
        data_ack=peer.data_ack, dsn=peer.data_seq - 7, ssn=(peer.seq - peer.isn) & 0xFFFFFFFF, length=7, checksum=WRONG
    )
    peer.send_segment(builders.data(b"mapped ", again, seq=peer.seq, ack=peer.ack))  # sent again, as new octets
    peer.seq += 7
    host.advance(host.now + 100 * MILLISECOND)
    sent = options_of(peer.takes())
    assert any(isinstance(o, Dss) and o.data_ack == peer.data_seq & MASK64 for o in sent)
    assert connection.read(100) == b"mapped "
    ssn = (peer.seq - peer.isn) & 0xFFFFFFFF
    infinite = builders.dss(dsn=peer.data_seq, ssn=ssn, length=0, checksum=0)
    peer.send_segment(builders.data(b"plain ", infinite, seq=peer.seq, ack=peer.ack))
    peer.seq += 6
    peer.send_segment(builders.data(b"for ever", seq=peer.seq, ack=peer.ack))
    peer.seq += 8
    assert connection.read(100) == b"plain for ever"
    host.advance(host.now + SECOND)
    assert options_of(peer.takes()) == []
    kinds = []
    while (event := connection.poll_event()) is not None:
        kinds.append(event.kind)
    assert kinds.count(EventKind.FELL_BACK) == 1


@ROLES
def test_mp_fail_is_answered_at_once_and_the_infinite_mapping_goes_with_new_data(role: str) -> None:
    # RFC 8684 §3.7: "the receiver of an MP_FAIL MUST also respond with an MP_FAIL in the reverse direction"; "This infinite
    # mapping will be a DSS option on the first new packet"
    host, peer, connection = setup(role)
    start = connection.data_sender.una
    connection.write(b"hello", host.now)
    peer.takes()
    expected = MpFail(connection.data_receiver.nxt & MASK64)
    peer.acknowledges(MpFail(start & MASK64))
    segments = peer.takes()
    assert options_of(segments).count(expected) == 1
    assert all(s.length == 0 for s in segments)
    assert not any(isinstance(o, Dss) and o.dsn is not None for o in options_of(segments)), "no mapping without data"
    # Its data still comes under mappings, and needs its DATA_ACK.
    peer.sends(b"meanwhile")
    host.advance(host.now + 100 * MILLISECOND)
    assert any(isinstance(o, Dss) and o.data_ack == peer.data_seq & MASK64 for o in options_of(peer.takes()))
    assert connection.read(100) == b"meanwhile"
    una = connection.data_sender.una
    connection.write(b"again" * 1000, host.now)
    data = [s for s in peer.takes() if s.length]
    assert b"".join(s.payload for s in data) == b"again" * 1000
    # until it is acknowledged, since one segment may be lost
    for segment in data:
        (infinite,) = segment.options.mptcp
        assert isinstance(infinite, Dss)
        assert (infinite.dsn, infinite.length) == (una & MASK64, 0)
        assert 40 + tcp_options.length(segment.options) + segment.length <= 1500
    peer.send_segment(builders.ack(seq=peer.seq, ack=peer.ack))
    connection.write(b"later", host.now)
    (later,) = [s for s in peer.takes() if s.length]
    assert later.options.mptcp == ()


@ROLES
def test_mp_fail_that_is_lost_is_said_again_with_the_next_failure(role: str) -> None:
    host, peer, connection = setup(role)
    for text in (b"one", b"two", b"three"):
        dsn = peer.data_seq & MASK64
        rewritten(peer, text)
        host.advance(host.now + 100 * MILLISECOND)
        assert options_of(peer.takes()).count(MpFail(dsn)) == 1
        assert connection.read(10) == text
    peer.acknowledges(MpFail(7))
    rewritten(peer, b"four")
    host.advance(host.now + 100 * MILLISECOND)
    assert not any(isinstance(o, MpFail) for o in options_of(peer.takes()))
    assert connection.read(10) == b"four"


@ROLES
def test_nothing_more_is_sent_and_both_close(role: str) -> None:
    """Where no data follows there is no infinite mapping; DATA_FINs end the connection."""
    host, peer, connection = setup(role)
    rewritten(peer, b"last")
    peer.acknowledges(MpFail(7))
    peer.sends(b"", data_fin=True)
    assert connection.read(10) == b"last"
    assert connection.eof
    connection.close(host.now)
    segments = peer.takes()
    assert any(isinstance(o, Dss) and o.data_fin for o in options_of(segments))
    assert not any(s.flags & (FIN | RST) for s in segments)
    peer.acknowledges()
    assert any(s.flags & FIN for s in peer.takes())
    assert connection.state is ConnectionState.CLOSED
    assert connection.error is None


@ROLES
def test_the_peer_that_speaks_regular_tcp_at_once_is_understood(role: str) -> None:
    """Without an infinite mapping: it was lost on the way, or a box has begun to remove options."""
    host, peer, connection = setup(role)
    rewritten(peer, b"WRONG")
    peer.takes()
    peer.send_segment(builders.data(b" plain", seq=peer.seq, ack=peer.ack))
    peer.seq += 6
    assert connection.read(100) == b"WRONG plain"
    connection.write(b"answer", host.now)
    assert b"".join(s.payload for s in peer.takes()) == b"answer"
    assert connection.is_plain


@ROLES
def test_there_are_no_further_subflows(role: str) -> None:
    host, peer, connection = setup(role)
    host.add_interface("10.0.7.1")
    rewritten(peer, b"WRONG")
    peer.takes()
    with pytest.raises(PathError, match="regular TCP"):
        connection.open_subflow(Endpoint.parse("10.0.7.1"), connection.remote, host.now)
    with pytest.raises(PathError, match="never after fallback"):
        connection.add_address(Endpoint.parse("10.0.7.1"), host.now)
    host.receives(builders.syn(MpJoinSyn(connection.token, 1, 2)), source=Endpoint.parse("10.0.1.2", 5000))
    (reset,) = [e.segment for e in host.sends_to() if e.destination.host == "10.0.1.2"]
    assert reset.flags & RST
    peer.resets()
    assert isinstance(connection.error, ConnectionResetError)
    assert connection.state is ConnectionState.CLOSED, "no path can come back"


@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize("loss", [0.0, 0.02])
@pytest.mark.parametrize("way", [Way.FORWARD, Way.BACKWARD, Way.BOTH])
def test_two_of_our_stacks_and_a_box(way: Way, loss: float, version: int) -> None:
    config = ConnectionConfig(checksum=True, version=version)
    made = Pair(
        conditions=Conditions(rate_bps=20 * MBIT, delay_us=10 * MILLISECOND, loss=loss), client_options=config,
        server_options=config,
    )  # fmt: skip
    box = CorruptPayload(40, way=way)
    made.paths[0].add_middlebox(box)
    client, server = made.connect()
    receivers = [made.transfer(400_000, from_client=from_client) for from_client in (True, False)]
    assert box.corrupted > 3
    for receiver, corrupted in zip(receivers, (way is not Way.BACKWARD, way is not Way.FORWARD), strict=True):
        assert receiver.progress.total == 400_000, "each octet once"
        assert receiver.is_exact is not corrupted
    assert not client.is_multipath
    assert not server.is_multipath
    assert client.error is server.error is None
    made.close()
    assert not made.client_host.stack.connections  # type: ignore[attr-defined]
    assert not made.server_host.stack.connections  # type: ignore[attr-defined]
