"""Downloads that stop anywhere and are continued, against a scripted server on one end of a socket pair."""

import hashlib
import http.client
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.message import Message
from pathlib import Path

import pytest

from mptcp.cli.fetch import Fetch, FetchError, default_name, split_url, strong_validator
from mptcp.cli.partial_file import PartialFile
from mptcp.errors import ConfigurationError

URL = "http://server.test:8000/big.bin"
BODY = bytes(range(256)) * 1000
TAG = '"v1"'


class Script:
    """A server that answers each connection with the next of ``answers`` and keeps what it was asked."""

    def __init__(self, *answers: bytes) -> None:
        self.answers = list(answers)
        self.requests: list[Message] = []
        self.connected: list[tuple[str, int]] = []
        self._threads: list[threading.Thread] = []

    def connector(self, address: tuple[str, int], timeout: float | None) -> socket.socket:
        self.connected.append(address)
        ours, theirs = socket.socketpair()
        ours.settimeout(60)
        thread = threading.Thread(target=self._serve, args=(theirs, self.answers.pop(0)))
        thread.start()
        self._threads.append(thread)
        return ours

    def _serve(self, sock: socket.socket, answer: bytes) -> None:
        with sock, sock.makefile("rb") as stream:
            stream.readline()
            self.requests.append(http.client.parse_headers(stream))
            try:
                sock.sendall(answer)
            except OSError:
                return

    def join(self) -> None:
        for thread in self._threads:
            thread.join(5)


def answer(status: str, body: bytes, *headers: str, length: int | None = None) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body) if length is None else length}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def fetch(script: Script, target: Path, **options: object) -> Fetch:
    return Fetch(URL, target, script.connector, timeout=60, **options)  # type: ignore[arg-type]


@contextmanager
def served(*answers: bytes) -> Iterator[Script]:
    script = Script(*answers)
    yield script
    script.join()


def leave_part(target: Path, octets: bytes, validator: str = TAG, url: str = URL) -> None:
    part = PartialFile(target)
    part.open()
    part.restart(url, validator)
    part.append(memoryview(octets))
    part.close()


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_whole_file(tmp_path: Path) -> None:
    progress: list[tuple[int, int | None, int]] = []
    with served(answer("200 OK", BODY, f"ETag: {TAG}")) as script:
        result = fetch(script, tmp_path / "f", progress=lambda *now: progress.append(now)).run(want_sha256=True)
    assert (tmp_path / "f").read_bytes() == BODY
    assert leftovers(tmp_path) == ["f"]
    assert (result.total, result.resumed, result.received) == (len(BODY), 0, len(BODY))
    assert result.sha256 == hashlib.sha256(BODY).hexdigest()
    assert progress[0] == (0, len(BODY), 0)
    assert progress[-1] == (len(BODY), len(BODY), 0)
    assert script.connected == [("server.test", 8000)]
    assert "Range" not in script.requests[0]


def test_cut_connection_is_continued(tmp_path: Path) -> None:
    cut = answer("200 OK", BODY[:70_000], f"ETag: {TAG}", length=len(BODY))
    with served(cut) as script, pytest.raises(FetchError, match="octets early"):
        fetch(script, tmp_path / "f").run()
    assert leftovers(tmp_path) == ["f.part", "f.part.json"]
    rest = answer("206 Partial Content", BODY[70_000:], f"Content-Range: bytes 70000-{len(BODY) - 1}/{len(BODY)}")
    with served(rest) as script:
        result = fetch(script, tmp_path / "f").run(want_sha256=True)
    # RFC 9110 §13.1.5, §14.2
    assert script.requests[0]["Range"] == "bytes=70000-"
    assert script.requests[0]["If-Range"] == TAG
    assert (tmp_path / "f").read_bytes() == BODY
    assert (result.resumed, result.received, result.sha256) == (
        70_000, len(BODY) - 70_000, hashlib.sha256(BODY).hexdigest(),
    )  # fmt: skip
    assert leftovers(tmp_path) == ["f"]


def test_changed_file_starts_again(tmp_path: Path) -> None:
    leave_part(tmp_path / "f", b"old content")
    with served(answer("200 OK", BODY, 'ETag: "v2"')) as script:
        result = fetch(script, tmp_path / "f").run()
    assert script.requests[0]["If-Range"] == TAG
    assert (tmp_path / "f").read_bytes() == BODY
    assert result.resumed == 0


@pytest.mark.parametrize(("validator", "url"), [("", URL), (TAG, "http://server.test/other")])
def test_part_of_unknown_origin_is_not_continued(tmp_path: Path, validator: str, url: str) -> None:
    leave_part(tmp_path / "f", b"who knows", validator, url)
    with served(answer("200 OK", BODY)) as script:
        fetch(script, tmp_path / "f").run()
    assert "Range" not in script.requests[0]
    assert (tmp_path / "f").read_bytes() == BODY


def test_complete_part_needs_nothing_more(tmp_path: Path) -> None:
    leave_part(tmp_path / "f", BODY)
    with served(answer("416 Range Not Satisfiable", b"", f"Content-Range: bytes */{len(BODY)}")) as script:
        result = fetch(script, tmp_path / "f").run()
    assert (result.total, result.received) == (len(BODY), 0)
    assert (tmp_path / "f").read_bytes() == BODY


@pytest.mark.parametrize(
    "bad",
    [
        answer("206 Partial Content", b"x" * 10, "Content-Range: bytes 3-12/100"),
        answer("206 Partial Content", b"x" * 10),
        answer("416 Range Not Satisfiable", b"", "Content-Range: bytes */3"),
    ],
)
def test_wrong_range_is_thrown_away(tmp_path: Path, bad: bytes) -> None:
    leave_part(tmp_path / "f", b"0123456789")
    with served(bad) as script, pytest.raises(FetchError, match="run it again"):
        fetch(script, tmp_path / "f").run()
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("status", ["404 Not Found", "500 Internal Server Error", "204 No Content"])
def test_error_keeps_the_part(tmp_path: Path, status: str) -> None:
    leave_part(tmp_path / "f", b"0123456789")
    with served(answer(status, b"an error page")) as script, pytest.raises(FetchError, match=status[:3]):
        fetch(script, tmp_path / "f").run()
    assert (tmp_path / "f.part").read_bytes() == b"0123456789"


def test_error_without_a_part_leaves_nothing(tmp_path: Path) -> None:
    with served(answer("404 Not Found", b"no")) as script, pytest.raises(FetchError):
        fetch(script, tmp_path / "f").run()
    assert leftovers(tmp_path) == []


def test_interrupt_keeps_what_has_come(tmp_path: Path) -> None:
    def interrupt(done: int, total: int | None, resumed: int) -> None:
        if done > 50_000:
            raise KeyboardInterrupt

    with served(answer("200 OK", BODY, f"ETag: {TAG}")) as script, pytest.raises(KeyboardInterrupt):
        fetch(script, tmp_path / "f", progress=interrupt).run()
    kept = (tmp_path / "f.part").read_bytes()
    assert len(kept) > 50_000
    assert kept == BODY[: len(kept)]
    assert json.loads((tmp_path / "f.part.json").read_text()) == {"url": URL, "validator": TAG}


def test_redirects_are_followed_and_counted(tmp_path: Path) -> None:
    there = answer("302 Found", b"", "Location: /elsewhere")
    with served(there, answer("200 OK", BODY)) as script:
        fetch(script, tmp_path / "f").run()
    assert (tmp_path / "f").read_bytes() == BODY
    with served(*[there] * 6) as script, pytest.raises(FetchError, match="more than 5 redirects"):
        fetch(script, tmp_path / "g").run()
    away = answer("302 Found", b"", "Location: ftp://elsewhere/x")
    with served(away) as script, pytest.raises(FetchError, match="cannot go"):
        fetch(script, tmp_path / "g").run()


def test_not_http_is_one_sentence(tmp_path: Path) -> None:
    with served(b"SSH-2.0-nothing\r\n") as script, pytest.raises(FetchError, match="did not speak HTTP"):
        fetch(script, tmp_path / "f").run()


@pytest.mark.parametrize(
    ("hostile", "says"),
    [
        (b"HTTP/1.1 302 F\r\nLocation: http://[::1\r\n\r\n", "redirects to where we cannot go"),
        (b"HTTP/1.1 302 F\r\nLocation: http://a..b/x\r\n\r\n", "redirects to where we cannot go"),
        (b"HTTP/1.1 206 P\r\nContent-Range: bytes " + b"1" * 6000 + b"-9/9\r\n\r\n", "another range than asked for"),
        (b"HTTP/1.1 206 P\r\nContent-Range: bytes 0-9/" + b"1" * 6000 + b"\r\n\r\n", "another range than asked for"),
        (b"HTTP/1.1 200 O\r\nContent-Length: " + b"1" * 6000 + b"\r\n\r\nx", "Content-Length is no length: 1111"),
        (b"HTTP/1.1 200 O\r\nContent-Length: -5\r\n\r\nhello", "Content-Length is no length: -5"),
        (b"HTTP/1.1 404 \x1b[31mred\r\n\r\n", r"404 \\x1b\[31mred$"),
        (b"HTTP/1.1 200 " + b"x" * 70_000, "did not speak HTTP"),
        (b"HTTP/1.1 200 O\r\n" + b"A: b\r\n" * 200 + b"\r\n", "did not speak HTTP"),
    ],
)
def test_hostile_answers_are_one_sentence(tmp_path: Path, hostile: bytes, says: str) -> None:
    with served(hostile) as script, pytest.raises(FetchError, match=says) as caught:
        fetch(script, tmp_path / "f").run()
    assert not set(str(caught.value)) & {"\n", "\x1b"}
    assert not (tmp_path / "f").exists()


def test_what_a_url_may_not_have_is_quoted(tmp_path: Path) -> None:
    kept: list[socket.socket] = []

    def connector(address: tuple[str, int], timeout: float | None) -> socket.socket:
        ours, theirs = socket.socketpair()
        theirs.sendall(answer("200 OK", b"x"))
        theirs.shutdown(socket.SHUT_WR)
        kept.append(theirs)
        return ours

    Fetch("http://server.test/\u00fc%20[a]?q=\u00e9&r=1", tmp_path / "f", connector, timeout=60).run()
    with kept[0] as theirs:
        assert theirs.recv(100).startswith(b"GET /%C3%BC%20[a]?q=%C3%A9&r=1 HTTP/1.1\r\n")


def test_chunked_body_has_no_length(tmp_path: Path) -> None:
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
    with served(chunked) as script:
        assert fetch(script, tmp_path / "f").run().total == 5
    assert (tmp_path / "f").read_bytes() == b"abcde"


def test_two_at_once_are_refused(tmp_path: Path) -> None:
    first = PartialFile(tmp_path / "f")
    first.open()
    with served() as script, pytest.raises(ConfigurationError, match="another process"):
        fetch(script, tmp_path / "f").run()
    first.close()


@pytest.mark.parametrize("note", [b"", b"[]", b"not json", b'{"url": 3}', b'{"url": "%s", "validator": "a\\r\\nX: y"}'])
def test_hostile_note_is_no_validator(tmp_path: Path, note: bytes) -> None:
    part = PartialFile(tmp_path / "f")
    part.note.write_bytes(note.replace(b"%s", URL.encode()))
    assert part.validator(URL) == ""


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"ETag": '"abc"'}, '"abc"'),
        ({"ETag": 'W/"abc"'}, ""),  # RFC 9110 §13.1.5: no weak tag in If-Range
        ({"ETag": 'W/"abc"', "Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT"}, ""),
        (
            {"Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT", "Date": "Mon, 01 Jan 2024 00:00:05 GMT"},
            "Mon, 01 Jan 2024 00:00:00 GMT",
        ),
        ({"Last-Modified": "Mon, 01 Jan 2024 00:00:05 GMT", "Date": "Mon, 01 Jan 2024 00:00:05 GMT"}, ""),
        ({"Last-Modified": "yesterday", "Date": "today"}, ""),
        ({}, ""),
    ],
)
def test_strong_validators(headers: dict[str, str], expected: str) -> None:
    message = http.client.HTTPMessage()
    for name, value in headers.items():
        message[name] = value
    assert strong_validator(message) == expected


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("http://h/a/b.iso", "b.iso"),
        ("http://h/", "index.html"),
        ("http://h", "index.html"),
        ("http://h/a%20b?x=1", "a b"),
        ("http://h/..", "index.html"),
        ("http://h/%2e%2e", "index.html"),
        ("http://h/..%2f..%2fetc%2fpasswd", "index.html"),
        ("http://h/%1b[31m%0ax", r"\x1b[31m\x0ax"),
    ],
)
def test_default_name_stays_in_the_folder(url: str, name: str) -> None:
    assert default_name(url) == name


@pytest.mark.parametrize(
    "url",
    [
        "https://h/x",
        "ftp://h/x",
        "http://",
        "http://h:99999/",
        "http://h:x/",
        "http://h/a b",
        "http://a..b/",
        f"http://{'a' * 64}/",
    ],
)
def test_bad_urls_are_one_sentence(url: str) -> None:
    check: Callable[[str], object] = split_url
    with pytest.raises(ConfigurationError) as caught:
        check(url)
    assert "\n" not in str(caught.value)
