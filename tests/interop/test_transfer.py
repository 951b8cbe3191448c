"""Data between this stack and the kernel's MPTCP: both roles, both directions, both families, byte by byte."""

from collections import Counter
from collections.abc import Callable

import pytest

from mptcp.core.multipath.config import DEFAULT_CONFIG
from mptcp.testing.encounter import Encounter
from mptcp.testing.kernel_peer import pattern_sha256

pytestmark = pytest.mark.usefixtures("kernel_mptcp")

MIB = 1 << 20
ROLES = ("connect", "accept")
DIRECTIONS = ("send", "receive", "both")
Make = Callable[..., Encounter]

#: What the kernel must never have counted where nothing on the way spoils anything. (Not RcvWndConflict: it counts that two
#: of the kernel's own subflows announced the shared window at the same moment, on two processors.)
SPOILT = (
    "MPCapableFallbackACK", "MPCapableFallbackSYNACK", "MPCapableDataFallback", "DssFallback", "FallbackFailed",
    "MPJoinNoTokenFound", "MPJoinSynAckHMacFailure", "MPJoinAckHMacFailure", "MPJoinRejected", "DSSNotMatching",
    "DSSCorruptionFallback", "DSSCorruptionReset", "DSSNoMatchTCP", "DataCsumErr", "InfiniteMapTx", "InfiniteMapRx",
    "MPFailTx", "MPFailRx", "MPFastcloseTx", "MPFastcloseRx", "MPRstTx", "MPRstRx", "TcpInCsumErrors",
)  # fmt: skip


def unspoilt(counters: Counter[str]) -> bool:
    return not {name: counters[name] for name in SPOILT if counters[name]}


def check_capable(counters: Counter[str], role: str) -> None:
    """One MP_CAPABLE handshake."""
    if role == "connect":
        assert counters["MPCapableSYNRX"] == 1
        assert counters["MPCapableACKRX"] == 1
    else:
        assert counters["MPCapableSYNTX"] == 1
        assert counters["MPCapableSYNACKRX"] == 1


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("role", ROLES)
def test_one_path(make_encounter: Make, role: str, direction: str, family: int) -> None:
    ours, theirs = 4 * MIB * (direction != "receive"), 4 * MIB * (direction != "send")
    encounter = make_encounter(1, family=family)
    exchange, peer = encounter.meet(
        role, ours={"send_bytes": ours, "seed": 1}, kernel={"send_bytes": theirs, "seed": 2}
    )
    exchange.join()
    result = peer.result()
    assert exchange.error is None
    assert result["error"] == ""
    assert exchange.got(theirs, 2)
    assert (result["received"], result["sha256"]) == (ours, pattern_sha256(ours, 1))
    assert exchange.was_multipath
    assert result["is_mptcp"]
    counters = encounter.kernel_counters()
    check_capable(counters, role)
    assert counters["MPJoinSynRx"] == counters["MPJoinSynTx"] == 0
    assert unspoilt(counters), counters


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("role", ROLES)
def test_two_paths(make_encounter: Make, role: str, direction: str, family: int) -> None:
    ours, theirs = 8 * MIB * (direction != "receive"), 8 * MIB * (direction != "send")
    encounter = make_encounter(2, family=family)
    exchange, peer = encounter.meet(
        role, ours={"send_bytes": ours, "seed": 1, "subflows": 2}, kernel={"send_bytes": theirs, "seed": 2}
    )
    exchange.join()
    result = peer.result()
    assert exchange.error is None
    assert result["error"] == ""
    assert exchange.got(theirs, 2)
    assert (result["received"], result["sha256"]) == (ours, pattern_sha256(ours, 1))
    assert exchange.was_multipath
    assert result["info"]["subflows"] == 1  # beside the first
    counters = encounter.kernel_counters()
    check_capable(counters, role)
    if role == "connect":
        assert counters["MPJoinSynRx"] == counters["MPJoinAckRx"] == 1
    else:
        assert counters["AddAddr"] == 1
        assert counters["MPJoinSynTx"] == counters["MPJoinSynAckRx"] == 1
    assert unspoilt(counters), counters


@pytest.mark.parametrize("direction", ["send", "receive"])
@pytest.mark.parametrize("role", ROLES)
def test_two_paths_over_tun(make_encounter: Make, tun: None, role: str, direction: str) -> None:
    ours, theirs = 16 * MIB * (direction != "receive"), 16 * MIB * (direction != "send")
    encounter = make_encounter(2, link="tun")
    exchange, peer = encounter.meet(
        role, ours={"send_bytes": ours, "subflows": 2}, kernel={"send_bytes": theirs, "seed": 2}
    )
    exchange.join()
    result = peer.result()
    assert exchange.got(theirs, 2)
    assert (result["received"], result["sha256"]) == (ours, pattern_sha256(ours))
    counters = encounter.kernel_counters()
    assert counters["MPJoinAckRx"] + counters["MPJoinSynAckRx"] == 1
    assert unspoilt(counters), counters


@pytest.mark.parametrize("direction", ["send", "receive"])
@pytest.mark.parametrize("role", ROLES)
def test_without_offload(make_encounter: Make, role: str, direction: str) -> None:
    """Every packet is cut and completed by us; the kernel's super-segments reach us in pieces."""
    ours, theirs = 2 * MIB * (direction != "receive"), 2 * MIB * (direction != "send")
    encounter = make_encounter(2, offload=False)
    for path in (1, 2):
        encounter.lab.server.run("ip", "link", "set", f"s{path}", "gso_max_segs", "1")
    exchange, peer = encounter.meet(
        role, ours={"send_bytes": ours, "subflows": 2}, kernel={"send_bytes": theirs, "seed": 2}
    )
    exchange.join()
    result = peer.result()
    assert exchange.got(theirs, 2)
    assert (result["received"], result["sha256"]) == (ours, pattern_sha256(ours))
    assert unspoilt(encounter.kernel_counters())


@pytest.mark.parametrize("wanted_by", ["us", "kernel", "both"])
@pytest.mark.parametrize("direction", ["send", "receive"])
@pytest.mark.parametrize("role", ROLES)
def test_checksums(make_encounter: Make, role: str, direction: str, wanted_by: str) -> None:  # RFC 8684 §3.3.1
    ours, theirs = MIB * (direction != "receive"), MIB * (direction != "send")
    encounter = make_encounter(2)
    encounter.lab.server.sysctl("net.mptcp.checksum_enabled", int(wanted_by != "us"))
    exchange, peer = encounter.meet(
        role,
        ours={"send_bytes": ours, "subflows": 2},
        kernel={"send_bytes": theirs, "seed": 2},
        config=DEFAULT_CONFIG.changed(checksum=wanted_by != "kernel"),
    )
    exchange.join()
    result = peer.result()
    assert exchange.got(theirs, 2)
    assert (result["received"], result["sha256"]) == (ours, pattern_sha256(ours))
    assert exchange.info is not None
    assert exchange.info.checksum
    assert result["info"]["checksum"] == 1
    assert unspoilt(encounter.kernel_counters())


@pytest.mark.parametrize("size", [1, 1399, 1448, 65_535, 65_536])
@pytest.mark.parametrize("direction", ["send", "receive"])
@pytest.mark.parametrize("role", ROLES)
def test_sizes(make_encounter: Make, role: str, direction: str, size: int) -> None:
    ours, theirs = size * (direction != "receive"), size * (direction != "send")
    encounter = make_encounter(1)
    exchange, peer = encounter.meet(role, ours={"send_bytes": ours}, kernel={"send_bytes": theirs, "seed": 2})
    exchange.join()
    result = peer.result()
    assert exchange.got(theirs, 2)
    assert (result["received"], result["sha256"]) == (ours, pattern_sha256(ours))
    assert result["error"] == ""
    assert unspoilt(encounter.kernel_counters())


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("role", ROLES)
def test_no_data_at_all(make_encounter: Make, role: str, family: int) -> None:
    encounter = make_encounter(1, family=family)
    exchange, peer = encounter.meet(role, ours={"receive_bytes": 0})
    exchange.join()
    result = peer.result()
    assert (result["received"], result["error"]) == (0, "")
    assert exchange.error is None
    assert exchange.was_multipath
    counters = encounter.kernel_counters()
    check_capable(counters, role)
    assert unspoilt(counters), counters


@pytest.mark.parametrize("link", ["tun", pytest.param("packet", marks=pytest.mark.slow)])
@pytest.mark.parametrize("direction", ["send", "receive"])
@pytest.mark.parametrize("role", ROLES)
def test_one_gibibyte(make_encounter: Make, role: str, direction: str, link: str) -> None:
    size = 1 << 30
    ours, theirs = size * (direction != "receive"), size * (direction != "send")
    encounter = make_encounter(2, link=link)
    exchange, peer = encounter.meet(
        role, ours={"send_bytes": ours, "subflows": 2, "timeout_s": 250}, kernel={"send_bytes": theirs, "seed": 2}
    )
    exchange.join()
    result = peer.result()
    assert exchange.got(theirs, 2)
    assert (result["received"], result["sha256"]) == (ours, pattern_sha256(ours))
    assert unspoilt(encounter.kernel_counters())
