"""asyncio over the stack in use: ``open_connection``, ``start_server``, and the loop's ``create_connection`` and
``create_server``. Signatures and exceptions are asyncio's; TCP_NODELAY is on, as asyncio sets it.

A real socket (of the operating system's stack, which has a descriptor of its own) is left to the loop itself.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import socket as std
import ssl as tls
from asyncio import staggered
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

from mptcp.runtime.aio import until
from mptcp.sockets import aio_system
from mptcp.sockets.aio_server import Server
from mptcp.sockets.aio_streams import ClientConnected, StreamProtocol, StreamReader
from mptcp.sockets.aio_tls import tls_arguments
from mptcp.sockets.aio_transport import StreamTransport
from mptcp.sockets.create import current_stack
from mptcp.sockets.options import IPPROTO_MPTCP
from mptcp.sockets.socket import Socket

if TYPE_CHECKING:
    from mptcp.core.multipath.config import ConnectionConfig
    from mptcp.sockets.base import AnySocket, Stack

#: What a stream reader keeps before it stops reading, unless told otherwise (asyncio's number).
DEFAULT_LIMIT = 64 * 1024

_Protocol = TypeVar("_Protocol", bound=asyncio.BaseProtocol)
#: (family, type, protocol, canonical name, address)
_AddressInfo = tuple[int, int, int, str, tuple[Any, ...]]


# --- streams ------------------------------------------------------------------------------------------------------------
async def open_connection(
    host: str | None = None, port: int | str | None = None, *, limit: int = DEFAULT_LIMIT, **arguments: Any
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """(reader, writer); ``arguments`` are those of ``create_connection`` (``ssl``, ``local_addr``, ``config``, ...)."""
    loop = asyncio.get_running_loop()
    reader, protocol = _stream(loop, limit, _is_of_the_system(arguments.get("sock")))
    transport, _ = await create_connection(lambda: protocol, host, port, **arguments)
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)


async def start_server(
    client_connected_cb: ClientConnected,
    host: str | Sequence[str] | None = None,
    port: int | str | None = None,
    *,
    limit: int = DEFAULT_LIMIT,
    **arguments: Any,
) -> asyncio.AbstractServer:
    """Calls ``client_connected_cb(reader, writer)`` for every client; ``arguments``: those of ``create_server``."""
    loop = asyncio.get_running_loop()
    of_the_system = _is_of_the_system(arguments.get("sock"))

    def factory() -> asyncio.StreamReaderProtocol:
        return _stream(loop, limit, of_the_system, client_connected_cb)[1]

    return await create_server(factory, host, port, **arguments)


def attach() -> None:
    """In a running loop: it drives the stack in use from now on.

    Transports, streams and servers of this module do so by themselves; a library that uses a socket through its
    descriptor does not, and would leave the work to the background thread.
    """
    pump = getattr(current_stack(), "pump", None)
    if pump is not None:
        pump.loop_driver(asyncio.get_running_loop())


# --- transports -----------------------------------------------------------------------------------------------------------
async def create_connection(
    protocol_factory: Callable[[], _Protocol],
    host: str | None = None,
    port: int | str | None = None,
    *,
    ssl: tls.SSLContext | bool | None = None,
    family: int = 0,
    proto: int = 0,
    flags: int = 0,
    sock: AnySocket | std.socket | None = None,
    local_addr: tuple[str, int] | None = None,
    server_hostname: str | None = None,
    ssl_handshake_timeout: float | None = None,
    ssl_shutdown_timeout: float | None = None,
    happy_eyeballs_delay: float | None = None,
    interleave: int | None = None,
    all_errors: bool = False,
    config: ConnectionConfig | None = None,
) -> tuple[asyncio.Transport, _Protocol]:
    """``loop.create_connection`` in the running loop, over the stack in use.

    ``happy_eyeballs_delay`` (RFC 8305): seconds after which the next address is tried without waiting for the last.
    ``sock``: a connected socket instead of an address.
    """
    loop = asyncio.get_running_loop()
    if ssl and server_hostname is None:
        if not host:
            raise ValueError("You must set server_hostname when using ssl without a host")
        server_hostname = host
    arguments = tls_arguments(ssl, False, server_hostname, ssl_handshake_timeout, ssl_shutdown_timeout)
    if sock is not None:
        if host is not None or port is not None:
            raise ValueError("host/port and sock can not be specified at the same time")
    elif host is None and port is None:
        raise ValueError("host and port was not specified and no sock specified")
    else:
        sock = await connected_socket(
            host, port, family=family, proto=proto, flags=flags, local_addr=local_addr, config=config,
            happy_eyeballs_delay=happy_eyeballs_delay, interleave=interleave, all_errors=all_errors,
        )  # fmt: skip
    if isinstance(sock, std.socket):
        return await aio_system.create_connection(
            loop, protocol_factory, sock, ssl, server_hostname, ssl_handshake_timeout, ssl_shutdown_timeout
        )
    sock.setblocking(False)
    protocol = protocol_factory()
    waiter: asyncio.Future[None] = loop.create_future()
    try:
        if arguments is None:
            transport: asyncio.Transport = StreamTransport(loop, sock, protocol, waiter=waiter)
        else:
            over = arguments.wrap(loop, protocol, waiter)
            StreamTransport(loop, sock, over)
            transport = over._app_transport
    except BaseException:
        sock.close()
        raise
    try:
        await waiter
    except BaseException:
        transport.close()
        raise
    return transport, protocol


async def create_server(
    protocol_factory: Callable[[], asyncio.BaseProtocol],
    host: str | Sequence[str] | None = None,
    port: int | str | None = None,
    *,
    family: int = std.AF_UNSPEC,
    flags: int = std.AI_PASSIVE,
    sock: AnySocket | std.socket | None = None,
    backlog: int = 100,
    ssl: tls.SSLContext | None = None,
    reuse_address: bool | None = None,
    reuse_port: bool | None = None,
    keep_alive: bool | None = None,
    ssl_handshake_timeout: float | None = None,
    ssl_shutdown_timeout: float | None = None,
    start_serving: bool = True,
    config: ConnectionConfig | None = None,
) -> asyncio.AbstractServer:
    """``loop.create_server`` in the running loop, over the stack in use; ``host`` None or "": every address it has.

    ``reuse_address`` is on unless False. ``sock``: a bound socket instead of an address.
    """
    loop = asyncio.get_running_loop()
    arguments = tls_arguments(ssl, True, None, ssl_handshake_timeout, ssl_shutdown_timeout)
    sockets: list[Any]
    if sock is not None:
        if host is not None or port is not None:
            raise ValueError("host/port and sock can not be specified at the same time")
        sockets = [sock]
    elif host is None and port is None:
        raise ValueError("Neither host/port nor sock were specified")
    else:
        hosts = [host or None] if host is None or isinstance(host, str) else list(host)
        found = [await resolve(loop, name, port, family, 0, flags) for name in hosts]
        infos = list(dict.fromkeys(itertools.chain.from_iterable(found)))
        sockets = _bind_all(current_stack(), infos, reuse_address, reuse_port, keep_alive, config)
    if isinstance(sockets[0], std.socket):
        return await aio_system.create_server(
            loop, protocol_factory, sockets, backlog, ssl, ssl_handshake_timeout, ssl_shutdown_timeout, start_serving
        )
    for one in sockets:
        one.setblocking(False)
        one.setsockopt(std.IPPROTO_TCP, std.TCP_NODELAY, 1)  # what it accepts inherits it
    server = Server(loop, sockets, protocol_factory, arguments, backlog)
    if start_serving:
        server._start()
    return server


async def connected_socket(
    host: str | None,
    port: int | str | None,
    *,
    family: int = 0,
    proto: int = 0,
    flags: int = 0,
    local_addr: tuple[str, int] | None = None,
    happy_eyeballs_delay: float | None = None,
    interleave: int | None = None,
    all_errors: bool = False,
    config: ConnectionConfig | None = None,
) -> AnySocket:
    """A non-blocking socket of the stack in use, connected; the arguments are those of ``create_connection``."""
    loop = asyncio.get_running_loop()
    if happy_eyeballs_delay is not None and interleave is None:
        interleave = 1
    infos = await resolve(loop, host, port, family, proto, flags)
    if interleave:
        infos = _interleave(infos, interleave)
    local = None
    if local_addr is not None:
        local = await resolve(loop, *local_addr, family, proto, flags)
    connect = partial(_connect, loop, current_stack(), local=local, config=config)
    return cast("AnySocket", await _connect_first(loop, infos, connect, happy_eyeballs_delay, all_errors))


# --- inside -------------------------------------------------------------------------------------------------------------
async def resolve(
    loop: asyncio.AbstractEventLoop, host: str | None, port: int | str | None, family: int, proto: int, flags: int
) -> list[_AddressInfo]:
    """Addresses of a name; an address needs no thread."""
    if isinstance(port, int) and host is not None:
        for kind in (std.AF_INET, std.AF_INET6):
            if family not in (std.AF_UNSPEC, kind):
                continue
            try:
                std.inet_pton(kind, host)
            except OSError:
                continue
            end = (host, port) if kind == std.AF_INET else (host, port, 0, 0)
            return [(kind, std.SOCK_STREAM, proto, "", end)]
    found = await loop.getaddrinfo(host, port, family=family, type=std.SOCK_STREAM, proto=proto, flags=flags)
    if not found:
        raise OSError(f"getaddrinfo({host!r}) returned empty list")
    return cast("list[_AddressInfo]", found)


def _interleave(infos: list[_AddressInfo], first_count: int) -> list[_AddressInfo]:
    """RFC 8305 §4: addresses of the families in turn, the first family's ``first_count`` ahead."""
    families: dict[int, list[_AddressInfo]] = {}
    for info in infos:
        families.setdefault(info[0], []).append(info)
    queues = list(families.values())
    head = queues[0][: first_count - 1]
    del queues[0][: first_count - 1]
    turns = itertools.zip_longest(*queues)
    return head + [info for turn in turns for info in turn if info is not None]


async def _connect_first(
    loop: asyncio.AbstractEventLoop,
    infos: list[_AddressInfo],
    connect: Callable[[_AddressInfo], Awaitable[Any]],
    delay: float | None,
    all_errors: bool,
) -> Any:
    failures: list[Exception] = []
    try:
        if delay is None:
            for info in infos:
                try:
                    return await connect(info)
                except OSError as error:
                    failures.append(error)
        else:
            winner, _, raised = await staggered.staggered_race(
                [partial(connect, info) for info in infos], delay, loop=loop
            )
            if winner is not None:
                return winner
            failures.extend(error for error in raised if isinstance(error, Exception))
        if all_errors:
            raise ExceptionGroup("create_connection failed", failures)
        if len(failures) == 1 or all(str(error) == str(failures[0]) for error in failures):
            raise failures[0]
        raise OSError(
            getattr(failures[0], "errno", None) or errno.EIO, f"Multiple exceptions: {', '.join(map(str, failures))}"
        )
    finally:
        failures.clear()  # a traceback that refers to itself would keep the sockets


async def _connect(
    loop: asyncio.AbstractEventLoop,
    stack: Stack,
    info: _AddressInfo,
    *,
    local: list[_AddressInfo] | None,
    config: ConnectionConfig | None,
) -> AnySocket:
    family, kind, proto, _, address = info
    # A program that calls this knows of MPTCP: a local address only restricts it (RFC 6897 §5.3.2).
    sock = stack.socket(family, kind, proto if proto not in (0, std.IPPROTO_TCP) else IPPROTO_MPTCP, config=config)
    try:
        sock.setblocking(False)
        sock.setsockopt(std.IPPROTO_TCP, std.TCP_NODELAY, 1)
        if local is not None:
            ends = [end for kind_of, *_, end in local if kind_of == family]
            if not ends:
                raise OSError(errno.EADDRNOTAVAIL, f"no matching local address with family={family} found")
            sock.bind(ends[0])
        if isinstance(sock, std.socket):
            await loop.sock_connect(sock, address)
            aio_system.note_connected(sock)
        else:
            await connect(sock, address)
    except BaseException:
        sock.close()
        raise
    return sock


async def connect(sock: Socket, address: tuple[Any, ...]) -> None:
    """``sock.connect(address)`` of a non-blocking socket, waiting in the running loop. The host is no name."""
    try:
        sock.connect(address)
    except BlockingIOError:
        await until(sock._pump, sock, sock._is_connected)
        with sock._pump.lock:
            sock._check_open()
            sock._finish_connect()


def _bind_all(
    stack: Stack,
    infos: list[_AddressInfo],
    reuse_address: bool | None,
    reuse_port: bool | None,
    keep_alive: bool | None,
    config: ConnectionConfig | None,
) -> list[Any]:
    sockets: list[Any] = []
    port = 0
    try:
        for family, kind, _, _, address in infos:
            sock = stack.socket(family, kind, IPPROTO_MPTCP, config=config)
            sockets.append(sock)
            if reuse_address is not False:
                sock.setsockopt(std.SOL_SOCKET, std.SO_REUSEADDR, 1)
            if reuse_port:
                sock.setsockopt(std.SOL_SOCKET, std.SO_REUSEPORT, 1)
            if keep_alive:
                sock.setsockopt(std.SOL_SOCKET, std.SO_KEEPALIVE, 1)
            if family == std.AF_INET6:
                sock.setsockopt(std.IPPROTO_IPV6, std.IPV6_V6ONLY, 1)
            if not address[1] and port:
                address = (address[0], port, *address[2:])  # one server, one port, whatever the family
            try:
                sock.bind(address)
            except OSError as error:
                text = f"error while attempting to bind on address {address!r}: {str(error.strerror).lower()}"
                raise OSError(error.errno, text) from error
            port = port or sock.getsockname()[1]
    except BaseException:
        for sock in sockets:
            sock.close()
        raise
    return sockets


def _is_of_the_system(sock: object) -> bool:
    """Whether a connection is asyncio's own business: its socket, or those of the stack in use, are the system's."""
    return isinstance(sock, std.socket) if sock is not None else current_stack().has_descriptors


def _stream(
    loop: asyncio.AbstractEventLoop, limit: int, of_the_system: bool, client_connected: ClientConnected | None = None
) -> tuple[asyncio.StreamReader, asyncio.StreamReaderProtocol]:
    if of_the_system:
        system_reader = asyncio.StreamReader(limit=limit, loop=loop)
        return system_reader, asyncio.StreamReaderProtocol(system_reader, client_connected, loop=loop)
    reader = StreamReader(limit=limit, loop=loop)
    return reader, StreamProtocol(reader, loop, client_connected)
