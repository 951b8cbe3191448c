"""What the failure policy does for a bulk transfer of the kernel's when one of its paths dies.

Two paths of 100 Mbit/s, both in use; after a second the second one is blackholed, or its far end taken down. With the
policy and without, in turn: the longest gap at the receiver, and how long the dead subflow stayed.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
import statistics
import sys
import threading
import time
from collections.abc import Callable

from mptcp.core.path_managers.restore import Restore
from mptcp.info import Endpoint
from mptcp.kernel.connection import KernelConnection
from mptcp.kernel.control import DirectControl
from mptcp.kernel.managing import ManagedConnection
from mptcp.kernel.monitor import Monitor
from mptcp.kernel.namespace import NetNamespace
from mptcp.kernel.pm_service import user_space_manager
from mptcp.kernel.sockopt import full_info
from mptcp.kernel.steering import ConnectionSteering
from mptcp.kernel.turns import Managing
from mptcp.kernel.watchdog import FailurePolicy
from mptcp.testing.netns import Lab, become_namespace_root, needs_kernel_mptcp, needs_namespaces

ROUNDS = 5
IPPROTO_MPTCP = 262
WARM_S, AFTER_S = 1.0, 2.0


def main() -> int:
    if needs_namespaces() and not become_namespace_root():
        print(f"skipped: {needs_namespaces()}")
        return 0
    if reason := needs_kernel_mptcp():
        print(f"skipped: {reason}")
        return 0
    print(f"2 x 100 Mbit/s, the second path dies; medians of {ROUNDS} (range)")
    print(f"{'':12}{'':8}{'longest gap, ms':>22}{'subflow gone after, ms':>28}{'Mbit/s after':>22}")
    with Lab(2, rate_mbit=(100, 100), client_kernel=True) as lab:
        lab.wait_ready()
        for how in ("blackhole", "link down"):
            found: dict[bool, list[tuple[float, float | None, float]]] = {True: [], False: []}
            for _ in range(ROUNDS):
                for policy in (True, False):
                    found[policy].append(measure(lab, how, policy))
            for policy, rows in found.items():
                gaps, gone, rates = zip(*rows, strict=True)
                stayed = sum(when is None for when in gone)
                shown = f"never in {AFTER_S:.0f} s ({stayed}x)" if stayed else spread([1000 * (g or 0) for g in gone])
                print(
                    f"{how:12}{'on' if policy else 'off':8}{spread([1000 * gap for gap in gaps]):>22}{shown:>28}"
                    f"{spread(rates):>22}",
                    flush=True,
                )
    return 0


def spread(values: list[float] | tuple[float, ...]) -> str:
    return f"{statistics.median(values):.0f} ({min(values):.0f}-{max(values):.0f})"


def measure(lab: Lab, how: str, policy: bool) -> tuple[float, float | None, float]:
    """(longest gap in s, how long the subflow stayed in s, Mbit/s after the cut)."""
    with contextlib.ExitStack() as exits:
        near, far = NetNamespace(lab.client.fileno()), NetNamespace(lab.server.fileno())
        control, other = DirectControl(near), DirectControl(far)
        exits.callback(control.close)
        exits.callback(other.close)
        exits.enter_context(user_space_manager(near))
        exits.enter_context(user_space_manager(far))
        monitor, listening = Monitor(near, control), Monitor(far, other)
        exits.callback(monitor.close)
        exits.callback(listening.close)
        with far.entered():
            listener = exits.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_MPTCP))
            listener.bind(("", 0))
            listener.listen()
        port = listener.getsockname()[1]
        with near.entered():
            client = exits.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_MPTCP))
            client.connect((lab.server_address(1), port))
        server = exits.enter_context(listener.accept()[0])
        client.sendall(b".")
        server.recv(1)
        server.sendall(b".")
        client.recv(1)
        connection = KernelConnection(client.fileno(), near, control, monitor)
        exits.callback(connection.close)
        if policy:
            managed = ManagedConnection(
                ConnectionSteering(client.fileno(), connection, lambda: [a.address for a in monitor.local_addresses()]),
                Restore(), FailurePolicy(), is_client=True,
                local=connection.initial_local, remote=connection.initial_remote, lock=connection.lock,
            )  # fmt: skip
            managing = Managing(monitor)
            managing.add(managed, connection.token)
            exits.callback(managing.remove, managed, connection.token)
        second = Endpoint.parse(lab.client_address(2))
        connection.open_subflow(second, Endpoint.parse(lab.server_address(2), port))
        await_true(lambda: len(connection.subflows()) == 2)
        return transfer(lab, how, client, server, second.address)


def transfer(
    lab: Lab, how: str, client: socket.socket, server: socket.socket, second: bytes
) -> tuple[float, float | None, float]:
    stop = threading.Event()
    cut = time.monotonic() + WARM_S
    arrivals: list[tuple[float, int]] = []

    def send() -> None:
        block = bytes(1 << 16)
        while not stop.is_set():
            client.sendall(block)
        client.shutdown(socket.SHUT_WR)

    def receive() -> None:
        buffer = bytearray(1 << 18)
        while count := server.recv_into(buffer):
            arrivals.append((time.monotonic(), count))

    threads = [threading.Thread(target=send), threading.Thread(target=receive)]
    for thread in threads:
        thread.start()
    time.sleep(max(0.0, cut - time.monotonic()))
    if how == "blackhole":
        lab.blackhole(2)
    else:
        lab.set_link(2, False)
    cut = time.monotonic()
    gone = None
    while time.monotonic() - cut < AFTER_S:
        here = {entry.local.address for entry in full_info(client.fileno()).subflows if entry.tcp.state == 1}
        if second not in here:
            gone = time.monotonic() - cut
            break
        time.sleep(0.002)
    time.sleep(max(0.0, cut + AFTER_S - time.monotonic()))
    end = time.monotonic()
    after = [(at, count) for at, count in list(arrivals) if cut <= at <= end]
    times = [cut, *(at for at, _ in after), end]
    gap = max(later - earlier for earlier, later in itertools.pairwise(times))
    if how == "blackhole":
        lab.heal(2)
    else:
        lab.set_link(2, True)
    stop.set()
    for thread in threads:
        thread.join(60)
    return gap, gone, 8e-6 * sum(count for _, count in after) / (end - cut)


def await_true(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("it did not happen")
        time.sleep(0.002)


if __name__ == "__main__":
    sys.exit(main())
