"""Hosts, paths and time together, with scripted stacks."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from typing import Any

import pytest

from mptcp.core.packet import Packet
from mptcp.core.units import MBIT, NEVER
from mptcp.errors import ConfigurationError
from mptcp.sim.conditions import Conditions
from mptcp.sim.middlebox import Middlebox
from mptcp.sim.network import Router
from mptcp.sim.trace import Outcome, PcapngWriter
from mptcp.sim.world import SimHost, World

ADDRESSES = bytes((10, 0, 0, 1)), bytes((10, 0, 0, 2))


def ip_packet(size: int = 100, source: bytes = ADDRESSES[0], destination: bytes = ADDRESSES[1]) -> Packet:
    header = b"\x45" + bytes(8) + b"\x11" + bytes(2) + source + destination  # UDP: nobody looks inside
    return Packet(header, (bytes(size - 20),), size)


def two_hosts(make_stack: Any, seed: int = 1, **conditions: Any) -> tuple[World, SimHost, SimHost]:
    world = World(seed, keep_packets=1_000)
    a, b = world.add_host("a", make_stack()), world.add_host("b", make_stack(echo=True))
    world.join(a.add_port(0, "10.0.0.1"), b.add_port(0, "10.0.0.2"), Conditions(**conditions))
    return world, a, b


def test_packets_go_there_and_back(make_stack: Any) -> None:
    world, a, b = two_hosts(make_stack, delay_us=1_000)
    a.stack.outgoing.append((0, ip_packet()))
    a.touch()
    world.run()
    octets = bytes(ip_packet())
    assert b.stack.received == [(1_000, 0, octets)]
    assert a.stack.received == [(2_000, 0, octets)]


def test_deadlines_are_met_and_may_be_put_off_or_brought_forward(make_stack: Any) -> None:
    world, a, _ = two_hosts(make_stack)
    a.stack.deadline = 5_000
    a.touch()
    world.run(until=1_000)
    a.stack.deadline = 9_000
    a.touch()
    world.run(until=8_000)
    assert a.stack.timeouts == []
    a.stack.deadline = 8_500
    a.touch()
    assert world.run(until=20_000) == 20_000
    assert a.stack.timeouts == [8_500]


def test_run_stops_at_a_time_or_when_told(make_stack: Any) -> None:
    world, a, b = two_hosts(make_stack, delay_us=1_000)
    a.stack.echo = True
    a.stack.outgoing.append((0, ip_packet()))
    a.touch()
    assert world.run(until=10_500) == 10_500
    assert len(a.stack.received) + len(b.stack.received) == 10
    world.run(while_=lambda: len(a.stack.received) < 20)
    assert len(a.stack.received) == 20
    with pytest.raises(ConfigurationError, match="past"):
        world.run(until=1)


def test_the_destination_picks_among_the_paths_of_an_interface(make_stack: Any) -> None:
    world = World(1)
    hub = world.add_host("hub", make_stack())
    leaves = [world.add_host(f"leaf{index}", make_stack()) for index in range(3)]
    port = hub.add_port(0, "10.0.0.1")
    for index, leaf in enumerate(leaves):
        world.join(port, leaf.add_port(0, f"10.0.1.{index}"))
    hub.stack.outgoing = [(0, ip_packet(destination=bytes((10, 0, 1, index)))) for index in (2, 0, 2)]
    hub.touch()
    world.run()
    assert [len(leaf.stack.received) for leaf in leaves] == [1, 0, 2]


def test_a_router_shares_one_bottleneck_between_paths(make_stack: Any) -> None:
    world = World(1)
    senders = [world.add_host(f"s{index}", make_stack()) for index in range(2)]
    sink = world.add_host("sink", make_stack())
    router = Router()
    for index, sender in enumerate(senders):
        world.join(sender.add_port(0, f"10.0.1.{index}"), router)
    world.join(router, sink.add_port(0, "10.0.0.2"), Conditions(rate_bps=8 * MBIT))
    for sender in senders:
        sender.stack.outgoing = [(0, ip_packet(1_000))] * 2
        sender.touch()
    world.run()
    assert [time for time, _, _ in sink.stack.received] == [1_000, 2_000, 3_000, 4_000]
    senders[0].stack.outgoing = [(0, ip_packet(destination=bytes((192, 0, 2, 1))))]
    senders[0].touch()
    world.run()
    assert router.no_route_drops == 1


def test_changes_cuts_and_repairs_happen_at_their_time(make_stack: Any) -> None:
    world, a, b = two_hosts(make_stack, delay_us=100)
    b.stack.echo = False
    path = world.paths[0]
    path.cut(at_us=10_000)
    path.restore(at_us=20_000)
    path.change(at_us=30_000, which="forward", delay_us=700)

    def send() -> None:
        a.stack.outgoing.append((0, ip_packet()))

    for time in (5_000, 15_000, 25_000, 35_000):
        world.at(time, send)
    world.run()
    assert [time for time, _, _ in b.stack.received] == [5_100, 25_100, 35_700]
    assert path.backward.delay_us == 100
    assert world.trace is not None
    outcomes = [packet.outcome for packet in world.trace.packets]
    assert outcomes == [Outcome.SENT, Outcome.DOWN, Outcome.SENT, Outcome.SENT]


def test_the_same_seed_gives_the_same_packets_twice(make_stack: Any) -> None:
    def digest(seed: int) -> str:
        world, a, _ = two_hosts(make_stack, seed, delay_us=300, loss=0.02, jitter_us=100)
        a.stack.echo = True
        a.stack.outgoing = [(0, ip_packet(100 + index)) for index in range(20)]
        a.touch()
        world.run(until=50_000)
        assert world.trace is not None
        assert world.trace.count > 200
        return world.trace.digest

    assert digest(1) == digest(1) != digest(2)


def test_the_digest_is_of_every_octet_and_time(make_stack: Any) -> None:
    world, a, _ = two_hosts(make_stack)
    a.stack.outgoing = [(0, ip_packet())]
    a.touch()
    world.run()
    assert world.trace is not None
    octets = bytes(ip_packet())
    there, back = struct.pack("!QHB", 0, 0, 0) + octets, struct.pack("!QHB", 0, 1, 0) + octets
    assert world.trace.digest == hashlib.blake2b(there + back, digest_size=16).hexdigest()


def test_capture_writes_pcapng(make_stack: Any) -> None:
    world, a, _ = two_hosts(make_stack, delay_us=1_000)
    blocks: list[bytes] = []
    world.capture(PcapngWriter(blocks.append))
    a.stack.outgoing = [(0, ip_packet(101))]
    a.touch()
    world.run()
    kinds = [struct.unpack_from("<I", block)[0] for block in blocks]
    assert kinds == [0x0A0D0D0A, 1, 6, 1, 6]  # section; interface and packet; twice
    for block in blocks:
        length = struct.unpack_from("<I", block, 4)[0]
        assert length == len(block) == struct.unpack_from("<I", block, len(block) - 4)[0]
        assert length % 4 == 0
    interface, high, low, captured, size = struct.unpack_from("<IIIII", blocks[4], 8)
    assert (interface, high << 32 | low, captured, size) == (1, 1_000, 101, 101)
    assert blocks[4][28:129] == bytes(ip_packet(101))


class Stamp(Middlebox):
    """Appends a letter."""

    def __init__(self, letter: bytes) -> None:
        self.letter = letter

    def process(self, data: bytes, forward: bool, now: int) -> Sequence[bytes]:
        return (data + self.letter,)


def test_boxes_are_passed_in_the_order_in_which_they_stand_on_the_wire(make_stack: Any) -> None:
    world, a, b = two_hosts(make_stack)
    for letter in (b"1", b"2", b"3"):
        world.paths[0].add_middlebox(Stamp(letter))
    a.stack.outgoing.append((0, ip_packet()))
    a.touch()
    world.run()
    assert b.stack.received[0][2].endswith(b"123")
    assert a.stack.received[0][2].endswith(b"123321")


def test_no_deadline_means_no_event(make_stack: Any) -> None:
    world, a, _ = two_hosts(make_stack)
    a.touch()
    world.run()
    assert world.clock.next_time == NEVER
