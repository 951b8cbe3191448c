"""The examples of the kernel's stack, as a user would start them: with and without privilege, and where something is missing."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mptcp.testing.netns import Lab, Namespace

EXAMPLES = Path(__file__).parents[2] / "examples"
SOURCE = Path(__file__).parents[2] / "src"

#: Root without any capability: who is not root, as far as the kernel's network goes.
UNPRIVILEGED = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")


def example(name: str, *arguments: str, inside: Namespace | None = None, by: tuple[str, ...] = ()) -> str:
    """What it printed; it has to succeed."""
    command = [*by, sys.executable, str(EXAMPLES / name), *arguments]
    with inside.entered() if inside is not None else contextlib.nullcontext():
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env=os.environ | {"PYTHONPATH": str(SOURCE)},
        )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_second_subflow_by_hand(namespaces: None) -> None:
    first, opened, closed = (
        example("second_subflow.py").split("first:")[1].replace("closed:", "opened:").split("opened:")
    )
    assert first.count("active") == 1
    assert "10.77.2.1" in opened
    assert ", active, backup" in opened
    assert "subflow-closed 10.77.2.1" in opened
    assert closed.count("active") == 1
    assert "10.77.2.1" not in closed


def test_a_path_manager_on_both_stacks(namespaces: None) -> None:
    user, kernel = example("own_path_manager.py").split("kernel\n")
    for printed, network in ((user, "10.0"), (kernel, "10.77")):
        assert f"then: {network}.1.1 {network}.2.1 (backup)" in printed
        assert f"now: {network}.2.1 still here" in printed


def test_the_asyncio_client_over_two_paths(lab: Lab) -> None:
    """The namespace's own path manager opens the second subflow; its server answers anything with 3,000,000 octets."""
    lab.server.mptcp_limits(subflows=4, add_addr_accepted=4)
    lab.client.mptcp_limits(subflows=4, add_addr_accepted=4)
    lab.client.mptcp_endpoint(lab.client_address(2), "subflow")
    server = lab.server.serve(send_bytes=3_000_000)
    printed = example("kernel_client.py", lab.server_address(1), str(server.port), inside=lab.client)
    assert "multipath: True" in printed
    assert "read 3,000,000 octets" in printed
    assert f"event: subflow-established {lab.client_address(2)}" in printed


@pytest.mark.parametrize(
    ("enabled", "says"),
    [(1, "multipath: True"), (0, "multipath: False MPTCP is switched off (net.mptcp.enabled=0)")],
)
def test_the_asyncio_client_without_privilege(host_namespace: Namespace, enabled: int, says: str) -> None:
    if shutil.which("setpriv") is None:
        pytest.skip("setpriv (util-linux) is not installed")
    host_namespace.sysctl("net.mptcp.enabled", enabled)
    printed = example("kernel_client.py", inside=host_namespace, by=UNPRIVILEGED)
    assert says in printed
    assert "event: established 127.0.0.1" in printed
    assert "read 10,000,019 octets" in printed
    assert "subflow 1: 127.0.0.1" in printed
