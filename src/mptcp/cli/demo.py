"""``mptcp demo``: a file over two paths from a stock Linux MPTCP server; one path is cut half-way."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console

from mptcp.cli import demo_result
from mptcp.errors import ConfigurationError

MIB = 1 << 20


def demo(
    size: Annotated[int, typer.Option(help="Size of the file in MiB.", min=1, max=4096)] = 64,
    rates: Annotated[str, typer.Option(help="Limits of the two paths in Mbit/s.", metavar="A,B")] = "60,40",
    simulated: Annotated[bool, typer.Option("--simulated", help="Not with the kernel, but in the simulator.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Fetch a file from a Linux MPTCP server over two paths, cut one of them half-way, and check the file."""
    limits = parse_rates(rates)
    console = Console(stderr=as_json)
    result = run(size * MIB, limits, console, simulated)
    if as_json:
        print(json.dumps(result.as_dict()))
    else:
        demo_result.print_result(result, console)
    if not result.is_verified:
        raise typer.Exit(1)


def run(size_bytes: int, limits: tuple[float, float], console: Console, simulated: bool) -> demo_result.DemoResult:
    """With the kernel if this machine lets us; it says so, and why, if it does not."""
    if not simulated:
        from mptcp.cli import demo_lab

        reason = demo_lab.why_not()
        if not reason:
            return demo_lab.run(size_bytes, limits, console)
        console.print(f"[yellow]No Linux server in this demo[/]: {reason}.", highlight=False)
        console.print("Instead, the same between two of our own stacks, in the simulator.")
    from mptcp.cli import demo_sim

    return demo_sim.run(size_bytes, limits, console)


def parse_rates(text: str) -> tuple[float, float]:
    """ConfigurationError unless there are two positive numbers."""
    try:
        first, second = (float(part) for part in text.split(","))
    except ValueError:
        raise ConfigurationError(f"--rates {text!r}: two numbers are needed, like 60,40") from None
    if not (1 <= first <= 10_000 and 1 <= second <= 10_000):
        raise ConfigurationError(f"--rates {text!r}: a rate is 1 to 10000 Mbit/s")
    return first, second
