"""Processes, members of netlink groups and counters: from files and answers that may hold anything."""

import struct
from pathlib import Path

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
    assert later.startswith("data came without a mapping")
