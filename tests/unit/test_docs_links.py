"""What the documentation points to exists: pages and their sections, files, tests, benchmarks, commands and their options."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main

from mptcp.cli import app

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])

LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#{1,6} (.+)$", re.MULTILINE)
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
#: A file of the repository in backquotes; in a test's, a name or the beginning of one (``::test_close_*``).
MENTIONED = re.compile(r"`((?:src|tests|tools|docs|examples|packaging|benchmarks)/[\w./*-]*)(?:::(\w+)(\*?))?`")
BENCHMARK = re.compile(r"python -m (benchmarks(?:\.\w+)?)")
COMMAND = re.compile(r"^(?:[$#] |sudo )?(mptcp [a-z]+(?: .*)?)$", re.MULTILINE)

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


@functools.cache
def text_of(page: Path) -> str:
    return page.read_text()


@functools.cache
def anchors(page: Path) -> frozenset[str]:
    """The names of a page's sections, as GitHub makes them."""
    found: dict[str, int] = {}
    names = set()
    for heading in HEADING.findall(FENCE.sub("", text_of(page))):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        slug = "".join(c for c in plain.replace(" ", "-") if c.isalnum() or c in "-_")
        number = found.get(slug, 0)
        found[slug] = number + 1
        names.add(f"{slug}-{number}" if number else slug)
    return frozenset(names)


def prose(page: Path) -> str:
    return FENCE.sub("", text_of(page))


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, section = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{target}: there is no such file"
        assert there.is_relative_to(ROOT), f"{target}: that is outside of the repository"
        if section:
            assert section in anchors(there), f"{target}: no such section; there are {sorted(anchors(there))}"


@each_page
def test_pages_that_are_named_without_a_link_exist(page: Path) -> None:
    for path in re.findall(r"\b(docs/[\w-]+\.md)\b", text_of(page)):
        assert (ROOT / path).exists(), f"there is no {path}"


@each_page
def test_files_and_tests_that_are_named_exist(page: Path) -> None:
    for path, name, more in MENTIONED.findall(text_of(page)):
        files = [*ROOT.glob(path)] if "*" in path else [ROOT / path]
        assert files, path
        assert all(file.exists() for file in files), f"there is no {path}"
        if name:
            tail = r"\w*\(" if more else r"\("
            pattern = r"^ *(?:async )?def " + name + tail
            assert re.search(pattern, files[0].read_text(), re.MULTILINE), f"{path} has no {name}"


@each_page
def test_benchmarks_that_are_named_exist(page: Path) -> None:
    for module in BENCHMARK.findall(text_of(page)):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or path.is_dir(), module


@functools.cache
def options(verb: str) -> dict[str, bool]:
    """Those of a verb, short and long, and whether each takes a value; nothing for what is no verb."""
    command = getattr(typer.main.get_command(app.app), "commands", {}).get(verb)
    if command is None:
        return {}
    found = {"--help": False, "-h": False}
    for parameter in command.params:
        for name in (*parameter.opts, *parameter.secondary_opts):
            found[name] = not getattr(parameter, "is_flag", False)
    return found


def commands(page: Path) -> Iterator[tuple[str, list[str]]]:
    """(verb, its own options) of every line in a code block that is one of ours."""
    for block in FENCE.findall(text_of(page)):
        for line in COMMAND.findall(block):
            _, verb, *words = re.sub(r"\s#.*", "", line).split()
            given: list[str] = []
            rest = iter(words)
            for word in rest:
                if word.startswith("-"):
                    name, is_joined, _ = word.partition("=")
                    given.append(name)
                    if options(verb).get(name) and not is_joined:
                        next(rest, None)
                elif verb == "run":
                    break  # the program: what follows is its own
            yield verb, given


@each_page
def test_commands_and_their_options_exist(page: Path) -> None:
    for verb, given in commands(page):
        there = options(verb)
        assert there, f"there is no mptcp {verb}"
        assert set(given) <= there.keys(), f"mptcp {verb} has no {set(given) - there.keys()}"


def test_every_page_is_in_the_index() -> None:
    index = set(LINK.findall(text_of(ROOT / "docs" / "README.md")))
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "README.md" or page.name in index, f"docs/README.md does not name {page.name}"


def test_every_example_is_named() -> None:
    named = text_of(ROOT / "examples" / "README.md")
    for example in (ROOT / "examples").glob("*.py"):
        assert f"({example.name})" in named, f"examples/README.md does not name {example.name}"


def test_the_first_minute_runs(capsys: pytest.CaptureFixture[str]) -> None:
    """The first block of the README, on whatever kernel this is."""
    [block, *_] = re.findall(r"^```python\n(.*?)^```$", text_of(ROOT / "README.md"), re.MULTILINE | re.DOTALL)
    namespace: dict[str, object] = {}
    try:
        exec(block, namespace)
    finally:
        for name in ("peer", "listener"):
            getattr(namespace.get(name), "close", lambda: None)()
    first, subflow = capsys.readouterr().out.splitlines()
    assert first.startswith("b'hello' ")
    assert subflow.startswith("127.0.0.1:")
