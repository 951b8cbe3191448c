"""Over UDP between processes of an ordinary user: the command line, two paths of which one is cut, moving, path MTU.

The kernel here is a network: namespaces joined by veth, with its routes, rules and filters.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import mptcp
from mptcp.links.udp_frames import BASE_MTU, HEADER_BYTES
from mptcp.sockets.udp import UdpStack
from mptcp.testing.netns import Lab, Namespace
from mptcp.testing.ports import unused_udp_port

SOURCE = Path(__file__).parents[2] / "src"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(SOURCE), "PYTHONUNBUFFERED": "1", "HOME": "/tmp"}
SIZE = 5_000_000
#: Where both paths must be needed: so little that the paths are the limit, also on a machine busy with other things.
SMALL, SLOW_MBIT = 1_000_000, (1.5, 1.5)
NOBODY = 65534


def as_nobody() -> list[str]:
    """What to put before a command so that it has no privilege at all."""
    everybody = int(Path("/proc/self/uid_map").read_text().split()[2]) > NOBODY
    if os.getuid() == 0 and everybody and shutil.which("setpriv"):
        prefix = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
        trial = subprocess.run([*prefix, sys.executable, "-c", ""], capture_output=True, text=True, check=False)
        if trial.returncode:
            pytest.skip(f"nobody may not run {sys.executable}: {trial.stderr.strip()}")
        return prefix
    return []


class Command:
    """``mptcp ARGUMENTS`` of nobody's, in a namespace or here."""

    def __init__(self, *arguments: str, namespace: Namespace | None = None, cwd: Path) -> None:
        command = [*as_nobody(), sys.executable, "-m", "mptcp", *arguments]
        options: dict[str, Any] = {
            "cwd": cwd, "env": ENVIRONMENT, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE,
        }  # fmt: skip
        self.process = namespace.popen(*command, **options) if namespace else subprocess.Popen(command, **options)

    def finish(self, timeout: float = 100) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=timeout)
        return self.process.returncode, out.decode(), err.decode()

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.communicate(timeout=10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.communicate()


class Site:
    """A directory of everybody's with a file in it, and the processes that serve and fetch it."""

    def __init__(self, folder: Path, size: int) -> None:
        self.folder = folder
        self.commands: list[Command] = []
        folder.chmod(0o777)
        (folder / "site").mkdir()
        octets = os.urandom(size)
        (folder / "site" / "file.bin").write_bytes(octets)
        self.sha256 = hashlib.sha256(octets).hexdigest()

    def serve(self, *arguments: str, namespace: Namespace | None = None) -> list[str]:
        """The URLs it says it serves."""
        command = Command("serve", "site", *arguments, namespace=namespace, cwd=self.folder)
        self.commands.append(command)
        assert command.process.stdout is not None
        lines = [command.process.stdout.readline().decode()]
        assert lines[0].startswith("serving"), command.process.communicate(timeout=10)
        return [line.split()[-1] for line in lines]

    def get(self, *arguments: str, namespace: Namespace | None = None) -> Command:
        command = Command("get", *arguments, "-o", "got", "--json", "--sha256", namespace=namespace, cwd=self.folder)
        self.commands.append(command)
        return command

    def check(self, command: Command) -> dict[str, Any]:
        status, out, err = command.finish()
        assert (status, err) == (0, ""), (out, err)
        report: dict[str, Any] = json.loads(out)
        assert report["sha256"] == self.sha256
        assert report["is_multipath"]
        return report


@contextlib.contextmanager
def site_of(size: int) -> Iterator[Site]:
    with tempfile.TemporaryDirectory(prefix="mptcp-udp-") as folder:
        made = Site(Path(folder), size)
        try:
            yield made
        finally:
            for command in made.commands:
                command.close()


@pytest.fixture
def site() -> Iterator[Site]:
    with site_of(SIZE) as made:
        yield made


@pytest.fixture
def small_site() -> Iterator[Site]:
    with site_of(SMALL) as made:
        yield made


# --- the command line, between two processes on one machine -----------------------------------------------------------
def test_two_processes_on_two_addresses(site: Site) -> None:
    port = str(unused_udp_port())
    urls = site.serve("--link", "udp:127.0.0.1", "--link", "udp:127.0.0.2", "--port", port)
    assert urls == [f"mptcp://127.0.0.1:{port}/"]
    report = site.check(site.get("--link", "udp:127.0.0.1,127.0.0.2", f"mptcp://127.0.0.1:{port}/file.bin"))
    pairs = {(s["local"].partition(":")[0], s["remote"]) for s in report["subflows"]}
    assert pairs == {
        (ours, f"{theirs}:{port}") for ours in ("127.0.0.1", "127.0.0.2") for theirs in ("127.0.0.1", "127.0.0.2")
    }


def test_two_processes_on_ipv6(site: Site) -> None:
    port = str(unused_udp_port())
    assert site.serve("--link", "udp:::1", "--port", port) == [f"mptcp://[::1]:{port}/"]
    report = site.check(site.get("--link", "udp:::1", f"mptcp://[::1]:{port}/file.bin"))
    assert [s["remote"] for s in report["subflows"]] == [f"[::1]:{port}"]


def test_without_naming_any_address(site: Site) -> None:
    """``--link udp`` takes what the machine has; a URL of mptcp needs no ``--link``."""
    port = str(unused_udp_port())
    site.serve("--link", "udp", "--port", port)
    report = site.check(site.get(f"mptcp://127.0.0.1:{port}/file.bin"))
    assert report["subflows"][0]["remote"] == f"127.0.0.1:{port}"


# --- two machines -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("family", [4, 6])
def test_one_of_two_paths_is_cut_half_way(make_lab: Callable[..., Lab], small_site: Site, family: int) -> None:
    lab = make_lab(2, client_kernel=True, rate_mbit=SLOW_MBIT, queue_ms=200)
    ours = [f"udp:{lab.client_address(path, family)}" for path in (1, 2)]
    theirs = [f"udp:{lab.server_address(path, family)}" for path in (1, 2)]
    small_site.serve("--link", theirs[0], "--link", theirs[1], "--port", "4000", namespace=lab.server)
    host = lab.server_address(1, family)
    url = f"mptcp://{f'[{host}]' if family == 6 else host}:4000/file.bin"
    command = small_site.get("--link", ours[0], "--link", ours[1], url, namespace=lab.client)
    part = small_site.folder / "got.part"
    end = time.monotonic() + 60
    while not part.exists() or part.stat().st_size < SMALL // 3:
        assert time.monotonic() < end
        assert command.process.poll() is None, command.finish()
        time.sleep(0.01)
    lab.blackhole(1)
    report = small_site.check(command)
    carried: dict[str, int] = {}
    for subflow in report["subflows"]:
        local = subflow["local"].rpartition(":")[0].strip("[]")
        carried[local] = carried.get(local, 0) + subflow["bytes_received"]
    assert carried[lab.client_address(1, family)] > SMALL // 20
    assert carried[lab.client_address(2, family)] > SMALL // 3


def test_each_interface_is_used_without_policy_routing(make_lab: Callable[..., Lab], small_site: Site) -> None:
    """Both networks have a default route; only by its device does a socket use the second one."""
    lab = make_lab(2, client_kernel=True, rate_mbit=SLOW_MBIT, queue_ms=200)
    for path in (1, 2):
        lab.client.ip(f"rule del from {lab.client_address(path)} table {path}")
        lab.client.ip(f"route add default via {lab.server_address(path)} dev c{path} metric {path}")
    lab.server.ip("addr add 198.51.100.1/32 dev lo")
    small_site.serve("--link", "udp:198.51.100.1", "--port", "4000", namespace=lab.server)
    links = [f"udp:{lab.client_address(path)}%c{path}" for path in (1, 2)]
    command = small_site.get(
        "--link", links[0], "--link", links[1], "mptcp://198.51.100.1:4000/file.bin", namespace=lab.client
    )
    report = small_site.check(command)
    assert all(subflow["bytes_received"] > SMALL // 10 for subflow in report["subflows"])
    for path in (1, 2):
        shown = json.loads(lab.client.run("ip", "-j", "-s", "link", "show", f"c{path}"))
        assert shown[0]["stats64"]["rx"]["bytes"] > SMALL // 10


# --- moving, and path MTU ---------------------------------------------------------------------------------------------
class Pair:
    """Two stacks in this process, one in each namespace; what the client sends is hashed by the server."""

    def __init__(self, lab: Lab, family: int, **options: Any) -> None:
        self.lab, self.family = lab, family
        with lab.server.entered():
            self.server = UdpStack([lab.server_address(1, family)], 4000, link_options=options)
        with lab.client.entered():
            self.client = UdpStack([lab.client_address(1, family)], link_options=options)
            with mptcp.use(self.server):
                self.listener = mptcp.create_server(("::", 8000), family=socket.AF_INET6)
            self.sock = self.client.connect_udp((lab.server_address(1, family), 4000), 8000, timeout=10)
        self.sock.settimeout(30)
        self.digest = hashlib.sha256()
        self.count = 0
        self.thread = threading.Thread(target=self._receive, daemon=True)
        self.thread.start()

    def _receive(self) -> None:
        accepted, _ = self.listener.accept()
        while data := accepted.recv(1 << 18):
            self.digest.update(data)
            self.count += len(data)
        accepted.close()

    def upload(self, size: int, on_half: Callable[[], None]) -> None:
        sent = hashlib.sha256()
        done = False
        for at in range(0, size, 1 << 14):
            if not done and at >= size // 2:
                done = True
                on_half()
            block = os.urandom(1 << 14)
            sent.update(block)
            self.sock.sendall(block)
        self.sock.shutdown(socket.SHUT_WR)
        self.thread.join(60)
        assert self.digest.digest() == sent.digest()

    def close(self) -> None:
        self.sock.close()
        self.listener.close()
        self.client.close(0.2)
        self.server.close(0.2)


@pytest.fixture
def make_pair() -> Iterator[Callable[..., Pair]]:
    pairs: list[Pair] = []

    def make(lab: Lab, family: int, **options: Any) -> Pair:
        pairs.append(Pair(lab, family, **options))
        return pairs[-1]

    yield make
    for pair in pairs:
        pair.close()


@pytest.mark.parametrize("family", [4, 6])
def test_a_host_that_gets_another_address_keeps_its_subflow(
    make_lab: Callable[..., Lab], make_pair: Callable[..., Pair], family: int
) -> None:
    lab = make_lab(1, client_kernel=True, rate_mbit=(50,))
    pair = make_pair(lab, family)
    [before] = pair.sock.subflows()
    new = "10.77.1.99/24" if family == 4 else "fd77:1::99/64"
    alive: list[int] = []

    def move() -> None:
        lab.client.ip(
            f"addr del {lab.client_interface(1, family)} dev c1",
            f"addr add {new} dev c1{' nodad' if family == 6 else ''}",
        )
        lab.client.run("ip", f"-{family}", "rule", "del", "from", lab.client_address(1, family), check=False)
        alive.extend(s.id for s in pair.sock.subflows())

    with lab.client.entered():  # the link opens a new socket from whichever thread finds out
        pair.upload(3_000_000, move)
    assert alive == [before.id]
    assert pair.client.node.counters["udp_roamed"] == 1
    assert pair.server.node.counters["udp_path_moved"] >= 1
    [(_, endpoint, _, _)] = pair.server.links[0].paths()
    assert endpoint.host == new.partition("/")[0]


@pytest.mark.parametrize("family", [4, 6])
def test_a_black_hole_for_long_packets_is_found(
    make_lab: Callable[..., Lab], make_pair: Callable[..., Pair], family: int
) -> None:
    """A router drops what is longer than 1,400 octets and tells nobody."""
    lab = make_lab(1, client_kernel=True, rate_mbit=(50,))
    lab.server.nft(
        "table netdev narrow {\n"
        "chain in { type filter hook ingress device s1 priority -500; meta length > 1400 drop; }\n"
        "chain out { type filter hook egress device s1 priority -500; meta length > 1400 drop; }\n}"
    )
    # veth carries super-datagrams in one piece: the filter would see those instead of what a wire carries.
    pair = make_pair(lab, family, offload=False)
    outer = 28 if family == 4 else 48
    end = time.monotonic() + 20
    while not all(
        BASE_MTU <= mtu <= 1400 - outer - HEADER_BYTES
        for stack in (pair.client, pair.server)
        for _, _, mtu, _ in stack.links[0].paths()
    ):
        assert time.monotonic() < end, pair.client.links[0].paths()
        time.sleep(0.05)
    pair.upload(1_000_000, lambda: None)


@pytest.mark.parametrize("family", [4, 6])
def test_a_route_that_becomes_narrow_is_heeded(
    make_lab: Callable[..., Lab], make_pair: Callable[..., Pair], family: int
) -> None:
    """The system learns of a smaller MTU in the middle, as ICMP tells it: EMSGSIZE, and the stack goes on with less."""
    lab = make_lab(1, client_kernel=True, rate_mbit=(50,))
    pair = make_pair(lab, family)

    def narrow() -> None:
        lab.client.run("ip", f"-{family}", "rule", "del", "from", lab.client_address(1, family), check=False)
        lab.client.ip(f"route add {lab.server_address(1, family)} dev c1 mtu 1360", family=family)

    pair.upload(2_000_000, narrow)
    [(_, _, mtu, _)] = pair.client.links[0].paths()
    assert mtu == 1360 - (28 if family == 4 else 48) - HEADER_BYTES
    assert pair.client.node.counters["udp_send_emsgsize"] >= 1


def test_a_route_too_narrow_for_ipv6_is_fragmented(
    make_lab: Callable[..., Lab], make_pair: Callable[..., Pair]
) -> None:
    lab = make_lab(1, client_kernel=True, rate_mbit=(50,))
    for namespace, device in ((lab.client, "c1"), (lab.server, "s1")):
        namespace.ip(f"link set {device} mtu 1000")
    pair = make_pair(lab, 4)
    pair.upload(300_000, lambda: None)
    assert [mtu for _, _, mtu, _ in pair.client.links[0].paths()] == [BASE_MTU]
    with lab.client.entered():
        text = Path("/proc/thread-self/net/snmp").read_text().splitlines()
    created = dict(zip(text[0].split(), text[1].split(), strict=True))["FragCreates"]
    assert int(created) > 100
