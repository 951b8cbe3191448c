"""The broker's client: a ``Control`` for processes without privilege.

The connection's socket goes to the broker with each request, so it goes to nobody but root, or a process of the user's own.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import socket
import stat
import struct
import threading
from collections.abc import Mapping
from typing import Final

from mptcp.errors import NotSupportedError, PathError
from mptcp.forking import freed_in_child
from mptcp.info import Endpoint, Support
from mptcp.kernel.broker import protocol
from mptcp.kernel.broker.protocol import Answer, Operation, ProtocolError, Request
from mptcp.kernel.control import OPERATIONS, Control
from mptcp.kernel.pm_events import MAX_READ, EventsLost, PmEvent, PmEventSource, parse_event

#: Where the broker listens when nothing else is said, and the variable that says something else.
DEFAULT_SOCKET: Final = "/run/mptcp/broker.sock"
VARIABLE: Final = "MPTCP_BROKER"
#: A broker that has not answered after so long never will; one that makes a busy client wait is quicker than that.
ANSWER_TIMEOUT_S: Final = 20.0

_AT_SECURE: Final = 23
_libc = ctypes.CDLL(None)
_libc.getauxval.argtypes = (ctypes.c_ulong,)
_libc.getauxval.restype = ctypes.c_ulong
_CREDENTIALS: Final = struct.Struct("=iII")
_GONE: Final = frozenset({errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN, errno.ESHUTDOWN})


def broker_path(environ: Mapping[str, str] = os.environ) -> str:
    """Where a broker is to be found: what MPTCP_BROKER names, else the default place if there is a socket; "" if not."""
    path = environ.get(VARIABLE, "")
    # A program with more rights than its user has lets that user choose nothing (getauxval(3)).
    if path and not _libc.getauxval(_AT_SECURE):
        return path
    with contextlib.suppress(OSError):
        if stat.S_ISSOCK(os.stat(DEFAULT_SOCKET).st_mode):
            return DEFAULT_SOCKET
    return ""


class BrokerConnection:
    """Requests and answers, one at a time. Connects when first asked, and again when the broker was started anew."""

    __slots__ = ("_lock", "_pid", "_sequence", "_socket", "path")

    def __init__(self, path: str) -> None:
        self.path = path
        self._lock = freed_in_child(threading.Lock())
        self._pid = os.getpid()
        self._sequence = 0
        self._socket: socket.socket | None = None

    def ask(self, request: Request, fd: int = -1) -> tuple[Answer, int]:
        """The answer, and the descriptor that came with it (-1: none), which is the caller's.

        The broker's refusals are raised as ``DirectControl`` would raise them.
        """
        with self._lock:
            self._sequence = self._sequence + 1 & 0xFFFFFFFF
            message = self._exchange(request.emit(self._sequence), fd)
            try:
                answer = Answer.parse(message.data)
                if answer.operation == 0 == answer.sequence and answer.error:
                    self._forget()  # it has turned us away, or will not hear us any more
                elif (answer.operation, answer.sequence) != (request.operation, self._sequence):
                    raise ProtocolError("the answer is one to another request")
                if answer.error:
                    raise _error(answer)
                return answer, message.take() if message.descriptors else -1
            except ProtocolError as error:
                self._forget()
                raise OSError(errno.EPROTO, f"the broker at {self.path}: {error}") from None
            finally:
                message.close()

    def _exchange(self, data: bytes, fd: int) -> protocol.Message:
        try:
            message = protocol.receive(self._send(data, fd), protocol.MAX_ANSWER + 1)
        except TimeoutError:
            self._forget()
            raise OSError(errno.ETIMEDOUT, f"the broker at {self.path} does not answer") from None
        except OSError as error:
            self._forget()
            raise OSError(
                error.errno or errno.EINVAL, f"the broker at {self.path}: {error.strerror or error}"
            ) from None
        if not message.data:
            self._forget()
            raise OSError(errno.ECONNRESET, f"the broker at {self.path} has closed the connection; its log says why")
        return message

    def _send(self, data: bytes, fd: int) -> socket.socket:
        while True:
            sock, fresh = self._open()
            try:
                protocol.send(sock, data, fd)
                return sock
            except OSError as error:
                if error.errno not in _GONE:
                    raise
                if fresh:  # it has turned us away, and said why
                    return sock
                self._forget()  # it was started anew since; this request it has not seen

    def _open(self) -> tuple[socket.socket, bool]:
        """The connection, and whether it is a new one."""
        if self._pid != os.getpid():
            # Parent and child would take each other's answers from a socket they share.
            self._pid = os.getpid()
            self._forget()
        if self._socket is not None:
            return self._socket, False
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        try:
            sock.settimeout(ANSWER_TIMEOUT_S)
            sock.connect(self.path)
            _check_broker(sock, self.path)
        except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
            sock.close()
            raise OSError(errno.ENOENT, "nobody listens there: start `mptcp broker` as root") from None
        except BaseException:
            sock.close()
            raise
        self._socket = sock
        return sock, True

    def _forget(self) -> None:
        sock, self._socket = self._socket, None
        if sock is not None:
            sock.close()

    def close(self) -> None:
        with self._lock:
            self._forget()


class BrokerEvents(PmEventSource):
    """The kernel's events about the connections that ``watch`` has shown, by way of the broker."""

    __slots__ = ("_connection", "_socket")

    def __init__(self, path: str) -> None:
        self._connection = BrokerConnection(path)
        try:
            _, fd = self._connection.ask(Request(Operation.EVENTS))
            if fd < 0:
                raise OSError(errno.EPROTO, f"the broker at {path} gives no socket for events")
            self._socket = socket.socket(fileno=fd)
        except BaseException:
            self._connection.close()
            raise
        self._socket.setblocking(False)

    def fileno(self) -> int:
        return self._socket.fileno()

    def read(self) -> list[PmEvent]:
        found: list[PmEvent] = []
        for _ in range(MAX_READ):
            try:
                message = self._socket.recv(protocol.MAX_EVENT)
            except BlockingIOError:
                break
            if not message:
                if found:
                    break  # the end is still there at the next call
                raise OSError(errno.ECONNRESET, f"the broker at {self._connection.path} gives no more events")
            if protocol.is_gap(message):
                raise EventsLost
            event = parse_event(memoryview(message))
            if event is not None:
                found.append(event)
        return found

    def watch(self, fd: int, token: int) -> None:
        self._connection.ask(Request(Operation.WATCH), fd)

    def unwatch(self, token: int) -> None:
        with contextlib.suppress(OSError):  # with the broker, its list has gone
            self._connection.ask(Request(Operation.UNWATCH, name=token))

    def close(self) -> None:
        self._socket.close()
        self._connection.close()


class BrokerControl(Control):
    """Asks the broker at ``path``; what it refuses is refused with its reason."""

    __slots__ = ("_connection",)

    def __init__(self, path: str) -> None:
        self._connection = BrokerConnection(path)

    @property
    def path(self) -> str:
        return self._connection.path

    def announce(self, fd: int, token: int, local: Endpoint, address_id: int, interface: int = 0) -> None:
        self._ask(fd, Request(Operation.ANNOUNCE, local=local, address_id=address_id, interface=interface))

    def remove(self, fd: int, token: int, address_id: int) -> None:
        self._ask(fd, Request(Operation.REMOVE, address_id=address_id))

    def create_subflow(
        self,
        fd: int,
        token: int,
        local: Endpoint,
        local_id: int,
        remote: Endpoint,
        *,
        backup: bool = False,
        interface: int = 0,
    ) -> None:
        self._ask(
            fd,
            Request(
                Operation.CREATE_SUBFLOW,
                local=local,
                remote=remote,
                address_id=local_id,
                backup=backup,
                interface=interface,
            ),
        )

    def destroy_subflow(self, fd: int, token: int, local: Endpoint, remote: Endpoint) -> None:
        self._ask(fd, Request(Operation.DESTROY_SUBFLOW, local=local, remote=remote))

    def reset_subflow(self, fd: int, token: int, local: Endpoint, remote: Endpoint) -> None:
        self._ask(fd, Request(Operation.RESET_SUBFLOW, local=local, remote=remote))

    def set_backup(self, fd: int, token: int, local: Endpoint, remote: Endpoint, backup: bool) -> None:
        self._ask(fd, Request(Operation.SET_BACKUP, local=local, remote=remote, backup=backup))

    def set_subflow_option(
        self, fd: int, token: int, local: Endpoint, remote: Endpoint, level: int, name: int, value: bytes
    ) -> None:
        _check_option(level, name, len(value))
        self._ask(
            fd, Request(Operation.SET_SUBFLOW_OPTION, local=local, remote=remote, level=level, name=name, value=value)
        )

    def get_subflow_option(
        self, fd: int, token: int, local: Endpoint, remote: Endpoint, level: int, name: int, size: int
    ) -> bytes:
        size = min(size, protocol.MAX_VALUE)
        _check_option(level, name, size)
        return self._ask(
            fd, Request(Operation.GET_SUBFLOW_OPTION, local=local, remote=remote, level=level, name=name, size=size)
        )

    def event_source(self) -> PmEventSource:
        return BrokerEvents(self.path)

    def supports(self, operation: str) -> Support:
        if operation not in OPERATIONS:
            return Support(False, f"there is no operation {operation!r}", f"one of {', '.join(OPERATIONS)}")
        try:
            answer, _ = self._connection.ask(Request(Operation.SUPPORTS, name=Operation[operation.upper()]))
        except OSError as error:
            return Support(
                False, error.strerror or str(error), "look at the broker's log, or start `mptcp broker` as root"
            )
        return protocol.parse_support(answer)

    def close(self) -> None:
        self._connection.close()

    def _ask(self, fd: int, request: Request) -> bytes:
        answer, given = self._connection.ask(request, fd)
        if given >= 0:
            os.close(given)
        return answer.value


def _check_option(level: int, name: int, size: int) -> None:
    if not 0 < size <= protocol.MAX_VALUE or not (0 <= level < 1 << 31 and 0 <= name < 1 << 31):
        raise PathError(f"an option has 1 to {protocol.MAX_VALUE} octets, and positive numbers", errno.EINVAL)


def _check_broker(sock: socket.socket, path: str) -> None:
    _, uid, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    if uid not in {0, os.geteuid()}:
        raise PermissionError(
            errno.EPERM, f"who listens there is neither root nor this user, but uid {uid}: not trusted"
        )


def _error(answer: Answer) -> OSError:
    match answer.error:
        case errno.EPERM:
            return PermissionError(errno.EPERM, answer.text)
        case errno.EOPNOTSUPP:
            return NotSupportedError(answer.text)
        case _:
            return PathError(answer.text, answer.error)
