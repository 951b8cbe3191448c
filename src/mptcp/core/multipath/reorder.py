"""Out-of-order data at the connection level (RFC 8684 §3.3.4): octets that arrived before those that precede them."""

from __future__ import annotations

from bisect import bisect_right

#: Pieces held at most, so that a peer that sends one octet at a time cannot make us keep a whole packet for each.
MAX_PIECES = 8192


class ReorderQueue:
    """Pieces of the stream, by data sequence number, no two of them overlapping."""

    __slots__ = ("_pieces", "_starts", "octets")

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._pieces: list[memoryview] = []
        self.octets = 0

    def __len__(self) -> int:
        return len(self._starts)

    def insert(self, dsn: int, piece: memoryview) -> int:
        """Keeps what of ``piece`` is not there yet; the number of octets that were new."""
        # RFC 8684 §3.3.1: "an implementation SHOULD treat the first data that is received ... as the data that should
        # be delivered to the application, and any subsequent data for that sequence space SHOULD be ignored"
        starts, pieces = self._starts, self._pieces
        end = dsn + len(piece)
        index = bisect_right(starts, dsn)
        if index:
            covered = starts[index - 1] + len(pieces[index - 1])
            if covered >= end:
                return 0
            if covered > dsn:
                piece = piece[covered - dsn :]
                dsn = covered
        added = 0
        while dsn < end:
            gap_end = min(end, starts[index]) if index < len(starts) else end
            if gap_end > dsn:
                if len(starts) >= MAX_PIECES:
                    break
                part = piece[: gap_end - dsn]
                starts.insert(index, dsn)
                pieces.insert(index, part)
                added += len(part)
                index += 1
            if gap_end == end:
                break
            skip = min(end, starts[index] + len(pieces[index]))
            piece = piece[skip - dsn :]
            dsn = skip
            index += 1
        self.octets += added
        return added

    def take(self, dsn: int) -> memoryview | None:
        """The piece that continues the stream at ``dsn``, removed; None if there is a hole."""
        while self._starts and self._starts[0] <= dsn:
            start, piece = self._starts.pop(0), self._pieces.pop(0)
            self.octets -= len(piece)
            if start + len(piece) > dsn:
                return piece[dsn - start :] if dsn > start else piece
        return None
