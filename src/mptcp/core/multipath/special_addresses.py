"""Addresses that never become subflows: identifiers of other multihoming protocols, and what has no meaning elsewhere."""

from __future__ import annotations

from typing import NamedTuple


class Network(NamedTuple):
    """All addresses whose first ``bits`` bits are those of ``prefix`` (packed)."""

    prefix: bytes
    bits: int

    def covers(self, address: bytes) -> bool:
        if len(address) != len(self.prefix):
            return False
        shift = 8 * len(address) - self.bits
        return int.from_bytes(address, "big") >> shift == int.from_bytes(self.prefix, "big") >> shift


#: Host identities of HIP (ORCHID): RFC 4843 §3 and RFC 7343 §6. They are no locators at all.
HOST_IDENTITIES = (
    Network(bytes.fromhex("20010010") + bytes(12), 28),
    Network(bytes.fromhex("20010020") + bytes(12), 28),
)

#: Link-local (RFC 4291 §2.5.6, RFC 3927): on another link, where a further subflow would be, it is somebody else's.
LINK_LOCAL = (Network(bytes((0xFE, 0x80)) + bytes(14), 10), Network(bytes((169, 254, 0, 0)), 16))

NEVER_SUBFLOWS = HOST_IDENTITIES + LINK_LOCAL


def is_host_identity(address: bytes) -> bool:
    return len(address) == 16 and address[:2] == b"\x20\x01" and any(n.covers(address) for n in HOST_IDENTITIES)


def is_special(address: bytes, further: tuple[Network, ...] = ()) -> bool:
    """Whether ``address`` may be at either end of no further subflow; ``further``: what the configuration adds, Mobile
    IPv6 home addresses and SHIM6 identifiers above all, which look like any other address."""
    # RFC 6897 §6.3: "multiaddressed MPTCP SHOULD NOT be enabled if a network stack uses SHIM6, HIP, or Mobile IPv6."
    if len(address) == 16:
        if address[0] not in (0x20, 0xFE) and not further:
            return False
    elif address[0] != 169 and not further:
        return False
    return any(network.covers(address) for network in NEVER_SUBFLOWS + further)
