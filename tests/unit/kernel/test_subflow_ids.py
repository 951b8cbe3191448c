"""Numbers of subflows: ours, given out when one is asked for or first seen, and staying."""

from __future__ import annotations

from mptcp.info import Endpoint
from mptcp.kernel.layout import TcpInfo
from mptcp.kernel.sockopt import SubflowEntry
from mptcp.kernel.subflow_ids import MAX_PAST, SubflowIds

A, B = Endpoint.parse("10.0.0.1", 1000), Endpoint.parse("10.0.1.1", 2000)
S = Endpoint.parse("10.0.0.2", 80)
NO_INFO = TcpInfo.parse(b"")


def entry(kernel_id: int, local: Endpoint, remote: Endpoint = S) -> SubflowEntry:
    return SubflowEntry(kernel_id, local, remote, NO_INFO)


def test_numbers_are_mostly_the_kernels() -> None:
    ids = SubflowIds()
    assert [ids.see(entry(1, A)), ids.see(entry(2, B)), ids.see(entry(1, A))] == [1, 2, 1]
    assert ids.number(B, S) == 2
    assert ids.endpoints(2) == (B, S)


def test_one_that_was_expected_keeps_its_number_when_its_port_is_known() -> None:
    ids = SubflowIds()
    ids.see(entry(1, A))
    number = ids.expect(Endpoint(B.address), S)
    assert number == 2
    assert ids.see(entry(7, B)) == number
    assert ids.endpoints(number) == (B, S)
    # The next between the same addresses is another.
    second = ids.expect(Endpoint(B.address), S)
    assert ids.see(entry(8, Endpoint(B.address, 2001))) == second == 3


def test_an_event_finds_what_was_expected() -> None:
    ids = SubflowIds()
    number = ids.expect(Endpoint(B.address), S)
    assert ids.number(B, S) == number
    assert ids.find(B, S) == number
    assert ids.find(A, S) is None


def test_the_past_is_remembered_for_late_events_and_bounded() -> None:
    ids = SubflowIds()
    number = ids.see(entry(1, A))
    ids.forget(number)
    assert ids.find(A, S) is None
    assert ids.number(A, S) == number
    for port in range(MAX_PAST + 10):
        ids.forget(ids.see(entry(port + 2, Endpoint(B.address, port + 1))))
    assert ids.number(A, S) != number
    assert len(ids._past) == MAX_PAST


def test_the_same_addresses_and_ports_again_are_another_subflow() -> None:
    ids = SubflowIds()
    first = ids.see(entry(4, B))
    assert ids.see(entry(5, B)) != first
    assert ids.living() == [2]


def test_kernels_that_number_nothing() -> None:
    ids = SubflowIds()
    assert [ids.see(entry(0, A)), ids.see(entry(0, B)), ids.see(entry(0, A))] == [1, 2, 1]


def test_low_octets_differ_among_the_living_and_are_never_zero() -> None:
    ids = SubflowIds()
    assert ids.see(entry(1, A)) == 1
    seen = set()
    for kernel_id in range(2, 600):
        number = ids.see(entry(kernel_id, B))
        assert number & 0xFF not in {0, 1}
        seen.add(number)
        ids.forget(number)
    assert len(seen) == 598
    for port in range(1, 300):
        ids.see(entry(1000 + port, Endpoint(B.address, port)))
    assert len(ids.living()) == 300
