"""The local policy: where it comes from, what it says of whom, what it does to connections."""

from __future__ import annotations

import socket as std
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

import mptcp
from mptcp.core.multipath.config import DEFAULT_CONFIG
from mptcp.core.multipath.fallback import FailureCache
from mptcp.core.multipath.special_addresses import Network, is_host_identity, is_special
from mptcp.core.schedulers.earliest_completion import EarliestCompletion
from mptcp.core.units import MILLISECOND, NEVER, SECOND
from mptcp.errors import ConfigurationError
from mptcp.info import Endpoint
from mptcp.links.loopback import LoopbackLink
from mptcp.sockets.policy import RACE_PLAIN_US, Policy, Rule, home_addresses, network
from mptcp.sockets.user import UserStack

EXAMPLE = """
enable = true
profile = "overflow"
race_plain_ms = 250
max_subflows = 4
max_remote_addresses = 2
no_delay_means_latency = false
failure_first_s = 30
failure_longest_s = 600
exclude = ["2001:db8:1::/48", "192.0.2.7"]
detect_home_addresses = false

[legacy]
bind = "ignore"
min_buffer_bytes = 0
fate_sharing = true

[[destination]]
network = "10.0.0.0/8"
ports = [22, 23]
profile = "latency"

[[destination]]
network = "2001:db8:2::/48"
enable = false

[[destination]]
race_plain_ms = 0
max_subflows = 2
ports = [443]
"""


def at(host: str, port: int = 80) -> Endpoint:
    return Endpoint.parse(host, port)


# --- where it comes from ------------------------------------------------------------------------------------------------
def test_a_file_has_every_key(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(EXAMPLE)
    policy = Policy.load(path)
    assert policy == Policy(
        enable=True, profile="overflow", race_plain_us=250 * MILLISECOND, max_subflows=4, max_remote_addresses=2,
        no_delay_means_latency=False, failure_first_us=30 * SECOND, failure_longest_us=600 * SECOND,
        exclude=("2001:db8:1::/48", "192.0.2.7"), detect_home_addresses=False,
        legacy=mptcp.LegacyPolicy(bind="ignore", min_buffer_bytes=0, fate_sharing=True),
        rules=(
            Rule("10.0.0.0/8", (22, 23), profile="latency"),
            Rule("2001:db8:2::/48", enable=False),
            Rule(ports=(443,), race_plain_us=NEVER, max_subflows=2),
        ),
    )  # fmt: skip
    assert Policy.from_environment({"MPTCP_POLICY": str(path)}) == policy


def test_an_empty_file_is_the_default(tmp_path: Path) -> None:
    (tmp_path / "empty.toml").write_text("")
    assert Policy.load(tmp_path / "empty.toml") == Policy() == Policy.from_environment({})
    assert Policy().race_plain_us == RACE_PLAIN_US


def test_the_environment_overrules_the_file(tmp_path: Path) -> None:
    (tmp_path / "p.toml").write_text('profile = "bulk"\nmax_subflows = 3\n')
    environ = {
        "MPTCP_POLICY": str(tmp_path / "p.toml"), "MPTCP_ENABLE": "off", "MPTCP_PROFILE": "steady",
        "MPTCP_RACE_PLAIN_MS": "0",
    }  # fmt: skip
    policy = Policy.from_environment(environ)
    assert (policy.enable, policy.profile, policy.race_plain_us, policy.max_subflows) == (False, "steady", NEVER, 3)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("enabel = true", "there is no key 'enabel'; there are enable"),
        ("enable = 1", "enable is of type bool, not int"),
        ("max_subflows = true", "max_subflows is of type int, not bool"),
        ("max_subflows = 0", "at least one subflow"),
        ("race_plain_ms = -5", "some time after"),
        ("failure_first_s = 100\nfailure_longest_s = 10", "no longer than the longest"),
        ("max_remote_addresses = -1", "cannot be negative"),
        ('profile = "sideways"', "no profile is called 'sideways'"),
        ('exclude = ["nowhere"]', "'nowhere' is no network"),
        ("exclude = [1]", "exclude is a list of networks"),
        ("destination = [1]", "destination 1"),
        ("[[destination]]\nports = [0]", "ports are 1 to 65535"),
        ('[[destination]]\nports = ["ssh"]', "ports is a list of numbers"),
        ("[[destination]]\nenable = true\n[[destination]]\nprot = 1", "destination 2: there is no key 'prot'"),
        ("[legacy]\nbnid = true", "legacy: there is no key 'bnid'"),
        ('[legacy]\nbind = "never"', "bind is disable, restrict or ignore"),
        ("enable =", "Invalid value"),
    ],
)
def test_a_wrong_file_is_one_sentence(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match="policy") as failed:
        Policy.load(path)
    assert says in str(failed.value)


def test_a_wrong_environment() -> None:
    for environ, says in (
        ({"MPTCP_ENABLE": "perhaps"}, "it is 1 or 0"),
        ({"MPTCP_RACE_PLAIN_MS": "soon"}, "number of milliseconds"),
        ({"MPTCP_PROFILE": "x"}, "no profile"),
        ({"MPTCP_POLICY": "/nowhere/p.toml"}, "No such file"),
    ):
        with pytest.raises(ConfigurationError, match=says):
            Policy.from_environment(environ)


# --- what it says ---------------------------------------------------------------------------------------------------------
def test_the_first_rule_that_fits_is_the_one(tmp_path: Path) -> None:
    (tmp_path / "p.toml").write_text(EXAMPLE)
    policy = Policy.load(tmp_path / "p.toml")
    ssh, web = policy.rule_for(at("10.1.2.3", 22)), policy.rule_for(at("10.1.2.3", 80))
    assert ssh is not None
    assert ssh.profile == "latency"
    assert web is None
    off = policy.apply(DEFAULT_CONFIG, at("2001:db8:2::1", 443), aware=True)
    assert not off.multipath
    assert off.disabled_reason == "the policy turns MPTCP off for this destination"
    limited = policy.apply(DEFAULT_CONFIG, at("192.0.2.1", 443))
    assert (limited.max_subflows, limited.race_plain_us) == (2, NEVER)
    other = policy.apply(DEFAULT_CONFIG, at("192.0.2.1", 80))
    assert (other.max_subflows, other.race_plain_us, other.max_remote_addresses) == (4, 250 * MILLISECOND, 2)
    assert other.scheduler is not None
    assert other.scheduler().name == "overflow"
    # Bounds are bounds, whatever a configuration asks for; strategies that a program has chosen are its own.
    assert policy.apply(DEFAULT_CONFIG.changed(max_subflows=1), at("192.0.2.1")).max_subflows == 1
    assert policy.apply(DEFAULT_CONFIG, at("192.0.2.1"), chosen=True).scheduler is None


def test_off_by_default_is_for_programs_that_do_not_ask() -> None:  # RFC 6897 §4.5
    policy = Policy(enable=False)
    assert not policy.apply(DEFAULT_CONFIG, at("192.0.2.1")).multipath
    assert policy.apply(DEFAULT_CONFIG, at("192.0.2.1"), aware=True).multipath
    allowed = policy.changed(rules=(Rule("192.0.2.0/24", enable=True),))
    assert allowed.apply(DEFAULT_CONFIG, at("192.0.2.1")).multipath


def test_no_delay_means_latency_to_the_scheduler() -> None:  # RFC 6897 §4.4.2
    eager = DEFAULT_CONFIG.changed(tcp=DEFAULT_CONFIG.tcp.changed(no_delay=True))
    assert Policy().apply(eager, None).scheduler is EarliestCompletion
    assert Policy().apply(DEFAULT_CONFIG, None).scheduler is None
    assert Policy().apply(eager, None, chosen=True).scheduler is None
    assert Policy(no_delay_means_latency=False).apply(eager, None).scheduler is None


# --- special addresses ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "host", ["2001:10::1", "2001:1f::1", "2001:20::1", "2001:2f:ffff::1", "fe80::1", "febf::1", "169.254.3.4"]
)
def test_special_addresses_are_at_neither_end_of_a_further_subflow(host: str) -> None:  # RFC 6897 §6.3
    assert is_special(at(host).address)


@pytest.mark.parametrize(
    "host", ["2001:db8::1", "2001:30::1", "2001:f::1", "fd00::1", "fec0::1", "10.0.0.1", "169.253.1.1"]
)
def test_other_addresses_are_not_special(host: str) -> None:
    assert not is_special(at(host).address)
    assert is_special(at(host).address, (network(host),))
    assert not is_special(at(host).address, (network("192.0.2.0/24"),))


def test_a_host_identity_gets_no_mptcp_at_all() -> None:
    config = Policy().apply(DEFAULT_CONFIG, at("2001:20::1"))
    assert not config.multipath
    assert "HIP" in config.disabled_reason
    assert Policy().apply(DEFAULT_CONFIG, at("2001:30::1")).multipath
    assert not is_host_identity(at("fe80::1").address)


def test_home_addresses_of_mobile_ipv6_are_those_that_the_system_marks(tmp_path: Path) -> None:
    table = tmp_path / "if_inet6"
    table.write_text(
        "20010db8000000000000000000000001 02 40 00 80     eth0\n20010db8000000000000000000000002 02 40 00 90     eth0\n"
    )
    assert home_addresses(str(table)) == [at("2001:db8::2").address]
    assert home_addresses(str(tmp_path / "nothing")) == []


def test_networks() -> None:
    assert network("10.1.2.3/8") == Network(bytes((10, 0, 0, 0)), 8)
    assert network("10.0.0.0/8").covers(at("10.9.9.9").address)
    assert not network("10.0.0.0/8").covers(at("11.9.9.9").address)
    assert not network("10.0.0.0/8").covers(at("::1").address)
    assert network("0.0.0.0/0").covers(at("11.9.9.9").address)
    assert network("2001:db8:1::/48").covers(at("2001:db8:1:9::1").address)
    assert not network("2001:db8:1::/48").covers(at("2001:db8:2::1").address)
    assert not network("::/0").covers(at("11.9.9.9").address)


# --- what it does to sockets -------------------------------------------------------------------------------------------------
class Stacks:
    def __init__(self, near: UserStack, far: UserStack) -> None:
        self.near = near
        self.far = far


@contextmanager
def stacks(policy: Policy | None = None) -> Iterator[Stacks]:
    """Two links between them; the far one has an address on each, and special ones."""
    with ExitStack() as exits:
        first, second = LoopbackLink.pair("one-"), LoopbackLink.pair("two-")
        near = UserStack(
            [first[0], second[0]],
            {first[0].name: ["10.0.0.1", "fd00::1"], second[0].name: ["10.0.1.1", "fd00:1::1", "fe80::1", "169.254.0.1"]},
            seed=1, policy=policy,
        )  # fmt: skip
        exits.enter_context(near)
        far = UserStack(
            [first[1], second[1]],
            {first[1].name: ["10.0.0.2", "fd00::2"], second[1].name: ["169.254.0.2", "fe80::2", "2001:20::2"]},
            seed=2, policy=Policy(),
        )  # fmt: skip
        exits.enter_context(far)
        yield Stacks(near, far)


def connected(pair: Stacks, host: str, proto: int = 0) -> tuple[mptcp.Socket, mptcp.Socket]:
    family = std.AF_INET6 if ":" in host else std.AF_INET
    server = pair.far.socket(family)
    server.setsockopt(std.SOL_SOCKET, std.SO_REUSEADDR, 1)
    server.bind(("::" if family == std.AF_INET6 else "0.0.0.0", 8000))
    server.listen()
    client = pair.near.socket(family, proto=proto)
    client.settimeout(30)
    client.connect((host, 8000))
    accepted, _ = server.accept()
    server.close()
    accepted.sendall(b"x")
    assert client.recv(1) == b"x"
    client.sendall(b"y")
    assert accepted.recv(1) == b"y"
    return client, accepted


@pytest.mark.parametrize("host", ["10.0.0.2", "fd00::2"])
def test_special_addresses_of_either_side_are_left_out(host: str) -> None:
    with stacks() as pair:
        client, accepted = connected(pair, host)
        deadline = time.monotonic() + 0.15
        while time.monotonic() < deadline:
            for info in (*client.subflows(), *accepted.subflows()):
                assert not is_special(info.local.address)
                assert not is_special(info.remote.address)
            time.sleep(0.01)
        for special in ("fe80::1", "169.254.0.1"):
            with pytest.raises(mptcp.PathError):
                client.open_subflow(local=(special, 0))
        client.close()
        accepted.close()
        assert "join_special_address" not in pair.far.counters


HOSTS = pytest.mark.parametrize("host", ["10.0.0.2", "fd00::2"])


@pytest.mark.parametrize(("host", "other"), [("10.0.0.2", "fd00::2"), ("fd00::2", "10.0.0.2")])
def test_off_for_a_destination(host: str, other: str) -> None:
    with stacks(Policy(rules=(Rule(host, enable=False),))) as pair:
        client, accepted = connected(pair, host, mptcp.IPPROTO_MPTCP)
        assert not client.is_multipath
        assert client.fallback_reason == "the policy turns MPTCP off for this destination"
        client.close()
        accepted.close()
        client, accepted = connected(pair, other)
        assert client.is_multipath
        client.close()
        accepted.close()


@HOSTS
def test_off_by_default_and_on_by_request(host: str) -> None:
    with stacks(Policy(enable=False)) as pair:
        for proto, multipath in ((0, False), (mptcp.IPPROTO_MPTCP, True)):
            client, accepted = connected(pair, host, proto)
            assert client.is_multipath is multipath
            client.close()
            accepted.close()
        pair.near.set_policy(Policy())
        client, accepted = connected(pair, host)
        assert client.is_multipath
        client.close()
        accepted.close()


@HOSTS
def test_a_profile_by_destination_and_bounds(host: str) -> None:
    with stacks(Policy(rules=(Rule(ports=(8000,), profile="reliable", max_subflows=1),))) as pair:
        client, accepted = connected(pair, host)
        assert client.redundancy == "all"
        with pytest.raises(mptcp.PathError, match="limit of 1"):
            client.open_subflow()
        client.close()
        accepted.close()


@HOSTS
def test_how_long_failures_are_remembered(host: str) -> None:
    failures = FailureCache()
    Policy(failure_first_us=5 * SECOND, failure_longest_us=8 * SECOND).bound_failures(failures)
    address = at(host).address
    failures.failed(address, 0, 0)
    assert failures.should_avoid(address, 0, 5 * SECOND - 1)
    assert not failures.should_avoid(address, 0, 5 * SECOND)
    assert not failures.should_avoid(address, 1, 0)  # on another interface it may work
    failures.failed(address, 0, 6 * SECOND)
    assert failures.should_avoid(address, 0, 14 * SECOND - 1)  # doubled, but for no longer than the longest
    assert not failures.should_avoid(address, 0, 14 * SECOND)


@pytest.mark.parametrize("hosts", [("10.0.0.2", "10.0.0.9"), ("fd00::2", "fd00::9")])
def test_addresses_of_one_dns_answer_are_not_one_host(  # RFC 6897 §6.4
    hosts: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """MPTCP "MUST NOT make any assumptions about multiple A or AAAA records from the same DNS query"."""
    family = std.AF_INET6 if ":" in hosts[0] else std.AF_INET

    def answer(host: str, port: int, *_: object, **__: object) -> list[tuple[object, ...]]:
        return [(family, std.SOCK_STREAM, 6, "", (each, port)) for each in hosts]

    with stacks() as pair, mptcp.use(pair.near):
        server = pair.far.socket(family)
        server.bind((hosts[0], 8000))
        server.listen()
        monkeypatch.setattr(std, "getaddrinfo", answer)
        client = mptcp.create_connection(("both.example", 8000), timeout=30)  # REQ5: by name
        monkeypatch.undo()
        accepted, _ = server.accept()
        accepted.sendall(b"x" * 100_000)
        assert client.recv(100_000, std.MSG_WAITALL) == b"x" * 100_000
        time.sleep(0.05)
        assert {info.remote.host for info in client.subflows()} == {hosts[0]}
        for sock in (client, accepted, server):
            sock.close()


def test_the_policy_is_read_from_the_environment_when_a_stack_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPTCP_PROFILE", "steady")
    with stacks() as pair:
        assert pair.near.policy.profile == "steady"
    monkeypatch.setenv("MPTCP_PROFILE", "nonsense")
    near, far = LoopbackLink.pair()
    with pytest.raises(ConfigurationError):
        UserStack([near], ["10.0.0.1"])
    near.close()
    far.close()
