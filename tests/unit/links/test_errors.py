"""Arguments that cannot work are refused with a sentence that says why; no privilege is needed for that."""

import pytest

from mptcp.errors import ConfigurationError
from mptcp.links import _netdev
from mptcp.links.packet import PacketLink
from mptcp.links.tun import TunLink


@pytest.mark.parametrize("name", ["", "a" * 16, "a/b", "a b"])
def test_interface_names(name: str) -> None:
    with pytest.raises(ConfigurationError, match="cannot name an interface"):
        TunLink(name)


@pytest.mark.parametrize("mtu", [0, 67, 65_536])
def test_mtu(mtu: int) -> None:
    with pytest.raises(ConfigurationError, match="MTU"):
        TunLink(mtu=mtu)


def test_missing_interface_names_those_there_are() -> None:
    with pytest.raises(ConfigurationError, match=r"no interface 'nowhere9'.*there are: .*lo"):
        PacketLink("nowhere9")


def test_loopback_is_no_ethernet() -> None:
    with pytest.raises(ConfigurationError, match="no Ethernet interface"):
        PacketLink("lo")


@pytest.mark.parametrize("address", ["10.0.0.300/24", "10.0.0.1/33", "host", "fd00::1/129", ""])
def test_addresses(address: str) -> None:
    with pytest.raises(ConfigurationError, match="no address"):
        _netdev.parse_interface(address)


def test_loopback_interface_facts() -> None:
    assert _netdev.mtu("lo") >= 16_384
    assert _netdev.hardware_address("lo")[1] == bytes(6)
