"""The columns of the table: each stack, and the kernel's with one privilege after the other.

``python -m mptcp.testing.features.environments`` prints what each can do here, in both address families; with names of
columns, these only.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from mptcp.core.multipath.config import ConnectionConfig
from mptcp.core.path_managers.none import NoSubflows
from mptcp.kernel import features
from mptcp.kernel.features import CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON
from mptcp.kernel.namespace import NetNamespace
from mptcp.kernel.pm_service import user_space_manager
from mptcp.links.loopback import LoopbackLink
from mptcp.sockets.kernel import KernelStack
from mptcp.sockets.user import UserStack
from mptcp.testing import netns
from mptcp.testing.features.probes import Finding, run_all
from mptcp.testing.features.scene import Scene, Server

Results = dict[str, Finding]
FAMILIES = (4, 6)


@dataclass(frozen=True)
class Environment:
    """``capabilities`` of the client's process; ``broker``: one runs beside it."""

    name: str
    title: str
    capabilities: tuple[int, ...] = ()
    broker: bool = False
    kernel: bool = True


ENVIRONMENTS = (
    Environment("user", "user-space stack", kernel=False),
    Environment("kernel", "kernel, no privilege"),
    Environment("broker", "kernel, by the broker", broker=True),
    Environment("admin", "kernel, CAP_NET_ADMIN", (CAP_NET_ADMIN,)),
    Environment("bpf", "kernel, CAP_NET_ADMIN, CAP_BPF, CAP_PERFMON", (CAP_NET_ADMIN, CAP_BPF, CAP_PERFMON)),
)


def unavailable(environment: Environment) -> str:
    """Why this one cannot be tried here; "" if it can. Needs namespaces, but for the user-space stack."""
    if not environment.kernel:
        return ""
    if reason := netns.needs_namespaces() or netns.needs_kernel_mptcp():
        return reason
    missing = [number for number in environment.capabilities[1:] if not features.has_capability(number)]
    if missing or (environment.broker and not features.has_capability(CAP_BPF)):
        return "CAP_BPF and CAP_PERFMON in the first user namespace are missing: run as root"
    return ""


def examine(environment: Environment) -> dict[int, Results]:
    """Tries every probe there, in each of ``FAMILIES``, both at the same time: most of it is waiting."""
    with ThreadPoolExecutor(len(FAMILIES)) as threads:
        found = threads.map(lambda family: _examine(environment, family), FAMILIES)
        return dict(zip(FAMILIES, found, strict=True))


def _examine(environment: Environment, family: int) -> Results:
    if environment.kernel:
        return _examine_kernel(environment, family)
    with _user_scene(family) as scene:
        return run_all(scene)


@contextlib.contextmanager
def _user_scene(family: int) -> Iterator[Scene]:
    if family == 4:
        local, remote = ("10.0.0.1", "10.0.1.1"), ("10.0.0.2", "10.0.1.2")
    else:
        local, remote = ("fd00::1", "fd01::1"), ("fd00::2", "fd01::2")
    pairs = [LoopbackLink.pair(f"path{i}") for i in range(2)]
    config = ConnectionConfig(path_manager=NoSubflows)
    near, far = (
        UserStack(
            [pair[side] for pair in pairs],
            {pair[side].name: [address] for pair, address in zip(pairs, addresses, strict=True)},
            seed=side,
            config=config,
        )
        for side, addresses in ((0, local), (1, remote))
    )
    server = Server(far, remote[1])
    try:
        yield Scene(near, local, remote, server.port)
    finally:
        server.close()
        near.close(0)
        far.close(0)


def _examine_kernel(environment: Environment, family: int) -> Results:
    with contextlib.ExitStack() as exits:
        lab = exits.enter_context(netns.Lab(2, client_kernel=True))
        lab.wait_ready()
        near, far = NetNamespace(lab.client.fileno()), NetNamespace(lab.server.fileno())
        exits.enter_context(user_space_manager(far))
        steered = bool(environment.capabilities) or environment.broker
        if steered:
            exits.enter_context(user_space_manager(near))
        else:
            # Nobody can open subflows here but the kernel itself: it is told to.
            lab.client.mptcp_limits(subflows=4, add_addr_accepted=4)
            lab.client.mptcp_endpoint(lab.client_address(2, family), "subflow")
        stack = exits.enter_context(
            KernelStack(namespace=lab.server.fileno(), config=ConnectionConfig(path_manager=NoSubflows))
        )
        server = Server(stack, lab.server_address(2, family))
        exits.callback(server.close)
        variables = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        variables.pop("MPTCP_BROKER", None)
        if environment.broker:
            variables["MPTCP_BROKER"] = exits.enter_context(_broker(lab.client))
        arguments = {
            "capabilities": environment.capabilities,
            "local": [lab.client_address(path, family) for path in (1, 2)],
            "remote": [lab.server_address(path, family) for path in (1, 2)],
            "port": server.port,
            "managed": not steered,
        }
        worker = lab.client.popen(
            sys.executable, "-m", "mptcp.testing.features.worker", json.dumps(arguments),
            stdout=subprocess.PIPE, env=variables,
        )  # fmt: skip
        output, _ = worker.communicate(timeout=300)
        if worker.returncode:
            raise RuntimeError(f"the worker of {environment.name} ended with {worker.returncode}")
        return {item: Finding(*found) for item, found in json.loads(output).items()}


@contextlib.contextmanager
def _broker(namespace: netns.Namespace) -> Iterator[str]:
    """A broker in that namespace; the path of its socket."""
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/broker.sock"
        variables = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        process = namespace.popen(
            sys.executable, "-m", "mptcp", "broker", "--socket", path,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=variables,
        )  # fmt: skip
        try:
            deadline = time.monotonic() + 20
            while not Path(path).exists():
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError("the broker does not start")
                time.sleep(0.02)
            yield path
        finally:
            process.terminate()
            process.wait(10)


def main() -> int:
    if netns.needs_namespaces():
        netns.become_namespace_root()
    wanted = sys.argv[1:] or [environment.name for environment in ENVIRONMENTS]
    for environment in [environment for environment in ENVIRONMENTS if environment.name in wanted]:
        print(f"== {environment.title}")
        if reason := unavailable(environment):
            print(f"   not here: {reason}")
            continue
        for family, results in examine(environment).items():
            for item, found in results.items():
                print(f"   IPv{family} {item:60} {found.answer} {found.said}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
