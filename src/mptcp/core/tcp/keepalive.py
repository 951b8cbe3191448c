"""Keep-alive probes on a connection that has been silent for long (RFC 9293 §3.8.4)."""

from __future__ import annotations

from enum import Enum

from mptcp.core.tcp.config import TcpConfig
from mptcp.core.units import NEVER


class KeepaliveAction(Enum):
    NOTHING = "nothing"
    PROBE = "probe"
    GIVE_UP = "give up"


class Keepalive:
    """The timer is lazy: a segment that arrives moves nothing, and the timer looks when it fires."""

    __slots__ = ("config", "deadline", "probed_at", "probes")

    def __init__(self, config: TcpConfig, now: int) -> None:
        self.config = config
        self.deadline = now + config.keepalive_idle_us if config.keepalive else NEVER
        self.probes = 0
        self.probed_at = 0

    def handle_timeout(self, last_received_us: int, has_unacked: bool, now: int) -> KeepaliveAction:
        """``deadline`` has come; it is armed again."""
        config = self.config
        if self.probes and last_received_us >= self.probed_at:
            self.probes = 0
        idle_until = last_received_us + config.keepalive_idle_us
        if has_unacked or (not self.probes and now < idle_until):
            # RFC 9293 §3.8.4: "Keep-alive packets MUST only be sent when no sent data is outstanding, and no data or
            # acknowledgment packets have been received for the connection within an interval (MUST-26)"
            self.deadline = idle_until if now < idle_until else now + config.keepalive_idle_us
            return KeepaliveAction.NOTHING
        if self.probes >= config.keepalive_count:
            # RFC 9293 §3.8.4: "An implementation [...] MUST NOT interpret failure to respond to any specific probe as
            # a dead connection (MUST-29)": only the last of several
            self.deadline = NEVER
            return KeepaliveAction.GIVE_UP
        self.probes += 1
        self.probed_at = now
        self.deadline = now + config.keepalive_interval_us
        return KeepaliveAction.PROBE
