"""A matrix of transfers, topologies by middleboxes, whose coarse results are kept in a table and compared exactly.

``python -m mptcp.sim.scenarios`` prints the table, ``--write FILE`` makes it anew after a change that is meant.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path as FilePath

from mptcp.core.entropy import Entropy
from mptcp.core.multipath.config import DEFAULT_CONFIG, ConnectionConfig
from mptcp.core.multipath.connection import Connection
from mptcp.core.units import MBIT, MILLISECOND, SECOND
from mptcp.info import Endpoint
from mptcp.sim.applications import Acceptor, BulkReceiver, BulkSender, ConnectionApplication, pattern
from mptcp.sim.conditions import BurstLoss, Conditions
from mptcp.sim.middlebox import Middlebox
from mptcp.sim.middleboxes import (
    AckProxy,
    ChangePayload,
    CoalesceSegments,
    CorruptPayload,
    DropSynWithOptions,
    NarrowLink,
    Nat,
    RewriteSequence,
    SplitSegments,
    StripOptions,
)
from mptcp.sim.network import Path
from mptcp.sim.report import Report, report
from mptcp.sim.trace import PacketWriter
from mptcp.sim.world import SimHost, World

SERVER_ADDRESS, SERVER_PORT = "10.9.0.1", 80
#: A transfer that takes longer than this has failed.
LIMIT_US = 120 * SECOND


@dataclass(frozen=True, slots=True)
class Topology:
    """A client with one interface for each path, and a server with one address that all paths lead to."""

    name: str
    paths: tuple[Conditions, ...]
    octets: int = 1_000_000
    #: (path, from, to): that path is a black hole in between
    outages: tuple[tuple[int, int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Boxes:
    """``make`` gives a fresh set of (path, box) for a run; ``checksum`` turns on the DSS checksum at both ends."""

    name: str
    make: Callable[[], Sequence[tuple[int, Middlebox]]]
    checksum: bool = False


@dataclass(slots=True)
class Outcome:
    """What became of one run. ``stream``: "exact", "altered at N" or "short by N"."""

    stream: str
    report: Report
    client: str  # "multipath", "TCP: and the reason", or "nobody"
    server: str
    digest: str
    paths_used: int  # that have carried at least a fiftieth of the octets
    errors: list[str] = field(default_factory=list)
    counters: dict[str, int] = field(default_factory=dict)

    def row(self) -> dict[str, object]:
        """What the table keeps: nothing that a harmless change of the stack would move."""
        return {
            "stream": self.stream.partition(" ")[0],
            "client": self.client,
            "server": self.server,
            "paths_used": self.paths_used,
            "stall": _stall(self.report.longest_stall_us),
            "errors": self.errors,
        }


def _kind(connection: Connection | None) -> str:
    if connection is None:
        return "nobody"
    return "multipath" if connection.is_multipath else f"TCP: {connection.fallback_reason}"


def _stall(us: int) -> str:
    """A class, not a number."""
    for limit, name in ((300_000, "none"), (1_500_000, "short"), (5_000_000, "seconds")):
        if us <= limit:
            return name
    return "long"


class Setup:
    """One client, one server, the paths of a topology; ready to connect."""

    __slots__ = ("client_host", "paths", "server_host", "world")

    def __init__(
        self,
        topology: Topology,
        *,
        seed: int = 1,
        trace: bool = False,
        writer: PacketWriter | None = None,
        gso_max_bytes: int = 0,
    ) -> None:
        self.world = World(seed, trace=trace)
        self.client_host = self.world.add_host("client")
        self.server_host = self.world.add_host("server")
        server_port = self.server_host.add_interface(SERVER_ADDRESS, gso_max_bytes=gso_max_bytes)
        self.paths: list[Path] = []
        for index, conditions in enumerate(topology.paths):
            client_port = self.client_host.add_interface(f"10.0.{index}.1", gso_max_bytes=gso_max_bytes)
            self.paths.append(self.world.join(client_port, server_port, conditions, name=f"path{index}"))
        for index, start, end in topology.outages:
            self.paths[index].cut(start)
            self.paths[index].restore(end)
        if writer is not None:
            self.world.capture(writer)

    def listen(
        self, make: Callable[[SimHost, Connection], ConnectionApplication], options: ConnectionConfig
    ) -> Acceptor:
        listener = self.server_host.listen(Endpoint.parse(SERVER_ADDRESS, SERVER_PORT), options=options)
        acceptor = Acceptor(self.server_host, listener, make)
        self.server_host.attach(listener, acceptor)
        return acceptor

    def connect(self, options: ConnectionConfig) -> Connection:
        return self.client_host.connect(Endpoint.parse(SERVER_ADDRESS, SERVER_PORT), options=options)


def transfer(
    topology: Topology,
    boxes: Boxes | None = None,
    *,
    download: bool = False,
    seed: int = 1,
    options: ConnectionConfig = DEFAULT_CONFIG,
    trace: bool = False,
    writer: PacketWriter | None = None,
) -> Outcome:
    """The client (``download``: the server) sends ``topology.octets`` of the pattern; both sides close."""
    setup = Setup(topology, seed=seed, trace=trace, writer=writer)
    if boxes is not None:
        options = options.changed(checksum=boxes.checksum)
        for index, box in boxes.make():
            if index < len(setup.paths):
                setup.paths[index].add_middlebox(box)

    def send(host: SimHost, connection: Connection) -> BulkSender:
        return BulkSender(host, connection, topology.octets)

    acceptor = setup.listen(send if download else BulkReceiver, options)
    client = setup.connect(options)
    # Until the server has accepted, nobody has received anything.
    receiver = BulkReceiver(setup.client_host, client)
    setup.client_host.attach(client, receiver if download else send(setup.client_host, client))

    def unfinished() -> bool:
        nonlocal receiver
        if acceptor.accepted and isinstance(acceptor.accepted[0], BulkReceiver):
            receiver = acceptor.accepted[0]
        return client.error is None and not receiver.ended

    setup.world.run(until=LIMIT_US, while_=unfinished)
    server = acceptor.accepted[0].connection if acceptor.accepted else None
    sender = server if download and server is not None else client
    figures = report(sender, receiver.progress, paths=setup.paths)
    carried = [(path.backward if download else path.forward).bytes_delivered for path in setup.paths]
    used = sum(octets * 50 >= sum(carried) for octets in carried)
    # The end of the stream is acknowledged and seen by the sender, too.
    setup.world.run(until=setup.world.now + SECOND // 4)
    if receiver.error_offset >= 0:
        stream = f"altered at {receiver.error_offset}"
    elif receiver.progress.total != topology.octets or not receiver.ended:
        stream = f"short by {topology.octets - receiver.progress.total}"
    else:
        stream = "exact"
    ends = {"client": client, "server": server}
    errors = [f"{name}: {type(end.error).__name__}" for name, end in ends.items() if end is not None and end.error]
    hosts = (setup.client_host, setup.server_host)
    counters = {f"{host.name}.{name}": count for host in hosts for name, count in host.stack.counters.items()}
    digest = setup.world.trace.digest if setup.world.trace is not None else ""
    return Outcome(stream, figures, _kind(client), _kind(server), digest, used, errors, counters)


_FAST = Conditions(rate_bps=20 * MBIT, delay_us=10 * MILLISECOND, queue_bytes=64 * 1024)
_SLOW = Conditions(rate_bps=8 * MBIT, delay_us=40 * MILLISECOND, queue_bytes=64 * 1024)

TOPOLOGIES: tuple[Topology, ...] = (
    Topology("one path", (_FAST,), 400_000),
    Topology("two equal paths", (_FAST, _FAST)),
    Topology("two unequal paths", (_FAST, _SLOW)),
    Topology("random loss", (_FAST.changed(loss=0.01), _SLOW.changed(loss=0.01)), 600_000),
    Topology("bursty loss", (_FAST.changed(burst_loss=BurstLoss(0.002, 0.3)), _SLOW), 600_000),
    Topology("reordering", (_FAST.changed(reorder=0.02, reorder_us=3_000), _SLOW.changed(jitter_us=5_000)), 600_000),
    Topology("duplication and damage", (_FAST.changed(duplicate=0.01, corrupt=0.005), _SLOW), 600_000),
    Topology("first path lost for ever", (_FAST, _SLOW), 1_000_000, ((0, 200_000, LIMIT_US),)),
    Topology("both paths lost for a while", (_FAST, _SLOW), 1_000_000, ((0, 200_000, 900_000), (1, 200_000, 900_000))),
)

_NAT_ADDRESS = bytes((192, 0, 2, 1))
_ROUTER = bytes((192, 0, 2, 254))


def _both(make: Callable[[], Middlebox]) -> Callable[[], list[tuple[int, Middlebox]]]:
    return lambda: [(0, make()), (1, make())]


def _first(make: Callable[[], Middlebox]) -> Callable[[], list[tuple[int, Middlebox]]]:
    return lambda: [(0, make())]


def _second(make: Callable[[], Middlebox]) -> Callable[[], list[tuple[int, Middlebox]]]:
    return lambda: [(1, make())]


def _change_payload() -> Middlebox:
    # Six octets of the pattern at octet 100,000, longer by three afterwards.
    found = bytes(pattern(100_000, 6))
    return ChangePayload(found, found + b"ALG")


def _natted() -> list[tuple[int, Middlebox]]:
    return [(0, Nat(_NAT_ADDRESS)), (1, Nat(bytes((192, 0, 2, 2))))]


#: The topologies that every kind of box is put into; the others run without boxes.
BOXED_TOPOLOGIES: tuple[Topology, ...] = (TOPOLOGIES[0], TOPOLOGIES[2])

BOXES: tuple[Boxes, ...] = (
    Boxes("strips MPTCP from SYNs", _both(lambda: StripOptions(syn_only=True))),
    Boxes("strips MPTCP from everything", _both(StripOptions)),
    Boxes("strips MPTCP from all but SYNs", _both(lambda: StripOptions(spare_syn=True))),
    Boxes("strips MPTCP after 100 ms", _both(lambda: StripOptions(since_us=100_000))),
    Boxes("strips MPTCP on the second path", _second(StripOptions)),
    Boxes("drops SYNs with MPTCP", _both(DropSynWithOptions)),
    Boxes("translates addresses and ports", _natted),
    Boxes("splits, options copied", _both(lambda: SplitSegments(500))),
    Boxes("splits, options on the first piece", _both(lambda: SplitSegments(500, copy_options=False))),
    Boxes("coalesces", _both(lambda: CoalesceSegments(2_900))),
    Boxes("renumbers", lambda: [(0, RewriteSequence(Entropy(1))), (1, RewriteSequence(Entropy(2)))]),
    Boxes("renumbers, not SACK", _both(lambda: RewriteSequence(Entropy(3), fix_sack=False))),
    Boxes("changes the payload of the first path, checksum", _first(_change_payload), checksum=True),
    Boxes(
        "damages the payload of the first path, checksum", _first(lambda: CorruptPayload(50, limit=1)), checksum=True
    ),
    Boxes("acknowledges early", _both(AckProxy)),
    Boxes("is narrow and says so", _both(lambda: NarrowLink(1_300, reporter=_ROUTER))),
    Boxes("is narrow and silent", _both(lambda: NarrowLink(1_300, reporter=_ROUTER, silent=True))),
    Boxes("no box, checksum", list, checksum=True),
)


def cases() -> list[tuple[str, Topology, Boxes | None]]:
    """(name, topology, boxes) of every run of the table."""
    found: list[tuple[str, Topology, Boxes | None]] = [(topology.name, topology, None) for topology in TOPOLOGIES]
    found += [(f"{topology.name}; {boxes.name}", topology, boxes) for topology in BOXED_TOPOLOGIES for boxes in BOXES]
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m mptcp.sim.scenarios", description=__doc__)
    parser.add_argument("--write", type=FilePath, metavar="FILE", help="write the table as JSON")
    parser.add_argument("--only", default="", metavar="TEXT", help="only cases whose name contains this")
    parser.add_argument("--details", action="store_true", help="the figures of each run")
    chosen = parser.parse_args(arguments)
    table: dict[str, dict[str, object]] = {}
    for name, topology, boxes in cases():
        if chosen.only not in name:
            continue
        outcome = transfer(topology, boxes)
        table[name] = outcome.row()
        sys.stdout.write(f"{name}: {json.dumps(table[name])}\n")
        if chosen.details:
            sys.stdout.write(f"{outcome.report.table()}\n{outcome.counters}\n\n")
        sys.stdout.flush()
    if chosen.write is not None:
        chosen.write.write_text(json.dumps(table, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
