"""Keys, tokens, initial data sequence numbers and HMACs (RFC 8684 §3.1, §3.2; RFC 6824 for version 0)."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Container

from mptcp.core.entropy import Entropy


def token_of(key: int, version: int = 1) -> int:
    """The 32-bit token of a key."""
    # RFC 8684 §3.1: "the token MUST be a truncated (most significant 32 bits) SHA-256 hash of the key"
    # RFC 6824 §3.1: the same with SHA-1.
    return int.from_bytes(_digest(key, version)[:4], "big")


def idsn_of(key: int, version: int = 1) -> int:
    """The 64-bit initial data sequence number of the owner of a key."""
    # RFC 8684 §3.1: "(the least significant 64 bits) of the SHA-256 hash of the key MUST be used as the IDSN"
    return int.from_bytes(_digest(key, version)[-8:], "big")


def _digest(key: int, version: int) -> bytes:
    octets = key.to_bytes(8, "big")
    return (hashlib.sha256(octets) if version else hashlib.sha1(octets)).digest()


def join_hmac(own_key: int, other_key: int, own_nonce: int, other_nonce: int, version: int = 1) -> bytes:
    """The whole HMAC that the owner of ``own_key`` sends in an MP_JOIN; the caller truncates it."""
    # RFC 8684 §3.2: "the message transmitted by Host A, will be Key-A followed by Key-B", "R-A followed by R-B"
    key = own_key.to_bytes(8, "big") + other_key.to_bytes(8, "big")
    message = own_nonce.to_bytes(4, "big") + other_nonce.to_bytes(4, "big")
    return hmac.digest(key, message, "sha256" if version else "sha1")


def add_addr_hmac(own_key: int, other_key: int, address_id: int, address: bytes, port: int | None) -> bytes:
    """The truncated HMAC of an ADD_ADDR that the owner of ``own_key`` sends: 8 octets."""
    # RFC 8684 §3.4.1: "the rightmost 64 bits of an HMAC", "the Address ID, IP address, and port",
    # "If the port is not present ..., the HMAC message will nevertheless include 2 octets of value zero."
    key = own_key.to_bytes(8, "big") + other_key.to_bytes(8, "big")
    message = bytes((address_id,)) + address + (port or 0).to_bytes(2, "big")
    return hmac.digest(key, message, "sha256")[-8:]


def same(a: bytes, b: bytes) -> bool:
    """Comparison that takes the same time wherever the first difference is."""
    return hmac.compare_digest(a, b)


def new_key(entropy: Entropy, taken: Container[int], version: int = 1) -> int:
    """A key whose token is not in ``taken``."""
    # RFC 8684 §3.1: "an implementation SHOULD check its list of connection tokens to ensure that there is no collision
    # before sending its key". Token 0 is left out because the socket options use it for "none".
    while True:
        key = entropy.bits(64)
        token = token_of(key, version)
        if token and token not in taken:
            return key
