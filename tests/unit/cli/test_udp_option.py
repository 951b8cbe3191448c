"""``--link udp`` and ``mptcp://``: what they mean, and what is said of what they cannot mean."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from mptcp.cli import app
from mptcp.cli.fetch import DEFAULT_PORTS, default_name, follow, split_url
from mptcp.cli.link_option import DEFAULT_LINK, LinkSpec, parse_link, parse_links
from mptcp.cli.udp import links_for, open_udp
from mptcp.errors import ConfigurationError


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("udp", LinkSpec("udp")),
        ("udp:127.0.0.1", LinkSpec("udp", locals=("127.0.0.1",))),
        ("udp:::1", LinkSpec("udp", locals=("::1",))),
        ("udp:10.0.0.1%eth0,2001:DB8::1", LinkSpec("udp", locals=("10.0.0.1%eth0", "2001:db8::1"))),
        ("udp:10.0.0.1,port=4000,mtu=1400", LinkSpec("udp", locals=("10.0.0.1",), port=4000, mtu=1400)),
        ("udp:port=4000", LinkSpec("udp", port=4000)),
        ("udp:127.0.0.1,peers=4001", LinkSpec("udp", locals=("127.0.0.1",), peer_port=4001)),
    ],
)
def test_what_it_means(text: str, spec: LinkSpec) -> None:
    assert parse_link(text) == spec


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        (["udp:nowhere"], "'nowhere' is no address"),
        (["udp:10.0.0.1/24"], "is no address"),
        (["udp:10.0.0.1%a b"], "cannot be the name of an interface"),
        (["udp:10.0.0.1,port=0"], "a port is 1 to 65535"),
        (["udp:10.0.0.1,port=x"], "a port is 1 to 65535"),
        (["udp:10.0.0.1,peers=65536"], "a port is 1 to 65535"),
        (["udp:10.0.0.1,mtu=1279"], "1280 to 65499"),
        (["udp:10.0.0.1,via=10.0.0.2"], "has no setting 'via'"),
        (["udp:" + ",".join(f"10.0.0.{i}" for i in range(1, 10))], "more than 8"),
        (["udp:10.0.0.1", "udp:10.0.0.1"], "given twice"),
        (["udp", "udp:10.0.0.1"], "stands for all of them"),
        (["udp", "tun:a=10.0.0.2/24"], "cannot be combined"),
    ],
)
def test_nonsense_is_one_sentence(texts: list[str], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says) as caught:
        parse_links(texts)
    assert "\n" not in str(caught.value)


def test_mptcp_urls_go_over_udp() -> None:
    assert links_for(split_url("mptcp://host:4000/x"), ()) == [LinkSpec("udp")]
    assert links_for(split_url("http://host/x"), ()) == [parse_link(DEFAULT_LINK)]
    for url, link in (("mptcp://host/x", DEFAULT_LINK), ("http://host/x", "udp")):
        with pytest.raises(ConfigurationError, match="belong together"):
            links_for(split_url(url), [link])
    assert default_name("mptcp://host:4000/a/b.iso") == "b.iso"
    assert DEFAULT_PORTS["mptcp"] == 8000


@pytest.mark.parametrize(
    ("url", "location", "following"),
    [
        ("mptcp://h:4000/a/b", "c", "mptcp://h:4000/a/c"),
        ("mptcp://h:4000/a/b", "/c?u=http://x", "mptcp://h:4000/c?u=http://x"),
        ("mptcp://h:4000/a/b", "//other:5000/c", "mptcp://other:5000/c"),
        ("mptcp://h:4000/a/b", "mptcp://other/c", "mptcp://other/c"),
        ("mptcp://[::1]:4000/a", "/b", "mptcp://[::1]:4000/b"),
        ("http://h/a", "/b", "http://h/b"),
    ],
)
def test_redirects_stay_where_they_are(url: str, location: str, following: str) -> None:
    assert follow(url, location) == following


def test_ports_and_addresses_that_do_not_fit_together() -> None:
    with pytest.raises(ConfigurationError, match="all sockets have one port"):
        open_udp(parse_links(["udp:127.0.0.1,port=4000", "udp:127.0.0.2,port=4001"]))
    for backup, says in (("me", "is no address"), ("10.9.9.9", "no --link has that address")):
        with pytest.raises(ConfigurationError, match=says):
            open_udp(parse_links(["udp:127.0.0.1"]), backup=[backup])
    with pytest.raises(ConfigurationError, match="--pcap /nowhere/x"):
        open_udp(parse_links(["udp:127.0.0.1"]), pcap=Path("/nowhere/x"))


def test_a_backup_is_named_by_the_address_of_this_machine() -> None:
    with open_udp(parse_links(["udp:127.0.0.1", "udp:127.0.0.2"]), backup=["127.0.0.2"]) as stack:
        factory = stack.udp.config.path_manager
        assert factory is not None
        manager = factory()
        assert stack.udp.links[1].address in {
            socket.inet_ntop(socket.AF_INET6, address)
            for address in manager.backup_addresses  # type: ignore[attr-defined]
        }


def test_a_port_that_is_taken_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", 0))
        port = other.getsockname()[1]
        assert app.run(["serve", str(tmp_path), "--link", "udp:127.0.0.1", "--port", str(port)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"mptcp: UDP 127.0.0.1 port {port}: Address already in use\n"


def test_nobody_there_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = app.run(
        ["get", "mptcp://127.0.0.1:9/x", "--link", "udp:127.0.0.1", "-o", str(tmp_path / "x"), "--timeout", "0.3", "-q"]
    )
    assert status == 1
    assert "no mptcp stack could be reached at 127.0.0.1 port 9" in capsys.readouterr().err
