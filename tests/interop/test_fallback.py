"""Where MPTCP is not to be had, or is lost on the way, the connection is regular TCP and no octet is lost (RFC 8684 §3.7)."""

from collections.abc import Callable

import pytest

from mptcp.core.multipath.config import DEFAULT_CONFIG
from mptcp.core.units import SECOND
from mptcp.testing.encounter import Encounter
from mptcp.testing.exchange import wait_subflows, wait_until
from mptcp.testing.kernel_peer import UNTIL_ENOUGH, pattern, pattern_sha256

pytestmark = pytest.mark.usefixtures("kernel_mptcp")

MIB = 1 << 20
ROLES = ("connect", "accept")
Make = Callable[..., Encounter]


def transfer(encounter: Encounter, role: str, **options: object) -> tuple[str, bool]:
    """2 MiB both ways, exact; why it fell back, and whether the kernel's end was MPTCP at the end."""
    exchange, peer = encounter.meet(
        role, ours={"send_bytes": 2 * MIB, "seed": 1}, kernel={"send_bytes": 2 * MIB, "seed": 2}, **options
    )
    exchange.join()
    result = peer.result()
    assert exchange.error is None
    assert result["error"] == ""
    assert exchange.got(2 * MIB, 2)
    assert (result["received"], result["sha256"]) == (2 * MIB, pattern_sha256(2 * MIB, 1))
    assert exchange.was_multipath == (not exchange.fallback_reason)
    return exchange.fallback_reason, result["is_mptcp"]


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("role", ROLES)
def test_peer_is_a_plain_tcp_socket(make_encounter: Make, role: str, family: int) -> None:
    encounter = make_encounter(2, family=family)
    exchange, peer = encounter.meet(
        role, ours={"send_bytes": MIB}, kernel={"protocol": "tcp", "send_bytes": MIB, "seed": 2}
    )
    exchange.join()
    result = peer.result()
    assert exchange.got(MIB, 2)
    assert (result["received"], result["sha256"]) == (MIB, pattern_sha256(MIB))
    assert not exchange.was_multipath
    assert "MP_CAPABLE" in exchange.fallback_reason
    assert encounter.kernel_counters()["MPCapableSYNRX"] == 0


@pytest.mark.parametrize("role", ROLES)
def test_multipath_switched_off_on_our_side(make_encounter: Make, role: str) -> None:
    encounter = make_encounter(2)
    reason, kernel_is_mptcp = transfer(encounter, role, config=DEFAULT_CONFIG.changed(multipath=False))
    assert "not asked for" in reason
    assert not kernel_is_mptcp


def test_peer_has_mptcp_switched_off(make_encounter: Make) -> None:
    # A socket made before still is an MPTCP socket, but the kernel answers no MP_CAPABLE any more.
    encounter = make_encounter(2)
    peer = encounter.lab.server.serve(encounter.any_address, protocol="tcp", echo=True)
    encounter.lab.server.sysctl("net.mptcp.enabled", 0)
    sock = encounter.connect(peer.port)
    sock.sendall(b"hello")
    assert sock.recv(10) == b"hello"
    assert not sock.is_multipath
    sock.close()
    assert peer.result()["received"] == 5


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("role", ROLES)
def test_options_stripped_from_syns(make_encounter: Make, role: str, family: int) -> None:
    encounter = make_encounter(2, family=family)
    encounter.lab.strip_mptcp(syn_only=True)
    reason, kernel_is_mptcp = transfer(encounter, role)
    assert "MP_CAPABLE" in reason
    assert not kernel_is_mptcp
    counters = encounter.kernel_counters()
    assert counters["MPCapableSYNRX"] == counters["MPCapableSYNACKRX"] == 0


@pytest.mark.parametrize("role", ROLES)
def test_options_stripped_from_everything(make_encounter: Make, role: str) -> None:
    encounter = make_encounter(2)
    encounter.lab.strip_mptcp()
    reason, _ = transfer(encounter, role)
    assert reason


@pytest.mark.parametrize("role", ROLES)
def test_options_stripped_from_all_but_syns(make_encounter: Make, role: str) -> None:
    encounter = make_encounter(2)
    encounter.lab.strip_mptcp(data_only=True)
    reason, kernel_is_mptcp = transfer(encounter, role)
    assert reason
    assert not kernel_is_mptcp
    counters = encounter.kernel_counters()
    assert (
        counters["MPCapableFallbackACK"]
        + counters["MPCapableFallbackSYNACK"]
        + counters["MPCapableDataFallback"]
        + (counters["DssFallback"])
    )


@pytest.mark.parametrize("role", ROLES)
def test_options_stripped_from_the_middle_while_we_send(make_encounter: Make, role: str) -> None:
    # On the only subflow there ever was both sides see where the octets belong, and go on as regular TCP.
    encounter = make_encounter(1)
    encounter.lab.set_rate(1, 100)
    exchange, peer = encounter.meet(role, ours={"send_bytes": UNTIL_ENOUGH})
    exchange.wait_moved(6 * MIB)
    encounter.lab.strip_mptcp()
    wait_until(lambda: not exchange.sock.is_multipath, 20, "fallback")
    exchange.wait_moved(exchange.moved + 6 * MIB)
    exchange.enough()
    exchange.join()
    assert exchange.error is None
    assert not exchange.was_multipath
    assert "middlebox" in exchange.fallback_reason
    result = peer.result()
    size = exchange.sent
    assert (result["received"], result["sha256"], result["error"]) == (size, pattern_sha256(size), "")
    assert not result["is_mptcp"]
    assert encounter.kernel_counters()["DssFallback"] == 1


@pytest.mark.parametrize("role", ROLES)
def test_options_stripped_from_the_middle_while_the_kernel_sends(make_encounter: Make, role: str) -> None:
    # Linux, as a sender, notices nothing: it repeats what gets no DATA_ACK, 4 KiB each 204 ms, as new octets of the
    # subflow. Without mappings these cannot be told from new data, so that the subflow is given up (RFC 8684 §3.7), and
    # the connection with it: what has been delivered is right, and the end is an error, never a wrong octet.
    size = 8 * MIB
    encounter = make_encounter(1, config=DEFAULT_CONFIG.changed(close_timeout_us=2 * SECOND))
    encounter.lab.set_rate(1, 100)
    sock, peer = encounter.open(role, kernel={"send_bytes": size, "seed": 2})
    sock.settimeout(10)
    got = bytearray()
    while len(got) < 3 * MIB:
        got += sock.recv(65536)
    encounter.lab.strip_mptcp()

    def read_on() -> None:
        while piece := sock.recv(65536):
            got.extend(piece)

    with pytest.raises(TimeoutError, match="timed out"):
        read_on()
    assert 3 * MIB <= len(got) < size
    assert got == pattern(size, 2)[: len(got)]
    sock.close()
    peer.close()


@pytest.mark.parametrize("role", ROLES)
def test_options_stripped_on_one_of_two_paths(make_encounter: Make, role: str) -> None:
    # The path that loses options is given up, the other one carries everything: no fallback.
    encounter = make_encounter(2)
    for path in (1, 2):
        encounter.lab.set_rate(path, 100)
    exchange, peer = encounter.meet(role, ours={"send_bytes": UNTIL_ENOUGH, "subflows": 2})
    exchange.wait_moved(8 * MIB)
    encounter.lab.strip_mptcp(path=2)
    exchange.wait_moved(exchange.moved + 8 * MIB)
    exchange.enough()
    exchange.join()
    result = peer.result()
    assert (result["received"], result["sha256"]) == (exchange.sent, pattern_sha256(exchange.sent))
    assert exchange.was_multipath
    assert result["is_mptcp"]


@pytest.mark.parametrize("role", ROLES)
def test_join_without_options_is_refused_and_the_connection_goes_on(make_encounter: Make, role: str) -> None:
    encounter = make_encounter(2)
    encounter.lab.strip_mptcp(path=2)
    exchange, peer = encounter.meet(role, ours={"send_bytes": 4 * MIB}, kernel={"send_bytes": 4 * MIB, "seed": 2})
    exchange.join()
    result = peer.result()
    assert exchange.got(4 * MIB, 2)
    assert result["sha256"] == pattern_sha256(4 * MIB)
    assert exchange.was_multipath
    assert result["is_mptcp"]
    counters = encounter.kernel_counters()
    assert counters["MPJoinAckRx"] == counters["MPJoinSynAckRx"] == 0


def test_kernel_that_ignores_capable_syns_gets_one_without(make_encounter: Make) -> None:  # RFC 8684 §3.1
    # A middlebox that drops SYNs with unknown options: after some the connection is tried as regular TCP.
    encounter = make_encounter(1)
    encounter.lab.server.nft(
        "table inet lossy {\nchain c { type filter hook prerouting priority -500; "
        "tcp flags & syn == syn tcp option mptcp exists drop; }\n}\n"
    )
    peer = encounter.lab.server.serve(encounter.any_address, echo=True)
    config = DEFAULT_CONFIG.changed(capable_syns=1)
    sock = encounter.connect(peer.port, config=config)
    sock.sendall(b"hello")
    assert sock.recv(10) == b"hello"
    assert not sock.is_multipath
    assert "no answer" in sock.fallback_reason
    sock.close()
    assert peer.result()["received"] == 5
    # The destination is remembered: the next connection does not lose that time again (RFC 8684 §3.9.3).
    peer = encounter.lab.server.serve(encounter.any_address, echo=True)
    sock = encounter.connect(peer.port, config=config)
    assert "a short while ago" in sock.fallback_reason


def test_fallback_ends_with_its_connection(make_encounter: Make) -> None:
    """Fallback of one connection says nothing about the next."""
    encounter = make_encounter(2)
    encounter.lab.strip_mptcp()
    peer = encounter.lab.server.serve(encounter.any_address, connections=2, echo=True)
    first = encounter.connect(peer.port)
    assert not first.is_multipath
    first.close()
    encounter.lab.stop_stripping()
    second = encounter.connect(peer.port)
    second.sendall(b"hello")
    assert second.recv(10) == b"hello"
    assert second.is_multipath
    wait_subflows(second, 2)
    second.close()
    wait_until(lambda: len(peer.results) == 2, 20, "both are served")
