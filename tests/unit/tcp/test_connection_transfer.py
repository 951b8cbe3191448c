"""Two connections over a wire that behaves, and over one that does not: every byte once, in order."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mptcp.core.tcp.config import TcpConfig
from mptcp.core.tcp.states import State
from mptcp.core.units import MILLISECOND, SECOND
from mptcp.testing.tcp_pair import TcpPair, Wire, hostile_wire


def pattern(length: int, seed: int = 3) -> bytes:
    return random.Random(seed).randbytes(length)


def lossy_at(lost: int) -> Wire:
    """Loses the segment with this number, of all that are sent."""
    count = itertools.count()
    return lambda segment, chance: [] if next(count) == lost else [5 * MILLISECOND]


@pytest.mark.parametrize("gso_max_bytes", [0, 64000])
@pytest.mark.parametrize("timestamps", [True, False])
@pytest.mark.parametrize("sack", [True, False])
def test_both_directions_over_a_steady_wire(gso_max_bytes: int, timestamps: bool, sack: bool) -> None:
    pair = TcpPair(TcpConfig(timestamps=timestamps, sack=sack), gso_max_bytes=gso_max_bytes).connect()
    data = pattern(200_000)
    assert pair.transfer(pair.client, pair.server, data) == data
    assert pair.transfer(pair.server, pair.client, data) == data
    assert pair.client.sender.retransmissions == pair.server.sender.retransmissions == 0
    assert pair.client_counters == {}
    assert pair.server_counters == {}


def test_orderly_close_ends_in_time_wait_and_closed() -> None:  # RFC 9293 §3.6
    pair = TcpPair().connect()
    pair.client.write(b"request")
    pair.client.close(pair.now)
    pair.run_until(lambda: pair.server.eof or pair.server.readable_bytes == 7)
    assert pair.server.read(100) == b"request"
    pair.run_until(lambda: pair.server.state is State.CLOSE_WAIT)
    assert pair.server.eof
    pair.server.close(pair.now)
    pair.run_until(lambda: pair.server.is_closed)
    assert pair.server.error is None
    assert pair.client.state is State.TIME_WAIT
    pair.run_until(lambda: pair.client.is_closed)
    assert pair.client.error is None


def test_half_close_lets_the_other_direction_go_on() -> None:  # RFC 9293 §3.6
    pair = TcpPair().connect()
    pair.client.write(b"the only request")
    pair.client.shutdown_write(pair.now)
    pair.run_until(lambda: pair.server.state is State.CLOSE_WAIT)
    assert pair.server.read(100) == b"the only request"
    data = pattern(100_000)
    assert pair.transfer(pair.server, pair.client, data) == data
    assert pair.client.state is State.FIN_WAIT_2
    with pytest.raises(BrokenPipeError):
        pair.client.write(b"x")
    pair.server.close(pair.now)
    pair.run_until(lambda: pair.client.eof and pair.server.is_closed)


def test_simultaneous_close() -> None:  # RFC 9293 §3.6, figure 13
    pair = TcpPair().connect()
    pair.run_for(SECOND)
    pair.client.close(pair.now)
    pair.server.close(pair.now)
    pair.flush()
    pair.run_until(lambda: pair.client.state is State.CLOSING)
    pair.run_until(lambda: pair.client.state is State.TIME_WAIT and pair.server.state is State.TIME_WAIT)
    assert pair.client.error is None
    assert pair.server.error is None


def test_handshake_survives_loss_of_each_segment() -> None:  # RFC 9293 §3.5
    for lost in range(3):
        pair = TcpPair(wire=lossy_at(lost))
        pair.connect()
        data = pattern(5000)
        assert pair.transfer(pair.client, pair.server, data) == data


def test_zero_window_is_probed_and_opened() -> None:  # RFC 9293 §3.8.6.1
    config = TcpConfig(receive_buffer_bytes=8192, receive_buffer_max_bytes=8192)
    pair = TcpPair(config).connect()
    data = pattern(60_000)
    sent = pair.client.write(data)
    assert sent == len(data)
    pair.run_for(30 * SECOND)
    assert pair.server.readable_bytes <= 8192 + 1
    assert pair.client.sender.una - pair.client.iss - 1 == pair.server.readable_bytes
    assert pair.client.is_established
    received = bytearray()
    while len(received) < len(data):
        chunk = pair.server.read(3000)
        received += chunk
        pair.server.window_update(pair.now)
        if not chunk:
            assert pair.step()
    assert bytes(received) == data


def test_a_peer_that_never_opens_its_window_is_waited_for() -> None:  # RFC 9293 §3.8.6.1 (MUST-37)
    config = TcpConfig(receive_buffer_bytes=4096, receive_buffer_max_bytes=4096)
    pair = TcpPair(config).connect()
    pair.client.write(pattern(20_000))
    pair.run_for(7200 * SECOND)
    assert pair.client.is_established
    assert pair.client.error is None


def test_receive_buffer_grows_to_what_the_path_needs() -> None:
    pair = TcpPair(TcpConfig(receive_buffer_bytes=65536, receive_buffer_max_bytes=4 << 20), gso_max_bytes=64000)
    pair.connect()
    data = pattern(6_000_000)
    assert pair.transfer(pair.client, pair.server, data) == data
    assert pair.server.receiver.tuner.size > 262_144


def test_buffer_that_must_not_grow_does_not() -> None:
    pair = TcpPair(TcpConfig(receive_buffer_bytes=65536, receive_buffer_max_bytes=65536)).connect()
    data = pattern(500_000)
    assert pair.transfer(pair.client, pair.server, data) == data
    assert pair.server.receiver.tuner.size == 65536


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    seed=st.integers(0, 2**32),
    loss=st.floats(0, 0.2),
    reorder=st.floats(0, 0.5),
    duplicate=st.floats(0, 0.3),
    length=st.integers(0, 60_000),
    sack=st.booleans(),
    timestamps=st.booleans(),
    gso=st.sampled_from([0, 20_000]),
    buffer=st.sampled_from([4096, 131072]),
)
def test_every_byte_once_in_order_over_a_hostile_wire(
    seed: int,
    loss: float,
    reorder: float,
    duplicate: float,
    length: int,
    sack: bool,
    timestamps: bool,
    gso: int,
    buffer: int,
) -> None:
    config = TcpConfig(
        sack=sack, timestamps=timestamps, receive_buffer_bytes=buffer, receive_buffer_max_bytes=buffer, syn_retries=20,
        syn_ack_retries=20, data_retries=40,
    )  # fmt: skip
    pair = TcpPair(config, wire=hostile_wire(loss, reorder, duplicate), seed=seed, gso_max_bytes=gso)
    pair.connect()
    there, back = pattern(length, seed), pattern(length // 3, seed + 1)
    assert pair.transfer(pair.client, pair.server, there, 7777) == there
    assert pair.transfer(pair.server, pair.client, back) == back
    pair.client.close(pair.now)
    pair.run_until(lambda: pair.server.eof)
    pair.server.close(pair.now)
    pair.run_until(lambda: pair.server.is_closed and pair.client.is_closed)
    assert pair.server.readable_bytes == 0
    assert pair.client.error is None or pair.client.fin_received
