"""Two whole hosts over simulated paths."""

from __future__ import annotations

import pytest

from mptcp.core.units import MBIT
from mptcp.sim.conditions import Conditions
from mptcp.testing.pair import Pair


@pytest.mark.parametrize("ipv6", [False, True])
def test_connect_transfer_close(ipv6: bool) -> None:
    pair = Pair(ipv6=ipv6)
    client, server = pair.connect()
    assert client.is_multipath
    assert server.is_multipath
    receiver = pair.transfer(50_000)
    assert receiver.is_exact
    assert receiver.progress.total == 50_000
    back = pair.transfer(20_000, from_client=False)
    assert back.is_exact
    assert back.progress.total == 20_000
    pair.close()
    assert not pair.client_host.stack.connections
    assert not pair.server_host.stack.connections


@pytest.mark.parametrize("single_homed_server", [True, False])
def test_all_paths_are_used(single_homed_server: bool) -> None:
    conditions = Conditions(rate_bps=50 * MBIT, delay_us=5_000)
    pair = Pair(paths=2, conditions=conditions, single_homed_server=single_homed_server)
    pair.connect(subflows=2)
    assert pair.transfer(300_000).is_exact
    carried = [path.forward.bytes_delivered for path in pair.paths]
    assert min(carried) > 50_000


def test_the_same_seed_gives_the_same_packets_twice() -> None:
    def digest(seed: int) -> str:
        pair = Pair(seed=seed, conditions=Conditions(rate_bps=10 * MBIT, delay_us=5_000, loss=0.02), trace=True)
        pair.connect()
        assert pair.transfer(50_000).is_exact
        assert pair.world.trace is not None
        return pair.world.trace.digest

    assert digest(1) == digest(1) != digest(2)
