"""Data transfer (RFC 8684 §3.3): mappings, DATA_ACK, the shared window, checksums."""

import pytest

from mptcp.core.multipath.mapping import dss_checksum
from mptcp.core.tcp.config import TcpConfig
from mptcp.core.wire.mptcp_options import RST_MIDDLEBOX_INTERFERENCE, RST_MPTCP_SPECIFIC, Dss, MpFail, MpTcprst
from mptcp.core.wire.segment import RST
from mptcp.testing import builders, connected
from mptcp.testing.scripted import ScriptedHost

MASK64 = (1 << 64) - 1


def dss_of(segment) -> Dss:  # type: ignore[no-untyped-def]
    (option,) = [o for o in segment.options.mptcp if isinstance(o, Dss)]
    return option


def test_every_data_segment_carries_its_mapping() -> None:  # RFC 8684 §3.7
    host, peer, connection = connected.server()
    first = peer.data_ack
    connection.write(b"hello", host.now)
    (data,) = [s for s in peer.takes() if s.length]
    option = dss_of(data)
    assert (option.dsn, option.ssn, option.length, option.checksum) == (first & MASK64, 1, 5, None)


def test_retransmission_keeps_the_mapping() -> None:
    # RFC 8684 §3.3.1: "A sender MUST NOT change this mapping after it has been declared"
    host, peer, connection = connected.server()
    connection.write(b"hello", host.now)
    (data,) = [s for s in peer.takes() if s.length]
    host.advance(host.now + 3_000_000)
    again = [s for s in peer.takes() if s.length]
    assert again
    for segment in again:
        assert (segment.payload, dss_of(segment).dsn, dss_of(segment).ssn, dss_of(segment).length) == (
            b"hello", dss_of(data).dsn, dss_of(data).ssn, 5,
        )  # fmt: skip


@pytest.mark.parametrize("wide", [True, False])
def test_data_ack_is_as_wide_as_the_dsn(wide: bool) -> None:
    # RFC 8684 §3.3.2: "If data is received with a 64-bit DSN, it MUST be acknowledged with a 64-bit Data ACK."
    host, peer, connection = connected.server()
    host.receives(
        builders.data(
            b"abc", builders.dss(dsn=peer.data_seq, ssn=2, length=3, wide=wide, data_ack=peer.data_ack), seq=peer.seq,
            ack=peer.ack,
        ),
        source=peer.local, destination=peer.remote,
    )  # fmt: skip
    peer.seq += 3
    assert connection.read(10) == b"abc"
    host.advance(host.now + 100_000)
    option = dss_of(peer.takes()[-1])
    assert option.data_ack_wide is wide
    assert option.data_ack == (peer.data_seq + 3) & (MASK64 if wide else 0xFFFFFFFF)


def test_one_mapping_covers_several_segments() -> None:
    # RFC 8684 §3.3.1: "It does not need to be included in every MPTCP packet"
    host, peer, connection = connected.server()
    option = builders.dss(data_ack=peer.data_ack, dsn=peer.data_seq, ssn=2, length=9)
    for number, (part, options) in enumerate(((b"one", (option,)), (b"two", ()), (b"six", (option,)))):
        host.receives(
            builders.data(part, *options, seq=peer.seq + 3 * number, ack=peer.ack), source=peer.local,
            destination=peer.remote,
        )  # fmt: skip
    assert connection.read(100) == b"onetwosix"


def test_mapping_that_arrives_after_its_data() -> None:
    # RFC 8684 §3.3.1: "Implementations MAY hold onto such unmapped data for a short while"
    host, peer, connection = connected.server()
    option = builders.dss(data_ack=peer.data_ack, dsn=peer.data_seq, ssn=2, length=6)
    ack_only = builders.dss(data_ack=peer.data_ack)
    host.receives(
        builders.data(b"one", ack_only, seq=peer.seq, ack=peer.ack), source=peer.local, destination=peer.remote
    )
    assert connection.read(100) == b""
    host.receives(
        builders.data(b"two", option, seq=peer.seq + 3, ack=peer.ack), source=peer.local, destination=peer.remote
    )
    assert connection.read(100) == b"onetwo"


def test_mapping_that_changes_breaks_the_subflow() -> None:
    host, peer, connection = connected.server()
    second = peer.joins(address="10.0.1.2")
    second.takes()
    for dsn in (peer.data_seq + 100, peer.data_seq + 200):
        option = builders.dss(data_ack=peer.data_ack, dsn=dsn, ssn=50, length=10)
        second.send_segment(builders.data(b"x" * 10, option, seq=second.isn + 50, ack=second.ack))
    resets = [s for s in second.takes() if s.flags & RST]
    assert [s.options.mptcp for s in resets] == [(MpTcprst(RST_MPTCP_SPECIFIC),)]
    assert host.counters["mapping_changed"] == 1
    peer.sends(b"unharmed")
    assert connection.read(100) == b"unharmed"


def test_data_in_the_wrong_order_across_subflows_is_put_right() -> None:  # RFC 8684 §3.3.4
    _, peer, connection = connected.server()
    second = peer.joins(address="10.0.1.2")
    second.takes()
    start = peer.data_seq
    second_option = builders.dss(data_ack=peer.data_ack, dsn=start + 4, ssn=1, length=4)
    second.send_segment(builders.data(b"tail", second_option, seq=second.seq, ack=second.ack))
    assert connection.read(100) == b""
    peer.sends(b"head")
    assert connection.read(100) == b"headtail"


def test_the_first_copy_of_data_counts() -> None:
    # RFC 8684 §3.3.1: "an implementation SHOULD treat the first data that is received ... as the data that should be
    # delivered to the application, and any subsequent data for that sequence space SHOULD be ignored"
    _, peer, connection = connected.server()
    second = peer.joins(address="10.0.1.2")
    second.takes()
    start = peer.data_seq
    peer.sends(b"first")
    option = builders.dss(data_ack=peer.data_ack, dsn=start, ssn=1, length=8)
    second.send_segment(builders.data(b"OTHERend", option, seq=second.seq, ack=second.ack))
    assert connection.read(100) == b"firstend"


def test_data_ack_of_data_never_sent_is_ignored() -> None:
    host, peer, connection = connected.server()
    host.receives(
        builders.ack(builders.dss(data_ack=peer.data_ack + 1000), seq=peer.seq, ack=peer.ack), source=peer.local,
        destination=peer.remote,
    )  # fmt: skip
    assert host.counters["data_ack_beyond"] == 1
    connection.write(b"goes on", host.now)
    assert [s.payload for s in peer.takes() if s.length] == [b"goes on"]


def test_data_beyond_the_window_is_dropped_and_not_data_acked() -> None:
    # RFC 8684 §3.8: "DSN out of window (during normal operation): drop the data; do not send Data ACKs"
    host, peer, connection = connected.server()
    far = builders.dss(data_ack=peer.data_ack, dsn=peer.data_seq + (1 << 26), ssn=2, length=3)
    host.receives(builders.data(b"far", far, seq=peer.seq, ack=peer.ack), source=peer.local, destination=peer.remote)
    assert connection.read(100) == b""
    assert host.counters["data_out_of_window"] == 1
    host.advance(host.now + 100_000)
    assert dss_of(peer.takes()[-1]).data_ack == peer.data_seq & MASK64


def test_the_shared_window_stops_all_subflows() -> None:  # RFC 8684 §3.3.5
    host, peer, connection = connected.server()
    second = peer.joins(address="10.0.1.2")
    second.takes()
    connection.write(bytes(500_000), host.now)
    total = 0
    for _ in range(40):
        total = peer.data_ack - connection.data_sender.una
        got = [*peer.takes(), *second.takes()]
        if not any(s.length for s in got):
            break
        # TCP acknowledges all of it, the data level nothing: the window's right edge stays
        for end in (peer, second):
            end.send_segment(
                builders.ack(builders.dss(data_ack=connection.data_sender.una), seq=end.seq, ack=end.ack, window=65535)
            )
    assert 0 < total <= 65535
    assert connection.data_sender.nxt - connection.data_sender.una <= 65535


def test_window_right_edge_never_moves_back() -> None:  # RFC 8684 §3.3.5
    host, peer, connection = connected.server()
    edge = connection.data_sender.window_edge
    host.receives(
        builders.ack(builders.dss(data_ack=peer.data_ack), seq=peer.seq, ack=peer.ack, window=10), source=peer.local,
        destination=peer.remote,
    )  # fmt: skip
    assert connection.data_sender.window_edge == edge


def test_advertised_window_counts_from_the_data_ack_and_shrinks_with_unread_data() -> None:  # RFC 8684 §3.3.4
    config = connected.QUIET.changed(tcp=TcpConfig(receive_buffer_bytes=10_000, receive_buffer_max_bytes=10_000))
    host, peer, connection = connected.server(config)
    second = peer.joins(address="10.0.1.2")
    second.takes()
    for _ in range(6):
        peer.sends(bytes(1000))
    host.advance(host.now + 100_000)
    assert peer.takes()[-1].window <= 4001
    second.acknowledges()
    second.sends(b"y")
    host.advance(host.now + 100_000)
    # the same window whatever the subflow
    assert second.takes()[-1].window <= 4000
    assert connection.read(10_000) == bytes(6000) + b"y"
    host.advance(host.now + 100_000)
    assert max(s.window for s in [*peer.takes(), *second.takes()]) >= 9000


def test_checksum_is_that_of_the_figure() -> None:  # RFC 8684 §3.3.1, Figure 10
    # data 0x0001 0x0203; DSN 0x0000000000000005, SSN 1, length 4: the sum of all words, complemented
    assert dss_checksum(5, 1, 4, (b"\x00\x01\x02\x03",)) == 0xFFFF - (0x0001 + 0x0203 + 5 + 1 + 4)
    assert dss_checksum(5, 1, 3, (b"\x00\x01", b"\x02")) == 0xFFFF - (0x0001 + 0x0200 + 5 + 1 + 3)


def test_data_with_a_right_checksum_is_delivered_once_complete() -> None:
    _, peer, connection = connected.server(checksum=True)
    payload = b"checked data"
    total = dss_checksum(peer.data_seq, 2, len(payload), (payload,))
    option = builders.dss(data_ack=peer.data_ack, dsn=peer.data_seq, ssn=2, length=len(payload), checksum=total)
    peer.send_segment(builders.data(payload[:5], option, seq=peer.seq, ack=peer.ack))
    assert connection.read(100) == b""
    peer.send_segment(builders.data(payload[5:], option, seq=peer.seq + 5, ack=peer.ack))
    assert connection.read(100) == payload


@pytest.mark.parametrize(("negotiated", "present"), [(True, False), (False, True)])
def test_checksum_where_none_was_agreed_and_the_reverse_reset_the_subflow(negotiated: bool, present: bool) -> None:
    # RFC 8684 §3.3: "the receiver MUST close the subflow with a RST, as it is not behaving as negotiated"
    host, peer, _ = connected.server(checksum=negotiated)
    option = builders.dss(
        data_ack=peer.data_ack, dsn=peer.data_seq, ssn=2, length=3, checksum=0x1234 if present else None
    )
    peer.send_segment(builders.data(b"abc", option, seq=peer.seq, ack=peer.ack))
    resets = [s for s in peer.takes() if s.flags & RST]
    assert [s.options.mptcp for s in resets] == [(MpTcprst(RST_MPTCP_SPECIFIC),)]
    assert host.counters["dss_checksum_presence"] == 1


def test_checksum_failure_with_several_subflows_resets_the_one_with_mp_fail() -> None:
    # RFC 8684 §3.7: "the affected subflow must be immediately closed with a RST that includes an MP_FAIL option"
    _, peer, connection = connected.server(checksum=True)
    second = peer.joins(address="10.0.1.2")
    second.takes()
    start = peer.data_seq
    option = builders.dss(data_ack=peer.data_ack, dsn=start, ssn=1, length=5, checksum=0xBEEF)
    second.send_segment(builders.data(b"wrong", option, seq=second.seq, ack=second.ack))
    (reset,) = [s for s in second.takes() if s.flags & RST]
    assert reset.options.mptcp == (MpFail(start & MASK64),)
    peer.sends(b"right")
    assert connection.read(100) == b"right"
    assert connection.is_multipath


def test_data_never_mapped_breaks_the_subflow_at_last() -> None:
    # RFC 8684 §3.3.1: "If a mapping for that subflow-level sequence space does not arrive within a receive window of
    # data, that subflow SHOULD be treated as broken, closed with a RST"
    _, peer, connection = connected.server()
    second = peer.joins(address="10.0.1.2")
    second.takes()
    second.acknowledges()
    for number in range(400):
        second.send_segment(
            builders.data(
                bytes(1000), builders.dss(data_ack=peer.data_ack), seq=second.seq + 1000 * number, ack=second.ack
            )
        )
        resets = [s for s in second.takes() if s.flags & RST]
        if resets:
            break
    assert [s.options.mptcp for s in resets] == [(MpTcprst(RST_MIDDLEBOX_INTERFERENCE),)]
    assert connection.is_multipath
    peer.sends(b"unharmed")
    assert connection.read(100) == b"unharmed"


def test_nagle_waits_for_the_data_level_and_no_delay_does_not() -> None:
    host, peer, connection = connected.server()
    connection.write(b"a", host.now)
    connection.write(b"b", host.now)
    assert b"".join(s.payload for s in peer.takes()) == b"ab"  # both were there when the first could go
    connection.write(b"c", host.now)
    assert b"".join(s.payload for s in peer.takes()) == b""
    connection.set_tcp_option("no_delay", True)
    assert b"".join(s.payload for s in peer.takes()) == b"c"


def test_a_host_talks_to_itself() -> None:
    host = ScriptedHost()
    listener = host.listen(80)
    client = host.connect(host.local.host, 80)
    server = listener.accept()
    assert server is not None
    client.write(b"request", host.now)
    host.poll()
    assert server.read(100) == b"request"
    server.write(bytes(100_000), host.now)
    host.poll()
    received = b""
    while piece := client.read(1 << 20):
        received += piece
        host.poll()
    assert len(received) == 100_000
    assert host.sends() == []  # nothing of it leaves the host
    nobody = host.connect(host.local.host, 81)
    assert isinstance(nobody.error, ConnectionRefusedError)


def test_a_view_of_memory_that_may_change_is_copied() -> None:
    host, peer, connection = connected.server()
    memory = bytearray(b"as it was")
    connection.write(memoryview(memory).toreadonly(), host.now)
    memory[:] = b"different"
    assert b"".join(s.payload for s in peer.takes()) == b"as it was"
