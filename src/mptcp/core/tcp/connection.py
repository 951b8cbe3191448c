"""One TCP connection, sans-I/O: RFC 9293 with the mechanisms of its own files, with or without an extension."""

from __future__ import annotations

import errno
from abc import ABC
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from mptcp.core.counters import Counters
from mptcp.core.entropy import Entropy
from mptcp.core.tcp import arrival, departure, handshake, icmp_errors, timers
from mptcp.core.tcp.challenge import ChallengeAcks
from mptcp.core.tcp.config import TcpConfig
from mptcp.core.tcp.ecn import Ecn
from mptcp.core.tcp.extension import Extension, Verdict
from mptcp.core.tcp.keepalive import Keepalive
from mptcp.core.tcp.path_mtu import PathMtu
from mptcp.core.tcp.receive_buffer import ReceiveBuffer
from mptcp.core.tcp.receive_window import MAX_UNSCALED_WINDOW, BufferTuner
from mptcp.core.tcp.receiver import Receiver
from mptcp.core.tcp.states import SENDING, TRANSITIONS, WRITABLE, State
from mptcp.core.tcp.timestamps import TIMESTAMP_OPTION_BYTES, Timestamps
from mptcp.core.tcp.user_timeout import UserTimeout
from mptcp.core.units import NEVER
from mptcp.core.wire.mptcp_options import MptcpOption
from mptcp.core.wire.segment import ACK, ECE, FIN, NO_OPTIONS, RST, SYN, URG, Options, Payload, Segment
from mptcp.core.wire.sequence import MASK32
from mptcp.errors import ConnectionAborted
from mptcp.info import Endpoint

if TYPE_CHECKING:
    from mptcp.core.wire.icmp import IcmpError

#: RFC 9293 §3.7.1: "If an MSS Option is not received at connection setup, TCP implementations MUST assume a default
#: send MSS of 536 (576 - 40) for IPv4 or 1220 (1280 - 60) for IPv6 (MUST-15)."
DEFAULT_MSS_V4: Final = 536
DEFAULT_MSS_V6: Final = 1220
#: What a parting option may take: a DSS with an infinite mapping.
MAX_PARTING_BYTES: Final = 28
#: ``send_ack`` may ask for so many at once.
MAX_ACKS_REQUESTED: Final = 16

_PREDICTED_MASK: Final = SYN | FIN | RST | URG | ACK
_FAST_STATES: Final = frozenset({State.ESTABLISHED, State.FIN_WAIT_2, State.CLOSE_WAIT})
_ACCEPT: Final = Verdict.ACCEPT
_CLOSED: Final = State.CLOSED


class StreamReceiver(ABC):
    """Whoever has put the stream in order so far."""

    __slots__ = ()

    buffer: ReceiveBuffer
    tuner: BufferTuner


class Connection:
    """One TCP connection. All times are microseconds, all sizes octets.

    Order of calls: ``open`` or ``accept_syn`` first; then, whenever something came in or was written,
    ``poll_segment`` until it gives None, and ``handle_timeout`` when ``poll_deadline()`` has come. When ``is_closed``
    it may be forgotten; until then it answers for its four-tuple (TIME-WAIT included).

    Order of an extension's calls for one segment: ``handle_syn_options`` or ``handle_options``,
    ``handle_established`` (if this segment completes the handshake), ``handle_acked``, ``handle_data`` for each piece
    in order, ``handle_fin``. It may call any plain verb from within them.
    """

    __slots__ = (
        "_can_send", "_challenges", "_extension", "_fast", "_reply", "_told_closed", "acks_requested", "cached_options",
        "config", "counters", "ecn", "entropy", "error", "fin_received", "fin_wanted", "gso_max_bytes", "irs", "iss",
        "keepalive", "last_received_us", "last_window_field", "local", "max_window", "orphan", "parting", "parting_data", "parting_end", "passive",
        "path_mtu", "peer_mss", "probe_wanted", "receive_urgent", "receiver", "remote", "segments_received", "segments_sent",
        "send_scale", "send_urgent", "sender", "slow_at", "soft_error", "state", "syn_retransmissions", "syn_sent_at",
        "syn_started_at", "syn_wanted", "timer", "timestamps", "user_timeout", "window_ack", "window_scaling",
        "window_seq",
    )  # fmt: skip

    def __init__(
        self,
        config: TcpConfig,
        local: Endpoint,
        remote: Endpoint,
        entropy: Entropy,
        counters: Counters,
        *,
        mtu: int,
        gso_max_bytes: int = 0,
        extension: Extension | None = None,
        isn: int | None = None,
        extra_header_bytes: int = 0,
    ) -> None:
        self.config = config
        self.local = local
        self.remote = remote
        self.entropy = entropy
        self.counters = counters
        self.gso_max_bytes = gso_max_bytes
        self._extension = extension
        self.state = State.CLOSED
        self.error: Exception | None = None
        self.iss = (entropy.bits(32) if isn is None else isn) & MASK32
        self.irs = 0
        self.passive = False
        self.path_mtu = PathMtu(mtu, len(local.address) == 16, extra_header_bytes)
        self.peer_mss = DEFAULT_MSS_V6 if self.path_mtu.is_v6 else DEFAULT_MSS_V4
        self.timestamps = Timestamps(entropy.bits(32))
        self.receiver = Receiver(config)
        self.ecn: Ecn | None = None
        self.keepalive: Keepalive | None = None
        self.user_timeout: UserTimeout | None = None
        self.soft_error: Exception | None = None  # what ICMP said; reported if the connection fails otherwise
        self.window_scaling = False
        self.send_scale = 0
        self.window_seq = 0  # SND.WL1
        self.window_ack = 0  # SND.WL2
        self.max_window = 0  # MAX.SND.WND of RFC 5961
        self.last_window_field = -1
        self.last_received_us = 0
        self.syn_wanted = False
        self.syn_retransmissions = 0
        self.syn_sent_at = 0
        self.syn_started_at = 0
        self.timer = NEVER  # of the state: SYN retransmission, FIN-WAIT-2, TIME-WAIT
        self.acks_requested = 0
        self.probe_wanted = False
        self.fin_received = False
        self.parting: list[MptcpOption] | None = None  # of an extension that has gone
        self.parting_data: MptcpOption | None = None
        self.parting_end = 0  # what comes before it was sent by the extension
        self.orphan = False  # the application has closed it
        self.send_urgent = 0  # SND.UP, 0: none
        self.receive_urgent = 0  # RCV.UP, 0: none
        self.segments_sent = 0
        self.segments_received = 0
        self._can_send = False
        self._fast = False
        self.fin_wanted = False
        self._told_closed = False
        self._reply: Segment | None = None
        self._challenges: ChallengeAcks | None = None
        self.cached_options: Options = NO_OPTIONS
        self.slow_at = NEVER
        self.sender = handshake.make_sender(self)

    # --- getters ------------------------------------------------------------------------------------------------
    @property
    def extension(self) -> Extension | None:
        return self._extension

    @extension.setter
    def extension(self, extension: Extension | None) -> None:
        """None: plain TCP from now on (fallback). What is in order goes to the connection's own buffer."""
        self._extension = extension
        if self.is_established:
            self.update_mss()

    @property
    def is_established(self) -> bool:
        """The handshake is done, and neither TIME-WAIT nor CLOSED reached."""
        return self._can_send or self.state is State.FIN_WAIT_2

    @property
    def is_closed(self) -> bool:
        """Nothing more to send or to wait for: may be forgotten."""
        return self.state is State.CLOSED and self._reply is None

    @property
    def eof(self) -> bool:
        """Everything the peer sent before its FIN has been read."""
        return self.fin_received and self.receiver.buffer.length == 0

    @property
    def readable_bytes(self) -> int:
        return self.receiver.buffer.length

    @property
    def writable_bytes(self) -> int:
        """Room in the send buffer; 0 when nothing may be written any more."""
        if self.state not in WRITABLE or self.fin_wanted or self.orphan:
            return 0
        return max(0, self.config.send_buffer_bytes - (self.sender.end - self.sender.una))

    @property
    def urgent_bytes(self) -> int:
        """Unread octets up to and including the urgent one; 0: no urgent data (they are in line: SO_OOBINLINE)."""
        if not self.receive_urgent:
            return 0
        return max(0, self.receive_urgent - (self.irs + 1 + self.receiver.buffer.total_read))

    @property
    def send_mss(self) -> int:
        """Payload octets per segment as it leaves now: options that are always there subtracted."""
        config, extension = self.config, self._extension
        mss = min(self.peer_mss, self.path_mtu.mss)
        if config.max_segment_bytes:
            mss = min(mss, config.max_segment_bytes)
        # RFC 9293 §3.7.1 (RFC 6691): Eff.snd.MSS = min(SendMSS + 20, MMS_S) - TCPhdrsize - IPoptionsize
        if self.timestamps.enabled:
            mss -= TIMESTAMP_OPTION_BYTES
        if extension is not None:
            mss -= (extension.data_overhead_bytes + 3) & ~3
        elif self.parting_data is not None:
            mss -= MAX_PARTING_BYTES
        return max(mss, 1)

    @property
    def is_over(self) -> bool:
        """Closed by both sides, or broken; in TIME-WAIT it may still answer."""
        return self.state is State.CLOSED or self.state is State.TIME_WAIT

    @property
    def write_closed(self) -> bool:
        """Nothing more may be written."""
        return self.fin_wanted or self.orphan or self.state not in WRITABLE

    @property
    def send_window(self) -> int:
        """Octets the peer will take beyond what it has acknowledged."""
        return max(0, self.sender.window_edge - self.sender.una)

    @property
    def round_trip_us(self) -> int:
        """As far as this side knows, as sender or as receiver; -1: not at all."""
        return max(self.sender.rtt.srtt_us, self.receiver.tuner.rtt_us) or -1

    def scaled_window(self, segment: Segment) -> int:
        """The window field of ``segment`` in octets."""
        return segment.window if segment.flags & SYN else segment.window << self.send_scale

    # --- from the network ---------------------------------------------------------------------------------------
    def open(self, now: int) -> None:
        """Active open: the SYN goes out at the next poll."""
        self.become(State.SYN_SENT)
        handshake.send_syn(self, now)

    def accept_syn(self, segment: Segment, now: int) -> None:
        """Passive open: ``segment`` is the peer's SYN, as a listener got it. SYN/ACK goes out at the next poll."""
        self.become(State.LISTEN)
        self.passive = True
        handshake.handle_listen(self, segment, now)

    def handle_segment(self, segment: Segment, now: int) -> None:
        """Any segment of this connection but the SYN that made it. Never raises for what is in it."""
        self.segments_received += 1
        receiver = self.receiver
        nxt = receiver.nxt
        if not self._fast or segment.flags & _PREDICTED_MASK != ACK or segment.seq != nxt & MASK32:
            arrival.handle_segment(self, segment, now)
            return
        # Header prediction: the next segment in order, nothing special about it. Each condition that fails leads to
        # arrival.py, which does the same with all of RFC 9293 §3.10.7.4.
        length = segment.length
        if length and (receiver.reassembly is not None or nxt + length > receiver.window.edge or receiver.fin_seq >= 0):
            arrival.handle_segment(self, segment, now)
            return
        options = segment.options
        timestamps = self.timestamps
        if timestamps.enabled:
            value = options.timestamp_value
            if value is None or (value - timestamps.recent) & 0x80000000:
                arrival.handle_segment(self, segment, now)
                return
        sender = self.sender
        una = sender.una
        ack = una + ((segment.ack - una) & MASK32)
        if ack > sender.nxt:
            arrival.handle_segment(self, segment, now)
            return
        if timestamps.enabled and nxt <= receiver.last_ack_sent:
            assert value is not None
            # RFC 7323 §4.3: "SEG.TSval >= TS.Recent and SEG.SEQ <= Last.ACK.sent then SEG.TSval is copied to TS.Recent"
            timestamps.recent = value
            timestamps.recent_at = now
        self.last_received_us = now
        extension = self._extension
        if extension is not None:
            verdict = extension.handle_options(segment, now)
            if verdict is not _ACCEPT or self.state is _CLOSED:
                arrival.refuse(self, verdict, now)
                return
        if (
            ack != una
            or not length
            or segment.window != self.last_window_field
            or options.sack_blocks
            or segment.flags & ECE
        ):
            arrival.process_ack(self, segment, nxt, ack, now)
            if self.state is _CLOSED:
                return
        if length:
            receiver.nxt = nxt + length
            receiver.bytes_received += length
            receiver.ack.handle_data(length, segment.mss, now, self.config.quick_ack)
            if self.ecn is not None:
                self.ecn.handle_data(segment.ecn, segment.flags)
            arrival.deliver(self, nxt, segment.payloads, now)
            if self._extension is None:
                arrival.tune_buffer(self, segment, now)

    def handle_timeout(self, now: int) -> None:
        """Some deadline has come."""
        timers.handle_timeout(self, now)

    def handle_icmp(self, error: IcmpError, now: int) -> None:
        """An ICMP error that quotes a segment of this connection (matched by addresses and ports already)."""
        icmp_errors.handle_icmp(self, error, now)

    # --- from the application -----------------------------------------------------------------------------------
    def write(self, view: Payload) -> int:
        """Takes as many octets as there is room for (a view on them, not a copy); 0: full. EPIPE after a shutdown."""
        if self.state not in WRITABLE or self.fin_wanted or self.orphan:
            if self.error is not None:
                raise self.error
            raise BrokenPipeError(errno.EPIPE, "the connection cannot send any more")
        room = self.writable_bytes
        length = len(view)
        if length > room:
            view = memoryview(view)[:room]
            length = room
        if length:
            self.sender.write(view)
        return length

    def write_urgent(self, view: Payload) -> int:
        """As ``write``; the last octet taken is urgent (RFC 9293 §3.8.5)."""
        length = self.write(view)
        if length:
            # RFC 9293 §3.8.5: "The urgent pointer MUST point to the sequence number of the octet following the urgent
            # data (MUST-62)."
            self.send_urgent = self.sender.end
        return length

    def read(self, count: int, peek: bool = False) -> bytes:
        return self.receiver.buffer.read(count, peek)

    def read_into(self, buffer: bytearray | memoryview, peek: bool = False) -> int:
        """How many octets were copied; afterwards ``window_update`` lets the peer know of the room."""
        return self.receiver.buffer.read_into(buffer, peek)

    def window_update(self, now: int) -> None:
        """The application has read: an ACK follows if the window can be opened by enough to matter."""
        if self.state not in (State.ESTABLISHED, State.FIN_WAIT_1, State.FIN_WAIT_2):
            return
        receiver = self.receiver
        current = receiver.window.told - receiver.nxt
        free = min(self.receive_room(), MAX_UNSCALED_WINDOW << receiver.window.scale)
        # RFC 9293 §3.8.6.2.2, and no acknowledgement merely for a window that is wide open already
        if free >= 2 * current and free - current >= self.window_step(free):
            receiver.ack.due = True

    def shutdown_write(self, now: int) -> None:
        """No more to write: FIN after what is queued. With an extension: FIN on this subflow."""
        state = self.state
        if state is State.ESTABLISHED:
            self.sender.finish()
            self.become(State.FIN_WAIT_1)
        elif state is State.CLOSE_WAIT:
            self.sender.finish()
            self.become(State.LAST_ACK)
        elif state in (State.SYN_SENT, State.SYN_RECEIVED):
            # RFC 9293 §3.10.4: "queue for processing after entering ESTABLISHED state"
            self.fin_wanted = True

    def close(self, now: int) -> None:
        """The application is done with it, in both directions; what is queued is still sent, and acknowledged."""
        state = self.state
        if state in (State.CLOSED, State.TIME_WAIT) or self.orphan:
            return
        if state in (State.LISTEN, State.SYN_SENT):
            self.end(None, now)
            return
        if self._extension is None and self.receiver.buffer.length:
            # RFC 9293 §3.6.1: "If such a host issues a CLOSE call while received data is still pending in the TCP
            # connection, [...] its TCP implementation SHOULD send a RST to show that data was lost (SHLD-3)."
            self.receiver.buffer.clear()
            self.counters.bump("closed_with_unread_data")
            self.abort(now)
            return
        self.orphan = True
        self._fast = False
        self.shutdown_write(now)
        if self.state is State.FIN_WAIT_2:
            self.timer = now + self.config.fin_wait_2_us

    def abort(self, now: int, error: Exception | None = None) -> None:
        """RST, with the extension's options, and CLOSED at once."""
        state = self.state
        if state is State.CLOSED:
            return
        if state not in (State.LISTEN, State.SYN_SENT, State.TIME_WAIT):
            # RFC 9293 §3.10.5: "<SEQ=SND.NXT><CTL=RST>"; ACK is set too, as everybody does
            self._reply = departure.make_reset(self, now)
        self.end(error or ConnectionAborted("aborted by this side"), now)

    # --- from an extension --------------------------------------------------------------------------------------
    def send_mapped(self, payloads: Sequence[Payload], length: int, mapping: object) -> None:
        """Queues ``length`` octets as one record that carries ``mapping``."""
        self.sender.send_mapped(payloads, length, mapping)

    def sendable_bytes(self, now: int) -> int:
        """New octets that congestion window and peer window allow now; 0 when this connection cannot send."""
        if not self._can_send or (self.state is not State.ESTABLISHED and self.state is not State.CLOSE_WAIT):
            return 0
        return self.sender.sendable_bytes()

    def ack_now(self) -> None:
        """What has come in is acknowledged at the next poll, by whatever segment goes out then."""
        self.receiver.ack.due = True

    def send_keepalive(self, now: int) -> None:
        """A segment that the peer has to answer if it is there."""
        self.probe_wanted = True

    def become_plain(
        self, stream: StreamReceiver, parting: Sequence[MptcpOption] = (), with_data: MptcpOption | None = None
    ) -> None:
        """Fallback: regular TCP from now on. ``parting`` options still go out, one on each of the next acknowledgements;
        ``with_data`` on every segment with data, until one that is new has been acknowledged.

        ``stream`` has the ``buffer`` (what is in order and not read yet) and ``tuner`` to go on with.
        """
        self.receiver.buffer = stream.buffer
        self.receiver.tuner = stream.tuner
        self.parting = list(parting) or None
        self.parting_data = with_data
        self.parting_end = self.sender.end
        self.extension = None
        if parting:
            self.send_ack(len(parting))

    def take_parting(self, with_data: bool) -> tuple[MptcpOption, ...]:
        """The parting option for a segment that is being made."""
        if not with_data:
            return (self.parting.pop(0),) if self.parting else ()
        option = self.parting_data
        if option is None:
            return ()
        if self.sender.una > self.parting_end:
            self.parting_data = None
            self.update_mss()
            return ()
        return (option,)

    def send_ack(self, count: int = 1) -> None:
        """``count`` pure acknowledgements at the next polls, each with the extension's ``ack_options``."""
        self.acks_requested = min(self.acks_requested + count, MAX_ACKS_REQUESTED)

    def set_config(self, config: TcpConfig, now: int | None = None) -> None:
        """Changed options (TCP_NODELAY, TCP_CORK, keep-alive, ...). Timers among them count from ``now``."""
        before, self.config = self.config, config
        if config.congestion is not before.congestion:
            handshake.change_congestion(self)
        self.sender.set_config(config)
        self.receiver.ack.delay_us = config.delayed_ack_us
        tuner = self.receiver.tuner
        tuner.maximum = max(tuner.size, config.receive_buffer_max_bytes)
        if config.receive_buffer_bytes > tuner.size:
            tuner.size = config.receive_buffer_bytes
        if config.max_segment_bytes != before.max_segment_bytes and self.is_established:
            self.update_mss()
        timers.arm_slow(self, self.last_received_us if now is None else now)

    # --- out ----------------------------------------------------------------------------------------------------
    def poll_segment(self, now: int) -> Segment | None:
        """The next segment to send, None when there is none now."""
        if self._reply is not None:
            reply, self._reply = self._reply, None
            self.segments_sent += 1
            return reply
        if not self._can_send:
            return departure.poll_not_sending(self, now)
        if self.acks_requested:
            self.acks_requested -= 1
            return departure.make_ack(self, now)
        sender = self.sender
        if self._extension is not None and sender.window_edge <= sender.nxt:
            # what waits above keeps the persist timer going, as queued data would
            sender.upper_waiting = self._extension.wants_to_send
        record = sender.poll(now)
        if record is not None:
            return departure.make_data(self, record, now)
        receiver = self.receiver
        if receiver.ack.due or receiver.duplicate_acks_owed:
            return departure.make_ack(self, now)
        if sender.poll_probe() or self.probe_wanted:
            return departure.make_probe(self, now)
        return None

    def poll_deadline(self) -> int:
        """When ``handle_timeout`` is to be called; NEVER."""
        deadline = self.timer
        if self.slow_at < deadline:
            deadline = self.slow_at
        if self._can_send and self.sender.deadline < deadline:
            deadline = self.sender.deadline
        ack = self.receiver.ack
        if ack.deadline < deadline and not ack.due:
            deadline = ack.deadline
        return deadline

    # --- for the other files of this package --------------------------------------------------------------------
    def become(self, state: State) -> None:
        """Changes the state; only as RFC 9293 allows."""
        assert state in TRANSITIONS[self.state], (self.state, state)
        self.state = state
        self._can_send = state in SENDING
        self._fast = state in _FAST_STATES and not self.orphan

    def receive_room(self) -> int:
        """How much more may be taken in: what the window is made of."""
        extension = self._extension
        return self.receiver.free_bytes if extension is None else extension.receive_window()

    def window_step(self, free: int) -> int:
        """The smallest advance of the window that is worth telling (RFC 9293 §3.8.6.2.2, Fr = 1/2)."""
        half = (self.receiver.tuner.size if self._extension is None else free) >> 1
        segment = self.receiver.ack.segment_bytes
        return max(1, min(half, segment))

    def update_mss(self) -> None:
        """Path MTU, options or extension have changed."""
        mss = self.send_mss
        if mss != self.sender.mss:
            self.sender.set_mss(mss)

    def allow_challenge(self, now: int) -> bool:
        """Whether one more provoked acknowledgement is within the limit of RFC 5961 §7."""
        if self._challenges is None:
            self._challenges = ChallengeAcks(now)
        return self._challenges.allow(now)

    def reply_reset(self, segment: Segment) -> None:
        """RST in answer to an unacceptable ``segment``; this connection's state stays."""
        self._reply = departure.reset_for(segment)

    def end_with_reply(self, reply: Segment | None, error: Exception, now: int) -> None:
        """CLOSED, after ``reply`` has left."""
        self._reply = reply
        self.end(error, now)

    def note_first_sent(self, now: int) -> None:
        """Something is outstanding where nothing was: the user timeout counts from here."""
        if self.user_timeout is not None:
            self.user_timeout.handle_first_sent(now)
            timers.refresh_slow(self)

    def end(self, error: Exception | None, now: int) -> None:
        """CLOSED, for ``error`` or in good order; the extension hears of it once."""
        if self.state is State.CLOSED:
            return
        if self.error is None:
            self.error = error
        self.become(State.CLOSED)
        self.quiesce()
        self.timer = NEVER
        self.tell_closed(error, now)

    def enter_time_wait(self, now: int) -> None:
        # RFC 9293 §3.10.7.4: "start the time-wait timer, turn off the other timers"
        self.become(State.TIME_WAIT)
        self.slow_at = NEVER
        self.keepalive = None
        self.user_timeout = None
        self.timer = now + self.config.time_wait_us
        self.tell_closed(None, now)

    def quiesce(self) -> None:
        """No timers, nothing more to send."""
        self.slow_at = NEVER
        self.keepalive = None
        self.user_timeout = None
        self.acks_requested = 0
        self.probe_wanted = False
        self.syn_wanted = False
        self.receiver.discard()

    def tell_closed(self, error: Exception | None, now: int) -> None:
        if not self._told_closed:
            self._told_closed = True
            if self._extension is not None:
                self._extension.handle_closed(error, now)
