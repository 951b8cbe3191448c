"""``--link``: which link a stack sits on and which addresses it owns there.

::

    tun:NAME=ADDRESS/PREFIX[,ADDRESS/PREFIX...][,peer=ADDRESS][,mtu=N]     a TUN device; the kernel is the first hop
    packet:INTERFACE=ADDRESS/PREFIX[,...][,via=GATEWAY][,mtu=N]            AF_PACKET on an interface, the kernel aside
    loopback[:DIRECTORY]                                                   no network: a second stack in this process
    udp[:ADDRESS[%INTERFACE][,ADDRESS...][,port=N][,peers=N][,mtu=N]]      UDP to other such stacks: no privilege

Repeated, each adds a path. On a TUN device ``peer`` is the address that the kernel gets on its side (the first free one
of the prefix if not given); on an interface ``via`` is the router for everything outside the prefix. Over UDP ``port`` is
ours, and ``peers`` that of the stacks a program of ``mptcp run`` connects to.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from mptcp.errors import ConfigurationError

Interface = ipaddress.IPv4Interface | ipaddress.IPv6Interface
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

KINDS = ("tun", "packet", "loopback", "udp")
DEFAULT_LINK = "tun:mptcp%d=10.99.0.2/24"
#: As many paths as the address ids of one connection can sensibly name.
MAX_LINKS = 16
MAX_ADDRESSES = 8

EXAMPLES = {
    "tun": "tun:mptcp0=10.99.0.2/24",
    "packet": "packet:eth0=10.0.1.2/24,via=10.0.1.1",
    "loopback": "loopback:DIRECTORY",
    "udp": "udp:192.0.2.1",
}


@dataclass(frozen=True, slots=True)
class LinkSpec:
    """One ``--link``, understood."""

    kind: str
    name: str = ""  # of the interface or device; the directory of ``loopback``
    addresses: tuple[Interface, ...] = ()
    gateways: tuple[Address, ...] = ()  # ``via``
    peers: tuple[Interface, ...] = ()  # the kernel's addresses on a TUN device
    mtu: int = 0  # 0: the link's own
    locals: tuple[str, ...] = ()  # ``udp``: this machine's addresses, some with %INTERFACE; none: all there are
    port: int = 0  # ``udp``; 0: none was given
    peer_port: int = 0  # ``udp``: where other stacks are; 0: none was given


def parse_link(text: str) -> LinkSpec:
    """ConfigurationError, in a sentence with an example, if ``text`` is not one of the forms above."""
    kind, _, rest = text.partition(":")
    if kind not in KINDS:
        raise ConfigurationError(f"--link {text!r}: a link is one of {', '.join(EXAMPLES.values())}")
    if kind == "loopback":
        return LinkSpec(kind, rest or ".")
    if kind == "udp":
        return _parse_udp(rest, text)
    name, equals, settings = rest.partition("=")
    if not name or not equals or not settings:
        raise ConfigurationError(f"--link {text!r}: write it like {EXAMPLES[kind]}")
    if not re.fullmatch(r"[^\s/]{1,15}", name):
        raise ConfigurationError(f"--link {text!r}: {name!r} cannot be the name of an interface")
    spec = LinkSpec(kind, name)
    for setting in settings.split(","):
        spec = _with(spec, setting, text)
    if not spec.addresses:
        raise ConfigurationError(f"--link {text!r}: it needs an address, like {EXAMPLES[kind]}")
    if len(spec.addresses) > MAX_ADDRESSES:
        raise ConfigurationError(f"--link {text!r}: more than {MAX_ADDRESSES} addresses")
    for gateway in spec.gateways:
        if not any(gateway in address.network for address in spec.addresses):
            raise ConfigurationError(f"--link {text!r}: the gateway {gateway} is in none of the link's prefixes")
    return _with_peers(spec, text) if kind == "tun" else spec


def parse_links(texts: Sequence[str]) -> list[LinkSpec]:
    """All of them, and what they must not be together."""
    specs = [parse_link(text) for text in texts]
    if len(specs) > MAX_LINKS:
        raise ConfigurationError(f"--link was given {len(specs)} times, {MAX_LINKS} is the most")
    if len(specs) > 1 and any(spec.kind == "loopback" for spec in specs):
        raise ConfigurationError("--link loopback cannot be combined with another link")
    if len({spec.kind == "udp" for spec in specs}) > 1:
        raise ConfigurationError("--link udp cannot be combined with links of another kind")
    seen: set[Address] = set()
    for spec in specs:
        for interface in spec.addresses:
            if interface.ip in seen:
                raise ConfigurationError(f"--link: the address {interface.ip} is given twice")
            seen.add(interface.ip)
    texts = [text.partition("%")[0] for spec in specs for text in spec.locals]
    for text in texts:
        if texts.count(text) > 1:
            raise ConfigurationError(f"--link: the address {text} is given twice")
    if len(specs) > 1 and any(spec.kind == "udp" and not spec.locals for spec in specs):
        raise ConfigurationError("--link udp without an address stands for all of them: give it once, or addresses")
    return specs


def _parse_udp(rest: str, text: str) -> LinkSpec:
    spec = LinkSpec("udp")
    for setting in filter(None, rest.split(",")):
        key, equals, value = setting.partition("=")
        if not equals:
            address, percent, interface = setting.partition("%")
            try:
                plain = str(ipaddress.ip_address(address))
            except ValueError:
                raise ConfigurationError(f"--link {text!r}: {address!r} is no address") from None
            if percent and not re.fullmatch(r"[^\s/]{1,15}", interface):
                raise ConfigurationError(f"--link {text!r}: {interface!r} cannot be the name of an interface")
            spec = replace(spec, locals=(*spec.locals, plain + percent + interface))
        elif key == "port" and value.isdecimal() and 0 < int(value) < 65536:
            spec = replace(spec, port=int(value))
        elif key == "peers" and value.isdecimal() and 0 < int(value) < 65536:
            spec = replace(spec, peer_port=int(value))
        elif key == "mtu" and value.isdecimal() and 1280 <= int(value) <= 65_499:
            spec = replace(spec, mtu=int(value))
        elif key in ("port", "peers", "mtu"):
            raise ConfigurationError(f"--link {text!r}: a port is 1 to 65535, an MTU inside UDP 1280 to 65499 octets")
        else:
            raise ConfigurationError(f"--link {text!r}: a udp link has no setting {key!r}")
    if len(spec.locals) > MAX_ADDRESSES:
        raise ConfigurationError(f"--link {text!r}: more than {MAX_ADDRESSES} addresses")
    return spec


def _with(spec: LinkSpec, setting: str, text: str) -> LinkSpec:
    key, equals, value = setting.partition("=")
    try:
        if not equals:
            interface = ipaddress.ip_interface(setting)
            if "/" not in setting:
                raise ConfigurationError(f"--link {text!r}: {setting} needs a prefix length, like {setting}/24")
            return replace(spec, addresses=(*spec.addresses, interface))
        if key == "via" and spec.kind == "packet":
            return replace(spec, gateways=(*spec.gateways, ipaddress.ip_address(value)))
        if key == "peer" and spec.kind == "tun":
            return replace(spec, peers=(*spec.peers, ipaddress.ip_interface(value)))
        if key == "mtu":
            mtu = int(value)
            if not 576 <= mtu <= 65535:
                raise ConfigurationError(f"--link {text!r}: an MTU is 576 to 65535 octets")
            return replace(spec, mtu=mtu)
    except ConfigurationError:
        raise
    except ValueError:
        raise ConfigurationError(f"--link {text!r}: {setting!r} is no address") from None
    raise ConfigurationError(f"--link {text!r}: a {spec.kind} link has no setting {key!r}")


def _with_peers(spec: LinkSpec, text: str) -> LinkSpec:
    """The kernel's address in each of our prefixes: as given, else the first free one."""
    taken = {interface.ip for interface in spec.addresses}
    peers: list[Interface] = []
    for interface in spec.addresses:
        network = interface.network
        if any(peer.ip in network for peer in peers):
            continue
        given = [peer for peer in spec.peers if peer.ip in network]
        candidates = [peer.ip for peer in given] or [
            network.network_address + offset for offset in range(min(network.num_addresses, MAX_ADDRESSES + 3))
        ]
        usable = [
            address
            for address in candidates
            if address in network and address not in taken and (given or _is_host(address, interface))
        ]
        if not usable:
            raise ConfigurationError(f"--link {text!r}: {network} has no address left for the kernel's side")
        taken.add(usable[0])
        peers.append(ipaddress.ip_interface(f"{usable[0]}/{network.prefixlen}"))
    strangers = [peer for peer in spec.peers if not any(peer.ip in address.network for address in spec.addresses)]
    if strangers:
        raise ConfigurationError(f"--link {text!r}: the peer {strangers[0].ip} is in none of the link's prefixes")
    return replace(spec, peers=tuple(peers))


def _is_host(address: Address, interface: Interface) -> bool:
    network = interface.network
    if network.prefixlen >= network.max_prefixlen - 1:
        return True
    return address != network.network_address and address != network.broadcast_address
