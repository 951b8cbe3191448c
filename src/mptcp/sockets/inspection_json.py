"""Connections, subflows and events as JSON objects and back: what one process shows another, and the command line a user.

Fields have the names of ``ConnectionInfo``, ``SubflowInfo`` and ``Event``, with their units; endpoints are text
("10.0.0.1:80", "[fd00::1]:80").
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any, Final

from mptcp.core.multipath.events import Event, EventKind
from mptcp.info import ConnectionInfo, Endpoint, SubflowInfo, SubflowState

#: Subflows of one connection that are taken over from another process.
MAX_SUBFLOWS: Final = 1024
#: Longest text that is.
MAX_TEXT: Final = 1000


def connection_to_json(local: Endpoint, remote: Endpoint, info: ConnectionInfo) -> dict[str, Any]:
    made: dict[str, Any] = {"local": str(local), "remote": str(remote)}
    made.update((f.name, getattr(info, f.name)) for f in fields(info) if f.name != "subflows")
    made["subflows"] = [subflow_to_json(subflow) for subflow in info.subflows]
    return made


def subflow_to_json(info: SubflowInfo) -> dict[str, Any]:
    made: dict[str, Any] = {f.name: getattr(info, f.name) for f in fields(info)}
    made["local"], made["remote"], made["state"] = str(info.local), str(info.remote), info.state.value
    return made


def event_to_json(event: Event) -> dict[str, Any]:
    """Without what the event does not have."""
    made: dict[str, Any] = {"event": event.kind.value, "at_us": event.at_us}
    if event.subflow_id >= 0:
        made["subflow_id"] = event.subflow_id
    for name in ("local", "remote"):
        endpoint = getattr(event, name)
        if endpoint is not None:
            made[name] = str(endpoint)
    if event.address_id >= 0:
        made["address_id"] = event.address_id
    if event.kind is EventKind.PRIORITY_CHANGED or event.backup:
        made["backup"] = event.backup
    for name in ("reason", "interface", "missed"):
        if value := getattr(event, name):
            made[name] = value
    return made


def connection_from_json(data: object) -> tuple[Endpoint, Endpoint, ConnectionInfo]:
    """(local, remote, what is known). ValueError if it is no such object; unknown fields are passed over."""
    mapping = _mapping(data)
    listed = mapping.get("subflows")
    if not isinstance(listed, list) or len(listed) > MAX_SUBFLOWS:
        raise ValueError("subflows are a list")
    values = _values(ConnectionInfo, mapping)
    info = ConnectionInfo(**values, subflows=[subflow_from_json(entry) for entry in listed])
    return endpoint_from_text(mapping.get("local")), endpoint_from_text(mapping.get("remote")), info


def subflow_from_json(data: object) -> SubflowInfo:
    """ValueError if it is no such object."""
    mapping = _mapping(data)
    values = _values(SubflowInfo, mapping)
    return SubflowInfo(
        local=endpoint_from_text(mapping.get("local")),
        remote=endpoint_from_text(mapping.get("remote")),
        state=SubflowState(mapping.get("state")),
        **values,
    )


def event_from_json(data: object) -> Event:
    """ValueError if it is no such object."""
    mapping = _mapping(data)
    local, remote = (endpoint_from_text(mapping[k]) if k in mapping else None for k in ("local", "remote"))
    values = _values(Event, mapping)
    return Event(kind=EventKind(mapping.get("event")), local=local, remote=remote, **values)


def endpoint_from_text(text: object) -> Endpoint:
    """The reverse of ``str(endpoint)``; ValueError."""
    if not isinstance(text, str) or len(text) > MAX_TEXT:
        raise ValueError("an endpoint is a text like 10.0.0.1:80")
    host, _, port = text.rpartition(":")
    if not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"{text!r} has no port")
    return Endpoint(ipaddress.ip_address(host.removeprefix("[").removesuffix("]")).packed, int(port))


def _mapping(data: object) -> Mapping[str, Any]:
    if not isinstance(data, dict):
        raise ValueError("no object")
    return data


#: Annotations of fields that are carried over, as type and as text.
_PLAIN: Final[dict[Any, type]] = {int: int, bool: bool, str: str, "int": int, "bool": bool, "str": str}


def _values(kind: Any, mapping: Mapping[str, Any]) -> dict[str, Any]:
    """The plain fields of a class, each checked to be of its type. ValueError if one is not, or is needed and missing."""
    found: dict[str, Any] = {}
    for field in fields(kind):
        wanted = _PLAIN.get(field.type)
        if wanted is None:
            continue
        if field.name not in mapping:
            if field.default is MISSING and field.default_factory is MISSING:
                raise ValueError(f"{field.name} is missing")
            continue
        value = mapping[field.name]
        if type(value) is not wanted:
            raise ValueError(f"{field.name} is no {wanted.__name__}")
        found[field.name] = printable(value) if isinstance(value, str) else value
    return found


def printable(text: str) -> str:
    """What another process wrote, fit for a terminal and not endless."""
    return "".join(c if c.isprintable() else "?" for c in text[:MAX_TEXT])
