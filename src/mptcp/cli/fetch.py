"""HTTP GET into a file, over sockets of this package, continued where an earlier run stopped (RFC 9110 §14)."""

from __future__ import annotations

import contextlib
import http.client
import re
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, quote, unquote, urljoin, urlsplit

from mptcp.cli.partial_file import PartialFile
from mptcp.cli.terminal import printable
from mptcp.errors import ConfigurationError

MAX_REDIRECTS = 5
CHUNK_BYTES = 256 * 1024
#: By scheme; of mptcp it is the UDP port, and what ``mptcp serve`` takes by default.
DEFAULT_PORTS = {"http": 80, "mptcp": 8000}

#: What a URL may have as it is (RFC 3986 §2.2, §2.3): what is quoted already is not quoted again.
_NOT_QUOTED = "/?:@!$&'()*+,;=~%[]"

#: Makes a connected socket: ((host, port), timeout in seconds or None) -> a socket with the standard library's methods.
Connector = Callable[[tuple[str, int], float | None], Any]


class FetchError(OSError):
    """The server's answer was not what was asked for, or it ended early; the message is a sentence."""


class HttpConnection(http.client.HTTPConnection):
    """``http.client`` over a socket that ``connector`` makes."""

    def __init__(self, host: str, port: int, timeout: float | None, connector: Connector) -> None:
        super().__init__(host, port, timeout=timeout)
        self._connector = connector

    def connect(self) -> None:
        """An OSError of that says where to."""
        try:
            self.sock = self._connector((self.host, self.port), self.timeout)
        except OSError as error:
            reason = error.strerror or str(error)
            if self.host not in reason:
                where = f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"
                error.strerror = f"{where}: {reason}"
            raise


@dataclass(frozen=True, slots=True)
class Fetched:
    """``resumed`` octets were there before, ``received`` came now; ``total`` is the file."""

    url: str
    path: Path
    total: int
    resumed: int
    received: int
    sha256: str


def split_url(url: str) -> SplitResult:
    """ConfigurationError, in a sentence, for a URL that this stack cannot fetch."""
    try:
        parts = urlsplit(url if "//" in url else f"http://{url}")
        port_is_good = parts.port != 0
    except ValueError as error:
        raise ConfigurationError(f"{url!r} is no URL ({error})") from None
    if parts.scheme not in DEFAULT_PORTS:
        raise ConfigurationError(
            f"only http URLs (and, over UDP, mptcp ones) can be fetched, not {parts.scheme or 'such'!r} ones"
        )
    if not parts.hostname or not port_is_good:
        raise ConfigurationError(f"{url!r} names no host and port")
    if ":" not in parts.hostname:
        try:
            parts.hostname.encode("idna")
        except UnicodeError:
            raise ConfigurationError(f"{url!r}: a host's name has parts of 1 to 63 characters") from None
    if any(character <= " " or character == "\x7f" for character in url):
        raise ConfigurationError(f"{url!r} has a space or a control character in it")
    return parts


def follow(url: str, location: str) -> str:
    """Where a redirect leads; a path stays on the same server, whatever the scheme."""
    scheme = split_url(url).scheme
    if scheme == "http" or urlsplit(location).scheme:
        return urljoin(url, location)
    # urljoin leaves alone what it does not know to have paths.
    following = urljoin("http:" + url.partition(":")[2], location)
    return scheme + following.removeprefix("http")


def default_name(url: str) -> str:
    """The file name for a URL: the last part of its path, never one with a slash; ``index.html`` if there is none."""
    name = unquote(split_url(url).path.rpartition("/")[2])
    return printable(name) if name not in {"", ".", ".."} and "/" not in name and "\0" not in name else "index.html"


def strong_validator(headers: http.client.HTTPMessage) -> str:
    """What may go into If-Range: a strong ETag, or a Last-Modified that is older than the answer; else ""."""
    # RFC 9110 §13.1.5: "A client MUST NOT generate an If-Range header field containing an entity tag that is marked as
    # weak."
    tag = headers.get("ETag", "")
    if tag:
        return tag if re.fullmatch(r'"[\x21\x23-\x7e]*"', tag) else ""
    modified, date = headers.get("Last-Modified", ""), headers.get("Date", "")
    with contextlib.suppress(ValueError, TypeError):
        # RFC 9110 §8.8.2.2: a date is strong when it is at least a second before the one the answer was made at.
        if (parsedate_to_datetime(date) - parsedate_to_datetime(modified)).total_seconds() >= 1:
            return modified
    return ""


def content_range(headers: http.client.HTTPMessage) -> tuple[int, int | None]:
    """(first octet, length of the whole, None: not known) of a 206; (-1, length) of a 416; (-1, None) of neither."""
    # Python reads no number of thousands of digits, and no file is as long.
    found = re.fullmatch(r"bytes (?:(\d{1,19})-\d+|\*)/(\d{1,19}|\*)", headers.get("Content-Range", ""), re.ASCII)
    if not found:
        return -1, None
    return int(found[1] or -1), None if found[2] == "*" else int(found[2])


class Fetch:
    """One download: ``run`` it. ``progress`` is told (octets on disk, length or None, octets of earlier runs)."""

    def __init__(
        self,
        url: str,
        target: Path,
        connector: Connector,
        *,
        timeout: float | None = None,
        progress: Callable[[int, int | None, int], None] = lambda done, total, resumed: None,
        on_connection: Callable[[Any], None] = lambda sock: None,
        before_close: Callable[[], None] = lambda: None,
    ) -> None:
        split_url(url)
        self.url = url
        self.part = PartialFile(target)
        self._connector = connector
        self._timeout = timeout
        self._progress = progress
        self._on_connection = on_connection
        self._before_close = before_close

    def run(self, want_sha256: bool = False) -> Fetched:
        """Fetches all of it. FetchError or another OSError when it fails: the part stays for the next run."""
        part = self.part
        if part.target.is_dir():
            raise ConfigurationError(f"{part.target} is a directory: give a file name with -o")
        part.open()
        try:
            resumed = self._fetch(self.url, part.validator(self.url) if part.size else "", MAX_REDIRECTS)
            digest = part.sha256() if want_sha256 else ""
            total = part.size
            part.finish()
            return Fetched(self.url, part.target, total, resumed, total - resumed, digest)
        finally:
            part.close()

    def _fetch(self, url: str, validator: str, redirects: int) -> int:
        """One request; the number of octets that did not have to be fetched again."""
        parts = split_url(url)
        assert parts.hostname is not None
        connection = HttpConnection(
            parts.hostname, parts.port or DEFAULT_PORTS[parts.scheme], self._timeout, self._connector
        )
        headers = {"Accept-Encoding": "identity", "User-Agent": "mptcp", "Connection": "close"}
        if validator:
            headers |= {"Range": f"bytes={self.part.size}-", "If-Range": validator}
        try:
            connection.connect()
            self._on_connection(connection.sock)
            target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            connection.request("GET", quote(target, _NOT_QUOTED), headers=headers)
            response = connection.getresponse()
            location = response.headers.get("Location")
            if response.status in {301, 302, 303, 307, 308} and location:
                if not redirects:
                    raise FetchError(f"more than {MAX_REDIRECTS} redirects")
                try:
                    following = follow(url, location)
                    split_url(following)
                except ValueError as error:
                    raise FetchError(f"the server redirects to where we cannot go: {printable(str(error))}") from error
            else:
                return self._receive(response, validator)
        except http.client.HTTPException as error:
            raise FetchError(f"the server did not speak HTTP as expected ({type(error).__name__})") from error
        finally:
            self._before_close()
            connection.close()
        return self._fetch(following, validator, redirects - 1)

    def _receive(self, response: http.client.HTTPResponse, validator: str) -> int:
        part = self.part
        first, whole = content_range(response.headers)
        if response.status == 416 and validator and whole == part.size:
            return part.size  # nothing is missing: only the last step of an earlier run did not happen
        if response.status == 206 and validator and first == part.size:
            resumed, total = part.size, whole
        elif response.status == 200:
            # Not the file of the earlier run, or a server that knows no ranges: from the start.
            part.restart(self.url, strong_validator(response.headers))
            resumed, total = 0, response.length
        elif response.status in {206, 416}:
            part.restart(self.url, "")
            raise FetchError(f"the server answered {response.status} to another range than asked for; run it again")
        else:
            raise FetchError(f"the server answered {response.status} {printable(response.reason)}")
        length = response.headers.get("Content-Length", "")
        if response.length is None and length and "Transfer-Encoding" not in response.headers:
            raise FetchError(f"the server's Content-Length is no length: {printable(length[:32])}")
        self._progress(part.size, total, resumed)
        while data := response.read1(CHUNK_BYTES):
            part.append(memoryview(data))
            self._progress(part.size, total, resumed)
        if total is not None and part.size != total:
            raise FetchError(f"the connection ended {total - part.size} octets early")
        return resumed
