"""How much of the 40 octets of a header's options is taken, and what is left for SACK blocks."""

from __future__ import annotations

from typing import Final

from mptcp.core.wire.mptcp_options import MptcpOption, padded_length

#: RFC 9293 §3.1: the data offset counts to 15 words, five of which are the fixed header.
MAX_OPTION_BYTES: Final = 40
#: NOP NOP kind length, and each block: RFC 2018 §3.
SACK_HEADER_BYTES: Final = 4
SACK_BLOCK_BYTES: Final = 8


def padded_bytes(options: tuple[MptcpOption, ...]) -> int:
    """What these take together in a header, each padded to whole words."""
    return sum(map(padded_length, options))


def sack_blocks_that_fit(room: int) -> int:
    return (room - SACK_HEADER_BYTES) // SACK_BLOCK_BYTES if room >= SACK_HEADER_BYTES + SACK_BLOCK_BYTES else 0
