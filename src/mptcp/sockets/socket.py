"""A socket of this package: the standard library's names and behaviour, and what a connection over several paths adds."""

from __future__ import annotations

import errno
import socket as std
import warnings
import weakref
from typing import IO, TYPE_CHECKING, Any, cast

from mptcp.core.units import SECOND
from mptcp.errors import MptcpError, NotSupportedError, to_errno
from mptcp.info import ConnectionInfo, Endpoint
from mptcp.sockets import options as opt
from mptcp.sockets.address import SocketAddress, any_endpoint, from_endpoint, os_error, to_endpoint
from mptcp.sockets.advanced import AdvancedSettings
from mptcp.sockets.legacy import MultipathSettings
from mptcp.sockets.options import SocketOptions
from mptcp.sockets.privileges import check_option
from mptcp.sockets.state import CLOSED, CONNECTING
from mptcp.sockets.tcp_info import pack_tcp_info
from mptcp.sockets.user_strategies import AdvancedApi

if TYPE_CHECKING:
    from typing import Self

    from typing_extensions import Buffer

    from mptcp.core.multipath.connection import Connection

#: The longest queue of connections that wait for ``accept``.
MAX_BACKLOG = 4096

#: What of a socket lives on after ``detach``.
_HERITAGE = (
    "_advanced", "_options", "_timeout", "_connection", "_listeners", "_accepted", "_deferred", "_bound", "_notifier", "_connecting",
    "_error_taken", "_read_shut", "_settings", "_stream", "_write_starved",
)  # fmt: skip


class Socket(AdvancedApi):
    """Made by a stack (``stack.socket()``), ``create_connection`` or ``create_server``.

    Safe to use from several threads: one may read while another writes, and ``close`` wakes both. ``fileno()`` serves
    select, poll and epoll; the octets themselves do not go through that descriptor.
    """

    __slots__ = ()

    def adopt(
        self, connection: Connection, options: SocketOptions, settings: MultipathSettings, advanced: AdvancedSettings
    ) -> None:
        """With the lock: becomes the socket of a connection that was accepted."""
        connection.owner = weakref.ref(self)
        self._connection = connection
        self._options = options
        self._settings = settings
        self._advanced = advanced

    # --- identity ----------------------------------------------------------------------------------------------------
    @property
    def family(self) -> std.AddressFamily:
        return std.AddressFamily(self._family)

    @property
    def type(self) -> std.SocketKind:
        return std.SOCK_STREAM

    @property
    def proto(self) -> int:
        """IPPROTO_TCP: programs (asyncio, for one) look at it to know that TCP's options exist."""
        return std.IPPROTO_TCP

    def __repr__(self) -> str:
        state = "closed" if self._closed else "listening" if self._listeners else "unconnected"
        connection = self._connection
        if connection is not None and not self._closed:
            kind = "multipath" if connection.is_multipath else "single path"
            state = f"{connection.state.name.lower()} {connection.local} > {connection.remote} ({kind})"
        return f"<mptcp.Socket {state}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if not self._closed:
            self.close()

    def __getstate__(self) -> object:
        raise TypeError(f"cannot pickle {self.__class__.__name__!r} object")

    def __del__(self) -> None:
        if getattr(self, "_closed", True):
            return
        if self._connection is not None or self._listeners is not None:
            warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)
        self._close_later()

    # --- connecting --------------------------------------------------------------------------------------------------
    def connect(self, address: SocketAddress) -> None:
        remote = to_endpoint(self._family, address, "connect")
        with self._pump.lock:
            self._connect(remote)

    def connect_ex(self, address: SocketAddress) -> int:
        """As ``connect``, but returns an errno (0: connected) where the system would."""
        remote = to_endpoint(self._family, address, "connect_ex")
        try:
            with self._pump.lock:
                self._connect(remote)
        except TimeoutError as error:
            return error.errno or errno.EAGAIN
        except OSError as error:
            return error.errno or errno.EIO
        return 0

    def _connect(self, remote: Endpoint) -> None:
        self._check_open()
        if self._listeners is not None:
            raise os_error(errno.EISCONN)
        connection = self._connection
        started = False
        if connection is None or (connection.state is CLOSED and not self._connecting):
            if self._family == std.AF_INET6 and self._options.v6_only and remote.family == 4:
                raise os_error(errno.ENETUNREACH)
            self._forget_connection()
            pump = self._pump
            now = pump.clock()
            try:
                connection = pump.host.connect(
                    remote, now, local=self._connect_local(remote), options=self._config_for(remote)
                )
            except MptcpError as error:
                raise os_error(to_errno(error), error) from error
            connection.owner = weakref.ref(self)
            self._connection = connection
            self._connecting = started = True
            self._show_events()
            pump.flush()
            self._show()
        elif not self._connecting:
            raise os_error(errno.EISCONN)
        if connection.state is CONNECTING:
            if self._timeout == 0:
                raise os_error(errno.EINPROGRESS if started else errno.EALREADY)
            self._await(self._is_connected, 0, self._options.send_timeout_us)
        self._finish_connect()

    def _forget_connection(self) -> None:
        if self._connection is not None:
            self._connection.owner = None
            self._connection = None
        self._connecting = self._error_taken = self._read_shut = self._write_starved = False

    def bind(self, address: SocketAddress) -> None:
        local = to_endpoint(self._family, address, "bind")
        with self._pump.lock:
            self._bind(local)

    def _bind(self, local: Endpoint) -> None:
        self._check_open()
        if self._bound is not None or self._connection is not None or self._listeners is not None:
            raise os_error(errno.EINVAL)
        self._bound = self._stack.ports.reserve(local, self._options.reuse_address)

    def listen(self, backlog: int = 128) -> None:
        """A second call changes nothing but is no error."""
        with self._pump.lock:
            self._check_open()
            if self._connection is not None:
                raise os_error(errno.EINVAL)
            if self._listeners is not None:
                return
            if self._bound is None:
                self._bound = self._stack.ports.reserve(any_endpoint(self._family), False)
            config = self._effective_config()
            pump = self._pump
            now = pump.clock()
            listeners = []
            try:
                for endpoint in self._listen_endpoints():
                    listener = pump.host.listen(
                        endpoint, now, backlog=min(max(backlog, 1), MAX_BACKLOG), options=config
                    )
                    listener.owner = weakref.ref(self)
                    listeners.append(listener)
            except (MptcpError, OSError) as error:
                for listener in listeners:
                    pump.host.close_listener(listener, now)
                raise os_error(to_errno(error), error) from error
            self._listeners = listeners
            pump.flush()
            self._changed()

    def accept(self) -> tuple[Socket, SocketAddress]:
        with self._pump.lock:
            self._check_open()
            if self._listeners is None:
                raise os_error(errno.EINVAL)
            if not self._is_acceptable():
                self._await(self._is_acceptable, 0, self._options.receive_timeout_us)
            accepted = self.accept_now()
            if accepted is None:
                raise os_error(errno.EINVAL)  # shut down while we waited
        return accepted, accepted._shown(accepted._the_connection().remote)

    def accept_now(self) -> Socket | None:
        """With the lock: a connection that waits to be accepted, if one does."""
        if not self._is_acceptable():
            return None
        connection, self._accepted = self._accepted, None
        if connection is None:
            return None
        accepted = self._stack.adopt(
            connection, self._family, self._config, self._options, self._settings, self._advanced
        )
        self._show()
        return accepted

    # --- ending ------------------------------------------------------------------------------------------------------
    def shutdown(self, how: int) -> None:
        if how not in (std.SHUT_RD, std.SHUT_WR, std.SHUT_RDWR):
            raise os_error(errno.EINVAL)
        pump = self._pump
        with pump.lock:
            self._check_open()
            if self._listeners is not None and how != std.SHUT_WR:
                self._stop_listening()
                self._changed()
                return
            connection = self._connection
            if connection is None or connection.state in (CONNECTING, CLOSED):
                raise os_error(errno.ENOTCONN)
            now = pump.clock()
            if how != std.SHUT_WR:
                self._read_shut = True
                connection.shutdown_read(now)
            if how != std.SHUT_RD:
                connection.shutdown_write(now)
            pump.flush()
            self._changed()

    def close(self) -> None:
        """Ends it; threads that wait in it get EBADF. What was written is still delivered."""
        if self._pump.forked:
            self._closed = True
            return
        if self._closed:
            return
        if self._io_refs > 0:
            self._close_wanted = True
            return
        if self._pump.is_held():
            # The collector has found a file over this socket while this thread was at work in the stack.
            self._close_later()
            return
        self._real_close()

    def _decref_socketios(self) -> None:
        """Called by ``socket.SocketIO`` when a file made by ``makefile`` is closed."""
        if self._io_refs > 0:
            self._io_refs -= 1
        if self._close_wanted and self._io_refs == 0:
            self.close()

    def _close_later(self) -> None:
        """Without the lock: whoever drives next closes what this socket has held."""
        self._closed = True
        held = (connection for connection, _ in self._deferred or ())
        left = [i for i in (self._connection, self._accepted, *(self._listeners or ()), *held) if i is not None]
        self._pump.abandon_later(left)
        if self._bound is not None:
            self._stack.ports.release_later(self._bound)
        if self._notifier is not None:
            self._notifier.close()

    def _real_close(self) -> None:
        pump = self._pump
        with pump.lock:
            if self._closed:
                return
            self._closed = True
            connection = self._connection
            if not pump.closed:
                if self._listeners is not None:
                    self._stop_listening()
                self._release_port()
                if connection is not None:
                    connection.owner = None
                    self._close_connection(connection)
                pump.flush()
            self._changed()
            notifier, self._notifier = self._notifier, None
        if notifier is not None:
            notifier.close()

    def _close_connection(self, connection: Connection) -> None:
        pump = self._pump
        now = pump.clock()
        lingers, seconds = self._options.linger
        if lingers and not seconds:
            connection.abort(now)
            return
        connection.close(now)
        if lingers and self._timeout != 0:
            pump.flush()
            pump.wait(self, lambda: connection.state is CLOSED or not connection.buffered_bytes, now + seconds * SECOND)

    def _stop_listening(self) -> None:
        now = self._pump.clock()
        for listener in self._listeners or ():
            listener.owner = None
            self._pump.host.close_listener(listener, now)
        if self._accepted is not None:
            self._accepted.abort(now)
            self._accepted = None
        for connection, _ in self._deferred or ():
            connection.owner = None
            connection.abort(now)
        self._deferred = None
        self._listeners = None
        self._pump.flush()

    def _release_port(self) -> None:
        if self._bound is not None:
            self._stack.ports.release(self._bound)
            self._bound = None

    def detach(self) -> int:
        """Gives the connection up without closing it: ``stack.socket(fileno=...)`` takes it from the descriptor."""
        fd = self.fileno()
        with self._pump.lock:
            self._check_open()
            heir = type(self)(self._stack, self._family, self._proto, self._config)
            for name in _HERITAGE:
                setattr(heir, name, getattr(self, name))
            for item in (self._connection, *(self._listeners or ())):
                if item is not None:
                    item.owner = weakref.ref(heir)
            self._stack.give_up(heir, fd)
            self._connection = self._listeners = self._accepted = self._notifier = self._bound = None
            self._closed = True
            self._changed()
        return fd

    # --- names -------------------------------------------------------------------------------------------------------
    def _shown(self, endpoint: Endpoint) -> SocketAddress:
        """An endpoint of the connection as the program sees it."""
        return from_endpoint(self._family, endpoint)

    def getsockname(self) -> SocketAddress:
        with self._pump.lock:
            self._check_open()
            connection = self._connection
            local = connection.local if connection is not None else self._bound
            return self._shown(local or any_endpoint(self._family))

    def getpeername(self) -> SocketAddress:
        with self._pump.lock:
            self._check_open()
            connection = self._connection
            if connection is None or connection.state in (CONNECTING, CLOSED):
                raise os_error(errno.ENOTCONN)
            return self._shown(connection.remote)

    # --- options -----------------------------------------------------------------------------------------------------
    def setsockopt(self, level: int, optname: int, value: int | Buffer | None, optlen: int | None = None) -> None:
        if value is None:
            raise os_error(errno.EFAULT)
        plain = value if isinstance(value, int) else bytes(memoryview(value))
        level, optname = check_option(level, optname)
        with self._pump.lock:
            self._check_open()
            if self._set_extended(level, optname, plain):
                return
            opt.check_family(self._family, level)
            if (level, optname) == (std.IPPROTO_IPV6, std.IPV6_V6ONLY) and (self._bound or self._connection):
                raise os_error(errno.EINVAL)
            changes = opt.socket_changes(level, optname, plain)
            if changes is not None:
                self._options = self._options.changed(**changes)
                self._show()
                return
            changes = opt.tcp_changes(level, optname, plain)
            if changes is None:
                raise os_error(errno.ENOPROTOOPT)
            self._config = self._config.changed(tcp=self._config.tcp.changed(**changes))
            self._update_listeners()
            connection = self._connection
            if connection is not None:
                try:
                    for name, new in changes.items():
                        connection.set_tcp_option(name, new)
                except MptcpError as error:
                    raise os_error(to_errno(error), error) from error
                self._adapt_to_options()
                self._pump.flush()

    def getsockopt(self, level: int, optname: int, buflen: int | Buffer = 0) -> int | bytes:
        """An integer, or up to ``buflen`` octets of the structure (of the integer, where it is one).

        Options whose structure is input and output take a buffer that holds it instead of its size; one that can be
        written to has the result in it afterwards, as in C.
        """
        level, optname = check_option(level, optname)

        def ask(argument: int | bytes) -> int | bytes | None:
            with self._pump.lock:
                self._check_open()
                opt.check_family(self._family, level, errno.EOPNOTSUPP)
                value = self._get_extended(level, optname, argument)
                return self._option(level, optname) if value is None else value

        return opt.answer(buflen, ask)

    def _option(self, level: int, optname: int) -> int | bytes | None:
        connection = self._connection
        match level, optname:
            case std.SOL_SOCKET, std.SO_ERROR:
                if self._connecting and connection is not None and connection.state is CLOSED:
                    error = self._take_error()
                    self._forget_connection()
                    return to_errno(error) if error is not None else 0
                error = self._take_error()
                return to_errno(error) if error is not None else 0
            case std.SOL_SOCKET, std.SO_TYPE:
                return int(std.SOCK_STREAM)
            case std.SOL_SOCKET, std.SO_PROTOCOL:
                return opt.IPPROTO_MPTCP if self._effective_config().multipath else int(std.IPPROTO_TCP)
            case std.SOL_SOCKET, std.SO_DOMAIN:
                return self._family
            case std.SOL_SOCKET, std.SO_ACCEPTCONN:
                return int(self._listeners is not None)
            case std.IPPROTO_TCP, std.TCP_INFO:
                return pack_tcp_info(connection, self._listeners is not None)
            case std.IPPROTO_TCP, opt.TCP_IS_MPTCP:
                return int(connection.is_multipath if connection is not None else self._effective_config().multipath)
            case std.IPPROTO_TCP, std.TCP_MAXSEG if connection is not None and connection.state is not CONNECTING:
                subflows = connection.subflows()
                return subflows[0].mss_bytes if subflows else self._config.tcp.max_segment_bytes
        value = opt.socket_value(level, optname, self._options)
        return value if value is not None else opt.tcp_value(level, optname, self._config.tcp)

    # --- files -------------------------------------------------------------------------------------------------------
    def makefile(
        self,
        mode: str = "r",
        buffering: int | None = None,
        *,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> IO[Any]:
        """A file over this socket, as the standard library's sockets make it (and by the same code)."""
        make: Any = std.socket.makefile
        return cast(IO[Any], make(self, mode, buffering, encoding=encoding, errors=errors, newline=newline))

    def get_inheritable(self) -> bool:
        return False

    def set_inheritable(self, inheritable: bool) -> None:
        """A connection in this process cannot be inherited."""
        if inheritable:
            raise NotSupportedError("a connection of this stack lives in this process")

    # --- several paths -----------------------------------------------------------------------------------------------
    @property
    def is_multipath(self) -> bool:
        """Whether the connection speaks MPTCP (not before it is established, not after fallback)."""
        with self._pump.lock:
            return self._connection is not None and self._connection.is_multipath

    @property
    def fallback_reason(self) -> str:
        """Why it does not speak MPTCP; "" if it does, or is not connected."""
        with self._pump.lock:
            return self._connection.fallback_reason if self._connection is not None else ""

    def info(self) -> ConnectionInfo:
        with self._pump.lock:
            return self._the_connection().info()
