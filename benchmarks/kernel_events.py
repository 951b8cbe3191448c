"""What it costs to watch connections of the kernel's: processor time while nothing happens, and from a change to its event.

Run as root or under ``unshare -Urn``: ``python -m benchmarks.kernel_events [connections] [seconds]``.
"""

from __future__ import annotations

import contextlib
import resource
import socket
import statistics
import sys
import time

from mptcp.core.multipath.events import EventKind
from mptcp.info import Endpoint, Support
from mptcp.kernel.connection import KernelConnection
from mptcp.kernel.control import Control, DirectControl, NoControl
from mptcp.kernel.features import IPPROTO_MPTCP
from mptcp.kernel.monitor import Monitor
from mptcp.kernel.namespace import NetNamespace
from mptcp.sockets.kernel import KernelStack
from mptcp.testing.netns import Lab, become_namespace_root, needs_kernel_mptcp, needs_namespaces

#: Share of a processor for 1,000 idle connections.
TARGET = 0.02
CHANGES = 200


def connect(lab: Lab, count: int) -> list[tuple[socket.socket, socket.socket]]:
    """So many connections of the kernel's, fully established."""
    with lab.server.entered():
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_MPTCP)
        listener.bind(("", 0))
        listener.listen(128)
    pairs = []
    for _ in range(count):
        with lab.client.entered():
            client = socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_MPTCP)
            client.connect((lab.server_address(1), listener.getsockname()[1]))
        server, _ = listener.accept()
        client.sendall(b".")
        server.sendall(server.recv(1))
        client.recv(1)
        pairs.append((client, server))
    pairs.append((listener, listener))
    return pairs


def idle_share(seconds: float) -> float:
    """The processor time this process takes while nothing happens, as a share of one."""
    time.sleep(1)
    start, used = time.perf_counter(), time.process_time()
    time.sleep(seconds)
    return (time.process_time() - used) / (time.perf_counter() - start)


def reaction_us(connection: KernelConnection, local: Endpoint, remote: Endpoint) -> float:
    """Microseconds from asking for a subflow to the event that it works (three packets between), the median."""
    times = []
    for _ in range(CHANGES):
        start = time.perf_counter_ns()
        number = connection.open_subflow(local, remote)
        with connection.lock:
            while not any(e is EventKind.SUBFLOW_ESTABLISHED for e in kinds(connection)):
                connection.changed.wait(1)
        times.append((time.perf_counter_ns() - start) / 1000)
        connection.close_subflow(number, reset=True)
        with connection.lock:
            while not any(e is EventKind.SUBFLOW_CLOSED for e in kinds(connection)):
                connection.changed.wait(1)
    return statistics.median(times)


def kinds(connection: KernelConnection) -> list[EventKind]:
    found = []
    while (event := connection.poll_event()) is not None:
        found.append(event.kind)
    return found


def looked_after(lab: Lab, count: int, seconds: float, stack: contextlib.ExitStack) -> float:
    """The same for so many connections of a ``KernelStack``, each with a second subflow and a watchdog."""
    far = stack.enter_context(KernelStack(namespace=lab.server.fileno(), failure_policy=None))
    near = stack.enter_context(KernelStack(namespace=lab.client.fileno()))
    listener = stack.enter_context(far.socket())
    listener.bind(("", 0))
    listener.listen(128)
    pairs = []
    for _ in range(count):
        client = stack.enter_context(near.socket())
        client.connect((lab.server_address(1), listener.getsockname()[1]))
        server = stack.enter_context(listener.accept()[0])
        client.sendall(b".")
        server.sendall(server.recv(1))
        client.recv(1)
        client.open_subflow(client.getpeername(), (lab.client_address(2), 0))
        pairs.append(client)
    deadline = time.monotonic() + 30
    while any(len(client.subflows()) < 2 for client in pairs):
        if time.monotonic() > deadline:
            raise TimeoutError("not every connection got its second subflow")
        time.sleep(0.1)
    time.sleep(3)  # until then they are looked at more often
    return idle_share(seconds)


def main() -> int:
    if (reason := needs_namespaces()) and not become_namespace_root():
        print(f"skipped: {reason}")
        return 0
    if reason := needs_kernel_mptcp():
        print(f"skipped: {reason}")
        return 0
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 10.0
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with Lab(2, client_kernel=True) as lab, contextlib.ExitStack() as stack:
        for where in (lab.client, lab.server):
            where.sysctl("net.mptcp.path_manager", "userspace")
        namespace = NetNamespace(lab.client.fileno())
        direct = DirectControl(namespace)
        far = Monitor(NetNamespace(lab.server.fileno()), DirectControl(NetNamespace(lab.server.fileno())))
        stack.callback(far.close)
        pairs = connect(lab, count)
        nobody = NoControl(Support(False, "no privilege"))
        print(f"{count} connections, {seconds:g} s each; the processor's share of the whole process\n")
        print(f"{'':34}{'idle, %':>10}{'change to event, µs':>22}")
        failed = False
        for name, control in (("the kernel's events", direct), ("without privilege", nobody)):
            watching: Control = control
            monitor = Monitor(namespace, watching)
            connections = [KernelConnection(client.fileno(), namespace, direct, monitor) for client, _ in pairs[:-1]]
            share = idle_share(seconds)
            local, remote = Endpoint.parse(lab.client_address(2)), connections[0].initial_remote
            reaction = f"{reaction_us(connections[0], local, remote):22.0f}" if control is direct else f"{'-':>22}"
            print(f"{name:34}{share * 100:10.2f}{reaction}")
            failed = failed or share > TARGET
            for connection in connections:
                connection.close()
            monitor.close()
        for client, server in pairs:
            client.close()
            server.close()
        share = looked_after(lab, count, seconds, stack)
        print(f"{'events and watchdog, two subflows':34}{share * 100:10.2f}{'-':>22}")
        failed = failed or share > TARGET
    print(f"\ntarget {TARGET * 100:g} %{': NOT kept' if failed else ''}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
