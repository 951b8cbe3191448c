"""Octets of rules and routes with segments; what the kernel lists is read whatever it is."""

import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mptcp.core.wire import ip
from mptcp.info import Endpoint
from mptcp.kernel import segment_routing
from mptcp.kernel.netlink import attribute, attributes
from mptcp.kernel.segment_routing import (
    PROTOCOL,
    Mode,
    Rule,
    SegmentRoute,
    emit_header,
    emit_route,
    emit_rule,
    parse_rule,
)

LOCAL, REMOTE = Endpoint.parse("fd00::1", 40_000), Endpoint.parse("fd00::2", 80)
SEGMENTS = tuple(Endpoint.parse(f"fd01::{i}").address for i in range(1, 4))
ROUTE = SegmentRoute(LOCAL, REMOTE, SEGMENTS, Mode.INLINE, 7, segment_routing.FIRST_TABLE + 5)


def test_the_header_is_the_one_of_the_user_space_stack() -> None:
    """But for the destination, which the kernel writes, and the next header."""
    assert emit_header(SEGMENTS, Mode.INLINE) == ip.emit_segment_routing(SEGMENTS, bytes(16), 0)


def test_the_header_of_a_whole_packet_inside_another() -> None:
    header = emit_header(SEGMENTS, Mode.ENCAP)
    assert header[:8] == bytes((0, 6, 4, 2, 2, 0, 0, 0))
    assert header[8:] == SEGMENTS[2] + SEGMENTS[1] + SEGMENTS[0]


def test_the_longest_list_fits() -> None:
    header = emit_header(SEGMENTS[:1] * segment_routing.MAX_SEGMENTS, Mode.INLINE)
    assert len(header) == 8 + 8 * header[1]


def test_a_route() -> None:
    body = emit_route(ROUTE)
    assert body[:12] == bytes((socket.AF_INET6, 128, 0, 0, 252, PROTOCOL, 0, 1)) + bytes(4)
    found = {kind: bytes(value) for kind, value in attributes(memoryview(body)[12:])}
    assert found[1] == REMOTE.address
    assert struct.unpack("=I", found[15]) == (ROUTE.table,)
    assert struct.unpack("=I", found[4]) == (7,)
    assert struct.unpack("=H", found[21]) == (5,)
    [(kind, value)] = attributes(memoryview(found[22]))
    assert (kind, struct.unpack_from("=i", value)) == (1, (0,))
    assert value[4:] == emit_header(SEGMENTS, Mode.INLINE)


@pytest.mark.parametrize("ports", [(40_000, 80), (0, 80), (0, 0)])
def test_a_rule_is_read_as_it_was_written(ports: tuple[int, int]) -> None:
    rule = Rule(PROTOCOL, ROUTE.table, Endpoint(LOCAL.address, ports[0]), Endpoint(REMOTE.address, ports[1]))
    assert parse_rule(memoryview(emit_rule(rule))) == rule


def test_other_rules() -> None:
    assert parse_rule(memoryview(bytes(11))) is None
    short = parse_rule(memoryview(bytes((10, 0, 0, 0, 254, 0, 0, 1)) + bytes(4)))
    assert short == Rule(0, 254, Endpoint(b""), Endpoint(b""))
    broken = parse_rule(
        memoryview(bytes(12) + attribute(23, b"\1") + attribute(15, b"12345") + attribute(2, b"\1" * 5))
    )
    assert broken == Rule(0, 0, Endpoint(b"\1" * 5), Endpoint(b""))


@given(st.binary(max_size=120))
def test_any_octets(octets: bytes) -> None:
    rule = parse_rule(memoryview(octets))
    assert rule is None or rule.table >= 0
