#!/usr/bin/env python3
"""Write docs/counters.md from the source: every counter, every limit, every setting.

    tools/counters_page.py            # exit status 1 if the page is not what the source says
    tools/counters_page.py --write    # write it anew

A counter is what ``bump("name")`` is called with; what it means is the comment above or beside the call, if there is
one. A name that is put together at run time is shown with {} in it. A limit is a constant in capitals at the top of a
module whose comment starts with ``#:`` (or whose name starts with MAX_). A setting is a field of a ``*Config`` class.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = Path("docs/counters.md")
#: What the page covers: what runs in a stack, not the tools around it.
FOLDERS = ("core", "links", "runtime", "sockets")

HEAD = """# Counters, limits and settings

Written by `tools/counters_page.py` from the source (`make docs`); a test keeps it true.

"""
COUNTERS = """## Counters

A stack counts by name what it dropped, refused or had to work around: `stack.counters`, a `dict`. A name is there once
it has happened. Nothing of it is an error of the program; all of it is a hint where to look. Links keep counters of
their own (`link.counters`).

"""
LIMITS = """## Limits

Every queue, table and cache has one. They are constants of their modules.

"""
SETTINGS = """## Settings

Of connections (`ConnectionConfig`, and in it `tcp`, a `TcpConfig`) and of hosts (`HostConfig`). Sizes in bytes, times in
microseconds.

"""


@dataclass(frozen=True, slots=True, order=True)
class Entry:
    """One row: a name, where it is, its value if it has one, and what the source says about it."""

    name: str
    module: str
    value: str
    text: str


def modules(root: Path) -> Iterator[tuple[str, Path]]:
    """(dotted name below the package, path) of everything the page covers."""
    package = root / "src" / "mptcp"
    for folder in FOLDERS:
        for path in sorted((package / folder).rglob("*.py")):
            yield ".".join(path.relative_to(package).with_suffix("").parts).removesuffix(".__init__"), path


class Names(ast.NodeVisitor):
    """Collects the arguments of ``bump`` in one module, and what names passed on by variables can stand for."""

    def __init__(self, tree: ast.Module, returned: dict[str, list[str]]) -> None:
        """``returned``: the texts that functions of a name give back, over all modules."""
        self._returned = returned
        self.found: list[tuple[str, int]] = []
        self.unknown: list[int] = []
        self._functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]
        self._calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call)]
        self._scope: list[ast.FunctionDef] = []
        self.visit(tree)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self._scope.append(node)
        self.generic_visit(node)
        self._scope.pop()

    def visit_Call(self, node: ast.Call) -> None:
        function = node.func
        if isinstance(function, ast.Attribute) and function.attr == "bump" and node.args:
            names = self._texts(node.args[0])
            self.found += [(name, node.lineno) for name in names]
            if not names:
                self.unknown.append(node.lineno)
        self.generic_visit(node)

    def _texts(self, node: ast.expr) -> list[str]:
        """Every text that ``node`` can be; {} for what is only known at run time; [] if nothing is known."""
        if isinstance(node, ast.Constant):
            return [node.value] if isinstance(node.value, str) and node.value else []
        if isinstance(node, ast.IfExp):
            return self._texts(node.body) + self._texts(node.orelse)
        if isinstance(node, ast.JoinedStr):
            return ["".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)]
        if isinstance(node, ast.BinOp):
            left, right = self._texts(node.left) or ["{}"], self._texts(node.right) or ["{}"]
            return [a + b for a in left for b in right]
        if isinstance(node, ast.Name) and self._scope:
            return self._values(node.id, self._scope[-1])
        return []

    def _values(self, name: str, function: ast.FunctionDef) -> list[str]:
        """What a parameter is called with in this module, or a variable is set to in this function."""
        parameters = [argument.arg for argument in function.args.args]
        texts: list[str] = []
        if name in parameters:
            position = parameters.index(name)
            for call in self._calls:
                called = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
                if called == function.name:
                    shift = 1 if parameters[0] == "self" and isinstance(call.func, ast.Attribute) else 0
                    if 0 <= position - shift < len(call.args):
                        texts += self._texts(call.args[position - shift])
                    texts += [t for k in call.keywords if k.arg == name for t in self._texts(k.value)]
        for node in ast.walk(function):
            if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
                texts += self._texts(node.value)
                if isinstance(node.value, ast.Call) and isinstance(node.value.func, ast.Attribute):
                    texts += self._returned.get(node.value.func.attr, [])
        return texts


def returned_texts(root: Path) -> dict[str, list[str]]:
    """What looks like a counter's name and is returned: {function name: [text, ...]}."""
    found: dict[str, list[str]] = {}
    for _, path in modules(root):
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef):
                for node in ast.walk(function):
                    value = node.value if isinstance(node, ast.Return) else None
                    if isinstance(value, ast.Constant) and re.fullmatch(r"[a-z]+(_[a-z0-9]+)+", str(value.value)):
                        found.setdefault(function.name, []).append(str(value.value))
    return found


def counters(root: Path) -> list[Entry]:
    """Every counter of the source whose name can be found out (``unknown`` has the others)."""
    entries: dict[str, Entry] = {}
    returned = returned_texts(root)
    for module, path in modules(root):
        text = path.read_text()
        lines = text.splitlines()
        names = Names(ast.parse(text), returned)
        for name, line in names.found:
            entry = Entry(name, module, "", comment_near(lines, line - 1))
            known = entries.get(name)
            if known is not None:
                places = sorted({*known.module.split(", "), module})
                entry = Entry(name, ", ".join(places), "", known.text or entry.text)
            entries[name] = entry
    return sorted(entries.values())


def comment_near(lines: list[str], index: int, reach: int = 2) -> str:
    """The comment on that line, or the block of comment lines right above it or (``reach`` 2) above the ``if`` it
    hangs on."""
    beside = re.search(r"  # (?!noqa|type:)(.+)$", lines[index])
    if beside:
        return tidy(beside.group(1))
    for start in range(index, index - reach, -1):
        block: list[str] = []
        above = start - 1
        while above >= 0 and (found := re.match(r"\s*#:? ?(.*)$", lines[above])):
            block.insert(0, found.group(1))
            above -= 1
        if block:
            return tidy(" ".join(block))
    return ""


def tidy(text: str) -> str:
    """One line for a table."""
    return " ".join(text.split()).replace("|", "\\|")


def limits(root: Path) -> list[Entry]:
    """Constants in capitals that bound something."""
    entries = []
    for module, path in modules(root):
        text = path.read_text()
        lines = text.splitlines()
        for node in ast.parse(text).body:
            target: ast.expr | None = node.target if isinstance(node, ast.AnnAssign) else None
            if isinstance(node, ast.Assign) and len(node.targets) == 1:
                target = node.targets[0]
            if not isinstance(target, ast.Name) or not re.fullmatch(r"[A-Z][A-Z0-9_]+", target.id):
                continue
            value = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
            documented = lines[node.lineno - 2].startswith("#:") if node.lineno > 1 else False
            if value is None or not is_number(value) or not (documented or target.id.startswith("MAX_")):
                continue
            entries.append(Entry(target.id, module, ast.unparse(value), comment_near(lines, node.lineno - 1, 1)))
    return sorted(entries)


def is_number(node: ast.expr) -> bool:
    """A number, or an expression of numbers and units (``4 * MIB``)."""
    if isinstance(node, ast.BinOp):
        return is_number(node.left) and is_number(node.right)
    if isinstance(node, ast.Constant):
        return isinstance(node.value, int | float) and not isinstance(node.value, bool)
    return isinstance(node, ast.Name) and node.id.isupper()


def settings(root: Path) -> list[Entry]:
    """The fields of the classes called ``*Config`` in core, with their defaults."""
    entries = []
    for module, path in modules(root):
        text = path.read_text()
        lines = text.splitlines()
        for node in ast.parse(text).body:
            if not isinstance(node, ast.ClassDef) or not node.name.endswith("Config") or not module.startswith("core."):
                continue
            for field in node.body:
                if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and field.value is not None:
                    beside = re.search(r"  # (?!noqa|type:)(.+)$", lines[field.lineno - 1])
                    value = ast.unparse(field.value)
                    name = f"{node.name}.{field.target.id}"
                    entries.append(Entry(name, module, value, tidy(beside.group(1)) if beside else ""))
    return entries


def page(root: Path) -> str:
    """The whole page."""
    text = HEAD + COUNTERS + "| counter | where | what it counts |\n|---|---|---|\n"
    text += "".join(f"| `{entry.name}` | {entry.module} | {entry.text} |\n" for entry in counters(root))
    text += "\n" + LIMITS + "| limit | where | value | |\n|---|---|---|---|\n"
    text += "".join(f"| `{e.name}` | {e.module} | `{e.value}` | {e.text} |\n" for e in limits(root))
    text += "\n" + SETTINGS + "| setting | default | |\n|---|---|---|\n"
    text += "".join(f"| `{entry.name}` | `{entry.value}` | {entry.text} |\n" for entry in settings(root))
    return text


def unknown(root: Path) -> list[str]:
    """Calls of ``bump`` whose name this tool cannot find out ("module:line")."""
    returned = returned_texts(root)
    return [
        f"{module}:{line}"
        for module, path in modules(root)
        for line in Names(ast.parse(path.read_text()), returned).unknown
    ]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Write docs/counters.md from the source.")
    parser.add_argument("--write", action="store_true", help="write the page instead of comparing it")
    parser.add_argument("--root", type=Path, default=ROOT, help="the repository (default: this one)")
    arguments = parser.parse_args(argv)
    wanted, path = page(arguments.root), arguments.root / PAGE
    if arguments.write:
        path.write_text(wanted)
        return 0
    if not path.exists() or path.read_text() != wanted:
        print(f"{PAGE} is not what the source says: make docs", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
