"""The demo with the Linux kernel as the far end: two network namespaces, two rate-limited links between them."""

from __future__ import annotations

import hashlib
import os
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from mptcp.cli import demo_server, figures
from mptcp.cli.connections import Stack, stack_on
from mptcp.cli.demo_result import Arrivals, DemoResult, PathResult
from mptcp.cli.fetch import Fetch
from mptcp.cli.progress import TransferDisplay
from mptcp.links.packet import PacketLink
from mptcp.testing import netns
from mptcp.testing.processes import Peer

FILE_NAME = "file.bin"
#: Octets fetched over each path alone, for comparison: about this many seconds at its rate.
ALONE_SECONDS = 1.5
TIMEOUT_S = 30.0
#: Between two moments at which rates are compared slow start must be over (microseconds).
SETTLE_US = 300_000

#: Those of the kernel's counters that prove who did what.
COUNTERS = {
    "MPTcpExtMPCapableSYNRX": "MP_CAPABLE SYNs",
    "MPTcpExtMPJoinAckRx": "joined subflows",
    "MPTcpExtMPCapableFallbackACK": "fallbacks",
    "MPTcpExtMPTCPRetrans": "segments sent again on the other path",
    "MPTcpExtSubflowStale": "subflows found stale",
}


def why_not() -> str:
    """A sentence that says why the lab cannot be set up on this machine; "" when it can."""
    return netns.needs_kernel_mptcp() or ("" if netns.become_namespace_root() else netns.needs_namespaces())


def run(size_bytes: int, rates_mbit: Sequence[float], console: Console) -> DemoResult:
    """The whole demo: a file, the lab, each path alone, both with a cut half-way."""
    with tempfile.TemporaryDirectory(prefix="mptcp-demo-") as folder:
        console.print(f"making a file of {figures.octets(size_bytes)} and two namespaces with two links between them …")
        expected = make_file(Path(folder, FILE_NAME), size_bytes)
        alone_sizes = [int(rate * 1e6 / 8 * ALONE_SECONDS) for rate in rates_mbit]
        for number, alone_size in enumerate(alone_sizes, 1):
            make_file(Path(folder, f"alone{number}.bin"), alone_size)
        with netns.Lab(paths=len(rates_mbit), rate_mbit=rates_mbit) as lab:
            lab.server.mptcp_limits(subflows=8, add_addr_accepted=0)
            arguments = {"namespace": lab.server.fileno(), "directory": folder, "address": "0.0.0.0"}
            with Peer(demo_server.__file__, arguments, (lab.server.fileno(),)) as server:
                port = int(server.wait_event("listening")["port"])
                paths = [
                    PathResult(f"path {number}", rate * 1e6, fetch_alone(lab, number, port, folder))
                    for number, rate in enumerate(rates_mbit, 1)
                ]
                for path in paths:
                    console.print(f"  {path.name} alone: {figures.rate(path.alone_bits)}", highlight=False)
                before = lab.server.counters()
                result = fetch_and_cut(lab, port, folder, console, size_bytes, expected, paths)
                after = lab.server.counters()
                result.peer_counters = {
                    words: after[name] - before.get(name, 0) for name, words in COUNTERS.items() if name in after
                }
                return result


def make_file(path: Path, size: int) -> str:
    """Random octets; their SHA-256."""
    digest = hashlib.sha256()
    with path.open("wb") as stream:
        for start in range(0, size, 1 << 20):
            block = os.urandom(min(1 << 20, size - start))
            digest.update(block)
            stream.write(block)
    return digest.hexdigest()


def client_stack(lab: netns.Lab, paths: Sequence[int]) -> Stack:
    """Our stack in the client's namespace, on AF_PACKET, with one link per path."""
    with lab.client.entered():
        links = [
            PacketLink(f"c{path}", [lab.client_interface(path)], gateways=[lab.server_address(path)]) for path in paths
        ]
    return stack_on(links, [[lab.client_interface(path)] for path in paths])


def fetch_alone(lab: netns.Lab, path: int, port: int, folder: str) -> float:
    """Goodput over one path, in bits per second."""
    arrivals = Arrivals()
    with client_stack(lab, [path]) as stack:
        url = f"http://{lab.server_address(path)}:{port}/alone{path}.bin"
        Fetch(
            url,
            Path(folder, f"got{path}.bin"),
            stack.connect,
            timeout=TIMEOUT_S,
            progress=lambda done, total, resumed: arrivals.add(done, time.monotonic_ns() // 1000),
        ).run()
    return arrivals.rate_bits(arrivals.first_us + SETTLE_US, arrivals.last_us)


def fetch_and_cut(
    lab: netns.Lab, port: int, folder: str, console: Console, size: int, expected: str, paths: list[PathResult]
) -> DemoResult:
    """Over all paths; the first one, which also carries the first subflow, is cut when half of the file is here."""
    arrivals = Arrivals()
    cut_at_us: list[int] = []

    def cut() -> None:
        lab.blackhole(1)
        cut_at_us.append(time.monotonic_ns() // 1000)

    # In a thread of its own: loading the rule takes longer than the stall that it shall cause.
    cutter = threading.Thread(target=cut, daemon=True)

    def progress(done: int, total: int | None, resumed: int) -> None:
        arrivals.add(done, time.monotonic_ns() // 1000)
        display.done, display.total = done, total
        if not cutter.ident and done >= size // 2:
            display.note = "path 1 is cut: every packet on it vanishes, nobody is told"
            cutter.start()
        display.tick()

    with client_stack(lab, range(1, len(paths) + 1)) as stack:
        display = TransferDisplay(FILE_NAME, console=console)
        with display:
            fetched = Fetch(
                f"http://{lab.server_address(1)}:{port}/{FILE_NAME}",
                Path(folder, "got.bin"),
                stack.connect,
                timeout=TIMEOUT_S,
                progress=progress,
                on_connection=lambda sock: display.watch(sock.subflows),
                before_close=display.unwatch,
            ).run(want_sha256=True)
    if cutter.ident:
        cutter.join()
    paths[0].was_cut = bool(cut_at_us)
    for number, path in enumerate(paths, 1):
        path.bytes_received = sum(
            track.info.bytes_received
            for track in display.log.tracks
            if track.info.local.host == lab.client_address(number)
        )
    cut_us = cut_at_us[0] if cut_at_us else arrivals.last_us
    return DemoResult(
        peer="a stock Linux MPTCP server (the kernel's own socket)",
        size_bytes=fetched.total,
        sha256=fetched.sha256,
        expected_sha256=expected,
        seconds=(arrivals.last_us - arrivals.first_us) / 1e6,
        before_cut_bits=arrivals.rate_bits(arrivals.first_us + SETTLE_US, cut_us),
        after_cut_bits=arrivals.rate_bits(cut_us, arrivals.last_us),
        longest_stall_s=arrivals.longest_stall_us / 1e6,
        cut_after_s=(cut_us - arrivals.first_us) / 1e6,
        paths=paths,
    )
