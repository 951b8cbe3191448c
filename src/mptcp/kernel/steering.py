"""How a path manager's actions reach one connection of the kernel's, and how it is read: by its socket, or by its token."""

from __future__ import annotations

import errno
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Final

from mptcp.errors import NotSupportedError, PathError
from mptcp.info import Endpoint
from mptcp.kernel import sockopt
from mptcp.kernel.address_ids import AddressIds
from mptcp.kernel.connection import KernelConnection
from mptcp.kernel.control import explained
from mptcp.kernel.diag import Diag, DiagSubflow
from mptcp.kernel.layout import MptcpInfo, TcpInfo
from mptcp.kernel.path_manager import FLAG_BACKUP, PathManagerNetlink
from mptcp.kernel.sockopt import FullInfo, SubflowEntry

#: How old a snapshot may be, in microseconds.
SNAPSHOT_AGE_US: Final = 10_000


def now_us() -> int:
    return time.monotonic_ns() // 1000


class Steering(ABC):
    """One connection. Errors are OSErrors as of ``control``'s table."""

    __slots__ = ()

    @abstractmethod
    def open_subflow(self, local: Endpoint, remote: Endpoint, backup: bool) -> None: ...

    @abstractmethod
    def close_subflow(self, local: Endpoint, remote: Endpoint, reset: bool, reason: str) -> None:
        """``reason``: what those who hear of events are told."""

    @abstractmethod
    def announce(self, local: Endpoint) -> None: ...

    @abstractmethod
    def withdraw(self, address: bytes) -> None: ...

    @abstractmethod
    def set_backup(self, local: Endpoint, remote: Endpoint, backup: bool) -> None: ...

    @abstractmethod
    def is_backup(self, local: Endpoint, remote: Endpoint) -> bool:
        """Whether this subflow is a backup, whoever has said so."""

    @abstractmethod
    def local_addresses(self) -> Sequence[bytes]:
        """What subflows may start from, in order of preference."""

    @abstractmethod
    def position(self) -> tuple[int, int]:
        """(octets of the stream carried so far, octets written that are not acknowledged yet); cheap. OSError: it is over."""

    @abstractmethod
    def read(self, fresh: bool = False) -> FullInfo:
        """Everything; ``fresh``: with what somebody else has opened just now. OSError: it is over, or plain TCP."""


def position_of(info: MptcpInfo) -> tuple[int, int]:
    waiting = info.write_seq - info.snd_una & 0xFFFF_FFFF_FFFF_FFFF
    return info.bytes_sent + info.bytes_received, waiting


class ConnectionSteering(Steering):
    """Of a connection of this process. ``addresses``: what it may use."""

    __slots__ = ("_addresses", "_connection", "_fd")

    def __init__(self, fd: int, connection: KernelConnection, addresses: Callable[[], Sequence[bytes]]) -> None:
        self._fd = fd
        self._connection = connection
        self._addresses = addresses

    def open_subflow(self, local: Endpoint, remote: Endpoint, backup: bool) -> None:
        self._connection.open_subflow(local, remote, backup=backup)

    def close_subflow(self, local: Endpoint, remote: Endpoint, reset: bool, reason: str) -> None:
        self._connection.close_subflow(self._number(local, remote), reset, reason=reason)

    def announce(self, local: Endpoint) -> None:
        if not self._connection.is_usable:
            # ADD_ADDR is no use to a peer that may not join yet, and the kernel forgets it if it cannot be sent now.
            raise PathError("the connection is not fully established yet", errno.EAGAIN)
        self._connection.add_address(local)

    def withdraw(self, address: bytes) -> None:
        self._connection.remove_address(address)

    def set_backup(self, local: Endpoint, remote: Endpoint, backup: bool) -> None:
        self._connection.set_backup(self._number(local, remote), backup)

    def is_backup(self, local: Endpoint, remote: Endpoint) -> bool:
        return any(s.backup for s in self._connection.subflows() if (s.local, s.remote) == (local, remote))

    def local_addresses(self) -> Sequence[bytes]:
        return self._addresses()

    def position(self) -> tuple[int, int]:
        self._check()
        return sockopt.position(self._fd)

    def read(self, fresh: bool = False) -> FullInfo:
        self._check()
        return sockopt.full_info(self._fd)

    def _check(self) -> None:
        # The descriptor may be another socket's by now.
        if self._connection.is_ended:
            raise PathError("the connection is over", errno.ENOTCONN)

    def _number(self, local: Endpoint, remote: Endpoint) -> int:
        number = self._connection.ids.find(local, remote)
        if number is None:
            raise PathError(f"the connection has no subflow from {local} to {remote}", errno.ENOENT)
        return number


class Snapshot:
    """What sock_diag says of all subflows, for readers of many connections at nearly the same time."""

    __slots__ = ("_at_us", "_by_token", "diag")

    def __init__(self, diag: Diag) -> None:
        self.diag = diag
        self._at_us = -SNAPSHOT_AGE_US
        self._by_token: dict[int, list[DiagSubflow]] = {}

    def renew(self) -> None:
        """It is too old, whatever its age."""
        self._at_us = now_us() - SNAPSHOT_AGE_US

    def subflows(self, token: int) -> list[DiagSubflow]:
        now = now_us()
        if now - self._at_us >= SNAPSHOT_AGE_US:
            self._at_us = now
            self._by_token = {}
            for subflow in self.diag.subflows():
                self._by_token.setdefault(subflow.token_local, []).append(subflow)
        return self._by_token.get(token, [])


class TokenSteering(Steering):
    """Of any connection of the namespace, by its token: what a service has that does not own the socket."""

    __slots__ = ("_addresses", "_ids", "_initial_local", "_path_manager", "_snapshot", "_token")

    def __init__(
        self,
        token: int,
        initial_local: Endpoint,
        path_manager: PathManagerNetlink,
        snapshot: Snapshot,
        addresses: Callable[[], Sequence[bytes]],
        *,
        steered: bool = True,
    ) -> None:
        """``steered`` False: the in-kernel path manager has the connection; it can be read, and subflows be reset."""
        self._token = token
        self._path_manager = path_manager
        self._snapshot = snapshot
        self._addresses = addresses
        self._ids = AddressIds(initial_local.address)
        self._initial_local = initial_local
        if steered:
            self._learn()

    def _learn(self) -> None:
        """The ids of addresses that the kernel, or somebody else who steers the connection, has chosen."""
        with explained():
            self._ids.learn((kept.local, kept.id) for kept in self._path_manager.addresses(self._token))

    def _with_id(self, local: Endpoint, act: Callable[[int], None]) -> None:
        def attempt(number: int) -> None:
            with explained():
                act(number)

        self._ids.using(local, attempt, self._learn)

    def open_subflow(self, local: Endpoint, remote: Endpoint, backup: bool) -> None:
        flags = FLAG_BACKUP if backup else 0
        self._with_id(
            local, lambda number: self._path_manager.create_subflow(self._token, local, number, remote, flags)
        )

    def close_subflow(self, local: Endpoint, remote: Endpoint, reset: bool, reason: str) -> None:
        with explained():
            if reset:
                self._snapshot.diag.destroy(local, remote)
            else:
                self._path_manager.destroy_subflow(self._token, local, remote)

    def announce(self, local: Endpoint) -> None:
        self._with_id(local, lambda number: self._path_manager.announce(self._token, local, number))

    def withdraw(self, address: bytes) -> None:
        with explained():
            for number in self._ids.of_address(address):
                self._path_manager.remove(self._token, number)
                self._ids.forget(number)

    def set_backup(self, local: Endpoint, remote: Endpoint, backup: bool) -> None:
        with explained():
            self._path_manager.set_flags(self._token, local, remote, FLAG_BACKUP if backup else 0)

    def is_backup(self, local: Endpoint, remote: Endpoint) -> bool:
        subflows = self._snapshot.subflows(self._token)
        return any(s.backup for s in subflows if (s.local, s.remote) == (local, remote))

    def local_addresses(self) -> Sequence[bytes]:
        return self._addresses()

    def position(self) -> tuple[int, int]:
        return position_of(self._info())

    def read(self, fresh: bool = False) -> FullInfo:
        info = self._info()
        listed = self._snapshot.subflows(self._token)
        if fresh and len(listed) - any(subflow.local == self._initial_local for subflow in listed) != info.subflows:
            self._snapshot.renew()
        entries = [
            SubflowEntry(0, subflow.local, subflow.remote, subflow.tcp or TcpInfo.parse(b""))
            for subflow in self._snapshot.subflows(self._token)
        ]
        return FullInfo(info, entries, len(entries))

    def _info(self) -> MptcpInfo:
        with explained():
            found = self._snapshot.diag.mptcp_socket(self._token)
        if found is None or found.info is None:
            raise PathError("the kernel knows no such connection any more", errno.ENOTCONN)
        if found.info.fell_back:
            raise NotSupportedError("the connection is plain TCP now")
        return found.info
