"""What a scheduler is: given the paths and their facts, say which one takes the next data."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from mptcp.info import PathInfo


class Scheduler(ABC):
    """One instance per connection. ``select`` is asked again for every mapping, so it must be quick."""

    __slots__ = ()

    name = ""

    #: Whether an idle path may send again what a slower one holds up at the head of the line, when the shared window is
    #: full or the stream is at its end. A scheduler that is to have each octet where it put it leaves this alone.
    helps_out = False

    @abstractmethod
    def select(self, paths: Sequence[PathInfo], length: int, now: int) -> PathInfo | None:
        """The path for the next ``length`` octets of new data, out of those usable; None: wait.

        Only a path with ``sendable_bytes`` > 0 can be chosen; to wait for a better one is allowed, as long as some
        acknowledgement is outstanding that will ask again.
        """

    def select_reinjection(self, paths: Sequence[PathInfo], length: int, now: int) -> PathInfo | None:
        """The path for data that another subflow has failed to deliver; its own subflow is not among ``paths``."""
        return self.select(paths, length, now)
