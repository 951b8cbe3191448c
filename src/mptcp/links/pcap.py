"""Capture to a pcapng file (draft-ietf-opsawg-pcapng): a wrapper around any link, a writer, and a small reader."""

from __future__ import annotations

import contextlib
import os
import struct
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Self

from mptcp.core.packet import Packet
from mptcp.core.wire.offload import finish
from mptcp.core.wire.segment import Payload
from mptcp.links._wire import received_on_the_wire
from mptcp.links.base import Link, ReceivedPacket

SECTION_HEADER, INTERFACE_DESCRIPTION, ENHANCED_PACKET = 0x0A0D0D0A, 1, 6
BYTE_ORDER_MAGIC: Final = 0x1A2B3C4D
LINKTYPE_RAW: Final = 101  # packets start with the IP header
OPT_END, OPT_COMMENT = 0, 1
SHB_USERAPPL, IF_NAME, IF_DESCRIPTION, IF_TSRESOL, EPB_FLAGS = 4, 2, 3, 9, 2
INBOUND, OUTBOUND = 1, 2
#: Octets kept in memory before they are written.
BUFFER_BYTES: Final = 1 << 18
#: Longest comment kept (an option's length is 16 bits).
MAX_COMMENT_BYTES: Final = 4096


def _option(code: int, value: bytes) -> bytes:
    return struct.pack("=HH", code, len(value)) + value + bytes(-len(value) % 4)


def _block(kind: int, body: bytes) -> bytes:
    total = len(body) + 12
    return struct.pack("=II", kind, total) + body + struct.pack("=I", total)


class PcapWriter:
    """A pcapng file with any number of interfaces; timestamps in nanoseconds from ``clock`` (default: wall clock).

    ``max_bytes`` > 0 bounds the file: what would exceed it is not written, but counted in ``skipped``. ``snap_bytes``
    > 0 keeps only that many octets of each packet. OSError if the file cannot be made. If it cannot be written (a full
    disk), nothing is raised, since connections are not to suffer for it: ``failure`` keeps the error, the file ends there,
    and packets are counted in ``skipped``.
    """

    __slots__ = ("_clock", "_file", "_interfaces", "failure", "max_bytes", "skipped", "snap_bytes", "written_bytes")

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        clock: Callable[[], int] = time.time_ns,
        max_bytes: int = 0,
        snap_bytes: int = 0,
    ) -> None:
        self._clock = clock
        self.max_bytes, self.snap_bytes = max_bytes, snap_bytes
        self.skipped = self.written_bytes = 0
        self.failure: OSError | None = None
        self._interfaces = 0
        self._file: IO[bytes] | None = Path(path).open("wb", buffering=BUFFER_BYTES)  # noqa: SIM115  (until close)
        section = struct.pack("=IHHq", BYTE_ORDER_MAGIC, 1, 0, -1) + _option(SHB_USERAPPL, b"mptcp")
        self._put(_block(SECTION_HEADER, section + _option(OPT_END, b"")))

    def _put(self, data: bytes) -> None:
        if self._file is None:
            return
        try:
            self._file.write(data)
            self.written_bytes += len(data)
        except OSError as error:
            self._fail(error)

    def _fail(self, error: OSError) -> None:
        self.failure = self.failure or error
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(OSError):  # it tries to write what is buffered once more
                file.close()

    def add_interface(self, name: str, description: str = "") -> int:
        """Declares an interface of IP packets; its number, for ``write``."""
        body = struct.pack("=HHI", LINKTYPE_RAW, 0, self.snap_bytes) + _option(IF_NAME, name.encode())
        if description:
            body += _option(IF_DESCRIPTION, description.encode())
        body += _option(IF_TSRESOL, b"\x09") + _option(OPT_END, b"")
        self._put(_block(INTERFACE_DESCRIPTION, body))
        self._interfaces += 1
        return self._interfaces - 1

    def write(self, interface: int, parts: Sequence[Payload | bytearray], direction: int, comment: str = "") -> None:
        """One packet in pieces; ``direction`` INBOUND, OUTBOUND or 0."""
        if self.failure is not None:
            self.skipped += 1
            return
        data = b"".join(parts)
        length = len(data)
        if self.snap_bytes and length > self.snap_bytes:
            data = data[: self.snap_bytes]
        now = self._clock()
        options = _option(OPT_COMMENT, comment.encode()[:MAX_COMMENT_BYTES]) if comment else b""
        options += _option(EPB_FLAGS, struct.pack("=I", direction)) + b"\0\0\0\0"
        body = struct.pack("=IIIII", interface, now >> 32, now & 0xFFFFFFFF, len(data), length)
        block = _block(ENHANCED_PACKET, body + data + bytes(-len(data) % 4) + options)
        if self.max_bytes and self.written_bytes + len(block) > self.max_bytes:
            self.skipped += 1
            return
        self._put(block)

    def flush(self) -> None:
        """Writes out what is buffered."""
        if self._file is not None:
            try:
                self._file.flush()
            except OSError as error:
                self._fail(error)

    def close(self) -> None:
        self.flush()
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class PcapLink(Link):
    """Writes what a link sends and receives to a capture, as an interface of its own.

    ``cut`` (the default) shows super-segments as the packets they become on the wire, with complete checksums;
    otherwise packets are written as they pass: large, with partial checksums. The writer may serve several links; who
    made it closes it.
    """

    __slots__ = ("_comment", "_interface", "cut", "gso_max_bytes", "link", "mtu", "name", "writer")

    def __init__(self, link: Link, writer: PcapWriter, *, cut: bool = True) -> None:
        self.link, self.writer, self.cut = link, writer, cut
        self.name, self.mtu, self.gso_max_bytes = link.name, link.mtu, link.gso_max_bytes
        self._interface = writer.add_interface(link.name)
        self._comment = ""

    def comment(self, text: str) -> None:
        """A remark that the next packet of this link carries in the capture."""
        self._comment = f"{self._comment}\n{text}" if self._comment else text

    def fileno(self) -> int:
        return self.link.fileno()

    def _write(self, parts: Sequence[Payload | bytearray], direction: int) -> None:
        self.writer.write(self._interface, parts, direction, self._comment)
        self._comment = ""

    def receive(self, limit: int = 64) -> Sequence[ReceivedPacket]:
        received = self.link.receive(limit)
        for data, gso_size, checksum_valid in received:
            if self.cut:
                for piece in received_on_the_wire(data, gso_size, checksum_valid):
                    self._write((piece,), INBOUND)
            else:
                self._write((data,), INBOUND)
        return received

    def send(self, packets: Sequence[Packet]) -> int:
        taken = self.link.send(packets)
        for packet in packets[:taken]:
            if self.cut and (packet.gso_size or packet.checksum_partial):
                for piece in finish(packet):
                    self._write((piece,), OUTBOUND)
            else:
                self._write((packet.header, *packet.payloads), OUTBOUND)
        return taken

    def close(self) -> None:
        self.link.close()
        self.writer.flush()


class CapturedPacket:
    """One packet read from a capture. ``length`` is what it was before it was shortened to ``data``.

    ``link_type`` says what ``data`` starts with (LINKTYPE_RAW: the IP header).
    """

    __slots__ = ("comment", "data", "direction", "interface", "length", "link_type", "time_ns")

    def __init__(
        self,
        interface: str,
        time_ns: int,
        data: bytes,
        length: int,
        direction: int,
        comment: str,
        link_type: int = LINKTYPE_RAW,
    ) -> None:
        self.interface, self.time_ns, self.data, self.length = interface, time_ns, data, length
        self.direction, self.comment, self.link_type = direction, comment, link_type

    def __repr__(self) -> str:
        arrow = {INBOUND: "<", OUTBOUND: ">"}.get(self.direction, "?")
        return f"CapturedPacket({self.interface} {arrow} {self.time_ns} {self.length}: {self.data[:20].hex()})"


def _options(data: bytes, order: str) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    position = 0
    while position + 4 <= len(data):
        code, length = struct.unpack_from(order + "HH", data, position)
        if code == OPT_END:
            break
        found.setdefault(code, data[position + 4 : position + 4 + length])
        position += 4 + length + (-length % 4)
    return found


def read_pcapng(path: str | os.PathLike[str]) -> list[CapturedPacket]:
    """The packets of a pcapng file of either byte order; ValueError if it is none. An unfinished last block is ignored."""
    data = Path(path).read_bytes()
    packets: list[CapturedPacket] = []
    interfaces: list[tuple[str, int, int]] = []  # name, units of a timestamp per second, link type
    order, position = "<", 0
    while position + 12 <= len(data):
        if data[position : position + 4] == b"\x0a\x0d\x0d\x0a":
            magic = data[position + 8 : position + 12]
            if magic not in (b"\x4d\x3c\x2b\x1a", b"\x1a\x2b\x3c\x4d"):
                raise ValueError(f"{path}: the byte-order magic of the section is wrong")
            order, interfaces = "<" if magic[0] == 0x4D else ">", []
        elif position == 0:
            raise ValueError(f"{path} is no pcapng file")
        kind, total = struct.unpack_from(order + "II", data, position)
        if total < 12 or total % 4:
            raise ValueError(f"{path}: a block of {total} octets at {position}")
        if position + total > len(data):
            break
        body = data[position + 8 : position + total - 4]
        position += total
        if kind == INTERFACE_DESCRIPTION:
            options = _options(body[8:], order)
            resolution = (options.get(IF_TSRESOL) or b"\x06")[0]
            units = 1 << (resolution & 0x7F) if resolution & 0x80 else 10**resolution
            name = options.get(IF_NAME, b"").decode(errors="replace")
            interfaces.append((name, units, struct.unpack_from(order + "H", body.ljust(2, b"\0"))[0]))
        elif kind == ENHANCED_PACKET and len(body) >= 20:
            number, high, low, size, length = struct.unpack_from(order + "IIIII", body)
            if number >= len(interfaces) or 20 + size > len(body):
                raise ValueError(f"{path}: a packet of an interface that is not declared, or longer than its block")
            options = _options(body[20 + size + (-size % 4) :], order)
            flags = options.get(EPB_FLAGS, b"")
            direction = struct.unpack(order + "I", flags)[0] & 3 if len(flags) == 4 else 0
            name, units, link_type = interfaces[number]
            packets.append(
                CapturedPacket(
                    name,
                    (high << 32 | low) * 1_000_000_000 // units,
                    body[20 : 20 + size],
                    length,
                    direction,
                    options.get(OPT_COMMENT, b"").decode(errors="replace"),
                    link_type,
                )
            )
    return packets
