"""An IP packet on its way to a link: a header, and views on what the application wrote."""

from __future__ import annotations

from collections.abc import Sequence

from mptcp.core.wire.segment import Payload


class Packet:
    """One IP packet, not joined: ``header`` (IP and TCP headers) then ``payloads``.

    The transport checksum field holds the folded, *not complemented* sum of the pseudo-header (what
    ``VIRTIO_NET_HDR_F_NEEDS_CSUM`` expects) when ``checksum_partial``; the checksum then starts at
    ``transport_offset``. ``gso_size`` > 0: a TCP super-segment to be cut into pieces of that many payload octets.
    Links without such a device pass packets through ``mptcp.core.wire.offload.finish``.
    """

    __slots__ = ("checksum_partial", "gso_size", "header", "length", "payloads", "transport_offset")

    def __init__(
        self,
        header: bytes | bytearray,
        payloads: Sequence[Payload] = (),
        length: int = 0,  # header and payloads together
        transport_offset: int = 20,
        gso_size: int = 0,
        checksum_partial: bool = False,
    ) -> None:
        self.header = header
        self.payloads = payloads
        self.length = length
        self.transport_offset = transport_offset
        self.gso_size = gso_size
        self.checksum_partial = checksum_partial

    def __bytes__(self) -> bytes:
        """The octets as they are (checksum not completed, not segmented)."""
        return b"".join((self.header, *self.payloads))
