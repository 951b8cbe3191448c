"""The schedulers by name."""

from __future__ import annotations

from collections.abc import Callable

from mptcp.core.schedulers.base import Scheduler
from mptcp.core.schedulers.blest import Blest
from mptcp.core.schedulers.earliest_completion import EarliestCompletion
from mptcp.core.schedulers.lowest_rtt import LowestRtt
from mptcp.core.schedulers.overflow import Overflow
from mptcp.core.schedulers.redundant import Redundant, RedundantRetransmission
from mptcp.core.schedulers.round_robin import RoundRobin
from mptcp.core.schedulers.steady import Steady
from mptcp.core.schedulers.weighted import Weighted

#: name -> how one is made for a connection.
SCHEDULERS: dict[str, Callable[[], Scheduler]] = {
    scheduler.name: scheduler
    for scheduler in (
        LowestRtt, RoundRobin, Weighted, Overflow, EarliestCompletion, Blest, Steady, Redundant, RedundantRetransmission,
    )
}  # fmt: skip
