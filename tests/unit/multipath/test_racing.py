"""A connect that gets no answer with MPTCP races one without (RFC 6555 style), and the loser leaves nothing behind."""

from __future__ import annotations

import pytest

from mptcp.core.multipath import racing
from mptcp.core.multipath.config import DEFAULT_CONFIG
from mptcp.core.multipath.connection_state import ConnectionState
from mptcp.core.multipath.fallback import INTERFACE_FAILURES, FallbackReason
from mptcp.core.units import MILLISECOND, NEVER, SECOND
from mptcp.errors import ConnectionRefused
from mptcp.info import Endpoint
from mptcp.sim.conditions import Conditions
from mptcp.sim.middleboxes import DropSynWithOptions
from mptcp.testing.pair import SERVER_PORT, Pair

RACING = DEFAULT_CONFIG.changed(race_plain_us=300 * MILLISECOND)
FAMILIES = pytest.mark.parametrize("ipv6", [False, True], ids=["v4", "v6"])


def pair(*, delay_ms: int = 10, drop: bool = False, ipv6: bool = False) -> Pair:
    made = Pair(conditions=Conditions(delay_us=delay_ms * MILLISECOND), client_options=RACING, ipv6=ipv6)
    if drop:
        made.paths[0].add_middlebox(DropSynWithOptions())
    return made


@FAMILIES
def test_a_middlebox_that_drops_mptcp_costs_300_ms_not_seconds(ipv6: bool) -> None:
    made = pair(drop=True, ipv6=ipv6)
    client, _ = made.connect(timeout_us=SECOND)
    assert made.now < 350 * MILLISECOND
    assert not client.is_multipath
    assert client.fallback_reason == FallbackReason.LOST_RACE.value
    assert made.client_host.stack.counters["race_started"] == 1
    # The loser is cleaned up: one subflow here, one connection there, and after the close nothing at all.
    assert len(client.subflows()) == 1
    assert client.subflows()[0].local == client.local
    assert len(made.server_host.stack.connections) == 1  # type: ignore[attr-defined]
    assert made.transfer(100_000).is_exact
    assert made.transfer(50_000, from_client=False).is_exact
    made.close()
    assert not made.client_host.stack.connections  # type: ignore[attr-defined]
    assert not made.client_host.stack._flows  # type: ignore[attr-defined]


def test_what_was_learned_spares_the_next_connect_the_wait_and_expires() -> None:
    made = pair(drop=True)
    made.connect(timeout_us=SECOND)
    started = made.now
    again = made.start()
    made.run(while_=lambda: again.state is ConnectionState.CONNECTING, for_us=SECOND)
    assert made.now - started < 50 * MILLISECOND
    assert again.fallback_reason == FallbackReason.LEARNED.value
    made.run(for_us=61 * SECOND)
    later = made.start()
    made.run(while_=lambda: later.state is ConnectionState.CONNECTING, for_us=SECOND)
    assert later.fallback_reason == FallbackReason.LOST_RACE.value


@FAMILIES
def test_a_long_round_trip_starts_a_race_that_mptcp_wins(ipv6: bool) -> None:
    made = pair(delay_ms=200, ipv6=ipv6)
    client, server = made.connect()
    assert made.transfer(100_000).is_exact
    made.drain()
    assert client.is_multipath
    assert server.is_multipath
    assert made.client_host.stack.counters["race_won_by_mptcp"] == 1
    assert len(client.subflows()) == 1
    # The server saw a SYN of the loser, and a RST to its answer.
    assert made.server_host.stack.connections == {server: None}  # type: ignore[attr-defined]
    assert len(made.client_host.stack._flows) == 1  # type: ignore[attr-defined]


def test_a_quick_answer_starts_no_race() -> None:
    made = pair()
    client, _ = made.connect()
    made.drain()
    assert client.is_multipath
    assert "race_started" not in made.client_host.stack.counters


def test_nobody_listens_after_the_race_has_begun() -> None:
    made = pair(drop=True)
    client = made.client_host.connect(Endpoint(made.server_ports[0].addresses[0], SERVER_PORT + 1), options=RACING)
    made.run(while_=lambda: client.state is ConnectionState.CONNECTING, for_us=2 * SECOND)
    # The SYN with MP_CAPABLE never arrives, the other one is refused; the first may still get an answer, and gives up late.
    assert client.state is ConnectionState.CONNECTING
    assert len(client.open_subflows()) == 1
    made.run(while_=lambda: client.state is ConnectionState.CONNECTING, for_us=60 * SECOND)
    assert isinstance(client.error, ConnectionRefused)
    assert not made.client_host.stack._flows  # type: ignore[attr-defined]


def test_an_abort_in_the_middle_of_a_race_leaves_nothing() -> None:
    made = pair(delay_ms=1000)
    client = made.start()
    made.run(for_us=500 * MILLISECOND)
    assert len(client.open_subflows()) == 2
    client.abort(made.now)
    made.drain(5 * SECOND)
    assert client.state is ConnectionState.CLOSED
    assert not made.client_host.stack.connections  # type: ignore[attr-defined]
    assert not made.client_host.stack._flows  # type: ignore[attr-defined]


def test_no_race_from_a_port_that_the_application_has_chosen() -> None:
    made = pair(drop=True)
    remote = Endpoint(made.server_ports[0].addresses[0], SERVER_PORT)
    client = made.client_host.connect(remote, local=Endpoint(made.client_ports[0].addresses[0], 5555), options=RACING)
    made.run(for_us=900 * MILLISECOND)
    assert len(client.open_subflows()) == 1
    assert client.race_at == NEVER


def test_races_of_one_host_are_few() -> None:
    made = pair(delay_ms=2000)
    for _ in range(racing.MAX_RACES + 5):
        made.start()
    made.run(for_us=400 * MILLISECOND)
    counters = made.client_host.stack.counters
    assert counters["race_started"] == racing.MAX_RACES
    assert counters["race_put_off"] == 5


def test_a_host_that_is_late_itself_starts_none() -> None:
    made = pair(delay_ms=200)
    client = made.start()
    made.run(for_us=MILLISECOND)
    client.handle_timeout(made.now + 300 * MILLISECOND + racing.LATE_US)
    assert client.rival is None
    assert client.race_at > made.now + 500 * MILLISECOND


def test_an_interface_over_which_nothing_works_is_learned_as_a_whole() -> None:
    # RFC 8684 §3.9.3: "and, eventually, on a whole interface, if MPTCP connections continue to fail"
    made = pair(drop=True)
    port = made.server_ports[0]
    hosts = [f"10.0.0.{100 + number}" for number in range(INTERFACE_FAILURES + 1)]
    for number, host in enumerate(hosts):
        made.server_host.stack.add_address(host, port.index, made.now)  # type: ignore[attr-defined]
        made.client_ports[0].add_route(Endpoint.parse(host).address, made.paths[0].forward)
        made.server_host.listen(Endpoint.parse(host, SERVER_PORT))
        started = made.now
        client = made.client_host.connect(Endpoint.parse(host, SERVER_PORT), options=RACING)
        while client.state is ConnectionState.CONNECTING and made.now - started < SECOND:
            made.run(for_us=10 * MILLISECOND)
        learned = number == INTERFACE_FAILURES
        wanted = FallbackReason.LEARNED if learned else FallbackReason.LOST_RACE
        assert client.fallback_reason == wanted.value
        assert (made.now - started < 50 * MILLISECOND) == learned
