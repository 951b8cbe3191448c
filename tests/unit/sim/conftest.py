"""Scripted ends for tests of the network alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from mptcp.core.packet import Packet
from mptcp.core.units import NEVER
from mptcp.sim.clock import VirtualClock
from mptcp.sim.conditions import Conditions
from mptcp.sim.network import Direction, Node
from mptcp.sim.world import World


class Recorder(Node):
    """Keeps what arrives: (time, packet)."""

    def __init__(self, clock: VirtualClock) -> None:
        self.clock = clock
        self.arrived: list[tuple[int, bytes]] = []
        self.trusted: list[bool] = []

    def handle_arrival(self, port: int, data: bytes, trusted: bool) -> None:
        self.arrived.append((self.clock.now, data))
        self.trusted.append(trusted)


class Wire:
    """One direction, and what came out of it."""

    def __init__(self, conditions: Conditions, seed: int = 1) -> None:
        self.world = World(seed)
        self.clock = self.world.clock
        self.recorder = Recorder(self.clock)
        self.direction = Direction(self.clock, self.world.entropy, self.recorder, 0, conditions)

    def send(self, *packets: bytes, trusted: bool = False) -> None:
        for packet in packets:
            self.direction.send(packet, trusted)

    def run(self, until: int = NEVER) -> list[tuple[int, bytes]]:
        while self.clock.next_time <= until and self.clock.run_instant():
            pass
        if until < NEVER:
            self.clock.now = until
        return self.recorder.arrived


class ScriptedStack:
    """A stack that sends what it is told and keeps what it gets; echoes if asked to."""

    def __init__(self, echo: bool = False) -> None:
        self.echo = echo
        self.counters: dict[str, int] = {}
        self.received: list[tuple[int, int, bytes]] = []
        self.outgoing: list[tuple[int, Packet]] = []
        self.deadline = NEVER
        self.timeouts: list[int] = []

    def handle_packet(
        self, interface: int, data: memoryview, now: int, gso_size: int = 0, checksum_valid: bool = False
    ) -> None:
        self.received.append((now, interface, bytes(data)))
        if self.echo:
            self.outgoing.append((interface, Packet(bytes(data), (), len(data))))

    def handle_timeout(self, now: int) -> None:
        self.timeouts.append(now)
        self.deadline = NEVER

    def poll_deadline(self) -> int:
        return self.deadline

    def poll_packets(self, now: int) -> Sequence[tuple[int, Packet]]:
        outgoing, self.outgoing = self.outgoing, []
        return outgoing

    def poll_ready(self) -> Sequence[Any]:
        return ()


@pytest.fixture
def make_wire() -> type[Wire]:
    return Wire


@pytest.fixture
def make_stack() -> type[ScriptedStack]:
    return ScriptedStack
