"""Frames of the UDP link: what is emitted is parsed, what is not ours or cut short is None, no answer is longer."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mptcp.info import Endpoint
from mptcp.links import udp_frames as frames

NONCE, NODE, KEY, COOKIE = b"nonce678", b"nodeiden", b"k" * 16, b"c" * 16
V4, V6 = Endpoint.parse("192.0.2.1", 4000), Endpoint.parse("2001:db8::1", 4001)


def test_hello_there_and_back() -> None:
    octets = frames.Hello(NONCE, NODE, 7, 0x1234, COOKIE, KEY).emit(KEY)
    hello = frames.Hello.parse(memoryview(octets))
    assert hello is not None
    assert (hello.nonce, hello.node, hello.number, hello.tag, hello.cookie, hello.key) == (
        NONCE, NODE, 7, 0x1234, COOKIE, KEY,
    )  # fmt: skip
    assert hello.proves(KEY)
    assert not hello.proves(b"x" * 16)


def test_a_changed_hello_proves_nothing() -> None:
    octets = bytearray(frames.Hello(NONCE, NODE, 7, 0x1234, COOKIE, KEY).emit(KEY))
    octets[frames.HEADER_BYTES + 17] ^= 1  # the socket's number
    hello = frames.Hello.parse(memoryview(octets))
    assert hello is not None
    assert not hello.proves(KEY)


@pytest.mark.parametrize("seen", [V4, V6])
def test_welcome_there_and_back(seen: Endpoint) -> None:
    listed = [(1, V4), (2, V6)]
    octets = frames.Welcome(NONCE, NODE, 9, 77, seen, listed).emit(KEY)
    welcome = frames.Welcome.parse(memoryview(octets))
    assert welcome is not None
    assert (welcome.nonce, welcome.node, welcome.number, welcome.tag) == (NONCE, NODE, 9, 77)
    assert (welcome.seen, welcome.listed) == (seen, listed)
    assert welcome.proves(KEY)
    assert not welcome.proves(b"x" * 16)


def test_cookie_ping_pong_unknown_there_and_back() -> None:
    assert frames.parse_cookie(memoryview(frames.emit_cookie(NONCE, NODE, COOKIE))) == (NONCE, NODE, COOKIE)
    assert frames.parse_ping(memoryview(frames.emit_ping(5, NONCE, 1400))) == NONCE
    address = frames.virtual_address(NODE, 3)
    pong = frames.parse_pong(memoryview(frames.emit_pong(5, NONCE, 1400, KEY, address)))
    assert pong is not None
    assert pong[:2] == (NONCE, 1400)
    assert frames.pong_proves(*pong, KEY, address)
    assert not frames.pong_proves(*pong, KEY, frames.virtual_address(NODE, 4))
    assert not frames.pong_proves(pong[0], 1399, pong[2], KEY, address)
    assert frames.parse_unknown(memoryview(frames.emit_unknown(0xDEADBEEF))) == 0xDEADBEEF


def test_virtual_addresses() -> None:
    address = frames.virtual_address(NODE, 300)
    assert Endpoint(address).host.startswith("fd6d:7074:6370:")
    assert frames.split_virtual(address) == (NODE, 300)
    assert frames.split_virtual(Endpoint.parse("fd00::1").address) is None
    assert frames.split_virtual(b"\x0a\0\0\1") is None


def test_no_answer_is_longer_than_what_asks_for_it() -> None:
    """RFC 9000 §8 has the danger: who answers more than was asked amplifies an attack with a forged source."""
    hello = frames.Hello(NONCE, NODE, 1, 1, frames.NO_COOKIE, frames.NO_KEY).emit(b"")
    longest = frames.Welcome(NONCE, NODE, 1, 1, V6, [(i, V6) for i in range(99)]).emit(KEY)
    assert len(hello) == frames.HELLO_BYTES
    assert len(frames.emit_cookie(NONCE, NODE, COOKIE)) < len(hello)
    assert len(longest) < len(hello)
    ping = frames.emit_ping(1, NONCE)
    assert len(frames.emit_pong(1, NONCE, len(ping), KEY, frames.virtual_address(NODE, 1))) == len(ping)
    assert frames.parse_ping(memoryview(ping[:-1])) is None
    assert frames.Hello.parse(memoryview(hello[:-1])) is None


PARSERS = [
    frames.Hello.parse, frames.parse_cookie, frames.Welcome.parse, frames.parse_ping, frames.parse_pong,
    frames.parse_unknown,
]  # fmt: skip


@given(st.binary(max_size=700), st.integers(0, 5))
def test_hostile_octets_never_raise(tail: bytes, which: int) -> None:
    octets = frames.header(frames.WELCOME, 1) + tail
    PARSERS[which](memoryview(octets))
    PARSERS[which](memoryview(octets.ljust(frames.HELLO_BYTES, tail[:1] or b"\0")))


def test_a_welcome_that_lists_more_than_it_holds() -> None:
    octets = bytearray(frames.Welcome(NONCE, NODE, 9, 77, V4, [(1, V4)]).emit(KEY))
    count_at = frames.HEADER_BYTES + 8 + 8 + 2 + 4 + 19
    for count in (0, 2, 16, 17, 255):
        octets[count_at] = count
        assert frames.Welcome.parse(memoryview(octets)) is None
    octets[count_at] = 1
    octets[count_at + 3] = 5  # of a family that is none: that one is left out
    welcome = frames.Welcome.parse(memoryview(octets))
    assert welcome is not None
    assert welcome.listed == []
