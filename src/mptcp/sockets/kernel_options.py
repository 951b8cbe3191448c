"""Options that Linux refuses on MPTCP sockets: which of them are kept or imitated here, and what is said of the others.

docs/kernel.md has the table; a test compares each row with what the kernel does.
"""

from __future__ import annotations

import errno
import os
import socket as std
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType

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
_REFUSED = Treatment.REFUSED


def _each(level: int, options: dict[str, int], why: str, instead: str = _TCP_ONLY) -> list[Refusal]:
    """Options that are refused for one reason."""
    return [Refusal(name, level, option, _REFUSED, why, instead) for name, option in options.items()]


# Numbers are those of Linux (asm-generic/socket.h, linux/tcp.h, in.h, in6.h): Python names only some of them.
_TABLE = (
    Refusal("TCP_QUICKACK", _TCP, std.TCP_QUICKACK, Treatment.KEPT, "a hint that the kernel forgets by itself", default=1),
    Refusal("SO_OOBINLINE", _SOL, std.SO_OOBINLINE, Treatment.KEPT, "MPTCP has no urgent data, all of it is in line"),
    Refusal("TCP_THIN_DUPACK", _TCP, 17, Treatment.KEPT, "without effect on TCP, too"),
    Refusal(
        "TCP_SYNCNT", _TCP, std.TCP_SYNCNT, Treatment.IMITATED,
        "a connect ends with ETIMEDOUT when so many retransmissions, each after twice the time, would be over "
        "(net.ipv4.tcp_syn_retries may be sooner)", default=6,
    ),
    Refusal("IP_MTU", _IP, 14, Treatment.IMITATED, "reads as the smallest path MTU of the subflows"),
    Refusal("IPV6_MTU", _IP6, 24, Treatment.IMITATED, "reads as the smallest path MTU of the subflows"),
    *_each(
        _TCP, {"TCP_USER_TIMEOUT": std.TCP_USER_TIMEOUT}, "the kernel gives it to no connection of several subflows",
        _PER_SUBFLOW,
    ),
    *_each(_TCP, {"TCP_LINGER2": std.TCP_LINGER2}, "net.mptcp.close_timeout rules instead"),
    *_each(
        _TCP, {"TCP_WINDOW_CLAMP": std.TCP_WINDOW_CLAMP}, "the window is the connection's; SO_RCVBUF bounds it",
        _PER_SUBFLOW,
    ),
    *_each(
        _TCP, {"TCP_THIN_LINEAR_TIMEOUTS": 16, "TCP_RTO_MAX_MS": 44}, "each subflow has timers of its own", _PER_SUBFLOW
    ),
    *_each(_TCP, {"TCP_RTO_MIN_US": 45, "TCP_DELACK_MAX_US": 46}, "each subflow has timers of its own"),
    *_each(_TCP, {"TCP_ULP": 31}, "a subflow's upper layer is MPTCP: no kernel TLS"),
    *_each(
        _TCP, {"TCP_MD5SIG": 14, "TCP_MD5SIG_EXT": 32, "TCP_AO_ADD_KEY": 38, "TCP_AO_DEL_KEY": 39, "TCP_AO_INFO": 40},
        "the option has no room beside MPTCP's",
    ),
    *_each(
        _TCP, {
            "TCP_REPAIR": 19, "TCP_REPAIR_QUEUE": 20, "TCP_QUEUE_SEQ": 21, "TCP_REPAIR_OPTIONS": 22,
            "TCP_REPAIR_WINDOW": 29,
        }, "the kernel repairs no MPTCP connection",
    ),
    *_each(_TCP, {"TCP_TIMESTAMP": 24}, "each subflow has a clock of its own"),
    *_each(_TCP, {"TCP_SAVE_SYN": 27, "TCP_SAVED_SYN": 28}, "the kernel keeps none"),
    *_each(_TCP, {"TCP_TX_DELAY": 37}, "the kernel has none for MPTCP"),
    *_each(_SOL, {"SO_TXTIME": 61}, "the kernel has none for MPTCP"),
    *_each(_SOL, {"SO_MAX_PACING_RATE": 47}, "each subflow is paced by itself", _PER_SUBFLOW),
    *_each(_SOL, {"SO_TXREHASH": 74}, "each subflow has a path of its own", _PER_SUBFLOW),
    *_each(_SOL, {"SO_CNX_ADVICE": 53}, "each subflow has a path of its own"),
    *_each(_SOL, {"SO_ZEROCOPY": 60}, "the kernel copies what is sent over several paths"),
    *_each(_TCP, {"TCP_ZEROCOPY_RECEIVE": 35}, "the kernel copies what comes over several paths"),
    *_each(_SOL, {"SO_BUF_LOCK": 72}, "the kernel has none for MPTCP", "SO_SNDBUF and SO_RCVBUF hold a size"),
    *_each(_SOL, {"SO_PEEK_OFF": 42}, "the kernel peeks from the first octet only"),
    *_each(
        _SOL, {
            "SO_ATTACH_FILTER": 26, "SO_DETACH_FILTER": 27, "SO_LOCK_FILTER": 44, "SO_ATTACH_BPF": 50,
            "SO_ATTACH_REUSEPORT_CBPF": 51, "SO_ATTACH_REUSEPORT_EBPF": 52, "SO_DETACH_REUSEPORT_BPF": 68,
        }, "the kernel runs no program on what MPTCP receives",
    ),
    *_each(
        _IP, {
            "IP_TTL": std.IP_TTL, "IP_MINTTL": 21, "IP_OPTIONS": std.IP_OPTIONS, "IP_IPSEC_POLICY": 16,
            "IP_XFRM_POLICY": 17, "IP_UNICAST_IF": 50,
        }, "the kernel takes it for no MPTCP socket",
    ),
    *_each(_IP, {"IP_MTU_DISCOVER": 10}, "each subflow discovers the MTU of its path"),
    *_each(_IP, {"IP_RECVERR": 11, "IP_RECVERR_RFC4884": 26}, "errors belong to subflows: see events()"),
    *_each(
        _IP6, {"IPV6_TCLASS": std.IPV6_TCLASS, "IPV6_AUTOFLOWLABEL": 70}, "the kernel takes it for no MPTCP socket",
        _PER_SUBFLOW,
    ),
    *_each(
        _IP6, {
            "IPV6_UNICAST_HOPS": std.IPV6_UNICAST_HOPS, "IPV6_MINHOPCOUNT": 73, "IPV6_HOPOPTS": 54,
            "IPV6_RTHDRDSTOPTS": 55, "IPV6_DSTOPTS": 59, "IPV6_FLOWINFO_SEND": 33, "IPV6_IPSEC_POLICY": 34, "IPV6_XFRM_POLICY": 35,
            "IPV6_ADDR_PREFERENCES": 72, "IPV6_UNICAST_IF": 76,
        }, "the kernel takes it for no MPTCP socket",
    ),
    *_each(_IP6, {"IPV6_RTHDR": std.IPV6_RTHDR}, "a route is a subflow's", "open_subflow(segments=)"),
    *_each(
        _IP6, {"IPV6_MTU_DISCOVER": 23, "IPV6_DONTFRAG": std.IPV6_DONTFRAG},
        "each subflow discovers the MTU of its path",
    ),
    *_each(_IP6, {"IPV6_RECVERR": 25, "IPV6_RECVERR_RFC4884": 31}, "errors belong to subflows: see events()"),
    *_each(
        _SOL, {"SO_RCVMARK": 75, "SO_RCVPRIORITY": 82}, _NO_PACKETS := "a stream over several paths shows no packets",
    ),
    *_each(
        _IP, {
            "IP_RECVOPTS": 6, "IP_RETOPTS": 7, "IP_PKTINFO": 8, "IP_PKTOPTIONS": 9, "IP_RECVTTL": 12, "IP_RECVTOS": 13,
            "IP_PASSSEC": 18, "IP_RECVORIGDSTADDR": 20, "IP_CHECKSUM": 23, "IP_RECVFRAGSIZE": 25,
        }, _NO_PACKETS,
    ),
    *_each(
        _IP6, {
            "IPV6_2292PKTINFO": 2, "IPV6_2292HOPOPTS": 3, "IPV6_2292DSTOPTS": 4, "IPV6_2292RTHDR": 5,
            "IPV6_2292PKTOPTIONS": 6, "IPV6_2292HOPLIMIT": 8, "IPV6_FLOWINFO": 11, "IPV6_RECVPKTINFO": 49,
            "IPV6_RECVHOPLIMIT": 51, "IPV6_RECVHOPOPTS": 53, "IPV6_RECVRTHDR": 56, "IPV6_RECVDSTOPTS": 58,
            "IPV6_RECVPATHMTU": 60, "IPV6_RECVTCLASS": 66, "IPV6_RECVORIGDSTADDR": 74, "IPV6_RECVFRAGSIZE": 77,
        }, _NO_PACKETS,
    ),
    *_each(
        _IP, {
            "IP_HDRINCL": 3, "IP_ROUTER_ALERT": 5, "IP_NODEFRAG": 22, "IP_MULTICAST_IF": 32, "IP_MULTICAST_TTL": 33,
            "IP_MULTICAST_LOOP": 34, "IP_ADD_MEMBERSHIP": 35, "IP_DROP_MEMBERSHIP": 36,
            "IP_UNBLOCK_SOURCE": 37, "IP_BLOCK_SOURCE": 38, "IP_ADD_SOURCE_MEMBERSHIP": 39,
            "IP_DROP_SOURCE_MEMBERSHIP": 40, "IP_MULTICAST_ALL": 49,
            "IP_PROTOCOL": 52,
        }, _NO_STREAM := "means nothing for a stream", "",
    ),
    *_each(
        _IP6, {
            "IPV6_MULTICAST_IF": 17, "IPV6_MULTICAST_HOPS": 18, "IPV6_MULTICAST_LOOP": 19, "IPV6_JOIN_GROUP": 20,
            "IPV6_LEAVE_GROUP": 21, "IPV6_ROUTER_ALERT": 22, "IPV6_MULTICAST_ALL": 29, "IPV6_ROUTER_ALERT_ISOLATE": 30,
        }, _NO_STREAM, "",
    ),
)  # fmt: skip

#: (level, option) -> what is done about it.
REFUSED_BY_LINUX: Mapping[tuple[int, int], Refusal] = MappingProxyType(
    {(entry.level, entry.option): entry for entry in _TABLE}
)

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
