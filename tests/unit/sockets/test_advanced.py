"""The advanced API through sockets: profiles, expectations, numbers of subflows, strategies, redundancy, usage, and errors."""

from __future__ import annotations

import socket as std
import threading
import time
from collections.abc import Callable, Iterator

import pytest

import mptcp
from mptcp.core.path_managers.ndiffports import Ndiffports
from mptcp.core.path_managers.none import NoSubflows
from mptcp.core.schedulers.registry import SCHEDULERS
from mptcp.core.schedulers.round_robin import RoundRobin
from mptcp.errors import ConfigurationError
from mptcp.links.loopback import LoopbackLink
from mptcp.sockets.policy import Policy
from mptcp.sockets.profiles import (
    ALIASES,
    AT_ONCE,
    LATENCY,
    PROFILES,
    SETUPS,
    WHEN_FAILED,
    Expectation,
    Setup,
    profile_named,
    setup_named,
)
from mptcp.sockets.user import UserStack


class World:
    """A client with two links, and a server with an address on each of them; sockets are of that family."""

    def __init__(self, near: UserStack, far: UserStack, family: int) -> None:
        self.near = near
        self.far = far
        self.family = family

    def client(self) -> mptcp.Socket:
        sock = self.near.socket(self.family)
        sock.settimeout(30)
        return sock

    def connect(
        self, sock: mptcp.Socket, prepare: Callable[[mptcp.Socket], None] | None = None, *, subflows: int = 0
    ) -> mptcp.Socket:
        """The accepted socket; both sides have sent something, and the client has so many active subflows."""
        server = self.far.socket(sock.family)
        server.setsockopt(std.SOL_SOCKET, std.SO_REUSEADDR, 1)
        server.bind(("::" if sock.family == std.AF_INET6 else "0.0.0.0", 0))
        if prepare is not None:
            prepare(server)
        server.listen()
        sock.connect(("fd00::2" if sock.family == std.AF_INET6 else "10.0.0.2", server.getsockname()[1]))
        accepted, _ = server.accept()
        accepted.settimeout(30)
        server.close()
        for one, other in ((sock, accepted), (accepted, sock)):
            one.sendall(b"x")
            assert other.recv(1) == b"x"
        if subflows:
            await_subflows(sock, subflows)
        return accepted


def await_subflows(sock: mptcp.Socket, count: int, patience_s: float = 30.0) -> None:
    until = time.monotonic() + patience_s
    while time.monotonic() < until:
        states = [info.state.value for info in sock.subflows()]
        if states == ["active"] * count:
            return
        time.sleep(0.002)
    raise AssertionError(f"{states} instead of {count} active subflows")


@pytest.fixture(params=[std.AF_INET, std.AF_INET6], ids=["v4", "v6"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    first, second = LoopbackLink.pair("one-"), LoopbackLink.pair("two-")
    near_addresses = {first[0].name: ["10.0.0.1", "fd00::1"], second[0].name: ["10.0.1.1", "fd00:1::1"]}
    far_addresses = {first[1].name: ["10.0.0.2", "fd00::2"], second[1].name: ["10.0.1.2", "fd00:1::2"]}
    policy = Policy()
    with (
        UserStack([first[0], second[0]], near_addresses, seed=1, policy=policy) as near,
        UserStack([first[1], second[1]], far_addresses, seed=2, policy=policy, config=QUIET) as far,
    ):
        yield World(near, far, request.param)


#: The server announces nothing.
QUIET = mptcp.ConnectionConfig(path_manager=NoSubflows)


def closing(*socks: mptcp.Socket) -> None:
    for sock in socks:
        sock.close()


# --- REQ8: profiles -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", [*PROFILES, *ALIASES])
def test_a_profile_before_connect_is_what_the_connection_has(world: World, name: str) -> None:
    profile = profile_named(name)
    sock = world.client()
    assert sock.profile == ""
    sock.profile = name
    assert sock.profile == profile.name
    accepted = world.connect(sock)
    assert sock.scheduler == profile.scheduler().name
    assert sock.path_manager == ("fullmesh" if profile.setup.at_once else "on-demand")
    assert sock.redundancy == profile.redundancy.name.lower().replace("_", "-")
    assert sock.getsockopt(std.IPPROTO_TCP, std.TCP_NODELAY) == 0 or profile.no_delay
    assert profile.purpose
    closing(sock, accepted)


def test_a_profile_during_the_connection_takes_effect_at_once(world: World) -> None:
    sock = world.client()
    accepted = world.connect(sock, subflows=2)
    assert (sock.scheduler, sock.redundancy) == ("lowest-rtt", "none")
    sock.profile = "reliable"
    assert sock.redundancy == "all"
    received = threading.Thread(target=lambda: [accepted.recv(65536, std.MSG_WAITALL) for _ in range(8)])
    received.start()
    for _ in range(8):
        sock.sendall(bytes(65536))
    received.join(30)
    usage = sock.usage()
    assert sum(u.copied_bytes for u in usage) > 100_000
    sock.profile = "interactive"
    assert sock.scheduler == "earliest-completion"
    assert sock.redundancy == "on-retransmission"
    assert sock.getsockopt(std.IPPROTO_TCP, std.TCP_NODELAY) == 1
    closing(sock, accepted)


def test_accepted_sockets_have_the_profile_of_their_listener(world: World) -> None:
    sock = world.client()

    def prepare(server: mptcp.Socket) -> None:
        server.profile = "latency"

    accepted = world.connect(sock, prepare)
    assert accepted.profile == "latency"
    assert accepted.scheduler == "earliest-completion"
    assert sock.scheduler == "lowest-rtt"
    closing(sock, accepted)


def test_names_of_profiles() -> None:
    assert profile_named("Hot Standby") is profile_named("handover") is PROFILES["hot-standby"]
    assert profile_named("interactive") is LATENCY
    assert profile_named("aggregate") is PROFILES["bulk"]
    with pytest.raises(ConfigurationError, match="no profile is called 'x': there are bulk"):
        profile_named("x")
    assert setup_named("at once") is AT_ONCE
    with pytest.raises(ConfigurationError, match="there are at-once"):
        setup_named("tomorrow")


def test_a_profile_with_a_small_buffer_does_not_hold_a_writer_up_for_ever(world: World) -> None:
    sock = world.client()
    sock.profile = "latency"
    accepted = world.connect(sock)
    reader = threading.Thread(target=lambda: accepted.recv(3_000_000, std.MSG_WAITALL))
    reader.start()
    sock.sendall(bytes(3_000_000))
    reader.join(30)
    assert not reader.is_alive()
    closing(sock, accepted)


# --- REQ9, REQ10: expectations and when subflows are set up -------------------------------------------------------------------
def test_what_is_expected_decides_when_subflows_are_set_up() -> None:
    def setup(name: str, **expected: object) -> Setup:
        return profile_named(name)._setup(Expectation(**expected))  # type: ignore[arg-type]

    assert setup("bulk") is AT_ONCE
    assert setup("bulk", bytes=10_000) is WHEN_FAILED
    assert setup("bulk", seconds=0.5) is WHEN_FAILED
    assert setup("bulk", rate_bps=64_000) is WHEN_FAILED
    assert setup("bulk", bytes=10_000, seconds=60.0) is WHEN_FAILED  # octets say more
    assert setup("overflow") is SETUPS["on-demand"]
    assert setup("overflow", bytes=10_000_000) is AT_ONCE
    assert setup("overflow", seconds=60.0) is AT_ONCE
    assert setup("overflow", rate_bps=10_000_000) is AT_ONCE
    assert setup("overflow", rate_bps=10_000_000, seconds=2.0) is SETUPS["on-demand"]
    assert setup("reliable", bytes=10_000) is AT_ONCE  # its paths are not there for what they carry
    with pytest.raises(ConfigurationError, match="negative"):
        Expectation(bytes=-1)


def test_a_rate_sizes_the_buffers_and_the_steady_profile_keeps_to_it() -> None:
    config = mptcp.ConnectionConfig()
    wide = profile_named("bulk").apply(config, Expectation(rate_bps=1_000_000_000))
    assert wide.tcp.receive_buffer_max_bytes == wide.tcp.send_buffer_bytes == 62_500_000
    small = profile_named("bulk").apply(config, Expectation(rate_bps=1_000_000))
    assert small.tcp == config.tcp
    steady = profile_named("steady")
    assert steady.apply(config).path_manager is not None
    assert steady.apply(config).path_manager().standby  # type: ignore[misc, attr-defined]
    assert not steady.apply(config, Expectation(rate_bps=20_000_000)).path_manager().standby  # type: ignore[misc, attr-defined]


@pytest.mark.parametrize(("octets", "subflows"), [(10_000, 1), (10_000_000, 2)])
def test_expected_octets_on_a_socket(world: World, octets: int, subflows: int) -> None:
    sock = world.client()
    sock.expect(bytes=octets)
    assert sock.expected == Expectation(bytes=octets)
    other = ["10.0.0.2", "fd00::2"][world.family == std.AF_INET6]
    accepted = world.connect(sock)
    if subflows == 2:
        await_subflows(sock, 2)
    else:
        time.sleep(0.05)
    assert len(sock.subflows()) == subflows
    assert {info.remote.host for info in sock.subflows()} == {other}
    closing(sock, accepted)


def test_setup_on_a_socket(world: World) -> None:
    for when, manager in (
        ("at-once", "fullmesh"),
        ("never", "none"),
        ("on demand", "on-demand"),
        ("when-failed", "on-demand"),
    ):
        sock = world.client()
        sock.set_subflow_setup(when)
        accepted = world.connect(sock)
        assert sock.path_manager == manager
        closing(sock, accepted)
    sock = world.client()
    sock.set_subflow_setup(after_bytes=100_000, after_seconds=30)
    accepted = world.connect(sock)
    time.sleep(0.03)
    assert len(sock.subflows()) == 1
    reader = threading.Thread(target=lambda: accepted.recv(200_000, std.MSG_WAITALL))
    reader.start()
    sock.sendall(bytes(200_000))
    reader.join(30)
    await_subflows(sock, 2)
    closing(sock, accepted)
    with world.client() as sock:
        with pytest.raises(mptcp.PathError, match="past"):
            sock.set_subflow_setup(after_bytes=-1)
        with pytest.raises(ConfigurationError):
            sock.set_subflow_setup("sometimes")


# --- REQ7: numbers of subflows --------------------------------------------------------------------------------------------------
def test_wanted_subflows_before_and_during_a_connection(world: World) -> None:
    sock = world.client()
    sock.set_path_manager("ndiffports")  # the later word counts
    sock.wanted_subflows = 1
    assert sock.wanted_subflows == 1
    accepted = world.connect(sock, subflows=1)
    assert sock.path_manager == "wanted"
    sock.set_path_manager(lambda: Ndiffports(3))
    await_subflows(sock, 3)
    sock.wanted_subflows = 1
    await_subflows(sock, 1)
    closing(sock, accepted)


def test_wrong_numbers(world: World) -> None:
    sock = world.client()
    for wrong in (0, -3, 9):
        with pytest.raises(mptcp.PathError, match="between 1 and 8"):
            sock.wanted_subflows = wrong
    assert sock.wanted_subflows == 0
    plain = world.near.socket(world.family, config=mptcp.ConnectionConfig(multipath=False))
    plain.settimeout(30)
    accepted = world.connect(plain)
    with pytest.raises(mptcp.PathError, match="regular TCP") as failed:
        plain.wanted_subflows = 2
    assert failed.value.errno == 95  # EOPNOTSUPP
    plain.sendall(b"goes on")
    assert accepted.recv(7) == b"goes on"
    closing(sock, plain, accepted)


# --- REQ11: schedulers and preferences ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_by_name_before_and_during(world: World, name: str) -> None:
    sock = world.client()
    sock.set_scheduler(name)
    assert sock.scheduler == name
    accepted = world.connect(sock)
    assert sock.scheduler == name
    sock.set_scheduler(RoundRobin)
    assert sock.scheduler == "round-robin"
    sock.sendall(b"still there")
    assert accepted.recv(11, std.MSG_WAITALL) == b"still there"
    closing(sock, accepted)


def test_weights_on_a_socket(world: World) -> None:
    sock = world.client()
    sock.set_scheduler("weighted")
    with pytest.raises(OSError, match="not connected"):
        sock.set_weight(1, 2)
    accepted = world.connect(sock)
    sock.set_weight(1, 3)
    assert sock.subflows()[0].weight == 3
    with pytest.raises(mptcp.PathError, match="no subflow"):
        sock.set_weight(9, 1)
    with pytest.raises(mptcp.PathError, match="between 0"):
        sock.set_weight(1, -1)
    sock.set_scheduler("lowest-rtt")
    with pytest.raises(mptcp.NotSupportedError, match="'weighted' and 'overflow' do"):
        sock.set_weight(1, 3)
    closing(sock, accepted)


def test_no_delay_means_latency_unless_the_program_has_chosen(world: World) -> None:  # RFC 6897 §4.4.2
    sock = world.client()
    accepted = world.connect(sock)
    sock.setsockopt(std.IPPROTO_TCP, std.TCP_NODELAY, 1)
    assert sock.scheduler == "earliest-completion"
    sock.setsockopt(std.IPPROTO_TCP, std.TCP_NODELAY, 0)
    assert sock.scheduler == "lowest-rtt"
    sock.set_scheduler("overflow")
    sock.setsockopt(std.IPPROTO_TCP, std.TCP_NODELAY, 1)
    assert sock.scheduler == "overflow"
    closing(sock, accepted)
    with world.client() as other:
        other.setsockopt(std.IPPROTO_TCP, std.TCP_NODELAY, 1)
        assert other.scheduler == "earliest-completion"


def test_names_that_nobody_has(world: World) -> None:
    with world.client() as sock:
        with pytest.raises(mptcp.PathError, match="there are lowest-rtt") as failed:
            sock.set_scheduler("fairest")
        assert failed.value.errno == 2  # ENOENT
        with pytest.raises(mptcp.PathError, match="there are fullmesh"):
            sock.set_path_manager("mesh")
        with pytest.raises(mptcp.PathError, match="there are none, on-retransmission, all"):
            sock.redundancy = "some"
        with pytest.raises(ConfigurationError):
            sock.profile = "sideways"
        assert (sock.scheduler, sock.path_manager, sock.redundancy) == ("lowest-rtt", "fullmesh", "none")
    for change in (
        lambda: sock.set_scheduler("overflow"),
        sock.usage,
        lambda: sock.expect(bytes=1),
        lambda: setattr(sock, "profile", "bulk"),
        lambda: setattr(sock, "wanted_subflows", 2),
    ):
        with pytest.raises(OSError, match="descriptor"):
            change()


@pytest.mark.parametrize("name", ["reno", "cubic", "lia", "olia", "balia", "wvegas"])
def test_congestion_controls_by_name_before_and_during(world: World, name: str) -> None:
    sock = world.client()
    sock.setsockopt(std.IPPROTO_TCP, std.TCP_CONGESTION, name.encode())
    assert sock.getsockopt(std.IPPROTO_TCP, std.TCP_CONGESTION, 16).rstrip(b"\0") == name.encode()  # type: ignore[union-attr]
    accepted = world.connect(sock)
    used = sock.subflows()[0].congestion_control
    assert used == {"reno": "newreno"}.get(name, name)
    sock.setsockopt(std.IPPROTO_TCP, std.TCP_CONGESTION, b"lia")
    assert sock.subflows()[0].congestion_control == "lia"
    closing(sock, accepted)


# --- REQ12: redundancy -----------------------------------------------------------------------------------------------------------
def test_redundancy_on_a_socket(world: World) -> None:
    sock = world.client()
    sock.redundancy = mptcp.Redundancy.ALL
    assert sock.redundancy == "all"
    accepted = world.connect(sock)
    assert sock.redundancy == "all"
    sock.redundancy = "none"
    assert sock.redundancy == "none"
    sock.set_scheduler("redundant-retransmission")
    assert sock.redundancy == "on-retransmission"
    closing(sock, accepted)


# --- REQ6: usage -----------------------------------------------------------------------------------------------------------------
def test_usage_has_the_share_of_every_subflow(world: World) -> None:
    sock = world.client()
    with pytest.raises(OSError, match="not connected"):
        sock.usage()
    sock.set_path_manager(NoSubflows)
    accepted = world.connect(sock)
    sock.open_subflow(remote=("fd00:1::2" if world.family == std.AF_INET6 else "10.0.1.2", accepted.getsockname()[1]))
    await_subflows(sock, 2)
    sock.set_scheduler(RoundRobin)
    reader = threading.Thread(target=lambda: accepted.recv(500_000, std.MSG_WAITALL))
    reader.start()
    sock.sendall(bytes(500_000))
    reader.join(30)
    usage = sock.usage()
    assert len(usage) == 2
    assert sum(u.sent_share for u in usage) == pytest.approx(1.0)
    assert all(u.sent_share > 0.1 for u in usage)
    assert sum(u.bytes_sent for u in usage) == sock.info().bytes_sent >= 500_000
    assert all(0.0 <= u.retransmitted_share < 0.5 for u in usage)
    closing(sock, accepted)
