"""``mptcp events`` against the real kernel: with the privilege to hear its events, and without."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mptcp.cli import event_sources
from mptcp.cli.event_sources import ComparedEvents, EventSource, KernelEvents, Told
from mptcp.cli.events import line, told_to_json
from mptcp.core.multipath.events import EventKind
from mptcp.kernel.diag import Diag
from mptcp.kernel.namespace import NetNamespace
from mptcp.testing.netns import Lab

Pair = Callable[..., tuple[socket.socket, socket.socket]]
SOURCE = str(Path(event_sources.__file__).parents[2])


class Collected:
    """What a source tells, until it has told something."""

    def __init__(self, source: EventSource) -> None:
        self.source = source
        self.told: list[Told] = []

    def until(self, kind: EventKind) -> Told:
        for _ in range(600):
            self.told += self.source.read(0.05)
            found = [told for told in self.told if told.event.kind is kind]
            if found:
                return found[-1]
        raise AssertionError(f"no {kind} among {[told.event.kind for told in self.told]}")


@pytest.fixture(params=[KernelEvents, ComparedEvents])
def heard(request: pytest.FixtureRequest, lab: Lab) -> Iterator[Collected]:
    with request.param(NetNamespace(lab.client.fileno())) as source:
        yield Collected(source)


def test_the_life_of_a_connection(heard: Collected, lab: Lab, make_pair: Pair) -> None:
    client, server = make_pair(lab.client, lab.server_address(1), server_in=lab.server)
    told = heard.until(EventKind.ESTABLISHED)
    assert told.local is not None
    assert told.remote is not None
    assert str(told.local) == "{}:{}".format(*client.getsockname())
    lab.client.mptcp_endpoint(lab.client_address(2), "subflow", "backup", id=6)
    opened = heard.until(EventKind.SUBFLOW_ESTABLISHED)
    assert (opened.local, opened.remote) == (told.local, told.remote)
    assert opened.event.local is not None
    assert opened.event.local.host == lab.client_address(2)
    with Diag(NetNamespace(lab.client.fileno())) as diag:
        [subflow] = [s for s in diag.subflows() if s.is_join]
        diag.destroy(subflow.local, subflow.remote)
    closed = heard.until(EventKind.SUBFLOW_CLOSED)
    assert closed.event.local == opened.event.local
    lab.client.ip(f"addr del {lab.client_address(2)}/24 dev c2")
    gone = heard.until(EventKind.LOCAL_ADDRESS_UNAVAILABLE)
    assert gone.interface == "c2"
    assert gone.local is None
    client.close()
    server.close()
    over = heard.until(EventKind.CLOSED)
    assert (over.local, over.remote) == (told.local, told.remote)
    assert "connection" in told_to_json(over)
    assert line(over).split(" ", 1)[1] == f"{told.local} → {told.remote} closed"


def test_a_connection_that_was_there_before(lab: Lab, make_pair: Pair) -> None:
    """Events only have a token: whose it is, was listed at the start."""
    client, _ = make_pair(lab.client, lab.server_address(1), server_in=lab.server)
    with KernelEvents(NetNamespace(lab.client.fileno())) as source:
        lab.client.mptcp_endpoint(lab.client_address(2), "subflow")
        told = Collected(source).until(EventKind.SUBFLOW_ESTABLISHED)
    assert str(told.local) == "{}:{}".format(*client.getsockname())


def test_an_announced_address(lab: Lab, make_pair: Pair) -> None:
    lab.server.mptcp_endpoint(lab.server_address(2), "signal", id=3)
    with KernelEvents(NetNamespace(lab.client.fileno())) as source:
        make_pair(lab.client, lab.server_address(1), server_in=lab.server)
        told = Collected(source).until(EventKind.ADDRESS_ANNOUNCED)
    assert told.event.address_id == 3
    assert told.event.remote is not None
    assert line(told).endswith(f"address-announced 10.77.2.2:{told.event.remote.port} id 3")


@pytest.fixture
def run(lab: Lab) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts ``mptcp events`` for the client's namespace; it has said that it listens."""
    started = []

    def start(*options: str, prefix: tuple[str, ...] = ()) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [*prefix, sys.executable, "-m", "mptcp", "events", "--json", *options],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": SOURCE},
        )  # fmt: skip
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_as_a_program(run: Callable[..., subprocess.Popen[str]], lab: Lab, make_pair: Pair) -> None:
    process = run("--netns", f"/proc/{os.getpid()}/fd/{lab.client.fileno()}", "-n", "2")
    assert process.stdout is not None
    head = json.loads(process.stdout.readline())
    assert (head["event"], head["complete"]) == ("listening", True)
    make_pair(lab.client, lab.server_address(1), server_in=lab.server)
    lab.client.mptcp_endpoint(lab.client_address(2), "subflow")
    told = [json.loads(text) for text in process.stdout]
    assert [entry["event"] for entry in told] == ["established", "subflow-established"]
    assert told[0]["connection"] == told[1]["connection"]
    assert process.wait(30) == 0


def test_without_privilege_it_says_so(run: Callable[..., subprocess.Popen[str]]) -> None:
    """A process without any capability, in the namespace it was started in."""
    if subprocess.run(["setpriv", "--version"], check=False, capture_output=True).returncode:
        pytest.skip("setpriv (util-linux) is not installed")
    process = run("--for", "0.1", prefix=("setpriv", "--bounding-set=-all", "--inh-caps=-all", "--"))
    assert process.stdout is not None
    text = process.stdout.readline()
    if not text:
        assert process.stderr is not None
        error = process.stderr.read().strip()
        assert error.startswith("setpriv: "), error
        pytest.skip(f"capabilities cannot be dropped here: {error}")
    head = json.loads(text)
    assert not head["complete"]
    assert "CAP_NET_ADMIN" in head["note"]
    assert process.wait(30) == 0
