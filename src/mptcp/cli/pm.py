"""``mptcp pm``: one of this package's path managers for all connections of the kernel in this network namespace."""

from __future__ import annotations

import contextlib
import errno
import signal
import threading
import time
from collections.abc import Callable
from typing import Annotated

import typer

from mptcp.core.path_managers.base import PathManager
from mptcp.core.path_managers.fullmesh import FullMesh
from mptcp.core.path_managers.registry import PATH_MANAGERS
from mptcp.errors import ConfigurationError
from mptcp.info import Endpoint
from mptcp.kernel import features
from mptcp.kernel.namespace import NetNamespace
from mptcp.kernel.pm_service import PathManagerService, user_space_manager
from mptcp.kernel.segment_routing import SegmentRoutes
from mptcp.kernel.watchdog import FailurePolicy

#: More subflows than the kernel counts would help nobody.
MAX_LIMIT = 64


def pm(
    manager: Annotated[
        str, typer.Option(help=f"Which one: {', '.join(PATH_MANAGERS)}; or kernel, which only watches.", metavar="NAME")
    ] = "fullmesh",
    limit: Annotated[int, typer.Option(help="Subflows of one connection, at most.", min=1, max=MAX_LIMIT)] = 8,
    address: Annotated[
        list[str] | None,
        typer.Option(help="One of the host's addresses to use; several times (default: all).", metavar="ADDRESS"),
    ] = None,
    backup: Annotated[
        list[str] | None,
        typer.Option(
            help="One of the host's addresses whose subflows are only for when no other works.", metavar="ADDRESS"
        ),
    ] = None,
    watchdog: Annotated[bool, typer.Option(help="Reset dead subflows, open a fresh one when data is stuck.")] = True,
    timeouts: Annotated[
        int, typer.Option(help="Retransmission timeouts in a row after which a subflow is dead.", min=1, max=15)
    ] = 1,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Do not say what is done.")] = False,
) -> None:
    """Manage the paths of every MPTCP connection of this network namespace, until Ctrl-C. Needs CAP_NET_ADMIN.

    Connections that begin from now on get the user-space path manager (net.mptcp.path_manager, as before afterwards).
    """
    factory = None if manager == features.KERNEL_MANAGER else _factory(manager, limit, backup or [])
    if factory is None and not watchdog:
        raise ConfigurationError("--manager kernel --no-watchdog: nothing would be left to do")
    used = [_address(text, "--address") for text in address or ()]
    policy = FailurePolicy(timeouts=timeouts) if watchdog else None
    namespace = NetNamespace()
    if not (allowed := features.steering(namespace)):
        raise PermissionError(errno.EPERM, f"{allowed.reason}: run it as root, or inside `unshare -Urn`")
    if not (there := features.mptcp(namespace)):
        raise OSError(errno.EOPNOTSUPP, f"{there.reason}: {there.fix}")
    began = time.monotonic()

    def say(line: str) -> None:
        if not quiet:
            typer.echo(f"{time.monotonic() - began:9.3f}  {line}")

    with contextlib.ExitStack() as exits:
        if factory is not None and exits.enter_context(user_space_manager(namespace)):
            say("net.mptcp.path_manager is userspace now, for connections that begin from now on")
        if features.segment_routing(namespace):
            with SegmentRoutes(namespace) as routes:
                if count := routes.remove_orphans():
                    say(f"removed {count} rules of Segment Routing, left by a program that was killed")
        service = PathManagerService(namespace, factory, policy, addresses=used, report=say)
        exits.callback(service.close)
        stop = threading.Event()
        before = signal.signal(signal.SIGTERM, lambda *_: stop.set())
        exits.callback(signal.signal, signal.SIGTERM, before)
        say(f"path manager {manager}{'' if policy is not None else ', no watchdog'}; Ctrl-C ends it")
        stop.wait()


def _factory(name: str, limit: int, backup: list[str]) -> Callable[[], PathManager]:
    made = PATH_MANAGERS.get(name)
    if made is None:
        raise ConfigurationError(f"no path manager is called {name!r}: there are {', '.join(PATH_MANAGERS)}, kernel")
    addresses = frozenset(_address(text, "--backup") for text in backup)

    def make() -> PathManager:
        built = made()
        if isinstance(built, FullMesh):
            built.limit, built.backup_addresses = limit, addresses
        return built

    if backup and not isinstance(made(), FullMesh):
        raise ConfigurationError(f"the path manager {name} knows no backup addresses")
    return make


def _address(text: str, option: str) -> bytes:
    try:
        return Endpoint.parse(text).address
    except ValueError as error:
        raise ConfigurationError(f"{option} {text}: that is no address") from error
