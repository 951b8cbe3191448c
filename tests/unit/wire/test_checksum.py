"""The Internet checksum against the plain loop of RFC 1071, and against sums worked out by hand."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mptcp.core.wire import checksum

# Around every boundary of the implementation: chunks of 4,096 octets, folding above 512 and 1,024.
LENGTHS = [0, 1, 2, 3, 19, 20, 511, 512, 513, 514, 1023, 1024, 1025, 1026, 2048, 2049, 4095, 4096, 4097, 4098, 8192,
           8193, 12289]  # fmt: skip


def plain_sum(data: bytes) -> int:
    """RFC 1071 §4.1, in Python: add words, fold carries."""
    if len(data) & 1:
        data += b"\0"
    total = 0
    for position in range(0, len(data), 2):
        total += data[position] << 8 | data[position + 1]
        total = (total & 0xFFFF) + (total >> 16)
    return total


def test_the_example_of_rfc_1071() -> None:  # RFC 1071 §3
    data = bytes.fromhex("0001f203f4f5f6f7")
    assert checksum.add(data) == 0xDDF2
    assert checksum.complement(0xDDF2) == 0x220D


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("pattern", [b"\x00", b"\xff", b"\x00\x01", b"\xfe\xdc\xba\x98\x76\x54\x32"])
def test_every_length_and_extreme_values(length: int, pattern: bytes) -> None:
    data = (pattern * (length // len(pattern) + 1))[:length]
    assert checksum.add(data) == plain_sum(data) == checksum.add(memoryview(data))


@settings(deadline=None, max_examples=60)
@given(st.binary(max_size=300), st.integers(0, 0xFFFF))
def test_initial_value_is_added(data: bytes, initial: int) -> None:
    assert checksum.add(data, initial) == plain_sum(initial.to_bytes(2, "big") + data)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.binary(max_size=50), max_size=6))
def test_views_of_odd_lengths_sum_like_their_join(parts: list[bytes]) -> None:
    assert checksum.add_views([memoryview(part) for part in parts]) == plain_sum(b"".join(parts))


def test_zero_sum_only_of_zero_octets() -> None:
    assert checksum.add(bytes(40)) == 0
    assert checksum.add(b"\xff\xff") == 0xFFFF
    assert checksum.fold(0) == 0
    assert checksum.fold(65535 * 7) == 0xFFFF


def test_pseudo_header_of_both_families() -> None:  # RFC 9293 §3.1, RFC 8200 §8.1
    source4, destination4 = bytes((10, 0, 0, 1)), bytes((192, 168, 255, 254))
    assert checksum.pseudo_sum(source4, destination4, 6) == plain_sum(source4 + destination4 + b"\0\x06")
    source6, destination6 = bytes(range(16)), bytes(range(200, 216))
    assert checksum.pseudo_sum(source6, destination6, 58) == plain_sum(source6 + destination6 + b"\0\0\0\x3a")


@settings(deadline=None, max_examples=60)
@given(st.binary(min_size=20, max_size=60), st.integers(0, 9), st.integers(0, 0xFFFF))
def test_incremental_update_equals_computing_anew(data: bytes, word: int, new: int) -> None:  # RFC 1624 §3
    position = 2 * word
    old = int.from_bytes(data[position : position + 2], "big")
    changed = data[:position] + new.to_bytes(2, "big") + data[position + 2 :]
    before = checksum.complement(checksum.add(data))
    after = checksum.update(before, old, new)
    # Two representations of zero are one number to a receiver: what counts is that it verifies.
    assert (plain_sum(changed) + after) % 65535 == 0


def test_verify_accepts_right_and_refuses_any_flipped_bit() -> None:
    pseudo = checksum.pseudo_sum(bytes((10, 0, 0, 1)), bytes((10, 0, 0, 2)), 6)
    segment = bytearray(b"\x00\x50\x1f\x90" + bytes(12) + b"\0\0\0\0" + b"odd")
    segment[16:18] = checksum.complement(checksum.add(segment, pseudo + len(segment))).to_bytes(2, "big")
    framed = memoryview(b"xx" + bytes(segment) + b"tail")
    assert checksum.verify_tcp(framed, 2, 2 + len(segment), pseudo)
    assert not checksum.verify_tcp(framed, 2, 2 + len(segment) + 1, pseudo)
    for bit in range(8 * len(segment)):
        flipped = bytearray(segment)
        flipped[bit >> 3] ^= 1 << (bit & 7)
        assert not checksum.verify_tcp(memoryview(flipped), 0, len(flipped), pseudo)
