"""Options of one subflow as the broker knows them: their names, and what an ordinary user may set them to.

BPF sets options without asking for the capability that ``setsockopt`` would ask for, so the broker asks in its place.
"""

from __future__ import annotations

import errno
import socket
import sys
from pathlib import Path
from typing import Final

from mptcp.errors import PathError

_SOL_SOCKET: Final = socket.SOL_SOCKET
_TCP: Final = socket.IPPROTO_TCP
_IP: Final = socket.IPPROTO_IP
_IPV6: Final = socket.IPPROTO_IPV6
_TCP_CONGESTION: Final = 13
_SO_PRIORITY: Final = 12
#: socket(7): a priority above needs CAP_NET_ADMIN.
_MAX_PRIORITY: Final = 6

#: Names of a policy's ``options`` -> (level, option); numbers as in <linux/tcp.h>, <asm-generic/socket.h>, <linux/in.h>.
OPTIONS: Final[dict[str, tuple[int, int]]] = {
    "SO_SNDBUF": (_SOL_SOCKET, 7),
    "SO_RCVBUF": (_SOL_SOCKET, 8),
    "SO_KEEPALIVE": (_SOL_SOCKET, 9),
    "SO_PRIORITY": (_SOL_SOCKET, _SO_PRIORITY),
    "SO_RCVLOWAT": (_SOL_SOCKET, 18),
    "SO_MARK": (_SOL_SOCKET, 36),
    "SO_MAX_PACING_RATE": (_SOL_SOCKET, 47),
    "SO_BINDTOIFINDEX": (_SOL_SOCKET, 62),
    "TCP_NODELAY": (_TCP, 1),
    "TCP_MAXSEG": (_TCP, 2),
    "TCP_KEEPIDLE": (_TCP, 4),
    "TCP_KEEPINTVL": (_TCP, 5),
    "TCP_KEEPCNT": (_TCP, 6),
    "TCP_SYNCNT": (_TCP, 7),
    "TCP_WINDOW_CLAMP": (_TCP, 10),
    "TCP_CONGESTION": (_TCP, _TCP_CONGESTION),
    "TCP_THIN_LINEAR_TIMEOUTS": (_TCP, 16),
    "TCP_USER_TIMEOUT": (_TCP, 18),
    "TCP_NOTSENT_LOWAT": (_TCP, 25),
    "TCP_RTO_MAX_MS": (_TCP, 44),
    "TCP_BPF_SNDCWND_CLAMP": (_TCP, 1002),
    "TCP_BPF_RTO_MIN": (_TCP, 1004),
    "IP_TOS": (_IP, 1),
    "IPV6_TCLASS": (_IPV6, 67),
}

#: What the owner of a TCP socket could set on it without any privilege: "ordinary" in a policy's ``options``.
ORDINARY: Final = frozenset(OPTIONS) - {
    "SO_MARK", "SO_BINDTOIFINDEX", "TCP_RTO_MAX_MS", "TCP_BPF_SNDCWND_CLAMP", "TCP_BPF_RTO_MIN",
}  # fmt: skip

_NAMES: Final = {number: name for name, number in OPTIONS.items()}
_ALLOWED_CONGESTION: Final = Path("/proc/sys/net/ipv4/tcp_allowed_congestion_control")


def option_name(level: int, option: int) -> str:
    """The name of an option, "" for one that this package does not know."""
    return _NAMES.get((level, option), "")


def check_value(level: int, option: int, value: bytes) -> None:
    """PathError (EPERM) for a value that needs a privilege of who calls ``setsockopt``."""
    if (level, option) == OPTIONS["TCP_CONGESTION"]:
        name = value.split(b"\0", 1)[0].decode(errors="replace")
        try:
            allowed = _ALLOWED_CONGESTION.read_text().split()
        except OSError:
            allowed = []
        if name not in allowed:
            raise PathError(
                f"the congestion control {name!r} is not one of net.ipv4.tcp_allowed_congestion_control "
                f"({' '.join(allowed)})",
                errno.EPERM,
            )
    elif (level, option) == OPTIONS["SO_PRIORITY"]:
        priority = int.from_bytes(value[:4], sys.byteorder, signed=True)
        if not 0 <= priority <= _MAX_PRIORITY:
            raise PathError(f"a priority of {priority} needs CAP_NET_ADMIN: use 0 to {_MAX_PRIORITY}", errno.EPERM)
