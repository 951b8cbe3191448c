"""How fast the simulator runs two whole stacks: seconds of CPU for each second of virtual time, over two paths.

Run: ``python benchmarks/sim_transfer.py [virtual seconds]``.
"""

from __future__ import annotations

import sys
import time

from mptcp.core.multipath.config import DEFAULT_CONFIG
from mptcp.core.tcp.config import TcpConfig
from mptcp.core.units import MBIT, MIB, MILLISECOND, SECOND
from mptcp.sim.applications import BulkReceiver, BulkSender
from mptcp.sim.conditions import Conditions
from mptcp.sim.scenarios import Setup, Topology

OPTIONS = DEFAULT_CONFIG.changed(
    tcp=TcpConfig(send_buffer_bytes=16 * MIB, receive_buffer_bytes=MIB, receive_buffer_max_bytes=16 * MIB)
)


def run(rate_mbps: int, seconds: int, gso_max_bytes: int) -> tuple[float, int, float]:
    """(CPU seconds, packets, goodput in Mbit/s) of an upload over two such paths, 20 ms round trip."""
    path = Conditions(rate_bps=rate_mbps * MBIT, delay_us=10 * MILLISECOND, queue_bytes=rate_mbps * MBIT // 8 // 50)
    setup = Setup(Topology("", (path, path)), gso_max_bytes=gso_max_bytes)
    acceptor = setup.listen(BulkReceiver, OPTIONS)
    client = setup.connect(OPTIONS)
    setup.client_host.attach(client, BulkSender(setup.client_host, client))
    started = time.process_time()
    setup.world.run(until=seconds * SECOND)
    elapsed = time.process_time() - started
    packets = sum(d.packets_delivered for path in setup.paths for d in (path.forward, path.backward))
    (receiver,) = acceptor.accepted
    assert isinstance(receiver, BulkReceiver)
    assert receiver.is_exact
    return elapsed, packets, receiver.progress.goodput_bps() / 1e6


def main() -> int:
    seconds = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    print(f"{'two paths of':<16}{'segments':<12}{'goodput':>14}{'packets':>10}{'us/packet':>11}{'CPU s per 60 s':>16}")
    for rate_mbps in (10, 50):
        for gso_max_bytes, name in ((0, "single"), (64_000, "offloaded")):
            elapsed, packets, goodput = run(rate_mbps, seconds, gso_max_bytes)
            print(
                f"{f'{rate_mbps} Mbit/s':<16}{name:<12}{f'{goodput:.1f} Mbit/s':>14}{packets:>10}"
                f"{elapsed * 1e6 / packets:>11.1f}{elapsed * 60 / seconds:>16.1f}"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
