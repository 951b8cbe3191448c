"""One connection, as an application holds it: MPTCP over any number of subflows, or regular TCP after fallback."""

from __future__ import annotations

import errno
from collections.abc import Iterable

from mptcp.core.counters import Counters
from mptcp.core.multipath import closing, inspection, joining, keys, racing, redundancy, strategy, transmission
from mptcp.core.multipath.config import ConnectionConfig
from mptcp.core.multipath.connection_state import ConnectionState
from mptcp.core.multipath.data_receiver import DataReceiver
from mptcp.core.multipath.data_sender import DataSender
from mptcp.core.multipath.environment import Environment
from mptcp.core.multipath.events import Event, EventKind, EventQueue
from mptcp.core.multipath.fallback import FallbackReason
from mptcp.core.multipath.path_management import PathManagement
from mptcp.core.multipath.role import Role
from mptcp.core.multipath.subflow import Subflow
from mptcp.core.schedulers.base import Redundancy
from mptcp.core.schedulers.lowest_rtt import LowestRtt
from mptcp.core.tcp.config import TcpConfig
from mptcp.core.tcp.connection import Connection as TcpConnection
from mptcp.core.units import NEVER
from mptcp.core.wire.mptcp_options import (
    RST_ADMINISTRATIVELY_PROHIBITED,
    RST_MPTCP_SPECIFIC,
    MpFastclose,
    MpPrio,
    MptcpOption,
    MpTcprst,
)
from mptcp.core.wire.segment import Segment
from mptcp.errors import ConnectionTimedOut, ConnectionWasReset, PathError
from mptcp.info import ConnectionInfo, Endpoint, PathInfo, SubflowInfo


class Connection:
    """Order of use: ``connect`` or ``accept``; then the host feeds segments to ``subflow.tcp``, calls ``handle_timeout``
    when ``poll_deadline`` has come, and ``poll_segments`` after either, and after any verb of the application.

    While ``is_plain``, the one subflow left is regular TCP and the byte stream is TCP's own; before that, data goes
    through ``data_sender`` and ``data_receiver``.
    """

    __slots__ = (
        "_events",
        "_half_closed",
        "_next_id",
        "_shut_read",
        "_window_check",
        "armed_us",
        "asked_us",
        "checksum",
        "config",
        "coupling",
        "data_receiver",
        "data_sender",
        "environment",
        "error",
        "fallback",
        "fast_close",
        "first_dsn",
        "initial_id",
        "is_client",
        "is_fully_established",
        "last_progress_us",
        "local",
        "local_key",
        "lonely_since_us",
        "marked",
        "opened_us",
        "owner",
        "paths",
        "plain",
        "race_at",
        "redundancy",
        "remote",
        "remote_denies_join",
        "remote_idsn",
        "remote_key",
        "remote_token",
        "rival",
        "scheduler",
        "state",
        "subflows_by_id",
        "token",
        "user_closed",
        "version",
        "was_multipath",
    )  # fmt: skip

    def __init__(
        self, environment: Environment, config: ConnectionConfig, local: Endpoint, remote: Endpoint, is_client: bool
    ) -> None:
        self.environment = environment
        self.config = config
        self.local = local  # of the first subflow, for ever
        self.remote = remote
        self.is_client = is_client
        self.state = ConnectionState.CONNECTING
        self.error: Exception | None = None
        self.owner: object = None  # for the layer above
        self.marked = False  # the host has it on its list
        self.asked_us = NEVER  # since when the answer to a probe for the DATA_ACK is awaited
        self.armed_us = NEVER  # when the host will look at its deadline next
        self.opened_us = 0
        self.version = config.version
        self.checksum = config.checksum
        self.fallback = FallbackReason.NONE
        self.was_multipath = False
        self.local_key = self.remote_key = 0
        self.token = self.remote_token = 0
        self.remote_idsn = 0
        self.remote_denies_join = False
        self.is_fully_established = False
        self.initial_id = 1
        self.subflows_by_id: dict[int, Subflow] = {}
        self._next_id = 1
        self.plain: TcpConnection | None = None
        self.data_receiver = DataReceiver(config.tcp.receive_buffer_bytes, config.tcp.receive_buffer_max_bytes)
        self.first_dsn = 0  # of our stream
        self.data_sender = DataSender(0)
        self.scheduler = config.scheduler() if config.scheduler is not None else _LOWEST_RTT
        self.redundancy = config.redundancy
        self.coupling: strategy.Coupling | None = None
        self.race_at = NEVER  # when a connect without an answer is raced by a plain one
        self.rival: Subflow | None = None  # the one without MPTCP
        self.paths = PathManagement(self)
        self._events: EventQueue | None = None
        self.last_progress_us = 0
        self.lonely_since_us = NEVER  # since when there is no subflow
        self.user_closed = False
        self._shut_read = False
        self._window_check = False
        self._half_closed = False  # the peer has closed the only subflow that works, and we still have data for it
        self.fast_close = 0  # MP_FASTCLOSE (option A) repetitions so far, while waiting for its RST

    # --- how connections begin ------------------------------------------------------------------------------------------
    def take_key(self) -> None:
        self.local_key = self.environment.new_key(self.version)
        self.token = keys.token_of(self.local_key, self.version)
        self.environment.register_token(self.token, self)
        # RFC 8684 §3.1: "The SYN with MP_CAPABLE occupies the first octet of data sequence space"
        self.first_dsn = keys.idsn_of(self.local_key, self.version) + 1
        self.data_sender = DataSender(self.first_dsn)
        self.was_multipath = True

    def set_remote_key(self, key: int, checksum: bool) -> None:
        self.checksum = self.checksum or checksum
        if self.remote_key == key and self.remote_idsn:
            return
        self.remote_key = key
        self.remote_token = keys.token_of(key, self.version)
        self.remote_idsn = keys.idsn_of(key, self.version)
        self.data_receiver.start(self.remote_idsn + 1)

    def new_subflow(
        self, role: Role, local: Endpoint, remote: Endpoint, now: int, *, multipath: bool = True, backup: bool = False,
        interface: int = -1, segments: tuple[bytes, ...] = (),
    ) -> Subflow:  # fmt: skip
        environment = self.environment
        route = environment.route(local.address, interface)
        if route is None:
            raise PathError(f"{local.host} is not a usable address of this host", errno.EADDRNOTAVAIL)
        initial = role in (Role.CAPABLE_CLIENT, Role.CAPABLE_SERVER)
        subflow = Subflow(
            self, self._new_id(), role, 0 if initial else self.paths.local_id(local.address),
            0 if initial else self.paths.remote_id(remote),
        )  # fmt: skip
        subflow.local_backup = backup
        subflow.interface = route.interface
        subflow.pinned = interface >= 0
        subflow.segments = segments
        # RFC 8754 §2: eight octets, and sixteen for each segment and the final destination
        extra = 8 + 16 * len({*segments, remote.address}) if segments else 0
        subflow.tcp = TcpConnection(
            strategy.tcp_config(self), local, remote, environment.entropy, environment.counters, mtu=route.mtu,
            gso_max_bytes=max(0, route.gso_max_bytes - extra), extension=subflow if multipath else None,
            isn=environment.new_isn(local, remote, now), extra_header_bytes=extra,
        )  # fmt: skip
        subflow.path = PathInfo(subflow.id, local, remote)
        subflow.path.backup = backup
        self.subflows_by_id[subflow.id] = subflow
        environment.register(subflow)
        if role is not Role.JOIN_SERVER:
            self.lonely_since_us = NEVER  # a join of the peer has yet to prove itself
        return subflow

    def _new_id(self) -> int:
        """Counts up, past numbers whose low eight bits another subflow has: the draft's structures have room for those."""
        number = self._next_id
        taken = {other & 0xFF for other in self.subflows_by_id}
        while len(taken) < 255 and (not number & 0xFF or number & 0xFF in taken):
            number += 1
        self._next_id = number + 1
        return number

    # --- getters ---------------------------------------------------------------------------------------------------------
    @property
    def counters(self) -> Counters:
        return self.environment.counters

    @property
    def is_plain(self) -> bool:
        return self.plain is not None

    @property
    def is_multipath(self) -> bool:
        return self.plain is None

    @property
    def fallback_reason(self) -> str:
        return (self.fallback is FallbackReason.DISABLED and self.config.disabled_reason) or self.fallback.value

    @property
    def is_closing(self) -> bool:
        return self.state in (ConnectionState.CLOSING, ConnectionState.CLOSED)

    @property
    def is_finished(self) -> bool:
        """Nothing is left to do: the host may forget it."""
        return self.state is ConnectionState.CLOSED and not self.subflows_by_id and self.user_closed

    @property
    def readable_bytes(self) -> int:
        return self.data_receiver.buffer.length

    @property
    def eof(self) -> bool:
        """Everything the peer sent has been read, and nothing more will come."""
        if self.data_receiver.buffer.length:
            return False
        if self._shut_read or self.state is ConnectionState.CLOSED:
            return True
        return self.plain.eof if self.plain is not None else self.data_receiver.fin_received

    @property
    def write_closed(self) -> bool:
        if self.state in (ConnectionState.CLOSED, ConnectionState.CLOSING):
            return True
        return self.plain.write_closed if self.plain is not None else self.data_sender.fin_dsn >= 0

    @property
    def buffered_bytes(self) -> int:
        """Written and not yet acknowledged."""
        if self.plain is not None:
            return self.plain.sender.queued_bytes + self.plain.sender.unacked_bytes
        return self.data_sender.buffered_bytes

    @property
    def writable_bytes(self) -> int:
        if self.write_closed or self.state is not ConnectionState.ESTABLISHED:
            return 0
        return max(0, self.config.tcp.send_buffer_bytes - self.buffered_bytes)

    def open_subflows(self) -> list[Subflow]:
        """Those not closed: connecting, active, closing."""
        return [s for s in self.subflows_by_id.values() if not s.tcp.is_over]

    def is_alone(self, subflow: Subflow) -> bool:
        return all(s is subflow for s in self.open_subflows())

    def may_fall_back(self, subflow: Subflow) -> bool:
        # RFC 8684 §3.7: "If it is known that all unacknowledged data in flight is contiguous"
        reorder = self.data_receiver.reorder
        return (
            self.is_alone(subflow)
            and not subflow.tcp.fin_received  # it was the end of the subflow, and would become that of the stream
            and not self.data_sender.has_reinjections
            and (reorder is None or not len(reorder))
            and self.data_sender.carried_only_by(subflow.id)
        )

    @property
    def never_branched(self) -> bool:
        """There has never been another subflow: no octets have been given to two, or come over another one."""
        return self._next_id == 2

    def signalling_subflow(self) -> Subflow | None:
        """Where signals that concern the connection go: the usable subflow with the lowest RTT."""
        usable = [s for s in self.subflows_by_id.values() if s.is_usable]
        return min(usable, key=lambda s: (s.stale, s.tcp.sender.rtt.srtt_us), default=None)

    # --- the byte stream -----------------------------------------------------------------------------------------------------
    def write(self, data: bytes | bytearray | memoryview, now: int) -> int:
        """Takes up to ``writable_bytes`` octets; immutable input is kept, not copied."""
        room = self.writable_bytes
        if room <= 0 or not len(data):
            return 0
        view = data if isinstance(data, bytes) else memoryview(data).cast("B")
        if len(view) > room:
            view = memoryview(view)[:room]
        if isinstance(view, memoryview) and not isinstance(view.obj, bytes):
            view = bytes(view)  # what it looks at may change
        if self.plain is not None:
            self.touch()
            return self.plain.sender.write(view)
        else:
            if self.data_sender.unacked_bytes == 0:
                self.last_progress_us = now
            self.data_sender.stream.append(view)
        self.touch()
        return len(view)

    def read(self, count: int, peek: bool = False) -> bytes:
        result = self.data_receiver.buffer.read(count, peek)
        if result and not peek:
            self._after_read()
        return result

    def read_into(self, buffer: bytearray | memoryview, peek: bool = False) -> int:
        count = self.data_receiver.buffer.read_into(buffer, peek)
        if count and not peek:
            self._after_read()
        return count

    def _after_read(self) -> None:
        self._window_check = True
        self.touch()

    def shutdown_write(self, now: int) -> None:
        """No more data will be written: DATA_FIN after everything, FIN after fallback."""
        if self.plain is not None:
            self.plain.shutdown_write(now)
        elif self.data_sender.fin_dsn < 0:
            # RFC 8684 §3.3.3: the DATA_FIN takes the number after the last octet
            self.data_sender.fin_dsn = self.data_sender.nxt + self.data_sender.stream.length
            self.last_progress_us = now
        self.touch()

    def shutdown_read(self, now: int) -> None:
        self._shut_read = True
        self.data_receiver.buffer.clear()
        self._after_read()

    def close(self, now: int) -> None:
        """The application is done: what was written is still delivered, what was not read makes it an abort."""
        if self.user_closed:
            return
        self.user_closed = True
        self.touch()
        if self.state is ConnectionState.CLOSED:
            return
        if self.state is ConnectionState.CONNECTING:
            self.abort(now)
            return
        if self.readable_bytes and not self._shut_read:
            # RFC 1122 §4.2.2.13: data not read is lost, and the peer "SHOULD" hear of it: by a reset
            self.abort(now)
            return
        self.shutdown_write(now)
        if self.plain is not None:
            self.plain.close(now)

    def abort(self, now: int) -> None:
        """Ends the connection at once: MP_FASTCLOSE (RFC 8684 §3.5), or RST after fallback."""
        self.user_closed = True
        if self.state is ConnectionState.CLOSED:
            self.touch()
            return
        subflows = self.open_subflows()
        by_reset = self.config.fastclose_by_reset and self.version > 0  # RFC 6824 has the ACK alone
        if self.plain is None and self.remote_key and not by_reset and subflows:
            # RFC 8684 §3.5, option A: "an ACK containing the MP_FASTCLOSE option on one subflow ... On all the other
            # subflows, Host A sends a regular TCP RST"
            chosen = self.signalling_subflow() or subflows[0]
            self.fast_close = 1
            self.last_progress_us = now
            chosen.signal(MpFastclose(self.remote_key))
            for subflow in subflows:
                if subflow is not chosen:
                    subflow.tcp.abort(now)
            self.state = ConnectionState.CLOSING
            self.touch()
            return
        self.reset_all(now, MpFastclose(self.remote_key) if self.remote_key else None)
        self.end(None, now)

    def repeat_data_fin(self) -> None:
        transmission.send_data_fin(self)

    def reset_all(self, now: int, option: MptcpOption | None) -> None:
        for subflow in self.open_subflows():
            if option is not None:
                subflow.reset_reason = option
            subflow.tcp.abort(now)

    # --- subflows, by the application or the path manager ------------------------------------------------------------------
    def open_subflow(
        self, local: Endpoint, remote: Endpoint, now: int, backup: bool = False, *, interface: int = -1,
        segments: tuple[bytes, ...] = (),
    ) -> int:  # fmt: skip
        """MP_JOIN from one of our addresses to one of the peer's; the subflow's id. PathError says why not."""
        return joining.open_subflow(self, local, remote, now, backup, interface=interface, segments=segments)

    def close_subflow(self, subflow_id: int, now: int, reset: bool = False) -> None:
        subflow = self._subflow(subflow_id)
        if self._is_needed(subflow):
            raise PathError("it is the only subflow that works, and not everything is acknowledged yet")
        if reset:
            self.break_subflow(subflow, MpTcprst(RST_ADMINISTRATIVELY_PROHIBITED))
            return
        subflow.closing = True
        subflow.close_reason = subflow.close_reason or "local"
        subflow.tcp.close(now)  # not shutdown_write: a peer whose FIN never comes does not keep it for ever
        self.touch()

    def _is_needed(self, subflow: Subflow) -> bool:
        # RFC 8684 §3.3.3: "a host MUST NOT close all functioning subflows unless it is safe to do so, i.e., until all
        # outstanding data has been DATA_ACKed or until the segment with the DATA_FIN flag set is the only outstanding
        # segment."
        return (
            subflow.is_usable
            and self.data_sender.buffered_bytes > 0
            and not any(s is not subflow and s.is_usable and not s.stale for s in self.subflows_by_id.values())
        )

    def set_backup(self, subflow_id: int, backup: bool, now: int) -> None:
        """Asks the peer to use a subflow as backup (MP_PRIO, RFC 8684 §3.3.8), and does so itself."""
        subflow = self._subflow(subflow_id)
        subflow.local_backup = backup
        subflow.path.backup = backup
        # RFC 6824 §3.3.8: version 0 may name the address; without it the subflow that carries the option is meant
        subflow.signal(MpPrio(backup))

    def add_address(self, address: Endpoint, now: int) -> int:
        """Announces one of our addresses (ADD_ADDR); its identifier."""
        if self.plain is not None or not self.is_fully_established:
            raise PathError(
                "addresses can be announced once the connection is fully established, and never after fallback"
            )
        return self.paths.announce(address, now)

    def remove_address(self, address: bytes, now: int) -> None:
        """REMOVE_ADDR; the subflows from that address are closed first."""
        if self.plain is not None:
            raise PathError(f"this connection is regular TCP: {self.fallback_reason}")
        for subflow in self.open_subflows():
            if subflow.tcp.local.address == address:
                self.close_subflow(subflow.id, now)
        self.paths.withdraw(address, now)
        self.touch()

    def _subflow(self, subflow_id: int) -> Subflow:
        subflow = self.subflows_by_id.get(subflow_id)
        if subflow is None or subflow.tcp.is_over:
            raise PathError(f"no subflow has the id {subflow_id}")
        if self.plain is not None:
            raise PathError(f"this connection is regular TCP: {self.fallback_reason}", errno.EOPNOTSUPP)
        return subflow

    def set_tcp_config(self, config: TcpConfig) -> None:
        """For all subflows, present and future (RFC 6897 §4: options apply to the connection)."""
        self.config = self.config.changed(tcp=config)
        tuner = self.data_receiver.tuner
        tuner.maximum = max(tuner.size, config.receive_buffer_max_bytes)
        config = strategy.tcp_config(self)
        for subflow in self.subflows_by_id.values():
            subflow.tcp.set_config(config.changed(**subflow.overrides) if subflow.overrides else config)
        self.touch()

    def set_tcp_option(self, name: str, value: object) -> None:
        """One field of ``TcpConfig``, also for subflows that had a value of their own."""
        for subflow in self.subflows_by_id.values():
            if subflow.overrides:
                subflow.overrides.pop(name, None)
        self.set_tcp_config(self.config.tcp.changed(**{name: value}))

    def forget_rival(self) -> None:
        """The race is over, and was as if it had never been: there is one subflow, the first."""
        self._next_id = 2

    # --- called by subflows -------------------------------------------------------------------------------------------------
    def note_learned(self) -> None:
        self.fallback = FallbackReason.LEARNED

    def mark(self, subflow: Subflow) -> None:
        self.touch()

    def touch(self) -> None:
        if not self.marked:
            self.environment.mark(self)

    def event(
        self, kind: EventKind, now: int, *, subflow: Subflow | None = None, remote: Endpoint | None = None,
        address_id: int = -1, backup: bool = False, reason: str = "", local: Endpoint | None = None, interface: int = 0,
    ) -> None:  # fmt: skip
        if self._events is None:
            self._events = EventQueue()
        if subflow is None:
            self._events.put(Event(kind, now, -1, local, remote, address_id, backup, reason, interface))
        else:
            tcp = subflow.tcp
            self._events.put(Event(kind, now, subflow.id, tcp.local, tcp.remote, address_id, backup, reason))

    def subflow_established(self, subflow: Subflow, now: int) -> None:
        """TCP's handshake is done (for a join, MPTCP's is not)."""
        if subflow.is_join:
            return
        self.state = ConnectionState.ESTABLISHED
        self.last_progress_us = now
        self.data_sender.handle_window(self.data_sender.una + subflow.tcp.send_window)
        self.event(EventKind.ESTABLISHED, now, subflow=subflow)
        self.event(EventKind.SUBFLOW_ESTABLISHED, now, subflow=subflow)

    def fully_established(self, subflow: Subflow, now: int) -> None:
        """A DSS has come over the first subflow: options pass, and further subflows may be opened."""
        if not self.is_fully_established and self.plain is None:
            self.is_fully_established = True
            if self.is_client:
                self.environment.mptcp_worked(self)
            self.paths.fully_established(now)

    def subflow_active(self, subflow: Subflow, now: int) -> None:
        """The MP_JOIN handshake is complete."""
        self.lonely_since_us = NEVER
        self.event(EventKind.SUBFLOW_ESTABLISHED, now, subflow=subflow)
        self.paths.subflow_active(subflow, now)
        self.relieve_failing(now)
        if self._half_closed:
            self._finish_half_closed(now)
        self.touch()

    def handle_data_ack(self, subflow: Subflow, data_ack: int, window: int, now: int) -> None:
        sender = self.data_sender
        acked = sender.handle_data_ack(data_ack)
        if acked < 0:
            self.counters.bump("data_ack_beyond")
            return
        if acked:
            self.last_progress_us = now
            if self._half_closed and not sender.buffered_bytes:
                self._finish_half_closed(now)
        if self.asked_us != NEVER:
            closing.handle_answer(self, subflow, now)
        sender.handle_window(data_ack + window)

    def handle_data_fin(self, fin_dsn: int, now: int) -> bool:
        return self.data_receiver.handle_fin(fin_dsn)

    def handle_subflow_timeout(self, subflow: Subflow, now: int) -> None:
        """An RTO: what the subflow carries is given to others, and it gets nothing new until it answers."""
        self.paths.subflow_failing(subflow, now)
        others = frozenset(
            s.id for s in self.subflows_by_id.values() if s is not subflow and s.is_usable and not s.stale
        )
        if not others:
            return
        subflow.stale = True
        # RFC 8684 §3.3.6: "the sender will typically resend the data on other working subflows after a timeout and will
        # keep trying to retransmit the data on the failed subflow too"
        count = self.data_sender.reinject_carried_by(subflow.id, others)
        subflow.bytes_reinjected += count
        self.touch()

    def relieve_failing(self, now: int) -> None:
        """A subflow works, for the first time or again: it takes over from those that have timed out without anybody
        to give their octets to."""
        for subflow in self.subflows_by_id.values():
            if subflow.stale or subflow.tcp.sender.consecutive_timeouts:
                self.handle_subflow_timeout(subflow, now)

    def subflow_finished(self, subflow: Subflow, now: int) -> None:
        """The peer's FIN on one subflow: it sends nothing more there, and neither do we."""
        # RFC 8684 §3.3.3: "a standard TCP FIN on an individual subflow only shuts down the subflow on which it was sent"
        if self._is_needed(subflow):
            # Our FIN would tell a peer that has fallen back that this was all. It can still take what it lacks.
            self._half_closed = True
            return
        subflow.closing = True
        subflow.close_reason = subflow.close_reason or "peer"
        subflow.tcp.close(now)

    def _finish_half_closed(self, now: int) -> None:
        self._half_closed = False
        for subflow in list(self.subflows_by_id.values()):
            if subflow.tcp.fin_received and not subflow.closing:
                self.subflow_finished(subflow, now)

    def subflow_closed(self, subflow: Subflow, error: Exception | None, now: int) -> None:
        """A subflow is over (perhaps in TIME-WAIT): what it had in flight goes elsewhere."""
        self.touch()
        subflow.tcp.sender.congestion.on_close()
        if self.plain is not None:
            return
        if self.rival is not None and not self.rival.tcp.is_over:
            return  # ``racing.settle`` says what becomes of the connection
        if self.state is ConnectionState.CONNECTING and not subflow.is_join:
            self.end(error or ConnectionWasReset("the connection was reset"), now)
            return
        subflow.closing = True
        subflow.stale = False
        if not subflow.close_reason:
            subflow.close_reason = "timeout" if isinstance(error, ConnectionTimedOut) else "closed"
        self.event(EventKind.SUBFLOW_CLOSED, now, subflow=subflow, reason=subflow.close_reason)
        if self.config.fate_sharing and subflow.id == self.initial_id and not self._is_ended_well():
            # RFC 6897 §4.2.2: "the MPTCP stack MAY close the whole MPTCP connection if the first subflow is closed"
            self.reset_all(now, MpFastclose(self.remote_key))
            self.end(
                error or ConnectionWasReset("the first subflow has ended, and the connection shares its fate"), now
            )
            return
        alive = frozenset(s.id for s in self.open_subflows() if s is not subflow and not s.is_half_open)
        # A copy on a subflow that does not answer is not worth much, unless there is no other subflow.
        working = frozenset(i for i in alive if not self.subflows_by_id[i].stale)
        subflow.bytes_reinjected += self.data_sender.reinject_carried_by(subflow.id, working or alive)
        self.data_sender.drop_carrier(
            subflow.id, {i: s.tcp.sender.end - s.tcp.iss for i, s in self.subflows_by_id.items() if i in alive}
        )
        if self.state is ConnectionState.CLOSED:
            return
        if self.fast_close and not alive:
            self.end(None, now)
            return
        if not alive:
            if self._is_ended_well():
                self.end(None, now)
                return
            if self.lonely_since_us == NEVER:
                self.lonely_since_us = now
            # RFC 8684 §3.2: "If the token is unknown ... containing an MP_TCPRST option (Section 3.6) with an "MPTCP
            # specific error" reason code." A RST without it says only that nobody listens on that port just now, or comes
            # from a box on the way: such a path may come back, and §3.3.3 has the connection wait for it.
            unknown = subflow.close_reason == f"reset-{RST_MPTCP_SPECIFIC}"
            if unknown and subflow.is_join and subflow.pending and self.is_alone(subflow):
                # The peer does not know the connection any more: waiting for a path would be in vain.
                self.end(ConnectionWasReset("the peer no longer knows this connection"), now)
                return
        self.paths.subflow_closed(subflow, now)

    def _is_ended_well(self) -> bool:
        """Both streams have ended, and both sides know."""
        return self.state is ConnectionState.CLOSED or (self.data_sender.fin_acked and self.data_receiver.fin_received)

    def break_subflow(self, subflow: Subflow, option: MptcpOption | None) -> None:
        """Resets one subflow; the connection goes on without it."""
        if option is not None:
            subflow.reset_reason = option
        subflow.closing = True
        subflow.tcp.abort(self.environment.now)
        self.touch()

    def become_plain(self, subflow: Subflow, parting: tuple[MptcpOption, ...] = ()) -> None:
        self.plain = subflow.tcp
        subflow.pending = False
        subflow.join_deadline = NEVER
        subflow.tcp.become_plain(self.data_receiver, parting)
        if self.token:
            self.environment.release_token(self.token)
            self.token = 0
        self.paths.forget()
        self.touch()

    # --- time ---------------------------------------------------------------------------------------------------------------
    def poll_deadline(self) -> int:
        result = NEVER
        for subflow in self.subflows_by_id.values():
            deadline = subflow.tcp.poll_deadline()
            if deadline < result:
                result = deadline
            if subflow.join_deadline < result:
                result = subflow.join_deadline
        if self.race_at < result:
            result = self.race_at
        if self.plain is None and self.state is not ConnectionState.CLOSED:
            # A bound that costs nothing will do while it lies ahead: every acknowledgement moves it on.
            data = self.last_progress_us + closing.DATA_TIMEOUT_MIN_US
            if data <= self.environment.now or self.data_sender.una == self.data_sender.nxt:
                data = closing.data_deadline(self)
            if data < result:
                result = data
            data = self.paths.deadline()
            if data < result:
                result = data
            if self.lonely_since_us != NEVER:
                result = min(result, self.lonely_since_us + self.config.close_timeout_us)
        return result

    def handle_timeout(self, now: int) -> None:
        for subflow in list(self.subflows_by_id.values()):
            if subflow.tcp.poll_deadline() <= now:
                subflow.tcp.handle_timeout(now)
            if subflow.join_deadline <= now:
                subflow.handle_join_deadline(now)
        if self.race_at <= now:
            racing.start(self, now)
        if self.plain is None and self.state is not ConnectionState.CLOSED:
            if self.paths.deadline() <= now:
                self.paths.handle_timeout(now)
            if self.lonely_since_us != NEVER and now - self.lonely_since_us >= self.config.close_timeout_us:
                # RFC 8684 §3.3.3: "If all subflows have been closed ... the MPTCP connection is treated as closed only
                # after a timeout."
                self.reset_all(now, None)  # joins that nobody has proved
                self.end(ConnectionTimedOut("all subflows were lost and no path came back in time"), now)
            elif closing.data_deadline(self) <= now:
                closing.handle_data_timeout(self, now)
        self.touch()

    # --- sending --------------------------------------------------------------------------------------------------------------
    def poll_segments(self, now: int) -> Iterable[tuple[Subflow, Segment]]:
        """Everything that may be sent now."""
        if self.rival is not None:
            racing.settle(self, now)
        if self.plain is None:
            if self.paths.manager.watches_data:
                self.paths.watch_data(now)
            if self.state is not ConnectionState.CONNECTING:
                if redundancy.level_of(self) is Redundancy.ON_RETRANSMISSION:
                    redundancy.copy_lost(self, now)
                transmission.push(self, now)
            if self._window_check or self.data_receiver.tuner.next_at <= now:
                self._tune(now)
        elif self._window_check:
            self._window_check = False
            self.plain.window_update(now)
        out: list[tuple[Subflow, Segment]] = []
        over: Subflow | None = None
        for subflow in self.subflows_by_id.values():
            if self.environment.is_busy(subflow.interface):
                self.environment.hold(self)
                continue
            poll = subflow.tcp.poll_segment
            while (segment := poll(now)) is not None:
                out.append((subflow, segment))
                if subflow.tcp is self.plain:
                    self.environment.use_room(subflow.interface, segment.length)
                    if not self.environment.has_room(subflow.interface):
                        self.environment.hold(self)
                        break
            if subflow.tcp.is_over:
                over = subflow
        if over is not None:
            for subflow in list(self.subflows_by_id.values()):
                if subflow.tcp.is_closed:
                    self.drop(subflow)
        if self.plain is not None:
            self._follow_plain(now)
        return out

    def push_copies(self, now: int) -> None:
        redundancy.push_copies(self, now)

    def _tune(self, now: int) -> None:
        self._window_check = False
        longest = -1
        for subflow in self.subflows_by_id.values():
            longest = max(longest, subflow.tcp.round_trip_us)
        receiver = self.data_receiver
        receiver.tuner.update(receiver.buffer.total_read, longest, now)
        for subflow in self.subflows_by_id.values():
            if subflow.is_usable:
                subflow.tcp.window_update(now)

    def end(self, error: Exception | None, now: int) -> None:
        if self.state is ConnectionState.CLOSED:
            return
        self.state = ConnectionState.CLOSED
        self.error = error
        self.data_sender.forget()
        self.paths.forget()
        self.lonely_since_us = NEVER
        if self.token:
            self.environment.release_token(self.token)
            self.token = 0
        self.event(EventKind.CLOSED, now, reason=str(error) if error else "")
        self.touch()

    def _follow_plain(self, now: int) -> None:
        """Regular TCP keeps the state itself; this translates it."""
        tcp = self.plain
        assert tcp is not None
        if self.state is ConnectionState.CONNECTING and tcp.is_established:
            self.state = ConnectionState.ESTABLISHED
            self.event(EventKind.ESTABLISHED, now)
        if tcp.is_over and self.state is not ConnectionState.CLOSED:
            self.end(tcp.error, now)

    def drop(self, subflow: Subflow) -> None:
        """TCP has nothing more to do: its addresses and ports are free."""
        self.environment.release(subflow)
        del self.subflows_by_id[subflow.id]
        subflow.mappings.clear()
        if not self.subflows_by_id and self.lonely_since_us == NEVER and self.state is not ConnectionState.CLOSED:
            self.lonely_since_us = self.environment.now

    # --- what users see ---------------------------------------------------------------------------------------------------------
    def poll_event(self) -> Event | None:
        return self._events.poll() if self._events is not None else None

    @property
    def waiting_events(self) -> int:
        return len(self._events) if self._events is not None else 0

    def peek_event(self) -> Event | None:
        """The event that ``poll_event`` would give."""
        return self._events.peek() if self._events is not None else None

    @property
    def missed_events(self) -> int:
        return self._events.missed if self._events is not None else 0

    def subflows(self) -> list[SubflowInfo]:
        """A snapshot of each open subflow."""
        return [inspection.subflow_info(s) for s in self.open_subflows()]

    def info(self) -> ConnectionInfo:
        return inspection.connection_info(self)


#: It has no state, so that all connections share one.
_LOWEST_RTT = LowestRtt()
