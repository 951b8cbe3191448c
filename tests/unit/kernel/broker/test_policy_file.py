"""The broker's policy file: what its keys mean, and errors that name the line."""

import contextlib
import grp
import os
import pwd
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mptcp.errors import ConfigurationError
from mptcp.info import Endpoint
from mptcp.kernel.broker.options import ORDINARY
from mptcp.kernel.broker.policy import ALLOWABLE, MAX_FILE, MAX_RULES, Addresses, Peer, Policy, Rule
from mptcp.kernel.broker.protocol import Operation
from mptcp.kernel.control import OPERATIONS

ROOT = pwd.getpwuid(0).pw_name
ROOT_GROUP = grp.getgrgid(0).gr_name


def address(text: str) -> bytes:
    return Endpoint.parse(text).address


def test_what_can_be_allowed_is_what_a_control_can_do() -> None:
    assert {operation.label for operation in ALLOWABLE} == set(OPERATIONS)


def test_by_default_everybody_steers_connections_of_their_own_on_addresses_of_this_host() -> None:
    rule = Policy().rule_for(Peer(1, 1000, frozenset({1000})))
    assert rule is not None
    assert rule.allow == ALLOWABLE
    assert not rule.sockets_of_others
    assert rule.addresses.covers(address("10.0.0.1"), {address("10.0.0.1")})
    assert not rule.addresses.covers(address("10.0.0.2"), {address("10.0.0.1")})
    assert rule.remotes.covers(address("2001:db8::1"))
    assert rule.allows_interface("wlan0")
    assert rule.options == ORDINARY


def test_a_policy_file_has_every_key_of_a_rule() -> None:
    policy = Policy.parse(
        """
        max_clients = 7
        [[rule]]
        users = ["ROOT", 1000]
        groups = ["WHEEL", 27]
        allow = ["create_subflow", "events"]
        addresses = ["host", "192.0.2.0/24", "2001:db8::/32"]
        remotes = ["198.51.100.7"]
        interfaces = ["wlan*", "eth0"]
        options = ["ordinary", "SO_MARK"]
        sockets_of_others = true
        max_subflows = 3
        max_clients = 4
        max_watched = 5
        rate_per_s = 6
        burst = 8
        """.replace("ROOT", ROOT).replace("WHEEL", ROOT_GROUP)
    )
    assert policy.max_clients == 7
    (rule,) = policy.rules
    assert rule == Rule(
        users=frozenset({0, 1000}),
        groups=frozenset({0, 27}),
        allow=frozenset({Operation.CREATE_SUBFLOW, Operation.EVENTS}),
        addresses=rule.addresses,
        remotes=rule.remotes,
        interfaces=("wlan*", "eth0"),
        options=ORDINARY | {"SO_MARK"},
        sockets_of_others=True,
        max_subflows=3,
        max_clients=4,
        max_watched=5,
        rate_per_s=6,
        burst=8,
    )
    assert rule.addresses.host
    assert rule.addresses.covers(address("192.0.2.200"))
    assert rule.addresses.covers(address("2001:db8::7"))
    assert not rule.addresses.covers(address("192.0.3.1"))
    assert rule.remotes.covers(address("198.51.100.7"))
    assert not rule.remotes.covers(address("198.51.100.8"))
    assert not rule.remotes.covers(address("::"))
    assert [rule.allows_interface(name) for name in ("wlan0", "eth0", "eth1")] == [True, True, False]
    text = str(rule)
    assert "create_subflow, events" in text
    assert "SO_MARK" in text


def test_the_first_rule_that_fits_counts() -> None:
    policy = Policy.parse(
        """
        [[rule]]
        users = [1000]
        allow = []
        [[rule]]
        users = [2000]
        groups = [1000]
        allow = ["remove"]
        [[rule]]
        users = []
        """
    )

    def allowed(uid: int, *gids: int) -> frozenset[Operation] | None:
        rule = policy.rule_for(Peer(1, uid, frozenset(gids)))
        return rule.allow if rule is not None else None

    assert allowed(1000, 1000) == frozenset()
    assert allowed(2000, 5) == {Operation.REMOVE}
    assert allowed(3000, 5, 1000) == {Operation.REMOVE}
    assert allowed(3000, 5) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[rule]]\nburst = 5 5\n", "p, line 2, column 11: Expected newline"),
        ("[[rule]]\nburst = [\n", "p, line 2: "),
        ("max_clients = 5\n", "without a \\[\\[rule\\]\\] nobody may do anything"),
        ("", "without a \\[\\[rule\\]\\]"),
        ("# comment\nclients = 5\n[[rule]]\n", "p, line 2: there is no key 'clients' here; there are max_clients"),
        ("rule = 5", "p, line 1: write \\[\\[rule\\]\\]"),
        ("\n[rule]\nburst = 1\n", "p, line 2: write \\[\\[rule\\]\\]"),
        ("[[rule]]\n[[rule]]\n\nuser = ['x']\n", "p, line 4: there is no key 'user' here; there are users"),
        ("[[rule]]\nusers = ['no such user']\n", "p, line 2: users: there is no user 'no such user' on this system"),
        ("[[rule]]\ngroups = ['no such group']\n", "p, line 2: groups: there is no group"),
        ("[[rule]]\nusers = [-1]\n", "p, line 2: users: a user is a name or a number, not -1"),
        ("[[rule]]\nusers = [true]\n", "p, line 2: users: a user is a name or a number"),
        ("[[rule]]\nusers = [4294967295]\n", "p, line 2: users: a user is a name or a number"),
        ("[[rule]]\nusers = 5\n", "p, line 2: users: a list of names or numbers"),
        ("[[rule]]\nusers = ['a\\u0000b']\n", "p, line 2: users: there is no user"),
        ("[[rule]]\n\nallow = ['watch']\n", "p, line 3: allow: there is no operation 'watch'; there are announce, "),
        ("[[rule]]\nallow = [1]\n", "p, line 2: allow: a list of operations, each in quotation marks; 1 is none"),
        ("[[rule]]\naddresses = ['10.0.0.1/8']\n", "p, line 2: addresses: a network like .* has host bits set"),
        ("[[rule]]\nremotes = ['host']\n", "p, line 2: remotes: a network like '192.0.2.0/24', an address, or any"),
        ("[[rule]]\ninterfaces = ['']\n", "p, line 2: interfaces: the name of an interface"),
        ("[[rule]]\noptions = ['SO_DEBUG']\n", "p, line 2: options: there is no option 'SO_DEBUG'"),
        ("[[rule]]\nsockets_of_others = 1\n", "p, line 2: sockets_of_others: true or false, not 1"),
        ("[[rule]]\nburst = 0\n", "p, line 2: burst: a number from 1 to 100000, not 0"),
        ("[[rule]]\nburst = true\n", "p, line 2: burst: a number"),
        ("[[rule]]\nrate_per_s = 1.5\n", "p, line 2: rate_per_s: a number"),
        ("max_clients = '5'\n[[rule]]\n", "p, line 1: max_clients: a number from 1 to 4096, not '5'"),
        ("[[rule]]\n'burst' = 0\n", "p, line 2: burst"),
        # not fooled by what only looks like the key, in a string or a list
        ("[[rule]]\nallow = [\n  'events', '''\nburst = 1''',\n]\nburst = 0\n", "p, line 2: allow"),
        ("[[rule]]\ninterfaces = ['''\nburst = 1\n''']\nburst = 0\n", "p, line 5: burst"),
        ("[[rule]]\nburst = 1\n[[rule]]\nburst = 2\n[[rule]]\nburst = 0\n", "p, line 6: burst"),
        ("rule = [{burst = 1}, {burst = 0}]", "p, line 1: burst"),
        ("[[rule]]\n[rule.burst]\nx = 1\n", "p, line 1: burst: a number"),
        ("a = " + "[" * 5000, "nested too deep|line 1"),
        (f"[[rule]]\nusers = {[*range(300)]}\n", "p, line 2: users: a list of .* of at most 256"),
        ("[[rule]]\n" * (MAX_RULES + 1), f"at most {MAX_RULES} rules"),
    ],
)  # fmt: skip
def test_errors_say_what_and_where(text: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Policy.parse(text, "p")


words = st.sampled_from(
    ["[[rule]]", "[rule]", "\n", "users", "allow", "burst", "max_clients", "=", "[", "]", '"events"', '"', "'''", "5", "{", "}", ",", "#", "."]
)  # fmt: skip


@given(st.one_of(st.text(max_size=200), st.lists(words, max_size=30).map(" ".join)))
def test_any_text_is_a_policy_or_an_error(text: str) -> None:
    with contextlib.suppress(ConfigurationError):
        assert Policy.parse(text).rules


# the file


def write(path: Path, data: bytes, mode: int = 0o644) -> Path:
    path.write_bytes(data)
    path.chmod(mode)
    return path


def test_a_file_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "broker.toml", b"[[rule]]\nburst = 9\n")
    policy = Policy.load(path)
    assert policy.rules[0].burst == 9
    assert policy.where == str(path)


def test_the_file_of_the_documentation_is_read(tmp_path: Path) -> None:
    page = (Path(__file__).parents[4] / "docs" / "broker.md").read_text()
    example = page.partition("```toml\n")[2].partition("```")[0]
    assert example.count("[[rule]]") > 1
    known = example.replace('"backup-agent"', "0").replace('"netops"', "0")
    policy = Policy.load(write(tmp_path / "broker.toml", known.encode()))
    assert len(policy.rules) == example.count("[[rule]]")
    for key in ("users", "groups", "allow", "addresses", "remotes", "interfaces", "options", "sockets_of_others",
                "max_subflows", "max_clients", "max_watched", "rate_per_s", "burst"):  # fmt: skip
        assert f"| `{key}` |" in page
    for name in ORDINARY:
        assert name in page


@pytest.mark.parametrize("mode", [0o666, 0o664, 0o646])
def test_a_file_that_others_can_change_is_no_policy(tmp_path: Path, mode: int) -> None:
    path = write(tmp_path / "broker.toml", b"[[rule]]\n", mode)
    with pytest.raises(ConfigurationError, match="can be changed by others"):
        Policy.load(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
def test_a_file_of_somebody_else_is_no_policy(tmp_path: Path) -> None:
    path = write(tmp_path / "broker.toml", b"[[rule]]\n")
    try:
        os.chown(path, 12345, 12345)
    except OSError as error:
        pytest.skip(f"this user namespace has no other users ({error.strerror})")
    with pytest.raises(ConfigurationError, match="has to belong to root"):
        Policy.load(path)


def test_what_is_no_file_of_text_is_no_policy(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="line 2: this is not UTF-8"):
        Policy.load(write(tmp_path / "a", b"# x\n\xff\n"))
    with pytest.raises(ConfigurationError, match=f"at most {MAX_FILE} octets"):
        Policy.load(write(tmp_path / "b", b"#" * (MAX_FILE + 1)))
    with pytest.raises(ConfigurationError, match="no file"):
        Policy.load("/dev/null")
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(ConfigurationError, match="no file"):
        Policy.load(tmp_path / "pipe")  # and nobody waits for a writer
    with pytest.raises(IsADirectoryError):
        Policy.load(tmp_path)
    with pytest.raises(FileNotFoundError):
        Policy.load(tmp_path / "c")


def test_addresses_as_text() -> None:
    assert str(Addresses()) == "none"
    assert str(Addresses(host=True)) == "host"
    assert str(Addresses(everything=True)) == "any"
