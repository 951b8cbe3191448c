"""Where the packets of a subflow go: the interface, and what all of their headers have in common."""

from __future__ import annotations

from mptcp.core.units import NEVER
from mptcp.core.wire import checksum
from mptcp.info import Endpoint


class Interface:
    __slots__ = ("gso_max_bytes", "is_busy", "is_up", "mtu", "name", "room")

    def __init__(self, name: str, mtu: int, gso_max_bytes: int) -> None:
        self.name = name
        self.mtu = mtu
        self.gso_max_bytes = gso_max_bytes
        self.is_up = True
        self.is_busy = False
        self.room = NEVER  # octets of data that may be given to it before it is asked again whether it is busy


class Emission:
    """What all packets of one subflow have in common."""

    __slots__ = (
        "destination", "destination_port", "interface", "is_local", "is_v6", "pseudo", "segments", "source",
        "source_port",
    )  # fmt: skip

    def __init__(
        self, local: Endpoint, remote: Endpoint, interface: int, is_local: bool = False,
        segments: tuple[bytes, ...] = (),
    ) -> None:  # fmt: skip
        self.segments = segments
        self.is_local = is_local  # to an address of this very host: it does not leave
        self.source, self.source_port = local.address, local.port
        self.destination, self.destination_port = remote.address, remote.port
        self.interface = interface
        self.is_v6 = len(local.address) == 16
        self.pseudo = checksum.pseudo_sum(local.address, remote.address, 6)


def flow_key(remote: Endpoint, local: Endpoint) -> bytes:
    """As the octets stand in a packet that comes in: source, destination, source port, destination port."""
    return remote.address + local.address + remote.port.to_bytes(2, "big") + local.port.to_bytes(2, "big")
