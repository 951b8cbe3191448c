"""Each reason for which there is no second subflow, brought about in namespaces, and what `mptcp ls --why` says to it."""

import socket
from collections.abc import Callable

import pytest

from mptcp.info import Endpoint
from mptcp.kernel import sockopt
from mptcp.kernel.diag import Diag
from mptcp.kernel.diagnosis import Cause, Diagnosis, Finding
from mptcp.kernel.listing import Listing
from mptcp.kernel.namespace import NetNamespace
from mptcp.kernel.path_manager import PathManagerNetlink
from mptcp.kernel.pm_events import PmEventSocket
from mptcp.testing.netns import Lab, Namespace

Pair = Callable[..., tuple[socket.socket, socket.socket]]
Eventually = Callable[..., None]


def why(namespace: Namespace) -> list[Finding]:
    """Of the only connection there."""
    where = NetNamespace(namespace.fileno())
    with Listing(where) as listing:
        connections, listening = listing.read()
    [connection] = connections
    with Diagnosis(where, listening, len(connections)) as diagnosis:
        return diagnosis.explain(connection)


def only(namespace: Namespace) -> Finding:
    [finding] = why(namespace)
    return finding


def connect(lab: Lab, make_pair: Pair, family: int = 4, **options: object) -> tuple[socket.socket, socket.socket]:
    kind = socket.AF_INET if family == 4 else socket.AF_INET6
    return make_pair(lab.client, lab.server_address(1, family), kind, server_in=lab.server, **options)


@pytest.fixture
def two(lab: Lab, make_pair: Pair, eventually: Eventually) -> Lab:
    """A lab with a connection of two subflows: the client's endpoint has the id 9."""
    lab.client.mptcp_endpoint(lab.client_address(2), "subflow", id=9)
    client, _ = connect(lab, make_pair)
    eventually(lambda: len(sockopt.full_info(client.fileno()).subflows) == 2)
    eventually(lambda: why(lab.client) == why(lab.server) == [])
    return lab


def test_a_second_subflow_needs_no_explanation(two: Lab) -> None:
    assert why(two.client) == why(two.server) == []


def test_no_endpoint(lab: Lab, make_pair: Pair) -> None:
    connect(lab, make_pair)
    here = only(lab.client)
    assert here.cause is Cause.NO_ENDPOINT
    assert here.certain
    assert here.fix == "ip mptcp endpoint add 10.77.2.1 dev c2 subflow"
    there = only(lab.server)
    assert there.cause is Cause.CLIENT_OPENS
    assert "ip mptcp endpoint add 10.77.2.2 dev s2 signal" in there.fix


def test_the_fix_is_one(lab: Lab, make_pair: Pair, eventually: Eventually) -> None:
    """What it advises brings the second subflow about."""
    connect(lab, make_pair)
    lab.client.run(*only(lab.client).fix.split())
    eventually(lambda: not why(lab.client))


def test_only_the_address_in_use_is_an_endpoint(lab: Lab, make_pair: Pair) -> None:
    lab.client.mptcp_endpoint(lab.client_address(1), "subflow")
    connect(lab, make_pair)
    finding = only(lab.client)
    assert finding.cause is Cause.NO_ENDPOINT
    assert "in use" in finding.sentence


def test_an_endpoint_that_is_only_announced(lab: Lab, make_pair: Pair) -> None:
    lab.client.mptcp_endpoint(lab.client_address(2), "signal")
    connect(lab, make_pair)
    finding = only(lab.client)
    assert finding.cause is Cause.NO_ENDPOINT
    assert "signal" in finding.sentence


def test_an_endpoint_of_the_other_family(lab: Lab, make_pair: Pair) -> None:
    lab.client.mptcp_endpoint(lab.client_address(2, 6), "subflow")
    connect(lab, make_pair)
    finding = only(lab.client)
    assert finding.cause is Cause.ENDPOINT_UNUSABLE
    assert "IPv6" in finding.sentence
    assert finding.fix == "ip mptcp endpoint add 10.77.2.1 dev c2 subflow"


@pytest.mark.parametrize("address", ["10.77.2.1", "10.77.9.9"])
def test_an_endpoint_without_a_working_address(lab: Lab, make_pair: Pair, address: str) -> None:
    """The link is down; and there is no such address at all."""
    lab.set_link(2, False, side="client")
    lab.client.mptcp_endpoint(address, "subflow")
    connect(lab, make_pair)
    finding = only(lab.client)
    assert finding.cause is Cause.ENDPOINT_UNUSABLE
    assert finding.sentence.startswith(f"{address} is no usable address")


def test_no_limit_left(lab: Lab, make_pair: Pair) -> None:
    lab.client.mptcp_limits(subflows=0, add_addr_accepted=0)
    lab.client.mptcp_endpoint(lab.client_address(2), "subflow")
    connect(lab, make_pair)
    finding = only(lab.client)
    assert finding.cause is Cause.LIMIT
    assert finding.fix == "ip mptcp limits set subflow 2"


def test_no_limit_left_on_the_server(lab: Lab, make_pair: Pair, eventually: Eventually) -> None:
    lab.server.mptcp_limits(subflows=0, add_addr_accepted=0)
    lab.client.mptcp_endpoint(lab.client_address(2), "subflow")
    connect(lab, make_pair)
    assert only(lab.server).cause is Cause.LIMIT
    eventually(lambda: [f.cause for f in why(lab.client)] == [Cause.LOST])
    assert "a limit there?" in only(lab.client).sentence


def test_one_address(make_lab: Callable[..., Lab], make_pair: Pair) -> None:
    lab = make_lab(1)
    connect(lab, make_pair)
    assert only(lab.client).cause is Cause.ONE_ADDRESS


def test_loopback(host_namespace: Namespace, make_pair: Pair) -> None:
    make_pair(host_namespace, "127.0.0.1")
    where = NetNamespace(host_namespace.fileno())
    with Listing(where) as listing:
        connections, listening = listing.read()
    mine = next(c for c in connections if c.opened_here)
    with Diagnosis(where, listening, len(connections)) as diagnosis:
        assert [f.cause for f in diagnosis.explain(mine)] == [Cause.LOOPBACK]


def test_an_announcement_that_is_not_taken_up(lab: Lab, make_pair: Pair, eventually: Eventually) -> None:
    lab.server.mptcp_endpoint(lab.server_address(2), "signal")
    connect(lab, make_pair)
    eventually(lambda: Cause.ANNOUNCEMENT_IGNORED in [f.cause for f in why(lab.client)])
    finding = why(lab.client)[0]
    assert finding.cause is Cause.ANNOUNCEMENT_IGNORED
    assert "add_addr_accepted" in finding.fix
    there = only(lab.server)
    assert there.cause is Cause.CLIENT_OPENS
    assert "announced 1 address" in there.sentence


def test_the_peer_denies_joins_to_its_first_address(lab: Lab, make_pair: Pair, eventually: Eventually) -> None:
    lab.server.sysctl("net.mptcp.allow_join_initial_addr_port", 0)
    lab.client.mptcp_endpoint(lab.client_address(2), "subflow")
    connect(lab, make_pair)
    eventually(lambda: [f.cause for f in why(lab.client)] == [Cause.PEER_DENIES])
    assert only(lab.server).cause is Cause.JOINS_DENIED


def test_the_listener_is_closed(lab: Lab, make_pair: Pair, eventually: Eventually) -> None:
    connect(lab, make_pair, keep_listener=False)
    lab.client.mptcp_endpoint(lab.client_address(2), "subflow")
    there = only(lab.server)
    assert there.cause is Cause.LISTENER_CLOSED
    eventually(lambda: [f.cause for f in why(lab.client)] == [Cause.JOINS_FAILED])
    assert "listen" in only(lab.client).sentence


def test_joins_that_vanish(lab: Lab, make_pair: Pair, eventually: Eventually) -> None:
    connect(lab, make_pair)
    lab.blackhole(2)
    lab.client.mptcp_endpoint(lab.client_address(2), "subflow")
    eventually(lambda: [f.cause for f in why(lab.client)] == [Cause.UNANSWERED])
    assert lab.client_address(2) in only(lab.client).sentence


def test_packets_that_leave_by_the_wrong_interface(lab: Lab, make_pair: Pair, eventually: Eventually) -> None:
    """Two interfaces and no rule for the second address, the commonest mistake of all; the peer's filter drops them."""
    lab.client.ip(f"rule delete from {lab.client_address(2)}")
    lab.client.mptcp_endpoint(lab.client_address(2), "subflow")
    lab.server.nft(
        "table inet strict { chain in { type filter hook prerouting priority 0; "
        f"iifname s1 ip saddr {lab.client_address(2)} drop; }}; }}"
    )
    connect(lab, make_pair)
    eventually(lambda: [f.cause for f in why(lab.client)] == [Cause.ROUTE])
    finding = only(lab.client)
    assert "leave by c1, although c2 has that address" in finding.sentence
    assert f"ip rule add from {lab.client_address(2)}" in finding.fix


def test_there_is_no_route_from_that_address(lab: Lab, make_pair: Pair, eventually: Eventually) -> None:
    lab.client.ip("route replace unreachable default table 2")
    lab.client.mptcp_endpoint(lab.client_address(2), "subflow")
    connect(lab, make_pair)
    eventually(lambda: [f.cause for f in why(lab.client)] == [Cause.ROUTE])
    assert "no route" in only(lab.client).sentence


def test_a_subflow_that_is_lost(two: Lab) -> None:
    with Diag(NetNamespace(two.client.fileno())) as diag:
        [joined] = [s for s in diag.subflows() if s.is_join]
        diag.destroy(joined.local, joined.remote)
    finding = only(two.client)
    assert finding.cause is Cause.LOST
    assert "delete id 9" in finding.fix


def test_plain_tcp(lab: Lab, make_pair: Pair) -> None:
    connect(lab, make_pair, server_protocol=0)
    finding = only(lab.client)
    assert finding.cause is Cause.FELL_BACK
    assert "MP_CAPABLE" in finding.sentence


def test_no_data_yet(lab: Lab, make_pair: Pair) -> None:
    lab.client.mptcp_endpoint(lab.client_address(2), "subflow")
    connect(lab, make_pair, full=False)
    assert only(lab.client).cause is Cause.NOT_ESTABLISHED


def test_half_closed(lab: Lab, make_pair: Pair, eventually: Eventually) -> None:
    client, _ = connect(lab, make_pair)
    client.shutdown(socket.SHUT_WR)
    eventually(lambda: [f.cause for f in why(lab.client)] == [Cause.CLOSING])


def test_user_space_path_manager_without_a_program(lab: Lab, make_pair: Pair) -> None:
    for namespace in (lab.client, lab.server):
        namespace.sysctl("net.mptcp.pm_type", 1)
    lab.client.mptcp_endpoint(lab.client_address(2), "subflow")  # which is of no use
    connect(lab, make_pair)
    here, there = only(lab.client), only(lab.server)
    assert here.cause is there.cause is Cause.NO_LISTENER_TO_EVENTS
    assert "mptcp pm" in here.fix
    assert "ignored" in there.sentence


def test_user_space_path_manager_that_does_nothing(lab: Lab, make_pair: Pair) -> None:
    for namespace in (lab.client, lab.server):
        namespace.sysctl("net.mptcp.pm_type", 1)
    listening = [PmEventSocket(NetNamespace(namespace.fileno())) for namespace in (lab.client, lab.server)]
    try:
        client, _ = connect(lab, make_pair)
        here, there = only(lab.client), only(lab.server)
        assert here.cause is there.cause is Cause.STEERED
        assert "python" in here.sentence or "pytest" in here.sentence, "it names the program"
        assert "neither opened nor announced" in here.sentence
        manager = PathManagerNetlink(NetNamespace(lab.client.fileno()))
        token = sockopt.mptcp_info(client.fileno()).token
        manager.announce(token, Endpoint.parse(lab.client_address(2)), 3)
        manager.close()
        assert lab.client_address(2) in only(lab.client).sentence
    finally:
        for sock in listening:
            sock.close()


def test_user_space_path_manager_with_the_listener_closed(lab: Lab, make_pair: Pair) -> None:
    lab.server.sysctl("net.mptcp.pm_type", 1)
    events = PmEventSocket(NetNamespace(lab.server.fileno()))
    try:
        connect(lab, make_pair, keep_listener=False)
        assert [f.cause for f in why(lab.server)] == [Cause.LISTENER_CLOSED, Cause.STEERED]
    finally:
        events.close()


def test_counters_of_several_connections_are_not_certain(lab: Lab, make_pair: Pair, eventually: Eventually) -> None:
    lab.server.mptcp_endpoint(lab.server_address(2), "signal")
    for _ in range(2):
        connect(lab, make_pair)
    eventually(lambda: lab.client.counters()["MPTcpExtAddAddr"] == 2)
    where = NetNamespace(lab.client.fileno())
    with Listing(where) as listing:
        connections, listening = listing.read()
    with Diagnosis(where, listening, len(connections)) as diagnosis:
        finding = diagnosis.explain(connections[0])[0]
    assert finding.cause is Cause.ANNOUNCEMENT_IGNORED
    assert not finding.certain
