"""One connection, as an application holds it: MPTCP over any number of subflows, or regular TCP after fallback."""

from __future__ import annotations

import errno
from collections.abc import Iterable

from mptcp.core.counters import Counters
from mptcp.core.multipath import (
    closing,
    inspection,
    joining,
    keys,
    racing,
    redundancy,
    strategy,
    subflow_failure,
    transmission,
)
from mptcp.core.multipath.checksum_failure import ChecksumFailure
from mptcp.core.multipath.config import ConnectionConfig
from mptcp.core.multipath.connection_state import ConnectionState
from mptcp.core.multipath.data_receiver import DataReceiver
from mptcp.core.multipath.data_sender import DataSender
from mptcp.core.multipath.environment import Environment
from mptcp.core.multipath.events import Event, EventKind, EventQueue
from mptcp.core.multipath.fallback import FallbackReason, follow_plain
from mptcp.core.multipath.path_management import PathManagement
from mptcp.core.multipath.subflow import Subflow
from mptcp.core.schedulers.base import Redundancy
from mptcp.core.schedulers.lowest_rtt import LowestRtt
from mptcp.core.tcp.config import TcpConfig
from mptcp.core.tcp.connection import Connection as TcpConnection
from mptcp.core.units import NEVER
from mptcp.core.wire.mptcp_options import (
    RST_ADMINISTRATIVELY_PROHIBITED,
    MpPrio,
    MptcpOption,
    MpTcprst,
)
from mptcp.core.wire.segment import Segment
from mptcp.errors import ConnectionTimedOut, PathError
from mptcp.info import ConnectionInfo, Endpoint, SubflowInfo


class Connection:
    """Order of use: ``connect`` or ``accept``; then the host feeds segments to ``subflow.tcp``, calls ``handle_timeout``
    when ``poll_deadline`` has come, and ``poll_segments`` after either, and after any verb of the application.

    While ``is_plain``, the one subflow left is regular TCP and the byte stream is TCP's own; before that, data goes
    through ``data_sender`` and ``data_receiver``.
    """

    __slots__ = (
        "_events", "_shut_read", "_window_check", "armed_us", "asked_us", "checksum", "config", "coupling",
        "data_receiver", "data_sender", "environment", "error", "failure", "fallback", "fast_close", "first_dsn",
        "half_closed", "initial_id", "is_client", "is_fully_established", "last_progress_us", "local", "local_key",
        "lonely_since_us", "marked", "next_id", "opened_us", "owner", "paths", "plain", "race_at", "redundancy",
        "remote", "remote_denies_join", "remote_idsn", "remote_key", "remote_token", "rival", "scheduler", "state",
        "subflows_by_id", "token", "user_closed", "version", "was_multipath",
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
        self.next_id = 1
        self.plain: TcpConnection | None = None
        self.failure: ChecksumFailure | None = None  # it is about to be plain
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
        self.half_closed = False  # the peer has closed the only subflow that works, and we still have data for it
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

    # --- getters ---------------------------------------------------------------------------------------------------------
    @property
    def counters(self) -> Counters:
        return self.environment.counters

    @property
    def is_plain(self) -> bool:
        return self.plain is not None

    @property
    def is_multipath(self) -> bool:
        return self.plain is None and self.failure is None

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
        return self.next_id == 2

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
        closing.abort(self, now)

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
        if subflow_failure.is_needed(self, subflow):
            raise PathError("it is the only subflow that works, and not everything is acknowledged yet")
        if reset:
            self.break_subflow(subflow, MpTcprst(RST_ADMINISTRATIVELY_PROHIBITED))
            return
        subflow.closing = True
        subflow.close_reason = subflow.close_reason or "local"
        subflow.tcp.close(now)  # not shutdown_write: a peer whose FIN never comes does not keep it for ever
        self.touch()

    def set_backup(self, subflow_id: int, backup: bool, now: int) -> None:
        """Asks the peer to use a subflow as backup (MP_PRIO, RFC 8684 §3.3.8), and does so itself."""
        subflow = self._subflow(subflow_id)
        subflow.local_backup = backup
        subflow.path.backup = backup
        # RFC 6824 §3.3.8: version 0 may name the address; without it the subflow that carries the option is meant
        subflow.signal(MpPrio(backup))

    def add_address(self, address: Endpoint, now: int) -> int:
        """Announces one of our addresses (ADD_ADDR); its identifier."""
        if not self.is_multipath or not self.is_fully_established:
            raise PathError(
                "addresses can be announced once the connection is fully established, and never after fallback"
            )
        return self.paths.announce(address, now)

    def remove_address(self, address: bytes, now: int) -> None:
        """REMOVE_ADDR; the subflows from that address are closed first."""
        if not self.is_multipath:
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
        if not self.is_multipath:
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
        self.next_id = 2

    # --- called by subflows -------------------------------------------------------------------------------------------------
    def note_learned(self) -> None:
        self.fallback = FallbackReason.LEARNED

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
            event = Event(kind, now, -1, local, remote, address_id, backup, reason, interface)
        else:
            tcp = subflow.tcp
            event = Event(kind, now, subflow.id, tcp.local, tcp.remote, address_id, backup, reason)
        self._events.put(event)
        if self.environment.observer is not None:
            self.environment.observer(self, event)

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
        subflow_failure.relieve(self, now)
        if self.half_closed:
            subflow_failure.finish_half_closed(self, now)
        self.touch()

    def handle_data_ack(self, subflow: Subflow, data_ack: int, window: int, now: int) -> None:
        sender = self.data_sender
        acked = sender.handle_data_ack(data_ack)
        if acked < 0:
            self.counters.bump("data_ack_beyond")
            return
        if acked:
            self.last_progress_us = now
            if self.half_closed and not sender.buffered_bytes:
                subflow_failure.finish_half_closed(self, now)
        if self.asked_us != NEVER:
            closing.handle_answer(self, subflow, now)
        sender.handle_window(data_ack + window)

    def break_subflow(self, subflow: Subflow, option: MptcpOption | None) -> None:
        """Resets one subflow; the connection goes on without it."""
        if option is not None:
            subflow.reset_reason = option
        subflow.closing = True
        subflow.tcp.abort(self.environment.now)
        self.touch()

    # --- time ---------------------------------------------------------------------------------------------------------------
    def poll_deadline(self) -> int:
        result = NEVER
        for subflow in self.subflows_by_id.values():
            deadline = subflow.tcp.poll_deadline()
            if deadline < result:
                result = deadline
            if subflow.deadline < result:
                result = subflow.deadline
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
            if subflow.deadline <= now:
                subflow.handle_deadline(now)
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
            follow_plain(self, now)
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
