"""Why a connection has no second subflow: what is visible from this host, as sentences with a remedy.

``Diagnosis`` gathers the facts (all of them readable without privilege), ``explain`` judges them. The kernel keeps no
record per connection of joins that failed: where only the namespace's counters tell, a finding is not ``certain``.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, Self

from mptcp.info import Endpoint
from mptcp.kernel import features, layout
from mptcp.kernel.addresses import LocalAddress, local_addresses
from mptcp.kernel.diag import MptcpSocket
from mptcp.kernel.endpoints import Endpoints, Limits
from mptcp.kernel.event_listeners import event_listeners
from mptcp.kernel.fallback import reason_of_counters
from mptcp.kernel.listing import ListedConnection
from mptcp.kernel.namespace import NetNamespace
from mptcp.kernel.netlink import NetlinkError
from mptcp.kernel.path_manager import FLAG_FULLMESH, FLAG_SIGNAL, FLAG_SUBFLOW, PathManagerNetlink, PmAddress
from mptcp.kernel.processes import Process, holders
from mptcp.kernel.routing import Routes, Way


class Cause(Enum):
    """What a finding is about."""

    FELL_BACK = "fell-back"
    CLOSING = "closing"
    NOT_ESTABLISHED = "not-fully-established"
    LOOPBACK = "loopback"
    UNANSWERED = "join-unanswered"
    NO_LISTENER_TO_EVENTS = "no-path-manager"
    STEERED = "steered-by-a-program"
    LIMIT = "limit"
    NO_ENDPOINT = "no-endpoint"
    ONE_ADDRESS = "one-address"
    ENDPOINT_UNUSABLE = "endpoint-unusable"
    ROUTE = "route"
    PEER_DENIES = "peer-denies-joins"
    ANNOUNCEMENT_IGNORED = "announcement-not-accepted"
    JOINS_FAILED = "joins-failed"
    LOST = "subflow-lost"
    LISTENER_CLOSED = "listener-closed"
    JOINS_DENIED = "joins-denied"
    CLIENT_OPENS = "client-opens"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Finding:
    """One cause, in a sentence, and what would change it ("" if nothing here would). Not ``certain``: it may be it."""

    cause: Cause
    sentence: str
    fix: str = ""
    certain: bool = True


@dataclass(slots=True)
class Facts:
    """What is known of a namespace; None where the kernel does not tell."""

    limits: Limits | None = None
    endpoints: list[PmAddress] | None = None
    addresses: list[LocalAddress] = field(default_factory=list)  # usable towards other hosts
    counters: dict[str, int] = field(default_factory=dict)
    path_manager: str = features.KERNEL_MANAGER  # of new connections
    allows_initial: bool = True  # net.mptcp.allow_join_initial_addr_port
    listening: list[MptcpSocket] = field(default_factory=list)
    event_listeners: list[int] | None = None
    event_programs: list[Process] = field(default_factory=list)
    connections: int = 1  # that share the counters


#: How a packet of that source (and interface) would leave to that destination.
WayTo = Callable[[bytes, bytes, int], Way]

NO_EVENTS_FIX: Final = (
    "run `mptcp pm` or another path manager, or give new connections the kernel's: "
    "sysctl -w net.mptcp.path_manager=kernel"
)


class Diagnosis:
    """Of one namespace, at one moment: make a new one to look again. OSError where sock_diag is missing."""

    __slots__ = ("_namespace", "_pm", "_routes", "facts")

    def __init__(self, namespace: NetNamespace, listening: list[MptcpSocket], connections: int) -> None:
        """``listening`` and ``connections`` (how many there are): as ``Listing.read`` gives them."""
        self._namespace = namespace
        self.facts = gather(namespace, listening, connections)
        self._routes = Routes(namespace)
        try:
            self._pm: PathManagerNetlink | None = PathManagerNetlink(namespace)
        except OSError:
            self._pm = None

    def explain(self, connection: ListedConnection) -> list[Finding]:
        """Why it has no second subflow, the likeliest first; empty if it has one."""
        kept = self._kept(connection)
        return explain(connection, self.facts, kept, self._routes.way)

    def _kept(self, connection: ListedConnection) -> list[PmAddress] | None:
        """The addresses that the user-space path manager keeps for a connection; None: that is not its manager."""
        info = connection.socket.info
        # The limits in mptcp_info are those of the in-kernel path manager.
        if info is None or not info.token or info.subflows_max or info.add_addr_accepted_max:
            return None
        if self._pm is None:
            return None
        try:
            return self._pm.addresses(info.token)
        except NetlinkError:
            # "userspace PM not selected"; a kernel that cannot list them (before 6.10) is judged by its setting.
            return None

    def close(self) -> None:
        self._routes.close()
        if self._pm is not None:
            self._pm.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def gather(namespace: NetNamespace, listening: list[MptcpSocket], connections: int) -> Facts:
    """The facts of a namespace; what cannot be read is left out."""
    facts = Facts(listening=listening, connections=connections)
    facts.counters = features.counters(namespace)
    facts.path_manager = features.path_manager(namespace)
    facts.allows_initial = features.sysctl("allow_join_initial_addr_port", namespace) != "0"
    try:
        facts.addresses = local_addresses(namespace)
    except OSError:
        facts.addresses = []
    try:
        endpoints = Endpoints(namespace)
    except OSError:
        return facts
    try:
        facts.limits, facts.endpoints = endpoints.limits(), endpoints.list()
    except OSError:
        pass
    finally:
        endpoints.close()
    facts.event_listeners = event_listeners(namespace)
    found = holders(facts.event_listeners or [])
    facts.event_programs = sorted({process for processes in found.values() for process in processes})
    return facts


def explain(connection: ListedConnection, facts: Facts, kept: list[PmAddress] | None, way: WayTo) -> list[Finding]:
    """The judgement: see ``Diagnosis``. ``kept``: the addresses of the user-space path manager, None under another."""
    info = connection.socket.info
    if info is None:
        return [Finding(Cause.UNKNOWN, "the kernel tells nothing of this connection")]
    if info.fell_back:
        return [_fell_back(connection, facts)]
    alive = [s for s in connection.subflows if s.state == layout.ESTABLISHED]
    if len(alive) > 1:
        return []
    if connection.socket.state != layout.ESTABLISHED:
        return [Finding(Cause.CLOSING, "it is being opened or closed: subflows are added in between")]
    first = next((s for s in alive if not s.is_join), None)
    if first is not None and not first.fully_established:
        return [
            Finding(
                Cause.NOT_ESTABLISHED,
                "it is not fully established: no data has been acknowledged yet, and subflows are only added then",
                "send something",
            )
        ]
    findings = _unanswered(connection, facts, way)
    if findings:
        return findings
    if kept is not None:
        findings = _steered(connection, facts, kept)
    elif connection.opened_here is False:
        findings = _accepted(connection, facts)
    else:
        findings = _opened(connection, facts, way)
    return findings or [
        Finding(
            Cause.UNKNOWN, "nothing on this side prevents a second subflow: ask the same on the peer", certain=False
        )
    ]


# --- judgements ------------------------------------------------------------------------------------------------------
def _fell_back(connection: ListedConnection, facts: Facts) -> Finding:
    was_multipath = connection.socket.info is not None and connection.socket.info.key_received
    reason = reason_of_counters(facts.counters, was_multipath=was_multipath)
    fix = "let the peer use MPTCP (`mptcp run PROGRAM` there), or look for a middlebox on the path"
    return Finding(Cause.FELL_BACK, f"it is plain TCP: {reason}", fix)


def _unanswered(connection: ListedConnection, facts: Facts, way: WayTo) -> list[Finding]:
    """Of SYNs that are on their way."""
    findings = []
    for subflow in connection.subflows:
        if subflow.state != layout.SYN_SENT or not subflow.is_join:
            continue
        if all(local.address != subflow.local.address for local in facts.addresses):
            findings.append(_not_here(subflow.local.host, "a subflow is being opened from there"))
            continue
        wrong = _wrong_way(subflow.local.address, subflow.remote.address, subflow.interface, facts, way)
        if wrong is not None:
            findings.append(wrong)
            continue
        tries = 1 + (subflow.tcp.retransmits if subflow.tcp is not None else 0)
        findings.append(
            Finding(
                Cause.UNANSWERED,
                f"the SYN of a subflow from {subflow.local.host} to {subflow.remote} is not answered "
                f"({tries} sent so far)",
                "see whether that path carries TCP with MPTCP options: tcpdump on both ends, firewalls between them",
            )
        )
    return findings


def _steered(connection: ListedConnection, facts: Facts, kept: list[PmAddress]) -> list[Finding]:
    """Under the user-space path manager."""
    if facts.event_listeners is not None and not facts.event_listeners:
        sentence = "it has the user-space path manager, and no program listens to its events: nobody opens subflows"
        if connection.opened_here is False:
            sentence += ", and those of the client are ignored"
        return [Finding(Cause.NO_LISTENER_TO_EVENTS, sentence, NO_EVENTS_FIX)]
    findings = _listener_closed(connection, facts, bool(kept)) if connection.opened_here is False else []
    programs = ", ".join(map(str, facts.event_programs)) or "a program"
    known = ", ".join(address.local.host for address in kept)
    done = f"which has told it of {known} only" if kept else "which has neither opened nor announced anything"
    if connection.opened_here is False and not kept:
        done = "which has announced nothing, and the client has not joined"
    return [
        *findings,
        Finding(
            Cause.STEERED,
            f"it has the user-space path manager: {programs} decides, {done}",
            "see that program's settings, or open one: `open_subflow` on the socket",
        ),
    ]


def _accepted(connection: ListedConnection, facts: Facts) -> list[Finding]:
    """The accepting side, under the in-kernel path manager: it is the client that opens subflows."""
    info = connection.socket.info
    assert info is not None
    if limit := _limit(connection, facts):
        return limit
    announced = [e for e in facts.endpoints or [] if e.flags & FLAG_SIGNAL]
    findings = _listener_closed(connection, facts, any(e.local.port for e in announced))
    if not facts.allows_initial and not announced:
        findings.append(
            Finding(
                Cause.JOINS_DENIED,
                "this side denies further subflows to the address of the first one "
                "(net.mptcp.allow_join_initial_addr_port=0), and announces no other",
                "announce one: ip mptcp endpoint add ADDRESS dev INTERFACE signal, or set it to 1",
            )
        )
    findings += _failed_joins(facts, _IN)
    if findings:
        return findings
    if info.add_addr_signal:
        return [
            Finding(
                Cause.CLIENT_OPENS,
                f"this side has announced {_count(info.add_addr_signal, 'address')}, and the client has not joined",
                "on the client: ip mptcp limits set add_addr_accepted 4 (it is 0 there unless somebody has set it)",
                certain=False,
            )
        ]
    others = _other_addresses(connection, facts)
    fix = "on the client: `mptcp ls --why`"
    if others:
        fix += f"; here: ip mptcp endpoint add {_text(others[0])} dev {others[0].name} signal"
    return [
        Finding(Cause.CLIENT_OPENS, "it was accepted here: the client opens further subflows, and has not", fix, False)
    ]


def _opened(connection: ListedConnection, facts: Facts, way: WayTo) -> list[Finding]:
    """The connecting side, under the in-kernel path manager."""
    if limit := _limit(connection, facts):
        return limit
    info = connection.socket.info
    assert info is not None
    ignored = _ignored_announcement(connection, facts)
    family = len(connection.remote.address)
    in_use = {s.local.address for s in connection.subflows} | {connection.local.address}
    openers = [e for e in facts.endpoints or [] if e.flags & (FLAG_SUBFLOW | FLAG_FULLMESH)]
    others = [e for e in openers if e.local.address not in in_use]
    if not others:
        return [*ignored, _no_endpoint(connection, facts, openers)]
    findings: list[Finding] = []
    usable = []
    present = {local.address for local in facts.addresses}
    for endpoint in others:
        host = endpoint.local.host
        if len(endpoint.local.address) != family:
            findings.append(
                Finding(
                    Cause.ENDPOINT_UNUSABLE,
                    f"the endpoint {host} is IPv{endpoint.local.family}, the connection IPv{connection.remote.family}",
                    _add_endpoint(connection, facts),
                )
            )
        elif endpoint.local.address not in present:
            findings.append(_not_here(host, "it is an endpoint"))
        else:
            wrong = _wrong_way(endpoint.local.address, connection.remote.address, endpoint.interface, facts, way)
            if wrong is not None:
                findings.append(wrong)
            usable.append(endpoint)
    if usable:
        # Where packets would leave by the wrong link, what follows from the joins that failed is no news.
        findings = findings or _after_attempts(connection, facts, usable)
    return [*findings, *ignored]


def _after_attempts(connection: ListedConnection, facts: Facts, usable: list[PmAddress]) -> list[Finding]:
    """Endpoints are fine: was a join tried, and what became of it?"""
    info = connection.socket.info
    assert info is not None
    hosts = ", ".join(endpoint.local.host for endpoint in usable)
    count = facts.counters
    if not info.local_addr_used or not count.get("MPJoinSynTx", 1):
        return [
            Finding(
                Cause.PEER_DENIES,
                f"no subflow was tried from {hosts}, although it could be: the peer denies them to its first address "
                "(net.mptcp.allow_join_initial_addr_port=0 there, as behind a load balancer), and no other of its "
                "addresses is known",
                "on the peer: ip mptcp endpoint add ADDRESS dev INTERFACE signal; "
                "here: ip mptcp limits set add_addr_accepted 4",
                certain=False,
            )
        ]
    if failed := _failed_joins(facts, _OUT):
        return failed
    return [
        Finding(
            Cause.LOST,
            f"a second subflow (from {hosts}) was opened and is gone: the peer ended it (a limit there?), or its path "
            "broke; the in-kernel path manager does not open it again",
            f"ip mptcp endpoint delete id {usable[0].id}, and add it again; or a path manager that does: `mptcp pm`",
            certain=facts.connections == 1,
        )
    ]


def _no_endpoint(connection: ListedConnection, facts: Facts, openers: list[PmAddress]) -> Finding:
    """No endpoint here makes the in-kernel path manager open anything."""
    if _is_loopback(connection.remote.address):
        return Finding(Cause.LOOPBACK, "it stays on this host: there is only one path")
    others = _other_addresses(connection, facts)
    if not others:
        return Finding(
            Cause.ONE_ADDRESS,
            f"this host has no other IPv{connection.remote.family} address that another host could reach, and the peer "
            "has announced none",
            "bring up another interface, or announce an address on the peer",
        )
    add = _add_endpoint(connection, facts)
    signal = [e for e in facts.endpoints or [] if e.flags & FLAG_SIGNAL and not e.flags & FLAG_SUBFLOW]
    if signal:
        hosts = ", ".join(e.local.host for e in signal)
        return Finding(
            Cause.NO_ENDPOINT,
            f"the endpoint {hosts} is only announced (signal): for a client to open subflows it needs the flag subflow",
            f"ip mptcp endpoint delete id {signal[0].id}; {add}",
        )
    if openers:
        sentence = "the only endpoint with the flag subflow is the address that is in use"
    else:
        sentence = "no endpoint with the flag subflow: the in-kernel path manager opens subflows from endpoints only"
    return Finding(Cause.NO_ENDPOINT, sentence, add)


def _limit(connection: ListedConnection, facts: Facts) -> list[Finding]:
    info = connection.socket.info
    assert info is not None
    limit = facts.limits.subflows if facts.limits is not None else info.subflows_max
    if info.subflows < limit:
        return []
    sentence = f"the limit of further subflows is {limit}" + (f", and {info.subflows} are there" if limit else "")
    return [Finding(Cause.LIMIT, sentence, f"ip mptcp limits set subflow {max(2, limit + 1)}")]


def _ignored_announcement(connection: ListedConnection, facts: Facts) -> list[Finding]:
    info = connection.socket.info
    assert info is not None
    accepted = facts.limits.add_addr_accepted if facts.limits is not None else info.add_addr_accepted_max
    received = facts.counters.get("AddAddr", 0)
    if not received or info.add_addr_accepted > 0 or accepted > 0:
        return []
    return [
        Finding(
            Cause.ANNOUNCEMENT_IGNORED,
            f"{_count(received, 'address')} {'was' if received == 1 else 'were'} announced by peers, and none is taken up: "
            "the limit add_addr_accepted is 0 here",
            "ip mptcp limits set add_addr_accepted 4 (for announcements to come: connect again)",
            certain=facts.connections == 1,
        )
    ]


def _listener_closed(connection: ListedConnection, facts: Facts, own_listener: bool) -> list[Finding]:
    """Joins to the address of the first subflow go to whoever listens there."""
    local = connection.local
    for sock in facts.listening:
        if sock.local.port == local.port and (sock.local.is_unspecified or sock.local.address == local.address):
            return []
    if own_listener:
        return []
    return [
        Finding(
            Cause.LISTENER_CLOSED,
            f"nothing listens on {local} any more: further subflows to it are refused",
            "keep the listening socket open as long as its connections, or announce an address with a port "
            "(ip mptcp endpoint add ADDRESS dev INTERFACE port PORT signal)",
        )
    ]


#: Counter -> what it tells about joins that failed, of those that came in ...
_IN: Final = {
    "MPJoinNoTokenFound": "came with a token that no connection here has (a load balancer sends them to another host?)",
    "MPJoinSynAckHMacFailure": "failed the authentication (something between rewrites or answers for the other side)",
    "MPJoinAckHMacFailure": "failed the authentication (something between rewrites or answers for the other side)",
    "MPJoinRejected": "were rejected (a limit, or the path manager)",
    "MismatchPortSynRx": "came to a port that was not announced",
    "MismatchPortAckRx": "came to a port that was not announced",
}
#: ... and of those that went out.
_OUT: Final = {
    "MPJoinSynTxCreatSkErr": "could not be sent: no socket could be made",
    "MPJoinSynTxBindErr": "could not be sent: the address cannot be bound (is it this host's?)",
    "MPJoinSynTxConnectErr": "could not be sent: there is no route from that address",
    "MPJoinSynAckHMacFailure": "failed the authentication (something between rewrites or answers for the other side)",
}


def _failed_joins(facts: Facts, table: dict[str, str]) -> list[Finding]:
    """Joins that failed, as the namespace's counters have it."""
    findings = []
    certain = facts.connections == 1
    for name, what in table.items():
        if count := facts.counters.get(name, 0):
            sentence = f"{_count(count, 'join')} {what}"
            findings.append(Finding(Cause.JOINS_FAILED, sentence, "", certain))
    if table is _OUT:
        sent, answered = facts.counters.get("MPJoinSynTx", 0), facts.counters.get("MPJoinSynAckRx", 0)
        if sent > answered and not findings:
            findings.append(
                Finding(
                    Cause.JOINS_FAILED,
                    f"of {_count(sent, 'join')} sent, {answered or 'none'} got a SYN/ACK: refused (does the peer still "
                    "listen on that port?) or lost on the way (a firewall, or the reverse path)",
                    "on the peer: `mptcp ls --why`",
                    certain,
                )
            )
    return findings


def _not_here(host: str, what: str) -> Finding:
    return Finding(
        Cause.ENDPOINT_UNUSABLE,
        f"{host} is no usable address of this host now ({what}): there is no such address, or its link is down",
        f"look at it: ip address show to {host}",
    )


def _wrong_way(source: bytes, destination: bytes, interface: int, facts: Facts, way: WayTo) -> Finding | None:
    """Packets from an address that would leave by another interface than the one that has it, or not at all."""
    owner = next((local for local in facts.addresses if local.address == source), None)
    if owner is None:
        return None
    from_host, to_host = Endpoint(source).host, Endpoint(destination).host
    try:
        found = way(source, destination, interface)
    except OSError:
        return None
    table = f"ip rule add from {from_host} table {owner.interface}; ip route add default via GATEWAY dev {owner.name}"
    fix = f"give that address its own way out: {table} table {owner.interface}"
    if not found.interface:
        return Finding(Cause.ROUTE, f"there is no route from {from_host} to {to_host} ({found.error})", fix)
    if found.interface in {owner.interface, interface}:
        return None
    other = next((local.name for local in facts.addresses if local.interface == found.interface), "another interface")
    return Finding(
        Cause.ROUTE,
        f"packets from {from_host} to {to_host} leave by {other}, although {owner.name} has that address: routers and "
        "reverse-path filters drop them",
        fix,
        certain=False,
    )


def _other_addresses(connection: ListedConnection, facts: Facts) -> list[LocalAddress]:
    """Addresses of this host, of the connection's family, that no subflow uses."""
    in_use = {s.local.address for s in connection.subflows} | {connection.local.address}
    return [
        local
        for local in facts.addresses
        if local.address not in in_use and len(local.address) == len(connection.remote.address)
    ]


def _add_endpoint(connection: ListedConnection, facts: Facts) -> str:
    """The command that gives the in-kernel path manager another address to open subflows from."""
    others = _other_addresses(connection, facts)
    if not others:
        return f"ip mptcp endpoint add ADDRESS dev INTERFACE subflow, with an IPv{connection.remote.family} address"
    return f"ip mptcp endpoint add {_text(others[0])} dev {others[0].name} subflow"


def _is_loopback(address: bytes) -> bool:
    return ipaddress.ip_address(address).is_loopback


def _text(local: LocalAddress) -> str:
    return Endpoint(local.address).host


def _count(number: int, what: str) -> str:
    plural = {"address": "addresses", "join": "joins"}[what]
    return f"{number} {what if number == 1 else plural}"
