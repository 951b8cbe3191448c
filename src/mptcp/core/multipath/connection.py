"""One connection, as an application holds it: MPTCP over any number of subflows, or regular TCP after fallback."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum

from mptcp.core.congestion.base import INFINITE_SSTHRESH
from mptcp.core.multipath import keys
from mptcp.core.multipath.config import ConnectionConfig
from mptcp.core.multipath.data_receiver import DataReceiver
from mptcp.core.multipath.data_sender import MAX_MAPPING, Chunk, DataSender
from mptcp.core.multipath.environment import Environment
from mptcp.core.multipath.events import Event, EventKind, EventQueue
from mptcp.core.multipath.fallback import FallbackReason
from mptcp.core.multipath.mapping import Mapping, dss_checksum
from mptcp.core.multipath.path_management import PathManagement
from mptcp.core.multipath.subflow import Role, Subflow
from mptcp.core.schedulers.lowest_rtt import LowestRtt
from mptcp.core.tcp.config import TcpConfig
from mptcp.core.tcp.connection import Connection as TcpConnection
from mptcp.core.tcp.extension import Verdict
from mptcp.core.units import NEVER, SECOND
from mptcp.core.wire.mptcp_options import (
    FLAG_CHECKSUM,
    FLAG_DENY_JOIN_INITIAL,
    FLAG_EXTENSIBLE,
    RST_ADMINISTRATIVELY_PROHIBITED,
    RST_LACK_OF_RESOURCES,
    RST_MPTCP_SPECIFIC,
    RST_TOO_MUCH_OUTSTANDING_DATA,
    Dss,
    MpCapable,
    MpFail,
    MpFastclose,
    MpJoinSyn,
    MpPrio,
    MptcpOption,
    MpTcprst,
)
from mptcp.core.wire.segment import RST, Segment
from mptcp.errors import ConnectionTimedOut, ConnectionWasReset, PathError
from mptcp.info import ConnectionInfo, Endpoint, PathInfo, SubflowInfo

#: How long the head of the line may be acknowledged by its subflow but not at the data level, at the least.
DATA_TIMEOUT_MIN_US = SECOND

#: A DATA_FIN that is never acknowledged is given up after this many repetitions.
DATA_FIN_RETRIES = 8


class ConnectionState(Enum):
    CONNECTING = "connecting"
    ESTABLISHED = "established"
    CLOSING = "closing"
    CLOSED = "closed"


class Connection:
    """Order of use: ``connect`` or ``accept``; then the host feeds segments to ``subflow.tcp``, calls ``handle_timeout``
    when ``poll_deadline`` has come, and ``poll_segments`` after either, and after any verb of the application.

    While ``is_plain``, the one subflow left is regular TCP and the byte stream is TCP's own; before that, data goes
    through ``data_sender`` and ``data_receiver``.
    """

    __slots__ = (
        "_events", "_fast_close", "armed_us", "_flush", "_last_progress_us", "_lonely_since_us", "_next_id", "_plain", "_released",
        "_shut_read", "_user_closed", "_window_check", "checksum", "config", "data_receiver", "data_sender",
        "environment", "error", "fallback", "initial_id", "is_client", "is_fully_established", "local", "local_key",
        "marked", "opened_us", "owner", "paths", "remote", "remote_denies_join", "remote_idsn", "remote_key",
        "remote_token", "scheduler", "state", "subflows_by_id", "token", "version", "was_multipath",
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
        self._plain: TcpConnection | None = None
        self.data_receiver = DataReceiver(config.tcp.receive_buffer_bytes, config.tcp.receive_buffer_max_bytes)
        self.data_sender = DataSender(0)
        self.scheduler = config.scheduler() if config.scheduler is not None else _LOWEST_RTT
        self.paths = PathManagement(self)
        self._events: EventQueue | None = None
        self._last_progress_us = 0
        self._lonely_since_us = NEVER  # since when there is no subflow
        self._user_closed = False
        self._shut_read = False
        self._window_check = False
        self._released = False
        self._fast_close = 0  # MP_FASTCLOSE (option A) repetitions so far, while waiting for its RST
        self._flush = False

    # --- how connections begin ------------------------------------------------------------------------------------------
    @classmethod
    def connect(
        cls, environment: Environment, config: ConnectionConfig, local: Endpoint, remote: Endpoint, now: int
    ) -> Connection:
        """Active open; the SYN goes out at the next ``poll_segments``."""
        self = cls(environment, config, local, remote, True)
        self.opened_us = now
        role = Role.CAPABLE_CLIENT
        if config.multipath:
            self._take_key()
        subflow = self._new_subflow(role, local, remote, now, multipath=config.multipath)
        if not config.multipath:
            self.fallback = FallbackReason.DISABLED
            self._become_plain(subflow)
        subflow.tcp.open(now)
        self._mark()
        return self

    @classmethod
    def accept(
        cls, environment: Environment, config: ConnectionConfig, local: Endpoint, remote: Endpoint, syn: Segment, now: int
    ) -> Connection:
        """Passive open, from the SYN; the SYN/ACK goes out at the next ``poll_segments``."""
        self = cls(environment, config, local, remote, False)
        self.opened_us = now
        capable = next((o for o in syn.options.mptcp if isinstance(o, MpCapable)), None)
        reason = self._judge_capable_syn(capable)
        if reason is FallbackReason.NONE:
            assert capable is not None
            # RFC 8684 §3.1: a responder answers with the highest version that it supports and that was offered
            self.version = min(capable.version, 1)
            self.checksum = config.checksum or bool(capable.flags & FLAG_CHECKSUM)
            self.remote_denies_join = bool(capable.flags & FLAG_DENY_JOIN_INITIAL) and self.version > 0
            self._take_key()
            if self.version == 0 and capable.sender_key is not None:
                self.set_remote_key(capable.sender_key, self.checksum)
        else:
            self.fallback = reason
        multipath = reason is FallbackReason.NONE
        subflow = self._new_subflow(Role.CAPABLE_SERVER, local, remote, now, multipath=multipath)
        if not multipath:
            self._become_plain(subflow)
        subflow.tcp.accept_syn(syn, now)
        self._mark()
        return self

    def _judge_capable_syn(self, capable: MpCapable | None) -> FallbackReason:
        if not self.config.multipath:
            return FallbackReason.DISABLED
        if capable is None:
            return FallbackReason.CLIENT_WITHOUT_MPTCP
        # RFC 8684 §3.1: "If receiving a message with the "B" flag set to 1 and this is not understood, then the
        # MP_CAPABLE in this SYN MUST be silently ignored"; "If flag bits "D" through "H" are all 0, the MP_CAPABLE
        # option MUST be treated as invalid and ignored"
        if capable.flags & FLAG_EXTENSIBLE or not capable.flags & 0x1F:
            return FallbackReason.BAD_CAPABLE
        if capable.version == 0 and capable.sender_key is None:
            return FallbackReason.BAD_CAPABLE
        return FallbackReason.NONE

    def _take_key(self) -> None:
        self.local_key = self.environment.new_key(self.version)
        self.token = keys.token_of(self.local_key, self.version)
        self.environment.register_token(self.token, self)
        # RFC 8684 §3.1: "The SYN with MP_CAPABLE occupies the first octet of data sequence space"
        self.data_sender = DataSender(keys.idsn_of(self.local_key, self.version) + 1)
        self.was_multipath = True

    def set_remote_key(self, key: int, checksum: bool) -> None:
        self.checksum = self.checksum or checksum
        if self.remote_key == key and self.remote_idsn:
            return
        self.remote_key = key
        self.remote_token = keys.token_of(key, self.version)
        self.remote_idsn = keys.idsn_of(key, self.version)
        self.data_receiver.start(self.remote_idsn + 1)

    def _new_subflow(
        self, role: Role, local: Endpoint, remote: Endpoint, now: int, *, multipath: bool = True, backup: bool = False
    ) -> Subflow:
        environment = self.environment
        route = environment.route(local.address)
        if route is None:
            raise PathError(f"{local.host} is not a usable address of this host")
        initial = role in (Role.CAPABLE_CLIENT, Role.CAPABLE_SERVER)
        subflow = Subflow(
            self, self._next_id, role, 0 if initial else self.paths.local_id(local.address),
            0 if initial else self.paths.remote_id(remote),
        )  # fmt: skip
        self._next_id += 1
        subflow.local_backup = backup
        subflow.interface = route.interface
        subflow.tcp = TcpConnection(
            self.config.tcp, local, remote, environment.entropy, environment.counters, mtu=route.mtu,
            gso_max_bytes=route.gso_max_bytes, extension=subflow if multipath else None,
            isn=environment.new_isn(local, remote, now),
        )  # fmt: skip
        subflow.path = PathInfo(subflow.id, local, remote)
        subflow.path.backup = backup
        self.subflows_by_id[subflow.id] = subflow
        environment.register(subflow)
        self._lonely_since_us = NEVER
        return subflow

    # --- getters ---------------------------------------------------------------------------------------------------------
    @property
    def counters(self):  # type: ignore[no-untyped-def]
        return self.environment.counters

    @property
    def is_plain(self) -> bool:
        return self._plain is not None

    @property
    def is_multipath(self) -> bool:
        return self._plain is None

    @property
    def fallback_reason(self) -> str:
        return self.fallback.value

    @property
    def is_closing(self) -> bool:
        return self.state in (ConnectionState.CLOSING, ConnectionState.CLOSED)

    @property
    def is_finished(self) -> bool:
        """Nothing is left to do: the host may forget it."""
        return self.state is ConnectionState.CLOSED and not self.subflows_by_id and self._user_closed

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
        return self._plain.eof if self._plain is not None else self.data_receiver.fin_received

    @property
    def write_closed(self) -> bool:
        if self.state in (ConnectionState.CLOSED, ConnectionState.CLOSING):
            return True
        return self._plain.write_closed if self._plain is not None else self.data_sender.fin_dsn >= 0

    @property
    def buffered_bytes(self) -> int:
        """Written and not yet acknowledged."""
        if self._plain is not None:
            return self._plain.sender.queued_bytes + self._plain.sender.unacked_bytes
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
            and not self.data_sender.has_reinjections
            and (reorder is None or not len(reorder))
            and self.data_sender.carried_only_by(subflow.id)
        )

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
        if isinstance(view, memoryview) and not view.readonly:
            view = bytes(view)
        if self._plain is not None:
            self._plain.sender.write(view)
        else:
            if self.data_sender.unacked_bytes == 0:
                self._last_progress_us = now
            self.data_sender.stream.append(view)
        self._mark()
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
        self._mark()

    def shutdown_write(self, now: int) -> None:
        """No more data will be written: DATA_FIN after everything, FIN after fallback."""
        if self._plain is not None:
            self._plain.shutdown_write(now)
        elif self.data_sender.fin_dsn < 0:
            # RFC 8684 §3.3.3: the DATA_FIN takes the number after the last octet
            self.data_sender.fin_dsn = self.data_sender.nxt + self.data_sender.stream.length
            self._last_progress_us = now
        self._mark()

    def shutdown_read(self, now: int) -> None:
        self._shut_read = True
        self.data_receiver.buffer.clear()
        self._after_read()

    def close(self, now: int) -> None:
        """The application is done: what was written is still delivered, what was not read makes it an abort."""
        if self._user_closed:
            return
        self._user_closed = True
        self._mark()
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
        if self._plain is not None:
            self._plain.close(now)

    def abort(self, now: int) -> None:
        """Ends the connection at once: MP_FASTCLOSE (RFC 8684 §3.5), or RST after fallback."""
        self._user_closed = True
        if self.state is ConnectionState.CLOSED:
            self._mark()
            return
        subflows = self.open_subflows()
        if self._plain is None and self.remote_key and not self.config.fastclose_by_reset and subflows:
            # RFC 8684 §3.5, option A: "an ACK containing the MP_FASTCLOSE option on one subflow ... On all the other
            # subflows, Host A sends a regular TCP RST"
            chosen = self.signalling_subflow() or subflows[0]
            self._fast_close = 1
            self._last_progress_us = now
            chosen.signal(MpFastclose(self.remote_key))
            for subflow in subflows:
                if subflow is not chosen:
                    subflow.tcp.abort(now)
            self.state = ConnectionState.CLOSING
            self._mark()
            return
        self._reset_all(now, MpFastclose(self.remote_key) if self.remote_key else None)
        self._close(None, now)

    def _reset_all(self, now: int, option: MptcpOption | None) -> None:
        for subflow in self.open_subflows():
            if option is not None:
                subflow.reset_reason = option
            subflow.tcp.abort(now)

    # --- subflows, by the application or the path manager ------------------------------------------------------------------
    def open_subflow(self, local: Endpoint, remote: Endpoint, now: int, backup: bool = False) -> int:
        """MP_JOIN from one of our addresses to one of the peer's; the subflow's id. PathError says why not."""
        if self._plain is not None:
            raise PathError(f"this connection is regular TCP: {self.fallback_reason}")
        if not self.is_fully_established or self.is_closing:
            # RFC 8684 §3.1: "new subflows MUST NOT be established ... until a DSS option has been successfully
            # received across the path"
            raise PathError("further subflows can be opened once the connection is fully established")
        if remote == self.remote and self.remote_denies_join:
            # RFC 8684 §3.1, flag C: "the receiver MUST NOT try to open any additional subflows toward this address"
            raise PathError("the peer accepts no further subflows to its initial address")
        if len(local.address) != len(remote.address):
            raise PathError("local and remote address are of different families")
        if len(self.open_subflows()) >= self.config.max_subflows:
            raise PathError(f"the limit of {self.config.max_subflows} subflows is reached")
        if self.environment.route(local.address) is None:
            raise PathError(f"{local.host} is not a usable address of this host")
        if self.paths.local_id(local.address) < 0:
            raise PathError("all 255 address identifiers of this connection are in use")
        # RFC 8684 §3.9.1: "The local port for such SYNs SHOULD also be the same as the port for the first subflow"
        port = local.port or self.environment.new_port(local.address, remote, self.local.port)
        if not port:
            raise PathError("no local port is free")
        local = Endpoint(local.address, port)
        subflow = self._new_subflow(Role.JOIN_CLIENT, local, remote, now, backup=backup)
        subflow.local_nonce = self.environment.entropy.bits(32)
        subflow.tcp.open(now)
        self._mark()
        return subflow.id

    def accept_join(self, local: Endpoint, remote: Endpoint, syn: Segment, join: MpJoinSyn, now: int) -> MpTcprst | None:
        """A SYN with our token. None if it is being answered, else what the RST that refuses it says."""
        if self._plain is not None or not self.remote_key or self.is_closing:
            return MpTcprst(RST_MPTCP_SPECIFIC)
        if self.config.deny_join_initial and local == self.local:
            return MpTcprst(RST_ADMINISTRATIVELY_PROHIBITED)
        if len(self.open_subflows()) >= self.config.max_subflows:
            # RFC 8684 §3.2: "the host wants to refuse subflow establishment (for example, due to a limit ...)"
            self.counters.bump("join_limit")
            return MpTcprst(RST_LACK_OF_RESOURCES, True)
        if self.paths.local_id(local.address) < 0:
            return MpTcprst(RST_LACK_OF_RESOURCES)
        subflow = self._new_subflow(Role.JOIN_SERVER, local, remote, now, backup=join.backup)
        subflow.local_backup = False
        subflow.remote_id = join.address_id
        subflow.remote_nonce = join.nonce
        subflow.local_nonce = self.environment.entropy.bits(32)
        subflow.tcp.accept_syn(syn, now)
        self._mark()
        return None

    def close_subflow(self, subflow_id: int, now: int, reset: bool = False) -> None:
        subflow = self._subflow(subflow_id)
        if reset:
            self.break_subflow(subflow, MpTcprst(RST_ADMINISTRATIVELY_PROHIBITED))
            return
        subflow.closing = True
        subflow.close_reason = subflow.close_reason or "local"
        subflow.tcp.shutdown_write(now)
        self._mark()

    def set_backup(self, subflow_id: int, backup: bool, now: int) -> None:
        """Asks the peer to use a subflow as backup (MP_PRIO, RFC 8684 §3.3.8), and does so itself."""
        subflow = self._subflow(subflow_id)
        subflow.local_backup = backup
        subflow.path.backup = backup
        # RFC 6824 §3.3.8: version 0 may name the address; without it the subflow that carries the option is meant
        subflow.signal(MpPrio(backup))

    def add_address(self, address: Endpoint, now: int) -> int:
        """Announces one of our addresses (ADD_ADDR); its identifier."""
        if self._plain is not None or not self.is_fully_established:
            raise PathError("addresses can be announced once the connection is fully established, and never after fallback")
        return self.paths.announce(address, now)

    def remove_address(self, address: bytes, now: int) -> None:
        """REMOVE_ADDR; the subflows from that address are closed first."""
        if self._plain is not None:
            raise PathError(f"this connection is regular TCP: {self.fallback_reason}")
        for subflow in self.open_subflows():
            if subflow.tcp.local.address == address:
                self.close_subflow(subflow.id, now)
        self.paths.withdraw(address, now)
        self._mark()

    def _subflow(self, subflow_id: int) -> Subflow:
        subflow = self.subflows_by_id.get(subflow_id)
        if subflow is None or subflow.tcp.is_over:
            raise PathError(f"no subflow has the id {subflow_id}")
        if self._plain is not None:
            raise PathError(f"this connection is regular TCP: {self.fallback_reason}")
        return subflow

    def set_tcp_config(self, config: TcpConfig) -> None:
        """For all subflows, present and future (RFC 6897 §4: options apply to the connection)."""
        self.config = self.config.changed(tcp=config)
        tuner = self.data_receiver.tuner
        tuner.maximum = max(tuner.size, config.receive_buffer_max_bytes)
        for subflow in self.subflows_by_id.values():
            subflow.tcp.set_config(config)
        self._flush = True
        self._mark()

    def set_tcp_option(self, name: str, value: object) -> None:
        """One field of ``TcpConfig``."""
        self.set_tcp_config(self.config.tcp.changed(**{name: value}))

    # --- called by subflows -------------------------------------------------------------------------------------------------
    def note_learned(self) -> None:
        self.fallback = FallbackReason.LEARNED

    def mark(self, subflow: Subflow) -> None:
        self._mark()

    def _mark(self) -> None:
        if not self.marked:
            self.environment.mark(self)

    def event(
        self, kind: EventKind, now: int, *, subflow: Subflow | None = None, remote: Endpoint | None = None,
        address_id: int = -1, backup: bool = False, reason: str = "",
    ) -> None:  # fmt: skip
        if self._events is None:
            self._events = EventQueue()
        if subflow is None:
            self._events.put(Event(kind, now, -1, None, remote, address_id, backup, reason))
        else:
            tcp = subflow.tcp
            self._events.put(Event(kind, now, subflow.id, tcp.local, tcp.remote, address_id, backup, reason))

    def subflow_established(self, subflow: Subflow, now: int) -> None:
        """TCP's handshake is done (for a join, MPTCP's is not)."""
        if subflow.is_join:
            return
        self.state = ConnectionState.ESTABLISHED
        self._last_progress_us = now
        self.data_sender.handle_window(self.data_sender.una + subflow.tcp.send_window)
        self.event(EventKind.ESTABLISHED, now, subflow=subflow)
        self.event(EventKind.SUBFLOW_ESTABLISHED, now, subflow=subflow)

    def fully_established(self, subflow: Subflow, now: int) -> None:
        """A DSS has come over the first subflow: options pass, and further subflows may be opened."""
        if not self.is_fully_established and self._plain is None:
            self.is_fully_established = True
            self.paths.fully_established(now)

    def subflow_active(self, subflow: Subflow, now: int) -> None:
        """The MP_JOIN handshake is complete."""
        self.event(EventKind.SUBFLOW_ESTABLISHED, now, subflow=subflow)
        self._mark()

    def handle_data_ack(self, subflow: Subflow, data_ack: int, window: int, now: int) -> None:
        sender = self.data_sender
        acked = sender.handle_data_ack(data_ack)
        if acked < 0:
            self.counters.bump("data_ack_beyond")
            return
        if acked:
            self._last_progress_us = now
        sender.handle_window(data_ack + window)

    def handle_data_fin(self, fin_dsn: int, now: int) -> bool:
        return self.data_receiver.handle_fin(fin_dsn)

    def handle_subflow_ack(self, subflow: Subflow, now: int) -> None:
        """Progress at TCP level: room in its window may have to be filled. (``poll_segments`` does it.)"""

    def handle_subflow_timeout(self, subflow: Subflow, now: int) -> None:
        """An RTO: what the subflow carries is given to others, and it gets nothing new until it answers."""
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
        self._mark()

    def subflow_finished(self, subflow: Subflow, now: int) -> None:
        """The peer's FIN on one subflow: it sends nothing more there, and neither do we."""
        # RFC 8684 §3.3.3: "a standard TCP FIN on an individual subflow only shuts down the subflow on which it was sent"
        subflow.closing = True
        subflow.close_reason = subflow.close_reason or "peer"
        subflow.tcp.shutdown_write(now)

    def subflow_closed(self, subflow: Subflow, error: Exception | None, now: int) -> None:
        """A subflow is over (perhaps in TIME-WAIT): what it had in flight goes elsewhere."""
        self._mark()
        if self._plain is not None:
            return
        if self.state is ConnectionState.CONNECTING and not subflow.is_join:
            self._close(error or ConnectionWasReset("the connection was reset"), now)
            return
        subflow.closing = True
        subflow.stale = False
        if not subflow.close_reason:
            subflow.close_reason = "timeout" if isinstance(error, ConnectionTimedOut) else "closed"
        self.event(EventKind.SUBFLOW_CLOSED, now, subflow=subflow, reason=subflow.close_reason)
        alive = frozenset(s.id for s in self.open_subflows() if s is not subflow)
        subflow.bytes_reinjected += self.data_sender.reinject_carried_by(subflow.id, alive)
        if self.state is ConnectionState.CLOSED:
            return
        if self._fast_close and not alive:
            self._close(None, now)
            return
        if not alive:
            if self.data_sender.fin_acked and self.data_receiver.fin_received:
                self._close(None, now)
                return
            self._lonely_since_us = now
            if subflow.is_join and subflow.close_reason == "refused":
                # The peer does not know the connection any more: waiting for a path would be in vain.
                self._close(ConnectionWasReset("the peer no longer knows this connection"), now)
                return
        self.paths.subflow_closed(subflow, now)

    def break_subflow(self, subflow: Subflow, option: MptcpOption | None) -> None:
        """Resets one subflow; the connection goes on without it."""
        if option is not None:
            subflow.reset_reason = option
        subflow.closing = True
        subflow.tcp.abort(self._last_now())
        self._mark()

    def _last_now(self) -> int:
        return self.environment.now

    def handle_fastclose(self, subflow: Subflow, option: MpFastclose, segment: Segment, now: int) -> Verdict:
        if option.receiver_key != self.local_key or self._plain is not None:
            self.counters.bump("fastclose_bad_key")
            return Verdict.ACCEPT
        if self.state is ConnectionState.CLOSED:
            return Verdict.ACCEPT
        # RFC 8684 §3.5: "Upon receipt of an ACK with MP_FASTCLOSE by Host B, containing the valid key, Host B answers on
        # the same subflow with a TCP RST and tears down all subflows also through sending TCP RST signals."
        self._close(ConnectionWasReset("the peer closed the connection abruptly (MP_FASTCLOSE)"), now)
        by_reset = bool(segment.flags & RST)
        for other in self.open_subflows():
            if not (by_reset and other is subflow):
                other.close_reason = "fastclose"
                if other is not subflow:
                    other.tcp.abort(now)
        subflow.close_reason = "fastclose"
        return Verdict.ACCEPT if by_reset else Verdict.RESET

    def handle_fail(self, subflow: Subflow, option: MpFail, now: int) -> Verdict:
        """MP_FAIL on an ACK: the peer has one subflow and its checksum failed (RFC 8684 §3.7)."""
        self.counters.bump("mp_fail_received")
        if not self.may_fall_back(subflow):
            subflow.reset_reason = MpFail(self.data_receiver.nxt & 0xFFFFFFFFFFFFFFFF)
            subflow.close_reason = "middlebox"
            return Verdict.RESET
        # RFC 8684 §3.7: "the receiver of an MP_FAIL MUST also respond with an MP_FAIL in the reverse direction and
        # entirely revert to a regular TCP session"
        fail = MpFail(self.data_receiver.nxt & 0xFFFFFFFFFFFFFFFF)
        self.fall_back(subflow, FallbackReason.MP_FAIL, now, infinite=True, also=fail)
        return Verdict.ACCEPT

    def checksum_failed(self, subflow: Subflow, mapping: Mapping, held: list[memoryview], now: int) -> None:
        fail = MpFail(mapping.dsn & 0xFFFFFFFFFFFFFFFF)
        if not self.may_fall_back(subflow) or mapping.dsn != self.data_receiver.nxt:
            # RFC 8684 §3.7: "the affected subflow must be immediately closed with a RST that includes an MP_FAIL option"
            subflow.close_reason = "checksum"
            self.break_subflow(subflow, fail)
            return
        # RFC 8684 §3.7: "if a receiver identifies a checksum failure when there is only one path, it will send back an
        # MP_FAIL option on the subflow-level ACK". The octets are delivered as the middlebox made them: from here on
        # this is regular TCP, where nobody would have noticed.
        for piece in held:
            self.data_receiver.buffer.append(piece)
            self.data_receiver.bytes_received += len(piece)
        self.fall_back(subflow, FallbackReason.CHECKSUM, now, also=fail)

    # --- fallback -----------------------------------------------------------------------------------------------------------
    def fall_back(
        self, subflow: Subflow, reason: FallbackReason, now: int, infinite: bool = False, also: MptcpOption | None = None
    ) -> None:
        """From here on regular TCP over ``subflow`` (RFC 8684 §3.7); other subflows are reset."""
        if self._plain is not None:
            return
        # RFC 8684 §3.7: "all MPTCP subflows will have to be terminated except one"
        for other in self.open_subflows():
            if other is not subflow:
                other.tcp.abort(now)
        self.fallback = reason
        self.counters.bump("fallback_" + reason.name.lower())
        if reason is FallbackReason.SYN_UNANSWERED:
            self.environment.mptcp_failed(self, now)
        sender = self.data_sender
        parting: list[MptcpOption] = []
        if also is not None:
            parting.append(also)
        if infinite and subflow.tcp.is_established:
            # RFC 8684 §3.7: "The sender will send one final Data Sequence Mapping, with the Data-Level Length value of 0
            # indicating an infinite mapping"
            parting.append(self._infinite_mapping(subflow))
        self._become_plain(subflow, tuple(parting))
        assert self._plain is not None
        for view in sender.stream.take(sender.stream.length):
            self._plain.sender.write(view)
        if sender.fin_dsn >= 0:
            self._plain.shutdown_write(now)
        sender.forget()
        for piece_start, piece in subflow.unmapped or ():
            del piece_start
            self.data_receiver.buffer.append(piece)
        subflow.unmapped = None
        if self.state is ConnectionState.CONNECTING and subflow.tcp.is_established:
            self.state = ConnectionState.ESTABLISHED
        if self.was_multipath and self.state is not ConnectionState.CONNECTING:
            self.event(EventKind.FELL_BACK, now, subflow=subflow, reason=reason.value)

    def _infinite_mapping(self, subflow: Subflow) -> MptcpOption:
        sender = self.data_sender
        # RFC 8684 §3.7: "acts retroactively, referring to the start of the subflow sequence number of the most recent
        # segment that was known to be delivered intact (i.e., was successfully DATA_ACKed)"
        ssn = subflow.tcp.sender.end - subflow.tcp.iss - (sender.nxt - sender.una)
        checksum = 0 if self.checksum else None
        return Dss(None, False, sender.una & 0xFFFFFFFFFFFFFFFF, True, ssn & 0xFFFFFFFF, 0, checksum)

    def _become_plain(self, subflow: Subflow, parting: tuple[MptcpOption, ...] = ()) -> None:
        self._plain = subflow.tcp
        subflow.pending = False
        subflow.join_deadline = NEVER
        subflow.tcp.become_plain(self.data_receiver, parting)
        if self.token:
            self.environment.release_token(self.token)
            self.token = 0
        self.paths.forget()
        self._mark()

    # --- time ---------------------------------------------------------------------------------------------------------------
    def poll_deadline(self) -> int:
        result = NEVER
        for subflow in self.subflows_by_id.values():
            deadline = subflow.tcp.poll_deadline()
            if deadline < result:
                result = deadline
            if subflow.join_deadline < result:
                result = subflow.join_deadline
        if self._plain is None and self.state is not ConnectionState.CLOSED:
            result = min(result, self._data_deadline(), self.paths.deadline())
            if self._lonely_since_us != NEVER:
                result = min(result, self._lonely_since_us + self.config.close_timeout_us)
        return result

    def _data_deadline(self) -> int:
        sender = self.data_sender
        if sender.una == sender.nxt and not (sender.fin_sent and not sender.fin_acked) and not self._fast_close:
            if self._user_closed and sender.fin_acked:
                return self._last_progress_us + self.config.tcp.fin_wait_2_us
            return NEVER
        longest = 0
        for subflow in self.subflows_by_id.values():
            if not subflow.stale and subflow.tcp.sender.rtt.rto_us > longest:
                longest = subflow.tcp.sender.rtt.rto_us
        if sender.una == sender.nxt or self._fast_close:
            return self._last_progress_us + (max(longest, 1000) << min(sender.retries, 10))
        return self._last_progress_us + (max(2 * longest, DATA_TIMEOUT_MIN_US) << min(sender.retries, 6))

    def handle_timeout(self, now: int) -> None:
        for subflow in list(self.subflows_by_id.values()):
            if subflow.tcp.poll_deadline() <= now:
                subflow.tcp.handle_timeout(now)
            if subflow.join_deadline <= now:
                subflow.handle_join_deadline(now)
        if self._plain is None and self.state is not ConnectionState.CLOSED:
            if self.paths.deadline() <= now:
                self.paths.handle_timeout(now)
            if self._lonely_since_us != NEVER and now - self._lonely_since_us >= self.config.close_timeout_us:
                # RFC 8684 §3.3.3: "If all subflows have been closed ... the MPTCP connection is treated as closed only
                # after a timeout."
                self._close(ConnectionTimedOut("all subflows were lost and no path came back in time"), now)
            elif self._data_deadline() <= now:
                self._handle_data_timeout(now)
        self._mark()

    def _handle_data_timeout(self, now: int) -> None:
        """The data level makes no progress although subflows may: a lost DATA_FIN, or data lost above TCP."""
        sender = self.data_sender
        if self._fast_close:
            self._handle_fastclose_timeout(now)
            return
        if sender.una == sender.nxt:
            if sender.fin_acked:
                # The peer does not close its side, and nobody is left here to read what it sends.
                self._reset_all(now, MpFastclose(self.remote_key))
                self._close(None, now)
                return
            sender.retries += 1
            self._last_progress_us = now
            if sender.retries > DATA_FIN_RETRIES:
                self._reset_all(now, MpFastclose(self.remote_key))
                self._close(ConnectionTimedOut("the DATA_FIN was never acknowledged"), now)
                return
            self._send_data_fin()
            return
        sender.retries += 1
        self._last_progress_us = now
        head = sender.head()
        if head is None:
            return
        # RFC 8684 §3.3.6: "A timer is set when the head of the connection level is ACKed at the subflow level but is not
        # DATA_ACKed at the data level. This timer will guard against retransmission failures by middleboxes that
        # proactively ACK data."
        for carrier in head.carriers:
            subflow = self.subflows_by_id.get(carrier)
            if subflow is not None and not subflow.tcp.is_over and not subflow.stale and subflow.tcp.sender.unacked_bytes:
                return  # TCP is still at it
        if sender.reinject_head():
            self.counters.bump("data_timeout_reinjection")

    def _handle_fastclose_timeout(self, now: int) -> None:
        # RFC 8684 §3.5: "If Host A does not receive a TCP RST in reply to its MP_FASTCLOSE after one retransmission
        # timeout (RTO) ... it SHOULD retransmit the MP_FASTCLOSE ... SHOULD send a TCP RST with the MP_FASTCLOSE option
        # itself when it releases state"
        self._last_progress_us = now
        subflow = self.signalling_subflow()
        if self._fast_close > self.config.fastclose_retries or subflow is None:
            self._reset_all(now, MpFastclose(self.remote_key))
            self._close(None, now)
            return
        self._fast_close += 1
        subflow.signal(MpFastclose(self.remote_key))

    # --- sending --------------------------------------------------------------------------------------------------------------
    def poll_segments(self, now: int) -> Iterable[tuple[Subflow, Segment]]:
        """Everything that may be sent now."""
        if self._plain is None:
            if self.state is not ConnectionState.CONNECTING:
                self._push(now)
            if self._window_check or self.data_receiver.tuner.next_at <= now:
                self._tune(now)
        elif self._window_check:
            self._window_check = False
            self._plain.window_update(now)
        out: list[tuple[Subflow, Segment]] = []
        for subflow in list(self.subflows_by_id.values()):
            poll = subflow.tcp.poll_segment
            while (segment := poll(now)) is not None:
                out.append((subflow, segment))
            if subflow.tcp.is_closed:
                self.drop(subflow)
        if self._plain is not None:
            self._follow_plain(now)
        elif not self.subflows_by_id and self.state is ConnectionState.CLOSED:
            self._release()
        return out

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

    def _push(self, now: int) -> None:
        sender = self.data_sender
        while sender.has_reinjections and self._push_reinjection(now):
            pass
        stream = sender.stream
        tcp_config = self.config.tcp
        while stream.length:
            room = sender.window_edge - sender.nxt
            if room <= 0:
                self._relieve_window(now)
                break
            subflow = self._select(stream.length, now, None)
            if subflow is None:
                break
            tcp = subflow.tcp
            mss = tcp.sender.mss
            length = min(stream.length, room, subflow.path.sendable_bytes, max(tcp.sender.gso_max_bytes, mss), MAX_MAPPING)
            if length < stream.length and length > mss:
                length -= length % mss
            if length < mss:
                # RFC 9293 §3.7.4 (Nagle), at the level where the stream is: a small piece waits while data is in flight.
                if length == stream.length and sender.fin_dsn < 0 and (
                    tcp_config.cork or (not tcp_config.no_delay and sender.una < sender.nxt)
                ):
                    break
                # RFC 9293 §3.8.6.2.1: nor is a small window filled while more room must be on its way
                if length < stream.length and sender.una < sender.nxt:
                    break
            if sender.una == sender.nxt:
                self._last_progress_us = now
            self._give(subflow, sender.assign(length, subflow.id))
        if sender.fin_dsn >= 0 and not sender.fin_sent and not stream.length and self._send_data_fin():
            self._last_progress_us = now
        if sender.fin_acked and self.data_receiver.fin_received and self.state is not ConnectionState.CLOSED:
            self._finish(now)

    def _give(self, subflow: Subflow, chunk: Chunk) -> None:
        self._map(subflow, chunk.dsn, chunk.payloads, chunk.end - chunk.dsn)

    def _map(self, subflow: Subflow, dsn: int, payloads, length: int) -> None:  # type: ignore[no-untyped-def]
        tcp = subflow.tcp
        ssn = tcp.sender.end - tcp.iss
        checksum = dss_checksum(dsn, ssn, length, payloads) if self.checksum else None
        mapping = Mapping(dsn & 0xFFFFFFFFFFFFFFFF, ssn & 0xFFFFFFFF, length, checksum)
        tcp.send_mapped(payloads, length, mapping)

    def _push_reinjection(self, now: int) -> bool:
        sender = self.data_sender
        chunk = sender.next_reinjection()
        if chunk is None:
            return False
        subflow = self._select(chunk.end - chunk.dsn, now, chunk)
        if subflow is None:
            return False
        limit = min(subflow.path.sendable_bytes, max(subflow.tcp.sender.gso_max_bytes, subflow.tcp.sender.mss), MAX_MAPPING)
        start, views = sender.take_reinjection(chunk, limit, subflow.id)
        self._map(subflow, start, views, sum(map(len, views)))
        return True

    def _select(self, length: int, now: int, chunk: Chunk | None) -> Subflow | None:
        """Asks the scheduler; ``chunk`` is None for new data."""
        candidates: list[Subflow] = []
        for subflow in self.subflows_by_id.values():
            if subflow.is_usable:
                candidates.append(subflow)
        if chunk is not None and len(candidates) > 1:
            candidates = [s for s in candidates if s.id not in chunk.carriers] or candidates
        if len(candidates) == 1:
            only = candidates[0]
            only.path.sendable_bytes = only.tcp.sendable_bytes(now)
            return only if only.path.sendable_bytes > 0 else None
        if not candidates:
            return None
        for subflow in candidates:
            refresh(subflow, now)
        paths = [s.path for s in candidates]
        select = self.scheduler.select if chunk is None else self.scheduler.select_reinjection
        path = select(paths, length, now)
        if path is None or path.sendable_bytes <= 0:
            return None
        return self.subflows_by_id[path.id]

    def _relieve_window(self, now: int) -> None:
        """The shared window is full. If the subflow that holds its head is slow and another has room, that one sends
        the head again, so that the window moves on."""
        head = self.data_sender.head()
        if head is None or len(head.carriers) != 1 or len(self.subflows_by_id) < 2:
            return
        carrier = self.subflows_by_id.get(head.carriers[0])
        for subflow in self.subflows_by_id.values():
            if (
                subflow is not carrier
                and subflow.is_usable
                and not subflow.stale
                and not subflow.path.backup
                and (carrier is None or subflow.tcp.sender.rtt.srtt_us < carrier.tcp.sender.rtt.srtt_us)
                and subflow.tcp.sendable_bytes(now) > 0
                and self.data_sender.reinject_head()
            ):
                self.counters.bump("window_reinjection")
                self._push_reinjection(now)
                return

    def _send_data_fin(self) -> bool:
        # RFC 8684 §3.3.3: the DATA_FIN is the last number of the stream; it goes on every subflow that can carry it, so
        # that the loss of one does not delay the close.
        sent = False
        for subflow in self.subflows_by_id.values():
            if subflow.is_usable:
                subflow.fin_signal = True
                subflow.tcp.send_ack()
                sent = True
        if sent:
            self.data_sender.fin_sent = True
        return sent

    def _finish(self, now: int) -> None:
        # RFC 8684 §3.3.3: "Once a DATA_FIN has been acknowledged, all remaining subflows MUST be closed with standard FIN
        # exchanges." "A connection is considered closed once both hosts' DATA_FINs have been acknowledged by DATA_ACKs."
        for subflow in self.open_subflows():
            subflow.closing = True
            subflow.close_reason = subflow.close_reason or "connection closed"
            if subflow.pending or not subflow.tcp.is_established:
                subflow.tcp.abort(now)
            elif subflow.stale or subflow.tcp.sender.unacked_bytes > 0:
                # "any subflows where there is still outstanding data queued ... MAY be closed with a RST with an
                # MP_TCPRST (Section 3.6) error code for "too much outstanding data""
                subflow.reset_reason = MpTcprst(RST_TOO_MUCH_OUTSTANDING_DATA)
                subflow.tcp.abort(now)
            else:
                subflow.tcp.close(now)
        self._close(None, now)

    def _close(self, error: Exception | None, now: int) -> None:
        if self.state is ConnectionState.CLOSED:
            return
        self.state = ConnectionState.CLOSED
        self.error = error
        self.data_sender.forget()
        self.paths.forget()
        self._lonely_since_us = NEVER
        if self.token:
            self.environment.release_token(self.token)
            self.token = 0
        self.event(EventKind.CLOSED, now, reason=str(error) if error else "")
        self._mark()

    def _follow_plain(self, now: int) -> None:
        """Regular TCP keeps the state itself; this translates it."""
        tcp = self._plain
        assert tcp is not None
        if self.state is ConnectionState.CONNECTING and tcp.is_established:
            self.state = ConnectionState.ESTABLISHED
            self.event(EventKind.ESTABLISHED, now)
        if tcp.is_over and self.state is not ConnectionState.CLOSED:
            self._close(tcp.error, now)
        if not self.subflows_by_id and self.state is ConnectionState.CLOSED:
            self._release()

    def drop(self, subflow: Subflow) -> None:
        """TCP has nothing more to do: its addresses and ports are free."""
        self.environment.release(subflow)
        del self.subflows_by_id[subflow.id]
        subflow.mappings.clear()
        if not self.subflows_by_id and self._lonely_since_us == NEVER and self.state is not ConnectionState.CLOSED:
            self._lonely_since_us = self._last_now()

    def _release(self) -> None:
        self._released = True

    # --- what users see ---------------------------------------------------------------------------------------------------------
    def poll_event(self) -> Event | None:
        return self._events.poll() if self._events is not None else None

    @property
    def missed_events(self) -> int:
        return self._events.missed if self._events is not None else 0

    def subflows(self) -> list[SubflowInfo]:
        return [describe(s, s.id == self.initial_id) for s in self.subflows_by_id.values() if not s.tcp.is_over]

    def info(self) -> ConnectionInfo:
        sender, receiver = self.data_sender, self.data_receiver
        infos = self.subflows()
        multipath = self._plain is None
        return ConnectionInfo(
            is_multipath=multipath,
            fallback_reason=self.fallback_reason,
            token=self.token,
            remote_token=self.remote_token if multipath else 0,
            version=self.version if multipath else -1,
            checksum=self.checksum and multipath,
            state=self.state.value,
            bytes_sent=sum(i.bytes_sent for i in infos),
            bytes_acked=sum(i.bytes_acked for i in infos),
            bytes_received=receiver.bytes_received if multipath else sum(i.bytes_received for i in infos),
            bytes_retransmitted=sum(i.bytes_retransmitted for i in infos),
            receive_window_bytes=receiver.window() if multipath else 0,
            send_window_bytes=max(0, sender.window_room),
            send_buffered_bytes=self.buffered_bytes,
            receive_buffered_bytes=self.readable_bytes,
            subflows=infos,
        )


#: It has no state, so that all connections share one.
_LOWEST_RTT = LowestRtt()


def refresh(subflow: Subflow, now: int) -> None:
    """Brings ``subflow.path`` up to date for a strategy."""
    path, sender = subflow.path, subflow.tcp.sender
    path.stale = subflow.stale
    path.srtt_us = sender.rtt.srtt_us
    path.rttvar_us = sender.rtt.rttvar_us
    path.mss_bytes = sender.mss
    path.cwnd_bytes = sender.congestion.cwnd_bytes
    path.in_flight_bytes = sender.in_flight_bytes
    path.sendable_bytes = subflow.tcp.sendable_bytes(now)
    path.bytes_sent = sender.bytes_sent
    path.bytes_acked = sender.bytes_acked


def describe(subflow: Subflow, initial: bool) -> SubflowInfo:
    tcp, sender = subflow.tcp, subflow.tcp.sender
    ssthresh = sender.congestion.ssthresh_bytes
    return SubflowInfo(
        id=subflow.id,
        local=tcp.local,
        remote=tcp.remote,
        local_address_id=subflow.local_id,
        remote_address_id=subflow.remote_id,
        state=subflow.state,
        initial=initial,
        backup=subflow.path.backup,
        srtt_us=sender.rtt.srtt_us,
        rttvar_us=sender.rtt.rttvar_us,
        rto_us=sender.rtt.rto_us,
        mss_bytes=sender.mss,
        cwnd_bytes=sender.congestion.cwnd_bytes,
        ssthresh_bytes=0 if ssthresh >= INFINITE_SSTHRESH else ssthresh,
        in_flight_bytes=sender.in_flight_bytes,
        bytes_sent=sender.bytes_sent,
        bytes_acked=sender.bytes_acked,
        bytes_received=tcp.receiver.bytes_received,
        bytes_retransmitted=sender.bytes_retransmitted,
        bytes_reinjected=subflow.bytes_reinjected,
        segments_sent=sender.segments_sent,
        segments_received=tcp.segments_received,
        retransmissions=sender.retransmissions,
        timeouts=sender.timeouts,
        congestion_control=sender.congestion.name,
        interface=str(subflow.interface),
        close_reason=subflow.close_reason,
    )
