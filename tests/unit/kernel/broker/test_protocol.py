"""Messages between the broker and its clients: what goes in comes out, and everything else is refused."""

import contextlib
import os
import socket
import stat
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mptcp.info import Endpoint, Support
from mptcp.kernel.broker import protocol
from mptcp.kernel.broker.protocol import Answer, Message, Operation, ProtocolError, Request

from .conftest import open_descriptors

A = Endpoint.parse("10.0.0.1", 4321)
B = Endpoint.parse("fd00::2", 80)

SAMPLES = [
    Request(Operation.ANNOUNCE, 1, local=A, address_id=3, interface=2),
    Request(Operation.REMOVE, 2, address_id=255),
    Request(Operation.CREATE_SUBFLOW, 3, local=A, remote=B, address_id=1, backup=True, interface=7),
    Request(Operation.DESTROY_SUBFLOW, 4, local=A, remote=B),
    Request(Operation.RESET_SUBFLOW, 5, local=B, remote=A),
    Request(Operation.SET_BACKUP, 6, local=A, remote=B, backup=True),
    Request(Operation.SET_SUBFLOW_OPTION, 7, local=A, remote=B, level=6, name=18, value=b"\x01\x02\0\0"),
    Request(Operation.GET_SUBFLOW_OPTION, 8, local=A, remote=B, level=6, name=13, size=16),
    Request(Operation.EVENTS, 9),
    Request(Operation.WATCH, 10),
    Request(Operation.UNWATCH, 11, name=0xFFFFFFFF),
    Request(Operation.SUPPORTS, 0xFFFFFFFF, name=Operation.ANNOUNCE),
]

endpoints = st.builds(
    Endpoint, st.one_of(st.binary(min_size=4, max_size=4), st.binary(min_size=16, max_size=16)), st.integers(0, 65535)
)


def test_every_operation_has_a_sample() -> None:
    assert {sample.operation for sample in SAMPLES} == set(Operation)


@pytest.mark.parametrize("request_", SAMPLES, ids=lambda sample: sample.operation.label)
def test_a_request_comes_out_as_it_went_in(request_: Request) -> None:
    assert Request.parse(request_.emit()) == request_


@given(endpoints, endpoints, st.integers(0, 255), st.booleans(), st.integers(0, (1 << 31) - 1))
def test_all_addresses_and_numbers_go_through(
    local: Endpoint, remote: Endpoint, id_: int, backup: bool, at: int
) -> None:
    request = Request(Operation.CREATE_SUBFLOW, 1, local, remote, id_, backup, at)
    assert Request.parse(request.emit()) == request


@given(st.binary(max_size=protocol.MAX_REQUEST + 8))
def test_random_octets_are_refused_or_are_a_request(data: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        assert Request.parse(data).emit() == data


@given(st.sampled_from(SAMPLES), st.integers(0, 63), st.integers(0, 255))
def test_one_changed_octet_gives_another_request_or_none(sample: Request, place: int, octet: int) -> None:
    data = bytearray(sample.emit())
    data[place % len(data)] = octet
    try:
        request = Request.parse(bytes(data))
    except ProtocolError:
        return
    assert request.emit() == bytes(data)


@pytest.mark.parametrize("request_", SAMPLES, ids=lambda sample: sample.operation.label)
@pytest.mark.parametrize("cut", [0, 1, 8, 30, 59])
def test_a_cut_request_is_none(request_: Request, cut: int) -> None:
    with pytest.raises(ProtocolError, match="octets"):
        Request.parse(request_.emit()[:cut])


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (Request(Operation.REMOVE, local=A, address_id=1), "remove has no local"),
        (Request(Operation.EVENTS, backup=True), "events has no backup"),
        (Request(Operation.WATCH, value=b"x"), "watch has no value"),
        (Request(Operation.SET_BACKUP, local=A), "set_backup needs an address: remote"),
        (Request(Operation.ANNOUNCE, address_id=1), "announce needs an address: local"),
        (
            Request(Operation.GET_SUBFLOW_OPTION, local=A, remote=B, level=6, name=1),
            "the room for an option is 1 to 256",
        ),
        (
            Request(Operation.GET_SUBFLOW_OPTION, local=A, remote=B, level=6, name=1, size=257),
            "1 to 256 octets, not 257",
        ),
        (Request(Operation.SET_SUBFLOW_OPTION, local=A, remote=B, level=6, name=1), "a value of one octet or more"),
        (Request(Operation.SET_SUBFLOW_OPTION, local=A, remote=B, level=1 << 31, name=1, value=b"x"), "below 2\\^31"),
        (Request(Operation.ANNOUNCE, local=A, interface=1 << 31), "below 2\\^31"),
    ],
)
def test_fields_that_an_operation_has_not_are_refused(request_: Request, reason: str) -> None:
    with pytest.raises(ProtocolError, match=reason):
        Request.parse(request_.emit())


@pytest.mark.parametrize(
    ("place", "octet", "reason"),
    [
        (0, 2, "speaks version 1 of its protocol, not 2"),
        (1, 0, "no operation 0"),
        (1, 99, "no operation 99"),
        (2, 1, "reserved"),
        (8, 5, "family 4 or 6, not 5"),
        (9, 1, "reserved"),
        (17, 1, "more octets than its family"),
        (49, 2, "reserved"),
    ],
)
def test_a_malformed_head_is_refused(place: int, octet: int, reason: str) -> None:
    data = bytearray(Request(Operation.SET_BACKUP, local=A, remote=A).emit())
    data[place] = octet
    with pytest.raises(ProtocolError, match=reason):
        Request.parse(bytes(data))


def test_too_long_a_value_is_refused() -> None:
    sample = SAMPLES[6].emit()
    with pytest.raises(ProtocolError, match="octets"):
        Request.parse(sample + bytes(protocol.MAX_VALUE))


# answers


@given(st.integers(0, 255), st.integers(0, 0xFFFFFFFF), st.integers(0, 200), st.binary(max_size=protocol.MAX_TEXT))
def test_an_answer_comes_out_as_it_went_in(operation: int, sequence: int, error: int, value: bytes) -> None:
    answer = Answer(operation, sequence, error, 1, value)
    assert Answer.parse(answer.emit()) == answer


@given(st.binary(max_size=protocol.MAX_ANSWER + 8))
def test_random_octets_are_an_answer_or_refused(data: bytes) -> None:
    try:
        answer = Answer.parse(data)
    except ProtocolError:
        return
    assert answer.emit() == data
    assert isinstance(answer.text, str)
    assert isinstance(protocol.parse_support(answer).reason, str)


def test_a_refusal_is_never_too_long_and_always_an_error() -> None:
    answer = Answer.refusal(1, 2, 0, "ü" * 4000)
    assert answer.error
    assert len(answer.emit()) <= protocol.MAX_ANSWER
    assert Answer.parse(answer.emit()).text.startswith("üüü")


@pytest.mark.parametrize(
    "support", [Support(True), Support(False, "it is off", "turn it on"), Support(False, "x" * 5000, "y" * 5000)]
)
def test_support_goes_through(support: Support) -> None:
    answer = Answer(Operation.SUPPORTS, 1, result=int(support.ok), value=protocol.emit_support(support))
    found = protocol.parse_support(Answer.parse(answer.emit()))
    assert found.ok is support.ok
    assert support.reason.startswith(found.reason)
    assert support.fix.startswith(found.fix)
    assert bool(found.reason) is bool(support.reason)


def test_a_gap_is_no_event() -> None:
    assert protocol.is_gap(protocol.emit_gap(5))
    assert protocol.is_gap(protocol.emit_gap(1 << 40))
    assert not protocol.is_gap(b"\x01\x01\0\0")


# descriptors


@pytest.fixture
def pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def send_many(sock: socket.socket, descriptors: list[int], data: bytes = b"x") -> None:
    rights = struct.pack(f"={len(descriptors)}i", *descriptors)
    sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if descriptors else [])


@pytest.mark.parametrize("count", [0, 1, 2, 3, 100, 253])
def test_descriptors_that_come_are_counted_and_let_go(pair: tuple[socket.socket, socket.socket], count: int) -> None:
    theirs, ours = pair
    with theirs, ours, open(os.devnull) as file:
        before = open_descriptors()
        send_many(theirs, [file.fileno()] * count)
        message = protocol.receive(ours, 16)
        assert message.data == b"x"
        if count == 1:
            fd = message.take()
            assert stat.S_ISCHR(os.fstat(fd).st_mode)
            assert not os.get_inheritable(fd)
            os.close(fd)
        else:
            with pytest.raises(ProtocolError, match="one descriptor comes with this"):
                message.take()
        assert message.cut is (count > 2)
        message.close()
        assert not open_descriptors() - before


def test_an_oversized_message_is_cut_and_says_so(pair: tuple[socket.socket, socket.socket]) -> None:
    theirs, ours = pair
    with theirs, ours:
        theirs.send(bytes(5000))
        assert protocol.receive(ours, 16).cut
        theirs.send(b"whole")
        assert protocol.receive(ours, 16) == Message(b"whole")


def test_the_end_is_an_empty_message(pair: tuple[socket.socket, socket.socket]) -> None:
    theirs, ours = pair
    with ours:
        theirs.close()
        assert not protocol.receive(ours, 16).data


def test_credentials_are_not_taken_for_descriptors(pair: tuple[socket.socket, socket.socket]) -> None:
    theirs, ours = pair
    with theirs, ours:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        theirs.send(b"x")
        assert protocol.receive(ours, 16).descriptors == []


def test_a_send_that_finds_no_room_need_not_wait(pair: tuple[socket.socket, socket.socket]) -> None:
    theirs, ours = pair
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    with theirs, ours:
        for _ in range(100_000):
            try:
                protocol.send(ours, bytes(1000), wait=False)
            except BlockingIOError:
                return
    raise AssertionError("there is no end to the room")
