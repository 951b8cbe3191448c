"""The Range header (RFC 9110 §14.1, §14.2)."""

import pytest

from mptcp.cli.ranges import Unsatisfiable, parse_range


@pytest.mark.parametrize(
    ("header", "size", "expected"),
    [
        ("bytes=0-", 10, (0, 10)),
        ("bytes=4-", 10, (4, 10)),
        ("bytes=2-5", 10, (2, 6)),
        ("bytes=9-9", 10, (9, 10)),
        ("bytes=2-500", 10, (2, 10)),
        ("Bytes = 2-5 ", 10, (2, 6)),
        ("bytes=-3", 10, (7, 10)),
        ("bytes=-30", 10, (0, 10)),  # RFC 9110 §14.1.2: the entire representation
        ("bytes=5-2", 10, None),  # RFC 9110 §14.1.1: invalid, hence ignored
        ("bytes=0-1,4-5", 10, None),
        ("bytes=-", 10, None),
        ("bytes=a-b", 10, None),
        ("lines=1-2", 10, None),
        ("", 10, None),
        ("bytes=" + "9" * 30 + "-", 10, None),
        ("bytes=\u0661-", 10, None),
    ],
)
def test_range(header: str, size: int, expected: tuple[int, int] | None) -> None:
    assert parse_range(header, size) == expected


@pytest.mark.parametrize(("header", "size"), [("bytes=10-", 10), ("bytes=0-", 0), ("bytes=-0", 10), ("bytes=-5", 0)])
def test_outside_of_the_file(header: str, size: int) -> None:
    with pytest.raises(Unsatisfiable):
        parse_range(header, size)
