"""Everything about what one TCP connection sends: stream, records, acknowledgements, windows and timers.

The mechanisms are in files of their own (``retransmit_queue``, ``rtt``, ``rack``, ``sack_recovery``, ``prr``, ``frto``,
``undo``, ``persist``); ``sender_state`` holds what they share, ``loss_recovery`` acts on what comes in, and the class
here on what goes out.
"""

from __future__ import annotations

from collections.abc import Sequence

from mptcp.core.congestion.base import CongestionControl
from mptcp.core.congestion.cubic import Cubic
from mptcp.core.tcp.config import TcpConfig
from mptcp.core.tcp.loss_recovery import LossRecovery
from mptcp.core.tcp.record import Record
from mptcp.core.tcp.retransmit_queue import cut
from mptcp.core.tcp.send_buffer import SendBuffer
from mptcp.core.tcp.sender_state import Probe, SendState, TimeoutKind
from mptcp.core.units import NEVER
from mptcp.core.wire.segment import Payload

__all__ = ["MAX_RECORD_BYTES", "SendState", "Sender", "TimeoutKind", "initial_window_bytes", "make_congestion"]

#: The most octets one record may have (the length field of a DSS mapping, and of an IP packet, has 16 bits).
MAX_RECORD_BYTES = 65_535


def initial_window_bytes(mss: int, segments: int = 10) -> int:
    """RFC 6928 §2: "min (10*MSS, max (2*MSS, 14600))", for any number of segments."""
    return min(segments * mss, max(2 * mss, segments * 1460))


def make_congestion(config: TcpConfig, mss: int) -> CongestionControl:
    """The controller of a new connection, as its configuration says."""
    return (config.congestion or Cubic)(mss, initial_window_bytes(mss, config.initial_window_segments))


class Sender(LossRecovery):
    """Order of calls: ``set_window`` once the handshake has told it, then ``write`` or ``send_mapped`` at any time,
    ``handle_ack`` for each acceptable segment, ``poll`` until None, ``poll_probe``, ``handle_timeout`` when ``deadline``
    has come. Numbers are unwrapped sequence numbers; sizes are octets; times are microseconds.

    ``sack_enabled`` and ``timestamps_enabled`` say what was negotiated and choose the loss detection: RACK-TLP with
    both, RFC 6675 with SACK alone, NewReno without.
    """

    __slots__ = ()

    # --- looking ------------------------------------------------------------------------------------------------
    def sendable_bytes(self) -> int:
        """What ``send_mapped`` may be given now to be sent at once; 0 rather than a crumb that is not worth a record."""
        queue = self.queue
        pipe = queue.in_flight + queue.lost
        if self._dupacks is not None:
            pipe = max(pipe - self._dupacks.credit_bytes, 0)
        queued = self.end - self.nxt
        room = self.congestion.cwnd_bytes - pipe - queued
        window = self.window_edge - self.end
        if self._fin_state or room <= 0 or window <= 0:
            if room <= 0:
                self._cwnd_limited = True
            return 0
        if pipe + queued:
            mss = self.mss
            if window < room:
                # RFC 9293 §3.8.6.2.1: "min(D,U) >= Eff.snd.MSS" or "min(D,U) >= Fs * Max(SND.WND)", Fs = 1/2
                return window if window >= mss or 2 * window >= self._max_window else 0
            # While acknowledgements are outstanding, rather a large record soon than a small one now.
            share = self.congestion.cwnd_bytes >> 2
            if room < mss or (room < share and room < self.gso_max_bytes):
                self._cwnd_limited = True
                return 0
        return min(room, window)

    # --- from the application -----------------------------------------------------------------------------------
    def write(self, payload: Payload) -> int:
        """Octets of the stream; returns how many there was room for. The view must not change afterwards."""
        room = self._send_buffer_bytes - (self.end - self.una)
        size = len(payload)
        if self._fin_state or room <= 0 or not size:
            return 0
        if size > room:
            payload = memoryview(payload)[:room]
            size = room
        if self._stream is None:
            self._stream = SendBuffer()
        self._stream.append(payload)
        self.end += size
        return size

    def adopt(self, payload: Payload) -> None:
        """As ``write`` without its limit: octets that were already counted against a send buffer, before a fallback."""
        if self._stream is None:
            self._stream = SendBuffer()
        self._stream.append(payload)
        self.end += len(payload)

    def send_mapped(self, payloads: Sequence[Payload], length: int, mapping: object) -> int:
        """Queues one record of ``length`` octets under ``mapping``; returns its first number (``end`` before the call).

        Bounded by ``sendable_bytes``, which the caller has asked. Not after ``write`` with octets still unsent.
        """
        start = self.end
        assert 0 < length <= MAX_RECORD_BYTES
        assert not self._fin_state
        assert self._stream is None or not self._stream.length
        record = Record(start, payloads, length, mapping)
        if self._mapped is None:
            self._mapped = [record]
        else:
            self._mapped.append(record)
        self._mapped_bytes += length
        self.end = start + length
        return start

    def finish(self) -> None:
        """A FIN follows everything queued so far; nothing can be added afterwards."""
        if not self._fin_state:
            self._fin_state = True
            self.end += 1

    # --- out ----------------------------------------------------------------------------------------------------
    def poll_probe(self) -> bool:
        """True once for each window probe that is due: a segment with number ``una - 1`` and no data."""
        due = self._persist.probe_due
        self._persist.probe_due = False
        return due

    def poll(self, now: int) -> Record | None:
        """The next record to put into a segment, lost ones first; it counts as sent. None: nothing may go now."""
        if self.queue.lost or self._probe is not Probe.NONE:
            record = self._poll_again(now)
            if record is not None or self.queue.lost:
                return record
        if self.end == self.nxt:
            if self.una == self.nxt and (self.upper_waiting or self._persist.at != NEVER):
                self._update_persist(now)
                self._set_deadline()
        else:
            record = self._poll_new(now, -1)
            if record is not None:
                return record
        return self._poll_unsure(now) if self._may_guess else None

    def _poll_again(self, now: int) -> Record | None:
        """What has to be sent again, or has to be sent as a probe."""
        queue = self.queue
        mss = self.mss
        probe = self._probe
        self._probe = Probe.NONE
        if probe is Probe.NEW:
            record = self._poll_new(now, mss)
            if record is not None:
                self._tlp.on_sent(self.nxt, False, self.rtt)
                self._pto_at = NEVER
                self._set_deadline()
            return record
        if probe is Probe.TAIL:
            last = queue.last
            if last is None or last.lost or last.sacked:
                return None
            if last.length > mss:
                last = queue.split(len(queue.records) - 1, last.start + (last.length - 1) // mss * mss)
            self._tlp.on_sent(self.nxt, True, self.rtt)
            return self._sent_again(last, now)
        lost = queue.next_lost()
        if lost is None:
            return None
        frto = self._frto
        if frto is not None and frto.step == 3:
            if self._frto_room:
                record = self._poll_new(now, self._frto_room) if self.end > self.nxt else None
                if record is not None:
                    self._frto_room = max(self._frto_room - max(record.length, mss), 0)
                    return record
                if self._frto_room < 2 * mss:
                    return None  # one new segment is out: its acknowledgement is waited for
                # RFC 5682 §2.1 (2b): "If the TCP sender does not have any new data to send, or the advertised window
                # prohibits new transmissions, the recommended action is to skip step 3"
                frto.cancel()
            else:
                return None
        room = self.congestion.cwnd_bytes - self.in_flight_bytes
        if probe is Probe.HEAD and room < mss:
            room = mss
        # RFC 7323 §2.4: "On first retransmission, or if the sequence number is out of window by less than
        # 2^Rcv.Wind.Shift, then do normal retransmission(s) without regard to the receiver window"; "Subsequent
        # retransmissions MAY only be sent if they are within the window"
        if lost.start >= self.window_edge and lost.transmissions > 1 and lost.start != self.una:
            return None
        limit = max(self.gso_max_bytes - self.gso_max_bytes % mss, mss)
        size = min(room, limit)
        if lost.length > size:
            size -= size % mss
            if size <= 0:
                return None
            queue.split(queue.index_of(lost.start), lost.start + size)
        return self._sent_again(lost, now)

    def _poll_unsure(self, now: int) -> Record | None:
        """NextSeg() rules (3) and (4) of RFC 6675 §4: what may be lost is sent again, to keep acknowledgements coming."""
        self._may_guess = False
        queue = self.queue
        if self.congestion.cwnd_bytes - queue.in_flight < self.mss or not queue.in_flight:
            return None
        records = queue.records
        index = queue.index_of(queue.scan_from)
        while index < len(records) and (records[index].sacked or records[index].transmissions > 1):
            index += 1
        # RFC 6675 §4 (3): "but there exists an unSACKed sequence number 'S3' that meets the criteria for detecting loss
        # given in steps (1.a) and (1.b) above (specifically excluding step (1.c)), then one segment of up to SMSS octets
        # starting with S3 SHOULD be returned."
        if index < len(records) and records[index].start < queue.highest_sacked:
            record = records[index]
            if record.length > self.mss:
                queue.split(index, record.start + self.mss)
            return self._sent_again(record, now)
        # RFC 6675 §4 (4): "If HighACK is greater than RescueRxt (or RescueRxt is undefined), then one segment of up to
        # SMSS octets that MUST include the highest outstanding unSACKed sequence number SHOULD be returned, and
        # RescueRxt set to RecoveryPoint." What was sent again already is not rescued.
        if self.una <= self._rescue_point:
            return None
        runs = queue.highest_runs(1)
        index = len(records) - 1
        if runs and runs[0][1] == self.nxt:
            index = queue.index_of(runs[0][0]) - 1
        record = records[index]
        if record.transmissions > 1:
            return None
        self._rescue_point = self._recovery_point
        if record.length > self.mss:
            record = queue.split(index, record.start + (record.length - 1) // self.mss * self.mss)
        return self._sent_again(record, now)

    def _sent_again(self, record: Record, now: int) -> Record:
        size = record.end - record.start
        self.queue.note_resent(record, now)
        self.bytes_retransmitted += size
        self.retransmissions += 1
        self._count_sent(record)
        if self._undo is not None and self._undo.active:
            self._undo.on_resent(size, now)
        if self.state in (SendState.RECOVERY, SendState.CWR):
            self._prr_of().on_sent(size)
        if record.start == self.una or self._rto_at == NEVER:
            # the oldest octets get a whole timeout from their latest transmission
            self._rto_at = now + self.rtt.timeout_us
        self._last_sent_us = now
        self._set_deadline()
        return record

    def _count_sent(self, record: Record) -> None:
        length = record.length
        self.bytes_sent += length
        self.segments_sent += (length + self.mss - 1) // self.mss or 1

    def _poll_new(self, now: int, forced_room: int) -> Record | None:
        """New data, as far as windows and the rules against small segments let it go. ``forced_room`` >= 0 stands for
        what the congestion window would allow."""
        queue = self.queue
        mss = self.mss
        nxt = self.nxt
        idle = self.una == nxt
        congestion = self.congestion
        if idle and self.bytes_sent and now - self._last_sent_us > self.rtt.rto_us:
            # RFC 5681 §4.1: "a TCP SHOULD set cwnd to no more than RW before beginning transmission if the TCP has not
            # sent data in an interval exceeding the retransmission timeout."
            restart = initial_window_bytes(mss, self._initial_window_segments)
            congestion.on_idle(now - self._last_sent_us, self.rtt.rto_us, restart)
            self._last_sent_us = now
        if forced_room >= 0:
            room = forced_room
        else:
            room = congestion.cwnd_bytes - queue.in_flight
            if self._dupacks is not None:
                room += min(self._dupacks.credit_bytes, queue.in_flight)
        window = self.window_edge - nxt
        allowed = room
        if window < room:
            allowed = window
        mapped = self._mapped
        if mapped is not None:
            record = mapped[self._mapped_head]
            length = record.length
            if length > allowed:
                allowed = self._whole_segments(allowed, room, window, idle, now)
                if allowed <= 0:
                    return None
                record = self._cut_queued(record, allowed)
                length = allowed
            else:
                self._drop_queued()
            self._mapped_bytes -= length
        else:
            stream = self._stream
            unsent = stream.length if stream is not None else 0
            limit = self.gso_max_bytes
            limit = limit - limit % mss or mss
            size = min(unsent, limit)
            if size > allowed:
                share = congestion.cwnd_bytes >> 2
                if forced_room < 0 and not idle and room < window and room < share and room < limit:
                    self._cwnd_limited = True
                    return None
                size = self._whole_segments(allowed, room, window, idle, now)
                if size <= 0:
                    return None
            elif size < unsent:
                pass  # ``limit`` is whole segments
            elif self._fin_state:
                if window <= size:
                    if not size:
                        self._update_persist(now)
                        self._set_deadline()
                        return None
                    return self._take_stream(size, False, now)
                return self._take_stream(size, True, now)
            elif forced_room < 0:
                size = self._held_by_nagle(size, idle, now)
                if not size:
                    return None
            return self._take_stream(size, False, now)
        self._sent_new(record, now, room - length)
        return record

    def _take_stream(self, size: int, fin: bool, now: int) -> Record:
        stream = self._stream
        payloads: list[Payload] = stream.take(size) if stream is not None and size else []
        record = Record(self.nxt, payloads, size, None, fin)
        if size % self.mss:
            self._small_end = record.end
        if fin:
            self.fin_sent = True
        self._persist.may_override = False
        room = self.congestion.cwnd_bytes - self.in_flight_bytes - size
        self._sent_new(record, now, room)
        return record

    def _held_by_nagle(self, size: int, idle: bool, now: int) -> int:
        """How much of the last ``size`` octets may go now."""
        tail = size % self.mss
        if not tail or self._persist.may_override:
            return size
        if self._cork:
            size -= tail
            if not size and idle:
                self._persist.arm_override(now)
                self._set_deadline()
            return size
        # RFC 9293 §3.7.4: "If there is unacknowledged data (i.e., SND.NXT > SND.UNA), then the sending TCP endpoint
        # buffers all user data (regardless of the PSH bit) until the outstanding data has been acknowledged or until the
        # TCP endpoint can send a full-sized segment". Linux holds it only while a segment that was not full-sized is
        # outstanding (Minshall); we do that, because the last part of a large write else waits for a delayed ACK.
        if not self._no_delay and not idle and self._small_end > self.una:
            return size - tail
        return size

    def _whole_segments(self, allowed: int, room: int, window: int, idle: bool, now: int) -> int:
        """More waits than is ``allowed``: how much of it is sensible to send now (RFC 9293 §3.8.6.2.1)."""
        mss = self.mss
        if allowed >= mss:
            return allowed - allowed % mss
        if window > room:
            self._cwnd_limited = True
            return 0
        if window <= 0:
            if idle:
                self._update_persist(now)
                self._set_deadline()
            return 0
        # "Fs = 1/2 is recommended": "(3) ... if [SND.NXT = SND.UNA and]: min(D,U) >= Fs * Max(SND.WND)"
        if 2 * window >= self._max_window or self._persist.may_override:
            self._persist.may_override = False
            return window
        if idle:
            # "(4) or if the override timeout occurs"
            self._persist.arm_override(now)
            self._set_deadline()
        return 0

    def _drop_queued(self) -> None:
        """The first queued record goes out."""
        mapped = self._mapped
        assert mapped is not None
        head = self._mapped_head + 1
        if head == len(mapped):
            self._mapped = None
            self._mapped_head = 0
        elif head >= 32:
            del mapped[:head]
            self._mapped_head = 0
        else:
            self._mapped_head = head

    def _cut_queued(self, record: Record, size: int) -> Record:
        """Takes the first ``size`` octets off the first queued record."""
        left, rest = cut(record.payloads, size)
        part = Record(record.start, left, size, record.mapping)
        record.payloads = rest
        record.start += size
        record.length -= size
        return part

    def _sent_new(self, record: Record, now: int, room: int) -> None:
        record.first_sent_us = record.last_sent_us = self._last_sent_us = now
        record.transmissions = 1
        queue = self.queue
        queue.append(record)
        self.nxt = nxt = record.end
        self._count_sent(record)
        limited = room < self.mss
        flight = queue.in_flight
        # RFC 7661 §4.3 in the form Linux has: the window is in use if in this round trip it was once filled
        if limited or self.una >= self._usage_end or (not self._cwnd_limited and flight > self._max_flight):
            self._cwnd_limited = limited
            self._max_flight = flight
            self._usage_end = nxt
        # RFC 6298 §5.1: "Every time a packet containing data is sent (including a retransmission), if the timer is not
        # running, start it running so that it will expire after RTO seconds"
        if self._rto_at == NEVER:
            self._rto_at = now + self.rtt.timeout_us
        if self._plain_sailing:
            self._arm_pto(now)
        else:
            if self.state in (SendState.RECOVERY, SendState.CWR):
                self._prr_of().on_sent(record.length)
            self._pto_at = NEVER
            if self._tlp.end_seq < 0 and self._may_probe_tail():
                self._arm_pto(now)
            self._set_deadline()
