"""Path managers of the core, and the watchdog, on connections of the kernel."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Self

import pytest

from mptcp.core.multipath.events import Event, EventKind
from mptcp.core.path_managers.backup import Backup
from mptcp.core.path_managers.base import PathManager
from mptcp.core.path_managers.fullmesh import FullMesh
from mptcp.core.path_managers.ndiffports import Ndiffports
from mptcp.core.path_managers.on_demand import OnDemand
from mptcp.core.path_managers.restore import Restore
from mptcp.kernel.connection import KernelConnection
from mptcp.kernel.layout import ESTABLISHED
from mptcp.kernel.managing import ManagedConnection
from mptcp.kernel.pm_events import PmEvent, PmEventKind
from mptcp.kernel.sockopt import full_info
from mptcp.kernel.steering import ConnectionSteering
from mptcp.kernel.turns import Managing
from mptcp.kernel.watchdog import FailurePolicy

MIB = 1 << 20
Steered = Any


@pytest.fixture
def manage() -> Iterator[Callable[..., ManagedConnection]]:
    """Puts one end of a steered connection under a path manager, and a watchdog."""
    made: list[tuple[Managing, ManagedConnection, int]] = []

    def put(
        connection: KernelConnection,
        manager: PathManager | None,
        *,
        is_client: bool = True,
        policy: FailurePolicy | None = None,
    ) -> ManagedConnection:
        monitor, size = connection._monitor, len(connection.initial_local.address)
        steering = ConnectionSteering(
            connection._fd, connection, lambda: [a.address for a in monitor.local_addresses() if len(a.address) == size]
        )
        managed = ManagedConnection(
            steering,
            manager,
            policy,
            is_client=is_client,
            local=connection.initial_local,
            remote=connection.initial_remote,
            announced=connection.announced,
            lock=connection.lock,
        )
        connection.on_own_close = managed.note_closed
        managing = Managing(monitor)
        made.append((managing, managed, connection.token))
        managing.add(managed, connection.token)
        return managed

    yield put
    for managing, managed, token in made:
        managing.remove(managed, token)


def pairs(connection: KernelConnection) -> set[tuple[str, str]]:
    """The addresses of the subflows that work."""
    return {(s.local.host, s.remote.host) for s in connection.subflows() if s.state.value == "active"}


def active(connection: KernelConnection) -> int:
    return sum(s.state.value == "active" for s in connection.subflows())


class Bulk:
    """Octets from the client to the server as fast as they go; what arrives is digested."""

    def __init__(self, steered: Steered) -> None:
        self.sender, self.receiver = steered.client_socket, steered.server_socket
        for sock in (self.sender, self.receiver):
            sock.settimeout(60)
        self.block = bytes(range(256)) * 512
        self.stop = threading.Event()
        self.sent, self.received = hashlib.sha256(), hashlib.sha256()
        self.octets = 0
        self.threads = [threading.Thread(target=self.send), threading.Thread(target=self.receive)]
        for thread in self.threads:
            thread.start()

    def send(self) -> None:
        with contextlib.suppress(OSError):  # then the digests differ
            while not self.stop.is_set():
                self.sender.sendall(self.block)
                self.sent.update(self.block)
            self.sender.shutdown(socket.SHUT_WR)

    def receive(self) -> None:
        with contextlib.suppress(OSError):
            while data := self.receiver.recv(1 << 18):
                self.received.update(data)
                self.octets += len(data)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Whatever happened, the threads are over before the sockets are closed."""
        self.stop.set()
        for thread in self.threads:
            thread.join(5)
        for sock in (self.sender, self.receiver):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self.threads:
            thread.join()

    def finish(self) -> None:
        self.stop.set()
        for thread in self.threads:
            thread.join(60)
            assert not thread.is_alive(), "the transfer does not end"
        assert self.sent.digest() == self.received.digest()


@pytest.fixture
def steered(make_steered: Callable[..., Steered]) -> Steered:
    """A connection whose server listens at all its addresses."""
    return make_steered()


def straight(steered: Steered, *paths: int) -> set[tuple[str, str]]:
    """The subflows between the two ends of each of these paths."""
    return {(steered.local(i).host, steered.remote(i).host) for i in paths}


def test_full_mesh_joins_every_address_the_peer_announces(
    steered: Steered, manage: Callable[..., ManagedConnection], eventually: Callable[..., None]
) -> None:
    manage(steered.client, FullMesh(limit=8))
    manage(steered.server, FullMesh(), is_client=False)
    eventually(lambda: active(steered.client) == 8)
    assert pairs(steered.client) >= straight(steered, 1, 2)
    assert {local for local, _ in pairs(steered.client)} == {steered.local(i).host for i in (1, 2, 3)}
    assert {remote for _, remote in pairs(steered.client)} == {steered.remote(i).host for i in (1, 2, 3)}
    eventually(lambda: active(steered.server) == 8)
    steered.exchange(200_000)


def test_an_address_announced_while_the_management_begins(
    steered: Steered, manage: Callable[..., ManagedConnection], eventually: Callable[..., None]
) -> None:
    # The notice has come to the connection, which has not handled it yet: nobody else will hear of it.
    told = PmEvent(PmEventKind.ANNOUNCED, steered.client.token, remote=steered.remote(2), remote_id=2)
    steered.client.inbox.append(told)
    manage(steered.client, FullMesh(limit=8))
    eventually(lambda: {remote for _, remote in pairs(steered.client)} == {steered.remote(i).host for i in (1, 2)})


def test_what_is_not_possible_yet_waits_for_the_first_data(
    make_steered: Callable[..., Steered],
    manage: Callable[..., ManagedConnection],
    eventually: Callable[..., None],
) -> None:
    steered = make_steered(full=False)
    managed = manage(steered.client, FullMesh(limit=3))
    time.sleep(0.1)
    assert active(steered.client) == 1
    steered.exchange(1)
    eventually(lambda: active(steered.client) == 3)
    assert not managed.failed_actions


def test_an_address_that_goes_takes_its_subflows_along_and_brings_them_back(
    steered: Steered, manage: Callable[..., ManagedConnection], eventually: Callable[..., None]
) -> None:
    manage(steered.client, Restore())
    steered.client.open_subflow(steered.local(2), steered.remote(2))
    eventually(lambda: pairs(steered.client) == straight(steered, 1, 2))
    interface, address = "c2", steered.lab.client_interface(2, steered.family)
    before = steered.lab.server.counters()["MPTcpExtRmAddr"]
    steered.lab.client.ip(f"addr del {address} dev {interface}")
    try:
        eventually(lambda: pairs(steered.client) == straight(steered, 1))
        eventually(lambda: active(steered.server) == 1)
        eventually(lambda: steered.lab.server.counters()["MPTcpExtRmAddr"] > before)
        steered.exchange()
        assert steered.lab.server.counters()["MPTcpExtRmAddr"] == before + 1
    finally:
        steered.lab.client.ip(f"addr add {address} dev {interface}{' nodad' if steered.family == 6 else ''}")
    eventually(lambda: pairs(steered.client) == straight(steered, 1, 2))
    steered.exchange(100_000)


def test_a_link_that_goes_down_does_so_too(
    steered: Steered, manage: Callable[..., ManagedConnection], eventually: Callable[..., None]
) -> None:
    manage(steered.client, Restore())
    steered.client.open_subflow(steered.local(2), steered.remote(2))
    eventually(lambda: active(steered.client) == 2)
    steered.lab.set_link(2, False, side="client")
    try:
        eventually(lambda: pairs(steered.client) == straight(steered, 1))
    finally:
        steered.lab.set_link(2, True, side="client")
        # A link takes its routes and its IPv6 addresses along.
        for family, prefix in ((4, 24), (6, 64)):
            steered.lab.client.ip(
                f"addr replace {steered.local(2, family=family).host}/{prefix} dev c2",
                f"route replace default via {steered.remote(2, family=family).host} dev c2 table 2",
                family=family,
            )
    eventually(lambda: pairs(steered.client) == straight(steered, 1, 2))


@pytest.mark.parametrize("reset", [False, True])
def test_what_the_program_closes_stays_closed(
    steered: Steered, manage: Callable[..., ManagedConnection], eventually: Callable[..., None], reset: bool
) -> None:
    managed = manage(steered.client, FullMesh(limit=3))
    eventually(lambda: active(steered.client) == 3)
    number = next(s.id for s in steered.client.subflows() if s.local.address == steered.local(3).address)
    steered.client.close_subflow(number, reset)
    eventually(lambda: active(steered.client) == 2)
    steered.exchange()
    assert managed.next_us > time.monotonic_ns() // 1000 + 10_000_000  # nothing is going to be tried again
    assert active(steered.client) == 2


def test_what_fails_is_opened_again_after_a_second(
    steered: Steered, manage: Callable[..., ManagedConnection], eventually: Callable[..., None]
) -> None:
    manage(steered.client, Restore())
    steered.client.open_subflow(steered.local(2), steered.remote(2))
    eventually(lambda: active(steered.server) == 2)
    second = next(s.id for s in steered.server.subflows() if s.local.address == steered.remote(2).address)
    told: list[Event] = []

    def heard(kind: EventKind) -> bool:
        told.extend(iter(steered.client.poll_event, None))
        return any(event.kind is kind for event in told)

    eventually(lambda: heard(EventKind.SUBFLOW_ESTABLISHED))
    began = time.monotonic()
    steered.server.close_subflow(second, reset=True)
    eventually(lambda: heard(EventKind.SUBFLOW_CLOSED))
    eventually(lambda: active(steered.client) == 2)
    assert time.monotonic() - began >= 1.0
    steered.exchange()


def test_another_manager_takes_over_during_the_connection(
    steered: Steered, manage: Callable[..., ManagedConnection], eventually: Callable[..., None]
) -> None:
    managed = manage(steered.client, None)
    assert active(steered.client) == 1
    managed.replace(Ndiffports(3))
    eventually(lambda: active(steered.client) == 3)
    assert pairs(steered.client) == straight(steered, 1)
    managed.replace(FullMesh(limit=5))
    eventually(lambda: active(steered.client) == 5)


def test_on_demand_waits_for_data(
    steered: Steered, manage: Callable[..., ManagedConnection], eventually: Callable[..., None]
) -> None:
    manage(steered.client, OnDemand(FullMesh(limit=2), after_bytes=256 * 1024))
    steered.exchange(20_000)
    time.sleep(0.3)
    assert active(steered.client) == 1
    steered.exchange(200_000)
    eventually(lambda: active(steered.client) == 2)


def test_the_watchdog_resets_a_dead_subflow_and_the_transfer_goes_on(
    steered: Steered, manage: Callable[..., ManagedConnection], eventually: Callable[..., None]
) -> None:
    manage(steered.client, Restore(), policy=FailurePolicy())
    steered.client.open_subflow(steered.local(2), steered.remote(2))
    eventually(lambda: active(steered.server) == 2)

    def timeouts() -> int:
        return int(steered.lab.client.counters()["TcpExtTCPTimeouts"])

    with Bulk(steered) as bulk:
        time.sleep(0.3)
        steered.lab.blackhole(2)
        try:
            before = timeouts()
            eventually(lambda: pairs(steered.client) == straight(steered, 1))
            gone_after = timeouts() - before
            before = bulk.octets
            eventually(lambda: bulk.octets > before + MIB)
        finally:
            steered.lab.heal(2)
        eventually(lambda: pairs(steered.client) == straight(steered, 1, 2), 60)
        bulk.finish()
        # The first would do. Linux itself waits for fifteen; how long they take depends on how busy the machine is.
        assert gone_after <= 5
        reasons = [e.reason for e in iter(steered.client.poll_event, None) if e.kind.value == "subflow-closed"]
        assert reasons[0] == "timeout"


@pytest.mark.parametrize("family", [4])
def test_the_watchdog_leaves_the_last_subflow_alone(
    steered: Steered, manage: Callable[..., ManagedConnection], eventually: Callable[..., None]
) -> None:
    manage(steered.client, None, policy=FailurePolicy())
    with Bulk(steered) as bulk:
        time.sleep(0.1)
        steered.lab.blackhole(1)
        try:
            time.sleep(1)
            assert len(steered.client.subflows()) == 1
        finally:
            steered.lab.heal(1)
        before = bulk.octets
        eventually(lambda: bulk.octets > before + MIB)
        bulk.finish()


def test_backup_opens_the_second_path_when_the_first_fails(
    steered: Steered, manage: Callable[..., ManagedConnection], eventually: Callable[..., None]
) -> None:
    # What leaves from the second address leaves by the second link, whatever it goes to: as with two uplinks.
    network = "10.77.1.0/24" if steered.family == 4 else "fd77:1::/64"
    steered.lab.client.ip(
        f"rule add from {steered.local(2).host} lookup 102",
        f"route add {network} via {steered.remote(2).host} dev c2 table 102",
        family=steered.family,
    )
    manage(steered.client, Backup(), policy=FailurePolicy())
    assert active(steered.client) == 1
    with Bulk(steered) as bulk:
        time.sleep(0.1)
        steered.lab.blackhole(1)
        try:
            eventually(lambda: pairs(steered.client) == {(steered.local(2).host, steered.remote(1).host)})
            before = bulk.octets
            eventually(lambda: bulk.octets > before + MIB)
        finally:
            steered.lab.heal(1)
        bulk.finish()
    steered.lab.client.ip(
        f"rule delete from {steered.local(2).host} lookup 102", "route flush table 102", family=steered.family
    )


def silence_data_acks(steered: Steered) -> None:
    """From now on the server's packets on the first subflow say nothing of the connection: what the client sends there is
    acknowledged on the subflow, and never on the connection. To Linux that is what it does itself, now and then, when
    its receiver takes the data but sends no further packet: nothing moves, and the subflow is idle."""
    (port,) = {s.local.port for s in steered.client.subflows() if s.local.address == steered.local(1).address}
    ip = "ip" if steered.family == 4 else "ip6"
    steered.lab.server.nft(
        "table inet silent {\n"
        f"chain out {{ type filter hook output priority 0; {ip} daddr {steered.local(1).host} tcp sport {steered.port} "
        f"tcp dport {port} tcp flags & (syn | fin | rst) == 0 reset tcp option mptcp; }}\n}}"
    )


def unacked(steered: Steered, path: int) -> int:
    """What is on its way on the client's subflow of a path, in packets."""
    entries = full_info(steered.client_socket.fileno()).subflows
    return sum(e.tcp.unacked for e in entries if e.local.address == steered.local(path).address)


def speak(steered: Steered) -> None:
    """Ends ``silence_data_acks``."""
    steered.lab.server.run("nft", "delete", "table", "inet", "silent", check=False)


@pytest.mark.parametrize(("backup", "family"), [(False, 4), (True, 6)])
def test_a_fresh_subflow_frees_what_is_stuck_after_a_path_died(
    steered: Steered, manage: Callable[..., ManagedConnection], eventually: Callable[..., None], backup: bool
) -> None:
    managed = manage(steered.client, None, policy=FailurePolicy())
    done: list[str] = []
    managed.on_report = done.append
    steered.client.open_subflow(steered.local(2), steered.remote(2))
    eventually(lambda: active(steered.server) == 2)
    if backup:
        (first,) = (s.id for s in steered.client.subflows() if s.local.address == steered.local(1).address)
        steered.client.set_backup(first, True)
    with Bulk(steered) as bulk:
        eventually(lambda: bulk.octets > MIB)
        steered.lab.blackhole(2)
        try:
            eventually(lambda: unacked(steered, 2))
            silence_data_acks(steered)
            # The dead subflow is reset; the one that is left is idle, and nothing moves until there is another.
            eventually(lambda: pairs(steered.client) == straight(steered, 1))
            eventually(lambda: active(steered.client) == 2)
            assert pairs(steered.client) == straight(steered, 1)
            before = bulk.octets
            eventually(lambda: bulk.octets > before + 4 * MIB)
            assert done[0].startswith("reset the subflow")
            assert done[1].startswith(f"opening a {'backup ' * backup}subflow")
        finally:
            steered.lab.heal(2)
            speak(steered)
        bulk.finish()


@pytest.mark.parametrize("family", [4])
def test_without_one_it_stays_stuck(
    steered: Steered, manage: Callable[..., ManagedConnection], eventually: Callable[..., None]
) -> None:
    manage(steered.client, None, policy=FailurePolicy(stuck_us=1 << 60))
    steered.client.open_subflow(steered.local(2), steered.remote(2))
    eventually(lambda: active(steered.server) == 2)
    with Bulk(steered) as bulk:
        eventually(lambda: bulk.octets > MIB)
        steered.lab.blackhole(2)
        try:
            eventually(lambda: unacked(steered, 2))
            silence_data_acks(steered)
            eventually(lambda: pairs(steered.client) == straight(steered, 1))
            seen, since = -1, time.monotonic()
            deadline = since + 15
            while time.monotonic() < since + 1:  # nothing moves for a second, once what was under way has arrived
                assert time.monotonic() < deadline, "it goes on"
                if bulk.octets != seen:
                    seen, since = bulk.octets, time.monotonic()
                time.sleep(0.01)
            (left,) = (e.tcp for e in full_info(steered.client_socket.fileno()).subflows if e.tcp.state == ESTABLISHED)
            assert not left.unacked
            assert not left.notsent_bytes
        finally:
            steered.lab.heal(2)
            speak(steered)
        bulk.finish()
