"""Segment Routing for one subflow (RFC 8754): a rule for exactly its addresses and ports, which leads to a table with one
route, which puts the Segment Routing Header into its packets.

The kernel has no such option of a socket; the way of a packet is decided by its routes. Both rule and route carry this
package's mark (``PROTOCOL``), are made only where there is none like them, and only they are ever taken away. What a
process leaves behind that is killed, ``remove_orphans`` finds.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import socket
import struct
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, Self

from mptcp.errors import NotSupportedError, PathError
from mptcp.forking import freed_in_child
from mptcp.info import Endpoint, Support
from mptcp.kernel import features
from mptcp.kernel.diag import Diag
from mptcp.kernel.layout import AF_INET6
from mptcp.kernel.namespace import NetNamespace
from mptcp.kernel.netlink import (
    NETLINK_ROUTE,
    NLM_F_CREATE,
    NLM_F_EXCL,
    NetlinkError,
    NetlinkSocket,
    attribute,
    attributes,
    nested,
    unsigned,
)
from mptcp.kernel.routing import Routes

#: Who made a rule or a route (rtm_protocol; ``ip -6 rule show`` says "proto 109"). Not one of those that have a name.
PROTOCOL: Final = 109
#: Right after the table of local addresses: before what the administrator has for the source address.
RULE_PRIORITY: Final = 1
#: Tables are chosen among these.
FIRST_TABLE: Final = 0x6D700000
TABLES: Final = 1 << 20
#: As in the user-space stack; the header's length has room for 126.
MAX_SEGMENTS: Final = 16
#: Every packet of the host is compared with every rule.
MAX_ROUTES: Final = 256
#: Without a subflow for so long, a rule is nobody's.
SETTLE_S: Final = 0.5

_RTM_NEWROUTE: Final = 24
_RTM_DELROUTE: Final = 25
_RTM_NEWRULE: Final = 32
_RTM_DELRULE: Final = 33
_RTM_GETRULE: Final = 34

#: ``struct rtmsg`` and ``struct fib_rule_hdr``: family, lengths of destination and source, tos, table, then protocol, scope
#: and type, or two reserved octets and the action; flags.
_HEAD: Final = struct.Struct("=8BI")
_TABLE_BY_ATTRIBUTE: Final = 252  # RT_TABLE_COMPAT: the number is too long for the octet
_RTN_UNICAST: Final = 1
_FR_ACT_TO_TBL: Final = 1

_RTA_DST: Final = 1
_RTA_OIF: Final = 4
_RTA_TABLE: Final = 15
_RTA_ENCAP_TYPE: Final = 21
_RTA_ENCAP: Final = 22
_LWTUNNEL_ENCAP_SEG6: Final = 5
_SEG6_IPTUNNEL_SRH: Final = 1

_FRA_DST: Final = 1
_FRA_SRC: Final = 2
_FRA_PRIORITY: Final = 6
_FRA_TABLE: Final = 15
_FRA_PROTOCOL: Final = 21
_FRA_IP_PROTO: Final = 22
_FRA_SPORT_RANGE: Final = 23
_FRA_DPORT_RANGE: Final = 24

_U8: Final = struct.Struct("=B")
_U16: Final = struct.Struct("=H")
_U32: Final = struct.Struct("=I")
_RANGE: Final = struct.Struct("=HH")
#: RFC 8754 §2: next header, length in 8 octets without the first, type, segments left, last entry, flags, tag
_SRH: Final = struct.Struct("!BBBBBBH")
_ROUTING_TYPE_SEGMENTS: Final = 4


class Mode(IntEnum):
    """How the header gets there (enum seg6_iptun_mode)."""

    INLINE = 0  # into the packet itself, as a host does with its own packets
    ENCAP = 1  # the packet whole inside another IPv6 packet, which the last segment takes apart


@dataclass(frozen=True, slots=True)
class Rule:
    """TCP from ``local`` to ``remote`` is looked up in ``table``; a port 0 is any. ``protocol``: who made the rule."""

    protocol: int
    table: int
    local: Endpoint
    remote: Endpoint


@dataclass(frozen=True, slots=True)
class SegmentRoute:
    """What was added for one subflow."""

    local: Endpoint
    remote: Endpoint
    segments: tuple[bytes, ...]
    mode: Mode
    interface: int  # index
    table: int

    @property
    def rule(self) -> Rule:
        """What leads the subflow to it."""
        return Rule(PROTOCOL, self.table, self.local, self.remote)


class SegmentRoutes:
    """Adds and removes them in one namespace; needs CAP_NET_ADMIN there. Any thread may call.

    What is still there when this is closed, forgotten, or the program ends, is removed. Errors: PermissionError;
    NotSupportedError (no seg6 in this kernel); PathError with EINVAL, EEXIST (the subflow has segments already), ENOBUFS
    (MAX_ROUTES), ENETUNREACH (no route to the peer), ENODEV.
    """

    __slots__ = ("__weakref__", "_finalizer", "_kept", "_namespace")

    def __init__(self, namespace: NetNamespace | None = None) -> None:
        self._namespace = namespace or NetNamespace()
        self._kept = _Kept(NetlinkSocket(NETLINK_ROUTE, self._namespace))
        self._finalizer = weakref.finalize(self, self._kept.clear)

    def add(
        self,
        local: Endpoint,
        remote: Endpoint,
        segments: Sequence[bytes],
        *,
        interface: int = 0,
        mode: Mode = Mode.INLINE,
    ) -> SegmentRoute:
        """From now on packets from ``local`` to ``remote`` visit ``segments`` (packed addresses, in the order of travel).

        ``local.port`` is that of the subflow: bind to it, or ask ``free_port`` for one before the subflow is opened. 0
        means every TCP connection from that address to ``remote``. How to get to the first segment is up to the other
        routes of the host; ``interface`` (index; 0: where the way to ``remote`` leads) is what the MTU is taken from.
        """
        _check(local, remote, segments)
        if not interface:
            interface = self._interface(local, remote)
        kept = self._own()
        with kept.lock:
            if any((r.local, r.remote) == (local, remote) for r in kept.routes):
                raise PathError(f"the subflow from {local} to {remote} has segments already", errno.EEXIST)
            if len(kept.routes) >= MAX_ROUTES:
                raise PathError(f"there are {MAX_ROUTES} subflows with segments, no more are possible", errno.ENOBUFS)
            route = SegmentRoute(local, remote, tuple(segments), mode, interface, self._free_table())
            self._make(kept.netlink, route)
            kept.routes.append(route)
            return route

    def remove(self, route: SegmentRoute) -> None:
        """Its packets go the ordinary way again. Nothing happens if it is gone already."""
        kept = self._own()
        with kept.lock:
            if route in kept.routes:
                kept.routes.remove(route)
                _remove(kept.netlink, route.rule)

    def routes(self) -> list[SegmentRoute]:
        """Those that were added and not removed."""
        kept = self._own()
        with kept.lock:
            return list(kept.routes)

    def remove_orphans(self) -> int:
        """Takes away what processes that are gone have left in the namespace: rules with this package's mark whose
        connection does not exist, now and ``SETTLE_S`` later (a rule is made a moment before its subflow). The number of
        them."""
        orphans = self._orphans()
        if orphans:
            time.sleep(SETTLE_S)
            still = self._orphans()
            orphans = [rule for rule in orphans if rule in still]
        for rule in orphans:
            _remove(self._own().netlink, rule)
        return len(orphans)

    def _orphans(self) -> list[Rule]:
        own = {(route.local, route.remote) for route in self.routes()}
        with Diag(self._namespace) as diag:
            alive = diag.tcp_connections()
        alive |= {(Endpoint(local.address), remote) for local, remote in alive}
        return [
            rule
            for rule in self._rules()
            if rule.protocol == PROTOCOL
            and FIRST_TABLE <= rule.table < FIRST_TABLE + TABLES
            and (rule.local, rule.remote) not in alive | own
        ]

    def supports(self) -> Support:
        """Whether this kernel can, and this process may."""
        return features.segment_routing(self._namespace)

    def close(self) -> None:
        """Removes all that it has added; twice is as good as once."""
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- inside ------------------------------------------------------------------------------------------------------
    def _own(self) -> _Kept:
        if self._kept.process != os.getpid():
            # Parent and child would take each other's answers from one socket; the routes are the parent's.
            self._finalizer.detach()
            self._kept = _Kept(NetlinkSocket(NETLINK_ROUTE, self._namespace))
            self._finalizer = weakref.finalize(self, self._kept.clear)
        return self._kept

    def _interface(self, local: Endpoint, remote: Endpoint) -> int:
        routes = Routes(self._namespace)
        try:
            way = routes.way(local.address, remote.address)
        finally:
            routes.close()
        if not way.interface:
            raise PathError(f"there is no way from {local.host} to {remote.host}: {way.error}", errno.ENETUNREACH)
        return way.interface

    def _make(self, netlink: NetlinkSocket, route: SegmentRoute) -> None:
        flags = NLM_F_CREATE | NLM_F_EXCL
        with _explained():
            netlink.request(_RTM_NEWROUTE, emit_route(route), flags, "adding a route with segments")
        try:
            with _explained():
                netlink.request(_RTM_NEWRULE, emit_rule(route.rule), flags, "adding a rule for a subflow")
        except OSError:
            netlink.request(_RTM_DELROUTE, emit_route_key(route.rule), 0, "removing a route with segments")
            raise

    def _free_table(self) -> int:
        """One that no rule leads to."""
        used = {rule.table for rule in self._rules()}
        while True:
            table = FIRST_TABLE + random.randrange(TABLES)
            if table not in used:
                return table

    def _rules(self) -> list[Rule]:
        body = _HEAD.pack(AF_INET6, 0, 0, 0, 0, 0, 0, 0, 0)
        with _explained():
            found = self._own().netlink.dump(_RTM_GETRULE, body, what="listing rules")
        rules = (parse_rule(message.payload) for message in found if message.kind == _RTM_NEWRULE)
        return [rule for rule in rules if rule is not None]


class _Kept:
    """What has to be removed in the end; it outlives the object that made it by a moment."""

    __slots__ = ("lock", "netlink", "process", "routes")

    def __init__(self, netlink: NetlinkSocket) -> None:
        self.netlink = netlink
        self.lock = freed_in_child(threading.Lock())
        self.routes: list[SegmentRoute] = []
        self.process = os.getpid()

    def clear(self) -> None:
        with self.lock:
            # A child that was forked has the list, but not the subflows.
            while self.routes and self.process == os.getpid():
                with contextlib.suppress(OSError):
                    _remove(self.netlink, self.routes.pop().rule)
            self.netlink.close()


def free_port(local: bytes, namespace: NetNamespace | None = None) -> int:
    """A TCP port of that address that nobody uses. OSError (EADDRNOTAVAIL) if it is no address of the host."""
    family = socket.AF_INET6 if len(local) == 16 else socket.AF_INET
    with (namespace or NetNamespace()).entered(), socket.socket(family, socket.SOCK_STREAM) as sock:
        try:
            sock.bind((Endpoint(local).host, 0))
        except OSError as error:
            raise PathError(f"{Endpoint(local).host}: {error.strerror}", error.errno or errno.EADDRNOTAVAIL) from None
        port: int = sock.getsockname()[1]
        return port


def emit_header(segments: Sequence[bytes], mode: Mode) -> bytes:
    """The Segment Routing Header as the kernel wants it: inline, it writes the destination into the first entry itself."""
    path = [bytes(16), *reversed(segments)] if mode is Mode.INLINE else list(reversed(segments))
    last = len(path) - 1
    return _SRH.pack(0, 2 * len(path), _ROUTING_TYPE_SEGMENTS, last, last, 0, 0) + b"".join(path)


def emit_route(route: SegmentRoute) -> bytes:
    """The body of RTM_NEWROUTE."""
    header = _U32.pack(route.mode) + emit_header(route.segments, route.mode)
    return (
        emit_route_key(route.rule)
        + attribute(_RTA_OIF, _U32.pack(route.interface))
        + attribute(_RTA_ENCAP_TYPE, _U16.pack(_LWTUNNEL_ENCAP_SEG6))
        + nested(_RTA_ENCAP, attribute(_SEG6_IPTUNNEL_SRH, header))
    )


def emit_route_key(rule: Rule) -> bytes:
    """The body of RTM_DELROUTE: the route that ``rule`` leads to."""
    return (
        _HEAD.pack(AF_INET6, 128, 0, 0, _TABLE_BY_ATTRIBUTE, rule.protocol, 0, _RTN_UNICAST, 0)
        + attribute(_RTA_DST, rule.remote.address)
        + attribute(_RTA_TABLE, _U32.pack(rule.table))
    )


def emit_rule(rule: Rule) -> bytes:
    """The body of RTM_NEWRULE and RTM_DELRULE."""
    ports = ((_FRA_SPORT_RANGE, rule.local.port), (_FRA_DPORT_RANGE, rule.remote.port))
    return (
        _HEAD.pack(AF_INET6, 128, 128, 0, _TABLE_BY_ATTRIBUTE, 0, 0, _FR_ACT_TO_TBL, 0)
        + attribute(_FRA_DST, rule.remote.address)
        + attribute(_FRA_SRC, rule.local.address)
        + attribute(_FRA_PRIORITY, _U32.pack(RULE_PRIORITY))
        + attribute(_FRA_TABLE, _U32.pack(rule.table))
        + attribute(_FRA_PROTOCOL, _U8.pack(rule.protocol))
        + attribute(_FRA_IP_PROTO, _U8.pack(socket.IPPROTO_TCP))
        + b"".join(attribute(kind, _RANGE.pack(port, port)) for kind, port in ports if port)
    )


def parse_rule(payload: memoryview) -> Rule | None:
    """From the body of RTM_NEWRULE; None if it is none. Addresses that the rule does not look at are empty."""
    if len(payload) < _HEAD.size:
        return None
    found = dict(attributes(payload[_HEAD.size :]))

    def end(address: int, ports: int) -> Endpoint:
        port = found.get(ports, memoryview(b""))
        return Endpoint(bytes(found.get(address, b"")), _RANGE.unpack(port)[0] if len(port) == _RANGE.size else 0)

    return Rule(
        unsigned(found.get(_FRA_PROTOCOL)) or 0,
        unsigned(found.get(_FRA_TABLE)) or payload[4],
        end(_FRA_SRC, _FRA_SPORT_RANGE),
        end(_FRA_DST, _FRA_DPORT_RANGE),
    )


def _remove(netlink: NetlinkSocket, rule: Rule) -> None:
    for kind, body, what in (
        (_RTM_DELRULE, emit_rule(rule), "removing the rule of a subflow"),
        (_RTM_DELROUTE, emit_route_key(rule), "removing a route with segments"),
    ):
        try:
            with _explained():
                netlink.request(kind, body, 0, what)
        except PathError as error:
            # The kernel takes a route away with its interface, and an administrator may have been here.
            if error.errno not in {errno.ENOENT, errno.ESRCH, errno.ENODEV}:
                raise


def _check(local: Endpoint, remote: Endpoint, segments: Sequence[bytes]) -> None:
    if len(local.address) != 16 or len(remote.address) != 16:
        raise PathError(f"segments are for subflows over IPv6, not from {local} to {remote}")
    if not 0 < len(segments) <= MAX_SEGMENTS or any(len(segment) != 16 or not any(segment) for segment in segments):
        raise PathError(f"segments are 1 to {MAX_SEGMENTS} IPv6 addresses")
    if not 0 <= local.port < 1 << 16 or not 0 < remote.port < 1 << 16:
        raise PathError(f"{local} and {remote} are no addresses with ports")


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """The kernel's refusals as this package's errors."""
    try:
        yield
    except NetlinkError as error:
        number, message = error.errno or errno.EINVAL, error.strerror or str(error)
        if number == errno.EPERM:
            raise PermissionError(number, f"{message}: it needs CAP_NET_ADMIN in the network namespace") from None
        if number in {errno.EOPNOTSUPP, errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT}:
            hint = "this kernel needs CONFIG_IPV6_SEG6_LWTUNNEL and CONFIG_IPV6_MULTIPLE_TABLES"
            raise NotSupportedError(f"{message}: {hint}") from None
        raise PathError(message, number) from None
