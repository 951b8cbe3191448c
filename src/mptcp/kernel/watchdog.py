"""What is done about a subflow that died without a word, and about data that stands still although a subflow works.

The kernel keeps a subflow whose path swallows everything for a quarter of an hour, and sends on it now and then. Here a
subflow whose retransmission timer has expired while another one works is reset: what it carried goes over the others at
once. And where few subflows are left, a transfer may go on in drops, one window at a retransmission of the connection's
(204 ms), although a working subflow is idle: the peer has acknowledged everything on the subflow but not, by DATA_ACK, on
the connection. Linux' receiver says so with a packet of its own only now and then; the handshake of a fresh subflow says
it at once, and with one more subflow there are more packets to say it.

This is judgement only: facts in, verdicts out. ``managing.py`` reads, asks, and carries out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from mptcp.info import Endpoint
from mptcp.kernel.layout import ESTABLISHED
from mptcp.kernel.sockopt import FullInfo, SubflowEntry

#: Looks at a connection without anything in flight until the next ones are further apart.
RESTS: Final = 8
#: A fresh subflow for data that is stuck is opened so often within ``RESCUE_PERIOD_US``: it helps at once, or not at all.
MAX_RESCUES: Final = 2
RESCUE_PERIOD_US: Final = 10_000_000
#: To the sender a peer that reads slowly looks the same. So a period is four times as long as the one before it after each
#: rescue that has not made it so many times as fast.
HELPS: Final = 2
PATIENCE: Final = 4
MAX_FUTILE: Final = 6
#: What moves for this part of ``FailurePolicy.stuck_us`` without a break is not stuck.
BURSTS: Final = 4


@dataclass(frozen=True, slots=True)
class FailurePolicy:
    """When a subflow counts as dead, and data as stuck. Times in microseconds."""

    timeouts: int = 1  # retransmission timeouts in a row without any acknowledgement
    stuck_us: int = 500_000  # data in flight, and every subflow idle, for so long, and most of that time without a move
    busy_interval_us: int = 20_000  # how often a connection with data in flight is looked at
    idle_interval_us: int = 250_000  # ... and one without; after some seconds of that less often, up to
    rest_interval_us: int = 1_000_000


@dataclass(frozen=True, slots=True)
class Failing:
    """The retransmission timer of this subflow has expired once more, ``timeouts`` times in a row by now."""

    local: Endpoint
    remote: Endpoint
    timeouts: int


@dataclass(frozen=True, slots=True)
class Reset:
    """This subflow is dead, and another one is not."""

    local: Endpoint
    remote: Endpoint
    timeouts: int


@dataclass(frozen=True, slots=True)
class OpenFresh:
    """Data is stuck: a fresh subflow beside this one, which works, makes it go on."""

    local: Endpoint
    remote: Endpoint


Verdict = Failing | Reset | OpenFresh


class Watchdog:
    """The judge of one connection: ``judge`` for every look at it, ``interval_us`` says when the next one is due."""

    __slots__ = (
        "_acknowledged", "_backoffs", "_busy", "_futile", "_last_rescue", "_looked_at", "_moves_since", "_policy", "_rescues",
        "_rests", "_still_at", "_still_since", "_still_us",
    )  # fmt: skip

    def __init__(self, policy: FailurePolicy) -> None:
        self._policy = policy
        self._busy = False
        self._still_since = -1  # data in flight, and nothing moves but in short bursts, since then
        self._still_us = 0  # of that time, without the bursts
        self._still_at = 0  # what was acknowledged on the connection when it began
        self._moves_since = -1  # the burst
        self._looked_at = 0
        self._acknowledged = -1  # on the connection, when last looked at
        self._rescues: list[int] = []
        self._last_rescue = (-1, 0, 0.0)  # when, what was acknowledged then, the rate that it was to mend
        self._futile = 0  # rescues in a row that did not help
        self._rests = 0
        self._backoffs: dict[tuple[Endpoint, Endpoint], int] = {}

    def rest(self) -> None:
        """Nothing is in flight: nothing can be wrong, as far as anybody could tell."""
        self._busy = False
        self._forget()
        self._rests += 1
        self._backoffs.clear()

    @property
    def interval_us(self) -> int:
        policy = self._policy
        if self._busy:
            return policy.busy_interval_us
        return policy.idle_interval_us if self._rests < RESTS else max(policy.idle_interval_us, policy.rest_interval_us)

    def judge(self, info: FullInfo, now: int) -> list[Verdict]:
        self._busy = info.mptcp.write_seq != info.mptcp.snd_una
        self._rests = 0
        subflows = [entry for entry in info.subflows if entry.tcp.state == ESTABLISHED]
        verdicts = self._failing(subflows)
        dead = [entry for entry in subflows if self._is_dead(entry)]
        # Never the last one: a connection without subflows ends, and the only path may come back.
        alive = [entry for entry in subflows if not entry.tcp.backoff]
        if not alive:
            self._forget()
            return verdicts
        verdicts += [Reset(entry.local, entry.remote, entry.tcp.backoff) for entry in dead]
        if self._is_stuck(alive, info.mptcp.snd_una, now):
            best = min(alive, key=lambda entry: entry.tcp.rtt)
            verdicts.append(OpenFresh(best.local, best.remote))
        return verdicts

    def _failing(self, subflows: Sequence[SubflowEntry]) -> list[Verdict]:
        before, self._backoffs = self._backoffs, {}
        verdicts: list[Verdict] = []
        for entry in subflows:
            if entry.tcp.backoff and entry.tcp.unacked:
                ends = (entry.local, entry.remote)
                self._backoffs[ends] = entry.tcp.backoff
                if entry.tcp.backoff > before.get(ends, 0):
                    verdicts.append(Failing(*ends, entry.tcp.backoff))
        return verdicts

    def _is_dead(self, entry: SubflowEntry) -> bool:
        return entry.tcp.backoff >= self._policy.timeouts and entry.tcp.unacked > 0

    def _is_stuck(self, alive: Sequence[SubflowEntry], acknowledged: int, now: int) -> bool:
        moves = 0 <= self._acknowledged != acknowledged
        moves = moves or any(entry.tcp.unacked or entry.tcp.notsent_bytes for entry in alive)
        since, self._looked_at, self._acknowledged = now - self._looked_at, now, acknowledged
        # A peer that does not read has closed its window: that is its right.
        if not self._busy or all(entry.tcp.snd_wnd < entry.tcp.snd_mss for entry in alive):
            self._forget()
            return False
        if moves:
            if self._moves_since < 0:
                self._moves_since = now
            # A window at a retransmission is still stuck; what moves for longer than that takes goes on.
            if now - self._moves_since >= self._policy.stuck_us // BURSTS:
                self._still_since = -1
            return False
        self._moves_since = -1
        if self._still_since < 0:
            self._still_since, self._still_us, self._still_at = now, 0, acknowledged
        else:
            self._still_us += since
        watched = now - self._still_since
        if watched < self._policy.stuck_us:
            return False
        still, moved = self._still_us, acknowledged - self._still_at
        self._still_since, self._still_us, self._still_at = now, 0, acknowledged
        return 2 * still >= watched and self._may_rescue(moved / watched, acknowledged, now)

    def _may_rescue(self, rate: float, acknowledged: int, now: int) -> bool:
        """``rate``: while it was stuck, in octets a microsecond."""
        at, there, slow = self._last_rescue
        helped = acknowledged - there > HELPS * slow * (now - at)
        if helped:
            self._futile = 0
        period = RESCUE_PERIOD_US * PATIENCE**self._futile
        self._rescues = [rescue for rescue in self._rescues if now - rescue < period]
        if len(self._rescues) >= MAX_RESCUES:
            return False
        if not helped and at >= 0:
            self._futile = min(self._futile + 1, MAX_FUTILE)
        self._last_rescue = now, acknowledged, rate
        self._rescues.append(now)
        return True

    def _forget(self) -> None:
        self._still_since = self._moves_since = self._acknowledged = -1
