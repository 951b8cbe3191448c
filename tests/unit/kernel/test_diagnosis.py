"""Judgements on made-up facts: what cannot be brought about with one kernel on both sides."""

import pytest

from mptcp.info import Endpoint
from mptcp.kernel import diag, layout
from mptcp.kernel.addresses import LocalAddress
from mptcp.kernel.diag import DiagSubflow, MptcpSocket
from mptcp.kernel.diagnosis import Cause, Facts, Finding, explain
from mptcp.kernel.endpoints import Limits
from mptcp.kernel.layout import MptcpInfo
from mptcp.kernel.listing import ListedConnection, join
from mptcp.kernel.path_manager import FLAG_SUBFLOW, PmAddress
from mptcp.kernel.routing import Way

LOCAL, REMOTE, OTHER = (Endpoint.parse(*e) for e in (("10.1.0.1", 4000), ("10.9.0.1", 80), ("10.2.0.1", 0)))
ADDRESSES = [LocalAddress(LOCAL.address, 2, "eth0"), LocalAddress(OTHER.address, 3, "wlan0")]


def info(**fields: int) -> MptcpInfo:
    made = MptcpInfo.parse(bytes(96))
    made.token, made.subflows_max = 7, 2
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def subflow(*, joined: bool = False, local: Endpoint = LOCAL, state: int = layout.ESTABLISHED) -> DiagSubflow:
    flags = diag.FLAG_JOIN_LOC if joined else diag.FLAG_MCAP_LOC | diag.FLAG_MCAP_REM
    return DiagSubflow(
        state, local, REMOTE, 0, 1, 0, "reno", 7, 0, flags | diag.FLAG_FULLY_ESTABLISHED, 0, 0, None, 2, b""
    )


def connection(mptcp: MptcpInfo | None, *subflows: DiagSubflow, accepted: bool = False) -> ListedConnection:
    sock = MptcpSocket(layout.ESTABLISHED, LOCAL, REMOTE, 0, 1, 0, 0, mptcp)
    [made] = join([sock], subflows or [subflow()])
    if accepted:
        made.opened_here = False
    return made


def facts(**fields: object) -> Facts:
    made = Facts(Limits(2, 0), [], list(ADDRESSES), {"MPJoinSynTx": 0})
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def right_way(source: bytes, destination: bytes, interface: int) -> Way:
    return Way(next(local.interface for local in ADDRESSES if local.address == source))


def judge(
    mptcp: MptcpInfo | None, *, accepted: bool = False, way: object = right_way, **fields: object
) -> list[Finding]:
    return explain(connection(mptcp, accepted=accepted), facts(**fields), None, way)  # type: ignore[arg-type]


ENDPOINT = [PmAddress(OTHER, 1, FLAG_SUBFLOW)]


@pytest.mark.parametrize(
    ("counter", "word"),
    [
        ("MPJoinSynAckHMacFailure", "authentication"),
        ("MPJoinSynTxBindErr", "bound"),
        ("MPJoinSynTxConnectErr", "route"),
        ("MPJoinSynTxCreatSkErr", "socket"),
    ],
)
def test_joins_that_went_wrong(counter: str, word: str) -> None:
    counters = {"MPJoinSynTx": 1, "MPJoinSynAckRx": 1, counter: 1}
    [finding] = judge(info(local_addr_used=1), endpoints=ENDPOINT, counters=counters)
    assert finding.cause is Cause.JOINS_FAILED
    assert finding.sentence.startswith("1 join ")
    assert word in finding.sentence


@pytest.mark.parametrize(
    ("counter", "word"),
    [
        ("MPJoinNoTokenFound", "load balancer"),
        ("MPJoinAckHMacFailure", "authentication"),
        ("MPJoinRejected", "rejected"),
        ("MismatchPortSynRx", "announced"),
    ],
)
def test_joins_that_were_refused_here(counter: str, word: str) -> None:
    listening = [MptcpSocket(layout.LISTEN, Endpoint(bytes(4), LOCAL.port), Endpoint(bytes(4)), 0, 2, 0, 0, None)]
    [finding] = judge(info(), accepted=True, counters={counter: 3}, listening=listening)
    assert finding.cause is Cause.JOINS_FAILED
    assert finding.sentence.startswith("3 joins ")
    assert word in finding.sentence


def test_a_kernel_without_these_counters() -> None:
    """Before 6.11 nothing counts SYNs of joins that were sent."""
    [finding] = judge(info(local_addr_used=1), endpoints=ENDPOINT, counters={})
    assert finding.cause is Cause.LOST


def test_routes() -> None:
    used = info(local_addr_used=1)
    [finding] = judge(used, endpoints=ENDPOINT, way=lambda *_: Way(2))
    assert finding.cause is Cause.ROUTE
    assert "leave by eth0, although wlan0 has that address" in finding.sentence
    [finding] = judge(used, endpoints=ENDPOINT, way=lambda *_: Way(0, "network is unreachable"))
    assert finding.cause is Cause.ROUTE
    assert "network is unreachable" in finding.sentence
    bound = [PmAddress(OTHER, 1, FLAG_SUBFLOW, 9)]
    [finding] = judge(used, endpoints=bound, way=lambda *_: Way(9), counters={})
    assert finding.cause is Cause.LOST, "it leaves by the interface that the endpoint names"

    def broken(*_: object) -> Way:
        raise OSError("no routes here")

    [finding] = judge(used, endpoints=ENDPOINT, way=broken, counters={})
    assert finding.cause is Cause.LOST


def test_the_way_of_a_subflow_that_opens() -> None:
    opening = subflow(joined=True, local=Endpoint(OTHER.address, 5), state=layout.SYN_SENT)
    listed = connection(info(), subflow(), opening)
    [finding] = explain(listed, facts(endpoints=ENDPOINT), None, right_way)
    assert finding.cause is Cause.UNANSWERED
    [finding] = explain(listed, facts(endpoints=ENDPOINT), None, lambda *_: Way(2))
    assert finding.cause is Cause.ROUTE


def test_the_limit_is_reached() -> None:
    [finding] = judge(info(subflows=2))
    assert finding.cause is Cause.LIMIT
    assert finding.fix == "ip mptcp limits set subflow 3"


def test_where_the_kernel_tells_less() -> None:
    assert [f.cause for f in judge(None)] == [Cause.UNKNOWN]
    found = judge(info(), limits=None, endpoints=None, addresses=[], counters={})
    assert [f.cause for f in found] == [Cause.ONE_ADDRESS]


def test_all_that_is_wrong_is_said() -> None:
    endpoints = [
        PmAddress(Endpoint.parse("fd00::1"), 1, FLAG_SUBFLOW),
        PmAddress(Endpoint.parse("10.3.0.1"), 2, FLAG_SUBFLOW),
    ]
    found = judge(info(), endpoints=endpoints, counters={"AddAddr": 2})
    assert [f.cause for f in found] == [Cause.ENDPOINT_UNUSABLE, Cause.ENDPOINT_UNUSABLE, Cause.ANNOUNCEMENT_IGNORED]
    assert found[-1].sentence.startswith("2 addresses were announced")
