#!/usr/bin/env python3
"""Write docs/requirements.md: every requirement with its Python names and its tests, from the tables of the other pages.

    tools/requirements_page.py            # exit status 1 if the page is not what the tables say, or a name is not there
    tools/requirements_page.py --write    # write it anew

A table counts if its last column is headed "test" or "tests". Its first column is the requirement, the ones between have
the names. Tests may be given as `test_x.py::test_a`, `::test_b` (of the same file), `test_c_*`, a file, a folder, or the
name alone where the page says where its tests are. All are looked up: a test that is not there, a name that nothing has,
and a section or requirement of ``EXPECTED`` that no row speaks of are faults.
"""

from __future__ import annotations

import argparse
import ast
import errno
import fnmatch
import functools
import importlib
import re
import socket
import ssl
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGE = Path("docs/requirements.md")
#: Page -> (heading, what its first column's sections belong to where a row does not say).
PAGES = {
    "api-basic.md": ("RFC 6897 §4, §5, §6, §7", "RFC 6897"),
    "api-enhanced.md": ("draft-hesmans-mptcp-socket-03 §3, §4, §6", "draft"),
    "api-advanced.md": ("RFC 6897 Appendix A.3 (draft-ietf-mptcp-api-05 A.3)", "RFC 6897"),
    "api-sctp.md": ("RFC 6458 §9, as RFC 6897 A.4 names it", "RFC 6458"),
    "policy.md": ("The local policy", "RFC 6897"),
    "asyncio.md": ("asyncio, TLS, threads", ""),
    "udp.md": ("Over UDP", ""),
}
#: What must be spoken of somewhere.
EXPECTED = {
    "RFC 6897": (
        *(f"REQ{number}" for number in range(1, 15)),
        "§4.2.1", "§4.2.2", "§4.3.1", "§4.4.1", "§4.4.2", "§4.4.3", "§4.4.4", "§4.5", "§5.3.1", "§5.3.2", "§5.3.3", "§5.3.4",
        "§5.3.5", "§6.1", "§6.3", "§6.4", "§7",
    ),
    "draft": ("§2", "§3", "§3.1", "§3.2", "§3.3", "§3.4", "§3.5", "§3.6", "§4.1", "§4.2", "§4.3", "§4.4", "§4.5", "§6"),
    "RFC 6458": ("§9.1", "§9.2", "§9.3", "§9.4", "§9.5", "§9.6", "§9.9", "§9.11", "§9.12", "§9.13"),
}  # fmt: skip
#: Where a bare name may come from.
MODULES = (
    "mptcp", "mptcp.sockets.aio", "mptcp.sockets.sctp", "mptcp.sockets.structures", "mptcp.sockets.aio_transport",
    "mptcp.sim.aio", "mptcp.links.udp", "mptcp.links.udp_node", "mptcp.links.udp_path", "mptcp.links.udp_paths",
    "mptcp.links.udp_socket", "mptcp.sockets.udp_socket", "mptcp.runtime.aio",
)  # fmt: skip
CLASSES = (
    "mptcp.Socket", "mptcp.UserStack", "mptcp.UdpStack", "mptcp.Policy", "mptcp.LegacyPolicy", "mptcp.ConnectionConfig",
    "mptcp.EventStream", "mptcp.TlsSocket", "mptcp.sockets.policy.Rule", "asyncio.AbstractEventLoop",
)  # fmt: skip
HEAD = """# Every requirement, its name, its tests

Written by `tools/requirements_page.py` (`make docs`) from the tables of the other pages; a test keeps it true, and fails
where a name or a test is not there.

"""


@dataclass
class Row:
    page: str
    line: int
    text: str
    names: list[str]
    tests: list[str]
    faults: list[str] = field(default_factory=list)

    @property
    def where(self) -> str:
        return f"docs/{self.page}:{self.line}"


def tables(page: str, root: Path = ROOT) -> Iterator[Row]:
    """The rows of those tables of a page that have a column of tests."""
    header: list[str] = []
    for number, line in enumerate((root / "docs" / page).read_text().splitlines(), 1):
        if not line.startswith("|"):
            header = []
            continue
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if not header:
            header = cells
        elif header[-1] in ("test", "tests") and not set(line) <= set("|-: "):
            names = [name for cell in cells[1:-1] for name in re.findall(r"`([^`]+)`", cell)]
            yield Row(page, number, cells[0], names, re.findall(r"`([^`]+)`", cells[-1]))


class Tests:
    """All test functions, by file."""

    def __init__(self, root: Path = ROOT) -> None:
        self.by_file: dict[str, list[str]] = {}
        for path in sorted((root / "tests").rglob("test_*.py")):
            tree = ast.parse(path.read_text())
            functions = [
                node.name
                for node in ast.walk(tree)
                if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name.startswith("test_")
            ]
            self.by_file[str(path.relative_to(root))] = functions

    def files(self, name: str) -> list[str]:
        return [f for f in self.by_file if f == name or f.endswith(f"/{name}") or f.startswith(f"{name.rstrip('/')}/")]

    def find(self, text: str, last: str, page: str) -> list[str]:
        """Node ids of what a cell says; ``last``: the file of the entry before. Empty: there is no such test."""
        file, separator, name = text.partition("::")
        if not separator and not text.startswith("test_"):
            return [text] if self.files(text) else []
        if not separator:
            if text.endswith(".py"):
                return self.files(text)[:1]
            name, file = text, ""
        candidates = self.files(file) if file else ([last] if separator and last else list(self.by_file))
        found = [f"{f}::{n}" for f in candidates for n in self.by_file.get(f, ()) if fnmatch.fnmatchcase(n, name)]
        if not file and not separator and last:
            found = [node for node in found if node.startswith(f"{last}::")] or found
        return found


def has_name(text: str) -> bool:
    """Whether something in this package (or what it stands in for) is called that."""
    if text.startswith(("--", "mptcp ", "mptcp://", "[[")) or (" " in text and "(" not in text):
        return True  # of the command line, or of a file
    if text.endswith(".py"):
        return any(path.as_posix().endswith(text) for path in (ROOT / "src").rglob("*.py"))
    name = re.match(r"[A-Za-z_][A-Za-z0-9_.]*", text)
    if name is None:
        return False
    path = name[0]
    if "=" in text and "(" not in text:
        return any(f"{path}:" in source for source in _sources())
    if path in errno.errorcode.values() or hasattr(socket, path) or path == "gaierror" or hasattr(ssl, path):
        return True
    owners: list[Any] = [importlib.import_module(module) for module in MODULES]
    owners += [_resolve(text) for text in CLASSES]
    if any(_attribute(owner, path) for owner in owners) or _resolve(path) is not None:
        return True
    if path.startswith("_"):
        return any(has_name(prefix + path) for prefix in ("TCP_MULTIPATH", "MPTCP", "MPTCP_SUB"))
    if path.startswith(("MPTCP_", "IP_")) or path == "ipv6_srh":
        return any(path in file.read_text() for file in (ROOT / "src/mptcp").rglob("*.py"))
    classes = [
        getattr(owner, name) for owner in owners for name in dir(owner) if isinstance(getattr(owner, name), type)
    ]
    if any(path in getattr(cls, "__annotations__", ()) or hasattr(cls, path) for cls in classes):
        return True
    # A parameter, or a key of the policy's file.
    return any(f"{path}:" in text or f'"{path}"' in text for text in _sources())


@functools.cache
def _sources() -> tuple[str, ...]:
    return tuple(
        file.read_text() for folder in ("sockets", "links") for file in (ROOT / "src/mptcp" / folder).glob("*.py")
    )


def _attribute(owner: Any, path: str) -> bool:
    for part in path.split("."):
        fields = getattr(owner, "__dataclass_fields__", {})
        if part in fields:
            owner = None
            continue
        if not hasattr(owner, part):
            return False
        owner = getattr(owner, part)
    return True


def _resolve(path: str) -> Any:
    parts = path.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:length]))
        except ImportError:
            continue
        for part in parts[length:]:
            found = getattr(found, part, None)
        return found
    return None


def collect(root: Path = ROOT) -> tuple[dict[str, list[Row]], list[str]]:
    """(rows by page, faults)."""
    tests = Tests(root)
    faults: list[str] = []
    pages: dict[str, list[Row]] = {}
    spoken: dict[str, set[str]] = {document: set() for document in EXPECTED}
    for page, (_, document) in PAGES.items():
        rows = pages[page] = list(tables(page, root))
        for row in rows:
            last = ""
            found: list[str] = []
            for text in row.tests:
                nodes = tests.find(text, last, page)
                if not nodes:
                    faults.append(f"{row.where}: there is no test {text}")
                    continue
                last = nodes[-1].partition("::")[0]
                found += nodes
            row.tests = list(dict.fromkeys(found))
            if not row.tests:
                faults.append(f"{row.where}: no test is named")
            faults += [f"{row.where}: nothing is called {name}" for name in row.names if not has_name(name)]
            of = re.match(r"RFC \d+|draft", row.text)
            marks = re.findall(r"§[0-9A]+(?:\.[0-9]+)*|REQ[0-9]+", row.text)
            spoken.setdefault(of[0] if of else document, set()).update(marks)
            spoken["RFC 6897"].update(mark for mark in marks if mark.startswith("REQ"))
    for document, wanted in EXPECTED.items():
        faults += [f"no table speaks of {document} {mark}" for mark in wanted if mark not in spoken[document]]
    return pages, faults


def page_text(pages: dict[str, list[Row]]) -> str:
    text = HEAD
    for page, rows in pages.items():
        heading, _ = PAGES[page]
        text += f"## {heading}\n\nFrom [{page}]({page}).\n\n| requirement | Python | tests |\n|---|---|---|\n"
        for row in rows:
            names = ", ".join(f"`{name}`" for name in row.names)
            nodes = "<br>".join(f"`{node}`" for node in row.tests)
            text += f"| {row.text} | {names} | {nodes} |\n"
        text += "\n"
    return text.rstrip() + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    pages, faults = collect()
    for fault in faults:
        print(fault, file=sys.stderr)
    text = page_text(pages)
    if arguments.write:
        (ROOT / PAGE).write_text(text)
    elif not (ROOT / PAGE).exists() or (ROOT / PAGE).read_text() != text:
        print(f"{PAGE} is not what the tables say: make docs", file=sys.stderr)
        return 1
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
