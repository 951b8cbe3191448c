"""How large a window to advertise (RFC 9293 §3.8.6, RFC 7323 §2), and how large the buffer behind it should be."""

from __future__ import annotations

from typing import Final

from mptcp.core.units import MILLISECOND

#: RFC 7323 §2.3 limits shift.cnt to 14, so that the window stays below a quarter of the sequence space.
MAX_WINDOW_SCALE: Final = 14
MAX_UNSCALED_WINDOW: Final = 65535


def window_scale_for(buffer_max_bytes: int) -> int:
    """The smallest shift with which the whole buffer can be advertised."""
    scale = 0
    while scale < MAX_WINDOW_SCALE and buffer_max_bytes >> scale > MAX_UNSCALED_WINDOW:
        scale += 1
    return scale


class ReceiveWindow:
    """The right edge that the peer has been promised. ``scale`` is our shift, 0 until both sides have agreed."""

    __slots__ = ("edge", "scale", "told")

    def __init__(self) -> None:
        self.edge = 0
        self.told = 0  # the edge that the last segment gave; below ``edge`` where a shared window has closed since
        self.scale = 0

    def advertise_shared(self, nxt: int, free_bytes: int) -> int:
        """The window field when the window is not this connection's own: an extension gives it, and keeps it whole.

        What was promised before is still accepted.
        """
        field = free_bytes >> self.scale
        if field > MAX_UNSCALED_WINDOW:
            field = MAX_UNSCALED_WINDOW
        self.told = nxt + (field << self.scale)
        if self.told > self.edge:
            self.edge = self.told
        return field

    def advertise(self, nxt: int, free_bytes: int, step_bytes: int) -> int:
        """The window field of a segment that acknowledges ``nxt`` while ``free_bytes`` could be taken in.

        The edge moves on only by ``step_bytes`` or more (silly window syndrome), and never back.
        """
        scale = self.scale
        largest = MAX_UNSCALED_WINDOW << scale
        if free_bytes > largest:
            free_bytes = largest
        current = self.edge - nxt
        # RFC 9293 §3.8.6.2.2: "keep RCV.NXT+RCV.WND fixed until the reduction satisfies: RCV.BUFF - RCV.USER - RCV.WND
        # >= min( Fr * RCV.BUFF, Eff.snd.MSS )"
        if free_bytes - current >= step_bytes or (current <= 0 and free_bytes >= largest):
            field = free_bytes >> scale
            if (field << scale) > current:
                self.edge = self.told = nxt + (field << scale)
                return field
        if current <= 0:
            self.told = nxt
            return 0
        # RFC 9293 §3.8.6.2.1: "A TCP receiver SHOULD NOT shrink the window". Scaled down, the remaining window rounds
        # up, unless that would promise more than one unit beyond the buffer; it then rounds down, and what was
        # promised before is still accepted (RFC 7323 §2.4).
        field = (current + (1 << scale) - 1) >> scale
        if (field << scale) > free_bytes + (1 << scale) and field << scale != current:
            field = current >> scale
        if field > MAX_UNSCALED_WINDOW:
            field = MAX_UNSCALED_WINDOW
        self.told = nxt + (field << scale)
        if (field << scale) > current:
            self.edge = self.told
        return field


class BufferTuner:
    """Dynamic right-sizing: the buffer grows to what the application reads per round trip, twice over.

    ``size`` only ever grows, from ``initial`` to ``maximum`` bytes.
    """

    __slots__ = ("_mark_at", "_mark_bytes", "_previous", "maximum", "rtt_us", "size")

    def __init__(self, initial_bytes: int, maximum_bytes: int) -> None:
        self.size = initial_bytes
        self.maximum = max(initial_bytes, maximum_bytes)
        self.rtt_us = 0  # as the receiver sees it; 0: unknown
        self._mark_at = -1
        self._mark_bytes = 0
        self._previous = initial_bytes // 2

    @property
    def next_at(self) -> int:
        """When ``update`` has something to do again."""
        return self._mark_at + max(self.rtt_us, MILLISECOND)

    def update(self, total_read: int, rtt_us: int, now: int) -> None:
        """``total_read``: octets the application has read since the start; ``rtt_us``: latest sample, -1 for none."""
        if rtt_us >= 0:
            rtt_us = max(rtt_us, MILLISECOND)
            self.rtt_us = rtt_us if not self.rtt_us or rtt_us < self.rtt_us else (7 * self.rtt_us + rtt_us) // 8
        if self._mark_at >= 0 and now - self._mark_at < max(self.rtt_us, MILLISECOND):
            return
        read = total_read - self._mark_bytes
        if self._mark_at >= 0 and read > self._previous:
            # a peer in slow start sends twice as much in the next round trip: leave it room to
            wanted = 4 * read
            if wanted > self.size:
                self.size = min(wanted, self.maximum)
            self._previous = read
        self._mark_at = now
        self._mark_bytes = total_read
