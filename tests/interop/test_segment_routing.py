"""A subflow whose packets carry a Segment Routing Header, and a kernel that visits the segment (RFC 8754)."""

from collections.abc import Callable
from pathlib import Path

import pytest

from mptcp.core.multipath.config import DEFAULT_CONFIG
from mptcp.core.path_managers.none import NoSubflows
from mptcp.testing.encounter import Encounter
from mptcp.testing.exchange import Exchange, wait_subflows

pytestmark = pytest.mark.usefixtures("kernel_mptcp")

SEGMENT = "fd77:aaaa::1"


def test_the_kernel_is_the_segment_and_the_peer(make_encounter: Callable[..., Encounter]) -> None:
    if not Path("/proc/sys/net/ipv6/conf/all/seg6_enabled").exists():
        pytest.skip("this kernel has no Segment Routing (CONFIG_IPV6_SEG6_LWTUNNEL)")
    encounter = make_encounter(2, family=6, config=DEFAULT_CONFIG.changed(path_manager=NoSubflows))
    server = encounter.lab.server
    server.ip(f"address add {SEGMENT}/128 dev s2 nodad")
    for interface in ("all", "s2"):
        server.sysctl(f"net.ipv6.conf.{interface}.seg6_enabled", 1)
    sock, peer = encounter.open("connect", kernel={"echo": True})
    sock.sendall(b"hello")
    assert sock.recv(5) == b"hello"
    number = sock.open_subflow(
        (encounter.kernel_address(2), peer.port), (encounter.our_address(2), 0), segments=[SEGMENT]
    )
    wait_subflows(sock, 2)
    sock.close_subflow(1)
    infos = wait_subflows(sock, 1)
    assert infos[0].id == number
    exchange = Exchange(sock, send_bytes=1 << 20).join()
    assert exchange.error is None
    assert exchange.got(1 << 20)
    assert peer.result()["received"] == (1 << 20) + 5
    assert encounter.kernel_counters()["MPJoinAckRx"] == 1
    # Without the header they would be the same: the path is, and so are the options.
    assert infos[0].mss_bytes == 1500 - 60 - 40 - 12 - 28
