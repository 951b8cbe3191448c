"""Profiles, redundancy, numbers of subflows and races, with the kernel as peer: octets exact, and its own counters agree."""

import time
from collections.abc import Callable

import pytest

from mptcp.core.multipath.config import DEFAULT_CONFIG
from mptcp.core.units import SECOND
from mptcp.sockets.profiles import PROFILES
from mptcp.testing.encounter import Encounter
from mptcp.testing.exchange import Exchange, wait_subflows
from mptcp.testing.kernel_peer import pattern_sha256

pytestmark = pytest.mark.usefixtures("kernel_mptcp")

MIB = 1 << 20
Make = Callable[..., Encounter]


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("name", PROFILES)
def test_every_profile_is_exact_in_both_directions(make_encounter: Make, name: str, family: int) -> None:
    encounter = make_encounter(2, family=family)
    peer = encounter.lab.server.serve(encounter.any_address, send_bytes=2 * MIB, seed=2)
    sock = encounter.socket()
    sock.profile = name
    sock.connect((encounter.kernel_address(1), peer.port))
    exchange = Exchange(sock, send_bytes=2 * MIB, seed=1)
    exchange.join()
    result = peer.result()
    assert exchange.error is None
    assert exchange.was_multipath
    assert exchange.got(2 * MIB, 2)
    assert (result["received"], result["sha256"]) == (2 * MIB, pattern_sha256(2 * MIB, 1))


def test_the_kernel_takes_every_octet_twice_and_delivers_it_once(make_encounter: Make) -> None:  # REQ12
    encounter = make_encounter(2)
    for path in (1, 2):
        encounter.lab.set_rate(path, 50)
    peer = encounter.lab.server.serve(encounter.any_address)
    sock = encounter.connect(peer.port)
    sock.profile = "reliable"
    exchange = Exchange(sock, send_bytes=4 * MIB, seed=1, subflows=2)
    exchange.join()
    result = peer.result()
    assert (result["received"], result["sha256"]) == (4 * MIB, pattern_sha256(4 * MIB, 1))
    assert encounter.stack.counters["redundant_copy"] > 100
    assert encounter.kernel_counters()["DuplicateData"] > 100


def test_subflows_come_and_go_as_they_are_wanted(make_encounter: Make) -> None:  # REQ7
    encounter = make_encounter(2)
    peer = encounter.lab.server.serve(encounter.any_address, echo=True)
    sock = encounter.connect(peer.port)
    sock.sendall(b"hello")
    assert sock.recv(5) == b"hello"
    for wanted in (4, 1, 2):
        sock.wanted_subflows = wanted
        wait_subflows(sock, wanted)
        sock.sendall(b"still there")
        assert sock.recv(11) == b"still there"
    assert encounter.kernel_counters()["MPJoinAckRx"] >= 3
    sock.close()
    assert peer.result()["received"] == 38


def test_a_connect_that_gets_no_answer_is_raced_by_plain_tcp(make_encounter: Make) -> None:  # RFC 6555 style
    encounter = make_encounter(1)
    encounter.lab.server.nft(
        "table inet lossy {\nchain c { type filter hook prerouting priority -500; "
        "tcp flags & syn == syn tcp option mptcp exists drop; }\n}\n"
    )
    peer = encounter.lab.server.serve(encounter.any_address, echo=True)
    sock = encounter.socket(DEFAULT_CONFIG.changed(race_plain_us=SECOND // 5))
    started = time.monotonic()
    sock.connect((encounter.kernel_address(1), peer.port))
    assert time.monotonic() - started >= 0.2
    assert not sock.is_multipath
    sock.sendall(b"hello")
    assert sock.recv(10) == b"hello"
    assert len(sock.subflows()) == 1
    sock.close()
    assert peer.result()["received"] == 5
    # It has lost to the plain SYN, and has not given up by itself.
    assert encounter.stack.counters["race_started"] == encounter.stack.counters["fallback_lost_race"] == 1
