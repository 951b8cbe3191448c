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


@dataclass(frozen=True, slots=True)
class FailurePolicy:
    """When a subflow counts as dead, and data as stuck. Times in microseconds."""

    timeouts: int = 1  # retransmission timeouts in a row without any acknowledgement
    stuck_us: int = 500_000  # data in flight, and every subflow idle, for so long
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

    __slots__ = ("_backoffs", "_busy", "_idle_since", "_policy", "_rescues", "_rests", "_seen_working")

    def __init__(self, policy: FailurePolicy) -> None:
        self._policy = policy
        self._busy = False
        self._idle_since = -1  # data in flight and no subflow that carries any, since then
        self._seen_working = False
        self._rescues: list[int] = []
        self._rests = 0
        self._backoffs: dict[tuple[Endpoint, Endpoint], int] = {}

    def rest(self) -> None:
        """Nothing is in flight: nothing can be wrong, as far as anybody could tell."""
        self._busy = self._seen_working = False
        self._idle_since = -1
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
            self._idle_since = -1
            return verdicts
        verdicts += [Reset(entry.local, entry.remote, entry.tcp.backoff) for entry in dead]
        if self._is_stuck(alive, now):
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

    def _is_stuck(self, alive: Sequence[SubflowEntry], now: int) -> bool:
        working = any(entry.tcp.unacked or entry.tcp.notsent_bytes for entry in alive)
        # A peer that does not read has closed its window: that is its right.
        closed = all(entry.tcp.snd_wnd < entry.tcp.snd_mss for entry in alive)
        # One fragment now and then is still stuck; two looks in a row at a subflow that works are not.
        goes_on = working and self._seen_working
        self._seen_working = working
        if not self._busy or closed or goes_on:
            self._idle_since = -1
            return False
        if self._idle_since < 0:
            self._idle_since = now
        if now - self._idle_since < self._policy.stuck_us:
            return False
        self._idle_since = now
        self._rescues = [at for at in self._rescues if now - at < RESCUE_PERIOD_US]
        if len(self._rescues) >= MAX_RESCUES:
            return False
        self._rescues.append(now)
        return True
