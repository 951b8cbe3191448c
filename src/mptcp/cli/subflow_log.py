"""What became of every subflow of a connection, also of those that are gone: figures for progress displays and tables."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from mptcp.info import SubflowInfo, SubflowState

#: The rate shown is that of the last this many microseconds.
RATE_WINDOW_US = 1_000_000
#: Samples kept per subflow for the rate; a display that samples 10 times a second needs 11.
MAX_SAMPLES = 64
#: Subflows remembered after they closed; the oldest closed one is forgotten first.
MAX_SUBFLOWS = 64


class SubflowTrack:
    """One subflow: its last snapshot, and its rate over the last second."""

    __slots__ = ("_samples", "info", "present")

    def __init__(self, info: SubflowInfo) -> None:
        self.info = info
        self.present = True
        self._samples: deque[tuple[int, int]] = deque(maxlen=MAX_SAMPLES)

    def sample(self, info: SubflowInfo, now: int) -> None:
        self.info = info
        self._samples.append((now, self.bytes))
        while len(self._samples) > 2 and self._samples[1][0] <= now - RATE_WINDOW_US:
            self._samples.popleft()

    @property
    def bytes(self) -> int:
        """Payload octets that crossed this subflow, both ways."""
        return self.info.bytes_received + self.info.bytes_sent

    @property
    def rate_bits(self) -> float:
        """Bits per second over the last second; 0.0 before there are two samples."""
        if len(self._samples) < 2:
            return 0.0
        (start, before), (end, after) = self._samples[0], self._samples[-1]
        return (after - before) * 8e6 / (end - start) if end > start else 0.0

    @property
    def state(self) -> str:
        """In a word, as a display shows it."""
        if not self.present:
            return "closed"
        state = self.info.state
        return "backup" if state is SubflowState.ACTIVE and self.info.backup else state.value


class SubflowLog:
    """Fed with snapshots (``update``), it remembers every subflow it has ever seen, in the order of their ids."""

    __slots__ = ("_tracks",)

    def __init__(self) -> None:
        self._tracks: dict[int, SubflowTrack] = {}

    def update(self, infos: Iterable[SubflowInfo], now: int) -> None:
        """A fresh snapshot of the connection's subflows at ``now`` (microseconds)."""
        gone = set(self._tracks)
        for info in infos:
            track = self._tracks.get(info.id)
            if track is None:
                track = self._tracks[info.id] = SubflowTrack(info)
            track.sample(info, now)
            track.present = info.state is not SubflowState.CLOSED
            gone.discard(info.id)
        for identity in gone:
            track = self._tracks[identity]
            track.present = False
            track.sample(track.info, now)
        if len(self._tracks) > MAX_SUBFLOWS:
            for identity in sorted(gone)[: len(self._tracks) - MAX_SUBFLOWS]:
                del self._tracks[identity]

    @property
    def tracks(self) -> list[SubflowTrack]:
        return [self._tracks[identity] for identity in sorted(self._tracks)]
