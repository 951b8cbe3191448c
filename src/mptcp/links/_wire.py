"""Packets as a wire would show them: super-segments cut, checksums complete; for wrappers that look at packets."""

from __future__ import annotations

from mptcp.core.packet import Packet
from mptcp.core.wire import checksum, ip
from mptcp.core.wire.offload import finish


def from_device(data: memoryview, gso_size: int) -> Packet | None:
    """A received TCP packet, whose checksum a device vouched for or left partial, as one to be finished anew.

    None if there is no whole TCP header in it (another protocol, a fragment, nonsense).
    """
    header = ip.parse(data)
    if header is None or header.protocol != ip.TCP or header.is_fragment:
        return None
    offset, end = header.transport_offset, header.end
    if offset + 20 > end:
        return None
    start = offset + (data[offset + 12] >> 4) * 4
    if not offset + 20 <= start <= end:
        return None
    head = bytearray(data[:start])
    total = checksum.pseudo_sum(header.source, header.final_destination, ip.TCP) + end - offset
    head[offset + 16 : offset + 18] = checksum.fold(total).to_bytes(2, "big")
    if gso_size >= end - start:
        gso_size = 0
    return Packet(head, (data[start:end],) if end > start else (), end, offset, gso_size, True)


def received_on_the_wire(data: memoryview, gso_size: int, checksum_valid: bool) -> list[bytes]:
    """The packets that a received one was before a device merged them, as far as can be told."""
    if gso_size or checksum_valid:
        packet = from_device(data, gso_size)
        if packet is not None:
            return finish(packet)
    return [bytes(data)]
