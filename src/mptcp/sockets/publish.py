"""A running user-space stack, seen from other processes of the same user: what ``mptcp ls --stack user`` looks at.

``UserStack.publish()`` opens a Unix socket in ``directory()``. Who connects says ``list`` or ``events`` and a newline, and
gets lines of JSON: one object with all connections, or one object an event until either side closes. It is read-only;
only processes of the same user (and root) are answered.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import select
import socket as std
import stat
import struct
import sys
import tempfile
import threading
import weakref
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from mptcp.core.multipath.events import Event, EventKind
from mptcp.forking import freed_in_child
from mptcp.info import ConnectionInfo, Endpoint
from mptcp.sockets.inspection_json import (
    connection_from_json,
    connection_to_json,
    endpoint_from_text,
    event_from_json,
    event_to_json,
    printable,
)

if TYPE_CHECKING:
    from mptcp.core.multipath.connection import Connection
    from mptcp.sockets.user import UserStack

#: Connections in one answer; how many more there are is told.
MAX_CONNECTIONS: Final = 1000
#: Octets of one line that are taken from another process.
MAX_LINE: Final = 32 << 20
#: Who is served at the same time; further ones are turned away.
MAX_CLIENTS: Final = 8
#: Events that a listener has not taken yet; what finds no room is counted and told.
MAX_WAITING: Final = 1024
#: Seconds after which a client that does not say what it wants, or does not read, is left.
PATIENCE_S: Final = 2.0
#: Seconds until a listener that has gone is noticed, when there is nothing to tell it.
ABSENCE_S: Final = 1.0
#: Stacks that are looked at.
MAX_STACKS: Final = 256

_CREDENTIALS: Final = struct.Struct("3i")
_numbers = itertools.count(1)


def directory() -> Path:
    """Where stacks of this user are found: in $XDG_RUNTIME_DIR, else /run (root), else the temporary directory."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime:
        return Path(runtime) / "mptcp"
    if os.geteuid() == 0 and os.access("/run", os.W_OK):
        return Path("/run/mptcp-stacks")
    return Path(tempfile.gettempdir()) / f"mptcp-{os.geteuid()}"


def _own_directory(path: Path) -> None:
    """Makes it, and refuses one that others could put something into."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise PermissionError(errno.EPERM, "not a directory that only this user can write to", str(path))


class Publisher:
    """Shows one stack until it is closed (or forgotten, or the process ends). Its threads only sleep while nobody asks."""

    __slots__ = ("__weakref__", "_clients", "_finalizer", "_listener", "_lock", "_stack", "path", "program")

    def __init__(self, stack: UserStack, program: str = "") -> None:
        where = directory()
        _own_directory(where)
        self.program = program or Path(sys.argv[0] if sys.argv else "").name or "python"
        self.path = where / f"{os.getpid()}-{next(_numbers)}.sock"
        self._stack = weakref.ref(stack)
        self._clients: set[_Client] = set()
        self._lock = freed_in_child(threading.Lock())
        self._listener = std.socket(std.AF_UNIX, std.SOCK_STREAM)
        try:
            with contextlib.suppress(FileNotFoundError):
                self.path.unlink()  # of a process that had this number before
            self._listener.bind(str(self.path))
            self.path.chmod(0o600)
            self._listener.listen(MAX_CLIENTS)
        except BaseException:
            self._listener.close()
            raise
        self._finalizer = weakref.finalize(self, _withdraw, self._listener, self.path)
        threading.Thread(
            target=_accept, args=(weakref.ref(self), self._listener), name="mptcp-publish", daemon=True
        ).start()

    def close(self) -> None:
        """Nobody sees the stack any more; twice is as good as once."""
        self._finalizer()
        with self._lock:
            clients, self._clients = self._clients, set()
        for client in clients:
            client.close()
        self._observe()

    # --- inside ------------------------------------------------------------------------------------------------------
    def _admit(self, sock: std.socket) -> _Client | None:
        with self._lock:
            if len(self._clients) >= MAX_CLIENTS or not self._finalizer.alive:
                return None
            client = _Client(self, sock)
            self._clients.add(client)
            return client

    def _leave(self, client: _Client) -> None:
        with self._lock:
            self._clients.discard(client)
        self._observe()

    def _observe(self) -> None:
        """The stack's host tells of events as long as anybody listens."""
        stack = self._stack()
        if stack is None:
            return
        with stack.pump.lock, self._lock:
            listening = any(client.listens for client in self._clients)
            stack.pump.host.observer = self._tell if listening else None

    def _tell(self, connection: Connection, event: Event) -> None:
        """With the stack's lock."""
        stack = self._stack()
        if stack is None:
            return
        told = _event_line(stack, connection, event)
        for client in list(self._clients):
            client.put(told)

    def _listing(self) -> dict[str, Any]:
        stack = self._stack()
        connections: list[dict[str, Any]] = []
        count = 0
        if stack is not None:
            with stack.pump.lock:
                found = list(stack.pump.host.connections)
                count = len(found)
                connections = [_connection_json(stack, connection) for connection in found[:MAX_CONNECTIONS]]
        return {
            "pid": os.getpid(), "program": self.program, "connections": connections, "omitted": count - len(connections),
        }  # fmt: skip


def _withdraw(listener: std.socket, path: Path) -> None:
    # shutdown wakes the thread that waits in accept; close alone would not.
    with contextlib.suppress(OSError):
        listener.shutdown(std.SHUT_RDWR)
    listener.close()
    with contextlib.suppress(OSError):
        path.unlink()


def _accept(reference: weakref.ref[Publisher], listener: std.socket) -> None:
    while True:
        try:
            sock, _ = listener.accept()
        except OSError:
            return
        publisher = reference()
        client = publisher._admit(sock) if publisher is not None else None
        del publisher
        if client is None:
            sock.close()
            continue
        threading.Thread(target=client.serve, name="mptcp-publish-client", daemon=True).start()


def _connection_json(stack: UserStack, connection: Connection) -> dict[str, Any]:
    info = connection.info()
    for subflow in info.subflows:
        subflow.local, subflow.remote = stack.outer(subflow.local, subflow.remote)
    return connection_to_json(*stack.outer(connection.local, connection.remote), info)


def _event_line(stack: UserStack, connection: Connection, event: Event) -> dict[str, Any]:
    if event.local is not None and event.remote is not None:
        local, remote = stack.outer(event.local, event.remote)
        event = replace(event, local=local, remote=remote)
    local, remote = stack.outer(connection.local, connection.remote)
    whose = {"local": str(local), "remote": str(remote), "token": connection.token}
    return {"connection": whose, **event_to_json(event)}


class _Client:
    """One process that looks."""

    __slots__ = ("__weakref__", "_lock", "_lost", "_news", "_publisher", "_socket", "_waiting", "listens")

    def __init__(self, publisher: Publisher, sock: std.socket) -> None:
        self._publisher = publisher
        self._socket = sock
        self._lock = freed_in_child(threading.Lock())
        self._news = threading.Event()
        self._waiting: deque[dict[str, Any]] = deque()
        self._lost = 0
        self.listens = False

    def put(self, told: dict[str, Any]) -> None:
        if not self.listens:
            return
        with self._lock:
            if len(self._waiting) >= MAX_WAITING:
                self._lost += 1
                return
            if self._lost:
                self._waiting.append({"event": EventKind.MISSED.value, "at_us": told["at_us"], "missed": self._lost})
                self._lost = 0
            self._waiting.append(told)
        self._news.set()

    def serve(self) -> None:
        try:
            self._socket.settimeout(PATIENCE_S)
            if _peer_uid(self._socket) not in {os.geteuid(), 0}:
                return
            wanted = self._socket.recv(64).partition(b"\n")[0]
            if wanted == b"list":
                self._send(self._publisher._listing())
            elif wanted == b"events":
                self._stream()
        except OSError:
            pass  # it has gone, or does not read
        finally:
            self.listens = False
            self._publisher._leave(self)
            self._socket.close()

    def _stream(self) -> None:
        self.listens = True
        self._publisher._observe()
        self._send({"pid": os.getpid(), "program": self._publisher.program})
        while self._publisher._finalizer.alive:
            if not self._news.wait(ABSENCE_S) and self._is_gone():
                return
            self._news.clear()
            with self._lock:
                told, self._waiting = self._waiting, deque()
            for each in told:
                self._send(each)

    def _is_gone(self) -> bool:
        # With a timeout on the socket, MSG_DONTWAIT would wait for it all the same.
        readable, _, _ = select.select([self._socket], [], [], 0)
        return bool(readable) and not self._socket.recv(1, std.MSG_PEEK)

    def _send(self, what: dict[str, Any]) -> None:
        self._socket.sendall(json.dumps(what).encode() + b"\n")

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(std.SHUT_RDWR)
        self._news.set()


def _peer_uid(sock: std.socket) -> int:
    credentials = sock.getsockopt(std.SOL_SOCKET, std.SO_PEERCRED, _CREDENTIALS.size)
    uid: int = _CREDENTIALS.unpack(credentials)[1]
    return uid


# --- the other side --------------------------------------------------------------------------------------------------
@dataclass(slots=True)
class PublishedStack:
    """One stack as its process shows it. ``omitted``: connections it did not list."""

    pid: int
    program: str
    connections: list[tuple[Endpoint, Endpoint, ConnectionInfo]] = field(default_factory=list)
    omitted: int = 0


def published() -> list[Path]:
    """The sockets of the stacks this user has published, in the order of their processes."""
    where = directory()
    try:
        _check_owner(where)
        found = sorted(where.glob("*.sock"), key=lambda path: (len(path.name), path.name))
    except OSError:
        return []
    return found[:MAX_STACKS]


def _check_owner(path: Path) -> None:
    if path.lstat().st_uid not in {os.geteuid(), 0}:
        raise PermissionError(errno.EPERM, "it belongs to another user", str(path))


def look(path: Path) -> PublishedStack | None:
    """Asks one; None if its process is gone (or answers nothing sensible)."""
    try:
        with PublishedLines(path, b"list\n") as lines:
            told = next(iter(lines), None)
            if told is None:
                return None
            return _stack_from_json(told)
    except ConnectionRefusedError:
        with contextlib.suppress(OSError):
            path.unlink()  # left behind by a process that was killed
        return None
    except (OSError, ValueError):
        return None


def _stack_from_json(told: dict[str, Any]) -> PublishedStack:
    pid, program, listed, omitted = (told.get(k) for k in ("pid", "program", "connections", "omitted"))
    if not isinstance(pid, int) or not isinstance(program, str) or not isinstance(omitted, int):
        raise ValueError("no stack")
    if not isinstance(listed, list) or len(listed) > MAX_CONNECTIONS:
        raise ValueError("connections are a list")
    return PublishedStack(pid, printable(program), [connection_from_json(entry) for entry in listed], omitted)


class PublishedLines:
    """The lines that a published stack sends, as JSON objects. There may be more when ``has_line``, or ``fileno`` is readable.

    ConnectionError (or what connect raises) if the process is gone.
    """

    __slots__ = ("_buffer", "_socket")

    def __init__(self, path: Path, request: bytes) -> None:
        self._buffer = bytearray()
        self._socket = std.socket(std.AF_UNIX, std.SOCK_STREAM)
        try:
            self._socket.settimeout(PATIENCE_S)
            self._socket.connect(str(path))
            self._socket.sendall(request)
        except BaseException:
            self._socket.close()
            raise

    def fileno(self) -> int:
        return self._socket.fileno()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Waits for each line; ends when the other side closes. ValueError if it is none."""
        while (line := self._line()) is not None:
            yield line

    @property
    def has_line(self) -> bool:
        """Whether a line came together with the last one: ``fileno`` says nothing of that."""
        return b"\n" in self._buffer

    def read(self) -> list[dict[str, Any]]:
        """What has come, without waiting. ConnectionError when the other side has closed, and all has been read."""
        self._socket.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while self._receive():
                pass
            if not self.has_line:
                raise ConnectionResetError(errno.ECONNRESET, "the stack is gone")
        found = []
        while (line := self._take()) is not None:
            found.append(line)
        return found

    def _line(self) -> dict[str, Any] | None:
        while (line := self._take()) is None:
            if not self._receive():
                return None
        return line

    def _receive(self) -> bool:
        data = self._socket.recv(1 << 16)
        self._buffer += data
        if len(self._buffer) > MAX_LINE:
            raise ValueError("a line without end")
        return bool(data)

    def _take(self) -> dict[str, Any] | None:
        end = self._buffer.find(b"\n")
        if end < 0:
            return None
        try:
            told = json.loads(self._buffer[:end])
        except RecursionError:
            raise ValueError("too deep") from None
        finally:
            del self._buffer[: end + 1]
        if not isinstance(told, dict):
            raise ValueError("no object")
        return told

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def event_of(told: dict[str, Any]) -> tuple[Endpoint | None, Endpoint | None, Event]:
    """(local, remote of the connection, event) of a line of ``events``; ValueError if it is none."""
    of = told.get("connection")
    local = remote = None
    if isinstance(of, dict):
        local, remote = endpoint_from_text(of.get("local")), endpoint_from_text(of.get("remote"))
    return local, remote, event_from_json(told)


def token_of(told: dict[str, Any]) -> int:
    """The connection's token in a line of ``events``; 0 if it has none."""
    of = told.get("connection")
    token = of.get("token") if isinstance(of, dict) else None
    return token if type(token) is int else 0
