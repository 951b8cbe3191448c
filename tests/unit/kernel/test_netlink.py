"""Netlink's octets: what we write, what we read, and what somebody else wrote."""

from __future__ import annotations

import errno
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mptcp.kernel.netlink import (
    NLA_F_NESTED,
    NLMSG_DONE,
    NLMSG_ERROR,
    Message,
    NetlinkError,
    attribute,
    attributes,
    message_error,
    messages,
    nested,
    text,
    unsigned,
)


def message(kind: int, payload: bytes, flags: int = 0, sequence: int = 1) -> bytes:
    length = 16 + len(payload)
    return struct.pack("=IHHII", length, kind, flags, sequence, 0) + payload + bytes(-length % 4)


def error(number: int, tail: bytes = b"", flags: int = 0) -> Message:
    return Message(NLMSG_ERROR, flags, 1, memoryview(struct.pack("=i", -number) + tail))


def test_attributes_are_padded_and_nest() -> None:
    data = attribute(5, b"abcde") + nested(7, attribute(1, b"x"), attribute(2, b"yz"))
    assert len(data) % 4 == 0
    assert struct.unpack_from("=HH", data) == (9, 5)
    found = dict(attributes(memoryview(data)))
    assert bytes(found[5]) == b"abcde"
    assert struct.unpack_from("=H", data, 12 + 2)[0] == 7 | NLA_F_NESTED
    assert {k: bytes(v) for k, v in attributes(found[7])} == {1: b"x", 2: b"yz"}


@pytest.mark.parametrize(
    "data",
    [b"", b"\x01", b"\x03\x00\x01\x00", b"\x00\x00\x00\x00" * 4, b"\xff\xff\x01\x00abc", attribute(1, b"ab")[:-3]],
)
def test_attributes_that_are_not_whole_end_the_reading(data: bytes) -> None:
    assert list(attributes(memoryview(data))) == []


def test_numbers_by_their_length() -> None:
    assert unsigned(b"\x07") == 7
    assert unsigned(struct.pack("=H", 513)) == 513
    assert unsigned(struct.pack("=I", 1 << 30)) == 1 << 30
    assert unsigned(struct.pack("=Q", 1 << 60)) == 1 << 60
    assert unsigned(b"\x01\x02", network=True) == 258
    assert [unsigned(value) for value in (None, b"", b"abc", bytes(16))] == [None] * 4


def test_text() -> None:
    assert text(memoryview(b"mptcp_pm\0")) == "mptcp_pm"
    assert text(b"no end") == "no end"
    assert text(b"\xff\0junk") == "\ufffd"
    assert text(None) == ""


def test_messages_of_a_datagram() -> None:
    data = message(20, b"first") + message(21, b"second!!")
    assert [(m.kind, bytes(m.payload)) for m in messages(memoryview(data))] == [(20, b"first"), (21, b"second!!")]
    assert [m.kind for m in messages(memoryview(data[:-1]))] == [20]
    assert not list(messages(memoryview(message(20, b"")[:15])))
    assert not list(messages(memoryview(struct.pack("=IHHII", 8, 1, 0, 0, 0))))


def test_acknowledgements_and_errors() -> None:
    assert message_error(error(0)) == (0, "")
    assert message_error(error(errno.EINVAL)) == (errno.EINVAL, "")
    assert message_error(error(errno.EINVAL, bytes(16) + attribute(1, b"invalid token\0"), 0x300)) == (
        errno.EINVAL, "invalid token",
    )  # fmt: skip
    # Not capped: the request is repeated in front of the explanation.
    request = message(16, b"abcdefg")
    full = struct.pack("=IHHII", 23, 16, 0, 1, 0) + b"abcdefg\0"
    assert len(full) == len(request)
    assert message_error(error(errno.EPERM, full + attribute(1, b"no\0"), 0x200)) == (errno.EPERM, "no")
    assert message_error(Message(NLMSG_DONE, 0, 1, memoryview(b""))) == (0, "")
    assert message_error(Message(NLMSG_DONE, 0, 1, memoryview(struct.pack("=i", -errno.ENOENT))))[0] == errno.ENOENT
    assert message_error(Message(NLMSG_ERROR, 0, 1, memoryview(b"\1")))[0] == errno.EPROTO


def test_an_error_says_what_was_asked_and_what_the_kernel_said() -> None:
    caught = NetlinkError(errno.EINVAL, "invalid token", "opening a subflow")
    assert (caught.errno, caught.explanation) == (errno.EINVAL, "invalid token")
    assert str(caught) == "[Errno 22] opening a subflow: Invalid argument (invalid token)"


@given(st.binary(max_size=200))
def test_any_octets_can_be_read(data: bytes) -> None:
    for found in messages(memoryview(data)):
        for _, value in attributes(found.payload):
            list(attributes(value))
        message_error(found)
    for _, value in attributes(memoryview(data)):
        unsigned(value)
        text(value)


@given(st.lists(st.tuples(st.integers(0, 0x3FFF), st.binary(max_size=40)), max_size=8))
def test_what_was_written_is_read(pairs: list[tuple[int, bytes]]) -> None:
    data = b"".join(attribute(kind, value) for kind, value in pairs)
    assert [(kind, bytes(value)) for kind, value in attributes(memoryview(data))] == pairs
