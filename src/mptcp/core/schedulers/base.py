"""What a scheduler is: given the paths and their facts, say which one takes the next data."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from enum import IntEnum

from mptcp.info import PathInfo


class Redundancy(IntEnum):
    """How much of the stream goes over more than one path (RFC 6897 Appendix A.3, REQ12)."""

    NONE = 0
    ON_RETRANSMISSION = 1  # what a path has lost is sent again on another one as well
    ALL = 2  # everything goes over every path that can keep up


class Scheduler(ABC):
    """One instance per connection. ``select`` is asked again for every mapping, so it must be quick."""

    __slots__ = ()

    name = ""

    #: Whether an idle path may send again what a slower one holds up at the head of the line, when the shared window is
    #: full or the stream is at its end. A scheduler that is to have each octet where it put it leaves this alone.
    helps_out = False
    #: What the scheduler itself asks for; a connection can ask for more.
    redundancy = Redundancy.NONE
    #: Whether ``PathInfo.weight`` makes a difference to it beyond 0 and not 0.
    uses_weights = False
    #: Whether it wants to hear of the shared window (``on_window``) before it is asked.
    watches_window = False

    @abstractmethod
    def select(self, paths: Sequence[PathInfo], length: int, now: int) -> PathInfo | None:
        """The path for the next octets of new data, out of those usable, ``length`` being all that waits; None: wait.

        Only a path with ``sendable_bytes`` > 0 can be chosen; to wait for a better one is allowed, as long as some
        acknowledgement is outstanding that will ask again.
        """

    def select_reinjection(self, paths: Sequence[PathInfo], length: int, now: int) -> PathInfo | None:
        """The path for data that another subflow has failed to deliver; its own subflow is not among ``paths``."""
        return self.select(paths, length, now)

    def select_copies(self, paths: Sequence[PathInfo], now: int) -> Sequence[PathInfo]:
        """With redundancy: which of ``paths``, those that can send now, carry copies. Backups do where all are."""
        return eligible(paths)

    def on_given(self, path: PathInfo, length: int) -> None:  # noqa: B027 most have nothing to keep
        """``length`` octets of new data were given to ``path``."""

    def on_window(self, window_bytes: int, room_bytes: int) -> None:  # noqa: B027 most do not ask for it
        """The shared window, as far as it is used, and what of it is free; asked for with ``watches_window``."""


def eligible(paths: Sequence[PathInfo]) -> Sequence[PathInfo]:
    """The paths that data is for: regular ones; without any, backups (and those of weight 0); then whatever is left."""
    # RFC 8684 §3.3.8: a backup path "SHOULD NOT be used to send data unless there are no usable subflows where B=0"
    regular = [path for path in paths if not path.backup and not path.stale and path.weight]
    if regular:
        return regular
    return [path for path in paths if not path.stale] or paths


def quickest(paths: Sequence[PathInfo]) -> PathInfo | None:
    """The path with the lowest smoothed RTT of those that may send now; one without a sample comes last."""
    best: PathInfo | None = None
    rank = 0
    for path in paths:
        if path.sendable_bytes > 0:
            this = path.srtt_us or 1 << 60
            if best is None or this < rank:
                best, rank = path, this
    return best
