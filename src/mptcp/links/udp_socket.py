"""A UDP socket that moves many datagrams per system call: recvmmsg, sendmmsg, UDP_GRO and UDP_SEGMENT of Linux.

What a system lacks is done without: one ``recvmsg`` or ``sendmsg`` a datagram. Addresses are ``struct sockaddr`` octets
(``where``): they compare at once, and need not be parsed for every datagram.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import socket
from collections.abc import Sequence
from struct import Struct
from typing import Final

from mptcp.core.wire.segment import Payload
from mptcp.info import Endpoint

SOL_UDP: Final = 17
UDP_SEGMENT, UDP_GRO = 103, 104
SO_BINDTODEVICE, SO_SNDBUFFORCE, SO_RCVBUFFORCE = 25, 32, 33
IP_MTU_DISCOVER, IP_MTU, IP_TOS = 10, 14, 1
IPV6_MTU_DISCOVER, IPV6_MTU = 23, 24
MSG_DONTWAIT, MSG_TRUNC = 0x40, 0x20
#: IP_PMTUDISC_DONT: the system may fragment; _DO: it never does, and knows path MTUs; _PROBE: as _DO, and ignores them.
MAY_FRAGMENT, DISCOVER, PROBE = 0, 2, 3

#: Datagrams of one system call.
BATCH: Final = 64
#: Buffers of 64 KiB that one recvmmsg fills; with UDP_GRO each may hold many datagrams.
RECEIVE_BATCH: Final = 16
#: Datagrams up to this long are copied together for one sendmmsg; longer ones have a system call of their own.
SLOT_BYTES: Final = 2048
#: Datagrams that the kernel cuts from one super-datagram (UDP_MAX_SEGMENTS).
MAX_SEGMENTS: Final = 64
#: The longest UDP payload: 65,535 octets of an IPv4 packet less its header and UDP's.
MAX_DATAGRAM: Final = 65_507
_BUFFER_BYTES: Final = 65_536
_NAME_BYTES: Final = 28
_CONTROL_BYTES: Final = 64

_SOCKADDR4 = Struct("=H2s4s8x")
_SOCKADDR6 = Struct("=H2s4x16sI")
_INT = Struct("=i")
_SHORT = Struct("=H")


def sockaddr(endpoint: Endpoint, scope: int = 0) -> bytes:
    """``struct sockaddr_in`` or ``sockaddr_in6`` of an endpoint."""
    port = endpoint.port.to_bytes(2, "big")
    if len(endpoint.address) == 4:
        return _SOCKADDR4.pack(socket.AF_INET, port, endpoint.address)
    return _SOCKADDR6.pack(socket.AF_INET6, port, endpoint.address, scope)


def endpoint_of(where: bytes) -> Endpoint:
    """The endpoint of such octets."""
    if len(where) == _SOCKADDR4.size:
        _, port, address = _SOCKADDR4.unpack(where)
    else:
        _, port, address, _ = _SOCKADDR6.unpack(where)
    return Endpoint(address, int.from_bytes(port, "big"))


def python_address(where: bytes) -> tuple[str, int] | tuple[str, int, int, int]:
    """As the ``socket`` module writes it."""
    endpoint = endpoint_of(where)
    if len(where) == _SOCKADDR4.size:
        return socket.inet_ntoa(endpoint.address), endpoint.port
    scope: int = _SOCKADDR6.unpack(where)[3]
    return socket.inet_ntop(socket.AF_INET6, endpoint.address), endpoint.port, 0, scope


class _IoVec(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]


class _MsgHdr(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_void_p),
        ("name_length", ctypes.c_uint32),
        ("iov", ctypes.POINTER(_IoVec)),
        ("iov_count", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    ]


class _MMsgHdr(ctypes.Structure):
    _fields_ = [("header", _MsgHdr), ("length", ctypes.c_uint32)]


class _TimeSpec(ctypes.Structure):
    _fields_ = [("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long)]


class _ITimerSpec(ctypes.Structure):
    _fields_ = [("interval", _TimeSpec), ("value", _TimeSpec)]


_libc = ctypes.CDLL(None, use_errno=True)
_sendmmsg = getattr(_libc, "sendmmsg", None)
_recvmmsg = getattr(_libc, "recvmmsg", None)


class Timer:
    """A timerfd: readable from the time it was set to."""

    __slots__ = ("_fd",)

    def __init__(self) -> None:
        self._fd: int = _libc.timerfd_create(1, os.O_NONBLOCK | os.O_CLOEXEC)  # 1: CLOCK_MONOTONIC
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "no timerfd")

    def fileno(self) -> int:
        return self._fd

    def set(self, delay_us: int) -> None:
        """Readable in so many microseconds; at least one nanosecond, 0 would disarm it. Needs no lock."""
        value = _ITimerSpec()
        value.value.seconds, rest = divmod(max(delay_us, 0), 1_000_000)
        value.value.nanoseconds = rest * 1000 + (delay_us <= 0)
        if self._fd >= 0:
            _libc.timerfd_settime(self._fd, 0, ctypes.byref(value), None)

    def clear(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._fd, 8)

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class _Batch:
    """The arrays of one recvmmsg or sendmmsg, made once; slot ``i`` of ``data`` belongs to message ``i``."""

    __slots__ = ("control", "data", "headers", "iovs", "keep", "messages", "names", "pointer", "vectors")

    def __init__(self, count: int, slot_bytes: int, with_control: bool) -> None:
        self.messages = (_MMsgHdr * count)()
        self.vectors = (_IoVec * count)()
        data, names, control = bytearray(count * slot_bytes), bytearray(count * _NAME_BYTES), bytearray()
        if with_control:
            control = bytearray(count * _CONTROL_BYTES)
        holders = [(ctypes.c_char * max(len(b), 1)).from_buffer(b or bytearray(1)) for b in (data, names, control)]
        self.keep = holders  # the arrays must not move while the kernel has pointers into them
        bases = [ctypes.addressof(holder) for holder in holders]
        # Views of the elements, made once: indexing a ctypes array makes a new object every time.
        self.iovs = [self.vectors[i] for i in range(count)]
        self.headers = [self.messages[i].header for i in range(count)]
        for i, (vector, header) in enumerate(zip(self.iovs, self.headers, strict=True)):
            vector.base, vector.length = bases[0] + i * slot_bytes, slot_bytes
            header.name, header.name_length = bases[1] + i * _NAME_BYTES, _NAME_BYTES
            header.iov, header.iov_count = ctypes.pointer(vector), 1
            if with_control:
                header.control, header.control_length = bases[2] + i * _CONTROL_BYTES, _CONTROL_BYTES
        self.data, self.names, self.control = memoryview(data), memoryview(names), memoryview(control)
        self.pointer = ctypes.byref(self.messages)


class DatagramSocket:
    """One non-blocking UDP socket, bound to one address.

    ``receive`` gives (octets, length of one datagram in them, where they came from); the octets are valid until the
    next call. ``queue`` collects datagrams, ``flush`` sends them; ``send`` sends one, or one super-datagram that the
    kernel cuts. OSError says which errno stopped it; what was sent before has been sent.
    """

    __slots__ = (
        "_incoming", "_mode", "_outgoing", "_queued", "_sock", "_start", "_used", "_wheres",
        "device", "has_gro", "has_gso", "is_v6", "local",
    )  # fmt: skip

    def __init__(self, local: Endpoint, *, device: str = "", buffer_bytes: int = 0, offload: bool = True) -> None:
        self.is_v6 = len(local.address) == 16
        self.device = device
        self._sock = socket.socket(
            socket.AF_INET6 if self.is_v6 else socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK
        )
        try:
            if self.is_v6:
                self._sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            if device:
                self._sock.setsockopt(socket.SOL_SOCKET, SO_BINDTODEVICE, device.encode() + b"\0")
            if buffer_bytes:
                self._set_buffer(SO_RCVBUFFORCE, socket.SO_RCVBUF, buffer_bytes)
                self._set_buffer(SO_SNDBUFFORCE, socket.SO_SNDBUF, buffer_bytes)
            self._sock.bind(python_address(sockaddr(local)))
            self.local = Endpoint.parse(*self._sock.getsockname()[:2])
            self.has_gro = offload and _recvmmsg is not None and self._try_option(UDP_GRO, 1)
            self.has_gso = offload and self._try_option(UDP_SEGMENT, 0)
            self._mode = -1
            self.set_mode(DISCOVER)
        except BaseException:
            self._sock.close()
            raise
        self._incoming: _Batch | None = None
        self._used = RECEIVE_BATCH
        self._outgoing: _Batch | None = None
        self._queued = 0
        self._start = 0
        self._wheres: list[bytes] = [b""] * BATCH

    def _set_buffer(self, force: int, option: int, size: int) -> None:
        try:
            self._sock.setsockopt(socket.SOL_SOCKET, force, size)
        except OSError:  # not root: as much as net.core.rmem_max and wmem_max allow
            self._sock.setsockopt(socket.SOL_SOCKET, option, size)

    def _try_option(self, option: int, value: int) -> bool:
        try:
            self._sock.setsockopt(SOL_UDP, option, value)
        except OSError:
            return False
        return True

    def set_mode(self, mode: int) -> None:
        """What the system does with datagrams that are too long for the path: MAY_FRAGMENT, DISCOVER or PROBE."""
        if mode != self._mode:
            self._mode = mode
            if self.is_v6:
                self._sock.setsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, mode)
            else:
                self._sock.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, mode)

    def fileno(self) -> int:
        return self._sock.fileno()

    # --- what comes in ------------------------------------------------------------------------------------------------
    def receive(self) -> list[tuple[memoryview, int, bytes]]:
        """What there is, at most ``RECEIVE_BATCH`` buffers; empty: nothing. OSError for an error of the socket."""
        if _recvmmsg is None:
            return self._receive_one()
        batch = self._incoming
        if batch is None:
            batch = self._incoming = _Batch(RECEIVE_BATCH, _BUFFER_BYTES, True)
        for header in batch.headers[: self._used]:
            header.name_length, header.control_length = _NAME_BYTES, _CONTROL_BYTES
        self._used = 0
        count = _recvmmsg(self._sock.fileno(), batch.pointer, RECEIVE_BATCH, MSG_DONTWAIT, None)
        if count < 0:
            number = ctypes.get_errno()
            if number == errno.EAGAIN:
                return []
            raise OSError(number, os.strerror(number))
        self._used = count
        received = []
        for i in range(count):
            header = batch.headers[i]
            length = batch.messages[i].length
            if header.flags & MSG_TRUNC or not length:
                continue
            size = length
            if header.control_length:
                size = self._segment_size(batch.control[i * _CONTROL_BYTES :][: header.control_length]) or length
            at = i * _BUFFER_BYTES
            name = bytes(batch.names[i * _NAME_BYTES : i * _NAME_BYTES + header.name_length])
            received.append((batch.data[at : at + length], size, name))
        return received

    @staticmethod
    def _segment_size(control: memoryview) -> int:
        """What UDP_GRO says the datagrams were like that the kernel has put together; 0: one datagram."""
        # struct cmsghdr: a size_t and two ints, then the data.
        start = ctypes.sizeof(ctypes.c_size_t)
        if len(control) >= start + 12:
            level, kind = _INT.unpack_from(control, start)[0], _INT.unpack_from(control, start + 4)[0]
            if level == SOL_UDP and kind == UDP_GRO:
                size: int = _INT.unpack_from(control, start + 8)[0]
                return size
        return 0

    def _receive_one(self) -> list[tuple[memoryview, int, bytes]]:
        try:
            data, _, flags, source = self._sock.recvmsg(_BUFFER_BYTES)
        except BlockingIOError:
            return []
        if flags & MSG_TRUNC or not data:
            return []
        where = sockaddr(Endpoint.parse(source[0], source[1]), source[3] if self.is_v6 else 0)
        return [(memoryview(data), len(data), where)]

    # --- what goes out ------------------------------------------------------------------------------------------------
    def queue(self, where: bytes, parts: Sequence[Payload | bytearray], length: int) -> bool:
        """For the next ``flush``; False: longer than ``SLOT_BYTES``, or ``BATCH`` wait already."""
        i = self._queued
        if length > SLOT_BYTES or i >= BATCH or _sendmmsg is None:
            return False
        batch = self._outgoing
        if batch is None:
            batch = self._outgoing = _Batch(BATCH, SLOT_BYTES, False)
        at = i * SLOT_BYTES
        batch.data[at : at + length] = b"".join(parts)
        batch.iovs[i].length = length
        if self._wheres[i] != where:
            self._wheres[i] = where
            batch.names[i * _NAME_BYTES : i * _NAME_BYTES + len(where)] = where
            batch.headers[i].name_length = len(where)
        self._queued = i + 1
        return True

    @property
    def queued(self) -> int:
        """Datagrams that wait for ``flush``."""
        return self._queued - self._start

    def flush(self) -> None:
        """Sends what ``queue`` has collected. OSError: the first that is left was not taken; ``skip`` drops it."""
        while self._start < self._queued:
            assert self._outgoing is not None
            assert _sendmmsg is not None
            at = ctypes.byref(self._outgoing.messages, self._start * ctypes.sizeof(_MMsgHdr))
            count = _sendmmsg(self._sock.fileno(), at, self._queued - self._start, MSG_DONTWAIT)
            if count < 0:
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number))
            self._start += count
        self._start = self._queued = 0

    def skip(self) -> tuple[bytes, int, bytes]:
        """Drops the first datagram that waits: where it was to go, its length, and its first octets (up to 128)."""
        i = self._start
        assert self._outgoing is not None
        self._start += 1
        if self._start == self._queued:
            self._start = self._queued = 0
        length = self._outgoing.iovs[i].length
        at = i * SLOT_BYTES
        return self._wheres[i], length, bytes(self._outgoing.data[at : at + min(length, 128)])

    def send(self, where: bytes, parts: Sequence[Payload | bytearray], segment_bytes: int = 0) -> None:
        """One datagram; with ``segment_bytes``, as many of that length as there are (the last may be shorter)."""
        options = [(SOL_UDP, UDP_SEGMENT, _SHORT.pack(segment_bytes))] if segment_bytes else []
        self._sock.sendmsg(parts, options, MSG_DONTWAIT, python_address(where))

    def path_mtu(self, where: bytes) -> int:
        """The MTU (with IP header) that the system knows of the path to an endpoint; 0: there is no route."""
        with socket.socket(self._sock.family, socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
            if self.device:
                probe.setsockopt(socket.SOL_SOCKET, SO_BINDTODEVICE, self.device.encode() + b"\0")
            if not self.local.is_unspecified:
                probe.bind((self.local.host, 0))
            probe.connect(python_address(where))
            if self.is_v6:
                return probe.getsockopt(socket.IPPROTO_IPV6, IPV6_MTU)
            return probe.getsockopt(socket.IPPROTO_IP, IP_MTU)
        return 0

    def close(self) -> None:
        self._sock.close()


def can_bind(local: Endpoint) -> bool:
    """Whether this machine has that address now."""
    family = socket.AF_INET6 if len(local.address) == 16 else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as trial:
        try:
            trial.bind((local.host, 0))
        except OSError as error:
            return error.errno != errno.EADDRNOTAVAIL
    return True
