"""Unwrapping: the nearest integer with the wire's low bits, on both sides of every wrap."""

from hypothesis import given
from hypothesis import strategies as st

from mptcp.core.wire.sequence import unwrap32, unwrap64


@given(st.integers(0, 1 << 40), st.integers(-(1 << 31), (1 << 31) - 1))
def test_unwrap32_finds_the_number_within_half_a_cycle(near: int, distance: int) -> None:
    assert unwrap32(near + distance & 0xFFFFFFFF, near) == near + distance


@given(st.integers(0, 1 << 70), st.integers(-(1 << 63), (1 << 63) - 1))
def test_unwrap64_finds_the_number_within_half_a_cycle(near: int, distance: int) -> None:
    assert unwrap64(near + distance & 0xFFFFFFFFFFFFFFFF, near) == near + distance


def test_around_the_wrap() -> None:
    assert unwrap32(0, 0xFFFFFFFF) == 0x100000000
    assert unwrap32(0xFFFFFFFF, 0x100000000) == 0xFFFFFFFF
    assert unwrap64(5, (1 << 64) - 5) == (1 << 64) + 5
