"""What paths do to a connection: they fall silent, die, come back, and no octet is lost (RFC 8684 §3.3.6, §3.3.3)."""

from __future__ import annotations

import pytest

from mptcp.core.multipath.config import ConnectionConfig
from mptcp.core.multipath.connection import Connection
from mptcp.core.multipath.connection_state import ConnectionState
from mptcp.core.multipath.subflow import Subflow
from mptcp.core.path_managers.base import PathManager
from mptcp.core.path_managers.fullmesh import FullMesh
from mptcp.core.tcp.config import TcpConfig
from mptcp.core.units import KIB, MBIT, MILLISECOND, SECOND
from mptcp.core.wire.mptcp_options import Dss, MpJoinSyn, MpTcprst
from mptcp.core.wire.segment import FIN, SYN, Segment
from mptcp.errors import ConnectionTimedOut, ConnectionWasReset
from mptcp.info import Endpoint
from mptcp.sim.applications import BulkReceiver, BulkSender
from mptcp.sim.conditions import Conditions
from mptcp.testing import builders, connected
from mptcp.testing.pair import Pair
from mptcp.testing.peer import ScriptedPeer
from mptcp.testing.scripted import ScriptedHost

MEGABYTE_A_SECOND = Conditions(rate_bps=8 * MBIT, delay_us=5 * MILLISECOND, queue_bytes=30_000)
DIRECTIONS = pytest.mark.parametrize("from_client", [True, False], ids=["upload", "download"])


def joined(conditions: Conditions | list[Conditions] = MEGABYTE_A_SECOND, *, paths: int = 2, **options: object) -> Pair:
    """A pair with a subflow on each path."""
    config = ConnectionConfig(**options)  # type: ignore[arg-type]
    pair = Pair(paths=paths, conditions=conditions, client_options=config, server_options=config)
    pair.connect(subflows=paths)
    return pair


def stream(pair: Pair, total: int, from_client: bool = True) -> tuple[BulkSender, BulkReceiver]:
    """``pair.transfer``, begun but not waited for."""
    ends = (pair.client_host, pair.client), (pair.server_host, pair.server)
    (source, writer), (destination, reader) = ends if from_client else reversed(ends)
    sender, receiver = BulkSender(source, writer, total), BulkReceiver(destination, reader, keep_open=True)
    destination.attach(reader, receiver)
    source.attach(writer, sender)
    return sender, receiver


def finish(pair: Pair, receiver: BulkReceiver, total: int, limit_us: int = 60 * SECOND) -> None:
    """Runs to the end of the stream: exact, whole, no error on either side."""
    pair.run(while_=lambda: not receiver.ended, for_us=limit_us)
    assert (receiver.progress.total, receiver.error_offset, receiver.ended) == (total, -1, True)
    assert pair.client.error is None
    assert pair.server.error is None


def close_and_leave_nothing(pair: Pair) -> None:
    pair.close()
    for host in (pair.client_host.stack, pair.server_host.stack):
        assert not host.connections  # type: ignore[attr-defined]
        assert not host._flows  # type: ignore[attr-defined]
        assert not host._tokens  # type: ignore[attr-defined]
        assert not host._port_users  # type: ignore[attr-defined]


def on_path(connection: Connection, index: int) -> Subflow:
    """The open subflow whose one end is the client's address on that path."""
    address = Endpoint.parse(f"10.0.{index}.1").address
    return next(s for s in connection.open_subflows() if address in (s.tcp.local.address, s.tcp.remote.address))


# --- a path falls silent ------------------------------------------------------------------------------------------------
@DIRECTIONS
def test_a_silent_path_gets_nothing_new_until_it_answers(from_client: bool) -> None:
    # RFC 8684 §3.3.6: "the sender will typically resend the data on other working subflows after a timeout and will keep
    # trying to retransmit the data on the failed subflow too"
    pair = joined()
    _, receiver = stream(pair, 5_000_000, from_client)
    pair.run(for_us=200 * MILLISECOND)
    pair.paths[0].cut()
    writer = pair.client if from_client else pair.server
    silent = on_path(writer, 0)
    pair.run(for_us=SECOND)
    assert silent.stale
    given, sent_again, before = silent.tcp.sender.end, silent.tcp.sender.retransmissions, receiver.progress.total
    pair.run(for_us=SECOND)
    assert silent.tcp.sender.end == given, "new data for a subflow that does not answer"
    assert silent.tcp.sender.retransmissions > sent_again, "the subflow itself must go on trying"
    assert receiver.progress.total - before > 800_000, "the other path carries everything"
    assert writer.data_sender.bytes_reinjected > 0
    assert receiver.progress.longest_stall_us < 600 * MILLISECOND
    pair.paths[0].restore()
    finish(pair, receiver, 5_000_000)
    assert silent.tcp.sender.end > given + 100_000, "it is used again"
    assert not silent.stale


def test_a_silent_path_is_shown_as_stale() -> None:
    pair = joined()
    _, receiver = stream(pair, 2_000_000)
    pair.paths[1].cut(pair.now + 100_000)
    pair.run(for_us=SECOND)
    assert sorted(info.state.value for info in pair.client.subflows()) == ["active", "stale"]
    finish(pair, receiver, 2_000_000)


@DIRECTIONS
def test_two_paths_silent_in_turn(from_client: bool) -> None:
    pair = joined()
    _, receiver = stream(pair, 3_000_000, from_client)
    for number in range(6):
        start = pair.now + number * 500_000
        pair.paths[number % 2].cut(start + 100_000)
        pair.paths[number % 2].restore(start + 450_000)
    finish(pair, receiver, 3_000_000)


@DIRECTIONS
def test_both_paths_silent_at_once_and_back(from_client: bool) -> None:
    pair = joined()
    _, receiver = stream(pair, 1_000_000, from_client)
    for path in pair.paths:
        path.cut(pair.now + 100_000)
        path.restore(pair.now + 5_000_000)
    finish(pair, receiver, 1_000_000)
    close_and_leave_nothing(pair)


def test_only_one_direction_is_silent() -> None:
    """Acknowledgements of one subflow are lost: its data arrives, and the other's copy is ignored."""
    pair = joined()
    _, receiver = stream(pair, 1_000_000)
    pair.paths[0].cut(pair.now + 100_000, which="backward")
    finish(pair, receiver, 1_000_000)


def test_what_waits_for_a_stale_path_does_not_wait_for_the_others_retransmission_timer() -> None:
    pair = joined([MEGABYTE_A_SECOND, MEGABYTE_A_SECOND.changed(delay_us=100_000)])
    _, receiver = stream(pair, 1_000_000)
    pair.paths[0].cut(pair.now + 100_000)
    finish(pair, receiver, 1_000_000)
    assert receiver.progress.longest_stall_us < SECOND


# --- a subflow dies --------------------------------------------------------------------------------------------------------
@DIRECTIONS
@pytest.mark.parametrize("by_client", [True, False], ids=["client-resets", "server-resets"])
def test_a_reset_subflow_loses_no_octet(from_client: bool, by_client: bool) -> None:
    pair = joined()
    _, receiver = stream(pair, 500_000, from_client)
    pair.run(for_us=150 * MILLISECOND)
    killer = pair.client if by_client else pair.server
    killer.close_subflow(on_path(killer, 0).id, pair.now, reset=True)
    finish(pair, receiver, 500_000)
    close_and_leave_nothing(pair)


@DIRECTIONS
@pytest.mark.parametrize("by_client", [True, False], ids=["client-closes", "server-closes"])
def test_a_subflow_closed_in_the_middle_loses_no_octet(from_client: bool, by_client: bool) -> None:
    # RFC 8684 §3.3.3: "a standard TCP FIN ... only shuts down the subflow on which it was sent"
    pair = joined()
    _, receiver = stream(pair, 500_000, from_client)
    pair.run(for_us=150 * MILLISECOND)
    closer = pair.client if by_client else pair.server
    closer.close_subflow(on_path(closer, 1).id, pair.now)
    finish(pair, receiver, 500_000)
    assert len(pair.client.open_subflows()) == 1
    assert len(pair.server.open_subflows()) == 1


@DIRECTIONS
def test_a_subflow_given_up_by_tcp_loses_no_octet(from_client: bool) -> None:
    pair = joined(tcp=TcpConfig(data_retries=3))
    _, receiver = stream(pair, 6_000_000, from_client)
    pair.paths[0].cut(pair.now + 100_000)
    writer = pair.client if from_client else pair.server
    lost = on_path(writer, 0)
    finish(pair, receiver, 6_000_000)
    assert lost.close_reason == "timeout"
    assert lost.bytes_reinjected > 0


@DIRECTIONS
def test_the_subflow_that_took_over_dies_too(from_client: bool) -> None:
    pair = joined(paths=3)
    _, receiver = stream(pair, 1_000_000, from_client)
    pair.paths[0].cut(pair.now + 100_000)
    pair.run(for_us=500 * MILLISECOND)
    killer = pair.server
    killer.close_subflow(on_path(killer, 1).id, pair.now, reset=True)
    finish(pair, receiver, 1_000_000)


def test_the_last_copy_dies_while_an_older_one_is_acknowledged_by_a_middlebox() -> None:
    """Octets given to A and then to B; TCP has acknowledged them on A, nobody at the data level, and B is gone."""
    host, first, connection = connected.server()
    second = first.joins(address="10.0.0.2")
    second.acknowledges(builders.dss(data_ack=first.data_ack))
    second.takes()
    first.takes()
    connection.write(b"precious", host.now)
    carrier, other = (first, second) if any(s.length for s in first.takes()) else (second, first)
    host.advance(host.now + 1_500_000)
    assert any(s.length for s in other.takes()), "reinjected after the timeout"
    carrier.ack = connection.subflows_by_id[1 if carrier is first else 2].tcp.sender.nxt & 0xFFFFFFFF
    stale = builders.dss(data_ack=first.data_ack - len(b"precious"))
    carrier.acknowledges(stale)
    other.resets()
    again = until_data(host, [carrier], first.data_ack - len(b"precious"))
    assert {bytes(s.payloads[0]) for s in again} == {b"precious"}
    assert len({next(o.ssn for o in s.options.mptcp if isinstance(o, Dss)) for s in again}) == 1


def until_data(host: ScriptedHost, peers: list[ScriptedPeer], data_ack: int) -> list[Segment]:
    """Time passes; whatever arrives at one of the peers is answered with that DATA_ACK, until the first of them gets data,
    which is returned."""
    for _ in range(100):
        host.advance(host.now + 100_000)
        for peer in peers:
            segments = peer.takes()
            data = [s for s in segments if s.length]
            if data and peer is peers[0]:
                return data
            if segments:
                peer.acknowledges(builders.dss(data_ack=data_ack))
    return []


# --- what TCP has delivered and the data level has not ----------------------------------------------------------------------
def test_data_acknowledged_by_tcp_alone_is_sent_again() -> None:
    # RFC 8684 §3.3.6: "This timer will guard against retransmission failures by middleboxes that proactively ACK data."
    host, peer, connection = connected.server()
    before = peer.data_ack
    connection.write(b"precious", host.now)
    first = next(s for s in peer.takes() if s.length)
    peer.acknowledges(builders.dss(data_ack=before))
    assert [s for s in peer.takes() if s.length] == []
    again = until_data(host, [peer], before)
    assert again, "never sent again"
    old, new = (next(o for o in s.options.mptcp if isinstance(o, Dss)) for s in (first, again[0]))
    assert (new.dsn, new.length) == (old.dsn, old.length)
    assert new.ssn == old.ssn + len(b"precious"), "new octets of the subflow"
    peer.acknowledges()
    host.advance(host.now + 60_000_000)
    assert connection.data_sender.unacked_bytes == 0


def test_data_acknowledged_by_tcp_alone_goes_to_the_other_subflow() -> None:
    # RFC 8684 §3.3.6: "the sender will typically resend the data on other working subflows"
    host, first, connection = connected.server()
    second = first.joins(address="10.0.0.2")
    second.acknowledges(builders.dss(data_ack=first.data_ack))
    second.takes()
    before = first.data_ack
    connection.write(b"precious", host.now)
    carrier, other = (first, second) if any(s.length for s in first.takes()) else (second, first)
    carrier.takes()
    carrier.acknowledges(builders.dss(data_ack=before))
    again = until_data(host, [other, carrier], before)
    assert [bytes(s.payloads[0]) for s in again] == [b"precious"]


# --- the shared window ------------------------------------------------------------------------------------------------------
def test_data_that_blocks_the_window_goes_to_the_faster_subflow() -> None:
    # RFC 8684 §3.3.5: a receive window shared by all subflows is blocked by the slowest octet
    small = TcpConfig(receive_buffer_bytes=60 * KIB, receive_buffer_max_bytes=60 * KIB)
    pair = joined(
        [MEGABYTE_A_SECOND, Conditions(rate_bps=MBIT, delay_us=150 * MILLISECOND, queue_bytes=30_000)], tcp=small
    )
    _, receiver = stream(pair, 1_000_000)
    finish(pair, receiver, 1_000_000)
    assert pair.client.data_sender.bytes_reinjected > 0
    assert receiver.progress.last_us - receiver.progress.first_us < 2 * SECOND, "near what the fast path does alone"


@pytest.mark.parametrize("paths", [1, 2])
def test_a_reader_that_pauses_closes_the_window_and_loses_nothing(paths: int) -> None:
    small = TcpConfig(receive_buffer_bytes=20 * KIB, receive_buffer_max_bytes=20 * KIB)
    pair = joined(paths=paths, tcp=small)
    sender = BulkSender(pair.client_host, pair.client, 100_000)
    pair.client_host.attach(pair.client, sender)
    pair.run(for_us=20 * SECOND)
    assert pair.server.readable_bytes == 20 * KIB, "the window holds exactly that"
    assert pair.client.data_sender.window_room == 0
    receiver = BulkReceiver(pair.server_host, pair.server, keep_open=True)
    pair.server_host.attach(pair.server, receiver)
    finish(pair, receiver, 100_000)


@pytest.mark.parametrize("paths", [1, 2])
def test_a_lost_window_update_is_asked_for(paths: int) -> None:
    # RFC 9293 §3.8.6.1: "The sending TCP peer must regularly transmit at least one octet of new data (if available), or
    # retransmit to the receiving TCP peer even if the send window is zero, in order to "probe" the window."
    small = TcpConfig(receive_buffer_bytes=20 * KIB, receive_buffer_max_bytes=20 * KIB)
    pair = joined(paths=paths, tcp=small)
    pair.client_host.attach(pair.client, BulkSender(pair.client_host, pair.client, 60_000))
    pair.run(for_us=3 * SECOND)
    for path in pair.paths:
        path.cut(which="backward")
    receiver = BulkReceiver(pair.server_host, pair.server, keep_open=True)
    pair.server_host.attach(pair.server, receiver)
    pair.run(for_us=100 * MILLISECOND)
    for path in pair.paths:
        path.restore(which="backward")
    finish(pair, receiver, 60_000)


def test_a_window_closed_at_the_data_level_alone_is_probed() -> None:
    """TCP's own window of the subflow that is left is open, so that its persist timer sleeps: the connection asks."""
    host, first, connection = connected.server()
    second = first.joins(address="10.0.0.2")
    second.acknowledges(builders.dss(data_ack=first.data_ack))
    second.takes()
    connection.write(b"x" * 70_000, host.now)
    quiet = 0
    while quiet < 3:  # the peer takes all that its first window admits, and closes it, which it says on one subflow
        taken = [s for s in first.takes() if s.length] + [s for s in second.takes() if s.length]
        quiet = 0 if taken else quiet + 1
        room = connection.data_sender.window_edge - connection.data_sender.nxt
        first.window = min(builders.DEFAULT_WINDOW, max(0, room + connection.data_sender.unacked_bytes - len(taken)))
        for peer in (first, second):
            peer.window = max(0, connection.data_sender.window_edge - first.data_ack)
            if peer is first or room > 2_000:
                peer.acknowledges()
        host.advance(host.now + 50_000)
    assert connection.data_sender.window_room == 0
    assert connection.data_sender.stream.length > 0
    first.resets()
    host.advance(host.now + 200_000)
    second.takes()
    host.advance(host.now + 30_000_000)
    assert second.takes(), "nothing asks for the window"
    second.window = 20_000
    second.acknowledges()
    assert sum(s.length for s in second.takes()) > 1_000


@pytest.mark.parametrize("paths", [1, 2])
@pytest.mark.parametrize("size", [1, 2, 100, 1459])
def test_tiny_windows(paths: int, size: int) -> None:
    small = TcpConfig(receive_buffer_bytes=size, receive_buffer_max_bytes=size)
    config = ConnectionConfig(tcp=small)
    pair = Pair(paths=paths, server_options=config)
    pair.connect(subflows=paths)
    receiver = pair.transfer(20 * size)
    finish(pair, receiver, 20 * size, 600 * SECOND)
    close_and_leave_nothing(pair)


@pytest.mark.parametrize("paths", [1, 2])
@pytest.mark.parametrize("size", [1, 7, 1000])
def test_tiny_send_buffers(paths: int, size: int) -> None:
    config = ConnectionConfig(tcp=TcpConfig(send_buffer_bytes=size))
    pair = Pair(paths=paths, client_options=config)
    pair.connect(subflows=paths)
    receiver = pair.transfer(50 * size)
    finish(pair, receiver, 50 * size, 600 * SECOND)
    close_and_leave_nothing(pair)


# --- break before make --------------------------------------------------------------------------------------------------------
@DIRECTIONS
@pytest.mark.parametrize("paths", [1, 2])
def test_all_interfaces_down_and_up_again(from_client: bool, paths: int) -> None:
    # RFC 8684 §3.3.3: "break-before-make" is what the time for which a connection without subflows is kept is for
    pair = joined(paths=paths)
    _, receiver = stream(pair, 500_000, from_client)
    pair.run(for_us=100 * MILLISECOND)
    for port in pair.client_ports:
        pair.client_host.set_interface_up(port, False)
    pair.run(for_us=3 * SECOND)
    assert pair.client.open_subflows() == []
    assert pair.client.state is ConnectionState.ESTABLISHED
    pair.client_host.set_interface_up(pair.client_ports[-1], True)
    finish(pair, receiver, 500_000)
    close_and_leave_nothing(pair)


@DIRECTIONS
def test_all_subflows_reset_by_the_server_are_opened_again(from_client: bool) -> None:
    pair = joined()
    _, receiver = stream(pair, 500_000, from_client)
    pair.run(for_us=100 * MILLISECOND)
    for subflow in pair.server.open_subflows():
        subflow.tcp.abort(pair.now)  # as a middlebox would: no MP_TCPRST reason against trying again
        subflow.connection.touch()
    finish(pair, receiver, 500_000)
    close_and_leave_nothing(pair)


@DIRECTIONS
@pytest.mark.parametrize("under_way", [True, False])
def test_all_subflows_lost_while_the_end_of_the_stream_is_under_way(from_client: bool, under_way: bool) -> None:
    """The DATA_FIN is not given up while there is no path for it."""
    pair = joined()
    writer, reader = (pair.client, pair.server) if from_client else (pair.server, pair.client)
    writer.write(b"last words", pair.now)
    pair.run(for_us=100 * MILLISECOND)
    if under_way:
        writer.shutdown_write(pair.now)
        pair.touch()
        pair.run(for_us=1)
    for path in pair.paths:
        path.cut()
    for port in pair.client_ports:
        pair.client_host.set_interface_up(port, False)
    writer.shutdown_write(pair.now)
    pair.run(for_us=40 * SECOND)
    assert writer.state is ConnectionState.ESTABLISHED
    assert not reader.data_receiver.fin_received
    pair.client_host.set_interface_up(pair.client_ports[0], True)
    pair.run(for_us=60 * SECOND, while_=lambda: not writer.data_sender.fin_acked)
    assert reader.read(100) == b"last words"
    assert reader.eof
    assert writer.data_sender.fin_acked


@DIRECTIONS
def test_a_closed_connection_waits_for_a_path_to_deliver_what_was_written(from_client: bool) -> None:
    pair = joined()
    writer, reader = (pair.client, pair.server) if from_client else (pair.server, pair.client)
    for port in pair.client_ports:
        pair.client_host.set_interface_up(port, False)
    writer.write(b"last words", pair.now)
    writer.close(pair.now)
    pair.run(for_us=10 * SECOND)
    pair.client_host.set_interface_up(pair.client_ports[1], True)
    pair.run(for_us=60 * SECOND, while_=lambda: not reader.data_receiver.fin_received)
    assert reader.read(100) == b"last words"
    close_and_leave_nothing(pair)


def test_many_breaks_do_not_wear_out_the_path_manager() -> None:
    pair = joined(paths=1)
    for _ in range(20):
        subflow = pair.server.open_subflows()[0]
        subflow.tcp.abort(pair.now)
        subflow.connection.touch()
        pair.run(for_us=80 * SECOND, while_=lambda: pair.active_subflows() == 1)
        pair.run(for_us=40 * SECOND, while_=lambda: pair.active_subflows() == 0)
        assert pair.active_subflows() == 1
        pair.drain(15 * SECOND)
    assert pair.transfer(10_000).is_exact


def test_no_path_comes_back() -> None:
    # RFC 8684 §3.3.3: "the MPTCP connection is treated as closed only after a timeout"
    pair = joined()
    pair.client.write(b"x", pair.now)
    for port in pair.client_ports:
        pair.client_host.set_interface_up(port, False)
    pair.run(for_us=59 * SECOND)
    assert pair.client.state is ConnectionState.ESTABLISHED
    pair.run(for_us=2 * SECOND)
    assert isinstance(pair.client.error, ConnectionTimedOut)
    pair.client.close(pair.now)
    pair.drain()
    assert not pair.client_host.stack.connections  # type: ignore[attr-defined]


def test_a_peer_that_has_forgotten_the_connection_ends_it() -> None:
    """Its RST says that it does not know the token: no path will help."""
    host, peer, connection = connected.client(ConnectionConfig())
    joins = [s for s in host.sends_to() if s.segment.flags == SYN]
    for join in joins:
        host.receives(builders.rst(seq=0, ack=join.segment.seq + 1), source=join.destination, destination=join.source)
    peer.resets()
    host.advance(host.now + 5_000_000)
    joins = [s for s in host.sends_to() if s.segment.flags == SYN]
    assert any(isinstance(o, MpJoinSyn) for s in joins for o in s.segment.options.mptcp)
    for join in joins:
        host.receives(
            builders.rst(MpTcprst(1), seq=0, ack=join.segment.seq + 1), source=join.destination, destination=join.source
        )
    assert isinstance(connection.error, ConnectionWasReset)


# --- backup ----------------------------------------------------------------------------------------------------------------------
@DIRECTIONS
def test_backup_takes_over_and_gives_back(from_client: bool) -> None:
    # RFC 8684 §3.3.8: "SHOULD NOT be used to send data unless there are no usable subflows where B=0"
    backup = frozenset({Endpoint.parse("10.0.1.1").address})
    pair = joined(path_manager=lambda: FullMesh(8, backup))
    _, receiver = stream(pair, 5_000_000, from_client)
    pair.run(for_us=500 * MILLISECOND)
    writer = pair.client if from_client else pair.server
    regular, spare = on_path(writer, 0), on_path(writer, 1)
    assert spare.path.backup
    assert spare.tcp.sender.bytes_sent == 0
    pair.paths[0].cut()
    pair.run(for_us=SECOND)
    taken = spare.tcp.sender.bytes_sent
    assert taken > 100_000
    pair.paths[0].restore()
    pair.run(for_us=5 * SECOND, while_=lambda: regular.stale)
    pair.run(for_us=200 * MILLISECOND)
    given_back, carried = spare.tcp.sender.end, regular.tcp.sender.end
    finish(pair, receiver, 5_000_000)
    assert spare.tcp.sender.end == given_back, "the backup rests again"
    assert regular.tcp.sender.end > carried


def test_backup_takes_over_when_the_regular_subflow_dies() -> None:
    backup = frozenset({Endpoint.parse("10.0.1.1").address})
    pair = joined(path_manager=lambda: FullMesh(8, backup))
    _, receiver = stream(pair, 500_000)
    pair.run(for_us=100 * MILLISECOND)
    pair.client_host.set_interface_up(pair.client_ports[0], False)
    finish(pair, receiver, 500_000)
    assert on_path(pair.client, 1).tcp.sender.bytes_acked > 300_000


def test_a_subflow_made_backup_in_the_middle_falls_silent() -> None:
    pair = joined()
    _, receiver = stream(pair, 2_000_000)
    pair.run(for_us=200 * MILLISECOND)
    pair.server.set_backup(on_path(pair.server, 1).id, True, pair.now)
    pair.run(for_us=300 * MILLISECOND)
    demoted = on_path(pair.client, 1)
    assert demoted.path.backup
    given = demoted.tcp.sender.end
    finish(pair, receiver, 2_000_000)
    assert demoted.tcp.sender.end == given


# --- addresses ---------------------------------------------------------------------------------------------------------------------
@DIRECTIONS
@pytest.mark.parametrize("index", [0, 1])
def test_an_address_removed_in_the_middle(from_client: bool, index: int) -> None:
    # RFC 8684 §3.4.2: "the affected host SHOULD announce this situation so that the peer can remove subflows"
    pair = joined()
    _, receiver = stream(pair, 500_000, from_client)
    pair.run(for_us=100 * MILLISECOND)
    pair.client_host.stack.remove_address(f"10.0.{index}.1", pair.now)  # type: ignore[attr-defined]
    finish(pair, receiver, 500_000)
    pair.run(for_us=10 * SECOND)
    assert len(pair.server.open_subflows()) == 1


@DIRECTIONS
@pytest.mark.parametrize("index", [0, 1])
def test_an_interface_goes_down_and_comes_back(from_client: bool, index: int) -> None:
    pair = joined()
    _, receiver = stream(pair, 3_000_000, from_client)
    port = pair.client_ports[index]
    pair.client_host.set_interface_up(port, False, pair.now + 100_000)
    pair.client_host.set_interface_up(port, True, pair.now + 600_000)
    finish(pair, receiver, 3_000_000)
    pair.run(for_us=10 * SECOND)
    assert pair.active_subflows() == 2
    assert len(pair.server.open_subflows()) == 2


@DIRECTIONS
def test_an_address_of_the_server_removed_in_the_middle(from_client: bool) -> None:
    pair = Pair(paths=2, conditions=MEGABYTE_A_SECOND, single_homed_server=False)
    pair.connect(subflows=2)
    _, receiver = stream(pair, 500_000, from_client)
    pair.run(for_us=100 * MILLISECOND)
    pair.server_host.stack.remove_address("10.0.1.2", pair.now)  # type: ignore[attr-defined]
    finish(pair, receiver, 500_000)
    pair.run(for_us=10 * SECOND)
    assert {s.tcp.remote.host for s in pair.client.open_subflows()} == {"10.0.0.2"}
    assert {s.tcp.local.host for s in pair.server.open_subflows()} == {"10.0.0.2"}


# --- closing ------------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("paths", [1, 2, 3])
def test_both_close_at_once(paths: int) -> None:
    pair = joined(paths=paths)
    pair.client.write(b"from the client", pair.now)
    pair.server.write(b"from the server", pair.now)
    pair.client.shutdown_write(pair.now)
    pair.server.shutdown_write(pair.now)
    pair.run(for_us=SECOND)
    assert (pair.server.read(100), pair.client.read(100)) == (b"from the client", b"from the server")
    assert pair.server.eof
    assert pair.client.eof
    assert pair.client.state is pair.server.state is ConnectionState.CLOSED
    assert pair.client.error is pair.server.error is None
    close_and_leave_nothing(pair)


def test_both_abort_at_once() -> None:
    pair = joined()
    pair.client.abort(pair.now)
    pair.server.abort(pair.now)
    pair.drain()
    close_and_leave_nothing(pair)


@DIRECTIONS
@pytest.mark.parametrize("dies", [0, 1])
def test_half_closed_with_two_subflows_and_one_dies(from_client: bool, dies: int) -> None:
    pair = joined()
    ender = pair.server if from_client else pair.client
    ender.write(b"all from here", pair.now)
    ender.shutdown_write(pair.now)
    _, receiver = stream(pair, 500_000, from_client)
    pair.run(for_us=100 * MILLISECOND)
    other = pair.client if from_client else pair.server
    assert other.read(100) == b"all from here"
    assert other.eof
    pair.paths[dies].cut()
    finish(pair, receiver, 500_000)
    assert ender.data_sender.fin_acked
    pair.paths[dies].restore()
    close_and_leave_nothing(pair)


def test_closing_over_a_dead_path_does_not_take_for_ever() -> None:
    pair = joined()
    pair.paths[1].cut()
    pair.client.write(b"x" * 50_000, pair.now)
    pair.client.shutdown_write(pair.now)
    pair.run(for_us=5 * SECOND, while_=lambda: not pair.server.data_receiver.fin_received)
    assert pair.server.readable_bytes == 50_000
    pair.server.read(50_000)
    pair.close(900 * SECOND)
    assert not pair.client_host.stack.connections  # type: ignore[attr-defined]
    assert not pair.server_host.stack.connections  # type: ignore[attr-defined]


@pytest.mark.parametrize("path_manager", [FullMesh, PathManager])
def test_a_lone_subflow_whose_fin_is_never_answered_with_one_is_given_up(path_manager: type[PathManager]) -> None:
    """What is left of it does not keep the connection from seeing that it has no path any more."""
    host, peer, connection = connected.client(ConnectionConfig(path_manager=path_manager, max_subflows=1))
    connection.close_subflow(1, host.now)
    segments = peer.takes()
    assert segments[-1].flags & FIN
    peer.acknowledges()
    host.advance(host.now + 300_000_000)
    assert isinstance(connection.error, ConnectionTimedOut)
    connection.close(host.now)
    host.poll()
    assert not host.host.connections
