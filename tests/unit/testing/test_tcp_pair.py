"""The pair of bare TCP connections: it carries, loses and repeats segments as it was told."""

from __future__ import annotations

import random

import pytest

from mptcp.core.units import MILLISECOND
from mptcp.core.wire.segment import Segment
from mptcp.testing.matchers import is_ack, is_syn, is_syn_ack
from mptcp.testing.tcp_pair import CLIENT_ISN, SERVER_ISN, TcpPair, hostile_wire

OCTETS = bytes(range(256)) * 300


def test_handshake_takes_one_and_a_half_round_trips_in_virtual_time() -> None:
    pair = TcpPair()
    started = pair.now
    pair.connect()
    assert pair.now - started == 15 * MILLISECOND
    assert [segment for _, _, segment in pair.trace] == [
        is_syn(seq=CLIENT_ISN),
        is_syn_ack(seq=SERVER_ISN, ack=CLIENT_ISN + 1),
        is_ack(ack=SERVER_ISN + 1),
    ]


@pytest.mark.parametrize("gso_max_bytes", [0, 64_000])
def test_octets_cross_the_wrap_of_sequence_numbers(gso_max_bytes: int) -> None:
    pair = TcpPair(gso_max_bytes=gso_max_bytes).connect()
    assert pair.transfer(pair.client, pair.server, OCTETS) == OCTETS
    assert pair.transfer(pair.server, pair.client, OCTETS) == OCTETS


def test_what_the_wire_loses_is_sent_again() -> None:
    lost: list[int] = []

    def wire(segment: Segment, chance: random.Random) -> list[int]:
        if segment.length and not lost:
            lost.append(segment.seq)
            return []
        return [MILLISECOND]

    pair = TcpPair(wire=wire).connect()
    assert pair.transfer(pair.client, pair.server, OCTETS) == OCTETS
    assert [segment.seq for _, from_client, segment in pair.trace if from_client and segment.length].count(lost[0]) == 2


def test_the_same_seed_gives_the_same_segments() -> None:
    def run(seed: int) -> list[tuple[int, bool, int, int, int]]:
        pair = TcpPair(seed=seed, wire=hostile_wire(0.03, 0.05, 0.02)).connect()
        assert pair.transfer(pair.client, pair.server, OCTETS) == OCTETS
        return [(time, from_client, s.seq, s.ack, s.length) for time, from_client, s in pair.trace]

    assert run(1) == run(1) != run(2)
