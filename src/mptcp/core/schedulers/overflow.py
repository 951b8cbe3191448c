"""The first path is filled before the second is touched (RFC 6897 Appendix A.2: "use as overflow")."""

from __future__ import annotations

from collections.abc import Sequence

from mptcp.core.schedulers.base import Scheduler, eligible
from mptcp.core.units import MILLISECOND
from mptcp.info import PathInfo

#: The next path is used when what waits would keep the ones before it busy for longer than this.
SPILL_US = 250 * MILLISECOND


class Overflow(Scheduler):
    """Order: larger weight first, then the older subflow. A path that has failed is passed over at once.

    ``spill_us``: how long the path that comes first would need for what waits before the next one helps; 0: whenever
    it cannot send.
    """

    __slots__ = ("_spill_us",)

    name = "overflow"
    helps_out = True
    uses_weights = True

    def __init__(self, spill_us: int = SPILL_US) -> None:
        self._spill_us = spill_us

    def select(self, paths: Sequence[PathInfo], length: int, now: int) -> PathInfo | None:
        rate = 0.0  # octets per microsecond of the paths passed over, together
        for path in sorted(eligible(paths), key=_order):
            if path.sendable_bytes > 0:
                if rate and length < rate * self._spill_us:
                    return None
                return path
            if path.srtt_us and path.in_flight_bytes:
                rate += path.cwnd_bytes / path.srtt_us
        return None

    def select_reinjection(self, paths: Sequence[PathInfo], length: int, now: int) -> PathInfo | None:
        """What another path has failed to deliver does not wait."""
        return next((path for path in sorted(eligible(paths), key=_order) if path.sendable_bytes > 0), None)


def _order(path: PathInfo) -> tuple[int, int]:
    return -path.weight, path.id
