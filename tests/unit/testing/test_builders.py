"""Builders: what is built is what is parsed, and what goes on the wire adds up."""

from __future__ import annotations

import pytest

from mptcp.core.wire.mptcp_options import Dss, MpCapable, MpJoinSyn, MpTcprst
from mptcp.core.wire.segment import ACK, FIN, PSH, RST, SYN, Segment
from mptcp.info import Endpoint
from mptcp.sim.rawtcp import TcpPacket, checksum_is_valid
from mptcp.testing import builders as b

PAIRS = [
    (Endpoint.parse("10.0.0.2", 40_000), Endpoint.parse("10.0.0.1", 80)),
    (Endpoint.parse("fd00::2", 40_000), Endpoint.parse("fd00::1", 80)),
]
SEGMENTS = [
    b.syn(b.mp_capable(), window_scale=7, sack_permitted=True, timestamp=(5, 0)),
    b.syn(b.mp_join(token=0xDEADBEEF)),
    b.syn_ack(b.mp_capable(1 << 60), ack=7),
    b.ack(b.mp_capable(1 << 60, 1 << 61), seq=b.PEER_ISN + 1, ack=7),
    b.ack(b.mp_join_ack(bytes(range(32))), seq=1, ack=7),
    b.ack(seq=1, ack=7, sack_blocks=((100, 200), (300, 400))),
    b.data(b"hello", b.dss(data_ack=1 << 63, dsn=1 << 40, ssn=1, length=5), seq=1, ack=7, timestamp=(9, 8)),
    b.data(b"odd", b.dss(dsn=5, ssn=1, length=3, checksum=0x1234, wide=False), seq=1, ack=7),
    b.ack(b.add_addr("10.0.1.2", 3, port=81, hmac=b"12345678"), seq=1, ack=7),
    b.ack(b.add_addr("fd00:1::2", 3, echo=True), seq=1, ack=7),
    b.ack(b.remove_addr(1, 2, 3), seq=1, ack=7),
    b.ack(b.mp_prio(True), seq=1, ack=7),
    b.ack(b.mp_fail(1 << 50), seq=1, ack=7),
    b.fin(b.dss(data_ack=5, data_fin=True, dsn=5, length=1), seq=1, ack=7),
    b.rst(b.mp_tcprst(1)),
    b.rst(b.mp_fastclose(1 << 62), seq=5, ack=6),
]


@pytest.mark.parametrize(("source", "destination"), PAIRS)
@pytest.mark.parametrize("segment", SEGMENTS)
def test_a_packet_is_parsed_to_what_it_was_built_from(
    segment: Segment, source: Endpoint, destination: Endpoint
) -> None:
    octets = b.packet(segment, source, destination)
    assert checksum_is_valid(octets)
    raw = TcpPacket.parse(octets)
    assert raw is not None
    assert (raw.source_port, raw.destination_port, raw.payload) == (40_000, 80, segment.payload)
    parsed, found_source, found_destination = b.parse_packet(octets)
    assert (found_source, found_destination) == (source, destination)
    for name in ("seq", "ack", "flags", "window", "options", "length", "payload", "ecn", "urgent_pointer"):
        assert getattr(parsed, name) == getattr(segment, name), name


def test_numbers_wrap_and_flags_are_those_of_the_name() -> None:
    assert b.ack(seq=b.PEER_ISN + 0x20, ack=-1).seq == 0x10
    assert b.ack(seq=0, ack=-1).ack == 0xFFFFFFFF
    found = [s.flags for s in (b.syn(), b.syn_ack(ack=1), b.fin(seq=0, ack=0), b.rst(), b.rst(ack=1))]
    assert found == [SYN, SYN | ACK, FIN | ACK, RST, RST | ACK]
    assert b.data(b"x", seq=0, ack=0).flags == ACK | PSH


def test_options_by_name() -> None:
    assert b.mp_capable() == MpCapable(1, 1, None, None)
    assert b.mp_join(token=9, nonce=8, address_id=7, backup=True) == MpJoinSyn(9, 8, 7, True)
    assert b.mp_join_syn_ack(hmac=bytes(range(32)), nonce=1).hmac == bytes(range(8))
    assert b.mp_tcprst(3, True) == MpTcprst(3, True)
    assert b.dss(data_ack=(1 << 32) + 5, wide=False) == Dss(5, False)


def test_what_is_no_tcp_packet_is_refused() -> None:
    with pytest.raises(ValueError, match="TCP"):
        b.parse_packet(b"\x45" + bytes(30))
