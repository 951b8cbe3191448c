"""Two ends of a pair: order, limits, readiness, threads."""

import select
import threading
from collections.abc import Iterator

import pytest

from mptcp.core.packet import Packet
from mptcp.links.loopback import LoopbackLink

Pair = tuple[LoopbackLink, LoopbackLink]


def packet(number: int, size: int = 40, gso_size: int = 0) -> Packet:
    header = number.to_bytes(4, "big") + bytes(16)
    return Packet(header, (bytes(size - 20),), size, gso_size=gso_size, checksum_partial=gso_size > 0)


def is_readable(link: LoopbackLink) -> bool:
    return bool(select.select([link], [], [], 0)[0])


@pytest.fixture
def pair() -> Iterator[Pair]:
    first, second = LoopbackLink.pair(queue_packets=4)
    yield first, second
    first.close()
    second.close()


def test_what_one_sends_the_other_receives(pair: Pair) -> None:
    first, second = pair
    assert (first.name, second.name) == ("loopbacka", "loopbackb")
    assert not is_readable(second)
    views = (memoryview(b"abc"), b"", memoryview(b"defg"))
    assert first.send([Packet(b"H" * 20, views, 27), packet(2, 3000, 1400)]) == 2
    assert is_readable(second)
    assert not is_readable(first)
    received = second.receive()
    assert [(bytes(d), g, c) for d, g, c in received[:1]] == [(b"H" * 20 + b"abcdefg", 0, False)]
    assert (len(received[1][0]), *received[1][1:]) == (3000, 1400, True)
    assert not is_readable(second)
    assert second.receive() == []


def test_limit_leaves_the_rest_readable(pair: Pair) -> None:
    first, second = pair
    first.send([packet(i) for i in range(3)])
    assert len(second.receive(2)) == 2
    assert is_readable(second)
    assert len(second.receive(2)) == 1
    assert not is_readable(second)


def test_full_queue_takes_fewer_and_wakes_the_sender(pair: Pair) -> None:
    first, second = pair
    packets = [packet(i) for i in range(6)]
    assert first.send(packets) == 4
    assert first.send(packets[4:]) == 0
    assert not is_readable(first)
    assert len(second.receive(1)) == 1
    assert is_readable(first)  # there is room again
    assert first.receive() == []
    assert first.send(packets[4:]) == 1
    assert [d[3] for d, _, _ in second.receive()] == [1, 2, 3, 4]


def test_octets_are_limited_too() -> None:
    first, second = LoopbackLink.pair(queue_bytes=100_000)
    big = [packet(i, 60_000, 1400) for i in range(3)]
    assert first.send(big) == 2
    second.receive()
    assert first.send(big[2:]) == 1
    first.close()
    second.close()


def test_longer_than_the_mtu_is_dropped_and_counted(pair: Pair) -> None:
    first, second = pair
    assert first.send([packet(1, 1501), packet(2, 1500)]) == 2
    assert first.counters == {"loopback_send_too_long": 1}
    assert [len(d) for d, _, _ in second.receive()] == [1500]


def test_closed_ends_swallow(pair: Pair) -> None:
    first, second = pair
    second.close()
    assert first.send([packet(1)]) == 1
    assert first.counters == {"loopback_send_closed": 1}
    first.close()
    assert first.receive() == []
    first.close()


def test_room_for_an_end_that_is_closed_wakes_nobody(pair: Pair) -> None:
    first, second = pair
    assert first.send([packet(i) for i in range(6)]) == 4  # it waits for room ...
    first.close()
    assert len(second.receive()) == 4  # ... which comes too late


def test_nothing_is_lost_between_threads() -> None:
    first, second = LoopbackLink.pair(queue_packets=8)
    count = 3000
    got: list[int] = []

    def consume() -> None:
        while len(got) < count:
            if select.select([second], [], [], 5)[0]:
                got.extend(int.from_bytes(d[:4], "big") for d, _, _ in second.receive(5))
            else:
                return

    consumer = threading.Thread(target=consume)
    consumer.start()
    sent = 0
    while sent < count:
        sent += first.send([packet(i) for i in range(sent, min(sent + 7, count))])
        if sent < count and first._blocked:
            assert select.select([first], [], [], 5)[0], "the wake-up was lost"
            first.receive()
    consumer.join(10)
    assert got == list(range(count))
    first.close()
    second.close()
