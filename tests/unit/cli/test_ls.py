"""``mptcp ls`` and ``mptcp events`` of user-space stacks, and their pictures."""

import io
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from mptcp.cli import app, ls
from mptcp.cli.connection_list import Listener, Rates, Row, Snapshot, UserSource
from mptcp.cli.event_sources import UserEvents
from mptcp.core.multipath.events import EventKind
from mptcp.info import ConnectionInfo, Endpoint, SubflowInfo, SubflowState
from mptcp.kernel.diagnosis import Cause, Finding
from mptcp.kernel.processes import Process
from mptcp.links.loopback import LoopbackLink
from mptcp.sockets.create import create_connection, create_server, use
from mptcp.sockets.user import UserStack
from mptcp.testing.exchange import wait_until

LOCAL, REMOTE = Endpoint.parse("10.0.0.1", 1000), Endpoint.parse("10.0.0.2", 80)


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, Any]]:
    """Two connected sockets of two stacks; the client's stack is published."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    near, far = LoopbackLink.pair()
    with ExitStack() as exits:
        client_stack = exits.enter_context(UserStack([near], ["10.0.0.1"], seed=1))
        server_stack = exits.enter_context(UserStack([far], ["10.0.0.2"], seed=2))
        exits.callback(client_stack.publish("prog").close)
        with use(server_stack):
            listener = exits.enter_context(create_server(("0.0.0.0", 80)))
        with use(client_stack):
            client = exits.enter_context(create_connection(("10.0.0.2", 80)))
        server, _ = listener.accept()
        exits.enter_context(server)
        yield client, server


def test_as_json(pair: tuple[Any, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(["ls", "--stack", "user", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["stack"] == "user"
    [connection] = told["connections"]
    assert connection["remote"] == "10.0.0.2:80"
    assert connection["processes"][0]["name"] == "prog"
    assert connection["token"] == pair[0].connection_id
    assert connection["subflows"][0]["sent_bits_per_second"] == 0


def test_as_a_table(pair: tuple[Any, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(["ls", "--stack", "user"]) == 0
    text = capsys.readouterr().out
    assert "→ 10.0.0.2:80 established" in text
    assert "1 10.0.0.1 → 10.0.0.2" in text


def test_nobody_shows_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert app.run(["ls", "--stack", "user"]) == 0
    assert "no process of this user shows a connection" in capsys.readouterr().out


def test_watching(pair: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Off a terminal each look is printed; Ctrl-C ends it."""
    looks = []

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(ls.time, "sleep", sleep)
    assert app.run(["ls", "--stack", "user", "--watch", "--interval", "0.5", "--json"]) == 130
    lines = capsys.readouterr().out.splitlines()
    assert looks == [0.5, 0.5, 0.5]
    assert [len(json.loads(line)["connections"]) for line in lines] == [1, 1, 1]
    looks.clear()
    assert app.run(["ls", "--stack", "user", "--watch"]) == 130
    assert capsys.readouterr().out.count("10.0.0.2:80 established") == 3


def test_events_of_a_published_stack(pair: tuple[Any, Any]) -> None:
    with UserEvents() as source:
        for sock in pair:
            sock.close()
        told = []
        for _ in range(100):
            told += source.read(0.5)
            if told:
                break
    assert told[0].event.kind in set(EventKind)
    assert str(told[0].remote) == "10.0.0.2:80"
    assert told[0].process is not None
    assert told[0].process.name == "prog"


def test_events_command(pair: tuple[Any, Any], capsys: pytest.CaptureFixture[str]) -> None:
    host = pair[0]._stack.pump.host

    def close_both() -> None:
        wait_until(lambda: host.observer is not None, 60, "somebody listens")
        for sock in pair:
            sock.close()

    closer = threading.Thread(target=close_both)
    closer.start()
    assert app.run(["events", "--stack", "user", "-n", "1", "--json"]) == 0
    closer.join()
    head, event = map(json.loads, capsys.readouterr().out.splitlines())
    assert head["complete"]
    assert event["connection"]["remote"] == "10.0.0.2:80"


def test_events_that_come_with_the_greeting_and_before_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A stack that says everything at once and is gone: all of it is told."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    (tmp_path / "mptcp").mkdir(mode=0o700)
    lines = [{"pid": 7, "program": "prog"}, *({"event": "closed", "at_us": n} for n in range(3))]
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "mptcp" / "7-1.sock"))
        listener.listen()

        def serve() -> None:
            sock, _ = listener.accept()
            with sock:
                sock.sendall("".join(json.dumps(line) + "\n" for line in lines).encode())
                sock.recv(64)

        thread = threading.Thread(target=serve)
        thread.start()
        assert app.run(["events", "--stack", "user", "-n", "3", "--json"]) == 0
        thread.join()
    _, *told = map(json.loads, capsys.readouterr().out.splitlines())
    assert [each["event"] for each in told] == ["closed"] * 3


def test_events_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert app.run(["events", "--stack", "user", "--for", "0.05"]) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "user-space" in captured.err


def subflow(number: int = 1, **options: Any) -> SubflowInfo:
    return SubflowInfo(number, LOCAL, REMOTE, 0, 0, SubflowState.ACTIVE, **options)


def row(*subflows: SubflowInfo, multipath: bool = True, **options: Any) -> Row:
    info = ConnectionInfo(multipath, "no option", 7, 0, 1, False, "established", subflows=list(subflows))
    return Row(LOCAL, REMOTE, info, **options)


def picture(snapshot: Snapshot, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    console.print(ls.picture(UserSource(), snapshot, width))
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_rates() -> None:
    rates = Rates()
    first, second = row(subflow(bytes_sent=0)), row(subflow(bytes_sent=1250, bytes_received=2500))
    rates.update(Snapshot([first], at_ns=1))
    assert first.rates == {}
    rates.update(Snapshot([second], at_ns=1_000_001))
    assert second.rates == {1: (10_000_000.0, 20_000_000.0)}
    again = row(subflow(bytes_sent=0))
    rates.update(Snapshot([again], at_ns=2_000_001))
    assert again.rates == {1: (0.0, 0.0)}, "another one with the same addresses, not a negative rate"


def test_what_a_picture_says() -> None:
    told = picture(
        Snapshot(
            [
                row(subflow(backup=True, srtt_us=20), why=[Finding(Cause.LIMIT, "a limit", "raise it")], uid=1000),
                row(subflow(srtt_us=20_000), multipath=False, opened_here=True),
                row(
                    why=[Finding(Cause.LOST, "lost", certain=False)], processes=[Process(5, "nginx")], opened_here=False
                ),
            ],
            [Listener(LOCAL, [Process(5, "nginx")])],
            ["a note"],
        ),
        120,
    )
    for words in (
        "backup", "20 µs", "20.0 ms", "user 1000", "why: a limit", "fix: raise it", "plain TCP: no option", "connected",
        "accepted", "nginx (5)", "why, perhaps: lost", "no subflow is left", "listening: 10.0.0.1:1000 nginx (5)", "a note",
    ):  # fmt: skip
        assert words in told


@pytest.mark.parametrize("width", [40, 80, 120, 200])
def test_it_fits(width: int) -> None:
    long = [Endpoint.parse(f"2001:db8:aaaa:bbbb:cccc:dddd:eeee:fff{i}", 65535) for i in (1, 2)]
    wide = SubflowInfo(1, long[0], long[1], 0, 0, SubflowState.CONNECTING, interface="enp0s31f6np0")
    info = ConnectionInfo(True, "", 7, 0, 1, False, "established", subflows=[wide])
    lines = picture(Snapshot([Row(long[0], long[1], info)]), width).splitlines()
    assert width < 80 or max(map(len, lines)) <= width
    assert any("enp0s31f6np0" in text for text in lines)


def test_ports_are_shown_where_they_differ() -> None:
    other = SubflowInfo(2, LOCAL, Endpoint.parse("10.0.1.2", 8443), 0, 0, SubflowState.ACTIVE)
    told = picture(Snapshot([row(subflow(), other, opened_here=True)]))
    assert "1 10.0.0.1 → 10.0.0.2 " in told
    assert "2 10.0.0.1 → 10.0.1.2:8443 " in told
