"""``mptcp broker``: the service that steers connections for processes without privilege, in the foreground."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import signal
import socket
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from mptcp.errors import ConfigurationError
from mptcp.kernel.broker import privileges, service, systemd
from mptcp.kernel.broker.client import DEFAULT_SOCKET
from mptcp.kernel.broker.policy import DEFAULT_PATH, Policy
from mptcp.kernel.features import CAP_NET_ADMIN

log = logging.getLogger("mptcp.broker")


def broker(
    policy: Annotated[
        Path | None,
        typer.Option(
            help=f"Who may do what (docs/broker.md; default: {DEFAULT_PATH}, if it is there).", metavar="FILE"
        ),
    ] = None,
    socket_path: Annotated[
        Path, typer.Option("--socket", help="Where to listen, unless systemd passes a socket.", metavar="PATH")
    ] = Path(DEFAULT_SOCKET),
    user: Annotated[
        str, typer.Option(help="Become this user, keeping the capabilities that are needed.", metavar="NAME")
    ] = "",
    check: Annotated[bool, typer.Option("--check", help="Read the policy, say what it means, and stop.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log what was done, too.")] = False,
) -> None:
    """Steer MPTCP connections for processes without privilege, until Ctrl-C. Runs as root (it keeps two or three capabilities)."""
    rules = _policy(policy)
    if user:
        privileges.find_user(user)
    if check:
        _describe(rules)
        return
    logger = logging.getLogger("mptcp")
    handler = logging.StreamHandler()
    handler.setFormatter(systemd.log_formatter())
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG if verbose else logging.INFO)
    try:
        _serve(rules, policy, socket_path, user)
    finally:
        logger.removeHandler(handler)


def _serve(rules: Policy, policy: Path | None, path: Path, user: str) -> None:
    activated = systemd.activated_socket()
    try:
        listener = activated or service.listen(path)
    except OSError as error:
        if error.errno not in {errno.EACCES, errno.EPERM}:
            raise
        where = f"{error.filename}: " if error.filename else ""
        text = f"{where}{error.strerror}: run it as root, or name another place with --socket"
        raise PermissionError(error.errno, text) from None
    try:
        kept = privileges.drop(user=user)
        if CAP_NET_ADMIN not in kept:
            raise PermissionError(
                errno.EPERM, "the broker needs CAP_NET_ADMIN in this network namespace: run it as root"
            )
        running = service.Broker(listener, rules)

        def stop(_number: int, _frame: FrameType | None) -> None:
            running.stop()

        def reload(_number: int, _frame: FrameType | None) -> None:
            try:
                running.set_policy(_policy(policy))
                log.info("the policy was read again")
            except (ConfigurationError, OSError) as error:
                log.error("the policy stays as it was: %s", error)

        before = {
            number: signal.signal(number, handler)
            for number, handler in ((signal.SIGTERM, stop), (signal.SIGINT, stop), (signal.SIGHUP, reload))
        }
        try:
            names = ", ".join(sorted(privileges.NAMES[number] for number in kept))
            log.info("listening at %s as uid %d with %s; %s", _name(listener), os.getuid(), names, rules.where)
            systemd.notify("READY=1")
            running.run()
            systemd.notify("STOPPING=1")
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
    finally:
        listener.close()
        if activated is None:
            with contextlib.suppress(OSError):  # as another user we may not; the next broker replaces it
                path.unlink()


def _name(listener: socket.socket) -> str:
    address = listener.getsockname()
    return address if isinstance(address, str) else "@" + os.fsdecode(address[1:])


def _policy(path: Path | None) -> Policy:
    try:
        return Policy.load(path or DEFAULT_PATH)
    except FileNotFoundError:
        if path is None:
            return Policy()
        raise


def _describe(rules: Policy) -> None:
    print(f"{rules.where}: {len(rules.rules)} rule{'s' * (len(rules.rules) != 1)}, at most {rules.max_clients} clients")
    for number, rule in enumerate(rules.rules, 1):
        print(f"{number}. {rule}")
