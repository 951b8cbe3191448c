"""The basic API (RFC 6897 §5): whether MPTCP is used, over which local addresses, over which paths it runs."""

from __future__ import annotations

import errno
import ipaddress
import socket as std
import struct
import weakref
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from mptcp.core.multipath import local_addresses
from mptcp.core.multipath.config import ConnectionConfig
from mptcp.errors import PathError
from mptcp.info import Endpoint
from mptcp.sockets import options as opt
from mptcp.sockets import structures
from mptcp.sockets.address import SocketAddress, any_endpoint, from_endpoint, os_error
from mptcp.sockets.events import MPTCP_EVENTS, check_subscription
from mptcp.sockets.hesmans import ENHANCED_OPTIONS, EnhancedApi
from mptcp.sockets.legacy import connection_config, permitted
from mptcp.sockets.privileges import check_port
from mptcp.sockets.state import CLOSED, CONNECTING

if TYPE_CHECKING:
    from mptcp.core.multipath.connection import Connection

#: Options of level IPPROTO_TCP; RFC 6897 leaves their numbers open, and Linux uses none of these.
TCP_MULTIPATH_ENABLE = 80
TCP_MULTIPATH_ADD = 81
TCP_MULTIPATH_REMOVE = 82
TCP_MULTIPATH_SUBFLOWS = 83
TCP_MULTIPATH_CONNID = 84
TCP_MULTIPATH_BIND = 85

_BASIC = frozenset(
    {
        TCP_MULTIPATH_ENABLE, TCP_MULTIPATH_ADD, TCP_MULTIPATH_REMOVE, TCP_MULTIPATH_SUBFLOWS, TCP_MULTIPATH_CONNID,
        TCP_MULTIPATH_BIND, MPTCP_EVENTS,
    }
)  # fmt: skip

#: An address as a program may give it: "10.0.1.2", ("10.0.1.2", 0), or an endpoint.
AddressLike = str | SocketAddress | Endpoint


def to_local(address: AddressLike) -> Endpoint:
    """PathError EINVAL for what is no address; names are not looked up, as these are addresses of this host."""
    if isinstance(address, Endpoint):
        return address
    host, port = (address, 0) if isinstance(address, str) else (address[0], address[1] if len(address) > 1 else 0)
    try:
        return Endpoint(ipaddress.ip_address(str(host).partition("%")[0]).packed, int(port))
    except ValueError as error:
        raise PathError(f"{host!r} is no IP address") from error


def _to_locals(addresses: Iterable[AddressLike]) -> list[Endpoint]:
    wanted = [to_local(address) for address in addresses]
    if not wanted:
        raise PathError("the list of addresses is empty")
    return wanted


class BasicApi(EnhancedApi):
    """Methods and properties, and beneath them the options with their structures.

    Before the connection what is said here is remembered, for ``connect`` or for what ``listen`` accepts; later it acts
    on the connection.
    """

    __slots__ = ()

    # --- TCP_MULTIPATH_ENABLE ----------------------------------------------------------------------------------------
    @property
    def multipath_enabled(self) -> bool:
        """Connected: whether MPTCP is in use. Before: whether it will be tried. To set: only before. OSError EISCONN."""
        with self._pump.lock:
            self._check_open()
            connection = self._connection
            if connection is not None and connection.state is not CONNECTING:
                # RFC 6897 §5.3.2: "A value of "false" then means lack of MPTCP support. A value of "true" means that
                # MPTCP is supported."
                return connection.is_multipath
            return self._effective_config().multipath

    @multipath_enabled.setter
    def multipath_enabled(self, enabled: bool) -> None:
        with self._pump.lock:
            self._check_open()
            if self._has_connection():
                # RFC 6897 §5.3.1: "This value should only be set before the establishment of a TCP connection."
                raise PathError("set TCP_MULTIPATH_ENABLE before connect, or on the listening socket", errno.EISCONN)
            self._settings = self._settings.changed(enabled=enabled)
            self._update_listeners()

    # --- TCP_MULTIPATH_ADD, _REMOVE, _BIND ---------------------------------------------------------------------------
    def add_addresses(self, addresses: Iterable[AddressLike]) -> None:
        """Before the connection: it may use these local addresses, and no others but those bound to. During it: these,
        too; they may be announced to the peer. With a port, subflows from there have it.

        All or nothing. PathError: EADDRNOTAVAIL (not an address of this stack), EINVAL, EACCES (privileged port),
        EOPNOTSUPP (regular TCP).
        """
        wanted = _to_locals(addresses)
        with self._pump.lock:
            self._check_open()
            self._check_local(wanted)
            if self._has_connection():
                connection = self._running_connection()
                now = self._pump.clock()
                for local in wanted:
                    local_addresses.add_local(connection, local, now)
                self._pump.flush()
                return
            new = {e.address for e in wanted}
            listed = (*(e for e in self._settings.listed if e.address not in new), *wanted)
            if len(listed) > local_addresses.MAX_LISTED_ADDRESSES:
                raise PathError(f"a connection takes {local_addresses.MAX_LISTED_ADDRESSES} addresses", errno.ENOBUFS)
            excluded = tuple(a for a in self._settings.excluded if a not in new)
            self._settings = self._settings.changed(listed=listed, excluded=excluded)
            self._update_listeners()

    def remove_addresses(self, addresses: Iterable[AddressLike]) -> None:
        """The connection uses these local addresses no more. If it runs over nothing else, subflows from other addresses
        are established first; then those from here are closed, and the peer is told (REMOVE_ADDR).

        PathError: EADDRNOTAVAIL (not an address of the connection, or of this stack), EINVAL, EOPNOTSUPP.
        """
        wanted = _to_locals(addresses)
        with self._pump.lock:
            self._check_open()
            if self._has_connection():
                connection = self._running_connection()
                usable = local_addresses.usable_addresses(connection)
                for local in wanted:
                    if local.address not in usable and not connection.paths.knows_local(local.address):
                        raise PathError(f"{local.host} is no address of this connection", errno.EADDRNOTAVAIL)
                now = self._pump.clock()
                for local in wanted:
                    local_addresses.remove_local(connection, local.address, now)
                self._pump.flush()
                return
            named = {e.address for e in self._settings.listed}
            self._check_local([e for e in wanted if e.address not in named])
            gone = {e.address for e in wanted}
            excluded = tuple(dict.fromkeys((*self._settings.excluded, *gone)))
            if len(excluded) > local_addresses.MAX_LISTED_ADDRESSES:
                raise PathError("too many addresses are excluded already", errno.ENOBUFS)
            listed = tuple(e for e in self._settings.listed if e.address not in gone)
            self._settings = self._settings.changed(listed=listed, excluded=excluded)
            self._update_listeners()

    def bind_addresses(self, addresses: Iterable[AddressLike]) -> None:
        """TCP_MULTIPATH_BIND of the first draft: the full list at once. What is not in it is removed."""
        wanted = _to_locals(addresses)
        with self._pump.lock:
            self._check_open()
            self._check_local(wanted)
            if not self._has_connection():
                self._settings = self._settings.changed(listed=tuple(wanted), excluded=())
                self._update_listeners()
                return
            connection = self._running_connection()
            kept = {e.address for e in wanted}
            before = list(local_addresses.usable_addresses(connection))
            self.add_addresses(wanted)
            gone: list[AddressLike] = [Endpoint(a) for a in before if a not in kept]
            if connection.local.address not in kept and connection.local.address not in before:
                gone.append(Endpoint(connection.local.address))
            if gone:
                self.remove_addresses(gone)

    def add_address(self, address: AddressLike, port: int = 0) -> None:
        """As ``add_addresses`` with one address; but during the connection it is announced to the peer (ADD_ADDR), whatever
        the path manager thinks of it. PathError EAGAIN before the peer has acknowledged data."""
        local = to_local(address)
        if port:
            local = Endpoint(local.address, port)
        with self._pump.lock:
            if not self._has_connection():
                self.add_addresses([local])
                return
            connection = self._running_connection()
            if not connection.is_fully_established:
                raise PathError("an address can be announced once the peer has acknowledged data", errno.EAGAIN)
            self._check_local([local])
            now = self._pump.clock()
            local_addresses.add_local(connection, local, now, tell_manager=False)
            connection.add_address(local, now)
            self._pump.flush()

    def remove_address(self, address: AddressLike) -> None:
        """As ``remove_addresses`` with one address."""
        self.remove_addresses([address])

    # --- TCP_MULTIPATH_SUBFLOWS, _CONNID -----------------------------------------------------------------------------
    def subflow_addresses(self) -> list[tuple[SocketAddress, SocketAddress]]:
        """(local, remote) of every established subflow. OSError ENOTCONN, EOPNOTSUPP (regular TCP)."""
        with self._pump.lock:
            return [
                (from_endpoint(_family(local), local), from_endpoint(_family(remote), remote))
                for local, remote in self._pairs()
            ]

    @property
    def connection_id(self) -> int:
        """RFC 6897 §5.3.5: a number for the connection, unique on this host: its token; 0 where there is none."""
        with self._pump.lock:
            return self._connection.token if self._connection is not None else 0

    def local_addresses(self) -> list[SocketAddress]:
        """What the connection may use now, in order of preference; before it: what was bound or added ([]: anything)."""
        with self._pump.lock:
            self._check_open()
            connection = self._connection
            if connection is not None and connection.state is not CLOSED and connection.plain is None:
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
            return [from_endpoint(_family(e), e) for e in found]

    def remote_addresses(self) -> list[SocketAddress]:
        """Addresses of the peer, the first one first: announced by it, used by a subflow, or told to ``connect``."""
        with self._pump.lock:
            self._check_open()
            connection = self._connection
            if connection is None:
                return []
            found = connection.paths.remotes() if connection.plain is None else [connection.remote]
            found += [s.tcp.remote for s in connection.open_subflows() if s.tcp.remote not in found]
            return [from_endpoint(_family(e), e) for e in found]

    def note_remotes(self, remotes: Sequence[Endpoint]) -> None:
        """Further addresses of the very peer this socket connects to: subflows may go there."""
        with self._pump.lock:
            connection = self._connection
            if connection is None or connection.plain is not None:
                return
            now = self._pump.clock()
            for remote in remotes:
                remote = Endpoint(remote.address, remote.port or connection.remote.port)
                if remote != connection.remote:
                    connection.paths.note_remote(remote, now)
            self._pump.flush()

    def check_addresses(self, addresses: Iterable[AddressLike]) -> None:
        """PathError where ``add_addresses`` would raise it; changes nothing."""
        with self._pump.lock:
            self._check_local([to_local(address) for address in addresses])

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

    # --- options -----------------------------------------------------------------------------------------------------
    def _set_extended(self, level: int, optname: int, value: int | bytes) -> bool:
        """With the lock: an option of this or the enhanced API; False: it is another."""
        if (level, optname) == (std.SOL_SOCKET, std.SO_BINDTODEVICE):
            self._bind_to_device(value)
            return True
        if level != std.IPPROTO_TCP:
            return False
        if optname in ENHANCED_OPTIONS:
            self._set_enhanced(optname, value)
            return True
        if optname not in _BASIC:
            return False
        if optname == TCP_MULTIPATH_ENABLE:
            self.multipath_enabled = bool(opt.to_int(value))
        elif optname == MPTCP_EVENTS:
            self._settings = self._settings.changed(events=check_subscription(opt.to_int(value)))
        elif optname in (TCP_MULTIPATH_SUBFLOWS, TCP_MULTIPATH_CONNID):
            raise os_error(errno.ENOPROTOOPT)  # RFC 6897 §5.3.1: "This value is read-only"
        elif isinstance(value, int):
            raise PathError("this option takes a list of socket addresses")
        else:
            addresses = structures.unpack_addresses(value)
            if optname == TCP_MULTIPATH_ADD:
                self.add_addresses(addresses)
            elif optname == TCP_MULTIPATH_REMOVE:
                self.remove_addresses(addresses)
            else:
                self.bind_addresses(addresses)
        return True

    def _get_extended(self, level: int, optname: int, argument: int | bytes) -> int | bytes | None:
        """With the lock; None: it is another option."""
        if (level, optname) == (std.SOL_SOCKET, std.SO_BINDTODEVICE):
            name = self._settings.device.encode()
            return name + b"\0" if name else b""
        if level != std.IPPROTO_TCP:
            return None
        if optname in ENHANCED_OPTIONS:
            return self._get_enhanced(optname, argument)
        if optname not in _BASIC:
            return None
        if optname == TCP_MULTIPATH_ENABLE:
            return int(self.multipath_enabled)
        if optname == MPTCP_EVENTS:
            return self._settings.events
        if optname == TCP_MULTIPATH_CONNID:
            return struct.pack("=I", self._established_connection().token)
        if optname == TCP_MULTIPATH_SUBFLOWS:
            packed = structures.pack_pairs(self._pairs())
            size = argument if isinstance(argument, int) else len(argument)
            if size < len(packed):
                raise PathError(f"the subflows need a buffer of {len(packed)} octets")
            return packed
        raise os_error(errno.ENOPROTOOPT)  # ADD, REMOVE and BIND can only be set

    # --- SO_BINDTODEVICE ---------------------------------------------------------------------------------------------
    def _bind_to_device(self, value: int | bytes) -> None:
        if isinstance(value, int):
            raise os_error(errno.EINVAL)
        name = value.partition(b"\0")[0].decode(errors="replace")
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

    # --- inside ------------------------------------------------------------------------------------------------------
    def _has_connection(self) -> bool:
        return self._connection is not None and (self._connection.state is not CLOSED or self._connecting)

    def _running_connection(self) -> Connection:
        connection = self._the_connection()
        if connection.plain is not None:
            raise PathError(f"this connection is regular TCP: {connection.fallback_reason}", errno.EOPNOTSUPP)
        return connection

    def _established_connection(self) -> Connection:
        connection = self._the_connection()
        if connection.state in (CONNECTING, CLOSED):
            raise PathError("this can be asked once the connection is established", errno.ENOTCONN)
        return self._running_connection()

    def _pairs(self) -> list[tuple[Endpoint, Endpoint]]:
        # RFC 6897 §5.3.4: "The list MUST only include established subflows."
        connection = self._established_connection()
        return [
            (s.tcp.local, s.tcp.remote)
            for s in connection.open_subflows()
            if s.tcp.is_established and not s.pending
        ]  # fmt: skip

    def _check_local(self, wanted: Sequence[Endpoint]) -> None:
        """Each is a usable address of this stack, with a port one may have. PathError."""
        host = self._pump.host
        for local in wanted:
            if local.is_unspecified:
                raise PathError("the list takes addresses, not the wildcard")
            if host.route(local.address) is None:
                raise PathError(f"{local.host} is not a usable address of this stack", errno.EADDRNOTAVAIL)
            check_port(local.port)


def _family(endpoint: Endpoint) -> int:
    return int(std.AF_INET if endpoint.family == 4 else std.AF_INET6)
