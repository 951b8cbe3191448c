"""Whole hosts in situations that the table does not have: interfaces, shared bottlenecks, ECN, NAT that forgets."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mptcp.core.multipath.config import DEFAULT_CONFIG
from mptcp.core.multipath.connection import Connection
from mptcp.core.tcp.config import TcpConfig
from mptcp.core.units import MBIT, MILLISECOND, SECOND
from mptcp.info import Endpoint
from mptcp.sim.applications import (
    Acceptor,
    BulkReceiver,
    BulkSender,
    Requester,
    Responder,
)
from mptcp.sim.conditions import Conditions
from mptcp.sim.network import Router
from mptcp.sim.scenarios import Setup, Topology
from mptcp.sim.world import SimHost, World

FAST = Conditions(rate_bps=20 * MBIT, delay_us=10 * MILLISECOND, queue_bytes=64 * 1024)
SLOW = Conditions(rate_bps=8 * MBIT, delay_us=40 * MILLISECOND, queue_bytes=64 * 1024)


def start_upload(setup: Setup, octets: int, options: object = DEFAULT_CONFIG) -> tuple[Connection, Acceptor]:
    acceptor = setup.listen(BulkReceiver, options)  # type: ignore[arg-type]
    client = setup.connect(options)  # type: ignore[arg-type]
    setup.client_host.attach(client, BulkSender(setup.client_host, client, octets))
    return client, acceptor


def finish(setup: Setup, acceptor: Acceptor, limit_us: int = 60 * SECOND) -> BulkReceiver:
    def unfinished() -> bool:
        return not (acceptor.accepted and acceptor.accepted[0].ended)  # type: ignore[attr-defined]

    setup.world.run(until=setup.world.now + limit_us, while_=unfinished)
    (receiver,) = acceptor.accepted
    assert isinstance(receiver, BulkReceiver)
    assert receiver.ended
    assert receiver.is_exact
    return receiver


def test_an_interface_that_goes_down_and_comes_back() -> None:
    setup = Setup(Topology("", (FAST, SLOW)))
    client, acceptor = start_upload(setup, 2_000_000)
    port = setup.client_host.ports[0]
    setup.client_host.set_interface_up(port, False, at_us=300_000)
    setup.client_host.set_interface_up(port, True, at_us=900_000)
    setup.world.run(until=800_000)
    before = setup.paths[0].forward.bytes_delivered
    receiver = finish(setup, acceptor)
    assert receiver.progress.total == 2_000_000
    assert client.is_multipath
    # The host was told, so it neither waits for a timeout nor forgets the path when it is back.
    assert receiver.progress.longest_stall_us < 200_000
    assert setup.paths[0].forward.bytes_delivered > before + 200_000


def test_two_connections_share_a_bottleneck() -> None:
    world = World(1)
    server = world.add_host("server")
    router = Router()
    clients = []
    for index in range(2):
        client = world.add_host(f"client{index}")
        world.join(client.add_interface(f"10.0.{index}.1"), router, Conditions(delay_us=5_000))
        clients.append(client)
    bottleneck = Conditions(rate_bps=20 * MBIT, delay_us=5_000, queue_bytes=50_000)
    path = world.join(router, server.add_interface("10.9.0.1"), bottleneck)
    listener = server.listen(Endpoint.parse("10.9.0.1", 80))
    acceptor = Acceptor(server, listener, BulkReceiver)
    server.attach(listener, acceptor)
    for client in clients:
        connection = client.connect(Endpoint.parse("10.9.0.1", 80))
        client.attach(connection, BulkSender(client, connection))
    world.run(until=4 * SECOND)
    rates = [a.progress.goodput_bps(SECOND, 4 * SECOND) for a in acceptor.accepted]  # type: ignore[attr-defined]
    assert len(rates) == 2
    assert sum(rates) > 0.85 * 20 * MBIT
    assert max(rates) < 4 * min(rates)
    assert path.forward.queue_drops > 0


def test_ecn_marks_instead_of_losses() -> None:
    options = DEFAULT_CONFIG.changed(tcp=TcpConfig(ecn=True))
    conditions = FAST.changed(queue_bytes=512 * 1024, ecn_threshold_bytes=30_000)
    setup = Setup(Topology("", (conditions,)))
    _, acceptor = start_upload(setup, 4_000_000, options)
    finish(setup, acceptor)
    forward = setup.paths[0].forward
    assert forward.marked > 0
    assert forward.queue_drops == 0
    # The sender has listened: after slow start the queue no longer grows to its end (512 KiB are 210 ms).
    assert forward.max_queue_us < 150_000


@pytest.mark.parametrize("no_delay", [True, False])
def test_requests_and_responses_take_their_round_trips(no_delay: bool) -> None:
    options = DEFAULT_CONFIG.changed(tcp=TcpConfig(no_delay=no_delay))
    setup = Setup(Topology("", (Conditions(delay_us=10_000),)))
    setup.listen(lambda host, connection: Responder(host, connection, 100), options)
    client = setup.connect(options)
    requester = Requester(setup.client_host, client, 100, 5_000, count=20)
    setup.client_host.attach(client, requester)
    setup.world.run(until=10 * SECOND, while_=lambda: not requester.ended)
    assert requester.ended
    # RFC 9293 §3.7.4: the last segment of a response is a short one; Nagle keeps it until the others are acknowledged.
    nagle = 0 if no_delay else 20_000
    assert requester.latencies_us[0] == 40_000 + nagle  # the handshake's round trip, and the request's
    assert set(requester.latencies_us[1:]) == {20_000 + nagle}


@pytest.mark.parametrize("gso_max_bytes", [0, 64_000])
def test_offload_changes_nothing_for_the_receiver(gso_max_bytes: int) -> None:
    seen: list[int] = []
    setup = Setup(
        Topology("", (FAST, SLOW)),
        gso_max_bytes=gso_max_bytes,
        writer=lambda time, index, name, data: seen.append(len(data)),
    )
    _, acceptor = start_upload(setup, 600_000)
    finish(setup, acceptor)
    assert max(seen) <= 1_500


def test_the_example_in_the_documentation_runs(capsys: pytest.CaptureFixture[str]) -> None:
    text = (Path(__file__).parents[2] / "docs" / "simulator.md").read_text()
    found = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert found is not None
    exec(compile(found[1], "docs/simulator.md", "exec"), {})
    assert "10,000,000 octets in" in capsys.readouterr().out


def test_hosts_are_reached_by_the_port_they_are_joined_by() -> None:
    world = World(1)
    a: SimHost = world.add_host("a")
    b: SimHost = world.add_host("b")
    ports = [(a.add_interface(f"10.0.{i}.1"), b.add_interface(f"10.0.{i}.2")) for i in range(3)]
    for first, second in ports:
        world.join(first, second, Conditions(delay_us=1_000))
    listener = b.listen(Endpoint.parse("10.0.2.2", 80))
    connection = a.connect(Endpoint.parse("10.0.2.2", 80), local=Endpoint.parse("10.0.2.1"))
    world.run(until=100_000, while_=lambda: not connection.is_multipath or listener.accept() is None)
    assert world.paths[2].forward.packets_delivered >= 2
