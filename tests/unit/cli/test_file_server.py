"""``mptcp serve``'s file server, asked over the in-process link by ``http.client``."""

import http.client
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mptcp.cli import file_server
from mptcp.cli.connections import Stack, stack_on
from mptcp.cli.fetch import Fetch, HttpConnection
from mptcp.links.loopback import LoopbackLink

BODY = bytes(range(256)) * 400
SERVER = "10.98.0.2"

Ask = Callable[..., tuple[http.client.HTTPResponse, bytes]]


@pytest.fixture
def site(tmp_path: Path) -> Path:
    folder = tmp_path / "site"
    (folder / "sub").mkdir(parents=True)
    (folder / "f.bin").write_bytes(BODY)
    (tmp_path / "secret").write_text("secret")
    return folder


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest.fixture
def client(site: Path, lines: list[str]) -> Iterator[Stack]:
    near, far = LoopbackLink.pair("wire")
    with stack_on([far], [[SERVER]]) as server_stack, stack_on([near], [["10.98.0.1"]]) as stack:
        server = file_server.FileServer(server_stack.listen(80), site, say=lines.append)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield stack
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def ask(client: Stack) -> Ask:
    def ask(method: str = "GET", path: str = "/f.bin", **headers: str) -> tuple[http.client.HTTPResponse, bytes]:
        connection = HttpConnection(SERVER, 80, 60, client.connect)
        connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        response = connection.getresponse()
        body = response.read()
        connection.close()
        return response, body

    return ask


def test_whole_file(ask: Ask, lines: list[str]) -> None:
    response, body = ask()
    assert (response.status, body) == (200, BODY)
    assert response.headers["Accept-Ranges"] == "bytes"
    assert response.headers["Content-Length"] == str(len(BODY))
    response, body = ask("HEAD")
    assert (response.status, body, response.headers["Content-Length"]) == (200, b"", str(len(BODY)))
    assert len([line for line in lines if "/f.bin: 100.0 KiB in" in line]) == 1


@pytest.mark.parametrize(
    ("wanted", "status", "part", "described"),
    [
        ("bytes=10-19", 206, BODY[10:20], "bytes 10-19/102400"),
        ("bytes=102300-", 206, BODY[102300:], "bytes 102300-102399/102400"),
        ("bytes=-5", 206, BODY[-5:], "bytes 102395-102399/102400"),
        ("bytes=0-1,5-6", 200, BODY, None),
        ("bytes=102400-", 416, b"", "bytes */102400"),
    ],
)
def test_ranges(ask: Ask, wanted: str, status: int, part: bytes, described: str | None) -> None:
    response, body = ask(Range=wanted)
    assert (response.status, body) == (status, part)
    assert response.headers["Content-Range"] == described


def test_if_range(ask: Ask, site: Path) -> None:
    tag = ask("HEAD")[0].headers["ETag"]
    date = ask("HEAD")[0].headers["Last-Modified"]
    for validator in (tag, date):
        assert ask(Range="bytes=5-", If_Range=validator)[0].status == 206
    os.utime(site / "f.bin", (1, 1))
    for validator in (tag, date):
        # RFC 9110 §13.1.5: a condition that is false makes the range be ignored
        response, body = ask(Range="bytes=5-", If_Range=validator)
        assert (response.status, body) == (200, BODY)


@pytest.mark.parametrize("path", ["/none", "/../secret", "/%2e%2e/secret", "/sub/../../secret", "/f.bin/"])
def test_what_is_not_there(ask: Ask, path: str) -> None:
    assert ask(path=path)[0].status == 404


def test_listing(ask: Ask) -> None:
    response, body = ask(path="/")
    assert response.status == 200
    assert b"f.bin" in body


def test_one_connection_many_requests(client: Stack) -> None:
    connection = HttpConnection(SERVER, 80, 60, client.connect)
    for _ in range(5):
        connection.request("GET", "/f.bin", headers={"Range": "bytes=1-2"})
        assert connection.getresponse().read() == BODY[1:3]
    connection.close()


def test_log_lines_have_no_control_characters(ask: Ask, client: Stack, lines: list[str]) -> None:
    sock = client.connect((SERVER, 80), 60)
    sock.sendall(b"GET /f.bin?\x1b[31m HTTP/1.0\r\n\r\n")
    while sock.recv(1000):
        pass
    sock.close()
    assert any("\\x1b" in line for line in lines)
    assert not any("\x1b" in line for line in lines)


def test_too_many_connections_are_closed(client: Stack, monkeypatch: pytest.MonkeyPatch, site: Path) -> None:
    near, far = LoopbackLink.pair("small")
    monkeypatch.setattr(file_server, "MAX_CONNECTIONS", 2)
    with stack_on([far], [[SERVER]]) as server_stack, stack_on([near], [["10.98.0.1"]]) as stack:
        server = file_server.FileServer(server_stack.listen(80), site, say=lambda line: None)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        held = [stack.connect((SERVER, 80), 60) for _ in range(2)]
        for sock in held:
            sock.sendall(b"HEAD /f.bin HTTP/1.1\r\n\r\n")
            assert sock.recv(12) == b"HTTP/1.1 200"
        third = stack.connect((SERVER, 80), 60)
        assert third.recv(1) == b""
        for sock in [*held, third]:
            sock.close()
        server.shutdown()
        thread.join()
        server.server_close()


def test_interrupted_download_continues_with_a_range(client: Stack, tmp_path: Path, lines: list[str]) -> None:
    def interrupt(done: int, total: int | None, resumed: int) -> None:
        if done > 20_000:
            raise KeyboardInterrupt

    target = tmp_path / "got"
    url = f"http://{SERVER}/f.bin"
    with pytest.raises(KeyboardInterrupt):
        Fetch(url, target, client.connect, timeout=60, progress=interrupt).run()
    kept = target.with_name("got.part").stat().st_size
    result = Fetch(url, target, client.connect, timeout=60).run()
    assert (result.resumed, result.received) == (kept, len(BODY) - kept)
    assert target.read_bytes() == BODY
