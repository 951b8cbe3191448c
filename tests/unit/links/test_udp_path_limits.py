"""Paths over UDP: what has a limit, what hostile datagrams cannot do."""

from hypothesis import given
from hypothesis import strategies as st

from mptcp.core.units import SECOND
from mptcp.info import Endpoint
from mptcp.links import udp_frames as frames
from mptcp.links.udp_node import PEER_UNPROVEN_US
from mptcp.links.udp_paths import (
    HELLO_PATIENCE_US,
    MAX_GREETINGS,
    MAX_WAITING_PACKETS,
)

from .udp_world import Frame, Two, World, tcp_packet


def test_packets_wait_for_a_path_but_not_many(two: Two) -> None:
    two.meet()
    two.client._drop(two.ours)
    packets = [tcp_packet(two.client.address, two.server.address) for _ in range(MAX_WAITING_PACKETS + 3)]
    for packet in packets:
        two.client.want(packet, two.world.now)
    two.world.settle()
    assert two.client.poll_released() == packets[:MAX_WAITING_PACKETS]
    assert two.client_node.counters["udp_waiting_overflow"] == 3


def test_packets_to_nowhere_are_unreachable(two: Two) -> None:
    two.meet()
    two.client._drop(two.ours)
    strangers = [
        tcp_packet(two.client.address, frames.virtual_address(b"stranger", 1)),
        tcp_packet(two.client.address, frames.virtual_address(two.server_node.identity, 7)),
        tcp_packet(two.client.address, Endpoint.parse("2001:db8::1").address),
    ]
    for packet in strangers:
        two.client.want(packet, two.world.now)
    assert two.client.poll_unreachable() == strangers
    two.world.between = lambda source, to, octets: None
    packet = tcp_packet(two.client.address, two.server.address)
    two.client.want(packet, two.world.now)
    two.world.run(HELLO_PATIENCE_US + SECOND)
    assert two.client.poll_unreachable() == [packet]


def test_an_endpoint_that_leads_to_another_socket(world: World) -> None:
    """The peer is wrong about where its second socket is: what waits for that one does not wait for ever."""
    two = Two(world)
    two.meet()
    two.ours.peer.learn(7, world.endpoint(2))
    packet = tcp_packet(two.client.address, frames.virtual_address(two.server_node.identity, 7))
    two.client.want(packet, world.now)
    world.settle()
    assert two.client.poll_unreachable() == [packet]
    assert two.ours.where == world.where(2)


def test_a_responder_that_likes_no_cookie_does_not_keep_us_talking(two: Two) -> None:
    """A NAT with a new port for every datagram, say."""
    ports = iter(range(10_000, 60_000))

    def between(source: bytes, to: bytes, octets: bytes) -> Frame | None:
        if to == two.world.where(2):
            return two.world.where(5, next(ports)), to, octets
        return (source, two.world.where(1), octets) if to != two.world.where(1) else (source, to, octets)

    two.world.between = between
    introduction = two.meet()
    two.world.run(HELLO_PATIENCE_US + SECOND)
    assert introduction.error
    assert two.world.kinds().count(frames.HELLO) < 20


@given(st.integers(0, 15), st.booleans(), st.binary(max_size=120), st.integers(0, 1))
def test_hostile_frames_never_raise(kind: int, tagged: bool, body: bytes, host: int) -> None:
    world = World(4)
    two = Two(world)
    two.meet()
    frame = frames.header(kind, two.ours.tag if tagged else 99) + body
    for octets in (frame, frame.ljust(frames.HELLO_BYTES, body[:1] or b"\0")):
        world.deliver(world.where(1 if host else 9), world.where(2), octets)
    world.settle()
    assert set(two.server.by_tag.values()) == set(two.server.by_address.values()) == {two.theirs}
    assert two.theirs.where == world.where(1)


def test_hellos_that_wait_are_limited(two: Two) -> None:
    for host in range(MAX_GREETINGS + 5):
        two.client.greet(two.world.where(100, 1000 + host), two.world.now)
    assert two.client_node.counters == {"udp_greetings_full": 5}
    introduction = two.client_node.introduce([two.world.where(2)])
    assert introduction.error


def test_paths_are_limited_and_idle_ones_give_way(world: World) -> None:
    server_node = world.node(2)
    server = world.socket(server_node, 2, max_paths=2)
    clients = [world.socket(world.node(10 + i), 20 + i) for i in range(4)]
    for client in clients[:3]:
        client.node.introduce([world.where(2)])
        world.settle()
    assert set(server.by_address) == {clients[0].address, clients[1].address}
    assert server_node.counters == {"udp_paths_full": 1}
    world.now += 61 * SECOND
    server.by_address[clients[1].address].heard_us = world.now
    clients[3].node.introduce([world.where(2)])
    world.settle()
    assert set(server.by_address) == {clients[1].address, clients[3].address}
    assert len(server.by_tag) == 2


def test_peers_are_limited_and_those_without_paths_give_way(world: World) -> None:
    server_node = world.node(2, max_peers=2)
    server = world.socket(server_node, 2)
    clients = [world.socket(world.node(10 + i), 20 + i) for i in range(4)]
    for client in clients[:3]:
        client.node.introduce([world.where(2)])
        world.settle()
    assert len(server_node.peers) == 2
    assert server_node.counters == {"udp_peers_full": 1}
    server._drop(server.by_address[clients[0].address])
    world.now += PEER_UNPROVEN_US + SECOND
    clients[3].node.introduce([world.where(2)])
    world.settle()
    assert clients[3].node.identity in server_node.peers
    assert len(server_node.peers) == 2


def test_every_kind_of_nonsense_is_counted_and_answered_by_nothing(two: Two) -> None:
    two.meet()
    two.world.sent.clear()
    here, tag = two.world.where(2), two.ours.tag
    for kind in range(16):
        for octets in (b"", bytes(1), bytes(39), bytes(2000)):
            if kind == frames.DATA or (kind == frames.PING and len(octets) >= 39):
                continue
            two.world.deliver(two.world.where(1), here, frames.header(kind, tag) + octets)
    assert not two.server.poll_frames()
    assert set(two.server_node.counters) == {
        "udp_hello_malformed", "udp_malformed", "udp_unexpected_answer",
    }  # fmt: skip
