"""TLS over a blocking (or non-blocking) socket of this package, with the standard library's ``ssl``.

OpenSSL would write to a descriptor; the octets of the user-space stack's sockets do not go through one. So it works on
memory here (``ssl.MemoryBIO``), and ``TlsSocket`` carries them between it and the connection. A socket of the kernel's
stack becomes an ``ssl.SSLSocket`` that keeps its own interface (``KernelTlsSocket``).

    tls = wrap_socket(ssl.create_default_context(), sock, server_hostname="server.example")

Libraries that call ``context.wrap_socket`` themselves (http.client, urllib3, imaplib, websockets, ...) are given an
``SSLContext`` of this module: ``create_default_context()``.
"""

from __future__ import annotations

import socket as std
import ssl
import threading
from collections.abc import Callable
from functools import partial
from typing import IO, TYPE_CHECKING, Any, TypeVar, cast

from mptcp.core.units import KIB
from mptcp.runtime.clock import deadline_after, monotonic_us
from mptcp.sockets.address import SocketAddress
from mptcp.sockets.kernel_socket import KernelSocket

if TYPE_CHECKING:
    from typing import Self

    from typing_extensions import Buffer

    from mptcp.sockets.base import AnySocket
    from mptcp.sockets.socket import Socket

#: Octets taken from the connection at once: several TLS records (RFC 8446 §5.1: 16 KiB each at most).
RECEIVE_BYTES = 256 * KIB

#: Octets encrypted at once: what waits in memory to be sent is bounded.
WRITE_BYTES = 256 * KIB

#: RFC 8446 §5.1 and §5.2: a record's plaintext at most, and what encryption adds to it (more in TLS 1.2).
RECORD_BYTES = 16 * KIB
RECORD_OVERHEAD_BYTES = 128

_Result = TypeVar("_Result")


class TlsSocket:
    """What ``ssl.SSLSocket`` is, over a socket of this package; it owns that socket (``raw``).

    Everything that is not about TLS is the socket's own (``subflows``, ``getpeername``, ``setsockopt``, ...). One thread
    may read while another writes. On a non-blocking socket ssl.SSLWantReadError and ssl.SSLWantWriteError say what to
    wait for.
    """

    def __init__(
        self,
        context: ssl.SSLContext,
        sock: Socket,
        *,
        server_side: bool = False,
        server_hostname: str | None = None,
        do_handshake_on_connect: bool = True,
        suppress_ragged_eofs: bool = True,
        session: ssl.SSLSession | None = None,
    ) -> None:
        if server_side and server_hostname:
            raise ValueError("server_hostname can only be specified in client mode")
        if context.check_hostname and not server_side and not server_hostname:
            raise ValueError("check_hostname requires server_hostname")
        self.raw = sock
        self.server_side = server_side
        self.server_hostname = server_hostname
        self.do_handshake_on_connect = do_handshake_on_connect
        self.suppress_ragged_eofs = suppress_ragged_eofs
        self._context = context
        self._session = session
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._unsent = b""  # of a non-blocking socket: encrypted, and no room for it yet
        self._object: ssl.SSLObject | None = None
        # OpenSSL's object is used by one thread at a time; none waits for the network with this lock.
        self._lock = threading.RLock()
        self._send_lock = threading.Lock()  # what is encrypted first is sent first
        self._receive_lock = threading.Lock()
        self._io_refs = 0
        self._close_wanted = False
        self._closed = False
        if _is_connected(sock):
            self._begin()

    def _begin(self) -> None:
        self._object = self._context.wrap_bio(
            self._incoming, self._outgoing, self.server_side, self.server_hostname, self._session
        )
        if self.do_handshake_on_connect:
            if self.raw.gettimeout() == 0:
                raise ValueError("do_handshake_on_connect should not be specified for non-blocking sockets")
            self.do_handshake()

    def __getattr__(self, name: str) -> Any:
        if name == "raw":
            raise AttributeError(name)  # not made yet
        return getattr(self.raw, name)

    def __repr__(self) -> str:
        return f"<mptcp.TlsSocket {self.version() or 'no TLS'} over {self.raw!r}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    # --- connecting -------------------------------------------------------------------------------------------------------
    def connect(self, address: SocketAddress) -> None:
        if self.server_side:
            raise ValueError("can't connect in server-side mode")
        if self._object is not None:
            raise ValueError("attempt to connect already-connected TlsSocket!")
        self.raw.connect(address)
        self._begin()

    def connect_ex(self, address: SocketAddress) -> int:
        number = self.raw.connect_ex(address)
        if not number:
            self._begin()
        return number

    def accept(self) -> tuple[TlsSocket, SocketAddress]:
        """Of a listening socket: the next connection, after its handshake (unless that is not wanted)."""
        sock, address = self.raw.accept()
        try:
            accepted = TlsSocket(
                self._context,
                sock,
                server_side=True,
                do_handshake_on_connect=self.do_handshake_on_connect,
                suppress_ragged_eofs=self.suppress_ragged_eofs,
            )
        except BaseException:
            sock.close()
            raise
        return accepted, address

    def do_handshake(self, block: bool = False) -> None:
        """``block``: even if the socket does not block."""
        timeout = self.raw.gettimeout()
        if block and timeout == 0:
            self.raw.settimeout(None)
        try:
            self._run(self._tls().do_handshake)
        finally:
            if block and timeout == 0:
                self.raw.settimeout(timeout)

    # --- data ---------------------------------------------------------------------------------------------------------------
    def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
        self._check_flags(flags, "recv")
        if not buflen:
            return b""
        if self._object is None:
            return self.raw.recv(buflen, flags)
        return self._read(lambda: self._tls().read(buflen), b"")

    def recv_into(self, buffer: Buffer, nbytes: int | None = None, flags: int = 0) -> int:
        self._check_flags(flags, "recv_into")
        view = memoryview(buffer).cast("B")
        if nbytes:
            view = view[:nbytes]
        if not view:
            return 0
        if self._object is None:
            return self.raw.recv_into(view)
        return self._read(lambda: cast(int, self._tls().read(len(view), cast(Any, view))), 0)

    def read(self, length: int = 1024, buffer: Buffer | None = None) -> bytes | int:
        return self.recv(length) if buffer is None else self.recv_into(buffer, length)

    def send(self, data: Buffer, flags: int = 0) -> int:
        """How many octets were taken: up to ``WRITE_BYTES``."""
        self._check_flags(flags, "send")
        if self._object is None:
            return self.raw.send(data, flags)
        return self._write(memoryview(data).cast("B")[:WRITE_BYTES], -1)

    write = send

    def sendall(self, data: Buffer, flags: int = 0) -> None:
        self._check_flags(flags, "sendall")
        if self._object is None:
            self.raw.sendall(data, flags)
            return
        timeout = self.raw.gettimeout()
        deadline = -1 if timeout is None else deadline_after(timeout, monotonic_us())
        view = memoryview(data).cast("B")
        done = 0
        while done < len(view):
            done += self._write(view[done : done + WRITE_BYTES], deadline)

    def sendfile(self, file: Any, offset: int = 0, count: int | None = None) -> int:
        return type(self.raw).sendfile(cast(Any, self), file, offset, count)

    def pending(self) -> int:
        """Octets that can be read without looking at the network."""
        with self._lock:
            return self._object.pending() if self._object is not None else 0

    def makefile(
        self, mode: str = "r", buffering: int | None = None, *, encoding: str | None = None, errors: str | None = None,
        newline: str | None = None,
    ) -> IO[Any]:  # fmt: skip
        """A file over this socket, by the standard library's own code."""
        make: Any = std.socket.makefile
        return cast(IO[Any], make(self, mode, buffering, encoding=encoding, errors=errors, newline=newline))

    def recvfrom(self, *args: Any) -> Any:
        raise ValueError("recvfrom not allowed on instances of TlsSocket")

    def sendto(self, *args: Any) -> Any:
        raise ValueError("sendto not allowed on instances of TlsSocket")

    def recvmsg(self, *args: Any) -> Any:
        raise NotImplementedError("recvmsg not allowed on instances of TlsSocket")  # the standard library's answer

    def sendmsg(self, *args: Any) -> Any:
        raise NotImplementedError("sendmsg not allowed on instances of TlsSocket")

    recvfrom_into = recvfrom
    recvmsg_into = recvmsg

    def detach(self) -> int:
        raise ValueError("a TlsSocket cannot be detached: its keys would be lost")

    # --- ending -------------------------------------------------------------------------------------------------------------
    def unwrap(self) -> Socket:
        """Ends TLS in both directions (close_notify) and returns the socket beneath, still connected."""
        self._run(self._tls().unwrap)
        self._object = None
        return self.raw

    def shutdown(self, how: int) -> None:
        self._send_pending(-1)
        self.raw.shutdown(how)

    def close(self) -> None:
        if self._io_refs > 0:
            self._close_wanted = True
            return
        self._closed = True
        self.raw.close()

    def _decref_socketios(self) -> None:
        """Called by ``socket.SocketIO`` when a file made by ``makefile`` is closed."""
        if self._io_refs > 0:
            self._io_refs -= 1
        if self._close_wanted and not self._io_refs:
            self.close()

    # --- what TLS knows -----------------------------------------------------------------------------------------------------
    @property
    def context(self) -> ssl.SSLContext:
        return self._context

    @property
    def session(self) -> ssl.SSLSession | None:
        return self._object.session if self._object is not None else None

    @property
    def session_reused(self) -> bool | None:
        return self._object.session_reused if self._object is not None else None

    def getpeercert(self, binary_form: bool = False) -> Any:
        return self._tls().getpeercert(cast(Any, binary_form))

    def cipher(self) -> tuple[str, str, int] | None:
        return self._object.cipher() if self._object is not None else None

    def shared_ciphers(self) -> list[tuple[str, str, int]] | None:
        return self._object.shared_ciphers() if self._object is not None else None

    def compression(self) -> str | None:
        return self._object.compression() if self._object is not None else None

    def selected_alpn_protocol(self) -> str | None:
        return self._object.selected_alpn_protocol() if self._object is not None else None

    def get_channel_binding(self, cb_type: str = "tls-unique") -> bytes | None:
        return self._object.get_channel_binding(cb_type) if self._object is not None else None

    def version(self) -> str | None:
        return self._object.version() if self._object is not None else None

    # --- inside -------------------------------------------------------------------------------------------------------------
    def _tls(self) -> ssl.SSLObject:
        if self._object is None:
            raise ValueError(f"No TLS around {self.raw!r}")
        return self._object

    def _check_flags(self, flags: int, name: str) -> None:
        if flags and self._object is not None:
            raise ValueError(f"non-zero flags not allowed in calls to {name}() on {type(self).__name__}")

    def _read(self, operation: Callable[[], _Result], nothing: _Result) -> _Result:
        try:
            return self._run(operation, reads=True)
        except ssl.SSLZeroReturnError:
            return nothing
        except ssl.SSLEOFError:
            if self.suppress_ragged_eofs:
                return nothing
            raise

    def _write(self, view: memoryview, deadline: int) -> int:
        if not view:
            return 0
        if self._unsent and not self._send_pending(deadline):
            raise ssl.SSLWantWriteError(ssl.SSL_ERROR_WANT_WRITE, "The operation did not complete (write)")
        if self.raw.gettimeout() == 0:
            # What is encrypted counts as written, so it has to fit: nobody would come back for the rest of it.
            room = self.raw.room_for_all() - RECORD_OVERHEAD_BYTES * (len(view) // RECORD_BYTES + 2)
            if room <= 0:
                self.raw.note_full()
                raise ssl.SSLWantWriteError(ssl.SSL_ERROR_WANT_WRITE, "The operation did not complete (write)")
            view = view[:room]
        return self._run(lambda: self._tls().write(cast(Any, view)), deadline)

    def _run(self, operation: Callable[[], _Result], deadline: int = -1, *, reads: bool = False) -> _Result:
        """``operation`` of OpenSSL's, with as much receiving and sending as it asks for.

        One that ``reads`` data never waits for room to send: the peer may be waiting for this very side to read.
        """
        if deadline < 0:
            timeout = self.raw.gettimeout()
            deadline = -1 if timeout is None else deadline_after(timeout, monotonic_us())
        while True:
            try:
                with self._lock:
                    result = operation()
            except ssl.SSLWantReadError:
                if reads:
                    self._send_what_fits()
                elif not self._send_pending(deadline):
                    raise ssl.SSLWantWriteError(
                        ssl.SSL_ERROR_WANT_WRITE, "The operation did not complete (write)"
                    ) from None
                self._receive(deadline)
            except ssl.SSLError:
                self._send_last_words(deadline)
                raise
            else:
                if reads:
                    self._send_what_fits()
                else:
                    self._send_pending(deadline)
                return result

    def _send_last_words(self, deadline: int) -> None:
        """The alert that says why; the error at hand matters more than one in sending it."""
        try:
            self._send_pending(deadline)
        except OSError:
            return

    def _send_pending(self, deadline: int) -> bool:
        """Sends what is encrypted; False if the socket does not block and has no room for all of it."""
        with self._send_lock:
            while data := self._to_send():
                timeout = self.raw.gettimeout()
                if timeout == 0:
                    if not self._send_some(data):
                        return False
                else:
                    self._within(deadline, timeout, partial(self.raw.sendall, data))
            return True

    def _send_what_fits(self) -> None:
        """The same without waiting; a thread that is sending already sends this, too."""
        if (self._unsent or self._outgoing.pending) and self._send_lock.acquire(blocking=False):
            try:
                if data := self._to_send():
                    self._send_some(data)
            finally:
                self._send_lock.release()

    def _to_send(self) -> bytes:
        with self._lock:
            data = self._unsent + self._outgoing.read()
            self._unsent = b""
            return data

    def _send_some(self, data: bytes) -> bool:
        """Without waiting; what finds no room is kept. Whether all of it went."""
        try:
            sent = self.raw.send(data, std.MSG_DONTWAIT)
        except BlockingIOError:
            sent = 0
        self._unsent = data[sent:]
        return not self._unsent

    def _receive(self, deadline: int) -> None:
        """Gives OpenSSL what the connection has, waiting for it."""
        with self._receive_lock:
            if self._incoming.pending:
                return  # another thread has been here meanwhile
            timeout = self.raw.gettimeout()
            try:
                data = self._within(deadline, timeout, lambda: self.raw.recv(RECEIVE_BYTES))
            except BlockingIOError:
                raise ssl.SSLWantReadError(ssl.SSL_ERROR_WANT_READ, "The operation did not complete (read)") from None
            with self._lock:
                if data:
                    self._incoming.write(data)
                else:
                    self._incoming.write_eof()

    def _within(self, deadline: int, timeout: float | None, operation: Callable[[], _Result]) -> _Result:
        """Within what is left of the time that the whole call has. The timeout belongs to the socket, and so to all of
        its threads: it is changed only where this call has begun to use it up."""
        if deadline < 0 or not timeout:
            return operation()
        left = (deadline - monotonic_us()) / 1e6
        if left <= 0:
            raise TimeoutError("The operation timed out")
        if timeout - left < 0.001:
            return operation()
        self.raw.settimeout(left)
        try:
            return operation()
        finally:
            self.raw.settimeout(timeout)


class KernelTlsSocket(ssl.SSLSocket, KernelSocket):  # type: ignore[misc]
    """A socket of the kernel's stack with TLS by OpenSSL: everything ``ssl.SSLSocket`` has, and ``subflows`` and the rest."""

    @classmethod
    def over(
        cls,
        context: ssl.SSLContext,
        sock: KernelSocket,
        server_side: bool,
        do_handshake_on_connect: bool,
        suppress_ragged_eofs: bool,
        server_hostname: str | None,
        session: ssl.SSLSession | None,
    ) -> KernelTlsSocket:
        """Takes the descriptor of ``sock``, and its settings."""
        made: Any = cast(Any, cls)._create(
            sock=sock, server_side=server_side, do_handshake_on_connect=False, context=context, session=session,
            suppress_ragged_eofs=suppress_ragged_eofs, server_hostname=server_hostname,
        )  # fmt: skip
        made.inherit(sock)
        made.do_handshake_on_connect = do_handshake_on_connect
        if do_handshake_on_connect and _is_connected(made):
            try:
                if made.gettimeout() == 0:
                    raise ValueError("do_handshake_on_connect should not be specified for non-blocking sockets")
                made.do_handshake()
            except BaseException:
                made.close()
                raise
        return cast(KernelTlsSocket, made)


#: What ``wrap_socket`` gives.
AnyTlsSocket = TlsSocket | KernelTlsSocket


class SSLContext(ssl.SSLContext):
    """A context whose ``wrap_socket`` also takes sockets of this package."""

    def wrap_socket(  # type: ignore[override]
        self,
        sock: Any,
        server_side: bool = False,
        do_handshake_on_connect: bool = True,
        suppress_ragged_eofs: bool = True,
        server_hostname: str | None = None,
        session: ssl.SSLSession | None = None,
    ) -> Any:
        if isinstance(sock, std.socket) and not isinstance(sock, KernelSocket):
            return super().wrap_socket(
                sock, server_side, do_handshake_on_connect, suppress_ragged_eofs, server_hostname, session
            )
        return wrap_socket(
            self, sock, server_hostname, server_side=server_side, do_handshake_on_connect=do_handshake_on_connect,
            suppress_ragged_eofs=suppress_ragged_eofs, session=session,
        )  # fmt: skip


def wrap_socket(
    context: ssl.SSLContext,
    sock: AnySocket,
    server_hostname: str | None = None,
    *,
    server_side: bool = False,
    do_handshake_on_connect: bool = True,
    suppress_ragged_eofs: bool = True,
    session: ssl.SSLSession | None = None,
) -> AnyTlsSocket:
    """``context.wrap_socket`` for a socket of this package, connected or not (or listening, with ``server_side``)."""
    if isinstance(sock, KernelSocket):
        return KernelTlsSocket.over(
            adopt_context(context) if server_side else context, sock, server_side, do_handshake_on_connect,
            suppress_ragged_eofs, server_hostname, session,
        )  # fmt: skip
    return TlsSocket(
        context, sock, server_side=server_side, server_hostname=server_hostname, session=session,
        do_handshake_on_connect=do_handshake_on_connect, suppress_ragged_eofs=suppress_ragged_eofs,
    )  # fmt: skip


def create_default_context(
    purpose: ssl.Purpose = ssl.Purpose.SERVER_AUTH,
    *,
    cafile: str | None = None,
    capath: str | None = None,
    cadata: str | bytes | None = None,
) -> SSLContext:
    """``ssl.create_default_context``, as a context that takes sockets of this package too."""
    return adopt_context(ssl.create_default_context(purpose, cafile=cafile, capath=capath, cadata=cadata))


def adopt_context(context: ssl.SSLContext) -> SSLContext:
    """Makes ``context`` itself, whatever made it, one that takes sockets of this package too."""
    if not isinstance(context, SSLContext):
        context.__class__ = SSLContext  # the same settings, and one method more
    return cast(SSLContext, context)


def _is_connected(sock: AnySocket) -> bool:
    try:
        sock.getpeername()
    except OSError:
        return False
    return True
