"""How connections with the kernel end: half-close either way, MP_FASTCLOSE from either side, a refused port."""

import errno
from collections.abc import Callable

import pytest

from mptcp.core.multipath.config import DEFAULT_CONFIG
from mptcp.testing.encounter import PORT, Encounter
from mptcp.testing.exchange import wait_subflows, wait_until
from mptcp.testing.kernel_peer import pattern_sha256

pytestmark = pytest.mark.usefixtures("kernel_mptcp")

MIB = 1 << 20
#: A transfer whose connection is there afterwards, too, however soon it is through.
SENDS_AND_STAYS = {"send_bytes": 32 * MIB, "subflows": 2, "receive_bytes": 0, "half_close": False, "end": "hold"}
Make = Callable[..., Encounter]


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("role", ["connect", "accept"])
def test_we_half_close_and_still_receive(make_encounter: Make, role: str, family: int) -> None:
    # The kernel waits with its answer until it has seen our end of the stream.
    encounter = make_encounter(2, family=family)
    exchange, peer = encounter.meet(role, ours={"send_bytes": MIB, "subflows": 2}, kernel={"echo": True})
    exchange.join()
    result = peer.result()
    assert exchange.got(MIB)
    assert (result["received"], result["sha256"]) == (MIB, pattern_sha256(MIB))
    counters = encounter.kernel_counters()
    assert counters["MPRstRx"] == counters["MPRstTx"] == counters["MPFastcloseRx"] == counters["MPFastcloseTx"] == 0


@pytest.mark.parametrize("role", ["connect", "accept"])
def test_kernel_half_closes_and_still_receives(make_encounter: Make, role: str) -> None:
    encounter = make_encounter(2)
    sock, peer = encounter.open(role, kernel={"send_bytes": 5000})
    received = bytearray()
    while piece := sock.recv(65_536):
        received += piece
    assert len(received) == 5000
    # Its direction is closed, and ours goes on.
    sock.sendall(bytes(MIB))
    sock.close()
    result = peer.result()
    assert (result["received"], result["error"]) == (MIB, "")


@pytest.mark.parametrize("paths", [1, 2])
@pytest.mark.parametrize("role", ["connect", "accept"])
def test_kernel_closes_abruptly(make_encounter: Make, role: str, paths: int) -> None:  # SO_LINGER 0 there
    encounter = make_encounter(paths)
    exchange, _ = encounter.meet(
        role, ours={"send_bytes": 64 * MIB, "subflows": paths, "end": "hold"}, kernel={"fastclose_after": MIB}
    )
    exchange.join()
    assert exchange.error is not None
    assert exchange.error.errno in (errno.ECONNRESET, errno.EPIPE)
    counters = encounter.wait_kernel(MPFastcloseTx=1)
    assert counters["MPFastcloseRx"] == 0
    wait_until(lambda: not exchange.sock.subflows(), 20, "every subflow is gone")


@pytest.mark.parametrize("by_reset", [True, False], ids=["option R", "option A"])
@pytest.mark.parametrize("paths", [1, 2])
@pytest.mark.parametrize("role", ["connect", "accept"])
def test_we_close_abruptly(make_encounter: Make, role: str, paths: int, by_reset: bool) -> None:  # RFC 8684 §3.5
    encounter = make_encounter(paths)
    exchange, peer = encounter.meet(
        role,
        ours={"subflows": paths, "abort_after": MIB},
        kernel={"send_bytes": 64 * MIB},
        config=DEFAULT_CONFIG.changed(fastclose_by_reset=by_reset),
    )
    exchange.join()
    result = peer.result()
    assert "ConnectionResetError" in result["error"] or "BrokenPipeError" in result["error"], result
    counters = encounter.wait_kernel(MPFastcloseRx=1)
    assert counters["MPFastcloseTx"] == 0
    wait_until(lambda: not encounter.stack.pump.host.connections, 20, "the connection is forgotten")


def test_close_with_unread_data_is_abrupt(make_encounter: Make) -> None:  # RFC 1122 §4.2.2.13
    encounter = make_encounter(1)
    sock, peer = encounter.open("connect", kernel={"send_bytes": 1000})
    wait_until(lambda: sock.info().receive_buffered_bytes == 1000, 20, "the octets have arrived")
    sock.close()
    assert "ConnectionResetError" in peer.result()["error"]
    encounter.wait_kernel(MPFastcloseRx=1)


@pytest.mark.parametrize("family", [4, 6])
def test_kernel_refuses(make_encounter: Make, family: int) -> None:
    encounter = make_encounter(1, family=family)
    with pytest.raises(ConnectionRefusedError):
        encounter.connect(1)


@pytest.mark.parametrize("family", [4, 6])
def test_we_refuse(make_encounter: Make, family: int) -> None:
    encounter = make_encounter(1, family=family)
    peer = encounter.lab.server.connect(encounter.our_address(1), PORT)
    assert "ConnectionRefusedError" in peer.result()["error"]


@pytest.mark.parametrize("role", ["connect", "accept"])
def test_subflow_closed_by_us_leaves_the_connection(make_encounter: Make, role: str) -> None:
    encounter = make_encounter(2)
    exchange, peer = encounter.meet(role, ours=SENDS_AND_STAYS)
    exchange.wait_moved(4 * MIB)
    first, second = sorted(exchange.sock.subflows(), key=lambda s: s.id)
    exchange.sock.close_subflow(first.id)
    wait_until(lambda: [s.id for s in exchange.sock.subflows()] == [second.id], 20, "the first subflow is closed")
    exchange.join()
    assert [s.id for s in exchange.sock.subflows()] == [second.id]
    exchange.sock.close()
    result = peer.result()
    assert (result["received"], result["sha256"]) == (32 * MIB, pattern_sha256(32 * MIB))
    assert result["is_mptcp"]


@pytest.mark.parametrize("role", ["connect", "accept"])
def test_subflow_reset_by_us_leaves_the_connection(make_encounter: Make, role: str) -> None:  # RFC 8684 §3.6
    encounter = make_encounter(2)
    exchange, peer = encounter.meet(role, ours=SENDS_AND_STAYS)
    exchange.wait_moved(4 * MIB)
    exchange.sock.close_subflow(max(s.id for s in exchange.sock.subflows()), reset=True)
    exchange.join().sock.close()
    result = peer.result()
    assert (result["received"], result["sha256"]) == (32 * MIB, pattern_sha256(32 * MIB))
    assert encounter.kernel_counters()["MPRstRx"] == 1


def test_idle_connection_can_be_closed_by_either_side(make_encounter: Make) -> None:
    encounter = make_encounter(2)
    sock, peer = encounter.open("connect", kernel={"send_bytes": 10, "half_close": False})
    assert sock.recv(10)
    wait_subflows(sock, 2)
    sock.close()
    assert peer.result()["error"] == ""
    counters = encounter.kernel_counters()
    assert counters["MPFastcloseRx"] == counters["MPRstRx"] == 0
