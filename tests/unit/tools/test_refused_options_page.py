"""The table of refused options in docs/kernel.md is the one that the tests of the kernel go through."""

import importlib.util
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[3] / "tools" / "refused_options_page.py"

spec = importlib.util.spec_from_file_location("refused_options_page", TOOL)
assert spec is not None
assert spec.loader is not None
tool = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tool)


def test_the_page_is_what_the_source_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["refused_options_page.py"])
    assert tool.main() == 0, "run tools/refused_options_page.py --write"


def test_a_stale_page_is_noticed_and_written_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "kernel.md"
    page.write_text(f"before\n{tool.BEGIN}old\n{tool.END}after\n")
    monkeypatch.setattr(tool, "PAGE", page)
    monkeypatch.setattr(sys, "argv", ["refused_options_page.py"])
    assert tool.main() == 1
    monkeypatch.setattr(sys, "argv", ["refused_options_page.py", "--write"])
    assert tool.main() == 0
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "| TCP_USER_TIMEOUT | refused |" in text
