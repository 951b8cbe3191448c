"""``mptcp ls``: connections with their subflows, rates and windows; why one has no second subflow."""

from __future__ import annotations

import json
import sys
import time
from typing import Annotated, Final

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from mptcp.cli import figures
from mptcp.cli.connection_list import KernelSource, Rates, Row, Snapshot, Source, UserSource, to_json
from mptcp.errors import ConfigurationError
from mptcp.info import SubflowInfo, SubflowState
from mptcp.kernel.diagnosis import Finding
from mptcp.kernel.namespace import NetNamespace

#: Between the two looks that a rate needs (seconds).
SAMPLE_S: Final = 0.25
STACKS: Final = ("kernel", "user")
#: From this width on, there is room for both directions.
WIDE: Final = 110

_COLORS: Final = {
    SubflowState.ACTIVE: "green", SubflowState.STALE: "yellow", SubflowState.CLOSING: "dim",
}  # fmt: skip

STACK_OPTION = typer.Option(help="Whose connections: kernel, or user (this package's own stack).", metavar="STACK")
NETNS_OPTION = typer.Option(
    help="Network namespace: a name of `ip netns`, or a path like /proc/PID/ns/net.", metavar="NETNS"
)


def ls(
    stack: Annotated[str, STACK_OPTION] = "kernel",
    netns: Annotated[str | None, NETNS_OPTION] = None,
    why: Annotated[
        bool, typer.Option("--why", help="Say of connections without a second subflow why, and what helps.")
    ] = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Again and again, until Ctrl-C.")] = False,
    interval: Annotated[float, typer.Option(help="Seconds between two looks with --watch.", min=0.1)] = 1.0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object; with --watch one a line.")] = False,
) -> None:
    """List MPTCP connections with their subflows. Needs no privilege; names of other users' programs are root's to see."""
    with open_source(stack, netns, why=why) as source:
        if watch:
            _watch(source, interval, why=why, as_json=as_json)
            return
        rates = Rates()
        snapshot = source.read(processes=False)
        if snapshot.rows:
            rates.update(snapshot)
            time.sleep(SAMPLE_S)
        snapshot = source.read(why=why)
        rates.update(snapshot)
        if as_json:
            print(json.dumps(to_json(source, snapshot)))
        else:
            Console(highlight=False).print(picture(source, snapshot, Console().width))


def open_source(stack: str, netns: str | None, *, why: bool = False) -> Source:
    """What ``--stack`` and ``--netns`` name."""
    if stack not in STACKS:
        raise ConfigurationError(f"--stack {stack!r}: it is {' or '.join(STACKS)}")
    if stack == "kernel":
        return KernelSource(NetNamespace(netns))
    if netns is not None:
        raise ConfigurationError("--netns: the user-space stack is not in a namespace of the kernel's")
    if why:
        raise ConfigurationError(
            "--why asks the kernel: a connection of the user-space stack does what its path manager says"
        )
    return UserSource()


def _watch(source: Source, interval: float, *, why: bool, as_json: bool) -> None:
    console = Console(highlight=False)
    rates = Rates()
    live = Live(console=console, auto_refresh=False, vertical_overflow="crop") if console.is_terminal else None
    if as_json or live is None:
        while True:
            snapshot = source.read(why=why)
            rates.update(snapshot)
            if as_json:
                print(json.dumps(to_json(source, snapshot)), flush=True)
            else:
                console.print(picture(source, snapshot, console.width))
                sys.stdout.flush()
            time.sleep(interval)
    with live:
        while True:
            snapshot = source.read(why=why)
            rates.update(snapshot)
            live.update(picture(source, snapshot, console.width), refresh=True)
            time.sleep(interval)


# --- the picture -----------------------------------------------------------------------------------------------------
def picture(source: Source, snapshot: Snapshot, width: int) -> RenderableType:
    """All of it, for a terminal of that width."""
    parts: list[RenderableType] = []
    if snapshot.rows:
        parts.append(_columns(width, heading=True))
    for row in snapshot.rows:
        parts.append(_heading(row))
        if row.info.subflows:
            table = _columns(width)
            for subflow in row.info.subflows:
                table.add_row(*_cells(row, subflow, width))
            parts.append(table)
        elif row.info.is_multipath and row.info.state == "established":
            parts.append(Text("  no subflow is left: data waits for a new one", style="yellow"))
        parts += [_explanation(finding) for finding in row.why]
    if not snapshot.rows:
        what = "no MPTCP connections here" if source.stack == "kernel" else "no process of this user shows a connection"
        parts.append(Text(what))
    if snapshot.listening:
        listening = ", ".join(
            f"{each.local}" + (f" {', '.join(map(str, each.processes))}" if each.processes else "")
            for each in snapshot.listening
        )
        parts.append(Text(f"listening: {listening}", style="dim"))
    parts += [Text(note, style="yellow") for note in snapshot.notes]
    return Group(*parts)


def _columns(width: int, *, heading: bool = False) -> Table:
    """The columns have the same place whatever is in them."""
    named = [("state", 10), ("srtt", 8), ("cwnd", 9)]
    named[1:1] = [("out", 11), ("in", 11)] if width >= WIDE else [("rate", 11)]
    if width >= WIDE:
        named += [("sent", 9), ("received", 9)]
    first = max(20, width - sum(size + 1 for _, size in named) - 1)
    table = Table(box=None, padding=(0, 1, 0, 0), show_header=heading, header_style="dim", pad_edge=False)
    table.add_column("  subflow", width=first, overflow="fold")
    for name, size in named:
        table.add_column(name, width=size, justify="left" if name == "state" else "right", no_wrap=True)
    return table


def _heading(row: Row) -> Text:
    text = Text(f"{row.local} → {row.remote}", style="bold")
    text.append(f" {row.info.state}", style="")
    if not row.info.is_multipath:
        reason = "" if row.why else row.info.fallback_reason
        text.append(f" plain TCP: {reason}" if reason else " plain TCP", "yellow")
    details = []
    if row.processes:
        details.append(", ".join(map(str, row.processes)))
    elif row.uid is not None:
        details.append(f"user {row.uid}")
    if row.opened_here is not None:
        details.append("connected" if row.opened_here else "accepted")
    details.append(f"window {figures.octets(row.info.send_window_bytes)} out")
    details.append(f"{figures.octets(row.info.receive_window_bytes)} in")
    if row.info.send_buffered_bytes:
        details.append(f"{figures.octets(row.info.send_buffered_bytes)} unacknowledged")
    text.append("  " + ", ".join(details), style="not bold dim")
    return text


def _cells(row: Row, subflow: SubflowInfo, width: int) -> list[Text]:
    # Ports are only worth their place where the service's is another than that of the connection.
    local, remote = subflow.local.host, subflow.remote.host
    if row.opened_here and subflow.remote.port != row.remote.port:
        remote = str(subflow.remote)
    elif row.opened_here is False and subflow.local.port != row.local.port:
        local = str(subflow.local)
    where = f"  {subflow.id} {local} → {remote}"
    if subflow.interface:
        where += f" {subflow.interface}"
    word = "backup" if subflow.backup and subflow.state is SubflowState.ACTIVE else subflow.state.value
    rates = row.rates.get(subflow.id)
    out, received = rates if rates is not None else (None, None)
    cells = [Text(where), Text(word, style=_COLORS.get(subflow.state, ""))]
    if width >= WIDE:
        cells += [_rate(out), _rate(received)]
    else:
        cells.append(_rate(None if out is None or received is None else out + received))
    cells += [Text(_time(subflow.srtt_us)), Text(figures.octets(subflow.cwnd_bytes))]
    if width >= WIDE:
        cells += [Text(figures.octets(subflow.bytes_sent)), Text(figures.octets(subflow.bytes_received))]
    return cells


def _time(microseconds: int) -> str:
    return f"{microseconds} µs" if 0 < microseconds < 1000 else figures.milliseconds(microseconds)


def _rate(bits: float | None) -> Text:
    return Text("–" if bits is None else figures.rate(bits))


def _explanation(finding: Finding) -> RenderableType:
    text = Text("why: " if finding.certain else "why, perhaps: ", style="yellow")
    text.append(finding.sentence, style="default")
    if finding.fix:
        text.append("\nfix: ", style="green")
        text.append(finding.fix, style="default")
    return Padding(text, (0, 0, 0, 2))
