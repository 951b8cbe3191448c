"""Addresses as the standard library writes them, and endpoints as the core does."""

from __future__ import annotations

import errno
import os
import socket as std
from typing import Any

from mptcp.info import Endpoint

_MAPPED = bytes(10) + b"\xff\xff"  # RFC 4291 §2.5.5.2: ::ffff:a.b.c.d
_ANY = {std.AF_INET: bytes(4), std.AF_INET6: bytes(16)}

#: What ``getsockname`` and the like return: (host, port) or (host, port, flow, scope).
SocketAddress = tuple[Any, ...]


def to_endpoint(family: int, address: SocketAddress, verb: str) -> Endpoint:
    """The endpoint of a socket address; a name is looked up (this may take its time: hold no lock).

    Raises what the standard library raises: TypeError, OverflowError, ``socket.gaierror``.
    """
    kind = "AF_INET" if family == std.AF_INET else "AF_INET6"
    if not isinstance(address, tuple):
        raise TypeError(f"{verb}(): {kind} address must be tuple, not {type(address).__name__}")
    if not 2 <= len(address) <= (2 if family == std.AF_INET else 4):
        shape = "a pair (host, port)" if family == std.AF_INET else "a tuple (host, port[, flowinfo[, scopeid]])"
        raise TypeError(f"{verb}(): {kind} address must be {shape}")
    host, port = address[0], address[1]
    if not isinstance(port, int):
        raise TypeError(f"'{type(port).__name__}' object cannot be interpreted as an integer")
    if not 0 <= port <= 0xFFFF:
        raise OverflowError(f"{verb}(): port must be 0-65535.")
    if len(address) > 2 and not 0 <= address[2] < 1 << 20:
        raise OverflowError(f"{verb}(): flowinfo must be 0-1048575.")
    return Endpoint(_packed(family, host), port)


def _packed(family: int, host: object) -> bytes:
    if isinstance(host, (bytes, bytearray)):
        host = bytes(host).decode("ascii")
    if not isinstance(host, str):
        raise TypeError(f"str, bytes or bytearray expected, not {type(host).__name__}")
    if not host:
        return _ANY[std.AddressFamily(family)]
    try:
        packed = std.inet_pton(family, host)
    except (OSError, ValueError):
        found = std.getaddrinfo(host, None, family, std.SOCK_STREAM)[0][4][0]
        packed = std.inet_pton(family, str(found).partition("%")[0])
    return packed[12:] if packed.startswith(_MAPPED) else packed


def from_endpoint(family: int, endpoint: Endpoint) -> SocketAddress:
    """The socket address of an endpoint, as a socket of ``family`` shows it."""
    packed = endpoint.address
    if family == std.AF_INET:
        return std.inet_ntop(std.AF_INET, packed), endpoint.port
    if len(packed) == 4:
        packed = packed if not any(packed) else _MAPPED + packed
        packed = packed if any(packed) else bytes(16)
    return std.inet_ntop(std.AF_INET6, packed), endpoint.port, 0, 0


def any_endpoint(family: int, port: int = 0) -> Endpoint:
    return Endpoint(_ANY[std.AddressFamily(family)], port)


def os_error(number: int, cause: BaseException | None = None) -> OSError:
    """The exception the standard library would raise for ``number``; ours, if any, is its cause."""
    error = OSError(number, os.strerror(number))
    error.__cause__ = cause
    return error


def would_block() -> OSError:
    return os_error(errno.EAGAIN)
