"""Two hosts, one to three paths, and anything that applications and networks may do, in any order.

What holds always: octets come out in the order and number in which they went in, or somebody gets an error; nothing
raises; once both ends have closed, neither host keeps anything; the same seed and the same calls give the same packets.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from mptcp.core.entropy import Entropy
from mptcp.core.host import Host
from mptcp.core.multipath.config import ConnectionConfig
from mptcp.core.multipath.connection import Connection
from mptcp.core.multipath.connection_state import ConnectionState
from mptcp.core.tcp.config import TcpConfig
from mptcp.core.units import MBIT, MILLISECOND, SECOND
from mptcp.errors import PathError
from mptcp.info import Endpoint
from mptcp.sim.applications import pattern
from mptcp.sim.conditions import Conditions
from mptcp.sim.middlebox import Middlebox
from mptcp.sim.middleboxes import CoalesceSegments, SplitSegments, StripOptions
from mptcp.testing.pair import SERVER_PORT, Pair

#: Octets that go from one end to the other in one example, at most: what is tested is not speed.
MOST_OCTETS = 400_000


@dataclass(frozen=True, slots=True)
class Settings:
    """What is the same for a whole example."""

    seed: int = 0
    paths: int = 2
    single_homed: bool = True
    version: int = 1
    checksum: bool = False
    buffer: int = 128 * 1024
    by_reset: bool = True


class Scene:
    """A world in which ``do`` carries out one operation, and remembers it.

    ``strict``: nothing has happened yet that entitles a connection to fail.
    """

    def __init__(self, chosen: Settings) -> None:
        self.chosen = chosen
        tcp = TcpConfig(
            receive_buffer_bytes=chosen.buffer, receive_buffer_max_bytes=max(chosen.buffer, 1 << 18),
            send_buffer_bytes=chosen.buffer, time_wait_us=SECOND,
        )  # fmt: skip
        config = ConnectionConfig(
            tcp=tcp, version=chosen.version, checksum=chosen.checksum, fastclose_by_reset=chosen.by_reset
        )
        self.pair = Pair(
            seed=chosen.seed, paths=chosen.paths, single_homed_server=chosen.single_homed, trace=True,
            conditions=[Conditions(rate_bps=20 * MBIT, delay_us=(3 + 10 * i) * MILLISECOND) for i in range(chosen.paths)],
            client_options=config, server_options=config,
        )  # fmt: skip
        self.pair.connect()
        self.log: list[tuple[str, tuple[object, ...]]] = []
        self.written = [0, 0]
        self.read_octets = [0, 0]  # by the client of what the server wrote, and the reverse
        self.shut = [False, False]
        self.closed = [False, False]
        self.strict = True
        self.boxes: dict[int, Middlebox] = {}

    def do(self, name: str, *arguments: object) -> None:
        self.log.append((name, arguments))
        getattr(self, name)(*arguments)
        self.pair.touch()
        self.pair.run(for_us=0)
        for connection in self.ends:
            connection.info()
            while connection.poll_event() is not None:
                pass

    @property
    def ends(self) -> tuple[Connection, Connection]:
        return self.pair.client, self.pair.server

    @property
    def hosts(self) -> tuple[Host, Host]:
        client, server = self.pair.client_host.stack, self.pair.server_host.stack
        assert isinstance(client, Host)
        assert isinstance(server, Host)
        return client, server

    # --- applications -----------------------------------------------------------------------------------------------------
    def write(self, end: int, count: int) -> None:
        view = pattern(self.written[end], min(count, MOST_OCTETS - self.written[end]))
        self.written[end] += self.ends[end].write(bytes(view), self.pair.now)

    def read(self, end: int, count: int) -> None:
        octets = self.ends[end].read(count)
        start = self.read_octets[end]
        assert octets == pattern(start, len(octets)), f"wrong octets near {start}"
        self.read_octets[end] += len(octets)
        assert self.read_octets[end] <= self.written[1 - end]

    def shutdown(self, end: int) -> None:
        self.shut[end] = True
        self.ends[end].shutdown_write(self.pair.now)

    def close(self, end: int) -> None:
        self.strict = False
        self.closed[end] = self.shut[end] = True
        self.ends[end].close(self.pair.now)

    def abort(self, end: int) -> None:
        self.strict = False
        self.closed[end] = self.shut[end] = True
        self.ends[end].abort(self.pair.now)

    # --- subflows ---------------------------------------------------------------------------------------------------------
    def open_subflow(self, end: int, path: int, backup: bool) -> None:
        connection = self.ends[end]
        local = Endpoint(self.pair.client_ports[path].addresses[0])
        remote = Endpoint(self.pair.server_ports[path].addresses[0], SERVER_PORT)
        if end:
            local, remote = Endpoint(remote.address), Endpoint(local.address, connection.remote.port)
        with contextlib.suppress(PathError):  # and it says why: a limit, regular TCP, an address that is gone
            connection.open_subflow(local, remote, self.pair.now, backup)

    def close_subflow(self, end: int, which: int, reset: bool) -> None:
        self.strict = False
        infos = self.ends[end].subflows()
        if infos:
            with contextlib.suppress(PathError):  # regular TCP, or the only subflow that works
                self.ends[end].close_subflow(infos[which % len(infos)].id, self.pair.now, reset)

    def set_backup(self, end: int, which: int, backup: bool) -> None:
        infos = self.ends[end].subflows()
        if infos and self.ends[end].is_multipath:
            self.ends[end].set_backup(infos[which % len(infos)].id, backup, self.pair.now)

    # --- addresses --------------------------------------------------------------------------------------------------------
    def announce(self, end: int, path: int) -> None:
        ports = self.pair.server_ports if end else self.pair.client_ports
        with contextlib.suppress(PathError):
            self.ends[end].add_address(Endpoint(ports[path].addresses[0]), self.pair.now)

    def withdraw(self, end: int, path: int) -> None:
        self.strict = False
        ports = self.pair.server_ports if end else self.pair.client_ports
        with contextlib.suppress(PathError):
            self.ends[end].remove_address(ports[path].addresses[0], self.pair.now)

    def remove_address(self, path: int) -> None:
        self.strict = False
        address = Endpoint(self.pair.client_ports[path].addresses[0])
        if address.address in self.hosts[0].local_addresses():
            self.hosts[0].remove_address(address.host, self.pair.now)

    def add_address(self, path: int) -> None:
        port = self.pair.client_ports[path]
        self.hosts[0].add_address(Endpoint(port.addresses[0]).host, port.index, self.pair.now)

    # --- the network ------------------------------------------------------------------------------------------------------
    def cut(self, path: int, which: str) -> None:
        self.pair.paths[path].cut(which=which)

    def restore(self, path: int) -> None:
        self.pair.paths[path].restore()

    def interface(self, path: int, up: bool) -> None:
        self.strict = False  # before the connection is fully established, its only subflow is all it has
        self.pair.client_host.set_interface_up(self.pair.client_ports[path], up)

    def conditions(self, path: int, loss: float, reorder: float, duplicate: float, delay_us: int) -> None:
        self.pair.paths[path].change(loss=loss, reorder=reorder, duplicate=duplicate, delay_us=delay_us)

    def add_box(self, path: int, kind: str) -> None:
        if path in self.boxes:
            return
        box: Middlebox
        if kind == "strip":
            self.strict = False
            box = StripOptions()
        elif kind == "strip-some":
            self.strict = False
            box = StripOptions(every=3)
        elif kind == "coalesce":
            box = CoalesceSegments()
        else:
            box = SplitSegments(400)
        self.boxes[path] = box
        self.pair.paths[path].add_middlebox(box)

    def remove_box(self, path: int) -> None:
        box = self.boxes.pop(path, None)
        if box is not None:
            self.pair.paths[path].remove_middlebox(box)

    def wait(self, duration_us: int) -> None:
        self.pair.run(for_us=duration_us)

    # --- the end ----------------------------------------------------------------------------------------------------------
    def heal(self) -> None:
        """The network is as good as new; applications read what there is and end their streams."""
        for path in range(self.chosen.paths):
            self.restore(path)
            self.remove_box(path)
            self.conditions(path, 0.0, 0.0, 0.0, 5 * MILLISECOND)
            self.pair.client_host.set_interface_up(self.pair.client_ports[path], True)
            self.add_address(path)
        for end in (0, 1):
            if not self.shut[end]:
                self.shutdown(end)

    @property
    def is_settled(self) -> bool:
        return all(
            c.error is not None or self.closed[e] or (c.eof and not c.readable_bytes) for e, c in enumerate(self.ends)
        )

    def check_streams(self) -> None:
        """Everything has arrived, or an end that cares knows that it has not."""
        errors = [connection.error for connection in self.ends]
        for end in (0, 1):
            whole = self.read_octets[end] == self.written[1 - end]
            if self.strict:
                assert errors == [None, None], (errors, self.states())
                assert whole, (self.read_octets, self.written, self.states())
            elif not self.closed[end]:
                assert whole or any(errors) or self.closed[1 - end], (self.read_octets, self.written, self.states())
                if not whole and self.ends[end].eof:
                    assert errors[end] is not None, "a stream that ends early looks like one that ends well"

    def states(self) -> list[object]:
        return [
            (c.state.value, c.fallback_reason, c.subflows(), dict(h.counters))
            for c, h in zip(self.ends, self.hosts, strict=True)
        ]

    def finish(self) -> None:
        self.do("heal")
        for _ in range(130):
            for end in (0, 1):
                while not self.closed[end] and self.ends[end].readable_bytes:
                    self.do("read", end, 50_000)
            if self.is_settled:
                break
            self.do("wait", SECOND)
        self.check_streams()
        for end, connection in enumerate(self.ends):
            if not self.closed[end]:
                connection.close(self.pair.now)
        self.pair.run(for_us=1800 * SECOND, while_=lambda: any(host.connections for host in self.hosts))
        for host in self.hosts:
            assert not host.connections, self.states()
            assert not host._flows
            assert not host._tokens
            assert not host._port_users
        assert all(connection.state is ConnectionState.CLOSED for connection in self.ends)

    @property
    def digest(self) -> str:
        assert self.pair.world.trace is not None
        return self.pair.world.trace.digest


ENDS = st.integers(0, 1)
PATHS = st.integers(0, 2)
COUNTS = st.sampled_from([1, 10, 1_460, 10_000, 60_000])


class MultipathMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.scene: Scene

    @initialize(
        chosen=st.builds(
            Settings,
            seed=st.integers(0, 1 << 16),
            paths=st.integers(1, 3),
            single_homed=st.booleans(),
            version=st.sampled_from([1, 1, 0]),
            checksum=st.booleans(),
            buffer=st.sampled_from([1 << 17, 20_000, 3_000]),
            by_reset=st.booleans(),
        )
    )
    def begin(self, chosen: Settings) -> None:
        self.scene = Scene(chosen)

    def path(self, number: int) -> int:
        return number % self.scene.chosen.paths

    @rule(end=ENDS, count=COUNTS)
    def write(self, end: int, count: int) -> None:
        self.scene.do("write", end, count)

    @rule(end=ENDS, count=COUNTS)
    def read(self, end: int, count: int) -> None:
        self.scene.do("read", end, count)

    @rule(duration_us=st.sampled_from([1_000, 20_000, 100_000, 500_000]))
    def wait(self, duration_us: int) -> None:
        self.scene.do("wait", duration_us)

    @rule(duration_us=st.sampled_from([1_000, 20_000, 100_000]), end=ENDS, count=COUNTS)
    def write_and_wait(self, end: int, count: int, duration_us: int) -> None:
        self.scene.do("write", end, count)
        self.scene.do("wait", duration_us)

    @rule(end=ENDS)
    def shutdown(self, end: int) -> None:
        self.scene.do("shutdown", end)

    @precondition(lambda self: len(self.scene.log) > 10)
    @rule(end=ENDS, abort=st.booleans())
    def close(self, end: int, abort: bool) -> None:
        self.scene.do("abort" if abort else "close", end)

    @rule(end=ENDS, path=PATHS, backup=st.booleans())
    def open_subflow(self, end: int, path: int, backup: bool) -> None:
        self.scene.do("open_subflow", end, self.path(path), backup)

    @rule(end=ENDS, which=st.integers(0, 3), reset=st.booleans())
    def close_subflow(self, end: int, which: int, reset: bool) -> None:
        self.scene.do("close_subflow", end, which, reset)

    @rule(end=ENDS, which=st.integers(0, 3), backup=st.booleans())
    def set_backup(self, end: int, which: int, backup: bool) -> None:
        self.scene.do("set_backup", end, which, backup)

    @rule(end=ENDS, path=PATHS, withdraw=st.booleans())
    def announce(self, end: int, path: int, withdraw: bool) -> None:
        self.scene.do("withdraw" if withdraw else "announce", end, self.path(path))

    @rule(path=PATHS, remove=st.booleans())
    def address(self, path: int, remove: bool) -> None:
        self.scene.do("remove_address" if remove else "add_address", self.path(path))

    @rule(path=PATHS, which=st.sampled_from(["both", "both", "forward", "backward"]))
    def cut(self, path: int, which: str) -> None:
        self.scene.do("cut", self.path(path), which)

    @rule(path=PATHS)
    def restore(self, path: int) -> None:
        self.scene.do("restore", self.path(path))

    @rule(path=PATHS, up=st.booleans())
    def interface(self, path: int, up: bool) -> None:
        self.scene.do("interface", self.path(path), up)

    @rule(
        path=PATHS, loss=st.sampled_from([0.0, 0.05, 0.3]), reorder=st.sampled_from([0.0, 0.2]),
        duplicate=st.sampled_from([0.0, 0.2]), delay_us=st.sampled_from([1_000, 50_000]),
    )  # fmt: skip
    def conditions(self, path: int, loss: float, reorder: float, duplicate: float, delay_us: int) -> None:
        self.scene.do("conditions", self.path(path), loss, reorder, duplicate, delay_us)

    @rule(path=PATHS, kind=st.sampled_from(["split", "coalesce", "strip", "strip-some"]))
    def add_box(self, path: int, kind: str) -> None:
        self.scene.do("add_box", self.path(path), kind)

    @rule(path=PATHS)
    def remove_box(self, path: int) -> None:
        self.scene.do("remove_box", self.path(path))

    def teardown(self) -> None:
        if hasattr(self, "scene"):
            self.scene.finish()


TestMultipathMachine = MultipathMachine.TestCase
TestMultipathMachine.settings = settings(
    max_examples=300, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)


def random_run(seed: int, steps: int = 40) -> Scene:
    """A scene in which chance has chosen everything; no rules, so that a seed says it all."""
    chance = Entropy(seed)
    scene = Scene(
        Settings(
            seed, 1 + chance.below(3), bool(chance.below(2)), int(chance.below(3) > 0), bool(chance.below(2)),
            (1 << 17, 20_000, 3_000)[chance.below(3)], bool(chance.below(2)),
        )
    )  # fmt: skip
    paths = scene.chosen.paths
    for _ in range(steps):
        end, path, flag = chance.below(2), chance.below(paths), bool(chance.below(2))
        match chance.below(16):
            case 0 | 1 | 2:
                scene.do("write", end, 1 + chance.below(60_000))
            case 3 | 4:
                scene.do("read", end, 1 + chance.below(60_000))
            case 5 | 6 | 7:
                scene.do("wait", 1 + chance.below(300_000))
            case 8:
                scene.do("open_subflow", end, path, flag)
            case 9:
                scene.do("set_backup", end, path, flag)
            case 10:
                scene.do("close_subflow", end, path, flag)
            case 11:
                scene.do("cut", path, ("both", "forward", "backward")[chance.below(3)])
            case 12:
                scene.do("restore", path)
            case 13:
                scene.do(
                    "conditions",
                    path,
                    0.05 * chance.below(4),
                    0.1 * chance.below(3),
                    0.1 * flag,
                    1 + chance.below(60_000),
                )
            case 14:
                scene.do("add_box", path, ("split", "coalesce", "strip", "strip-some")[chance.below(4)])
            case 15:
                scene.do("announce" if flag else "interface", *((end, path) if flag else (path, bool(chance.below(3)))))
    scene.finish()
    return scene


@pytest.mark.parametrize("seed", range(30))
def test_whatever_happens_octets_arrive_in_order_or_somebody_is_told(seed: int) -> None:
    random_run(seed)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(100, 1100, 200))
def test_a_thousand_more(first: int) -> None:
    for seed in range(first, first + 200):
        random_run(seed)


@pytest.mark.parametrize("seed", range(3))
def test_the_same_calls_give_the_same_packets(seed: int) -> None:
    once, again = random_run(seed), random_run(seed)
    assert once.log == again.log
    assert once.digest == again.digest
