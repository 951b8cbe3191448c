"""The laboratory itself: what it does to paths, kernel against kernel."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable

import pytest

from mptcp.testing import netns
from mptcp.testing.exchange import wait_until
from mptcp.testing.kernel_peer import UNTIL_ENOUGH, pattern_sha256
from mptcp.testing.netns import Lab

MakeLab = Callable[..., Lab]

pytestmark = pytest.mark.usefixtures("kernel_mptcp")


@pytest.fixture
def kernels(make_lab: MakeLab) -> Lab:
    """Two kernels, two paths; the client opens a second subflow by itself."""
    lab = make_lab(2, client_kernel=True)
    lab.client.mptcp_limits(subflows=4, add_addr_accepted=4)
    lab.server.mptcp_limits(subflows=4, add_addr_accepted=4)
    return lab


@pytest.mark.parametrize("family", [4, 6])
def test_kernels_use_both_paths(kernels: Lab, family: int) -> None:
    kernels.client.mptcp_endpoint(kernels.client_address(2, family), "subflow", id=7)
    server = kernels.server.serve("::" if family == 6 else "0.0.0.0", send_bytes=UNTIL_ENOUGH)
    client = kernels.client.connect(kernels.server_address(1, family), server.port, receive_bytes=-1)
    wait_until(lambda: kernels.server.counters()["MPTcpExtMPJoinAckRx"], 20, "the second subflow")
    server.enough()
    report, sent = client.result(), server.result()["sent"]
    assert (report["received"], report["error"], report["is_mptcp"]) == (sent, "", True)
    assert report["sha256"] == pattern_sha256(sent)
    counters = kernels.server.counters()
    assert counters["MPTcpExtMPCapableACKRX"] == 1
    assert counters["MPTcpExtMPJoinAckRx"] == 1
    assert kernels.client.counters()["MPTcpExtMPJoinSynAckRx"] == 1


def test_rate_limit(make_lab: MakeLab) -> None:
    lab = make_lab(1, client_kernel=True, rate_mbit=(40,))
    server = lab.server.serve(send_bytes=2_500_000, protocol="tcp")
    began = time.monotonic()
    assert lab.client.connect(lab.server_address(1), server.port).result()["received"] == 2_500_000
    assert time.monotonic() - began > 0.4  # 20 Mbit at 40 Mbit/s; how much later, is the machine's business
    assert " tbf " in lab.server.run("tc", "qdisc", "show", "dev", "s1")
    lab.set_rate(1, 0)
    assert " tbf " not in lab.server.run("tc", "qdisc", "show", "dev", "s1")
    server = lab.server.serve(send_bytes=2_500_000, protocol="tcp")
    assert lab.client.connect(lab.server_address(1), server.port).result()["received"] == 2_500_000


@pytest.mark.parametrize("direction", ["both", "to_server", "to_client"])
def test_blackhole_and_heal(kernels: Lab, direction: str) -> None:
    ping = ("ping", "-c1", "-W20", kernels.server_address(2))
    kernels.client.run(*ping)
    kernels.blackhole(2, direction=direction)
    with pytest.raises(OSError, match="100% packet loss"):
        kernels.client.run("ping", "-c1", "-W0.5", kernels.server_address(2))
    kernels.client.run("ping", "-c1", "-W20", kernels.server_address(1))
    kernels.heal(2)
    kernels.client.run(*ping)


def test_link_down_and_up(kernels: Lab) -> None:
    ping = ("ping", "-c1", "-W0.2", kernels.server_address(1))
    kernels.set_link(1, False)
    with pytest.raises(OSError, match="ping"):
        kernels.client.run(*ping)
    kernels.set_link(1, True)
    kernels.wait_ready()
    # The ping before has left an unanswered ARP request, which is repeated after a second.
    kernels.client.run("ping", "-c1", "-W20", kernels.server_address(1))


@pytest.mark.parametrize("options", [{"syn_only": True}, {}, {"syn_only": True, "path": 1}], ids=str)
def test_strip_from_syn(kernels: Lab, options: dict[str, object]) -> None:
    kernels.strip_mptcp(**options)  # type: ignore[arg-type]
    server = kernels.server.serve(echo=True)
    report = kernels.client.connect(kernels.server_address(1), server.port, send_bytes=50_000).result()
    assert (report["sha256"], report["started_as_mptcp"]) == (pattern_sha256(50_000), False)
    assert kernels.server.counters()["MPTcpExtMPCapableSYNRX"] == 0
    kernels.stop_stripping()
    server = kernels.server.serve(echo=True)
    assert kernels.client.connect(kernels.server_address(1), server.port, send_bytes=9).result()["is_mptcp"]


def test_strip_from_one_path_only(kernels: Lab) -> None:
    kernels.strip_mptcp(path=2)
    server = kernels.server.serve(echo=True)
    assert kernels.client.connect(kernels.server_address(1), server.port, send_bytes=9).result()["is_mptcp"]


def test_strip_from_data(kernels: Lab) -> None:
    """RFC 8684 §3.7: both ends fall back when options vanish after the handshake."""
    kernels.strip_mptcp(data_only=True)
    server = kernels.server.serve(echo=True)
    report = kernels.client.connect(kernels.server_address(1), server.port, send_bytes=50_000).result()
    assert (report["sha256"], report["is_mptcp"]) == (pattern_sha256(50_000), False)
    assert kernels.server.counters()["MPTcpExtMPCapableSYNRX"] == 1


def test_checksum_sysctl(kernels: Lab) -> None:
    for namespace in (kernels.client, kernels.server):
        assert namespace.sysctl("net.mptcp.checksum_enabled", 1) == "1"
    server = kernels.server.serve(echo=True)
    report = kernels.client.connect(kernels.server_address(1), server.port, send_bytes=500_000).result()
    assert report["info"]["checksum"] == 1
    assert kernels.server.sysctl("net.ipv4.tcp_congestion_control") == "reno"


def test_fastclose(kernels: Lab) -> None:
    server = kernels.server.serve(fastclose_after=10_000)
    report = kernels.client.connect(kernels.server_address(1), server.port, send_bytes=100_000_000).result()
    assert "ConnectionResetError" in report["error"] or "BrokenPipeError" in report["error"]
    assert kernels.server.counters()["MPTcpExtMPFastcloseTx"] == 1


def test_half_close(kernels: Lab) -> None:
    """The client's FIN comes first; what the server sends behind it arrives all the same."""
    server = kernels.server.serve(send_bytes=300_000, pause_s=0.1)
    client = kernels.client.connect(kernels.server_address(1), server.port, send_bytes=1000)
    assert client.result()["received"] == 300_000
    assert server.result()["sha256"] == pattern_sha256(1000)


def test_many_connections(kernels: Lab) -> None:
    server = kernels.server.serve(connections=20, echo=True)
    client = kernels.client.connect(kernels.server_address(1), server.port, connections=20, send_bytes=5000)
    assert {report["sha256"] for report in client.wait_results(20)} == {pattern_sha256(5000)}
    assert len(server.wait_results(20)) == 20


def test_refused(kernels: Lab) -> None:
    report = kernels.client.connect(kernels.server_address(1), 9).result()
    assert "ConnectionRefusedError" in report["error"]


def test_backup_endpoint_changes(kernels: Lab) -> None:
    kernels.server.mptcp_endpoint(kernels.server_address(2), "signal", id=3)
    kernels.server.mptcp_endpoint_change(3, "backup")
    assert "backup" in kernels.server.run("ip", "mptcp", "endpoint", "show")
    kernels.server.mptcp_endpoint_delete(3)
    assert kernels.server.run("ip", "mptcp", "endpoint", "show") == ""


def test_a_peer_that_cannot_start_says_why(kernels: Lab) -> None:
    with pytest.raises(RuntimeError, match="Cannot assign requested address"):
        kernels.server.serve("192.0.2.1")


def test_nothing_is_left_behind(namespaces: None) -> None:
    before = set(os.listdir("/proc/self/fd"))

    def fails_inside(pids: list[int]) -> None:
        with Lab(1) as lab:
            pids.append(lab.server.serve().pid)
            raise ZeroDivisionError

    pids: list[int] = []
    with pytest.raises(ZeroDivisionError):
        fails_inside(pids)
    [pid] = pids
    assert not os.path.exists(f"/proc/{pid}")
    assert set(os.listdir("/proc/self/fd")) == before


def test_thread_is_back_outside(lab: Lab) -> None:
    inside = os.readlink(f"/proc/self/fd/{lab.client.fileno()}")
    outside = os.readlink("/proc/thread-self/ns/net")
    with lab.client.entered():
        assert os.readlink("/proc/thread-self/ns/net") == inside
    assert os.readlink("/proc/thread-self/ns/net") == outside != inside


def test_set_up_is_quick(lab: Lab) -> None:
    """Equal interface indices at both ends of a veth make the kernel wait a second for carrier; ours differ."""
    for path in range(1, lab.paths + 1):
        [link] = json.loads(lab.client.run("ip", "-json", "link", "show", "dev", f"c{path}"))
        assert link["link_index"] != link["ifindex"]


def test_wrong_commands_are_errors_with_their_text(lab: Lab) -> None:
    with pytest.raises(OSError, match=r"in client: ip .*Cannot find device"):
        lab.client.ip("link set nothing up")
    with pytest.raises(OSError, match="syntax error"):
        lab.server.nft("table {")
    assert lab.server.run("false", check=False) == ""
    process = lab.server.popen("cat", "/proc/self/net/dev", stdout=subprocess.PIPE)
    output, _ = process.communicate(timeout=60)
    assert b"s2:" in output


def test_numbers_of_paths() -> None:
    for wrong in (0, 100):
        with pytest.raises(ValueError, match="1 to 99 paths"):
            Lab(wrong)
    assert netns.PROGRAMS
