"""One direction of a path: rate, delay, queue, accidents; each from its own stream of chance."""

from __future__ import annotations

from typing import Any

import pytest

from mptcp.core.units import MBIT, MILLISECOND, SECOND
from mptcp.errors import ConfigurationError
from mptcp.sim.conditions import BurstLoss, Conditions
from mptcp.sim.rawtcp import fold

PACKET = b"\x45" + bytes(999)
IPV4_ECT = bytes.fromhex("4502002800000000400600000a0000010a000002") + bytes(980)


def test_a_bare_direction_is_instant_and_changes_nothing(make_wire: Any) -> None:
    wire = make_wire(Conditions())
    wire.send(PACKET, PACKET[:40])
    assert wire.run() == [(0, PACKET), (0, PACKET[:40])]


def test_rate_and_delay_to_the_microsecond(make_wire: Any) -> None:
    wire = make_wire(Conditions(rate_bps=8 * MBIT, delay_us=7_000))
    wire.send(PACKET, PACKET, PACKET)
    assert [time for time, _ in wire.run()] == [8_000, 9_000, 10_000]


def test_rate_does_not_drift_at_fractions_of_a_microsecond(make_wire: Any) -> None:
    wire = make_wire(Conditions(rate_bps=3_000 * MBIT, queue_bytes=1 << 30))
    wire.send(*[PACKET] * 3_000)
    assert wire.run()[-1][0] == pytest.approx(8_000, abs=2)


def test_the_queue_drops_its_tail(make_wire: Any) -> None:
    wire = make_wire(Conditions(rate_bps=8 * MBIT, queue_bytes=3_000))
    wire.send(*[bytes((index,)) + PACKET[1:] for index in range(10)])
    assert [data[0] for _, data in wire.run()] == [0, 1, 2]
    assert wire.direction.queue_drops == 7
    assert wire.direction.max_queue_us == 2_000


def test_a_packet_larger_than_the_queue_still_uses_an_idle_bottleneck(make_wire: Any) -> None:
    wire = make_wire(Conditions(rate_bps=8 * MBIT, queue_bytes=10))
    wire.send(PACKET, PACKET)
    assert len(wire.run()) == 1


def test_a_new_rate_holds_for_what_waits_in_the_queue(make_wire: Any) -> None:
    wire = make_wire(Conditions(rate_bps=8 * MBIT))
    wire.send(*[PACKET] * 4)  # would arrive at 1, 2, 3, 4 ms
    wire.clock.at(1_500, lambda: wire.direction.set_conditions(Conditions(rate_bps=1 * MBIT)))
    assert [time for time, _ in wire.run()] == [1_000, 2_000, 10_000, 18_000]
    assert wire.direction.queued_bytes == 0


def test_a_shorter_delay_does_not_let_packets_overtake(make_wire: Any) -> None:
    wire = make_wire(Conditions(delay_us=10_000))
    wire.send(b"a" * 40)
    wire.direction.set_conditions(Conditions(delay_us=1_000))
    wire.send(b"b" * 40)
    assert [(time, data[:1]) for time, data in wire.run()] == [(10_000, b"a"), (10_000, b"b")]


def test_jitter_keeps_order_and_stays_in_its_limits(make_wire: Any) -> None:
    wire = make_wire(Conditions(delay_us=5_000, jitter_us=2_000))
    for index in range(200):
        wire.clock.at(index * 100, lambda index=index: wire.send(bytes((index,)) * 40))
    arrived = wire.run()
    assert [data[0] for _, data in arrived] == list(range(200))
    delays = [time - data[0] * 100 for time, data in arrived]
    assert min(delays) >= 5_000
    assert max(delays) <= 7_000
    assert len(set(delays)) > 20


def test_random_loss_has_its_rate(make_wire: Any) -> None:
    wire = make_wire(Conditions(loss=0.2))
    wire.send(*[PACKET[:40]] * 2_000)
    assert 1_500 < len(wire.run()) < 1_700
    assert wire.direction.lost == 2_000 - len(wire.recorder.arrived)


def test_bursty_loss_comes_in_bursts(make_wire: Any) -> None:
    wire = make_wire(Conditions(burst_loss=BurstLoss(to_bad=0.02, to_good=0.2)))
    wire.send(*[index.to_bytes(40, "big") for index in range(3_000)])
    arrived = {int.from_bytes(data, "big") for _, data in wire.run()}
    lost = [index for index in range(3_000) if index not in arrived]
    bursts = sum(index - 1 not in lost for index in lost)
    assert 0.04 < len(lost) / 3_000 < 0.16  # 0.02 / (0.02 + 0.2) = 0.09
    assert len(lost) / bursts > 3  # 1 / 0.2 = 5; independent losses would give about 1.1


def test_reordered_packets_are_overtaken(make_wire: Any) -> None:
    wire = make_wire(Conditions(delay_us=1_000, reorder=0.1, reorder_us=500))
    for index in range(300):
        wire.clock.at(index * 100, lambda index=index: wire.send(index.to_bytes(40, "big")))
    numbers = [int.from_bytes(data, "big") for _, data in wire.run()]
    assert sorted(numbers) == list(range(300))
    overtaken = sum(number < max(numbers[: place + 1]) for place, number in enumerate(numbers))
    assert overtaken == wire.direction.reordered
    assert 10 < overtaken < 60


def test_duplicates_follow_their_originals(make_wire: Any) -> None:
    wire = make_wire(Conditions(duplicate=0.25))
    wire.send(*[index.to_bytes(40, "big") for index in range(400)])
    numbers = [int.from_bytes(data, "big") for _, data in wire.run()]
    assert sorted(set(numbers)) == list(range(400))
    assert numbers == sorted(numbers)
    assert len(numbers) - 400 == wire.direction.duplicated
    assert 60 < wire.direction.duplicated < 140


def test_corruption_flips_one_bit_behind_the_ip_header(make_wire: Any) -> None:
    wire = make_wire(Conditions(corrupt=1.0))
    wire.send(*[PACKET] * 50)
    for _, data in wire.run():
        difference = int.from_bytes(data, "big") ^ int.from_bytes(PACKET, "big")
        assert difference.bit_count() == 1
        assert data[:20] == PACKET[:20]


def test_a_corrupting_direction_vouches_for_nothing(make_wire: Any) -> None:
    wire = make_wire(Conditions(corrupt=0.001))
    wire.send(PACKET, trusted=True)
    wire.run()
    assert wire.recorder.trusted == [False]
    wire.direction.set_conditions(Conditions())
    wire.send(PACKET, trusted=True)
    wire.run()
    assert wire.recorder.trusted == [False, True]


def test_long_queues_mark_only_packets_capable_of_ecn(make_wire: Any) -> None:
    wire = make_wire(Conditions(rate_bps=8 * MBIT, ecn_threshold_bytes=2_500))
    wire.send(*[IPV4_ECT] * 5)
    arrived = [data for _, data in wire.run()]
    assert [data[1] & 3 for data in arrived] == [2, 2, 3, 3, 3]
    assert fold(arrived[-1][:20]) == 0xFFFF  # the header checksum was made right again
    wire.send(*[PACKET] * 5)
    assert all(data == PACKET for _, data in wire.run()[5:])
    assert wire.direction.marked == 3


def test_one_kind_of_accident_does_not_change_another(make_wire: Any) -> None:
    def survivors(conditions: Conditions) -> list[int]:
        wire = make_wire(conditions)
        wire.send(*[index.to_bytes(40, "big") for index in range(500)])
        return sorted({int.from_bytes(data[:18], "big") << 144 | int.from_bytes(data[18:40], "big")
                       for _, data in wire.run()})  # fmt: skip

    plain = survivors(Conditions(loss=0.1))
    assert plain == survivors(Conditions(loss=0.1, jitter_us=3_000, reorder=0.2))
    assert plain != survivors(Conditions(loss=0.11))


def test_a_cut_loses_what_is_under_way_and_what_enters(make_wire: Any) -> None:
    wire = make_wire(Conditions(delay_us=10_000, reorder=0.5))
    wire.send(*[PACKET] * 10)
    wire.clock.at(5_000, lambda: wire.direction.set_up(False))
    wire.clock.at(6_000, lambda: wire.send(PACKET))
    wire.clock.at(20_000, lambda: wire.direction.set_up(True))
    wire.clock.at(21_000, lambda: wire.send(b"x" * 40))
    assert [data for _, data in wire.run()] == [b"x" * 40]
    assert wire.direction.down_drops == 11


def test_the_same_seed_gives_the_same_accidents(make_wire: Any) -> None:
    conditions = Conditions(rate_bps=50 * MBIT, delay_us=MILLISECOND, loss=0.1, jitter_us=500, duplicate=0.1,
                            corrupt=0.1, reorder=0.1)  # fmt: skip
    runs = []
    for seed in (1, 1, 2):
        wire = make_wire(conditions, seed)
        wire.send(*[PACKET] * 100)
        runs.append(wire.run(SECOND))
    assert runs[0] == runs[1] != runs[2]


def test_impossible_conditions_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="loss"):
        Conditions(loss=1.5)
    with pytest.raises(ConfigurationError, match="rate_bps"):
        Conditions(rate_bps=-1)
