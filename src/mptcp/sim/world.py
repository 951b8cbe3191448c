"""A world: hosts, the paths between them, and their time. ``run`` jumps from event to event."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from mptcp.core.entropy import Entropy
from mptcp.core.packet import Packet
from mptcp.core.units import NEVER, SECOND
from mptcp.core.wire.offload import finish
from mptcp.errors import ConfigurationError
from mptcp.info import Endpoint
from mptcp.sim.clock import VirtualClock
from mptcp.sim.conditions import Conditions
from mptcp.sim.network import Direction, Node, Path, Router
from mptcp.sim.trace import PacketWriter, Trace

if TYPE_CHECKING:
    from mptcp.core.multipath.connection import Connection
    from mptcp.core.multipath.listener import Listener

DEFAULT_MTU = 1500
#: ``run`` gives up here unless told otherwise: a simulation that never ends is a mistake of its author.
DEFAULT_UNTIL_US = 3600 * SECOND
#: Packets of one host at one instant without time going by: two hosts that answer each other without end stop here.
MAX_ROUNDS_PER_INSTANT = 10_000


class HostLike(Protocol):
    """What the world drives: ``mptcp.core.host.Host``, or anything scripted with the same verbs."""

    @property
    def counters(self) -> dict[str, int]: ...
    def handle_packet(
        self, interface: int, data: memoryview, now: int, gso_size: int = 0, checksum_valid: bool = False
    ) -> None: ...
    def handle_timeout(self, now: int) -> None: ...
    def poll_deadline(self) -> int: ...
    def poll_packets(self, now: int) -> Sequence[tuple[int, Packet]]: ...
    def poll_ready(self) -> Sequence[Any]: ...


class Application(ABC):
    """Drives one connection or listener of a host; ``SimHost.attach`` ties the two together."""

    __slots__ = ()

    @abstractmethod
    def on_ready(self, now: int) -> None:
        """What it drives may have become readable, writable, or over; also called once when attached."""


class SimHost(Node):
    """A host in a world. ``stack`` is the ``Host``; its interfaces are numbered as the stack numbers them."""

    __slots__ = (
        "_applications", "_dirty", "_wake", "_wake_at", "name", "no_route_drops", "observer", "ports", "stack", "world",
    )  # fmt: skip

    def __init__(self, world: World, name: str, stack: HostLike) -> None:
        self.world = world
        self.name = name
        self.stack = stack
        self.ports: dict[int, Port] = {}
        self.no_route_drops = 0
        self.observer: Callable[[Any], None] | None = None  # told of what is ready and has no application
        self._applications: dict[int, tuple[object, Application]] = {}
        self._dirty = False
        self._wake_at = NEVER
        self._wake = 0  # the clock's number of the event at ``_wake_at``

    def add_interface(self, *addresses: str, name: str = "", mtu: int = DEFAULT_MTU, gso_max_bytes: int = 0) -> Port:
        """An interface of the stack with these addresses. With ``gso_max_bytes`` the stack sends super-segments,
        which are cut here, as the network card would."""
        stack: Any = self.stack
        index: int = stack.add_interface(name or f"{self.name}{len(self.ports)}", mtu, gso_max_bytes)
        port = self.add_port(index, *addresses)
        now = self.world.clock.now
        for address in addresses:
            stack.add_address(address, index, now)
        self.touch()
        return port

    def add_port(self, index: int, *addresses: str) -> Port:
        """The world's side of an interface alone, for a scripted stack."""
        port = self.ports[index] = Port(self, index, [Endpoint.parse(text).address for text in addresses])
        return port

    def connect(self, remote: Endpoint, **arguments: Any) -> Connection:
        """``Host.connect`` at the present time; the arguments are its own."""
        stack: Any = self.stack
        connection: Connection = stack.connect(remote, self.world.clock.now, **arguments)
        self.touch()
        return connection

    def listen(self, local: Endpoint, **arguments: Any) -> Listener:
        """``Host.listen`` at the present time; the arguments are its own."""
        stack: Any = self.stack
        listener: Listener = stack.listen(local, self.world.clock.now, **arguments)
        self.touch()
        return listener

    def attach(self, subject: object, application: Application) -> None:
        """``application`` is told when ``subject``, a connection or listener of the stack, is ready."""
        self._applications[id(subject)] = (subject, application)
        application.on_ready(self.world.clock.now)
        self.touch()

    def detach(self, subject: object) -> None:
        self._applications.pop(id(subject), None)

    def touch(self) -> None:
        """Something was done to the stack from outside: it is polled before time goes on."""
        if not self._dirty:
            self._dirty = True
            self.world._dirty.append(self)

    def handle_arrival(self, port: int, data: bytes, trusted: bool) -> None:
        self.stack.handle_packet(port, memoryview(data), self.world.clock.now, 0, trusted)
        if not self._dirty:
            self._dirty = True
            self.world._dirty.append(self)

    def set_interface_up(self, port: Port, up: bool, at_us: int = -1) -> None:
        """Tells the stack, and cuts or mends the paths of that interface."""

        def apply() -> None:
            stack: Any = self.stack
            stack.set_interface_up(port.index, up, self.world.clock.now)
            for path in port.paths:
                path.forward.set_up(up)
                path.backward.set_up(up)
            self.touch()

        self.world.at(at_us, apply)

    def _on_timer(self) -> None:
        now = self.world.clock.now
        self._wake_at = NEVER
        deadline = self.stack.poll_deadline()
        if deadline <= now:
            self.stack.handle_timeout(now)
            self.touch()
        else:
            # It has moved on since: deadlines that are put off cost nothing until they would have come.
            self._arm(deadline)

    def _arm(self, deadline: int) -> None:
        if deadline < self._wake_at:
            clock = self.world.clock
            if self._wake_at < NEVER:
                clock.cancel(self._wake)
            self._wake_at = deadline
            self._wake = clock.at(deadline, self._on_timer)

    def _flush(self) -> None:
        """Applications, packets, the next deadline; called once per instant in which something happened."""
        self._dirty = False
        now = self.world.clock.now
        stack = self.stack
        for _ in range(MAX_ROUNDS_PER_INSTANT):
            ready = stack.poll_ready()
            for subject in ready:
                found = self._applications.get(id(subject))
                if found is not None:
                    found[1].on_ready(now)
                elif self.observer is not None:
                    self.observer(subject)
            packets = stack.poll_packets(now)
            for index, packet in packets:
                self.ports[index].send(packet)
            if not ready and not packets:
                break
        self._arm(stack.poll_deadline())


class Port:
    """Where a host's interface meets the network. With several paths, the destination address picks one."""

    __slots__ = ("_default", "_routes", "addresses", "host", "index", "paths")

    def __init__(self, host: SimHost, index: int, addresses: list[bytes]) -> None:
        self.host = host
        self.index = index
        self.addresses = addresses
        self.paths: list[Path] = []
        self._routes: dict[bytes, Direction] = {}
        self._default: Direction | None = None

    def add_route(self, address: bytes, direction: Direction) -> None:
        self._routes[address] = direction

    def add_path(self, path: Path, direction: Direction, reaches: Sequence[bytes]) -> None:
        self.paths.append(path)
        for address in reaches:
            self._routes[address] = direction
        if self._default is None:
            self._default = direction

    def send(self, packet: Packet) -> None:
        direction = self._default
        if len(self.paths) > 1:
            header = packet.header
            destination = bytes(header[16:20] if header[0] >> 4 == 4 else header[24:40])
            direction = self._routes.get(destination, direction)
        if direction is None:
            self.host.no_route_drops += 1
        elif packet.gso_size:
            # ``finish`` completes checksums; on a path that leaves packets alone the receiver need not add up again.
            trusted = not direction.needs_checksum
            for data in finish(packet):
                direction.send(data, trusted)
        else:
            direction.send(b"".join((packet.header, *packet.payloads)), packet.checksum_partial)


class World:
    """``World(seed)``: the same seed and the same calls give the same packets at the same times."""

    def __init__(self, seed: bytes | int = 0, *, trace: bool = False, keep_packets: int = 0) -> None:
        self.clock = VirtualClock()
        self.entropy = Entropy(seed)
        self.hosts: list[SimHost] = []
        self.paths: list[Path] = []
        self.trace = Trace(keep=keep_packets) if trace or keep_packets else None
        self._dirty: list[SimHost] = []

    @property
    def now(self) -> int:
        return self.clock.now

    def add_host(self, name: str, stack: HostLike | None = None, config: Any = None) -> SimHost:
        """A host with a new ``core.host.Host`` (``config``: its ``HostConfig``), or with the given stack."""
        if stack is None:
            from mptcp.core.host import Host

            entropy = self.entropy.child(f"host {name}")
            stack = Host(entropy, config) if config is not None else Host(entropy)
        host = SimHost(self, name, stack)
        self.hosts.append(host)
        return host

    def join(
        self,
        first: Port | Router,
        second: Port | Router,
        forward: Conditions | None = None,
        backward: Conditions | None = None,
        *,
        name: str = "",
    ) -> Path:
        """A path between two interfaces, or an interface and a router; ``backward`` is as ``forward`` unless given."""
        forward = forward or Conditions()
        number = len(self.paths)
        name = name or f"path{number}"
        there = self._direction(second, forward, f"{name}>", 2 * number, True)
        back = self._direction(first, backward or forward, f"{name}<", 2 * number + 1, False)
        path = Path(self.clock, name, there, back)
        for end, other, direction in ((first, second, there), (second, first, back)):
            reaches = other.addresses if isinstance(other, Port) else []
            if isinstance(end, Port):
                end.add_path(path, direction, reaches)
            else:
                for address in reaches:
                    end.routes[address] = direction
                if end.default is None and not reaches:
                    end.default = direction
        self.paths.append(path)
        return path

    def _direction(self, end: Port | Router, conditions: Conditions, name: str, index: int, forward: bool) -> Direction:
        node: Node = end.host if isinstance(end, Port) else end
        port = end.index if isinstance(end, Port) else 0
        entropy = self.entropy.child(f"direction {name} {index}")
        direction = Direction(self.clock, entropy, node, port, conditions, name=name, index=index, forward=forward)
        direction.set_trace(self.trace)
        return direction

    def capture(self, writer: PacketWriter) -> None:
        """Every packet that enters a path from now on also goes to ``writer`` (``PcapngWriter`` is one)."""
        if self.trace is None:
            self.trace = Trace()
            for path in self.paths:
                path.forward.set_trace(self.trace)
                path.backward.set_trace(self.trace)
        self.trace.writer = writer

    def at(self, time_us: int, action: Callable[[], None]) -> None:
        """Runs ``action`` at that time; a negative or past time means now. Hosts are polled afterwards."""
        if time_us <= self.clock.now:
            action()
            return

        def run() -> None:
            action()
            for host in self.hosts:
                host.touch()

        self.clock.at(time_us, run)

    def run(self, until: int = DEFAULT_UNTIL_US, while_: Callable[[], bool] | None = None) -> int:
        """Until that time, or as long as ``while_()`` holds, or until nothing is left to happen; the time it is then.

        When the time given is reached the clock shows it, even if nothing happens then.
        """
        clock = self.clock
        if until < clock.now:
            raise ConfigurationError(f"the world is past {until} us already")
        self._flush()
        while while_ is None or while_():
            if clock.next_time > until:
                if until < DEFAULT_UNTIL_US:
                    clock.now = until
                break
            clock.run_instant()
            self._flush()
        return clock.now

    def advance(self, until: int, while_: Callable[[], bool]) -> bool:
        """As ``run``, for whoever goes on afterwards: no limit but ``until``; False if nothing is left to happen."""
        clock = self.clock
        self._flush()
        while while_():
            if clock.next_time > until or clock.next_time >= NEVER:
                if until < NEVER:
                    clock.now = max(clock.now, until)
                return until < NEVER
            clock.run_instant()
            self._flush()
        return True

    def _flush(self) -> None:
        while self._dirty:
            dirty, self._dirty = self._dirty, []
            for host in dirty:
                host._flush()
