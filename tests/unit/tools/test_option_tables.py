"""The tables of options in docs/kernel.md are those that the tests of the kernel go through."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT / "tools"))

import option_tables as tool  # noqa: E402


def test_the_page_is_what_the_source_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["option_tables.py"])
    assert tool.main() == 0, "run tools/option_tables.py --write"


def test_a_stale_page_is_noticed_and_written_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "kernel.md"
    parts = ["before\n"]
    for name in tool.TABLES:
        begin, end = tool.marks(name)
        parts += [begin, "old\n", end, f"after {name}\n"]
    page.write_text("".join(parts))
    monkeypatch.setattr(tool, "PAGE", page)
    monkeypatch.setattr(sys, "argv", ["option_tables.py"])
    assert tool.main() == 1
    monkeypatch.setattr(sys, "argv", ["option_tables.py", "--write"])
    assert tool.main() == 0
    text = page.read_text()
    assert text.startswith("before\n")
    for said in (
        "after refused options\n", "after subflow options\n", "| TCP_USER_TIMEOUT | refused |",
        "| TCP_USER_TIMEOUT | yes | yes |", "| TCP_QUICKACK | ENOPROTOOPT | ENOPROTOOPT |",
    ):  # fmt: skip
        assert said in text
    assert "old" not in text.split("\n")


def test_a_page_without_a_place_for_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "kernel.md"
    page.write_text("nothing\n")
    monkeypatch.setattr(tool, "PAGE", page)
    monkeypatch.setattr(sys, "argv", ["option_tables.py"])
    with pytest.raises(ValueError, match="no place for the table"):
        tool.main()
