"""What a box on the path is. The boxes themselves are in ``middleboxes``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mptcp.sim.clock import VirtualClock

#: (packet, forward): puts a packet of the box's own making on the path, behind the box.
Inject = Callable[[bytes, bool], None]


class Middlebox(ABC):
    """Sees every packet of a path, in both directions, where it enters; ``forward`` tells the direction.

    One instance belongs to one path. ``attach`` is called before the first packet; a box that delays or originates
    packets keeps the clock and ``inject``.
    """

    __slots__ = ()

    def attach(self, clock: VirtualClock, inject: Inject) -> None:  # noqa: B027 - most boxes need neither
        """The path's clock, and the way to send packets of its own."""

    @abstractmethod
    def process(self, data: bytes, forward: bool, now: int) -> Sequence[bytes]:
        """The packets to pass on instead of ``data`` (a whole IP packet, checksum complete), in order; empty: none."""
