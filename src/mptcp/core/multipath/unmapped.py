"""Octets of a subflow that no mapping covers: held for a short while in the hope of one (RFC 8684 §3.3.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mptcp.core.units import SECOND
from mptcp.core.wire.mptcp_options import RST_MIDDLEBOX_INTERFERENCE, MpTcprst

if TYPE_CHECKING:
    from mptcp.core.multipath.subflow import Subflow

#: Octets held, the pieces in which they may come, and for how long a mapping is waited for.
MAX_UNMAPPED = 256 * 1024
MAX_UNMAPPED_PIECES = 1024
UNMAPPED_PATIENCE_US = SECOND


class Unmapped:
    """In the order they came: (number of the first octet in the subflow, octets)."""

    __slots__ = ("length", "pieces", "since_us")

    def __init__(self, now: int) -> None:
        self.pieces: list[tuple[int, memoryview]] = []
        self.length = 0
        self.since_us = now

    @property
    def deadline(self) -> int:
        return self.since_us + UNMAPPED_PATIENCE_US


def hold(subflow: Subflow, ssn: int, payload: memoryview, now: int) -> None:
    # RFC 8684 §3.7: a subflow whose options are lost in mid-connection "SHOULD be treated as broken and closed with a
    # RST, since no data can be delivered to the application layer and no fallback signal can be reliably sent". Linux
    # falls back here when there never was another subflow. We do not: a sender that has not noticed sends again what
    # gets no DATA_ACK, as new octets of the subflow, and without a mapping nobody can tell them from new data.
    # RFC 8684 §3.3.1: "Implementations MAY hold onto such unmapped data for a short while, in the expectation
    # that a mapping will arrive shortly."
    held = subflow.unmapped
    if held is None:
        held = subflow.unmapped = Unmapped(now)
        subflow.arm()
    held.pieces.append((ssn, payload))
    held.length += len(payload)
    subflow.connection.counters.bump("data_without_mapping")
    if held.length > MAX_UNMAPPED or len(held.pieces) > MAX_UNMAPPED_PIECES or now > held.deadline:
        # "If a mapping ... does not arrive within a receive window of data, that subflow SHOULD be treated as
        # broken, closed with a RST, and any unmapped data silently discarded." A sender whose data is never
        # acknowledged at the data level sends but little of it, and so a moment without a mapping is enough.
        give_up(subflow)


def take(subflow: Subflow) -> list[tuple[int, memoryview]]:
    """What is held, which from now on is the caller's."""
    held, subflow.unmapped = subflow.unmapped, None
    return held.pieces if held is not None else []


def give_up(subflow: Subflow) -> None:
    subflow.unmapped = None
    subflow.close_reason = "middlebox"
    subflow.connection.break_subflow(subflow, MpTcprst(RST_MIDDLEBOX_INTERFERENCE))
