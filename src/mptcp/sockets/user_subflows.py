"""The subflows of a socket of the user-space stack: listed, opened, closed, given options."""

from __future__ import annotations

import errno
import socket as std
from typing import TYPE_CHECKING

from mptcp.core.multipath import subflow_control
from mptcp.errors import PathError
from mptcp.info import Endpoint, SubflowInfo
from mptcp.sockets import options as opt
from mptcp.sockets.address import os_error
from mptcp.sockets.hesmans import EnhancedInterface
from mptcp.sockets.privileges import check_option
from mptcp.sockets.structures import RST
from mptcp.sockets.tcp_info import pack_tcp_info
from mptcp.sockets.user_events import EventsApi

if TYPE_CHECKING:
    from mptcp.core.multipath.connection import Connection
    from mptcp.core.multipath.subflow import Subflow


def _check_family(subflow: Subflow, level: int) -> None:
    opt.check_family(std.AF_INET if subflow.tcp.local.family == 4 else std.AF_INET6, level)


class EnhancedApi(EnhancedInterface, EventsApi):
    """Everything is asked of, and done to, the connection itself."""

    __slots__ = ()

    def subflows(self) -> list[SubflowInfo]:
        with self._pump.lock:
            return self._the_connection().subflows()

    def set_backup(self, subflow_id: int, backup: bool) -> None:
        with self._pump.lock:
            connection = self._the_connection()
            connection.set_backup(subflow_id, backup, self._pump.clock())
            self._pump.flush()

    def set_subflow_option(self, subflow_id: int, level: int, optname: int, value: int | bytes) -> None:
        level, optname = check_option(level, optname)
        with self._pump.lock:
            connection = self._the_connection()
            _check_family(subflow_control.find(connection, subflow_id), level)
            changes = opt.tcp_changes(level, optname, value)
            if changes is None:
                raise os_error(errno.ENOPROTOOPT)
            subflow_control.set_options(connection, subflow_id, changes)
            self._pump.flush()

    def get_subflow_option(self, subflow_id: int, level: int, optname: int) -> int | bytes:
        level, optname = check_option(level, optname)
        with self._pump.lock:
            connection = self._the_connection()
            _check_family(subflow_control.find(connection, subflow_id), level)
            config = subflow_control.config_of(connection, subflow_id)
            if (level, optname) == (std.IPPROTO_TCP, std.TCP_INFO):
                return pack_tcp_info(connection, False, subflow_id)
            if (level, optname) == (std.IPPROTO_TCP, std.TCP_MAXSEG):
                return subflow_control.find(connection, subflow_id).tcp.sender.mss
            value = opt.tcp_value(level, optname, config)
        if value is None:
            raise os_error(errno.ENOPROTOOPT)
        return value

    # --- inside, with the lock ---------------------------------------------------------------------------------------
    def _close_subflow(self, subflow_id: int, how: int) -> None:
        connection = self._the_connection()
        subflow_control.find(connection, subflow_id)
        now = self._pump.clock()
        if how == RST:
            connection.close_subflow(subflow_id, now, True)
        elif how == std.SHUT_RD:
            subflow_control.stop_receiving(connection, subflow_id)
        elif how == std.SHUT_WR:
            subflow_control.stop_sending(connection, subflow_id, now)
        else:
            connection.close_subflow(subflow_id, now)
        self._pump.flush()

    def _open_between(
        self, local: Endpoint, remote: Endpoint, backup: bool, interface: str | int, segments: tuple[bytes, ...]
    ) -> int:
        index = self._stack.interface_index(interface)
        number = self._the_connection().open_subflow(
            local, remote, self._pump.clock(), backup, interface=index, segments=segments
        )
        self._pump.flush()
        return number

    def _the_connection(self) -> Connection:
        self._check_open()
        if self._connection is None:
            raise os_error(errno.ENOTCONN)
        return self._connection

    def _check_multipath(self) -> None:
        connection = self._the_connection()
        if not connection.is_multipath:
            raise PathError(f"this connection is regular TCP: {connection.fallback_reason}", errno.EOPNOTSUPP)

    def _initial_remote(self) -> Endpoint:
        return self._the_connection().remote

    def _other_local(self, remote: Endpoint) -> Endpoint | None:
        return self._stack.other_local(self._the_connection(), remote)

    def _any_local(self, remote: Endpoint) -> Endpoint | None:
        return self._stack.any_local(self._the_connection(), remote)

    def _interface_of(self, info: SubflowInfo) -> int:
        return int(info.interface) + 1
