"""The default scheduler: of the paths that may send now, the one with the lowest smoothed RTT."""

from __future__ import annotations

from collections.abc import Sequence

from mptcp.core.schedulers.base import Scheduler
from mptcp.info import PathInfo


class LowestRtt(Scheduler):
    """Backup paths only when there is no other (RFC 8684 §3.3.8); a path without a sample yet is tried last."""

    __slots__ = ()

    name = "lowest-rtt"
    helps_out = True

    def select(self, paths: Sequence[PathInfo], length: int, now: int) -> PathInfo | None:
        best: PathInfo | None = None
        regular = False
        for path in paths:
            if not path.backup and not path.stale and path.weight:
                regular = True
                break
        for path in paths:
            # RFC 8684 §3.3.8: "SHOULD NOT be used to send data unless there are no usable subflows where B=0"
            if path.sendable_bytes <= 0 or (regular and (path.backup or path.stale or not path.weight)):
                continue
            if best is None or _rank(path) < _rank(best):
                best = path
        return best


def _rank(path: PathInfo) -> tuple[bool, bool, int]:
    return path.stale, path.srtt_us == 0, path.srtt_us
