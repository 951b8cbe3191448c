"""Which options a single subflow of the kernel can have: found out by setting and reading each of them.

``tests/kernel/test_subflow_options.py`` does it again, ``tools/option_tables.py`` writes the table of
docs/kernel.md. What is not listed is tried, and the kernel decides.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import Final

SOL_SOCKET: Final = 1
SOL_IP: Final = 0
SOL_TCP: Final = socket.IPPROTO_TCP
SOL_IPV6: Final = 41

INTEGER_BYTES: Final = 4
#: The longest value of an option.
MAX_VALUE: Final = 256


@dataclass(frozen=True, slots=True)
class SubflowOption:
    """``can_set`` and ``can_get``: whether BPF does it. ``size`` of the value in octets, an integer's unless given."""

    label: str
    level: int
    name: int
    can_set: bool
    can_get: bool
    note: str = ""
    size: int = INTEGER_BYTES


def _both(label: str, level: int, name: int, note: str = "", size: int = INTEGER_BYTES) -> SubflowOption:
    return SubflowOption(label, level, name, True, True, note, size)


def _set(label: str, level: int, name: int, note: str = "", size: int = INTEGER_BYTES) -> SubflowOption:
    return SubflowOption(label, level, name, True, False, note, size)


def _neither(label: str, level: int, name: int, note: str = "") -> SubflowOption:
    return SubflowOption(label, level, name, False, False, note)


OPTIONS: Final = (
    _both("SO_REUSEADDR", SOL_SOCKET, 2),
    _both("SO_SNDBUF", SOL_SOCKET, 7, "the kernel doubles it"),
    _both("SO_RCVBUF", SOL_SOCKET, 8, "the kernel doubles it"),
    _both("SO_KEEPALIVE", SOL_SOCKET, 9),
    _neither("SO_OOBINLINE", SOL_SOCKET, 10),
    _both("SO_PRIORITY", SOL_SOCKET, 12),
    _neither("SO_LINGER", SOL_SOCKET, 13),
    _both("SO_REUSEPORT", SOL_SOCKET, 15),
    SubflowOption("SO_RCVLOWAT", SOL_SOCKET, 18, False, True, "what wakes a reader is the connection's"),
    _set("SO_BINDTODEVICE", SOL_SOCKET, 25, "read SO_BINDTOIFINDEX", 16),
    _neither("SO_TIMESTAMP", SOL_SOCKET, 29),
    _both("SO_MARK", SOL_SOCKET, 36, "`ip rule fwmark` moves a live subflow to another route"),
    _both("SO_MAX_PACING_RATE", SOL_SOCKET, 47, "octets a second"),
    _neither("SO_ZEROCOPY", SOL_SOCKET, 60),
    _both("SO_BINDTOIFINDEX", SOL_SOCKET, 62),
    _both("SO_TXREHASH", SOL_SOCKET, 74),
    _both("TCP_NODELAY", SOL_TCP, 1),
    _both("TCP_MAXSEG", SOL_TCP, 2, "reads as what is in use"),
    _neither("TCP_CORK", SOL_TCP, 3),
    _both("TCP_KEEPIDLE", SOL_TCP, 4),
    _both("TCP_KEEPINTVL", SOL_TCP, 5),
    _both("TCP_KEEPCNT", SOL_TCP, 6),
    _both("TCP_SYNCNT", SOL_TCP, 7),
    _neither("TCP_LINGER2", SOL_TCP, 8),
    _neither("TCP_DEFER_ACCEPT", SOL_TCP, 9),
    _both("TCP_WINDOW_CLAMP", SOL_TCP, 10),
    _neither("TCP_INFO", SOL_TCP, 11, "`subflows()` has it, without privilege"),
    _neither("TCP_QUICKACK", SOL_TCP, 12),
    _both("TCP_CONGESTION", SOL_TCP, 13, "one that is loaded (ENOENT), whether or not it is allowed to everybody", 16),
    _both("TCP_THIN_LINEAR_TIMEOUTS", SOL_TCP, 16),
    _both("TCP_USER_TIMEOUT", SOL_TCP, 18, "ends a dead subflow in good time"),
    _neither("TCP_FASTOPEN", SOL_TCP, 23),
    _neither("TCP_TIMESTAMP", SOL_TCP, 24),
    _both("TCP_NOTSENT_LOWAT", SOL_TCP, 25),
    _both("TCP_SAVE_SYN", SOL_TCP, 27),
    _neither("TCP_SAVED_SYN", SOL_TCP, 28),
    _neither("TCP_ULP", SOL_TCP, 31),
    _neither("TCP_INQ", SOL_TCP, 36),
    _neither("TCP_TX_DELAY", SOL_TCP, 37),
    _both("TCP_RTO_MAX_MS", SOL_TCP, 44, "Linux 6.15"),
    _set("TCP_BPF_IW", SOL_TCP, 1001, "initial window in segments, before any data"),
    _set("TCP_BPF_SNDCWND_CLAMP", SOL_TCP, 1002, "largest congestion window in segments"),
    _both("TCP_BPF_DELACK_MAX", SOL_TCP, 1003, "microseconds, rounded up"),
    _both("TCP_BPF_RTO_MIN", SOL_TCP, 1004, "microseconds, rounded up"),
    _both("IP_TOS", SOL_IP, 1),
    _neither("IP_TTL", SOL_IP, 2),
    _neither("IP_MTU_DISCOVER", SOL_IP, 10),
    _neither("IP_RECVERR", SOL_IP, 11),
    _neither("IPV6_UNICAST_HOPS", SOL_IPV6, 16),
    _neither("IPV6_RTHDR", SOL_IPV6, 57, "`open_subflow(segments=...)` instead"),
    _both("IPV6_TCLASS", SOL_IPV6, 67),
    _both("IPV6_AUTOFLOWLABEL", SOL_IPV6, 70),
)

_BY_NUMBER: Final = {(option.level, option.name): option for option in OPTIONS}


def find(level: int, name: int) -> SubflowOption | None:
    """What is known of an option."""
    return _BY_NUMBER.get((level, name))
