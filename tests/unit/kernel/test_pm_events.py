"""Events of the kernel's path manager, from octets."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from mptcp.info import Endpoint
from mptcp.kernel.connection_events import close_reason
from mptcp.kernel.netlink import attribute, messages
from mptcp.kernel.path_manager import ATTR_ADDR, FLAG_BACKUP, PmAddress, emit_address, parse_address
from mptcp.kernel.pm_events import PmEvent, PmEventKind, event_token, parse_event

V4 = bytes([10, 0, 0, 1])
V6 = bytes.fromhex("fd00" + "00" * 13 + "01")


def event(kind: int, *fields: bytes) -> memoryview:
    return memoryview(struct.pack("=BBH", kind, 1, 0) + b"".join(fields))


def u32(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("=I", value))


def port(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("!H", value))


def test_a_subflow_that_was_closed() -> None:
    found = parse_event(
        event(
            11, u32(1, 0xDEADBEEF), attribute(2, struct.pack("=H", 2)), attribute(3, b"\x05"), attribute(4, b"\x06"),
            attribute(5, V4), attribute(7, V4[::-1]), port(9, 1234), port(10, 80), attribute(11, b"\x01"),
            attribute(12, b"\x68"), u32(15, 3), u32(16, 2), u32(17, 1),
        )
    )  # fmt: skip
    assert found == PmEvent(
        PmEventKind.SUBFLOW_CLOSED, 0xDEADBEEF, Endpoint(V4, 1234), Endpoint(V4[::-1], 80), 5, 6, True, 104, 0, 3, 2, 1
    )
    assert close_reason(found) == "reset-transient"


def test_the_server_is_told_by_either_of_two_fields() -> None:
    new, old = (
        parse_event(event(2, u32(1, 7), field)) for field in (attribute(13, b"\x03\x00"), attribute(18, b"\x01"))
    )
    assert new is not None
    assert old is not None
    assert (new.server_side, old.server_side) == (True, True)
    assert (new.flags, old.flags) == (3, 0)


def test_addresses_of_both_families() -> None:
    found = parse_event(event(6, u32(1, 7), attribute(8, V6), port(10, 9090), attribute(4, b"\x02")))
    assert found is not None
    assert (found.kind, found.remote, found.remote_id, found.local) == (
        PmEventKind.ANNOUNCED, Endpoint(V6, 9090), 2, None,
    )  # fmt: skip
    mapped = parse_event(event(10, attribute(6, bytes(10) + b"\xff\xff" + V4), port(9, 5)))
    assert mapped is not None
    assert mapped.local == Endpoint(V4, 5)


def test_what_is_missing_or_odd_is_nothing() -> None:
    assert parse_event(memoryview(b"")) is None
    assert parse_event(event(99)) is None
    bare = parse_event(event(11, attribute(5, b"abc"), attribute(1, b"abc"), attribute(9, b"1234567")))
    assert bare == PmEvent(PmEventKind.SUBFLOW_CLOSED)
    assert bare.reset_reason == -1


def test_reasons() -> None:
    def reason(error: int, reset: int = -1) -> str:
        return close_reason(PmEvent(PmEventKind.SUBFLOW_CLOSED, error=error, reset_reason=reset))

    assert [reason(104), reason(104, 3), reason(111), reason(110), reason(103), reason(113), reason(101)] == [
        "reset", "reset-3", "refused", "timeout", "closed", "unreachable", "unreachable",
    ]  # fmt: skip
    assert reason(32) == "Broken pipe"


def test_the_token_alone() -> None:
    assert event_token(event(11, attribute(5, V4), u32(1, 77))) == 77
    assert event_token(event(15, attribute(5, V4))) == 0
    assert event_token(memoryview(b"\x01")) == 0


@given(st.binary(max_size=300))
def test_any_octets_can_be_read(data: bytes) -> None:
    view = memoryview(data)
    parse_event(view)
    event_token(view)
    parse_address(view)
    for found in messages(view):
        parse_event(found.payload)


@given(st.integers(1, 18), st.lists(st.tuples(st.integers(0, 20), st.binary(max_size=20)), max_size=10))
def test_any_fields_can_be_read(kind: int, fields: list[tuple[int, bytes]]) -> None:
    payload = event(kind, *(attribute(number, value) for number, value in fields))
    found = parse_event(payload)
    if found is not None:
        assert found.token == event_token(payload) or len([n for n, _ in fields if n == 1]) > 1
        for end in (found.local, found.remote):
            assert end is None or (len(end.address) in {4, 16} and 0 <= end.port <= 0xFFFF)


@given(
    st.one_of(st.binary(min_size=4, max_size=4), st.binary(min_size=16, max_size=16)),
    st.integers(0, 0xFFFF), st.integers(0, 255), st.integers(0, 63), st.integers(0, 1 << 30),
)  # fmt: skip
def test_addresses_come_back(address: bytes, number: int, identity: int, flags: int, interface: int) -> None:
    local = Endpoint(address, number)
    octets = emit_address(ATTR_ADDR, local, identity, flags, interface)
    assert parse_address(memoryview(octets)[4:]) == PmAddress(local, identity, flags, interface)


def test_backup_is_a_flag() -> None:
    assert PmAddress(Endpoint(V4), 1, FLAG_BACKUP).backup
    assert not PmAddress(Endpoint(V4), 1).backup
    assert parse_address(memoryview(emit_address(ATTR_ADDR, None, 3))[4:]) is None
