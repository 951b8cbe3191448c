"""Which of the host's addresses one connection may use (RFC 6897 §5.3.3), and how it takes leave of one."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from mptcp.core.units import NEVER, SECOND
from mptcp.core.wire.mptcp_options import RemoveAddr
from mptcp.errors import PathError
from mptcp.info import Endpoint

if TYPE_CHECKING:
    from mptcp.core.multipath.connection import Connection
    from mptcp.core.multipath.environment import Environment
    from mptcp.core.multipath.subflow import Subflow

#: How long an address that is being removed is kept for an alternative subflow to be established.
ALTERNATIVE_PATIENCE_US = 3 * SECOND

#: Addresses that one connection is restricted to, or denied.
MAX_LISTED_ADDRESSES = 64


class LocalAddresses:
    """Made for a connection whose application has said something about addresses; others may use all of the host's."""

    __slots__ = ("_excluded", "_ports", "departing", "restricted", "returning", "unsent")

    def __init__(self, listed: Iterable[Endpoint] | None = None, excluded: Iterable[bytes] = ()) -> None:
        self.restricted = listed is not None  # to those listed; else to all of the host's, and those listed
        self._ports = {endpoint.address: endpoint.port for endpoint in listed or ()}
        self._excluded = set(excluded)
        self.departing: dict[bytes, int] | None = None  # address -> when it goes, alternative or not
        self.returning: set[bytes] | None = None  # added while subflows from there are still being closed
        self.unsent: list[RemoveAddr] | None = None  # nobody could carry it

    def usable(self, environment: Environment) -> list[bytes]:
        """In order of preference: as listed, or as the host got them."""
        result = [] if self.restricted else [a for a in environment.local_addresses() if a not in self._excluded]
        for address in self._ports:
            if address not in self._excluded and address not in result and environment.route(address) is not None:
                result.append(address)
        return result

    def port(self, address: bytes) -> int:
        """The port the application wants subflows from ``address`` to have; 0: any."""
        return self._ports.get(address, 0)

    def add(self, local: Endpoint) -> None:
        if len(self._ports) >= MAX_LISTED_ADDRESSES and local.address not in self._ports:
            raise PathError(f"a connection takes {MAX_LISTED_ADDRESSES} addresses", errno.ENOBUFS)
        self._ports[local.address] = local.port
        self._excluded.discard(local.address)

    def exclude(self, address: bytes) -> None:
        if len(self._excluded) >= MAX_LISTED_ADDRESSES and address not in self._excluded:
            raise PathError(f"{MAX_LISTED_ADDRESSES} addresses are excluded already", errno.ENOBUFS)
        self._ports.pop(address, None)
        self._excluded.add(address)

    def deadline(self) -> int:
        return min(self.departing.values()) if self.departing else NEVER


def usable_addresses(connection: Connection) -> Sequence[bytes]:
    """Those that this connection may use now."""
    policy = connection.paths.local
    return connection.environment.local_addresses() if policy is None else policy.usable(connection.environment)


def allows(connection: Connection, address: bytes) -> bool:
    """Whether the peer may join at ``address``."""
    policy = connection.paths.local
    if address == connection.local.address and (policy is None or not policy.departing):
        return True
    return address in usable_addresses(connection)


def add_local(connection: Connection, local: Endpoint, now: int, *, tell_manager: bool = True) -> None:
    """The connection may use ``local`` from now on (port 0: any), and the path manager hears of it."""
    if not connection.is_multipath:
        raise PathError(f"this connection is regular TCP: {connection.fallback_reason}", errno.EOPNOTSUPP)
    # RFC 6897 §7: "These functions don't add security threats if the MPTCP stack verifies that the addresses provided
    # by the application are indeed available as source addresses for subflows."
    if connection.environment.route(local.address) is None:
        raise PathError(f"{local.host} is not a usable address of this host", errno.EADDRNOTAVAIL)
    policy = _policy(connection)
    policy.add(local)
    if policy.departing:
        policy.departing.pop(local.address, None)
    if connection.is_fully_established and tell_manager:
        if any(subflow.closing for subflow in _from(connection, local.address)):
            policy.returning = {*(policy.returning or ()), local.address}
        paths = connection.paths
        paths.run(paths.manager.on_local_address(paths.facts(now), local.address, True), now)
        connection.touch()


def remove_local(connection: Connection, address: bytes, now: int) -> None:
    """The connection uses ``address`` no more: alternatives first, then its subflows are closed, then REMOVE_ADDR."""
    if not connection.is_multipath:
        raise PathError(f"this connection is regular TCP: {connection.fallback_reason}", errno.EOPNOTSUPP)
    known = address in usable_addresses(connection) or connection.paths.knows_local(address)
    if not known and not _from(connection, address):
        raise PathError(f"{Endpoint(address).host} is no address of this connection", errno.EADDRNOTAVAIL)
    policy = _policy(connection)
    policy.exclude(address)
    if policy.departing is None:
        policy.departing = {}
    policy.departing[address] = now + ALTERNATIVE_PATIENCE_US
    if connection.is_fully_established:
        # RFC 6897 §5.3.3: "If alternative paths are available using the supplied address list but MPTCP is not currently
        # using them, an MPTCP implementation SHOULD establish alternative subflows before undertaking the address
        # removal."
        if _from(connection, address) and not _works_elsewhere(connection) and _open_alternatives(connection, now):
            connection.touch()
            return
        depart_if_possible(connection, now)
    connection.touch()


def depart_if_possible(connection: Connection, now: int) -> None:
    """Addresses that are to go do so once something else works, nothing else is under way, or the time has come."""
    policy = connection.paths.local
    if policy is None or not policy.departing or not connection.is_fully_established:
        return
    waiting = not _works_elsewhere(connection) and _is_under_way(connection)
    for address, deadline in list(policy.departing.items()):
        if waiting and now < deadline and _from(connection, address):
            continue
        del policy.departing[address]
        # RFC 6897 §5.3.3: "MPTCP MUST close any corresponding subflows (i.e., those using the local address that is no
        # longer present) and signal the removal of the address to the peer."
        for subflow in _from(connection, address):
            if subflow.pending:
                subflow.close_reason = "local"
                connection.break_subflow(subflow, None)
            elif not subflow.closing:
                connection.close_subflow(subflow.id, now)
        if connection.paths.knows_local(address):
            connection.paths.withdraw(address, now)


def return_if_possible(connection: Connection, address: bytes, now: int) -> None:
    """A subflow from ``address`` is over: if it was the last one of an address that was added again, that one is new."""
    policy = connection.paths.local
    if policy is None or not policy.returning or address not in policy.returning or _from(connection, address):
        return
    policy.returning.discard(address)
    paths = connection.paths
    paths.run(paths.manager.on_local_address(paths.facts(now), address, True), now)


def _policy(connection: Connection) -> LocalAddresses:
    if connection.paths.local is None:
        connection.paths.local = LocalAddresses()
    return connection.paths.local


def _from(connection: Connection, address: bytes) -> list[Subflow]:
    return [s for s in connection.open_subflows() if s.tcp.local.address == address]


def _works_elsewhere(connection: Connection) -> bool:
    """A subflow from an address that stays can carry data."""
    usable = usable_addresses(connection)
    return any(s.is_usable and s.tcp.local.address in usable for s in connection.open_subflows())


def _is_under_way(connection: Connection) -> bool:
    """A subflow from an address that stays is being set up, or the peer has been asked for one."""
    usable = usable_addresses(connection)
    return any(s.pending and s.tcp.local.address in usable for s in connection.open_subflows()) or (
        not connection.is_client and bool(usable)
    )


def _open_alternatives(connection: Connection, now: int) -> bool:
    """The client opens subflows from every address that is left, the server asks for them; False: there is none."""
    begun = False
    paths = connection.paths
    for address in usable_addresses(connection):
        if not connection.is_client:
            # It could open them itself, but a client is often behind a box that lets no connection in.
            paths.announce(Endpoint(address, paths.local_port(address)), now)
            begun = True
            continue
        for remote in paths.facts(now).remote_endpoints:
            if len(remote.address) == len(address):
                try:
                    connection.open_subflow(Endpoint(address, paths.local_port(address)), remote, now)
                    begun = True
                    break
                except PathError:
                    connection.counters.bump("alternative_subflow_failed")
    return begun
