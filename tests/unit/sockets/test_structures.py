"""The drafts' structures: what is packed comes back, and no octets raise anything but an OSError with a number."""

from __future__ import annotations

import ctypes
import errno
import os
import socket as std
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mptcp import Event, EventKind, SubflowTuple
from mptcp.core.multipath.events import MAX_EVENTS, EventQueue
from mptcp.errors import PathError
from mptcp.info import Endpoint
from mptcp.sockets import memory, privileges, structures

four = st.builds(Endpoint, st.binary(min_size=4, max_size=4), st.integers(0, 0xFFFF))
six = st.builds(Endpoint, st.binary(min_size=16, max_size=16), st.integers(0, 0xFFFF))
octets = st.integers(0, 255)
PARSERS = (
    structures.unpack_addresses, structures.unpack_sub_ids, SubflowTuple.unpack, structures.unpack_segment_routing,
    structures.unpack_close_sub_id, structures.unpack_sub_sockopt, structures.unpack_event,
)  # fmt: skip


@given(st.lists(four | six, min_size=1, max_size=20))
def test_addresses_of_both_families(endpoints: list[Endpoint]) -> None:
    assert structures.unpack_addresses(structures.pack_addresses(endpoints)) == endpoints


@given(st.one_of(st.tuples(four, four), st.tuples(six, six)), octets, st.booleans(), st.integers(0, 99), st.booleans())
def test_tuples(ends: tuple[Endpoint, Endpoint], number: int, backup: bool, interface: int, with_pointer: bool) -> None:
    made = SubflowTuple(*ends, number, backup, interface, 0x1122334455667788 if with_pointer else 0)
    assert SubflowTuple.unpack(made.pack()) == made


@given(st.lists(st.tuples(octets, st.booleans()), max_size=255))
def test_sub_ids(listed: list[tuple[int, bool]]) -> None:
    assert structures.unpack_sub_ids(structures.pack_sub_ids(listed)) == listed


@given(st.lists(st.binary(min_size=16, max_size=16).filter(any), min_size=1, max_size=16))
def test_segments(segments: list[bytes]) -> None:
    assert structures.unpack_segment_routing(structures.pack_segment_routing(segments)) == tuple(segments)


@given(
    st.builds(
        Event, st.sampled_from(EventKind), st.integers(0, 1 << 60), st.just(-1) | st.integers(1, 255),
        st.none() | four | six, st.none() | four | six, st.integers(-1, 255), st.booleans(),
        st.text(max_size=30), st.integers(0, 9), st.integers(0, 1 << 20),
    )
)  # fmt: skip
def test_events(event: Event) -> None:
    assert structures.unpack_event(structures.pack_event(event)) == event


@given(st.sampled_from(PARSERS), st.binary(max_size=200) | st.binary(max_size=40).map(lambda b: b"\2\0" * 30 + b))
def test_any_octets(parser: object, data: bytes) -> None:
    try:
        parser(data)  # type: ignore[operator]
    except PathError as error:
        assert error.errno in (errno.EINVAL, errno.EAFNOSUPPORT)  # noqa: PT017


def test_memory_is_read_and_written_where_there_is_some() -> None:
    content = ctypes.create_string_buffer(b"octets", 6)
    assert memory.read(ctypes.addressof(content), 6) == b"octets"
    memory.write(ctypes.addressof(content), b"OCT")
    assert content.raw == b"OCTets"
    assert memory.read(0, 0) == b""
    for call in (lambda: memory.read(1, 4), lambda: memory.write(1, b"x")):
        with pytest.raises(PathError) as caught:
            call()
        assert caught.value.errno == errno.EFAULT
    with pytest.raises(PathError):
        memory.read(ctypes.addressof(content), memory.MAX_VALUE_BYTES + 1)


def test_a_user_without_privileges_has_no_low_ports_and_no_administrative_options() -> None:
    if os.geteuid() == 0:
        ranges = [tuple(map(int, line.split())) for line in Path("/proc/self/uid_map").read_text().splitlines()]
        if not any(first <= 65534 < first + count for first, _, count in ranges):
            pytest.skip("this user namespace has no other users: run as root")
        child = os.fork()
        if not child:
            code = 99
            try:
                os.setuid(65534)
                code = _refused()
            finally:
                os._exit(code)
        status = os.waitpid(child, 0)[1]
        assert os.waitstatus_to_exitcode(status) == 3
    else:
        assert _refused() == 3


def _refused() -> int:
    count = 0
    try:
        privileges.check_port(1)
    except PathError as error:
        count += error.errno == errno.EACCES or privileges.first_unprivileged_port() < 2
    try:
        privileges.check_option(std.SOL_SOCKET, 32)
    except PathError as error:
        count += error.errno == errno.EPERM
    privileges.check_port(60_000)
    return count + (privileges.check_option(std.SOL_SOCKET, std.SO_SNDBUF) == (std.SOL_SOCKET, std.SO_SNDBUF))


def test_a_full_queue_says_where_and_how_many() -> None:
    queue = EventQueue()
    for at_us in range(MAX_EVENTS + 5):
        queue.put(Event(EventKind.PRIORITY_CHANGED, at_us))
    assert [queue.poll() for _ in range(3)] == [Event(EventKind.PRIORITY_CHANGED, i) for i in range(3)]
    queue.put(Event(EventKind.CLOSED, 1000))
    rest = []
    while (event := queue.poll()) is not None:
        rest.append(event)
    assert [e.kind for e in rest[-2:]] == [EventKind.MISSED, EventKind.CLOSED]
    assert rest[-2].missed == queue.missed == 5
    assert len(queue) == 0
