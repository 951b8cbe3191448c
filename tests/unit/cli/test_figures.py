import pytest

from mptcp.cli import figures
from mptcp.cli.demo_result import Arrivals
from mptcp.cli.subflow_log import MAX_SUBFLOWS, SubflowLog
from mptcp.info import Endpoint, SubflowInfo, SubflowState


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (64 << 20, "64.0 MiB"), (5 << 40, "5120.0 GiB")],
)
def test_octets(count: int, text: str) -> None:
    assert figures.octets(count) == text


@pytest.mark.parametrize(("bits", "text"), [(0, "0 bit/s"), (94.1e6, "94.1 Mbit/s"), (2.5e9, "2.50 Gbit/s")])
def test_rate(bits: float, text: str) -> None:
    assert figures.rate(bits) == text


@pytest.mark.parametrize(("us", "text"), [(0, "–"), (12_300, "12.3 ms"), (2_500_000, "2.50 s")])
def test_milliseconds(us: float, text: str) -> None:
    assert figures.milliseconds(us) == text


def info(identity: int, received: int, state: SubflowState = SubflowState.ACTIVE) -> SubflowInfo:
    end = Endpoint.parse("10.0.0.1", 1)
    return SubflowInfo(identity, end, end, 0, 0, state, bytes_received=received)


def test_rate_is_that_of_the_last_second() -> None:
    log = SubflowLog()
    for tenth in range(30):
        received = 1000 * tenth if tenth < 20 else 19_000
        log.update([info(1, received)], tenth * 100_000)
        if tenth == 15:
            assert log.tracks[0].rate_bits == pytest.approx(80_000)
    assert log.tracks[0].rate_bits == pytest.approx(0)


def test_closed_subflow_keeps_its_figures() -> None:
    log = SubflowLog()
    log.update([info(1, 10), info(2, 20)], 0)
    log.update([info(2, 30)], 100_000)
    first, second = log.tracks
    assert (first.bytes, first.present, first.state) == (10, False, "closed")
    assert (second.bytes, second.present, second.state) == (30, True, "active")


def test_memory_of_closed_subflows_is_bounded() -> None:
    log = SubflowLog()
    for identity in range(10 * MAX_SUBFLOWS):
        log.update([info(identity, 1)], identity)
    assert len(log.tracks) <= MAX_SUBFLOWS + 1
    assert log.tracks[-1].info.id == 10 * MAX_SUBFLOWS - 1


def test_arrivals_measure_rate_and_stall() -> None:
    arrivals = Arrivals()
    for millisecond in range(1000):
        arrivals.add(1000 * millisecond, 1000 * millisecond)
    arrivals.add(1_000_000, 1_250_000)
    assert arrivals.rate_bits(0, 999_000) == pytest.approx(8e6, rel=0.02)
    assert arrivals.longest_stall_us == 251_000
    assert arrivals.rate_bits(2_000_000, 3_000_000) == 0.0
