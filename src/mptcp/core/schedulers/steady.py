"""One path, the one that varies least, for as long as it works (RFC 6897 Appendix A.2: "a consistent bandwidth")."""

from __future__ import annotations

from collections.abc import Sequence

from mptcp.core.schedulers.base import Scheduler, eligible
from mptcp.core.units import MILLISECOND
from mptcp.info import PathInfo

#: Another path takes over a working one only if its round-trip time varies less than a quarter as much, ...
CALMER = 4
#: ... and the present one varies by more than this.
RESTLESS_US = 20 * MILLISECOND

#: With a rate to keep, the path lags behind when what waits is more than comes in this time.
LAG_US = 50 * MILLISECOND


class Steady(Scheduler):
    """Bandwidth that comes and goes with further paths is left unused. With ``rate_bps``, what the application needs, the
    other paths fill up what its path does not give of it, and nothing beyond."""

    __slots__ = ("_path_id", "_rate")

    name = "steady"

    def __init__(self, rate_bps: int = 0) -> None:
        self._rate = rate_bps / 8_000_000  # octets per microsecond
        self._path_id = -1

    def select(self, paths: Sequence[PathInfo], length: int, now: int) -> PathInfo | None:
        usable = eligible(paths)
        current = next((path for path in usable if path.id == self._path_id), None)
        if current is None or (current.rttvar_us > RESTLESS_US and len(usable) > 1):
            calmest = min(usable, key=_restlessness)
            if current is None or calmest.rttvar_us * CALMER < current.rttvar_us:
                current = calmest
                self._path_id = current.id
        blocked = current.sendable_bytes <= 0
        if self._rate and current.srtt_us and (blocked or length > self._rate * LAG_US):
            # It does not keep up: what is under way per round trip is what it gives.
            given = 0.0
            for path in sorted(usable, key=lambda path: path is not current):
                if given >= self._rate:
                    break
                if path is not current and path.sendable_bytes > 0:
                    return path
                given += path.in_flight_bytes / path.srtt_us if path.srtt_us else 0
        if not blocked:
            return current
        if not current.in_flight_bytes:
            # It cannot send although nothing is under way (its link is busy, its window closed): nothing would ask again.
            return next((path for path in usable if path.sendable_bytes > 0), None)
        return None

    def select_reinjection(self, paths: Sequence[PathInfo], length: int, now: int) -> PathInfo | None:
        return min((p for p in eligible(paths) if p.sendable_bytes > 0), key=_restlessness, default=None)


def _restlessness(path: PathInfo) -> tuple[bool, int, int]:
    return not path.srtt_us, path.rttvar_us, path.id
