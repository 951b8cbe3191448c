"""Options that Linux refuses on MPTCP sockets: which of them are kept or imitated here, and what is said of the others.

docs/kernel.md has the table; a test compares each row with what the kernel does.
"""

from __future__ import annotations

import errno
import os
import socket as std
from dataclasses import dataclass
from enum import Enum

from mptcp.errors import MptcpError


class Treatment(Enum):
    """What is done about an option that the kernel refuses."""

    KEPT = "kept: what it asks for holds in any case, or it is a hint"
    IMITATED = "imitated here"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Refusal:
    """``why``: what MPTCP lacks. ``instead``: what a program can do."""

    name: str
    level: int
    option: int
    treatment: Treatment
    why: str
    instead: str = ""
    default: int = 0  # what reading it gives before it was set

    @property
    def sentence(self) -> str:
        return f"{self.name} on an MPTCP socket: {self.why}" + (f"; {self.instead}" if self.instead else "")


_SOL, _TCP, _IP, _IP6 = std.SOL_SOCKET, std.IPPROTO_TCP, std.IPPROTO_IP, std.IPPROTO_IPV6
_PER_SUBFLOW = "use set_subflow_option (CAP_BPF and CAP_PERFMON), or TCP (TCP_MULTIPATH_ENABLE=0)"
_TCP_ONLY = "use TCP (TCP_MULTIPATH_ENABLE=0 before connect)"

_TABLE = (
    Refusal("TCP_QUICKACK", _TCP, std.TCP_QUICKACK, Treatment.KEPT, "a hint that the kernel forgets by itself", default=1),
    Refusal("SO_OOBINLINE", _SOL, std.SO_OOBINLINE, Treatment.KEPT, "MPTCP has no urgent data, all of it is in line"),
    Refusal(
        "TCP_SYNCNT", _TCP, std.TCP_SYNCNT, Treatment.IMITATED,
        "a connect that blocks ends with ETIMEDOUT after as many retransmissions as that would be", default=6,
    ),
    Refusal("IP_MTU", _IP, 14, Treatment.IMITATED, "reads as the smallest path MTU of the subflows"),
    Refusal("IPV6_MTU", _IP6, 24, Treatment.IMITATED, "reads as the smallest path MTU of the subflows"),
    Refusal(
        "TCP_USER_TIMEOUT", _TCP, std.TCP_USER_TIMEOUT, Treatment.REFUSED,
        "the kernel gives it to no connection of several subflows", _PER_SUBFLOW,
    ),
    Refusal("TCP_LINGER2", _TCP, std.TCP_LINGER2, Treatment.REFUSED, "net.mptcp.close_timeout rules instead", _TCP_ONLY),
    Refusal(
        "TCP_WINDOW_CLAMP", _TCP, std.TCP_WINDOW_CLAMP, Treatment.REFUSED,
        "the window is the connection's; SO_RCVBUF bounds it", _PER_SUBFLOW,
    ),
    Refusal("TCP_ULP", _TCP, 31, Treatment.REFUSED, "a subflow's upper layer is MPTCP: no kernel TLS", _TCP_ONLY),
    Refusal("TCP_MD5SIG", _TCP, 14, Treatment.REFUSED, "the option has no room beside MPTCP's", _TCP_ONLY),
    Refusal("TCP_REPAIR", _TCP, 19, Treatment.REFUSED, "the kernel repairs no MPTCP connection", _TCP_ONLY),
    Refusal("TCP_TIMESTAMP", _TCP, 24, Treatment.REFUSED, "each subflow has a clock of its own", _TCP_ONLY),
    Refusal("TCP_SAVE_SYN", _TCP, 27, Treatment.REFUSED, "the kernel keeps none", _TCP_ONLY),
    Refusal("TCP_TX_DELAY", _TCP, 37, Treatment.REFUSED, "the kernel has none for MPTCP", _TCP_ONLY),
    Refusal("SO_MAX_PACING_RATE", _SOL, 47, Treatment.REFUSED, "each subflow is paced by itself", _PER_SUBFLOW),
    Refusal("SO_ZEROCOPY", _SOL, 60, Treatment.REFUSED, "the kernel copies what is sent over several paths", _TCP_ONLY),
    Refusal("SO_TXTIME", _SOL, 61, Treatment.REFUSED, "the kernel has none for MPTCP", _TCP_ONLY),
    Refusal("IP_TTL", _IP, std.IP_TTL, Treatment.REFUSED, "the kernel takes it for no MPTCP socket", _TCP_ONLY),
    Refusal(
        "IP_MTU_DISCOVER", _IP, 10, Treatment.REFUSED, "each subflow discovers the MTU of its path", _TCP_ONLY,
    ),
    Refusal("IP_RECVERR", _IP, 11, Treatment.REFUSED, "errors belong to subflows: see events()", _TCP_ONLY),
    Refusal("IP_OPTIONS", _IP, std.IP_OPTIONS, Treatment.REFUSED, "the kernel takes it for no MPTCP socket", _TCP_ONLY),
    Refusal(
        "IPV6_TCLASS", _IP6, std.IPV6_TCLASS, Treatment.REFUSED, "the kernel takes it for no MPTCP socket", _PER_SUBFLOW
    ),
    Refusal(
        "IPV6_UNICAST_HOPS", _IP6, std.IPV6_UNICAST_HOPS, Treatment.REFUSED, "the kernel takes it for no MPTCP socket",
        _TCP_ONLY,
    ),
    Refusal(
        "IPV6_MTU_DISCOVER", _IP6, 23, Treatment.REFUSED, "each subflow discovers the MTU of its path", _TCP_ONLY,
    ),
    Refusal("IPV6_RECVERR", _IP6, 25, Treatment.REFUSED, "errors belong to subflows: see events()", _TCP_ONLY),
    Refusal("IPV6_RTHDR", _IP6, std.IPV6_RTHDR, Treatment.REFUSED, "a route is a subflow's", "open_subflow(segments=)"),
    Refusal("IPV6_DONTFRAG", _IP6, std.IPV6_DONTFRAG, Treatment.REFUSED, "each subflow discovers the MTU of its path"),
)  # fmt: skip

#: (level, option) -> what is done about it.
REFUSED_BY_LINUX: dict[tuple[int, int], Refusal] = {(entry.level, entry.option): entry for entry in _TABLE}

#: What the kernel answers to an option that it does not have for MPTCP.
REFUSAL_ERRNOS = frozenset({errno.ENOPROTOOPT, errno.EOPNOTSUPP})

#: RFC 6298 §2: the first SYN is repeated after a second, each further one after twice as long.
_FIRST_SYN_RTO_S = 1.0

#: TCP_SYNCNT as Linux bounds it.
MAX_SYN_RETRIES = 127


class OptionRefused(MptcpError, OSError):
    """As the kernel's own error, with a sentence: ENOPROTOOPT or EOPNOTSUPP."""


def refused(level: int, option: int, error: OSError) -> OSError:
    """What to raise for ``error`` of the kernel's setsockopt or getsockopt on an MPTCP socket."""
    entry = REFUSED_BY_LINUX.get((level, option))
    text = (
        entry.sentence if entry else f"option {option} of level {level}: Linux has it for no MPTCP socket; {_TCP_ONLY}"
    )
    number = error.errno or errno.ENOPROTOOPT
    return OptionRefused(number, f"{os.strerror(number)}: {text}")


def connect_limit_s(syn_retries: int) -> float:
    """How long TCP_SYNCNT lets a connect wait for an answer."""
    return float(_FIRST_SYN_RTO_S * (2 ** (min(syn_retries, 30) + 1) - 1))
