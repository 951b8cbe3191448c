"""The settings of one connection; shared by many until one changes something."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from mptcp.core.multipath.special_addresses import Network
from mptcp.core.path_managers.base import PathManager
from mptcp.core.schedulers.base import Redundancy, Scheduler
from mptcp.core.tcp.config import DEFAULT_TCP_CONFIG, TcpConfig
from mptcp.core.units import NEVER, SECOND
from mptcp.info import Endpoint


@dataclass(frozen=True, slots=True)
class ConnectionConfig:
    """Sizes in bytes, times in microseconds. ``changed(name=value)`` gives a changed copy."""

    tcp: TcpConfig = DEFAULT_TCP_CONFIG
    multipath: bool = True
    version: int = 1  # of MPTCP, offered by a client; a server answers in either
    checksum: bool = False  # RFC 8684 §3.3.1 recommends it on paths with middleboxes
    deny_join_initial: bool = False  # the C flag: no joins to our initial address and port
    fastclose_by_reset: bool = True  # RFC 8684 §3.5: option R; False: option A
    scheduler: Callable[[], Scheduler] | None = None  # None: lowest RTT
    path_manager: Callable[[], PathManager] | None = None  # None: full mesh
    redundancy: Redundancy = Redundancy.NONE  # the same octets over several subflows
    race_plain_us: int = NEVER  # a connect without answer is raced by one without MPTCP after this (RFC 6555)
    excluded_networks: tuple[Network, ...] = ()  # besides the special ones: never at either end of a further subflow
    max_subflows: int = 8
    max_remote_addresses: int = 8  # announced addresses that are remembered
    capable_syns: int = 3  # SYNs with MP_CAPABLE before one without is tried (RFC 8684 §3.1)
    announce_retry_us: int = 1 * SECOND  # ADD_ADDR is repeated until echoed, with back-off
    announce_retries: int = 5
    close_timeout_us: int = 60 * SECOND  # a connection without subflows is kept that long (break before make)
    fastclose_retries: int = 3  # RFC 8684 §3.5: "A RECOMMENDED number is 3"
    local_addresses: tuple[Endpoint, ...] | None = (
        None  # the only ones it may use; port 0: any; None: all of the host's
    )
    excluded_addresses: tuple[bytes, ...] = ()  # of the host's, those it may not use
    fate_sharing: bool = False  # RFC 6897 §4.2.2: the connection ends with its first subflow
    disabled_reason: str = ""  # why ``multipath`` is off; what ``fallback_reason`` then says

    def changed(self, **changes: Any) -> ConnectionConfig:
        return replace(self, **changes)


DEFAULT_CONFIG = ConnectionConfig()
