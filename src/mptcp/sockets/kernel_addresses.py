"""The local addresses of a socket of the kernel's stack: what it may use, and what its peer is told of."""

from __future__ import annotations

import contextlib
import errno
import socket as std
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, cast

from mptcp.core.multipath.config import ConnectionConfig
from mptcp.errors import NotSupportedError, PathError
from mptcp.info import Endpoint, SubflowState
from mptcp.sockets.address import SocketAddress
from mptcp.sockets.kernel_subflows import KernelSubflows
from mptcp.sockets.legacy import MultipathSettings, connection_config, permitted
from mptcp.sockets.multipath_options import BasicInterface, as_address
from mptcp.sockets.privileges import check_port

#: Addresses of the peer that a connection remembers: told to it, announced, used.
MAX_REMOTE_ADDRESSES = 64

_WORKING = (SubflowState.ACTIVE, SubflowState.STALE)


class KernelAddresses(BasicInterface, KernelSubflows):
    """The kernel itself restricts a connection to no address; what is opened and announced here keeps to what was said."""

    __slots__ = ()

    # In the slots of the socket:
    _accepted: bool
    _bound: Endpoint | None
    _config: ConnectionConfig
    _allowed: tuple[bytes, ...] | None  # local addresses of a connection that is restricted to some
    _leaving: list[bytes]  # addresses that are left when there is an alternative
    _remotes: tuple[Endpoint, ...]

    @property
    def connection_id(self) -> int:
        with self.event_lock:
            connection = self._find_connection()
            return connection.token if connection is not None else 0

    def local_addresses(self) -> list[SocketAddress]:
        with self.event_lock:
            self._check_open()
            connection = self._find_connection()
            bound = self._bound
            if connection is None:
                named = permitted(self._settings, bound, self._device_addresses())
                found = [Endpoint(e.address, e.port or (bound.port if bound is not None else 0)) for e in named]
            elif connection.is_multipath:
                found = [Endpoint(address, connection.initial_local.port) for address in self._usable_addresses()]
            else:
                found = [connection.initial_local]
            return [as_address(e) for e in found]

    def remote_addresses(self) -> list[SocketAddress]:
        with self.event_lock:
            self._check_open()
            connection = self._find_connection()
            if connection is None:
                return []
            found = [connection.initial_remote]
            if connection.is_multipath:
                found += [e for e in (*self._remotes, *connection.remote_addresses().values()) if e not in found]
                found += [s.remote for s in connection.subflows() if s.remote not in found]
            return [as_address(e) for e in found[:MAX_REMOTE_ADDRESSES]]

    def note_remotes(self, remotes: Sequence[Endpoint]) -> None:
        with self.event_lock:
            connection = self._find_connection()
            port = connection.initial_remote.port if connection is not None else 0
            known = dict.fromkeys((*self._remotes, *(Endpoint(e.address, e.port or port) for e in remotes)))
            self._remotes = tuple(known)[:MAX_REMOTE_ADDRESSES]
            if self._managed is not None:
                for remote in self._remotes:
                    self._managed.note_remote(remote)

    @property
    def fate_sharing(self) -> bool:
        """Whether the connection ends with its first subflow (RFC 6897 §4.2.2): never here, as Linux has it."""
        return False

    @fate_sharing.setter
    def fate_sharing(self, shared: bool) -> None:
        if shared:
            raise NotSupportedError("Linux keeps a connection whose first subflow has ended: use the user-space stack")

    @abstractmethod
    def _tell_manager(self, addresses: Iterable[bytes], available: bool) -> None:
        """The connection may use these from now on, or no more."""

    @abstractmethod
    def _keep_option(self, level: int, optname: int, value: int | bytes) -> None:
        """For a descriptor that takes the place of this one."""

    # --- SO_BINDTODEVICE ---------------------------------------------------------------------------------------------
    def _bind_to_device(self, name: str) -> None:
        if self._has_connection() or self._listening:
            raise PathError("bind to a device before connect or listen", errno.EISCONN)
        if name:
            self._stack.interface_index(name)
        self._settings = self._settings.changed(device=name)
        self._keep_option(std.SOL_SOCKET, std.SO_BINDTODEVICE, name.encode() + b"\0")

    def _device_addresses(self) -> list[Endpoint]:
        return self._stack.addresses_of(self._settings.device) if self._settings.device else []

    # --- inside, with the lock ---------------------------------------------------------------------------------------
    def _effective_config(self, remote: Endpoint | None = None) -> ConnectionConfig:
        """What a connection (to ``remote``) or a listener that begins now is made with."""
        config = connection_config(
            self._config, self._settings, self._stack.legacy_policy, self._bound, self._device_addresses()
        )
        aware = self._settings.aware or bool(self._settings.enabled)
        return self._stack.policy.apply(config, remote, aware=aware, chosen=True)

    def _check_restriction(self, config: ConnectionConfig, *, listening: bool = False) -> None:
        """What was said of addresses will be kept to, or this is the moment to say that it cannot be."""
        if config.multipath and config.local_addresses is not None and self._stack.multipath:
            allowed = {endpoint.address for endpoint in config.local_addresses}
            self._stack.check_restriction(allowed, listening=listening)

    def _will_use_multipath(self) -> bool:
        return self._effective_config().multipath and bool(self._stack.multipath)

    def _uses_multipath(self) -> bool | None:
        connection = self._find_connection()
        return connection.is_multipath if connection is not None else None

    def _check_established(self) -> None:
        self._the_connection()
        self._check_multipath()

    def _pairs(self) -> list[tuple[Endpoint, Endpoint]]:
        self._check_established()
        return [(s.local, s.remote) for s in self.subflows() if s.state in _WORKING]

    def _initial_local(self) -> Endpoint:
        return self._the_connection().initial_local

    def _usable_addresses(self) -> list[bytes]:
        named = self._allowed
        if named is None and (config := self._effective_config()).local_addresses is not None:
            named = tuple(e.address for e in config.local_addresses)
        present = self._stack.local_addresses(hidden=named is not None)
        usable = present if named is None else [a for a in named if a in present]
        initial = self._the_connection().initial_local.address
        ordered = [a for a in usable if a not in self._settings.excluded]
        ordered.sort(key=lambda a: a != initial)
        return ordered

    def _is_of_connection(self, address: bytes) -> bool:
        return address in self._usable_addresses() or any(s.local.address == address for s in self.subflows())

    def _add_to_connection(self, wanted: Sequence[Endpoint]) -> None:
        self._freeze()
        new = [e.address for e in wanted]
        if self._allowed is not None:
            self._allowed = tuple(dict.fromkeys((*self._allowed, *new)))
        elif any(address in self._stack.hidden for address in new):
            self._allowed = tuple(dict.fromkeys((*self._stack.local_addresses(), *new)))
        self._settings = self._settings.with_added(wanted)
        self._leaving = [address for address in self._leaving if address not in new]
        self._tell_manager(new, True)

    def _remove_from_connection(self, wanted: Sequence[Endpoint]) -> None:
        self._stack.check_steering("leaving an address", "remove", self._the_connection())
        self._freeze()
        gone = [e.address for e in wanted]
        if self._allowed is not None:
            self._allowed = tuple(address for address in self._allowed if address not in gone)
        self._settings = self._settings.with_removed(wanted)
        self._leaving = list(dict.fromkeys((*self._leaving, *gone)))
        self._tell_manager(gone, False)
        if not self._has_alternative() and self._open_alternative():
            return  # the others are left when it is established
        self._leave()

    def _freeze(self) -> None:
        """What the program has named before the connection is what it is restricted to, whatever is left of it."""
        config = self._effective_config()
        if self._allowed is None and config.local_addresses is not None:
            self._allowed = tuple(e.address for e in config.local_addresses)

    def _has_alternative(self) -> bool:
        return any(s.local.address not in self._leaving and s.state in _WORKING for s in self.subflows())

    def _open_alternative(self) -> bool:
        """RFC 6897 §5.3.3: "an MPTCP implementation SHOULD establish alternative subflows before undertaking the address
        removal" """
        connection = self._the_connection()
        if any(s.local.address not in self._leaving and s.state is SubflowState.CONNECTING for s in self.subflows()):
            return True
        remotes = dict.fromkeys((connection.initial_remote, *self._remotes, *connection.remote_addresses().values()))
        for address in self._usable_addresses():
            for remote in remotes:
                if len(address) == len(remote.address):
                    try:
                        if self._accepted:
                            # The way to a client's port is closed to us: it has to come to another address of ours.
                            connection.add_address(Endpoint(address))
                        else:
                            connection.open_subflow(Endpoint(address), remote)
                    except OSError:
                        continue
                    return True
        return False

    def _leave(self) -> None:
        """Closes what is still from addresses that were removed, and tells the peer."""
        connection, leaving = self._the_connection(), self._leaving
        self._leaving = []
        for address in leaving:
            connection.remove_address(address)

    def _tidy(self) -> None:
        super()._tidy()
        connection = self._connection
        if self._leaving and connection is not None and not connection.is_ended and self._has_alternative():
            with contextlib.suppress(OSError):  # it has just ended
                self._leave()

    def _announce(self, local: Endpoint) -> None:
        self._check_local([local])
        self._add_to_connection([local])
        self._the_connection().add_address(local)

    def _check_local(self, wanted: Sequence[Endpoint]) -> None:
        present = set(self._stack.local_addresses(hidden=True))
        for local in wanted:
            if local.is_unspecified:
                raise PathError("the list takes addresses, not the wildcard")
            if local.address not in present:
                raise PathError(f"{local.host} is not a usable address of this host", errno.EADDRNOTAVAIL)
            if local.family == 6 and cast(Any, self).family == std.AF_INET:
                raise NotSupportedError("an AF_INET socket of the kernel has IPv4 subflows only: make it AF_INET6")
            check_port(local.port)

    def _change_settings(self, settings: MultipathSettings) -> None:
        before = self._settings
        if self._listening and (settings.enabled, settings.listed) != (before.enabled, before.listed):
            raise NotSupportedError("a listening socket of the kernel stays what it is: set this before listen")
        self._settings = settings
