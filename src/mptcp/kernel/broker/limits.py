"""How much of the broker one client may have: a rate for each user, a number of clients, a number of lines in the log."""

from __future__ import annotations

import threading
from typing import Final

#: Nobody has to wait longer than this, whatever was done before.
MAX_DEBT_S: Final = 10.0
#: Users whose rate is remembered after their last client has gone.
MAX_IDLE_USERS: Final = 1024
#: In so many seconds a ``LogLimit`` lets through as many lines as it has been given; a user has so many.
LOG_PERIOD_S: Final = 10.0
MAX_LOG_LINES: Final = 20


class TokenBucket:
    """So many a second, and ``burst`` at once. Times in seconds, of any steady clock. Not locked."""

    __slots__ = ("_at", "_burst", "_level", "_rate")

    def __init__(self, rate_per_s: float, burst: float, now: float) -> None:
        self._rate, self._burst = rate_per_s, burst
        self._level, self._at = burst, now

    def change(self, rate_per_s: float, burst: float) -> None:
        """Another rate from now on; what has been taken stays taken."""
        self._rate, self._burst = rate_per_s, burst
        self._level = min(self._level, burst)

    def take(self, cost: float, now: float) -> float:
        """Takes ``cost``, and says how long to wait until it would have been there."""
        self._level = min(self._burst, self._level + max(0.0, now - self._at) * self._rate)
        self._at = now
        self._level = max(self._level - cost, -MAX_DEBT_S * self._rate)
        return max(0.0, -self._level / self._rate)


class LogLimit:
    """At most ``lines`` in LOG_PERIOD_S; it counts those that were too many. Not locked."""

    __slots__ = ("_left", "_lines", "_since", "_suppressed")

    def __init__(self, lines: int) -> None:
        self._lines = self._left = lines
        self._since = 0.0
        self._suppressed = 0

    def allows(self, now: float) -> bool:
        """Whether one more line is written; else it is counted."""
        if now - self._since >= LOG_PERIOD_S:
            self._since, self._left = now, self._lines
        if not self._left:
            self._suppressed += 1
            return False
        self._left -= 1
        return True

    def suppressed(self) -> str:
        """What to add to the next line: how many were not written; "" if none."""
        count, self._suppressed = self._suppressed, 0
        return f" ({count} lines like this were left out)" if count else ""


class _User:
    __slots__ = ("bucket", "clients", "log")

    def __init__(self, bucket: TokenBucket) -> None:
        self.bucket = bucket
        self.clients = 0
        self.log = LogLimit(MAX_LOG_LINES)


class Accounts:
    """The clients there are, by user. Any thread may ask."""

    __slots__ = ("_lock", "_strangers", "_total", "_users")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users: dict[int, _User] = {}
        self._total = 0
        self._strangers = LogLimit(MAX_LOG_LINES)  # those without an account

    def admit(self, uid: int, *, limit: int, total: int, rate_per_s: float, burst: float, now: float) -> str:
        """Counts one client more of a user. Why not, in a sentence; "" if it was counted."""
        with self._lock:
            if self._total >= total:
                return f"the broker serves {total} clients already (max_clients of its policy)"
            user = self._users.get(uid)
            if user is None:
                self._forget_one()
                user = self._users[uid] = _User(TokenBucket(rate_per_s, burst, now))
            else:
                user.bucket.change(rate_per_s, burst)
            if user.clients >= limit:
                return f"the broker serves {limit} clients of this user already (max_clients of the rule)"
            user.clients += 1
            self._total += 1
            return ""

    def leave(self, uid: int) -> None:
        """One client less."""
        with self._lock:
            self._users[uid].clients -= 1
            self._total -= 1

    def charge(self, uid: int, cost: float, now: float) -> float:
        """What a user's clients did together; how many seconds this one has to wait before it is heard again."""
        with self._lock:
            return self._users[uid].bucket.take(cost, now)

    def may_log(self, uid: int, now: float) -> str | None:
        """None: this user has filled its share of the log. Else what to add to the line: how many were left out before."""
        with self._lock:
            user = self._users.get(uid)
            limit = user.log if user is not None else self._strangers
            return limit.suppressed() if limit.allows(now) else None

    @property
    def total(self) -> int:
        with self._lock:
            return self._total

    def _forget_one(self) -> None:
        # A user's debts outlive its clients, or else a flood would only have to connect anew.
        if len(self._users) - self._total < MAX_IDLE_USERS:
            return
        for uid, user in self._users.items():
            if not user.clients:
                del self._users[uid]
                return
