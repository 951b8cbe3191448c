"""The sender against a network that loses, delays, repeats and reorders, and a receiver that obeys the RFCs."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mptcp.core.congestion.newreno import NewReno
from mptcp.core.tcp.config import TcpConfig
from mptcp.core.tcp.record import Record
from mptcp.core.tcp.sender import Sender, make_congestion
from mptcp.core.units import NEVER

MSS = 1000
FIRST = 2**32 - 7000  # the stream passes where wire numbers wrap
PATTERN = bytes(n % 251 for n in range(251 * 300))


def octets(start: int, length: int) -> bytes:
    """The stream's octets from number ``start`` on: each tells where it belongs."""
    offset = (start - FIRST) % 251
    assert length < 251 * 299
    return PATTERN[offset : offset + length]


class ModelReceiver:
    """Takes segments, checks every octet, and says what an RFC 2018 / RFC 2883 / RFC 7323 receiver would say."""

    def __init__(self) -> None:
        self.next = FIRST
        self.ranges: list[tuple[int, int]] = []
        self.recent_us = -1
        self.fin_end = -1

    @property
    def got_fin(self) -> bool:
        return 0 <= self.fin_end <= self.next

    def receive(
        self, start: int, end: int, payload: bytes, fin: bool, sent_us: int
    ) -> tuple[int, list[tuple[int, int]], int]:
        """(ack, SACK blocks, echoed time)."""
        assert payload == octets(start, len(payload))
        if start <= self.next:
            self.recent_us = max(self.recent_us, sent_us // 1000 * 1000)
        blocks: list[tuple[int, int]] = []
        if end <= self.next:
            blocks.append((start, end))
        else:
            covering = [(left, right) for left, right in self.ranges if left <= start and end <= right]
            if covering:
                blocks.append((start, end))
            merged = (start, end)
            rest = []
            for left, right in self.ranges:
                if right < merged[0] or left > merged[1]:
                    rest.append((left, right))
                else:
                    merged = (min(left, merged[0]), max(right, merged[1]))
            self.ranges = [merged, *rest]  # the latest first
            for left, right in list(self.ranges):
                if left <= self.next:
                    self.next = max(self.next, right)
            self.ranges = [block for block in self.ranges if block[1] > self.next]
            blocks += self.ranges
        if fin:
            self.fin_end = end
        return self.next, blocks[:4], self.recent_us


class SenderMachine(RuleBasedStateMachine):
    """One connection of each kind; ``teardown`` lets everything arrive and looks whether it did."""

    @initialize(
        sack=st.booleans(),
        timestamps=st.booleans(),
        mapped=st.booleans(),
        reno=st.booleans(),
        gso=st.sampled_from([1, 4, 64]),
    )
    def start(self, sack: bool, timestamps: bool, mapped: bool, reno: bool, gso: int) -> None:
        config = TcpConfig(
            sack=sack, timestamps=timestamps, no_delay=mapped, congestion=NewReno if reno else None, rto_min_us=200_000
        )
        self.sender = Sender(config, make_congestion(config, MSS), FIRST, MSS, 0)
        self.sender.gso_max_bytes = min(gso * MSS, 64 * MSS)
        self.mapped = mapped
        self.now = 1000
        self.window = 40_000
        self.sender.set_window(FIRST + self.window)
        self.receiver = ModelReceiver()
        self.data: list[tuple[int, int, bytes, bool, int]] = []
        self.acks: list[tuple[int, int, list[tuple[int, int]], int]] = []
        self.written = FIRST
        self.finished = False
        self.sent_high = FIRST

    # --- the application
    @precondition(lambda self: not self.finished and self.written - FIRST < 60_000)
    @rule(size=st.sampled_from([1, 7, 999, 1000, 1001, 2500, 9000]))
    def write(self, size: int) -> None:
        if self.mapped:
            room = self.sender.sendable_bytes()
            size = min(size, room)
            if size:
                view = memoryview(octets(self.written, size))
                self.sender.send_mapped([view[: size // 2], view[size // 2 :]], size, self.written)
        else:
            assert self.sender.write(octets(self.written, size)) == size
        self.written += size
        assert self.sender.end == self.written

    @precondition(lambda self: not self.finished)
    @rule()
    def finish(self) -> None:
        if self.written - FIRST > 20_000:
            self.finished = True
            self.sender.finish()

    # --- out
    @rule(count=st.integers(1, 30))
    def poll(self, count: int) -> None:
        while count and self.poll_one():
            count -= 1

    def poll_one(self) -> bool:
        record = self.sender.poll(self.now)
        if record is None:
            return False
        self.check_record(record)
        payload = b"".join(record.payloads)
        position = 0
        while True:  # the link cuts it into segments
            part = payload[position : position + self.sender.mss]
            last = position + len(part) == len(payload)
            start = record.start + position
            fin = record.fin and last
            self.data.append((start, start + len(part) + fin, part, fin, self.now))
            position += len(part)
            if last:
                return True

    def check_record(self, record: Record) -> None:
        assert record.end - record.start == record.length + record.fin
        assert sum(map(len, record.payloads)) == record.length
        assert record.length or record.fin
        if record.end > self.sent_high:
            assert record.start == self.sent_high
            assert record.end <= self.sender.window_edge
            self.sent_high = record.end
        if self.mapped and record.length:
            assert isinstance(record.mapping, int)
            assert record.mapping <= record.start

    # --- the network
    @precondition(lambda self: self.data)
    @rule(choice=st.integers(0, 1000), fate=st.sampled_from(["deliver", "deliver", "deliver", "drop", "repeat"]))
    def handle_data(self, choice: int, fate: str) -> None:
        index = choice % min(len(self.data), 6)
        segment = self.data[index] if fate == "repeat" else self.data.pop(index)
        if fate != "drop":
            ack, blocks, echo = self.receiver.receive(*segment)
            self.acks.append((ack, self.window, blocks, echo))

    @precondition(lambda self: self.acks)
    @rule(choice=st.integers(0, 1000), lose=st.booleans())
    def handle_ack(self, choice: int, lose: bool) -> None:
        ack, window, blocks, echo = self.acks.pop(choice % min(len(self.acks), 3))
        if not (lose and self.acks):
            self.deliver_ack(ack, window, blocks, echo)

    def deliver_ack(self, ack: int, window: int, blocks: list[tuple[int, int]], echo: int) -> None:
        una = self.sender.una
        echo_us = self.now - echo if self.sender.timestamps_enabled and echo >= 0 else -1
        acked = self.sender.handle_ack(ack, window, self.now, sack_blocks=blocks, rtt_echo_us=echo_us)
        assert acked == max(ack - una, 0)

    @rule(us=st.sampled_from([10, 1000, 20_000, 150_000]))
    def wait(self, us: int) -> None:
        self.now += us
        self.fire()

    @rule()
    def wait_for_deadline(self) -> None:
        if self.sender.deadline < NEVER:
            self.now = max(self.now, self.sender.deadline)
            self.fire()

    def fire(self) -> None:
        for _ in range(8):
            if self.sender.deadline > self.now:
                return
            self.sender.handle_timeout(self.now)
        raise AssertionError("the deadline does not move")

    @rule(window=st.sampled_from([0, 500, 3000, 40_000]))
    def change_window(self, window: int) -> None:
        self.window = max(window, self.sender.nxt - self.receiver.next)  # a receiver does not shrink it

    @rule(mss=st.sampled_from([1000, 700, 536]))
    def path_mtu(self, mss: int) -> None:
        self.sender.handle_path_mtu(mss, self.now)

    # --- what always holds
    @invariant()
    def accounts_are_exact(self) -> None:
        if not hasattr(self, "sender"):
            return
        check_accounts(self.sender)

    def teardown(self) -> None:
        if not hasattr(self, "sender"):
            return
        sender = self.sender
        self.window = 40_000
        for _ in range(2000):
            while self.poll_one():
                pass
            if sender.poll_probe():
                self.acks.append((self.receiver.next, self.window, [], -1))
            while self.data:
                ack, blocks, echo = self.receiver.receive(*self.data.pop(0))
                self.acks.append((ack, self.window, blocks, echo))
            if not self.acks and self.sender.deadline == NEVER:
                break
            if not self.acks:
                self.now = max(self.now, sender.deadline)
                self.fire()
            self.now += 500
            while self.acks:
                self.deliver_ack(*self.acks.pop(0))
            check_accounts(sender)
        assert self.receiver.next == sender.end == sender.una == sender.nxt
        assert self.receiver.got_fin == self.finished == sender.fin_acked
        assert sender.deadline == NEVER
        assert sender.bytes_acked == sender.end - FIRST


def check_accounts(sender: Sender) -> None:
    queue = sender.queue
    in_flight = sacked = lost = 0
    position = sender.una
    runs: list[list[int]] = []
    for record in queue.records[queue.index_of(sender.una) :]:
        assert record.start == position
        position = record.end
        size = record.end - record.start
        assert not (record.sacked and record.lost)
        if record.sacked:
            sacked += size
            if runs and runs[-1][1] == record.start:
                runs[-1][1] = record.end
            else:
                runs.append([record.start, record.end])
        elif record.lost:
            lost += size
        else:
            in_flight += size
            assert record.transmissions > 0
    assert position == sender.nxt
    assert (in_flight, sacked, lost) == (queue.in_flight, queue.sacked, queue.lost)
    assert [list(run) for run in queue.sacked_runs] == runs
    assert sender.congestion.cwnd_bytes >= sender.mss
    assert (sender.una == sender.nxt) <= (queue.in_flight == 0)
    if sender.una != sender.nxt:
        assert sender.deadline < NEVER  # something will happen even if nothing comes back


TestSenderMachine = SenderMachine.TestCase
TestSenderMachine.settings = settings(
    max_examples=40, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck)
)
