"""docs/requirements.md is what the tables say, and every name and test in them is there."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT / "tools"))

import requirements_page  # noqa: E402


def test_the_page_is_true() -> None:
    pages, faults = requirements_page.collect()
    assert faults == []
    assert (ROOT / "docs/requirements.md").read_text() == requirements_page.page_text(pages), "make docs"
    assert sum(map(len, pages.values())) > 100


@pytest.fixture
def site(tmp_path: Path) -> Path:
    (tmp_path / "docs").mkdir()
    (tmp_path / "tests").mkdir()
    for page in requirements_page.PAGES:
        (tmp_path / "docs" / page).write_text("no table\n")
    (tmp_path / "tests/test_one.py").write_text(
        "def test_a_1(): pass\n\nclass X:\n    async def test_a_2(self): pass\n"
    )
    (tmp_path / "tests/test_two.py").write_text("def test_a_1(): pass\n")
    return tmp_path


@pytest.mark.parametrize(
    ("cell", "nodes"),
    [
        ("`test_one.py::test_a_1`", ["tests/test_one.py::test_a_1"]),
        ("`test_one.py::test_a_*`", ["tests/test_one.py::test_a_1", "tests/test_one.py::test_a_2"]),
        ("`test_one.py::test_a_1`, `::test_a_2`", ["tests/test_one.py::test_a_1", "tests/test_one.py::test_a_2"]),
        ("`test_a_2`", ["tests/test_one.py::test_a_2"]),
        ("`test_two.py`", ["tests/test_two.py"]),
        ("`tests`", ["tests"]),
    ],
)
def test_how_tests_are_named(site: Path, cell: str, nodes: list[str]) -> None:
    (site / "docs/api-basic.md").write_text(f"| x | how | test |\n|---|---|---|\n| §4.2.1 y | `bind` | {cell} |\n")
    pages, faults = requirements_page.collect(site)
    [row] = pages["api-basic.md"]
    assert row.tests == nodes
    assert not [fault for fault in faults if "api-basic" in fault]


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        (
            "| §4.2.1 y | `bind` | `test_three.py::test_a` |",
            "docs/api-basic.md:3: there is no test test_three.py::test_a",
        ),
        ("| §4.2.1 y | `bind` | `test_two.py::test_b` |", "docs/api-basic.md:3: there is no test test_two.py::test_b"),
        ("| §4.2.1 y | `bind` | |", "docs/api-basic.md:3: no test is named"),
        ("| §4.2.1 y | `no_such_thing` | `test_two.py` |", "docs/api-basic.md:3: nothing is called no_such_thing"),
        ("| §4.2.1 y | `bind` | `test_two.py` |", "no table speaks of RFC 6897 §4.2.2"),
        ("| §4.2.1 y | `bind` | `test_two.py` |", "no table speaks of draft §3.1"),
    ],
)
def test_faults(site: Path, row: str, fault: str) -> None:
    (site / "docs/api-basic.md").write_text(f"| x | how | test |\n|---|---|---|\n{row}\n")
    assert fault in requirements_page.collect(site)[1]


@pytest.mark.parametrize(
    "name",
    [
        "Socket", "bind", "add_addresses(list)", "UserStack(hidden=[...])", "TCP_MULTIPATH_ADD", "_REMOVE", "EACCES",
        "race_plain_ms", "mptcp.Policy", "--link udp:A", "cli/udp.py", "sock.nothing_like_it",
    ],
)  # fmt: skip
def test_names_are_looked_up(name: str) -> None:
    assert requirements_page.has_name(name) is (name != "sock.nothing_like_it")
