"""Netlink: messages and attributes, requests and their answers.

What comes in is taken for hostile: an attribute or message whose length cannot be ends the reading, a value of another
size than expected is None, and only the kernel is listened to (port 0). Native byte order, as everywhere in netlink.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import sys
import threading
from collections.abc import Iterator
from typing import Final, NamedTuple, Self

from mptcp.forking import freed_in_child
from mptcp.kernel.namespace import NetNamespace

NETLINK_ROUTE: Final = 0
NETLINK_SOCK_DIAG: Final = 4
NETLINK_GENERIC: Final = 16

NLM_F_REQUEST: Final = 0x01
NLM_F_ACK: Final = 0x04
NLM_F_DUMP_INTR: Final = 0x10
NLM_F_DUMP: Final = 0x300
NLM_F_REPLACE: Final = 0x100
NLM_F_EXCL: Final = 0x200
NLM_F_CREATE: Final = 0x400
_NLM_F_CAPPED: Final = 0x100
_NLM_F_ACK_TLVS: Final = 0x200

NLMSG_NOOP: Final = 1
NLMSG_ERROR: Final = 2
NLMSG_DONE: Final = 3
NLA_F_NESTED: Final = 0x8000
_NLA_TYPE_MASK: Final = 0x3FFF
_NLMSGERR_ATTR_MSG: Final = 1

SOL_NETLINK: Final = 270
NETLINK_ADD_MEMBERSHIP: Final = 1
NETLINK_CAP_ACK: Final = 10
NETLINK_EXT_ACK: Final = 11
NETLINK_GET_STRICT_CHK: Final = 12
SO_RCVBUFFORCE: Final = 33

#: One answer of a dump may hold so much (the kernel's own limit is 32 KiB).
RECEIVE_BYTES: Final = 1 << 16
#: A dump that is longer than this is no answer to anything asked here.
MAX_DUMP_BYTES: Final = 256 << 20
#: The kernel answers while it is being asked; who waits longer than this waits for nothing.
ANSWER_TIMEOUT_S: Final = 5
#: A dump that the kernel calls inconsistent (something changed meanwhile) is repeated so often.
DUMP_ATTEMPTS: Final = 4

_HEADER: Final = struct.Struct("=IHHII")
_ATTRIBUTE: Final = struct.Struct("=HH")
_ERROR: Final = struct.Struct("=i")
_TIMEVAL: Final = struct.Struct("@ll")


class NetlinkError(OSError):
    """The kernel refused a request. ``explanation`` is its own sentence (extended acknowledgement), often ""."""

    def __init__(self, number: int, explanation: str = "", what: str = "") -> None:
        self.explanation = explanation
        text = os.strerror(number) + (f" ({explanation})" if explanation else "")
        super().__init__(number, f"{what}: {text}" if what else text)


class Message(NamedTuple):
    """One netlink message without its header."""

    kind: int
    flags: int
    sequence: int
    payload: memoryview


def attribute(kind: int, payload: bytes) -> bytes:
    """One attribute, padded to four octets."""
    return _ATTRIBUTE.pack(4 + len(payload), kind) + payload + bytes(-len(payload) % 4)


def nested(kind: int, *inner: bytes) -> bytes:
    """An attribute that contains attributes."""
    return attribute(kind | NLA_F_NESTED, b"".join(inner))


def attributes(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """(kind without its flags, value) of each attribute up to the first that is not whole."""
    offset, end = 0, len(data)
    while offset + 4 <= end:
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if not 4 <= length <= end - offset:
            return
        yield kind & _NLA_TYPE_MASK, data[offset + 4 : offset + length]
        offset += (length + 3) & ~3


def unsigned(value: memoryview | bytes | None, *, network: bool = False) -> int | None:
    """An integer of 1, 2, 4 or 8 octets; None if it is none. ``network``: big-endian."""
    if value is None or len(value) not in {1, 2, 4, 8}:
        return None
    return int.from_bytes(value, "big" if network else sys.byteorder)


def text(value: memoryview | bytes | None) -> str:
    """A string that may end in a zero; octets that are no text are replaced."""
    return "" if value is None else bytes(value).partition(b"\0")[0].decode("utf-8", "replace")


def messages(data: memoryview) -> Iterator[Message]:
    """The messages of one datagram up to the first that is not whole."""
    offset, end = 0, len(data)
    while offset + _HEADER.size <= end:
        length, kind, flags, sequence, _ = _HEADER.unpack_from(data, offset)
        if not _HEADER.size <= length <= end - offset:
            return
        yield Message(kind, flags, sequence, data[offset + _HEADER.size : offset + length])
        offset += (length + 3) & ~3


def message_error(message: Message) -> tuple[int, str]:
    """(errno, the kernel's sentence) of NLMSG_ERROR, or of NLMSG_DONE; errno 0: it is an acknowledgement."""
    payload = message.payload
    if len(payload) < 4:
        return (0, "") if message.kind == NLMSG_DONE else (errno.EPROTO, "an answer without a result")
    number: int = -_ERROR.unpack_from(payload)[0]
    if number <= 0:
        return (0, "")
    explanation = ""
    if message.flags & _NLM_F_ACK_TLVS:
        if message.kind == NLMSG_DONE:
            start = 4
        elif message.flags & _NLM_F_CAPPED:
            start = 4 + _HEADER.size
        else:
            start = 4 + ((unsigned(payload[4:8]) or 0) + 3 & ~3)
        explanation = text(dict(attributes(payload[start:])).get(_NLMSGERR_ATTR_MSG))
    return number, explanation


def open_socket(protocol: int, namespace: NetNamespace) -> socket.socket:
    """A bound netlink socket of the namespace that asks for explanations; OSError where the system has none."""
    with namespace.entered():
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol)
    try:
        sock.bind((0, 0))
        for option in (NETLINK_EXT_ACK, NETLINK_CAP_ACK):
            with contextlib.suppress(OSError):  # Linux < 4.12: errors without a sentence
                sock.setsockopt(SOL_NETLINK, option, 1)
    except BaseException:
        sock.close()
        raise
    return sock


def receive(sock: socket.socket, flags: int = 0) -> memoryview | None:
    """One datagram; None if it is not the kernel's, or too long to be whole. OSError (EAGAIN, ENOBUFS) as recvmsg."""
    data, _, message_flags, sender = sock.recvmsg(RECEIVE_BYTES, 0, flags)
    if sender[0] != 0 or message_flags & socket.MSG_TRUNC:
        return None
    return memoryview(data)


class NetlinkSocket:
    """Asks the kernel, one request at a time whatever the number of threads; belongs to one network namespace."""

    __slots__ = ("_lock", "_sequence", "_socket")

    def __init__(self, protocol: int, namespace: NetNamespace | None = None) -> None:
        self._socket = open_socket(protocol, namespace or NetNamespace())
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _TIMEVAL.pack(ANSWER_TIMEOUT_S, 0))
        self._sequence = 0
        self._lock = freed_in_child(threading.Lock())

    def request(self, kind: int, body: bytes, flags: int = 0, what: str = "") -> list[Message]:
        """Sends one request and waits for its acknowledgement; what came before that. NetlinkError if it is refused,
        with ``what`` at the head of its text."""
        with self._lock:
            self._send(kind, NLM_F_REQUEST | NLM_F_ACK | flags, body)
            return self._answers(what)[0]

    def dump(self, kind: int, body: bytes, flags: int = 0, what: str = "") -> list[Message]:
        """Everything the kernel lists; asked again if it changed in the middle."""
        with self._lock:
            found: list[Message] = []
            for _ in range(DUMP_ATTEMPTS):
                self._send(kind, NLM_F_REQUEST | NLM_F_DUMP | flags, body)
                found, consistent = self._answers(what)
                if consistent:
                    break
            return found

    def _send(self, kind: int, flags: int, body: bytes) -> None:
        self._sequence = self._sequence + 1 & 0xFFFFFFFF
        self._socket.send(_HEADER.pack(_HEADER.size + len(body), kind, flags, self._sequence, 0) + body)

    def _answers(self, what: str) -> tuple[list[Message], bool]:
        found: list[Message] = []
        consistent = True
        size = 0
        while True:
            try:
                data = receive(self._socket)
            except BlockingIOError:
                raise NetlinkError(errno.ETIMEDOUT, "no answer to a netlink request", what) from None
            if data is None:
                continue
            size += len(data)
            if size > MAX_DUMP_BYTES:
                raise NetlinkError(errno.EMSGSIZE, f"an answer of more than {MAX_DUMP_BYTES >> 20} MiB", what)
            for message in messages(data):
                if message.sequence != self._sequence:
                    continue  # of a request that was given up
                if message.flags & NLM_F_DUMP_INTR:
                    consistent = False
                if message.kind in {NLMSG_ERROR, NLMSG_DONE}:
                    number, explanation = message_error(message)
                    if number:
                        raise NetlinkError(number, explanation, what)
                    return found, consistent
                if message.kind != NLMSG_NOOP:
                    found.append(message)

    def close(self) -> None:
        """Lets go of it; twice is as good as once."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
