"""What the other files try over IPv4 alone, over IPv6: paths that fail, a backup, checksums, the ends of connections."""

import errno
from collections import Counter
from collections.abc import Callable

import pytest

from mptcp.core.multipath.config import DEFAULT_CONFIG
from mptcp.core.path_managers.fullmesh import FullMesh
from mptcp.info import Endpoint
from mptcp.testing.encounter import Encounter
from mptcp.testing.exchange import wait_until
from mptcp.testing.kernel_peer import pattern_sha256

pytestmark = pytest.mark.usefixtures("kernel_mptcp")

MIB = 1 << 20
SIZE = 12 * MIB
ROLES = pytest.mark.parametrize("role", ["connect", "accept"])
DIRECTIONS = pytest.mark.parametrize("direction", ["send", "receive"])
Make = Callable[..., Encounter]


def shaped(make_encounter: Make, **options: object) -> Encounter:
    encounter = make_encounter(2, family=6, **options)
    for path in (1, 2):
        encounter.lab.set_rate(path, 100)
    return encounter


def amounts(direction: str, size: int = SIZE) -> tuple[int, int]:
    """What we send, and what the kernel does."""
    return size * (direction == "send"), size * (direction == "receive")


def no_fallback(counters: Counter[str]) -> bool:
    names = ("MPCapableDataFallback", "DssFallback", "DSSCorruptionFallback", "MPFailTx", "MPFailRx", "DataCsumErr")
    return not any(counters[name] for name in (*names, "MPFastcloseTx", "MPFastcloseRx", "MPJoinAckHMacFailure"))


@ROLES
@DIRECTIONS
def test_path_silently_dropped(make_encounter: Make, role: str, direction: str) -> None:
    ours, theirs = amounts(direction)
    encounter = shaped(make_encounter)
    exchange, peer = encounter.meet(
        role, ours={"send_bytes": ours, "subflows": 2, "end": "hold"}, kernel={"send_bytes": theirs, "seed": 2}
    )
    exchange.wait_moved(5 * MIB)
    encounter.lab.blackhole(1)
    exchange.join()
    assert exchange.got(theirs, 2)
    exchange.sock.close()
    result = peer.result(10)
    assert (result["received"], result["sha256"], result["error"]) == (ours, pattern_sha256(ours), "")
    assert no_fallback(encounter.kernel_counters())


# Linux takes an IPv6 address away with its interface: where both subflows lead to that address, none is left.
@pytest.mark.parametrize(("role", "side"), [("connect", "client"), ("accept", "client"), ("accept", "server")])
@DIRECTIONS
def test_path_taken_down(make_encounter: Make, role: str, direction: str, side: str) -> None:
    ours, theirs = amounts(direction)
    encounter = shaped(make_encounter)
    exchange, peer = encounter.meet(
        role, ours={"send_bytes": ours, "subflows": 2}, kernel={"send_bytes": theirs, "seed": 2}
    )
    exchange.wait_moved(5 * MIB)
    encounter.lab.set_link(1, False, side=side)
    exchange.join()
    assert exchange.got(theirs, 2)
    result = peer.result(10)
    assert (result["received"], result["sha256"]) == (ours, pattern_sha256(ours))
    assert no_fallback(encounter.kernel_counters())


@DIRECTIONS
def test_backup_path(make_encounter: Make, direction: str) -> None:  # RFC 8684 §3.3.8
    ours, theirs = amounts(direction, 8 * MIB)
    encounter = make_encounter(2, family=6)
    encounter.lab.set_rate(1, 100)
    backup = frozenset({Endpoint.parse(encounter.our_address(2)).address})
    config = DEFAULT_CONFIG.changed(path_manager=lambda: FullMesh(8, backup))
    exchange, peer = encounter.meet(
        "connect", ours={"send_bytes": ours, "subflows": 2}, kernel={"send_bytes": theirs, "seed": 2}, config=config
    )
    exchange.wait_moved(4 * MIB)
    first, second = sorted(exchange.sock.subflows(), key=lambda s: s.id)
    assert (first.backup, second.backup) == (False, True)
    assert second.bytes_sent + second.bytes_received == 0
    encounter.lab.blackhole(1)
    exchange.join()
    assert exchange.got(theirs, 2)
    result = peer.result(10)
    assert (result["received"], result["sha256"]) == (ours, pattern_sha256(ours))
    assert encounter.kernel_counters()["MPJoinSynBackupRx"] == 1


@ROLES
@DIRECTIONS
def test_checksums(make_encounter: Make, role: str, direction: str) -> None:  # RFC 8684 §3.3.1
    ours, theirs = amounts(direction, MIB)
    encounter = make_encounter(2, family=6)
    exchange, peer = encounter.meet(
        role,
        ours={"send_bytes": ours, "subflows": 2},
        kernel={"send_bytes": theirs, "seed": 2},
        config=DEFAULT_CONFIG.changed(checksum=True),
    )
    exchange.join()
    result = peer.result()
    assert exchange.got(theirs, 2)
    assert (result["received"], result["sha256"]) == (ours, pattern_sha256(ours))
    assert result["info"]["checksum"] == 1
    assert no_fallback(encounter.kernel_counters())


@pytest.mark.parametrize("size", [1, 1428, 65_536])
@ROLES
@DIRECTIONS
def test_sizes(make_encounter: Make, role: str, direction: str, size: int) -> None:
    ours, theirs = amounts(direction, size)
    encounter = make_encounter(1, family=6)
    exchange, peer = encounter.meet(role, ours={"send_bytes": ours}, kernel={"send_bytes": theirs, "seed": 2})
    exchange.join()
    result = peer.result()
    assert exchange.got(theirs, 2)
    assert (result["received"], result["sha256"], result["error"]) == (ours, pattern_sha256(ours), "")
    assert no_fallback(encounter.kernel_counters())


@ROLES
def test_kernel_half_closes_and_still_receives(make_encounter: Make, role: str) -> None:
    encounter = make_encounter(2, family=6)
    sock, peer = encounter.open(role, kernel={"send_bytes": 5000})
    received = 0
    while piece := sock.recv(65_536):
        received += len(piece)
    assert received == 5000
    sock.sendall(bytes(MIB))
    sock.close()
    result = peer.result()
    assert (result["received"], result["error"]) == (MIB, "")


@pytest.mark.parametrize("by", ["us", "kernel"])
@ROLES
def test_fastclose(make_encounter: Make, role: str, by: str) -> None:  # RFC 8684 §3.5
    encounter = make_encounter(2, family=6)
    ours: dict[str, object] = {"subflows": 2}
    ours |= {"abort_after": MIB} if by == "us" else {"send_bytes": 64 * MIB, "end": "hold"}
    kernel = {"send_bytes": 64 * MIB} if by == "us" else {"fastclose_after": MIB}
    exchange, peer = encounter.meet(role, ours=ours, kernel=kernel)
    exchange.join()
    if by == "us":
        assert "ConnectionResetError" in (error := peer.result(10)["error"]) or "BrokenPipeError" in error
        counters = encounter.wait_kernel(MPFastcloseRx=1)
        assert counters["MPFastcloseTx"] == 0
    else:
        assert exchange.error is not None
        assert exchange.error.errno in (errno.ECONNRESET, errno.EPIPE)
        counters = encounter.wait_kernel(MPFastcloseTx=1)
        assert counters["MPFastcloseRx"] == 0
        wait_until(lambda: not exchange.sock.subflows(), 2, "every subflow is gone")


@ROLES
def test_options_stripped_from_the_middle_while_we_send(make_encounter: Make, role: str) -> None:  # RFC 8684 §3.7
    encounter = make_encounter(1, family=6)
    encounter.lab.set_rate(1, 100)
    exchange, peer = encounter.meet(role, ours={"send_bytes": SIZE})
    exchange.wait_moved(4 * MIB)
    encounter.lab.strip_mptcp()
    exchange.join()
    assert exchange.error is None
    assert not exchange.was_multipath
    result = peer.result(10)
    assert (result["received"], result["sha256"], result["error"]) == (SIZE, pattern_sha256(SIZE), "")
    assert encounter.kernel_counters()["DssFallback"] == 1
