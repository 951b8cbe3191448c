"""Receive buffers: what somebody holds is never written over; what nobody holds is used again."""

from mptcp.links._buffers import BUFFER_BYTES, COPY_BYTES, MAX_BUFFERS, ReceiveBuffers


def fill(buffers: ReceiveBuffers, mark: int, size: int) -> memoryview:
    """What a link does: reads into the view, takes a part."""
    buffers.view[: size + 10] = bytes([mark]) * (size + 10)
    return buffers.take(10, size + 10)


def test_what_is_held_stays() -> None:
    buffers = ReceiveBuffers()
    held = [fill(buffers, i % 251, size) for i in range(400) for size in (60, 40_000)]
    for i in range(400):
        assert held[2 * i] == bytes([i % 251]) * 60
        assert held[2 * i + 1] == bytes([i % 251]) * 40_000
    assert len(buffers._ring) == MAX_BUFFERS


def test_a_slice_of_a_slice_holds_too() -> None:
    buffers = ReceiveBuffers()
    part = fill(buffers, 7, 30_000)[100:][5:20]
    for i in range(20):
        fill(buffers, i, 30_000)
    assert part == bytes([7]) * 15


def test_what_is_free_is_used_again() -> None:
    buffers = ReceiveBuffers()
    for i in range(1000):
        fill(buffers, i % 251, 50_000)
    assert len(buffers._ring) <= 2
    held = [fill(buffers, 1, 50_000) for _ in range(10)]
    del held
    before = len(buffers._ring)
    for i in range(1000):
        fill(buffers, i % 251, 50_000)
    assert len(buffers._ring) == before


def test_small_packets_hold_no_buffer() -> None:
    buffers = ReceiveBuffers()
    held = [fill(buffers, 1, COPY_BYTES - 10) for _ in range(50)]
    assert len(buffers._ring) == 1
    assert {len(view.obj) for view in held} == {COPY_BYTES - 10}


def test_views_cannot_be_written() -> None:
    buffers = ReceiveBuffers()
    assert fill(buffers, 1, 60).readonly
    assert fill(buffers, 1, 60_000).readonly
    assert len(buffers.view) == BUFFER_BYTES
