"""``mptcp run script.py`` and ``mptcp run -m module``: a Python program in this process, on the user-space stack."""

from __future__ import annotations

import os
import runpy
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import typer

from mptcp.cli.connections import open_stack
from mptcp.cli.link_option import DEFAULT_LINK, parse_links
from mptcp.cli.shown import shown
from mptcp.cli.udp import open_udp
from mptcp.errors import ConfigurationError
from mptcp.sockets.policy import Policy
from mptcp.sockets.profiles import profile_named
from mptcp.sockets.unmodified import patched

#: What a traceback of the program does not show.
_OUR_FILES = (__file__, runpy.__file__, "<frozen runpy>")


def run(
    module: str | None,
    arguments: list[str],
    link: Sequence[str] | None,
    backup: Sequence[str] | None,
    profile: str,
    policy: Path | None,
    pcap: Path | None,
) -> None:
    """Runs ``module``, or else the script that is the first of the arguments."""
    if module is None and not os.path.exists(arguments[0]):
        raise ConfigurationError(f"there is no {arguments[0]}")
    rules = Policy.load(policy) if policy is not None else Policy.from_environment()
    if profile:
        rules = rules.changed(profile=profile_named(profile).name)
    specs = parse_links(link or [DEFAULT_LINK])
    with ExitStack() as exits:
        open_it = open_udp if specs[0].kind == "udp" else open_stack
        stack = exits.enter_context(open_it(specs, pcap=pcap, backup=backup or ()))
        stack.user_stack.set_policy(rules)
        exits.enter_context(shown(stack.user_stack, Path(module or arguments[0]).name))
        exits.enter_context(patched(stack.user_stack))
        if module is not None:
            # The command line itself has imported some of what a program can be, http.server for one.
            warnings.filterwarnings("ignore", ".*found in sys.modules", RuntimeWarning, "runpy")
            _execute(module, ["-m", *arguments], os.getcwd(), lambda: runpy.run_module(module, None, "__main__", True))
        else:
            path = arguments[0]
            folder = os.path.dirname(os.path.realpath(path))
            _execute(path, arguments, folder, lambda: runpy.run_path(path, None, "__main__"))


def _execute(name: str, argv: list[str], folder: str, program: Callable[[], object]) -> None:
    """As the interpreter does it: arguments, the search path, and an error that nobody has caught as a traceback."""
    before = sys.argv, sys.path[:]
    sys.argv = argv
    sys.path.insert(0, folder)
    try:
        program()
    except (SystemExit, KeyboardInterrupt):
        raise
    except BaseException as error:  # noqa: BLE001 the program's, whatever it is
        trace = error.__traceback__
        while trace is not None and trace.tb_frame.f_code.co_filename in _OUR_FILES:
            trace = trace.tb_next
        if trace is None and isinstance(error, ImportError):
            raise ConfigurationError(str(error)) from None
        traceback.print_exception(type(error), error, trace)
        raise typer.Exit(1) from None
    finally:
        sys.argv, sys.path[:] = before
