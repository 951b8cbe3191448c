"""``--link``: what is understood, and the sentence for what is not."""

import ipaddress

import pytest

from mptcp.cli.link_option import DEFAULT_LINK, MAX_LINKS, parse_link, parse_links
from mptcp.errors import ConfigurationError


def addresses(*texts: str) -> tuple[ipaddress.IPv4Interface | ipaddress.IPv6Interface, ...]:
    return tuple(map(ipaddress.ip_interface, texts))


def test_packet_link() -> None:
    spec = parse_link("packet:veth0=10.0.1.2/24,fd00::2/64,via=10.0.1.1,mtu=1400")
    assert (spec.kind, spec.name, spec.mtu) == ("packet", "veth0", 1400)
    assert spec.addresses == addresses("10.0.1.2/24", "fd00::2/64")
    assert spec.gateways == (ipaddress.ip_address("10.0.1.1"),)


@pytest.mark.parametrize(
    ("text", "peers"),
    [
        ("tun:t0=10.99.0.2/24", ["10.99.0.1/24"]),
        ("tun:t0=10.99.0.1/24", ["10.99.0.2/24"]),
        ("tun:t0=10.99.0.1/24,10.99.0.2/24", ["10.99.0.3/24"]),
        ("tun:t0=10.99.0.2/24,peer=10.99.0.77", ["10.99.0.77/24"]),
        ("tun:t0=10.99.0.2/31", ["10.99.0.3/31"]),
        ("tun:t0=10.99.0.2/24,fd99::2/64", ["10.99.0.1/24", "fd99::1/64"]),
        (DEFAULT_LINK, ["10.99.0.1/24"]),
    ],
)
def test_the_kernel_gets_an_address_on_a_tun_device(text: str, peers: list[str]) -> None:
    assert parse_link(text).peers == addresses(*peers)


def test_loopback_serves_a_directory() -> None:
    assert parse_link("loopback").name == "."
    assert parse_link("loopback:/srv").name == "/srv"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "a link is one of"),
        ("wifi:x=10.0.0.1/24", "a link is one of"),
        ("packet:", "write it like packet:eth0="),
        ("packet:eth0", "write it like"),
        ("packet:eth0=", "write it like"),
        ("packet:a-name-that-is-too-long=10.0.0.1/24", "cannot be the name"),
        ("packet:eth/0=10.0.0.1/24", "cannot be the name"),
        ("packet:eth0=10.0.0.1", "needs a prefix length"),
        ("packet:eth0=10.0.0.300/24", "is no address"),
        ("packet:eth0=via=10.0.0.1", "needs an address"),
        ("packet:eth0=10.0.0.2/24,via=10.1.0.1", "in none of the link's prefixes"),
        ("packet:eth0=10.0.0.2/24,via=x", "is no address"),
        ("packet:eth0=10.0.0.2/24,peer=10.0.0.1", "has no setting 'peer'"),
        ("packet:eth0=10.0.0.2/24,mtu=64", "an MTU is 576"),
        ("packet:eth0=10.0.0.2/24,mtu=big", "is no address"),
        ("packet:eth0=" + ",".join(f"10.0.0.{i}/24" for i in range(1, 10)), "more than 8"),
        ("tun:t0=10.0.0.2/24,via=10.0.0.1", "has no setting 'via'"),
        ("tun:t0=10.0.0.2/32", "no address left"),
        ("tun:t0=10.0.0.2/24,peer=10.9.0.1", "in none of the link's prefixes"),
    ],
)
def test_nonsense_is_one_sentence(text: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says) as caught:
        parse_link(text)
    assert "\n" not in str(caught.value)


def test_links_together() -> None:
    assert len(parse_links(["tun:a=10.0.0.2/24", "packet:b=10.0.1.2/24"])) == 2
    with pytest.raises(ConfigurationError, match="given twice"):
        parse_links(["packet:a=10.0.0.2/24", "packet:b=10.0.0.2/24"])
    with pytest.raises(ConfigurationError, match="cannot be combined"):
        parse_links(["loopback", "packet:b=10.0.0.2/24"])
    with pytest.raises(ConfigurationError, match="is the most"):
        parse_links([f"packet:b=10.0.{i}.2/24" for i in range(MAX_LINKS + 1)])
