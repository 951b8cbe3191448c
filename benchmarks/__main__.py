"""``python -m benchmarks``: the figures of the project, table after table. ``python -m benchmarks NAME ...`` for some."""

from __future__ import annotations

import subprocess
import sys

#: In this order; each is a program of its own, because some become root of namespaces of their own.
NAMES = (
    "throughput", "sockets", "aggregation", "memory", "sim_transfer", "sim_network", "tcp_connection", "tcp_sender", "wire", "links", "udp",
    "kernel_reading", "kernel_sockets", "kernel_events", "kernel_failure", "kernel_stuck", "kernel_broker", "launch",
)  # fmt: skip


def main() -> int:
    names = sys.argv[1:] or NAMES
    for name in names:
        if name not in NAMES:
            print(f"there is no benchmark {name!r}: {', '.join(NAMES)}", file=sys.stderr)
            return 2
    status = 0
    for name in names:
        print(f"\n== {name}", flush=True)
        status |= subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=False).returncode
    return status


if __name__ == "__main__":
    sys.exit(main())
