"""ICMP (RFC 792, RFC 1191) and ICMPv6 (RFC 4443) errors about TCP segments: parse and emit."""

from __future__ import annotations

from enum import Enum
from typing import Final

from mptcp.core.wire import ip
from mptcp.core.wire.checksum import add, complement, pseudo_sum, verify_tcp
from mptcp.core.wire.ip import IpHeader

# Types
V4_UNREACHABLE, V4_TIME_EXCEEDED, V4_PARAMETER_PROBLEM = 3, 11, 12
V6_UNREACHABLE, V6_PACKET_TOO_BIG, V6_TIME_EXCEEDED, V6_PARAMETER_PROBLEM = 1, 2, 3, 4

#: An error quotes as much of the packet as leaves it this long (RFC 1812 §4.3.2.3, RFC 4443 §2.4(c)).
MAX_V4_ERROR_OCTETS: Final = 576
MAX_V6_ERROR_OCTETS: Final = 1280

# RFC 1191 §7.1, Table 7-1: what to try when a router does not say its MTU.
_PLATEAUS: Final = (65535, 32000, 17914, 8166, 4352, 2002, 1492, 1006, 508, 296, 68)


class IcmpKind(Enum):
    """What an error says, the same for both versions of IP."""

    NETWORK_UNREACHABLE = "network unreachable"
    HOST_UNREACHABLE = "host unreachable"
    PROTOCOL_UNREACHABLE = "protocol unreachable"
    PORT_UNREACHABLE = "port unreachable"
    PACKET_TOO_BIG = "packet too big"
    SOURCE_ROUTE_FAILED = "source route failed"
    PROHIBITED = "administratively prohibited"
    TIME_EXCEEDED = "time exceeded"
    PARAMETER_PROBLEM = "parameter problem"


_K = IcmpKind

#: RFC 792, RFC 1122 §3.2.2.1, RFC 1812 §5.2.7.1: codes of destination unreachable.
_V4_CODES: Final = {
    0: _K.NETWORK_UNREACHABLE,
    1: _K.HOST_UNREACHABLE,
    2: _K.PROTOCOL_UNREACHABLE,
    3: _K.PORT_UNREACHABLE,
    4: _K.PACKET_TOO_BIG,
    5: _K.SOURCE_ROUTE_FAILED,
    6: _K.NETWORK_UNREACHABLE,  # destination network unknown
    7: _K.HOST_UNREACHABLE,  # destination host unknown
    8: _K.HOST_UNREACHABLE,  # source host isolated
    9: _K.PROHIBITED,  # network
    10: _K.PROHIBITED,  # host
    11: _K.NETWORK_UNREACHABLE,  # for this type of service
    12: _K.HOST_UNREACHABLE,  # for this type of service
    13: _K.PROHIBITED,  # communication
    14: _K.PROHIBITED,  # host precedence violation
    15: _K.PROHIBITED,  # precedence cutoff
}

#: RFC 4443 §3.1 (7: RFC 6554 §4.2): codes of destination unreachable.
_V6_CODES: Final = {
    0: _K.NETWORK_UNREACHABLE,
    1: _K.PROHIBITED,
    2: _K.NETWORK_UNREACHABLE,  # beyond scope of source address
    3: _K.HOST_UNREACHABLE,
    4: _K.PORT_UNREACHABLE,
    5: _K.PROHIBITED,  # source address failed ingress/egress policy
    6: _K.PROHIBITED,  # reject route to destination
    7: _K.SOURCE_ROUTE_FAILED,  # error in source routing header
}

_V4_TYPE_AND_CODE: Final = {
    _K.NETWORK_UNREACHABLE: (3, 0),
    _K.HOST_UNREACHABLE: (3, 1),
    _K.PROTOCOL_UNREACHABLE: (3, 2),
    _K.PORT_UNREACHABLE: (3, 3),
    _K.PACKET_TOO_BIG: (3, 4),
    _K.SOURCE_ROUTE_FAILED: (3, 5),
    _K.PROHIBITED: (3, 13),
    _K.TIME_EXCEEDED: (11, 0),
    _K.PARAMETER_PROBLEM: (12, 0),
}

_V6_TYPE_AND_CODE: Final = {
    _K.NETWORK_UNREACHABLE: (1, 0),
    _K.HOST_UNREACHABLE: (1, 3),
    _K.PROTOCOL_UNREACHABLE: (4, 1),  # unrecognized Next Header type: what ICMPv6 has in its place
    _K.PORT_UNREACHABLE: (1, 4),
    _K.PACKET_TOO_BIG: (2, 0),
    _K.SOURCE_ROUTE_FAILED: (1, 7),
    _K.PROHIBITED: (1, 1),
    _K.TIME_EXCEEDED: (3, 0),
    _K.PARAMETER_PROBLEM: (4, 0),
}


class IcmpError:
    """An ICMP error that quotes a TCP segment.

    ``source``, ``destination`` and the ports are those of the *quoted* segment: for an error about something this host
    sent, the source is local. ``seq`` is its sequence number, as on the wire. ``mtu`` (PACKET_TOO_BIG only) is the next
    hop's; where a router did not say, the next plateau of RFC 1191 below the quoted packet's length.
    ``reporter`` is the address the error came from.
    """

    __slots__ = (
        "code", "destination", "destination_port", "kind", "mtu", "reporter", "seq", "source", "source_port", "type",
    )  # fmt: skip

    def __init__(
        self,
        kind: IcmpKind,
        source: bytes,
        source_port: int,
        destination: bytes,
        destination_port: int,
        seq: int,
        mtu: int = 0,
        icmp_type: int = 0,
        code: int = 0,
        reporter: bytes = b"",
    ) -> None:
        self.kind = kind
        self.source = source
        self.source_port = source_port
        self.destination = destination
        self.destination_port = destination_port
        self.seq = seq
        self.mtu = mtu
        self.type = icmp_type
        self.code = code
        self.reporter = reporter

    def __eq__(self, other: object) -> bool:
        return isinstance(other, IcmpError) and all(getattr(self, n) == getattr(other, n) for n in self.__slots__)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"IcmpError({', '.join(f'{n}={getattr(self, n)!r}' for n in self.__slots__)})"

    @property
    def is_hard(self) -> bool:
        """Whether it is proof rather than a hint: RFC 9293 §3.9.2.2 counts protocol and port unreachable; Linux adds
        prohibited. What it is allowed to do to a connection is TCP's decision."""
        return self.kind in (_K.PROTOCOL_UNREACHABLE, _K.PORT_UNREACHABLE, _K.PROHIBITED)


def classify(version: int, icmp_type: int, code: int) -> IcmpKind | None:
    """What kind of error an ICMP type and code are; None if it is not one that concerns a transport.

    RFC 6633 §2: source quench is ignored. RFC 5927 §4: redirects are not for TCP either.
    """
    if version == 4:
        if icmp_type == V4_UNREACHABLE:
            return _V4_CODES.get(code)
        if icmp_type == V4_TIME_EXCEEDED and code < 2:
            return _K.TIME_EXCEEDED
        return _K.PARAMETER_PROBLEM if icmp_type == V4_PARAMETER_PROBLEM and code < 3 else None
    if icmp_type == V6_UNREACHABLE:
        return _V6_CODES.get(code)
    if icmp_type == V6_PACKET_TOO_BIG:
        # RFC 4443 §3.2: the code is "Set to 0 (zero) by the originator and ignored by the receiver."
        return _K.PACKET_TOO_BIG
    if icmp_type == V6_TIME_EXCEEDED and code < 2:
        return _K.TIME_EXCEEDED
    if icmp_type == V6_PARAMETER_PROBLEM:
        return _K.PROTOCOL_UNREACHABLE if code == 1 else _K.PARAMETER_PROBLEM
    return None


def parse(data: memoryview, header: IpHeader) -> IcmpError | None:
    """The error in the ICMP or ICMPv6 message of a packet whose IP header is ``header``.

    None if it is malformed, its checksum is wrong, or it is no error about a TCP segment. Never raises.
    """
    start = header.transport_offset
    if header.end - start < 8 or header.is_fragment:
        return None
    icmp_type, code = data[start], data[start + 1]
    kind = classify(header.version, icmp_type, code)
    if kind is None:
        return None
    message = data[start : header.end]
    if header.version == 4:
        if header.protocol != ip.ICMP or add(message) != 65535:
            return None
    elif header.protocol != ip.ICMPV6 or not verify_tcp(
        data, start, header.end, pseudo_sum(header.source, header.final_destination, ip.ICMPV6)
    ):
        return None
    quoted = _parse_quote(message[8:], header.version)
    if quoted is None:
        return None
    source, destination, length, transport = quoted
    # RFC 792: "the first 64 bits of the original datagram's data": ports and sequence number, no more is sure.
    if len(transport) < 8:
        return None
    mtu = 0
    if kind is _K.PACKET_TOO_BIG:
        mtu = int.from_bytes(message[6:8] if header.version == 4 else message[4:8], "big")
        if header.version == 4 and mtu == 0:
            # RFC 1191 §5, §7: a router from before that RFC leaves zero; the next plateau down is the likely MTU.
            mtu = next((plateau for plateau in _PLATEAUS if plateau < length), 68)
    return IcmpError(
        kind,
        source,
        transport[0] << 8 | transport[1],
        destination,
        transport[2] << 8 | transport[3],
        int.from_bytes(transport[4:8], "big"),
        mtu,
        icmp_type,
        code,
        header.source,
    )


def _parse_quote(data: memoryview, version: int) -> tuple[bytes, bytes, int, memoryview] | None:
    """Source, final destination, length of the packet and what is there of its TCP header.

    Checked less than a packet: a quote is cut short, and routers may have changed its checksum and length.
    """
    if version == 4:
        if len(data) < 20 or data[0] >> 4 != 4 or data[9] != ip.TCP:
            return None
        count = (data[0] & 0xF) << 2
        # Only a first fragment has a TCP header.
        if count < 20 or (data[6] & 0x1F) << 8 | data[7]:
            return None
        return bytes(data[12:16]), bytes(data[16:20]), data[2] << 8 | data[3], data[count:]
    if len(data) < 40 or data[0] >> 4 != 6:
        return None
    # As if it ended where the quote does: then the chain of extension headers can be followed as in a whole packet.
    whole = bytearray(data)
    payload_octets = len(data) - 40
    if payload_octets > 0xFFFF:
        return None
    whole[4:6] = payload_octets.to_bytes(2, "big")
    header = ip.parse(memoryview(whole))
    if header is None or header.protocol != ip.TCP or header.fragment_offset:
        return None
    length = 40 + (data[4] << 8 | data[5])
    return header.source, header.final_destination, length, data[header.transport_offset :]


def emit(
    kind: IcmpKind,
    packet: bytes | memoryview,
    reporter: bytes,
    *,
    mtu: int = 0,
    code: int | None = None,
    hop_limit: int = 64,
) -> bytes:
    """The IP packet with which ``reporter`` tells the sender of ``packet`` (an IP packet) of an error.

    ``reporter`` must be an address of the packet's family; ``code`` replaces the usual one of ``kind``.
    """
    version = packet[0] >> 4
    if version == 4:
        number, usual_code = _V4_TYPE_AND_CODE[kind]
        quote = bytes(packet[: MAX_V4_ERROR_OCTETS - 28])
        detail = mtu.to_bytes(4, "big") if kind is _K.PACKET_TOO_BIG else bytes(4)
        destination = bytes(packet[12:16])
        total = 0
    else:
        number, usual_code = _V6_TYPE_AND_CODE[kind]
        quote = bytes(packet[: MAX_V6_ERROR_OCTETS - 48])
        detail = mtu.to_bytes(4, "big") if kind is _K.PACKET_TOO_BIG else bytes(4)
        destination = bytes(packet[8:24])
        total = pseudo_sum(reporter, destination, ip.ICMPV6) + 8 + len(quote)
    code = usual_code if code is None else code
    body = detail + quote
    checksum = complement(add(body, total + (number << 8 | code)))
    message = bytes((number, code)) + checksum.to_bytes(2, "big") + body
    if version == 4:
        head = ip.emit_ipv4(
            reporter, destination, len(message), protocol=ip.ICMP, hop_limit=hop_limit, dont_fragment=False
        )
    else:
        head = ip.emit_ipv6(reporter, destination, len(message), next_header=ip.ICMPV6, hop_limit=hop_limit)
    return head + message
