"""The matrix of scenarios and middleboxes still gives the committed table; the same seed gives the same packets twice.

After a change that is meant: ``python -m mptcp.sim.scenarios --write tests/sim/expected.json``, and read the diff.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mptcp.sim.rawtcp import OPTION_MPTCP, TcpPacket
from mptcp.sim.scenarios import BOXES, TOPOLOGIES, Boxes, Topology, cases, transfer

EXPECTED = json.loads(Path(__file__).with_name("expected.json").read_text())
CASES = cases()

#: Where the octets that arrive are not all of those that were sent, and why that is right.
NOT_EXACT = {
    "one path; changes the payload of the first path, checksum": "RFC 8684 §3.7: the only subflow becomes regular TCP",
    "one path; damages the payload of the first path, checksum": "RFC 8684 §3.7: the only subflow becomes regular TCP",
    "one path; strips MPTCP after 100 ms": (
        "RFC 8684 §3.7: the subflow is reset; without mappings, repeated octets cannot be told from new ones"
    ),
    "two unequal paths; strips MPTCP after 100 ms": (
        "RFC 8684 §3.7: each subflow is reset, since no data can be delivered and no fallback signal can be sent"
    ),
}


def test_the_table_has_a_row_for_each_case() -> None:
    assert list(EXPECTED) == [name for name, _, _ in CASES]


def test_the_table_itself_loses_nothing_without_a_reason() -> None:
    short = {name for name, row in EXPECTED.items() if row["stream"] != "exact"}
    assert short == NOT_EXACT.keys()


@pytest.mark.parametrize(("name", "topology", "boxes"), CASES, ids=[name for name, _, _ in CASES])
def test_case(name: str, topology: Topology, boxes: Boxes | None) -> None:
    assert transfer(topology, boxes).row() == EXPECTED[name]


@pytest.mark.parametrize("topology", TOPOLOGIES[2:5], ids=lambda topology: topology.name)
def test_the_same_seed_gives_the_same_packets_twice(topology: Topology) -> None:
    first, second, other = (transfer(topology, seed=seed, trace=True) for seed in (7, 7, 8))
    assert first.digest == second.digest != other.digest
    assert first.report == second.report


def test_a_box_that_strips_options_leaves_none_on_the_wire() -> None:
    seen: list[bytes] = []
    strips_all = next(boxes for boxes in BOXES if boxes.name == "strips MPTCP from everything")
    transfer(TOPOLOGIES[0], strips_all, writer=lambda time, index, name, data: seen.append(data))
    packets = [packet for packet in map(TcpPacket.parse, seen) if packet is not None]
    assert len(packets) > 100
    assert not any(packet.has_option(OPTION_MPTCP) for packet in packets)
