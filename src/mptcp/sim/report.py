"""The figures of one run, as values and as a table: goodput in all and per subflow, shares, stalls, retransmissions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mptcp.sim.applications import Progress

if TYPE_CHECKING:
    from mptcp.core.multipath.connection import Connection
    from mptcp.sim.network import Path


@dataclass(slots=True)
class SubflowFigures:
    """Of one subflow, on the sending side. ``share`` is of all octets sent."""

    name: str  # "10.0.0.1:40000 > 10.0.0.2:80"
    bytes_sent: int
    bytes_retransmitted: int
    retransmissions: int
    timeouts: int
    goodput_bps: float  # octets acknowledged over the time of the run
    share: float
    srtt_us: int


@dataclass(slots=True)
class PathFigures:
    """Of one direction of a path."""

    name: str
    packets: int
    bytes: int
    queue_drops: int
    lost: int
    max_queue_us: int


@dataclass(slots=True)
class Report:
    """One transfer. Times in microseconds; ``goodput_bps`` from the start of the run to the last octet."""

    octets: int
    duration_us: int
    goodput_bps: float
    longest_stall_us: int
    is_multipath: bool
    fallback_reason: str
    subflows: list[SubflowFigures] = field(default_factory=list)
    paths: list[PathFigures] = field(default_factory=list)

    @property
    def retransmissions(self) -> int:
        return sum(subflow.retransmissions for subflow in self.subflows)

    def table(self) -> str:
        """For people."""
        rows = [("subflow", "goodput", "share", "sent", "retransmitted", "timeouts", "srtt")]
        rows += [
            (
                subflow.name,
                _rate(subflow.goodput_bps),
                f"{subflow.share:.0%}",
                f"{subflow.bytes_sent:,}",
                f"{subflow.bytes_retransmitted:,}",
                str(subflow.timeouts),
                f"{subflow.srtt_us / 1000:.1f} ms",
            )
            for subflow in self.subflows
        ]
        lines = _align(rows)
        if self.paths:
            lines.append("")
            path_rows = [("path", "packets", "octets", "queue drops", "lost", "longest queue")]
            path_rows += [
                (p.name, f"{p.packets:,}", f"{p.bytes:,}", str(p.queue_drops), str(p.lost), f"{p.max_queue_us / 1000:.1f} ms")
                for p in self.paths
            ]  # fmt: skip
            lines += _align(path_rows)
        kind = "multipath" if self.is_multipath else f"fallback ({self.fallback_reason or 'no reason given'})"
        lines.append("")
        lines.append(
            f"{self.octets:,} octets in {self.duration_us / 1e6:.3f} s: {_rate(self.goodput_bps)}, {kind}, "
            f"longest stall {self.longest_stall_us / 1000:.1f} ms, {self.retransmissions} retransmissions"
        )
        return "\n".join(lines)


def report(sender: Connection, progress: Progress, *, paths: Sequence[Path] = (), start_us: int = 0) -> Report:
    """The figures of what ``sender`` sent and the receiver noted in ``progress``, for a run that began then."""
    info = sender.info()
    duration_us = max(1, progress.last_us - start_us)
    total = sum(subflow.bytes_sent for subflow in info.subflows) or 1
    subflows = [
        SubflowFigures(
            f"{subflow.local} > {subflow.remote}",
            subflow.bytes_sent,
            subflow.bytes_retransmitted,
            subflow.retransmissions,
            subflow.timeouts,
            subflow.bytes_acked * 8e6 / duration_us,
            subflow.bytes_sent / total,
            subflow.srtt_us,
        )
        for subflow in info.subflows
    ]
    figures = [
        PathFigures(
            direction.name,
            direction.packets_delivered,
            direction.bytes_delivered,
            direction.queue_drops,
            direction.lost,
            direction.max_queue_us,
        )
        for path in paths
        for direction in (path.forward, path.backward)
    ]
    return Report(
        progress.total,
        duration_us,
        progress.total * 8e6 / duration_us,
        progress.longest_stall_us,
        info.is_multipath,
        info.fallback_reason,
        subflows,
        figures,
    )


def _rate(bits_per_second: float) -> str:
    return f"{bits_per_second / 1e6:.1f} Mbit/s"


def _align(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) if not index else cell.rjust(width) for index, (cell, width) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    ]  # fmt: skip
