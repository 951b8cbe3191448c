"""SYN cookies: nothing is kept of a SYN, and the connection is the same as if everything had been."""

from __future__ import annotations

import pytest

from mptcp.core.entropy import Entropy
from mptcp.core.multipath.config import ConnectionConfig
from mptcp.core.multipath.connection import Connection
from mptcp.core.multipath.listener import MAX_HALF_OPEN, Listener
from mptcp.core.tcp.config import TcpConfig
from mptcp.core.tcp.syn_cookies import MSS_TABLE, PERIOD_US, SynCookies
from mptcp.core.units import NEVER, SECOND
from mptcp.core.wire.mptcp_options import FLAG_CHECKSUM, FLAG_HMAC_SHA256, Dss, MpCapable
from mptcp.core.wire.segment import ACK, CWR, ECE, RST, SYN, Segment
from mptcp.info import Endpoint
from mptcp.testing import builders
from mptcp.testing.peer import PEER_KEY, ScriptedPeer
from mptcp.testing.scripted import ScriptedHost

LOCAL, REMOTE = Endpoint.parse("10.0.0.1", 80), Endpoint.parse("10.0.0.2", 4000)
CLIENT = Endpoint.parse("10.0.7.7", 777)


def crowded(
    config: ConnectionConfig | None = None, backlog: int = 128, at_us: int = 0
) -> tuple[ScriptedHost, Listener]:
    """A host whose listener has as many half-open connections as it may have."""
    host = ScriptedHost()
    host.advance(at_us)
    listener = host.listen(80, options=config, backlog=backlog)
    local = host.local
    for number in range(max(MAX_HALF_OPEN, backlog)):
        host.receives(builders.syn(), source=Endpoint.parse("10.0.9.9", 1024 + number), destination=local)
    host.sends()
    host.local = local
    assert listener.is_crowded
    return host, listener


def accepted(listener: Listener) -> Connection:
    connection = listener.accept()
    assert connection is not None
    return connection


def handshake(host: ScriptedHost, syn: Segment, **ack: object) -> Segment:
    """The SYN/ACK to ``syn``; it is acknowledged with a timestamp that echoes its own, if it has one."""
    host.receives(syn, source=CLIENT, destination=LOCAL)
    [answer] = host.sends()
    assert answer.flags & (SYN | ACK) == SYN | ACK
    value = answer.options.timestamp_value
    host.receives(
        builders.ack(
            seq=syn.seq + 1, ack=answer.seq + 1, timestamp=None if value is None else (5000, value), **ack  # type: ignore[arg-type]
        ),
        source=CLIENT, destination=LOCAL, after_us=30_000,
    )  # fmt: skip
    return answer


# --- the octets -------------------------------------------------------------------------------------------------------
def test_a_cookie_comes_back_and_says_what_the_syn_said() -> None:
    cookies = SynCookies(Entropy(1))
    syn = builders.syn(
        MpCapable(), mss=1400, window_scale=7, sack_permitted=True, timestamp=(99, 0), flags=SYN | ECE | CWR
    )
    now = 1000 * SECOND
    made = cookies.make(LOCAL, REMOTE, syn, True, now)
    value = made.clock_offset + now // 1000
    ack = builders.ack(
        MpCapable(1, FLAG_HMAC_SHA256, PEER_KEY, made.key), seq=syn.seq + 1, ack=made.isn + 1, timestamp=(120, value)
    )
    found = cookies.check(LOCAL, REMOTE, ack, True, now + SECOND)
    assert found is not None
    assert (found.isn, found.key) == (made.isn, made.key)
    options = found.syn.options
    assert (options.mss, options.window_scale, options.sack_permitted) == (1380, 7, True)
    assert options.timestamp_value == 120
    assert found.syn.flags == SYN | ECE | CWR
    assert found.syn.seq == syn.seq
    assert options.mptcp == (MpCapable(),)  # as it was: without a key
    # The clock of the connection goes on from the timestamp that was sent.
    assert 0 <= (found.clock_offset + now // 1000 - value) & 0xFFFFFFFF < 128


@pytest.mark.parametrize("mss", [None, 88, 536, 1219, 1460, 9000, 65_495])
def test_the_mss_is_never_rounded_up(mss: int | None) -> None:
    made = SynCookies(Entropy(1)).make(LOCAL, REMOTE, builders.syn(mss=mss), True, 0)
    remembered = made.syn.options.mss
    assert remembered in MSS_TABLE
    assert remembered <= max(mss or 536, 536)


@pytest.mark.parametrize("changed", ["seq", "ack", "remote", "local", "secret", "late"])
def test_anything_else_is_no_cookie(changed: str) -> None:
    cookies = SynCookies(Entropy(1))
    made = cookies.make(LOCAL, REMOTE, builders.syn(), True, 0)
    seq, ack, local, remote, now = builders.PEER_ISN + 1, made.isn + 1, LOCAL, REMOTE, PERIOD_US
    assert cookies.check(local, remote, builders.ack(seq=seq, ack=ack), True, now) is not None
    match changed:
        case "seq":
            seq += 1
        case "ack":
            ack += 1
        case "remote":
            remote = Endpoint(remote.address, remote.port + 1)
        case "local":
            local = Endpoint.parse("10.0.0.3", 80)
        case "secret":
            cookies = SynCookies(Entropy(2))
        case "late":
            now = 2 * PERIOD_US
    assert cookies.check(local, remote, builders.ack(seq=seq, ack=ack), True, now) is None


def test_guesses_are_rarely_right() -> None:
    cookies, chance = SynCookies(Entropy(1)), Entropy(7)
    hits = sum(
        cookies.check(LOCAL, REMOTE, builders.ack(seq=1, ack=chance.bits(32)), True, 0) is not None
        for _ in range(20_000)
    )
    assert hits <= 1  # expected: 20,000 / 2**28
    early = sum(cookies.is_early(LOCAL, REMOTE, builders.ack(seq=1, ack=chance.bits(32)), 0) for _ in range(20_000))
    assert early <= 10  # expected: 20,000 / 2**17


# --- connections ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("checksum", [False, True])
def test_an_mptcp_connection_begins_with_nothing_kept(checksum: bool) -> None:
    host, listener = crowded()
    before = len(host.host.connections)
    host.receives(builders.syn(MpCapable()), source=REMOTE, destination=LOCAL)
    host.sends()
    assert len(host.host.connections) == before
    assert not host.host.is_token_taken(0)
    peer = ScriptedPeer.connects(host, 80, local=CLIENT, checksum=checksum)
    connection = accepted(listener)
    assert connection.is_multipath
    assert connection.local_key == peer.host_key
    assert connection.checksum is checksum
    peer.sends(b"hello")
    assert connection.read(10) == b"hello"
    connection.write(b"world", host.now)
    peer.takes()
    assert peer.connection.data_ack - connection.first_dsn == 5
    assert host.counters["syn_cookie_accepted"] == 1
    # Joins find it by its token as any other.
    peer.sends(b"x")
    second = peer.joins(address="10.0.7.8")
    second.sends(b"over both")
    assert connection.read(20) == b"xover both"


def test_options_survive_in_the_timestamp() -> None:
    host, listener = crowded(ConnectionConfig(tcp=TcpConfig(ecn=True)))
    host.advance(10 * SECOND)
    host.sends()
    syn = builders.syn(mss=1460, window_scale=5, sack_permitted=True, timestamp=(4990, 0), flags=SYN | ECE | CWR)
    answer = handshake(host, syn)
    assert answer.flags & ECE
    assert answer.options.timestamp_echo == 4990
    assert answer.options.window_scale is not None
    tcp = next(iter(accepted(listener).subflows_by_id.values())).tcp
    assert (tcp.send_scale, tcp.window_scaling, tcp.receiver.sack_enabled) == (5, True, True)
    assert tcp.ecn is not None
    assert tcp.timestamps.enabled
    assert not (tcp.timestamps.value(host.now) - (answer.options.timestamp_value or 0)) & 0x80000000
    assert not tcp.sender.rtt.srtt_us  # when the SYN/ACK has left nobody knows


@pytest.mark.parametrize("acknowledged", [0, 1])
def test_a_syn_that_comes_again_in_the_next_period(acknowledged: int) -> None:
    """There is room again by then, and the two answers have different numbers: either opens the connection."""
    host, listener = crowded(at_us=PERIOD_US - SECOND)
    answers = []
    for _ in range(2):
        host.receives(builders.syn(), source=CLIENT, destination=LOCAL)
        answers.append(next(sent.segment for sent in host.sends_to() if sent.destination == CLIENT))
        listener.half_open.clear()
        host.advance(host.now + 2 * SECOND)
        host.sends()
    assert answers[0].seq != answers[1].seq
    ack = builders.ack(seq=builders.PEER_ISN + 1, ack=answers[acknowledged].seq + 1)
    host.receives(ack, source=CLIENT, destination=LOCAL)
    assert not [segment for segment in host.sends() if segment.flags & RST]
    assert accepted(listener).remote == CLIENT
    # A SYN of the period's second half is not one that comes again: it is kept.
    host.advance(PERIOD_US + PERIOD_US // 2)
    host.sends()
    host.receives(builders.syn(seq=7), source=REMOTE, destination=LOCAL)
    assert len(listener.half_open) == 1


def test_without_timestamps_nothing_is_promised_that_could_not_be_kept() -> None:
    host, listener = crowded()
    answer = handshake(host, builders.syn(mss=1460, window_scale=5, sack_permitted=True))
    assert answer.options.window_scale is None
    assert not answer.options.sack_permitted
    connection = accepted(listener)
    assert not connection.is_multipath
    connection.write(b"x" * 5000, host.now)
    assert max(segment.length for segment in host.sends()) == 1460


def test_a_client_that_falls_back_in_the_third_packet() -> None:
    host, listener = crowded()
    host.receives(builders.syn(MpCapable()), source=CLIENT, destination=LOCAL)
    [answer] = host.sends()
    assert isinstance(answer.options.mptcp[0], MpCapable)
    host.receives(builders.ack(seq=builders.PEER_ISN + 1, ack=answer.seq + 1), source=CLIENT, destination=LOCAL)
    assert not accepted(listener).is_multipath


def test_data_with_the_keys_opens_it_when_the_third_packet_is_lost() -> None:
    host, listener = crowded()
    host.receives(builders.syn(MpCapable()), source=CLIENT, destination=LOCAL)
    [answer] = host.sends()
    capable = answer.options.mptcp[0]
    assert isinstance(capable, MpCapable)
    late = builders.data(
        b"second", Dss(data_ack=1, data_ack_wide=True, dsn=7, dsn_wide=True, ssn=6, length=6), seq=builders.PEER_ISN + 6,
        ack=answer.seq + 1,
    )  # fmt: skip
    host.receives(late, source=CLIENT, destination=LOCAL)
    assert host.sends() == []  # its number is not that of a third packet, but it follows one: no reset
    assert host.counters["syn_cookie_early"] == 1
    early = builders.data(
        b"x", Dss(data_ack=1, data_ack_wide=True, dsn=7, dsn_wide=True, ssn=1, length=1), seq=builders.PEER_ISN + 1,
        ack=answer.seq + 1,
    )  # fmt: skip
    host.receives(early, source=CLIENT, destination=LOCAL)
    assert host.sends() == []  # these are, but the key is missing: it comes again
    first = builders.data(
        b"first", MpCapable(1, FLAG_HMAC_SHA256, PEER_KEY, capable.sender_key, 5), seq=builders.PEER_ISN + 1,
        ack=answer.seq + 1,
    )  # fmt: skip
    host.receives(first, source=CLIENT, destination=LOCAL)
    connection = accepted(listener)
    assert connection.is_multipath
    assert connection.read(10) == b"first"


def test_checksums_that_the_client_asks_for_are_asked_for_in_its_third_packet_too() -> None:
    host, listener = crowded()
    flags = FLAG_HMAC_SHA256 | FLAG_CHECKSUM
    host.receives(builders.syn(MpCapable(flags=flags)), source=CLIENT, destination=LOCAL)
    [answer] = host.sends()
    capable = answer.options.mptcp[0]
    assert isinstance(capable, MpCapable)
    assert capable.flags & FLAG_CHECKSUM
    third = MpCapable(1, flags, PEER_KEY, capable.sender_key)
    host.receives(builders.ack(third, seq=builders.PEER_ISN + 1, ack=answer.seq + 1), source=CLIENT, destination=LOCAL)
    assert accepted(listener).checksum


def test_a_full_queue_drops_the_acknowledgement_and_takes_the_next_one() -> None:
    host, listener = crowded(backlog=1)
    thirds = []
    for source in (CLIENT, REMOTE):
        host.receives(builders.syn(), source=source, destination=LOCAL)
        [answer] = host.sends()
        thirds.append(builders.ack(seq=builders.PEER_ISN + 1, ack=answer.seq + 1))
    host.receives(thirds[0], source=CLIENT, destination=LOCAL)
    assert listener.is_full
    host.receives(thirds[1], source=REMOTE, destination=LOCAL)
    host.receives(builders.syn(), source=REMOTE, destination=LOCAL)
    assert host.sends() == []  # neither it nor a further SYN
    assert listener.overflows == 2
    assert accepted(listener).remote == CLIENT
    host.receives(thirds[1], source=REMOTE, destination=LOCAL)
    assert accepted(listener).remote == REMOTE


@pytest.mark.parametrize("timestamp", [None, (7, 0)])
def test_a_syn_that_comes_again_when_there_is_room_gets_the_same_answer(timestamp: tuple[int, int] | None) -> None:
    host, listener = crowded()
    syn = builders.syn(MpCapable(), window_scale=7, timestamp=timestamp)
    host.receives(syn, source=CLIENT, destination=LOCAL)
    [first] = host.sends()
    listener.half_open.popitem()
    host.receives(syn, source=CLIENT, destination=LOCAL)
    [again] = host.sends()
    assert (again.seq, again.options.mptcp, again.options.window_scale) == (
        first.seq, first.options.mptcp, first.options.window_scale,
    )  # fmt: skip
    capable = first.options.mptcp[0]
    assert isinstance(capable, MpCapable)
    third = MpCapable(1, FLAG_HMAC_SHA256, PEER_KEY, capable.sender_key)
    echo = None if timestamp is None else (8, first.options.timestamp_value or 0)
    host.receives(
        builders.ack(third, seq=builders.PEER_ISN + 1, ack=first.seq + 1, timestamp=echo),
        source=CLIENT,
        destination=LOCAL,
    )
    assert accepted(listener).is_multipath
    assert not host.counters.get("syn_cookie_accepted")


def test_an_ordinary_acknowledgement_is_reset_as_ever() -> None:
    host, _ = crowded()
    host.receives(builders.syn(), source=CLIENT, destination=LOCAL)
    [answer] = host.sends()
    host.receives(builders.ack(seq=builders.PEER_ISN + 1, ack=answer.seq ^ 0xF000), source=CLIENT, destination=LOCAL)
    [reset] = host.sends()
    assert reset.flags & RST
    quiet = ScriptedHost()
    quiet.listen(80)
    quiet.receives(builders.ack(seq=1, ack=answer.seq + 1), source=CLIENT, destination=LOCAL)
    assert quiet.sends()[0].flags & RST


def test_a_key_whose_token_is_taken_means_no_mptcp() -> None:
    host, listener = crowded()
    host.host.is_token_taken = lambda token: True  # type: ignore[method-assign]
    host.receives(builders.syn(MpCapable()), source=CLIENT, destination=LOCAL)
    [answer] = host.sends()
    assert answer.options.mptcp == ()
    assert listener.cookies == 1


def test_a_cookie_is_void_after_a_while() -> None:
    host, listener = crowded()
    host.receives(builders.syn(), source=CLIENT, destination=LOCAL)
    [answer] = host.sends()
    late = builders.ack(seq=builders.PEER_ISN + 1, ack=answer.seq + 1)
    host.receives(late, source=CLIENT, destination=LOCAL, after_us=2 * PERIOD_US)
    assert any(segment.flags & RST for segment in host.sends())
    assert listener.accept() is None
    assert host.host.poll_deadline() <= NEVER
