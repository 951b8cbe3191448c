"""What ``supports`` can be asked for: methods, properties and options of sockets by their names, and parts of them."""

from __future__ import annotations

import socket as std

from mptcp.info import Support
from mptcp.kernel.bpf.option_table import OPTIONS as SUBFLOW_OPTIONS
from mptcp.kernel.launch.options import CANDIDATES
from mptcp.sockets import hesmans, multipath_options
from mptcp.sockets.advanced import AdvancedInterface
from mptcp.sockets.kernel_options import REFUSED_BY_LINUX, Treatment

#: What a stack may lack of a method: a way of closing, an argument, a use of the descriptor.
PARTS = frozenset({"events", "half_close", "reset_subflow", "redundancy", "ktls", "segments", "inheritable"})
#: Of each stack's socket, by no common base.
_MEMBERS = frozenset({"fallback_reason", "fate_sharing", "info", "is_multipath"})

#: Options that this package adds.
OWN_OPTIONS = frozenset(
    name
    for module in (hesmans, multipath_options)
    for name in vars(module)
    if name.startswith(("MPTCP_", "TCP_MULTIPATH_"))
)

#: Options of this package's own stack; docs/sockets.md lists them.
USER_OPTIONS = OWN_OPTIONS | {
    "SO_REUSEADDR", "SO_KEEPALIVE", "SO_LINGER", "SO_SNDBUF", "SO_RCVBUF", "SO_SNDBUFFORCE", "SO_RCVBUFFORCE", "SO_RCVLOWAT",
    "SO_RCVTIMEO", "SO_SNDTIMEO", "SO_BINDTODEVICE", "SO_ERROR", "SO_TYPE", "SO_PROTOCOL", "SO_DOMAIN", "SO_ACCEPTCONN",
    "TCP_NODELAY", "TCP_CORK", "TCP_QUICKACK", "TCP_MAXSEG", "TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT",
    "TCP_USER_TIMEOUT", "TCP_SYNCNT", "TCP_LINGER2", "TCP_DEFER_ACCEPT", "TCP_CONGESTION", "TCP_INFO", "TCP_IS_MPTCP",
    "IP_TOS", "IP_TTL", "IPV6_TCLASS", "IPV6_UNICAST_HOPS", "IPV6_V6ONLY",
}  # fmt: skip

#: Names of the standard library that begin as options do, and are none of a stream.
_NO_OPTIONS = frozenset(
    {
        "IP_DEFAULT_MULTICAST_LOOP", "IP_DEFAULT_MULTICAST_TTL", "IP_MAX_MEMBERSHIPS", "IPV6_CHECKSUM", "IPV6_HOPLIMIT",
        "IPV6_NEXTHOP", "IPV6_PATHMTU", "IPV6_PKTINFO", "IPV6_RTHDR_TYPE_0", "SO_PASSCRED", "SO_PASSSEC", "SO_PEERSEC",
    }
)  # fmt: skip
_OF_OTHERS = ("SO_J1939_", "SO_VM_", "TCP_BPF_")

#: What an option's name begins with, and its level.
_LEVELS = {"SO_": std.SOL_SOCKET, "TCP_": std.IPPROTO_TCP, "IP_": std.IPPROTO_IP, "IPV6_": std.IPPROTO_IPV6}

#: Options of Linux that have a name here; others go to the kernel by their numbers.
_SYSTEM_OPTIONS = frozenset(
    name
    for name in (
        *dir(std), "TCP_IS_MPTCP", "SO_SNDBUFFORCE", "SO_RCVBUFFORCE", *CANDIDATES.values(),
        *(option.label for option in SUBFLOW_OPTIONS), *(entry.name for entry in REFUSED_BY_LINUX.values()),
    )
    if name.startswith(tuple(_LEVELS)) and not name.startswith(_OF_OTHERS) and name not in _NO_OPTIONS
)  # fmt: skip
#: Some options have two names.
_REFUSED = {entry.name: entry for entry in REFUSED_BY_LINUX.values()}
_REFUSED |= {
    name: REFUSED_BY_LINUX[level, getattr(std, name)]
    for prefix, level in _LEVELS.items()
    for name in _SYSTEM_OPTIONS
    if name.startswith(prefix) and (level, getattr(std, name, -1)) in REFUSED_BY_LINUX
}


def is_known(feature: str) -> bool:
    """Whether there is a method, a property, an option or a part of that name, on any stack."""
    is_member = hasattr(AdvancedInterface, feature) or (hasattr(std.socket, feature) and feature != "sendmsg_afalg")
    return (is_member and not feature.startswith("_")) or feature in PARTS | _MEMBERS | OWN_OPTIONS | _SYSTEM_OPTIONS


def unknown(feature: str) -> Support:
    return Support(False, f"{feature!r} is nothing this package knows of")


def user_option(feature: str) -> Support:
    """Of an option, on the user-space stack; of anything else: yes."""
    if feature in USER_OPTIONS or feature not in _SYSTEM_OPTIONS:
        return Support(True)
    return Support(False, f"the user-space stack has no {feature}", "use the kernel's stack")


def refused_option(feature: str) -> Support:
    """Of an option, on an MPTCP socket of the kernel; of anything else: yes."""
    entry = _REFUSED.get(feature)
    if entry is None or entry.treatment is not Treatment.REFUSED:
        return Support(True)
    return Support(False, entry.why, entry.instead or "use TCP, or leave it out")
