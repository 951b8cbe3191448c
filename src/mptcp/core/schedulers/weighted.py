"""Shares that the application has set: octets in proportion to ``PathInfo.weight``."""

from __future__ import annotations

from collections.abc import Sequence

from mptcp.core.schedulers.base import Scheduler, eligible
from mptcp.info import PathInfo


class Weighted(Scheduler):
    """The path that is furthest behind its share comes first.

    Unless ``strict``, a path that cannot send is passed over, so that shares hold as far as the paths can carry them;
    ``strict`` waits for it instead, and a slow path with a large weight slows the whole connection down.
    """

    __slots__ = ("_given", "_strict")

    name = "weighted"
    uses_weights = True

    def __init__(self, strict: bool = False) -> None:
        self._strict = strict
        self._given: dict[int, float] = {}  # subflow -> octets by weight; what has ended is dropped

    def select(self, paths: Sequence[PathInfo], length: int, now: int) -> PathInfo | None:
        usable = eligible(paths)
        given = self._given
        if len(given) != len(usable) or any(path.id not in given for path in usable):
            # A newcomer starts where the others are: it need not catch up with their past.
            floor = min((given[path.id] for path in usable if path.id in given), default=0.0)
            given = self._given = {path.id: given.get(path.id, floor) for path in usable}
        best: PathInfo | None = None
        for path in usable:
            if path.sendable_bytes <= 0 and not (self._strict and path.in_flight_bytes):
                continue  # with nothing in flight no acknowledgement would ask again
            if best is None or given[path.id] < given[best.id]:
                best = path
        return best if best is not None and best.sendable_bytes > 0 else None

    def on_given(self, path: PathInfo, length: int) -> None:
        if path.id in self._given:
            self._given[path.id] += length / max(path.weight, 1)
