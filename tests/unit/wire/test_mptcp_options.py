"""Every MPTCP option: octets drawn by hand from the figures of RFC 8684 and RFC 6824, both ways; and hostile ones."""

import pytest

from mptcp.core.wire import mptcp_options
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
from mptcp.core.wire.segment import ACK, PSH, RST, SYN

KEY_A, KEY_B = 0x0102030405060708, 0xF1F2F3F4F5F6F7F8
A8, B8 = "0102030405060708", "f1f2f3f4f5f6f7f8"
V6 = bytes.fromhex("20010db8000000000000000000000001")

VECTORS = [
    # RFC 8684 §3.1, Figure 4 (version 1)
    ("1e04 0101", SYN, MpCapable()),
    ("1e04 0181", SYN, MpCapable(flags=0x81)),
    ("1e04 0201", SYN, MpCapable(version=2)),
    (f"1e0c 0101 {A8}", SYN | ACK, MpCapable(sender_key=KEY_A)),
    (f"1e14 0121 {A8} {B8}", ACK, MpCapable(flags=0x21, sender_key=KEY_A, receiver_key=KEY_B)),
    (
        f"1e16 0101 {A8} {B8} 05b4 0101",
        ACK | PSH,
        MpCapable(sender_key=KEY_A, receiver_key=KEY_B, data_length=1460),
    ),
    (
        f"1e18 0181 {A8} {B8} 05b4 beef",
        ACK,
        MpCapable(flags=0x81, sender_key=KEY_A, receiver_key=KEY_B, data_length=1460, checksum=0xBEEF),
    ),
    # RFC 6824 §3.1, Figure 4 (version 0): the SYN has a key, the third ACK has both
    (f"1e0c 0081 {A8}", SYN, MpCapable(version=0, flags=0x81, sender_key=KEY_A)),
    (f"1e0c 0001 {B8}", SYN | ACK, MpCapable(version=0, sender_key=KEY_B)),
    (f"1e14 0001 {A8} {B8}", ACK, MpCapable(version=0, sender_key=KEY_A, receiver_key=KEY_B)),
    # RFC 8684 §3.2, Figures 5, 6, 7
    ("1e0c 1005 01020304 a1a2a3a4", SYN, MpJoinSyn(0x01020304, 0xA1A2A3A4, 5)),
    ("1e0c 1105 01020304 a1a2a3a4", SYN, MpJoinSyn(0x01020304, 0xA1A2A3A4, 5, backup=True)),
    (f"1e10 1007 {A8} a1a2a3a4", SYN | ACK, MpJoinSynAck(bytes.fromhex(A8), 0xA1A2A3A4, 7)),
    (f"1e10 1107 {A8} a1a2a3a4", SYN | ACK, MpJoinSynAck(bytes.fromhex(A8), 0xA1A2A3A4, 7, backup=True)),
    ("1e18 1000" + bytes(range(20)).hex(), ACK, MpJoinAck(bytes(range(20)))),
    # RFC 8684 §3.3, Figure 9
    ("1e08 2001 01020304", ACK, Dss(0x01020304)),
    (f"1e0c 2003 {A8}", ACK, Dss(KEY_A, True)),
    ("1e0e 2004 a1a2a3a4 00000001 05b4 0101", ACK, Dss(dsn=0xA1A2A3A4, ssn=1, length=1460)),
    (f"1e12 200c {B8} 00000001 05b4 0101", ACK, Dss(dsn=KEY_B, dsn_wide=True, ssn=1, length=1460)),
    (
        "1e14 2005 01020304 a1a2a3a4 00000001 05b4 beef",
        ACK,
        Dss(0x01020304, dsn=0xA1A2A3A4, ssn=1, length=1460, checksum=0xBEEF),
    ),
    (
        f"1e1c 201f {A8} {B8} 00000000 0001 beef",
        ACK,
        Dss(KEY_A, True, KEY_B, True, 0, 1, 0xBEEF, data_fin=True),
    ),
    (
        f"1e1a 200f {A8} {B8} 00000001 ffff 0101",
        ACK,
        Dss(KEY_A, True, KEY_B, True, 1, 0xFFFF),
    ),
    ("1e04 2000", ACK, Dss()),
    ("1e04 2010", ACK, Dss(data_fin=True)),
    # RFC 8684 §3.4.1, Figure 12
    (f"1e10 3005 0a000001 {A8}", ACK, AddAddr(5, bytes((10, 0, 0, 1)), hmac=bytes.fromhex(A8))),
    (f"1e12 3005 0a000001 1f90 {A8} 0101", ACK, AddAddr(5, bytes((10, 0, 0, 1)), 8080, hmac=bytes.fromhex(A8))),
    ("1e08 3105 0a000001", ACK, AddAddr(5, bytes((10, 0, 0, 1)), echo=True)),
    ("1e0a 3105 0a000001 1f90 0101", ACK, AddAddr(5, bytes((10, 0, 0, 1)), 8080, echo=True)),
    (f"1e1c 3006 {V6.hex()} {A8}", ACK, AddAddr(6, V6, hmac=bytes.fromhex(A8))),
    (f"1e1e 3006 {V6.hex()} 1f90 {A8} 0101", ACK, AddAddr(6, V6, 8080, hmac=bytes.fromhex(A8))),
    (f"1e14 3106 {V6.hex()}", ACK, AddAddr(6, V6, echo=True)),
    (f"1e16 3106 {V6.hex()} 1f90 0101", ACK, AddAddr(6, V6, 8080, echo=True)),
    # RFC 6824 §3.4.1, Figure 12: IPVer in place of the flags, no HMAC
    ("1e08 3405 0a000001", ACK, AddAddr(5, bytes((10, 0, 0, 1)), version=0)),
    ("1e0a 3405 0a000001 1f90 0101", ACK, AddAddr(5, bytes((10, 0, 0, 1)), 8080, version=0)),
    (f"1e14 3606 {V6.hex()}", ACK, AddAddr(6, V6, version=0)),
    (f"1e16 3606 {V6.hex()} 1f90 0101", ACK, AddAddr(6, V6, 8080, version=0)),
    # RFC 8684 §3.4.2, Figure 13
    ("1e04 4005", ACK, RemoveAddr((5,))),
    ("1e06 4005 ff00 0101", ACK, RemoveAddr((5, 255, 0))),
    # RFC 8684 §3.3.8, Figure 11; RFC 6824 §3.3.8, Figure 11
    ("1e03 50 01", ACK, MpPrio(False)),
    ("1e03 51 01", ACK, MpPrio(True)),
    ("1e04 5109", ACK, MpPrio(True, 9)),
    # RFC 8684 §3.7, Figure 16; §3.5, Figure 14; §3.6, Figure 15
    (f"1e0c 6000 {A8}", ACK, MpFail(KEY_A)),
    (f"1e0c 7000 {B8}", RST | ACK, MpFastclose(KEY_B)),
    ("1e04 8001", RST, MpTcprst(1)),
    ("1e04 8106", RST | ACK, MpTcprst(6, transient=True)),
    ("1e04 8eff", RST, MpTcprst(255, flags=0xE)),
    # RFC 8684 §7.2: subtype 0xf, private use
    ("1e05 f3abcd 010101", ACK, MpExperimental(3, b"\xab\xcd")),
    # no RFC's
    ("1e04 9abc", ACK, MpUnknown(9, b"\x9a\xbc")),
]


@pytest.mark.parametrize(("octets", "flags", "option"), VECTORS, ids=[v[0].replace(" ", "")[:24] for v in VECTORS])
def test_octets_of_the_figures(octets: str, flags: int, option: MptcpOption) -> None:
    data = bytes.fromhex(octets)
    assert mptcp_options.emit(option) == data
    assert len(data) == mptcp_options.padded_length(option)
    assert mptcp_options.length(option) == data[1]
    assert mptcp_options.parse(memoryview(b"??" + data), 2, data[1], flags) == option


def parse(octets: str, flags: int = ACK, version: int = 1) -> MptcpOption:
    data = bytes.fromhex(octets)
    return mptcp_options.parse(data, 0, len(data), flags, version)


# RFC 8684 §3.1: "The contents of the option are determined by the SYN and ACK flags of the packet, along with the
# option's Length field."
@pytest.mark.parametrize(
    ("octets", "flags"),
    [
        ("1e04 0101", ACK),
        ("1e04 0101", SYN | ACK),
        ("1e04 0001", SYN),  # version 0 without a key
        (f"1e0c 0101 {A8}", SYN),  # version 1 with a key
        (f"1e0c 0101 {A8}", ACK),
        (f"1e14 0101 {A8} {B8}", SYN),
        (f"1e14 0101 {A8} {B8}", RST),
        (f"1e16 0001 {A8} {B8} 0001", ACK),  # data length is of version 1
        (f"1e15 0101 {A8} {B8} 00", ACK),
        ("1e03 01", SYN),
        ("1e0c 1005 01020304 a1a2a3a4", SYN | ACK),
        ("1e0c 1005 01020304 a1a2a3a4", ACK),
        (f"1e10 1007 {A8} a1a2a3a4", SYN),
        ("1e18 1000" + bytes(20).hex(), SYN),
        ("1e17 1000" + bytes(19).hex(), ACK),
        ("1e18 1000" + bytes(20).hex(), RST),
    ],
)
def test_shape_that_does_not_fit_the_segment_is_unknown(octets: str, flags: int) -> None:
    data = bytes.fromhex(octets)
    assert parse(octets, flags) == MpUnknown(data[2] >> 4, data[2:])


@pytest.mark.parametrize(
    "octets",
    [
        "1e03 20",
        "1e07 2001 010203",  # acknowledgement cut short
        "1e08 2003 01020304",  # flag says 8 octets
        "1e0a 2001 01020304 beef",  # a checksum without a mapping
        "1e0f 2004 a1a2a3a4 00000001 05b4 be",
        "1e08 2000 01020304",
        "1e05 3005 0a",
        "1e10 3105 0a000001" + A8,  # echo with a HMAC
        "1e08 3005 0a000001",  # neither echo, nor HMAC, nor version 0
        "1e08 3605 0a000001",  # IPVer 6 with an IPv4 address
        "1e14 3406" + V6.hex(),
        "1e03 40",
        "1e05 500102",
        "1e0b 6000 01020304050607",
        "1e0d 7000 010203040506070809",
        "1e03 80",
        "1e05 800100",
    ],
)
def test_length_that_no_figure_gives_is_unknown(octets: str) -> None:
    data = bytes.fromhex(octets)
    assert parse(octets) == MpUnknown(data[2] >> 4, data[2:])


def test_an_option_without_subtype_is_unknown() -> None:
    assert parse("1e02") == MpUnknown(-1, b"")
    assert mptcp_options.emit(MpUnknown(-1, b"")) == bytes.fromhex("1e020101")


# RFC 8684 §3.3: "The flags "a" and "m" only have meaning if the corresponding "A" or "M" flags are set; otherwise, they
# will be ignored." Reserved bits likewise.
def test_dss_ignores_width_flags_without_their_field_and_reserved_bits() -> None:
    assert parse("1e04 200a") == Dss()
    assert parse("1e08 2ff9 01020304") == Dss(0x01020304, data_fin=True)
    assert parse("1e0e 2fe6 a1a2a3a4 00000001 05b4") == Dss(dsn=0xA1A2A3A4, ssn=1, length=1460)


# RFC 8684 §3.4.1: "The other bits are currently unassigned; they MUST be set to 0 by a sender and MUST be ignored by
# the receiver."
def test_reserved_bits_of_add_addr_join_and_prio_are_ignored() -> None:
    assert parse(f"1e10 3e05 0a000001 {A8}") == AddAddr(5, bytes((10, 0, 0, 1)), hmac=bytes.fromhex(A8))
    assert parse("1e08 3f05 0a000001") == AddAddr(5, bytes((10, 0, 0, 1)), echo=True)
    assert parse("1e0c 1f05 01020304 a1a2a3a4", SYN) == MpJoinSyn(0x01020304, 0xA1A2A3A4, 5, True)
    assert parse("1e03 5e") == MpPrio(False)
    assert parse(f"1e0c 6fff {A8}") == MpFail(KEY_A)


def test_version_0_refuses_what_only_version_1_has() -> None:
    for octets in (f"1e10 3005 0a000001 {A8}", "1e08 3105 0a000001", "1e04 8001"):
        data = bytes.fromhex(octets)
        assert parse(octets, ACK, version=0) == MpUnknown(data[2] >> 4, data[2:])
        assert not isinstance(parse(octets, ACK, version=1), MpUnknown)
    assert parse("1e08 3405 0a000001", ACK, version=0) == parse("1e08 3405 0a000001", ACK, version=1)
