"""The real clock, in the core's unit."""

import time

from mptcp.core.units import NEVER, SECOND


def monotonic_us() -> int:
    """Now, in microseconds; never goes back, starts anywhere."""
    return time.monotonic_ns() // 1000


def deadline_after(timeout: float | None, now: int) -> int:
    """The time ``timeout`` seconds after ``now``; NEVER for None."""
    if timeout is None:
        return NEVER
    return now + int(timeout * SECOND)
