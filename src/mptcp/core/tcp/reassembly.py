"""Segments that arrived before their turn, and the SACK blocks that tell the peer of them (RFC 2018, RFC 2883)."""

from __future__ import annotations

from bisect import bisect_right
from operator import attrgetter
from typing import Final, Literal

from mptcp.core.wire.segment import Payload

#: Limits of one queue. A segment beyond them is not taken (and not acknowledged): the peer sends it again.
MAX_RANGES: Final = 512
MAX_PIECES: Final = 8192
#: A payload shorter than this is copied: it must not keep a large receive buffer alive.
COPY_BELOW_BYTES: Final = 512
#: How many ranges are remembered for SACK blocks: more never fit into 40 octets of options.
MAX_SACK_BLOCKS: Final = 4


class Range:
    """Contiguous octets ``start <= n < end``, as the pieces they came in."""

    __slots__ = ("end", "pieces", "start")

    def __init__(self, start: int) -> None:
        self.start = start
        self.end = start
        self.pieces: list[Payload] = []


_START = attrgetter("start")


class Reassembly:
    """The out-of-order queue of one connection: disjoint ranges, sorted, none touching another.

    ``insert`` and then ``take`` when the gap before the first range is filled. ``recent`` are the ranges for SACK,
    most recently changed first.
    """

    __slots__ = ("bytes_held", "pieces", "ranges", "recent")

    def __init__(self) -> None:
        self.ranges: list[Range] = []
        self.recent: list[Range] = []
        self.bytes_held = 0
        self.pieces = 0

    def insert(self, start: int, payload: Payload) -> tuple[int, int] | Literal[False] | None:
        """Keeps what is new of ``payload``, whose first octet is ``start``.

        Returns None if all of it is new, the first stretch that was here already (for D-SACK), or False if the
        queue is full and nothing was kept.
        """
        end = start + len(payload)
        ranges = self.ranges
        index = bisect_right(ranges, start, key=_START) - 1
        duplicate: tuple[int, int] | None = None
        if index >= 0 and ranges[index].end >= start:
            base = ranges[index]
            if base.end >= end:
                self._touch(base)
                return (start, end)
            if base.end > start:
                duplicate = (start, base.end)
        else:
            if len(ranges) >= MAX_RANGES:
                return False
            base = Range(start)
            index += 1
            ranges.insert(index, base)
        if self.pieces >= MAX_PIECES:
            if not base.pieces:
                del ranges[index]
            return False
        view = memoryview(payload)
        after = index + 1
        while after < len(ranges) and ranges[after].start <= end:
            # what lies between base and the next range is new; the next range then joins base
            following = ranges[after]
            if following.start > base.end:
                self._add(base, view[base.end - start : following.start - start])
            if duplicate is None and following.start < end:
                duplicate = (following.start, min(following.end, end))
            base.pieces += following.pieces
            base.end = following.end
            if following in self.recent:
                self.recent.remove(following)
            after += 1
        if base.end < end:
            self._add(base, view[base.end - start :])
        if after > index + 1:
            del ranges[index + 1 : after]
        self._touch(base)
        return duplicate

    def take(self, nxt: int) -> list[Payload] | None:
        """The pieces from ``nxt`` on, up to the next gap, if there are any; what lies before ``nxt`` is dropped."""
        ranges = self.ranges
        result: list[Payload] | None = None
        while ranges and ranges[0].start <= nxt:
            first = ranges.pop(0)
            if first in self.recent:
                self.recent.remove(first)
            self.bytes_held -= first.end - first.start
            self.pieces -= len(first.pieces)
            if first.end <= nxt:
                continue
            skip = nxt - first.start
            pieces = first.pieces
            while skip:
                head = pieces[0]
                if len(head) <= skip:
                    skip -= len(head)
                    del pieces[0]
                else:
                    pieces[0] = memoryview(head)[skip:]
                    skip = 0
            result = pieces
            break
        return result

    def sack_blocks(self, limit: int) -> list[tuple[int, int]]:
        """Up to ``limit`` blocks, unwrapped."""
        # RFC 2018 §4: "The first SACK block [...] MUST specify the contiguous block of data containing the segment
        # which triggered this ACK"; "SHOULD be filled out by repeating the most recently reported SACK blocks"
        return [(r.start, r.end) for r in self.recent[:limit]]

    def _add(self, base: Range, piece: memoryview) -> None:
        base.pieces.append(bytes(piece) if len(piece) < COPY_BELOW_BYTES else piece)
        base.end += len(piece)
        self.bytes_held += len(piece)
        self.pieces += 1

    def _touch(self, changed: Range) -> None:
        recent = self.recent
        if recent and recent[0] is changed:
            return
        if changed in recent:
            recent.remove(changed)
        recent.insert(0, changed)
        del recent[MAX_SACK_BLOCKS:]
