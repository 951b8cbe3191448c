"""``mptcp run``: a program that knows nothing of MPTCP. Any program on the kernel's MPTCP, or Python on our own stack."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from mptcp.cli import run_program, run_python
from mptcp.cli.kernel_stack import StackName
from mptcp.cli.stack_options import LinkOption, PcapOption
from mptcp.errors import ConfigurationError
from mptcp.kernel.launch.exceptions import Exceptions

#: What follows the program's name is the program's.
CONTEXT = {"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False}
USAGE = "[OPTIONS] PROGRAM [ARGUMENTS]..."


def run(
    context: typer.Context,
    module: Annotated[
        str | None, typer.Option("-m", help="Run a Python module, as python -m does.", metavar="MODULE")
    ] = None,
    stack: Annotated[
        StackName | None,
        typer.Option(help="kernel (any program), or user (Python, on this stack; the default for a .py file and -m)."),
    ] = None,
    except_: Annotated[
        list[str] | None,
        typer.Option("--except", help="Sockets that connect or are bound to it keep TCP.", metavar="NETWORK"),
    ] = None,
    except_port: Annotated[
        list[str] | None,
        typer.Option(help="Sockets that connect or are bound to such a port keep TCP.", metavar="PORT[-PORT]"),
    ] = None,
    except_program: Annotated[
        list[str] | None, typer.Option(help="Sockets of programs of this name keep TCP.", metavar="NAME")
    ] = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Say on standard error which sockets are MPTCP, and which not.")
    ] = False,
    log: Annotated[
        Path | None, typer.Option(help="Write what -v says to the end of this file.", metavar="FILE")
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Do not run the program where its sockets cannot be made MPTCP.")
    ] = False,
    link: LinkOption = None,
    backup: Annotated[
        list[str] | None,
        typer.Option(
            help="--stack user: one of our addresses whose subflows are only for when no other works.",
            metavar="ADDRESS",
        ),
    ] = None,
    profile: Annotated[str, typer.Option(help="--stack user: bulk, latency, steady, ... (docs/api-advanced.md).")] = "",
    policy: Annotated[
        Path | None,
        typer.Option(
            help="--stack user: a policy file (docs/policy.md); else as the environment says.", metavar="FILE"
        ),
    ] = None,
    pcap: PcapOption = None,
) -> None:
    """Run a program whose TCP sockets become MPTCP, without changing it."""
    arguments = list(context.args)
    if arguments[:1] == ["--"]:
        del arguments[0]
    elif module is None and arguments and arguments[0].startswith("-"):
        raise ConfigurationError(f"no such option: {arguments[0]} (mptcp run --help)")
    if module is None and not arguments:
        raise ConfigurationError("a program to run is missing: mptcp run PROGRAM, or mptcp run -m MODULE")
    is_python = module is not None or arguments[0].endswith(".py")
    of_kernel = {
        "--except": except_, "--except-port": except_port, "--except-program": except_program,
        "-v": verbose, "--log": log, "--strict": strict,
    }  # fmt: skip
    of_user = {"--link": link, "--backup": backup, "--profile": profile, "--policy": policy, "--pcap": pcap}
    if (stack or (StackName.USER if is_python else StackName.KERNEL)) is StackName.USER:
        _refuse(of_kernel, "is for --stack kernel, and this runs on the user-space stack")
        run_python.run(module, arguments, link, backup, profile, policy, pcap)
    else:
        _refuse(of_user, "is for --stack user, which runs Python programs (a .py file, or -m)")
        excepted = Exceptions.parse(except_ or (), except_port or (), except_program or ())
        if is_python:
            arguments = run_program.python_command(module, arguments)
        run_program.run(arguments, excepted, verbose=verbose, log=log, strict=strict)


def _refuse(options: Mapping[str, object], why: str) -> None:
    for name, value in options.items():
        if value:
            raise ConfigurationError(f"{name} {why}")
