"""The values that cross the boundary between codec and protocol: a TCP segment and its options.

Numbers here are as on the wire (32 bits for ``seq`` and ``ack``); the connection unwraps them with ``sequence``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mptcp.core.wire.mptcp_options import MptcpOption

FIN, SYN, RST, PSH, ACK, URG, ECE, CWR, AE = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0x40, 0x80, 0x100

NOT_ECT, ECT1, ECT0, CE = 0, 1, 2, 3  # the two ECN bits of the IP header (RFC 3168 §5)

Payload = bytes | memoryview


class Options:
    """The TCP options of one segment. ``None``, ``()`` or ``False`` mean: not there."""

    __slots__ = (
        "fast_open",
        "mptcp",
        "mss",
        "sack_blocks",
        "sack_permitted",
        "timestamp_echo",
        "timestamp_value",
        "unknown",
        "user_timeout",
        "window_scale",
    )

    def __init__(
        self,
        *,
        mss: int | None = None,
        window_scale: int | None = None,
        sack_permitted: bool = False,
        sack_blocks: tuple[tuple[int, int], ...] = (),  # (left, right) wire numbers, most recent first; D-SACK is first
        timestamp_value: int | None = None,
        timestamp_echo: int = 0,
        user_timeout: int | None = None,  # the raw 16 bits of RFC 5482
        fast_open: bytes | None = None,  # cookie; b"" is a request (RFC 7413)
        mptcp: tuple[MptcpOption, ...] = (),
        unknown: tuple[tuple[int, bytes], ...] = (),  # (kind, content without kind and length)
    ) -> None:
        self.mss = mss
        self.window_scale = window_scale
        self.sack_permitted = sack_permitted
        self.sack_blocks = sack_blocks
        self.timestamp_value = timestamp_value
        self.timestamp_echo = timestamp_echo
        self.user_timeout = user_timeout
        self.fast_open = fast_open
        self.mptcp = mptcp
        self.unknown = unknown

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Options) and all(getattr(self, n) == getattr(other, n) for n in self.__slots__)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        shown = [f"{n}={getattr(self, n)!r}" for n in self.__slots__ if getattr(self, n) not in (None, (), False)]
        return f"Options({', '.join(shown)})"


NO_OPTIONS = Options()


class Segment:
    """One TCP segment: parsed from a packet, or to be emitted into one.

    ``payload`` is one buffer when received; when sent it may be several (``payloads``), never joined by the core.
    ``length`` is the number of payload octets. ``mss`` > 0 on a sent segment longer than that asks for segmentation
    into pieces of ``mss`` octets (offload); on a received one it says that the device coalesced pieces of that size.
    """

    __slots__ = ("ack", "ecn", "flags", "length", "mss", "options", "payloads", "seq", "urgent_pointer", "window")

    def __init__(
        self,
        seq: int = 0,
        ack: int = 0,
        flags: int = ACK,
        window: int = 0,  # the 16 bits of the header, unscaled
        options: Options = NO_OPTIONS,
        payloads: Sequence[Payload] = (),
        length: int = -1,
        ecn: int = NOT_ECT,
        urgent_pointer: int = 0,
        mss: int = 0,
    ) -> None:
        self.seq = seq
        self.ack = ack
        self.flags = flags
        self.window = window
        self.options = options
        self.payloads = payloads
        self.length = length if length >= 0 else sum(map(len, payloads))
        self.ecn = ecn
        self.urgent_pointer = urgent_pointer
        self.mss = mss

    @property
    def payload(self) -> bytes:
        """All payload octets, joined: for tests and printers."""
        return b"".join(self.payloads)

    @property
    def sequence_length(self) -> int:
        """Payload octets, plus one each for SYN and FIN (RFC 9293 §3.4)."""
        return self.length + (self.flags & 1) + (self.flags >> 1 & 1)
