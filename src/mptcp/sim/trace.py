"""What went over the network: a digest of every packet, the list of them if wanted, and pcapng for other tools."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from enum import Enum
from struct import Struct
from typing import TYPE_CHECKING, NamedTuple

from mptcp.sim.rawtcp import complete_checksum

if TYPE_CHECKING:
    from mptcp.sim.network import Direction


class Outcome(Enum):
    """What became of a packet where it entered a direction."""

    SENT = 0
    LOST = 1
    QUEUE_FULL = 2
    DOWN = 3


SENT = Outcome.SENT
#: How many packets a trace keeps unless told otherwise.
DEFAULT_KEPT_PACKETS = 100_000
_HEAD = Struct("!QHB")


class TracedPacket(NamedTuple):
    """One packet entering one direction. ``data`` has its checksum as the sender left it (it may be partial)."""

    time_us: int
    direction: str
    outcome: Outcome
    data: bytes


#: (time_us, index of the direction, name of the direction, IP packet): what a capture file writer is given.
PacketWriter = Callable[[int, int, str, bytes], None]


class Trace:
    """Sees each packet that enters each direction. Two runs were the same if their ``digest`` is."""

    __slots__ = ("_hash", "_keep", "count", "packets", "writer")

    def __init__(self, *, keep: int = 0, writer: PacketWriter | None = None) -> None:
        self._hash = hashlib.blake2b(digest_size=16)
        self._keep = keep
        self.count = 0
        self.packets: list[TracedPacket] = []  # the first ``keep`` ones
        self.writer = writer

    def record(self, now: int, direction: Direction, data: bytes, outcome: Outcome) -> None:
        self.count += 1
        self._hash.update(_HEAD.pack(now, direction.index, outcome.value))
        self._hash.update(data)
        if self.count <= self._keep:
            self.packets.append(TracedPacket(now, direction.name, outcome, data))
        if self.writer is not None and outcome is SENT:
            self.writer(now, direction.index, direction.name, complete_checksum(data))

    @property
    def digest(self) -> str:
        """Of the times, directions, fates and octets of all packets so far."""
        return self._hash.hexdigest()


_LINKTYPE_RAW = 101
_BLOCK = Struct("<II")
_SECTION = Struct("<IHHq")
_INTERFACE = Struct("<HHI")
_ENHANCED = Struct("<IIIII")


class PcapngWriter:
    """A ``PacketWriter`` that makes a pcapng file (draft-ietf-opsawg-pcapng): one interface per direction."""

    __slots__ = ("_interfaces", "_write")

    def __init__(self, write: Callable[[bytes], object]) -> None:
        """``write`` takes octets: the ``write`` of a file opened in binary mode."""
        self._write = write
        self._interfaces: dict[int, int] = {}
        self._block(0x0A0D0D0A, _SECTION.pack(0x1A2B3C4D, 1, 0, -1))

    def __call__(self, time_us: int, index: int, name: str, data: bytes) -> None:
        interface = self._interfaces.get(index)
        if interface is None:
            interface = self._interfaces[index] = len(self._interfaces)
            text = name.encode()
            option = Struct("<HH").pack(2, len(text)) + text + bytes(-len(text) % 4) + bytes(4)  # if_name, end
            self._block(1, _INTERFACE.pack(_LINKTYPE_RAW, 0, 0) + option)
        head = _ENHANCED.pack(interface, time_us >> 32, time_us & 0xFFFFFFFF, len(data), len(data))
        self._block(6, head + data + bytes(-len(data) % 4))

    def _block(self, kind: int, body: bytes) -> None:
        length = len(body) + 12
        self._write(_BLOCK.pack(kind, length) + body + length.to_bytes(4, "little"))
