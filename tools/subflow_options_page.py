#!/usr/bin/env python3
"""Write the table of docs/kernel.md that says which options a single subflow of the kernel can have.

    tools/subflow_options_page.py            # exit status 1 if the page has another table
    tools/subflow_options_page.py --write    # write it anew

The rows are those of ``mptcp.kernel.bpf.option_table``; tests/kernel/test_subflow_options.py sets and reads each of them.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mptcp.kernel.bpf.option_table import OPTIONS, SubflowOption

PAGE = Path(__file__).parents[1] / "docs" / "kernel.md"
BEGIN = "<!-- subflow options: tools/subflow_options_page.py -->\n"
END = "<!-- end of subflow options -->\n"


def row(option: SubflowOption) -> str:
    set_, read = ("yes" if able else "ENOPROTOOPT" for able in (option.can_set, option.can_get))
    return f"| {option.label} | {set_} | {read} | {option.note} |\n"


def table() -> str:
    return "| option | set | read | |\n|---|---|---|---|\n" + "".join(row(option) for option in OPTIONS)


def replaced(page: str) -> str:
    """The page with the table as it ought to be. ValueError if it has no place for it."""
    if BEGIN not in page or END not in page:
        raise ValueError(f"{PAGE} has no place for the table: {BEGIN.strip()} ... {END.strip()}")
    before, _, rest = page.partition(BEGIN)
    return before + BEGIN + table() + END + rest.partition(END)[2]


def main() -> int:
    parser = argparse.ArgumentParser(description="The table of options of one subflow in docs/kernel.md.")
    parser.add_argument("--write", action="store_true", help="write it anew")
    write = parser.parse_args().write
    page = PAGE.read_text()
    wanted = replaced(page)
    if write:
        PAGE.write_text(wanted)
    elif page != wanted:
        print(f"{PAGE} is not what the source says: run tools/subflow_options_page.py --write", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
