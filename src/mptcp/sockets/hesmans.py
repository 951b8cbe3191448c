"""The enhanced socket API (draft-hesmans-mptcp-socket-03): subflows listed, opened, closed and configured one by one.

What is the same on every stack: the methods' arguments, and beneath them the options with the draft's structures, which
end in those methods.
"""

from __future__ import annotations

import errno
import socket as std
import struct
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from mptcp.errors import MptcpError, PathError, to_errno
from mptcp.info import Endpoint, SubflowInfo
from mptcp.sockets import memory, structures
from mptcp.sockets.address import SocketAddress, os_error, to_endpoint
from mptcp.sockets.events import EventsInterface
from mptcp.sockets.privileges import check_port
from mptcp.sockets.structures import RST, SubflowTuple

#: The numbers that the implementation of the draft's authors gave them; Linux's own TCP options end below.
MPTCP_GET_SUB_IDS = 66
MPTCP_CLOSE_SUB_ID = 67
MPTCP_GET_SUB_TUPLE = 68
MPTCP_OPEN_SUB_TUPLE = 69
MPTCP_SUB_GETSOCKOPT = 71
MPTCP_SUB_SETSOCKOPT = 72

ENHANCED_OPTIONS = frozenset(
    {
        MPTCP_GET_SUB_IDS, MPTCP_CLOSE_SUB_ID, MPTCP_GET_SUB_TUPLE, MPTCP_OPEN_SUB_TUPLE, MPTCP_SUB_GETSOCKOPT,
        MPTCP_SUB_SETSOCKOPT,
    }
)  # fmt: skip

_HOWS = (std.SHUT_RD, std.SHUT_WR, std.SHUT_RDWR, RST)


class EnhancedInterface(EventsInterface):
    """Methods, and beneath them the options with the draft's structures."""

    __slots__ = ()

    # --- methods -----------------------------------------------------------------------------------------------------
    def open_subflow(
        self,
        remote: SocketAddress | None = None,
        local: SocketAddress | None = None,
        backup: bool = False,
        *,
        interface: str | int = 0,
        segments: Sequence[str] = (),
    ) -> int:
        """Opens a path from ``local`` (None: an address not in use yet) to ``remote`` (None: the peer's first address).

        ``interface``: the name of a link, or ``if_idx``, to leave by; 0: the address's own. ``segments``: IPv6 addresses
        that every packet of this subflow visits in this order on its way (RFC 8754). Returns the id of the subflow,
        which is not established yet. PathError: EADDRNOTAVAIL (not an address of ours, or none left), EADDRINUSE,
        EACCES (privileged port), EINVAL (two families), ENODEV, EAGAIN (the peer has not acknowledged data yet),
        EOPNOTSUPP (regular TCP), ENOBUFS (the limit of subflows).
        """
        remote_end, local_end = (
            to_endpoint(std.AF_INET6 if ":" in str(end[0]) else std.AF_INET, end[:2], "open_subflow") if end else None
            for end in (remote, local)
        )
        try:
            packed = tuple(Endpoint.parse(segment).address for segment in segments)
        except ValueError as error:
            raise PathError(f"a segment is an IPv6 address: {error}") from error
        with self.event_lock:
            initial = self._initial_remote()
            if remote_end is None:
                remote_end = initial
            if local_end is None:
                local_end = self._other_local(remote_end)
                if local_end is None:
                    self._check_multipath()
                    raise PathError("this host has no further address of that family", errno.EADDRNOTAVAIL)
            return self._open(local_end, remote_end, backup, interface, packed)

    def close_subflow(self, subflow_id: int, reset: bool = False, *, how: int = std.SHUT_RDWR) -> None:
        """Ends it; what it had not delivered goes over the others.

        ``how``: SHUT_RDWR with FIN, RST (or ``reset``) with RST; SHUT_WR: FIN for our direction, after what is queued;
        SHUT_RD: the peer is asked to send over other subflows (MP_PRIO), as TCP cannot refuse what it sends. PathError
        EINVAL for an unknown id or ``how``, EOPNOTSUPP for regular TCP; NotSupportedError where the stack has no half
        closes of a subflow.
        """
        if how not in _HOWS:
            raise PathError("how is SHUT_RD, SHUT_WR, SHUT_RDWR or RST")
        with self.event_lock:
            self._close_subflow(subflow_id, RST if reset else how)

    # --- options -----------------------------------------------------------------------------------------------------
    def _get_enhanced(self, optname: int, argument: int | bytes) -> bytes:
        """With the lock. ``argument``: the size of the caller's buffer, or what is in it."""
        # Draft §3: "Otherwise (e.g. after a fallback), they return an error and set errno to "EOPNOTSUPP" is returned."
        self._check_multipath()
        if optname == MPTCP_GET_SUB_IDS:
            size = argument if isinstance(argument, int) else len(argument)
            listed = structures.pack_sub_ids([(s.id, s.backup) for s in self.subflows()])
            if size < len(listed):
                # Draft §3.1: "The call may return the error "EINVAL" if the buffer passed by the application is too
                # small to copy the array of subflow status."
                raise PathError(f"the subflows need a buffer of {len(listed)} octets")
            return listed
        if isinstance(argument, int):
            raise PathError("this option takes a structure: pass a buffer that holds it instead of its size")
        handler: Callable[[bytes], bytes] | None = {
            MPTCP_GET_SUB_TUPLE: self._get_tuple,
            MPTCP_OPEN_SUB_TUPLE: self._open_tuple,
            MPTCP_CLOSE_SUB_ID: self._close_id,
            MPTCP_SUB_GETSOCKOPT: self._sub_getsockopt,
        }.get(optname)
        if handler is None:
            raise os_error(errno.ENOPROTOOPT)
        return handler(argument)

    def _set_enhanced(self, optname: int, value: int | bytes) -> None:
        """With the lock. What changes something may also be done by setsockopt."""
        self._check_multipath()
        if isinstance(value, int):
            raise PathError("this option takes a structure")
        if optname == MPTCP_SUB_SETSOCKOPT:
            number, level, name, pointer, length = structures.unpack_sub_sockopt(value)
            subflow_id = self._by_short_id(number).id
            content = memory.read(pointer, length & 0xFFFFFFFF)
            self.set_subflow_option(subflow_id, level, name, content)
        elif optname == MPTCP_CLOSE_SUB_ID:
            self._close_id(value)
        elif optname == MPTCP_OPEN_SUB_TUPLE:
            self._open_tuple(value)
        else:
            raise os_error(errno.ENOPROTOOPT)

    def _get_tuple(self, buffer: bytes) -> bytes:
        if not buffer:
            raise PathError("the id of the subflow is missing")
        info = self._by_short_id(buffer[0])
        full = SubflowTuple(info.local, info.remote, info.id, info.backup, self._interface_of(info)).pack()
        least = 2 + 2 * (16 if info.local.family == 4 else 28)
        if len(buffer) < least:
            raise PathError(f"the addresses of this subflow need a buffer of {least} octets")
        return full[: len(buffer)]

    def _open_tuple(self, buffer: bytes) -> bytes:
        wanted = SubflowTuple.unpack(buffer)
        segments: tuple[bytes, ...] = ()
        if wanted.ipv6_srh:
            octets = memory.read(wanted.ipv6_srh, 8)
            segments = structures.unpack_segment_routing(memory.read(wanted.ipv6_srh, 8 + 8 * octets[1]))
        local = wanted.local
        if local.is_unspecified:
            # Draft §3.2: "In this case, the kernel chooses the source address to be used for the new subflow."
            chosen = self._other_local(wanted.remote) or self._any_local(wanted.remote)
            if chosen is None:
                raise PathError("this host has no address of that family", errno.EADDRNOTAVAIL)
            local = Endpoint(chosen.address, local.port)
        number = self._open(local, wanted.remote, wanted.backup, wanted.interface, segments)
        return bytes((number & 0xFF,)) + buffer[1:]

    def _close_id(self, buffer: bytes) -> bytes:
        number, how = structures.unpack_close_sub_id(buffer)
        self.close_subflow(self._by_short_id(number).id, how=how)
        return buffer

    def _sub_getsockopt(self, buffer: bytes) -> bytes:
        number, level, name, pointer, length_pointer = structures.unpack_sub_sockopt(buffer)
        subflow_id = self._by_short_id(number).id
        (room,) = struct.unpack("=I", memory.read(length_pointer, 4))
        value = self.get_subflow_option(subflow_id, level, name)
        octets = value.to_bytes(4, "little", signed=True) if isinstance(value, int) else value
        octets = octets[:room]
        memory.write(pointer, octets)
        memory.write(length_pointer, struct.pack("=I", len(octets)))
        return buffer

    def _open(
        self, local: Endpoint, remote: Endpoint, backup: bool, interface: str | int, segments: tuple[bytes, ...]
    ) -> int:
        self._check_multipath()
        check_port(local.port)
        if not remote.port:
            raise PathError("the peer's port is missing", errno.EADDRNOTAVAIL)
        try:
            return self._open_between(local, remote, backup, interface, segments)
        except OSError:
            raise
        except MptcpError as error:
            raise os_error(to_errno(error), error) from error

    def _by_short_id(self, number: int) -> SubflowInfo:
        """The open subflow whose id has these low eight bits: the structures have no room for more."""
        for info in self.subflows():
            if info.id & 0xFF == number:
                return info
        # Draft §3.3: "If the "id" is invalid, "EINVAL" is returned."
        raise PathError(f"no subflow has the id {number}")

    # --- what a stack's socket does, with the lock where it begins with an underscore ---------------------------------
    if TYPE_CHECKING:
        # ``socket.socket`` has some of these, and stands before this class where it does.
        def getsockname(self) -> SocketAddress: ...

    @abstractmethod
    def subflows(self) -> list[SubflowInfo]:
        """A snapshot of each subflow, those being opened included. OSError ENOTCONN."""

    @abstractmethod
    def set_backup(self, subflow_id: int, backup: bool) -> None:
        """A backup is used while nothing else works; the peer is asked to do the same (MP_PRIO)."""

    @abstractmethod
    def set_subflow_option(self, subflow_id: int, level: int, optname: int, value: int | bytes) -> None:
        """``setsockopt`` for one subflow; it holds until the connection is given the same option. OSError as there, and
        ENOPROTOOPT for what belongs to the connection (buffers), EINVAL for an unknown id, EPERM without privilege."""

    @abstractmethod
    def get_subflow_option(self, subflow_id: int, level: int, optname: int) -> int | bytes:
        """An integer, or the octets of a structure: TCP_INFO of that subflow, for one."""

    @abstractmethod
    def _check_multipath(self) -> None:
        """OSError ENOTCONN without a connection, PathError EOPNOTSUPP for regular TCP."""

    @abstractmethod
    def _initial_remote(self) -> Endpoint:
        """The peer's first address. OSError ENOTCONN."""

    @abstractmethod
    def _other_local(self, remote: Endpoint) -> Endpoint | None:
        """An address that no subflow to ``remote`` uses yet; None: there is none."""

    @abstractmethod
    def _any_local(self, remote: Endpoint) -> Endpoint | None:
        """An address from which ``remote`` can be reached, in use or not."""

    @abstractmethod
    def _open_between(
        self, local: Endpoint, remote: Endpoint, backup: bool, interface: str | int, segments: tuple[bytes, ...]
    ) -> int:
        """The id of the new subflow."""

    @abstractmethod
    def _close_subflow(self, subflow_id: int, how: int) -> None:
        """``how`` is one of SHUT_RD, SHUT_WR, SHUT_RDWR and RST."""

    @abstractmethod
    def _interface_of(self, info: SubflowInfo) -> int:
        """``if_idx`` of the interface that a subflow leaves by; 0: unknown."""
