"""The sending side of the data level (RFC 8684 §3.3): the stream, what is in flight on which subflow, DATA_ACKs, the
shared window, reinjection, DATA_FIN."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import islice

from mptcp.core.tcp.send_buffer import SendBuffer
from mptcp.core.units import NEVER
from mptcp.core.wire.segment import Payload

#: The longest mapping: its length has 16 bits, and 0 is the infinite mapping.
MAX_MAPPING = 65_535


class Chunk:
    """Octets ``dsn <= n < end`` of the stream, kept until they are acknowledged at the data level."""

    __slots__ = ("carriers", "dsn", "end", "payloads", "sent_us", "ssn_end")

    def __init__(self, dsn: int, payloads: Sequence[Payload], length: int, carrier: int) -> None:
        self.dsn = dsn
        self.end = dsn + length
        self.payloads = payloads
        self.carriers: tuple[int, ...] = (carrier,)  # ids of the subflows it was given to
        self.sent_us = 0  # when it was given to a subflow for the first time
        self.ssn_end = 0  # where it ends on the last of these


class DataSender:
    """All numbers are plain integers in the data sequence space of this host.

    ``una <= n < nxt`` has been given to subflows; ``stream`` has what comes after. The DATA_FIN, once due, takes the
    number ``fin_dsn``.
    """

    __slots__ = (
        "_chunks", "_fin_acked", "_queue", "bytes_reinjected", "deadline", "fin_dsn", "fin_sent", "nxt", "retries",
        "stream", "una", "window_edge",
    )  # fmt: skip

    def __init__(self, first_dsn: int) -> None:
        self.una = self.nxt = first_dsn
        self.window_edge = first_dsn
        self.stream = SendBuffer()
        self._chunks: deque[Chunk] | None = None  # made with the first data: idle connections are many
        self._queue: deque[Chunk] | None = None  # to be reinjected
        self.fin_dsn = -1
        self.fin_sent = False
        self._fin_acked = False
        self.bytes_reinjected = 0
        self.deadline = NEVER  # when the head of the line is sent again although its subflow acknowledged it
        self.retries = 0

    # --- getters ------------------------------------------------------------------------------------------------
    @property
    def unacked_bytes(self) -> int:
        return self.nxt - self.una

    @property
    def buffered_bytes(self) -> int:
        return self.nxt - self.una + self.stream.length

    @property
    def window_room(self) -> int:
        # RFC 8684 §3.3.5: "a sender is allowed to send data segments with data-level sequence numbers between
        # (DATA_ACK, DATA_ACK + receive_window)"
        return self.window_edge - self.nxt

    @property
    def fin_acked(self) -> bool:
        return self._fin_acked

    @property
    def fin_due(self) -> bool:
        """All data has been given to subflows and the DATA_FIN may go."""
        return self.fin_dsn >= 0 and not self._fin_acked and self.stream.length == 0

    @property
    def has_reinjections(self) -> bool:
        return bool(self._queue)

    def carried_only_by(self, subflow_id: int) -> bool:
        """All that is in flight was given to that subflow alone."""
        return all(chunk.carriers == (subflow_id,) for chunk in self._chunks or ())

    def head(self) -> Chunk | None:
        return self._chunks[0] if self._chunks else None

    # --- acknowledgements -----------------------------------------------------------------------------------------
    def handle_data_ack(self, data_ack: int) -> int:
        """Frees what is acknowledged: octets newly acknowledged, or -1 for a number never sent."""
        highest = self.nxt + (1 if self.fin_sent else 0)
        if data_ack > highest:
            return -1
        if data_ack <= self.una:
            return 0
        acked = data_ack - self.una
        if self.fin_sent and data_ack == self.fin_dsn + 1:
            self._fin_acked = True
            acked -= 1
            data_ack = self.fin_dsn
        self.una = data_ack
        chunks = self._chunks
        if chunks is not None:
            while chunks and chunks[0].end <= data_ack:
                chunks.popleft()
        self.retries = 0
        return acked

    def handle_window(self, edge: int) -> None:
        # RFC 8684 §3.3.5: "It should only update its local receive window values when the largest sequence number
        # allowed (i.e., DATA_ACK + receive window) increases on the receipt of a DATA_ACK."
        if edge > self.window_edge:
            self.window_edge = edge

    # --- giving data to subflows ----------------------------------------------------------------------------------
    def assign(self, length: int, subflow_id: int) -> Chunk:
        """Takes ``length`` octets off the stream for a subflow."""
        chunk = Chunk(self.nxt, self.stream.take(length), length, subflow_id)
        self.nxt += length
        if self._chunks is None:
            self._chunks = deque()
        self._chunks.append(chunk)
        return chunk

    def next_reinjection(self) -> Chunk | None:
        """The next chunk to give to another subflow (its acknowledged beginning cut off); not removed."""
        queue = self._queue
        while queue:
            chunk = queue[0]
            if chunk.end > self.una:
                return chunk
            queue.popleft()
        return None

    def take_reinjection(self, chunk: Chunk, length: int, subflow_id: int) -> tuple[int, list[Payload]]:
        """(dsn, views) of up to ``length`` octets of ``chunk`` that are not acknowledged; the rest stays queued."""
        assert self._queue
        assert self._queue[0] is chunk
        start = max(chunk.dsn, self.una)
        length = min(length, chunk.end - start)
        views = cut(chunk.payloads, start - chunk.dsn, length)
        if start + length < chunk.end:
            assert self._chunks is not None
            rest = Chunk(
                start + length, cut(chunk.payloads, start + length - chunk.dsn, chunk.end - start - length),
                chunk.end - start - length, 0,
            )  # fmt: skip
            rest.carriers, rest.ssn_end, rest.sent_us = chunk.carriers, chunk.ssn_end, chunk.sent_us
            chunk.payloads = cut(chunk.payloads, 0, start + length - chunk.dsn)
            chunk.end = start + length
            self._chunks.insert(self._chunks.index(chunk) + 1, rest)
            self._queue[0] = rest
        else:
            self._queue.popleft()
        chunk.carriers += (subflow_id,)
        self.bytes_reinjected += length
        return start, views

    # --- reinjection ------------------------------------------------------------------------------------------------
    def first_chunks(self, limit: int) -> list[Chunk]:
        """Up to ``limit`` chunks from the head of the line."""
        return list(islice(self._chunks, limit)) if self._chunks else []

    def reinject(self, chunk: Chunk) -> bool:
        """Queues one chunk before all others. False if it already waits."""
        if self._queue is None:
            self._queue = deque()
        elif chunk in self._queue:
            return False
        self._queue.appendleft(chunk)
        return True

    def reinject_later(self, chunk: Chunk) -> bool:
        """Queues one chunk after all others. False if it already waits."""
        if self._queue is None:
            self._queue = deque()
        elif chunk in self._queue:
            return False
        self._queue.append(chunk)
        return True

    def reinject_lost(self, acked_ssn: dict[int, int]) -> int:
        """Queues everything that TCP has delivered but the data level never acknowledged; how many chunks.

        ``acked_ssn``: per subflow, the subflow sequence number up to which the peer's TCP has acknowledged.
        """
        queue = self._queue
        waiting = {chunk.dsn for chunk in queue} if queue else set()
        count = 0
        for chunk in self._chunks or ():
            if chunk.dsn not in waiting and acked_ssn.get(chunk.carriers[-1], 0) >= chunk.ssn_end:
                if self._queue is None:
                    self._queue = deque()
                self._queue.append(chunk)
                count += 1
        return count

    def reinject_carried_by(self, subflow_id: int, alive: frozenset[int]) -> int:
        """Queues everything that, of the subflows ``alive``, none carries; how many octets."""
        # RFC 8684 §3.3.6: "the sender will typically resend the data on other working subflows after a timeout"
        if not self._chunks:
            return 0
        waiting = {chunk.dsn for chunk in self._queue} if self._queue else set()
        queued = 0
        for chunk in self._chunks:
            if subflow_id in chunk.carriers and alive.isdisjoint(chunk.carriers) and chunk.dsn not in waiting:
                if self._queue is None:
                    self._queue = deque()
                self._queue.append(chunk)
                queued += chunk.end - max(chunk.dsn, self.una)
        return queued

    def drop_carrier(self, subflow_id: int, ends: dict[int, int]) -> None:
        """A subflow is gone. What others (``ends``: the subflow number after all that each was given) carry too is theirs
        from now on."""
        for chunk in self._chunks or ():
            if chunk.carriers[-1] == subflow_id:
                others = tuple(carrier for carrier in chunk.carriers if carrier in ends)
                if others:
                    # where it ended on the earlier one is not known any more, but certainly not after that
                    chunk.carriers, chunk.ssn_end = others, ends[others[-1]]

    def forget(self) -> None:
        """The connection is over (or regular TCP): nothing is kept any more."""
        self._chunks = self._queue = None
        self.stream = SendBuffer()
        self.deadline = NEVER


def cut(payloads: Sequence[Payload], offset: int, length: int) -> list[Payload]:
    """Views on ``length`` octets from ``offset`` of several buffers, without copying."""
    views: list[Payload] = []
    for payload in payloads:
        size = len(payload)
        if offset >= size:
            offset -= size
            continue
        view = memoryview(payload)[offset : offset + length]
        views.append(view)
        length -= len(view)
        offset = 0
        if length <= 0:
            break
    return views
