"""``--except``, ``--except-port``, ``--except-program``: words, and what they match."""

from __future__ import annotations

import ipaddress
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mptcp.errors import ConfigurationError
from mptcp.kernel.launch.exceptions import MAX_EXCEPTIONS, Exceptions, parse_sockaddr


@pytest.mark.parametrize(
    ("address", "port", "matches"),
    [
        ("127.0.0.1", 80, True),
        ("127.255.0.9", 80, True),
        ("128.0.0.1", 80, False),
        ("::ffff:127.0.0.1", 80, True),
        ("::1", 80, True),
        ("::2", 80, False),
        ("10.0.0.1", 22, True),
        ("fd00::1", 22, True),
        ("10.0.0.1", 6005, True),
        ("10.0.0.1", 6010, True),
        ("10.0.0.1", 6011, False),
        ("10.9.8.7", 80, True),
    ],
)
def test_addresses_and_ports(address: str, port: int, matches: bool) -> None:
    excepted = Exceptions.parse(["127.0.0.0/8", "::1", "10.9.8.7/32"], ["22", "6000-6010"])
    assert excepted.need_addresses
    assert excepted.match_address(ipaddress.ip_address(address), port) is matches


def test_programs_by_name_or_path() -> None:
    excepted = Exceptions.parse(programs=["ssh", "/usr/bin/git"])
    assert excepted.programs == {"ssh", "git"}
    assert not excepted.need_addresses


@pytest.mark.parametrize(
    ("option", "word"),
    [
        *(("networks", word) for word in ("", "example.org", "1.2.3", "1.2.3.4/33", "::1/129", "1.2.3.4:80")),
        *(("ports", word) for word in ("", "0", "65536", "-1", "5-", "9-5", "http", "1-2-3", "²", "0x10", "1" * 5000)),
        *(("programs", word) for word in ("", "/usr/bin/")),
    ],
)
def test_wrong_words_are_named(option: str, word: str) -> None:
    with pytest.raises(ConfigurationError, match="--except"):
        Exceptions.parse(**{option: [word]})


def test_there_is_a_limit() -> None:
    with pytest.raises(ConfigurationError, match=str(MAX_EXCEPTIONS)):
        Exceptions.parse(ports=["1"] * (MAX_EXCEPTIONS + 1))


def test_socket_addresses() -> None:
    four = struct.pack("=H", 2) + struct.pack("!H", 80) + bytes([10, 0, 0, 1]) + bytes(8)
    six = struct.pack("=H", 10) + struct.pack("!HI", 443, 0) + ipaddress.ip_address("fd00::1").packed + bytes(4)
    assert parse_sockaddr(four) == (ipaddress.ip_address("10.0.0.1"), 80)
    assert parse_sockaddr(six) == (ipaddress.ip_address("fd00::1"), 443)
    for raw in (b"", four[:7], six[:23], struct.pack("=H", 1) + b"/run/socket"):
        assert parse_sockaddr(raw) is None


@given(st.binary(max_size=140))
def test_any_octets_are_an_address_or_none(raw: bytes) -> None:
    place = parse_sockaddr(raw)
    assert place is None or place[1] <= 65535
