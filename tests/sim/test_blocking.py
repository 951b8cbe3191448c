"""Schedulers on a fast and a slow path with a window that the slow one alone could fill."""

from __future__ import annotations

import pytest

from mptcp.core.multipath.config import ConnectionConfig
from mptcp.core.schedulers.registry import SCHEDULERS
from mptcp.core.tcp.config import TcpConfig
from mptcp.core.units import KIB, MBIT, MILLISECOND
from mptcp.sim.conditions import Conditions
from mptcp.testing.pair import Pair

SIZE = 4_000_000


def rate(scheduler: str, window_kib: int) -> float:
    """Mbit/s over 20 Mbit/s at a round trip of 10 ms and 5 Mbit/s at 150 ms."""
    options = ConnectionConfig(
        tcp=TcpConfig(receive_buffer_bytes=window_kib * KIB, receive_buffer_max_bytes=window_kib * KIB)
    )
    pair = Pair(
        paths=2,
        conditions=[
            Conditions(rate_bps=20 * MBIT, delay_us=5 * MILLISECOND, queue_bytes=100_000),
            Conditions(rate_bps=5 * MBIT, delay_us=75 * MILLISECOND, queue_bytes=100_000),
        ],
        client_options=options.changed(scheduler=SCHEDULERS[scheduler]),
        server_options=options,
    )
    pair.connect(subflows=2)
    before = pair.world.now
    pair.transfer(SIZE)
    return SIZE * 8 / (pair.world.now - before)


def test_blest_is_not_blocked_by_the_slow_path() -> None:
    assert rate("blest", 256) > 1.2 * rate("lowest-rtt", 256)


@pytest.mark.parametrize("window_kib", [64, 1024])
def test_blest_loses_nothing_where_nothing_blocks(window_kib: int) -> None:
    assert rate("blest", window_kib) > 0.98 * rate("lowest-rtt", window_kib)
