"""Further subflows with MP_JOIN (RFC 8684 §3.2)."""

import pytest

from mptcp.core.multipath.config import ConnectionConfig
from mptcp.core.multipath.connection_state import ConnectionState
from mptcp.core.multipath.keys import join_hmac, token_of
from mptcp.core.wire.mptcp_options import (
    RST_ADMINISTRATIVELY_PROHIBITED,
    RST_LACK_OF_RESOURCES,
    RST_MPTCP_SPECIFIC,
    Dss,
    MpJoinAck,
    MpJoinSyn,
    MpJoinSynAck,
    MpTcprst,
)
from mptcp.core.wire.segment import ACK, RST, SYN
from mptcp.info import Endpoint, SubflowState
from mptcp.testing import builders, connected
from mptcp.testing.peer import PEER_KEY, PEER_NONCE
from mptcp.testing.scripted import PEER_ADDRESS


def test_peer_joins_and_data_flows_on_both_subflows() -> None:
    _, peer, connection = connected.server()
    second = peer.joins(address="10.0.1.2")
    # RFC 8684 §3.2: "receipt of this packet MUST trigger a regular TCP ACK in response"
    (fourth,) = second.takes()
    assert fourth.flags == ACK
    assert isinstance(fourth.options.mptcp[0], Dss)
    peer.sends(b"one ")
    second.sends(b"two ")
    peer.sends(b"three")
    assert connection.read(100) == b"one two three"
    assert [s.state for s in connection.subflows()] == [SubflowState.ACTIVE, SubflowState.ACTIVE]


def test_join_with_unknown_token_is_reset() -> None:
    host, *_ = connected.server()
    host.receives(builders.syn(MpJoinSyn(0xDEADBEEF, 1, 1)), source=Endpoint.parse("10.0.1.2", 5000))
    (rst,) = host.sends()
    assert rst.flags & RST
    assert rst.options.mptcp == (MpTcprst(RST_MPTCP_SPECIFIC),)
    assert host.counters["join_unknown_token"] == 1


def test_join_is_found_by_token_not_by_port() -> None:
    # RFC 8684 §3.2: "Demultiplexing subflow SYNs MUST be done using the token"
    host, peer, connection = connected.server()
    second = peer.joins(address="10.0.1.2", remote=Endpoint(host.local.address, 9999))
    assert second.takes()
    assert len(connection.subflows()) == 2


def test_join_ack_with_a_wrong_hmac_is_reset() -> None:
    # RFC 8684 §3.2: "If Host B does not receive the expected HMAC ... it MUST close the subflow with a TCP RST."
    host, peer, connection = connected.server()
    assert peer.host_key is not None
    source = Endpoint.parse("10.0.1.2", 5000)
    host.receives(builders.syn(MpJoinSyn(token_of(peer.host_key), PEER_NONCE, 1)), source=source)
    (syn_ack,) = host.sends()
    host.receives(builders.ack(MpJoinAck(bytes(20)), seq=builders.PEER_ISN + 1, ack=syn_ack.seq + 1), source=source)
    (rst,) = host.sends()
    assert rst.flags & RST
    assert rst.options.mptcp == (MpTcprst(RST_MPTCP_SPECIFIC),)
    assert host.counters["join_bad_hmac"] == 1
    assert len(connection.subflows()) == 1
    peer.sends(b"still here")
    assert connection.read(100) == b"still here"


def test_join_ack_without_option_is_reset() -> None:
    host, peer, connection = connected.server()
    assert peer.host_key is not None
    source = Endpoint.parse("10.0.1.2", 5000)
    host.receives(builders.syn(MpJoinSyn(token_of(peer.host_key), PEER_NONCE, 1)), source=source)
    (syn_ack,) = host.sends()
    host.receives(builders.ack(seq=builders.PEER_ISN + 1, ack=syn_ack.seq + 1), source=source)
    (rst,) = host.sends()
    assert rst.flags & RST
    assert len(connection.subflows()) == 1


def test_joins_beyond_the_limit_are_refused_for_lack_of_resources() -> None:
    host, peer, connection = connected.server(connected.QUIET.changed(max_subflows=2))
    peer.joins(address="10.0.1.2").takes()
    assert peer.host_key is not None
    host.sends()
    host.receives(
        builders.syn(MpJoinSyn(token_of(peer.host_key), PEER_NONCE, 2)), source=Endpoint.parse("10.0.2.2", 5000)
    )
    (rst,) = host.sends()
    assert rst.options.mptcp == (MpTcprst(RST_LACK_OF_RESOURCES, True),)
    assert len(connection.subflows()) == 2


def test_flag_c_means_no_joins_to_the_initial_address() -> None:  # RFC 8684 §3.1
    host, peer, _ = connected.server(connected.QUIET.changed(deny_join_initial=True))
    assert peer.host_key is not None
    host.receives(
        builders.syn(MpJoinSyn(token_of(peer.host_key), PEER_NONCE, 1)), source=Endpoint.parse("10.0.1.2", 5000),
        destination=peer.remote,
    )  # fmt: skip
    (rst,) = host.sends()
    assert rst.options.mptcp == (MpTcprst(RST_ADMINISTRATIVELY_PROHIBITED),)


def test_client_joins_from_its_second_address_with_the_same_port() -> None:  # RFC 8684 §3.2, §3.9.1
    host, peer, connection = connected.client()
    subflow_id = connection.open_subflow(Endpoint.parse("10.0.1.1"), connection.remote, host.now)
    host.poll()
    (sent,) = host.sends_to()
    assert sent.source == Endpoint.parse("10.0.1.1", connection.local.port)
    assert sent.destination == Endpoint.parse(PEER_ADDRESS, 80)
    assert sent.segment.flags == SYN
    (join,) = sent.segment.options.mptcp
    assert isinstance(join, MpJoinSyn)
    assert join.token == token_of(PEER_KEY)
    assert join.address_id == 1
    # SYN/ACK
    mac = join_hmac(PEER_KEY, connection.local_key, PEER_NONCE, join.nonce)
    host.receives(
        builders.syn_ack(MpJoinSynAck(mac[:8], PEER_NONCE, 0), ack=sent.segment.seq + 1), source=sent.destination,
        destination=sent.source, interface=1,
    )  # fmt: skip
    (third,) = host.sends()
    expected = join_hmac(connection.local_key, PEER_KEY, join.nonce, PEER_NONCE)[:20]
    assert third.options.mptcp == (MpJoinAck(expected),)
    # RFC 8684 §3.2: "it moves to the ESTABLISHED state only on receipt of an ACK from the receiver"
    info = next(s for s in connection.subflows() if s.id == subflow_id)
    assert info.state is SubflowState.PENDING
    # "the packet MUST be retransmitted if this ACK is not received"
    host.advance(host.now + 2_000_000)
    again = host.sends()
    assert again
    assert [s.options.mptcp for s in again] == [(MpJoinAck(expected),)] * len(again)
    host.receives(
        builders.ack(builders.dss(data_ack=peer.data_ack), seq=builders.PEER_ISN + 1, ack=sent.segment.seq + 1),
        interface=1,
    )
    info = next(s for s in connection.subflows() if s.id == subflow_id)
    assert info.state is SubflowState.ACTIVE


def test_syn_ack_with_a_wrong_hmac_is_reset() -> None:
    # RFC 8684 §3.2: "Host A MUST close the subflow with a TCP RST"
    host, _, connection = connected.client()
    connection.open_subflow(Endpoint.parse("10.0.1.1"), connection.remote, host.now)
    host.poll()
    (syn,) = host.sends()
    host.receives(builders.syn_ack(MpJoinSynAck(bytes(8), PEER_NONCE, 0), ack=syn.seq + 1), interface=1)
    (rst,) = host.sends()
    assert rst.flags & RST
    assert rst.options.mptcp == (MpTcprst(RST_MPTCP_SPECIFIC),)
    assert len(connection.subflows()) == 1


def test_syn_ack_without_mp_join_is_reset() -> None:
    # RFC 8684 §3.2: "If the SYN/ACK as received at Host A does not have an MP_JOIN option, Host A MUST close the subflow"
    host, _, connection = connected.client()
    connection.open_subflow(Endpoint.parse("10.0.1.1"), connection.remote, host.now)
    host.poll()
    (syn,) = host.sends()
    host.receives(builders.syn_ack(ack=syn.seq + 1), interface=1)
    (rst,) = host.sends()
    assert rst.flags & RST
    assert len(connection.subflows()) == 1
    assert connection.is_multipath


def test_backup_flag_of_the_joiner_is_obeyed() -> None:  # RFC 8684 §3.3.8
    _, peer, connection = connected.server()
    second = peer.joins(address="10.0.1.2", backup=True)
    second.takes()
    connection.write(bytes(1000), connection.environment.now)
    assert sum(s.length for s in peer.takes()) == 1000
    assert sum(s.length for s in second.takes()) == 0


def test_options_lost_on_a_joined_subflow_close_it() -> None:
    # RFC 8684 §3.7: an ACK for data without DSS on an additional subflow: "the host MUST close the subflow with a RST"
    host, peer, connection = connected.server()
    second = peer.joins(address="10.0.1.2")
    second.takes()
    peer.window = 0
    connection.set_backup(1, True, host.now)  # data goes to the second
    peer.takes()
    connection.write(b"to the second", host.now)
    (data,) = [s for s in second.takes() if s.length]
    assert data.payload == b"to the second"
    # acknowledged at TCP level by a box that removes options; the peer itself never showed a DSS on this subflow
    second.send_segment(builders.ack(seq=second.seq, ack=second.ack))
    rst = [s for s in second.takes() if s.flags & RST]
    assert len(rst) == 1
    assert len(connection.subflows()) == 1
    # and the data goes to the first
    assert b"".join(s.payload for s in peer.takes()) == b"to the second"


def test_an_acknowledgement_that_cannot_be_of_our_third_packet_is_not_the_fourth() -> None:
    # RFC 8684 §3.2: "it moves to the ESTABLISHED state only on receipt of an ACK from the receiver": of its HMAC, that is.
    # Linux in SYN-RECEIVED answers a stray RST with a challenge ACK, and resets a join that sends data before its HMAC.
    host, peer, connection = connected.client()
    peer.takes()
    connection.open_subflow(Endpoint.parse("10.0.1.1"), connection.remote, host.now)
    (entry,) = [e for e in host.sends_to() if e.segment.flags == SYN]
    (join,) = entry.segment.options.mptcp
    assert isinstance(join, MpJoinSyn)
    assert peer.host_key is not None
    ends = {"source": entry.destination, "destination": entry.source}
    mac = join_hmac(PEER_KEY, peer.host_key, PEER_NONCE, join.nonce)[:8]
    answer = builders.syn_ack(MpJoinSynAck(mac, PEER_NONCE, 0), ack=entry.segment.seq + 1)
    host.receives(answer, after_us=20_000, **ends)
    (third,) = host.sends()
    bare = builders.ack(seq=answer.seq + 1, ack=third.seq)
    host.receives(bare, after_us=1_000, **ends)
    assert connection.subflows()[1].state is SubflowState.PENDING
    host.receives(bare, after_us=20_000, **ends)
    assert connection.subflows()[1].state is SubflowState.ACTIVE


@pytest.mark.parametrize(("option", "ends"), [(None, False), (MpTcprst(RST_MPTCP_SPECIFIC), True)])
def test_only_an_unknown_token_ends_a_connection_without_paths(option: MpTcprst | None, ends: bool) -> None:
    # RFC 8684 §3.2 gives the RST for an unknown token an MP_TCPRST; one without it may come from a port that nobody
    # listens on just now, and §3.3.3 keeps the connection for a path that comes back.
    host, peer, connection = connected.client(ConnectionConfig())
    joins = [s for s in host.sends_to() if s.segment.flags == SYN]
    for join in joins:
        host.receives(
            builders.rst(ack=join.segment.seq + 1), source=join.destination, destination=join.source, interface=1
        )
    peer.resets(MpTcprst(0, True))
    assert connection.subflows() == []
    host.advance(host.now + 1_500_000)
    again = [s for s in host.sends_to() if s.segment.flags == SYN]
    assert again, "the path is tried again"
    for join in again:
        answer = builders.rst(*([option] if option else []), ack=join.segment.seq + 1)
        host.receives(answer, source=join.destination, destination=join.source, interface=join.interface)
    assert (connection.state is ConnectionState.CLOSED) == ends
    assert isinstance(connection.error, ConnectionResetError) == ends
