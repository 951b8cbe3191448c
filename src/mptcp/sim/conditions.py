"""What one direction of a path does to packets: rate, delay, queue, and everything that can go wrong."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from mptcp.core.units import KIB
from mptcp.errors import ConfigurationError

DEFAULT_QUEUE_BYTES = 256 * KIB


@dataclass(frozen=True, slots=True)
class BurstLoss:
    """Gilbert-Elliott: two states, each with its own loss; probabilities are per packet."""

    to_bad: float = 0.01
    to_good: float = 0.3
    loss_bad: float = 1.0
    loss_good: float = 0.0


@dataclass(frozen=True, slots=True)
class Conditions:
    """Of one direction. Rates in bits per second, sizes in bytes, times in microseconds, probabilities per packet.

    Order is kept under jitter and changes of delay; only ``reorder`` lets later packets overtake.
    """

    rate_bps: int = 0  # 0: infinitely fast
    delay_us: int = 0  # propagation
    jitter_us: int = 0  # uniform, added to the delay
    queue_bytes: int = DEFAULT_QUEUE_BYTES  # before the bottleneck, drop-tail; has no meaning without a rate
    ecn_threshold_bytes: int = 0  # queue length from which ECN-capable packets are marked; 0: never
    loss: float = 0.0
    burst_loss: BurstLoss | None = None
    reorder: float = 0.0
    reorder_us: int = 1_000  # how much later a reordered packet arrives
    duplicate: float = 0.0
    corrupt: float = 0.0  # one bit, anywhere behind the IP header

    def __post_init__(self) -> None:
        for name in ("rate_bps", "delay_us", "jitter_us", "queue_bytes", "ecn_threshold_bytes", "reorder_us"):
            if getattr(self, name) < 0:
                raise ConfigurationError(f"{name} must not be negative")
        for name in ("loss", "reorder", "duplicate", "corrupt"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ConfigurationError(f"{name} must be a probability between 0 and 1")

    def changed(self, **changes: Any) -> Conditions:
        return replace(self, **changes)
