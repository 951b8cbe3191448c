"""The datagrams of the UDP link: parse and emit. Integers are in network byte order.

::

    every frame   magic 0x4D | version and type | flags (2) | tag (4)         the tag is the one the receiver chose
    DATA          an IP packet; flag 1: its TCP checksum is partial, the UDP checksum covers it all
    HELLO         nonce (8) node (8) socket (2) tag (4) cookie (16) key (16) mac (16), then zeros up to the base size
    COOKIE        nonce (8) node (8) cookie (16)
    WELCOME       nonce (8) node (8) socket (2) tag (4) your endpoint (19) count (1) count × (socket (2) endpoint (19)) mac (16)
    PING          nonce (8), then zeros: as long as the path shall prove to be
    PONG          nonce (8) length of the ping (2) mac (16)
    UNKNOWN       the tag that was not known (4)

An endpoint is a family (1: 4 or 6), an address (16, of IPv4 the first 4) and a port (2). Nothing here raises for what
came in: a parser answers None.
"""

from __future__ import annotations

from hashlib import blake2b
from struct import Struct
from typing import Final

from mptcp.info import Endpoint

MAGIC: Final = 0x4D
VERSION: Final = 1
DATA, HELLO, COOKIE, WELCOME, PING, PONG, UNKNOWN = range(7)
PARTIAL_CHECKSUM: Final = 1

HEADER: Final = Struct("!BBHI")
HEADER_BYTES: Final = 8
NONCE_BYTES: Final = 8
KEY_BYTES: Final = 16
MAC_BYTES: Final = 16
COOKIE_BYTES: Final = 16
NODE_BYTES: Final = 8

#: Inner packets of this length pass on every path (the minimum MTU of IPv6, RFC 8200 §5).
BASE_MTU: Final = 1280
#: A hello is as long as the longest packet that every path must carry: no answer to it is longer.
HELLO_BYTES: Final = HEADER_BYTES + BASE_MTU
#: A ping is never shorter than its answer.
PONG_BYTES: Final = HEADER_BYTES + NONCE_BYTES + 2 + MAC_BYTES
#: Endpoints that a welcome tells of.
MAX_ENDPOINTS: Final = 16

NO_KEY: Final = bytes(KEY_BYTES)
NO_COOKIE: Final = bytes(COOKIE_BYTES)

_HELLO = Struct("!8s8sHI16s16s16s")
_HELLO_START = Struct("!8s8sHI16s16s")
_COOKIE = Struct("!8s8s16s")
_WELCOME = Struct("!8s8sHI19sB")
_ENDPOINT = Struct("!B16sH")
_LISTED = Struct("!H19s")
_PONG = Struct("!8sH16s")

#: fd6d:7074:6370::/48, a unique local prefix (RFC 4193): behind it the node's number (8 octets) and the socket's (2).
PREFIX: Final = bytes.fromhex("fd6d70746370")


def virtual_address(node: bytes, number: int) -> bytes:
    """The inner IPv6 address of socket ``number`` of ``node``."""
    return PREFIX + node + number.to_bytes(2, "big")


def split_virtual(address: bytes) -> tuple[bytes, int] | None:
    """(node, socket) of an inner address; None if it is none."""
    if len(address) != 16 or not address.startswith(PREFIX):
        return None
    return address[6:14], int.from_bytes(address[14:], "big")


def header(kind: int, tag: int, flags: int = 0) -> bytes:
    return HEADER.pack(MAGIC, VERSION << 4 | kind, flags, tag)


def mac(key: bytes, purpose: bytes, *parts: bytes) -> bytes:
    """A keyed BLAKE2b of ``MAC_BYTES`` octets; parts have fixed lengths, or are the last."""
    return blake2b(b"".join(parts), digest_size=MAC_BYTES, key=key, person=purpose).digest()


def emit_endpoint(endpoint: Endpoint) -> bytes:
    return _ENDPOINT.pack(endpoint.family, endpoint.address.ljust(16, b"\0"), endpoint.port)


def parse_endpoint(data: bytes) -> Endpoint | None:
    family, address, port = _ENDPOINT.unpack(data)
    if family not in (4, 6) or not port:
        return None
    return Endpoint(address[: 4 if family == 4 else 16], port)


class Hello:
    """ "I am ``node``, this is its socket ``number``, send to me with ``tag``"; with a cookie once there is one, and then
    with the key of the two nodes (or zeros: it is known) and a proof of it."""

    __slots__ = ("cookie", "key", "mac", "node", "nonce", "number", "signed", "tag")

    def __init__(self, nonce: bytes, node: bytes, number: int, tag: int, cookie: bytes, key: bytes) -> None:
        self.nonce, self.node, self.number, self.tag = nonce, node, number, tag
        self.cookie, self.key = cookie, key
        self.mac = NO_KEY
        self.signed = b""

    def emit(self, secret: bytes) -> bytes:
        """``secret``: the key of the two nodes; b"" in the first one, which proves nothing."""
        start = _HELLO_START.pack(self.nonce, self.node, self.number, self.tag, self.cookie, self.key)
        proof = mac(secret, b"hello", start) if secret else NO_KEY
        return (header(HELLO, 0) + start + proof).ljust(HELLO_BYTES, b"\0")

    def proves(self, secret: bytes) -> bool:
        return self.mac == mac(secret, b"hello", self.signed)

    @classmethod
    def parse(cls, data: memoryview) -> Hello | None:
        if len(data) < HELLO_BYTES:
            return None
        nonce, node, number, tag, cookie, key, proof = _HELLO.unpack_from(data, HEADER_BYTES)
        if not tag:
            return None
        hello = cls(nonce, node, number, tag, cookie, key)
        hello.mac = proof
        hello.signed = bytes(data[HEADER_BYTES : HEADER_BYTES + _HELLO_START.size])
        return hello


def emit_cookie(nonce: bytes, node: bytes, cookie: bytes) -> bytes:
    return header(COOKIE, 0) + _COOKIE.pack(nonce, node, cookie)


def parse_cookie(data: memoryview) -> tuple[bytes, bytes, bytes] | None:
    """(nonce, node, cookie)."""
    if len(data) != HEADER_BYTES + _COOKIE.size:
        return None
    nonce, node, cookie = _COOKIE.unpack_from(data, HEADER_BYTES)
    return nonce, node, cookie


class Welcome:
    """The answer to a hello with a good cookie: who answers, the tag to send with, how the hello looked from here, and
    where the other sockets of the node are."""

    __slots__ = ("listed", "mac", "node", "nonce", "number", "seen", "signed", "tag")

    def __init__(
        self, nonce: bytes, node: bytes, number: int, tag: int, seen: Endpoint, listed: list[tuple[int, Endpoint]]
    ) -> None:
        self.nonce, self.node, self.number, self.tag = nonce, node, number, tag
        self.seen, self.listed = seen, listed
        self.mac = self.signed = b""

    def emit(self, secret: bytes) -> bytes:
        listed = self.listed[:MAX_ENDPOINTS]
        body = _WELCOME.pack(self.nonce, self.node, self.number, self.tag, emit_endpoint(self.seen), len(listed))
        body += b"".join(_LISTED.pack(number, emit_endpoint(endpoint)) for number, endpoint in listed)
        return header(WELCOME, 0) + body + mac(secret, b"welcome", body)

    def proves(self, secret: bytes) -> bool:
        return self.mac == mac(secret, b"welcome", self.signed)

    @classmethod
    def parse(cls, data: memoryview) -> Welcome | None:
        if len(data) < HEADER_BYTES + _WELCOME.size + MAC_BYTES:
            return None
        nonce, node, number, tag, seen_octets, count = _WELCOME.unpack_from(data, HEADER_BYTES)
        end = HEADER_BYTES + _WELCOME.size + count * _LISTED.size
        seen = parse_endpoint(seen_octets)
        if count > MAX_ENDPOINTS or len(data) != end + MAC_BYTES or seen is None or not tag:
            return None
        listed = []
        for at in range(HEADER_BYTES + _WELCOME.size, end, _LISTED.size):
            listed_number, octets = _LISTED.unpack_from(data, at)
            endpoint = parse_endpoint(octets)
            if endpoint is not None:
                listed.append((listed_number, endpoint))
        welcome = cls(nonce, node, number, tag, seen, listed)
        welcome.signed, welcome.mac = bytes(data[HEADER_BYTES:end]), bytes(data[end:])
        return welcome


def emit_ping(tag: int, nonce: bytes, length: int = PONG_BYTES) -> bytes:
    """A ping of ``length`` octets in all."""
    return (header(PING, tag) + nonce).ljust(length, b"\0")


def parse_ping(data: memoryview) -> bytes | None:
    """The nonce; None also for one that is shorter than its answer."""
    return bytes(data[HEADER_BYTES : HEADER_BYTES + NONCE_BYTES]) if len(data) >= PONG_BYTES else None


def emit_pong(tag: int, nonce: bytes, length: int, secret: bytes, own_address: bytes) -> bytes:
    """``own_address``: the inner address of whoever answers. ``length``: of the ping."""
    proof = mac(secret, b"pong", nonce, length.to_bytes(2, "big"), own_address)
    return header(PONG, tag) + _PONG.pack(nonce, length, proof)


def parse_pong(data: memoryview) -> tuple[bytes, int, bytes] | None:
    """(nonce, length of the ping, mac)."""
    if len(data) != PONG_BYTES:
        return None
    nonce, length, proof = _PONG.unpack_from(data, HEADER_BYTES)
    return nonce, length, proof


def pong_proves(nonce: bytes, length: int, proof: bytes, secret: bytes, address: bytes) -> bool:
    """Whether ``proof`` was made with ``secret`` by whoever has the inner ``address``."""
    return proof == mac(secret, b"pong", nonce, length.to_bytes(2, "big"), address)


def emit_unknown(tag: int) -> bytes:
    return header(UNKNOWN, 0) + tag.to_bytes(4, "big")


def parse_unknown(data: memoryview) -> int | None:
    return int.from_bytes(data[HEADER_BYTES:], "big") if len(data) == HEADER_BYTES + 4 else None
