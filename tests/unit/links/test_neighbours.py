"""ARP (RFC 826) and neighbour discovery (RFC 4861), as frames in and frames out."""

import ipaddress
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mptcp.core.counters import Counters
from mptcp.core.packet import Packet
from mptcp.core.units import SECOND
from mptcp.core.wire import checksum
from mptcp.errors import ConfigurationError
from mptcp.links import neighbours as nd
from mptcp.links._bpf import MAX_ADDRESSES
from mptcp.links.neighbours import Neighbours

OURS = bytes.fromhex("020000000001")
THEIRS = bytes.fromhex("020000000002")
OTHER = bytes.fromhex("020000000003")


def ip(text: str) -> bytes:
    return ipaddress.ip_address(text).packed


def make(*addresses: str) -> Neighbours:
    table = Neighbours(OURS, Counters())
    for address in addresses or ("10.0.0.1/24", "fd00::1/64"):
        table.add_address(ipaddress.ip_interface(address))
    return table


def arp(operation: int, sender: bytes, source: str, target: str) -> bytes:
    return struct.pack("!HHBBH6s4s6s4s", 1, 0x800, 6, 4, operation, sender, ip(source), bytes(6), ip(target))


def icmpv6(source: str, destination: str, message: bytes, hop_limit: int = 255) -> bytes:
    total = checksum.pseudo_sum(ip(source), ip(destination), 58) + len(message) + checksum.add(message)
    message = message[:2] + checksum.complement(checksum.fold(total)).to_bytes(2, "big") + message[4:]
    return struct.pack("!IHBB", 6 << 28, len(message), 58, hop_limit) + ip(source) + ip(destination) + message


def solicitation(source: str, target: str, hardware: bytes = b"", destination: str = "ff02::1:ff00:1") -> bytes:
    option = b"\x01\x01" + hardware if hardware else b""
    return icmpv6(source, destination, struct.pack("!BBHI16s", 135, 0, 0, 0, ip(target)) + option)


def advertisement(target: str, hardware: bytes = b"", flags: int = 0x60000000, destination: str = "fd00::1") -> bytes:
    option = b"\x02\x01" + hardware if hardware else b""
    return icmpv6(target, destination, struct.pack("!BBHI16s", 136, 0, 0, flags, ip(target)) + option)


def test_arp_request_for_us_is_answered() -> None:
    table = make()
    table.handle_arp(arp(1, THEIRS, "10.0.0.2", "10.0.0.1"), 0)
    [frame] = table.poll_frames()
    assert frame[:14] == THEIRS + OURS + b"\x08\x06"
    assert nd.ARP.unpack(frame[14:]) == (1, 0x800, 6, 4, 2, OURS, ip("10.0.0.1"), THEIRS, ip("10.0.0.2"))
    # RFC 826: the asker's address is learnt from the request.
    assert table.lookup(ip("10.0.0.2"), 1) == THEIRS + OURS + b"\x08\x00"
    assert table.poll_frames() == []


def test_arp_request_for_another_is_not() -> None:
    table = make()
    table.handle_arp(arp(1, THEIRS, "10.0.0.2", "10.0.0.7"), 0)
    assert table.poll_frames() == []
    assert table.known() == {}


def test_unknown_neighbour_is_asked_for_and_packets_wait() -> None:
    table = make()
    target = ip("10.0.0.2")
    packet = Packet(b"x" * 20, (), 20)
    assert table.lookup(target, 0) == b""
    table.wait(target, packet)
    [frame] = table.poll_frames()
    assert frame[:6] == b"\xff" * 6
    assert nd.ARP.unpack(frame[14:]) == (1, 0x800, 6, 4, 1, OURS, ip("10.0.0.1"), bytes(6), target)
    assert table.poll_released() == []
    table.handle_arp(arp(2, THEIRS, "10.0.0.2", "10.0.0.1"), 10)
    assert table.poll_released() == [(THEIRS + OURS + b"\x08\x00", packet)]
    assert table.poll_released() == []


def test_request_is_repeated_once_a_second_and_given_up_after_three() -> None:
    table = make()
    target = ip("10.0.0.2")
    sent = []
    for now in range(0, 3 * SECOND, SECOND // 4):
        table.lookup(target, now)
        table.wait(target, Packet(b"x", (), 1))
        sent.append(len(table.poll_frames()))
    assert sum(sent) == 3
    assert sent[0] == sent[4] == sent[8] == 1
    assert table.counters == {}
    table.lookup(target, 3 * SECOND)
    assert table.counters == {"neighbour_unreachable": 1, "neighbour_waiting_dropped": 12}


def test_timeout_repeats_only_for_those_that_packets_wait_for() -> None:
    table = make()
    table.lookup(ip("10.0.0.2"), 0)
    table.lookup(ip("10.0.0.3"), 0)
    table.wait(ip("10.0.0.3"), Packet(b"x", (), 1))
    table.poll_frames()
    table.handle_timeout(SECOND)
    [frame] = table.poll_frames()
    assert frame[-4:] == ip("10.0.0.3")


def test_confirmed_address_is_probed_by_unicast_then_by_broadcast() -> None:
    table = make()
    target = ip("10.0.0.2")
    table.handle_arp(arp(1, THEIRS, "10.0.0.2", "10.0.0.1"), 0)
    table.poll_frames()
    now = nd.REACHABLE_US
    for _ in range(3):
        assert table.lookup(target, now)[:6] == THEIRS  # used while it is being confirmed
        [frame] = table.poll_frames()
        assert frame[:6] == THEIRS
        now += SECOND
    assert table.lookup(target, now) == b""
    [frame] = table.poll_frames()
    assert frame[:6] == b"\xff" * 6
    table.handle_arp(arp(2, OTHER, "10.0.0.2", "10.0.0.1"), now)
    assert table.lookup(target, now + 1)[:6] == OTHER


def test_nobody_can_be_added_by_a_reply_nobody_asked_for() -> None:
    table = make()
    table.handle_arp(arp(2, THEIRS, "10.0.0.2", "10.0.0.1"), 0)
    table.handle_nd(advertisement("fd00::2", THEIRS), 0)
    assert table.known() == {}


def test_our_own_address_claimed_by_another() -> None:
    table = make()
    table.handle_arp(arp(1, THEIRS, "10.0.0.1", "10.0.0.1"), 0)
    table.handle_nd(advertisement("fd00::1", THEIRS, 0x20000000, "ff02::1"), 0)
    assert table.counters == {"arp_address_conflict": 1, "nd_address_conflict": 1}
    assert table.poll_frames() == []


def test_solicitation_for_us_is_answered() -> None:  # RFC 4861 §7.2.4
    table = make()
    table.handle_nd(solicitation("fd00::2", "fd00::1", THEIRS), 0)
    [frame] = table.poll_frames()
    assert frame[:14] == THEIRS + OURS + b"\x86\xdd"
    assert frame[14 + 7] == 255
    assert frame[14 + 8 : 14 + 40] == ip("fd00::1") + ip("fd00::2")
    message = frame[54:]
    assert message[0] == 136
    assert message[4:8] == bytes.fromhex("60000000")
    assert message[8:] == ip("fd00::1") + b"\x02\x01" + OURS
    total = checksum.pseudo_sum(ip("fd00::1"), ip("fd00::2"), 58) + len(message) + checksum.add(message)
    assert checksum.fold(total) == 0xFFFF
    assert table.lookup(ip("fd00::2"), 1)[:6] == THEIRS


def test_duplicate_address_detection_is_answered_to_all_nodes() -> None:  # RFC 4861 §7.2.4
    table = make()
    table.handle_nd(solicitation("::", "fd00::1"), 0)
    [frame] = table.poll_frames()
    assert frame[:6] == bytes.fromhex("333300000001")
    assert frame[14 + 24 : 14 + 40] == ip("ff02::1")
    assert frame[54 + 4] == 0x20


def test_unknown_ipv6_neighbour_is_solicited() -> None:  # RFC 4861 §7.2.2
    table = make()
    target = ip("fd00::12:3456")
    assert table.lookup(target, 0) == b""
    [frame] = table.poll_frames()
    assert frame[:6] == bytes.fromhex("3333ff123456")
    assert frame[14 + 24 : 14 + 40] == ip("ff02::1:ff12:3456")
    assert frame[54:55] == b"\x87"
    table.handle_nd(advertisement("fd00::12:3456", THEIRS), 5)
    assert table.lookup(target, 6) == THEIRS + OURS + b"\x86\xdd"


def test_advertisement_without_override_does_not_replace() -> None:  # RFC 4861 §7.2.5
    table = make()
    table.handle_nd(solicitation("fd00::2", "fd00::1", THEIRS), 0)
    table.poll_frames()
    table.handle_nd(advertisement("fd00::2", OTHER, 0x40000000), 10)
    assert table.lookup(ip("fd00::2"), 11)[:6] == THEIRS
    [probe] = table.poll_frames()  # stale now: it is asked
    assert probe[:6] == THEIRS
    table.handle_nd(advertisement("fd00::2", OTHER, 0x60000000), 20)
    assert table.lookup(ip("fd00::2"), 21)[:6] == OTHER


def test_unsolicited_advertisement() -> None:  # RFC 4861 §7.2.5
    table = make()
    target = ip("fd00::2")
    table.handle_nd(solicitation("fd00::2", "fd00::1", THEIRS), 0)
    table.poll_frames()
    table.handle_nd(advertisement("fd00::2", THEIRS, 0x20000000, "ff02::1"), 10)
    assert table.lookup(target, 11)[:6] == THEIRS
    assert table.poll_frames() == []  # nothing new: as reachable as before
    table.handle_nd(advertisement("fd00::2", OTHER, 0x20000000, "ff02::1"), 20)
    assert table.lookup(target, 21)[:6] == OTHER
    [probe] = table.poll_frames()  # used, but to be confirmed
    assert probe[:6] == OTHER


@pytest.mark.parametrize(
    "packet",
    [
        icmpv6("fd00::2", "fd00::1", struct.pack("!BBHI16s", 135, 0, 0, 0, ip("fd00::1")), hop_limit=254),
        icmpv6("fd00::2", "fd00::1", struct.pack("!BBHI16s", 135, 1, 0, 0, ip("fd00::1"))),
        icmpv6("fd00::2", "fd00::1", struct.pack("!BBHI16s", 135, 0, 0, 0, ip("ff02::1"))),
        icmpv6("fd00::2", "fd00::1", struct.pack("!BBHI16s", 135, 0, 0, 0, ip("fd00::1"))[:20]),
        icmpv6("fd00::2", "fd00::1", struct.pack("!BBHI16s", 135, 0, 0, 0, ip("fd00::1")) + b"\x01\x00" + bytes(6)),
        icmpv6("fd00::2", "fd00::1", struct.pack("!BBHI16s", 135, 0, 0, 0, ip("fd00::1")) + b"\x01"),
        solicitation("::", "fd00::1", THEIRS),
        solicitation("::", "fd00::1", destination="fd00::1"),
        advertisement("fd00::2", THEIRS, 0x40000000, "ff02::1"),
        solicitation("fd00::2", "fd00::1", THEIRS)[:-1] + b"\x77",
        solicitation("fd00::2", "fd00::1", b"\xff" * 6),
        solicitation("fd00::2", "fd00::1", THEIRS)[:-4],
    ],
    ids=str,
)
def test_malformed_nd_is_counted_and_ignored(packet: bytes) -> None:  # RFC 4861 §7.1
    table = make()
    table.handle_nd(packet, 0)
    assert table.counters == {"nd_malformed": 1}
    assert table.poll_frames() == []
    assert table.known() == {}


@given(st.binary(max_size=120), st.sampled_from([135, 136]))
def test_no_octets_raise(data: bytes, kind: int) -> None:
    table = make()
    table.handle_arp(data, 0)
    packet = struct.pack("!IHBB", 6 << 28, len(data), 58, 255) + data[:32].ljust(32, b"\0") + bytes([kind]) + data[1:]
    table.handle_nd(packet, 0)
    for frame in table.poll_frames():
        assert len(frame) >= 42


def test_gateway_broadcast_multicast_and_no_route() -> None:
    table = make()
    assert table.lookup(ip("192.0.2.1"), 0) == b""
    table.wait(ip("192.0.2.1"), Packet(b"x", (), 1))
    assert table.counters == {"neighbour_no_route": 1}
    assert table.poll_frames() == []
    table.set_gateway(ip("10.0.0.254"))
    table.lookup(ip("192.0.2.1"), 0)
    [frame] = table.poll_frames()
    assert frame[-4:] == ip("10.0.0.254")
    table.handle_arp(arp(2, THEIRS, "10.0.0.254", "10.0.0.1"), 1)
    assert table.lookup(ip("192.0.2.1"), 2)[:6] == THEIRS
    assert table.lookup(ip("198.51.100.9"), 2)[:6] == THEIRS
    assert table.lookup(ip("10.0.0.255"), 2)[:6] == b"\xff" * 6
    assert table.lookup(ip("255.255.255.255"), 2)[:6] == b"\xff" * 6
    assert table.lookup(ip("224.1.2.3"), 2)[:6] == bytes.fromhex("01005e010203")
    assert table.lookup(ip("ff02::fb"), 2)[:6] == bytes.fromhex("3333000000fb")
    assert table.poll_frames() == []


def test_tables_and_queues_are_bounded() -> None:
    table = make("10.0.0.1/8", "fd00::1/64")
    for i in range(nd.MAX_NEIGHBOURS + 50):
        table.handle_arp(arp(1, THEIRS, f"10.1.{i // 256}.{i % 256}", "10.0.0.1"), 0)
    assert len(table.known()) == nd.MAX_NEIGHBOURS
    assert table.counters["neighbour_evicted"] == 50
    assert len(table.poll_frames()) == nd.WAITING_FRAMES
    target = ip("10.2.0.1")
    table.lookup(target, 0)
    packets = [Packet(b"x", (), 1) for _ in range(nd.WAITING_PACKETS + 3)]
    for packet in packets:
        table.wait(target, packet)
    table.handle_arp(arp(2, THEIRS, "10.2.0.1", "10.0.0.1"), 1)
    assert [packet for _, packet in table.poll_released()] == packets[3:]  # the newest are kept


def test_removed_address_is_not_answered_for() -> None:
    table = make()
    table.remove_address(ip("10.0.0.1"))
    table.handle_arp(arp(1, THEIRS, "10.0.0.2", "10.0.0.1"), 0)
    assert table.poll_frames() == []
    assert table.lookup(ip("10.0.0.2"), 0) == b""
    assert table.poll_frames() == []


def test_too_many_addresses() -> None:
    table = make(*(f"10.0.{i // 250}.{i % 250}/8" for i in range(MAX_ADDRESSES)))
    with pytest.raises(ConfigurationError, match=f"{MAX_ADDRESSES} addresses"):
        table.add_address(ipaddress.ip_interface("10.9.9.9/8"))
