"""Lines of ``mptcp events``, and events found by comparing two looks."""

from dataclasses import replace

import pytest

from mptcp.cli import app
from mptcp.cli.connection_list import Row
from mptcp.cli.event_sources import Comparison, Told, event_of
from mptcp.cli.events import line, told_to_json
from mptcp.core.multipath.events import Event, EventKind
from mptcp.info import ConnectionInfo, Endpoint, SubflowInfo, SubflowState
from mptcp.kernel.pm_events import PmEvent, PmEventKind
from mptcp.kernel.processes import Process

LOCAL, REMOTE = Endpoint.parse("10.0.0.1", 1000), Endpoint.parse("fd00::1", 80)


def subflow(number: int, *, backup: bool = False, state: SubflowState = SubflowState.ACTIVE) -> SubflowInfo:
    return SubflowInfo(number, LOCAL, REMOTE, 0, 0, state, initial=number == 1, backup=backup)


def row(*subflows: SubflowInfo, state: str = "established", multipath: bool = True, reason: str = "") -> Row:
    info = ConnectionInfo(multipath, reason, 7, 0, 1, False, state, subflows=list(subflows))
    return Row(LOCAL, REMOTE, info)


def kinds(told: list[Told]) -> list[str]:
    return [each.event.kind.value for each in told]


def test_what_was_there_is_no_news() -> None:
    compare = Comparison([row(subflow(1))])
    assert compare.update([row(subflow(1))]) == []


def test_from_connecting_to_closed() -> None:
    compare = Comparison([])
    assert compare.update([row(subflow(1, state=SubflowState.CONNECTING), state="connecting")]) == []
    assert kinds(compare.update([row(subflow(1))])) == ["established", "subflow-established"]
    assert kinds(compare.update([row(subflow(1), subflow(2, state=SubflowState.CONNECTING))])) == []
    told = compare.update([row(subflow(1), subflow(2))])
    assert kinds(told) == ["subflow-established"]
    assert told[0].event.subflow_id == 2
    assert kinds(compare.update([row(subflow(1), subflow(2, backup=True))])) == ["priority-changed"]
    assert kinds(compare.update([row(subflow(2, backup=True))])) == ["subflow-closed"]
    assert kinds(compare.update([])) == ["closed"]
    assert compare.update([]) == []


def test_a_connection_with_all_its_subflows_at_once() -> None:
    told = Comparison([]).update([row(subflow(1), subflow(2))])
    assert kinds(told) == ["established", "subflow-established"]


def test_one_that_never_was() -> None:
    compare = Comparison([row(state="connecting")])
    assert compare.update([]) == []


def test_a_fallback() -> None:
    compare = Comparison([row(subflow(1))])
    [told] = compare.update([row(subflow(1), multipath=False, reason="a middlebox")], 5)
    assert told.event == Event(EventKind.FELL_BACK, 5, reason="a middlebox")


@pytest.mark.parametrize(
    ("event", "text"),
    [
        (Event(EventKind.ESTABLISHED, 0, local=LOCAL, remote=REMOTE), "established"),
        (
            Event(EventKind.SUBFLOW_ESTABLISHED, 0, 2, LOCAL, REMOTE, backup=True),
            "subflow-established 2 10.0.0.1:1000 → [fd00::1]:80 backup",
        ),
        (
            Event(EventKind.SUBFLOW_CLOSED, 0, 2, LOCAL, REMOTE, reason="timeout"),
            "subflow-closed 2 10.0.0.1:1000 → [fd00::1]:80 (timeout)",
        ),
        (Event(EventKind.ADDRESS_ANNOUNCED, 0, remote=replace(REMOTE, port=0), address_id=3), "address-announced fd00::1 id 3"),
        (Event(EventKind.ADDRESS_REMOVED, 0, address_id=0), "address-removed id 0"),
        (Event(EventKind.PRIORITY_CHANGED, 0, 1), "priority-changed 1 not backup"),
        (Event(EventKind.MISSED, 0, missed=9, reason="too fast"), "missed (too fast)"),
    ],
)  # fmt: skip
def test_lines(event: Event, text: str) -> None:
    told = line(Told(event, LOCAL, REMOTE))
    assert told.split(" ", 1)[1] == f"10.0.0.1:1000 → [fd00::1]:80 {text}"


def test_lines_of_nobody_and_of_strangers() -> None:
    event = Event(EventKind.LOCAL_ADDRESS_AVAILABLE, 0, local=replace(LOCAL, port=0), interface=3)
    told = Told(event, interface="eth0")
    assert line(told).endswith(" local-address-available 10.0.0.1 eth0")
    assert told_to_json(told) == {
        "event": "local-address-available", "at_us": 0, "local": "10.0.0.1:0", "interface": 3, "interface_name": "eth0",
    }  # fmt: skip
    stranger = Told(Event(EventKind.CLOSED, 0), token=0xAB, process=Process(4, "x"))
    assert line(stranger).endswith(" token 0xab x (4) closed")
    assert told_to_json(stranger)["connection"] == {"token": 0xAB}


def test_the_kernels_events_in_our_words() -> None:
    announced = event_of(PmEvent(PmEventKind.ANNOUNCED, 1, LOCAL, REMOTE, remote_id=4))
    assert announced is not None
    assert (announced.local, announced.remote, announced.address_id) == (None, REMOTE, 4)
    closed = event_of(PmEvent(PmEventKind.SUBFLOW_CLOSED, 1, LOCAL, REMOTE, error=110))
    assert closed is not None
    assert closed.reason == "timeout"
    in_order = event_of(PmEvent(PmEventKind.SUBFLOW_CLOSED, 1, LOCAL, REMOTE))
    assert in_order is not None
    assert in_order.reason == ""
    assert event_of(PmEvent(PmEventKind.CREATED, 1)) is None


def test_wrong_use(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(["events", "--stack", "x"]) == 2
    assert app.run(["events", "--stack", "user", "--netns", "x"]) == 2
    assert "namespace" in capsys.readouterr().err
