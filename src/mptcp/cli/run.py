"""``mptcp run script.py ARGS`` and ``mptcp run -m module ARGS``: an unmodified Python program over several paths."""

from __future__ import annotations

import os
import runpy
import sys
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from mptcp.cli.connections import open_stack
from mptcp.cli.link_option import DEFAULT_LINK, parse_links
from mptcp.errors import ConfigurationError
from mptcp.sockets.policy import Policy
from mptcp.sockets.profiles import profile_named
from mptcp.sockets.unmodified import patched

#: What follows the program's name is the program's.
CONTEXT = {"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False}

#: What a traceback of the program does not show.
_OUR_FILES = (__file__, runpy.__file__, "<frozen runpy>")


def run(
    context: typer.Context,
    module: Annotated[
        str | None, typer.Option("-m", help="Run a module instead of a script, as python -m does.", metavar="MODULE")
    ] = None,
    link: Annotated[
        list[str] | None,
        typer.Option(help=f"Link and addresses, once per path (docs/cli.md; default: {DEFAULT_LINK}).", metavar="LINK"),
    ] = None,
    backup: Annotated[
        list[str] | None,
        typer.Option(help="One of our addresses whose subflows are only for when no other works.", metavar="ADDRESS"),
    ] = None,
    profile: Annotated[
        str, typer.Option(help="What the program needs: bulk, latency, steady, ... (docs/api-advanced.md).")
    ] = "",
    policy: Annotated[
        Path | None, typer.Option(help="A policy file (docs/policy.md); else as the environment says.", metavar="FILE")
    ] = None,
    pcap: Annotated[Path | None, typer.Option(help="Write every packet to this pcapng file.", metavar="FILE")] = None,
) -> None:
    """Run a Python program whose TCP sockets become MPTCP, without changing it: mptcp run script.py ARGUMENTS."""
    arguments = list(context.args)
    if arguments[:1] == ["--"]:
        del arguments[0]
    if module is None and not arguments:
        raise ConfigurationError("a program to run is missing: mptcp run script.py, or mptcp run -m module")
    if module is None and not os.path.exists(arguments[0]):
        raise ConfigurationError(f"there is no {arguments[0]}")
    rules = Policy.load(policy) if policy is not None else Policy.from_environment()
    if profile:
        rules = rules.changed(profile=profile_named(profile).name)
    specs = parse_links(link or [DEFAULT_LINK])
    if specs[0].kind == "udp":
        raise ConfigurationError(
            "peers over UDP have no addresses that a program could connect to: use mptcp get or serve"
        )
    with ExitStack() as exits:
        stack = exits.enter_context(open_stack(specs, pcap=pcap, backup=backup or ()))
        stack.user_stack.set_policy(rules)
        exits.enter_context(patched(stack.user_stack))
        if module is not None:
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
        traceback.print_exception(type(error), error, trace)
        raise typer.Exit(1) from None
    finally:
        sys.argv, sys.path[:] = before
