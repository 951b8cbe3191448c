"""Options of one subflow as the broker knows them: their names, and what an ordinary user may set them to.

BPF sets options without asking for the capability that ``setsockopt`` would ask for, so the broker asks in its place.
"""

from __future__ import annotations

import errno
import sys
from pathlib import Path
from typing import Final

from mptcp.errors import PathError
from mptcp.kernel.bpf import option_table

#: socket(7): a priority above needs CAP_NET_ADMIN.
_MAX_PRIORITY: Final = 6

#: Names of a policy's ``options`` -> (level, option): what can be set on one subflow at all.
OPTIONS: Final = {option.label: (option.level, option.name) for option in option_table.OPTIONS if option.can_set}

#: What the owner of a TCP socket could set on it without any privilege: "ordinary" in a policy's ``options``.
ORDINARY: Final = frozenset(
    {
        "SO_SNDBUF", "SO_RCVBUF", "SO_KEEPALIVE", "SO_PRIORITY", "SO_MAX_PACING_RATE", "TCP_NODELAY", "TCP_MAXSEG",
        "TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_SYNCNT", "TCP_WINDOW_CLAMP", "TCP_CONGESTION",
        "TCP_THIN_LINEAR_TIMEOUTS", "TCP_USER_TIMEOUT", "TCP_NOTSENT_LOWAT", "IP_TOS", "IPV6_TCLASS",
    }
)  # fmt: skip

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
