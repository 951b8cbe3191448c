"""The strategies of a socket of the user-space stack: what it was told takes effect on its connection."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mptcp.core.multipath import strategy
from mptcp.core.multipath.config import ConnectionConfig
from mptcp.core.schedulers.base import Redundancy
from mptcp.core.schedulers.earliest_completion import EarliestCompletion
from mptcp.core.schedulers.lowest_rtt import LowestRtt
from mptcp.errors import MptcpError
from mptcp.info import Endpoint
from mptcp.sockets.advanced import UNTOLD, AdvancedInterface, AdvancedSettings
from mptcp.sockets.state import CONNECTING
from mptcp.sockets.user_addresses import BasicApi

if TYPE_CHECKING:
    from mptcp.core.multipath.connection import Connection
    from mptcp.sockets.user import UserStack


class AdvancedApi(AdvancedInterface, BasicApi):
    """Everything there is has an effect here."""

    __slots__ = ("_advanced",)

    def __init__(self, stack: UserStack, family: int, proto: int, config: ConnectionConfig) -> None:
        super().__init__(stack, family, proto, config)
        self._advanced = UNTOLD

    def _most_subflows(self) -> int:
        connection = self._connection
        if connection is not None and connection.state is not CONNECTING:
            return connection.config.max_subflows
        return self._config.max_subflows

    def _scheduler_name(self) -> str:
        connection = self._connection
        if connection is not None:
            return connection.scheduler.name
        factory = self._effective_config().scheduler
        return factory().name if factory is not None else LowestRtt.name

    def _path_manager_name(self) -> str:
        connection = self._connection
        if connection is not None:
            return connection.paths.manager.name
        factory = self._effective_config().path_manager
        return factory().name if factory is not None else "fullmesh"

    def _set_weight(self, subflow_id: int, weight: int) -> None:
        strategy.set_weight(self._the_connection(), subflow_id, weight)
        self._pump.flush()

    def _redundancy_level(self) -> Redundancy:
        connection = self._connection
        if connection is not None:
            return max(connection.redundancy, connection.scheduler.redundancy)
        return self._effective_config().redundancy

    # --- how it takes effect -----------------------------------------------------------------------------------------
    def _tell(self, settings: AdvancedSettings) -> None:
        with self._pump.lock:
            self._check_open()
            before, self._advanced = self._advanced, settings
            try:
                if self._connection is not None:
                    self._retune(self._connection, before)
                else:
                    self._update_listeners()
            except MptcpError:
                self._advanced = before
                raise
            self._pump.flush()

    def _retune(self, connection: Connection, before: AdvancedSettings) -> None:
        """The connection takes over what has changed, and nothing else: a scheduler or path manager that stays keeps what it
        knows."""
        now = self._pump.clock()
        settings = self._advanced
        config = settings.apply(self._config)
        if settings.profile is not before.profile or settings.expected != before.expected:
            self._config = self._config.changed(tcp=config.tcp)
            connection.set_tcp_config(config.tcp)
        old = before.apply(self._config)
        if config.scheduler is not old.scheduler or settings.profile is not before.profile:
            strategy.set_scheduler(connection, config.scheduler or LowestRtt)
        if settings.wanted != before.wanted and settings.wanted and connection.is_multipath:
            strategy.set_wanted_subflows(connection, settings.wanted, now)
        elif (
            (settings.setup, settings.expected, settings.path_manager, settings.wanted)
            != (before.setup, before.expected, before.path_manager, before.wanted)
            or settings.profile is not before.profile
        ) and config.path_manager is not None:
            strategy.set_path_manager(connection, config.path_manager, now)
        strategy.set_redundancy(connection, config.redundancy)

    def _config_for(self, remote: Endpoint | None) -> ConnectionConfig:
        """What a connection to ``remote`` begins with: what the program has set, within what the policy allows."""
        settings = self._advanced
        aware = self._settings.aware or bool(self._settings.enabled)
        config = super()._effective_config()
        config = self._stack.policy.apply(config, remote, aware=aware, chosen=settings.has_strategies)
        return settings.apply(config)

    def _effective_config(self) -> ConnectionConfig:
        return self._config_for(None)

    def _adapt_to_options(self) -> None:
        """With the lock, after an option was set: TCP_NODELAY also means latency to the scheduler."""
        connection = self._connection
        if connection is None or self._advanced.has_strategies:
            return
        base = connection.config
        if base.scheduler is None or base.scheduler is EarliestCompletion:
            adapted = self._stack.policy.adapt(base.changed(scheduler=None))
            if adapted.scheduler is not base.scheduler:
                strategy.set_scheduler(connection, adapted.scheduler)
