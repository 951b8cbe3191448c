"""The printer: whole lines, every option's fields, numbers relative to the flow's start, and any octets at all."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mptcp.core.wire import checksum, dump, icmp, ip, tcp
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
from mptcp.core.wire.segment import ACK, AE, PSH, SYN, URG, Options, Segment

A4, B4 = bytes((10, 0, 0, 1)), bytes((10, 0, 0, 2))
A6, B6, S6 = (bytes.fromhex("fd00") + bytes(13) + bytes((n,)) for n in (1, 2, 5))


def packet(
    segment: Segment, *, family: int = 4, back: bool = False, segments: tuple[bytes, ...] = (), spoil: int = 0
) -> bytes:
    source, destination = (A4, B4) if family == 4 else (A6, B6)
    ports = (40000, 80)
    if back:
        source, destination, ports = destination, source, (80, 40000)
    pseudo = checksum.pseudo_sum(source, destination, 6) + spoil
    transport = tcp.emit(segment, *ports, pseudo, partial=False) + segment.payload
    if family == 4:
        return ip.emit_ipv4(source, destination, len(transport), identification=7) + transport
    return ip.emit_ipv6(source, destination, len(transport), segments=segments, hop_limit=9) + transport


DATA = Segment(
    1000,
    5000,
    PSH | ACK,
    99,
    Options(timestamp_value=1, timestamp_echo=2, mptcp=(Dss(7, True, 9, True, 1, 3),)),
    (b"abc",),
)


def test_data_segment() -> None:
    assert dump.format_packet(packet(DATA)) == (
        "IP 10.0.0.1.40000 > 10.0.0.2.80: Flags [P.], seq 1000:1003, ack 5000, win 99, "
        "options [nop,nop,TS val 1 ecr 2,mptcp 26 dss ack8 7 seq8 9 subseq 1 len 3,nop,nop], length 3"
    )


def test_ipv6_with_segment_routing() -> None:
    segment = Segment(1, 2, ACK, 3)
    assert dump.format_packet(packet(segment, family=6, segments=(S6,))) == (
        "IP6 fd00::1.40000 > fd00::5.80: srcrt (segleft=1, [fd00::5,fd00::2]) Flags [.], ack 2, win 3, length 0"
    )


def test_verbose_tells_the_headers_and_judges_the_checksum() -> None:
    line = dump.format_packet(packet(Segment(1, 2, ACK, 3)), verbose=True)
    assert line.startswith("IP (tos 0x0, ttl 64, id 7, flags [DF], length 40) 10.0.0.1.40000 > ")
    assert "(correct)" in line
    line = dump.format_packet(packet(Segment(1, 2, ACK, 3), family=6, spoil=1), verbose=True)
    assert line.startswith("IP6 (class 0x0, hlim 9, length 60) fd00::1.40000 > ")
    assert "(incorrect)" in line


def test_numbers_count_from_the_syn_of_their_flow() -> None:
    dumper = dump.Dumper()
    lines = [
        dumper.line(packet(Segment(0xFFFFFFFF, 0, SYN, 1))),
        dumper.line(packet(Segment(4999, 0, SYN | ACK, 1), back=True)),
        dumper.line(packet(Segment(0, 5000, ACK, 1, payloads=(b"abc",)))),
        dumper.line(packet(Segment(5000, 3, ACK, 1, Options(sack_blocks=((10, 20),))), back=True)),
    ]
    numbers = [line.partition("Flags")[2].partition(", win")[0] for line in lines]
    assert numbers == [
        " [S], seq 4294967295",
        " [S.], seq 4999, ack 1",
        " [.], seq 1:4, ack 1",
        " [.], ack 4",
    ]
    assert "sack 1 {11:21}" in lines[3]


def test_a_capture_that_begins_in_the_middle_counts_from_one() -> None:
    dumper = dump.Dumper()
    assert "seq 1:4, ack 1," in dumper.line(packet(DATA))
    assert "ack 4," in dumper.line(packet(Segment(5000, 1003, ACK, 1), back=True))


def test_flows_remembered_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dump, "MAX_FLOWS", 4)
    dumper = dump.Dumper()
    pseudo = checksum.pseudo_sum(A4, B4, 6)
    for port in range(1, 50):
        transport = tcp.emit(Segment(9, 9, ACK), port, 80, pseudo, partial=False)
        dumper.line(ip.emit_ipv4(A4, B4, 20) + transport)
    assert len(dumper._starts) == 4


@pytest.mark.parametrize(
    ("option", "text"),
    [
        (MpCapable(flags=0xA1), "mptcp 4 capable v1 [ACH]"),
        (
            MpCapable(flags=0x81, sender_key=1, receiver_key=2, data_length=3, checksum=4),
            "mptcp 24 capable v1 [AH] {0x0000000000000001,0x0000000000000002} len 3 csum 0x0004",
        ),
        (MpJoinSyn(0xABC, 0xDEF, 5, True), "mptcp 12 join backup id 5 token 0x00000abc nonce 0x00000def"),
        (MpJoinSynAck(bytes(7) + b"\xff", 0xDEF, 5), "mptcp 16 join id 5 hmac 0x00000000000000ff nonce 0x00000def"),
        (MpJoinAck(bytes(19) + b"\x01"), "mptcp 24 join hmac 0x" + "00" * 19 + "01"),
        (Dss(), "mptcp 4 dss"),
        (Dss(1, data_fin=True), "mptcp 8 dss fin ack4 1"),
        (Dss(1, True, 2, False, 3, 4, 5), "mptcp 24 dss ack8 1 seq4 2 subseq 3 len 4 csum 0x0005"),
        (AddAddr(5, A4, 80, hmac=bytes(8)), "mptcp 18 add-addr id 5 10.0.0.1 port 80 hmac 0x0000000000000000"),
        (AddAddr(5, A6, echo=True), "mptcp 20 add-addr echo id 5 fd00::1"),
        (AddAddr(5, A4, version=0), "mptcp 8 add-addr v0 id 5 10.0.0.1"),
        (RemoveAddr((1, 2)), "mptcp 5 rem-addr id 1 2"),
        (MpPrio(True), "mptcp 3 prio backup"),
        (MpPrio(False, 3), "mptcp 4 prio id 3"),
        (MpFail(77), "mptcp 12 fail seq 77"),
        (MpFastclose(77), "mptcp 12 fast-close key 0x000000000000004d"),
        (MpTcprst(2), "mptcp 4 tcprst reason 2 (lack of resources)"),
        (MpTcprst(9, True, 8), "mptcp 4 tcprst transient flags 0x8 reason 9 (unknown)"),
        (MpExperimental(3, b"\xab"), "mptcp 4 experimental flags 0x3 0xab"),
        (MpUnknown(9, b"\x9a\xbc"), "mptcp 4 unknown-9 0x9abc"),
    ],
)
def test_every_mptcp_option(option: MptcpOption, text: str) -> None:
    assert dump.mptcp_text(option) == text


def test_every_tcp_option() -> None:
    options = Options(
        mss=1460, window_scale=7, sack_permitted=True, timestamp_value=1, user_timeout=0x8005, unknown=((254, b"\x01"),)
    )
    line = dump.format_packet(packet(Segment(1, 0, SYN, 2, options)))
    assert "options [mss 1460,sackOK,TS val 1 ecr 0,nop,wscale 7,uto 5min,unknown-254 0x01,nop], " in line
    assert "options [tfo cookiereq,nop,nop]" in dump.format_packet(
        packet(Segment(1, 0, SYN, 2, Options(fast_open=b"")))
    )
    cookie = dump.format_packet(packet(Segment(1, 0, SYN, 2, Options(fast_open=b"\xaa" * 4))))
    assert "tfo cookie aaaaaaaa" in cookie


def test_flags() -> None:
    assert dump.flag_letters(0) == "none"
    assert dump.flag_letters(SYN | ACK | URG | AE) == "S.Ue"
    assert "urg 5," in dump.format_packet(packet(Segment(1, 2, ACK | URG, 3, urgent_pointer=5)))


def test_segment_without_a_packet() -> None:
    assert dump.format_segment(Segment(1, 2, ACK, 3, Options(timestamp_value=4), (b"abc",))) == (
        "Flags [.], seq 1, ack 2, win 3, options [TS val 4 ecr 0], length 3"
    )


def test_icmp() -> None:
    error = icmp.emit(IcmpKind.PACKET_TOO_BIG, packet(DATA), bytes((10, 0, 0, 9)), mtu=1300)
    assert dump.format_packet(error) == (
        "IP 10.0.0.9 > 10.0.0.1: ICMP packet too big (mtu 1300) for 10.0.0.1.40000 > 10.0.0.2.80 tcp seq 1000, "
        f"length {len(error) - 20}"
    )
    echo = ip.emit_ipv6(A6, B6, 8, next_header=ip.ICMPV6) + bytes.fromhex("8000000000000000")
    assert dump.format_packet(echo) == "IP6 fd00::1 > fd00::2: ICMP6 type 128 code 0, length 8"


@pytest.mark.parametrize(
    ("octets", "text"),
    [
        (b"", "[malformed IP packet, 0 octets: ]"),
        (b"\xff" * 30, "[malformed IP packet, 30 octets: " + "ff" * 20 + "...]"),
        (ip.emit_ipv4(A4, B4, 3) + b"abc", "IP 10.0.0.1 > 10.0.0.2: [truncated TCP header, 3 octets]"),
        (ip.emit_ipv4(A4, B4, 4, protocol=17) + b"abcd", "IP 10.0.0.1 > 10.0.0.2: proto 17, length 4"),
        (
            ip.emit_ipv4(A4, B4, 8, identification=9, fragment_offset=1480) + bytes(8),
            "IP 10.0.0.1 > 10.0.0.2: frag (0x9|1480+8) proto 6, length 8",
        ),
        (ip.emit_ipv4(A4, B4, 20) + bytes(20), "IP 10.0.0.1.0 > 10.0.0.2.0: [bad TCP header length 0]"),
    ],
)
def test_malformed_and_foreign_packets(octets: bytes, text: str) -> None:
    assert dump.format_packet(octets) == text


def test_broken_option_list_is_shown_up_to_where_it_breaks() -> None:
    octets = bytearray(packet(Segment(1, 2, ACK, 3, Options(timestamp_value=1))))
    octets[43] = 99  # the length of the timestamps
    assert "options [nop,nop,[bad option 8: length 99 of 10]], " in dump.format_packet(bytes(octets))


@pytest.mark.parametrize(("family", "header"), [(4, 20), (6, 40)])
def test_a_capture_with_a_snap_length(family: int, header: int) -> None:
    whole = packet(DATA, family=family)
    transport_header = len(whole) - len(DATA.payload)
    for kept in range(len(whole)):
        line = dump.Dumper(relative=False).line(whole[:kept], len(whole))
        assert "malformed" not in line
        if kept >= transport_header:
            assert line == dump.format_packet(whole)  # the payload is not shown anyway
        else:
            assert "[truncated capture" in line
            assert ("length 3" in line) == (kept >= header + 20)
    assert "(truncated capture)" in dump.Dumper(verbose=True).line(whole[:-1], len(whole))
    assert dump.Dumper().line(whole[:10], 1 << 40).startswith("[truncated capture, 10 of 1099511627776 octets: ")


def test_a_snap_length_within_icmp() -> None:
    echo = ip.emit_ipv4(A4, B4, 8, protocol=ip.ICMP) + bytes.fromhex("0800f7ff00000000")
    assert dump.Dumper().line(echo[:24], 28) == "IP 10.0.0.1 > 10.0.0.2: ICMP [truncated capture], length 8"


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=60), st.lists(st.tuples(st.integers(0, 99), st.integers(0, 255)), max_size=5), st.booleans())
def test_any_octets_make_one_line(tail: bytes, changes: list[tuple[int, int]], version_6: bool) -> None:
    octets = bytearray(packet(DATA, family=6 if version_6 else 4) + tail)
    for position, value in changes:
        octets[position % len(octets)] = value
    if octets[0] == 0x45:  # most changes would otherwise end at the header checksum
        octets[10:12] = b"\0\0"
        octets[10:12] = checksum.complement(checksum.add(octets[:20])).to_bytes(2, "big")
    line = dump.Dumper(verbose=True).line(memoryview(octets))
    assert line
    assert "\n" not in line
