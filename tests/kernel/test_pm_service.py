"""``mptcp pm``: a path manager for every connection of a namespace."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import mptcp
from mptcp.core.multipath.config import ConnectionConfig
from mptcp.core.path_managers.base import PathManager
from mptcp.core.path_managers.fullmesh import FullMesh
from mptcp.core.path_managers.ndiffports import Ndiffports
from mptcp.core.units import MILLISECOND
from mptcp.info import Endpoint
from mptcp.kernel import features
from mptcp.kernel.namespace import NetNamespace
from mptcp.kernel.path_manager import PathManagerNetlink
from mptcp.kernel.pm_service import PathManagerService, user_space_manager
from mptcp.kernel.segment_routing import SegmentRoutes
from mptcp.kernel.sockopt import full_info, mptcp_info
from mptcp.kernel.watchdog import FailurePolicy
from mptcp.sockets.kernel import KernelStack
from mptcp.testing import netns

Pair = Callable[..., tuple[socket.socket, socket.socket]]
Serve = Callable[..., PathManagerService]
IPPROTO_MPTCP = 262


def working(sock: socket.socket) -> set[tuple[str, str]]:
    return {(e.local.host, e.remote.host) for e in full_info(sock.fileno()).subflows if e.tcp.state == 1}


@pytest.fixture
def serve() -> Iterator[Serve]:
    with contextlib.ExitStack() as exits:

        def start(
            where: netns.Namespace,
            factory: Callable[[], PathManager] | None = FullMesh,
            policy: FailurePolicy | None = None,
            said: list[str] | None = None,
            **options: object,
        ) -> PathManagerService:
            namespace = NetNamespace(where.fileno())
            if factory is not None:
                exits.enter_context(user_space_manager(namespace))
            report = said.append if said is not None else None
            service = PathManagerService(namespace, factory, policy, report=report, **options)  # type: ignore[arg-type]
            exits.callback(service.close)
            return service

        yield start


def test_new_connections_get_their_subflows(
    lab: netns.Lab, make_pair: Pair, serve: Serve, eventually: Callable[..., None]
) -> None:
    said: list[str] = []
    near, far = serve(lab.client, said=said), serve(lab.server)
    client, server = make_pair(lab.client, lab.server_address(1), server_in=lab.server, bind="")
    expected = {(lab.client_address(i), lab.server_address(j)) for i in (1, 2) for j in (1, 2)}
    eventually(lambda: working(client) == expected)
    eventually(lambda: len(working(server)) == 4)
    eventually(lambda: len(near) == len(far) == 1)
    token = f"{mptcp_info(client.fileno()).token:08x}"
    assert any(line.startswith(f"{token}: {lab.client_address(1)}") and "fullmesh" in line for line in said)
    client.close()
    server.close()
    eventually(lambda: len(near) == len(far) == 0)
    eventually(lambda: said[-1] == f"{token}: closed")


def test_connections_that_were_there_before_are_found(
    lab: netns.Lab, make_pair: Pair, serve: Serve, eventually: Callable[..., None]
) -> None:
    with contextlib.ExitStack() as exits:
        for where in (lab.client, lab.server):
            exits.enter_context(user_space_manager(NetNamespace(where.fileno())))
        client, _ = make_pair(lab.client, lab.server_address(1), server_in=lab.server, bind="")
        far = serve(lab.server, lambda: FullMesh(limit=2))
        near = serve(lab.client, lambda: FullMesh(limit=2))
        assert len(near) == len(far) == 1
        eventually(lambda: len(working(client)) == 2)


def test_only_the_addresses_that_were_named(
    lab: netns.Lab, make_pair: Pair, serve: Serve, eventually: Callable[..., None]
) -> None:
    named = [socket.inet_aton(lab.client_address(1))]
    serve(lab.client, addresses=named)
    serve(lab.server)
    client, _ = make_pair(lab.client, lab.server_address(1), server_in=lab.server, bind="")
    eventually(lambda: len(working(client)) == 2)
    assert {local for local, _ in working(client)} == {lab.client_address(1)}


def test_nothing_is_opened_twice_beside_a_program_that_manages_its_own(
    lab: netns.Lab, serve: Serve, eventually: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mptcp.kernel.pm_service.HEAD_START_US", 300 * MILLISECOND)
    said: list[str] = []
    serve(lab.client, said=said)
    serve(lab.server)
    config = ConnectionConfig(path_manager=FullMesh)
    with KernelStack(namespace=lab.client.fileno(), config=config) as stack, contextlib.ExitStack() as exits:
        with lab.server.entered():
            listener = exits.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_MPTCP))
        listener.bind(("", 0))
        listener.listen()
        for number in range(1, 4):
            with mptcp.use(stack):
                client: Any = exits.enter_context(
                    mptcp.create_connection((lab.server_address(1), listener.getsockname()[1]))
                )
            server = exits.enter_context(listener.accept()[0])
            for sender, receiver in ((client, server), (server, client)):
                sender.send(b"x")
                receiver.recv(1)
            eventually(lambda of=client: len(working(of)) == 4)
            wishes = 3 * number
            eventually(lambda many=wishes: sum(line.endswith("somebody else does") for line in said) == many)
            ends = [(s.local.host, s.remote.host) for s in client.subflows()]
            assert len(ends) == len(set(ends)) == 4


def test_what_others_open_is_what_was_wished_for(
    lab: netns.Lab, make_pair: Pair, serve: Serve, eventually: Callable[..., None]
) -> None:
    """Of three parallel subflows one is opened by the program, in the head start it has."""
    said: list[str] = []
    namespace = NetNamespace(lab.client.fileno())
    commands = PathManagerNetlink(namespace)
    with user_space_manager(namespace), contextlib.closing(commands):
        serve(lab.server, None, FailurePolicy())
        client, _ = make_pair(lab.client, lab.server_address(1), server_in=lab.server, bind="")
        first = full_info(client.fileno()).subflows[0]
        serve(lab.client, lambda: Ndiffports(3), said=said)
        commands.create_subflow(mptcp_info(client.fileno()).token, Endpoint(first.local.address), 0, first.remote)
        eventually(lambda: any(line.endswith("somebody else does") for line in said))
        eventually(lambda: sum("opening a subflow" in line for line in said) == 2)
        eventually(lambda: len(full_info(client.fileno()).subflows) == 3)


def test_an_address_whose_id_somebody_else_has_chosen(
    lab: netns.Lab, make_pair: Pair, serve: Serve, eventually: Callable[..., None]
) -> None:
    said: list[str] = []
    near = serve(lab.client, said=said)
    client, _ = make_pair(lab.client, lab.server_address(1), server_in=lab.server, bind="")
    eventually(lambda: len(near) == 1)
    eventually(lambda: len(working(client)) == 2)
    with contextlib.closing(PathManagerNetlink(NetNamespace(lab.client.fileno()))) as commands:
        commands.remove(mptcp_info(client.fileno()).token, 1)
        eventually(lambda: len(working(client)) == 1)
        remote = full_info(client.fileno()).subflows[0].remote
        local = Endpoint.parse(lab.client_address(2))
        commands.create_subflow(mptcp_info(client.fileno()).token, local, 77, remote)
        eventually(lambda: len(working(client)) == 2)
        steering = next(iter(near._connections.values()))._steering
        steering.open_subflow(local, remote, False)  # under the number 77, not under the one it had
        eventually(lambda: len(full_info(client.fileno()).subflows) == 3)


def test_connections_of_the_in_kernel_manager_are_watched(
    lab: netns.Lab, make_pair: Pair, serve: Serve, eventually: Callable[..., None]
) -> None:
    lab.client.mptcp_limits(subflows=2, add_addr_accepted=2)
    lab.server.mptcp_limits(subflows=2, add_addr_accepted=2)
    lab.client.mptcp_endpoint(lab.client_address(2), "subflow")
    said: list[str] = []
    serve(lab.client, None, FailurePolicy(), said)
    client, server = make_pair(lab.client, lab.server_address(1), server_in=lab.server, bind="")
    eventually(lambda: len(working(client)) == 2)
    lab.blackhole(1)
    client.setblocking(False)
    block = bytes(1 << 16)

    def one_is_gone() -> bool:
        with contextlib.suppress(BlockingIOError):
            client.send(block)
        with contextlib.suppress(BlockingIOError):
            server.recv(1 << 20, socket.MSG_DONTWAIT)
        return any("reset the subflow" in line for line in said)

    eventually(one_is_gone)
    eventually(lambda: len(working(client)) == 1)


def test_the_setting_is_put_back(host_namespace: netns.Namespace) -> None:
    namespace = NetNamespace(host_namespace.fileno())
    with user_space_manager(namespace) as changed:
        assert changed
        assert features.path_manager(namespace) == "userspace"
        with user_space_manager(namespace) as again:
            assert not again
    assert features.path_manager(namespace) == "kernel"


def test_the_command(lab: netns.Lab, make_pair: Pair, eventually: Callable[..., None]) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    # What a program that was killed has left: a rule without a subflow.
    nobody, segment = Endpoint.parse(lab.client_address(1, 6), 7), Endpoint.parse(lab.server_address(2, 6))
    left = SegmentRoutes(NetNamespace(lab.client.fileno()))
    left.add(nobody, Endpoint.parse(lab.server_address(1, 6), 80), [segment.address])
    assert "proto 109" in lab.client.ip("rule show", family=6)
    running = [
        where.popen(
            sys.executable, "-m", "mptcp", "pm", "--limit", "3", stdout=subprocess.PIPE, env=environment, bufsize=0
        )
        for where in (lab.client, lab.server)
    ]
    try:
        for process in running:
            assert process.stdout is not None
            assert any("Ctrl-C ends it" in line.decode() for line in process.stdout)  # up to the line that says so
        for where in (lab.client, lab.server):
            assert features.path_manager(NetNamespace(where.fileno())) == "userspace"
        client, _ = make_pair(lab.client, lab.server_address(1), server_in=lab.server, bind="")
        eventually(lambda: len(working(client)) == 3)
    finally:
        for process in running:
            process.send_signal(signal.SIGTERM)
        outputs = [process.communicate(timeout=60)[0].decode() for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert "opening a subflow from" in outputs[0]
    assert "proto 109" not in lab.client.ip("rule show", family=6)
    left.close()
    assert "announcing" in outputs[1]
    assert features.path_manager(NetNamespace(lab.client.fileno())) == "kernel"
