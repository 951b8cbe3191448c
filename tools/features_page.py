#!/usr/bin/env python3
"""Write docs/features.md: what each stack can do with which privilege, as it was tried on this machine.

    tools/features_page.py --write           # try everything (as root: some needs CAP_BPF), and write the page

tests/kernel/test_features.py tries the same and compares it with the page.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mptcp.testing import netns
from mptcp.testing.features.environments import ENVIRONMENTS, FAMILIES, Results, examine, unavailable
from mptcp.testing.features.probes import PROBES, Finding

PAGE = Path(__file__).parents[1] / "docs" / "features.md"
HEAD = """# What works where

Each cell was tried, on IPv4 and on IPv6: a socket, the call, and a look whether it came about (`mptcp.testing.features`;
`python -m mptcp.testing.features.environments` tries it on your machine). "yes", or the errno and why, or "no" where nothing
fails and nothing comes of it; where the families differ, `IPv4's/IPv6's`. The kernel's columns are Linux {kernel};
without privilege its in-kernel path manager opened the second subflow, elsewhere net.mptcp.path_manager is userspace.
`stack.supports(name)` says the same at run time.
"""


def together(found: Sequence[Finding]) -> str:
    """What a cell says, without its notes: the answer of all families, or each one's."""
    answers = [finding.answer for finding in found]
    return answers[0] if len(set(answers)) == 1 else "/".join(answers)


def cell(found: Sequence[Finding], notes: dict[str, int]) -> str:
    """What a cell says, with the numbers of its notes, which are added to ``notes``; families that agree have one."""
    answer = together(found)
    told = [finding.said for finding in found if finding.answer != "yes"]
    numbers = [notes.setdefault(said, len(notes) + 1) for said in (told if "/" in answer else told[:1])]
    return f"{answer} ({', '.join(map(str, numbers))})" if numbers else answer


def page(results: dict[str, dict[int, Results]], kernel: str) -> str:
    """``results``: environment -> family -> what was found."""
    notes: dict[str, int] = {}
    lines = [HEAD.format(kernel=kernel)]
    section = ""
    for probe in PROBES:
        if probe.section != section:
            section = probe.section
            lines.append(f"\n## {section}\n\n| | " + " | ".join(e.title for e in ENVIRONMENTS) + " |\n")
            lines.append("|---" * (len(ENVIRONMENTS) + 1) + "|\n")
        cells = []
        for environment in ENVIRONMENTS:
            found = results[environment.name]
            cells.append(cell([found[family][probe.item] for family in FAMILIES], notes))
        lines.append(f"| {probe.item} | " + " | ".join(cells) + " |\n")
    lines.append("\n## Why not\n\n")
    lines += [f"{number}. {said[0].upper()}{said[1:]}.\n" for said, number in notes.items()]
    return "".join(lines)


def columns(text: str) -> dict[str, dict[str, str]]:
    """Of a page: environment -> item -> what the cell says, without its note."""
    names = {environment.title: environment.name for environment in ENVIRONMENTS}
    titles: list[str] = []
    found: dict[str, dict[str, str]] = {name: {} for name in names.values()}
    for line in text.splitlines():
        if not line.startswith("| "):
            continue
        first, *cells = (part.strip() for part in line.strip("|").split("|"))
        if not first:
            titles = cells
            continue
        for title, said in zip(titles, cells, strict=True):
            found[names[title]][first] = said.partition(" ")[0]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the page anew")
    arguments = parser.parse_args()
    if netns.needs_namespaces():
        netns.become_namespace_root()
    results: dict[str, dict[int, Results]] = {}
    for environment in ENVIRONMENTS:
        if reason := unavailable(environment):
            print(f"{environment.title}: {reason}", file=sys.stderr)
            return 1
        results[environment.name] = examine(environment)
    kernel = ".".join(Path("/proc/sys/kernel/osrelease").read_text().split(".")[:2])
    text = page(results, kernel)
    if arguments.write:
        PAGE.write_text(text)
        return 0
    if columns(text) != columns(PAGE.read_text()):
        print(f"{PAGE} says something else: run this with --write, and read the difference", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
