"""Who is where on an Ethernet: ARP (RFC 826) and IPv6 neighbour discovery (RFC 4861 §7), without sockets or clock.

Frames come in by ``handle_arp`` and ``handle_nd``; what has to be sent is taken with ``poll_frames`` (complete Ethernet
frames) and ``poll_released`` (packets that waited for an address, with the header to put before them).
"""

from __future__ import annotations

import ipaddress
import struct
from typing import Final

from mptcp.core.counters import Counters
from mptcp.core.packet import Packet
from mptcp.core.units import SECOND
from mptcp.core.wire import checksum
from mptcp.errors import ConfigurationError
from mptcp.links._bpf import ALL_NODES, ETHERTYPE_ARP, MAX_ADDRESSES, solicited_node

#: Neighbours remembered; the one that has been known longest makes room.
MAX_NEIGHBOURS: Final = 1024
#: Destinations whose next hop is remembered; all are forgotten when there are more.
MAX_DESTINATIONS: Final = 4096
#: Packets that wait for one neighbour's address; the oldest makes room.
WAITING_PACKETS: Final = 32
#: Frames (requests and answers) that wait to be sent; more are not made.
WAITING_FRAMES: Final = 256
#: A request is repeated this often, this many times (RFC 4861 §10: RETRANS_TIMER, MAX_MULTICAST_SOLICIT).
RETRY_US: Final = SECOND
MAX_REQUESTS: Final = 3
#: An address is asked for again, by unicast, when it was confirmed longer ago than this (RFC 4861 §10: REACHABLE_TIME).
REACHABLE_US: Final = 30 * SECOND

BROADCAST: Final = b"\xff" * 6
ARP_REQUEST, ARP_REPLY = 1, 2
ARP: Final = struct.Struct("!HHBBH6s4s6s4s")
ND_SOLICIT, ND_ADVERTISE = 135, 136
SOLICITED, OVERRIDE = 0x40000000, 0x20000000
UNSPECIFIED: Final = bytes(16)


def multicast_hardware(address: bytes) -> bytes:
    """The Ethernet group of a multicast address (RFC 1112 §6.4, RFC 2464 §7)."""
    if len(address) == 4:
        return b"\x01\x00\x5e" + bytes((address[1] & 0x7F,)) + address[2:]
    return b"\x33\x33" + address[12:]


def _icmpv6_sum(source: bytes, destination: bytes, message: bytes) -> int:
    """One's complement sum over pseudo-header and message: 0xFFFF when the checksum in it is right."""
    return checksum.add(source + destination + struct.pack("!II", len(message), 58) + message)


class Neighbour:
    """What is known of one next hop. ``header`` is the Ethernet header towards it, empty while that is not known."""

    __slots__ = ("address", "header", "next_request_us", "requests", "stale_us", "waiting")

    def __init__(self, address: bytes) -> None:
        self.address = address
        self.header = b""
        self.stale_us = 0  # when the hardware address should be confirmed again
        self.requests = 0  # sent since it was last confirmed
        self.next_request_us = 0
        self.waiting: list[Packet] = []


class Neighbours:
    """The neighbour cache of one Ethernet interface, and the answers for the addresses that are ours.

    There is no timer: a request is repeated when ``lookup`` (or ``handle_timeout``) is called again later, as every
    retransmission of TCP does.
    """

    __slots__ = (
        "_by_destination", "_frames", "_gateways", "_neighbours", "_networks", "_released",
        "addresses", "counters", "hardware",
    )  # fmt: skip

    def __init__(self, hardware: bytes, counters: Counters) -> None:
        self.hardware = hardware
        self.counters = counters
        self.addresses: dict[bytes, ipaddress.IPv4Interface | ipaddress.IPv6Interface] = {}
        self._networks: list[tuple[int, int, int]] = []  # (address length, mask, network)
        self._gateways: dict[int, bytes] = {}  # address length: next hop
        self._neighbours: dict[bytes, Neighbour] = {}
        self._by_destination: dict[bytes, Neighbour] = {}
        self._frames: list[bytes] = []
        self._released: list[tuple[bytes, Packet]] = []

    # configuration

    def add_address(self, interface: ipaddress.IPv4Interface | ipaddress.IPv6Interface) -> None:
        """One more address of ours, with its prefix."""
        if len(self.addresses) >= MAX_ADDRESSES:
            raise ConfigurationError(f"a link can have {MAX_ADDRESSES} addresses, not more")
        self.addresses[interface.ip.packed] = interface
        self._changed()

    def remove_address(self, address: bytes) -> None:
        self.addresses.pop(address, None)
        self._changed()

    def set_gateway(self, address: bytes) -> None:
        """The default next hop of its address family."""
        self._gateways[len(address)] = address
        self._changed()

    def _changed(self) -> None:
        self._networks = [
            (len(i.ip.packed), int(i.network.netmask), int(i.network.network_address)) for i in self.addresses.values()
        ]
        self._by_destination.clear()

    # on the way out

    def lookup(self, destination: bytes, now: int) -> bytes:
        """The Ethernet header for a destination; b"" when it is not known yet (a request then goes out) or has no route."""
        neighbour = self._by_destination.get(destination)
        if neighbour is None:
            found = self._neighbour_for(destination)
            if isinstance(found, bytes):
                return found
            neighbour = found
        if not neighbour.header or now >= neighbour.stale_us:
            self._request(neighbour, now)
        return neighbour.header

    def _neighbour_for(self, destination: bytes) -> Neighbour | bytes:
        """The neighbour on the way to a destination, or the Ethernet header where none is needed (or b"": no route)."""
        ethertype = b"\x08\x00" if len(destination) == 4 else b"\x86\xdd"
        if destination[0] >> 4 == 14 if len(destination) == 4 else destination[0] == 0xFF:
            return multicast_hardware(destination) + self.hardware + ethertype
        number, length = int.from_bytes(destination, "big"), len(destination)
        next_hop = self._gateways.get(length)
        if length == 16 and destination[0] == 0xFE and destination[1] & 0xC0 == 0x80:
            next_hop = destination  # RFC 4861 §5.2: link-local addresses are always on-link
        for size, mask, network in self._networks:
            if size == length and number & mask == network:
                next_hop = destination
                if length == 4 and number == network | (mask ^ 0xFFFFFFFF) and mask < 0xFFFFFFFE:
                    return BROADCAST + self.hardware + ethertype
        if destination == b"\xff\xff\xff\xff":
            return BROADCAST + self.hardware + ethertype
        if next_hop is None:
            return b""
        neighbour = self._neighbour(next_hop)
        if len(self._by_destination) >= MAX_DESTINATIONS:
            self._by_destination.clear()
        self._by_destination[destination] = neighbour
        return neighbour

    def _neighbour(self, address: bytes) -> Neighbour:
        neighbour = self._neighbours.get(address)
        if neighbour is None:
            if len(self._neighbours) >= MAX_NEIGHBOURS:
                self._forget(next(iter(self._neighbours.values())))
                self.counters.bump("neighbour_evicted")  # the table was full
            neighbour = self._neighbours[address] = Neighbour(address)
        return neighbour

    def _forget(self, neighbour: Neighbour) -> None:
        self._neighbours.pop(neighbour.address, None)
        if neighbour.waiting:
            self.counters.bump("neighbour_waiting_dropped", len(neighbour.waiting))
            neighbour.waiting = []
        self._by_destination.clear()

    def wait(self, destination: bytes, packet: Packet) -> None:
        """Keeps a packet until its next hop answers; drops it, counted, when there is no route."""
        neighbour = self._by_destination.get(destination)
        if neighbour is None:
            self.counters.bump("neighbour_no_route")  # neither on the link nor behind a gateway
            return
        if len(neighbour.waiting) >= WAITING_PACKETS:
            # RFC 4861 §7.2.2: "When a queue overflows, the new arrival SHOULD replace the oldest entry."
            del neighbour.waiting[0]
            self.counters.bump("neighbour_waiting_dropped")
        neighbour.waiting.append(packet)

    def _request(self, neighbour: Neighbour, now: int) -> None:
        if now < neighbour.next_request_us:
            return
        if neighbour.requests >= MAX_REQUESTS:
            self.counters.bump("neighbour_unreachable")  # it did not answer three requests
            if neighbour.waiting:
                # RFC 4861 §7.2.2: after MAX_MULTICAST_SOLICIT solicitations address resolution has failed.
                self.counters.bump("neighbour_waiting_dropped", len(neighbour.waiting))
                neighbour.waiting = []
            neighbour.requests = 0
            neighbour.header = b""  # from unicast probes back to asking everybody
        neighbour.requests += 1
        neighbour.next_request_us = now + RETRY_US
        known = neighbour.header[:6]
        target = neighbour.address
        source = self._source_for(target)
        if source is None:
            self.counters.bump("neighbour_no_source")  # no address of that family to ask from
        elif len(target) == 4:
            body = ARP.pack(1, 0x0800, 6, 4, ARP_REQUEST, self.hardware, source, bytes(6), target)
            self._emit(known or BROADCAST, ETHERTYPE_ARP.to_bytes(2, "big"), body)
        else:
            message = struct.pack("!BBHI16sBB6s", ND_SOLICIT, 0, 0, 0, target, 1, 1, self.hardware)
            group = solicited_node(target)
            self._emit_icmpv6(known or multicast_hardware(group), source, target if known else group, message)

    def _source_for(self, target: bytes) -> bytes | None:
        """The address of ours to ask from: one in the target's network if there is one."""
        number, other = int.from_bytes(target, "big"), None
        for address, interface in self.addresses.items():
            if len(address) == len(target):
                if number & int(interface.network.netmask) == int(interface.network.network_address):
                    return address
                other = other or address
        return other

    def handle_timeout(self, now: int) -> None:
        """Repeats requests for neighbours that packets wait for, where it is time."""
        for neighbour in list(self._neighbours.values()):
            if neighbour.waiting and not neighbour.header:
                self._request(neighbour, now)

    # what comes in

    def handle_arp(self, body: bytes | memoryview, now: int) -> None:
        """The content of an ARP frame, behind the Ethernet header."""
        if len(body) < 28:
            self.counters.bump("arp_malformed")
            return
        kind, protocol, size, length, operation, sender, source, _, target = ARP.unpack_from(body)
        if (kind, protocol, size, length) != (1, 0x0800, 6, 4) or operation not in (ARP_REQUEST, ARP_REPLY):
            self.counters.bump("arp_malformed")
            return
        if source in self.addresses:
            self.counters.bump("arp_address_conflict")  # somebody else claims our address (RFC 5227 §2.4)
            return
        if sender[0] & 1 or sender == bytes(6):
            self.counters.bump("arp_malformed")  # a group is nobody's address
            return
        for_us = target in self.addresses
        # RFC 826: "If the pair <protocol type, sender protocol address> is already in my translation table, update the
        # sender hardware address field of the entry"
        known = self._neighbours.get(source)
        if known is None and for_us and operation == ARP_REQUEST and any(source):
            known = self._neighbour(source)
        if known is not None:
            self._learn(known, sender, now)
        if for_us and operation == ARP_REQUEST:
            body = ARP.pack(1, 0x0800, 6, 4, ARP_REPLY, self.hardware, target, sender, source)
            self._emit(sender, ETHERTYPE_ARP.to_bytes(2, "big"), body)

    def handle_nd(self, packet: bytes | memoryview, now: int) -> None:
        """An IPv6 packet with a neighbour solicitation or advertisement directly behind its fixed header."""
        length = int.from_bytes(packet[4:6], "big")
        message = bytes(packet[40 : 40 + length])
        source, destination = bytes(packet[8:24]), bytes(packet[24:40])
        # RFC 4861 §7.1.1: "The IP Hop Limit field has a value of 255 ... ICMP Checksum is valid. ICMP Code is 0. ICMP
        # length (derived from the IP length) is 24 or more octets. Target Address is not a multicast address."
        if (
            len(message) != length
            or length < 24
            or packet[7] != 255
            or message[1]
            or message[8] == 0xFF
            or _icmpv6_sum(source, destination, message) != 0xFFFF
        ):
            self.counters.bump("nd_malformed")
            return
        hardware = self._link_layer_option(message)
        if hardware is None:
            self.counters.bump("nd_malformed")
            return
        target = message[8:24]
        if message[0] == ND_SOLICIT:
            self._handle_solicitation(source, destination, target, hardware, now)
        else:
            flags = int.from_bytes(message[4:8], "big")
            # RFC 4861 §7.1.2: "If the IP Destination Address is a multicast address the Solicited flag is zero."
            if destination[0] == 0xFF and flags & SOLICITED:
                self.counters.bump("nd_malformed")
                return
            self._handle_advertisement(target, flags, hardware, now)

    def _link_layer_option(self, message: bytes) -> bytes | None:
        """The source (solicitation) or target (advertisement) link-layer address, b"" without; None: malformed."""
        wanted = 1 if message[0] == ND_SOLICIT else 2
        found, position = b"", 24
        while position < len(message):
            # RFC 4861 §7.1.1: "All included options have a length that is greater than zero."
            size = message[position + 1] * 8 if position + 1 < len(message) else 0
            if not size or position + size > len(message):
                return None
            if message[position] == wanted and size == 8:
                found = message[position + 2 : position + 8]
                if found[0] & 1 or not any(found):
                    return None
            position += size
        return found

    def _handle_solicitation(self, source: bytes, destination: bytes, target: bytes, hardware: bytes, now: int) -> None:
        if source == UNSPECIFIED and (hardware or destination != solicited_node(target)):
            # RFC 4861 §7.1.1: "If the IP source address is the unspecified address, the IP destination address is a
            # solicited-node multicast address [and] there is no source link-layer address option in the message."
            self.counters.bump("nd_malformed")
            return
        if target not in self.addresses:
            return
        if source == UNSPECIFIED:
            # RFC 4861 §7.2.4: "If the source of the solicitation is the unspecified address, the node MUST set the
            # Solicited flag to zero and multicast the advertisement to the all-nodes address."
            to, flags, hardware = ALL_NODES, OVERRIDE, multicast_hardware(ALL_NODES)
        else:
            to, flags = source, SOLICITED | OVERRIDE
            neighbour = self._neighbours.get(source)
            if hardware:
                self._learn(neighbour or self._neighbour(source), hardware, now)
            elif neighbour is not None and neighbour.header:
                hardware = neighbour.header[:6]
            else:
                # A unicast solicitation without the option, from somebody unknown: its address must be asked for first.
                self.counters.bump("nd_solicitation_without_address")
                return
        message = struct.pack("!BBHI16sBB6s", ND_ADVERTISE, 0, 0, flags, target, 2, 1, self.hardware)
        self._emit_icmpv6(hardware, target, to, message)

    def _handle_advertisement(self, target: bytes, flags: int, hardware: bytes, now: int) -> None:
        if target in self.addresses:
            self.counters.bump("nd_address_conflict")  # somebody else claims our address
            return
        # RFC 4861 §7.2.5: "If no entry exists, the advertisement SHOULD be silently discarded."
        neighbour = self._neighbours.get(target)
        if neighbour is None:
            return
        if not hardware:
            if flags & SOLICITED and neighbour.header:
                self._confirm(neighbour, now)
            return
        if neighbour.header and hardware != neighbour.header[:6] and not flags & OVERRIDE:
            # RFC 4861 §7.2.5: with the Override flag clear, a different address only makes a reachable entry stale.
            neighbour.stale_us = min(neighbour.stale_us, now)
            return
        if not flags & SOLICITED and neighbour.header[:6] == hardware:
            return  # nothing new, and no answer to a question of ours: RFC 4861 §7.2.5 leaves the state as it is
        self._learn(neighbour, hardware, now)
        if not flags & SOLICITED:
            # RFC 4861 §7.2.5: "If the Solicited flag is zero and the link-layer address was updated with a different
            # address, the state MUST be set to STALE."
            neighbour.stale_us = now

    def _learn(self, neighbour: Neighbour, hardware: bytes, now: int) -> None:
        neighbour.header = hardware + self.hardware + (b"\x08\x00" if len(neighbour.address) == 4 else b"\x86\xdd")
        self._confirm(neighbour, now)
        if neighbour.waiting:
            self._released += [(neighbour.header, packet) for packet in neighbour.waiting]
            neighbour.waiting = []

    def _confirm(self, neighbour: Neighbour, now: int) -> None:
        neighbour.stale_us = now + REACHABLE_US
        neighbour.requests = 0
        neighbour.next_request_us = 0

    # what goes out

    def _emit(self, hardware: bytes, ethertype: bytes, body: bytes) -> None:
        if len(self._frames) >= WAITING_FRAMES:
            self.counters.bump("neighbour_frame_dropped")  # too many answers and requests to be sent
            return
        self._frames.append(hardware + self.hardware + ethertype + body)

    def _emit_icmpv6(self, hardware: bytes, source: bytes, destination: bytes, message: bytes) -> None:
        total = checksum.complement(_icmpv6_sum(source, destination, message))
        message = message[:2] + total.to_bytes(2, "big") + message[4:]
        header = struct.pack("!IHBB", 0x60000000, len(message), 58, 255) + source + destination
        self._emit(hardware, b"\x86\xdd", header + message)

    def poll_frames(self) -> list[bytes]:
        """Complete Ethernet frames to send now."""
        frames, self._frames = self._frames, []
        return frames

    def poll_released(self) -> list[tuple[bytes, Packet]]:
        """Packets whose next hop has become known, each with its Ethernet header."""
        released, self._released = self._released, []
        return released

    def known(self) -> dict[str, str]:
        """Next hops and their hardware addresses as text ("" while unknown), for a user to look at."""
        return {
            str(ipaddress.ip_address(n.address)): n.header[:6].hex(":") if n.header else ""
            for n in self._neighbours.values()
        }
