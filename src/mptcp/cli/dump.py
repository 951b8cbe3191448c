"""``mptcp dump FILE``: the packets of a capture, one line each, every MPTCP option with its fields."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Final

import typer

from mptcp.core.wire.dump import Dumper
from mptcp.errors import ConfigurationError
from mptcp.links.pcap import INBOUND, OUTBOUND, CapturedPacket, read_pcapng

#: Where the EtherType (or its like) stands in the header of a link type, and how long that header is.
LINK_HEADERS: Final = {
    1: (12, 14),  # Ethernet
    113: (14, 16),  # Linux "cooked", as `tcpdump -i any` writes it
    276: (0, 20),  # the same, version 2
}
LINK_RAW: Final = frozenset({12, 14, 101, 228, 229})
ETHERTYPE_IPV4, ETHERTYPE_IPV6 = 0x0800, 0x86DD
#: How the older format begins: times in microseconds or nanoseconds, in either order of octets.
PCAP_MAGIC: Final = tuple(magic.to_bytes(4, order) for magic in (0xA1B2C3D4, 0xA1B23C4D) for order in ("big", "little"))
VLAN_TAGS: Final = frozenset({0x8100, 0x88A8})

ARROWS = {INBOUND: "<", OUTBOUND: ">"}


def dump(
    file: Annotated[
        Path, typer.Argument(help="A pcapng file (of mptcp get --pcap, Wireshark, tshark).", metavar="FILE")
    ],
    absolute: Annotated[
        bool, typer.Option("--absolute", help="Time of day instead of seconds since the first.")
    ] = False,
    raw_numbers: Annotated[bool, typer.Option("--raw", help="Sequence numbers as on the wire.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="IP fields and checksums too.")] = False,
    mptcp_only: Annotated[bool, typer.Option("--mptcp", help="Only packets with an MPTCP option.")] = False,
) -> None:
    """Print the packets of a pcapng file, one line each."""
    packets = read(file)
    start_ns = packets[0].time_ns if packets else 0
    dumper = Dumper(relative=not raw_numbers, verbose=verbose)
    many = len({packet.interface for packet in packets}) > 1
    for packet in packets:
        data = ip_octets(packet)
        if data is None:
            continue
        text = dumper.line(data, packet.length - len(packet.data) + len(data))
        if mptcp_only and "mptcp" not in text.lower():
            continue
        at = time_of_day(packet.time_ns) if absolute else f"{(packet.time_ns - start_ns) // 1000 / 1e6:>12.6f}"
        where = f"{packet.interface} " if many and packet.interface else ""
        arrow = ARROWS.get(packet.direction, "")
        comment = f"  # {printable(packet.comment)}" if packet.comment else ""
        print(f"{at} {where}{arrow}{' ' if arrow else ''}{text}{comment}")


def time_of_day(time_ns: int) -> str:
    """Local time, with microseconds."""
    seconds, rest = divmod(time_ns, 1_000_000_000)
    return f"{time.strftime('%H:%M:%S', time.localtime(seconds))}.{rest // 1000:06d}"


def read(file: Path) -> list[CapturedPacket]:
    """ConfigurationError, in a sentence, if it is no capture."""
    try:
        return read_pcapng(file)
    except ValueError as error:
        with suppress(OSError), file.open("rb") as opened:
            if opened.read(4) in PCAP_MAGIC:
                raise ConfigurationError(
                    f"{file} is a pcap file, as tcpdump writes it: make it pcapng with editcap -F pcapng {file} NEW"
                ) from None
        raise ConfigurationError(str(error)) from None
    except OSError as error:
        raise ConfigurationError(f"{file}: {error.strerror}") from None


def ip_octets(packet: CapturedPacket) -> bytes | None:
    """The packet from its IP header on; None if it is not IP."""
    data = packet.data
    if packet.link_type in LINK_RAW:
        return data
    if packet.link_type not in LINK_HEADERS:
        return None
    kind_at, length = LINK_HEADERS[packet.link_type]
    kind = int.from_bytes(data[kind_at : kind_at + 2], "big")
    while kind in VLAN_TAGS and packet.link_type == 1:
        kind = int.from_bytes(data[length + 2 : length + 4], "big")
        length += 4
    return data[length:] if kind in (ETHERTYPE_IPV4, ETHERTYPE_IPV6) and len(data) > length else None


def printable(text: str) -> str:
    """Without control characters: a capture's comment must not steer a terminal."""
    return "".join(character if character.isprintable() else "·" for character in text)
