"""The local addresses of a socket of the user-space stack, its device, where it listens."""

from __future__ import annotations

import errno
import socket as std
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mptcp.core.multipath import local_addresses
from mptcp.core.multipath.config import ConnectionConfig
from mptcp.errors import PathError
from mptcp.info import Endpoint
from mptcp.sockets.address import SocketAddress, any_endpoint
from mptcp.sockets.legacy import MultipathSettings, connection_config, permitted
from mptcp.sockets.multipath_options import BasicInterface, as_address
from mptcp.sockets.privileges import check_port
from mptcp.sockets.state import CLOSED, CONNECTING
from mptcp.sockets.user_subflows import EnhancedApi

if TYPE_CHECKING:
    from mptcp.core.multipath.connection import Connection


class BasicApi(BasicInterface, EnhancedApi):
    """Before the connection settings are kept here; during it the connection is told."""

    __slots__ = ()

    @property
    def connection_id(self) -> int:
        with self._pump.lock:
            return self._connection.token if self._connection is not None else 0

    def local_addresses(self) -> list[SocketAddress]:
        with self._pump.lock:
            self._check_open()
            connection = self._connection
            if connection is not None and connection.state is not CLOSED and connection.is_multipath:
                port = connection.local.port
                found = [Endpoint(a, port) for a in local_addresses.usable_addresses(connection)]
            elif connection is not None:
                found = [connection.local]
            else:
                bound = self._bound
                found = [
                    Endpoint(e.address, e.port or (bound.port if bound is not None else 0))
                    for e in permitted(self._settings, bound, self._device_addresses())
                ]
            return [as_address(e) for e in found]

    def remote_addresses(self) -> list[SocketAddress]:
        with self._pump.lock:
            self._check_open()
            connection = self._connection
            if connection is None:
                return []
            found = connection.paths.remotes() if connection.is_multipath else [connection.remote]
            found += [s.tcp.remote for s in connection.open_subflows() if s.tcp.remote not in found]
            return [as_address(e) for e in found]

    def note_remotes(self, remotes: Sequence[Endpoint]) -> None:
        with self._pump.lock:
            connection = self._connection
            if connection is None or not connection.is_multipath:
                return
            now = self._pump.clock()
            for remote in remotes:
                remote = Endpoint(remote.address, remote.port or connection.remote.port)
                if remote != connection.remote:
                    connection.paths.note_remote(remote, now)
            self._pump.flush()

    # --- the first subflow -------------------------------------------------------------------------------------------
    @property
    def fate_sharing(self) -> bool:
        """Whether the connection ends with its first subflow (RFC 6897 §4.2.2, REQ13); the stack's policy unless set."""
        with self._pump.lock:
            connection = self._connection
            return connection.config.fate_sharing if connection is not None else self._effective_config().fate_sharing

    @fate_sharing.setter
    def fate_sharing(self, shared: bool) -> None:
        with self._pump.lock:
            self._check_open()
            self._settings = self._settings.changed(fate_sharing=shared)
            if self._connection is not None:
                self._connection.config = self._connection.config.changed(fate_sharing=shared)
            self._update_listeners()

    # --- SO_BINDTODEVICE ---------------------------------------------------------------------------------------------
    def _bind_to_device(self, name: str) -> None:
        if self._has_connection() or self._listeners is not None:
            raise PathError("bind to a device before connect or listen", errno.EISCONN)
        if name:
            self._stack.interface_index(name)
        self._settings = self._settings.changed(device=name)

    def _device_addresses(self) -> list[Endpoint]:
        return self._stack.addresses_of(self._settings.device) if self._settings.device else []

    # --- for connect and listen --------------------------------------------------------------------------------------
    def _effective_config(self) -> ConnectionConfig:
        """What a connection or a listener that begins now is made with."""
        return connection_config(
            self._config, self._settings, self._stack.legacy_policy, self._bound, self._device_addresses()
        )

    def _connect_local(self, remote: Endpoint) -> Endpoint | None:
        """Where a connection to ``remote`` comes from; None: the host chooses."""
        bound = self._bound
        family = len(remote.address)
        port = bound.port if bound is not None else 0
        if bound is not None and not bound.is_unspecified:
            return bound
        if self._settings.device:
            for endpoint in self._device_addresses():
                if len(endpoint.address) == family and endpoint.address not in self._settings.excluded:
                    return Endpoint(endpoint.address, port)
            raise PathError(f"the device has no address that could reach {remote.host}", errno.EADDRNOTAVAIL)
        if bound is None:
            return None if self._settings.listed else self._stack.preferred_local(remote)
        # Of the family of the peer: an IPv6 socket may talk to a mapped IPv4 address.
        return Endpoint(bytes(family), port)

    def _listen_endpoints(self) -> list[Endpoint]:
        """Where ``listen`` listens: what is bound, on the device's addresses, on those added."""
        bound = self._bound
        assert bound is not None
        config = self._effective_config()
        families = [bound.family]
        if self._family == std.AF_INET6 and bound.is_unspecified and not self._options.v6_only:
            families.append(4)
        if bound.is_unspecified and (config.local_addresses is not None or self._settings.device):
            named = config.local_addresses or tuple(self._device_addresses())
            found = [Endpoint(e.address, bound.port) for e in named if e.family in families]
            if not found:
                raise PathError("none of the addresses added is one to listen at", errno.EADDRNOTAVAIL)
            return found
        endpoints = [bound]
        if len(families) == 2:
            endpoints.append(any_endpoint(std.AF_INET, bound.port))
        return endpoints

    def _update_listeners(self) -> None:
        """What is accepted from now on inherits it; where addresses were added or removed, it is listened there, too, or
        no more."""
        if self._listeners is None:
            return
        config = self._effective_config()
        host = self._pump.host
        now = self._pump.clock()
        wanted = self._listen_endpoints()
        kept = []
        backlog = 1
        for listener in self._listeners:
            listener.config = config
            backlog = listener.backlog
            if listener.local in wanted:
                kept.append(listener)
            else:
                listener.owner = None
                host.close_listener(listener, now)
        held = {listener.local for listener in kept}
        for endpoint in wanted:
            if endpoint not in held:
                listener = host.listen(endpoint, now, backlog=backlog, options=config)
                listener.owner = weakref.ref(self)
                kept.append(listener)
        self._listeners = kept
        self._pump.flush()

    # --- inside, with the lock ---------------------------------------------------------------------------------------
    def _has_connection(self) -> bool:
        return self._connection is not None and (self._connection.state is not CLOSED or self._connecting)

    def _uses_multipath(self) -> bool | None:
        connection = self._connection
        return connection.is_multipath if connection is not None and connection.state is not CONNECTING else None

    def _will_use_multipath(self) -> bool:
        return self._effective_config().multipath

    def _change_settings(self, settings: MultipathSettings) -> None:
        self._settings = settings
        self._update_listeners()

    def _check_established(self) -> None:
        if self._the_connection().state in (CONNECTING, CLOSED):
            raise PathError("this can be asked once the connection is established", errno.ENOTCONN)
        self._check_multipath()

    def _pairs(self) -> list[tuple[Endpoint, Endpoint]]:
        self._check_established()
        return [
            (s.tcp.local, s.tcp.remote)
            for s in self._the_connection().open_subflows()
            if s.tcp.is_established and not s.pending
        ]  # fmt: skip

    def _initial_local(self) -> Endpoint:
        return self._the_connection().local

    def _usable_addresses(self) -> list[bytes]:
        return list(local_addresses.usable_addresses(self._the_connection()))

    def _is_of_connection(self, address: bytes) -> bool:
        connection = self._the_connection()
        return address in local_addresses.usable_addresses(connection) or connection.paths.knows_local(address)

    def _add_to_connection(self, wanted: Sequence[Endpoint]) -> None:
        now = self._pump.clock()
        for local in wanted:
            local_addresses.add_local(self._the_connection(), local, now)
        self._pump.flush()

    def _remove_from_connection(self, wanted: Sequence[Endpoint]) -> None:
        now = self._pump.clock()
        for local in wanted:
            local_addresses.remove_local(self._the_connection(), local.address, now)
        self._pump.flush()

    def _announce(self, local: Endpoint) -> None:
        connection: Connection = self._the_connection()
        if not connection.is_fully_established:
            raise PathError("an address can be announced once the peer has acknowledged data", errno.EAGAIN)
        self._check_local([local])
        now = self._pump.clock()
        local_addresses.add_local(connection, local, now, tell_manager=False)
        connection.add_address(local, now)
        self._pump.flush()

    def _check_local(self, wanted: Sequence[Endpoint]) -> None:
        host = self._pump.host
        for local in wanted:
            if local.is_unspecified:
                raise PathError("the list takes addresses, not the wildcard")
            if host.route(local.address) is None:
                raise PathError(f"{local.host} is not a usable address of this stack", errno.EADDRNOTAVAIL)
            check_port(local.port)
