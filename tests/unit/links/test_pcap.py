"""Captures: what is written is read back; super-segments as the wire shows them, or whole."""

import errno
import itertools
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mptcp.core.packet import Packet
from mptcp.links.pcap import BUFFER_BYTES, INBOUND, OUTBOUND, PcapLink, PcapWriter, read_pcapng
from mptcp.testing.builders import parse_packet

MakePacket = Callable[..., Packet]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "capture.pcapng"


@given(
    packets=st.lists(
        st.tuples(st.binary(max_size=70), st.sampled_from([0, 1, 2]), st.text("aé→ ", max_size=9)), max_size=5
    )
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=20)
def test_read_gives_what_was_written(path: Path, packets: list[tuple[bytes, int, str]]) -> None:
    clock = itertools.count(1_700_000_000_123_456_789, 1_000_001)
    with PcapWriter(path, clock=lambda: next(clock)) as writer:
        first, second = writer.add_interface("eth0", "left"), writer.add_interface("eth1")
        for number, (data, direction, comment) in enumerate(packets):
            writer.write(second if number % 2 else first, (data[:3], data[3:]), direction, comment)
    found = read_pcapng(path)
    assert [(p.data, p.direction, p.comment) for p in found] == packets
    assert [p.interface for p in found] == ["eth1" if i % 2 else "eth0" for i in range(len(packets))]
    assert [p.time_ns for p in found] == [1_700_000_000_123_456_789 + i * 1_000_001 for i in range(len(packets))]


def test_both_directions_and_a_comment(path: Path, inner: Any, tcp_packet: MakePacket) -> None:
    arriving = bytes(tcp_packet(b"in"))
    inner.arriving = [(memoryview(arriving), 0, False)]
    with PcapWriter(path) as writer:
        link = PcapLink(inner, writer)
        assert (link.name, link.mtu, link.gso_max_bytes) == ("scripted", 1500, 65_455)
        link.comment("path 1 is cut")
        out = tcp_packet(b"out data")
        assert link.send([out]) == 1
        assert [bytes(d) for d, _, _ in link.receive()] == [arriving]
    first, second = read_pcapng(path)
    assert (first.data, first.direction, first.comment) == (bytes(out), OUTBOUND, "path 1 is cut")
    assert (second.data, second.direction, second.comment) == (arriving, INBOUND, "")


@pytest.mark.parametrize("family", [4, 6])
def test_super_segments_are_cut(path: Path, inner: Any, tcp_packet: MakePacket, family: int) -> None:
    payload = bytes(range(256)) * 20
    out = tcp_packet(payload, seq=0xFFFFFF00, family=family, gso_size=1000)
    inner.arriving = [(memoryview(bytes(out)), 1000, True)]
    with PcapWriter(path) as writer:
        link = PcapLink(inner, writer)
        link.send([out])
        [(data, gso_size, valid)] = link.receive()
    assert inner.sent == [out]  # the link below gets it whole
    assert (bytes(data), gso_size, valid) == (bytes(out), 1000, True)
    found = read_pcapng(path)
    assert [p.direction for p in found] == [OUTBOUND] * 6 + [INBOUND] * 6
    assert [p.data for p in found[:6]] == [p.data for p in found[6:]]
    segments = [parse_packet(p.data)[0] for p in found[:6]]
    assert b"".join(s.payload for s in segments) == payload
    assert [s.seq for s in segments] == [(0xFFFFFF00 + i * 1000) & 0xFFFFFFFF for i in range(6)]


def test_super_segments_as_they_are(path: Path, inner: Any, tcp_packet: MakePacket) -> None:
    out = tcp_packet(bytes(5000), gso_size=1000)
    with PcapWriter(path) as writer:
        PcapLink(inner, writer, cut=False).send([out])
    assert [p.data for p in read_pcapng(path)] == [bytes(out)]


def test_only_what_was_taken_is_written(path: Path, inner: Any, tcp_packet: MakePacket) -> None:
    inner.room = 1
    with PcapWriter(path) as writer:
        assert PcapLink(inner, writer).send([tcp_packet(b"one"), tcp_packet(b"two")]) == 1
    assert len(read_pcapng(path)) == 1


def test_size_limits(path: Path) -> None:
    with PcapWriter(path, max_bytes=600, snap_bytes=64) as writer:
        interface = writer.add_interface("eth0")
        for _ in range(10):
            writer.write(interface, (bytes(200),), OUTBOUND)
        assert 0 < writer.skipped < 10
        skipped = writer.skipped
    assert path.stat().st_size <= 600
    found = read_pcapng(path)
    assert len(found) == 10 - skipped
    assert {(len(p.data), p.length) for p in found} == {(64, 200)}


def test_a_full_disk_ends_the_capture_and_nothing_else() -> None:
    writer = PcapWriter("/dev/full")
    number = writer.add_interface("x")
    for _ in range(2 * BUFFER_BYTES // 1000):
        writer.write(number, (bytes(1000),), OUTBOUND)
    assert writer.failure is not None
    assert writer.failure.errno == errno.ENOSPC
    assert 0 < writer.skipped < 2 * BUFFER_BYTES // 1000
    writer.flush()
    writer.close()
    short = PcapWriter("/dev/full")  # all of it is still in memory
    short.close()
    assert short.failure is not None


def test_truncated_and_foreign_files(path: Path) -> None:
    with PcapWriter(path) as writer:
        interface = writer.add_interface("eth0")
        writer.write(interface, (b"abcd",), INBOUND)
        writer.write(interface, (b"efgh",), INBOUND)
    whole = path.read_bytes()
    path.write_bytes(whole[:-7])
    assert [p.data for p in read_pcapng(path)] == [b"abcd"]
    path.write_bytes(b"\xd4\xc3\xb2\xa1" + whole[4:])
    with pytest.raises(ValueError, match="no pcapng file"):
        read_pcapng(path)
    start = struct.unpack_from("=I", whole, 4)[0]  # the second block
    path.write_bytes(whole[:start] + struct.pack("=II", 6, 7) + whole[start + 8 :])
    with pytest.raises(ValueError, match="block"):
        read_pcapng(path)


def test_big_endian_files_are_read(path: Path) -> None:
    section = struct.pack(">IIIHHqI", 0x0A0D0D0A, 28, 0x1A2B3C4D, 1, 0, -1, 28)
    interface = struct.pack(">IIHHII", 1, 20, 101, 0, 0, 20)
    packet = struct.pack(">IIIIIII4sI", 6, 36, 0, 0, 2_000_000, 4, 4, b"abcd", 36)
    path.write_bytes(section + interface + packet)
    [found] = read_pcapng(path)
    assert (found.data, found.time_ns, found.direction) == (b"abcd", 2_000_000_000, 0)
