"""The Internet checksum (RFC 1071): folded one's-complement sums of 16-bit words.

A *sum* here is an integer 0..65535, not complemented. 0 comes only from octets that are all zero, as from an adder that
folds carries; so ``complement`` gives the very octets other stacks send. One big integer modulo 65,535 is that sum,
because 2**16 is 1 modulo 65,535: of all ways to do it in Python this was the quickest one measured.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from mptcp.core.wire.segment import Payload

_from_bytes = int.from_bytes

#: Octets turned into one integer at a time: additions of such integers are cheaper than one division of a long one.
_CHUNK: Final = 4096
_MASK_2048: Final = (1 << 8 * 2048) - 1
_MASK_1024: Final = (1 << 8 * 1024) - 1
_MASK_512: Final = (1 << 8 * 512) - 1
_MASK_256: Final = (1 << 8 * 256) - 1


def add(data: bytes | bytearray | memoryview, initial: int = 0) -> int:
    """The sum of ``initial`` (a sum, or any integer >= 0) and ``data``, which starts at an even position.

    RFC 1071 §2: an odd last octet counts as if a zero followed it.
    """
    count = len(data)
    if count <= 512:
        total = _from_bytes(data, "big")
    else:
        total = 0
        start = 0
        while count - start > _CHUNK:
            total += _from_bytes(data[start : start + _CHUNK], "big")
            start += _CHUNK
        # Chunks are even, so only the last one is shorter; aligned at the right end, as 2**8 * 2**8 = 1.
        if start:
            if count & 1:
                total <<= 8
            total += _from_bytes(data[start:], "big")
            total = (total >> 8 * 2048) + (total & _MASK_2048)
            total = (total >> 8 * 1024) + (total & _MASK_1024)
        else:
            total = _from_bytes(data, "big")
            if count > 1024:
                total = (total >> 8 * 1024) + (total & _MASK_1024)
        total = (total >> 8 * 512) + (total & _MASK_512)
        total = (total >> 8 * 256) + (total & _MASK_256)
    if count & 1:
        total <<= 8
    total += initial
    return total % 65535 or (65535 if total else 0)


def add_views(views: Iterable[Payload], initial: int = 0) -> int:
    """The sum over buffers that follow one another, of any lengths, the first at an even position."""
    total = initial
    odd = False
    for view in views:
        part = add(view)
        if odd:
            # RFC 1071 §2(B): the sum of octets one place further is the sum with its two octets swapped.
            part = (part & 0xFF) << 8 | part >> 8
        total += part
        odd ^= bool(len(view) & 1)
    return total % 65535 or (65535 if total else 0)


def fold(total: int) -> int:
    """Any integer >= 0, read as 16-bit words, as a sum."""
    return total % 65535 or (65535 if total else 0)


def complement(total: int) -> int:
    """What goes into the checksum field for the sum ``total``."""
    return ~total & 0xFFFF


def pseudo_sum(source: bytes, destination: bytes, protocol: int) -> int:
    """The sum of the pseudo-header (RFC 9293 §3.1, RFC 8200 §8.1) without the length, which the caller adds.

    With a routing header ``destination`` is the final one.
    """
    return (_from_bytes(source, "big") + _from_bytes(destination, "big") + protocol) % 65535 or 65535


def verify_tcp(data: memoryview, offset: int, end: int, pseudo: int) -> bool:
    """Whether the transport octets ``data[offset:end]`` sum up with the pseudo-header (``pseudo_sum``) to zero.

    For TCP and ICMPv6 alike.
    """
    return add(data[offset:end], pseudo + end - offset) == 65535


def update(checksum: int, old: int, new: int) -> int:
    """The checksum field after a 16-bit word (or any even-aligned integer) changes from ``old`` to ``new``.

    RFC 1624 §3, equation 3: HC' = ~(~HC + ~m + m').
    """
    total = (~checksum & 0xFFFF) + (-old % 65535) + new
    return ~(total % 65535 or (65535 if total else 0)) & 0xFFFF
