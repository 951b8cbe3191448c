"""``mptcp ls`` and the listing beneath it, against real connections in namespaces."""

import io
import json
import os
import socket
import threading
from collections.abc import Callable
from dataclasses import replace

import pytest
from rich.console import Console

from mptcp.cli import app, ls
from mptcp.cli.connection_list import KernelSource, Rates
from mptcp.kernel.listing import Listing
from mptcp.kernel.namespace import NetNamespace
from mptcp.testing.netns import Lab, Namespace

Pair = Callable[..., tuple[socket.socket, socket.socket]]
Eventually = Callable[..., None]


def netns(namespace: Namespace) -> str:
    return f"/proc/{os.getpid()}/fd/{namespace.fileno()}"


def listed(namespace: Namespace, capsys: pytest.CaptureFixture[str], *options: str) -> dict:
    capsys.readouterr()
    assert app.run(["ls", "--json", "--netns", netns(namespace), *options]) == 0
    return json.loads(capsys.readouterr().out)


def shown(namespace: Namespace, width: int, *, why: bool = False) -> str:
    with KernelSource(NetNamespace(namespace.fileno())) as source:
        console = Console(file=io.StringIO(), width=width, highlight=False)
        console.print(ls.picture(source, source.read(why=why), width))
        return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.fixture
def connection(lab: Lab, make_pair: Pair, eventually: Eventually) -> tuple[socket.socket, socket.socket]:
    """Two subflows, the second one backup."""
    lab.client.mptcp_endpoint(lab.client_address(2), "subflow", "backup", id=4)
    pair = make_pair(lab.client, lab.server_address(1), server_in=lab.server)

    def established() -> bool:
        with Listing(NetNamespace(lab.client.fileno())) as listing:
            return [s.state.value for s in listing.read()[0][0].info.subflows] == ["active"] * 2

    eventually(established)
    return pair


def test_as_json(lab: Lab, connection: tuple[socket.socket, socket.socket], capsys: pytest.CaptureFixture[str]) -> None:
    client, server = connection
    told = listed(lab.client, capsys)
    assert told["stack"] == "kernel"
    [entry] = told["connections"]
    host, port = client.getsockname()
    assert entry["local"] == f"{host}:{port}"
    assert entry["remote"] == "{}:{}".format(*client.getpeername())
    assert entry["opened_here"] is True
    assert entry["uid"] == os.stat(f"/proc/self/fd/{client.fileno()}").st_uid
    assert os.getpid() in [process["pid"] for process in entry["processes"]]
    assert (entry["bytes_sent"], entry["bytes_received"], entry["is_multipath"]) == (1, 1, True)
    first, second = entry["subflows"]
    assert [s["id"] for s in entry["subflows"]] == [1, 2]
    assert (first["initial"], second["initial"]) == (True, False)
    assert (second["interface"], second["backup"], second["local_address_id"]) == ("c2", True, 4)
    assert {"sent_bits_per_second", "received_bits_per_second"} <= set(first)
    assert first["congestion_control"] == "reno"

    there = listed(lab.server, capsys)
    [entry] = there["connections"]
    assert entry["opened_here"] is False
    [listening] = there["listening"]
    assert listening["local"] == "{}:{}".format(*server.getsockname())


@pytest.mark.parametrize("width", [80, 120])
def test_the_picture_fits(lab: Lab, connection: tuple[socket.socket, socket.socket], width: int) -> None:
    text = shown(lab.client, width)
    assert max(map(len, text.splitlines())) <= width
    for word in ("10.77.2.1 → 10.77.1.2 c2", "backup", "active", "connected", "window"):
        assert word in text
    assert ("sent" in text) == (width == 120)


def test_why(lab: Lab, make_pair: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    make_pair(lab.client, lab.server_address(1), server_in=lab.server)
    [entry] = listed(lab.client, capsys, "--why")["connections"]
    [finding] = entry["why"]
    assert finding["cause"] == "no-endpoint"
    text = shown(lab.client, 80, why=True)
    assert "why: no endpoint" in text
    assert "fix: ip mptcp endpoint add 10.77.2.1 dev c2 subflow" in text


def test_plain_tcp(lab: Lab, make_pair: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    make_pair(lab.client, lab.server_address(1), server_in=lab.server, server_protocol=0)
    [entry] = listed(lab.client, capsys)["connections"]
    assert not entry["is_multipath"]
    assert "MP_CAPABLE" in entry["fallback_reason"]
    assert "plain TCP: the SYN/ACK" in shown(lab.client, 120)


def test_nothing_there(host_namespace: Namespace, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(["ls", "--netns", netns(host_namespace)]) == 0
    assert "no MPTCP connections" in capsys.readouterr().out
    host_namespace.sysctl("net.mptcp.enabled", 0)
    assert app.run(["ls", "--netns", netns(host_namespace)]) == 0
    assert "net.mptcp.enabled=1" in capsys.readouterr().out


def test_rates_are_of_what_goes_through(
    lab: Lab, connection: tuple[socket.socket, socket.socket], eventually: Eventually
) -> None:
    client, server = connection
    with KernelSource(NetNamespace(lab.client.fileno())) as source:
        rates = Rates()
        rates.update(replace(source.read(), at_ns=0))
        reader = threading.Thread(target=server.recv, args=(125_000, socket.MSG_WAITALL))
        reader.start()
        client.sendall(bytes(125_000))
        reader.join()

        def acknowledged() -> bool:
            return source.read().rows[0].info.bytes_acked == 125_001

        eventually(acknowledged)
        later = replace(source.read(), at_ns=1_000_000_000)
        rates.update(later)
    out, received = (sum(direction) for direction in zip(*later.rows[0].rates.values(), strict=True))
    assert out >= 1_000_000
    assert received == 0


def test_subflows_keep_their_numbers(lab: Lab, connection: tuple[socket.socket, socket.socket]) -> None:
    where = NetNamespace(lab.client.fileno())
    with Listing(where) as listing:
        first, _ = listing.read()
        lab.client.mptcp_endpoint_delete(4)
        again, _ = listing.read()
    assert [s.id for s in first[0].info.subflows] == [1, 2]
    assert [s.id for s in again[0].info.subflows if s.state.value == "active"] == [1]


def test_connections_without_a_program(lab: Lab, connection: tuple[socket.socket, socket.socket]) -> None:
    """The program has closed it, and data is still to be delivered: nobody's descriptor, still listed."""
    client, _ = connection
    lab.blackhole(1)
    lab.blackhole(2)
    client.sendall(b"late")
    client.close()
    with Listing(NetNamespace(lab.client.fileno())) as listing:
        [left], _ = listing.read()
    assert left.inode == 0
    assert left.info.send_buffered_bytes >= 4
    assert left.info.subflows


def test_wrong_use(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(["ls", "--stack", "other"]) == 2
    assert "kernel or user" in capsys.readouterr().err
    assert app.run(["ls", "--stack", "user", "--why"]) == 2
    assert app.run(["ls", "--stack", "user", "--netns", "x"]) == 2
    capsys.readouterr()
    assert app.run(["ls", "--netns", "no-such-place"]) == 1
    assert "no-such-place" in capsys.readouterr().err
