"""asyncio over TUN devices with the kernel's MPTCP as peer: the program of the simulator's tests, unchanged."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

import mptcp
from mptcp.testing import application
from mptcp.testing.encounter import PORT, Encounter
from mptcp.testing.kernel_peer import pattern_sha256

pytestmark = pytest.mark.usefixtures("kernel_mptcp")

MIB = 1 << 20
Make = Callable[..., Encounter]


def run(encounter: Encounter, main: Any) -> Any:
    """As a program would, but with our loop: asyncio's functions are the stack's."""

    async def limited() -> Any:
        async with asyncio.timeout(30):
            return await main

    with mptcp.use(encounter.stack), asyncio.Runner(loop_factory=mptcp.EventLoop) as runner:
        return runner.run(limited())


@pytest.mark.parametrize("family", [4, 6])
def test_the_client_of_the_simulator_talks_to_the_kernel(make_encounter: Make, family: int) -> None:
    encounter = make_encounter(2, family=family, link="tun")
    peer = encounter.lab.server.serve(encounter.any_address, echo=True)
    shares = run(encounter, application.exchange(encounter.kernel_address(1), peer.port, 8 * MIB))
    assert peer.result()["is_mptcp"]
    assert len(shares) >= 2
    assert sum(shares.values()) >= 8 * MIB
    assert encounter.kernel_counters()["MPJoinAckRx"] >= 1


@pytest.mark.parametrize("family", [4, 6])
def test_the_kernel_talks_to_the_server_of_the_simulator(make_encounter: Make, family: int) -> None:
    encounter = make_encounter(2, family=family, link="tun")
    size = 4 * MIB

    async def main() -> dict[str, Any]:
        server = await asyncio.start_server(application.echo, None, PORT)
        peer = encounter.lab.server.connect(encounter.our_address(1), PORT, send_bytes=size, seed=3)
        result = await asyncio.to_thread(peer.result)
        server.close()
        await server.wait_closed()
        return dict(result)

    result = run(encounter, main())
    assert result["is_mptcp"]
    assert (result["received"], result["sha256"]) == (size, pattern_sha256(size, 3))
