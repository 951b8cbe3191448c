"""Many connections at once with the kernel, and many one after the other."""

import threading
from collections.abc import Callable

import pytest

from mptcp.testing.encounter import PORT, Encounter
from mptcp.testing.exchange import wait_until
from mptcp.testing.kernel_peer import pattern, pattern_sha256

pytestmark = pytest.mark.usefixtures("kernel_mptcp")

COUNT = 200
Make = Callable[..., Encounter]


@pytest.mark.parametrize("family", [4, 6])
def test_we_connect_many_times_at_once(make_encounter: Make, family: int) -> None:
    size = 20_000
    encounter = make_encounter(2, family=family)
    peer = encounter.lab.server.serve(encounter.any_address, connections=COUNT, echo=True)
    data = pattern(size)
    sockets = []
    for _ in range(COUNT):
        sock = encounter.socket()
        sock.setblocking(False)
        sock.connect_ex((encounter.kernel_address(1), peer.port))
        sockets.append(sock)
    for sock in sockets:
        sock.settimeout(60)
        sock.sendall(data)
    for sock in sockets:
        received = b""
        while len(received) < size:
            piece = sock.recv(size - len(received))
            assert piece
            received += piece
        assert received == data
        assert sock.is_multipath, sock.fallback_reason
    # All of them are open at this moment, each with its second subflow.
    wait_until(lambda: all(len(sock.subflows()) == 2 for sock in sockets), 60, "every connection has joined")
    assert encounter.kernel_counters()["MPCurrEstab"] == COUNT
    for sock in sockets:
        sock.close()
    results = peer.wait_results(COUNT)
    assert {(r["received"], r["sha256"], r["error"]) for r in results} == {(size, pattern_sha256(size), "")}
    counters = encounter.kernel_counters()
    assert counters["MPCapableSYNRX"] == counters["MPCapableACKRX"] == counters["MPJoinAckRx"] == COUNT
    assert counters["MPJoinAckHMacFailure"] == counters["MPJoinNoTokenFound"] == counters["MPFastcloseRx"] == 0


@pytest.mark.parametrize("family", [4, 6])
def test_kernel_connects_many_times_at_once(make_encounter: Make, family: int) -> None:
    size = 20_000
    encounter = make_encounter(2, family=family)
    listener = encounter.listen(backlog=COUNT)

    def serve() -> None:
        for _ in range(COUNT):
            sock = encounter.accept(listener)
            sock.settimeout(60)
            received = b""
            while piece := sock.recv(1 << 16):
                received += piece
            sock.sendall(received)
            sock.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    peer = encounter.lab.server.connect(
        encounter.our_address(1), PORT, connections=COUNT, send_bytes=size, seed=3, chunk=20_000
    )
    results = peer.wait_results(COUNT)
    thread.join(20)
    assert not thread.is_alive()
    assert {(r["received"], r["sha256"], r["error"]) for r in results} == {(size, pattern_sha256(size, 3), "")}
    assert all(r["started_as_mptcp"] for r in results)
    counters = encounter.kernel_counters()
    assert counters["MPCapableSYNTX"] == counters["MPCapableSYNACKRX"] == COUNT
    assert counters["MPJoinSynAckHMacFailure"] == 0


def test_one_after_the_other(make_encounter: Make) -> None:
    """Nothing is left behind: no connection, token or port."""
    encounter = make_encounter(2)
    peer = encounter.lab.server.serve(encounter.any_address, connections=100, echo=True)
    for _ in range(100):
        with encounter.connect(peer.port) as sock:
            sock.sendall(b"hello")
            assert sock.recv(5) == b"hello"
    peer.wait_results(100)
    host = encounter.stack.pump.host
    wait_until(lambda: not host._tokens, 20, "every token is free again")
