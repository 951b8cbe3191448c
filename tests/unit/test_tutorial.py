"""docs/tutorial.md, as a reader would follow it: the blocks run in order, and print what the page says they print."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[2] / "docs/tutorial.md"
FENCE = re.compile(r"^```(python|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_the_tutorial_runs_and_prints_what_it_says() -> None:
    names: dict[str, Any] = {"__name__": "__tutorial__"}
    printed = ""
    blocks = [
        (match[1], match[2], PAGE.read_text()[: match.start()].count("\n") + 2)
        for match in FENCE.finditer(PAGE.read_text())
    ]
    assert len(blocks) > 10
    for kind, text, line in blocks:
        if kind == "text":
            assert printed == text, f"{PAGE.name}:{line}"
            continue
        with contextlib.redirect_stdout(io.StringIO()) as out:
            # Line numbers of a traceback are the page's.
            exec(compile("\n" * (line - 1) + text, str(PAGE), "exec"), names)
        printed = out.getvalue()
