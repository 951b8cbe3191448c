"""Each profile has the effect that docs/api-advanced.md claims, and the page shows the figures (RFC 6897 A.3, REQ8 to REQ12)."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from mptcp.core.units import MILLISECOND, SECOND

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import profile_figures as tool  # noqa: E402


@pytest.mark.parametrize("ipv6", [False, True], ids=["v4", "v6"])
def test_latency_delivers_messages_sooner_than_bulk_on_paths_of_10_and_100_ms(ipv6: bool) -> None:
    family = {"ipv6": True} if ipv6 else {}
    latency = tool.message_delays_us("latency", **family)
    bulk = tool.message_delays_us("bulk", **family)
    assert tool.percentile(latency, 0.99) < 0.7 * tool.percentile(bulk, 0.99)


def test_latency_is_no_worse_for_small_messages_and_uses_both_paths_for_large_ones() -> None:
    small = tool.message_delays_us("latency", size=500, every_us=5 * MILLISECOND, count=300)
    assert tool.percentile(small, 0.99) < 8 * MILLISECOND
    run = tool.upload("latency", tool.link(10, 10), tool.link(10, 100), until_us=6 * SECOND)
    assert run.goodput_mbps(2 * SECOND, 6 * SECOND) > 15


def test_reliable_does_not_stall_when_a_path_dies() -> None:
    assert tool.stall_us("reliable") < 100 * MILLISECOND
    assert tool.stall_us("bulk") > 200 * MILLISECOND


def test_steady_varies_less_than_bulk_when_a_path_comes_and_goes() -> None:
    assert tool.unsteadiness("steady") < 0.25 * tool.unsteadiness("bulk")


def test_steady_keeps_to_the_rate_that_is_expected() -> None:
    """15 Mbit/s are more than one path of 10 gives, and less than two do."""
    made = tool.pair("steady", tool.link(10, 40), tool.link(10, 40), expected=tool.Expectation(rate_bps=15_000_000))
    receiver = tool.Listening(made.server_host, made.server)
    made.server_host.attach(made.server, receiver)
    every_us = 20 * MILLISECOND
    sender = tool.Messages(made.client_host, made.client, 15_000_000 // 8 * every_us // SECOND, every_us, 400)
    made.client_host.attach(made.client, sender)
    made.run(for_us=8 * SECOND)
    rates = [path.forward.bytes_delivered * 8 / 8e6 for path in made.paths]
    assert receiver.is_exact
    assert receiver.total * 8 / 8e6 > 12
    assert min(rates) > 2


def test_hot_standby_leaves_the_second_path_idle_until_it_takes_over() -> None:
    idle, silence = tool.takeover("hot-standby")
    busy, _ = tool.takeover("bulk")
    assert idle < 1_000 < busy
    assert silence < SECOND


def test_overflow_uses_the_second_path_only_for_what_the_first_cannot_carry() -> None:
    assert tool.offered("overflow", 6)[1] < 0.3
    first, second = tool.offered("overflow", 14)
    assert first > 8
    assert second > 3
    assert tool.offered("bulk", 6)[1] > 3  # by round-trip time, and so the other one


def test_bulk_adds_paths_up() -> None:
    run = tool.upload("bulk", tool.link(10, 20), tool.link(10, 40), until_us=6 * SECOND)
    alone = tool.upload("hot-standby", tool.link(10, 20), tool.link(10, 40), until_us=6 * SECOND)
    assert run.goodput_mbps(2 * SECOND, 6 * SECOND) > 1.8 * alone.goodput_mbps(2 * SECOND, 6 * SECOND)


def test_the_page_shows_what_is_measured() -> None:
    """Within a quarter: the page need not be written anew for every change of the stack."""
    page = (ROOT / tool.PAGE).read_text()
    written = page.partition(tool.BEGIN)[2].partition(tool.END)[0]
    lines = [line for line in written.splitlines() if line.startswith("| ")][1:]
    figures = tool.figures()
    assert len(lines) == len(figures)
    for line, figure in zip(lines, figures, strict=True):
        _, profile, measured, value, other, _ = (cell.strip() for cell in line.split("|"))
        assert (profile, measured) == (figure.profile, figure.measured)
        for text, now in ((value, figure.value), (other.partition(":")[2], figure.other_value)):
            number = float(re.search(r"[\d.,]+(e-?\d+)?", text)[0].replace(",", ""))  # type: ignore[index]
            assert number == pytest.approx(now, rel=0.25, abs=0.05), (line, now)
