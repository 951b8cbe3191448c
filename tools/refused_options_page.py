#!/usr/bin/env python3
"""Write the table of docs/kernel.md that says what becomes of options which Linux refuses on MPTCP sockets.

    tools/refused_options_page.py            # exit status 1 if the page has another table
    tools/refused_options_page.py --write    # write it anew

The rows are those of ``mptcp.sockets.kernel_options``; tests/kernel/test_kernel_socket.py tries each of them on the kernel's
own socket and on this package's.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mptcp.sockets.kernel_options import REFUSED_BY_LINUX, Refusal

PAGE = Path(__file__).parents[1] / "docs" / "kernel.md"
BEGIN = "<!-- refused options: tools/refused_options_page.py -->\n"
END = "<!-- end of refused options -->\n"


def row(entry: Refusal) -> str:
    return f"| {entry.name} | {entry.treatment.value} | {entry.why} | {entry.instead} |\n"


def table() -> str:
    rows = "".join(row(entry) for entry in REFUSED_BY_LINUX.values())
    return "| option | here | because | instead |\n|---|---|---|---|\n" + rows


def replaced(page: str) -> str:
    """The page with the table as it ought to be. ValueError if it has no place for it."""
    if BEGIN not in page or END not in page:
        raise ValueError(f"{PAGE} has no place for the table: {BEGIN.strip()} ... {END.strip()}")
    before, _, rest = page.partition(BEGIN)
    return before + BEGIN + table() + END + rest.partition(END)[2]


def main() -> int:
    parser = argparse.ArgumentParser(description="The table of refused options in docs/kernel.md.")
    parser.add_argument("--write", action="store_true", help="write it anew")
    write = parser.parse_args().write
    page = PAGE.read_text()
    wanted = replaced(page)
    if write:
        PAGE.write_text(wanted)
    elif page != wanted:
        print(f"{PAGE} is not what the source says: run tools/refused_options_page.py --write", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
