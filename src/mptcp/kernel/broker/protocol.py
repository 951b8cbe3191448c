"""What a client and the broker say to each other: one request, one answer, each one message of a SOCK_SEQPACKET socket.

A request has a fixed part (``_REQUEST``, network order) and, where an option is set, its value. With it comes exactly one
descriptor (SCM_RIGHTS) where the operation is about a connection: the MPTCP socket itself. Whoever can send it has the
connection; nothing in the message says which one is meant. A field that the operation has no use for is 0.

Events take another way: the answer to EVENTS brings a descriptor of a socket of its own. Each message read there is one of
the kernel's group ``mptcp_pm_events`` (from its generic netlink header on) about a connection that WATCH has named, or says
how many are missing (``emit_gap``).
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final

from mptcp.info import Endpoint, Support

VERSION: Final = 1

#: The longest value of an option: what one subflow's options can have (TCP_CONGESTION is the longest in use).
MAX_VALUE: Final = 256
#: The longest sentence of an answer, in octets.
MAX_TEXT: Final = 1024
#: The longest event that is handed on; the kernel's have about 100 octets.
MAX_EVENT: Final = 2048

#: version, operation, 0, sequence | local, remote: family, 0, port, address | address id, backup, size, interface, level,
#: name
_REQUEST: Final = struct.Struct("!BBHI BBH16s BBH16s BBHIII")
#: version, operation, 0, sequence, errno, result; then octets of the option, or a sentence
_ANSWER: Final = struct.Struct("!BBHIII")
MAX_REQUEST: Final = _REQUEST.size + MAX_VALUE
MAX_ANSWER: Final = _ANSWER.size + MAX_TEXT

#: 0 (where an event has its kind), 0, how many are missing
_GAP: Final = struct.Struct("!B3xI")

_FAMILIES: Final = {0: 0, 4: 4, 6: 16}
_NO_ADDRESS: Final = bytes(16)
_DESCRIPTOR: Final = struct.Struct("=i")


class Operation(IntEnum):
    """What can be asked for. The first eight are those of ``Control``, and the names of the policy's ``allow``."""

    ANNOUNCE = 1
    REMOVE = 2
    CREATE_SUBFLOW = 3
    DESTROY_SUBFLOW = 4
    RESET_SUBFLOW = 5
    SET_BACKUP = 6
    SET_SUBFLOW_OPTION = 7
    GET_SUBFLOW_OPTION = 8
    EVENTS = 9  # the answer brings a socket on which events of this client's connections come
    WATCH = 10  # the connection's events, those of the last moments too, go to that socket
    UNWATCH = 11  # no longer those of the token ``name``
    SUPPORTS = 12  # whether the operation of number ``name`` would be done for this client

    @property
    def label(self) -> str:
        """As the policy's file and the log write it."""
        return self.name.lower()


#: What is about a connection, and so comes with its descriptor.
WITH_CONNECTION: Final = frozenset(Operation) - {Operation.EVENTS, Operation.UNWATCH, Operation.SUPPORTS}

#: The fields an operation has; all others are 0.
_FIELDS: Final = {
    Operation.ANNOUNCE: {"local", "address_id", "interface"},
    Operation.REMOVE: {"address_id"},
    Operation.CREATE_SUBFLOW: {"local", "remote", "address_id", "backup", "interface"},
    Operation.DESTROY_SUBFLOW: {"local", "remote"},
    Operation.RESET_SUBFLOW: {"local", "remote"},
    Operation.SET_BACKUP: {"local", "remote", "backup"},
    Operation.SET_SUBFLOW_OPTION: {"local", "remote", "level", "name", "value"},
    Operation.GET_SUBFLOW_OPTION: {"local", "remote", "level", "name", "size"},
    Operation.EVENTS: set(),
    Operation.WATCH: set(),
    Operation.UNWATCH: {"name"},
    Operation.SUPPORTS: {"name"},
}


class ProtocolError(Exception):
    """A message that is none of this protocol; the text says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Request:
    """One thing to do. ``size``: room for the option that is read; ``value``: of the option that is set."""

    operation: Operation
    sequence: int = 0
    local: Endpoint | None = None
    remote: Endpoint | None = None
    address_id: int = 0
    backup: bool = False
    interface: int = 0  # index; 0: any
    level: int = 0
    name: int = 0
    size: int = 0
    value: bytes = b""

    def emit(self, sequence: int | None = None) -> bytes:
        """``sequence``: instead of its own."""
        return (
            _REQUEST.pack(
                VERSION, self.operation, 0, self.sequence if sequence is None else sequence, *_emit_endpoint(self.local), *_emit_endpoint(self.remote),
                self.address_id, self.backup, self.size, self.interface, self.level, self.name,
            )
            + self.value
        )  # fmt: skip

    @classmethod
    def parse(cls, message: bytes) -> Request:
        """ProtocolError for anything that ``emit`` would not have made."""
        if not _REQUEST.size <= len(message) <= MAX_REQUEST:
            raise ProtocolError(f"a request has {_REQUEST.size} to {MAX_REQUEST} octets, not {len(message)}")
        (
            version, number, reserved, sequence, family, pad, port, address, far_family, far_pad, far_port, far_address,
            address_id, backup, size, interface, level, name,
        ) = _REQUEST.unpack_from(message)  # fmt: skip
        if version != VERSION:
            raise ProtocolError(f"this broker speaks version {VERSION} of its protocol, not {version}")
        try:
            operation = Operation(number)
        except ValueError:
            raise ProtocolError(f"there is no operation {number}") from None
        if reserved or pad or far_pad or backup > 1:
            raise ProtocolError("a reserved octet is not 0")
        request = cls(
            operation, sequence, _parse_endpoint(family, port, address),
            _parse_endpoint(far_family, far_port, far_address), address_id, bool(backup), interface, level, name, size,
            message[_REQUEST.size :],
        )  # fmt: skip
        request._check()
        return request

    def _check(self) -> None:
        fields = _FIELDS[self.operation]
        for name in ("local", "remote", "address_id", "backup", "interface", "level", "name", "size", "value"):
            if name not in fields and getattr(self, name):
                raise ProtocolError(f"{self.operation.label} has no {name}")
        for name in ("local", "remote"):
            if name in fields and getattr(self, name) is None:
                raise ProtocolError(f"{self.operation.label} needs an address: {name}")
        if self.operation is not Operation.UNWATCH and max(self.interface, self.level, self.name) >= 1 << 31:
            raise ProtocolError("an interface, level or option is a number below 2^31")
        if self.operation is Operation.GET_SUBFLOW_OPTION and not 0 < self.size <= MAX_VALUE:
            raise ProtocolError(f"the room for an option is 1 to {MAX_VALUE} octets, not {self.size}")
        if self.operation is Operation.SET_SUBFLOW_OPTION and not self.value:
            raise ProtocolError("an option is set to a value of one octet or more")


@dataclass(frozen=True, slots=True)
class Answer:
    """``error`` 0: done, with ``result`` and, of an option, its ``value``. Else an errno, and ``text`` says why."""

    operation: int  # as in the request, 0 if that could not be read
    sequence: int = 0
    error: int = 0
    result: int = 0
    value: bytes = b""

    @classmethod
    def refusal(cls, operation: int, sequence: int, error: int, reason: str) -> Answer:
        return cls(operation, sequence, error or errno.EIO, 0, reason.encode()[:MAX_TEXT])

    @property
    def text(self) -> str:
        return self.value.decode(errors="replace")

    def emit(self) -> bytes:
        return _ANSWER.pack(VERSION, self.operation, 0, self.sequence, self.error, self.result) + self.value

    @classmethod
    def parse(cls, message: bytes) -> Answer:
        """ProtocolError for what no broker says."""
        if not _ANSWER.size <= len(message) <= MAX_ANSWER:
            raise ProtocolError(f"an answer has {_ANSWER.size} to {MAX_ANSWER} octets, not {len(message)}")
        version, operation, reserved, sequence, error, result = _ANSWER.unpack_from(message)
        if version != VERSION or reserved:
            raise ProtocolError(f"the broker does not speak version {VERSION} of the protocol")
        return cls(operation, sequence, error, result, message[_ANSWER.size :])


def emit_support(support: Support) -> bytes:
    """The value of an answer to SUPPORTS: reason and fix, in at most MAX_TEXT octets."""
    reason, fix = support.reason.encode()[: MAX_TEXT // 2 - 1], support.fix.encode()[: MAX_TEXT // 2]
    return reason + b"\0" + fix


def parse_support(answer: Answer) -> Support:
    reason, _, fix = answer.value.partition(b"\0")
    return Support(bool(answer.result), reason.decode(errors="replace"), fix.decode(errors="replace"))


def emit_gap(missed: int) -> bytes:
    """The message on the socket of events that stands where others are missing; 0: nobody knows how many."""
    return _GAP.pack(0, min(missed, 0xFFFFFFFF))


def is_gap(message: bytes) -> bool:
    return message[:1] == b"\0"


@dataclass(slots=True)
class Message:
    """What one receive gave. The descriptors are the receiver's; ``close`` lets go of those that are left."""

    data: bytes
    descriptors: list[int] = field(default_factory=list)
    cut: bool = False  # there was more of it than there was room for, in octets or in descriptors

    def take(self) -> int:
        """The one descriptor, for the caller to close. ProtocolError if there is not exactly one."""
        if self.cut or len(self.descriptors) != 1:
            raise ProtocolError(f"one descriptor comes with this, not {len(self.descriptors)}{' or more' * self.cut}")
        return self.descriptors.pop()

    def close(self) -> None:
        while self.descriptors:
            os.close(self.descriptors.pop())


def send(sock: socket.socket, data: bytes, descriptor: int = -1, *, wait: bool = True) -> None:
    """One message, with a descriptor if there is one. OSError as of ``sendmsg``."""
    flags = socket.MSG_NOSIGNAL | (0 if wait else socket.MSG_DONTWAIT)
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, _DESCRIPTOR.pack(descriptor))] if descriptor >= 0 else []
    sock.sendmsg([data], ancillary, flags)


def receive(sock: socket.socket, room: int) -> Message:
    """One message of at most ``room`` octets; its ``data`` is empty at the end. OSError as of ``recvmsg``.

    Descriptors that came are close-on-exec. More than two do not get in: the kernel lets go of the others.
    """
    data, ancillary, flags, _ = sock.recvmsg(room, socket.CMSG_SPACE(2 * _DESCRIPTOR.size), socket.MSG_CMSG_CLOEXEC)
    message = Message(data, cut=bool(flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC)))
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            whole = len(payload) - len(payload) % _DESCRIPTOR.size
            message.descriptors.extend(number for (number,) in _DESCRIPTOR.iter_unpack(payload[:whole]))
    return message


def _emit_endpoint(endpoint: Endpoint | None) -> tuple[int, int, int, bytes]:
    if endpoint is None:
        return 0, 0, 0, _NO_ADDRESS
    return endpoint.family, 0, endpoint.port, endpoint.address.ljust(16, b"\0")


def _parse_endpoint(family: int, port: int, address: bytes) -> Endpoint | None:
    length = _FAMILIES.get(family)
    if length is None:
        raise ProtocolError(f"addresses are of family 4 or 6, not {family}")
    if any(address[length:]) or (port and not length):
        raise ProtocolError("an address has more octets than its family")
    return Endpoint(address[:length], port) if length else None
