"""``http.server`` over a listening socket of this package: files of a directory, ranges, one thread a connection."""

from __future__ import annotations

import contextlib
import http.server
import io
import os
import shutil
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Callable
from email.utils import formatdate
from http import HTTPStatus
from pathlib import Path
from typing import Any, BinaryIO, Final

from mptcp.cli import figures
from mptcp.cli.ranges import Unsatisfiable, parse_range
from mptcp.cli.terminal import printable
from mptcp.info import SubflowInfo

#: One write to the socket; the stack keeps it without copying.
CHUNK_BYTES: Final = 512 * 1024
#: A client that sends nothing for that long (seconds) has its connection closed.
IDLE_TIMEOUT_S: Final = 60.0
#: Connections served at once; further ones are closed as soon as they are accepted.
MAX_CONNECTIONS: Final = 1024

Say = Callable[[str], None]


class FileHandler(http.server.SimpleHTTPRequestHandler):
    """GET and HEAD of files, with Range and If-Range (RFC 9110 §13.1.5, §14); directories as lists."""

    protocol_version = "HTTP/1.1"
    server_version = "mptcp"
    sys_version = ""
    timeout = IDLE_TIMEOUT_S
    disable_nagle_algorithm = True
    server: FileServer

    def __init__(self, request: Any, client_address: Any, server: FileServer) -> None:
        self._left: int | None = None
        super().__init__(request, client_address, server, directory=str(server.directory))

    def send_head(self) -> io.BytesIO | BinaryIO | None:
        """Sends the headers and returns what to send after them; None: nothing."""
        self._left = None
        name = self.translate_path(self.path)
        path = Path(name)
        if path.is_dir():
            listing = super().send_head()
            return listing  # noqa: RET504  (typeshed: BytesIO | BinaryIO | None)
        try:
            if name.endswith("/"):
                raise NotADirectoryError
            file = path.open("rb")
        except OSError:
            self.send_error(HTTPStatus.NOT_FOUND)
            return None
        try:
            return self._send_file_head(file)
        except BaseException:
            file.close()
            raise

    def _send_file_head(self, file: BinaryIO) -> BinaryIO | None:
        status = os.fstat(file.fileno())
        size = status.st_size
        modified = formatdate(status.st_mtime, usegmt=True)
        tag = f'"{status.st_mtime_ns:x}-{size:x}"'
        first, end = 0, size
        wanted = self.headers.get("Range")
        # RFC 9110 §13.1.5: "A recipient of an If-Range header field MUST ignore the Range header field if the If-Range
        # condition evaluates as false."
        condition = self.headers.get("If-Range")
        if wanted is not None and (condition is None or condition.strip() in (tag, modified)):
            try:
                found = parse_range(wanted, size)
            except Unsatisfiable:
                self._unsatisfiable(size)
                file.close()
                return None
            if found is not None:
                first, end = found
        partial = (first, end) != (0, size)
        self.send_response(HTTPStatus.PARTIAL_CONTENT if partial else HTTPStatus.OK)
        self.send_header("Content-Type", self.guess_type(file.name))
        self.send_header("Content-Length", str(end - first))
        if partial:
            self.send_header("Content-Range", f"bytes {first}-{end - 1}/{size}")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", tag)
        self.send_header("Last-Modified", modified)
        self.end_headers()
        file.seek(first)
        self._left = end - first
        return file

    def _unsatisfiable(self, size: int) -> None:
        self.send_response(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE)
        self.send_header("Content-Range", f"bytes */{size}")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def copyfile(self, source: Any, outputfile: Any) -> None:
        """The range that ``send_head`` announced, in chunks that the socket keeps instead of copying."""
        if self._left is None:
            shutil.copyfileobj(source, outputfile)
            return
        started, total, left = time.monotonic(), self._left, self._left
        while left:
            chunk = source.read(min(CHUNK_BYTES, left))
            if not chunk:
                # The file has shrunk: the length is announced, so only an end of the connection tells the client.
                self.close_connection = True
                break
            self.connection.sendall(chunk)
            left -= len(chunk)
        elapsed = max(time.monotonic() - started, 1e-6)
        self._say(
            f"{self.path}: {figures.octets(total - left)} in {elapsed:.1f} s, "
            f"{figures.rate((total - left) * 8 / elapsed)}, {self._paths()}"
        )

    def _paths(self) -> str:
        subflows = [info for info in self.server.snapshot(self.connection) if info.bytes_sent]
        if not self.connection.is_multipath:
            return f"plain TCP ({self.connection.fallback_reason or 'asked for'})"
        return " + ".join(f"{info.remote.host} {figures.octets(info.bytes_sent)}" for info in subflows)

    def version_string(self) -> str:
        return self.server_version

    def log_message(self, format: str, *args: object) -> None:
        """Only what went wrong; ``copyfile`` tells the rest."""

    def log_error(self, format: str, *args: object) -> None:
        self._say(format % args)

    def _say(self, text: str) -> None:
        self.server.say(printable(f"{self.client_address[0].removeprefix(_MAPPED)} {text}"))


#: How a socket for both families writes an IPv4 address.
_MAPPED: Final = "::ffff:"


class FileServer(socketserver.ThreadingMixIn, socketserver.BaseServer):
    """Serves ``directory`` on ``listener``, a listening socket of this package, until ``shutdown``."""

    daemon_threads = True
    block_on_close = False

    def __init__(
        self,
        listener: Any,
        directory: Path,
        say: Say = print,
        snapshot: Callable[[Any], list[SubflowInfo]] = lambda sock: sock.subflows(),
    ) -> None:
        socketserver.BaseServer.__init__(self, listener.getsockname(), FileHandler)
        self.socket = listener
        self.directory = directory
        self.say = say
        self.snapshot = snapshot
        self._places = threading.BoundedSemaphore(MAX_CONNECTIONS)

    def fileno(self) -> int:
        number: int = self.socket.fileno()
        return number

    def get_request(self) -> tuple[Any, Any]:
        accepted: tuple[Any, Any] = self.socket.accept()
        return accepted

    def verify_request(self, request: Any, client_address: Any) -> bool:
        return self._places.acquire(blocking=False)

    def process_request(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._places.release()  # no thread was started that would do it
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def shutdown_request(self, request: Any) -> None:
        with contextlib.suppress(OSError):  # the client has closed already
            request.shutdown(socket.SHUT_WR)
        self.close_request(request)

    def close_request(self, request: Any) -> None:
        request.close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that broke is one line, not a traceback."""
        error = sys.exception()
        if isinstance(error, OSError):
            self.say(f"{client_address[0].removeprefix(_MAPPED)}: {error.strerror or error}")
        else:
            super().handle_error(request, client_address)

    def server_close(self) -> None:
        self.socket.close()
