"""The stack of this package: TCP and MPTCP in user space, over links."""

from __future__ import annotations

import atexit
import errno
import os
import socket as std
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from mptcp.core.counters import Counters
from mptcp.core.entropy import Entropy
from mptcp.core.host import Host, HostConfig
from mptcp.core.multipath.config import DEFAULT_CONFIG, ConnectionConfig
from mptcp.core.multipath.local_addresses import usable_addresses
from mptcp.core.tcp.states import State
from mptcp.core.units import MILLISECOND, SECOND
from mptcp.errors import ConfigurationError, PathError
from mptcp.info import Endpoint
from mptcp.runtime.pump import Pump
from mptcp.runtime.waiting import Source
from mptcp.sockets.address import os_error
from mptcp.sockets.advanced import AdvancedSettings
from mptcp.sockets.base import Stack, Support
from mptcp.sockets.legacy import AWARE_SETTINGS, LegacyPolicy, MultipathSettings
from mptcp.sockets.options import IPPROTO_MPTCP, SocketOptions
from mptcp.sockets.policy import Policy
from mptcp.sockets.ports import Ports
from mptcp.sockets.profiles import profile_known
from mptcp.sockets.publish import Publisher
from mptcp.sockets.socket import Socket
from mptcp.sockets.state import CLOSED
from mptcp.sockets.supported import is_known, unknown, user_option

if TYPE_CHECKING:
    from mptcp.core.multipath.connection import Connection
    from mptcp.links.base import Link

#: Seconds that ``close`` gives connections the program has closed to deliver what it has written.
DRAIN_S = 5.0

#: How long it waits, when all data is delivered, for the peers to acknowledge the end of the stream ...
END_US = 1 * SECOND

#: ... and for them to close, too.
LAST_WORD_US = 200 * MILLISECOND

_IN_ITS_PROCESS = Support(False, "a connection lives in its process", "use the kernel's stack to hand sockets on")

#: What this stack cannot do, and what to use instead. Everything else that a socket here has works.
_UNSUPPORTED = {
    "SO_REUSEPORT": Support(False, "a port cannot be shared with other processes", "use one server and threads"),
    "inheritable": _IN_ITS_PROCESS,
    "set_inheritable": _IN_ITS_PROCESS,
    "dup": Support(False, "a connection has one object", "share it, or use the kernel's stack"),
    "ktls": Support(False, "the kernel does not see the connection", "use mptcp.wrap_socket"),
}


class UserStack(Stack):
    """``with UserStack([link], {"link-name": ["10.0.1.2"]}) as stack: ...``

    ``addresses``: for every link by its name, or for the only one, its addresses as text; a prefix length is allowed
    and ignored. ``seed``: for reproducible tests; None: from the operating system, as security needs. ``config``: what
    connections start with. ``hidden``: those addresses that are neither announced nor used unless a program names them.
    ``legacy_policy``: how sockets are treated that have not asked for MPTCP. ``policy``: whether and how MPTCP is used for
    whom; None: as the environment says (``Policy.from_environment``). The links belong to the stack and are
    closed with it.
    """

    name = "user"
    _socket_class: type[Socket] = Socket

    def __init__(
        self,
        links: Sequence[Link],
        addresses: Mapping[str, Sequence[str]] | Sequence[str] | None = None,
        *,
        seed: bytes | int | None = None,
        config: ConnectionConfig = DEFAULT_CONFIG,
        host_config: HostConfig | None = None,
        background: bool = True,
        hidden: Sequence[str] = (),
        legacy_policy: LegacyPolicy | None = None,
        policy: Policy | None = None,
    ) -> None:
        if not links:
            raise ConfigurationError("a stack needs at least one link")
        by_name = _addresses_by_link(links, addresses)
        host = Host(Entropy(os.urandom(32) if seed is None else seed), host_config or HostConfig())
        numbered = [(link, host.add_interface(link.name, link.mtu, link.gso_max_bytes)) for link in links]
        concealed = {text.partition("/")[0] for text in hidden}
        unknown = concealed.difference(*by_name.values())
        if unknown:
            raise ConfigurationError(f"hidden addresses are addresses of the stack: {', '.join(sorted(unknown))}")
        self._set_up(Pump(host, numbered, background=background), config, legacy_policy, policy)
        with self.pump.lock:
            now = self.pump.clock()
            for link, index in numbered:
                for address in by_name[link.name]:
                    host.add_address(address, index, now, address in concealed)
            self.pump.flush()

    def _set_up(
        self,
        pump: Pump,
        config: ConnectionConfig,
        legacy_policy: LegacyPolicy | None = None,
        policy: Policy | None = None,
    ) -> None:
        self.config = config
        self.policy = policy if policy is not None else Policy.from_environment()
        self.legacy_policy = legacy_policy or self.policy.legacy
        self.policy.bound_failures(pump.host.failures)
        self._legacy_given = legacy_policy
        self.pump = pump
        self.ports = Ports(pump)
        self._detached: dict[int, Socket] = {}
        _stacks.add(self)

    def __repr__(self) -> str:
        return f"<UserStack over {', '.join(port.link.name for port in self.pump.ports)}>"

    @property
    def counters(self) -> Counters:
        """A copy of the host's counters: what was dropped, refused or worked around, by name."""
        with self.pump.lock:
            return Counters(self.pump.counters)

    def outer(self, local: Endpoint, remote: Endpoint) -> tuple[Endpoint, Endpoint]:
        """The addresses of a subflow as the network below sees them: the same, unless this stack has some of its own."""
        return local, remote

    def publish(self, program: str = "") -> Publisher:
        """Other processes of this user can look at the stack (``mptcp ls --stack user``) until the result is closed.

        ``program``: what it is called there; by default what is run. OSError where no socket can be made.
        """
        return Publisher(self, program)

    def set_policy(self, policy: Policy) -> None:
        """For connections and listeners that begin from now on; a ``legacy_policy`` given to the stack stays."""
        with self.pump.lock:
            self.policy = policy
            self.legacy_policy = self._legacy_given or policy.legacy
            policy.bound_failures(self.pump.host.failures)

    def supports(self, feature: str) -> Support:
        if feature in _UNSUPPORTED:
            return _UNSUPPORTED[feature]
        if feature.startswith("profile:"):
            return profile_known(feature.removeprefix("profile:"))
        return user_option(feature) if is_known(feature) else unknown(feature)

    # --- sockets -----------------------------------------------------------------------------------------------------
    def socket(
        self,
        family: int = std.AF_INET,
        type: int = std.SOCK_STREAM,  # noqa: A002 the standard library's name
        proto: int = 0,
        *,
        config: ConnectionConfig | None = None,
        fileno: int | None = None,
    ) -> Socket:
        """``proto`` 0 or IPPROTO_TCP: MPTCP as the stack's ``config`` says, and as RFC 6897 §4 has it for programs that do
        not know of MPTCP. IPPROTO_MPTCP, or a ``config`` of its own: the program does, so that a bind to one address only
        restricts MPTCP to it.

        ``fileno``: a descriptor that ``detach`` has returned.
        """
        self.pump.check()
        if fileno is not None:
            with self.pump.lock:
                detached = self._detached.pop(fileno, None)
            if detached is None:
                raise os_error(errno.EBADF)
            return detached
        if family not in (std.AF_INET, std.AF_INET6):
            raise os_error(errno.EAFNOSUPPORT)
        nonblocking = bool(type & std.SOCK_NONBLOCK)
        if type & ~(std.SOCK_NONBLOCK | std.SOCK_CLOEXEC) != std.SOCK_STREAM:
            raise os_error(errno.ESOCKTNOSUPPORT)
        if proto not in (0, -1, std.IPPROTO_TCP, IPPROTO_MPTCP):
            raise os_error(errno.EPROTONOSUPPORT)
        sock = self._socket_class(self, family, proto, config or self.config)
        if proto == IPPROTO_MPTCP or config is not None:
            sock._settings = AWARE_SETTINGS
        if nonblocking:
            sock.setblocking(False)
        return sock

    def adopt(
        self,
        connection: Connection,
        family: int,
        config: ConnectionConfig,
        options: SocketOptions,
        settings: MultipathSettings,
        advanced: AdvancedSettings,
    ) -> Socket:
        """With the lock: a socket for a connection that a listener has accepted."""
        sock = self._socket_class(self, family, 0, config)
        sock.adopt(connection, options, settings, advanced)
        return sock

    def give_up(self, sock: Socket, fd: int) -> None:
        """With the lock: keeps what ``sock`` was for ``socket(fileno=fd)``."""
        self._detached[fd] = sock

    def other_local(self, connection: Connection, remote: Endpoint) -> Endpoint | None:
        """With the lock: an address that no subflow to ``remote`` uses yet; None: there is none."""
        used = {s.local.address for s in connection.subflows() if s.remote == remote}
        for address in usable_addresses(connection):
            if len(address) == len(remote.address) and address not in used:
                return Endpoint(address)
        return None

    def any_local(self, connection: Connection, remote: Endpoint) -> Endpoint | None:
        """With the lock: an address from which ``remote`` can be reached, in use or not."""
        return next((Endpoint(a) for a in usable_addresses(connection) if len(a) == len(remote.address)), None)

    # --- addresses ---------------------------------------------------------------------------------------------------
    def add_address(self, address: str, link: str, *, hidden: bool = False) -> None:
        """The stack answers to ``address`` on that link from now on, and may use it for further subflows; a hidden one
        only where a program names it."""
        with self.pump.lock:
            self.pump.check()
            self.pump.host.add_address(address.partition("/")[0], self._interface(link), self.pump.clock(), hidden)
            self.pump.flush()

    def remove_address(self, address: str) -> None:
        """The address is gone: its subflows are closed, peers hear of it over the others."""
        with self.pump.lock:
            self.pump.check()
            self.pump.host.remove_address(address.partition("/")[0], self.pump.clock())
            self.pump.flush()

    def set_link_up(self, link: str, up: bool) -> None:
        with self.pump.lock:
            self.pump.check()
            self.pump.host.set_interface_up(self._interface(link), up, self.pump.clock())
            self.pump.flush()

    def interfaces(self) -> list[tuple[int, str]]:
        """(``if_idx``, name) of every link, as ``socket.if_nameindex`` gives them; the first is 1."""
        return [(port.index + 1, port.link.name) for port in self.pump.ports]

    def interface_index(self, interface: str | int) -> int:
        """Where the host has it: of a name, or of ``if_idx``; -1 for 0 or "". PathError: ENODEV, ENETDOWN."""
        index = -1
        if isinstance(interface, str):
            if not interface:
                return -1
            index = next((port.index for port in self.pump.ports if port.link.name == interface), -1)
        elif interface == 0:
            return -1
        elif any(port.index == interface - 1 for port in self.pump.ports):
            index = interface - 1
        if index < 0:
            names = ", ".join(f"{number} {name!r}" for number, name in self.interfaces())
            raise PathError(f"no link is {interface!r}: there are {names}", errno.ENODEV)
        if not self.pump.host.interfaces[index].is_up:
            raise PathError(f"the link {interface!r} is down", errno.ENETDOWN)
        return index

    def addresses_of(self, link: str) -> list[Endpoint]:
        """With the lock: the usable addresses on a link, in the order they were given; hidden ones are not among them."""
        host = self.pump.host
        index = self.interface_index(link)
        return [Endpoint(address) for address in host.local_addresses() if host.interface_of(address) == index]

    def _interface(self, link: str) -> int:
        for port in self.pump.ports:
            if port.link.name == link:
                return port.index
        raise ConfigurationError(f"no link is called {link!r}")

    # --- end ---------------------------------------------------------------------------------------------------------
    def close(self, drain: float = DRAIN_S) -> None:
        """Connections the program has closed get up to ``drain`` seconds to deliver what was written; all others are
        aborted. Then the links are closed. Later calls of sockets of this stack fail with ENETDOWN."""
        pump = self.pump
        _stacks.discard(self)
        if pump.unusable:
            pump.close()
            return
        with pump.lock:
            pump.closing = True
            host = pump.host
            now = pump.clock()
            for listener in list(host.listeners.values()):
                host.close_listener(listener, now)
            for connection in list(host.connections):
                if connection.owner is not None:
                    connection.abort(now)
            pump.flush()
            source = _Drain()
            most = int(drain * SECOND)
            for condition, limit_us in ((_is_acknowledged, most), (_is_delivered, END_US), (_is_over, LAST_WORD_US)):
                holds = partial(_all, condition, host)
                if not pump.wait(source, holds, pump.clock() + min(most, limit_us)) and limit_us == most:
                    break
            for connection in list(host.connections):
                # One that has delivered everything is left alone: a reset could take from the peer what it has not
                # read yet.
                if not _is_delivered(connection):
                    connection.abort(pump.clock())
            pump.flush()
        pump.close()


def _all(condition: Callable[[Connection], bool], host: Host) -> bool:
    return all(map(condition, host.connections))


def _is_acknowledged(connection: Connection) -> bool:
    """The peer has all the data."""
    return connection.state is CLOSED or not connection.buffered_bytes


def _is_over(connection: Connection) -> bool:
    return connection.state is CLOSED


def _is_delivered(connection: Connection) -> bool:
    """The peer has everything, our end of stream included."""
    if connection.state is CLOSED:
        return True
    if connection.buffered_bytes:
        return False
    if connection.is_multipath:
        return connection.data_sender.fin_acked
    return all(s.tcp.state in _FIN_ACKED for s in connection.subflows_by_id.values())


_FIN_ACKED = (State.FIN_WAIT_2, State.TIME_WAIT, State.CLOSED)


class _Drain(Source):
    """Waits for all connections at once; its thread drives, nobody needs to tell it."""

    __slots__ = ()

    def handle_ready(self) -> None:
        return


def _addresses_by_link(
    links: Sequence[Link], addresses: Mapping[str, Sequence[str]] | Sequence[str] | None
) -> dict[str, list[str]]:
    names = [link.name for link in links]
    if len(set(names)) != len(names):
        raise ConfigurationError(f"links need names of their own: {', '.join(names)}")
    if addresses is None:
        given: dict[str, Sequence[str]] = {link.name: getattr(link, "addresses", ()) for link in links}
    elif isinstance(addresses, Mapping):
        given = dict(addresses)
    elif len(links) == 1:
        given = {names[0]: [addresses] if isinstance(addresses, str) else addresses}
    else:
        raise ConfigurationError("with several links, say which address is on which: {link name: [address, ...]}")
    for name in given:
        if name not in names:
            raise ConfigurationError(f"no link is called {name!r}: there are {', '.join(names)}")
    result = {}
    for name in names:
        texts = given.get(name, ())
        result[name] = [str(a).partition("/")[0] for a in ([texts] if isinstance(texts, str) else texts)]
    if not any(result.values()):
        raise ConfigurationError("a stack needs at least one address")
    return result


_stacks: weakref.WeakSet[UserStack] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """What a program has written and closed is delivered even if it forgets to close its stack."""
    for stack in list(_stacks):
        stack.close()
