"""Coupled congestion control does no harm at a shared bottleneck, and moves away from the congested path (RFC 6356 §2)."""

from __future__ import annotations

import pytest

from mptcp.core.congestion.balia import BALIA
from mptcp.core.congestion.base import CongestionFactory
from mptcp.core.congestion.lia import LIA
from mptcp.core.congestion.newreno import NewReno
from mptcp.core.congestion.olia import OLIA
from mptcp.core.congestion.wvegas import WVEGAS
from mptcp.core.multipath.config import DEFAULT_CONFIG, ConnectionConfig
from mptcp.core.path_managers.fullmesh import FullMesh
from mptcp.core.path_managers.ndiffports import Ndiffports
from mptcp.core.tcp.config import TcpConfig
from mptcp.core.units import KIB, MBIT, MIB, MILLISECOND, SECOND
from mptcp.info import Endpoint
from mptcp.sim.applications import Acceptor, BulkReceiver, BulkSender
from mptcp.sim.conditions import Conditions
from mptcp.sim.network import Path, Router
from mptcp.sim.world import SimHost, World

#: Goodput counts from the first to the second: losses have synchronised nothing by then that lasts.
FROM_US, UNTIL_US = 10 * SECOND, 45 * SECOND

TCP = TcpConfig(
    congestion=NewReno, send_buffer_bytes=2 * MIB, receive_buffer_bytes=2 * MIB, receive_buffer_max_bytes=2 * MIB
)
#: A little jitter, without which flows fall into step at a drop-tail queue.
NARROW = Conditions(rate_bps=8 * MBIT, delay_us=30 * MILLISECOND, queue_bytes=30 * KIB, jitter_us=MILLISECOND)
WIDE = Conditions(delay_us=MILLISECOND)


def config(congestion: CongestionFactory, subflows: int) -> ConnectionConfig:
    return DEFAULT_CONFIG.changed(
        tcp=TCP.changed(congestion=congestion),
        multipath=subflows > 1,
        path_manager=lambda: Ndiffports(subflows),
    )


class Dumbbell:
    """A narrow path between two routers, and hosts on either side of it."""

    def __init__(self, world: World, number: int = 1) -> None:
        self.world = world
        self.left, self.right = Router(), Router()
        self.narrow: Path = world.join(self.left, self.right, NARROW)
        self.left.default = self.narrow.forward
        self.right.default = self.narrow.backward
        self._number = number
        self._count = 0

    def attach(self, sender: SimHost, sink: SimHost) -> str:
        """Gives both hosts an interface at this path; the address of the sink's."""
        self._count += 1
        prefix = f"10.{self._number}.{self._count}."
        self.world.join(sender.add_interface(prefix + "1"), self.left, WIDE)
        self.world.join(sink.add_interface(prefix + "2"), self.right, WIDE)
        return prefix + "2"

    def flow(self, options: ConnectionConfig) -> Acceptor:
        """A pair of hosts, one sending to the other without end; what the receiver counts."""
        name = f"{self._number}.{self._count}"
        sender, sink = self.world.add_host(f"sender {name}"), self.world.add_host(f"sink {name}")
        return endless(sender, sink, self.attach(sender, sink), options)


def endless(sender: SimHost, sink: SimHost, address: str, options: ConnectionConfig) -> Acceptor:
    listener = sink.listen(Endpoint.parse(address, 80), options=options)
    acceptor = Acceptor(sink, listener, BulkReceiver)
    sink.attach(listener, acceptor)
    connection = sender.connect(Endpoint.parse(address, 80), options=options)
    sender.attach(connection, BulkSender(sender, connection))
    return acceptor


def goodput(acceptor: Acceptor) -> float:
    (receiver,) = acceptor.accepted
    assert isinstance(receiver, BulkReceiver)
    assert receiver.is_exact
    return receiver.progress.goodput_bps(FROM_US, UNTIL_US)


def share(congestion: CongestionFactory) -> float:
    """What two subflows get at the bottleneck of a regular TCP connection, as a multiple of what that gets."""
    dumbbell = Dumbbell(World(1))
    multipath = dumbbell.flow(config(congestion, 2))
    single = dumbbell.flow(config(NewReno, 1))
    dumbbell.world.run(until=UNTIL_US)
    both = goodput(multipath), goodput(single)
    assert sum(both) > 0.85 * NARROW.rate_bps, both
    return both[0] / both[1]


@pytest.mark.parametrize("congestion", [LIA, BALIA, OLIA], ids=lambda factory: str(factory.name))
def test_two_coupled_subflows_take_as_much_as_one_tcp(congestion: CongestionFactory) -> None:  # RFC 6356 §2, goal 2
    assert share(congestion) <= 1.3


def test_two_uncoupled_subflows_take_twice_as_much(  # what goal 2 is there to prevent
) -> None:
    assert share(NewReno) >= 1.6


def spread(congestion: CongestionFactory) -> tuple[float, float, float]:
    """Over two paths like that at once, the first shared with three TCP connections, the second with one: what goes
    over each, and what that one gets; in bits per second."""
    world = World(1)
    crowded, quiet = Dumbbell(world, 1), Dumbbell(world, 2)
    sender, sink = world.add_host("sender"), world.add_host("sink")
    address = crowded.attach(sender, sink)
    quiet.attach(sender, sink)
    acceptor = endless(sender, sink, address, config(congestion, 2).changed(path_manager=FullMesh))
    for _ in range(3):
        crowded.flow(config(NewReno, 1))
    other = quiet.flow(config(NewReno, 1))
    world.run(until=FROM_US)
    (receiver,) = acceptor.accepted
    before = [s.bytes_received for s in receiver.connection.subflows()]
    world.run(until=UNTIL_US)
    after = receiver.connection.subflows()
    rates = [(s.bytes_received - b) * 8e6 / (UNTIL_US - FROM_US) for s, b in zip(after, before, strict=True)]
    assert goodput(acceptor) > 0
    return rates[0], rates[1], goodput(other)


@pytest.fixture(scope="module")
def uncoupled() -> tuple[float, float, float]:
    return spread(NewReno)


@pytest.mark.parametrize(("congestion", "most"), [(LIA, 0.85), (BALIA, 0.5), (OLIA, 0.4)], ids=["lia", "balia", "olia"])
def test_traffic_moves_away_from_the_congested_path(  # RFC 6356 §2, goals 1 and 3
    congestion: CongestionFactory, most: float, uncoupled: tuple[float, float, float]
) -> None:
    coupled = spread(congestion)
    assert coupled[0] < most * uncoupled[0], (coupled, uncoupled)
    # Goal 1: "A multipath flow should perform at least as well as a single path flow would on the best of the paths"
    assert coupled[0] + coupled[1] > 0.8 * coupled[2], coupled


def test_weighted_vegas_fills_the_path_without_losses() -> None:
    """Delay, not loss, is its signal."""

    def drops(congestion: CongestionFactory) -> int:
        dumbbell = Dumbbell(World(1))
        flow = dumbbell.flow(config(congestion, 2))
        dumbbell.world.run(until=FROM_US)
        before = dumbbell.narrow.forward.queue_drops
        dumbbell.world.run(until=UNTIL_US)
        assert goodput(flow) > 0.85 * NARROW.rate_bps
        return dumbbell.narrow.forward.queue_drops - before

    assert drops(NewReno) > 10
    assert drops(WVEGAS) == 0
