"""The socket of the kernel's stack: a ``socket.socket`` with the interface of this package's own.

Data goes the way of the standard library: ``send``, ``recv`` and all their kin are its C methods. What is added decides
before a connection begins whether it is MPTCP or TCP, and reads and steers it afterwards.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket as std
import struct
import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from mptcp.core.multipath.config import ConnectionConfig
from mptcp.errors import NotSupportedError, PathError
from mptcp.forking import freed_in_child
from mptcp.info import ConnectionInfo, Endpoint, Support
from mptcp.kernel.connection import KernelConnection
from mptcp.kernel.managing import ManagedConnection
from mptcp.sockets import options as opt
from mptcp.sockets.address import SocketAddress, from_endpoint, os_error, to_endpoint
from mptcp.sockets.advanced import UNTOLD, AdvancedSettings
from mptcp.sockets.events import EventStream
from mptcp.sockets.kernel_events import FailedAttempt, recvmsg_with_events
from mptcp.sockets.kernel_options import connect_limit_s
from mptcp.sockets.kernel_sockopt import KernelOptions
from mptcp.sockets.legacy import AWARE_SETTINGS, DEFAULT_SETTINGS, MultipathSettings
from mptcp.sockets.supported import refused_option
from mptcp.sockets.syn_limit import SynLimit

if TYPE_CHECKING:
    from typing import Self

    from mptcp.sockets.kernel import KernelStack

#: ``struct linger``: close with a reset.
_RESET = struct.pack("ii", 1, 0)

#: Errors of a connect that has not begun.
_NOT_TRIED = (errno.EISCONN, errno.EALREADY, errno.EBADF, errno.EINVAL, errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)

#: What else a new descriptor needs to be told again; these the kernel remembers for the socket alone.
_STATE = (
    "_accepted", "_advanced", "_allowed", "_bound", "_config", "_connection", "_disabled", "_failed", "_futures",
    "_kept", "_leaving", "_limit", "_listening", "_lock", "_managed", "_news", "_only_tcp", "_options", "_pending",
    "_pid", "_remotes", "_settings", "_spent", "_stack", "_stream",
)  # fmt: skip


class KernelSocket(KernelOptions, std.socket):
    """Made by ``KernelStack.socket``, ``create_connection``, ``create_server`` or ``accept``; or as ``socket.socket`` is.

    ``proto`` reads as IPPROTO_TCP, so that asyncio and others know it for what it is to them; ``SO_PROTOCOL`` tells which
    of the two the kernel has.
    """

    __slots__ = _STATE

    def __init__(
        self,
        family: int = -1,
        type: int = -1,  # noqa: A002 the standard library's name
        proto: int = -1,
        fileno: int | None = None,
        *,
        stack: KernelStack | None = None,
        config: ConnectionConfig | None = None,
    ) -> None:
        if stack is None:
            from mptcp.sockets.kernel import default_stack

            stack = default_stack()
        self._stack = stack
        self._lock = freed_in_child(threading.RLock())
        self._news = threading.Condition(self._lock)
        self._managed: ManagedConnection | None = None
        self._leaving: list[bytes] = []
        self._allowed: tuple[bytes, ...] | None = None
        self._futures: list[asyncio.Future[None]] = []
        self._config = config or stack.config
        self._settings: MultipathSettings = DEFAULT_SETTINGS
        self._advanced: AdvancedSettings = UNTOLD
        self._stream: weakref.ref[EventStream] | None = None
        self._connection: KernelConnection | None = None
        self._remotes: tuple[Endpoint, ...] = ()
        self._bound: Endpoint | None = None
        self._listening = False
        self._pid = os.getpid()  # of who has made the connection's object
        self._accepted = False  # it came from a listening socket
        self._spent = False  # a connect has failed
        self._failed: FailedAttempt | None = None
        self._pending = False  # a connect that does not block has begun
        self._limit: SynLimit | None = None  # of a connect, if TCP_SYNCNT was set
        self._only_tcp = ""  # what the program has asked for that MPTCP has not
        self._disabled = ""  # why the descriptor is TCP
        self._kept: dict[tuple[int, int], int | bytes] = {}  # options to set again on another descriptor
        self._options: dict[tuple[int, int], int] = {}  # options that only this class knows
        if fileno is not None:
            super().__init__(family, type, proto, fileno)
            return
        if proto == opt.IPPROTO_MPTCP or config is not None:
            self._settings = AWARE_SETTINGS
        family = std.AF_INET if family == -1 else family
        kind = std.SOCK_STREAM if type == -1 else type
        effective = self._effective_config()
        if effective.multipath:
            try:
                with stack.namespace.entered():
                    super().__init__(family, kind, opt.IPPROTO_MPTCP)
            except OSError as error:
                if error.errno not in (errno.ENOPROTOOPT, errno.EPROTONOSUPPORT, errno.EINVAL):
                    raise
                self._disabled = stack.multipath.reason or f"the kernel made no MPTCP socket: {error.strerror}"
        else:
            self._disabled = effective.disabled_reason or "the configuration turns MPTCP off"
        if self._disabled:
            with stack.namespace.entered():
                super().__init__(family, kind, std.IPPROTO_TCP)
        for level, option, value in opt.differences(self._config.tcp):
            self.setsockopt(level, option, value)

    # --- identity ----------------------------------------------------------------------------------------------------
    @property
    def proto(self) -> int:
        """IPPROTO_TCP: programs (asyncio, for one) look at it to know that TCP's options exist."""
        return std.IPPROTO_TCP

    def __repr__(self) -> str:
        text = super().__repr__()
        kind = "closed" if self.fileno() < 0 else "MPTCP" if self._is_mptcp_descriptor() else "TCP"
        return text.replace("proto=6", f"proto=6 ({kind})")

    # --- connecting --------------------------------------------------------------------------------------------------
    def connect(self, address: Any) -> None:
        number = self._begin_connect(address, super().connect)
        if number:
            raise os_error(number)

    def connect_ex(self, address: Any) -> int:
        try:
            return self._begin_connect(address, super().connect_ex)
        except OSError as error:
            return error.errno or errno.EIO

    def _begin_connect(self, address: Any, connect: Callable[[Any], int | None]) -> int:
        """By ``socket.socket``'s connect or connect_ex: 0 or the number of an error, as far as it is not raised."""
        if self._take_expiry():
            return errno.ETIMEDOUT
        begun = self._pending
        address = self._prepare_connect(address)
        self._stack.note(self)
        if not begun:
            self._limit_attempt()
        try:
            number = connect(address) or 0
        except BlockingIOError:
            self._pending = True
            raise
        except OSError as error:
            if self._take_expiry():
                return errno.ETIMEDOUT
            self._attempt_failed(error.errno or errno.ETIMEDOUT)
            raise
        if self._take_expiry():
            return errno.ETIMEDOUT
        if number in (errno.EINPROGRESS, errno.EAGAIN):
            self._pending = True
        elif number:
            self._attempt_failed(number)
        else:
            self.note_connected()
        return number

    def _attempt_failed(self, number: int) -> None:
        if number not in _NOT_TRIED:
            self._spent, self._pending, self._limit = True, False, None
            self._note_failure(number)

    def is_trying(self, limit: SynLimit) -> bool:
        """Whether the connect of that limit has not come to an end that is known here."""
        return self._limit is limit and self.fileno() >= 0

    def _limit_attempt(self) -> None:
        """Before a connect begins."""
        retries = self._options.get((std.IPPROTO_TCP, std.TCP_SYNCNT), 0)
        if retries and self._is_mptcp_descriptor():
            self._limit = SynLimit(self, self._stack.monitor, connect_limit_s(retries))

    def _take_expiry(self) -> bool:
        """Whether TCP_SYNCNT has ended the attempt; told once, as SO_ERROR is."""
        expired = self._limit is not None and self._limit.expired
        if expired:
            self._attempt_failed(errno.ETIMEDOUT)
        return expired

    def note_connected(self) -> None:
        """A connect has succeeded; one that did not block, of this or another part of the program."""
        self._pending, self._limit = False, None
        if self._stream is not None or self._settings.events or self.wants_manager:
            self._begin_connection()

    def _prepare_connect(self, address: Any) -> Any:
        """Before a connect that begins: MPTCP or TCP, and from where. The address, with names looked up."""
        if self._pending or self._listening:
            return address
        if self._is_connected():
            raise os_error(errno.EISCONN)
        remote = to_endpoint(self.family, address, "connect")
        if _is_name(address):
            address = from_endpoint(self.family, remote)
        with self.event_lock:
            self._adopt_profile(remote)
            config = self._effective_config(remote)
            self._check_restriction(config)
            if self._spent:
                # Linux: an MPTCP socket whose connect has failed cannot connect again, as TCP's can.
                self._replace(opt.IPPROTO_MPTCP if config.multipath else std.IPPROTO_TCP)
                self._spent = False
            self._become(config.multipath, config.disabled_reason)
            local = self._connect_local(remote, config)
            if local is not None:
                super().bind(from_endpoint(self.family, local))
            self._stack.prepare()
        return address

    def _connect_local(self, remote: Endpoint, config: ConnectionConfig) -> Endpoint | None:
        """Where the connection is bound to; None: it is already, or the kernel chooses."""
        bound = self._bound
        if bound is not None and not bound.is_unspecified:
            return None
        port = bound.port if bound is not None else 0
        named = config.local_addresses
        if named is None and self._settings.device:
            named = tuple(self._device_addresses())
        if named is None:
            if not self._settings.excluded:
                return self._stack.preferred_local(remote) if bound is None else None
            named = tuple(Endpoint(a) for a in self._stack.local_addresses() if a not in self._settings.excluded)
        for endpoint in named:
            if len(endpoint.address) == len(remote.address):
                if bound is not None and port:
                    break  # on the wildcard with a port: the kernel takes the route's address
                return Endpoint(endpoint.address, endpoint.port)
        else:
            raise PathError(f"no address named could reach {remote.host}", errno.EADDRNOTAVAIL)
        return None

    def bind(self, address: Any) -> None:
        endpoint = to_endpoint(self.family, address, "bind")
        with self.event_lock:
            before, self._bound = self._bound, endpoint
            try:
                if before is None and not self._has_connection():
                    # A socket that turns TCP by this does so while nothing is bound yet.
                    config = self._effective_config()
                    self._become(config.multipath, config.disabled_reason)
                super().bind(address)
                self._bound = _endpoint_of(super().getsockname())
            except BaseException:
                self._bound = before
                raise

    def listen(self, backlog: int = 128) -> None:
        with self.event_lock:
            if not self._listening:
                config = self._effective_config()
                self._check_restriction(config, listening=True)
                self._become(config.multipath, config.disabled_reason)
                self._bind_listener(config)
                self._adopt_profile(None)
            super().listen(backlog)
            self._listening = True
            self._stack.prepare()

    def _bind_listener(self, config: ConnectionConfig) -> None:
        """To the one address named with ADD, if there is one and the socket is bound to no other."""
        named = self._named(config)
        if not named:
            return
        port = self._bound.port if self._bound is not None else 0
        if len(named) == 1:
            self._move_to(Endpoint(named[0].address, port or named[0].port))

    def _named(self, config: ConnectionConfig) -> list[Endpoint]:
        """Where a listener that is bound to no address is to listen; []: everywhere."""
        bound = self._bound
        if not self._settings.listed or (bound is not None and not bound.is_unspecified):
            return []
        families = (4,) if self.family == std.AF_INET else (4, 6)
        named = [e for e in config.local_addresses or () if e.family in families]
        if not named:
            raise PathError("none of the addresses added is one to listen at", errno.EADDRNOTAVAIL)
        return named

    def accept(self) -> tuple[KernelSocket, Any]:
        """Where several addresses were named with ADD, a connection to another one is reset here: a socket of the kernel
        listens at one address, or at all."""
        named = self._named(self._effective_config())
        while True:
            fd, address = cast(Any, self)._accept()
            sock = self._of_descriptor(self, fd)
            if named and _endpoint_of(sock.getsockname()).address not in {e.address for e in named}:
                sock.setsockopt(std.SOL_SOCKET, std.SO_LINGER, _RESET)
                sock.close()
                continue
            if std.getdefaulttimeout() is None and self.gettimeout():
                sock.setblocking(True)
            return sock, address

    @classmethod
    def _of_descriptor(cls, listener: KernelSocket, fd: int) -> KernelSocket:
        sock = KernelSocket(
            listener.family, listener.type, std.IPPROTO_TCP, fd, stack=listener._stack, config=listener._config
        )
        sock._settings = listener._settings
        sock._advanced = listener._advanced
        sock._disabled = listener._disabled
        sock._options = dict(listener._options)
        sock._bound = listener._bound
        if listener._settings.events:
            sock.__class__ = KernelSocketWithEvents
        sock._accepted = True
        sock._stack.note(sock)
        sock.note_connected()
        return sock

    # --- ending ------------------------------------------------------------------------------------------------------
    def _real_close(self, *args: Any) -> None:
        with self.event_lock:
            self._let_go()
            cast(Any, super())._real_close(*args)
            self.handle_news()

    def detach(self) -> int:
        with self.event_lock:
            self._let_go()
            fd = super().detach()
            self.handle_news()
        return fd

    def _let_go(self) -> None:
        """With the lock: the descriptor is about to be another's."""
        if self._pid == os.getpid():
            self._stop_managing()
        connection, self._connection = self._connection, None
        if self._pid != os.getpid():
            return
        if connection is not None:
            connection.on_news = None
            connection.close()
            if self._stream is not None and (stream := self._stream()) is not None:
                stream.attach(connection)  # what it has told so far can still be read

    def dup(self) -> Self:
        """Another descriptor of the same connection, with the settings of this one."""
        fd = os.dup(self.fileno())
        sock = type(self)(self.family, self.type, std.IPPROTO_TCP, fd, stack=self._stack, config=self._config)
        sock.settimeout(self.gettimeout())
        sock.inherit(self)
        return sock

    def inherit(self, other: KernelSocket) -> None:
        """The settings of ``other``, which has the same descriptor, or had it."""
        for name in _STATE:
            if name not in ("_connection", "_futures", "_leaving", "_lock", "_managed", "_news", "_stream"):
                setattr(self, name, getattr(other, name))

    # --- options -----------------------------------------------------------------------------------------------------
    def _subscribe(self, mask: int) -> None:
        """``recvmsg`` gives events on sockets that ask for them, and on no others."""
        super()._subscribe(mask)
        if type(self) in (KernelSocket, KernelSocketWithEvents):
            self.__class__ = KernelSocketWithEvents if mask else KernelSocket
        elif mask:
            raise NotSupportedError("recvmsg of this socket is not the connection's: use events()")

    # --- several paths -----------------------------------------------------------------------------------------------
    @property
    def is_multipath(self) -> bool:
        """Whether the connection speaks MPTCP (not before it is established, not after fallback)."""
        with self.event_lock:
            connection = self._find_connection()
            return connection is not None and connection.is_multipath

    @property
    def fallback_reason(self) -> str:
        """Why it does not speak MPTCP, as far as that is known; "" if it does, or is not connected."""
        with self.event_lock:
            connection = self._find_connection()
            if connection is None:
                return ""
            return (self._disabled if not connection.is_multipath else "") or connection.fallback_reason

    def supports(self, feature: str) -> Support:
        """As ``KernelStack.supports``, and as far as it depends on this connection."""
        support = self._stack.supports(feature)
        if not support and not refused_option(feature) and not self._is_mptcp_descriptor():
            return Support(True)  # TCP has it
        if support and feature == "segments" and self.family == std.AF_INET:
            return Support(
                False, "Segment Routing is for subflows over IPv6, and this socket has none", "make it AF_INET6"
            )
        with self.event_lock:
            connection = self._find_connection()
            operation = self._stack.operation_of(feature)
            return connection.supports(operation) if support and operation and connection is not None else support

    def info(self) -> ConnectionInfo:
        with self.event_lock:
            info = self._the_connection().info()
            if not info.is_multipath and self._disabled:
                info.fallback_reason = self._disabled
            return info

    # --- inside ------------------------------------------------------------------------------------------------------
    def _check_open(self) -> None:
        if self.fileno() < 0:
            raise os_error(errno.EBADF)

    def _is_aware(self) -> bool:
        return self._settings.aware or bool(self._settings.enabled)

    def _is_mptcp_descriptor(self) -> bool:
        try:
            return bool(super().getsockopt(std.SOL_SOCKET, std.SO_PROTOCOL) == opt.IPPROTO_MPTCP)
        except OSError:
            return False

    def _has_connection(self) -> bool:
        return self._pending or self._find_connection() is not None

    def _find_connection(self) -> KernelConnection | None:
        if self._connection is not None and self._pid != os.getpid():
            # What listens for it is the parent's, descriptors included: it must not be closed here.
            self._connection = self._managed = None
        if self._connection is None and not self._listening and self._is_connected():
            self._begin_connection()
        return self._connection

    def _is_connected(self) -> bool:
        try:
            super().getpeername()
        except OSError:
            return False
        return True

    def look_after(self) -> None:
        """In the monitor's thread: the connection has got a second subflow."""
        with contextlib.suppress(OSError):  # it has just been closed
            self._find_connection()

    def _begin_connection(self) -> None:
        """The descriptor is connected."""
        with self.event_lock:
            if self._connection is None:
                self._pending, self._limit = False, None
                self._pid = os.getpid()
                self._connection = connection = self._stack.open_connection(self.fileno(), self._accepted, self._lock)
                connection.max_subflows = self._most_subflows()
                connection.on_news = _waker(self)
                self._show_events()
                self._start_managing()

    def _become(self, multipath: bool, reason: str) -> None:
        """With the lock, before there is a connection: the descriptor is MPTCP, or TCP for that reason."""
        if multipath and self._only_tcp and not self._is_aware():
            multipath, reason = False, self._only_tcp
        if multipath and not (support := self._stack.multipath):
            multipath, reason = False, support.reason
        if multipath != self._is_mptcp_descriptor():
            self._replace(opt.IPPROTO_MPTCP if multipath else std.IPPROTO_TCP)
        self._disabled = "" if multipath else reason

    def _replace(self, protocol: int) -> None:
        """Another socket under the same descriptor, with the options, the name and the modes of this one."""
        with self._stack.namespace.entered():
            fresh = std.socket(self.family, std.SOCK_STREAM, protocol)
        with fresh:
            kept, imitated = self._set_again(fresh, protocol)
            if self.gettimeout() is not None:
                fresh.setblocking(False)
            name = super().getsockname()
            os.dup2(fresh.fileno(), self.fileno(), self.get_inheritable())
            self._kept, self._options = kept, imitated
        if self._bound is not None and name[1]:
            super().bind(name)

    def _move_to(self, local: Endpoint) -> None:
        """As ``_replace``, with another name."""
        if self._bound is not None:
            self._bound = None
            self._replace(opt.IPPROTO_MPTCP if self._is_mptcp_descriptor() else std.IPPROTO_TCP)
        super().bind(from_endpoint(self.family, local))
        self._bound = local


class KernelSocketWithEvents(KernelSocket):
    """One that has subscribed to events as ancillary data: here, and only here, ``recvmsg`` is not the C method."""

    __slots__ = ()

    def recvmsg(
        self, bufsize: int, ancbufsize: int = 0, flags: int = 0
    ) -> tuple[bytes, list[tuple[int, int, bytes]], int, Any]:
        return recvmsg_with_events(self, super().recvmsg, bufsize, ancbufsize, flags)


def _waker(sock: KernelSocket) -> Callable[[], None]:
    """Tells ``sock`` of events, as long as it is there."""
    ref = weakref.ref(sock)

    def wake() -> None:
        alive = ref()
        if alive is not None:
            alive.handle_news()

    return wake


def _is_name(address: Any) -> bool:
    """Whether the host of a socket address has to be looked up."""
    try:
        std.inet_pton(std.AF_INET6 if ":" in address[0] else std.AF_INET, address[0].partition("%")[0])
    except (OSError, TypeError, AttributeError, ValueError):
        return bool(address[0])
    return False


def _endpoint_of(name: SocketAddress) -> Endpoint:
    return to_endpoint(std.AF_INET6 if ":" in name[0] else std.AF_INET, name[:2], "getsockname")
