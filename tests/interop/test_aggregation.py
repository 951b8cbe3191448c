"""Two rate-limited paths are used together (``benchmarks/aggregation.py`` prints how well)."""

import time
from collections.abc import Callable

import pytest

from mptcp.testing.encounter import Encounter
from mptcp.testing.kernel_peer import pattern_sha256

pytestmark = pytest.mark.usefixtures("kernel_mptcp")

SIZE = 4_000_000
#: So little that the paths are the limit, also on a machine that is busy with other things.
RATE_MBIT = 25
#: What each of two equal paths carries at least, of all octets.
SHARE = 0.3


@pytest.mark.parametrize("direction", ["send", "receive"])
@pytest.mark.parametrize("role", ["connect", "accept"])
def test_both_paths_carry_their_share(make_encounter: Callable[..., Encounter], role: str, direction: str) -> None:
    ours, theirs = SIZE * (direction == "send"), SIZE * (direction == "receive")
    encounter = make_encounter(2)
    for path in (1, 2):
        encounter.lab.set_rate(path, RATE_MBIT)
    exchange, peer = encounter.meet(
        role,
        ours={"send_bytes": ours, "subflows": 2, "end": "hold"},
        kernel={"send_bytes": theirs, "half_close": False},
    )
    carried: list[int] = []
    while sum(carried) < SIZE:
        assert exchange.error is None
        time.sleep(0.01)
        subflows = exchange.sock.subflows()
        carried = [s.bytes_received if direction == "receive" else s.bytes_sent for s in subflows]
    exchange.wait_moved(SIZE)
    exchange.sock.close()
    result = peer.result()
    assert len(carried) == 2
    assert min(carried) >= SHARE * SIZE, carried
    if direction == "send":
        assert (result["received"], result["sha256"]) == (SIZE, pattern_sha256(SIZE))
    else:
        assert exchange.received == SIZE
        assert exchange.sha256 == pattern_sha256(SIZE)
