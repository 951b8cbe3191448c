"""IPv4 (RFC 791) and IPv6 (RFC 8200) headers, the Segment Routing Header (RFC 8754) among them."""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct
from typing import Final

HOP_BY_HOP, TCP, IPV6, ROUTING, FRAGMENT, ICMPV6, NO_NEXT_HEADER, DESTINATION_OPTIONS = 0, 6, 41, 43, 44, 58, 59, 60
ICMP: Final = 1
SEGMENT_ROUTING: Final = 4  # the routing type of RFC 8754

#: Extension headers that ``parse`` follows before it calls the chain malformed.
MAX_EXTENSION_HEADERS: Final = 8
#: Segments of an SRH that ``parse`` reads: what an extension header of 2,048 octets can hold.
MAX_SEGMENTS: Final = 127

_IPV4 = Struct("!BBHHHBBH4s4s")
_IPV6 = Struct("!IHBB16s16s")
_SRH_START = Struct("!BBBBBBH")

_DONT_FRAGMENT: Final = 0x4000
_MORE_OR_OFFSET: Final = 0x3FFF


class IpHeader:
    """What a host needs of an IP header: numbers as on the wire, addresses packed.

    The transport's octets are ``data[transport_offset:end]``; for a fragment they are but a part. ``destination`` is
    the header's. With a Segment Routing Header ``segments`` is its list in the order of travel, the final destination
    last, and ``segments_left`` says how many of them are still to be visited: unless 0, the packet has not arrived.
    """

    __slots__ = (
        "destination",
        "dont_fragment",
        "ecn",
        "end",
        "fragment_offset",
        "hop_limit",
        "identification",
        "is_fragment",
        "protocol",
        "segments",
        "segments_left",
        "source",
        "traffic_class",
        "transport_offset",
        "version",
    )

    def __init__(
        self,
        version: int,
        source: bytes,
        destination: bytes,
        protocol: int,
        transport_offset: int,
        end: int,
        traffic_class: int = 0,
        hop_limit: int = 64,
        is_fragment: bool = False,
        dont_fragment: bool = False,
        identification: int = 0,
        fragment_offset: int = 0,  # octets
        segments: tuple[bytes, ...] = (),
        segments_left: int = 0,
    ) -> None:
        self.version = version
        self.source = source
        self.destination = destination
        self.protocol = protocol
        self.transport_offset = transport_offset
        self.end = end
        self.traffic_class = traffic_class
        self.ecn = traffic_class & 3
        self.hop_limit = hop_limit
        self.is_fragment = is_fragment
        self.dont_fragment = dont_fragment
        self.identification = identification
        self.fragment_offset = fragment_offset
        self.segments = segments
        self.segments_left = segments_left

    @property
    def final_destination(self) -> bytes:
        """The one that counts for the pseudo-header of TCP and ICMPv6 (RFC 8200 §8.1)."""
        return self.segments[-1] if self.segments_left and self.segments else self.destination


def parse(data: memoryview) -> IpHeader | None:
    """The IP header at the start of ``data``; None if it is malformed, cut short or (IPv4) has a bad checksum.

    Octets after the length that the header states are ignored (``end``): links pad short frames. Never raises.
    """
    if len(data) < 20:
        return None
    first = data[0]
    if first == 0x45:
        _, tos, total, identification, fragment, ttl, protocol, _, source, destination = _IPV4.unpack_from(data)
        # RFC 1122 §3.2.1.2: "A host MUST verify the IP header checksum on every received datagram and silently discard
        # every datagram that has a bad checksum."
        if total < 20 or total > len(data) or int.from_bytes(data[:20], "big") % 65535:
            return None
        return IpHeader(
            4,
            source,
            destination,
            protocol,
            20,
            total,
            tos,
            ttl,
            fragment & _MORE_OR_OFFSET != 0,
            fragment & _DONT_FRAGMENT != 0,
            identification,
            (fragment & 0x1FFF) << 3,
        )
    if first >> 4 == 6:
        return _parse_ipv6(data)
    if first >> 4 == 4:
        return _parse_ipv4_with_options(data)
    return None


def _parse_ipv4_with_options(data: memoryview) -> IpHeader | None:
    first, tos, total, identification, fragment, ttl, protocol, _, source, destination = _IPV4.unpack_from(data)
    count = (first & 0xF) << 2
    if not 20 < count <= total <= len(data) or int.from_bytes(data[:count], "big") % 65535:
        return None
    is_fragment = fragment & _MORE_OR_OFFSET != 0
    dont_fragment = fragment & _DONT_FRAGMENT != 0
    offset = (fragment & 0x1FFF) << 3
    return IpHeader(
        4, source, destination, protocol, count, total, tos, ttl, is_fragment, dont_fragment, identification, offset
    )


def _parse_ipv6(data: memoryview) -> IpHeader | None:
    if len(data) < 40:
        return None
    word, payload_octets, protocol, hop_limit, source, destination = _IPV6.unpack_from(data)
    end = 40 + payload_octets
    if end > len(data):
        return None
    header = IpHeader(6, source, destination, protocol, 40, end, word >> 20 & 0xFF, hop_limit, False, True)
    if protocol in _EXTENSIONS and not _parse_extensions(data, header):
        return None
    return header


_EXTENSIONS: Final = frozenset((HOP_BY_HOP, ROUTING, FRAGMENT, DESTINATION_OPTIONS))


def _parse_extensions(data: memoryview, header: IpHeader) -> bool:
    """Follows the chain and sets what it finds; False if the chain is broken."""
    position = 40
    end = header.end
    kind = header.protocol
    for count in range(MAX_EXTENSION_HEADERS + 1):
        if kind not in _EXTENSIONS:
            header.protocol = kind
            header.transport_offset = position
            return True
        if count == MAX_EXTENSION_HEADERS or position + 8 > end:
            return False
        if kind == FRAGMENT:
            octets = 8
            word = data[position + 2] << 8 | data[position + 3]
            header.identification = int.from_bytes(data[position + 4 : position + 8], "big")
            header.fragment_offset = word & 0xFFF8
            # RFC 8200 §4.5 (and RFC 6946): a fragment header with offset 0 and no M flag is a whole packet.
            if word & 0xFFF9:
                header.is_fragment = True
            if word & 0xFFF8:
                # Not the first fragment: what follows is the middle of something, no header.
                header.protocol = data[position]
                header.transport_offset = position + 8
                return True
        else:
            # RFC 8200 §4.1: the Hop-by-Hop Options header "is restricted to appear immediately after an IPv6 header only"
            if kind == HOP_BY_HOP and count:
                return False
            octets = data[position + 1] + 1 << 3
            if position + octets > end:
                return False
            if kind == ROUTING and not _parse_routing(data, position, octets, header):
                return False
        kind = data[position]
        position += octets
    return False


def _parse_routing(data: memoryview, position: int, octets: int, header: IpHeader) -> bool:
    segments_left = data[position + 3]
    header.segments_left = segments_left
    if data[position + 2] != SEGMENT_ROUTING:
        # RFC 8200 §4.4: an unknown type is ignored "If Segments Left is zero"; the host looks at ``segments_left``.
        return True
    # RFC 8754 §4.3.1.1 S02: "If Segments Left is equal to zero { Proceed to process the next header"; else S10: "If
    # ((Last Entry > max_last_entry) or (Segments Left is greater than (Last Entry+1))" the packet is discarded. One
    # more than the last entry is the first segment of a reduced SRH, which is not in the list (§4.1.1).
    last_entry = data[position + 4]
    if last_entry > (data[position + 1] >> 1) - 1:
        return segments_left == 0
    if segments_left > last_entry + 1:
        return False
    start = position + 8
    header.segments = tuple(
        bytes(data[start + 16 * entry : start + 16 * entry + 16]) for entry in range(last_entry, -1, -1)
    )
    return True


def emit_ipv4(
    source: bytes,
    destination: bytes,
    transport_length: int,
    *,
    identification: int = 0,
    hop_limit: int = 64,
    traffic_class: int = 0,
    dont_fragment: bool = True,
    protocol: int = 6,
    fragment_offset: int = 0,
    more_fragments: bool = False,
    options: bytes = b"",
) -> bytes:
    """An IPv4 header with its checksum, for ``transport_length`` octets to follow. ``fragment_offset`` in octets;
    ``options`` a multiple of four octets, 40 at most."""
    head = 0x4500 + (len(options) << 6) | traffic_class
    total = 20 + len(options) + transport_length
    fragment = (_DONT_FRAGMENT if dont_fragment else 0) | (0x2000 if more_fragments else 0) | fragment_offset >> 3
    checksum = head + total + identification + fragment + (hop_limit << 8) + protocol
    checksum += int.from_bytes(source, "big") + int.from_bytes(destination, "big")
    if options:
        assert len(options) <= 40
        assert not len(options) & 3
        checksum += int.from_bytes(options, "big")
    return (
        _IPV4.pack(
            head >> 8,
            traffic_class,
            total,
            identification,
            fragment,
            hop_limit,
            protocol,
            65535 - (checksum % 65535 or 65535),
            source,
            destination,
        )
        + options
    )


def emit_ipv6(
    source: bytes,
    destination: bytes,
    transport_length: int,
    *,
    next_header: int = 6,
    hop_limit: int = 64,
    traffic_class: int = 0,
    flow_label: int = 0,
    segments: Sequence[bytes] = (),
) -> bytes:
    """An IPv6 header for ``transport_length`` octets to follow; with ``segments`` a Segment Routing Header after it.

    ``segments`` are to be visited in this order, then comes ``destination`` (which the last of them may be already).
    The pseudo-header of the transport takes ``destination``, the final one.
    """
    word = 0x60000000 | traffic_class << 20 | flow_label
    if not segments:
        return _IPV6.pack(word, transport_length, next_header, hop_limit, source, destination)
    routing = emit_segment_routing(segments, destination, next_header)
    # RFC 8754 §4.1: "The DA of the packet is set with the value of the first segment."
    length = transport_length + len(routing)
    return _IPV6.pack(word, length, ROUTING, hop_limit, source, segments[0]) + routing


def emit_segment_routing(
    segments: Sequence[bytes], destination: bytes, next_header: int, segments_left: int = -1
) -> bytes:
    """A Segment Routing Header (RFC 8754 §2). ``segments_left`` as at the source, unless given."""
    path = [*segments] if segments[-1] == destination else [*segments, destination]
    assert len(path) <= MAX_SEGMENTS
    last_entry = len(path) - 1
    if segments_left < 0:
        segments_left = last_entry
    # RFC 8754 §4.1: "The first element of the SRH Segment List is the ultimate segment. The second element is the
    # penultimate segment, and so on."
    path.reverse()
    head = _SRH_START.pack(next_header, 2 * len(path), SEGMENT_ROUTING, segments_left, last_entry, 0, 0)
    return head + b"".join(path)


def emit_fragment_header(next_header: int, offset: int, more: bool, identification: int) -> bytes:
    """An IPv6 Fragment header (RFC 8200 §4.5); ``offset`` in octets, a multiple of eight."""
    return bytes((next_header, 0)) + (offset | more).to_bytes(2, "big") + identification.to_bytes(4, "big")
