"""The queue of views behind the stream."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mptcp.core.tcp.send_buffer import MERGED_PIECE_BYTES, SMALL_WRITE_BYTES, SendBuffer


def test_nothing_is_copied() -> None:
    buffer = SendBuffer()
    data = bytes(range(256)) * 40
    buffer.append(data)
    buffer.append(memoryview(data))
    first = buffer.take(1000)
    assert [memoryview(view).obj is data for view in first] == [True]
    rest = buffer.take(len(data) * 2 - 1000)
    assert [memoryview(view).obj is data for view in rest] == [True, True]
    assert buffer.length == 0


def test_single_octets_do_not_cost_a_view_each() -> None:
    buffer = SendBuffer()
    for n in range(10_000):
        buffer.append(bytes([n % 256]))
    views = buffer.take(10_000)
    assert len(views) <= 10_000 // (MERGED_PIECE_BYTES - SMALL_WRITE_BYTES) + 1
    assert b"".join(views) == bytes(n % 256 for n in range(10_000))


@given(st.lists(st.one_of(st.integers(0, 3000), st.integers(-3000, -1)), max_size=60))
def test_what_goes_in_comes_out(steps: list[int]) -> None:
    buffer, expected, got, counter = SendBuffer(), bytearray(), bytearray(), 0
    for step in steps:
        if step >= 0:
            payload = bytes((counter + n) % 251 for n in range(step))
            counter += step
            expected += payload
            buffer.append(payload if step % 2 else memoryview(payload))
        else:
            taken = buffer.take(min(-step, buffer.length))
            assert all(len(view) for view in taken)
            got += b"".join(taken)
        assert buffer.length == len(expected) - len(got)
    got += b"".join(buffer.take(buffer.length))
    assert got == expected
