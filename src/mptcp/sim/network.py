"""Paths: where packets wait, travel, and get lost, in virtual time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from random import Random

from mptcp.core.entropy import Entropy
from mptcp.sim.clock import Action, VirtualClock
from mptcp.sim.conditions import Conditions
from mptcp.sim.middlebox import Middlebox
from mptcp.sim.rawtcp import complete_checksum, mark_congestion
from mptcp.sim.trace import SENT, Outcome, Trace

_SECOND_NS = 1_000_000_000


class Node(ABC):
    """Where a direction ends: a host, or a router."""

    __slots__ = ()

    @abstractmethod
    def handle_arrival(self, port: int, data: bytes, trusted: bool) -> None:
        """A packet has come in by ``port``. ``trusted``: nothing can have damaged it, its checksum may be partial."""


class Direction:
    """One direction of a path: a drop-tail queue, a bottleneck, and a wire.

    Each kind of accident has a random stream of its own, so that switching one on leaves the others as they were.
    A packet's departure is computed when it enters; the queue itself is not stepped through.
    """

    __slots__ = (
        "_boxes", "_burst_is_bad", "_burst_random", "_clock", "_corrupt_random", "_deliver_action",
        "_duplicate_random", "_forward", "_free_ns", "_hazards", "_jitter_random", "_last_arrival", "_loss_random",
        "_node", "_port", "_queue_ns", "_rate_bps", "_reorder_random", "_trace", "_transit", "_wake",
        "bytes_delivered", "conditions", "corrupted", "delay_us", "down_drops", "duplicated", "epoch", "index", "lost",
        "marked", "max_queue_ns", "name", "needs_checksum", "packets_delivered", "packets_entered", "queue_drops", "reordered", "up",
    )  # fmt: skip

    def __init__(
        self,
        clock: VirtualClock,
        entropy: Entropy,
        node: Node,
        port: int,
        conditions: Conditions,
        *,
        name: str = "",
        index: int = 0,
        forward: bool = True,
    ) -> None:
        self._clock = clock
        self._node = node
        self._port = port
        self._forward = forward
        self._loss_random = Random(entropy.child("loss").octets(32))
        self._burst_random = Random(entropy.child("burst").octets(32))
        self._reorder_random = Random(entropy.child("reorder").octets(32))
        self._duplicate_random = Random(entropy.child("duplicate").octets(32))
        self._corrupt_random = Random(entropy.child("corrupt").octets(32))
        self._jitter_random = Random(entropy.child("jitter").octets(32))
        self._burst_is_bad = False
        self._boxes: list[Middlebox] = []
        self._trace: Trace | None = None
        #: (arrival in µs, departure in ns, octets, packet, trusted), in order of both
        self._transit: deque[tuple[int, int, int, bytes, bool]] = deque()
        self._free_ns = 0  # when the bottleneck has sent all it has accepted
        self._last_arrival = 0
        self._wake = 0  # number of the clock's event for the head of ``_transit``; 0: none
        self._deliver_action = self._deliver
        self.name = name
        self.index = index
        self.up = True
        self.epoch = 0  # how often the wire was cut: what travelled then never arrives
        self.packets_entered = self.packets_delivered = self.bytes_delivered = 0
        self.queue_drops = self.lost = self.down_drops = 0
        self.duplicated = self.reordered = self.corrupted = self.marked = 0
        self.max_queue_ns = 0
        self._set_conditions(conditions)

    # --- conditions -------------------------------------------------------------------------------------------------
    def _set_conditions(self, conditions: Conditions) -> None:
        self.conditions = conditions
        self.delay_us = conditions.delay_us
        self._rate_bps = conditions.rate_bps
        rate = conditions.rate_bps
        self._queue_ns = conditions.queue_bytes * 8 * _SECOND_NS // rate if rate else 0
        self._hazards = bool(
            conditions.loss
            or conditions.burst_loss is not None
            or conditions.jitter_us
            or conditions.reorder
            or conditions.duplicate
            or conditions.corrupt
            or conditions.ecn_threshold_bytes
        )
        self.needs_checksum = bool(self._boxes) or conditions.corrupt > 0.0

    def set_conditions(self, conditions: Conditions) -> None:
        """From now on. What waits in the queue leaves at the new rate; what is on the wire keeps its delay."""
        old_rate = self._rate_bps
        self._set_conditions(conditions)
        if old_rate != self._rate_bps and self._transit:
            self._replan(old_rate)

    def _replan(self, old_rate: int) -> None:
        """Gives new times to what has not begun to leave."""
        now_ns = self._clock.now * 1000
        waiting: list[tuple[int, int, int, bytes, bool]] = []
        transit = self._transit
        while transit:
            departure = transit[-1][1]
            started = departure - (transit[-1][2] * 8 * _SECOND_NS // old_rate if old_rate else 0)
            if started <= now_ns:
                break
            waiting.append(transit.pop())
        free = transit[-1][1] if transit else now_ns
        last = transit[-1][0] if transit else 0
        for _, _, size, data, trusted in reversed(waiting):
            free = max(free, now_ns) + (size * 8 * _SECOND_NS // self._rate_bps if self._rate_bps else 0)
            last = max(last, (free + 999) // 1000 + self.delay_us)
            transit.append((last, free, size, data, trusted))
        self._free_ns = free
        self._last_arrival = last
        self._rearm()

    def set_up(self, up: bool) -> None:
        """Down is a cut cable: what enters is lost, and so is what was under way. Nobody is told."""
        if up == self.up:
            return
        self.up = up
        if not up:
            self.epoch += 1
            self.down_drops += len(self._transit)
            self._transit.clear()
            self._rearm()
            self._free_ns = 0

    def add_middlebox(self, box: Middlebox) -> None:
        """In the forward direction behind those that are there already, in the other before them: as boxes stand on
        a wire."""
        if self._forward:
            self._boxes.append(box)
        else:
            self._boxes.insert(0, box)
        self.needs_checksum = True

    def remove_middlebox(self, box: Middlebox) -> None:
        self._boxes.remove(box)
        self._set_conditions(self.conditions)

    def set_trace(self, trace: Trace | None) -> None:
        self._trace = trace

    @property
    def max_queue_us(self) -> int:
        """The longest time a packet has waited for the bottleneck."""
        return self.max_queue_ns // 1000

    @property
    def queued_bytes(self) -> int:
        """In the queue and in the bottleneck, now."""
        if not self._rate_bps:
            return 0
        return max(0, self._free_ns - self._clock.now * 1000) * self._rate_bps // (8 * _SECOND_NS)

    # --- packets ----------------------------------------------------------------------------------------------------
    def send(self, data: bytes, trusted: bool) -> None:
        """A packet enters. ``trusted``: its checksum need not be complete, because no one has touched it."""
        if self.needs_checksum and trusted:
            data = complete_checksum(data)
            trusted = False
        if self._boxes:
            self._pass_boxes(data, 0)
        else:
            self._enqueue(data, trusted)

    def _pass_boxes(self, data: bytes, first: int) -> None:
        packets = [data]
        now = self._clock.now
        for box in self._boxes[first:]:
            packets = [out for packet in packets for out in box.process(packet, self._forward, now)]
        for packet in packets:
            self._enqueue(packet, False)

    def inject(self, data: bytes, behind: Middlebox) -> None:
        """A packet that ``behind`` made itself: it passes the boxes that come after it."""
        if behind in self._boxes:
            self._pass_boxes(data, self._boxes.index(behind) + 1)
        else:
            self._enqueue(data, False)

    def _enqueue(self, data: bytes, trusted: bool, is_copy: bool = False) -> None:
        clock = self._clock
        now = clock.now
        size = len(data)
        self.packets_entered += 1
        trace = self._trace
        if not self.up:
            self.down_drops += 1
            if trace is not None:
                trace.record(now, self, data, Outcome.DOWN)
            return
        hazards = self._hazards
        if hazards and self._is_lost():
            self.lost += 1
            if trace is not None:
                trace.record(now, self, data, Outcome.LOST)
            return
        now_ns = now * 1000
        rate = self._rate_bps
        free = self._free_ns
        if rate:
            if free < now_ns:
                free = now_ns
            wait = free - now_ns
            departure = free + size * 8_000_000_000 // rate
            # A packet may always use an idle bottleneck, however small the queue.
            if wait and departure - now_ns > self._queue_ns:
                self.queue_drops += 1
                if trace is not None:
                    trace.record(now, self, data, Outcome.QUEUE_FULL)
                return
            self._free_ns = departure
            if wait > self.max_queue_ns:
                self.max_queue_ns = wait
        else:
            departure = now_ns
        arrival = (departure + 999) // 1000 + self.delay_us
        if trace is not None:
            trace.record(now, self, data, SENT)
        if hazards:
            original = data
            data, arrival, late = self._hazard(data, arrival, now_ns)
            if late:
                epoch = self.epoch
                clock.at(arrival + late, lambda: self._deliver_late(data, trusted, epoch))
            else:
                self._depart(arrival, departure, size, data, trusted)
            duplicate = self.conditions.duplicate
            if duplicate and not is_copy and self._duplicate_random.random() < duplicate:
                self.duplicated += 1
                self._enqueue(original, trusted, is_copy=True)
            return
        self._depart(arrival, departure, size, data, trusted)

    def _depart(self, arrival: int, departure: int, size: int, data: bytes, trusted: bool) -> None:
        if arrival < self._last_arrival:
            arrival = self._last_arrival
        self._last_arrival = arrival
        transit = self._transit
        transit.append((arrival, departure, size, data, trusted))
        if not self._wake:
            self._wake = self._clock.at(arrival, self._deliver_action)

    def _is_lost(self) -> bool:
        conditions = self.conditions
        lost = conditions.loss > 0.0 and self._loss_random.random() < conditions.loss
        burst = conditions.burst_loss
        if burst is not None:
            random = self._burst_random.random
            if random() < (burst.to_good if self._burst_is_bad else burst.to_bad):
                self._burst_is_bad = not self._burst_is_bad
            if random() < (burst.loss_bad if self._burst_is_bad else burst.loss_good):
                lost = True
        return lost

    def _hazard(self, data: bytes, arrival: int, now_ns: int) -> tuple[bytes, int, int]:
        """The packet, damaged or marked, its arrival with jitter, and how much later a reordered one comes."""
        conditions = self.conditions
        if conditions.jitter_us:
            arrival += int(self._jitter_random.random() * (conditions.jitter_us + 1))
        threshold = conditions.ecn_threshold_bytes
        if threshold and (self._free_ns - now_ns) * self._rate_bps > threshold * 8 * _SECOND_NS:
            marked = mark_congestion(data)
            if marked is not None:
                self.marked += 1
                data = marked
        if conditions.corrupt and self._corrupt_random.random() < conditions.corrupt:
            first = ((data[0] & 0x0F) * 4 if data[0] >> 4 == 4 else 40) * 8
            if len(data) * 8 > first:
                self.corrupted += 1
                bit = first + self._corrupt_random.randrange(len(data) * 8 - first)
                damaged = bytearray(data)
                damaged[bit >> 3] ^= 0x80 >> (bit & 7)
                data = bytes(damaged)
        late = 0
        if conditions.reorder and self._reorder_random.random() < conditions.reorder:
            self.reordered += 1
            late = conditions.reorder_us
        return data, arrival, late

    def _rearm(self) -> None:
        if self._wake:
            self._clock.cancel(self._wake)
            self._wake = 0
        if self._transit:
            self._wake = self._clock.at(self._transit[0][0], self._deliver_action)

    def _deliver(self) -> None:
        clock = self._clock
        now = clock.now
        transit = self._transit
        self._wake = 0
        handle, port = self._node.handle_arrival, self._port
        while transit and transit[0][0] <= now:
            _, _, size, data, trusted = transit.popleft()
            self.packets_delivered += 1
            self.bytes_delivered += size
            handle(port, data, trusted)
        if transit and not self._wake:
            self._wake = clock.at(transit[0][0], self._deliver_action)

    def _deliver_late(self, data: bytes, trusted: bool, epoch: int) -> None:
        if epoch == self.epoch:
            self.packets_delivered += 1
            self.bytes_delivered += len(data)
            self._node.handle_arrival(self._port, data, trusted)
        else:
            self.down_drops += 1


class Path:
    """Two directions between two ports. ``forward`` leads from the first to the second port of ``World.join``."""

    __slots__ = ("_clock", "backward", "forward", "name")

    def __init__(self, clock: VirtualClock, name: str, forward: Direction, backward: Direction) -> None:
        self._clock = clock
        self.name = name
        self.forward = forward
        self.backward = backward

    def directions(self, which: str) -> tuple[Direction, ...]:
        if which == "both":
            return self.forward, self.backward
        return (self.forward,) if which == "forward" else (self.backward,)

    def change(self, at_us: int = -1, which: str = "both", **changes: object) -> None:
        """Changes fields of ``Conditions`` at that time (negative: now); ``which``: forward, backward or both."""

        def apply() -> None:
            for direction in self.directions(which):
                direction.set_conditions(direction.conditions.changed(**changes))

        self._do(at_us, apply)

    def cut(self, at_us: int = -1, which: str = "both") -> None:
        """A silent black hole from that time on."""

        def apply() -> None:
            for direction in self.directions(which):
                direction.set_up(False)

        self._do(at_us, apply)

    def restore(self, at_us: int = -1, which: str = "both") -> None:
        def apply() -> None:
            for direction in self.directions(which):
                direction.set_up(True)

        self._do(at_us, apply)

    def add_middlebox(self, box: Middlebox) -> None:
        """In both directions; the box itself looks at ``forward``. Forward packets pass the boxes in the order in which
        they were added."""

        def inject(data: bytes, forward: bool) -> None:
            (self.forward if forward else self.backward).inject(data, box)

        box.attach(self._clock, inject)
        self.forward.add_middlebox(box)
        self.backward.add_middlebox(box)

    def remove_middlebox(self, box: Middlebox) -> None:
        self.forward.remove_middlebox(box)
        self.backward.remove_middlebox(box)

    def _do(self, at_us: int, action: Action) -> None:
        if at_us < 0 or at_us <= self._clock.now:
            action()
        else:
            self._clock.at(at_us, action)


class Router(Node):
    """Forwards by destination address: several paths may share the one that leads on from it (a bottleneck)."""

    __slots__ = ("default", "no_route_drops", "routes")

    def __init__(self) -> None:
        self.routes: dict[bytes, Direction] = {}
        self.default: Direction | None = None
        self.no_route_drops = 0

    def handle_arrival(self, port: int, data: bytes, trusted: bool) -> None:
        destination = data[16:20] if data[0] >> 4 == 4 else data[24:40]
        direction = self.routes.get(destination, self.default)
        if direction is None:
            self.no_route_drops += 1
        else:
            direction.send(data, trusted)
