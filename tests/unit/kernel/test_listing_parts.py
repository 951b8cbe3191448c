"""Processes, members of netlink groups and counters: from files and answers that may hold anything."""

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mptcp.kernel import event_listeners, fallback, features, processes
from mptcp.kernel.netlink import attribute


def proc(tmp_path: Path, pid: int, name: bytes, *links: str) -> None:
    directory = tmp_path / str(pid)
    (directory / "fd").mkdir(parents=True)
    (directory / "comm").write_bytes(name)
    for number, link in enumerate(links):
        (directory / "fd" / str(number)).symlink_to(link)


def test_who_holds_a_socket(tmp_path: Path) -> None:
    proc(tmp_path, 10, b"curl\n", "/dev/null", "socket:[77]", "socket:[78]", "socket:[77]")
    proc(tmp_path, 9, b"evil\x1b[2J\xff\n", "socket:[77]")
    (tmp_path / "self").mkdir()
    found = processes.holders([77, 0, 99], tmp_path)
    assert [str(process) for process in found.pop(77)] == ["evil?[2J\N{REPLACEMENT CHARACTER} (9)", "curl (10)"]
    assert not found
    assert processes.process_name(1234, tmp_path) == "?"
    assert processes.holders([], tmp_path) == {}
    assert processes.holders([1], tmp_path / "none") == {}


def test_a_socket_of_many_processes(tmp_path: Path) -> None:
    for pid in range(1, 30):
        proc(tmp_path, pid, b"worker", "socket:[5]")
    assert len(processes.holders([5], tmp_path)[5]) == processes.MAX_HOLDERS


def netlink_socket(groups: bytes, inode: int = 4711) -> memoryview:
    return memoryview(struct.pack("=4B6I", 16, 3, 16, 7, 1, 0, 0, inode, 0, 0) + attribute(1, groups))


def test_members_of_a_group() -> None:
    assert event_listeners.member(netlink_socket(b"\0\1"), 9) == 4711
    assert event_listeners.member(netlink_socket(b"\0\1"), 8) is None
    assert event_listeners.member(netlink_socket(b"\0\1"), 40) is None
    assert event_listeners.member(netlink_socket(bytes(9) + b"\x80"), 80) == 4711
    assert event_listeners.member(netlink_socket(b"\0\1")[:20], 9) is None


@given(st.binary(max_size=100), st.integers(1, 2000))
def test_any_answer(data: bytes, group: int) -> None:
    event_listeners.member(memoryview(data), group)


@given(st.text(max_size=300))
def test_any_netstat(text: str) -> None:
    features.parse_counters(text)
    features.parse_counters("MPTcpExt: A B\nMPTcpExt: " + text)


def test_counters() -> None:
    text = "TcpExt: X\nTcpExt: 1\nMPTcpExt: A B C\nMPTcpExt: 5 6\n"
    assert features.parse_counters(text) == {"A": 5, "B": 6}


def test_reasons_from_counters() -> None:
    assert fallback.reason_of_counters({}) == fallback.UNKNOWN
    assert fallback.reason_of_counters({"MPCapableFallbackSYNACK": 2}) == fallback.PEER_WITHOUT_MPTCP
    both = fallback.reason_of_counters({"MPCapableFallbackSYNACK": 2, "MPCapableSYNTXDrop": 1})
    assert both.startswith("one of: ")
    assert fallback.PEER_WITHOUT_MPTCP in both
    later = fallback.reason_of_counters({"MPCapableFallbackSYNACK": 2, "DssFallback": 1}, was_multipath=True)
    assert later == fallback.NO_MAPPING


@pytest.mark.parametrize(
    ("counted", "causes"),
    [
        # As Linux 6.18 counts one fallback: after MP_FAIL of this side, with the peer's infinite mapping and without any,
        ({"DataCsumErr": 1, "MPFailTx": 1, "MPFailRx": 1, "InfiniteMapRx": 1, "DssFallback": 1}, [fallback.CHECKSUM]),
        ({"DataCsumErr": 1, "MPFailTx": 1, "MPFailRx": 1, "DssFallback": 1}, [fallback.CHECKSUM]),
        # for the first data of all, and after the peer's MP_FAIL.
        ({"DataCsumErr": 1, "DssFallback": 1}, [fallback.CHECKSUM]),
        ({"MPFailTx": 1, "MPFailRx": 1, "InfiniteMapTx": 1}, ["the peer saw a data checksum fail"]),
        ({"InfiniteMapRx": 1, "DssFallback": 1}, [fallback.INFINITE_MAPPING]),
        ({"InfiniteMapRx": 1}, [fallback.INFINITE_MAPPING]),  # before Linux 6.17
        # A checksum after which a subflow was reset explains no fallback,
        ({"DataCsumErr": 1, "MPFailTx": 1, "MPRstTx": 1, "DssFallback": 1}, [fallback.NO_MAPPING]),
        ({"DataCsumErr": 1, "MPFailTx": 1, "MPRstTx": 1}, []),
        # nor does one explain two.
        ({"DataCsumErr": 1, "MPFailTx": 1, "DssFallback": 2}, [fallback.CHECKSUM, fallback.NO_MAPPING]),
        (
            {"DataCsumErr": 1, "InfiniteMapRx": 2, "DssFallback": 3},
            [fallback.CHECKSUM, fallback.NO_MAPPING, fallback.INFINITE_MAPPING],
        ),
        ({"MPFailRx": 3, "MPRstTx": 2}, []),
    ],
)
def test_reasons_in_the_middle_of_a_connection(counted: dict[str, int], causes: list[str]) -> None:
    reason = fallback.reason_of_counters(counted, was_multipath=True)
    if len(causes) > 1:
        assert reason == f"one of: {'; '.join(causes)} (all have been counted in this namespace)"
    else:
        assert reason == (causes or [fallback.UNKNOWN])[0]
