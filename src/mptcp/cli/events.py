"""``mptcp events``: what happens to the connections of a namespace, a line an event."""

from __future__ import annotations

import json
import sys
import time
from datetime import datetime
from typing import Annotated, Any

import typer

from mptcp.cli.event_sources import EventSource, Told, open_events
from mptcp.cli.ls import NETNS_OPTION, STACK_OPTION, STACKS
from mptcp.core.multipath.events import EventKind
from mptcp.errors import ConfigurationError
from mptcp.info import Endpoint
from mptcp.kernel.namespace import NetNamespace
from mptcp.sockets.inspection_json import event_to_json

_FOR_EVER_S = 3600.0


def events(
    stack: Annotated[str, STACK_OPTION] = "kernel",
    netns: Annotated[str | None, NETNS_OPTION] = None,
    count: Annotated[int, typer.Option("--count", "-n", help="Stop after so many events (0: never).", min=0)] = 0,
    seconds: Annotated[
        float | None, typer.Option("--for", help="Stop after so many seconds.", metavar="SECONDS", min=0)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Print the events of MPTCP connections until Ctrl-C. All are root's to hear; without privilege, what can be seen."""
    if stack not in STACKS:
        raise ConfigurationError(f"--stack {stack!r}: it is {' or '.join(STACKS)}")
    if stack == "user" and netns is not None:
        raise ConfigurationError("--netns: the user-space stack is not in a namespace of the kernel's")
    with open_events(NetNamespace(netns) if stack == "kernel" else None) as source:
        _announce(source, as_json)
        _print_all(source, count, seconds, as_json)


def _announce(source: EventSource, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"event": "listening", "complete": source.is_complete, "note": source.note}), flush=True)
    else:
        print(f"mptcp: {source.note}", file=sys.stderr, flush=True)


def _print_all(source: EventSource, count: int, seconds: float | None, as_json: bool) -> None:
    end = None if seconds is None else time.monotonic() + seconds
    printed = 0
    while end is None or time.monotonic() < end:
        for told in source.read(_FOR_EVER_S if end is None else max(0.0, end - time.monotonic())):
            print(json.dumps(told_to_json(told)) if as_json else line(told), flush=True)
            printed += 1
            if printed == count:
                return


def told_to_json(told: Told) -> dict[str, Any]:
    """``at_us``: microseconds since 1970. ``connection`` is missing where an event is of no connection."""
    made = event_to_json(told.event)
    if told.interface:
        made["interface_name"] = told.interface
    if told.local is not None and told.remote is not None:
        made["connection"] = {"local": str(told.local), "remote": str(told.remote), "token": told.token}
    elif told.token:
        made["connection"] = {"token": told.token}
    if told.process is not None:
        made["process"] = {"pid": told.process.pid, "name": told.process.name}
    return made


def line(told: Told) -> str:
    """When, whose, what, and the particulars."""
    event = told.event
    # Local time, as a clock on the wall shows it.
    at = datetime.fromtimestamp(event.at_us / 1e6).strftime("%H:%M:%S.%f")[:-3]  # noqa: DTZ006
    words = [at]
    if told.local is not None and told.remote is not None:
        words.append(f"{told.local} → {told.remote}")
    elif told.token:
        words.append(f"token {told.token:#x}")
    if told.process is not None:
        words.append(str(told.process))
    words.append(event.kind.value)
    words += _particulars(told)
    return " ".join(words)


def _particulars(told: Told) -> list[str]:
    event = told.event
    words: list[str] = []
    if event.subflow_id >= 0:
        words.append(str(event.subflow_id))
    is_connection = event.kind in {EventKind.ESTABLISHED, EventKind.CLOSED, EventKind.FELL_BACK}
    if not is_connection and event.local is not None and event.remote is not None:
        words.append(f"{event.local} → {event.remote}")
    elif not is_connection and (event.local or event.remote):
        words.append(_address(event.local or event.remote))
    if told.interface:
        words.append(told.interface)
    if event.address_id >= 0:
        words.append(f"id {event.address_id}")
    if event.backup:
        words.append("backup")
    elif event.kind is EventKind.PRIORITY_CHANGED:
        words.append("not backup")
    if event.reason:
        words.append(f"({event.reason})")
    return words


def _address(endpoint: Endpoint | None) -> str:
    """Without a port that is none."""
    if endpoint is None:
        return ""
    return str(endpoint) if endpoint.port else endpoint.host
