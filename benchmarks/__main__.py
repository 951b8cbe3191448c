"""All benchmarks, one after the other: ``make bench``, or ``python -m benchmarks [NAME ...]`` for some of them.

Each prints its own table, and runs in a process of its own, so that none disturbs another. Those that need a network
namespace get one, as root or in a user namespace; where the machine allows none they say so.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent

#: Module -> (title, whether it needs a namespace of its own).
BENCHMARKS = {
    "throughput": ("against the kernel: sending and receiving, as a share of what the machine allows", False),
    "memory": ("memory of an idle connection", False),
    "sim_transfer": ("two whole stacks in the simulator", False),
    "sim_network": ("the simulated network alone", False),
    "tcp_connection": ("two TCP connections back to back", False),
    "tcp_sender": ("the sending half of TCP", False),
    "wire": ("the codec", False),
    "links": ("the links alone", True),
}


def command(name: str, needs_namespace: bool) -> list[str]:
    """How to start one."""
    start = [sys.executable, "-m", f"benchmarks.{name}"]
    if needs_namespace:
        return ["unshare", "-n" if os.geteuid() == 0 else "-Urn", *start]
    return start


def main(names: list[str]) -> int:
    """Exit status: that of the worst of them; 2 for a name that is none."""
    unknown = [name for name in names if name not in BENCHMARKS]
    if unknown:
        print(f"no benchmark is called {unknown[0]}: there are {', '.join(BENCHMARKS)}", file=sys.stderr)
        return 2
    worst = 0
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent / "src")}
    for name in names or BENCHMARKS:
        title, needs_namespace = BENCHMARKS[name]
        print(f"\n== {name}: {title}", flush=True)
        try:
            done = subprocess.run(command(name, needs_namespace), cwd=HERE.parent, env=environment, check=False)
        except FileNotFoundError as error:
            print(f"{error.filename} is not installed", flush=True)
            worst = max(worst, 1)
            continue
        if done.returncode:
            print(f"{name} ended with status {done.returncode}", flush=True)
        worst = max(worst, abs(done.returncode))
    return worst


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
