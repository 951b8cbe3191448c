"""The command line as a whole: the verbs, and what a wrong argument, an error and Ctrl-C look like."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Sequence

import typer

from mptcp.cli import broker, demo, dump, events, get, ls, pm, serve
from mptcp.cli import run as run_program
from mptcp.errors import ConfigurationError

#: typer's own base of "the command line is wrong", wherever the installed version keeps it.
UsageError = typer.BadParameter.__mro__[1]

EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130

app = typer.Typer(
    name="mptcp",
    help="Multipath TCP in user space: fetch and serve files over several paths at once.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def interruptible(command: Callable[..., None]) -> Callable[..., None]:
    """Ctrl-C in ``command`` is one line and exit status 130, whatever the installed typer makes of it."""

    @functools.wraps(command)
    def wrapper(*args: object, **kwargs: object) -> None:
        try:
            command(*args, **kwargs)
        except KeyboardInterrupt:
            raise typer.Exit(fail("interrupted", EXIT_INTERRUPTED)) from None

    return wrapper


for verb, command in (
    ("get", get.get),
    ("serve", serve.serve),
    ("dump", dump.dump),
    ("demo", demo.demo),
    ("broker", broker.broker),
    ("ls", ls.ls),
    ("pm", pm.pm),
    ("events", events.events),
):
    app.command(verb)(interruptible(command))
app.command("run", context_settings=run_program.CONTEXT)(interruptible(run_program.run))


def run(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; its exit status: 0, 1 failed, 2 wrong command line, 130 interrupted."""
    try:
        result = app(args=None if arguments is None else list(arguments), prog_name="mptcp", standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except (typer.Abort, KeyboardInterrupt):
        return fail("interrupted", EXIT_INTERRUPTED)
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
            return fail(" ".join(message.split()).rstrip("."), EXIT_USAGE, " (mptcp --help)")
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
