"""getsockopt on the descriptor of an MPTCP socket: what a connection tells without any privilege.

``socket.getsockopt`` cannot be used: these options read their buffer before they fill it. The buffers belong to the
calling thread and grow with the number of subflows.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
import threading
from typing import Any, Final, NamedTuple

from mptcp.errors import NotSupportedError, PathError
from mptcp.info import Endpoint
from mptcp.kernel.layout import (
    MPTCP_INFO_SIZE,
    NOWHERE,
    SOCKADDR_STORAGE,
    TCP_INFO_SIZE,
    MptcpInfo,
    TcpInfo,
    parse_sockaddr,
)

SOL_MPTCP: Final = 284
MPTCP_INFO: Final = 1
MPTCP_TCPINFO: Final = 2
MPTCP_SUBFLOW_ADDRS: Final = 3
MPTCP_FULL_INFO: Final = 4
TCP_IS_MPTCP: Final = 43

#: As many subflows of one connection are read; what is beyond is only counted (``FullInfo.total``).
MAX_SUBFLOWS: Final = 1024
#: Room for so many at first: twice what the in-kernel path manager opens.
_FIRST_ROOM: Final = 16
#: Room for ``struct mptcp_info`` in FULL_INFO, for kernels that know more of it than this package.
_INFO_ROOM: Final = 256
#: Two calls that must agree with each other, on kernels without FULL_INFO, are repeated so often.
_ATTEMPTS: Final = 4
#: Kernels to come may have more in ``tcp_info``.
_TCP_INFO_ROOM: Final = 512

_ADDRESSES: Final = 2 * SOCKADDR_STORAGE
#: ``struct mptcp_subflow_info``: id, padding, local, remote.
_SUBFLOW_INFO: Final = 8 + _ADDRESSES
#: ``struct mptcp_subflow_data``: its own size, number of subflows, size of an element in the kernel, and here.
_SUBFLOW_DATA: Final = struct.Struct("=4I")
#: ``struct mptcp_full_info``, up to the ``mptcp_info`` in it.
_FULL: Final = struct.Struct("=6I2Q")
_ID: Final = struct.Struct("=I")
#: Of ``struct mptcp_info``: write_seq, snd_una, bytes_sent, bytes_received.
_POSITION: Final = struct.Struct("=16x2Q24x2Q")
_ALL_ONES: Final = 0xFFFF_FFFF_FFFF_FFFF

_libc = ctypes.CDLL(None, use_errno=True)
_getsockopt: Any = _libc.getsockopt
_getsockopt.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)


class SubflowEntry(NamedTuple):
    """One subflow as the kernel lists it. ``id`` counts from 1 within its connection; 0: a dead initial subflow, or a
    kernel that does not tell."""

    id: int
    local: Endpoint
    remote: Endpoint
    tcp: TcpInfo


class FullInfo(NamedTuple):
    """A connection and all its subflows at one moment. ``total`` is more than there are entries beyond MAX_SUBFLOWS."""

    mptcp: MptcpInfo
    subflows: list[SubflowEntry]
    total: int


class _Buffers:
    """What one thread lets the kernel write into."""

    __slots__ = ("addresses", "header", "header_at", "length", "length_at", "room", "small", "small_at", "tcp")

    def __init__(self, room: int) -> None:
        self.room = room
        self.length = ctypes.c_uint()
        self.length_at = ctypes.addressof(self.length)
        self.small = ctypes.create_string_buffer(512)
        self.small_at = ctypes.addressof(self.small)
        self.header = ctypes.create_string_buffer(_FULL.size + _INFO_ROOM)
        self.header_at = ctypes.addressof(self.header)
        self.addresses = ctypes.create_string_buffer(_SUBFLOW_DATA.size + _SUBFLOW_INFO * room)
        self.tcp = ctypes.create_string_buffer(_SUBFLOW_DATA.size + TCP_INFO_SIZE * room)


class _Local(threading.local):
    buffers: _Buffers | None = None


_local = _Local()
#: Endpoints by their sockaddr: a connection's are asked for again and again.
_endpoints: dict[bytes, Endpoint] = {}
_MAX_ENDPOINTS: Final = 4096


def _take(room: int = _FIRST_ROOM) -> _Buffers:
    """The thread's buffers, until ``_local`` gets them back: a signal handler that reads in the meantime gets others."""
    buffers, _local.buffers = _local.buffers, None
    return buffers if buffers is not None and buffers.room >= room else _Buffers(room)


def _call(fd: int, level: int, name: int, address: int, size: int, buffers: _Buffers) -> int:
    """One getsockopt; the length the kernel gave, or a negative errno."""
    buffers.length.value = size
    if _getsockopt(fd, level, name, address, buffers.length_at):
        return -ctypes.get_errno()
    return min(buffers.length.value, size)


def _failed(number: int, what: str) -> OSError:
    if number in {errno.EOPNOTSUPP, errno.ENOPROTOOPT}:
        return NotSupportedError(f"{what}: the socket is not MPTCP, or fell back to TCP (or this kernel is too old)")
    return OSError(number, f"{what}: {os.strerror(number)}")


def is_mptcp(fd: int) -> bool:
    """Whether the socket is MPTCP now: also before it is connected, no longer after a fallback. OSError if it is none."""
    buffers = _take()
    try:
        length = _call(fd, socket.IPPROTO_TCP, TCP_IS_MPTCP, buffers.small_at, 4, buffers)
        if length >= 4:
            return any(buffers.small.raw[:4])
        if length not in {-errno.ENOPROTOOPT, -errno.EOPNOTSUPP}:
            raise _failed(-length or errno.EINVAL, "TCP_IS_MPTCP")
        # The option is younger than the protocol; a socket that has fallen back has no MPTCP_INFO.
        return _call(fd, SOL_MPTCP, MPTCP_INFO, buffers.small_at, MPTCP_INFO_SIZE, buffers) >= 0
    finally:
        _local.buffers = buffers


def protocol(fd: int) -> int:
    """SO_PROTOCOL: 262 (IPPROTO_MPTCP) also after a fallback; 6 of an accepted socket whose peer has no MPTCP."""
    buffers = _take()
    try:
        length = _call(fd, socket.SOL_SOCKET, socket.SO_PROTOCOL, buffers.small_at, 4, buffers)
        if length != 4:
            raise _failed(-length if length < 0 else errno.EINVAL, "SO_PROTOCOL")
        number: int = _ID.unpack_from(buffers.small)[0]
        return number
    finally:
        _local.buffers = buffers


def congestion_control(fd: int) -> str:
    """TCP_CONGESTION: the name that a connection's subflows are made with; "" if the kernel tells none."""
    buffers = _take()
    try:
        length = _call(fd, socket.IPPROTO_TCP, socket.TCP_CONGESTION, buffers.small_at, 64, buffers)
        return buffers.small.raw[: max(0, length)].partition(b"\0")[0].decode("ascii", "replace")
    finally:
        _local.buffers = buffers


def names(fd: int) -> tuple[Endpoint, Endpoint]:
    """(local, remote) as getsockname and getpeername give them: those of the first subflow for ever; NOWHERE if none."""
    buffers = _take()
    try:
        found = []
        for ask in (_libc.getsockname, _libc.getpeername):
            buffers.length.value = SOCKADDR_STORAGE
            given = not ask(fd, ctypes.c_void_p(buffers.small_at), ctypes.c_void_p(buffers.length_at))
            found.append(parse_sockaddr(buffers.small.raw[: buffers.length.value]) if given else NOWHERE)
        return found[0], found[1]
    finally:
        _local.buffers = buffers


def mptcp_info(fd: int) -> MptcpInfo:
    """MPTCP_INFO. NotSupportedError (EOPNOTSUPP) on a socket that is not MPTCP (any more)."""
    buffers = _take()
    try:
        length = _call(fd, SOL_MPTCP, MPTCP_INFO, buffers.small_at, 512, buffers)
        if length < 0:
            raise _failed(-length, "MPTCP_INFO")
        return MptcpInfo.parse(buffers.small.raw[:length])
    finally:
        _local.buffers = buffers


def position(fd: int) -> tuple[int, int]:
    """(octets of the stream sent and received, octets written that are not acknowledged yet): MPTCP_INFO, only these.

    NotSupportedError (EOPNOTSUPP) on a socket that is not MPTCP (any more)."""
    buffers = _take()
    try:
        length = _call(fd, SOL_MPTCP, MPTCP_INFO, buffers.small_at, 512, buffers)
        if length < _POSITION.size:
            if length < 0:
                raise _failed(-length, "MPTCP_INFO")
            info = MptcpInfo.parse(buffers.small.raw[:length])  # of a kernel that does not count octets
            return info.bytes_sent + info.bytes_received, info.write_seq - info.snd_una & _ALL_ONES
        write_seq, snd_una, sent, received = _POSITION.unpack_from(buffers.small)
        return sent + received, write_seq - snd_una & _ALL_ONES
    finally:
        _local.buffers = buffers


def tcp_info(fd: int) -> TcpInfo:
    """TCP_INFO: of the first subflow, of a TCP socket, or of what a connection fell back to."""
    buffers = _take()
    try:
        length = _call(fd, socket.IPPROTO_TCP, socket.TCP_INFO, buffers.small_at, 512, buffers)
        if length < 0:
            raise _failed(-length, "TCP_INFO")
        return TcpInfo.parse(buffers.small.raw[:length])
    finally:
        _local.buffers = buffers


def full_info(fd: int) -> FullInfo:
    """The connection with every subflow the kernel lists: connecting ones too, and the initial one when it is dead.

    One call on Linux 6.5 and later (MPTCP_FULL_INFO); before, several that are repeated until they agree, with ids of 0.
    NotSupportedError (EOPNOTSUPP) on a socket that is not MPTCP (any more).
    """
    room = _FIRST_ROOM
    while True:
        buffers = _take(room)
        try:
            length = _read_full(fd, buffers)
            if length >= 0:
                info = _parse_full(buffers, length)
            elif length in {-errno.EOPNOTSUPP, -errno.ENOPROTOOPT}:
                info = _piecewise(fd, buffers)
            else:
                raise _failed(-length, "MPTCP_FULL_INFO")
        finally:
            _local.buffers = buffers
        if info.total <= buffers.room or buffers.room >= MAX_SUBFLOWS:
            return info
        room = min(MAX_SUBFLOWS, info.total + 8)


def subflow_tcp_info(fd: int, local: Endpoint, remote: Endpoint) -> bytes:
    """``struct tcp_info`` of one subflow, as long as the kernel has it. PathError (ENOENT) if there is no such subflow;
    NotSupportedError (EOPNOTSUPP) on a socket that is not MPTCP (any more)."""
    room = _FIRST_ROOM
    while True:
        buffers = _take(room)
        try:
            octets = ctypes.create_string_buffer(_SUBFLOW_DATA.size + _TCP_INFO_ROOM * buffers.room)
            for _ in range(_ATTEMPTS):
                addresses, count, size = _elements(fd, MPTCP_SUBFLOW_ADDRS, buffers.addresses, _ADDRESSES, buffers)
                tcp, _, tcp_size = _elements(fd, MPTCP_TCPINFO, octets, _TCP_INFO_ROOM, buffers)
                if addresses == _elements(fd, MPTCP_SUBFLOW_ADDRS, buffers.addresses, _ADDRESSES, buffers)[0]:
                    break  # nothing came or went meanwhile
            room = buffers.room
        finally:
            _local.buffers = buffers
        for i in range(min(count, room, len(addresses) // size if size else 0)):
            element = addresses[i * size : (i + 1) * size]
            ends = _endpoint(element[:28]), _endpoint(element[SOCKADDR_STORAGE : SOCKADDR_STORAGE + 28])
            if ends == (local, remote) and (found := tcp[i * tcp_size : (i + 1) * tcp_size]):
                return found
        if count <= room or room >= MAX_SUBFLOWS:
            raise PathError(f"this connection has no subflow from {local} to {remote}", errno.ENOENT)
        room = min(MAX_SUBFLOWS, count + 8)


def _read_full(fd: int, buffers: _Buffers) -> int:
    _FULL.pack_into(
        buffers.header, 0, 0, TCP_INFO_SIZE, 0, _SUBFLOW_INFO, 0, buffers.room,
        ctypes.addressof(buffers.addresses), ctypes.addressof(buffers.tcp),
    )  # fmt: skip
    return _call(fd, SOL_MPTCP, MPTCP_FULL_INFO, buffers.header_at, _FULL.size + _INFO_ROOM, buffers)


def _parse_full(buffers: _Buffers, length: int) -> FullInfo:
    if length < _FULL.size:
        raise OSError(errno.EPROTO, f"MPTCP_FULL_INFO: {length} octets are too few")
    _, tcp_size, _, subflow_size, count, _, _, _ = _FULL.unpack_from(buffers.header)
    # What the kernel has less of is not written: elements follow each other at its size.
    tcp_size, subflow_size = min(tcp_size, TCP_INFO_SIZE), min(subflow_size, _SUBFLOW_INFO)
    mptcp = MptcpInfo.parse(buffers.header.raw[_FULL.size : length])
    return FullInfo(mptcp, parse_subflows(buffers.addresses, subflow_size, buffers.tcp, tcp_size,
                                          min(count, buffers.room)), count)  # fmt: skip


def parse_subflows(addresses: Any, subflow_size: int, tcp: Any, tcp_size: int, count: int) -> list[SubflowEntry]:
    """``count`` elements of ``struct mptcp_subflow_info`` and of ``tcp_info``, of these sizes, in two buffers.

    Elements that are not whole in the buffers are left out.
    """
    entries: list[SubflowEntry] = []
    if subflow_size < _ID.size:
        return entries
    at, where = memoryview(addresses).cast("B"), memoryview(tcp).cast("B")
    count = min(count, len(at) // subflow_size, len(where) // tcp_size if tcp_size else count)
    for i in range(count):
        element = at[i * subflow_size : (i + 1) * subflow_size]
        entries.append(
            SubflowEntry(
                _ID.unpack_from(element)[0],
                _endpoint(bytes(element[8:36])),
                _endpoint(bytes(element[8 + SOCKADDR_STORAGE : 36 + SOCKADDR_STORAGE])),
                TcpInfo.parse(where[i * tcp_size : (i + 1) * tcp_size]),
            )
        )
    return entries


def _endpoint(sockaddr: bytes) -> Endpoint:
    endpoint = _endpoints.get(sockaddr)
    if endpoint is None:
        if len(_endpoints) >= _MAX_ENDPOINTS:
            _endpoints.clear()
        endpoint = _endpoints[sockaddr] = parse_sockaddr(sockaddr)
    return endpoint


def _piecewise(fd: int, buffers: _Buffers) -> FullInfo:
    """What FULL_INFO says, from its older parts: MPTCP_INFO, SUBFLOW_ADDRS, TCPINFO (Linux 5.16)."""
    previous: bytes | None = None
    for _ in range(_ATTEMPTS):
        addresses, count, size = _elements(fd, MPTCP_SUBFLOW_ADDRS, buffers.addresses, _ADDRESSES, buffers)
        if addresses == previous:
            break  # nothing came or went while the rest was read
        previous = addresses
        tcp, tcp_count, tcp_size = _elements(fd, MPTCP_TCPINFO, buffers.tcp, TCP_INFO_SIZE, buffers)
    length = _call(fd, SOL_MPTCP, MPTCP_INFO, buffers.small_at, 512, buffers)
    if length < 0:
        raise _failed(-length, "MPTCP_INFO")
    listed = min(count, tcp_count, buffers.room, len(addresses) // size if size else 0)
    listed = min(listed, len(tcp) // tcp_size if tcp_size else 0)
    entries = [
        SubflowEntry(
            0,
            _endpoint(addresses[i * size : i * size + 28]),
            _endpoint(addresses[i * size + SOCKADDR_STORAGE : i * size + SOCKADDR_STORAGE + 28]),
            TcpInfo.parse(tcp[i * tcp_size : (i + 1) * tcp_size]),
        )
        for i in range(listed)
    ]
    return FullInfo(MptcpInfo.parse(buffers.small.raw[:length]), entries, count)


def _elements(
    fd: int, name: int, buffer: ctypes.Array[ctypes.c_char], size: int, buffers: _Buffers
) -> tuple[bytes, int, int]:
    """An array option: (the elements, how many there are, the size of one as it was written)."""
    _SUBFLOW_DATA.pack_into(buffer, 0, _SUBFLOW_DATA.size, 0, 0, size)
    capacity = _SUBFLOW_DATA.size + size * buffers.room
    length = _call(fd, SOL_MPTCP, name, ctypes.addressof(buffer), capacity, buffers)
    if length < 0:
        raise _failed(-length, "MPTCP_SUBFLOW_ADDRS" if name == MPTCP_SUBFLOW_ADDRS else "MPTCP_TCPINFO")
    _, count, _, written = _SUBFLOW_DATA.unpack_from(buffer)
    return buffer.raw[_SUBFLOW_DATA.size : length], count, min(written, size)
