"""SYN cookies (RFC 4987 §3.6): a SYN is answered and nothing is kept; what has to be known later is in the answer.

The initial sequence number holds, as D. J. Bernstein's does, five bits of time, three of the peer's MSS, and 24 that
nobody can compute who has not seen it; half of these do not depend on the peer's number, so that a later segment, whose
number is another, is known to follow a cookie. Where both sides have timestamps, the low bits of ours hold the peer's window
scale, SACK and ECN, as Linux does it; otherwise these options are not used. The MPTCP key is computed from the same
facts: RFC 8684 §3.1 has the client repeat both keys in the third packet for this very reason.
"""

from __future__ import annotations

import hashlib
from typing import Final

from mptcp.core.entropy import Entropy
from mptcp.core.tcp.timestamps import Timestamps
from mptcp.core.units import MILLISECOND, SECOND
from mptcp.core.wire.mptcp_options import Dss, MpCapable
from mptcp.core.wire.segment import CWR, ECE, SYN, Options, Segment
from mptcp.core.wire.sequence import MASK32
from mptcp.info import Endpoint

#: A cookie is good until the end of the period after the one it was made in.
PERIOD_US: Final = 64 * SECOND
#: What is remembered of the peer's MSS: the largest of these that is not larger, at least the first (RFC 9293 §3.7.1).
MSS_TABLE: Final = (536, 1220, 1380, 1440, 1460, 4312, 8960, 65_455)

_SCALE_MASK, _NO_SCALE, _SACK, _ECN = 0x0F, 0x0F, 0x10, 0x20
_LOW_BITS: Final = 0x3F


class Cookie:
    """``syn``: the peer's SYN, as far as it is remembered; answered with these two numbers and this ``clock``, whose
    offset makes our next timestamp what it has to be."""

    __slots__ = ("clock_offset", "isn", "key", "syn")

    def __init__(self, isn: int, key: int, clock_offset: int, syn: Segment) -> None:
        self.isn, self.key, self.clock_offset, self.syn = isn, key, clock_offset, syn


class SynCookies:
    """One per host. Nothing here depends on anything but the secret, the two packets and the time."""

    __slots__ = ("_secret",)

    def __init__(self, entropy: Entropy) -> None:
        self._secret = entropy.octets(32)

    def make(self, local: Endpoint, remote: Endpoint, syn: Segment, timestamps: bool, now: int) -> Cookie:
        """For a SYN that came. ``timestamps``: whether we use them."""
        options = syn.options
        period = now // PERIOD_US
        mss = max((i for i, size in enumerate(MSS_TABLE) if size <= (options.mss or 536)), default=0)
        isn = (period & 31) << 27 | mss << 24 | self._proof(local, remote, syn.seq, period, mss)
        bits = -1
        offset = 0
        if timestamps and options.timestamp_value is not None:
            bits = _NO_SCALE if options.window_scale is None else min(options.window_scale, 14)
            bits |= _SACK if options.sack_permitted else 0
            bits |= _ECN if syn.flags & (ECE | CWR) == ECE | CWR else 0
            own = Timestamps(self._clock_offset(local, remote))
            value = own.value(now) & ~_LOW_BITS | bits
            if (own.value(now) - value) & 0x80000000:
                value -= _LOW_BITS + 1  # never ahead of our clock: the next value must not be smaller
            offset = value - now // MILLISECOND
        reduced = _syn(syn.seq, mss, bits, options.timestamp_value, _capable(syn))
        return Cookie(isn, self._key(local, remote, syn.seq, period), offset, reduced)

    def check(self, local: Endpoint, remote: Endpoint, ack: Segment, timestamps: bool, now: int) -> Cookie | None:
        """For an acknowledgement that belongs to no connection; None: it answers no cookie of ours."""
        isn = (ack.ack - 1) & MASK32
        peer_isn = (ack.seq - 1) & MASK32
        mss = isn >> 24 & 7
        period = _period_of(isn, now)
        if period < 0 or isn & 0xFFFFFF != self._proof(local, remote, peer_isn, period, mss):
            return None
        options = ack.options
        bits = -1
        if timestamps and options.timestamp_value is not None:
            bits = options.timestamp_echo & _LOW_BITS
        capable = _capable(ack)
        if capable is not None:
            # Only version 0 has the key on the SYN.
            key = capable.sender_key if capable.version == 0 else None
            capable = MpCapable(capable.version, capable.flags, key)
        syn = _syn(peer_isn, mss, bits, options.timestamp_value, capable)
        return Cookie(isn, self._key(local, remote, peer_isn, period), self._clock_offset(local, remote), syn)

    def is_early(self, local: Endpoint, remote: Endpoint, ack: Segment, now: int) -> bool:
        """Whether ``ack`` is not the third packet, but comes after it: that one is lost, or was not taken. It comes again,
        as long as nobody resets the connection."""
        isn = (ack.ack - 1) & MASK32
        period = _period_of(isn, now)
        return period >= 0 and isn & 0xFFF000 == self._proof(local, remote, -1, period, isn >> 24 & 7) & 0xFFF000

    def _proof(self, local: Endpoint, remote: Endpoint, peer_isn: int, period: int, mss: int) -> int:
        """24 bits; the lower half depends on the peer's number, too."""
        either = self._hash(b"ends", local, remote, b"%d %d" % (period, mss)) & 0xFFF
        exact = self._hash(b"isn", local, remote, b"%d %d %d" % (peer_isn, period, mss)) & 0xFFF
        return either << 12 | exact

    def _key(self, local: Endpoint, remote: Endpoint, peer_isn: int, period: int) -> int:
        return self._hash(b"key", local, remote, b"%d %d" % (peer_isn, period))

    def _clock_offset(self, local: Endpoint, remote: Endpoint) -> int:
        return self._hash(b"clock", local, remote, b"") & MASK32

    def _hash(self, purpose: bytes, local: Endpoint, remote: Endpoint, text: bytes) -> int:
        ends = b"%b%d>%b%d " % (local.address, local.port, remote.address, remote.port)
        return int.from_bytes(
            hashlib.blake2b(ends + text, key=self._secret, digest_size=8, person=purpose).digest(), "big"
        )


def _period_of(isn: int, now: int) -> int:
    """When the cookie was made, if it is still good; -1."""
    current = now // PERIOD_US
    return next((period for period in (current, current - 1) if period & 31 == isn >> 27), -1)


def lacks_key(ack: Segment) -> bool:
    """Whether it is of an MPTCP connection, but not the packet that repeats the keys: that one is late, or will be sent
    again."""
    return _capable(ack) is None and any(type(option) is Dss for option in ack.options.mptcp)


def _capable(segment: Segment) -> MpCapable | None:
    return next((option for option in segment.options.mptcp if isinstance(option, MpCapable)), None)


def _syn(seq: int, mss: int, bits: int, timestamp: int | None, capable: MpCapable | None) -> Segment:
    """``bits`` < 0: without timestamps, and so without all that they remember."""
    scale = bits & _SCALE_MASK
    options = Options(
        mss=MSS_TABLE[mss],
        window_scale=scale if bits >= 0 and scale != _NO_SCALE else None,
        sack_permitted=bits >= 0 and bool(bits & _SACK),
        timestamp_value=timestamp if bits >= 0 else None,
        mptcp=() if capable is None else (capable,),
    )
    return Segment(seq, 0, SYN | (ECE | CWR if bits >= 0 and bits & _ECN else 0), options=options)
