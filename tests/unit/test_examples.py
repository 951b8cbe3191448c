"""Each example runs as a user would start it, and prints what it is about."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
PRINTS = {
    "echo.py": ["client: hello, twice", "multipath: True", "10.0.0.1"],
    "own_scheduler.py": ["LowestRtt:", "CheapFirst:", "longest stall"],
    "path_failure.py": ["10.0.1.1", "longest stall", "subflow-established"],
}
#: Those of the kernel's stack: tests/kernel/test_examples.py.
OF_THE_KERNEL = {"kernel_client.py", "own_path_manager.py", "second_subflow.py"}


def test_every_example_is_tested() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == PRINTS.keys() | OF_THE_KERNEL
    tests = (Path(__file__).parents[1] / "kernel" / "test_examples.py").read_text()
    assert all(name in tests for name in OF_THE_KERNEL)


@pytest.mark.parametrize("name", sorted(PRINTS))
def test_example(name: str) -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name)], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    for text in PRINTS[name]:
        assert text in done.stdout


def test_the_capture_of_an_example_can_be_read(tmp_path: Path) -> None:
    target = tmp_path / "capture.pcapng"
    subprocess.run(
        [sys.executable, str(EXAMPLES / "path_failure.py"), str(target)], capture_output=True, timeout=100, check=True
    )
    from mptcp.links.pcap import read_pcapng

    packets = list(read_pcapng(target))
    assert len(packets) > 1000
