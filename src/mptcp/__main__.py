"""``python -m mptcp`` and the ``mptcp`` command."""

import sys


def main() -> int:
    """Runs the command line; its exit status."""
    try:
        from mptcp.cli.app import run
    except KeyboardInterrupt:  # importing all of it takes some tenths of a second
        print("mptcp: interrupted", file=sys.stderr)  # noqa: T201
        return 130
    except ModuleNotFoundError as error:
        if error.name not in {"typer", "rich"}:
            raise
        print("mptcp: the command line needs typer and rich: pip install 'mptcp[cli]'", file=sys.stderr)  # noqa: T201
        return 1
    return run()


if __name__ == "__main__":
    sys.exit(main())
