"""One path after the other: an even spread over paths that are alike, and a yardstick for other schedulers."""

from __future__ import annotations

from collections.abc import Sequence

from mptcp.core.schedulers.base import Scheduler, eligible
from mptcp.info import PathInfo


class RoundRobin(Scheduler):
    """The path with the next higher id that can send; a path that cannot is passed over."""

    __slots__ = ("_last",)

    name = "round-robin"

    def __init__(self) -> None:
        self._last = -1

    def select(self, paths: Sequence[PathInfo], length: int, now: int) -> PathInfo | None:
        following: PathInfo | None = None
        first: PathInfo | None = None
        for path in eligible(paths):
            if path.sendable_bytes <= 0:
                continue
            if first is None or path.id < first.id:
                first = path
            if path.id > self._last and (following is None or path.id < following.id):
                following = path
        return following or first

    def on_given(self, path: PathInfo, length: int) -> None:
        self._last = path.id
