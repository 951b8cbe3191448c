"""In-order octets that the application has not read yet: views on what the link received, copied once, on reading."""

from __future__ import annotations

from mptcp.core.wire.segment import Payload

#: A payload shorter than this is copied at once: it must not keep a large receive buffer alive.
COPY_BELOW_BYTES = 512
#: Small payloads are gathered in one buffer up to this size, so that a flood of tiny segments costs what it carries.
GATHER_BYTES = 4096


class ReceiveBuffer:
    """A queue of octets. An empty one holds no container."""

    __slots__ = ("_chunks", "_head", "_offset", "length", "total_read")

    def __init__(self) -> None:
        self._chunks: list[memoryview | bytearray] | None = None
        self._head = 0  # index of the first chunk not read completely
        self._offset = 0  # octets of it already read
        self.length = 0
        self.total_read = 0

    def append(self, payload: Payload) -> None:
        length = len(payload)
        if not length:
            return
        chunks = self._chunks
        if chunks is None:
            chunks = self._chunks = []
        self.length += length
        if length < COPY_BELOW_BYTES:
            if chunks:
                last = chunks[-1]
                if type(last) is bytearray and len(last) + length <= GATHER_BYTES:
                    last += payload
                    return
            chunks.append(bytearray(payload))
        else:
            chunks.append(memoryview(payload))

    def read_into(self, buffer: bytearray | memoryview, peek: bool = False) -> int:
        """Copies up to ``len(buffer)`` octets; how many. With ``peek`` they stay."""
        chunks = self._chunks
        if chunks is None:
            return 0
        target = memoryview(buffer).cast("B")
        room = min(len(target), self.length)
        head, offset, done = self._head, self._offset, 0
        while done < room:
            chunk = chunks[head]
            count = min(len(chunk) - offset, room - done)
            with memoryview(chunk) as view:
                target[done : done + count] = view[offset : offset + count]
            done += count
            offset += count
            if offset == len(chunk):
                head += 1
                offset = 0
        if not peek:
            self._advance(head, offset, done)
        return done

    def read(self, count: int, peek: bool = False) -> bytes:
        """Up to ``count`` octets; ``b""`` when there are none."""
        room = min(count, self.length)
        chunks = self._chunks
        if room <= 0 or chunks is None:
            return b""
        head, offset, done = self._head, self._offset, 0
        pieces = []
        while done < room:
            chunk = chunks[head]
            size = min(len(chunk) - offset, room - done)
            pieces.append(memoryview(chunk)[offset : offset + size])
            done += size
            offset += size
            if offset == len(chunk):
                head += 1
                offset = 0
        result = b"".join(pieces)  # the one copy
        if not peek:
            self._advance(head, offset, done)
        return result

    def clear(self) -> int:
        """Throws everything away; how many octets that was."""
        count, self.length = self.length, 0
        self._chunks = None
        self._head = self._offset = 0
        return count

    def _advance(self, head: int, offset: int, count: int) -> None:
        self.length -= count
        self.total_read += count
        if not self.length:
            self._chunks = None
            self._head = self._offset = 0
            return
        chunks = self._chunks
        assert chunks is not None
        if head >= 32 and head * 2 >= len(chunks):
            del chunks[:head]
            head = 0
        else:
            for index in range(self._head, head):
                chunks[index] = _NOTHING  # let go of the packet now
        self._head, self._offset = head, offset


_NOTHING = memoryview(b"")
