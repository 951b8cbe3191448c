"""The settings of one TCP connection: shared by many until one of them changes something."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from mptcp.core.congestion.base import CongestionFactory
from mptcp.core.units import KIB, MIB, MILLISECOND, NEVER, SECOND


@dataclass(frozen=True, slots=True)
class TcpConfig:
    """Sizes in bytes, times in microseconds. ``changed(name=value)`` gives a changed copy."""

    congestion: CongestionFactory | None = None  # None: CUBIC
    initial_window_segments: int = 10  # RFC 6928
    max_segment_bytes: int = 0  # TCP_MAXSEG; 0: what the path allows
    send_buffer_bytes: int = 4 * MIB
    receive_buffer_bytes: int = 128 * KIB  # where auto-tuning starts
    receive_buffer_max_bytes: int = 6 * MIB  # where auto-tuning ends; equal to receive_buffer_bytes: off
    window_scaling: bool = True
    timestamps: bool = True
    sack: bool = True
    ecn: bool = False
    no_delay: bool = False  # TCP_NODELAY
    cork: bool = False  # TCP_CORK
    quick_ack: bool = False
    delayed_ack_us: int = 40 * MILLISECOND
    rto_min_us: int = 200 * MILLISECOND
    rto_max_us: int = 120 * SECOND
    rto_initial_us: int = 1 * SECOND
    syn_retries: int = 6
    syn_ack_retries: int = 5
    data_retries: int = 15
    user_timeout_us: int = NEVER
    keepalive: bool = False
    keepalive_idle_us: int = 7200 * SECOND
    keepalive_interval_us: int = 75 * SECOND
    keepalive_count: int = 9
    fin_wait_2_us: int = 60 * SECOND
    time_wait_us: int = 60 * SECOND
    path_mtu_discovery: bool = True
    hop_limit: int = 64
    traffic_class: int = 0
    extra: dict[str, object] = field(default_factory=dict)

    def changed(self, **changes: Any) -> TcpConfig:
        return replace(self, **changes)


DEFAULT_TCP_CONFIG = TcpConfig()
