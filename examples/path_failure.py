"""What happens when a path dies silently in the middle of a transfer: virtual time, a table, a capture to look at.

python examples/path_failure.py [capture.pcapng]        then: mptcp dump capture.pcapng
"""

import sys
from pathlib import Path

from mptcp.core.units import MBIT, MILLISECOND, SECOND
from mptcp.sim.conditions import Conditions
from mptcp.sim.report import report
from mptcp.sim.trace import PcapngWriter
from mptcp.testing.pair import Pair

path = Conditions(rate_bps=20 * MBIT, delay_us=20 * MILLISECOND, queue_bytes=100_000)
pair = Pair(paths=2, conditions=path)
pair.world.capture(PcapngWriter((octets := bytearray()).extend))
pair.connect(subflows=2)
pair.paths[0].cut(at_us=pair.world.now + SECOND)
receiver = pair.transfer(10_000_000)
print(report(pair.client, receiver.progress, paths=pair.paths).table())
while (event := pair.client.poll_event()) is not None:
    print(f"{event.at_us / SECOND:8.3f} s  {event.kind.value}  {event.local or ''} {event.reason}")
if len(sys.argv) > 1:
    Path(sys.argv[1]).write_bytes(octets)
