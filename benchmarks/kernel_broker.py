"""What a detour by way of the broker costs: an operation, and an event, with the privilege and through the broker.

Run as root or under ``unshare -Urn``: ``python -m benchmarks.kernel_broker [repetitions]``.
"""

from __future__ import annotations

import os
import select
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from mptcp.info import Endpoint
from mptcp.kernel import sockopt
from mptcp.kernel.broker.client import BrokerControl
from mptcp.kernel.control import Control, DirectControl
from mptcp.kernel.features import IPPROTO_MPTCP
from mptcp.kernel.pm_events import EventsLost, PmEventKind
from mptcp.testing.netns import Lab, become_namespace_root, needs_kernel_mptcp, needs_namespaces

POLICY = "[[rule]]\nrate_per_s = 100000\nburst = 100000\n"


def median_us(count: int, call: Callable[[int], object]) -> float:
    times = []
    for number in range(count):
        start = time.perf_counter()
        call(number)
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e6


def event_us(control: Control, fd: int, token: int, local: Endpoint, remote: Endpoint, count: int) -> float:
    """From asking for a subflow to the event that it works (three packets between)."""
    source = control.event_source()
    source.watch(fd, token)

    def heard(kind: PmEventKind) -> None:
        while True:
            select.select([source], [], [])
            try:
                if any(event.kind is kind for event in source.read()):
                    return
            except EventsLost:  # of before
                continue

    times = []
    for _ in range(count):
        start = time.perf_counter()
        control.create_subflow(fd, token, local, 1, remote)
        heard(PmEventKind.SUBFLOW_ESTABLISHED)
        times.append(time.perf_counter() - start)
        joined = sockopt.full_info(fd).subflows[-1]
        control.destroy_subflow(fd, token, joined.local, joined.remote)
        heard(PmEventKind.SUBFLOW_CLOSED)
    source.close()
    return statistics.median(times) * 1e6


def main() -> int:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 500
    if (needs_namespaces() and not become_namespace_root()) or needs_kernel_mptcp():
        print(needs_namespaces() or needs_kernel_mptcp())
        return 1
    with Lab(2, client_kernel=True) as lab, tempfile.TemporaryDirectory() as folder:
        for namespace in (lab.client, lab.server):
            namespace.sysctl("net.mptcp.path_manager", "userspace")
        path, policy = Path(folder, "broker.sock"), Path(folder, "policy.toml")
        policy.write_text(POLICY)
        broker = lab.client.popen(
            sys.executable, "-m", "mptcp", "broker", "--socket", str(path), "--policy", str(policy),
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, stderr=open(os.devnull, "w"),  # noqa: SIM115
        )  # fmt: skip
        while not path.exists():
            time.sleep(0.05)
        try:
            measure(lab, BrokerControl(str(path)), count)
        finally:
            broker.terminate()
            broker.wait()
    return 0


def measure(lab: Lab, broker: BrokerControl, count: int) -> None:
    with lab.server.entered():
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_MPTCP)
        listener.bind(("", 0))
        listener.listen()
    port = listener.getsockname()[1]
    with lab.server.entered():
        listening = DirectControl().event_source()  # without it the server takes no joins
    with lab.client.entered(), listener, socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_MPTCP) as sock:
        sock.connect((lab.server_address(1), port))
        accepted, _ = listener.accept()
        sock.sendall(b".")
        accepted.sendall(accepted.recv(1))
        sock.recv(1)
        fd, token = sock.fileno(), sockopt.mptcp_info(sock.fileno()).token
        first = sockopt.full_info(fd).subflows[0]
        local, remote = Endpoint.parse(lab.client_address(2)), Endpoint.parse(lab.server_address(2), port)
        print(f"{'µs, medians of ' + str(count):32}{'itself':>10}{'broker':>10}")
        controls = (DirectControl(), broker)
        rows: tuple[tuple[str, Callable[[Control], float]], ...] = (
            (
                "set_backup",
                lambda control: median_us(
                    count, lambda n: control.set_backup(fd, token, first.local, first.remote, bool(n & 1))
                ),
            ),
            ("announce", lambda control: median_us(count, lambda _: control.announce(fd, token, local, 1))),
            ("from create_subflow to its event", lambda c: event_us(c, fd, token, local, remote, count // 5)),
        )
        for name, row in rows:
            print(f"{name:32}" + "".join(f"{row(control):10.0f}" for control in controls))
        accepted.close()
    listening.close()


if __name__ == "__main__":
    sys.exit(main())
