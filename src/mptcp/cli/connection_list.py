"""Connections as ``mptcp ls`` lists them, of either stack: where they come from, their rates, their JSON."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, Self

from mptcp.info import ConnectionInfo, Endpoint
from mptcp.kernel import features
from mptcp.kernel.diagnosis import Diagnosis, Finding
from mptcp.kernel.fallback import reason_of_counters
from mptcp.kernel.listing import ListedConnection, Listing
from mptcp.kernel.namespace import NetNamespace
from mptcp.kernel.processes import Process, holders
from mptcp.sockets import publish
from mptcp.sockets.inspection_json import connection_to_json


@dataclass(slots=True)
class Row:
    """One connection. ``rates``: bits a second (out, in) of each subflow by its id, once there were two looks at it."""

    local: Endpoint
    remote: Endpoint
    info: ConnectionInfo
    processes: list[Process] = field(default_factory=list)
    uid: int | None = None
    opened_here: bool | None = None
    why: list[Finding] = field(default_factory=list)
    rates: dict[int, tuple[float, float]] = field(default_factory=dict)
    inode: int = 0

    @property
    def key(self) -> tuple[object, ...]:
        """The same for the same connection, from one look to the next."""
        return self.local, self.remote, self.info.token


@dataclass(slots=True)
class Listener:
    local: Endpoint
    processes: list[Process] = field(default_factory=list)
    inode: int = 0


@dataclass(slots=True)
class Snapshot:
    """What there is at one moment (``at_ns``, monotonic); ``notes``: sentences about what is missing in it."""

    rows: list[Row] = field(default_factory=list)
    listening: list[Listener] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    at_ns: int = 0


class Source(ABC):
    """Where connections are listed."""

    stack = ""

    @abstractmethod
    def read(self, *, why: bool = False, processes: bool = True) -> Snapshot:
        """A look. ``why``: with what prevents second subflows; ``processes``: with whose they are."""

    def close(self) -> None:  # noqa: B027 not all hold something
        """Lets go of it."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class KernelSource(Source):
    """The kernel's connections of one namespace. NotSupportedError, or OSError of netlink, where nothing can be listed."""

    stack = "kernel"

    def __init__(self, namespace: NetNamespace) -> None:
        self._namespace = namespace
        self._listing = Listing(namespace)

    def read(self, *, why: bool = False, processes: bool = True) -> Snapshot:
        connections, sockets = self._listing.read()
        snapshot = Snapshot(
            [_row(connection) for connection in connections],
            [Listener(sock.local, inode=sock.inode) for sock in sockets],
            at_ns=time.monotonic_ns(),
        )
        if processes:
            owned: list[Row | Listener] = [*snapshot.rows, *snapshot.listening]
            found = holders([each.inode for each in owned])
            for each in owned:
                each.processes = found.get(each.inode, [])
        plain = [
            (row, connection.socket.info is not None and connection.socket.info.key_received)
            for row, connection in zip(snapshot.rows, connections, strict=True)
            if not row.info.is_multipath
        ]
        if plain:
            counted = features.counters(self._namespace)
            for row, was_multipath in plain:
                row.info.fallback_reason = reason_of_counters(counted, was_multipath=was_multipath)
        if why and connections:
            with Diagnosis(self._namespace, sockets, len(connections)) as diagnosis:
                for row, connection in zip(snapshot.rows, connections, strict=True):
                    row.why = diagnosis.explain(connection)
        if not connections:
            support = features.mptcp(self._namespace)
            if not support:
                snapshot.notes.append(f"{support.reason} ({support.fix})")
        return snapshot

    def close(self) -> None:
        self._listing.close()


def _row(connection: ListedConnection) -> Row:
    return Row(
        connection.local, connection.remote, connection.info, uid=connection.uid, opened_here=connection.opened_here,
        inode=connection.inode,
    )  # fmt: skip


class UserSource(Source):
    """The user-space stacks that this user's processes have published."""

    stack = "user"

    def read(self, *, why: bool = False, processes: bool = True) -> Snapshot:
        snapshot = Snapshot(at_ns=time.monotonic_ns())
        for path in publish.published():
            found = publish.look(path)
            if found is None:
                continue
            process = Process(found.pid, found.program)
            snapshot.rows += [Row(local, remote, info, [process]) for local, remote, info in found.connections]
            if found.omitted:
                snapshot.notes.append(f"{process} has {found.omitted} connections more")
        return snapshot


class Rates:
    """Looks at the same connections again and again: what went through each subflow since the look before."""

    __slots__ = ("_last",)

    def __init__(self) -> None:
        self._last: dict[tuple[object, ...], tuple[int, int, int]] = {}

    def update(self, snapshot: Snapshot) -> None:
        """Fills in ``Row.rates``."""
        now = snapshot.at_ns
        seen: dict[tuple[object, ...], tuple[int, int, int]] = {}
        for row in snapshot.rows:
            for subflow in row.info.subflows:
                key = (*row.key, subflow.local, subflow.remote)
                seen[key] = now, subflow.bytes_sent, subflow.bytes_received
                before = self._last.get(key)
                if before is not None and now > before[0]:
                    span_s = (now - before[0]) / 1e9
                    out = (subflow.bytes_sent - before[1]) * 8 / span_s
                    row.rates[subflow.id] = max(0.0, out), max(0.0, (subflow.bytes_received - before[2]) * 8 / span_s)
        self._last = seen


def to_json(source: Source, snapshot: Snapshot) -> dict[str, Any]:
    """One object: sizes in bytes, times in microseconds, rates in bits a second (once they are known)."""
    return {
        "stack": source.stack,
        "connections": [_row_json(row) for row in snapshot.rows],
        "listening": [
            {"local": str(each.local), "processes": _processes(each.processes)} for each in snapshot.listening
        ],
        "notes": snapshot.notes,
    }


def _row_json(row: Row) -> dict[str, Any]:
    made = connection_to_json(row.local, row.remote, row.info)
    made["processes"] = _processes(row.processes)
    if row.uid is not None:
        made["uid"] = row.uid
    if row.opened_here is not None:
        made["opened_here"] = row.opened_here
    for subflow in made["subflows"]:
        rates = row.rates.get(subflow["id"])
        if rates is not None:
            subflow["sent_bits_per_second"], subflow["received_bits_per_second"] = map(round, rates)
    made["why"] = [
        {"cause": each.cause.value, "sentence": each.sentence, "fix": each.fix, "certain": each.certain}
        for each in row.why
    ]
    return made


def _processes(processes: list[Process]) -> list[dict[str, Any]]:
    return [{"pid": process.pid, "name": process.name} for process in processes]
