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
NO_MAPPING: Final = "data came without a mapping: a middlebox removes options, or the peer has fallen back"
CHECKSUM: Final = "a data checksum failed: a middlebox changes the payload"
INFINITE_MAPPING: Final = "the peer signalled an infinite mapping"

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
#: Those of connections that were MPTCP before; ``_causes_in_data`` has the others.
_AFTER_ESTABLISHED: Final = {
    "MPCapableDataFallback": (
        "the first data came without MP_CAPABLE or a mapping: a middlebox removes options, or the peer has fallen back"
    ),
    "DSSCorruptionFallback": "a mapping was wrong: a middlebox changes the payload",
    # Counted when the kernel, having received MP_FAIL, falls back.
    "InfiniteMapTx": "the peer saw a data checksum fail",
}


def fallback_reason(
    fd: int,
    namespace: NetNamespace,
    *,
    was_multipath: bool = False,
    accepted: bool | None = None,
    before: Mapping[str, int] | None = None,
) -> str:
    """Why the connected socket ``fd`` is plain TCP; "" if it is MPTCP.

    ``was_multipath``: it has been MPTCP, and ``before`` are the namespace's counters of that time; ``accepted``: it came
    from a listening socket (None: not known). Where the counters leave more than one cause, each is named. Of the two ends,
    one may have fallen back while the other has not noticed.
    """
    try:
        if sockopt.is_mptcp(fd):
            return ""
        protocol = sockopt.protocol(fd)
    except OSError:
        return ""
    if protocol != IPPROTO_MPTCP:
        return {True: CLIENT_WITHOUT_MPTCP, False: NOT_ASKED, None: NEVER_MPTCP}[accepted]
    counted = features.counters(namespace)
    if was_multipath and before is not None:
        reason = reason_of_counters(difference(counted, before), was_multipath=True)
        if reason != UNKNOWN:
            return reason
    return reason_of_counters(counted, was_multipath=was_multipath)


def reason_of_counters(counted: Mapping[str, int], *, was_multipath: bool = False) -> str:
    """The causes that a namespace has counted, as one sentence."""
    causes = [] if was_multipath else [sentence for name, sentence in _BEFORE_ESTABLISHED.items() if counted.get(name)]
    if not causes:
        causes = [sentence for name, sentence in _AFTER_ESTABLISHED.items() if counted.get(name)]
        causes += _causes_in_data(counted)
    if len(causes) > 1:
        return "one of: " + "; ".join(causes) + " (all have been counted in this namespace)"
    return causes[0] if causes else UNKNOWN


def _causes_in_data(counted: Mapping[str, int]) -> list[str]:
    """What an end has counted that falls back for what it has received."""
    infinite = counted.get("InfiniteMapRx", 0)
    # An infinite mapping counts as a missing one, too (Linux 6.17).
    missing = max(0, counted.get("DssFallback", 0) - infinite)
    # After a wrong checksum what follows is one of the two: RFC 8684 §3.7 has the peer answer MP_FAIL with an infinite
    # mapping, Linux takes data without any as well, and at once if it was the first data. Else the subflow is reset.
    failed = max(0, counted.get("DataCsumErr", 0) - counted.get("MPRstTx", 0))
    causes = [CHECKSUM] if failed and infinite + missing else []
    if infinite + missing > failed:
        causes += [NO_MAPPING] if missing else []
        causes += [INFINITE_MAPPING] if infinite else []
    return causes


def difference(counted: Mapping[str, int], before: Mapping[str, int]) -> dict[str, int]:
    """What has been counted since."""
    return {name: value - before.get(name, 0) for name, value in counted.items()}


def fallbacks(counted: Mapping[str, int]) -> int:
    """A figure that grows whenever a connection of the namespace falls back."""
    return sum(value for name, value in counted.items() if "Fallback" in name or "InfiniteMap" in name)


def resets(counted: Mapping[str, int]) -> int:
    """A figure that grows whenever this side resets a subflow of the namespace."""
    return counted.get("MPRstTx", 0)
