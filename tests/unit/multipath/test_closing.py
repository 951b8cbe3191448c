"""How connections end (RFC 8684 §3.3.3, §3.5)."""

import errno

from mptcp.core.multipath.connection_state import ConnectionState
from mptcp.core.wire.mptcp_options import Dss, MpFastclose, MpTcprst
from mptcp.core.wire.segment import ACK, FIN, RST
from mptcp.info import SubflowState
from mptcp.testing import builders, connected

MASK64 = (1 << 64) - 1


def fins(segments) -> int:  # type: ignore[no-untyped-def]
    return sum(bool(s.flags & FIN) for s in segments)


def data_fins(segments) -> list[Dss]:  # type: ignore[no-untyped-def]
    return [o for s in segments for o in s.options.mptcp if isinstance(o, Dss) and o.data_fin]


def test_shutdown_sends_data_fin_and_no_fin() -> None:
    # RFC 8684 §3.3.3: a DATA_FIN "is decoupled from a subflow FIN"
    host, peer, connection = connected.server()
    connection.write(b"last", host.now)
    connection.shutdown_write(host.now)
    before = peer.data_ack
    segments = peer.takes()
    assert b"".join(s.payload for s in segments) == b"last"
    (fin,) = data_fins(segments)
    assert (fin.dsn, fin.ssn, fin.length) == ((before + 4) & MASK64, 0, 1)
    assert fins(segments) == 0


def test_data_fin_goes_on_every_subflow() -> None:
    host, peer, connection = connected.server()
    second = peer.joins(address="10.0.1.2")
    second.takes()
    connection.shutdown_write(host.now)
    assert len(data_fins(peer.takes())) == 1
    assert len(data_fins(second.takes())) == 1


def test_data_fin_is_repeated_until_acknowledged() -> None:
    host, peer, connection = connected.server()
    connection.shutdown_write(host.now)
    assert len(data_fins(peer.takes())) == 1
    host.advance(host.now + 4_000_000)
    assert len(data_fins(peer.takes())) >= 1
    peer.acknowledges()
    host.advance(host.now + 10_000_000)
    assert data_fins(peer.takes()) == []
    assert connection.data_sender.fin_acked


def test_peers_data_fin_is_end_of_file_and_the_other_direction_goes_on() -> None:
    host, peer, connection = connected.server()
    peer.sends(b"bye", data_fin=True)
    assert not connection.eof
    assert connection.read(10) == b"bye"
    assert connection.eof
    host.advance(host.now + 100_000)
    (last, *_) = reversed(peer.takes())
    assert isinstance(last.options.mptcp[0], Dss)
    assert last.options.mptcp[0].data_ack == peer.data_seq & MASK64  # the DATA_FIN counts as one
    connection.write(b"half open", host.now)
    assert b"".join(s.payload for s in peer.takes()) == b"half open"


def test_data_fin_ahead_of_its_data_waits() -> None:
    host, peer, connection = connected.server()
    start = peer.data_seq
    host.receives(
        builders.ack(
            builders.dss(data_ack=peer.data_ack, dsn=start + 4, ssn=0, length=1, data_fin=True), seq=peer.seq,
            ack=peer.ack,
        ),
        source=peer.local, destination=peer.remote,
    )  # fmt: skip
    assert not connection.eof
    peer.sends(b"data")
    assert connection.read(10) == b"data"
    assert connection.eof


def test_once_both_data_fins_are_acknowledged_all_subflows_are_closed_with_fin() -> None:
    # RFC 8684 §3.3.3: "Once a DATA_FIN has been acknowledged, all remaining subflows MUST be closed with standard FIN
    # exchanges."
    host, peer, connection = connected.server()
    second = peer.joins(address="10.0.1.2")
    second.takes()
    peer.sends(b"", data_fin=True)
    connection.close(host.now)
    assert data_fins(peer.takes())
    second.takes()
    peer.acknowledges()
    assert connection.state is ConnectionState.CLOSED
    assert connection.error is None
    assert fins(peer.takes()) == 1
    assert fins(second.takes()) == 1
    for end in (peer, second):
        end.finishes()
        end.takes()
    host.advance(host.now + 130_000_000)
    assert connection not in host.host.connections


def test_fin_of_one_subflow_leaves_the_connection_alone() -> None:
    # RFC 8684 §3.3.3: "a standard TCP FIN on an individual subflow only shuts down the subflow on which it was sent"
    host, peer, connection = connected.server()
    second = peer.joins(address="10.0.1.2")
    second.takes()
    second.acknowledges()
    second.finishes()
    assert fins(second.takes()) == 1  # we close our side of it, too
    second.acknowledges()
    assert not connection.eof
    assert [s.state for s in connection.subflows()] == [SubflowState.ACTIVE]
    connection.write(b"on", host.now)
    assert b"".join(s.payload for s in peer.takes()) == b"on"


def test_all_subflows_gone_the_connection_waits_for_a_path_then_fails() -> None:
    # RFC 8684 §3.3.3: "the MPTCP connection is treated as closed only after a timeout ... This permits
    # "break-before-make" scenarios"
    host, peer, connection = connected.server(connected.QUIET.changed(close_timeout_us=10_000_000))
    peer.resets(MpTcprst(0, True))
    assert connection.state is ConnectionState.ESTABLISHED
    assert connection.subflows() == []
    assert connection.write(b"kept", host.now) == 4
    host.advance(host.now + 5_000_000)
    assert connection.state is ConnectionState.ESTABLISHED
    again = peer.joins(address="10.0.3.2", address_id=3)
    again.acknowledges()
    assert b"".join(s.payload for s in again.takes()) == b"kept"
    again.resets(MpTcprst(0, True))
    host.advance(host.now + 11_000_000)
    assert connection.state is ConnectionState.CLOSED
    assert isinstance(connection.error, OSError)
    assert connection.error.errno == errno.ETIMEDOUT


def test_abort_resets_every_subflow_with_mp_fastclose() -> None:  # RFC 8684 §3.5, option R
    host, peer, connection = connected.server()
    second = peer.joins(address="10.0.1.2")
    second.takes()
    connection.abort(host.now)
    assert peer.key is not None
    for end in (peer, second):
        (reset,) = end.takes()
        assert reset.flags & RST
        assert reset.options.mptcp == (MpFastclose(peer.key),)
    assert connection.state is ConnectionState.CLOSED


def test_abort_by_option_a_waits_for_the_reset_and_repeats() -> None:  # RFC 8684 §3.5, option A
    host, peer, connection = connected.server(connected.QUIET.changed(fastclose_by_reset=False))
    second = peer.joins(address="10.0.1.2")
    second.takes()
    connection.abort(host.now)
    assert peer.key is not None
    first, other = peer.takes(), second.takes()
    carried = [s for s in [*first, *other] if MpFastclose(peer.key) in s.options.mptcp]
    assert [s.flags for s in carried] == [ACK]  # "an ACK containing the MP_FASTCLOSE option on one subflow"
    resets = [s for s in [*first, *other] if s.flags & RST]
    assert len(resets) == 1  # "On all the other subflows, Host A sends a regular TCP RST"
    host.advance(host.now + 20_000_000)
    later = [*peer.takes(), *second.takes()]
    repeated = [s for s in later if MpFastclose(peer.key) in s.options.mptcp and not s.flags & RST]
    assert len(repeated) == 3  # "A RECOMMENDED number is 3"
    # "Host A SHOULD send a TCP RST with the MP_FASTCLOSE option itself when it releases state"
    assert [s.options.mptcp for s in later if s.flags & RST] == [(MpFastclose(peer.key),)]
    assert connection.state is ConnectionState.CLOSED


def test_abort_by_option_a_ends_with_the_peers_reset() -> None:
    host, peer, connection = connected.server(connected.QUIET.changed(fastclose_by_reset=False))
    connection.abort(host.now)
    peer.takes()
    peer.resets()
    assert connection.state is ConnectionState.CLOSED
    assert host.host.poll_deadline() > host.now + 1_000_000


def test_fastclose_on_an_ack_is_answered_with_resets() -> None:  # RFC 8684 §3.5
    host, peer, connection = connected.server()
    second = peer.joins(address="10.0.1.2")
    second.takes()
    assert peer.host_key is not None
    peer.acknowledges(MpFastclose(peer.host_key))
    assert [s.flags & RST for s in peer.takes()] == [RST]
    assert [s.flags & RST for s in second.takes()] == [RST]
    assert connection.state is ConnectionState.CLOSED
    assert isinstance(connection.error, ConnectionResetError)
    del host


def test_fastclose_on_a_reset_ends_everything() -> None:  # RFC 8684 §3.5
    _, peer, connection = connected.server()
    second = peer.joins(address="10.0.1.2")
    second.takes()
    assert peer.host_key is not None
    peer.resets(MpFastclose(peer.host_key))
    assert peer.takes() == []
    assert [s.flags & RST for s in second.takes()] == [RST]
    assert isinstance(connection.error, ConnectionResetError)


def test_fastclose_with_the_wrong_key_is_ignored() -> None:
    host, peer, connection = connected.server()
    peer.acknowledges(MpFastclose(0xBAD))
    assert connection.state is ConnectionState.ESTABLISHED
    assert host.counters["fastclose_bad_key"] == 1


def test_close_with_unread_data_is_an_abort() -> None:  # RFC 1122 §4.2.2.13
    host, peer, connection = connected.server()
    peer.sends(b"never read")
    peer.takes()
    connection.close(host.now)
    assert peer.key is not None
    assert [s.options.mptcp for s in peer.takes() if s.flags & RST] == [(MpFastclose(peer.key),)]


def test_a_peer_that_never_closes_does_not_hold_a_closed_connection_for_ever() -> None:
    host, peer, connection = connected.server()
    connection.close(host.now)
    peer.takes()
    peer.acknowledges()
    host.advance(host.now + 300_000_000)
    assert connection.state is ConnectionState.CLOSED
    assert connection not in host.host.connections
