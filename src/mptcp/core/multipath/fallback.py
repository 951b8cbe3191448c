"""Fallback to regular TCP (RFC 8684 §3.7): the reasons, and the memory of destinations where MPTCP failed (§3.9.3)."""

from __future__ import annotations

from enum import Enum

from mptcp.core.units import SECOND


class FallbackReason(Enum):
    """Why a connection is regular TCP; the value is the sentence shown to a user."""

    NONE = ""
    DISABLED = "multipath was not asked for"
    LEARNED = "multipath failed to this destination a short while ago"
    PEER_WITHOUT_MPTCP = "the SYN/ACK carried no MP_CAPABLE: the peer has no MPTCP, or a middlebox removed the option"
    CLIENT_WITHOUT_MPTCP = "the SYN carried no MP_CAPABLE"
    SYN_UNANSWERED = "SYNs with MP_CAPABLE got no answer, one without did"
    VERSION = "the peer speaks another version of MPTCP"
    BAD_CAPABLE = "the peer's MP_CAPABLE was not acceptable"
    NO_THIRD_ACK = "the third packet of the handshake carried no MP_CAPABLE"
    NO_DATA_ACK = "data was acknowledged without a DATA_ACK: a middlebox removes options"
    NO_MAPPING = "data came without a mapping: a middlebox removes options"
    INFINITE_MAPPING = "the peer signalled an infinite mapping"
    CHECKSUM = "a data checksum failed: a middlebox changes the payload"
    MP_FAIL = "the peer saw a data checksum fail"


#: Destinations remembered at most; the oldest is forgotten.
MAX_REMEMBERED = 4096


class FailureCache:
    """Where MPTCP failed lately: per destination address and interface, with doubling memory."""

    # RFC 8684 §3.9.3: "A host may keep a system-wide cache of such information, so that it can back off from using
    # MPTCP, firstly for that particular destination host and, eventually, on a whole interface"
    __slots__ = ("_entries", "first_us", "longest_us")

    def __init__(self, first_us: int = 60 * SECOND, longest_us: int = 3600 * SECOND) -> None:
        self.first_us = first_us
        self.longest_us = longest_us
        self._entries: dict[tuple[bytes, int], tuple[int, int]] = {}  # (address, interface) -> (expires, failures)

    def failed(self, address: bytes, interface: int, now: int) -> None:
        _, failures = self._entries.pop((address, interface), (0, 0))
        span = min(self.first_us << min(failures, 16), self.longest_us)
        if len(self._entries) >= MAX_REMEMBERED:
            del self._entries[next(iter(self._entries))]
        self._entries[address, interface] = (now + span, failures + 1)

    def worked(self, address: bytes, interface: int) -> None:
        self._entries.pop((address, interface), None)

    def should_avoid(self, address: bytes, interface: int, now: int) -> bool:
        entry = self._entries.get((address, interface))
        return entry is not None and now < entry[0]
