"""A scheduler of one's own, in virtual time: wait for the cheap path rather than use the dear one, while it works.

python examples/own_scheduler.py
"""

from collections.abc import Sequence

from mptcp.core.multipath.config import ConnectionConfig
from mptcp.core.schedulers.base import Scheduler
from mptcp.core.schedulers.lowest_rtt import LowestRtt
from mptcp.core.units import MBIT, MILLISECOND
from mptcp.info import PathInfo
from mptcp.sim.conditions import Conditions
from mptcp.sim.report import report
from mptcp.testing.pair import Pair


class CheapFirst(Scheduler):
    """``select`` sees facts, never a connection. None means: wait for an acknowledgement, then ask again."""

    cheap = bytes((10, 0, 0, 1))

    def select(self, paths: Sequence[PathInfo], length: int, now: int) -> PathInfo | None:
        for path in paths:
            if path.local.address == self.cheap and not path.stale:
                return path if path.sendable_bytes > 0 else None
        return max(paths, key=lambda path: path.sendable_bytes, default=None)


for scheduler in (LowestRtt, CheapFirst):
    pair = Pair(
        paths=2,
        conditions=[
            Conditions(rate_bps=20 * MBIT, delay_us=30 * MILLISECOND, queue_bytes=200_000),  # 10.0.0.1: cheap, but slow
            Conditions(rate_bps=20 * MBIT, delay_us=5 * MILLISECOND, queue_bytes=200_000),  # 10.0.1.1: dear, and fast
        ],
        client_options=ConnectionConfig(scheduler=scheduler),
    )
    pair.connect(subflows=2)
    receiver = pair.transfer(150_000)
    print(f"{scheduler.__name__}:")
    print(report(pair.client, receiver.progress, paths=pair.paths).table())
    print()
