"""Worlds made of chance: whatever the paths do, short of changing the octets, every octet arrives once and in order."""

from __future__ import annotations

from random import Random

import pytest

from mptcp.core.entropy import Entropy
from mptcp.core.multipath.config import DEFAULT_CONFIG
from mptcp.core.units import MBIT, MILLISECOND
from mptcp.sim.conditions import BurstLoss, Conditions
from mptcp.sim.middlebox import Middlebox
from mptcp.sim.middleboxes import Nat, RewriteSequence, SplitSegments
from mptcp.sim.scenarios import Boxes, Topology, transfer


def random_conditions(random: Random) -> Conditions:
    def sometimes(highest: float) -> float:
        return random.random() * highest if random.random() < 0.3 else 0.0

    return Conditions(
        rate_bps=random.choice([2, 5, 10, 30, 100]) * MBIT,
        delay_us=random.randrange(100 * MILLISECOND),
        jitter_us=int(sometimes(10_000)),
        queue_bytes=random.choice([8_000, 30_000, 100_000, 500_000]),
        loss=sometimes(0.03),
        burst_loss=BurstLoss(random.random() * 0.005, 0.3) if random.random() < 0.2 else None,
        reorder=sometimes(0.05),
        reorder_us=random.randrange(20_000),
        duplicate=sometimes(0.05),
        corrupt=sometimes(0.01),
    )


def random_boxes(random: Random, seed: int) -> list[tuple[int, Middlebox]]:
    """Those that a connection must survive as MPTCP."""
    boxes: list[tuple[int, Middlebox]] = []
    if random.random() < 0.3:
        boxes.append((random.randrange(2), Nat(bytes((192, 0, 2, 1)))))
    if random.random() < 0.3:
        boxes.append((random.randrange(2), RewriteSequence(Entropy(seed), fix_sack=random.random() < 0.7)))
    if random.random() < 0.2:
        boxes.append((random.randrange(2), SplitSegments(random.randrange(100, 1_400))))
    return boxes


def run(seed: int) -> None:
    random = Random(seed)
    paths = tuple(random_conditions(random) for _ in range(random.randrange(1, 4)))
    outages = []
    for index in range(len(paths)):
        if random.random() < 0.3:
            start = random.randrange(2_000_000)
            outages.append((index, start, start + random.randrange(3_000_000)))
    topology = Topology(f"random {seed}", paths, random.choice([0, 1, 5_000, 100_000, 700_000]), tuple(outages))
    boxes = Boxes("random", lambda: random_boxes(random, seed), checksum=random.random() < 0.3)
    download = random.random() < 0.5
    outcome = transfer(topology, boxes, download=download, seed=seed, options=DEFAULT_CONFIG)
    assert outcome.stream == "exact", (outcome.stream, outcome.errors, outcome.counters, topology)
    assert not outcome.errors


@pytest.mark.parametrize("seed", range(20))
def test_every_octet_arrives_once_and_in_order(seed: int) -> None:
    run(seed)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(20, 320, 50))
def test_many_more_worlds(first: int) -> None:
    for seed in range(first, first + 50):
        run(seed)
