"""How often a bulk transfer of the kernel's is stuck after one of its two paths died at full speed, and what cures it.

Two paths without rate limits, both in use; the second one is blackholed. Stuck is a transfer that spends more than half of
the last of three seconds afterwards in pauses of at least a tenth of a second. In turn: without a policy; with one that resets the
dead subflow only; with one that also opens a fresh subflow for what is stuck.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import mmap
import multiprocessing
import socket
import statistics
import struct
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from benchmarks.kernel_failure import IPPROTO_MPTCP, await_true
from mptcp.info import Endpoint
from mptcp.kernel.connection import KernelConnection
from mptcp.kernel.control import DirectControl
from mptcp.kernel.managing import ManagedConnection
from mptcp.kernel.monitor import Monitor
from mptcp.kernel.namespace import NetNamespace
from mptcp.kernel.pm_service import user_space_manager
from mptcp.kernel.steering import ConnectionSteering
from mptcp.kernel.turns import Managing
from mptcp.kernel.watchdog import FailurePolicy
from mptcp.testing.netns import Lab, become_namespace_root, needs_kernel_mptcp, needs_namespaces

KILLS: Final = 10
WARM_S, AFTER_S, LAST_S = 0.7, 3.0, 1.0
STUCK_SHARE: Final = 0.5
PAUSE_S: Final = 0.1
NEVER_US: Final = 1 << 60
BLOCK: Final = 1 << 16
#: What is done about a dead path.
POLICIES: Final = {
    "none": None,
    "reset": FailurePolicy(stuck_us=NEVER_US),
    "reset, fresh subflow": FailurePolicy(),
}


@dataclass(frozen=True, slots=True)
class Setting:
    name: str
    receive_buffer: int = 0  # SO_RCVBUF in bytes; 0: the kernel chooses
    holds_send_buffer: bool = True  # as this package does, before there is a second subflow


SETTINGS: Final = (
    Setting("receive buffer of 256 KiB", receive_buffer=1 << 18),
    Setting("buffers as this package has them"),
    Setting("buffers as the kernel chooses them", holds_send_buffer=False),
)


@dataclass(frozen=True, slots=True)
class Kill:
    before: float  # Mbit/s
    last: float  # Mbit/s, in the last second
    pause_s: float  # the longest without progress
    paused_s: float  # in the last second, in pauses of PAUSE_S and more
    fresh: int  # subflows opened for what was stuck

    @property
    def is_stuck(self) -> bool:
        return self.paused_s > STUCK_SHARE * LAST_S


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=KILLS, help="of each kind")
    parser.add_argument("--setting", type=int, choices=range(len(SETTINGS)), help="only this one")
    arguments = parser.parse_args()
    if needs_namespaces() and not become_namespace_root():
        print(f"skipped: {needs_namespaces()}")
        return 0
    if reason := needs_kernel_mptcp():
        print(f"skipped: {reason}")
        return 0
    print(
        f"{'':36}{'policy':22}{'stuck':>10}{'longest pause, ms':>20}{'Mbit/s before':>15}{'in the last s':>15}{'fresh':>7}"
    )
    chosen = SETTINGS if arguments.setting is None else SETTINGS[arguments.setting : arguments.setting + 1]
    with Lab(2, client_kernel=True) as lab:
        for setting in chosen:
            kills: dict[str, list[Kill]] = {name: [] for name in POLICIES}
            for _ in range(arguments.kills):
                for name, policy in POLICIES.items():
                    kills[name].append(measure(lab, setting, policy))
            for name, found in kills.items():
                stuck = f"{sum(kill.is_stuck for kill in found)} of {len(found)}"
                pauses = [1000 * kill.pause_s for kill in found]
                print(
                    f"{setting.name:36}{name:22}{stuck:>10}{f'{statistics.median(pauses):.0f} ({max(pauses):.0f})':>20}"
                    f"{statistics.median(kill.before for kill in found):>15.0f}"
                    f"{statistics.median(kill.last for kill in found):>15.0f}{sum(kill.fresh for kill in found):>7}",
                    flush=True,
                )
    return 0


def measure(lab: Lab, setting: Setting, policy: FailurePolicy | None) -> Kill:
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
        if setting.receive_buffer:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, setting.receive_buffer)
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
        connection.holds_send_buffer = setting.holds_send_buffer
        exits.callback(connection.close)
        connection.open_subflow(
            Endpoint.parse(lab.client_address(2)), Endpoint.parse(lab.server_address(2), port), wait=True
        )
        await_true(lambda: len(connection.subflows()) == 2)
        opened: list[str] = []
        if policy is not None:
            managed = ManagedConnection(
                ConnectionSteering(client.fileno(), connection, lambda: [a.address for a in monitor.local_addresses()]),
                None, policy, is_client=True,
                local=connection.initial_local, remote=connection.initial_remote, lock=connection.lock,
            )  # fmt: skip
            managed.on_report = lambda line: opened.append(line) if line.startswith("opening") else None
            managing = Managing(monitor)
            managing.add(managed, connection.token)
            exits.callback(managing.remove, managed, connection.token)
        octets = exits.enter_context(transfer(client, server))
        return watch(lab, octets, opened)


@contextlib.contextmanager
def transfer(client: socket.socket, server: socket.socket) -> Iterator[mmap.mmap]:
    """Octets as fast as they go, by two processes; the count of those that have arrived, for ``struct`` "=Q"."""
    octets = mmap.mmap(-1, mmap.PAGESIZE)
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=send, args=(client,)), fork.Process(target=receive, args=(server, octets))]
    for process in processes:
        process.start()
    try:
        yield octets
    finally:
        for process in processes:
            process.kill()
            process.join()


def send(sock: socket.socket) -> None:
    block = bytes(BLOCK)
    while True:
        sock.sendall(block)


def receive(sock: socket.socket, octets: mmap.mmap) -> None:
    buffer, total = bytearray(BLOCK), 0
    while count := sock.recv_into(buffer):
        total += count
        struct.pack_into("=Q", octets, 0, total)


def watch(lab: Lab, octets: mmap.mmap, opened: list[str]) -> Kill:
    def so_far() -> int:
        return int(struct.unpack_from("=Q", octets)[0])

    time.sleep(WARM_S / 2)
    began, first = time.monotonic(), so_far()
    time.sleep(WARM_S / 2)
    cut, before = time.monotonic(), so_far()
    seen = [(cut, before)]
    lab.blackhole(2)
    while (now := time.monotonic()) < cut + AFTER_S:
        if (count := so_far()) != seen[-1][1]:
            seen.append((now, count))
        time.sleep(0.001)
    seen.append((now, so_far()))
    lab.heal(2)
    began_last = cut + AFTER_S - LAST_S
    there = next(count for at, count in reversed(seen) if at <= began_last)
    pauses = [(earlier[0], later[0]) for earlier, later in itertools.pairwise(seen)]
    return Kill(
        rate(before - first, cut - began),
        rate(seen[-1][1] - there, LAST_S),
        max(end - start for start, end in pauses),
        sum(end - max(start, began_last) for start, end in pauses if end > began_last and end - start >= PAUSE_S),
        len(opened),
    )


def rate(octets: int, seconds: float) -> float:
    return 8e-6 * octets / seconds


if __name__ == "__main__":
    sys.exit(main())
