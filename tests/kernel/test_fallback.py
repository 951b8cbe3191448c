"""Connections of the kernel's that fall back to TCP in the middle of their life, for what a middlebox does to them.

Linux (seen on 6.18) falls back where the connection has had one subflow only and has sent nothing again at the level of
the connection; else it resets the subflow. It signals an infinite mapping with what it sends next after MP_FAIL; messages
here are small there, for a larger one (from some 15 KB on) makes that connection stall.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import random
import socket as std
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

import mptcp
from mptcp import EventKind
from mptcp.cli import app, event_sources
from mptcp.cli.event_sources import ComparedEvents, EventSource, KernelEvents, Told
from mptcp.cli.events import line
from mptcp.core.multipath.config import DEFAULT_CONFIG
from mptcp.core.multipath.fallback import FallbackReason
from mptcp.core.path_managers.base import Action, Facts, PathManager
from mptcp.core.path_managers.fullmesh import FullMesh
from mptcp.info import Endpoint
from mptcp.kernel import fallback, features, monitor
from mptcp.kernel.connection import KernelConnection
from mptcp.kernel.namespace import NetNamespace
from mptcp.kernel.pm_service import PathManagerService
from mptcp.sockets.kernel import KernelStack
from mptcp.testing.encounter import Encounter
from mptcp.testing.netns import Lab

from .test_events import next_of, taken

MakeLab = Callable[..., Lab]
Eventually = Callable[..., None]

#: What the middlebox changes, and what into.
SECRET, CHANGED = b"PASS one", b"pass one"
PASS = f"@ih,0,32 0x{SECRET[:4].hex()} @ih,0,32 set 0x{CHANGED[:4].hex()};"
PEER_SAW = FallbackReason.MP_FAIL.value
WAYS = ("to_server", "to_client")
#: An event comes after 1.8 s; nothing here fails because a busy machine takes longer.
PATIENCE_S = 30


def change_payload(lab: Lab, way: str) -> None:
    """Segments that begin with "PASS" begin with "pass" from here on. MPTCP's checksum alone can tell."""
    middlebox(lab, way, PASS)


def remove_options(lab: Lab, way: str, only: str = "") -> None:
    """What MPTCP options there are in segments without SYN (and that ``only`` matches) becomes NOPs from here on."""
    middlebox(lab, way, f"{only} tcp flags & syn == 0 reset tcp option mptcp;")


def middlebox(lab: Lab, way: str, rule: str) -> None:
    """A rule of nft for what arrives at that end by path 1."""
    namespace, device = (lab.server, "s1") if way == "to_server" else (lab.client, "c1")
    chain = f'type filter hook prerouting priority -500; iifname "{device}" meta l4proto tcp {rule}'
    namespace.nft(f"table inet middlebox {{\nchain c {{ {chain}\n}}\n}}")


def carried(sender: Any, receiver: Any, data: bytes) -> bytes:
    """What arrives of ``data``, which is as long."""
    sender.sendall(data)
    received = bytearray()
    while len(received) < len(data) and (piece := receiver.recv(65536)):
        received += piece
    return bytes(received)


def exact(one: Any, other: Any, size: int = 1000) -> None:
    """``size`` random octets each way."""
    for sender, receiver in ((one, other), (other, one)):
        data = random.randbytes(size)
        assert carried(sender, receiver, data) == data


def counted(lab: Lab) -> tuple[dict[str, int], dict[str, int]]:
    return tuple(features.counters(NetNamespace(each.fileno())) for each in (lab.client, lab.server))  # type: ignore[return-value]


class Ends:
    """A client and a server, each a socket of the kernel's stack in its namespace, on path 1; octets have gone both ways."""

    def __init__(self, lab: Lab, family: int = 4, *, exchanged: bool = True) -> None:
        self.lab = lab
        self.stacks = [KernelStack(namespace=each.fileno()) for each in (lab.client, lab.server)]
        kind = std.AF_INET if family == 4 else std.AF_INET6
        with mptcp.use(self.stacks[1]):
            self.listener: Any = mptcp.create_server(("", 0) if family == 4 else ("::", 0), family=kind)
        self.client: Any
        self.server: Any
        with mptcp.use(self.stacks[0]):
            where = lab.server_address(1, family), self.listener.getsockname()[1]
            self.client = mptcp.create_connection(where, PATIENCE_S)
        self.server = self.listener.accept()[0]
        self.server.settimeout(PATIENCE_S)
        self.both = self.client, self.server
        if exchanged:
            exact(*self.both)
            for sock in self.both:
                assert sock.is_multipath
                assert [sock.events().get().kind for _ in range(2)] == [
                    EventKind.ESTABLISHED, EventKind.SUBFLOW_ESTABLISHED
                ]  # fmt: skip

    def towards(self, way: str) -> tuple[Any, Any]:
        """(sender, receiver) of that direction."""
        return self.both if way == "to_server" else (self.server, self.client)

    def close(self) -> None:
        for sock in (*self.both, self.listener, *self.stacks):
            sock.close()


@pytest.fixture
def single(make_lab: MakeLab, monkeypatch: pytest.MonkeyPatch) -> Lab:
    """Two paths, of which connections use one unless somebody asks for more; checksums are on."""
    monkeypatch.setattr(monitor, "FALLBACK_S", 0.1)
    lab = make_lab(2)
    for namespace in (lab.client, lab.server):
        namespace.sysctl("net.mptcp.checksum_enabled", 1)
        features.set_path_manager(NetNamespace(namespace.fileno()), features.USER_SPACE_MANAGER)
    return lab


@pytest.fixture
def meet(single: Lab) -> Iterator[Callable[..., Ends]]:
    made: list[Ends] = []

    def make(*arguments: Any, **options: Any) -> Ends:
        made.append(Ends(single, *arguments, **options))
        return made[-1]

    yield make
    for ends in made:
        ends.close()


def fell_back(sock: Any, reason: str) -> None:
    """It is plain TCP and says so everywhere; the event has come, with the reason."""
    event = sock.events().get(PATIENCE_S)
    assert (event.kind, event.subflow_id, event.reason) == (EventKind.FELL_BACK, 1, reason)
    assert event.local == Endpoint.parse(*sock.getsockname()[:2])
    assert event.remote == Endpoint.parse(*sock.getpeername()[:2])
    assert not sock.is_multipath
    assert sock.fallback_reason == reason
    info = sock.info()
    assert (info.is_multipath, info.fallback_reason, info.token, info.state) == (False, reason, 0, "established")
    [subflow] = sock.subflows()
    assert (subflow.id, subflow.initial, subflow.local) == (1, True, event.local)
    for feature in ("open_subflow", "set_backup"):
        support = sock.supports(feature)
        assert not support
        assert reason in support.reason
    for call in (
        sock.open_subflow,
        lambda: sock.close_subflow(1),
        lambda: sock.set_backup(1, True),
        lambda: sock.add_address("10.77.2.1"),
        lambda: sock.remove_address("10.77.1.1"),
    ):
        with pytest.raises(OSError, match="TCP") as caught:
            call()
        assert caught.value.errno == errno.EOPNOTSUPP
    with pytest.raises(TimeoutError):
        sock.events().get(0.2)


# --- a middlebox that changes payload ---------------------------------------------------------------------------------
@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("way", WAYS)
def test_a_checksum_fails(single: Lab, meet: Callable[..., Ends], way: str, family: int) -> None:
    """The receiver sends MP_FAIL, the sender goes on with an infinite mapping: both ends are plain TCP then."""
    ends = meet(family)
    change_payload(single, way)
    sender, receiver = ends.towards(way)
    assert carried(sender, receiver, SECRET) == CHANGED
    exact(sender, receiver)
    exact(sender, receiver, 300_000)
    fell_back(sender, PEER_SAW)
    fell_back(receiver, fallback.CHECKSUM)
    here, there = counted(single) if way == "to_server" else counted(single)[::-1]
    assert (here["MPFailRx"], here["InfiniteMapTx"], there["DataCsumErr"], there["InfiniteMapRx"]) == (1, 1, 1, 1)
    for sock in ends.both:
        sock.shutdown(std.SHUT_WR)
    for sock in ends.both:
        assert sock.recv(1) == b""
        assert sock.events().get(PATIENCE_S).kind is EventKind.CLOSED
        assert sock.events().get(PATIENCE_S) is None


@pytest.mark.parametrize("way", WAYS)
def test_one_end_alone_has_fallen_back(single: Lab, meet: Callable[..., Ends], way: str) -> None:
    """As long as the sender sends nothing more, nobody has; each end is told for itself."""
    ends = meet()
    change_payload(single, way)
    sender, receiver = ends.towards(way)
    assert carried(sender, receiver, SECRET) == CHANGED
    data = random.randbytes(1000)
    assert carried(receiver, sender, data) == data
    assert sender.is_multipath
    assert receiver.is_multipath
    sender.sendall(b"the infinite mapping")
    fell_back(sender, PEER_SAW)
    assert receiver.recv(100) == b"the infinite mapping"
    fell_back(receiver, fallback.CHECKSUM)


def test_the_first_data_is_changed(single: Lab, meet: Callable[..., Ends]) -> None:
    """Linux falls back at once then, without MP_FAIL."""
    ends = meet(exchanged=False)
    for sock in ends.both:
        assert sock.is_multipath
    change_payload(single, "to_server")
    assert carried(ends.client, ends.server, SECRET) == CHANGED
    exact(*ends.both, 100_000)
    for sock, reason in ((ends.client, "the first data came without"), (ends.server, fallback.CHECKSUM)):
        told = [sock.events().get(PATIENCE_S) for _ in range(3)]
        assert told[-1].kind is EventKind.FELL_BACK
        assert told[-1].reason.startswith(reason)
        assert sock.fallback_reason == told[-1].reason


def test_who_asks_late(single: Lab, meet: Callable[..., Ends], make_pair: Callable[..., Any]) -> None:
    """The program has not looked at its connection before; what others in the namespace fell back for is not the reason."""
    make_pair(single.client, single.server_address(1), server_in=single.server, server_protocol=0)
    ends = meet(exchanged=False)
    exact(*ends.both)
    remove_options(single, "to_server")
    exact(*ends.both)
    for sock in ends.both:
        assert sock.fallback_reason == fallback.NO_MAPPING
        assert sock.events().get(PATIENCE_S).reason == fallback.NO_MAPPING


@pytest.mark.parametrize("change", [change_payload, remove_options])
@pytest.mark.parametrize("way", WAYS)
def test_with_a_second_subflow_the_bad_one_is_reset(
    single: Lab, meet: Callable[..., Ends], way: str, change: Callable[[Lab, str], None]
) -> None:
    """No fallback, and no octet is wrong: what was changed comes again by the other path. The kernel that resets a subflow
    tells only its peer; this package finds out."""
    ends = meet()
    ends.client.open_subflow(None, (single.client_address(2), 0), backup=True)
    for sock in ends.both:
        assert sock.events().get(PATIENCE_S).kind is EventKind.SUBFLOW_ESTABLISHED
    exact(*ends.both)
    change(single, way)
    sender, receiver = ends.towards(way)
    assert carried(sender, receiver, SECRET) == SECRET
    exact(*ends.both, 100_000)
    for sock, reason in ((sender, "reset-6"), (receiver, "unknown")):
        event = sock.events().get(PATIENCE_S)
        assert (event.kind, event.subflow_id, event.reason) == (EventKind.SUBFLOW_CLOSED, 1, reason)
        assert event.local.address == Endpoint.parse(*sock.getsockname()[:2]).address
        assert sock.is_multipath
        assert sock.fallback_reason == ""
        assert [subflow.id for subflow in sock.subflows()] == [2]
    assert sum(each["DataCsumErr"] for each in counted(single)) == (change is change_payload)


class Listening(PathManager):
    """Keeps what it is told of subflows that have ended."""

    name = "listening"

    def __init__(self) -> None:
        self.closed: list[tuple[Endpoint, str]] = []

    def on_subflow_closed(self, facts: Facts, local: Endpoint, remote: Endpoint, reason: str) -> Sequence[Action]:
        self.closed.append((local, reason))
        return ()


@pytest.mark.parametrize("way", WAYS)
def test_a_path_manager_hears_of_the_subflow_that_was_reset(
    single: Lab, meet: Callable[..., Ends], eventually: Eventually, way: str
) -> None:
    """At either end, once."""
    ends = meet()
    ends.client.open_subflow(None, (single.client_address(2), 0), backup=True)
    managers = Listening(), Listening()
    for sock, manager in zip(ends.both, managers, strict=True):
        assert sock.events().get(PATIENCE_S).kind is EventKind.SUBFLOW_ESTABLISHED
        sock.set_path_manager(lambda manager=manager: manager)
    exact(*ends.both)
    change_payload(single, way)
    sender, receiver = ends.towards(way)
    assert carried(sender, receiver, SECRET) == SECRET
    for sock, manager in zip(ends.both, managers, strict=True):
        eventually(lambda manager=manager: manager.closed, PATIENCE_S)
        assert sock.events().get(PATIENCE_S).kind is EventKind.SUBFLOW_CLOSED
        reason = "reset-6" if sock is sender else "unknown"
        assert manager.closed == [(Endpoint.parse(*sock.getsockname()[:2]), reason)]


# --- a middlebox that removes options ---------------------------------------------------------------------------------
@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("way", WAYS)
def test_options_vanish(single: Lab, meet: Callable[..., Ends], way: str, family: int) -> None:
    """In one direction is enough: whoever has fallen back adds none any more."""
    ends = meet(family)
    remove_options(single, way)
    sender, receiver = ends.towards(way)
    exact(sender, receiver)
    exact(sender, receiver, 300_000)
    for sock in ends.both:
        fell_back(sock, fallback.NO_MAPPING)
    assert [each["DssFallback"] for each in counted(single)] == [1, 1]


def test_a_subflow_that_waits_for_a_connection_that_falls_back(single: Lab, meet: Callable[..., Ends]) -> None:
    """Asked for before the first data has come, it will never be: that is told, and nobody goes on trying."""
    ends = meet(exchanged=False)
    connection: KernelConnection = ends.client._the_connection()
    local, remote = (Endpoint.parse(single.client_address(2)), connection.initial_remote)
    number = connection.open_subflow(local, remote, wait=True)
    remove_options(single, "to_client")
    exact(*ends.both)
    closed = next_of(connection, EventKind.SUBFLOW_CLOSED)
    assert (closed.subflow_id, closed.reason) == (number, "the connection fell back to TCP")
    assert next_of(connection, EventKind.FELL_BACK).subflow_id == 1
    assert connection._wishes == []
    assert not connection.is_usable


# --- this package's own stack as the peer -----------------------------------------------------------------------------
@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("role", ["connect", "accept"])
@pytest.mark.parametrize("sees", ["kernel", "user"])
def test_user_space_stack_as_the_peer(
    namespaces: None, monkeypatch: pytest.MonkeyPatch, role: str, family: int, sees: str
) -> None:
    """``sees``: who receives what was changed, and sends MP_FAIL. ``role``: the user-space stack's."""
    monkeypatch.setattr(monitor, "FALLBACK_S", 0.1)
    config = DEFAULT_CONFIG.changed(checksum=True)
    with contextlib.ExitStack() as exits:
        lab = exits.enter_context(Lab(1))
        lab.server.sysctl("net.mptcp.checksum_enabled", 1)
        encounter = exits.enter_context(Encounter(lab, family=family, config=config))
        stack = exits.enter_context(KernelStack(namespace=lab.server.fileno()))
        kind = std.AF_INET if family == 4 else std.AF_INET6
        kernel: Any
        if role == "connect":
            with mptcp.use(stack):
                listener = exits.enter_context(mptcp.create_server((encounter.any_address, 0), family=kind))
            ours = encounter.connect(listener.getsockname()[1])
            kernel = listener.accept()[0]
        else:
            listening = encounter.listen()
            with mptcp.use(stack):
                kernel = mptcp.create_connection((encounter.our_address(1), listening.getsockname()[1]), PATIENCE_S)
            ours = encounter.accept(listening)
        exits.enter_context(kernel)
        kernel.settimeout(PATIENCE_S)
        ours.settimeout(PATIENCE_S)
        exact(ours, kernel)
        assert kernel.info().checksum
        assert [kernel.events().get().kind for _ in range(2)] == [
            EventKind.ESTABLISHED, EventKind.SUBFLOW_ESTABLISHED
        ]  # fmt: skip
        hook = 'prerouting priority -500; iifname "s1"' if sees == "kernel" else 'output priority -500; oifname "s1"'
        lab.server.nft(f"table inet middlebox {{\nchain c {{ type filter hook {hook} meta l4proto tcp {PASS}\n}}\n}}")
        sender, receiver = (ours, kernel) if sees == "kernel" else (kernel, ours)
        assert carried(sender, receiver, SECRET) == CHANGED
        exact(sender, receiver)
        exact(sender, receiver, 300_000)
        assert not ours.is_multipath
        event = kernel.events().get(PATIENCE_S)
        reason = fallback.CHECKSUM if sees == "kernel" else PEER_SAW
        assert (event.kind, event.reason) == (EventKind.FELL_BACK, reason)
        assert not kernel.is_multipath
        assert kernel.fallback_reason == reason
        assert ours.fallback_reason == (PEER_SAW if sees == "kernel" else FallbackReason.CHECKSUM.value)


# --- who is told ------------------------------------------------------------------------------------------------------
def test_in_an_event_loop(single: Lab, meet: Callable[..., Ends]) -> None:
    ends = meet()

    async def told(sock: Any) -> list[mptcp.Event]:
        found = []
        async for event in sock.events():
            found.append(event)
            if event.kind is EventKind.FELL_BACK:
                sock.shutdown(std.SHUT_WR)  # by both: that is the end
        return found

    async def main() -> list[list[mptcp.Event]]:
        waiting = asyncio.gather(*(told(sock) for sock in ends.both))
        remove_options(single, "to_server")
        await asyncio.to_thread(exact, *ends.both)
        return await asyncio.wait_for(waiting, PATIENCE_S)

    for events in asyncio.run(main()):
        assert [event.kind for event in events] == [EventKind.FELL_BACK, EventKind.CLOSED]
        assert events[0].reason == fallback.NO_MAPPING


@pytest.mark.parametrize("heard", [True, False])
def test_a_connection_beside_it_hears_nothing(
    make_steered: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, heard: bool
) -> None:
    """``heard`` False: without the privilege to hear the kernel's events."""
    monkeypatch.setattr(monitor, "FALLBACK_S", 0.1)
    pair, other = make_steered(heard=heard), make_steered(heard=heard)
    for each in (pair, other):
        for side in (each.client, each.server):
            next_of(side, EventKind.SUBFLOW_ESTABLISHED)
    port = pair.client_socket.getsockname()[1]
    remove_options(pair.lab, "to_server", f"tcp sport {port}")
    try:
        pair.exchange()
        pair.exchange()
        for side in (pair.client, pair.server):
            assert next_of(side, EventKind.FELL_BACK).reason == fallback.NO_MAPPING
            assert not side.is_multipath
        other.exchange()
    finally:
        pair.lab.server.run("nft", "delete", "table", "inet", "middlebox")
    for side in (other.client, other.server):
        assert side.is_multipath
        assert taken(side) == []
        assert side.fallback_reason == ""


@pytest.mark.parametrize("source_of", [KernelEvents, ComparedEvents])
def test_the_command_that_shows_events_names_the_connection(
    single: Lab, meet: Callable[..., Ends], monkeypatch: pytest.MonkeyPatch, source_of: type[EventSource]
) -> None:
    monkeypatch.setattr(event_sources, "FALLBACK_S", 0.1)
    before, ends, beside = meet(), meet(), meet()
    port = before.client.getsockname()[1]
    remove_options(single, "to_server", f"tcp sport {port}")
    exact(*before.both)
    with source_of(NetNamespace(single.client.fileno())) as source:
        assert not source.read(0.3), "what has happened before is no news"
        single.server.run("nft", "delete", "table", "inet", "middlebox")
        port = ends.client.getsockname()[1]
        remove_options(single, "to_server", f"tcp sport {port}")
        exact(*ends.both)
        exact(*beside.both)
        told: list[Told] = []
        while not told:
            told = source.read(PATIENCE_S)
        assert source.read(0.3) == []
    [one] = told
    assert (one.event.kind, one.event.reason) == (EventKind.FELL_BACK, fallback.NO_MAPPING)
    assert str(one.local) == "{}:{}".format(*ends.client.getsockname())
    assert str(one.remote) == "{}:{}".format(*ends.client.getpeername())
    assert line(one).endswith(f"{one.local} → {one.remote} fell-back ({fallback.NO_MAPPING})")


@pytest.mark.parametrize("source_of", [KernelEvents, ComparedEvents])
@pytest.mark.parametrize("way", WAYS)
def test_the_command_that_shows_events_tells_of_a_reset_subflow(
    single: Lab,
    meet: Callable[..., Ends],
    monkeypatch: pytest.MonkeyPatch,
    source_of: Callable[[NetNamespace], EventSource],
    way: str,
) -> None:
    """Once, at the end that has reset it (of which the kernel tells nothing) as at the other one."""
    monkeypatch.setattr(event_sources, "FALLBACK_S", 0.1)
    ends = meet()
    with source_of(NetNamespace(single.client.fileno())) as source:
        ends.client.open_subflow(None, (single.client_address(2), 0), backup=True)
        assert [each.event.kind for each in source.read(PATIENCE_S)] == [EventKind.SUBFLOW_ESTABLISHED]
        exact(*ends.both)
        change_payload(single, way)
        sender, receiver = ends.towards(way)
        assert carried(sender, receiver, SECRET) == SECRET
        told: list[Told] = []
        while not told:
            told = source.read(PATIENCE_S)
        assert source.read(0.3) == []
        assert str(told[0].local) == "{}:{}".format(*ends.client.getsockname())
        ends.close()
        told += source.read(PATIENCE_S)
    reason = "" if source_of is ComparedEvents else "unknown" if way == "to_client" else "reset-6"
    closed = told[0].event
    assert (closed.kind, closed.local, closed.remote) == (EventKind.SUBFLOW_CLOSED, told[0].local, told[0].remote)
    assert closed.reason == reason
    assert EventKind.SUBFLOW_CLOSED not in {each.event.kind for each in told[1:] if each.event.local == closed.local}


def test_the_command_that_lists(single: Lab, meet: Callable[..., Ends], capsys: pytest.CaptureFixture[str]) -> None:
    """The causes are those of connections that were MPTCP; one that never was, in the same namespace, has its own."""
    ends = meet()
    remove_options(single, "to_server")
    exact(*ends.both)
    with single.server.entered():
        listener = std.create_server((single.server_address(2), 0))
    with listener, mptcp.use(ends.stacks[0]), mptcp.create_connection(listener.getsockname()) as never:
        assert app.run(["ls", "--json", "--netns", f"/proc/{os.getpid()}/fd/{single.client.fileno()}"]) == 0
        entries = {entry["local"]: entry for entry in json.loads(capsys.readouterr().out)["connections"]}
        reasons = [
            entries["{}:{}".format(*sock.getsockname())]["fallback_reason"]  # type: ignore[attr-defined]
            for sock in (ends.client, never)
        ]
    assert reasons == [fallback.NO_MAPPING, fallback.PEER_WITHOUT_MPTCP]
    assert not any(entry["is_multipath"] for entry in entries.values())


def test_path_managers_let_it_go(single: Lab, meet: Callable[..., Ends], eventually: Eventually) -> None:
    """That of a connection, and that of the namespace: when there is a second address, nothing is tried any more."""
    said: list[str] = []
    namespace = NetNamespace(single.server.fileno())
    for side in ("client", "server"):
        single.set_link(2, False, side=side)
    with contextlib.closing(PathManagerService(namespace, FullMesh, None, report=said.append)):
        ends = meet()
        ends.client.set_path_manager("fullmesh")
        remove_options(single, "to_server")
        exact(*ends.both)
        fell_back(ends.client, fallback.NO_MAPPING)
        eventually(lambda: any(each.endswith("it fell back to TCP: no further subflows") for each in said), PATIENCE_S)
        for side in ("client", "server"):
            single.set_link(2, True, side=side)
        while ends.client.events().get(PATIENCE_S).kind is not EventKind.LOCAL_ADDRESS_AVAILABLE:
            pass
        exact(*ends.both, 100_000)
        ends.client.close()
        ends.server.close()
        eventually(lambda: any(each.endswith(": closed") for each in said), PATIENCE_S)
    assert len(said) == 3, said
    assert counted(single)[0]["MPJoinSynTx"] == counted(single)[1]["MPJoinSynRx"] == 0
