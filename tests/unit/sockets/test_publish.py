"""A running stack seen from outside: what is shown, to whom, and what nonsense on the socket does."""

import contextlib
import json
import os
import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mptcp.core.multipath.events import Event, EventKind
from mptcp.info import Endpoint, SubflowState
from mptcp.sockets import publish
from mptcp.sockets.inspection_json import (
    connection_from_json,
    connection_to_json,
    endpoint_from_text,
    event_from_json,
    event_to_json,
)
from mptcp.sockets.publish import PublishedLines, Publisher


@pytest.fixture(autouse=True)
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr(publish, "ABSENCE_S", 0.05)
    return tmp_path


@pytest.fixture
def shown(ours: Any) -> Iterator[Publisher]:
    publisher = ours.client_stack.publish("program")
    yield publisher
    publisher.close()


def test_a_connection(ours: Any, shown: Publisher) -> None:
    client, _ = ours.pair()
    client.sendall(b"x" * 100)
    [path] = publish.published()
    stack = publish.look(path)
    assert stack is not None
    assert (stack.pid, stack.program, stack.omitted) == (os.getpid(), "program", 0)
    [(local, remote, info)] = stack.connections
    assert (local, remote) == (Endpoint.parse(*client.getsockname()[:2]), Endpoint.parse(*client.getpeername()[:2]))
    assert info.is_multipath
    assert info.token == client.connection_id
    assert info.bytes_sent >= 100
    assert info.subflows[0].state is SubflowState.ACTIVE


def test_only_this_user_can_get_there(shown: Publisher) -> None:
    assert stat.S_IMODE(shown.path.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(shown.path.stat().st_mode) == 0o600


def test_a_directory_of_others_is_refused(ours: Any, runtime: Path) -> None:
    (runtime / "mptcp").mkdir()
    (runtime / "mptcp").chmod(0o777)
    with pytest.raises(PermissionError):
        ours.client_stack.publish()


def test_other_users_are_not_answered(shown: Publisher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publish, "_peer_uid", lambda sock: os.geteuid() + 1)
    assert publish.look(shown.path) is None


def test_closing_withdraws_it(ours: Any) -> None:
    publisher = ours.client_stack.publish()
    assert publish.published() == [publisher.path]
    publisher.close()
    publisher.close()
    assert publish.published() == []
    assert publish.look(publisher.path) is None


def test_what_a_killed_process_left_is_cleared_away(runtime: Path, shown: Publisher) -> None:
    left = shown.path.with_name("99999-1.sock")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(left))
    assert left in publish.published()
    assert publish.look(left) is None
    assert publish.published() == [shown.path]


def test_events_as_they_happen(ours: Any, shown: Publisher) -> None:
    with PublishedLines(shown.path, b"events\n") as lines:
        told = iter(lines)
        assert next(told)["program"] == "program"
        client, _ = ours.pair()
        local, remote, event = publish.event_of(next(told))
        assert event.kind is EventKind.ESTABLISHED
        assert (local, remote) == (Endpoint.parse(*client.getsockname()[:2]), Endpoint.parse(*client.getpeername()[:2]))
        client.close()
        shown.close()
        kinds = [publish.event_of(line)[2].kind for line in told]
        assert set(kinds) <= set(EventKind)
    assert client._stack.pump.host.observer is None


def test_a_listener_who_hears_nothing_for_a_while_still_listens(
    ours: Any, shown: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = threading.Semaphore(0)
    is_gone = publish._Client._is_gone

    def look(client: publish._Client) -> bool:
        looks.release()
        return is_gone(client)

    monkeypatch.setattr(publish._Client, "_is_gone", look)
    with PublishedLines(shown.path, b"events\n") as lines:
        told = iter(lines)
        next(told)
        for _ in range(3):
            assert looks.acquire(timeout=30)
        ours.pair()
        assert publish.event_of(next(told))[2].kind is EventKind.ESTABLISHED


def test_nobody_listens_nothing_is_told(ours: Any, shown: Publisher) -> None:
    assert ours.client_stack.pump.host.observer is None
    with PublishedLines(shown.path, b"events\n") as lines:
        next(iter(lines))
        assert ours.client_stack.pump.host.observer is not None
    # Its going is noticed when there is something to tell, or by looking once a second.
    for _ in range(3000):
        if ours.client_stack.pump.host.observer is None:
            break
        threading.Event().wait(0.01)
    assert ours.client_stack.pump.host.observer is None


def test_a_listener_that_does_not_read_misses_some(ours: Any, shown: Publisher) -> None:
    near, far = socket.socketpair()
    client = publish._Client(shown, near)
    client.listens = True
    for at in range(publish.MAX_WAITING + 10):
        client.put({"event": "closed", "at_us": at})
    assert len(client._waiting) == publish.MAX_WAITING
    client._waiting.clear()
    client.put({"event": "closed", "at_us": 9999})
    assert [told["event"] for told in client._waiting] == ["missed", "closed"]
    assert client._waiting[0]["missed"] == 10
    near.close()
    far.close()


def test_more_clients_than_are_served(shown: Publisher) -> None:
    idle = []
    try:
        for _ in range(publish.MAX_CLIENTS):
            lines = PublishedLines(shown.path, b"events\n")
            idle.append(lines)
            next(iter(lines))
        assert publish.look(shown.path) is None
        idle.pop().close()
        for _ in range(3000):
            if publish.look(shown.path) is not None:
                break
            threading.Event().wait(0.01)
        else:
            pytest.fail("the place of who has gone stays taken")
    finally:
        for lines in idle:
            lines.close()


@pytest.mark.parametrize("request_", [b"", b"nonsense\n", b"x" * 5000])
def test_nonsense_is_not_answered(shown: Publisher, request_: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(30)
        sock.connect(str(shown.path))
        sock.sendall(request_)
        sock.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionResetError):  # it was not even read
            assert sock.recv(100) == b""
    assert publish.look(shown.path) is not None


@pytest.mark.parametrize(
    "answer", [b"", b"[]\n", b"{}\n", b"\xff\n", b'{"pid":1}', b"[" * 100_000 + b"\n", b'{"pid":1,"program":"x","connections":[{}],"omitted":0}\n']
)  # fmt: skip
def test_nonsense_is_not_believed(runtime: Path, answer: bytes) -> None:
    path = runtime / "1-1.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            sock, _ = listener.accept()
            sock.recv(100)
            sock.sendall(answer)
            sock.close()

        thread = threading.Thread(target=serve)
        thread.start()
        assert publish.look(path) is None
        thread.join()


def test_a_forgotten_stack_is_not_shown(ours: Any) -> None:
    publisher = ours.client_stack.publish()
    assert len(publisher._listing()["connections"]) == 0
    publisher._stack = lambda: None
    assert publisher._listing()["connections"] == []
    publisher.close()


# --- JSON ------------------------------------------------------------------------------------------------------------
def test_there_and_back(ours: Any) -> None:
    client, _ = ours.pair()
    local, remote = Endpoint.parse("10.0.0.1", 1), Endpoint.parse("fd00::1", 2)
    info = client.info()
    told = json.loads(json.dumps(connection_to_json(local, remote, info)))
    assert connection_from_json(told) == (local, remote, info)
    for event in (
        Event(EventKind.SUBFLOW_CLOSED, 5, 2, local, remote, reason="timeout"),
        Event(EventKind.PRIORITY_CHANGED, 5, 2, local, remote, backup=False),
        Event(EventKind.MISSED, 1, missed=9),
        Event(EventKind.ADDRESS_ANNOUNCED, 1, remote=remote, address_id=0),
        Event(EventKind.LOCAL_ADDRESS_AVAILABLE, 1, local=local, interface=3),
    ):
        assert event_from_json(json.loads(json.dumps(event_to_json(event)))) == event


@pytest.mark.parametrize("text", ["", "1.2.3.4", "1.2.3.4:x", "1.2.3.4:70000", "x:1", "[::1:1:", None, 5, "1.2.3.4:²"])
def test_what_is_no_endpoint(text: object) -> None:
    with pytest.raises(ValueError):
        endpoint_from_text(text)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
)


@settings(max_examples=50)
@given(json_values)
def test_any_json(told: object) -> None:
    for parse in (connection_from_json, event_from_json):
        with pytest.raises(ValueError):
            parse(told)


def test_types_are_checked_and_texts_made_harmless(ours: Any) -> None:
    client, _ = ours.pair()
    good = connection_to_json(Endpoint.parse("10.0.0.1"), Endpoint.parse("10.0.0.2"), client.info())
    for name, value in (("token", "x"), ("is_multipath", 1), ("subflows", {}), ("state", None)):
        with pytest.raises(ValueError):
            connection_from_json({**good, name: value})
    evil = {**good, "state": "\x1b[2Jgone" + "x" * 5000}
    _, _, info = connection_from_json(evil)
    assert info.state.startswith("?[2Jgone")
    assert len(info.state) <= 1000
