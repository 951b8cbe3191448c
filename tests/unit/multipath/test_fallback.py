"""Fallback to regular TCP in both roles (RFC 8684 §3.7)."""

from mptcp.core.multipath.events import EventKind
from mptcp.core.multipath.fallback import INTERFACE_FAILURES, MAX_REMEMBERED, FailureCache
from mptcp.core.wire.mptcp_options import Dss, MpFail
from mptcp.core.wire.segment import FIN, RST, Segment
from mptcp.testing import builders, connected
from mptcp.testing.peer import ScriptedPeer
from mptcp.testing.scripted import ScriptedHost

MASK64 = (1 << 64) - 1


def mptcp_of(segments: list[Segment]) -> list[object]:
    return [o for s in segments for o in s.options.mptcp]


def fresh_client() -> tuple[ScriptedHost, ScriptedPeer, object]:
    host = ScriptedHost()
    connection = host.connect(options=connected.QUIET)
    peer = ScriptedPeer.accepts(host)
    return host, peer, connection


def test_data_acknowledged_without_data_ack_means_regular_tcp() -> None:
    # RFC 8684 §3.7: "In the case of such an ACK being received on the first subflow ... the implementation MUST drop out
    # of MPTCP mode and fall back to regular TCP. The sender will send one final Data Sequence Mapping, with the
    # Data-Level Length value of 0 indicating an infinite mapping"
    host, peer, connection = fresh_client()
    first = connection.data_sender.una  # type: ignore[attr-defined]
    connection.write(b"hello", host.now)  # type: ignore[attr-defined]
    peer.takes()
    peer.send_segment(builders.ack(seq=peer.seq, ack=peer.ack))
    assert not connection.is_multipath  # type: ignore[attr-defined]
    connection.write(b"plain", host.now)  # type: ignore[attr-defined]
    (data,) = [s for s in peer.takes() if s.length]
    (infinite,) = data.options.mptcp
    assert isinstance(infinite, Dss)
    assert infinite.length == 0
    # it refers to the first octet not acknowledged at the data level, where the subflow has it
    assert (infinite.dsn, infinite.ssn) == (first & MASK64, 1)
    peer.send_segment(builders.ack(seq=peer.seq, ack=peer.ack))
    connection.write(b"more", host.now)  # type: ignore[attr-defined]
    assert mptcp_of(peer.takes()) == []


def test_data_without_mapping_on_a_fresh_connection_means_regular_tcp() -> None:
    host = ScriptedHost()
    listener = host.listen(80, options=connected.QUIET)
    peer = ScriptedPeer.connects(host, 80)
    peer.send_segment(builders.data(b"bare", seq=peer.seq, ack=peer.ack))
    connection = listener.accept()
    assert connection is not None
    assert connection.read(10) == b"bare"
    assert not connection.is_multipath
    connection.write(b"answer", host.now)
    segments = peer.takes()
    assert b"".join(s.payload for s in segments) == b"answer"
    assert mptcp_of([s for s in segments if s.length]) == []


def test_infinite_mapping_from_the_peer_means_regular_tcp() -> None:
    host, peer, connection = connected.server()
    option = builders.dss(data_ack=peer.data_ack, dsn=peer.data_seq, ssn=2, length=0)
    peer.send_segment(builders.data(b"infinite", option, seq=peer.seq, ack=peer.ack))
    peer.seq += 8
    assert connection.read(100) == b"infinite"
    assert not connection.is_multipath
    peer.send_segment(builders.data(b" and beyond", seq=peer.seq, ack=peer.ack))
    assert connection.read(100) == b" and beyond"
    # RFC 8684 §3.7: "The receiver SHOULD stop generating Data ACKs after it receives an infinite mapping."
    host.advance(host.now + 100_000)
    assert mptcp_of(peer.takes()) == []


def test_what_is_unsent_at_the_fallback_is_sent_and_the_fin_follows() -> None:
    host, peer, connection = connected.server()
    connection.write(bytes(100_000), host.now)
    connection.shutdown_write(host.now)
    got = sum(s.length for s in peer.takes())
    option = builders.dss(data_ack=peer.data_ack, dsn=peer.data_seq, ssn=2, length=0)
    peer.send_segment(builders.data(b"i", option, seq=peer.seq, ack=peer.ack))
    peer.seq += 1
    assert not connection.is_multipath
    for _ in range(60):
        segments = peer.takes()
        got += sum(s.length for s in segments)
        if any(s.flags & FIN for s in segments):
            break
        peer.send_segment(builders.ack(seq=peer.seq, ack=peer.ack))
    assert got == 100_000
    assert any(s.flags & FIN for s in segments)


def test_fin_after_fallback_is_end_of_file() -> None:
    host, peer, connection = connected.server()
    option = builders.dss(data_ack=peer.data_ack, dsn=peer.data_seq, ssn=2, length=0)
    peer.send_segment(builders.data(b"end", option, seq=peer.seq, ack=peer.ack))
    peer.seq += 3
    peer.finishes()
    assert connection.read(10) == b"end"
    assert connection.eof
    connection.close(host.now)
    assert [s for s in peer.takes() if s.flags & FIN]


def test_reset_after_fallback_is_the_end() -> None:
    _, peer, connection = connected.server()
    option = builders.dss(data_ack=peer.data_ack, dsn=peer.data_seq, ssn=2, length=0)
    peer.send_segment(builders.data(b"x", option, seq=peer.seq, ack=peer.ack))
    peer.seq += 1
    peer.resets()
    assert isinstance(connection.error, ConnectionResetError)


def test_checksum_failure_on_the_only_subflow_sends_mp_fail_and_goes_on() -> None:
    # RFC 8684 §3.7: "if a receiver identifies a checksum failure when there is only one path, it will send back an MP_FAIL
    # option on the subflow-level ACK, referring to the data-level sequence number of the start of the segment on which the
    # checksum error was detected."
    host, peer, connection = connected.server(checksum=True)
    option = builders.dss(data_ack=peer.data_ack, dsn=peer.data_seq, ssn=2, length=5, checksum=0xBEEF)
    peer.send_segment(builders.data(b"WRONG", option, seq=peer.seq, ack=peer.ack))
    peer.seq += 5
    host.advance(host.now + 100_000)
    assert MpFail(peer.data_seq & MASK64) in mptcp_of(peer.takes())
    assert connection.read(10) == b"WRONG"
    assert "checksum" in connection.fallback_reason
    infinite = builders.dss(dsn=peer.data_seq, ssn=2, length=0, checksum=0)
    peer.send_segment(builders.data(b" plain", infinite, seq=peer.seq, ack=peer.ack))
    assert connection.read(10) == b" plain"


def test_mp_fail_from_the_peer_is_answered_with_mp_fail_and_an_infinite_mapping() -> None:
    # RFC 8684 §3.7: "the receiver of an MP_FAIL MUST also respond with an MP_FAIL in the reverse direction and entirely
    # revert to a regular TCP session"
    host, peer, connection = connected.server(checksum=True)
    start = connection.data_sender.una
    connection.write(b"hello", host.now)
    peer.takes()
    peer.acknowledges(MpFail(start & MASK64))
    assert not connection.is_multipath
    connection.write(b"again", host.now)
    options = mptcp_of(peer.takes())
    peer.send_segment(builders.ack(seq=peer.seq, ack=peer.ack))
    connection.write(b"again", host.now)
    options += mptcp_of(peer.takes())
    assert any(isinstance(o, MpFail) for o in options)
    assert any(isinstance(o, Dss) and o.length == 0 and o.dsn == start & MASK64 for o in options)


def test_mp_fail_with_several_subflows_resets_that_one() -> None:
    host, peer, connection = connected.server(checksum=True)
    second = peer.joins(address="10.0.1.2")
    second.takes()
    second.acknowledges()
    second.acknowledges(MpFail(1))
    (reset,) = [s for s in second.takes() if s.flags & RST]
    assert isinstance(reset.options.mptcp[0], MpFail)
    assert connection.is_multipath
    del host


def test_options_lost_in_the_middle_of_a_connection_with_one_subflow() -> None:
    # RFC 8684 §3.7: "If a subflow breaks during operation, e.g., if it is rerouted and MPTCP options are no longer
    # permitted"
    host, peer, connection = connected.server()
    for _ in range(40):
        connection.write(b"data", host.now)
        if peer.takes() or True:
            peer.send_segment(builders.ack(seq=peer.seq, ack=peer.ack))
        if not connection.is_multipath:
            break
        host.advance(host.now + 50_000)
    assert not connection.is_multipath
    assert "DATA_ACK" in connection.fallback_reason


def test_fallback_is_an_event() -> None:
    _, peer, connection = connected.server()
    option = builders.dss(data_ack=peer.data_ack, dsn=peer.data_seq, ssn=2, length=0)
    peer.send_segment(builders.data(b"x", option, seq=peer.seq, ack=peer.ack))
    kinds = []
    while (event := connection.poll_event()) is not None:
        kinds.append(event.kind)
    assert kinds == [EventKind.ESTABLISHED, EventKind.SUBFLOW_ESTABLISHED, EventKind.FELL_BACK]


def test_octets_written_around_a_fallback_arrive_once_and_in_order() -> None:
    host, peer, connection = connected.server()
    text = bytes(range(256)) * 40
    connection.write(text, host.now)
    received = b"".join(s.payload for s in peer.takes())
    option = builders.dss(data_ack=peer.data_ack, dsn=peer.data_seq, ssn=2, length=0)
    peer.send_segment(builders.data(b"i", option, seq=peer.seq, ack=peer.ack))
    peer.seq += 1
    connection.write(text, host.now)
    for _ in range(40):
        segments = peer.takes()
        received += b"".join(s.payload for s in segments)
        peer.send_segment(builders.ack(seq=peer.seq, ack=peer.ack))
    assert received == text + text


def test_the_failure_cache_forgets_in_time_and_has_a_limit() -> None:  # RFC 8684 §3.9.3
    cache = FailureCache(first_us=10, longest_us=25)
    cache.failed(b"a", 0, 0)
    assert cache.should_avoid(b"a", 0, 9)
    assert not cache.should_avoid(b"a", 0, 10)
    assert not cache.should_avoid(b"a", 1, 5)
    cache.failed(b"a", 0, 100)
    assert cache.should_avoid(b"a", 0, 119)
    cache.failed(b"a", 0, 200)
    assert cache.should_avoid(b"a", 0, 224)
    assert not cache.should_avoid(b"a", 0, 225)
    cache.worked(b"a", 0)
    assert not cache.should_avoid(b"a", 0, 201)
    for number in range(MAX_REMEMBERED + 10):
        cache.failed(number.to_bytes(4, "big"), -1, 0)
    assert not cache.should_avoid((0).to_bytes(4, "big"), -1, 1)
    assert cache.should_avoid((MAX_REMEMBERED + 9).to_bytes(4, "big"), -1, 1)


def test_many_destinations_that_fail_mean_their_interface() -> None:
    # RFC 8684 §3.9.3: "firstly for that particular destination host and, eventually, on a whole interface, if MPTCP
    # connections continue to fail"
    cache = FailureCache(first_us=10, longest_us=25)
    for number in range(INTERFACE_FAILURES - 1):
        for _ in range(3):  # one destination that fails again and again says nothing of others
            cache.failed(bytes((number,)), 0, 0)
    assert not cache.should_avoid(b"new", 0, 1)
    cache.failed(b"last", 0, 100)
    assert cache.should_avoid(b"new", 0, 109)
    assert not cache.should_avoid(b"new", 1, 109), "other interfaces are not meant"
    assert not cache.should_avoid(b"new", 0, 110)
    cache.failed(b"new", 0, 120)  # still no better
    assert cache.should_avoid(b"other", 0, 139)
    assert not cache.should_avoid(b"other", 0, 140)
    cache.failed(b"new", 0, 140)
    assert cache.should_avoid(b"other", 0, 164), "the longest"
    cache.worked(b"somewhere", 0)
    assert not cache.should_avoid(b"other", 0, 141)
    cache.failed(b"other", 0, 150)
    assert not cache.should_avoid(b"another", 0, 151), "it counts from the beginning"


def test_a_stray_segment_without_options_changes_nothing() -> None:
    host, peer, connection = connected.server()
    connection.write(b"data", host.now)
    peer.takes()
    peer.send_segment(builders.ack(seq=peer.seq, ack=peer.ack))
    peer.acknowledges()
    assert connection.is_multipath
    assert connection.data_sender.unacked_bytes == 0
