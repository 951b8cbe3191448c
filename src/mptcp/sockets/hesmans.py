"""The enhanced socket API (draft-hesmans-mptcp-socket-03): subflows listed, opened, closed and configured one by one."""

from __future__ import annotations

import errno
import socket as std
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING

from mptcp.core.multipath import subflow_control
from mptcp.errors import MptcpError, PathError, to_errno
from mptcp.info import Endpoint, SubflowInfo
from mptcp.sockets import memory, structures
from mptcp.sockets import options as opt
from mptcp.sockets.address import SocketAddress, os_error, to_endpoint
from mptcp.sockets.events import EventsApi
from mptcp.sockets.privileges import check_option, check_port
from mptcp.sockets.structures import RST, SubflowTuple
from mptcp.sockets.tcp_info import pack_tcp_info

if TYPE_CHECKING:
    from mptcp.core.multipath.connection import Connection

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


class EnhancedApi(EventsApi):
    """Methods, and beneath them the options with the draft's structures."""

    __slots__ = ()

    # --- methods -----------------------------------------------------------------------------------------------------
    def subflows(self) -> list[SubflowInfo]:
        """A snapshot of each subflow, those being opened included. OSError ENOTCONN."""
        with self._pump.lock:
            return self._the_connection().subflows()

    def open_subflow(
        self,
        remote: SocketAddress | None = None,
        local: SocketAddress | None = None,
        backup: bool = False,
        *,
        interface: str | int = 0,
        segments: tuple[str, ...] | list[str] = (),
    ) -> int:
        """Opens a path from ``local`` (None: an address not in use yet) to ``remote`` (None: the peer's first address).

        ``interface``: the name of a link, or ``if_idx``, to leave by; 0: the address's own. ``segments``: IPv6 addresses
        that every packet of this subflow visits in this order on its way (RFC 8754). Returns the id of the subflow,
        which is not established yet. PathError: EADDRNOTAVAIL (not an address of ours, or none left), EADDRINUSE,
        EACCES (privileged port), EINVAL (two families), ENODEV, EAGAIN (the peer has not acknowledged data yet),
        EOPNOTSUPP (regular TCP), ENOBUFS (the limit of subflows).
        """
        ends = [
            to_endpoint(std.AF_INET6 if ":" in str(end[0]) else std.AF_INET, end[:2], "open_subflow") if end else None
            for end in (remote, local)
        ]
        try:
            packed = tuple(Endpoint.parse(segment).address for segment in segments)
        except ValueError as error:
            raise PathError(f"a segment is an IPv6 address: {error}") from error
        with self._pump.lock:
            connection = self._the_connection()
            remote_end = ends[0] or connection.remote
            local_end = ends[1]
            if local_end is None:
                local_end = self._stack.other_local(connection, remote_end)
                if local_end is None:
                    _check_multipath(connection)
                    raise PathError("this host has no further address of that family", errno.EADDRNOTAVAIL)
            return self._open(connection, local_end, remote_end, backup, interface, packed)

    def close_subflow(self, subflow_id: int, reset: bool = False, *, how: int = std.SHUT_RDWR) -> None:
        """Ends it; what it had not delivered goes over the others.

        ``how``: SHUT_RDWR with FIN, RST (or ``reset``) with RST; SHUT_WR: FIN for our direction, after what is queued;
        SHUT_RD: the peer is asked to send over other subflows (MP_PRIO), as TCP cannot refuse what it sends. PathError
        EINVAL for an unknown id or ``how``, EOPNOTSUPP for regular TCP.
        """
        if how not in _HOWS:
            raise PathError("how is SHUT_RD, SHUT_WR, SHUT_RDWR or RST")
        with self._pump.lock:
            connection = self._the_connection()
            subflow_control.find(connection, subflow_id)
            now = self._pump.clock()
            if reset or how == RST:
                connection.close_subflow(subflow_id, now, True)
            elif how == std.SHUT_RD:
                subflow_control.stop_receiving(connection, subflow_id)
            elif how == std.SHUT_WR:
                subflow_control.stop_sending(connection, subflow_id, now)
            else:
                connection.close_subflow(subflow_id, now)
            self._pump.flush()

    def set_backup(self, subflow_id: int, backup: bool) -> None:
        """A backup is used while nothing else works; the peer is asked to do the same (MP_PRIO)."""
        with self._pump.lock:
            connection = self._the_connection()
            connection.set_backup(subflow_id, backup, self._pump.clock())
            self._pump.flush()

    def set_subflow_option(self, subflow_id: int, level: int, optname: int, value: int | bytes) -> None:
        """``setsockopt`` for one subflow; it holds until the connection is given the same option. OSError as there, and
        ENOPROTOOPT for what belongs to the connection (buffers), EINVAL for an unknown id, EPERM without privilege."""
        level, optname = check_option(level, optname)
        with self._pump.lock:
            connection = self._the_connection()
            subflow_control.find(connection, subflow_id)
            changes = opt.tcp_changes(level, optname, value)
            if changes is None:
                raise os_error(errno.ENOPROTOOPT)
            subflow_control.set_options(connection, subflow_id, changes)
            self._pump.flush()

    def get_subflow_option(self, subflow_id: int, level: int, optname: int) -> int | bytes:
        """An integer, or the octets of a structure: TCP_INFO of that subflow, for one."""
        level, optname = check_option(level, optname)
        with self._pump.lock:
            connection = self._the_connection()
            config = subflow_control.config_of(connection, subflow_id)
            if (level, optname) == (std.IPPROTO_TCP, std.TCP_INFO):
                return pack_tcp_info(connection, False, subflow_id)
            if (level, optname) == (std.IPPROTO_TCP, std.TCP_MAXSEG):
                return subflow_control.find(connection, subflow_id).tcp.sender.mss
            value = opt.tcp_value(level, optname, config)
        if value is None:
            raise os_error(errno.ENOPROTOOPT)
        return value

    # --- options -----------------------------------------------------------------------------------------------------
    def _get_enhanced(self, optname: int, argument: int | bytes) -> bytes:
        """With the lock. ``argument``: the size of the caller's buffer, or what is in it."""
        connection = self._the_connection()
        # Draft §3: "Otherwise (e.g. after a fallback), they return an error and set errno to "EOPNOTSUPP" is returned."
        _check_multipath(connection)
        if optname == MPTCP_GET_SUB_IDS:
            size = argument if isinstance(argument, int) else len(argument)
            listed = structures.pack_sub_ids([(s.id, s.backup) for s in connection.subflows()])
            if size < len(listed):
                # Draft §3.1: "The call may return the error "EINVAL" if the buffer passed by the application is too
                # small to copy the array of subflow status."
                raise PathError(f"the subflows need a buffer of {len(listed)} octets")
            return listed
        if isinstance(argument, int):
            raise PathError("this option takes a structure: pass a buffer that holds it instead of its size")
        handler: Callable[[Connection, bytes], bytes] | None = {
            MPTCP_GET_SUB_TUPLE: self._get_tuple,
            MPTCP_OPEN_SUB_TUPLE: self._open_tuple,
            MPTCP_CLOSE_SUB_ID: self._close_id,
            MPTCP_SUB_GETSOCKOPT: self._sub_getsockopt,
        }.get(optname)
        if handler is None:
            raise os_error(errno.ENOPROTOOPT)
        return handler(connection, argument)

    def _set_enhanced(self, optname: int, value: int | bytes) -> None:
        """With the lock. What changes something may also be done by setsockopt."""
        connection = self._the_connection()
        _check_multipath(connection)
        if isinstance(value, int):
            raise PathError("this option takes a structure")
        if optname == MPTCP_SUB_SETSOCKOPT:
            number, level, name, pointer, length = structures.unpack_sub_sockopt(value)
            subflow_id = _by_short_id(connection, number)
            content = memory.read(pointer, length & 0xFFFFFFFF)
            self.set_subflow_option(subflow_id, level, name, content)
        elif optname == MPTCP_CLOSE_SUB_ID:
            self._close_id(connection, value)
        elif optname == MPTCP_OPEN_SUB_TUPLE:
            self._open_tuple(connection, value)
        else:
            raise os_error(errno.ENOPROTOOPT)

    def _get_tuple(self, connection: Connection, buffer: bytes) -> bytes:
        if not buffer:
            raise PathError("the id of the subflow is missing")
        subflow = subflow_control.find(connection, _by_short_id(connection, buffer[0]))
        tcp = subflow.tcp
        full = SubflowTuple(tcp.local, tcp.remote, subflow.id, subflow.path.backup, subflow.interface + 1).pack()
        least = 2 + 2 * (16 if tcp.local.family == 4 else 28)
        if len(buffer) < least:
            raise PathError(f"the addresses of this subflow need a buffer of {least} octets")
        return full[: len(buffer)]

    def _open_tuple(self, connection: Connection, buffer: bytes) -> bytes:
        wanted = SubflowTuple.unpack(buffer)
        segments: tuple[bytes, ...] = ()
        if wanted.ipv6_srh:
            octets = memory.read(wanted.ipv6_srh, 8)
            segments = structures.unpack_segment_routing(memory.read(wanted.ipv6_srh, 8 + 8 * octets[1]))
        local = wanted.local
        if local.is_unspecified:
            # Draft §3.2: "In this case, the kernel chooses the source address to be used for the new subflow."
            chosen = self._stack.other_local(connection, wanted.remote) or self._stack.any_local(
                connection, wanted.remote
            )
            if chosen is None:
                raise PathError("this host has no address of that family", errno.EADDRNOTAVAIL)
            local = Endpoint(chosen.address, local.port)
        number = self._open(connection, local, wanted.remote, wanted.backup, wanted.interface, segments)
        return bytes((number & 0xFF,)) + buffer[1:]

    def _close_id(self, connection: Connection, buffer: bytes) -> bytes:
        number, how = structures.unpack_close_sub_id(buffer)
        self.close_subflow(_by_short_id(connection, number), how=how)
        return buffer

    def _sub_getsockopt(self, connection: Connection, buffer: bytes) -> bytes:
        number, level, name, pointer, length_pointer = structures.unpack_sub_sockopt(buffer)
        subflow_id = _by_short_id(connection, number)
        (room,) = struct.unpack("=I", memory.read(length_pointer, 4))
        value = self.get_subflow_option(subflow_id, level, name)
        octets = value.to_bytes(4, "little", signed=True) if isinstance(value, int) else value
        octets = octets[:room]
        memory.write(pointer, octets)
        memory.write(length_pointer, struct.pack("=I", len(octets)))
        return buffer

    def _open(
        self,
        connection: Connection,
        local: Endpoint,
        remote: Endpoint,
        backup: bool,
        interface: str | int,
        segments: tuple[bytes, ...],
    ) -> int:
        _check_multipath(connection)
        check_port(local.port)
        if not remote.port:
            raise PathError("the peer's port is missing", errno.EADDRNOTAVAIL)
        index = self._stack.interface_index(interface)
        try:
            number = connection.open_subflow(
                local, remote, self._pump.clock(), backup, interface=index, segments=segments
            )
        except PathError:
            raise
        except MptcpError as error:
            raise os_error(to_errno(error), error) from error
        self._pump.flush()
        return number

    def _the_connection(self) -> Connection:
        self._check_open()
        if self._connection is None:
            raise os_error(errno.ENOTCONN)
        return self._connection


def _check_multipath(connection: Connection) -> None:
    if connection.plain is not None:
        raise PathError(f"this connection is regular TCP: {connection.fallback_reason}", errno.EOPNOTSUPP)


def _by_short_id(connection: Connection, number: int) -> int:
    """The open subflow whose id has these low eight bits: the structures have no room for more."""
    for subflow in connection.open_subflows():
        if subflow.id & 0xFF == number:
            return subflow.id
    # Draft §3.3: "If the "id" is invalid, "EINVAL" is returned."
    raise PathError(f"no subflow has the id {number}")
