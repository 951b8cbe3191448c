"""The table of options in docs/kernel.md is the one that the tests of the kernel go through."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[3]


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


tool = load("subflow_options_page")


def test_the_page_is_what_the_source_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["subflow_options_page.py"])
    assert tool.main() == 0, "run tools/subflow_options_page.py --write"


def test_a_stale_page_is_noticed_and_written_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "kernel.md"
    page.write_text(f"before\n{tool.BEGIN}old\n{tool.END}after\n")
    monkeypatch.setattr(tool, "PAGE", page)
    monkeypatch.setattr(sys, "argv", ["subflow_options_page.py"])
    assert tool.main() == 1
    monkeypatch.setattr(sys, "argv", ["subflow_options_page.py", "--write"])
    assert tool.main() == 0
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "| TCP_USER_TIMEOUT | yes | yes |" in text
    assert "| TCP_QUICKACK | ENOPROTOOPT | ENOPROTOOPT |" in text


def test_a_page_without_a_place_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "kernel.md"
    page.write_text("nothing\n")
    monkeypatch.setattr(tool, "PAGE", page)
    monkeypatch.setattr(sys, "argv", ["subflow_options_page.py"])
    with pytest.raises(ValueError, match="no place for the table"):
        tool.main()
