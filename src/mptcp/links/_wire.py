"""Packets as a wire would show them: super-segments cut, checksums complete; for wrappers that look at packets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from mptcp.core.packet import Packet
from mptcp.core.wire import checksum
from mptcp.core.wire.offload import finish

TCP: Final = 6
#: IPv6 extension headers that are a multiple of 8 octets long (RFC 8200 §4): hop-by-hop, routing, destination options.
EXTENSIONS: Final = (0, 43, 60)


def tcp_offset(data: bytes | bytearray | memoryview) -> int:
    """Where the TCP header of an IP packet starts; 0 if it has none, is a fragment, or is too short to tell."""
    length = len(data)
    if length < 40:
        return 0
    if data[0] >> 4 == 4:
        offset = (data[0] & 15) * 4
        if data[9] != TCP or offset < 20 or data[6] & 0x3F or data[7]:
            return 0
    elif data[0] >> 4 == 6:
        offset, kind = 40, data[6]
        while kind in EXTENSIONS and offset + 2 <= length:
            kind, offset = data[offset], offset + 8 + data[offset + 1] * 8
        if kind != TCP:
            return 0
    else:
        return 0
    return offset if offset + 20 <= length else 0


def _destination(data: bytes | bytearray | memoryview, offset: int) -> bytes:
    """The final destination, which is what the checksum covers (RFC 8200 §8.1): the last segment of a routing header."""
    position, kind = 40, data[6]
    while kind in EXTENSIONS and position < offset:
        if kind == 43 and data[position + 3]:  # segments left
            if data[position + 2] == 4:  # RFC 8754 §2: Segment List[0] is the last segment of the path
                return bytes(data[position + 8 : position + 24])
            break
        kind, position = data[position], position + 8 + data[position + 1] * 8
    return bytes(data[24:40])


def from_device(data: memoryview, gso_size: int) -> Packet:
    """A received TCP packet, whose checksum a device vouched for or left partial, as one to be finished again."""
    offset = tcp_offset(data)
    end = offset + (data[offset + 12] >> 4) * 4 if offset else 0
    if not offset or end < offset + 20 or end > len(data):
        return Packet(bytes(data), (), len(data))
    header = bytearray(data[:end])
    length = len(data) - offset
    if data[0] >> 4 == 4:
        pseudo = checksum.add(header[12:20], TCP + length)
    else:
        pseudo = checksum.add(bytes(header[8:24]) + _destination(data, offset), TCP + length)
    header[offset + 16 : offset + 18] = pseudo.to_bytes(2, "big")
    return Packet(header, (data[end:],), len(data), offset, gso_size, True)


def on_the_wire(packet: Packet) -> Sequence[Packet]:
    """The packets that one packet becomes."""
    return finish(packet) if packet.gso_size or packet.checksum_partial else (packet,)


def received_on_the_wire(data: memoryview, gso_size: int, checksum_valid: bool) -> Sequence[Packet]:
    """The packets that a received one was, as far as can be told."""
    if not gso_size and not checksum_valid:
        return (Packet(bytes(data), (), len(data)),)
    return on_the_wire(from_device(data, gso_size))
