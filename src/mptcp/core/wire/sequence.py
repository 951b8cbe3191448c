"""Sequence numbers: from the 32 (or 64) bits on the wire to plain integers that never wrap, and back."""

MASK32 = 0xFFFFFFFF
MASK64 = 0xFFFFFFFFFFFFFFFF


def unwrap32(wire: int, near: int) -> int:
    """The integer congruent to ``wire`` modulo 2**32 that is nearest to ``near``."""
    return near + ((wire - near + 0x80000000) & 0xFFFFFFFF) - 0x80000000


def unwrap64(wire: int, near: int) -> int:
    """The same for 64-bit data sequence numbers."""
    return near + ((wire - near + 0x8000000000000000) & 0xFFFFFFFFFFFFFFFF) - 0x8000000000000000
