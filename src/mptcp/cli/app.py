"""The command line as a whole: the verbs, and what a wrong argument, an error and Ctrl-C look like."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Callable, Sequence
from typing import Annotated

import typer

import mptcp
from mptcp.cli import broker, demo, dump, events, get, ls, pm, serve
from mptcp.cli import run as run_program
from mptcp.cli.interruption import signals_interrupt, status_of
from mptcp.errors import ConfigurationError

#: typer's own base of "the command line is wrong", wherever the installed version keeps it.
UsageError = typer.BadParameter.__mro__[1]

EXIT_FAILED, EXIT_USAGE = 1, 2

app = typer.Typer(
    name="mptcp",
    help="Multipath TCP: over the kernel's MPTCP, or over this package's own stack in user space.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def interruptible(command: Callable[..., None]) -> Callable[..., None]:
    """Ctrl-C in ``command`` is one line and exit status 130, whatever the installed typer makes of it; SIGTERM and SIGHUP
    end it as tidily."""

    @functools.wraps(command)
    def wrapper(*args: object, **kwargs: object) -> None:
        # What `mptcp run` runs hears its signals itself.
        signals = contextlib.nullcontext() if command is run_program.run else signals_interrupt()
        try:
            with signals:
                command(*args, **kwargs)
        except KeyboardInterrupt as interruption:
            raise typer.Exit(fail("interrupted", status_of(interruption))) from None

    return wrapper


#: In the order of ``mptcp --help``, with what it says of each: short enough for a terminal of 80 columns.
VERBS: tuple[tuple[str, Callable[..., None], str], ...] = (
    ("get", get.get, "Fetch a file over several paths, or the rest of one."),
    ("serve", serve.serve, "Serve a directory by HTTP."),
    ("run", run_program.run, "Run any program; its TCP sockets become MPTCP."),
    ("ls", ls.ls, "List connections with their subflows."),
    ("events", events.events, "Print what happens to connections."),
    ("pm", pm.pm, "Manage the paths of all connections."),
    ("broker", broker.broker, "Steer connections of unprivileged programs."),
    ("dump", dump.dump, "Print the packets of a capture."),
    ("demo", demo.demo, "See a path fail in the middle of a transfer."),
)
for verb, command, summary in VERBS:
    settings, usage = (run_program.CONTEXT, run_program.USAGE) if verb == "run" else (None, "[OPTIONS]")
    app.command(verb, short_help=summary, context_settings=settings, options_metavar=usage)(interruptible(command))


def show_version(wanted: bool) -> None:
    """``mptcp --version``."""
    if wanted:
        print(f"mptcp {mptcp.__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    # No docstring: it would take the place of the help above.
    return


def run(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; its exit status: 0, 1 failed, 2 wrong command line, 130 interrupted (docs/cli.md)."""
    try:
        result = app(args=None if arguments is None else list(arguments), prog_name="mptcp", standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except (typer.Abort, KeyboardInterrupt):
        return fail("interrupted", status_of(KeyboardInterrupt()))
    except ConfigurationError as error:
        return fail(str(error), EXIT_USAGE)
    except BrokenPipeError:
        # Whoever read our output has gone (``mptcp dump f | head``): nobody is left to tell, and nothing to flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except OSError as error:
        return fail(describe(error), EXIT_FAILED)
    except Exception as error:
        if isinstance(error, UsageError):
            message = str(getattr(error, "format_message", error.__str__)())
            message = " ".join(message.split()).rstrip(".").replace("Value error, ", "")
            context = getattr(error, "ctx", None)
            return fail(message, EXIT_USAGE, f" ({getattr(context, 'command_path', 'mptcp')} --help)")
        raise


def describe(error: OSError) -> str:
    """One sentence for an error of the system or of this package."""
    reason = error.strerror or str(error) or type(error).__name__
    return f"{error.filename}: {reason}" if error.filename else reason


def fail(sentence: str, status: int, hint: str = "") -> int:
    """Says it on standard error in one line."""
    if sentence[1:2].islower():
        sentence = sentence[0].lower() + sentence[1:]
    print(f"mptcp: {sentence}{hint}", file=sys.stderr)
    return status
