"""TCP in an IP packet as octets, for boxes on the path that change it.

On purpose not the codec of the stack: a middlebox that shared it could not show its mistakes.
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct

OPTION_END, OPTION_NOP, OPTION_MSS, OPTION_SACK, OPTION_TIMESTAMP, OPTION_MPTCP = 0, 1, 2, 5, 8, 30
TCP_PROTOCOL = 6

_IPV6_EXTENSIONS = frozenset((0, 43, 60))
_SEQ_ACK = Struct("!II")
_U16 = Struct("!H")


def fold(data: bytes) -> int:
    """The ones' complement sum of 16-bit words, folded to 16 bits, not complemented."""
    if len(data) & 1:
        data += b"\0"
    total = int.from_bytes(data, "big")
    # 2**16 is 1 modulo 65535, so the remainder is the folded sum; only "0" has two forms.
    return (total % 0xFFFF or 0xFFFF) if total else 0


class TcpPacket:
    """One IP packet that carries TCP, taken apart: the IP headers, the 20 octets of TCP, its options, its payload."""

    __slots__ = ("header", "network", "options", "payload")

    def __init__(self, network: bytearray, header: bytearray, options: list[tuple[int, bytes]], payload: bytes) -> None:
        self.network = network  # all IP headers
        self.header = header  # the first 20 octets of the TCP header
        self.options = options  # (kind, whole option), without padding
        self.payload = payload

    @classmethod
    def parse(cls, data: bytes) -> TcpPacket | None:
        """None if this is no whole, well-formed TCP packet: a box passes such a packet on as it is."""
        offset = transport_offset(data)
        if offset < 0 or len(data) < offset + 20:
            return None
        data_offset = offset + (data[offset + 12] >> 4) * 4
        if data_offset < offset + 20 or data_offset > len(data):
            return None
        options = split_options(data[offset + 20 : data_offset])
        if options is None:
            return None
        return cls(bytearray(data[:offset]), bytearray(data[offset : offset + 20]), options, bytes(data[data_offset:]))

    def emit(self) -> bytes:
        """The packet with lengths and checksums made right again."""
        octets = b"".join(option for _, option in self.options)
        octets += bytes(-len(octets) % 4)
        header = self.header
        header[12] = (header[12] & 0x0F) | ((20 + len(octets)) >> 2) << 4
        header[16:18] = b"\0\0"
        length = len(header) + len(octets) + len(self.payload)
        network = self.network
        if network[0] >> 4 == 4:
            _U16.pack_into(network, 2, len(network) + length)
            network[10:12] = b"\0\0"
            _U16.pack_into(network, 10, 0xFFFF - fold(bytes(network)))
        else:
            _U16.pack_into(network, 4, len(network) - 40 + length)
        pseudo = pseudo_header(network, length)
        _U16.pack_into(header, 16, 0xFFFF - fold(b"".join((pseudo, header, octets, self.payload))))
        return b"".join((network, header, octets, self.payload))

    def copy(self) -> TcpPacket:
        return TcpPacket(bytearray(self.network), bytearray(self.header), list(self.options), self.payload)

    @property
    def source(self) -> bytes:
        return bytes(self.network[12:16] if self.network[0] >> 4 == 4 else self.network[8:24])

    @source.setter
    def source(self, address: bytes) -> None:
        if len(address) == 4:
            self.network[12:16] = address
        else:
            self.network[8:24] = address

    @property
    def destination(self) -> bytes:
        return bytes(self.network[16:20] if self.network[0] >> 4 == 4 else self.network[24:40])

    @destination.setter
    def destination(self, address: bytes) -> None:
        if len(address) == 4:
            self.network[16:20] = address
        else:
            self.network[24:40] = address

    @property
    def source_port(self) -> int:
        return self.header[0] << 8 | self.header[1]

    @source_port.setter
    def source_port(self, port: int) -> None:
        _U16.pack_into(self.header, 0, port)

    @property
    def destination_port(self) -> int:
        return self.header[2] << 8 | self.header[3]

    @destination_port.setter
    def destination_port(self, port: int) -> None:
        _U16.pack_into(self.header, 2, port)

    @property
    def flags(self) -> int:
        return self.header[13]

    @flags.setter
    def flags(self, flags: int) -> None:
        self.header[13] = flags & 0xFF

    @property
    def seq(self) -> int:
        return int.from_bytes(self.header[4:8], "big")

    @seq.setter
    def seq(self, seq: int) -> None:
        self.header[4:8] = (seq & 0xFFFFFFFF).to_bytes(4, "big")

    @property
    def ack(self) -> int:
        return int.from_bytes(self.header[8:12], "big")

    @ack.setter
    def ack(self, ack: int) -> None:
        self.header[8:12] = (ack & 0xFFFFFFFF).to_bytes(4, "big")

    @property
    def window(self) -> int:
        return self.header[14] << 8 | self.header[15]

    @property
    def sequence_length(self) -> int:
        """Payload octets, plus one each for SYN and FIN."""
        return len(self.payload) + (self.header[13] & 1) + (self.header[13] >> 1 & 1)

    @property
    def flow(self) -> tuple[bytes, int, bytes, int]:
        return self.source, self.source_port, self.destination, self.destination_port

    def has_option(self, kind: int) -> bool:
        return any(found == kind for found, _ in self.options)

    def sack_blocks(self) -> list[tuple[int, int]]:
        for kind, option in self.options:
            if kind == OPTION_SACK:
                count = (len(option) - 2) // 8
                return [_SEQ_ACK.unpack_from(option, 2 + 8 * index) for index in range(count)]
        return []

    def set_sack_blocks(self, blocks: Sequence[tuple[int, int]]) -> None:
        octets = b"".join(_SEQ_ACK.pack(left & 0xFFFFFFFF, right & 0xFFFFFFFF) for left, right in blocks)
        option = bytes((OPTION_SACK, 2 + len(octets))) + octets
        self.options = [(kind, option if kind == OPTION_SACK else old) for kind, old in self.options]


def transport_offset(data: bytes | bytearray | memoryview) -> int:
    """Where the TCP header starts; -1 if the packet is not TCP, is a fragment, or is too short to tell."""
    if len(data) < 20:
        return -1
    if data[0] >> 4 == 4:
        if data[9] != TCP_PROTOCOL or (data[6] & 0x3F) | data[7]:
            return -1
        return (data[0] & 0x0F) * 4
    if data[0] >> 4 != 6 or len(data) < 40:
        return -1
    following, offset = data[6], 40
    while following in _IPV6_EXTENSIONS:
        if len(data) < offset + 8:
            return -1
        following, offset = data[offset], offset + 8 + data[offset + 1] * 8
    return offset if following == TCP_PROTOCOL else -1


def split_options(octets: bytes) -> list[tuple[int, bytes]] | None:
    """(kind, whole option) one by one, NOPs included (boxes that keep options keep their layout); None: malformed."""
    options = []
    offset = 0
    while offset < len(octets):
        kind = octets[offset]
        if kind == OPTION_END:
            break
        if kind == OPTION_NOP:
            options.append((kind, octets[offset : offset + 1]))
            offset += 1
            continue
        if offset + 1 >= len(octets):
            return None
        length = octets[offset + 1]
        if length < 2 or offset + length > len(octets):
            return None
        options.append((kind, octets[offset : offset + length]))
        offset += length
    return options


def pseudo_header(network: bytes | bytearray | memoryview, length: int) -> bytes:
    """RFC 9293 §3.1: addresses, protocol and TCP length. The final destination is in a routing header, if any."""
    if network[0] >> 4 == 4:
        return bytes(network[12:20]) + bytes((0, TCP_PROTOCOL)) + _U16.pack(length)
    destination = bytes(network[24:40])
    following, offset = network[6], 40
    while following in _IPV6_EXTENSIONS and offset + 8 <= len(network):
        # RFC 8754 §2: Segment List[0] is the last segment of the path.
        if following == 43 and network[offset + 2] == 4 and network[offset + 3] and offset + 24 <= len(network):
            destination = bytes(network[offset + 8 : offset + 24])
        following, offset = network[offset], offset + 8 + network[offset + 1] * 8
    return bytes(network[8:24]) + destination + length.to_bytes(4, "big") + bytes((0, 0, 0, TCP_PROTOCOL))


def complete_checksum(data: bytes) -> bytes:
    """The same packet with its TCP checksum computed in full (hosts leave it partial where the path allows that)."""
    offset = transport_offset(data)
    if offset < 0 or len(data) < offset + 20:
        return data
    packet = bytearray(data)
    packet[offset + 16 : offset + 18] = b"\0\0"
    total = fold(pseudo_header(packet, len(packet) - offset) + packet[offset:])
    _U16.pack_into(packet, offset + 16, 0xFFFF - total)
    return bytes(packet)


def checksum_is_valid(data: bytes) -> bool:
    """Whether the TCP checksum of a packet is right; True for what is not TCP."""
    offset = transport_offset(data)
    if offset < 0:
        return True
    return fold(pseudo_header(data, len(data) - offset) + bytes(data[offset:])) == 0xFFFF


def mark_congestion(data: bytes) -> bytes | None:
    """RFC 3168 §5: CE on an ECN-capable packet; None if its transport is not capable of ECN."""
    if data[0] >> 4 == 4:
        if not data[1] & 3:
            return None
        packet = bytearray(data)
        packet[1] |= 3
        size = (packet[0] & 0x0F) * 4
        packet[10:12] = b"\0\0"
        _U16.pack_into(packet, 10, 0xFFFF - fold(bytes(packet[:size])))
        return bytes(packet)
    if not data[1] & 0x30:
        return None
    packet = bytearray(data)
    packet[1] |= 0x30
    return bytes(packet)
