"""Everything over every path: the fastest copy counts, and the loss of a path costs nothing."""

from __future__ import annotations

from mptcp.core.schedulers.base import Redundancy
from mptcp.core.schedulers.lowest_rtt import LowestRtt


class Redundant(LowestRtt):
    """New data goes by lowest RTT; copies of it wherever else there is room. ``ALL`` makes the connection as fast as its
    best path, and no faster."""

    __slots__ = ()

    name = "redundant"
    redundancy = Redundancy.ALL


class RedundantRetransmission(LowestRtt):
    """Only what a path has lost goes over another one as well."""

    __slots__ = ()

    name = "redundant-retransmission"
    redundancy = Redundancy.ON_RETRANSMISSION
