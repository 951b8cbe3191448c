"""Sending and receiving: the part of a socket that data goes through."""

from __future__ import annotations

import errno
import socket as std
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from mptcp.errors import to_errno
from mptcp.runtime.clock import deadline_after
from mptcp.sockets.address import SocketAddress, os_error
from mptcp.sockets.state import CLOSED, CONNECTING, SocketState

if TYPE_CHECKING:
    from typing import BinaryIO

    from typing_extensions import Buffer

    from mptcp.core.multipath.connection import Connection

#: What of a file ``sendfile`` has in memory beyond the connection's own buffer.
SENDFILE_BYTES = 256 * 1024

_REFUSED_FLAGS = std.MSG_OOB | std.MSG_TRUNC | std.MSG_ERRQUEUE


class Transfer(SocketState):
    """Reading and writing, blocking or not, with the standard library's names, flags and errors."""

    __slots__ = ()

    # --- receiving ---------------------------------------------------------------------------------------------------
    def recv(self, bufsize: int, flags: int = 0) -> bytes:
        """Up to ``bufsize`` octets; b"" at the end of the stream."""
        if bufsize < 0:
            raise ValueError("negative buffersize in recv")
        pump = self._pump
        with pump.lock:
            connection = self._for_reading(bufsize, flags)
            if connection is None:
                return b""
            if flags & std.MSG_PEEK:
                return connection.read(bufsize, True)
            if flags & std.MSG_WAITALL and connection.readable_bytes < bufsize:
                buffer = bytearray(bufsize)
                count = self._read_all(connection, memoryview(buffer), flags)
                return bytes(memoryview(buffer)[:count])
            data = connection.read(bufsize)
            pump.flush()
            if self._notifier is not None:
                self._show()
            return data

    def recv_into(self, buffer: Buffer, nbytes: int = 0, flags: int = 0) -> int:
        """Fills ``buffer`` (or its first ``nbytes`` octets) with what there is; 0 at the end of the stream."""
        if nbytes < 0:
            raise ValueError("negative buffersize in recv_into")
        view = memoryview(buffer)
        if view.format != "B" or view.ndim != 1:
            view = view.cast("B")
        if nbytes > len(view):
            raise ValueError("buffer too small for requested bytes")
        if nbytes and nbytes < len(view):
            view = view[:nbytes]
        pump = self._pump
        with pump.lock:
            connection = self._for_reading(len(view), flags)
            if connection is None:
                return 0
            if flags & std.MSG_PEEK:
                return connection.read_into(view, True)
            if flags & std.MSG_WAITALL and connection.readable_bytes < len(view):
                return self._read_all(connection, view, flags)
            count = connection.read_into(view)
            pump.flush()
            if self._notifier is not None:
                self._show()
            return count

    def recvfrom(self, bufsize: int, flags: int = 0) -> tuple[bytes, None]:
        """As ``recv``; a stream's octets come from its peer, and so the address is None."""
        return self.recv(bufsize, flags), None

    def recvfrom_into(self, buffer: Buffer, nbytes: int = 0, flags: int = 0) -> tuple[int, None]:
        return self.recv_into(buffer, nbytes, flags), None

    def recvmsg(
        self, bufsize: int, ancbufsize: int = 0, flags: int = 0
    ) -> tuple[bytes, list[tuple[int, int, bytes]], int, None]:
        """(data, no ancillary data, no flags, None)."""
        return self.recv(bufsize, flags), [], 0, None

    def recvmsg_into(
        self, buffers: Iterable[Buffer], ancbufsize: int = 0, flags: int = 0
    ) -> tuple[int, list[tuple[int, int, bytes]], int, None]:
        """Scatters what there is over several buffers."""
        views = [memoryview(buffer).cast("B") for buffer in buffers]
        data = memoryview(self.recv(sum(map(len, views)), flags))
        count = len(data)
        for view in views:
            taken = min(len(view), len(data))
            view[:taken] = data[:taken]
            data = data[taken:]
        return count, [], 0, None

    def _for_reading(self, wanted: int, flags: int) -> Connection | None:
        """The connection, with something to read, waiting for it if need be; None at the end of the stream."""
        if self._closed or self._pump.unusable:
            self._check_open()
        if flags & _REFUSED_FLAGS:
            raise os_error(errno.EINVAL if flags & std.MSG_OOB else errno.EOPNOTSUPP)
        connection = self._connection
        if connection is None:
            raise os_error(errno.ENOTCONN)
        if not connection.readable_bytes or connection.readable_bytes < min(self._options.receive_low_water, wanted):
            if not self._is_readable():
                self._await(self._is_readable, flags, self._options.receive_timeout_us)
            if not connection.readable_bytes or self._read_shut:
                if self._connecting:
                    self._finish_connect()
                self._raise_error()
                if self._pump.closing:
                    raise os_error(errno.ENETDOWN)
                return None
        elif self._read_shut:
            return None
        return connection

    def _read_all(self, connection: Connection, view: memoryview, flags: int) -> int:
        """MSG_WAITALL: the whole of ``view``, or what came before the end, an error or the timeout."""
        pump = self._pump
        limit_us = self._options.receive_timeout_us
        deadline = deadline_after(self._timeout, pump.clock())
        done = 0
        while True:
            done += connection.read_into(view[done:])
            pump.flush()
            self._show()
            if done == len(view) or connection.eof or connection.error is not None or connection.state is CLOSED:
                return done
            try:
                self._await(self._has_any, flags, limit_us, deadline)
            except (BlockingIOError, TimeoutError):
                if done:
                    return done
                raise

    def _has_any(self) -> bool:
        connection = self._connection
        return connection is None or connection.readable_bytes > 0 or self._is_readable()

    # --- sending -----------------------------------------------------------------------------------------------------
    def send(self, data: Buffer, flags: int = 0) -> int:
        """How many octets were taken: all of them if the socket blocks without timeout, else at least one."""
        view = _octets(data)
        if self._timeout is None and not flags & std.MSG_DONTWAIT:
            with self._pump.lock:
                return self._write_all(view, flags, deadline_after(None, 0))
        with self._pump.lock:
            connection = self._for_writing(flags, -1)
            taken = self._write(connection, view, 0)
            if not taken and len(view):
                self._write_starved = True
                self._await(self._is_writable, flags, self._options.send_timeout_us)
                connection = self._for_writing(flags, -1)
                taken = self._write(connection, view, 0)
            if taken < len(view):
                self._write_starved = True
            self._pump.flush()
            if self._notifier is not None:
                self._show()
            return taken

    def sendall(self, data: Buffer, flags: int = 0) -> None:
        """All of ``data``; the socket's timeout is for the whole of it."""
        view = _octets(data)
        with self._pump.lock:
            self._write_all(view, flags, deadline_after(self._timeout, self._pump.clock()))

    def sendto(self, data: Buffer, *args: Any) -> int:
        """sendto(data[, flags], address): a stream has its peer already; an address is ignored, as Linux does."""
        if not 1 <= len(args) <= 2:
            raise TypeError(f"sendto() takes 2 or 3 arguments ({1 + len(args)} given)")
        return self.send(data, args[0] if len(args) == 2 else 0)

    def sendmsg(
        self,
        buffers: Iterable[Buffer],
        ancdata: Iterable[tuple[int, int, Buffer]] = (),
        flags: int = 0,
        address: SocketAddress | None = None,
    ) -> int:
        """Several buffers, one after the other; ancillary data makes no sense here (EINVAL)."""
        if any(True for _ in ancdata):
            raise os_error(errno.EINVAL)
        views = [_octets(buffer) for buffer in buffers]
        total = sum(map(len, views))
        with self._pump.lock:
            if self._timeout is None and not flags & std.MSG_DONTWAIT:
                self._gather_all(views, flags)
                return total
            connection = self._for_writing(flags, -1)
            taken = self._gather(connection, views)
            if not taken and total:
                self._write_starved = True
                self._await(self._is_writable, flags, self._options.send_timeout_us)
                taken = self._gather(self._for_writing(flags, -1), views)
            if taken < total:
                self._write_starved = True
            self._pump.flush()
            self._show()
            return taken

    def sendfile(self, file: BinaryIO, offset: int = 0, count: int | None = None) -> int:
        """Sends a file opened in binary mode, from ``offset`` on, ``count`` octets or to its end; how many it were."""
        if count is not None and count <= 0:
            raise ValueError(f"count must be a positive integer (got {count!r})")
        if self.gettimeout() == 0:
            raise ValueError("non-blocking sockets are not supported")
        if offset:
            file.seek(offset)
        total = 0
        try:
            while count is None or total < count:
                data = file.read(SENDFILE_BYTES if count is None else min(SENDFILE_BYTES, count - total))
                if not data:
                    break
                self.sendall(data)
                total += len(data)
        finally:
            if total and hasattr(file, "seek"):
                file.seek(offset + total)
        return total

    def room_for_all(self) -> int:
        """How many octets ``send`` would take now; a connection that is not there or fails takes any number (and says
        so when it is written to)."""
        with self._pump.lock:
            connection = self._connection
            if connection is None or connection.error is not None or connection.write_closed:
                return 1 << 30
            return connection.writable_bytes

    def note_full(self) -> None:
        """A write was put off: not writable until a good part of the buffer is free."""
        with self._pump.lock:
            self._write_starved = True
            self._show()

    def _for_writing(self, flags: int, deadline: int) -> Connection:
        """The connection, if it takes data; waits for its establishment."""
        if self._closed or self._pump.unusable:
            self._check_open()
        if flags & std.MSG_OOB:
            raise os_error(errno.EOPNOTSUPP)
        connection = self._connection
        if connection is None:
            raise os_error(errno.EPIPE)
        if connection.state is CONNECTING:
            self._await(self._is_connected, flags, self._options.send_timeout_us, deadline)
        if self._connecting:
            self._finish_connect()
        if connection.error is not None:
            self._raise_error()
            raise os_error(errno.EPIPE, connection.error)
        if connection.write_closed or connection.state is CLOSED:
            raise os_error(errno.EPIPE)
        return connection

    def _finish_connect(self) -> None:
        """How a non-blocking connect ended is told by the first call that asks; a failed one leaves no connection."""
        connection = self._connection
        if connection is None or connection.state is CONNECTING:
            return
        self._connecting = False
        if connection.error is not None and connection.state is CLOSED:
            error = self._take_error()
            self._connection = None
            self._error_taken = False
            self._changed()
            if error is not None:
                raise os_error(to_errno(error), error)

    def _write(self, connection: Connection, view: memoryview, offset: int) -> int:
        """Gives the connection what it has room for of ``view[offset:]``; how many octets."""
        room = connection.writable_bytes
        if room <= 0:
            return 0
        piece = view[offset : offset + room] if offset or room < len(view) else view
        if type(view.obj) is not bytes:
            # The connection keeps what it is given until it is acknowledged, and the caller may change this one.
            return connection.write(bytes(piece), self._pump.clock())
        return connection.write(piece, self._pump.clock())

    def _gather_all(self, views: list[memoryview], flags: int) -> None:
        """As one piece, as far as there is room: small buffers then share a segment."""
        deadline = deadline_after(None, 0)
        for index, view in enumerate(views):
            taken = self._write(self._for_writing(flags, deadline), view, 0)
            if taken < len(view):
                self._pump.flush()
                for rest in (view[taken:], *views[index + 1 :]):
                    self._write_all(rest, flags, deadline)
                return
        self._pump.flush()
        self._show()

    def _gather(self, connection: Connection, views: list[memoryview]) -> int:
        total = 0
        for view in views:
            taken = self._write(connection, view, 0)
            total += taken
            if taken < len(view):
                break
        return total

    def _write_all(self, view: memoryview, flags: int, deadline: int) -> int:
        """Writes everything, waiting for room as often as it takes. An error is raised even if a part was taken."""
        size = len(view)
        pump = self._pump
        done = 0
        connection = self._for_writing(flags, deadline)
        while True:
            taken = self._write(connection, view, done)
            done += taken
            if taken:
                pump.flush()
            if done >= size:
                break
            self._write_starved = True
            if not self._is_writable():
                self._await(self._is_writable, flags, self._options.send_timeout_us, deadline)
            connection = self._for_writing(flags, deadline)
        if self._notifier is not None:
            self._show()
        return size


def _octets(data: Buffer) -> memoryview:
    view = memoryview(data)
    if view.format != "B" or view.ndim != 1:
        view = view.cast("B")
    return view
