"""What docs/kernel.md shows of sockets runs."""

import re
from pathlib import Path

import pytest

import mptcp
from mptcp.testing.netns import Namespace

PAGE = Path(__file__).parents[2] / "docs" / "kernel.md"


def blocks(*sections: str) -> list[str]:
    text = PAGE.read_text()
    found = []
    for section in sections:
        body = text.partition(f"## {section}\n")[2].partition("\n## ")[0]
        found += re.findall(r"```python\n(.*?)```", body, re.DOTALL)
    return found


def test_its_blocks_in_their_order(host_namespace: Namespace, capsys: pytest.CaptureFixture[str]) -> None:
    shown = blocks("The socket", "asyncio")
    assert len(shown) == 2
    names: dict[str, object] = {}
    with mptcp.KernelStack(namespace=host_namespace.fileno()) as stack, mptcp.use(stack):
        try:
            for block in shown:
                exec(compile(block, str(PAGE), "exec"), names)
        finally:
            for name in ("sock", "server"):
                names[name].close()  # type: ignore[attr-defined]
    output = capsys.readouterr().out
    assert output.startswith("True  [SubflowInfo(")
    assert "EventKind.ESTABLISHED" in output
