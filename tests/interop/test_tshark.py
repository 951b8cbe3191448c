"""tshark reads what this codec emits, and sees in every field what was put there: a second opinion on every shape."""

from __future__ import annotations

import ipaddress
import shutil
import struct
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from mptcp.core.multipath.config import ConnectionConfig
from mptcp.core.packet import Packet
from mptcp.core.wire import checksum, dump, icmp, ip, tcp
from mptcp.core.wire import options as tcp_options
from mptcp.core.wire.icmp import IcmpKind
from mptcp.core.wire.mptcp_options import (
    AddAddr,
    Dss,
    MpCapable,
    MpExperimental,
    MpFail,
    MpFastclose,
    MpJoinAck,
    MpJoinSyn,
    MpJoinSynAck,
    MpPrio,
    MptcpOption,
    MpTcprst,
    MpUnknown,
    RemoveAddr,
)
from mptcp.core.wire.offload import finish
from mptcp.core.wire.segment import ACK, CWR, ECE, FIN, PSH, RST, SYN, URG, Options, Segment
from mptcp.testing import builders
from mptcp.testing.pair import Pair

pytestmark = [
    pytest.mark.interop,
    pytest.mark.skipif(shutil.which("tshark") is None, reason="tshark is not installed"),
]

LINKTYPE_RAW = 101
A4, B4, R4 = (bytes((10, 0, 0, n)) for n in (1, 2, 9))
A6, B6, R6, S6 = (bytes.fromhex("20010db8") + bytes(11) + bytes((n,)) for n in (1, 2, 9, 5))
KEY_A, KEY_B = 0x0102030405060708, 0xF1F2F3F4F5F6F7F8
HMAC = bytes(range(0xA0, 0xA8))

#: The values of one field in one packet, in order; numbers as numbers.
Values = list[int | str]


def write_pcap(path: Path, packets: Sequence[bytes]) -> None:
    with path.open("wb") as file:
        file.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 262144, LINKTYPE_RAW))
        for number, packet in enumerate(packets):
            file.write(struct.pack("<IIII", number, 0, len(packet), len(packet)) + packet)


def read_fields(path: Path, fields: Sequence[str]) -> list[dict[str, Values]]:
    """For each packet what tshark says about ``fields``."""
    command = ["tshark", "-n", "-r", str(path), "-T", "fields", "-E", "separator=|", "-E", "occurrence=a"]
    command += ["-E", "aggregator=;"]
    for preference in ("tcp.check_checksum:TRUE", "ip.check_checksum:TRUE", "tcp.relative_sequence_numbers:FALSE"):
        command += ["-o", preference]
    for field in fields:
        command += ["-e", field]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return [
        {
            field: [normal(value) for value in column.split(";")] if column else []
            for field, column in zip(fields, line.split("|"), strict=True)
        }
        for line in result.stdout.splitlines()
    ]


def normal(value: str) -> int | str:
    try:
        return int(value, 0)
    except ValueError:
        return value


def compare(path: Path, packets: Sequence[bytes], expected: Sequence[Mapping[str, Values]]) -> None:
    fields = sorted({field for row in expected for field in row})
    write_pcap(path, packets)
    seen = read_fields(path, fields)
    assert len(seen) == len(packets)
    for packet, wanted, got in zip(packets, expected, seen, strict=True):
        assert {field: got[field] for field in wanted} == dict(wanted), dump.format_packet(packet)


def tcp_packet(segment: Segment, port: int, family: int = 4, **ip_fields: Any) -> bytes:
    source, destination = (A4, B4) if family == 4 else (A6, B6)
    pseudo = checksum.pseudo_sum(source, destination, 6)
    transport = tcp.emit(segment, port, 80, pseudo, partial=False) + segment.payload
    if family == 4:
        return ip.emit_ipv4(source, destination, len(transport), **ip_fields) + transport
    return ip.emit_ipv6(source, destination, len(transport), **ip_fields) + transport


def hexes(octets: bytes) -> str:
    return octets.hex(":")


def mptcp_fields(option: MptcpOption) -> dict[str, Values]:
    """What Wireshark's dissector calls the fields of ``option``, all of them."""
    p = "tcp.options.mptcp."
    number: dict[str, int | str | None]
    match option:
        case MpCapable():
            number = {
                "subtype": 0,
                "version": option.version,
                "flags": option.flags,
                "checksumreq.flags": option.flags >> 7,
                "extensibility.flag": option.flags >> 6 & 1,
                "nomoresubflows.flag": option.flags >> 5 & 1 if option.version else None,
                ("sha256.flag" if option.version else "sha1.flag"): option.flags & 1,
                "sendkey": option.sender_key,
                "recvkey": option.receiver_key,
                "datalvllen": option.data_length,
                "checksum": option.checksum,
            }
        case MpJoinSyn():
            number = {
                "subtype": 1,
                "backup.flag": int(option.backup),
                "addrid": option.address_id,
                "recvtok": option.token,
                "sendrand": option.nonce,
            }
        case MpJoinSynAck():
            number = {
                "subtype": 1,
                "backup.flag": int(option.backup),
                "addrid": option.address_id,
                "sendtrunchmac": int.from_bytes(option.hmac, "big"),
                "sendrand": option.nonce,
            }
        case MpJoinAck():
            number = {"subtype": 1, "reserved": 0, "sendhmac": option.hmac.hex()}
        case Dss():
            # Its checksum is not among them: the dissector (4.0) never shows it.
            number = {
                "subtype": 2,
                "datafin.flag": int(option.data_fin),
                "dseqn8.flag": int(option.dsn_wide),
                "dseqnpresent.flag": int(option.dsn is not None),
                "dataack8.flag": int(option.data_ack_wide),
                "dataackpresent.flag": int(option.data_ack is not None),
                "rawdataack": option.data_ack,
                "rawdataseqno": option.dsn,
                "subflowseqno": option.ssn if option.dsn is not None else None,
                "datalvllen": option.length if option.dsn is not None else None,
            }
        case AddAddr():
            number = {
                "subtype": 3,
                "addrid": option.address_id,
                ("ipv4" if len(option.address) == 4 else "ipv6"): str(ipaddress.ip_address(option.address)),
                "port": option.port,
                "addaddrtrunchmac": None if option.hmac is None else int.from_bytes(option.hmac, "big"),
            }
            if option.version:
                number["echo"] = int(option.echo)
            else:
                number["ipver"] = 4 if len(option.address) == 4 else 6
        case RemoveAddr():
            return {p + "subtype": [4], p + "addrid": list(option.address_ids)}
        case MpPrio():
            number = {"subtype": 5, "backup.flag": int(option.backup), "addrid": option.address_id}
        case MpFail():
            number = {"subtype": 6, "rawdataseqno": option.dsn}
        case MpFastclose():
            number = {"subtype": 7, "recvkey": option.receiver_key}
        case MpTcprst():
            number = {
                "subtype": 8,
                "flag_U.flag": option.flags >> 3,
                "flag_V.flag": option.flags >> 2 & 1,
                "flag_W.flag": option.flags >> 1 & 1,
                "flag_T.flag": int(option.transient),
                "rst_reason": option.reason,
            }
        case MpExperimental():
            number = {"subtype": 15}
        case MpUnknown():
            number = {"subtype": option.subtype}
    return {p + name: [] if value is None else [value] for name, value in number.items()}


CAPABLES: list[tuple[int, MptcpOption]] = [
    (SYN, MpCapable()),
    (SYN, MpCapable(flags=0xE1)),
    (SYN | ACK, MpCapable(flags=0x81, sender_key=KEY_A)),
    (ACK, MpCapable(flags=0x21, sender_key=KEY_A, receiver_key=KEY_B)),
    (ACK, MpCapable(sender_key=KEY_A, receiver_key=KEY_B, data_length=3)),
    (ACK, MpCapable(flags=0x81, sender_key=KEY_A, receiver_key=KEY_B, data_length=3, checksum=0xBEEF)),
    (SYN, MpCapable(version=0, flags=0x81, sender_key=KEY_A)),
    (SYN | ACK, MpCapable(version=0, sender_key=KEY_B)),
    (ACK, MpCapable(version=0, sender_key=KEY_A, receiver_key=KEY_B)),
]
OTHERS: list[tuple[int, MptcpOption]] = [
    (SYN, MpJoinSyn(0xDEADBEEF, 0x01020304, 3)),
    (SYN, MpJoinSyn(0xDEADBEEF, 0x01020304, 3, backup=True)),
    (SYN | ACK, MpJoinSynAck(HMAC, 0x01020304, 4)),
    (SYN | ACK, MpJoinSynAck(HMAC, 0x01020304, 4, backup=True)),
    (ACK, MpJoinAck(bytes(range(20)))),
    *[
        (ACK, Dss(data_ack, wide_ack and data_ack is not None, dsn, wide_dsn and dsn is not None, 77, 3, check, fin))
        for data_ack in (None, 0xFFFFFFFE)
        for wide_ack in (False, True)
        for dsn in (None, 0x80000001)
        for wide_dsn in (False, True)
        for check in ((None, 0xBEEF) if dsn is not None else (None,))
        for fin in (False, True)
    ],
    (ACK, Dss(KEY_A, True, KEY_B, True, 1, 3)),
    *[
        (ACK, AddAddr(5, address, port, echo, hmac, version))
        for address in (A4, A6)
        for port in (None, 8080)
        for echo, hmac, version in ((False, HMAC, 1), (True, None, 1), (False, None, 0))
    ],
    (ACK, RemoveAddr((9,))),
    (ACK, RemoveAddr((1, 255, 3, 0))),
    (ACK, MpPrio(False)),
    (ACK, MpPrio(True)),
    (ACK, MpPrio(True, 7)),
    (ACK, MpFail(KEY_A)),
    (ACK, MpFastclose(KEY_B)),
    (RST | ACK, MpFastclose(KEY_B)),
    (RST, MpTcprst(3)),
    (RST | ACK, MpTcprst(6, transient=True, flags=0xA)),
    (ACK, MpExperimental(3, b"ab")),
    (ACK, MpUnknown(9, b"\x9abc")),
]


@pytest.mark.parametrize("family", [4, 6])
def test_every_mptcp_option(tmp_path: Path, family: int) -> None:
    packets: list[bytes] = []
    expected: list[dict[str, Values]] = []
    for number, (flags, option) in enumerate(CAPABLES + OTHERS):
        # A port of its own for each: Wireshark reads an option in the light of the connection it knows.
        options = Options(timestamp_value=5, timestamp_echo=6, mptcp=(option,))
        if tcp_options.length(options) > tcp_options.MAX_OCTETS:
            options = Options(mptcp=(option,))  # an IPv6 ADD_ADDR with port and HMAC leaves no room for timestamps
        segment = Segment(1000, 2000 if flags & ACK else 0, flags, 500, options, (b"abc",))
        packets.append(tcp_packet(segment, 20000 + number, family))
        expected.append(
            {
                "tcp.checksum.status": [1],
                "tcp.options.timestamp.tsval": [] if options.timestamp_value is None else [5],
                "tcp.options.timestamp.tsecr": [] if options.timestamp_value is None else [6],
                **mptcp_fields(option),
            }
        )
    compare(tmp_path / "mptcp.pcap", packets, expected)


def test_every_tcp_option(tmp_path: Path) -> None:
    o = "tcp.options."
    cases: list[tuple[int, Options, dict[str, Values]]] = [
        (
            SYN,
            Options(mss=1460, window_scale=7, sack_permitted=True, timestamp_value=0xFFFFFFFF),
            {
                "tcp.option_kind": [2, 4, 8, 1, 3],
                o + "mss_val": [1460],
                o + "wscale.shift": [7],
                o + "timestamp.tsval": [0xFFFFFFFF],
                o + "timestamp.tsecr": [0],
            },
        ),
        (SYN, Options(sack_permitted=True), {"tcp.option_kind": [1, 1, 4], "tcp.hdr_len": [24]}),
        (
            ACK,
            Options(sack_blocks=((3000, 4000), (5000, 6000), (7000, 8000), (9000, 9999))),
            {
                o + "sack.count": [4],
                o + "sack_le": [3000, 5000, 7000, 9000],
                o + "sack_re": [4000, 6000, 8000, 9999],
                "tcp.hdr_len": [56],
            },
        ),
        (ACK, Options(user_timeout=0x8007), {o + "user_to_granularity": [1], o + "user_to_val": [7]}),
        (SYN, Options(fast_open=b""), {"tcp.option_kind": [34, 1, 1], "tcp.option_len": [2]}),
        (SYN, Options(fast_open=HMAC), {o + "tfo.cookie": [HMAC.hex()]}),
        (ACK, Options(unknown=((200, b"\xab\xcd"),)), {"tcp.option_kind": [200], "tcp.option_len": [4]}),
        (
            ACK,
            Options(timestamp_value=1, timestamp_echo=2, mptcp=(Dss(7), MpPrio(True), RemoveAddr((1,)))),
            {"tcp.option_kind": [1, 1, 8, 30, 30, 1, 30], o + "mptcp.subtype": [2, 5, 4]},
        ),
    ]
    packets = [
        tcp_packet(Segment(1, 2000 if flags & ACK else 0, flags, 1, options), 21000 + number)
        for number, (flags, options, _) in enumerate(cases)
    ]
    compare(tmp_path / "tcp.pcap", packets, [wanted for _, _, wanted in cases])


@pytest.mark.parametrize("family", [4, 6])
def test_headers(tmp_path: Path, family: int) -> None:
    packets: list[bytes] = []
    expected: list[dict[str, Values]] = []
    for number, flags in enumerate((SYN, SYN | ACK, ACK, PSH | ACK, FIN | ACK, RST, ACK | ECE | CWR, ACK | URG, 0x1FF)):
        payload = b"x" * (number * 7)
        segment = Segment(0xFFFFFFF0, 0x80000000, flags, 0x1234, payloads=(payload,), urgent_pointer=number)
        wanted: dict[str, Values] = {
            "tcp.srcport": [22000 + number],
            "tcp.dstport": [80],
            "tcp.seq_raw": [0xFFFFFFF0],
            "tcp.ack_raw": [0x80000000],
            "tcp.flags": [flags],
            "tcp.window_size_value": [0x1234],
            "tcp.urgent_pointer": [number],
            "tcp.len": [len(payload)],
            "tcp.hdr_len": [20],
            "tcp.checksum.status": [1],
        }
        if family == 4:
            packets.append(tcp_packet(segment, 22000 + number, identification=number, hop_limit=9, traffic_class=0xB9))
            wanted |= {
                "ip.src": ["10.0.0.1"],
                "ip.dst": ["10.0.0.2"],
                "ip.len": [40 + len(payload)],
                "ip.id": [number],
                "ip.ttl": [9],
                "ip.dsfield": [0xB9],
                "ip.flags.df": [1],
                "ip.checksum.status": [1],
            }
        else:
            packets.append(tcp_packet(segment, 22000 + number, 6, hop_limit=9, traffic_class=0xB9, flow_label=0xABCDE))
            wanted |= {
                "ipv6.src": ["2001:db8::1"],
                "ipv6.dst": ["2001:db8::2"],
                "ipv6.plen": [20 + len(payload)],
                "ipv6.hlim": [9],
                "ipv6.tclass": [0xB9],
                "ipv6.flow": [0xABCDE],
            }
        expected.append(wanted)
    compare(tmp_path / "headers.pcap", packets, expected)


def test_segment_routing_header(tmp_path: Path) -> None:
    segment = Segment(1, 2, ACK, 3, payloads=(b"routed",))
    pseudo = checksum.pseudo_sum(A6, B6, 6)
    transport = tcp.emit(segment, 23000, 80, pseudo, partial=False) + segment.payload
    packet = ip.emit_ipv6(A6, B6, len(transport), segments=(S6, R6)) + transport
    wanted: dict[str, Values] = {
        "ipv6.routing.type": [4],
        "ipv6.routing.segleft": [2],
        "ipv6.routing.srh.last_entry": [2],
        "ipv6.routing.srh.addr": ["2001:db8::2", "2001:db8::9", "2001:db8::5"],
        "tcp.checksum.status": [1],
        "tcp.len": [6],
    }
    compare(tmp_path / "srh.pcap", [packet], [wanted])


def test_icmp_errors(tmp_path: Path) -> None:
    packets: list[bytes] = []
    expected: list[dict[str, Values]] = []
    quoted4 = tcp_packet(Segment(0xCAFEBABE, 1, ACK, 1, payloads=(b"x" * 900,)), 24000)
    quoted6 = tcp_packet(Segment(0xCAFEBABE, 1, ACK, 1, payloads=(b"x" * 1300,)), 24000, 6)
    for kind in IcmpKind:
        too_big = kind is IcmpKind.PACKET_TOO_BIG
        for packet, version, protocol in (
            (icmp.emit(kind, quoted4, R4, mtu=1300), 4, "icmp"),
            (icmp.emit(kind, quoted6, R6, mtu=1300), 6, "icmpv6"),
        ):
            header = ip.parse(memoryview(packet))
            assert header is not None
            error = icmp.parse(memoryview(packet), header)
            assert error is not None
            packets.append(packet)
            expected.append(
                {
                    f"{protocol}.type": [error.type],
                    f"{protocol}.code": [error.code],
                    f"{protocol}.mtu": [1300] if too_big else [],
                    f"{protocol}.checksum.status": [1],
                    "tcp.seq": [error.seq],
                    "tcp.srcport": [error.source_port],
                    "tcp.dstport": [error.destination_port],
                    "ip.version": [version, version],
                }
            )
    compare(tmp_path / "icmp.pcap", packets, expected)


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize("checksum_on", [False, True])
def test_a_whole_connection(tmp_path: Path, version: int, checksum_on: bool, family: int) -> None:
    """Two subflows from the first SYN to the last FIN: Wireshark follows keys, tokens and numbers, and finds no fault."""
    config = ConnectionConfig(version=version, checksum=checksum_on)
    pair = Pair(
        paths=2, ipv6=family == 6, single_homed_server=False, client_options=config, server_options=config,
        keep_packets=10_000,
    )  # fmt: skip
    client, server = pair.connect(subflows=2)
    tokens = {client.token, server.token}
    assert pair.transfer(100_000).is_exact
    assert pair.transfer(100_000, from_client=False).is_exact
    pair.close()
    assert pair.world.trace is not None
    # The simulator's network cards complete no checksums; this one does.
    offset = 20 if family == 4 else 40
    packets = [finish(Packet(p.data, (), len(p.data), offset, 0, True))[0] for p in pair.world.trace.packets]
    p = "tcp.options.mptcp."
    own = ["subtype", "rawdataseqno", "rawdataack", "subflowseqno", "datafin.flag", "addrid", "recvtok"]
    faults = ["echoed_key_mismatch", "missing_algorithm", "unsupported_algorithm"]
    fields = [p + name for name in own] + [f"mptcp.connection.{name}" for name in faults]
    fields += [
        "mptcp.stream",
        "mptcp.expected_token",
        "tcp.checksum.status",
        "_ws.malformed",
        "mptcp.dss.infinite_mapping",
    ]
    write_pcap(tmp_path / "connection.pcap", packets)
    rows = read_fields(tmp_path / "connection.pcap", fields)
    assert len(rows) == len(packets) > 100
    subtypes: set[int | str] = set()
    for data, row in zip(packets, rows, strict=True):
        segment, _, _ = builders.parse_packet(data)
        wanted: dict[str, Values] = {p + name: [] for name in own}
        for option in segment.options.mptcp:
            for name, values in mptcp_fields(option).items():
                if name in wanted:
                    wanted[name] += values
        assert {name: row[name] for name in wanted} == wanted, dump.format_packet(data)
        assert row["tcp.checksum.status"] == [1]
        # No key is in the SYN of version 1.
        handshake = version == 1 and segment.flags & SYN
        assert handshake or row["mptcp.stream"] == [0], "both subflows are of one connection"
        assert not any(
            row[name] for name in fields if "connection." in name or "malformed" in name or "infinite" in name
        )
        subtypes.update(row[p + "subtype"])
    assert {0, 1, 2} <= subtypes
    # made by Wireshark from the keys, with the hash of that version
    assert {token for row in rows for token in row["mptcp.expected_token"]} == tokens
