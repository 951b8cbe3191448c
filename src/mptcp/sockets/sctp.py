"""SCTP's names for several addresses (RFC 6458 §9), as far as MPTCP has their meaning (RFC 6897 A.4).

Each takes a socket of this package where C takes a descriptor, and raises OSError where C returns -1. An association is
a connection; its identifier is the connection's token.
"""

from __future__ import annotations

import errno
import socket as std
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from mptcp.errors import NotSupportedError, PathError
from mptcp.info import Endpoint
from mptcp.sockets.address import SocketAddress, to_endpoint

if TYPE_CHECKING:
    from mptcp.sockets.socket import Socket

SCTP_BINDX_ADD_ADDR = 0x01
SCTP_BINDX_REM_ADDR = 0x02


def sctp_bindx(sock: Socket, addrs: Sequence[SocketAddress], flags: int) -> int:
    """RFC 6458 §9.1: binds to several addresses, adds some, or removes some; all or nothing. 0.

    OSError: EINVAL (flags, ports that differ, the wildcard beside others, the last address removed), EADDRNOTAVAIL,
    EADDRINUSE, EACCES, EOPNOTSUPP (an established connection that is regular TCP).
    """
    if flags not in (SCTP_BINDX_ADD_ADDR, SCTP_BINDX_REM_ADDR):
        # "The two flags are mutually exclusive; if both are given, sctp_bindx() will fail with EINVAL."
        raise PathError("flags is SCTP_BINDX_ADD_ADDR or SCTP_BINDX_REM_ADDR")
    if not addrs:
        raise PathError("the list of addresses is empty")
    ends = [_endpoint(sock, address, "sctp_bindx") for address in addrs]
    if any(end.is_unspecified for end in ends) and (len(ends) > 1 or flags == SCTP_BINDX_REM_ADDR):
        # "the wildcard addresses cannot be used in combination with non-wildcard addresses"
        raise PathError("the wildcard stands alone, and cannot be removed")
    port = ends[0].port
    if any(end.port not in (0, port) for end in ends):
        # "If the first port number is not zero, the following port numbers must be zero or have the same value"
        raise PathError("all ports are the same, or zero after the first")
    with sock.event_lock:
        bound_port = sock.getsockname()[1]
        if bound_port and port not in (0, bound_port):
            # "For an already bound socket, all port numbers provided must be the bound one or 0."
            raise PathError(f"the socket is bound to port {bound_port}")
        hosts = [end.host for end in ends]
        if flags == SCTP_BINDX_REM_ADDR:
            left = {address[0] for address in sock.local_addresses()} - set(hosts)
            if not left:
                # "A caller may not remove all addresses from a socket; sctp_bindx() will reject such an attempt with
                # EINVAL."
                raise PathError("a socket keeps at least one address")
            sock.remove_addresses(hosts)
            return 0
        if not bound_port:
            wildcard = "" if sock.family == std.AF_INET else "::"
            if not ends[0].is_unspecified:
                sock.check_addresses(hosts)
            sock.bind((wildcard, port))
        if not ends[0].is_unspecified:
            sock.add_addresses(hosts)
    return 0


def sctp_connectx(sock: Socket, addrs: Sequence[SocketAddress]) -> int:
    """RFC 6458 §9.9: connects to a peer known under several addresses; the identifier of the association.

    The addresses are tried one after the other; those left are where further subflows may go, once the peer has proved
    with the first that it is who it is (a join at a wrong host fails). A socket that does not block tries the first.
    """
    if not addrs:
        raise PathError("the list of addresses is empty")
    ends = [_endpoint(sock, address, "sctp_connectx") for address in addrs]
    failure: OSError | None = None
    for index, address in enumerate(addrs):
        try:
            sock.connect(address)
        except BlockingIOError:
            sock.note_remotes(ends)
            raise
        except OSError as error:
            if error.errno in (errno.EISCONN, errno.EALREADY, errno.EBADF, errno.EINVAL):
                raise
            failure = error
            continue
        sock.note_remotes(ends[index + 1 :])
        return sock.connection_id
    assert failure is not None
    raise failure


def sctp_getladdrs(sock: Socket, id: int = 0) -> list[SocketAddress]:
    """RFC 6458 §9.5: the local addresses the socket is bound to, or its connection may use; [] if it is unbound.

    "For one-to-one style sockets, id is ignored."
    """
    found = sock.local_addresses()
    name = sock.getsockname()
    if found or not name[1]:
        return found
    return [name]


def sctp_getpaddrs(sock: Socket, id: int = 0) -> list[SocketAddress]:
    """RFC 6458 §9.3: the peer's addresses, as far as known; [] without a connection. ``id`` is ignored."""
    return sock.remote_addresses()


def sctp_freeladdrs(addrs: list[SocketAddress]) -> None:
    """RFC 6458 §9.6: empties the list; memory needs no care here."""
    addrs.clear()


def sctp_freepaddrs(addrs: list[SocketAddress]) -> None:
    """RFC 6458 §9.4: as ``sctp_freeladdrs``."""
    addrs.clear()


def _unsupported(name: str, why: str) -> NoReturn:
    raise NotSupportedError(f"{name}: {why}")


def sctp_peeloff(sock: Socket, assoc_id: int) -> NoReturn:
    """RFC 6458 §9.2. EOPNOTSUPP: every MPTCP socket has one connection already."""
    _unsupported("sctp_peeloff", "MPTCP has no one-to-many sockets; accept() gives a socket for each connection")


def sctp_opt_info(sock: Socket, id: int, opt: int, size: int) -> NoReturn:
    """RFC 6458 §9.11. EOPNOTSUPP: MPTCP's options are getsockopt's."""
    _unsupported("sctp_opt_info", "use getsockopt with MPTCP's options, subflows() or info()")


def sctp_sendv(sock: Socket, *args: object) -> NoReturn:
    """RFC 6458 §9.12. EOPNOTSUPP: a byte stream has neither messages nor streams."""
    _unsupported("sctp_sendv", "MPTCP carries one stream of octets without messages; use sendmsg()")


def sctp_recvv(sock: Socket, *args: object) -> NoReturn:
    """RFC 6458 §9.13. EOPNOTSUPP, as ``sctp_sendv``."""
    _unsupported("sctp_recvv", "MPTCP carries one stream of octets without messages; use recvmsg()")


def _endpoint(sock: Socket, address: SocketAddress, verb: str) -> Endpoint:
    family = int(sock.family)
    if family == std.AF_INET6 and ":" not in str(address[0]) and address[0]:
        family = (
            std.AF_INET
        )  # "If the sd is an IPv6 socket, the addresses passed can either be IPv4 or IPv6 addresses."
    if family == std.AF_INET and ":" in str(address[0]):
        raise PathError("an IPv4 socket takes IPv4 addresses")
    return to_endpoint(family, address[:2], verb)
