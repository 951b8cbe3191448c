"""The kernel's own events about MPTCP connections: the multicast group of generic netlink ``mptcp_pm``, decoded.

Joining the group needs CAP_NET_ADMIN; whoever is a member hears of every connection of the namespace.
"""

from __future__ import annotations

import contextlib
import errno
import socket
from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from mptcp.info import Endpoint
from mptcp.kernel.generic_netlink import GENL_HEADER_SIZE, GenericFamily
from mptcp.kernel.layout import unmapped
from mptcp.kernel.namespace import NetNamespace
from mptcp.kernel.netlink import (
    NETLINK_ADD_MEMBERSHIP,
    NETLINK_GENERIC,
    SO_RCVBUFFORCE,
    SOL_NETLINK,
    NetlinkError,
    attributes,
    messages,
    open_socket,
    receive,
    unsigned,
)
from mptcp.kernel.path_manager import EVENT_GROUP, FAMILY

#: Wanted of the kernel for events that nobody has read yet: an event takes about 800 octets there.
EVENT_BUFFER_BYTES: Final = 8 << 20
#: Datagrams read at one wake-up; what is left waits for the next.
MAX_READ: Final = 1024


class PmEventKind(IntEnum):
    """MPTCP_EVENT_* (linux/mptcp_pm.h)."""

    CREATED = 1
    ESTABLISHED = 2
    CLOSED = 3
    ANNOUNCED = 6
    REMOVED = 7
    SUBFLOW_ESTABLISHED = 10
    SUBFLOW_CLOSED = 11
    SUBFLOW_PRIORITY = 13
    LISTENER_CREATED = 15
    LISTENER_CLOSED = 16


_KINDS: Final = {int(kind): kind for kind in PmEventKind}

_TOKEN: Final = 1
_LOCAL_ID: Final = 3
_REMOTE_ID: Final = 4
_SOURCE4: Final = 5
_SOURCE6: Final = 6
_DESTINATION4: Final = 7
_DESTINATION6: Final = 8
_SOURCE_PORT: Final = 9
_DESTINATION_PORT: Final = 10
_BACKUP: Final = 11
_ERROR: Final = 12
_FLAGS: Final = 13
_TIMEOUT: Final = 14
_IF_IDX: Final = 15
_RESET_REASON: Final = 16
_RESET_FLAGS: Final = 17
_SERVER_SIDE: Final = 18

#: ``PmEvent.flags`` of CREATED and ESTABLISHED.
FLAG_DENY_JOIN_ID0: Final = 1
FLAG_SERVER_SIDE: Final = 2


@dataclass(frozen=True, slots=True)
class PmEvent:
    """One event; what the kernel did not say is 0 or None. ``token`` is the local one.

    ANNOUNCED has the peer's address in ``remote`` (port 0: that of the connection) and its id, REMOVED the id only.
    ``error`` of SUBFLOW_CLOSED: 0 FIN or REMOVE_ADDR, else an errno; with ``reset_reason`` of MP_TCPRST (-1: none came).
    """

    kind: PmEventKind
    token: int = 0
    local: Endpoint | None = None
    remote: Endpoint | None = None
    local_id: int = 0
    remote_id: int = 0
    backup: bool = False
    error: int = 0
    flags: int = 0
    interface: int = 0
    reset_reason: int = -1
    reset_flags: int = 0
    server_side: bool = False


def parse_event(payload: memoryview) -> PmEvent | None:
    """From a generic netlink message (with its header, without netlink's). None: no event known here."""
    if len(payload) < GENL_HEADER_SIZE:
        return None
    kind = _KINDS.get(payload[0])
    if kind is None:
        return None
    fields = dict(attributes(payload[GENL_HEADER_SIZE:]))

    def number(name: int, missing: int = 0) -> int:
        value = unsigned(fields.get(name))
        return missing if value is None else value

    def endpoint(v4: int, v6: int, port: int) -> Endpoint | None:
        address = fields.get(v4)
        if address is None or len(address) != 4:
            address = fields.get(v6)
            if address is None or len(address) != 16:
                return None
        value = unsigned(fields.get(port), network=True)
        return Endpoint(unmapped(bytes(address)), (value or 0) & 0xFFFF)

    local = endpoint(_SOURCE4, _SOURCE6, _SOURCE_PORT)
    remote = endpoint(_DESTINATION4, _DESTINATION6, _DESTINATION_PORT)
    flags = number(_FLAGS)
    return PmEvent(
        kind,
        number(_TOKEN),
        local,
        remote,
        number(_LOCAL_ID),
        number(_REMOTE_ID),
        bool(number(_BACKUP)),
        number(_ERROR),
        flags,
        number(_IF_IDX),
        number(_RESET_REASON, -1),
        number(_RESET_FLAGS),
        bool(number(_SERVER_SIDE)) or bool(flags & FLAG_SERVER_SIDE),
    )


def event_token(payload: memoryview) -> int:
    """The connection that ``parse_event`` would tell of; 0: none, or no event."""
    if len(payload) < GENL_HEADER_SIZE:
        return 0
    return next((unsigned(value) or 0 for kind, value in attributes(payload[GENL_HEADER_SIZE:]) if kind == _TOKEN), 0)


class EventsLost(Exception):
    """Events came faster than they were read: what holds now has to be read anew."""


class PmEventSource(ABC):
    """Where path-manager events come from: the kernel, or a broker that passes on those of its client's connections."""

    __slots__ = ()

    @abstractmethod
    def fileno(self) -> int:
        """Readable when ``read`` has something."""

    @abstractmethod
    def read(self) -> list[PmEvent]:
        """What has come, without waiting; empty when nothing has. EventsLost if some are missing before the next
        ``read``; OSError when the source is gone."""

    def watch(self, fd: int, token: int) -> None:  # noqa: B027 the kernel tells of all connections anyway
        """Events of this connection are wanted; ``fd``, its socket, is the proof that it is ours."""

    def unwatch(self, token: int) -> None:  # noqa: B027
        """Events of this connection are no longer wanted."""

    @abstractmethod
    def close(self) -> None:
        """Lets go of it; twice is as good as once."""


class PmEventSocket(PmEventSource):
    """A member of the kernel's group. PermissionError without CAP_NET_ADMIN, NotSupportedError where there is none."""

    __slots__ = ("_family_id", "_socket")

    def __init__(self, namespace: NetNamespace | None = None) -> None:
        namespace = namespace or NetNamespace()
        family = GenericFamily(FAMILY, namespace)
        family.close()
        self._family_id = family.id
        group = family.groups.get(EVENT_GROUP)
        if group is None:
            raise NetlinkError(errno.EOPNOTSUPP, "", "this kernel does not tell events of MPTCP")
        self._socket = open_socket(NETLINK_GENERIC, namespace)
        try:
            self._socket.setblocking(False)
            grow_receive_buffer(self._socket, EVENT_BUFFER_BYTES)
            try:
                self._socket.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)
            except PermissionError:
                raise NetlinkError(
                    errno.EPERM, "it needs CAP_NET_ADMIN in the network namespace", "hearing events of MPTCP"
                ) from None
        except BaseException:
            self._socket.close()
            raise

    def fileno(self) -> int:
        return self._socket.fileno()

    def read(self) -> list[PmEvent]:
        return [event for event in map(parse_event, self.read_messages()) if event is not None]

    def read_messages(self) -> list[memoryview]:
        """As ``read``, not decoded: what ``parse_event`` takes."""
        found: list[memoryview] = []
        for _ in range(MAX_READ):
            try:
                data = receive(self._socket)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                # What was read so far is older than what is lost, and what holds now will be read anew.
                raise EventsLost from None
            if data is not None:
                found += [message.payload for message in messages(data) if message.kind == self._family_id]
        return found

    def close(self) -> None:
        self._socket.close()


def grow_receive_buffer(sock: socket.socket, size: int) -> None:
    """Room for ``size`` octets that nobody has read: past the system's limit where allowed, else up to it."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, size)
    except PermissionError:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)
