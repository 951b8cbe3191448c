"""The send buffer is fixed before there is a second subflow, unless the program has chosen one."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import pytest

import mptcp
from mptcp.core.multipath.config import ConnectionConfig
from mptcp.core.path_managers.fullmesh import FullMesh
from mptcp.kernel.connection import KernelConnection
from mptcp.kernel.features import CAP_NET_ADMIN, has_capability
from mptcp.kernel.namespace import NetNamespace
from mptcp.kernel.pm_service import user_space_manager
from mptcp.kernel.send_buffer import largest
from mptcp.sockets.kernel import KernelStack
from mptcp.testing import netns

Make = Callable[..., Any]
SO_BUF_LOCK = 72


def buffer_of(sock: socket.socket) -> tuple[bool, int]:
    locked = sock.getsockopt(socket.SOL_SOCKET, SO_BUF_LOCK) & 1
    return bool(locked), sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)


def test_with_the_second_subflow(make_steered: Make) -> None:
    pair = make_steered()
    if not has_capability(CAP_NET_ADMIN):
        # Only there may a buffer be larger than net.core.wmem_max; a small one would cost more than it saves.
        pair.client.open_subflow(pair.local(2), pair.remote(2))
        assert not buffer_of(pair.client_socket)[0]
        return
    assert not buffer_of(pair.client_socket)[0]
    pair.client.open_subflow(pair.local(2), pair.remote(2))
    with NetNamespace(pair.lab.client.fileno()) as namespace:
        assert buffer_of(pair.client_socket) == (True, largest(namespace))


def test_what_the_program_has_chosen_stays(make_steered: Make) -> None:
    pair = make_steered()
    pair.client_socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 100_000)
    pair.client.open_subflow(pair.local(2), pair.remote(2))
    assert buffer_of(pair.client_socket) == (True, 200_000)


def test_it_can_be_left_alone(make_steered: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KernelConnection, "holds_send_buffer", False)
    pair = make_steered()
    pair.client.open_subflow(pair.local(2), pair.remote(2))
    assert not buffer_of(pair.client_socket)[0]


def test_of_an_accepted_connection_with_a_path_manager_from_the_start(lab: netns.Lab) -> None:
    # The peer's second subflow may come with its first data: too early for whoever begins when it is told of that.
    if not has_capability(CAP_NET_ADMIN):
        pytest.skip("only CAP_NET_ADMIN in the first user namespace fixes the send buffer: run as root")
    namespace = NetNamespace(lab.server.fileno())
    config = ConnectionConfig(path_manager=FullMesh)
    with user_space_manager(namespace), KernelStack(namespace=lab.server.fileno(), config=config) as stack:
        with mptcp.use(stack):
            listener = mptcp.create_server(("", 0))
        with lab.client.entered(), socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262) as client:
            client.connect((lab.server_address(1), listener.getsockname()[1]))
            with listener, listener.accept()[0] as accepted:
                assert buffer_of(accepted) == (True, largest(namespace))
