"""Paths over UDP in virtual time: how they begin, prove themselves, move, end; what hostile datagrams cannot do."""

import random

import pytest

from mptcp.core.units import MILLISECOND, SECOND
from mptcp.info import Endpoint
from mptcp.links import udp_frames as frames
from mptcp.links.udp_node import COOKIE_PERIOD_US
from mptcp.links.udp_path import MAX_PINGS
from mptcp.links.udp_paths import (
    HELLO_PATIENCE_US,
    KEEPALIVE_US,
    MAX_UNKNOWN_RATE,
    SILENCE_US,
    Paths,
)

from .udp_world import Frame, Two, World, data, tcp_packet


# --- beginning --------------------------------------------------------------------------------------------------------
def test_two_nodes_meet(two: Two) -> None:
    introduction = two.meet()
    assert introduction.address == two.server.address
    assert two.ours.where == two.world.where(2)
    assert two.theirs.where == two.world.where(1)
    assert two.ours.tag in two.theirs.tags
    assert two.theirs.tag in two.ours.tags
    assert two.ours.peer.key == two.theirs.peer.key
    assert two.world.kinds()[:4] == [frames.HELLO, frames.COOKIE, frames.HELLO, frames.WELCOME]
    assert not two.client_node.counters
    assert not two.server_node.counters


def test_nothing_is_remembered_for_a_hello_without_a_cookie(two: Two) -> None:
    """A server keeps no state for, and sends no key to, whoever may have forged his address."""
    for seed in range(100):
        hello = frames.Hello(seed.to_bytes(8, "big"), bytes(7) + bytes((seed,)), 1, 5, frames.NO_COOKIE, frames.NO_KEY)
        two.world.deliver(two.world.where(9), two.world.where(2), hello.emit(b""))
    assert not two.server.by_address
    assert not two.server_node.peers
    answers = two.server.poll_frames()
    assert len(answers) == 100
    assert all(len(octets) < frames.HELLO_BYTES / 3 for _, octets, _ in answers)


def test_until_confirmed_nothing_longer_is_sent_than_came(two: Two) -> None:
    balance: dict[bytes, int] = {}

    def between(source: bytes, to: bytes, octets: bytes) -> Frame:
        # From the server's view: octets that came from an endpoint, less those sent there.
        if to == two.world.where(2):
            balance[source] = balance.get(source, 0) + len(octets)
        elif not two.server.by_address:
            balance[to] = balance.get(to, 0) - len(octets)
            assert balance[to] >= 0
        return source, to, octets

    two.world.between = between
    two.meet()
    assert two.server.by_address


def test_a_cookie_is_good_for_its_endpoint_and_for_a_while(two: Two) -> None:
    caught: list[Frame] = []

    def between(source: bytes, to: bytes, octets: bytes) -> Frame | None:
        if octets[1] & 15 == frames.HELLO and octets[frames.HEADER_BYTES + 22 :][:16] != frames.NO_COOKIE:
            caught.append((source, to, octets))
            return None
        return source, to, octets

    two.world.between = between
    two.meet()
    [(source, to, octets)] = caught
    # From elsewhere it is no proof: it is answered by another cookie.
    two.world.deliver(two.world.where(7), to, octets)
    # A long time later neither.
    two.world.now += 2 * COOKIE_PERIOD_US
    two.world.deliver(source, to, octets)
    assert not two.server.by_address
    assert [o[1] & 15 for _, o, _ in two.server.poll_frames()] == [frames.COOKIE] * 2
    two.world.now -= COOKIE_PERIOD_US
    two.world.deliver(source, to, octets)
    assert two.server.by_address


@pytest.mark.parametrize("seed", range(5))
def test_lost_frames_are_repeated(two: Two, seed: int) -> None:
    chance = random.Random(seed)
    two.world.between = lambda source, to, octets: None if chance.random() < 0.4 else (source, to, octets)
    introduction = two.meet()
    two.world.run(HELLO_PATIENCE_US)
    assert introduction.address == two.server.address
    assert two.server.by_address


def test_nobody_there(two: Two) -> None:
    introduction = two.client_node.introduce([two.world.where(99)])
    two.world.run(HELLO_PATIENCE_US - SECOND)
    assert not introduction.is_done
    two.world.run(2 * SECOND)
    assert introduction.error == "nobody answers there"
    assert two.client_node.counters == {"udp_hello_unanswered": 1}


def test_an_endpoint_of_another_family(two: Two) -> None:
    other = World(10 - two.world.family).where(2)
    introduction = two.client_node.introduce([other])
    assert "no link has an address of that family" in introduction.error


def test_a_node_that_calls_itself(two: Two) -> None:
    two.world.socket(two.client_node, 3)
    introduction = two.client_node.introduce([two.world.where(3)])
    two.world.settle()
    assert introduction.error == "that is this very stack"
    assert two.client_node.counters["udp_hello_self"] == 2


def test_every_socket_of_both_is_told_of(world: World) -> None:
    """A welcome names the other endpoints of its node; packets to them find their way by themselves."""
    client_node, server_node = world.node(1), world.node(2)
    client = world.socket(client_node, 1)
    world.socket(server_node, 2)
    second = world.socket(server_node, 3)
    client_node.introduce([world.where(2)])
    world.settle()
    packet = tcp_packet(client.address, second.address)
    client.want(packet, world.now)
    world.settle()
    assert client.poll_released() == [packet]
    assert client.by_address[second.address].where == world.where(3)
    assert not client.poll_unreachable()


def test_loopback_endpoints_are_not_told_to_others() -> None:
    world = World(4)
    client_node, server_node = world.node(1), world.node(2)
    world.socket(client_node, 1)
    world.socket(server_node, 2)
    Paths(server_node, Endpoint.parse("127.0.0.1", 4000), lambda where: 1440)
    Paths(server_node, Endpoint.parse("0.0.0.0", 4000), lambda where: 1440)
    client_node.introduce([world.where(2)])
    world.settle()
    [peer] = client_node.peers.values()
    assert peer.endpoints == {1: [world.endpoint(2)]}


# --- who may claim to be whom -----------------------------------------------------------------------------------------
def hello_with_cookie(two: Two, host: int, node: bytes, key: bytes, secret: bytes) -> bytes:
    """What an attacker at ``host`` sends who has fetched a cookie and claims to be ``node``."""
    hello = frames.Hello(b"attacker", node, 1, 66, frames.NO_COOKIE, key)
    hello.cookie = two.server_node.cookie(two.world.where(host), hello, two.world.now)
    return hello.emit(secret)


def test_a_stranger_cannot_take_the_place_of_a_node(two: Two) -> None:
    two.meet()
    victim = two.client_node.identity
    for key, secret in ((b"x" * 16, b"x" * 16), (frames.NO_KEY, b"x" * 16), (frames.NO_KEY, b"")):
        two.world.deliver(two.world.where(9), two.world.where(2), hello_with_cookie(two, 9, victim, key, secret))
    assert two.server_node.counters == {"udp_hello_unproven": 3}
    assert two.theirs.where == two.world.where(1)


def test_an_unknown_node_needs_a_key(two: Two) -> None:
    octets = hello_with_cookie(two, 9, b"stranger", frames.NO_KEY, b"x" * 16)
    two.world.deliver(two.world.where(9), two.world.where(2), octets)
    assert not two.server_node.peers
    assert two.server_node.counters == {"udp_hello_unproven": 1}


def test_an_impostor_gets_no_key(two: Two) -> None:
    """Whoever claims to be a node that we know is not told the key, and cannot prove that he has it."""
    two.meet()
    impostor = two.world.node(3)
    impostor.identity = two.server_node.identity
    two.world.socket(impostor, 9)
    two.world.sent.clear()
    introduction = two.client_node.introduce([two.world.where(9)])
    two.world.run(HELLO_PATIENCE_US + SECOND)
    assert not introduction.address
    key = two.ours.peer.key
    assert not [octets for _, to, octets in two.world.sent if to == two.world.where(9) and key in octets]
    assert two.ours.where == two.world.where(2)
    assert impostor.counters["udp_hello_unproven"] >= 1


def test_the_same_node_by_another_endpoint_is_recognised(world: World) -> None:
    """It proves that it has the key, although it was not sent there."""
    two = Two(world)
    two.meet()
    world.between = lambda source, to, octets: (  # host 8 is forwarded to host 2, by a NAT say
        (source, world.where(2), octets)
        if to == world.where(8)
        else (world.where(8), to, octets)
        if source == world.where(2)
        else (source, to, octets)
    )
    introduction = two.client_node.introduce([world.where(8)])
    world.settle()
    assert introduction.address == two.server.address
    assert two.ours.where == world.where(8)


def test_a_welcome_from_elsewhere_or_unproven_is_nothing(two: Two) -> None:
    caught: list[Frame] = []

    def between(source: bytes, to: bytes, octets: bytes) -> Frame | None:
        if octets[1] & 15 == frames.WELCOME:
            caught.append((source, to, octets))
            return None
        return source, to, octets

    two.world.between = between
    introduction = two.meet()
    source, to, octets = caught[0]
    two.world.deliver(two.world.where(9), to, octets)
    two.world.deliver(source, to, octets[:-1] + bytes((octets[-1] ^ 1,)))
    two.world.deliver(source, to, octets[:-1])
    assert not introduction.is_done
    assert two.client_node.counters["udp_unexpected_answer"] == 2
    assert two.client_node.counters["udp_welcome_unproven"] == 1
    two.world.deliver(source, to, octets)
    assert introduction.address == two.server.address


# --- moving -----------------------------------------------------------------------------------------------------------
def behind_nat(two: Two, port: int) -> None:
    """From now on the client's datagrams come from that port of host 5, and go back through it."""
    outside = two.world.where(5, port)

    def between(source: bytes, to: bytes, octets: bytes) -> Frame | None:
        if source == two.world.where(1):
            return outside, to, octets
        if to == outside:
            return source, two.world.where(1), octets
        return source, to, octets

    two.world.between = between


def test_a_nat_that_forgets(two: Two) -> None:
    """The path moves with the first frame from the new endpoint, once the client has proved that it is there."""
    behind_nat(two, 1000)
    two.meet()
    assert two.theirs.where == two.world.where(5, 1000)
    behind_nat(two, 2000)
    moved_from = two.theirs
    two.world.deliver(two.world.where(5, 2000), two.world.where(2), data(two.ours))
    two.world.settle()
    assert two.theirs is moved_from
    assert two.theirs.where == two.world.where(5, 2000)
    assert two.server_node.counters == {"udp_stray": 1, "udp_path_moved": 1}


def test_a_keepalive_alone_moves_the_path(two: Two) -> None:
    behind_nat(two, 1000)
    two.meet()
    behind_nat(two, 2000)
    two.world.run(KEEPALIVE_US + SECOND)
    assert two.theirs.where == two.world.where(5, 2000)


def test_who_knows_the_tag_but_not_the_key_moves_nothing(two: Two) -> None:
    two.meet()
    thief = two.world.where(9)
    two.world.deliver(thief, two.world.where(2), data(two.ours))
    [(to, ping, _)] = two.server.poll_frames()
    assert to == thief
    nonce = frames.parse_ping(memoryview(ping))
    assert nonce is not None
    pong = frames.emit_pong(two.ours.tag, nonce, len(ping), b"x" * 16, two.client.address)
    two.world.deliver(thief, two.world.where(2), pong)
    assert two.theirs.where == two.world.where(1)
    assert two.server_node.counters == {"udp_stray": 1, "udp_pong_unproven": 1}
    # Nor does a true answer that comes from elsewhere than the question went: frames may not reach him there.
    pong = frames.emit_pong(two.ours.tag, nonce, len(ping), two.ours.peer.key, two.client.address)
    two.world.deliver(two.world.where(8), two.world.where(2), pong)
    assert two.theirs.where == two.world.where(1)


def test_challenges_are_rare_and_not_longer_than_what_asks_for_them(two: Two) -> None:
    two.meet()
    thief = two.world.where(9)
    two.world.deliver(thief, two.world.where(2), two.ours.header)  # 8 octets
    assert not two.server.poll_frames()
    for _ in range(100):
        two.world.deliver(thief, two.world.where(2), data(two.ours))
    assert len(two.server.poll_frames()) == 1
    for _ in range(50):  # nor do those that nobody answers pile up
        two.world.now += 150 * MILLISECOND
        two.world.deliver(thief, two.world.where(2), data(two.ours))
    assert len(two.server.poll_frames()) <= MAX_PINGS
    assert len(two.theirs.pings or {}) <= MAX_PINGS


def test_our_own_move_is_announced(two: Two) -> None:
    two.meet()
    old = two.world.where(1)
    del two.world.sockets[old]
    two.world.sockets[two.world.where(6)] = two.client
    two.client.announce_move(two.world.now)
    two.world.settle()
    assert two.theirs.where == two.world.where(6)


# --- ending -----------------------------------------------------------------------------------------------------------
def test_keepalives_keep_both_ends(two: Two) -> None:
    two.meet()
    two.world.run(MILLISECOND)
    two.world.sent.clear()
    two.world.run(10 * KEEPALIVE_US)
    assert two.ours
    assert two.theirs
    pings = [source for source, _, octets in two.world.sent if octets[1] & 15 == frames.PING]
    # The initiator's business only: the other end is not the one behind a NAT.
    assert set(pings) == {two.world.where(1)}
    assert 9 <= len(pings) <= 11


def test_traffic_needs_no_keepalive(two: Two) -> None:
    two.meet()
    two.world.run(MILLISECOND)
    two.world.sent.clear()
    for _ in range(20):
        two.ours.sent_us = two.ours.heard_us = two.theirs.heard_us = two.world.now
        two.world.run(10 * SECOND)
    assert not two.world.sent


def test_silence_ends_a_path(two: Two) -> None:
    two.meet()
    two.world.between = lambda source, to, octets: None
    two.world.run(SILENCE_US + 30 * SECOND)
    assert not two.server.by_address
    assert not two.client.by_address
    assert two.server_node.counters["udp_path_silent"] == 1


def test_a_path_that_ended_begins_anew_when_it_is_needed(two: Two) -> None:
    two.meet()
    address = two.server.address
    two.world.between = lambda source, to, octets: None
    two.world.run(SILENCE_US + 30 * SECOND)
    two.world.between = lambda source, to, octets: (source, to, octets)
    packet = tcp_packet(two.client.address, address)
    two.client.want(packet, two.world.now)
    two.world.settle()
    assert two.client.poll_released() == [packet]
    assert two.theirs.where == two.world.where(1)


def test_a_peer_that_has_forgotten_says_so(two: Two) -> None:
    two.meet()
    two.server._drop(two.theirs)
    two.world.now += 2 * SECOND
    two.world.deliver(two.world.where(1), two.world.where(2), data(two.ours))
    two.world.settle()
    assert two.theirs.where == two.world.where(1)
    assert two.client_node.counters["udp_forgotten_by_peer"] == 1
    assert two.ours.tag in two.theirs.tags


def test_a_forged_unknown_does_nothing(two: Two) -> None:
    two.meet()
    two.world.now += 2 * SECOND
    two.world.deliver(two.world.where(2), two.world.where(1), frames.emit_unknown(two.ours.tag ^ 1))
    two.world.deliver(two.world.where(9), two.world.where(1), frames.emit_unknown(two.ours.tag))
    assert not two.client.poll_frames()
    assert two.client_node.counters == {"udp_unexpected_answer": 2}


def test_a_server_that_restarted_is_another_node(two: Two) -> None:
    """What was connected to the old one hears that it is unreachable, instead of waiting."""
    two.meet()
    old = two.server.address
    restarted = two.world.node(22)
    two.world.socket(restarted, 2)
    two.world.now += 2 * SECOND
    two.world.deliver(two.world.where(1), two.world.where(2), data(two.ours))
    two.world.settle()
    assert old not in two.client.by_address
    assert two.client_node.counters["udp_other_node"] == 1
    packet = tcp_packet(two.client.address, old)
    two.client.want(packet, two.world.now)
    two.world.settle()
    assert two.client.poll_unreachable() == [packet]


def test_answers_to_unknown_tags_are_rationed(two: Two) -> None:
    for _ in range(1000):
        two.world.deliver(two.world.where(9), two.world.where(2), frames.header(frames.DATA, 12345) + bytes(100))
    assert len(two.server.poll_frames()) == MAX_UNKNOWN_RATE
    two.world.deliver(two.world.where(9), two.world.where(2), frames.header(frames.PING, 12345))
    assert not two.server.poll_frames()
