"""A program that asks for nothing is looked after all the same: dead subflows end, lost ones come back."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

import mptcp
from mptcp.core.path_managers.fullmesh import FullMesh
from mptcp.kernel import sockopt
from mptcp.kernel.diag import Diag
from mptcp.kernel.namespace import NetNamespace
from mptcp.kernel.pm_service import PathManagerService, user_space_manager
from mptcp.kernel.sockopt import full_info
from mptcp.sockets.kernel import KernelStack
from mptcp.testing import netns


def working(sock: socket.socket) -> set[str]:
    """The local addresses of its subflows."""
    return {e.local.host for e in full_info(sock.fileno()).subflows if e.tcp.state == 1}


@pytest.fixture
def echo(lab: netns.Lab) -> Iterator[int]:
    """A server on the kernel's stack that swallows what it gets; its namespace announces its addresses. The port."""
    with contextlib.ExitStack() as exits:
        far = NetNamespace(lab.server.fileno())
        exits.enter_context(user_space_manager(far))
        service = PathManagerService(far, FullMesh, None)
        exits.callback(service.close)
        with lab.server.entered():
            listener = exits.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262))
        listener.bind(("", 0))
        listener.listen()

        def swallow(sock: socket.socket) -> None:
            with sock, contextlib.suppress(OSError):
                sock.sendall(b"!")
                while sock.recv(1 << 18):
                    pass

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    threading.Thread(target=swallow, args=(listener.accept()[0],), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()[1]
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def opener(lab: netns.Lab) -> Iterator[None]:
    """Somebody else opens the second subflow of the client's connections: the kernel itself."""
    lab.client.mptcp_limits(subflows=1, add_addr_accepted=0)
    lab.client.mptcp_endpoint(lab.client_address(2), "subflow")
    return


def silence(lab: netns.Lab) -> None:
    """What comes from the client's second address gets lost; its subflow goes to the server's first, by the first link."""
    chain = f"type filter hook input priority 0; ip saddr {lab.client_address(2)} drop"
    lab.server.nft(f"table inet cut {{\nchain in {{ {chain}; }}\n}}")


def push(sock: socket.socket, until: Callable[[], bool], seconds: float = 30) -> None:
    """Sends until it is so."""
    deadline = time.monotonic() + seconds
    sock.settimeout(0.05)
    block = bytes(1 << 16)
    while not until():
        assert time.monotonic() < deadline, "it did not happen"
        with contextlib.suppress(TimeoutError):
            sock.send(block)


@pytest.mark.usefixtures("opener")
def test_a_dead_subflow_ends(lab: netns.Lab, echo: int, eventually: Callable[..., None]) -> None:
    with KernelStack(namespace=lab.client.fileno()) as stack, stack.socket() as sock:
        sock.connect((lab.server_address(1), echo))
        assert sock.recv(1) == b"!"
        sock.sendall(b"?")
        eventually(lambda: len(working(sock)) == 2)
        silence(lab)
        push(sock, lambda: working(sock) == {lab.client_address(1)})


@pytest.mark.usefixtures("opener")
def test_not_without_a_policy(lab: netns.Lab, echo: int, eventually: Callable[..., None]) -> None:
    with KernelStack(namespace=lab.client.fileno(), failure_policy=None) as stack, stack.socket() as sock:
        sock.connect((lab.server_address(1), echo))
        assert sock.recv(1) == b"!"
        sock.sendall(b"?")
        eventually(lambda: len(working(sock)) == 2)
        silence(lab)
        began = time.monotonic()
        push(sock, lambda: time.monotonic() > began + 1.5)
        assert len(working(sock)) == 2


@pytest.mark.usefixtures("opener")
def test_a_socket_that_is_forgotten_is_closed(lab: netns.Lab, echo: int, eventually: Callable[..., None]) -> None:
    with KernelStack(namespace=lab.client.fileno()) as stack:
        held = [stack.socket()]
        held[0].connect((lab.server_address(1), echo))
        assert held[0].recv(1) == b"!"
        held[0].sendall(b"?")
        eventually(lambda: held[0]._managed is not None)
        there = sockopt.mptcp_info(held[0].fileno()).token
        diag = Diag(NetNamespace(lab.client.fileno()))

        def is_closed() -> bool:
            gc.collect()  # a turn in the monitor's thread may have held it for a moment
            return all(s.info is None or s.info.token != there for s in diag.mptcp_sockets())

        with pytest.warns(ResourceWarning, match="unclosed"):
            eventually(lambda: held.clear() or is_closed())
        diag.close()


def test_asyncio_is_looked_after_and_an_address_that_returns_is_used(
    lab: netns.Lab, echo: int, eventually: Callable[..., None]
) -> None:
    async def talk(stack: KernelStack) -> None:
        with mptcp.use(stack):
            reader, writer = await mptcp.open_connection(lab.server_address(1), echo)
        assert await reader.readexactly(1) == b"!"
        writer.write(b"?")
        sock = writer.get_extra_info("socket")
        sock.open_subflow((lab.server_address(2), echo), (lab.client_address(2), 0))

        async def become(addresses: set[str]) -> None:
            deadline = time.monotonic() + 30
            while working(sock) != addresses:
                assert time.monotonic() < deadline, working(sock)
                await asyncio.sleep(0.005)

        first, second = lab.client_address(1), lab.client_address(2)
        await become({first, second})
        lab.client.ip(f"addr del {second}/24 dev c2")
        await become({first})
        lab.client.ip(f"addr add {second}/24 dev c2")
        await become({first, second})
        writer.close()
        await writer.wait_closed()

    with contextlib.ExitStack() as exits:
        exits.enter_context(user_space_manager(NetNamespace(lab.client.fileno())))
        stack = exits.enter_context(KernelStack(namespace=lab.client.fileno()))
        asyncio.run(talk(stack))


def test_a_path_manager_chosen_before_a_connect_that_does_not_block(
    lab: netns.Lab, echo: int, eventually: Callable[..., None]
) -> None:
    with (
        user_space_manager(NetNamespace(lab.client.fileno())),
        KernelStack(namespace=lab.client.fileno()) as stack,
        stack.socket() as sock,
    ):
        sock.set_path_manager("fullmesh")
        sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            sock.connect((lab.server_address(1), echo))
        # Nothing of this package's is called from here on.
        eventually(lambda: len(working(sock)) == 2)
