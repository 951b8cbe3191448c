"""What the simulated network itself costs per packet: two scripted hosts, two paths, no TCP.

Run: ``python benchmarks/sim_network.py [seconds]``. The last line compares with the budget: 60 s of two 50 Mbit/s paths
must leave nearly all of a minute to the two TCP stacks.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

from mptcp.core.packet import Packet
from mptcp.core.units import MBIT, MILLISECOND, NEVER, SECOND
from mptcp.sim.conditions import Conditions
from mptcp.sim.world import World

BUDGET_US = 8.0
PAYLOAD = bytes(1400)
HEADER = bytes.fromhex("450005b4000040004006000000000000ffffffff") + bytes(12) + b"\x80\x10" + bytes(18)


class Source:
    """Sends two packets for each acknowledgement that comes in, as a TCP sender in steady state does."""

    def __init__(self, packet: Packet) -> None:
        self.packet = packet
        self.counters: dict[str, int] = {}
        self.waiting: list[tuple[int, Packet]] = [(index, packet) for index in (0, 1) for _ in range(100)]
        self.received = 0

    def handle_packet(
        self, interface: int, data: memoryview, now: int, gso_size: int = 0, checksum_valid: bool = False
    ) -> None:
        self.received += 1
        self.waiting += ((interface, self.packet), (interface, self.packet))

    def handle_timeout(self, now: int) -> None: ...

    def poll_deadline(self) -> int:
        return NEVER

    def poll_packets(self, now: int) -> Sequence[tuple[int, Packet]]:
        packets, self.waiting = self.waiting, []
        return packets

    def poll_ready(self) -> Sequence[Any]:
        return ()


class Sink(Source):
    """Acknowledges every second packet."""

    def __init__(self, packet: Packet) -> None:
        super().__init__(packet)
        self.waiting = []

    def handle_packet(
        self, interface: int, data: memoryview, now: int, gso_size: int = 0, checksum_valid: bool = False
    ) -> None:
        self.received += 1
        if self.received % 2 == 0:
            self.waiting.append((interface, self.packet))


def measure(seconds: int, conditions: Conditions) -> tuple[int, float]:
    """Packets carried, and microseconds of real time for each."""
    world = World(1)
    data = Packet(HEADER, (PAYLOAD,), len(HEADER) + len(PAYLOAD), 20, 0, True)
    source = world.add_host("source", Source(data))
    sink = world.add_host("sink", Sink(Packet(HEADER, (), len(HEADER), 20, 0, True)))
    for index in (0, 1):
        world.join(source.add_port(index, f"10.0.{index}.1"), sink.add_port(index, f"10.0.{index}.2"), conditions)
    source.touch()
    started = time.perf_counter()
    world.run(until=seconds * SECOND)
    elapsed = time.perf_counter() - started
    packets = sum(d.packets_delivered for path in world.paths for d in (path.forward, path.backward))
    return packets, elapsed * 1e6 / packets


def main() -> int:
    seconds = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    base = Conditions(rate_bps=50 * MBIT, delay_us=10 * MILLISECOND)
    worst = 0.0
    print(f"{'path':<24}{'packets':>10}{'us/packet':>11}{'network in 60 s':>17}")
    for name, conditions in (
        ("clean", base),
        ("random loss 1 %", base.changed(loss=0.01)),
        ("jitter 2 ms", base.changed(jitter_us=2 * MILLISECOND)),
        ("reordering 1 %", base.changed(reorder=0.01, reorder_us=3 * MILLISECOND)),
    ):
        packets, cost = measure(seconds, conditions)
        if name == "clean":
            worst = cost
        print(f"{name:<24}{packets:>10}{cost:>11.2f}{packets * cost * 60 / seconds / 1e6:>15.1f} s")
    print(f"budget {BUDGET_US} us on a clean path: {'met' if worst <= BUDGET_US else 'missed'}")
    return 0 if worst <= BUDGET_US else 1


if __name__ == "__main__":
    sys.exit(main())
