"""docs/counters.md says what the source says."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT / "tools"))

import counters_page as tool  # noqa: E402


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for folder in tool.FOLDERS:
        (tmp_path / "src" / "mptcp" / folder).mkdir(parents=True)
    return tmp_path


def write(root: Path, text: str, name: str = "core/x.py") -> None:
    (root / "src" / "mptcp" / name).write_text(text)


def test_the_page_is_what_the_source_says() -> None:
    written = (ROOT / tool.PAGE).read_text()
    names = {entry.name for entry in tool.counters(ROOT)}
    missing = {name for name in names if f"`{name}`" not in written}
    assert not missing, "new counters: make docs"
    assert tool.main([]) == 0, "make docs"


def test_every_counter_has_a_name_that_can_be_found() -> None:
    assert not tool.unknown(ROOT)


def test_names_are_found_however_they_are_passed(root: Path) -> None:
    write(
        root,
        """
def f(counters, kind, name):
    # What a comment says.
    counters.bump("plain")
    counters.bump("one" if kind else "two")  # beside it
    counters.bump(f"x_{kind}_y", 3)
    counters.bump("prefix_" + kind.lower())
    counters.bump(name)
    wrong = kind.check()
    counters.bump(wrong)
    counters.bump(kind.strange)
def g(counters): f(counters, 1, "from_a_caller")
class C:
    def check(self): return "from_a_result"
""",
    )
    found = {entry.name: entry.text for entry in tool.counters(root)}
    assert found == {
        "plain": "What a comment says.", "one": "beside it", "two": "beside it", "x_{}_y": "", "prefix_{}": "",
        "from_a_caller": "", "from_a_result": "",
    }  # fmt: skip
    assert tool.unknown(root) == ["core.x:11"]


def test_limits_and_settings(root: Path) -> None:
    write(
        root,
        """
#: How many.
QUEUE_PACKETS: Final = 4 * KIB
MAX_THINGS = 7
_MAX_PRIVATE = 3
KIND = 5
MAX_NAME = "text"
class TConfig:
    size: int = 4  # of it
    name: str
class Other:
    size: int = 5
""",
    )
    assert [(e.name, e.value, e.text) for e in tool.limits(root)] == [
        ("MAX_THINGS", "7", ""), ("QUEUE_PACKETS", "4 * KIB", "How many."),
    ]  # fmt: skip
    assert [(e.name, e.value, e.text) for e in tool.settings(root)] == [("TConfig.size", "4", "of it")]


def test_a_stale_page_is_noticed(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(root, 'counters.bump("a")')
    (root / "docs").mkdir()
    assert tool.main(["--root", str(root), "--write"]) == 0
    assert tool.main(["--root", str(root)]) == 0
    write(root, 'counters.bump("b")')
    assert tool.main(["--root", str(root)]) == 1
    assert "make docs" in capsys.readouterr().err
