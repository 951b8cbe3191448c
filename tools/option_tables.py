#!/usr/bin/env python3
"""Write the tables of docs/kernel.md that say what becomes of options on sockets, and on subflows, of the kernel.

    tools/option_tables.py            # exit status 1 if the page has others
    tools/option_tables.py --write    # write them anew

"refused options" are those of ``mptcp.sockets.kernel_options``, "subflow options" those of ``mptcp.kernel.bpf.option_table``;
tests/kernel/test_kernel_options.py and tests/kernel/test_subflow_options.py try each of them on the kernel.
"""

from __future__ import annotations

import argparse
import sys
from itertools import groupby
from pathlib import Path

from mptcp.kernel.bpf.option_table import OPTIONS
from mptcp.sockets.kernel_options import REFUSED_BY_LINUX

PAGE = Path(__file__).parents[1] / "docs" / "kernel.md"


def refused() -> str:
    """A row for options that stand together in the source and are treated alike."""
    text = "| option | here | because | instead |\n|---|---|---|---|\n"
    for (treatment, why, instead), entries in groupby(
        REFUSED_BY_LINUX.values(), lambda entry: (entry.treatment.value, entry.why, entry.instead)
    ):
        text += f"| {', '.join(entry.name for entry in entries)} | {treatment} | {why} | {instead} |\n"
    return text


def subflow() -> str:
    text = "| option | set | read | |\n|---|---|---|---|\n"
    for option in OPTIONS:
        set_, read = ("yes" if able else "ENOPROTOOPT" for able in (option.can_set, option.can_get))
        text += f"| {option.label} | {set_} | {read} | {option.note} |\n"
    return text


TABLES = {"refused options": refused, "subflow options": subflow}


def marks(name: str) -> tuple[str, str]:
    """What stands before the table and after it."""
    return f"<!-- {name}: tools/option_tables.py -->\n", f"<!-- end of {name} -->\n"


def replaced(page: str) -> str:
    """The page with the tables as they ought to be. ValueError if it has no place for one."""
    for name, table in TABLES.items():
        begin, end = marks(name)
        if begin not in page or end not in page:
            raise ValueError(f"{PAGE} has no place for the table: {begin.strip()} ... {end.strip()}")
        before, _, rest = page.partition(begin)
        page = before + begin + table() + end + rest.partition(end)[2]
    return page


def main() -> int:
    parser = argparse.ArgumentParser(description="The tables of options in docs/kernel.md.")
    parser.add_argument("--write", action="store_true", help="write them anew")
    write = parser.parse_args().write
    page = PAGE.read_text()
    wanted = replaced(page)
    if write:
        PAGE.write_text(wanted)
    elif page != wanted:
        print(f"{PAGE} is not what the source says: run tools/option_tables.py --write", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
