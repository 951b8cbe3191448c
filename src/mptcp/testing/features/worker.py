"""Tries the probes on the kernel's stack with the capabilities it is told to keep: a process of its own for each."""

from __future__ import annotations

import json
import sys

from mptcp.kernel.broker import privileges
from mptcp.sockets.kernel import KernelStack
from mptcp.testing.features.probes import run_all
from mptcp.testing.features.scene import Scene


def main() -> int:
    told = json.loads(sys.argv[1])
    privileges.drop(keep=told["capabilities"])
    with KernelStack() as stack:
        scene = Scene(stack, tuple(told["local"]), tuple(told["remote"]), told["port"], told["managed"])
        results = run_all(scene)
    json.dump(results, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
