"""``mptcp pm``: a path manager for every connection of a namespace."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from mptcp.core.path_managers.base import PathManager
from mptcp.core.path_managers.fullmesh import FullMesh
from mptcp.kernel import features
from mptcp.kernel.namespace import NetNamespace
from mptcp.kernel.pm_service import PathManagerService, user_space_manager
from mptcp.kernel.sockopt import full_info, mptcp_info
from mptcp.kernel.watchdog import FailurePolicy
from mptcp.testing import netns

Pair = Callable[..., tuple[socket.socket, socket.socket]]
Serve = Callable[..., PathManagerService]


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
    assert "announcing" in outputs[1]
    assert features.path_manager(NetNamespace(lab.client.fileno())) == "kernel"
