"""The live display of a transfer: one bar, and a line per subflow with its rate, octets and round-trip time."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from mptcp.cli import figures
from mptcp.cli.subflow_log import SubflowLog
from mptcp.info import SubflowInfo

REFRESH_PER_SECOND = 8
#: Without a terminal, a line this often (seconds).
PLAIN_INTERVAL_S = 1.0

Snapshot = Callable[[], Sequence[SubflowInfo]]


class TransferDisplay:
    """A context manager. The transfer sets ``done`` and ``total`` (octets); a thread of the display does the rest.

    ``watch`` tells it where a connection's subflows can be asked for; that is done from the thread, so that a stall is
    seen as one. On a terminal the display is live, elsewhere it is a line a second; with ``quiet`` there is none.
    """

    def __init__(
        self,
        title: str,
        *,
        console: Console | None = None,
        quiet: bool = False,
        clock_us: Callable[[], int] = lambda: time.monotonic_ns() // 1000,
    ) -> None:
        """``clock_us`` is the time that rates are given in; a simulation has its own."""
        self.title = title
        self.done = 0
        self.resumed = 0  # octets that an earlier run has brought
        self.total: int | None = None
        self.note = ""
        self.log = SubflowLog()
        self._snapshot: Snapshot = list
        self._console = console or Console(stderr=True)
        self._clock_us = clock_us
        self._started_us = clock_us()
        self._live: Live | None = None
        self._quiet = quiet
        self._lock = threading.Lock()  # the display's thread and the transfer's both take snapshots
        self._next_line = time.monotonic() + PLAIN_INTERVAL_S
        self._next_sample = 0.0

    def __enter__(self) -> Self:
        self._started_us = self._clock_us()
        if self._console.is_terminal and not self._quiet:
            self._live = Live(
                console=self._console, get_renderable=self.render, refresh_per_second=REFRESH_PER_SECOND, transient=True
            )
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.refresh()
        if self._live is not None:
            self._live.stop()

    def watch(self, snapshot: Snapshot) -> None:
        """From now on ``snapshot`` gives the subflows."""
        self._snapshot = snapshot

    def unwatch(self) -> None:
        """Before a connection is closed: what its subflows have carried is taken down, and it is asked no more."""
        self.refresh()
        self._snapshot = list

    def refresh(self) -> None:
        """Takes a snapshot now."""
        # A connection that has just ended has no subflows to tell of: what was seen last stays.
        with contextlib.suppress(OSError), self._lock:
            infos = self._snapshot()
            if infos:
                self.log.update(infos, self._clock_us())

    def tick(self) -> None:
        """From the transfer, as often as it likes: without a terminal, the line a second."""
        if self._live is not None:
            return
        now = time.monotonic()
        if now >= self._next_sample:  # oftener than lines: a rate needs two samples
            self._next_sample = now + 1 / REFRESH_PER_SECOND
            self.refresh()
        if now >= self._next_line:
            self._next_line = now + PLAIN_INTERVAL_S
            if not self._quiet:
                self._console.print(self._line(), highlight=False, soft_wrap=True)

    @property
    def elapsed_s(self) -> float:
        return max(self._clock_us() - self._started_us, 1) / 1e6

    @property
    def goodput_bits(self) -> float:
        """Bits per second of this run, resumed octets not counted."""
        return (self.done - self.resumed) * 8 / self.elapsed_s

    def _line(self) -> str:
        of = f" of {figures.octets(self.total)}" if self.total is not None else ""
        parts = [f"{self.title}: {figures.octets(self.done)}{of}, {figures.rate(self.goodput_bits)}"]
        parts += [
            f"{t.info.local.host}: {figures.rate(t.rate_bits)} {t.state}"
            for t in self.log.tracks
            if t.present or t.bytes
        ]
        return "; ".join(parts) + (f" ({self.note})" if self.note else "")

    def render(self) -> RenderableType:
        """The picture of now."""
        self.refresh()
        head = Table.grid(padding=(0, 2))
        of = f" of {figures.octets(self.total)}" if self.total is not None else ""
        bar: RenderableType = ProgressBar(total=self.total or 1, completed=self.done, width=40)
        if self.total is None:
            bar = ProgressBar(total=None, width=40, pulse=True)
        head.add_row(
            Text(self.title, style="bold"), bar, f"{figures.octets(self.done)}{of}", figures.rate(self.goodput_bits)
        )
        return Group(head, subflow_table(self.log), *([Text(self.note, style="yellow")] if self.note else []))


def subflow_table(log: SubflowLog) -> Table:
    """A row per subflow: from where to where, state, rate, octets, smoothed round-trip time."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("subflow", overflow="fold")
    table.add_column("state", no_wrap=True)
    for name in ("rate", "bytes", "srtt"):
        table.add_column(name, justify="right", no_wrap=True)
    for track in log.tracks:
        info = track.info
        table.add_row(
            f"{info.local.host} → {info.remote.host}",
            Text(track.state, style={"active": "green", "stale": "yellow", "closed": "red"}.get(track.state, "")),
            figures.rate(track.rate_bits),
            figures.octets(track.bytes),
            figures.milliseconds(info.srtt_us),
        )
    return table
