"""Where a connection is in its life."""

from enum import Enum


class ConnectionState(Enum):
    CONNECTING = "connecting"
    ESTABLISHED = "established"
    CLOSING = "closing"  # MP_FASTCLOSE sent, its RST awaited
    CLOSED = "closed"
