"""Why a socket of the kernel's is plain TCP: what can be known, and no more than that.

The kernel keeps no reason per connection. What is certain is read off the descriptor; the rest are the kernel's counters,
which belong to the whole namespace.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from mptcp.kernel import features, sockopt
from mptcp.kernel.features import IPPROTO_MPTCP
from mptcp.kernel.namespace import NetNamespace

NOT_ASKED: Final = "multipath was not asked for"
CLIENT_WITHOUT_MPTCP: Final = "the SYN carried no MP_CAPABLE"
NEVER_MPTCP: Final = f"{NOT_ASKED}, or {CLIENT_WITHOUT_MPTCP}"
PEER_WITHOUT_MPTCP: Final = (
    "the SYN/ACK carried no MP_CAPABLE: the peer has no MPTCP, or a middlebox removed the option"
)
UNKNOWN: Final = "the connection was or became plain TCP; the kernel keeps no reason"

#: Counter (MPTcpExt of /proc/net/netstat) -> what it counts, as far as it makes connections plain TCP.
_BEFORE_ESTABLISHED: Final = {
    "MPCapableFallbackSYNACK": PEER_WITHOUT_MPTCP,
    "MPCapableFallbackACK": "the third packet of the handshake carried no MP_CAPABLE",
    "MPCapableSYNTXDrop": "SYNs with MP_CAPABLE got no answer, one without did",
    "MPCapableSYNTXDisabled": (
        "the kernel asks for no MPTCP for a while, since SYNs with MP_CAPABLE vanished before (net.mptcp.blackhole_timeout)"
    ),
    "MPFallbackTokenInit": "no token could be made",
    "MD5SigFallback": "TCP MD5 signatures leave no room for MPTCP",
    "SimultConnectFallback": "both sides connected at the same moment",
}
_AFTER_ESTABLISHED: Final = {
    "MPCapableDataFallback": "the first data came without MP_CAPABLE or a mapping: a middlebox removes options",
    "DssFallback": "data came without a mapping: a middlebox removes options",
    "DSSCorruptionFallback": "a mapping or a data checksum was wrong: a middlebox changes the payload",
    "InfiniteMapRx": "the peer signalled an infinite mapping",
    "MPFailRx": "the peer saw a data checksum fail",
}


def fallback_reason(
    fd: int, namespace: NetNamespace, *, was_multipath: bool = False, accepted: bool | None = None
) -> str:
    """Why the connected socket ``fd`` is plain TCP; "" if it is MPTCP.

    ``was_multipath``: it has been MPTCP; ``accepted``: it came from a listening socket (None: not known). Where the
    namespace's counters leave more than one cause, each is named. Of the two ends, one may have fallen back while the
    other has not noticed.
    """
    try:
        if sockopt.is_mptcp(fd):
            return ""
        protocol = sockopt.protocol(fd)
    except OSError:
        return ""
    if protocol != IPPROTO_MPTCP:
        return {True: CLIENT_WITHOUT_MPTCP, False: NOT_ASKED, None: NEVER_MPTCP}[accepted]
    return reason_of_counters(features.counters(namespace), was_multipath=was_multipath)


def reason_of_counters(counted: Mapping[str, int], *, was_multipath: bool = False) -> str:
    """The causes that a namespace has counted, as one sentence."""
    tables = (_AFTER_ESTABLISHED,) if was_multipath else (_BEFORE_ESTABLISHED, _AFTER_ESTABLISHED)
    for table in tables:
        causes = [sentence for name, sentence in table.items() if counted.get(name)]
        if len(causes) == 1:
            return causes[0]
        if causes:
            return "one of: " + "; ".join(causes) + " (all have been counted in this namespace)"
    return UNKNOWN
