"""What the kernel's ICMP errors come to at a socket (RFC 1122 §4.2.3.9): the errno, with this package's error as its cause."""

import errno
import socket as std
from collections.abc import Callable

import pytest

import mptcp
from mptcp.testing.encounter import PORT, Encounter
from mptcp.testing.exchange import wait_until

pytestmark = pytest.mark.usefixtures("kernel_mptcp")

Make = Callable[..., Encounter]
FAMILIES = pytest.mark.parametrize("family", [4, 6])
#: Names that nft has for IPv4 and IPv6, and what a connect that meets them raises.
REFUSALS = {
    "host": ("host-unreachable", "addr-unreachable", errno.EHOSTUNREACH, mptcp.HostUnreachable),
    "net": ("net-unreachable", "no-route", errno.ENETUNREACH, mptcp.NetworkUnreachable),
    "port": ("port-unreachable", "port-unreachable", errno.ECONNREFUSED, mptcp.ConnectionRefused),
}


def reject(encounter: Encounter, what: str, *, flags: str = "syn", port: int = PORT) -> None:
    kind = f"icmp {REFUSALS[what][0]}" if encounter.family == 4 else f"icmpv6 {REFUSALS[what][1]}"
    encounter.lab.server.nft(
        "table inet refuse {\nchain c { type filter hook input priority 0; "
        f"tcp dport {port} tcp flags & {flags} == {flags} reject with {kind}; }}\n}}\n"
    )


@FAMILIES
@pytest.mark.parametrize("what", REFUSALS)
def test_a_connect_ends_with_its_errno(make_encounter: Make, what: str, family: int) -> None:
    encounter = make_encounter(1, family=family)
    reject(encounter, what)
    number, kind = REFUSALS[what][2:]
    sock = encounter.socket()
    sock.settimeout(10)
    with pytest.raises(OSError) as caught:
        sock.connect((encounter.kernel_address(1), PORT))
    assert caught.value.errno == number
    assert isinstance(caught.value, kind) or isinstance(caught.value.__cause__, kind)
    # and without blocking
    sock = encounter.socket()
    sock.setblocking(False)
    assert sock.connect_ex((encounter.kernel_address(1), PORT)) == errno.EINPROGRESS
    errors: list[object] = []

    def failed() -> bool:
        errors.append(sock.getsockopt(std.SOL_SOCKET, std.SO_ERROR))
        return errors[-1] != 0

    wait_until(failed, 5, "SO_ERROR")
    assert errors[-1] == number


@FAMILIES
def test_a_connection_that_is_there_survives_them(make_encounter: Make, family: int) -> None:
    # RFC 1122 §4.2.3.9: "Since these Unreachable messages indicate soft error conditions, TCP MUST NOT abort the connection"
    encounter = make_encounter(1, family=family)
    sock, peer = encounter.open("connect", kernel={"echo": True})
    sock.sendall(b"before")
    assert sock.recv(6) == b"before"
    reject(encounter, "host", flags="ack", port=sock.getpeername()[1])
    sock.sendall(b"after")
    wait_until(lambda: sum(s.retransmissions for s in sock.subflows()) > 1, 5, "nothing gets through")
    encounter.lab.server.nft("delete table inet refuse\n")
    assert sock.recv(5) == b"after"
    sock.close()
    assert peer.result(10)["received"] == 11


@FAMILIES
def test_a_refused_join_leaves_the_connection(make_encounter: Make, family: int) -> None:
    encounter = make_encounter(2, family=family)
    peer = encounter.lab.server.serve(encounter.any_address, echo=True)
    sock = encounter.connect(peer.port)
    reject_join = f"tcp dport {peer.port} tcp option mptcp subtype 1 tcp flags & syn == syn"
    kind = "icmp host-unreachable" if family == 4 else "icmpv6 addr-unreachable"
    encounter.lab.server.nft(
        f"table inet joins {{\nchain c {{ type filter hook input priority 0; {reject_join} reject with {kind}; }}\n}}\n"
    )
    sock.sendall(b"hello")
    assert sock.recv(5) == b"hello"
    events = sock.events()
    reasons: list[str] = []

    def closed() -> bool:
        while (event := events.poll()) is not None:
            if event.kind is mptcp.EventKind.SUBFLOW_CLOSED:
                reasons.append(event.reason)
        return bool(reasons)

    wait_until(closed, 5, "the join is given up")
    sock.sendall(b"still")
    assert sock.recv(5) == b"still"
    assert sock.is_multipath
