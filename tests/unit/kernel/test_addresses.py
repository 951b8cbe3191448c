"""The host's addresses out of rtnetlink's messages."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from mptcp.kernel import addresses
from mptcp.kernel.addresses import (
    IFF_RUNNING,
    IFF_UP,
    RTM_DELADDR,
    RTM_DELLINK,
    RTM_NEWADDR,
    RTM_NEWLINK,
    SCOPE_HOST,
    SCOPE_LINK,
    AddressTable,
)
from mptcp.kernel.destroyed import parse_destroyed
from mptcp.kernel.netlink import Message, attribute

V4 = bytes([10, 0, 0, 1])


def link(index: int, name: str = "eth0", flags: int = IFF_UP | IFF_RUNNING, kind: int = RTM_NEWLINK) -> Message:
    payload = struct.pack("=BxHiII", 0, 1, index, flags, 0) + attribute(3, name.encode() + b"\0")
    return Message(kind, 0, 0, memoryview(payload))


def address(
    octets: bytes, index: int = 1, *, flags: int = 0, scope: int = 0, kind: int = RTM_NEWADDR, attr: int = 2
) -> Message:
    payload = struct.pack("=4BI", 2, 24, flags & 0xFF, scope, index) + attribute(attr, octets)
    return Message(kind, 0, 0, memoryview(payload + attribute(8, struct.pack("=I", flags))))


def table(*told: Message) -> AddressTable:
    made = AddressTable()
    for message in told:
        made.handle(message)
    return made


def test_an_address_is_usable_while_its_link_works() -> None:
    made = table(link(1), address(V4))
    (local,) = made.usable().values()
    assert (local.address, local.interface, local.name, str(local)) == (V4, 1, "eth0", "10.0.0.1%eth0")
    made.handle(link(1, flags=IFF_UP))
    assert not made.usable()
    made.handle(link(1, "renamed"))
    assert [found.name for found in made.usable().values()] == ["renamed"]
    made.handle(address(V4, kind=RTM_DELADDR))
    assert not made.usable()


def test_what_is_no_source_for_a_subflow() -> None:
    assert not table(address(V4)).usable()  # no such link
    for unusable in (
        address(V4, scope=SCOPE_HOST), address(V4, scope=SCOPE_LINK), address(V4, flags=0x40), address(V4, flags=0x08)
    ):  # fmt: skip
        assert not table(link(1), unusable).usable()
    assert table(link(1), address(V4, flags=0x20)).usable()  # deprecated, but there
    made = table(link(1), address(V4, flags=0x40))
    made.handle(address(V4))  # duplicate address detection is done
    assert made.usable()


def test_ipv6_has_no_ifa_local() -> None:
    assert table(link(1), address(bytes(15) + b"\1", attr=1)).usable()
    assert not table(link(1), address(b"abc", attr=1)).usable()


def test_one_address_on_two_links() -> None:
    made = table(link(1), link(2, "eth1"), address(V4, 1), address(V4, 2))
    assert [found.name for found in made.usable().values()] == ["eth0", "eth1"]
    made.handle(link(1, kind=RTM_DELLINK))
    assert [found.name for found in made.usable().values()] == ["eth1"]


def test_tables_are_bounded() -> None:
    many = addresses.MAX_LOCAL_ADDRESSES + 10
    made = table(link(1), *(address(number.to_bytes(4, "big")) for number in range(many)))
    assert len(made.usable()) == addresses.MAX_LOCAL_ADDRESSES


@given(st.integers(14, 24), st.binary(max_size=64))
def test_any_octets_can_be_told(kind: int, payload: bytes) -> None:
    made = table(link(1), Message(kind, 0, 0, memoryview(payload)))
    made.usable()
    parse_destroyed(memoryview(payload))


def test_sockets_that_have_ended() -> None:
    head = struct.pack("!4BHH", 2, 7, 0, 0, 1000, 80)
    octets = head + V4 + bytes(12) + V4[::-1] + bytes(12)
    ended = parse_destroyed(memoryview(octets))
    assert ended is not None
    assert [str(end) for end in ended] == ["10.0.0.1:1000", "1.0.0.10:80"]
    assert parse_destroyed(memoryview(octets[:-1])) is None
    assert parse_destroyed(memoryview(b"\x01" + octets[1:])) is None
