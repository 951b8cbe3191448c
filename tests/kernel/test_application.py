"""The asyncio program of the simulator's and of TUN's tests, unchanged, on the kernel's stack at both ends."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import mptcp
from mptcp.core.multipath.config import ConnectionConfig
from mptcp.core.path_managers.fullmesh import FullMesh
from mptcp.kernel.namespace import NetNamespace
from mptcp.kernel.pm_service import user_space_manager
from mptcp.sockets.kernel import KernelStack
from mptcp.testing import application, netns

MIB = 1 << 20


@pytest.mark.parametrize("family", [4, 6])
def test_the_same_program_on_the_kernel(lab: netns.Lab, family: int) -> None:
    config = ConnectionConfig(path_manager=FullMesh)

    async def serve(started: asyncio.Event, port: list[int], done: asyncio.Event) -> None:
        server = await asyncio.start_server(application.echo, None, 0)
        port.append(server.sockets[0].getsockname()[1])
        started.set()
        await done.wait()
        server.close()

    async def main() -> dict[int, int]:
        started, done = asyncio.Event(), asyncio.Event()
        port: list[int] = []
        with mptcp.use(far):
            serving = asyncio.create_task(serve(started, port, done))
        await started.wait()
        with mptcp.use(near):
            talking = asyncio.create_task(application.exchange(lab.server_address(1, family), port[0], 16 * MIB))
        shares = await talking
        done.set()
        await serving
        return shares

    async def limited() -> Any:
        async with asyncio.timeout(100):
            return await main()

    client, server = NetNamespace(lab.client.fileno()), NetNamespace(lab.server.fileno())
    with (
        user_space_manager(client),
        user_space_manager(server),
        # On a busy machine timers run out though no path is dead; what each subflow has carried is to be seen at the end.
        KernelStack(namespace=lab.client.fileno(), config=config, failure_policy=None) as near,
        KernelStack(namespace=lab.server.fileno(), config=config, failure_policy=None) as far,
        asyncio.Runner(loop_factory=mptcp.EventLoop) as runner,
    ):
        shares = runner.run(limited())
    assert sum(shares.values()) >= 16 * MIB
    assert len([octets for octets in shares.values() if octets]) >= 2
    assert lab.server.counters()["MPTcpExtMPJoinAckRx"] >= 1
