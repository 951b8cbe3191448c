"""The extension point: what TCP asks of an extension, in which order, and what happens without one."""

from __future__ import annotations

import pytest

from mptcp.core.tcp.config import TcpConfig
from mptcp.core.tcp.connection import Connection
from mptcp.core.tcp.extension import Extension, Verdict
from mptcp.core.tcp.record import Record
from mptcp.core.tcp.states import State
from mptcp.core.units import MILLISECOND, SECOND
from mptcp.core.wire.mptcp_options import Dss, MpCapable, MpPrio, MptcpOption, MpTcprst
from mptcp.core.wire.segment import ACK, FIN, RST, SYN, Options, Segment
from mptcp.errors import ConnectionAborted, ConnectionWasReset
from mptcp.testing.tcp_pair import ScriptedPeer, TcpPair, hostile_wire


class Recorder(Extension):
    """Notes every call; data goes to ``received``."""

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []
        self.received = bytearray()
        self.ssns: list[int] = []
        self.window = 100_000
        self.verdict = Verdict.ACCEPT
        self.syn_verdict = Verdict.ACCEPT
        self.waiting = False
        self.records: list[Record] = []
        self.rooms: list[int] = []

    def syn_options(self) -> tuple[MptcpOption, ...]:
        return (MpCapable(),)

    def ack_options(self, room: int) -> tuple[MptcpOption, ...]:
        self.rooms.append(room)
        return (Dss(data_ack=7),)

    def data_options(self, record: Record, room: int) -> tuple[MptcpOption, ...]:
        self.records.append(record)
        return (Dss(data_ack=7, dsn=5, ssn=1, length=record.length),)

    def reset_options(self) -> tuple[MptcpOption, ...]:
        return (MpTcprst(3),)

    @property
    def data_overhead_bytes(self) -> int:
        return 26

    @property
    def wants_to_send(self) -> bool:
        return self.waiting

    def receive_window(self) -> int:
        return self.window

    def handle_syn_options(self, segment: Segment, now: int) -> Verdict:
        self.calls.append(("syn",))
        return self.syn_verdict

    def handle_options(self, segment: Segment, now: int) -> Verdict:
        self.calls.append(("options",))
        return self.verdict

    def handle_data(self, ssn: int, payload: memoryview, now: int) -> None:
        assert isinstance(payload, memoryview)
        self.calls.append(("data", ssn))
        self.ssns.append(ssn)
        self.received += payload

    def handle_fin(self, now: int) -> None:
        self.calls.append(("fin",))

    def handle_established(self, now: int) -> None:
        self.calls.append(("established",))

    def handle_acked(self, una_ssn: int, now: int) -> None:
        self.calls.append(("acked", una_ssn))

    def handle_timeout(self, now: int) -> None:
        self.calls.append(("timeout",))

    def handle_syn_timeout(self, count: int, now: int) -> None:
        self.calls.append(("syn timeout", count))

    def handle_reset(self, segment: Segment, now: int) -> None:
        self.calls.append(("reset", segment.options.mptcp))

    def handle_closed(self, error: Exception | None, now: int) -> None:
        self.calls.append(("closed", type(error)))


def extended() -> tuple[ScriptedPeer, Recorder]:
    recorder = Recorder()
    peer = ScriptedPeer(extension=recorder).establish()
    return peer, recorder


def test_options_travel_on_every_kind_of_segment() -> None:
    recorder = Recorder()
    peer = ScriptedPeer(extension=recorder, timestamps=True)
    peer.tcp.open(peer.now)
    (syn,) = peer.sent()
    assert syn.options.mptcp == (MpCapable(),)
    (ack,) = peer.gives(SYN | ACK, seq=0, ack=1, options=peer.syn_options())
    assert ack.options.mptcp == (Dss(data_ack=7),)
    assert recorder.rooms == [28]
    peer.tcp.send_mapped([b"abcde"], 5, "mapping")
    (data,) = peer.sent()
    assert data.options.mptcp == (Dss(data_ack=7, dsn=5, ssn=1, length=5),)
    assert recorder.records[0].mapping == "mapping"
    peer.tcp.abort(peer.now)
    (reset,) = peer.sent()
    assert reset.options.mptcp == (MpTcprst(3),)
    assert recorder.calls[-1] == ("closed", ConnectionAborted)


def test_order_of_calls_for_the_third_ack_with_data_and_fin() -> None:
    recorder = Recorder()
    peer = ScriptedPeer(extension=recorder)
    peer.tcp.accept_syn(peer.segment(SYN, seq=0, options=peer.syn_options()), peer.now)
    peer.sent()
    peer.gives(ACK | FIN, seq=1, ack=1, data=b"abc")
    assert recorder.calls == [("syn",), ("options",), ("established",), ("data", 1), ("fin",)]
    assert bytes(recorder.received) == b"abc"


def test_acknowledgement_comes_before_data() -> None:
    peer, recorder = extended()
    peer.tcp.send_mapped([b"question"], 8, None)
    peer.sent()
    recorder.calls.clear()
    peer.gives(ACK, seq=1, ack=9, data=b"answer")
    assert recorder.calls == [("options",), ("acked", 9), ("data", 1)]


def test_drop_is_as_if_it_had_never_arrived() -> None:
    peer, recorder = extended()
    peer.tcp.send_mapped([b"question"], 8, None)
    peer.sent()
    recorder.verdict = Verdict.DROP
    assert peer.gives(ACK, seq=1, ack=9, data=b"answer") == []
    assert recorder.received == b""
    assert peer.tcp.sender.una < peer.tcp.sender.nxt
    recorder.verdict = Verdict.ACCEPT
    peer.gives(ACK, seq=1, ack=9, data=b"answer")
    assert bytes(recorder.received) == b"answer"


@pytest.mark.parametrize("in_order", [True, False])
def test_reset_by_the_extension(in_order: bool) -> None:
    peer, recorder = extended()
    recorder.verdict = Verdict.RESET
    (reset,) = peer.gives(ACK, seq=1 if in_order else 10, data=b"bad")
    assert reset.flags & RST
    assert reset.options.mptcp == (MpTcprst(3),)
    assert peer.tcp.is_closed
    assert recorder.calls[-1] == ("closed", ConnectionAborted)


def test_syn_ack_refused_by_the_extension() -> None:
    recorder = Recorder()
    peer = ScriptedPeer(extension=recorder)
    peer.tcp.open(peer.now)
    peer.sent()
    recorder.syn_verdict = Verdict.DROP
    assert peer.gives(SYN | ACK, seq=0, ack=1, options=peer.syn_options()) == []
    assert peer.tcp.state is State.SYN_SENT
    recorder.syn_verdict = Verdict.RESET
    (reset,) = peer.gives(SYN | ACK, seq=0, ack=1, options=peer.syn_options())
    assert reset.flags == RST
    assert peer.relative(reset)[0] == 1
    assert reset.options.mptcp == (MpTcprst(3),)
    assert peer.tcp.is_closed


def test_syn_refused_by_the_extension() -> None:
    recorder = Recorder()
    recorder.syn_verdict = Verdict.RESET
    peer = ScriptedPeer(extension=recorder)
    peer.tcp.accept_syn(peer.segment(SYN, seq=0, options=peer.syn_options()), peer.now)
    (reset,) = peer.sent()
    assert reset.flags == RST | ACK
    assert peer.relative(reset)[1] == 1
    assert peer.tcp.is_closed


def test_reset_from_the_peer_is_shown_with_its_options() -> None:
    peer, recorder = extended()
    peer.gives(RST, seq=1, options=Options(mptcp=(MpTcprst(2),)))
    assert recorder.calls[-2:] == [("reset", (MpTcprst(2),)), ("closed", ConnectionWasReset)]


def test_syn_timeouts_are_told_before_the_syn_is_made_again() -> None:
    recorder = Recorder()
    peer = ScriptedPeer(extension=recorder)
    peer.tcp.open(peer.now)
    assert len(peer.wait(4 * SECOND)) == 3
    assert recorder.calls == [("syn timeout", 1), ("syn timeout", 2)]


def test_data_timeouts_are_told() -> None:
    peer, recorder = extended()
    peer.tcp.send_mapped([b"lost"], 4, None)
    peer.wait(2 * SECOND)
    assert ("timeout",) in recorder.calls


def test_requested_acknowledgements_are_pure_and_counted() -> None:
    peer, _ = extended()
    peer.tcp.send_mapped([b"data"], 4, None)
    peer.tcp.send_ack()
    peer.tcp.send_ack(2)
    lengths = [s.length for s in peer.sent()]
    assert lengths == [0, 0, 0, 4]


def test_window_is_the_extensions() -> None:  # RFC 8684 §3.3.4
    recorder = Recorder()
    peer = ScriptedPeer(extension=recorder, window_scale=7).establish()
    (first,) = peer.gives(ACK, seq=1, data=b"x" * 2000)
    assert first.window << 7 == 100_000 >> 7 << 7
    recorder.window = 1_000_000
    (wider,) = peer.gives(ACK, seq=2001, data=b"x" * 2000)
    assert wider.window << 7 == 1_000_000 >> 7 << 7
    edge = peer.tcp.receiver.window.edge
    recorder.window = 10_000  # the window is shared: other subflows may have filled it. What was promised is accepted
    (narrower,) = peer.gives(ACK, seq=4001, data=b"x" * 2000)
    assert narrower.window << 7 == 10_000 >> 7 << 7
    assert peer.tcp.receiver.window.edge == edge
    peer.gives(ACK, seq=6001, data=b"y" * 50_000)
    assert len(recorder.received) == 56_000


def test_data_within_the_shared_window_is_taken_although_not_announced_here() -> None:  # RFC 8684 §3.3.4
    peer, recorder = extended()
    recorder.window = 500_000
    beyond = peer.tcp.receiver.window.edge - peer.tcp.irs
    peer.gives(ACK, seq=1, data=b"x" * (beyond - 1))
    peer.gives(ACK, seq=beyond, data=b"y" * 1000)
    assert len(recorder.received) == beyond - 1 + 1000


def test_segments_leave_room_for_the_options() -> None:
    recorder = Recorder()
    peer = ScriptedPeer(extension=recorder, timestamps=True).establish()
    assert peer.tcp.sender.mss == 1460 - 12 - 28
    peer.tcp.extension = None
    assert peer.tcp.sender.mss == 1460 - 12


def test_without_its_extension_it_is_plain_tcp() -> None:
    peer, recorder = extended()
    peer.gives(ACK, seq=1, data=b"for the extension")
    peer.tcp.extension = None
    (ack,) = peer.gives(ACK, seq=18, data=b"for the application")
    assert ack.options == Options()
    assert peer.tcp.read(100) == b"for the application"
    assert bytes(recorder.received) == b"for the extension"
    peer.tcp.write(b"plain")
    (segment,) = peer.sent()
    assert segment.payload == b"plain"
    assert segment.options == Options()


class Leaver(Recorder):
    """Gives up its connection in the middle of the data."""

    tcp: Connection | None = None

    def handle_data(self, ssn: int, payload: memoryview, now: int) -> None:
        super().handle_data(ssn, payload, now)
        if len(self.received) >= 4 and self.tcp is not None:
            self.tcp.extension = None


def test_extension_may_leave_while_data_is_delivered() -> None:
    leaver = Leaver()
    peer = ScriptedPeer(extension=leaver).establish()
    leaver.tcp = peer.tcp
    for start in (9, 5, 1):
        peer.gives(ACK, seq=start, data=b"abcd")
    assert bytes(leaver.received) == b"abcd"
    assert peer.tcp.read(100) == b"abcdabcd"


def test_dss_alone_still_counts_as_duplicate() -> None:  # RFC 8684 §3.4.1
    for options, retransmits in (
        (Options(mptcp=(Dss(data_ack=1),)), True),
        (Options(mptcp=(Dss(data_ack=1), MpPrio(True))), False),
    ):
        peer = ScriptedPeer(extension=Recorder(), sack=False).establish()
        for _ in range(5):
            peer.tcp.send_mapped([b"x" * 1000], 1000, None)
        peer.sent()
        peer.now += 10 * MILLISECOND
        sent = []
        for _ in range(3):
            sent += peer.gives(ACK, seq=1, ack=1, options=options)
        assert any(peer.relative(s)[0] == 1 for s in sent) == retransmits


def test_persist_timer_runs_for_what_waits_above() -> None:  # RFC 9293 §3.8.6.1
    peer, recorder = extended()
    peer.gives(ACK, seq=1, ack=1, window=0)
    recorder.waiting = True
    probes = peer.wait(5 * SECOND)
    assert probes
    assert all(peer.relative(s) == (0, 1) and s.length == 0 for s in probes)


def test_closed_is_told_once_at_time_wait() -> None:
    peer, recorder = extended()
    peer.tcp.close(peer.now)
    peer.sent()
    peer.gives(ACK | FIN, seq=1, ack=2)
    assert peer.tcp.state is State.TIME_WAIT
    peer.wait(100 * SECOND)
    assert peer.tcp.is_closed
    assert [c for c in recorder.calls if c[0] == "closed"] == [("closed", type(None))]
    assert recorder.calls.index(("fin",)) < recorder.calls.index(("closed", type(None)))


def test_mapped_data_over_a_hostile_wire() -> None:
    sender, receiver = Recorder(), Recorder()
    receiver.window = 1 << 20
    pair = TcpPair(
        TcpConfig(), wire=hostile_wire(0.1, 0.3, 0.1), seed=9, client_extension=sender, server_extension=receiver
    ).connect()
    data = bytes(range(256)) * 200
    offset = 0
    while len(receiver.received) < len(data):
        room = min(pair.client.sendable_bytes(pair.now), len(data) - offset, 5000)
        if room > 0:
            pair.client.send_mapped([data[offset : offset + room]], room, offset)
            offset += room
            pair.flush()
        else:
            assert pair.step()
    assert bytes(receiver.received) == data
    assert receiver.ssns[0] == 1
    assert receiver.ssns == sorted(set(receiver.ssns))
