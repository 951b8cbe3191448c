"""The subflows of a socket of the kernel's stack: what ``kernel.connection`` reads and steers, with the errors of the API."""

from __future__ import annotations

import errno
import socket as std
from abc import abstractmethod

from mptcp.errors import NotSupportedError, PathError
from mptcp.info import Endpoint, SubflowInfo
from mptcp.kernel.connection import KernelConnection
from mptcp.kernel.managing import ManagedConnection
from mptcp.sockets.address import os_error
from mptcp.sockets.hesmans import EnhancedInterface
from mptcp.sockets.kernel_events import KernelEvents
from mptcp.sockets.privileges import check_option
from mptcp.sockets.structures import RST

_OF_THE_CONNECTION = ((std.SOL_SOCKET, std.SO_SNDBUF), (std.SOL_SOCKET, std.SO_RCVBUF))


class KernelSubflows(EnhancedInterface, KernelEvents):
    """Nothing here touches data on its way."""

    __slots__ = ()

    _managed: ManagedConnection | None

    def subflows(self) -> list[SubflowInfo]:
        with self.event_lock:
            return self._the_connection().subflows()

    def set_backup(self, subflow_id: int, backup: bool) -> None:
        with self.event_lock:
            self._check_multipath()
            self._the_connection().set_backup(subflow_id, backup)

    def set_subflow_option(self, subflow_id: int, level: int, optname: int, value: int | bytes) -> None:
        level, optname = check_option(level, optname)
        with self.event_lock:
            self._check_multipath()
            if (level, optname) in _OF_THE_CONNECTION:
                raise PathError("buffers are the connection's: use setsockopt", errno.ENOPROTOOPT)
            octets = value.to_bytes(4, "little", signed=True) if isinstance(value, int) else bytes(value)
            self._the_connection().set_subflow_option(subflow_id, level, optname, octets)

    def get_subflow_option(self, subflow_id: int, level: int, optname: int) -> int | bytes:
        level, optname = check_option(level, optname)
        with self.event_lock:
            self._check_multipath()
            size = 256 if optname in (std.TCP_INFO, std.TCP_CONGESTION) and level == std.IPPROTO_TCP else 4
            octets = self._the_connection().get_subflow_option(subflow_id, level, optname, size)
        return int.from_bytes(octets, "little", signed=True) if len(octets) == 4 else octets

    # --- inside, with the lock ---------------------------------------------------------------------------------------
    def _close_subflow(self, subflow_id: int, how: int) -> None:
        self._check_multipath()
        if how in (std.SHUT_RD, std.SHUT_WR):
            raise NotSupportedError(
                "Linux closes a subflow for both directions only: use SHUT_RDWR or RST, or the user-space stack"
            )
        self._the_connection().close_subflow(subflow_id, reset=how == RST)

    def _open_between(
        self, local: Endpoint, remote: Endpoint, backup: bool, interface: str | int, segments: tuple[bytes, ...]
    ) -> int:
        index = self._stack.interface_index(interface)
        connection = self._the_connection()
        self._check_ends(local, remote)
        return connection.open_subflow(local, remote, backup=backup, interface=index, segments=segments)

    def _check_ends(self, local: Endpoint, remote: Endpoint) -> None:
        """As bind and connect would refuse them; the kernel would take some and let the subflow fail later."""
        if len(local.address) != len(remote.address):
            raise PathError(f"{local.host} and {remote.host} are of two families")
        if any((s.local, s.remote) == (local, remote) for s in self.subflows()):
            raise PathError(f"there is a subflow from {local} to {remote}", errno.EADDRINUSE)

    def _the_connection(self) -> KernelConnection:
        self._check_open()
        connection = self._find_connection()
        if connection is None:
            raise os_error(errno.ENOTCONN)
        return connection

    def _check_multipath(self) -> None:
        if not self._the_connection().is_multipath:
            raise PathError(f"this connection is regular TCP: {self.fallback_reason}", errno.EOPNOTSUPP)

    def _initial_remote(self) -> Endpoint:
        return self._the_connection().initial_remote

    def _other_local(self, remote: Endpoint) -> Endpoint | None:
        used = {s.local.address for s in self.subflows() if s.remote == remote}
        for address in self._usable_addresses():
            if len(address) == len(remote.address) and address not in used:
                return Endpoint(address)
        return None

    def _any_local(self, remote: Endpoint) -> Endpoint | None:
        return next((Endpoint(a) for a in self._usable_addresses() if len(a) == len(remote.address)), None)

    @property
    @abstractmethod
    def fallback_reason(self) -> str:
        """Why it does not speak MPTCP, as far as that is known; "" if it does, or is not connected."""

    @abstractmethod
    def _usable_addresses(self) -> list[bytes]:
        """What the connection may use now, in order of preference."""

    def _interface_of(self, info: SubflowInfo) -> int:
        return self._stack.interface_index(info.interface) if info.interface else 0
