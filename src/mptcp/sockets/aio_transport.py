"""asyncio's transport over a socket of this package: what ``loop.create_connection`` gives a protocol to write to."""

from __future__ import annotations

import asyncio
import errno
import warnings
from asyncio import transports
from asyncio.constants import _SendfileMode
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from mptcp.core.units import KIB
from mptcp.errors import to_errno
from mptcp.runtime.aio import LoopDriver, LoopWaiter
from mptcp.sockets.address import os_error
from mptcp.sockets.aio_streams import StreamProtocol, StreamReader
from mptcp.sockets.state import CLOSED

if TYPE_CHECKING:
    from mptcp.sockets.aio_server import Server
    from mptcp.sockets.socket import Socket

#: Octets handed to a protocol in one call, as asyncio's own transports do.
MAX_READ_BYTES = 256 * KIB

#: Writes to a transport that is closed or broken, after which each further one is worth a warning (asyncio's number).
WARN_AFTER_WRITES = 5


class _Ear(LoopWaiter):
    """Tells a transport of its socket's news."""

    __slots__ = ("transport",)

    def __init__(self, driver: LoopDriver, transport: StreamTransport) -> None:
        super().__init__(driver)
        self.transport = transport

    def on_ready(self) -> None:
        self.transport._on_ready()


class StreamTransport(transports._FlowControlMixin):  # ``loop.sendfile`` asks for this very base
    """A connected socket of this package and a protocol.

    What the connection has no room for is kept here, between the water marks (``set_write_buffer_limits``, 64 KiB and
    16 KiB unless set); SO_SNDBUF comes on top. ``get_extra_info``: "socket" (the ``mptcp.Socket``), "sockname",
    "peername". ``abort`` resets the connection (MP_FASTCLOSE or RST): what it had not sent is lost.
    """

    _sendfile_compatible = _SendfileMode.FALLBACK
    _start_tls_compatible = True

    if TYPE_CHECKING:  # the base has them

        def _maybe_pause_protocol(self) -> None: ...

        def _maybe_resume_protocol(self) -> None: ...

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: Socket,
        protocol: asyncio.BaseProtocol,
        *,
        waiter: asyncio.Future[None] | None = None,
        server: Server | None = None,
    ) -> None:
        """In ``loop``. ``waiter`` ends when the protocol has been told of the connection."""
        peer = sock.getpeername()
        super().__init__({"socket": sock, "sockname": sock.getsockname(), "peername": peer}, loop)
        self._loop: asyncio.AbstractEventLoop = loop
        self._sock: Socket | None = sock
        self._pump = sock._pump
        connection = sock._connection
        if connection is None:
            raise os_error(errno.ENOTCONN)
        self._connection = connection
        self._driver = self._pump.loop_driver(loop)
        self._ear = _Ear(self._driver, self)
        self._server = server
        self._buffer: deque[bytes | memoryview] = deque()
        self._buffered_bytes = 0
        self._wake_room = connection.config.tcp.send_buffer_bytes // 3  # not woken for every acknowledged segment
        self._is_reading = False
        self._paused = False
        self._eof_received = False
        self._eof_wanted = False  # ``write_eof`` was called
        self._closing = False
        self._lost = 0  # the connection is lost to the protocol; then, writes that came later
        self._aborted = False
        self._reader: StreamReader | None = None  # takes data itself
        self.set_protocol(protocol)
        if server is not None:
            server._attach(self)
        loop.call_soon(self._begin, waiter)

    def __repr__(self) -> str:
        state = "closed" if self._sock is None else "closing" if self._closing else "open"
        return f"<mptcp transport {state} {self._connection.local} > {self._connection.remote}>"

    def __del__(self) -> None:
        if getattr(self, "_sock", None) is not None:
            warnings.warn(f"unclosed transport {self!r}", ResourceWarning, source=self, stacklevel=2)

    # --- protocol -------------------------------------------------------------------------------------------------------
    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol: Any = protocol
        self._takes_buffer = isinstance(protocol, asyncio.BufferedProtocol)
        if self._reader is not None:
            self._reader.source = None
            self._reader = None
        if isinstance(protocol, StreamProtocol):
            self._reader = protocol.taker
            self._reader.source = self

    def get_protocol(self) -> asyncio.BaseProtocol:
        protocol: asyncio.BaseProtocol = self._protocol
        return protocol

    def _begin(self, waiter: asyncio.Future[None] | None) -> None:
        try:
            self._protocol.connection_made(self)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:  # noqa: BLE001 given to the loop's handler, as asyncio does
            self._fatal_error(error, "Fatal error: protocol.connection_made() call failed.")
        if not self._lost:
            self._is_reading = True
            with self._pump.lock:
                self._driver.add(self._the_socket(), self._ear)
            self._on_ready()
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _the_socket(self) -> Socket:
        assert self._sock is not None
        return self._sock

    # --- news -----------------------------------------------------------------------------------------------------------
    def _on_ready(self) -> None:
        if self._lost:
            return
        if self._pump.unusable:
            self._fatal_error(os_error(errno.ENETDOWN), "the stack is closed")
            return
        if self._is_reading and not self._paused:
            self._read_ready()
        if self._buffer and not self._lost:
            self._write_ready()

    def _read_ready(self) -> None:
        connection = self._connection
        if connection.readable_bytes:
            if self._reader is not None:
                self._reader.readable()
                return
            if self._takes_buffer:
                self._read_into_protocol()
            else:
                with self._pump.lock:
                    data = connection.read(MAX_READ_BYTES)
                self._driver.flush_soon()
                try:
                    self._protocol.data_received(data)
                except (SystemExit, KeyboardInterrupt):
                    raise
                except BaseException as error:  # noqa: BLE001
                    self._fatal_error(error, "Fatal error: protocol.data_received() call failed.")
                    return
            if self._is_reading and not self._paused and (connection.readable_bytes or self._is_at_end()):
                self._driver.again(self._ear)
        elif connection.error is not None:
            self._connection_failed()
        elif self._is_at_end():
            self._end_of_stream()

    def take(self, limit: int) -> bytes:
        """For a reader: up to ``limit`` octets; b"" if there are none now, or reading is paused."""
        connection = self._connection
        if not connection.readable_bytes or self._paused or self._sock is None:
            return b""
        with self._pump.lock:
            data = connection.read(limit)
        self._driver.flush_soon()
        if self._is_reading and self._is_at_end():
            self._driver.again(self._ear)
        return data

    def _is_at_end(self) -> bool:
        connection = self._connection
        return connection.eof or connection.error is not None or connection.state is CLOSED

    def _read_into_protocol(self) -> None:
        try:
            view = memoryview(self._protocol.get_buffer(-1)).cast("B")
            if not len(view):
                raise RuntimeError("get_buffer() returned an empty buffer")
            with self._pump.lock:
                count = self._connection.read_into(view)
            self._driver.flush_soon()
            self._protocol.buffer_updated(count)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:  # noqa: BLE001
            self._fatal_error(error, "Fatal error: protocol.buffer_updated() call failed.")

    def _end_of_stream(self) -> None:
        self._eof_received = True
        self._is_reading = False
        try:
            keep_open = self._protocol.eof_received()
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:  # noqa: BLE001
            self._fatal_error(error, "Fatal error: protocol.eof_received() call failed.")
            return
        if not keep_open:
            self.close()

    def _connection_failed(self) -> None:
        error = self._connection.error
        assert error is not None
        self._fatal_error(os_error(to_errno(error), error), "Fatal error on transport")

    # --- reading ----------------------------------------------------------------------------------------------------------
    def is_reading(self) -> bool:
        return not self._paused and not self._closing

    def pause_reading(self) -> None:
        """The peer is held back by the receive window once the connection's buffer is full."""
        self._paused = True

    def resume_reading(self) -> None:
        if self._paused and not self._closing:
            self._paused = False
            self._driver.again(self._ear)

    # --- writing ----------------------------------------------------------------------------------------------------------
    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise TypeError(f"data argument must be a bytes-like object, not {type(data).__name__!r}")
        if self._eof_wanted:
            raise RuntimeError("Cannot call write() after write_eof()")
        if not data or self._is_lost_for_writing():
            return
        if not self._buffer:
            with self._pump.lock:
                taken = self._connection.write(data, self._pump.clock())
            if taken:
                self._driver.flush_soon(taken)
            if taken == len(memoryview(data).cast("B") if type(data) is memoryview else data):
                return
            if not taken and self._is_broken():
                return
            data = memoryview(data).cast("B")[taken:]
        self._keep(data)
        self._maybe_pause_protocol()

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        """All of it as one piece: small buffers share a segment."""
        if self._eof_wanted:
            raise RuntimeError("Cannot call writelines() after write_eof()")
        pieces = [memoryview(data).cast("B") for data in list_of_data]
        if not any(map(len, pieces)) or self._is_lost_for_writing():
            return
        total = 0
        with self._pump.lock:
            now = self._pump.clock()
            while pieces and not self._buffer:
                taken = self._connection.write(pieces[0], now)
                total += taken
                if taken < len(pieces[0]):
                    pieces[0] = pieces[0][taken:]
                    break
                del pieces[0]
        if total:
            self._driver.flush_soon(total)
        elif self._is_broken():
            return
        for piece in pieces:
            self._keep(piece)
        self._maybe_pause_protocol()

    def _keep(self, data: bytes | bytearray | memoryview) -> None:
        if isinstance(data, bytearray) or (isinstance(data, memoryview) and not isinstance(data.obj, bytes)):
            data = bytes(data)  # the caller may change it
        if len(data):
            self._buffer.append(data)
            self._buffered_bytes += len(data)

    def _is_lost_for_writing(self) -> bool:
        if not self._lost:
            return False
        if self._lost >= WARN_AFTER_WRITES:
            warnings.warn("writing to a connection that is lost", ResourceWarning, stacklevel=3)
        self._lost += 1
        return True

    def _is_broken(self) -> bool:
        """Whether nothing can be written any more; the protocol is told."""
        connection = self._connection
        if connection.error is not None:
            self._connection_failed()
            return True
        if connection.write_closed:
            self._fatal_error(os_error(errno.EPIPE), "Fatal write error on transport")
            return True
        return False

    def _write_ready(self) -> None:
        connection = self._connection
        if connection.error is not None or connection.write_closed:
            self._is_broken()
            return
        room = connection.writable_bytes
        if room < self._wake_room and room < self._buffered_bytes:
            return
        total = 0
        buffer = self._buffer
        with self._pump.lock:
            now = self._pump.clock()
            while buffer:
                piece = buffer[0]
                taken = connection.write(piece, now)
                total += taken
                if taken < len(piece):
                    if taken:
                        buffer[0] = memoryview(piece)[taken:]
                    break
                buffer.popleft()
        self._buffered_bytes -= total
        if total:
            self._driver.flush_soon(total)
        self._maybe_resume_protocol()
        if not buffer:
            if self._closing:
                self._lose(None)
            elif self._eof_wanted:
                self._shutdown_write()

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        """DATA_FIN (or FIN) after everything written; reading goes on."""
        if self._closing or self._eof_wanted:
            return
        self._eof_wanted = True
        if not self._buffer:
            self._shutdown_write()

    def _shutdown_write(self) -> None:
        with self._pump.lock:
            if not self._pump.unusable:
                self._connection.shutdown_write(self._pump.clock())
        self._driver.flush_soon()

    def get_write_buffer_size(self) -> int:
        return self._buffered_bytes

    # --- ending -----------------------------------------------------------------------------------------------------------
    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        """What was written is still delivered; nothing is read any more."""
        if self._closing:
            return
        self._closing = True
        self._is_reading = False
        if not self._buffer:
            self._lose(None)

    def abort(self) -> None:
        self._aborted = True
        self._force_close(None)

    def _fatal_error(self, error: BaseException, message: str = "Fatal error on transport") -> None:
        if not isinstance(error, OSError):
            self._loop.call_exception_handler(
                {"message": message, "exception": error, "transport": self, "protocol": self._protocol}
            )
            self._aborted = True
        self._force_close(error)

    def _force_close(self, error: BaseException | None) -> None:
        if self._lost:
            return
        self._buffer.clear()
        self._buffered_bytes = 0
        self._closing = True
        self._is_reading = False
        self._lose(error)

    def _lose(self, error: BaseException | None) -> None:
        self._lost += 1
        self._loop.call_soon(self._call_connection_lost, error)

    def _call_connection_lost(self, error: BaseException | None) -> None:
        try:
            if self._reader is not None:
                self._reader.absorb()
            self._protocol.connection_lost(error)
        finally:
            sock = self._the_socket()
            self._sock = None
            self._driver.remove(sock, self._ear)
            with self._pump.lock:
                if self._aborted and not self._pump.unusable:
                    self._connection.abort(self._pump.clock())
            sock.close()
            server = self._server
            if server is not None:
                server._detach(self)
                self._server = None
