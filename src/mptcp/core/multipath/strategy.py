"""Changing a connection's strategies while it lives: scheduler, path manager, congestion control, redundancy, weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from mptcp.core.congestion.base import CongestionFactory
from mptcp.core.path_managers.base import PathManager
from mptcp.core.path_managers.wanted import Wanted
from mptcp.core.schedulers.base import Redundancy, Scheduler
from mptcp.core.schedulers.lowest_rtt import LowestRtt
from mptcp.core.tcp.config import TcpConfig
from mptcp.errors import NotSupportedError, PathError

if TYPE_CHECKING:
    from mptcp.core.multipath.connection import Connection

#: A coupled congestion control, and the factory that it has made for one connection.
Coupling = tuple[CongestionFactory, CongestionFactory]

#: The largest weight of a subflow: shares of one in ten thousand are as good as none.
MAX_WEIGHT = 10_000


def set_scheduler(connection: Connection, factory: Callable[[], Scheduler] | None) -> None:
    """From the next octet on; what is under way stays where it is. None: the default."""
    connection.scheduler = factory() if factory is not None else LowestRtt()
    connection.config = connection.config.changed(scheduler=factory)
    connection.touch()


def set_path_manager(connection: Connection, factory: Callable[[], PathManager], now: int) -> None:
    """What it wants it gets as soon as the connection may have further subflows, at once if it may now."""
    connection.config = connection.config.changed(path_manager=factory)
    connection.paths.replace(factory(), now)


def set_wanted_subflows(connection: Connection, count: int, now: int) -> None:
    """PathError for a number that the connection cannot have."""
    if not connection.is_multipath:
        raise PathError(f"this connection is regular TCP: {connection.fallback_reason}")
    if not 1 <= count <= connection.config.max_subflows:
        raise PathError(f"the number of subflows must be between 1 and {connection.config.max_subflows}")
    set_path_manager(connection, wanted_manager(count), now)


def wanted_manager(count: int) -> Callable[[], PathManager]:
    """What makes a path manager that keeps so many subflows open."""
    return lambda: Wanted(count)


def set_redundancy(connection: Connection, level: Redundancy) -> None:
    connection.redundancy = level
    connection.config = connection.config.changed(redundancy=level)
    connection.touch()


def set_weight(connection: Connection, subflow_id: int, weight: int) -> None:
    """How much of the stream a subflow should carry, relative to the others; 0: only what no other can."""
    if not 0 <= weight <= MAX_WEIGHT:
        raise PathError(f"a weight is between 0 and {MAX_WEIGHT}")
    subflow = connection.subflows_by_id.get(subflow_id)
    if subflow is None or subflow.tcp.is_over:
        raise PathError(f"no subflow has the id {subflow_id}")
    if weight > 1 and not connection.scheduler.uses_weights:
        raise NotSupportedError(
            f"the scheduler {connection.scheduler.name!r} knows no weights but 0 and 1; 'weighted' and 'overflow' do"
        )
    subflow.path.weight = weight
    connection.touch()


def tcp_config(connection: Connection) -> TcpConfig:
    """What its subflows get: a congestion control that is coupled becomes that of this connection."""
    config = connection.config.tcp
    factory = config.congestion
    make = getattr(factory, "for_connection", None)
    if factory is None or make is None:
        connection.coupling = None
        return config
    if connection.coupling is None or connection.coupling[0] is not factory:
        connection.coupling = (factory, make())
    return config.changed(congestion=connection.coupling[1])
