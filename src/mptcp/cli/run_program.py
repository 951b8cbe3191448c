"""``mptcp run PROGRAM``: any program, with the kernel's MPTCP. This process becomes the program."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import NoReturn

import typer

from mptcp.errors import NotSupportedError
from mptcp.info import Support
from mptcp.kernel.launch import launcher
from mptcp.kernel.launch.exceptions import Exceptions

EXIT_FAILED = 1


def python_command(module: str | None, arguments: list[str]) -> list[str]:
    """The command that runs a module, or a script, with this interpreter."""
    return [sys.executable, *(["-m", module] if module is not None else []), *arguments]


def run(arguments: list[str], excepted: Exceptions, *, verbose: bool, log: Path | None, strict: bool) -> NoReturn:
    """Becomes the program. It exits with 127 if there is none and 126 if it cannot be executed, as shells do."""
    try:
        path = launcher.find_program(arguments[0])
    except PermissionError as error:
        _fail(f"{error.strerror}; Python without .py: mptcp run --stack user", launcher.EXIT_NOT_EXECUTABLE)
    except OSError as error:
        _fail(str(error.strerror), launcher.EXIT_NOT_FOUND)
    able = launcher.support()
    if not able:
        _without(path, arguments, able, strict)
    try:
        launcher.launch(path, arguments, excepted, verbose=verbose, log=os.fspath(log) if log else "")
    except NotSupportedError:
        raise
    except launcher.NotExecuted as error:
        _fail(f"{path}: {error.strerror}", launcher.EXIT_NOT_EXECUTABLE)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        reason = "a supervisor listens to this process already (a container's, or mptcp run inside mptcp run)"
        _without(path, arguments, Support(False, reason, "within mptcp run nothing more is needed"), strict)


def _without(path: str, arguments: list[str], able: Support, strict: bool) -> NoReturn:
    """Runs it all the same, its sockets as they are; not if the user is strict."""
    reason = able.reason + (f" ({able.fix})" if able.fix else "")
    if strict:
        _fail(reason, EXIT_FAILED)
    print(f"mptcp: the program runs, and its sockets stay as they are: {reason}", file=sys.stderr)
    try:
        launcher.execute(path, arguments)
    except OSError as error:
        _fail(f"{path}: {error.strerror}", launcher.EXIT_NOT_EXECUTABLE)


def _fail(sentence: str, status: int) -> NoReturn:
    print(f"mptcp: {sentence}", file=sys.stderr)
    raise typer.Exit(status)
