"""Addresses of both ends and what to do about them (RFC 8684 §3.4): ADD_ADDR, REMOVE_ADDR, MP_PRIO, the path manager."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mptcp.core.multipath import keys, local_addresses
from mptcp.core.multipath.events import EventKind
from mptcp.core.multipath.local_addresses import LocalAddresses
from mptcp.core.multipath.special_addresses import is_special
from mptcp.core.path_managers.base import (
    Action,
    AnnounceAddress,
    CloseSubflow,
    Facts,
    OpenSubflow,
    PathManager,
    SetBackup,
    WithdrawAddress,
)
from mptcp.core.path_managers.fullmesh import FullMesh
from mptcp.core.wire.mptcp_options import AddAddr, MpPrio, RemoveAddr
from mptcp.errors import PathError
from mptcp.info import Endpoint

if TYPE_CHECKING:
    from mptcp.core.multipath.connection import Connection
    from mptcp.core.multipath.subflow import Subflow

#: Actions of a path manager carried out for one call; more is a fault of the manager and is counted.
MAX_ACTIONS = 64

#: Keep-alives that a subflow must answer after REMOVE_ADDR to be kept. What arrives after the first may have been under
#: way when the address vanished.
REMOVAL_PROBES = 2


class _Announcement:
    __slots__ = ("deadline", "option", "tries")

    def __init__(self, option: AddAddr, deadline: int) -> None:
        self.option = option
        self.deadline = deadline
        self.tries = 0


class _Removal:
    """A subflow whose address the peer has removed, while it is found out whether it still works."""

    __slots__ = ("deadline", "heard", "probes", "subflow")

    def __init__(self, subflow: Subflow) -> None:
        self.subflow = subflow
        self.probes = 0
        self.deadline = self.heard = 0

    def probe(self, now: int) -> None:
        tcp = self.subflow.tcp
        tcp.send_keepalive(now)
        self.probes += 1
        self.heard = tcp.segments_received
        self.deadline = now + 2 * tcp.sender.rtt.rto_us


class PathManagement:
    """One per connection. Address identifiers are per connection; 0 is the address of the first subflow."""

    __slots__ = ("_announced", "_connection", "_local_ids", "_remote", "_removals", "local", "manager")

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        factory = connection.config.path_manager
        self.manager: PathManager = factory() if factory is not None else FullMesh(connection.config.max_subflows)
        config = connection.config
        self.local: LocalAddresses | None = None  # None: every address of the host may be used
        if config.local_addresses is not None or config.excluded_addresses:
            self.local = LocalAddresses(config.local_addresses, config.excluded_addresses)
        self._local_ids: dict[bytes, int] | None = None
        self._remote: dict[int, Endpoint] | None = None  # announced by the peer
        self._announced: dict[int, _Announcement] | None = None  # waiting for their echo
        self._removals: list[_Removal] | None = None

    # --- address identifiers ------------------------------------------------------------------------------------------
    def local_id(self, address: bytes) -> int:
        """The identifier of one of our addresses, a new one if it has none yet; -1 when all 255 are in use."""
        if address == self._connection.local.address:
            return 0
        ids = self._local_ids
        if ids is None:
            ids = self._local_ids = {}
        known = ids.get(address)
        if known is not None:
            return known
        for candidate in range(1, 256):
            if candidate not in ids.values():
                ids[address] = candidate
                return candidate
        return -1

    def knows_local(self, address: bytes) -> bool:
        """Whether the peer may know ``address``: it is the first subflow's, or has an identifier."""
        return address == self._connection.local.address or address in (self._local_ids or {})

    def local_port(self, address: bytes) -> int:
        """The port that the application wants subflows from ``address`` to have; 0: any."""
        return self.local.port(address) if self.local is not None else 0

    def note_remote(self, remote: Endpoint, now: int) -> None:
        """The application knows another address of the peer (``sctp_connectx``); the path manager may use it."""
        known = self._remote
        if known is None:
            known = self._remote = {}
        if remote not in known.values() and len(known) < self._connection.config.max_remote_addresses:
            known[-1 - len(known)] = remote  # the peer has told no identifier for it
            if self._connection.is_fully_established:
                self.run(self.manager.on_remote_address(self.facts(now), remote), now)

    def remotes(self) -> list[Endpoint]:
        """Where subflows to the peer may go, as far as known."""
        return [self._connection.remote, *(e for e in (self._remote or {}).values() if e != self._connection.remote)]

    def remote_id(self, remote: Endpoint) -> int:
        """The identifier under which the peer announced ``remote``; 0 for its first address, and when unknown."""
        for address_id, endpoint in (self._remote or {}).items():
            if endpoint.address == remote.address and address_id >= 0:
                return address_id
        return 0

    def facts(self, now: int) -> Facts:
        connection = self._connection
        remotes = [] if connection.remote_denies_join else [connection.remote]
        remotes += [e for e in (self._remote or {}).values() if e not in remotes]
        usable, excluded = local_addresses.usable_addresses(connection), connection.config.excluded_networks
        remotes = [e for e in remotes if not is_special(e.address, excluded)]
        return Facts(
            connection.is_client, [a for a in usable if not is_special(a, excluded)], remotes, connection.local,
            connection.remote, [s.path for s in connection.open_subflows()], now,
        )  # fmt: skip

    # --- timers -----------------------------------------------------------------------------------------------------
    def deadline(self) -> int:
        result = self.manager.deadline()
        if self._announced:
            result = min(result, *(announcement.deadline for announcement in self._announced.values()))
        if self._removals:
            result = min(result, *(removal.deadline for removal in self._removals))
        return result if self.local is None else min(result, self.local.deadline())

    def handle_timeout(self, now: int) -> None:
        connection = self._connection
        announced = self._announced or {}
        for address_id, announcement in list(announced.items()):
            if announcement.deadline > now:
                continue
            # RFC 8684 §3.4.1: "the lack of this type of "echo" can indicate to the initial ADD_ADDR sender that the
            # ADD_ADDR needs to be retransmitted."
            announcement.tries += 1
            if announcement.tries > self._connection.config.announce_retries:
                del announced[address_id]
                continue
            announcement.deadline = now + (self._connection.config.announce_retry_us << announcement.tries)
            self._signal(announcement.option)
        removals = self._removals or []
        for removal in list(removals):
            if removal.deadline > now:
                continue
            subflow = removal.subflow
            heard = subflow.tcp.segments_received != removal.heard
            if heard and removal.probes < REMOVAL_PROBES and not subflow.tcp.is_over:
                removal.probe(now)
                continue
            removals.remove(removal)
            if not heard:
                # RFC 8684 §3.4.2: "(if no keepalive response was received) ... SHOULD trigger the sending of RSTs"
                subflow.close_reason = "address-removed"
                self._connection.break_subflow(subflow, None)
        if self.manager.deadline() <= now:
            self.run(self.manager.on_timer(self.facts(now)), now)
        if self.local is not None:
            local_addresses.depart_if_possible(connection, now)

    # --- the path manager's wishes ------------------------------------------------------------------------------------
    def run(self, actions: Sequence[Action], now: int) -> None:
        connection = self._connection
        for number, action in enumerate(actions):
            if number >= MAX_ACTIONS:
                connection.counters.bump("path_manager_actions_dropped")
                return
            try:
                match action:
                    case OpenSubflow(local, remote, backup):
                        if not local.port and self.local is not None:
                            # RFC 6897 §5.3.3: "An application MAY also indicate a TCP port number that, if specified,
                            # MPTCP MUST attempt to bind to."
                            local = Endpoint(local.address, self.local.port(local.address))
                        connection.open_subflow(local, remote, now, backup=backup)
                    case CloseSubflow(subflow_id, reset):
                        connection.close_subflow(subflow_id, now, reset=reset)
                    case AnnounceAddress(local):
                        self.announce(Endpoint(local.address, local.port or self.local_port(local.address)), now)
                    case WithdrawAddress(address):
                        self.withdraw(address, now)
                    case SetBackup(subflow_id, backup):
                        connection.set_backup(subflow_id, backup, now)
            except PathError:
                # What a manager asks for may have become impossible in the meantime; it hears of it as a fact.
                connection.counters.bump("path_manager_action_failed")

    def replace(self, manager: PathManager, now: int) -> None:
        """Another manager takes over; it hears of what there is as of a connection just established."""
        self.manager = manager
        connection = self._connection
        # A peer that has joined need not have sent data yet.
        ready = connection.is_fully_established or len(connection.subflows_by_id) > 1
        if ready and connection.is_multipath and not connection.is_closing:
            self.run(manager.on_established(self.facts(now)), now)
        self._connection.touch()

    def watch_data(self, now: int) -> None:
        """Data may have moved, and the manager wants to know how much there is."""
        connection = self._connection
        if not connection.is_fully_established or connection.is_closing:
            return
        sender = connection.data_sender
        sent = sender.nxt - connection.first_dsn
        if self.manager.is_needed(sent + connection.data_receiver.bytes_received, sender.stream.length, now):
            self.run(self.manager.on_needed(self.facts(now)), now)

    def subflow_failing(self, subflow: Subflow, now: int) -> None:
        connection = self._connection
        if connection.is_fully_established and connection.is_multipath and not connection.is_closing:
            timeouts = subflow.tcp.sender.consecutive_timeouts
            self.run(self.manager.on_subflow_failing(self.facts(now), subflow.id, timeouts), now)

    def fully_established(self, now: int) -> None:
        self.run(self.manager.on_established(self.facts(now)), now)
        if self.local is not None:
            local_addresses.depart_if_possible(self._connection, now)

    def local_address(self, address: bytes, available: bool, now: int, interface_down: bool = False) -> None:
        """An address of the host came or went, the latter perhaps because its interface is down."""
        connection = self._connection
        kind = EventKind.LOCAL_ADDRESS_AVAILABLE if available else EventKind.LOCAL_ADDRESS_UNAVAILABLE
        interface = connection.environment.interface_of(address) + 1
        connection.event(kind, now, local=Endpoint(address), interface=interface)
        connection.touch()
        if not available:
            for subflow in connection.open_subflows():
                if subflow.pinned and interface_down and subflow.interface + 1 != interface:
                    continue  # it leaves by another interface
                if subflow.tcp.local.address == address:
                    subflow.close_reason = "address-removed"
                    connection.break_subflow(subflow, None)
            if address in (self._local_ids or {}) or address == connection.local.address:
                # RFC 8684 §3.4.2: "if ... a previously announced address becomes invalid ... the affected host SHOULD
                # announce this situation so that the peer can remove subflows related to this address"
                self.withdraw(address, now)
        if connection.is_fully_established and (
            not available or address in local_addresses.usable_addresses(connection)
        ):
            self.run(self.manager.on_local_address(self.facts(now), address, available), now)

    # --- announcing -------------------------------------------------------------------------------------------------
    def announce(self, local: Endpoint, now: int) -> int:
        """Tells the peer of an address of ours (RFC 8684 §3.4.1); its identifier. PathError if that cannot be."""
        connection = self._connection
        address_id = self.local_id(local.address)
        if address_id < 0:
            raise PathError("all 255 address identifiers of this connection are in use")
        port = local.port or None
        mac = None
        if connection.version:
            mac = keys.add_addr_hmac(connection.local_key, connection.remote_key, address_id, local.address, port)
        option = AddAddr(address_id, local.address, port, False, mac, connection.version)
        if connection.version:
            if self._announced is None:
                self._announced = {}
            self._announced[address_id] = _Announcement(option, now + connection.config.announce_retry_us)
        self._signal(option)
        return address_id

    def withdraw(self, address: bytes, now: int) -> None:
        """REMOVE_ADDR for an address of ours; its subflows are not closed by that (RFC 8684 §3.4.2)."""
        ids = self._local_ids or {}
        address_id = 0 if address == self._connection.local.address else ids.pop(address, -1)
        if address_id < 0:
            raise PathError("that address was never used nor announced on this connection")
        if self._announced:
            self._announced.pop(address_id, None)
        option = RemoveAddr((address_id,))
        if not self._signal(option) and self.local is not None:
            # Nobody can carry it: the next subflow that works does.
            self.local.unsent = [*(self.local.unsent or ()), option]

    def _signal(self, option: AddAddr | RemoveAddr) -> bool:
        subflow = self._connection.signalling_subflow()
        if subflow is None:
            return False
        subflow.signal(option)
        if self._connection.version == 0:
            # RFC 6824 §3.4.1 has no echo: "In order to minimize the impact of the loss of these options, however, it is
            # RECOMMENDED that a sender should send these options on all available subflows."
            for other in self._connection.open_subflows():
                if other is not subflow and other.is_usable:
                    other.signal(option)
        return True

    # --- what the peer says -------------------------------------------------------------------------------------------
    def handle_add_addr(self, subflow: Subflow, option: AddAddr, now: int) -> None:
        connection = self._connection
        if option.echo:
            waiting = self._announced or {}
            announced = waiting.get(option.address_id)
            if announced is not None and announced.option.address == option.address:
                del waiting[option.address_id]
            return
        if connection.version:
            expected = keys.add_addr_hmac(
                connection.remote_key, connection.local_key, option.address_id, option.address, option.port
            )
            if option.hmac is None or not keys.same(expected, option.hmac):
                # RFC 8684 §3.4.1: "If a host receives an ADD_ADDR option for which it cannot validate the HMAC, it
                # SHOULD silently ignore the option."
                connection.counters.bump("add_addr_bad_hmac")
                return
        # "a receiver receiving a fresh ADD_ADDR option (where E=0) will send the same option back to the sender, but
        # not including the HMAC and with E=1"
        subflow.signal(
            AddAddr(option.address_id, option.address, option.port, True, None, option.version)
        ) if connection.version else None
        remote = Endpoint(option.address, option.port or connection.remote.port)
        known = self._remote
        if known is None:
            known = self._remote = {}
        previous = known.get(option.address_id)
        if previous is not None and previous.address != remote.address:
            # "the address MUST be the same as the address previously assigned to this Address ID"
            connection.counters.bump("add_addr_changed")
            return
        if previous is None and len(known) >= connection.config.max_remote_addresses:
            connection.counters.bump("add_addr_limit")
            return
        if not self._is_plausible(remote):
            # RFC 8684 §5: an announcement must not make us knock at arbitrary doors
            connection.counters.bump("add_addr_implausible")
            return
        known[option.address_id] = remote
        connection.event(EventKind.ADDRESS_ANNOUNCED, now, remote=remote, address_id=option.address_id)
        self.run(self.manager.on_remote_address(self.facts(now), remote), now)

    def _is_plausible(self, remote: Endpoint) -> bool:
        address = ipaddress.ip_address(remote.address)
        initial = ipaddress.ip_address(self._connection.remote.address)
        if address.is_unspecified or address.is_multicast or (address.is_loopback and not initial.is_loopback):
            return False
        if is_special(remote.address, self._connection.config.excluded_networks):
            return False
        return remote.address != b"\xff\xff\xff\xff" and remote.address not in (
            self._connection.environment.local_addresses()
        )

    def handle_remove_addr(self, option: RemoveAddr, now: int) -> None:
        connection = self._connection
        for address_id in option.address_ids:
            remote = (self._remote or {}).pop(address_id, None)
            affected = [s for s in connection.open_subflows() if s.remote_id == address_id]
            if remote is None and not affected:
                # RFC 8684 §3.4.2: "If an Address ID is not known, the receiver will silently ignore the request."
                connection.counters.bump("remove_addr_unknown")
                continue
            connection.event(EventKind.ADDRESS_REMOVED, now, remote=remote, address_id=address_id)
            for subflow in affected:
                # "The receipt of REMOVE_ADDR SHOULD first trigger the sending of a TCP keepalive on the path, and if a
                # response is received, the path SHOULD NOT be removed."
                if self._removals is None:
                    self._removals = []
                if all(removal.subflow is not subflow for removal in self._removals):
                    removal = _Removal(subflow)
                    removal.probe(now)
                    self._removals.append(removal)
                    self._connection.touch()

    def handle_prio(self, subflow: Subflow, option: MpPrio, now: int) -> None:
        targets = [subflow]
        if option.address_id is not None:  # version 0 can name another address (RFC 6824 §3.3.8)
            if self._connection.version:
                # RFC 8684 §5: "This change eliminates the possibility of a theoretical attack where a subflow could be
                # placed in "backup" mode by an attacker."
                self._connection.counters.bump("prio_with_address")
                return
            targets = [s for s in self._connection.open_subflows() if s.remote_id == option.address_id]
        for target in targets:
            if target.path.backup != option.backup:
                target.path.backup = option.backup
                self._connection.event(EventKind.PRIORITY_CHANGED, now, subflow=target, backup=option.backup)

    def subflow_active(self, subflow: Subflow, now: int) -> None:
        if self.local is not None:
            unsent, self.local.unsent = self.local.unsent, None
            for option in unsent or ():
                self._signal(option)
            local_addresses.depart_if_possible(self._connection, now)
        self.run(self.manager.on_subflow_established(self.facts(now), subflow.tcp.local, subflow.tcp.remote), now)

    def subflow_closed(self, subflow: Subflow, now: int) -> None:
        if self.local is not None:
            local_addresses.depart_if_possible(self._connection, now)
        if self._connection.is_fully_established and not self._connection.is_closing:
            local, remote = subflow.tcp.local, subflow.tcp.remote
            self.run(self.manager.on_subflow_closed(self.facts(now), local, remote, subflow.close_reason), now)
            local_addresses.return_if_possible(self._connection, local.address, now)

    def forget(self) -> None:
        self._announced = self._removals = None
