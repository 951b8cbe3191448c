"""Structures of kernels old, new and broken: whatever length comes back, fields are right or absent."""

import errno
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mptcp.info import Endpoint
from mptcp.kernel import layout, sockopt
from mptcp.kernel.layout import MptcpInfo, TcpInfo, parse_sockaddr

#: (length, kernel) as ``struct mptcp_info`` has grown.
MPTCP_LENGTHS = [(48, "5.16"), (80, "6.5"), (88, "6.7"), (96, "6.10")]

MPTCP = bytearray(128)
MPTCP[0:6] = bytes([2, 1, 3, 8, 4, 5])
struct.pack_into("=II3Q", MPTCP, 8, 3, 0xDEADBEEF, 1 << 60, 2 << 40, 3)
MPTCP[40:43] = bytes([6, 7, 1])
struct.pack_into("=I4Q", MPTCP, 44, 9, 10, 11, 12, 13)
MPTCP[80:82] = bytes([4, 2])
struct.pack_into("=3I", MPTCP, 84, 100, 200, 300)


def test_whole_mptcp_info() -> None:
    info = MptcpInfo.parse(MPTCP[:96])
    assert (info.subflows, info.add_addr_signal, info.add_addr_accepted) == (2, 1, 3)
    assert (info.subflows_max, info.add_addr_signal_max, info.add_addr_accepted_max) == (8, 4, 5)
    assert info.fell_back
    assert info.flags & layout.FLAG_REMOTE_KEY_RECEIVED
    assert info.token == 0xDEADBEEF
    assert (info.write_seq, info.snd_una, info.rcv_nxt) == (1 << 60, 2 << 40, 3)
    assert (info.local_addr_used, info.local_addr_max, info.checksum) == (6, 7, True)
    assert (info.retransmits, info.bytes_retransmitted, info.bytes_sent) == (9, 10, 11)
    assert (info.bytes_received, info.bytes_acked) == (12, 13)
    assert (info.subflows_total, info.endpoint_laminar_max) == (4, 2)
    assert (info.last_data_sent_ms, info.last_data_received_ms, info.last_ack_received_ms) == (100, 200, 300)


@pytest.mark.parametrize(("length", "kernel"), MPTCP_LENGTHS)
def test_mptcp_info_of_each_kernel(length: int, kernel: str) -> None:
    info = MptcpInfo.parse(MPTCP[:length])
    assert info.token == 0xDEADBEEF
    assert info.length == length
    assert info.has_counters == (length >= 80)
    assert info.bytes_acked == (13 if length >= 80 else 0)
    assert info.subflows_total == (4 if length >= 88 else None)
    assert info.last_ack_received_ms == (300 if length >= 96 else None)


def test_a_longer_mptcp_info_is_read_as_far_as_it_is_known() -> None:
    longer, known = MptcpInfo.parse(MPTCP), MptcpInfo.parse(MPTCP[:96])
    longer.length = known.length
    assert longer == known


def test_tcp_info_by_offset() -> None:
    raw = bytearray(280)
    # Offsets in Linux 6.18's BTF.
    for name, code, offset, value in (
        ("state", "B", 0, 1), ("backoff", "B", 4, 2), ("rto", "I", 8, 204_000), ("snd_mss", "I", 16, 1448),
        ("unacked", "I", 24, 7), ("lost", "I", 32, 1), ("last_data_sent", "I", 44, 12), ("pmtu", "I", 60, 1500),
        ("rtt", "I", 68, 300), ("rttvar", "I", 72, 20), ("snd_ssthresh", "I", 76, 0x7FFFFFFF), ("snd_cwnd", "I", 80, 10),
        ("total_retrans", "I", 100, 5), ("pacing_rate", "Q", 104, 1 << 40), ("bytes_acked", "Q", 120, 6),
        ("bytes_received", "Q", 128, 8), ("segs_out", "I", 136, 9), ("segs_in", "I", 140, 10),
        ("notsent_bytes", "I", 144, 11), ("min_rtt", "I", 148, 12), ("delivery_rate", "Q", 160, 13),
        ("bytes_sent", "Q", 200, 14), ("bytes_retrans", "Q", 208, 15), ("snd_wnd", "I", 228, 16), ("rcv_wnd", "I", 232, 17),
        ("rehash", "I", 236, 18), ("total_rto", "H", 240, 19), ("total_rto_time", "I", 244, 20),
    ):  # fmt: skip
        struct.pack_into("=" + code, raw, offset, value)
        assert getattr(TcpInfo.parse(raw), name) == value
        assert getattr(TcpInfo.parse(raw[: offset + struct.calcsize(code)]), name) == value
        assert getattr(TcpInfo.parse(raw[:offset]), name) == 0, "what did not come is 0"


def test_sockaddrs() -> None:
    v4 = struct.pack("=H", 2) + struct.pack("!H", 443) + bytes([10, 0, 0, 1]) + bytes(8)
    v6 = struct.pack("=H", 10) + struct.pack("!HI", 80, 0) + bytes(15) + b"\1" + bytes(4)
    mapped = struct.pack("=H", 10) + struct.pack("!HI", 80, 0) + bytes(10) + b"\xff\xff\x0a\0\0\1" + bytes(4)
    assert parse_sockaddr(v4) == Endpoint.parse("10.0.0.1", 443)
    assert parse_sockaddr(v6) == Endpoint.parse("::1", 80)
    assert parse_sockaddr(mapped) == Endpoint.parse("10.0.0.1", 80)
    assert parse_sockaddr(v6[:23]) == layout.NOWHERE
    assert parse_sockaddr(struct.pack("=H", 17) + bytes(26)) == layout.NOWHERE


@given(st.binary(max_size=300))
def test_any_octets(data: bytes) -> None:
    assert MptcpInfo.parse(data).length == len(data)
    TcpInfo.parse(data)
    parse_sockaddr(data)


@given(
    st.binary(max_size=1000),
    st.integers(0, 300),
    st.binary(max_size=1000),
    st.integers(0, 300),
    st.integers(0, 1 << 32),
)
def test_any_arrays(addresses: bytes, subflow_size: int, tcp: bytes, tcp_size: int, count: int) -> None:
    entries = sockopt.parse_subflows(addresses, subflow_size, tcp, tcp_size, count)
    assert len(entries) * subflow_size <= len(addresses)
    assert len(entries) * tcp_size <= len(tcp)
    for entry in entries:
        assert len(entry.local.address) in {4, 16}


def test_elements_as_short_as_an_old_kernel_makes_them() -> None:
    """Each element is parsed at its own size, not at this package's."""
    size = 104  # struct tcp_info of Linux 3.x
    tcp = b"".join(bytes([1]) + bytes(67) + struct.pack("=I", rtt) + bytes(size - 72) for rtt in (111, 222))
    address = struct.pack("=H", 2) + struct.pack("!H", 1) + bytes([10, 0, 0, 1])
    element = struct.pack("=II", 1, 0) + address.ljust(128, b"\0") + address.ljust(128, b"\0")
    entries = sockopt.parse_subflows(element * 2, len(element), tcp, size, 2)
    assert [entry.tcp.rtt for entry in entries] == [111, 222]
    assert [entry.tcp.min_rtt for entry in entries] == [0, 0]


@given(st.binary(max_size=400), st.integers(0, 400))
def test_any_full_info(header: bytes, length: int) -> None:
    """Whatever the kernel would write into the header of MPTCP_FULL_INFO."""
    buffers = sockopt._Buffers(4)
    room = min(len(header), len(buffers.header))
    buffers.header[:room] = header[:room]
    length = min(length, len(buffers.header))
    if length < sockopt._FULL.size:
        with pytest.raises(OSError) as caught:
            sockopt._parse_full(buffers, length)
        assert caught.value.errno == errno.EPROTO
    else:
        assert len(sockopt._parse_full(buffers, length).subflows) <= 4
