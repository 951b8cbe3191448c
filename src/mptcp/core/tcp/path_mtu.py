"""The path MTU of one connection: told by ICMP (RFC 1191, RFC 8201), or found out by loss (RFC 4821)."""

from __future__ import annotations

from typing import Final

from mptcp.core.units import NEVER, SECOND

#: RFC 1191 §3 lets a path be as narrow as 68 octets; nobody honest is below this, and an attacker would like it.
MIN_MTU_V4: Final = 552
#: RFC 8201 §4: the estimate never goes below the minimum link MTU of IPv6.
MIN_MTU_V6: Final = 1280
#: RFC 1191 §7.1, table 7-1: what routers that tell no next-hop MTU are likely to have.
PLATEAUS: Final = (32000, 17914, 8166, 4352, 2002, 1492, 1006, MIN_MTU_V4)
#: RFC 1191 §6.3: an increase may be tried 10 minutes after a decrease, and 2 minutes after an increase.
RAISE_AFTER_ICMP_US: Final = 600 * SECOND
RAISE_AFTER_RAISE_US: Final = 120 * SECOND
#: After a black hole; doubled with each failed attempt to get out of it.
RAISE_AFTER_BLACK_HOLE_US: Final = 10 * SECOND
#: A plateau that is hardly larger than what is in use is not worth a trial of its own.
WORTH_TRYING_BYTES: Final = 32
#: So many timeouts in a row, with full-sized segments outstanding, are taken for a black hole.
BLACK_HOLE_TIMEOUTS: Final = 3
#: RFC 4821 §7.2 has probing start from 1024 octets of payload; it is also where a suspected black hole leads first.
BLACK_HOLE_MTU: Final = 1064


class PathMtu:
    """``mtu``: the largest IP packet to send now. ``raise_at``: when to try a larger one (NEVER: it is the link's)."""

    __slots__ = ("_backoff", "_trial_from", "extra_bytes", "is_v6", "link_mtu", "mtu", "raise_at", "trial_end")

    def __init__(self, link_mtu: int, is_v6: bool, extra_bytes: int = 0) -> None:
        self.link_mtu = link_mtu
        self.extra_bytes = extra_bytes  # of extension headers between IP and TCP
        self.is_v6 = is_v6
        self.mtu = link_mtu
        self.raise_at = NEVER
        self._backoff = 0
        self._trial_from = 0  # the size that worked, while a larger one is on trial
        self.trial_end = -1  # the trial has succeeded when everything before this is acknowledged; -1: no trial

    @property
    def header_bytes(self) -> int:
        """IP and TCP header without options, and what stands between them."""
        return (60 if self.is_v6 else 40) + self.extra_bytes

    @property
    def mss(self) -> int:
        return self.mtu - self.header_bytes

    @property
    def min_mtu(self) -> int:
        return MIN_MTU_V6 if self.is_v6 else min(MIN_MTU_V4, self.link_mtu)

    def handle_too_big(self, next_hop_mtu: int, packet_bytes: int, now: int) -> bool:
        """ICMP says so; ``next_hop_mtu`` 0: an old router does not tell. True: ``mtu`` is smaller now."""
        if next_hop_mtu == 0:
            # RFC 1191 §5: "the greatest plateau value that is less than the returned Total Length field"
            size = min(packet_bytes or self.mtu, self.mtu)
            next_hop_mtu = next((p for p in PLATEAUS if p < size), self.min_mtu)
        mtu = max(next_hop_mtu, self.min_mtu)
        if mtu >= self.mtu:
            # RFC 1191 §6.1 and RFC 8201 §4: a report never raises the estimate
            return False
        self.mtu = mtu
        self._trial_from, self.trial_end = 0, -1
        self.raise_at = now + RAISE_AFTER_ICMP_US
        return True

    def handle_timeouts(self, consecutive: int, longest_bytes: int, now: int) -> bool:
        """So many retransmission timeouts in a row, the longest outstanding packet having ``longest_bytes``."""
        # RFC 4821 §7.7: "the RECOMMENDED first recovery action is to treat this as a detected ICMP black hole"
        if self._trial_from and consecutive >= 2:
            self.mtu, self._trial_from, self.trial_end = self._trial_from, 0, -1
            self._arm_after_black_hole(now)
            return True
        if consecutive < BLACK_HOLE_TIMEOUTS or longest_bytes < self.mtu or self.mtu <= self.min_mtu:
            return False
        floor = self.min_mtu
        self.mtu = max(floor, BLACK_HOLE_MTU if self.mtu > max(BLACK_HOLE_MTU, floor) else floor)
        self._arm_after_black_hole(now)
        return True

    def handle_raise(self, nxt: int, now: int) -> bool:
        """``raise_at`` has come: a larger size goes on trial, from number ``nxt`` on. True: ``mtu`` has changed."""
        larger = [p for p in PLATEAUS if self.mtu + WORTH_TRYING_BYTES < p < self.link_mtu]
        if self.mtu >= self.link_mtu:
            self.raise_at = NEVER
            return False
        self._trial_from = self.mtu
        self.mtu = larger[-1] if larger else self.link_mtu
        self.trial_end = nxt + self.mtu
        self.raise_at = now + RAISE_AFTER_RAISE_US if self.mtu < self.link_mtu else NEVER
        return True

    def handle_acked(self, una: int) -> None:
        """Everything before ``una`` has been acknowledged while a size is on trial."""
        if una >= self.trial_end:
            self._trial_from, self.trial_end = 0, -1
            self._backoff = 0

    def _arm_after_black_hole(self, now: int) -> None:
        self.raise_at = now + (RAISE_AFTER_BLACK_HOLE_US << self._backoff)
        if self._backoff < 6:
            self._backoff += 1
