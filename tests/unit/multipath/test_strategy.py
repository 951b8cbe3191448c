"""Redundancy, coupling and strategies that change while the connection lives."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mptcp.core.congestion.coupled import CoupledControl
from mptcp.core.congestion.cubic import Cubic
from mptcp.core.congestion.lia import LIA
from mptcp.core.multipath import strategy
from mptcp.core.multipath.config import DEFAULT_CONFIG, ConnectionConfig
from mptcp.core.path_managers.backup import Backup
from mptcp.core.path_managers.base import PathManager
from mptcp.core.path_managers.fullmesh import FullMesh
from mptcp.core.path_managers.ndiffports import Ndiffports
from mptcp.core.path_managers.none import NoSubflows
from mptcp.core.path_managers.on_demand import OnDemand
from mptcp.core.schedulers.base import Redundancy
from mptcp.core.schedulers.overflow import Overflow
from mptcp.core.schedulers.redundant import Redundant
from mptcp.core.schedulers.weighted import Weighted
from mptcp.core.units import KIB, MBIT, MILLISECOND, SECOND
from mptcp.errors import NotSupportedError, PathError
from mptcp.info import Endpoint
from mptcp.sim.applications import BulkReceiver, BulkSender
from mptcp.sim.conditions import Conditions
from mptcp.testing.pair import Pair

PATH = Conditions(rate_bps=10 * MBIT, delay_us=10 * MILLISECOND, queue_bytes=64 * KIB)
FAMILIES = pytest.mark.parametrize("ipv6", [False, True], ids=["v4", "v6"])


def pair(options: ConnectionConfig = DEFAULT_CONFIG, *, subflows: int = 2, paths: int = 2, ipv6: bool = False) -> Pair:
    made = Pair(paths=paths, conditions=PATH, client_options=options, ipv6=ipv6)
    made.connect(subflows=subflows)
    return made


def managed(make: Callable[[], PathManager]) -> ConnectionConfig:
    return DEFAULT_CONFIG.changed(path_manager=make)


# --- REQ12: redundancy ------------------------------------------------------------------------------------------------
@FAMILIES
def test_with_redundancy_everything_goes_over_both_paths(ipv6: bool) -> None:
    made = pair(DEFAULT_CONFIG.changed(redundancy=Redundancy.ALL), ipv6=ipv6)
    assert made.transfer(400_000).is_exact
    assert [path.forward.bytes_delivered > 350_000 for path in made.paths] == [True, True]
    copied = [info.bytes_copied for info in made.client.subflows()]
    assert sum(copied) > 350_000


def test_without_redundancy_nothing_goes_twice() -> None:
    made = pair()
    assert made.transfer(400_000).is_exact
    assert sum(info.bytes_copied for info in made.client.subflows()) == 0
    assert sum(path.forward.bytes_delivered for path in made.paths) < 500_000


def test_redundancy_on_retransmission_copies_what_is_lost_and_nothing_else() -> None:
    made = pair(DEFAULT_CONFIG.changed(redundancy=Redundancy.ON_RETRANSMISSION))
    made.paths[0].forward.set_conditions(PATH.changed(loss=0.02))
    assert made.transfer(1_000_000).is_exact
    counters = made.client_host.stack.counters
    assert counters["redundant_retransmission"] > 0
    assert "redundant_copy" not in counters
    assert 0 < sum(info.bytes_reinjected for info in made.client.subflows()) < 200_000


def test_redundancy_can_be_changed_in_the_middle() -> None:
    made = pair()
    sender, receiver = bulk(made)
    made.run(for_us=SECOND)
    assert "redundant_copy" not in made.client_host.stack.counters
    strategy.set_redundancy(made.client, Redundancy.ALL)
    made.run(for_us=SECOND)
    copies = made.client_host.stack.counters["redundant_copy"]
    assert copies > 0
    strategy.set_redundancy(made.client, Redundancy.NONE)
    made.run(for_us=SECOND)
    assert made.client_host.stack.counters["redundant_copy"] == copies
    sender.stop()
    made.run(while_=lambda: not receiver.ended)
    assert receiver.is_exact


def test_a_path_that_dies_costs_nothing_with_redundancy() -> None:
    made = pair(DEFAULT_CONFIG.changed(scheduler=Redundant))
    _, receiver = bulk(made)
    made.paths[0].cut(made.now + SECOND)
    made.run(for_us=3 * SECOND)
    assert receiver.is_exact
    assert receiver.progress.longest_stall_us < 100 * MILLISECOND


# --- REQ11: scheduler and preferences, mid-transfer --------------------------------------------------------------------
def bulk(made: Pair) -> tuple[BulkSender, BulkReceiver]:
    sender = BulkSender(made.client_host, made.client)
    receiver = BulkReceiver(made.server_host, made.server, keep_open=True)
    made.server_host.attach(made.server, receiver)
    made.client_host.attach(made.client, sender)
    return sender, receiver


def carried(made: Pair, for_us: int) -> list[int]:
    """Octets over each path in that time."""
    before = [path.forward.bytes_delivered for path in made.paths]
    made.run(for_us=for_us)
    return [path.forward.bytes_delivered - b for path, b in zip(made.paths, before, strict=True)]


@FAMILIES
def test_weights_change_the_shares_in_the_middle_of_a_transfer(ipv6: bool) -> None:
    made = pair(DEFAULT_CONFIG.changed(scheduler=lambda: Weighted(strict=True)), ipv6=ipv6)
    _, receiver = bulk(made)
    made.run(for_us=SECOND)
    even = carried(made, 2 * SECOND)
    assert 0.8 < even[0] / even[1] < 1.25
    second = made.client.subflows()[1].id
    strategy.set_weight(made.client, second, 4)
    made.run(for_us=SECOND)
    shares = carried(made, 2 * SECOND)
    assert 3.2 < shares[1] / shares[0] < 4.8
    assert made.client.subflows()[1].weight == 4
    assert receiver.is_exact


def test_weight_0_is_for_when_nothing_else_works_and_the_peer_is_not_told() -> None:
    made = pair()
    strategy.set_weight(made.client, made.client.subflows()[1].id, 0)
    _, receiver = bulk(made)
    assert carried(made, SECOND)[1] < 10_000
    assert not any(info.backup for info in made.server.subflows())
    made.paths[0].cut()
    assert carried(made, 3 * SECOND)[1] > 1_000_000
    assert receiver.is_exact


def test_backup_can_be_changed_in_the_middle() -> None:
    made = pair()
    _, receiver = bulk(made)
    second = made.client.subflows()[1].id
    made.client.set_backup(second, True, made.now)
    made.run(for_us=SECOND // 2)
    assert carried(made, SECOND)[1] < 10_000
    assert made.server.subflows()[1].backup
    made.client.set_backup(second, False, made.now)
    made.run(for_us=SECOND // 2)
    assert carried(made, SECOND)[1] > 500_000
    assert receiver.is_exact


def test_a_scheduler_can_be_changed_in_the_middle() -> None:
    made = pair()
    _, receiver = bulk(made)
    made.run(for_us=SECOND)
    strategy.set_scheduler(made.client, lambda: Overflow(spill_us=60 * SECOND))
    made.run(for_us=SECOND // 2)
    first, second = carried(made, SECOND)
    assert first > 1_000_000
    assert second < 20_000
    strategy.set_scheduler(made.client, None)
    made.run(for_us=SECOND // 2)
    assert min(carried(made, SECOND)) > 500_000
    assert receiver.is_exact


def test_wrong_weights() -> None:
    made = pair()
    with pytest.raises(PathError, match="no subflow"):
        strategy.set_weight(made.client, 77, 1)
    with pytest.raises(PathError, match="between"):
        strategy.set_weight(made.client, 1, -1)
    with pytest.raises(PathError, match="between"):
        strategy.set_weight(made.client, 1, strategy.MAX_WEIGHT + 1)
    with pytest.raises(NotSupportedError, match="weighted"):
        strategy.set_weight(made.client, 1, 2)


# --- coupling ------------------------------------------------------------------------------------------------------------
def test_subflows_of_a_connection_share_a_group_and_leave_it() -> None:
    made = pair(DEFAULT_CONFIG.changed(tcp=DEFAULT_CONFIG.tcp.changed(congestion=LIA)))
    controls = [s.tcp.sender.congestion for s in made.client.open_subflows()]
    assert all(isinstance(control, CoupledControl) for control in controls)
    (group,) = {control.group for control in controls if isinstance(control, CoupledControl)}
    assert len(group.members) == 2
    other = pair(DEFAULT_CONFIG.changed(tcp=DEFAULT_CONFIG.tcp.changed(congestion=LIA)))
    assert other.client.open_subflows()[0].tcp.sender.congestion.group is not group  # type: ignore[attr-defined]
    made.client.close_subflow(made.client.subflows()[1].id, made.now)
    made.drain()
    assert group.members == [controls[0]]


def test_congestion_control_can_be_changed_in_the_middle_and_keeps_its_window() -> None:
    made = pair()
    _, receiver = bulk(made)
    made.run(for_us=SECOND)
    before = [s.tcp.sender.congestion.cwnd_bytes for s in made.client.open_subflows()]
    made.client.set_tcp_option("congestion", LIA)
    controls = [s.tcp.sender.congestion for s in made.client.open_subflows()]
    assert [control.name for control in controls] == ["lia", "lia"]
    assert [control.cwnd_bytes for control in controls] == before
    assert controls[0].group is controls[1].group  # type: ignore[attr-defined]
    made.run(for_us=SECOND)
    made.client.set_tcp_option("congestion", Cubic)
    assert not controls[0].group.members  # type: ignore[attr-defined]
    made.run(for_us=SECOND)
    assert receiver.is_exact


# --- REQ7 and REQ10: how many subflows, and when ---------------------------------------------------------------------------
@FAMILIES
def test_a_wanted_number_of_subflows_is_opened_and_closed(ipv6: bool) -> None:
    made = pair(ipv6=ipv6)
    for wanted in (5, 1, 3):
        strategy.set_wanted_subflows(made.client, wanted, made.now)
        made.drain(2 * SECOND)
        assert made.active_subflows() == wanted
        assert len(made.client.open_subflows()) == wanted
    assert len({info.local.host for info in made.client.subflows()}) == 2  # different addresses come first
    assert made.transfer(100_000).is_exact


def test_a_server_closes_what_is_too_many_and_opens_nothing() -> None:
    made = pair()
    strategy.set_wanted_subflows(made.server, 1, made.now)
    made.drain(SECOND // 2)
    assert len(made.server.open_subflows()) == 1
    strategy.set_wanted_subflows(made.server, 4, made.now)
    made.drain(SECOND // 4)
    assert len(made.server.open_subflows()) == 1


def test_wrong_numbers_of_subflows() -> None:
    made = pair()
    for wrong in (0, -1, DEFAULT_CONFIG.max_subflows + 1):
        with pytest.raises(PathError, match="between 1 and 8"):
            strategy.set_wanted_subflows(made.client, wrong, made.now)
    plain = pair(DEFAULT_CONFIG.changed(multipath=False), subflows=1)
    with pytest.raises(PathError, match="regular TCP"):
        strategy.set_wanted_subflows(plain.client, 2, plain.now)


def test_ndiffports_opens_several_between_the_same_addresses_and_replaces_a_lost_one() -> None:
    made = pair(managed(lambda: Ndiffports(3)), subflows=3)
    infos = made.client.subflows()
    assert len({info.local.host for info in infos}) == 1
    assert len({info.local.port for info in infos}) == 3
    made.server.close_subflow(made.server.subflows()[2].id, made.now, reset=True)
    made.drain(3 * SECOND)
    assert made.active_subflows() == 3
    assert made.transfer(100_000).is_exact
    with pytest.raises(ValueError, match="at least one"):
        Ndiffports(0)


def test_none_opens_nothing_but_takes_what_is_asked_for() -> None:
    made = pair(managed(NoSubflows), subflows=1)
    made.drain(5 * SECOND)
    assert len(made.client.subflows()) == 1
    local = Endpoint(made.client_ports[1].addresses[0])
    made.client.open_subflow(local, made.client.remote, made.now)
    made.drain()
    assert made.active_subflows() == 2


@FAMILIES
def test_backup_opens_the_second_path_when_the_first_one_fails(ipv6: bool) -> None:
    made = pair(managed(Backup), subflows=1, ipv6=ipv6)
    _, receiver = bulk(made)
    made.run(for_us=SECOND)
    assert made.paths[1].forward.packets_entered == 0
    made.paths[0].cut()
    made.run(for_us=4 * SECOND)
    assert made.paths[1].forward.bytes_delivered > 1_000_000
    assert receiver.is_exact
    assert receiver.progress.longest_stall_us < 2 * SECOND


def test_backup_opens_the_second_path_when_the_first_one_is_closed() -> None:
    made = pair(managed(Backup), subflows=1)
    made.drain()
    made.client_host.set_interface_up(made.client_ports[0], False)
    made.drain(SECOND)
    assert [info.local.address for info in made.client.subflows()] == [made.client_ports[1].addresses[0]]
    assert made.transfer(100_000).is_exact


def test_hot_standby_subflows_are_established_and_idle() -> None:
    made = pair(managed(lambda: FullMesh(standby=True)))
    assert [info.backup for info in made.client.subflows()] == [False, True]
    assert [info.backup for info in made.server.subflows()] == [False, True]
    _, receiver = bulk(made)
    assert carried(made, SECOND)[1] < 10_000
    made.paths[0].cut()
    assert carried(made, 2 * SECOND)[1] > 1_000_000
    assert receiver.is_exact


def test_on_demand_waits_for_so_much_data_in_either_direction() -> None:
    for from_client in (True, False):
        made = pair(managed(lambda: OnDemand(after_bytes=200_000)), subflows=1)
        made.drain(2 * SECOND)
        assert len(made.client.subflows()) == 1
        made.transfer(100_000, from_client=from_client)
        assert len(made.client.subflows()) == 1
        assert made.paths[1].forward.packets_entered == 0
    made = pair(managed(lambda: OnDemand(after_bytes=200_000)), subflows=1)
    bulk(made)
    made.run(for_us=SECOND)
    assert made.active_subflows() == 2


def test_on_demand_waits_for_so_long() -> None:
    made = pair(managed(lambda: OnDemand(after_bytes=1 << 40, after_us=2 * SECOND)), subflows=1)
    made.drain(SECOND)
    made.transfer(1000)
    assert len(made.client.subflows()) == 1
    made.drain(2 * SECOND)
    assert made.active_subflows() == 2


def test_on_demand_when_the_connection_is_saturated() -> None:
    made = pair(managed(lambda: OnDemand(after_bytes=1 << 40, saturated_us=200 * MILLISECOND)), subflows=1)
    bulk(made)
    made.run(for_us=150 * MILLISECOND)
    assert len(made.client.subflows()) == 1
    made.run(for_us=400 * MILLISECOND)
    assert made.active_subflows() == 2


def test_on_demand_the_loss_of_the_only_path_is_demand_enough() -> None:
    made = pair(managed(lambda: OnDemand(after_bytes=1 << 40)), subflows=1)
    sender, receiver = bulk(made)
    made.run(for_us=SECOND // 2)
    made.paths[0].cut()
    made.run(for_us=3 * SECOND)
    assert made.paths[1].forward.bytes_delivered > 500_000
    sender.stop()
    made.run(while_=lambda: not receiver.ended, for_us=60 * SECOND)
    assert receiver.is_exact
