"""How much of the 40 octets of a header's options is taken, and what is left for SACK blocks."""

from __future__ import annotations

from typing import Final

from mptcp.core.wire.mptcp_options import (
    AddAddr,
    Dss,
    MpCapable,
    MpExperimental,
    MpFail,
    MpFastclose,
    MpJoinAck,
    MpJoinSyn,
    MpJoinSynAck,
    MpPrio,
    MptcpOption,
    MpUnknown,
    RemoveAddr,
)

#: RFC 9293 §3.1: the data offset counts to 15 words, five of which are the fixed header.
MAX_OPTION_BYTES: Final = 40
#: NOP NOP kind length, and each block: RFC 2018 §3.
SACK_HEADER_BYTES: Final = 4
SACK_BLOCK_BYTES: Final = 8


def mptcp_option_bytes(option: MptcpOption) -> int:
    """What one option takes, without padding."""
    if isinstance(option, Dss):
        size = 4
        if option.data_ack is not None:
            size += 8 if option.data_ack_wide else 4
        if option.dsn is not None:
            size += (14 if option.dsn_wide else 10) + (2 if option.checksum is not None else 0)
        return size
    if isinstance(option, MpCapable):
        size = 4 + 8 * ((option.sender_key is not None) + (option.receiver_key is not None))
        return size + 2 * ((option.data_length is not None) + (option.checksum is not None))
    if isinstance(option, AddAddr):
        return 4 + len(option.address) + (2 if option.port is not None else 0) + (8 if option.hmac is not None else 0)
    if isinstance(option, RemoveAddr):
        return 3 + len(option.address_ids)
    if isinstance(option, MpPrio):
        return 3 if option.address_id is None else 4
    if isinstance(option, MpJoinAck):
        return 24
    if isinstance(option, MpJoinSyn | MpFail | MpFastclose):
        return 12
    if isinstance(option, MpJoinSynAck):
        return 16
    if isinstance(option, MpExperimental):
        return 3 + len(option.content)
    if isinstance(option, MpUnknown):
        return 2 + len(option.content)
    return 4  # MP_TCPRST


def padded_bytes(options: tuple[MptcpOption, ...]) -> int:
    """What these take together, rounded up to whole words."""
    return (sum(map(mptcp_option_bytes, options)) + 3) & ~3


def sack_blocks_that_fit(room: int) -> int:
    return (room - SACK_HEADER_BYTES) // SACK_BLOCK_BYTES if room >= SACK_HEADER_BYTES + SACK_BLOCK_BYTES else 0
