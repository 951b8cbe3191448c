"""A broker under whatever a client can send: it answers or lets go, keeps nothing, and serves the next one."""

import contextlib
import os
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mptcp.info import Endpoint
from mptcp.kernel.broker import protocol
from mptcp.kernel.broker.client import BrokerControl
from mptcp.kernel.broker.policy import Policy
from mptcp.kernel.broker.protocol import Operation, Request

from .conftest import Pair, Running, open_descriptors

addresses = st.sampled_from(
    [Endpoint.parse(text, 80) for text in ("10.0.0.1", "127.0.0.1", "fd00::1", "8.8.8.8", "::")]
)
numbers = st.sampled_from([0, 1, 6, 18, 255, 65535, (1 << 31) - 1, 1 << 31, (1 << 32) - 1])
requests = st.builds(
    Request,
    st.sampled_from(Operation),
    numbers,
    st.one_of(st.none(), addresses),
    st.one_of(st.none(), addresses),
    st.integers(0, 255),
    st.booleans(),
    numbers,
    numbers,
    numbers,
    st.integers(0, 300),
    st.binary(max_size=8),
).map(Request.emit)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    data = bytearray(draw(requests))
    for _ in range(draw(st.integers(1, 4))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data[: draw(st.integers(0, len(data)))])


messages = st.one_of(requests, requests, mutated(), st.binary(max_size=400), st.just(bytes(70_000)))


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    path = tmp_path_factory.mktemp("broker") / "s"
    running = Running(str(path), Policy.parse("[[rule]]\nrate_per_s = 100000\nburst = 100000\n"))
    yield running
    running.stop()


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(sent=st.lists(st.tuples(messages, st.lists(st.integers(0, 5), max_size=4)), max_size=12), reads=st.booleans())
def test_nothing_a_client_sends_harms_the_next_one(
    target: Running, pair: Pair, tmp_path: Path, sent: list[tuple[bytes, list[int]]], reads: bool,
    eventually: Callable[..., None],
) -> None:  # fmt: skip
    others = socket.socketpair()
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    pool = [
        pair.fd,
        pair.fd,
        datagrams.fileno(),
        os.open(tmp_path, os.O_RDONLY),
        others[0].fileno(),
        others[1].fileno(),
    ]
    before = open_descriptors()
    sock = target.connect()
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        for data, descriptors in sent:
            rights = struct.pack(f"={len(descriptors)}i", *[pool[number] for number in descriptors])
            sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if descriptors else [])
            if not data:
                break  # that was the end
            if reads:
                message = protocol.receive(sock, protocol.MAX_ANSWER)
                message.close()
                if not message.data:
                    break
                answer = protocol.Answer.parse(message.data)
                assert not answer.error or answer.text
    sock.close()
    eventually(lambda: target.broker.clients == 0)
    eventually(lambda: not open_descriptors() - before)
    assert all(inode == pair.inode and token == pair.token for _, inode, token, _ in target.control.calls)
    target.control.calls.clear()
    control = BrokerControl(target.path)
    control.remove(pair.fd, 0, 1)
    assert len(target.control.calls) == 1
    target.control.calls.clear()
    control.close()
    eventually(lambda: target.broker.clients == 0)
    os.close(pool[3])
    for other in (*others, datagrams):
        other.close()
    assert not target.broker._relay._watchers
