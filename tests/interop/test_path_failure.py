"""Paths that fail while data moves: nothing is lost, and it goes on within a second or two."""

from collections.abc import Callable

import pytest

from mptcp.core.multipath.config import DEFAULT_CONFIG
from mptcp.core.path_managers.fullmesh import FullMesh
from mptcp.info import Endpoint, SubflowState
from mptcp.testing.encounter import Encounter
from mptcp.testing.exchange import wait_until
from mptcp.testing.kernel_peer import UNTIL_ENOUGH, pattern_sha256

pytestmark = pytest.mark.usefixtures("kernel_mptcp")

MIB = 1 << 20
#: Ours goes on after a retransmission timeout, about 0.25 s; the rest is for a machine that is busy with other things.
LONGEST_GAP_S = 4.0
ROLES = ("connect", "accept")
DIRECTIONS = ("send", "receive")
Make = Callable[..., Encounter]


def shaped(make_encounter: Make, **options: object) -> Encounter:
    encounter = make_encounter(2, **options)
    for path in (1, 2):
        encounter.lab.set_rate(path, 100)
    return encounter


@pytest.mark.parametrize("lost", [1, 2])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("role", ROLES)
def test_path_silently_dropped(make_encounter: Make, role: str, direction: str, lost: int) -> None:
    size = 12 * MIB
    ours, theirs = size * (direction == "send"), size * (direction == "receive")
    encounter = shaped(make_encounter)
    exchange, peer = encounter.meet(
        role, ours={"send_bytes": ours, "subflows": 2, "end": "hold"}, kernel={"send_bytes": theirs, "seed": 2}
    )
    exchange.wait_moved(5 * MIB)
    encounter.lab.blackhole(lost)
    exchange.join()
    assert exchange.got(theirs, 2)
    exchange.sock.close()
    result = peer.result()
    assert (result["received"], result["sha256"]) == (ours, pattern_sha256(ours))
    assert result["error"] == ""
    if direction == "send":  # how soon it goes on is the sender's business
        assert result["longest_gap_s"] < LONGEST_GAP_S


@pytest.mark.parametrize("side", ["client", "server"])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("role", ROLES)
def test_path_taken_down(make_encounter: Make, role: str, direction: str, side: str) -> None:
    size = 12 * MIB
    ours, theirs = size * (direction == "send"), size * (direction == "receive")
    encounter = shaped(make_encounter)
    exchange, peer = encounter.meet(
        role, ours={"send_bytes": ours, "subflows": 2}, kernel={"send_bytes": theirs, "seed": 2}
    )
    exchange.wait_moved(5 * MIB)
    encounter.lab.set_link(1, False, side=side)
    exchange.join()
    assert exchange.got(theirs, 2)
    result = peer.result()
    assert (result["received"], result["sha256"]) == (ours, pattern_sha256(ours))
    if direction == "send":  # how soon it goes on is the sender's business
        assert result["longest_gap_s"] < LONGEST_GAP_S


@pytest.mark.parametrize("role", ROLES)
def test_our_interface_is_said_to_be_down(make_encounter: Make, role: str) -> None:
    """Told of it, the stack leaves the path at once and withdraws its address."""
    encounter = shaped(make_encounter)
    exchange, peer = encounter.meet(role, ours={"send_bytes": UNTIL_ENOUGH, "subflows": 2})
    exchange.wait_moved(5 * MIB)
    encounter.stack.set_link_up(encounter.link_names[2], False)
    counters = encounter.wait_kernel(RmAddr=1)
    exchange.wait_moved(exchange.moved + 7 * MIB)
    exchange.enough()
    exchange.join()
    result = peer.result()
    assert (result["received"], result["sha256"]) == (exchange.sent, pattern_sha256(exchange.sent))
    assert result["longest_gap_s"] < 1
    assert counters["MPFastcloseRx"] == 0


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_backup_path(make_encounter: Make, direction: str) -> None:  # RFC 8684 §3.3.8
    """The second path, opened as backup, stays unused until the first one fails, and then carries the rest."""
    size = 8 * MIB
    ours, theirs = size * (direction == "send"), size * (direction == "receive")
    encounter = make_encounter(2)
    encounter.lab.set_rate(1, 100)
    backup = frozenset({Endpoint.parse(encounter.our_address(2)).address})
    config = DEFAULT_CONFIG.changed(path_manager=lambda: FullMesh(8, backup))
    exchange, peer = encounter.meet(
        "connect", ours={"send_bytes": ours, "subflows": 2}, kernel={"send_bytes": theirs, "seed": 2}, config=config
    )
    exchange.wait_moved(4 * MIB)
    first, second = sorted(exchange.sock.subflows(), key=lambda s: s.id)
    assert (first.backup, second.backup) == (False, True)
    assert encounter.is_spared(second)
    encounter.lab.blackhole(1)
    exchange.join()
    assert exchange.got(theirs, 2)
    result = peer.result()
    assert (result["received"], result["sha256"]) == (ours, pattern_sha256(ours))
    assert encounter.kernel_counters()["MPJoinSynBackupRx"] == 1


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_backup_path_of_the_kernel(make_encounter: Make, direction: str) -> None:
    """The kernel opens a second subflow to us and asks us to keep it as backup."""
    size = 8 * MIB
    ours, theirs = size * (direction == "send"), size * (direction == "receive")
    encounter = make_encounter(1)
    encounter.lab.server.ip("addr add 10.77.1.3/24 dev s1")
    encounter.lab.server.mptcp_endpoint("10.77.1.3", "subflow", "backup", id=5, dev="s1")
    exchange, peer = encounter.meet(
        "accept", ours={"send_bytes": ours, "subflows": 2}, kernel={"send_bytes": theirs, "seed": 2}
    )
    exchange.wait_moved(2 * MIB)
    second = next(s for s in exchange.sock.subflows() if not s.initial)
    assert second.backup
    assert (second.remote.host, second.remote_address_id) == ("10.77.1.3", 5)
    assert encounter.is_spared(second)
    exchange.join()
    assert exchange.got(theirs, 2)
    result = peer.result()
    assert (result["received"], result["sha256"]) == (ours, pattern_sha256(ours))


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_all_paths_lost_for_a_while(make_encounter: Make, direction: str) -> None:
    """Break before make: no subflow is left, then a path returns, and the transfer ends as if nothing had been."""
    we_send = direction == "send"
    encounter = shaped(make_encounter)
    # Linux waits for a path only while its connection is open in both directions: one whose application has shut down
    # its side ends with the last subflow, and nobody listens any more when our join comes. So both go on until then.
    exchange, peer = encounter.meet(
        "connect",
        ours={"send_bytes": UNTIL_ENOUGH * we_send, "subflows": 2},
        kernel={"send_bytes": UNTIL_ENOUGH * (not we_send), "seed": 2},
    )
    exchange.wait_moved(4 * MIB)
    for path in (1, 2):
        encounter.stack.set_link_up(encounter.link_names[path], False)
    wait_until(lambda: not exchange.sock.subflows(), 20, "no subflow is left")
    assert exchange.sock.info().state == "established"
    encounter.stack.set_link_up(encounter.link_names[2], True)
    exchange.wait_moved(exchange.moved + 6 * MIB)
    (exchange if we_send else peer).enough()
    exchange.join()
    result = peer.result()
    assert exchange.got(result["sent"], 2)
    assert (result["received"], result["sha256"]) == (exchange.sent, pattern_sha256(exchange.sent))
    assert result["is_mptcp"]


def test_server_without_paths_waits_for_the_client(make_encounter: Make) -> None:
    """The same with the kernel as client: a new endpoint makes it open a subflow, which finds the connection here."""
    encounter = make_encounter(1)
    encounter.lab.set_rate(1, 100)
    exchange, peer = encounter.meet("accept", ours={"send_bytes": UNTIL_ENOUGH})
    exchange.wait_moved(2 * MIB)
    encounter.stack.set_link_up(encounter.link_names[1], False)
    wait_until(lambda: not exchange.sock.subflows(), 20, "no subflow is left")
    encounter.stack.set_link_up(encounter.link_names[1], True)
    encounter.lab.server.ip("addr add 10.77.1.3/24 dev s1")
    encounter.lab.server.mptcp_endpoint("10.77.1.3", "subflow", id=5, dev="s1")
    exchange.wait_moved(exchange.moved + 4 * MIB)
    exchange.enough()
    exchange.join()
    result = peer.result()
    assert (result["received"], result["sha256"]) == (exchange.sent, pattern_sha256(exchange.sent))


def test_path_that_comes_back_is_used_again(make_encounter: Make) -> None:
    encounter = shaped(make_encounter)
    exchange, peer = encounter.meet("connect", ours={"send_bytes": UNTIL_ENOUGH, "subflows": 2})
    exchange.wait_moved(4 * MIB)
    encounter.lab.blackhole(2)
    wait_until(
        lambda: any(s.state is SubflowState.STALE for s in exchange.sock.subflows()),
        20,
        "the cut path is known as stale",
    )
    encounter.lab.heal(2)
    wait_until(
        lambda: [s.state for s in exchange.sock.subflows()] == [SubflowState.ACTIVE] * 2, 20, "both paths are in use"
    )
    exchange.enough()
    exchange.join()
    result = peer.result()
    assert (result["received"], result["sha256"]) == (exchange.sent, pattern_sha256(exchange.sent))
