"""What it costs to look at a connection of the kernel's: microseconds a call, by number of subflows.

Run as root or under ``unshare -Urn``: ``python -m benchmarks.kernel_reading [calls]``. The medians of ``calls`` readings of
an idle connection; "asked anew" is with everything that sock_diag knows looked up again, as it is every 100 ms.
"""

from __future__ import annotations

import socket
import statistics
import sys
import time
from collections.abc import Callable

from mptcp.kernel import sockopt
from mptcp.kernel.diag import Diag
from mptcp.kernel.features import IPPROTO_MPTCP
from mptcp.kernel.namespace import NetNamespace
from mptcp.kernel.reading import Reading
from mptcp.testing.netns import Lab, become_namespace_root, needs_kernel_mptcp, needs_namespaces

#: Microseconds for ``subflows()`` with three of them.
TARGET_US = 60
SUBFLOWS = (1, 3, 8)
NAMES = ("MPTCP_INFO", "FULL_INFO", "subflows()", "... asked anew", "info()", "sock_diag, all")


def connect(lab: Lab, subflows: int) -> tuple[socket.socket, socket.socket]:
    """A connection of the kernel's with so many subflows."""
    for namespace in (lab.client, lab.server):
        namespace.mptcp_limits(subflows=8, add_addr_accepted=8)
    for path in range(2, subflows + 1):
        lab.client.mptcp_endpoint(lab.client_address(path), "subflow")
    with lab.server.entered():
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_MPTCP)
        listener.bind(("0.0.0.0", 0))
        listener.listen()
    with lab.client.entered():
        client = socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_MPTCP)
        client.connect((lab.server_address(1), listener.getsockname()[1]))
    server, _ = listener.accept()
    client.sendall(b".")
    server.sendall(server.recv(1))
    client.recv(1)
    deadline = time.monotonic() + 5
    while len(sockopt.full_info(client.fileno()).subflows) < subflows:
        if time.monotonic() > deadline:
            raise TimeoutError(f"the kernel did not open {subflows} subflows")
        time.sleep(0.01)
    listener.close()
    return client, server


def median_us(call: Callable[[], object], calls: int) -> float:
    times = []
    for _ in range(calls):
        start = time.perf_counter_ns()
        call()
        times.append(time.perf_counter_ns() - start)
    return statistics.median(times) / 1000


def measure(subflows: int, calls: int) -> list[float]:
    """In the order of ``NAMES``."""
    with Lab(subflows, client_kernel=True) as lab:
        client, server = connect(lab, subflows)
        namespace = NetNamespace(lab.client.fileno())
        with client, server, namespace, Diag(namespace) as diag:
            fd = client.fileno()
            reading = Reading(fd, namespace)

            def anew() -> None:
                reading.invalidate()
                reading.subflows()

            return [
                median_us(lambda: sockopt.mptcp_info(fd), calls),
                median_us(lambda: sockopt.full_info(fd), calls),
                median_us(reading.subflows, calls),
                median_us(anew, calls // 4),
                median_us(reading.connection, calls // 4),
                median_us(diag.subflows, calls // 10),
            ]


def main() -> int:
    if needs_namespaces() and not become_namespace_root():
        print(needs_namespaces(), file=sys.stderr)
        return 1
    if reason := needs_kernel_mptcp():
        print(reason, file=sys.stderr)
        return 1
    calls = int(sys.argv[1]) if len(sys.argv) > 1 else 5000
    columns = [measure(subflows, calls) for subflows in SUBFLOWS]
    print(f"{'µs a call':<16}" + "".join(f"{n:>4} subflow{'s' if n > 1 else ' '}" for n in SUBFLOWS))
    for row, name in enumerate(NAMES):
        print(f"{name:<16}" + "".join(f"{column[row]:>13.1f}" for column in columns))
    reached = columns[SUBFLOWS.index(3)][2]
    print(f"subflows() with three: {reached:.1f} µs, target {TARGET_US}: {'yes' if reached <= TARGET_US else 'NO'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
