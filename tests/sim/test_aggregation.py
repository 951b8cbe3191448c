"""Several paths give what they give alone, added up."""

from __future__ import annotations

import time

import pytest

from mptcp.core.multipath.config import DEFAULT_CONFIG, ConnectionConfig
from mptcp.core.tcp.config import TcpConfig
from mptcp.core.units import MBIT, MIB, MILLISECOND, SECOND
from mptcp.sim.applications import BulkReceiver, BulkSender
from mptcp.sim.conditions import Conditions
from mptcp.sim.scenarios import Setup, Topology

#: Goodput is measured when slow start is over.
FROM_US, UNTIL_US = 1500 * MILLISECOND, 3500 * MILLISECOND

#: Room for the bandwidth-delay product of all paths at the longest delay, queues included (RFC 8684 §3.3.3: twice).
OPTIONS = DEFAULT_CONFIG.changed(
    tcp=TcpConfig(send_buffer_bytes=16 * MIB, receive_buffer_bytes=MIB, receive_buffer_max_bytes=16 * MIB)
)


def goodput_mbps(*paths: Conditions, options: ConnectionConfig = OPTIONS) -> float:
    """Of an endless upload over these paths at once."""
    setup = Setup(Topology("", paths))
    acceptor = setup.listen(BulkReceiver, options)
    client = setup.connect(options)
    setup.client_host.attach(client, BulkSender(setup.client_host, client))
    setup.world.run(until=UNTIL_US)
    (receiver,) = acceptor.accepted
    assert isinstance(receiver, BulkReceiver)
    assert receiver.is_exact
    return receiver.progress.goodput_bps(FROM_US, UNTIL_US) / 1e6


def path(mbps: int, round_trip_ms: int) -> Conditions:
    """With a queue of one bandwidth-delay product, and at least 64 KiB."""
    queue = max(65_536, mbps * MBIT // 8 * round_trip_ms // 1000)
    return Conditions(rate_bps=mbps * MBIT, delay_us=round_trip_ms * MILLISECOND // 2, queue_bytes=queue)


def test_two_equal_paths_give_095_of_the_sum_of_what_tcp_gets_on_each() -> None:
    one = goodput_mbps(path(100, 10), options=OPTIONS.changed(multipath=False))
    assert one > 90
    both = goodput_mbps(path(100, 10), path(100, 10))
    assert both >= 0.95 * 2 * one, (both, one)


def test_unequal_paths_give_090_of_the_sum_of_what_tcp_gets_on_each() -> None:
    fast = goodput_mbps(path(100, 10), options=OPTIONS.changed(multipath=False))
    slow = goodput_mbps(path(20, 50), options=OPTIONS.changed(multipath=False))
    assert slow > 17
    both = goodput_mbps(path(100, 10), path(20, 50))
    assert both >= 0.90 * (fast + slow), (both, fast, slow)


@pytest.mark.slow
def test_sixty_seconds_of_two_50_mbit_paths_run_faster_than_real_time() -> None:
    setup = Setup(Topology("", (path(50, 20), path(50, 20))), gso_max_bytes=64_000)
    acceptor = setup.listen(BulkReceiver, OPTIONS)
    client = setup.connect(OPTIONS)
    setup.client_host.attach(client, BulkSender(setup.client_host, client))
    started = time.process_time()
    setup.world.run(until=60 * SECOND)
    assert time.process_time() - started < 60
    (receiver,) = acceptor.accepted
    assert isinstance(receiver, BulkReceiver)
    assert receiver.is_exact
    assert receiver.progress.goodput_bps(FROM_US, 60 * SECOND) > 0.9 * 100 * MBIT
