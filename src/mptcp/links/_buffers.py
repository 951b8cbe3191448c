"""Buffers that links read into, used again once nobody looks at them any more.

Memory that is new to a process costs a page fault every 4 KiB, which takes ten times as long as the copy into it. So
large packets are handed out as views of buffers that come back; small ones are copied, so that a waiting segment of a
few octets does not hold 64 KiB.
"""

from __future__ import annotations

from typing import Final

#: Octets of one buffer: vnet and Ethernet headers, 40 of an IPv6 header, 65,535 behind it, with room.
BUFFER_BYTES: Final = 65_664
#: Packets up to this long are copied out of the buffer; a longer one keeps at most four times its length.
COPY_BYTES: Final = 16_384
#: Buffers of one link that are used again (8 MiB); while more are held, others are made and thrown away.
MAX_BUFFERS: Final = 128


class ReceiveBuffers:
    """A ring of buffers. ``view`` is the whole of the one to read into; ``take`` hands out a part of it."""

    __slots__ = ("_index", "_ring", "view")

    def __init__(self) -> None:
        self._ring: list[bytearray] = []
        self._index = 0
        self.view = self._next()

    def _next(self) -> memoryview:
        """A buffer that nobody holds a view of."""
        ring = self._ring
        if ring:
            self._index = (self._index + 1) % len(ring)
            candidate = ring[self._index]
            try:
                # Python's own word for "somebody has a view": a bytearray then cannot change its size.
                candidate.append(0)
            except BufferError:
                pass
            else:
                candidate.pop()
                return memoryview(candidate)
        fresh = bytearray(BUFFER_BYTES)
        fresh.append(0)  # makes room for the question above, once
        fresh.pop()
        if len(ring) < MAX_BUFFERS:
            ring.insert(self._index, fresh)
        return memoryview(fresh)

    def take(self, start: int, end: int) -> memoryview:
        """The octets from ``start`` to ``end`` of what was read, to be kept as long as anybody likes."""
        if end <= COPY_BYTES:
            return memoryview(self.view[start:end].tobytes())
        taken = self.view[start:end].toreadonly()
        self.view = self._next()
        return taken
