"""The basic API (RFC 6897 §5): whether MPTCP is used, over which local addresses, over which paths it runs.

What is the same on every stack: what is remembered before the connection, and the options, which end in the methods.
"""

from __future__ import annotations

import errno
import ipaddress
import socket as std
import struct
from abc import abstractmethod
from collections.abc import Iterable, Sequence

from mptcp.errors import PathError
from mptcp.info import Endpoint
from mptcp.sockets import options as opt
from mptcp.sockets import structures
from mptcp.sockets.address import SocketAddress, from_endpoint, os_error
from mptcp.sockets.events import MPTCP_EVENTS, check_subscription
from mptcp.sockets.hesmans import ENHANCED_OPTIONS, EnhancedInterface
from mptcp.sockets.legacy import MultipathSettings

#: Options of level IPPROTO_TCP; RFC 6897 leaves their numbers open, and Linux uses none of these.
TCP_MULTIPATH_ENABLE = 80
TCP_MULTIPATH_ADD = 81
TCP_MULTIPATH_REMOVE = 82
TCP_MULTIPATH_SUBFLOWS = 83
TCP_MULTIPATH_CONNID = 84
TCP_MULTIPATH_BIND = 85

BASIC_OPTIONS = frozenset(
    {
        TCP_MULTIPATH_ENABLE, TCP_MULTIPATH_ADD, TCP_MULTIPATH_REMOVE, TCP_MULTIPATH_SUBFLOWS, TCP_MULTIPATH_CONNID,
        TCP_MULTIPATH_BIND, MPTCP_EVENTS,
    }
)  # fmt: skip

#: Of level IPPROTO_TCP, all that is this package's.
EXTENDED_OPTIONS = BASIC_OPTIONS | ENHANCED_OPTIONS

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


class BasicInterface(EnhancedInterface):
    """Methods and properties, and beneath them the options with their structures.

    Before the connection what is said here is remembered, for ``connect`` or for what ``listen`` accepts; later it acts
    on the connection.
    """

    __slots__ = ()

    # --- TCP_MULTIPATH_ENABLE ----------------------------------------------------------------------------------------
    @property
    def multipath_enabled(self) -> bool:
        """Connected: whether MPTCP is in use. Before: whether it will be tried. To set: only before. OSError EISCONN."""
        with self.event_lock:
            self._check_open()
            # RFC 6897 §5.3.2: "A value of "false" then means lack of MPTCP support. A value of "true" means that MPTCP is
            # supported."
            in_use = self._uses_multipath()
            return self._will_use_multipath() if in_use is None else in_use

    @multipath_enabled.setter
    def multipath_enabled(self, enabled: bool) -> None:
        with self.event_lock:
            self._check_open()
            if self._has_connection():
                # RFC 6897 §5.3.1: "This value should only be set before the establishment of a TCP connection."
                raise PathError("set TCP_MULTIPATH_ENABLE before connect, or on the listening socket", errno.EISCONN)
            self._change_settings(self._settings.changed(enabled=enabled))

    # --- TCP_MULTIPATH_ADD, _REMOVE, _BIND ---------------------------------------------------------------------------
    def add_addresses(self, addresses: Iterable[AddressLike]) -> None:
        """Before the connection: it may use these local addresses, and no others but those bound to. During it: these,
        too; they may be announced to the peer. With a port, subflows from there have it.

        All or nothing. PathError: EADDRNOTAVAIL (not an address of this stack), EINVAL, EACCES (privileged port),
        EOPNOTSUPP (regular TCP).
        """
        wanted = _to_locals(addresses)
        with self.event_lock:
            self._check_open()
            self._check_local(wanted)
            if self._has_connection():
                self._check_multipath()
                self._add_to_connection(wanted)
            else:
                self._change_settings(self._settings.with_added(wanted))

    def remove_addresses(self, addresses: Iterable[AddressLike]) -> None:
        """The connection uses these local addresses no more. If it runs over nothing else, subflows from other addresses
        are established first; then those from here are closed, and the peer is told (REMOVE_ADDR).

        PathError: EADDRNOTAVAIL (not an address of the connection, or of this stack), EINVAL, EOPNOTSUPP.
        """
        wanted = _to_locals(addresses)
        with self.event_lock:
            self._check_open()
            if self._has_connection():
                self._check_multipath()
                for local in wanted:
                    if not self._is_of_connection(local.address):
                        raise PathError(f"{local.host} is no address of this connection", errno.EADDRNOTAVAIL)
                self._remove_from_connection(wanted)
                return
            named = {e.address for e in self._settings.listed}
            self._check_local([e for e in wanted if e.address not in named])
            self._change_settings(self._settings.with_removed(wanted))

    def bind_addresses(self, addresses: Iterable[AddressLike]) -> None:
        """TCP_MULTIPATH_BIND of the first draft: the full list at once. What is not in it is removed."""
        wanted = _to_locals(addresses)
        with self.event_lock:
            self._check_open()
            self._check_local(wanted)
            if not self._has_connection():
                self._change_settings(self._settings.changed(listed=tuple(wanted), excluded=()))
                return
            self._check_multipath()
            kept = {e.address for e in wanted}
            before = self._usable_addresses()
            self.add_addresses(wanted)
            gone: list[AddressLike] = [Endpoint(a) for a in before if a not in kept]
            initial = self._initial_local().address
            if initial not in kept and initial not in before:
                gone.append(Endpoint(initial))
            if gone:
                self.remove_addresses(gone)

    def add_address(self, address: AddressLike, port: int = 0) -> None:
        """As ``add_addresses`` with one address; but during the connection it is announced to the peer (ADD_ADDR), whatever
        the path manager thinks of it. PathError EAGAIN before the peer has acknowledged data."""
        local = to_local(address)
        if port:
            local = Endpoint(local.address, port)
        with self.event_lock:
            if not self._has_connection():
                self.add_addresses([local])
                return
            self._check_multipath()
            self._announce(local)

    def remove_address(self, address: AddressLike) -> None:
        """As ``remove_addresses`` with one address."""
        self.remove_addresses([address])

    def check_addresses(self, addresses: Iterable[AddressLike]) -> None:
        """PathError where ``add_addresses`` would raise it; changes nothing."""
        with self.event_lock:
            self._check_local([to_local(address) for address in addresses])

    # --- TCP_MULTIPATH_SUBFLOWS, _CONNID -----------------------------------------------------------------------------
    def subflow_addresses(self) -> list[tuple[SocketAddress, SocketAddress]]:
        """(local, remote) of every established subflow. OSError ENOTCONN, EOPNOTSUPP (regular TCP)."""
        with self.event_lock:
            return [(as_address(local), as_address(remote)) for local, remote in self._pairs()]

    # --- options -----------------------------------------------------------------------------------------------------
    def _set_extended(self, level: int, optname: int, value: int | bytes) -> bool:
        """With the lock: an option of this or the enhanced API; False: it is another."""
        if (level, optname) == (std.SOL_SOCKET, std.SO_BINDTODEVICE):
            if isinstance(value, int):
                raise os_error(errno.EINVAL)
            self._bind_to_device(value.partition(b"\0")[0].decode(errors="replace"))
            return True
        if level != std.IPPROTO_TCP:
            return False
        if optname in ENHANCED_OPTIONS:
            self._set_enhanced(optname, value)
            return True
        if optname not in BASIC_OPTIONS:
            return False
        if optname == TCP_MULTIPATH_ENABLE:
            self.multipath_enabled = bool(opt.to_int(value))
        elif optname == MPTCP_EVENTS:
            self._subscribe(check_subscription(opt.to_int(value)))
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
        if optname not in BASIC_OPTIONS:
            return None
        if optname == TCP_MULTIPATH_ENABLE:
            return int(self.multipath_enabled)
        if optname == MPTCP_EVENTS:
            return self._settings.events
        if optname == TCP_MULTIPATH_CONNID:
            self._check_established()
            return struct.pack("=I", self.connection_id)
        if optname == TCP_MULTIPATH_SUBFLOWS:
            packed = structures.pack_pairs(self._pairs())
            size = argument if isinstance(argument, int) else len(argument)
            if size < len(packed):
                raise PathError(f"the subflows need a buffer of {len(packed)} octets")
            return packed
        raise os_error(errno.ENOPROTOOPT)  # ADD, REMOVE and BIND can only be set

    def _subscribe(self, mask: int) -> None:
        self._settings = self._settings.changed(events=mask)

    # --- what a stack's socket does, with the lock where it begins with an underscore ---------------------------------
    @property
    @abstractmethod
    def connection_id(self) -> int:
        """RFC 6897 §5.3.5: a number for the connection, unique on this host: its token; 0 where there is none."""

    @abstractmethod
    def local_addresses(self) -> list[SocketAddress]:
        """What the connection may use now, in order of preference; before it: what was bound or added ([]: anything)."""

    @abstractmethod
    def remote_addresses(self) -> list[SocketAddress]:
        """Addresses of the peer, the first one first: announced by it, used by a subflow, or told to ``connect``."""

    @abstractmethod
    def note_remotes(self, remotes: Sequence[Endpoint]) -> None:
        """Further addresses of the very peer this socket connects to: subflows may go there."""

    @abstractmethod
    def _has_connection(self) -> bool:
        """There is one, or one is being made."""

    @abstractmethod
    def _uses_multipath(self) -> bool | None:
        """Of an established connection; None without one."""

    @abstractmethod
    def _will_use_multipath(self) -> bool:
        """Whether a connection that begins now is to try it."""

    @abstractmethod
    def _change_settings(self, settings: MultipathSettings) -> None:
        """Before the connection; a listener acts on it for what it accepts from now on."""

    @abstractmethod
    def _check_local(self, wanted: Sequence[Endpoint]) -> None:
        """Each is a usable address of this stack, with a port one may have. PathError."""

    @abstractmethod
    def _check_established(self) -> None:
        """OSError ENOTCONN, PathError EOPNOTSUPP (regular TCP)."""

    @abstractmethod
    def _pairs(self) -> list[tuple[Endpoint, Endpoint]]:
        """RFC 6897 §5.3.4: "The list MUST only include established subflows." Errors: of ``_check_established``."""

    @abstractmethod
    def _initial_local(self) -> Endpoint: ...

    @abstractmethod
    def _usable_addresses(self) -> list[bytes]:
        """What the connection may use now."""

    @abstractmethod
    def _is_of_connection(self, address: bytes) -> bool:
        """The connection may use this address, or does."""

    @abstractmethod
    def _add_to_connection(self, wanted: Sequence[Endpoint]) -> None: ...

    @abstractmethod
    def _remove_from_connection(self, wanted: Sequence[Endpoint]) -> None: ...

    @abstractmethod
    def _announce(self, local: Endpoint) -> None:
        """PathError EAGAIN before the connection is fully established; EADDRNOTAVAIL."""

    @abstractmethod
    def _bind_to_device(self, name: str) -> None:
        """ "": to none. PathError: ENODEV, EISCONN."""


def family_of(endpoint: Endpoint) -> int:
    return int(std.AF_INET if endpoint.family == 4 else std.AF_INET6)


def as_address(endpoint: Endpoint) -> SocketAddress:
    """In the form of its own family."""
    return from_endpoint(family_of(endpoint), endpoint)
