"""A box rewrites content on the only path: a data checksum fails, MP_FAIL goes both ways, and the connection goes on as
regular TCP with the octets that the box made (RFC 8684 §3.7)."""

from collections.abc import Callable

import pytest

from mptcp.core.multipath.config import DEFAULT_CONFIG
from mptcp.links.faults import Fault, FaultKind
from mptcp.testing.encounter import Encounter
from mptcp.testing.exchange import Exchange
from mptcp.testing.kernel_peer import pattern_sha256

pytestmark = pytest.mark.usefixtures("kernel_mptcp")

MIB = 1 << 20
ROLES = ("connect", "accept")
FAMILIES = pytest.mark.parametrize("family", [4, 6])
Make = Callable[..., Encounter]
#: Linux makes segments that carry its infinite mapping as long as those of regular TCP, and with that option they no longer
#: fit the path: they need the room of 24 octets that a smaller maximum leaves.
CHECKSUMS = DEFAULT_CONFIG.changed(checksum=True, tcp=DEFAULT_CONFIG.tcp.changed(max_segment_bytes=1400))


def rewrite(encounter: Encounter, direction: str, *, path: int = 1, every: int = 30, limit: int = 1) -> Fault:
    """One data segment of so many is changed, ``limit`` times in all; the handshake is not."""
    fault = Fault(FaultKind.REWRITE, every=every, limit=limit, when=lambda data: len(data) > 600)
    link = encounter.faults[path]
    (link.outgoing if direction == "send" else link.incoming).append(fault)
    return fault


@FAMILIES
@pytest.mark.parametrize("direction", ["send", "receive"])
@pytest.mark.parametrize("role", ROLES)
def test_mp_fail_and_infinite_mapping(make_encounter: Make, role: str, direction: str, family: int) -> None:
    size = 2 * MIB
    ours, theirs = size * (direction == "send"), size * (direction == "receive")
    encounter = make_encounter(1, family=family, faulty=True, config=CHECKSUMS)
    fault = rewrite(encounter, direction)
    # Linux forgets what it has not sent yet if its application has shut down before it falls back.
    exchange, peer = encounter.meet(
        role, ours={"send_bytes": ours, "receive_bytes": theirs or -1},
        kernel={"send_bytes": theirs, "seed": 2, "half_close": False},
    )  # fmt: skip
    exchange.join()
    result = peer.result(10)
    assert fault.applied == 1
    assert exchange.error is None
    assert result["error"] == ""
    # Every octet has come once, in its place; one is the box's.
    assert (exchange.received, result["received"]) == (theirs, ours)
    assert (exchange.sha256 if theirs else result["sha256"]) != pattern_sha256(size, 2 if theirs else 0)
    assert not exchange.was_multipath
    assert not result["is_mptcp"]
    assert "checksum" in exchange.fallback_reason
    counters = encounter.kernel_counters()
    assert counters["MPFailTx"] == counters["MPFailRx"] == 1
    assert counters["InfiniteMapRx" if direction == "send" else "InfiniteMapTx"] == 1
    assert counters["DataCsumErr"] == (direction == "send")
    assert counters["MPRstTx"] == counters["MPRstRx"] == counters["MPFastcloseTx"] == counters["MPFastcloseRx"] == 0


@pytest.mark.parametrize("direction", ["send", "receive"])
@pytest.mark.parametrize("role", ROLES)
def test_both_sides_send_when_it_happens(make_encounter: Make, role: str, direction: str) -> None:
    encounter = make_encounter(1, faulty=True, config=CHECKSUMS)
    fault = rewrite(encounter, direction)
    exchange, peer = encounter.meet(
        role, ours={"send_bytes": 2 * MIB, "seed": 1, "receive_bytes": 2 * MIB},
        kernel={"send_bytes": 2 * MIB, "seed": 2, "half_close": False},
    )  # fmt: skip
    exchange.join()
    result = peer.result(10)
    assert fault.applied == 1
    assert exchange.error is None
    assert result["error"] == ""
    assert exchange.received == result["received"] == 2 * MIB
    assert (exchange.sha256 == pattern_sha256(2 * MIB, 2)) == (direction == "send"), "the other direction is exact"
    assert (result["sha256"] == pattern_sha256(2 * MIB, 1)) == (direction == "receive")
    assert not exchange.was_multipath
    assert encounter.kernel_counters()["MPFailRx"] == 1


@pytest.mark.parametrize("direction", ["send", "receive"])
@pytest.mark.parametrize("role", ROLES)
def test_the_last_data_there_is(make_encounter: Make, role: str, direction: str) -> None:
    """Nothing follows that an infinite mapping could ride on; the end of the stream does not get lost."""
    encounter = make_encounter(1, faulty=True, config=CHECKSUMS)
    sock, peer = encounter.open(role, kernel={"echo": True})
    sock.sendall(b"x" * 100)
    assert sock.recv(100) == b"x" * 100  # the kernel reverts only where a checksum has been right before
    fault = rewrite(encounter, direction, every=1)
    exchange = Exchange(sock, send_bytes=1000, timeout_s=10).join()
    result = peer.result(10)
    assert fault.applied == 1
    assert exchange.error is None
    assert result["error"] == ""
    assert (exchange.received, result["received"]) == (1000, 1100)
    assert exchange.sha256 != pattern_sha256(1000)


@pytest.mark.parametrize("direction", ["send", "receive"])
@pytest.mark.parametrize("role", ROLES)
def test_one_of_two_paths(make_encounter: Make, role: str, direction: str) -> None:
    """The subflow is reset with MP_FAIL, and what it carried comes over the other one: every octet is right."""
    size = 4 * MIB
    ours, theirs = size * (direction == "send"), size * (direction == "receive")
    encounter = make_encounter(2, faulty=True, config=CHECKSUMS)
    for path in (1, 2):
        encounter.lab.set_rate(path, 100)
    fault = rewrite(encounter, direction, path=2, every=20)
    exchange, peer = encounter.meet(
        role, ours={"send_bytes": ours, "subflows": 2}, kernel={"send_bytes": theirs, "seed": 2}
    )
    exchange.join()
    result = peer.result(10)
    assert fault.applied == 1
    assert exchange.got(theirs, 2)
    assert (result["received"], result["sha256"]) == (ours, pattern_sha256(ours))
    assert exchange.was_multipath
    assert result["is_mptcp"]
    counters = encounter.kernel_counters()
    assert counters["MPFailTx" if direction == "send" else "MPFailRx"] == 1
    assert counters["InfiniteMapTx"] == counters["InfiniteMapRx"] == 0
