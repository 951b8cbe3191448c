"""Whether a rule lets its client have one request done: addresses, interfaces, ports, options and numbers."""

from __future__ import annotations

import dataclasses
import errno
import ipaddress
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from mptcp.errors import PathError
from mptcp.info import Endpoint
from mptcp.kernel.addresses import LocalAddress
from mptcp.kernel.broker.options import check_value, option_name
from mptcp.kernel.broker.policy import Peer, Rule
from mptcp.kernel.broker.proof import Proof
from mptcp.kernel.broker.protocol import Operation, Request
from mptcp.kernel.layout import unmapped

_FIRST_UNPRIVILEGED: Final = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")
_EVENTS: Final = frozenset({Operation.EVENTS, Operation.WATCH, Operation.UNWATCH})


class Refused(PathError):
    """The broker itself says no, before the kernel is asked. Logged with its reason."""


def refused(reason: str) -> Refused:
    return Refused(f"the broker's policy says no: {reason}", errno.EPERM)


def normalized(request: Request) -> Request:
    """IPv4 addresses as such, not as IPv6 ones that stand for them: a rule knows each address by one name only."""
    return dataclasses.replace(request, local=_short(request.local), remote=_short(request.remote))


def _short(endpoint: Endpoint | None) -> Endpoint | None:
    return Endpoint(unmapped(endpoint.address), endpoint.port) if endpoint is not None else None


def allowed(rule: Rule, operation: Operation) -> bool:
    return (Operation.EVENTS if operation in _EVENTS else operation) in rule.allow


def check_operation(rule: Rule, operation: Operation) -> None:
    if not allowed(rule, operation):
        raise refused(f"{operation.label} is not in `allow` of the rule for this client")


def check_owner(rule: Rule, proof: Proof, peer: Peer) -> None:
    if proof.uid != peer.uid and not rule.sockets_of_others:
        raise refused(f"the socket was made by uid {proof.uid} (`sockets_of_others` would let it)")


def check_request(rule: Rule, request: Request, proof: Proof, addresses: Callable[[], Sequence[LocalAddress]]) -> None:
    """``Refused``, or nothing. ``addresses`` tells those of this host, if that is asked."""
    match request.operation:
        case Operation.ANNOUNCE:
            _check_local(rule, request, proof, addresses)
        case Operation.CREATE_SUBFLOW:
            _check_local(rule, request, proof, addresses)
            _check_remote(rule, request)
            count = len(proof.subflows())
            if count >= rule.max_subflows:
                raise refused(f"the connection has {count} subflows already (`max_subflows`)")
        case Operation.SET_SUBFLOW_OPTION:
            name = option_name(request.level, request.name)
            if not name or name not in rule.options:
                raise refused(
                    f"the option {name or f'{request.level}, {request.name}'} is not in `options` of the rule for this client"
                )
            _check_own(request, proof)
            try:
                check_value(request.level, request.name, request.value)
            except PathError as error:
                raise Refused(error.strerror or "", errno.EPERM) from None
        case Operation.GET_SUBFLOW_OPTION | Operation.RESET_SUBFLOW:
            _check_own(request, proof)


def _check_own(request: Request, proof: Proof) -> None:
    # By addresses and ports any socket of the namespace could be meant.
    if (request.local, request.remote) not in proof.subflows():
        raise PathError(f"this connection has no subflow from {request.local} to {request.remote}", errno.ENOENT)


def _check_local(rule: Rule, request: Request, proof: Proof, addresses: Callable[[], Sequence[LocalAddress]]) -> None:
    local = request.local
    assert local is not None
    if local.port and local.port < _first_unprivileged_port():
        raise refused(
            f"port {local.port} is privileged, and what CAP_NET_BIND_SERVICE allows is not the broker's to give"
        )
    name = _interface_name(request.interface) if request.interface else ""
    if name and not rule.allows_interface(name):
        raise refused(f"the interface {name} is not in `interfaces` of the rule for this client")
    known = addresses()
    if local.is_unspecified:
        if request.operation is Operation.ANNOUNCE:
            raise Refused(f"{local.host} is no address that a peer could reach", errno.EINVAL)
        if not rule.any_interface or not (rule.addresses.host or rule.addresses.everything):
            raise refused("an address has to be named, since the rule for this client does not have them all")
        return
    # Where the connection is already, it may be in any case: loopback, say, which is no address for others.
    own = {end.address for end, _ in proof.subflows()}
    if not rule.addresses.covers(local.address, own.union(entry.address for entry in known)):
        raise refused(
            f"{local.host} is "
            + (
                "not an address of this host"
                if rule.addresses.host
                else "not in `addresses` of the rule for this client"
            )
        )
    if not rule.any_interface:
        carriers = [entry.name for entry in known if entry.address == local.address]
        if not any(rule.allows_interface(carrier) for carrier in carriers):
            where = (
                f"the interface of {local.host} ({', '.join(carriers)})"
                if carriers
                else f"{local.host}, of no interface,"
            )
            raise refused(f"{where} is not in `interfaces` of the rule for this client")


def _check_remote(rule: Rule, request: Request) -> None:
    remote = request.remote
    assert remote is not None
    address = ipaddress.ip_address(remote.address)
    if address.is_unspecified or address.is_multicast or not remote.port:
        raise Refused(f"{remote} is no address and port of a peer", errno.EINVAL)
    if not rule.remotes.covers(remote.address):
        raise refused(f"{remote.host} is not in `remotes` of the rule for this client")


def _interface_name(index: int) -> str:
    try:
        return socket.if_indextoname(index)
    except (OSError, OverflowError):
        raise Refused(f"there is no interface with index {index}", errno.ENODEV) from None


def _first_unprivileged_port() -> int:
    try:
        return int(_FIRST_UNPRIVILEGED.read_text())
    except (OSError, ValueError):
        return 1024
