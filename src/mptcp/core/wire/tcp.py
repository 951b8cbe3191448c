"""The TCP header (RFC 9293 §3.1): from octets to ``Segment`` and back."""

from __future__ import annotations

from struct import Struct
from typing import Final

from mptcp.core.wire import options as tcp_options
from mptcp.core.wire.checksum import add, add_views
from mptcp.core.wire.segment import NO_OPTIONS, NOT_ECT, Segment

HEADER_OCTETS: Final = 20
CHECKSUM_OFFSET: Final = 16  # of the checksum field, in the header

_WITHOUT_PORTS = Struct("!4xIIHH2xH")
_HEADER = Struct("!HHIIHHHH")


def parse(data: memoryview, offset: int, end: int) -> Segment | None:
    """The segment in ``data[offset:end]``, its payload a view on ``data``; None if it is malformed.

    The ports are read, and the checksum is verified, by the host (``checksum.verify_tcp``); so is ``ecn`` set, from the
    IP header.
    """
    if end - offset < 20:
        return None
    seq, ack, bits, window, urgent_pointer = _WITHOUT_PORTS.unpack_from(data, offset)
    start = offset + (bits >> 10 & 0x3C)
    if start > end or bits < 0x5000:
        return None
    flags = bits & 0x1FF
    if bits < 0x6000:
        options = NO_OPTIONS
    else:
        parsed = tcp_options.parse(data, offset + 20, start, flags)
        if parsed is None:
            return None
        options = parsed
    length = end - start
    return Segment(
        seq, ack, flags, window, options, (data[start:end],) if length else (), length, NOT_ECT, urgent_pointer
    )


def emit(segment: Segment, source_port: int, destination_port: int, pseudo_sum: int, *, partial: bool) -> bytes:
    """Header and options of ``segment``, for its payload to follow.

    ``pseudo_sum`` comes from ``checksum.pseudo_sum``. ``partial``: the checksum field holds the sum of the pseudo-header
    with the length, not complemented, for a device or ``offload.finish`` to complete; else the checksum is there.
    """
    flags = segment.flags
    options = tcp_options.emit(segment.options, flags)
    count = len(options)
    bits = 20 + count << 10 | flags
    seq = segment.seq
    ack = segment.ack
    window = segment.window
    total = pseudo_sum + 20 + count + segment.length
    if partial:
        checksum = total % 65535 or 65535
    else:
        # 2**16 is 1 modulo 65,535: a 32-bit field counts as the sum of its halves.
        total += source_port + destination_port + seq + ack + bits + window + segment.urgent_pointer
        if count:
            total += int.from_bytes(options, "big")
        payloads = segment.payloads
        if payloads:
            total += add(payloads[0]) if len(payloads) == 1 else add_views(payloads)
        checksum = 65535 - (total % 65535 or 65535)
    return (
        _HEADER.pack(source_port, destination_port, seq, ack, bits, window, checksum, segment.urgent_pointer) + options
    )
