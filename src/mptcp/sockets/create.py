"""``create_connection`` and ``create_server`` of the standard library, over the stack in use."""

from __future__ import annotations

import errno
import socket as std
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from mptcp.core.multipath.config import ConnectionConfig
from mptcp.sockets.address import SocketAddress
from mptcp.sockets.base import Stack
from mptcp.sockets.options import IPPROTO_MPTCP

if TYPE_CHECKING:
    from mptcp.sockets.base import AnySocket

_current: ContextVar[Stack | None] = ContextVar("mptcp_stack", default=None)
_default: Stack | None = None

#: "As the standard library's default says", where None means "for ever".
_GLOBAL_DEFAULT: Any = object()


@contextmanager
def use(stack: Stack) -> Iterator[Stack]:
    """Within the block (and the tasks begun in it) new sockets are made by ``stack``; it is not closed at the end."""
    token = _current.set(stack)
    try:
        yield stack
    finally:
        _current.reset(token)


def set_default_stack(stack: Stack | None) -> None:
    """The stack where no ``use`` is in force: threads do not inherit the context of the one that started them."""
    global _default  # noqa: PLW0603 the one setting of the process
    _default = stack


def current_stack() -> Stack:
    """The stack that ``use`` or ``set_default_stack`` has named; else the process's ``KernelStack``: the kernel's MPTCP,
    or TCP where there is none."""
    return _current.get() or _default or _kernel_stack()


def _kernel_stack() -> Stack:
    from mptcp.sockets.kernel import default_stack

    return default_stack()


def socket(
    family: int = std.AF_INET,
    type: int = std.SOCK_STREAM,  # noqa: A002 the standard library's name
    proto: int = 0,
    *,
    config: ConnectionConfig | None = None,
) -> AnySocket:
    """A new socket of the stack in use."""
    return current_stack().socket(family, type, proto, config=config)


def create_connection(
    address: tuple[str | None, int],
    timeout: float | None = _GLOBAL_DEFAULT,
    source_address: SocketAddress | None = None,
    *,
    all_errors: bool = False,
    config: ConnectionConfig | None = None,
) -> AnySocket:
    """Connects to (host, port): to each address the name has, until one answers.

    The last error is raised, or all of them as an ExceptionGroup if ``all_errors``.
    """
    host, port = address
    stack = current_stack()
    failures: list[Exception] = []
    for family, kind, _, _, target in std.getaddrinfo(host, port, 0, std.SOCK_STREAM):
        sock = None
        try:
            sock = stack.socket(family, kind, IPPROTO_MPTCP, config=config)
            if timeout is not _GLOBAL_DEFAULT:
                sock.settimeout(timeout)
            if source_address:
                sock.bind(source_address)
            sock.connect(target)
        except OSError as error:
            if not all_errors:
                failures.clear()
            failures.append(error)
            if sock is not None:
                sock.close()
            continue
        except BaseException:
            if sock is not None:
                sock.close()
            raise
        failures.clear()
        return sock
    try:
        if not failures:
            raise OSError("getaddrinfo returns an empty list")
        if all_errors:
            raise ExceptionGroup("create_connection failed", failures)
        raise failures[0]
    finally:
        failures.clear()  # a traceback that refers to itself would keep the sockets


def create_server(
    address: SocketAddress,
    *,
    family: int = std.AF_INET,
    backlog: int | None = None,
    reuse_port: bool = False,
    dualstack_ipv6: bool = False,
    config: ConnectionConfig | None = None,
) -> AnySocket:
    """A socket that listens at ``address``; "" as host: every address of the stack."""
    if dualstack_ipv6 and family != std.AF_INET6:
        raise ValueError("dualstack_ipv6 requires AF_INET6")
    sock = current_stack().socket(family, std.SOCK_STREAM, IPPROTO_MPTCP, config=config)
    try:
        sock.setsockopt(std.SOL_SOCKET, std.SO_REUSEADDR, 1)
        if reuse_port:
            sock.setsockopt(std.SOL_SOCKET, std.SO_REUSEPORT, 1)
        if family == std.AF_INET6:
            sock.setsockopt(std.IPPROTO_IPV6, std.IPV6_V6ONLY, int(not dualstack_ipv6))
        try:
            sock.bind(address)
        except OSError as error:
            text = f"{error.strerror} (while attempting to bind on address {address!r})"
            raise OSError(error.errno or errno.EIO, text) from error
        sock.listen(128 if backlog is None else backlog)
    except BaseException:
        with suppress(OSError):
            sock.close()
        raise
    return sock
