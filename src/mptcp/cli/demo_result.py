"""What a demo has shown, as numbers and as the table at its end."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from mptcp.cli import figures


@dataclass(slots=True)
class PathResult:
    """One path: its limit, its goodput alone, and what its subflows carried in the demo. Rates in bits per second."""

    name: str
    limit_bits: float
    alone_bits: float
    bytes_received: int = 0
    was_cut: bool = False


@dataclass(slots=True)
class DemoResult:
    """Times in seconds, rates in bits per second of application data."""

    peer: str  # who the other side was
    size_bytes: int
    sha256: str
    expected_sha256: str
    seconds: float = 0.0
    before_cut_bits: float = 0.0
    after_cut_bits: float = 0.0
    longest_stall_s: float = 0.0
    cut_after_s: float = 0.0
    paths: list[PathResult] = field(default_factory=list)
    peer_counters: dict[str, int] = field(default_factory=dict)

    @property
    def is_verified(self) -> bool:
        return bool(self.sha256) and self.sha256 == self.expected_sha256

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "verified": self.is_verified}


class Arrivals:
    """How many octets had arrived when: goodput before and after a moment, and the longest wait for more."""

    __slots__ = ("_last_us", "_samples", "longest_stall_us")

    #: At most one sample in that time is kept for the rates; stalls are measured exactly.
    SAMPLE_US = 10_000

    def __init__(self) -> None:
        self._samples: list[tuple[int, int]] = []
        self._last_us = -1
        self.longest_stall_us = 0

    def add(self, total: int, now: int) -> None:
        """``total`` octets have arrived at ``now`` (microseconds)."""
        if self._last_us >= 0:
            self.longest_stall_us = max(self.longest_stall_us, now - self._last_us)
        self._last_us = now
        if len(self._samples) > 1 and now - self._samples[-2][0] < self.SAMPLE_US:
            self._samples[-1] = (now, total)
        else:
            self._samples.append((now, total))

    def rate_bits(self, start_us: int, end_us: int) -> float:
        """Of the samples between two moments; 0.0 if there are not two."""
        inside = [sample for sample in self._samples if start_us <= sample[0] <= end_us]
        if len(inside) < 2 or inside[-1][0] == inside[0][0]:
            return 0.0
        return (inside[-1][1] - inside[0][1]) * 8e6 / (inside[-1][0] - inside[0][0])

    @property
    def first_us(self) -> int:
        return self._samples[0][0] if self._samples else 0

    @property
    def last_us(self) -> int:
        return self._last_us


def print_result(result: DemoResult, console: Console) -> None:
    """The end of the demo: verified or not, and the table."""
    if result.is_verified:
        verdict = f"[green]✓[/] SHA-256 verified: {result.sha256}"
    else:
        verdict = f"[red]✗[/] SHA-256 differs: {result.sha256 or 'nothing'} instead of {result.expected_sha256}"
    console.print(verdict, highlight=False, soft_wrap=True)
    summary = f"{figures.octets(result.size_bytes)} in {result.seconds:.1f} s from {result.peer}"
    console.print(summary, highlight=False, soft_wrap=True)
    console.print(result_table(result))
    if result.peer_counters:
        facts = ", ".join(f"{value} {name}" for name, value in result.peer_counters.items())
        console.print(f"The kernel's own counters: {facts}", highlight=False, style="dim", soft_wrap=True)


def result_table(result: DemoResult) -> Table:
    """Octets per path, goodput against each path alone, the longest stall."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("", no_wrap=True)
    for name in ("limit", "alone", "in this transfer"):
        table.add_column(name, justify="right", no_wrap=True)
    total = sum(path.bytes_received for path in result.paths) or 1
    for path in result.paths:
        share = f"{figures.octets(path.bytes_received)} ({100 * path.bytes_received / total:.0f} %)"
        name = path.name + (" (cut half-way)" if path.was_cut else "")
        table.add_row(name, figures.rate(path.limit_bits), figures.rate(path.alone_bits), share)
    table.add_section()
    alone, limits = [path.alone_bits for path in result.paths], [path.limit_bits for path in result.paths]
    both = result.before_cut_bits
    table.add_row("both, until the cut", figures.rate(sum(limits)), figures.rate(sum(alone)), figures.rate(both))
    table.add_row("against the best alone", "", "", f"{both / (max(alone) or 1):.2f} ×")
    left = [path for path in result.paths if not path.was_cut]
    if len(left) < len(result.paths):
        table.add_row(
            "after the cut",
            figures.rate(sum(path.limit_bits for path in left)),
            figures.rate(sum(path.alone_bits for path in left)),
            figures.rate(result.after_cut_bits),
        )
    table.add_row("longest stall", "", "", f"{result.longest_stall_s * 1000:.0f} ms")
    return table
