"""Socket options that TCP has and MPTCP refuses: what ``mptcp run`` watches, and what it does about each.

Which of them this kernel refuses is asked of it, on a socket made for that.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import socket
from collections.abc import Mapping
from typing import Final

IPPROTO_MPTCP: Final = 262
SOL_SOCKET, SOL_IP, SOL_TCP, SOL_IPV6 = 1, 0, 6, 41

#: (level, name) -> its name. Those that a program with a TCP stream may want; multicast and its like are not there.
CANDIDATES: Final[Mapping[tuple[int, int], str]] = {
    (SOL_SOCKET, 10): "SO_OOBINLINE",
    (SOL_SOCKET, 26): "SO_ATTACH_FILTER",
    (SOL_SOCKET, 42): "SO_PEEK_OFF",
    (SOL_SOCKET, 47): "SO_MAX_PACING_RATE",
    (SOL_SOCKET, 50): "SO_ATTACH_BPF",
    (SOL_SOCKET, 51): "SO_ATTACH_REUSEPORT_CBPF",
    (SOL_SOCKET, 52): "SO_ATTACH_REUSEPORT_EBPF",
    (SOL_SOCKET, 60): "SO_ZEROCOPY",
    (SOL_SOCKET, 61): "SO_TXTIME",
    (SOL_SOCKET, 72): "SO_BUF_LOCK",
    (SOL_SOCKET, 74): "SO_TXREHASH",
    (SOL_SOCKET, 75): "SO_RCVMARK",
    (SOL_TCP, 7): "TCP_SYNCNT",
    (SOL_TCP, 8): "TCP_LINGER2",
    (SOL_TCP, 10): "TCP_WINDOW_CLAMP",
    (SOL_TCP, 12): "TCP_QUICKACK",
    (SOL_TCP, 14): "TCP_MD5SIG",
    (SOL_TCP, 16): "TCP_THIN_LINEAR_TIMEOUTS",
    (SOL_TCP, 17): "TCP_THIN_DUPACK",
    (SOL_TCP, 18): "TCP_USER_TIMEOUT",
    (SOL_TCP, 19): "TCP_REPAIR",
    (SOL_TCP, 24): "TCP_TIMESTAMP",
    (SOL_TCP, 27): "TCP_SAVE_SYN",
    (SOL_TCP, 31): "TCP_ULP",
    (SOL_TCP, 32): "TCP_MD5SIG_EXT",
    (SOL_TCP, 37): "TCP_TX_DELAY",
    (SOL_TCP, 38): "TCP_AO_ADD_KEY",
    (SOL_TCP, 44): "TCP_RTO_MAX_MS",
    (SOL_IP, 2): "IP_TTL",
    (SOL_IP, 4): "IP_OPTIONS",
    (SOL_IP, 10): "IP_MTU_DISCOVER",
    (SOL_IP, 11): "IP_RECVERR",
    (SOL_IP, 12): "IP_RECVTTL",
    (SOL_IP, 13): "IP_RECVTOS",
    (SOL_IP, 21): "IP_MINTTL",
    (SOL_IPV6, 16): "IPV6_UNICAST_HOPS",
    (SOL_IPV6, 23): "IPV6_MTU_DISCOVER",
    (SOL_IPV6, 24): "IPV6_MTU",
    (SOL_IPV6, 25): "IPV6_RECVERR",
    (SOL_IPV6, 33): "IPV6_FLOWINFO_SEND",
    (SOL_IPV6, 51): "IPV6_RECVHOPLIMIT",
    (SOL_IPV6, 54): "IPV6_HOPOPTS",
    (SOL_IPV6, 57): "IPV6_RTHDR",
    (SOL_IPV6, 59): "IPV6_DSTOPTS",
    (SOL_IPV6, 62): "IPV6_DONTFRAG",
    (SOL_IPV6, 66): "IPV6_RECVTCLASS",
    (SOL_IPV6, 67): "IPV6_TCLASS",
    (SOL_IPV6, 70): "IPV6_AUTOFLOWLABEL",
    (SOL_IPV6, 72): "IPV6_ADDR_PREFERENCES",
    (SOL_IPV6, 73): "IPV6_MINHOPCOUNT",
}

#: A wish for this moment, which the kernel forgets by itself: no reason to give up MPTCP. It counts as done.
PASSING_WISHES: Final = frozenset({(SOL_TCP, 12)})
#: Marks on packets: once the connection is there, a program hears that they are set, as nothing depends on them.
MARKS: Final = frozenset({(SOL_IPV6, 67)})

_REFUSALS: Final = (errno.ENOPROTOOPT, errno.EOPNOTSUPP)
_libc = ctypes.CDLL(None, use_errno=True)


def option_name(level: int, name: int) -> str:
    return CANDIDATES.get((level, name), f"option {name} of level {level}")


def refused_options() -> list[tuple[int, int]]:
    """Those of ``CANDIDATES`` that this kernel refuses on an MPTCP socket; none where it makes no such socket."""
    refused: set[tuple[int, int]] = set()
    for family in (socket.AF_INET, socket.AF_INET6):
        with contextlib.suppress(OSError):  # no MPTCP, or no IPv6
            refused |= {key for key in CANDIDATES if _is_refused(family, key)}
    return [key for key in CANDIDATES if key in refused]


def _is_refused(family: int, key: tuple[int, int]) -> bool:
    if key[0] == SOL_IPV6 and family != socket.AF_INET6:
        return False
    # A socket of its own for each: what is accepted by chance concerns no other.
    fd = make_socket(family, IPPROTO_MPTCP)
    try:
        value = ctypes.c_int(1)
        failed = _libc.setsockopt(fd, *key, ctypes.byref(value), ctypes.sizeof(value))
        return bool(failed) and ctypes.get_errno() in _REFUSALS
    finally:
        os.close(fd)


def make_socket(family: int, protocol: int) -> int:
    """The descriptor of a new stream socket."""
    return socket.socket(family, socket.SOCK_STREAM, protocol).detach()
