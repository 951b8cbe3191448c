"""What the sending half of a connection knows: numbers, windows, statistics, timers, and the mechanisms at work."""

from __future__ import annotations

from enum import Enum

from mptcp.core.congestion.base import CongestionControl
from mptcp.core.tcp.config import TcpConfig
from mptcp.core.tcp.frto import Frto
from mptcp.core.tcp.persist import PersistTimer
from mptcp.core.tcp.prr import Prr
from mptcp.core.tcp.rack import Rack, TailLossProbe
from mptcp.core.tcp.record import Record
from mptcp.core.tcp.retransmit_queue import RetransmitQueue
from mptcp.core.tcp.rtt import RttEstimator
from mptcp.core.tcp.sack_recovery import DuplicateAcks
from mptcp.core.tcp.send_buffer import SendBuffer
from mptcp.core.tcp.undo import Undo
from mptcp.core.units import NEVER


class TimeoutKind(Enum):
    """What ``handle_timeout`` did."""

    NONE = "none"  # nothing that concerns others (also: a held-back piece may now be sent)
    RTO = "rto"  # the retransmission timer: the oldest record goes out again
    TLP = "tlp"  # a tail loss probe is about to be sent
    RACK = "rack"  # the reordering window has passed: some records are lost
    PERSIST = "persist"  # a window probe is due (``poll_probe``)


class SendState(Enum):
    """Where congestion control is."""

    OPEN = "open"
    CWR = "cwr"  # reducing the window after an ECN echo
    RECOVERY = "recovery"  # fast recovery
    LOSS = "loss"  # after a retransmission timeout, or a smaller path MTU


class Probe(Enum):
    """What the next ``poll`` sends in spite of the congestion window."""

    NONE = 0
    NEW = 1  # one segment of new data, whatever the congestion window says
    TAIL = 2  # the last segment again
    HEAD = 3  # the first lost segment, whatever the congestion window says


class SenderState:
    """Plain attributes, and the timers made of them. ``Sender`` is what acts on it.

    Numbers are unwrapped sequence numbers; sizes are octets; times are microseconds.
    """

    __slots__ = (
        "_cork",
        "_cwnd_limited",
        "_dupacks",
        "_ecn_point",
        "_fin_state",
        "_frto",
        "_frto_room",
        "_initial_window_segments",
        "_last_sent_us",
        "_mapped",
        "_mapped_bytes",
        "_mapped_head",
        "_max_flight",
        "_max_window",
        "_may_guess",
        "_no_delay",
        "_persist",
        "_plain_sailing",
        "_probe",
        "_prr",
        "_pto_at",
        "_rack",
        "_recovery_point",
        "_reo_at",
        "_rescue_point",
        "_rto_at",
        "_rto_max_us",
        "_send_buffer_bytes",
        "_small_end",
        "_stream",
        "_tlp",
        "_undo",
        "_usage_end",
        "bytes_acked",
        "bytes_retransmitted",
        "bytes_sent",
        "congestion",
        "consecutive_timeouts",
        "cwr_pending",
        "deadline",
        "dsacks",
        "ecn_reductions",
        "end",
        "fast_recoveries",
        "fin_sent",
        "first_seq",
        "gso_max_bytes",
        "mss",
        "nxt",
        "queue",
        "retransmissions",
        "rtt",
        "sack_enabled",
        "segments_sent",
        "spurious_recoveries",
        "spurious_timeouts",
        "state",
        "timeouts",
        "timestamps_enabled",
        "tlp_probes",
        "una",
        "upper_waiting",
        "window_edge",
    )  # fmt: skip

    def __init__(self, config: TcpConfig, congestion: CongestionControl, first_seq: int, mss: int, now: int) -> None:
        self.congestion = congestion
        self.first_seq = first_seq
        self.mss = mss
        self.gso_max_bytes = mss  # the longest record made of the stream; rounded down to segments
        self.una = first_seq  # oldest number not acknowledged
        self.nxt = first_seq  # next number never sent
        self.end = first_seq  # ``nxt`` after all that is queued
        self.window_edge = first_seq  # first number the peer does not want yet
        self.upper_waiting = False  # data waits above that only the peer's window holds back
        self.sack_enabled = config.sack
        self.timestamps_enabled = config.timestamps
        self.cwr_pending = False  # the next segment with new data carries CWR; the connection clears it
        self.fin_sent = False
        self.state = SendState.OPEN
        self.rtt = RttEstimator(config.rto_initial_us, config.rto_min_us, config.rto_max_us)
        self.queue = RetransmitQueue(first_seq)
        self.deadline = NEVER
        self.consecutive_timeouts = 0  # RTOs since the last acknowledgement of new data
        self.bytes_sent = 0
        self.bytes_acked = 0
        self.bytes_retransmitted = 0
        self.segments_sent = 0
        self.retransmissions = 0
        self.timeouts = 0
        self.spurious_timeouts = 0
        self.spurious_recoveries = 0
        self.tlp_probes = 0
        self.fast_recoveries = 0
        self.ecn_reductions = 0
        self.dsacks = 0
        self._fin_state = False  # finish() was called
        self._stream: SendBuffer | None = None
        self._mapped: list[Record] | None = None
        self._mapped_head = 0
        self._mapped_bytes = 0
        self._max_window = 0  # largest window the peer has offered
        self._small_end = first_seq  # end of the last segment sent that was not full-sized
        self._last_sent_us = now
        self._rto_at = NEVER
        self._pto_at = NEVER
        self._reo_at = NEVER
        self._recovery_point = first_seq - 1  # a state other than OPEN ends when this is acknowledged
        self._ecn_point = first_seq - 1  # no second reaction to ECN echoes before more than this is acknowledged
        self._may_guess = False  # RFC 6675 §4 NextSeg() (3), (4): once per acknowledgement in recovery
        self._rescue_point = -1  # RescueRxt
        self._frto_room = 0  # octets of new data that F-RTO still lets out
        self._cwnd_limited = False
        self._max_flight = 0
        self._usage_end = first_seq
        self._plain_sailing = True  # nothing sacked, lost, retransmitted, reduced, probed: the short way is enough
        self._probe = Probe.NONE
        self._rack = Rack(first_seq)
        self._tlp = TailLossProbe()
        self._persist = PersistTimer()
        # made when first needed
        self._prr: Prr | None = None
        self._undo: Undo | None = None
        self._frto: Frto | None = None
        self._dupacks: DuplicateAcks | None = None
        self.set_config(config)

    def set_config(self, config: TcpConfig) -> None:
        """Takes over TCP_NODELAY, TCP_CORK and sizes; what was negotiated stays."""
        self._no_delay = config.no_delay
        self._cork = config.cork
        self._rto_max_us = config.rto_max_us
        self._initial_window_segments = config.initial_window_segments
        self._send_buffer_bytes = config.send_buffer_bytes

    # --- looking ------------------------------------------------------------------------------------------------
    @property
    def queued_bytes(self) -> int:
        """Octets handed over and never sent."""
        stream = self._stream
        return self._mapped_bytes + (stream.length if stream is not None else 0)

    @property
    def unacked_bytes(self) -> int:
        """Sequence numbers sent and not cumulatively acknowledged."""
        return self.nxt - self.una

    @property
    def in_flight_bytes(self) -> int:
        """What is believed to be in the network: ``pipe`` of RFC 6675."""
        credit = self._dupacks
        return self.queue.in_flight if credit is None else max(self.queue.in_flight - credit.credit_bytes, 0)

    @property
    def free_bytes(self) -> int:
        """How much ``write`` would take now."""
        return max(self._send_buffer_bytes - (self.end - self.una), 0)

    @property
    def is_all_acked(self) -> bool:
        """Everything queued, and the FIN if there is one, is acknowledged."""
        return self.una == self.end

    @property
    def fin_acked(self) -> bool:
        return self.fin_sent and self.una == self.nxt

    @property
    def oldest_unacked_us(self) -> int:
        """When the oldest octet not acknowledged was first sent; NEVER if there is none."""
        first = self.queue.first
        return first.first_sent_us if first is not None else NEVER

    @property
    def unanswered_probes(self) -> int:
        """Window probes since the peer was last heard of."""
        return self._persist.unanswered

    @property
    def ssthresh_bytes(self) -> int:
        return self.congestion.ssthresh_bytes

    # --- from the network ---------------------------------------------------------------------------------------
    def set_window(self, edge: int) -> None:
        """The peer takes numbers below ``edge`` (it may also have moved to the left)."""
        self.window_edge = edge
        if edge - self.una > self._max_window:
            self._max_window = edge - self.una
        if edge > self.nxt:
            self._end_probing()

    def set_mss(self, mss: int) -> None:
        """Payload octets per segment from now on."""
        if mss != self.mss:
            self.mss = mss
            self.congestion.on_mss(mss)

    # --- timers -------------------------------------------------------------------------------------------------
    def _set_deadline(self) -> None:
        self.deadline = min(self._rto_at, self._pto_at, self._reo_at, self._persist.at)

    def _may_probe_tail(self) -> bool:
        # RFC 8985 §7.2: "unless it is already in fast recovery, RTO recovery, or segments have been SACKed"
        return (
            self.state is SendState.OPEN
            and self.sack_enabled
            and self.timestamps_enabled
            and not self.queue.sacked
            and self.una != self.nxt
        )

    def _arm_pto(self, now: int) -> None:
        """The probe timer, where the short way is enough; sets ``deadline``. The retransmission timer runs."""
        rto_at = self._rto_at
        tlp = self._tlp
        rtt = self.rtt
        # A probe that may not be sent is not scheduled: it would only put off the retransmission timer (RFC 8985 §7.3).
        if rtt.samples > tlp.samples_at_probe and tlp.end_seq < 0 and self.sack_enabled and self.timestamps_enabled:
            pto_at = now + tlp.interval_us(rtt, self.nxt - self.una <= self.mss)
            # RFC 8985 §7.2: "If Now() + PTO > TCP_RTO_expiration(): PTO = TCP_RTO_expiration() - Now()"
            if pto_at > rto_at:
                pto_at = rto_at
            self._pto_at = self.deadline = pto_at
        else:
            self._pto_at = NEVER
            self.deadline = rto_at

    def _update_persist(self, now: int) -> None:
        persist = self._persist
        if self.una == self.nxt and self.window_edge <= self.nxt and (self.end > self.nxt or self.upper_waiting):
            persist.arm_probe(now, self.rtt.rto_us, self._rto_max_us)
        elif not persist.is_override and (persist.at != NEVER or persist.probe_due or persist.backoff):
            persist.cancel()

    def _end_probing(self) -> None:
        if not self._persist.is_override:
            self._persist.cancel()
            self._set_deadline()
