"""Interface configuration by rtnetlink and ioctl, with the standard library only: up, MTU, addresses, routes."""

from __future__ import annotations

import errno
import fcntl
import ipaddress
import os
import socket
import struct
import time
from typing import Final

from mptcp.errors import ConfigurationError

RTM_NEWLINK: Final = 16
RTM_NEWADDR: Final = 20
RTM_DELADDR: Final = 21
RTM_NEWROUTE: Final = 24
RTM_GETROUTE: Final = 26
NLMSG_ERROR: Final = 2
NLM_F_REQUEST: Final = 0x01
NLM_F_REQUEST_ACK: Final = 0x01 | 0x04
NLM_F_CREATE_REPLACE: Final = 0x400 | 0x100
IFLA_MTU, IFLA_TXQLEN = 4, 13
IFA_ADDRESS, IFA_LOCAL = 1, 2
IFA_F_NODAD: Final = 0x02
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PREFSRC = 1, 4, 5, 7
RT_TABLE_MAIN, RTPROT_BOOT, RT_SCOPE_UNIVERSE, RT_SCOPE_LINK, RTN_UNICAST = 254, 3, 0, 253, 1
RTN_LOCAL: Final = 2
IFF_UP: Final = 1
SIOCGIFMTU: Final = 0x8921
SIOCGIFHWADDR: Final = 0x8927
SIOCGIFFLAGS: Final = 0x8913

NEEDS_NET_ADMIN: Final = (
    "needs CAP_NET_ADMIN in this network namespace: run as root, inside `unshare -Urn`, "
    "or give the interpreter the capability with setcap"
)


def interface_index(name: str) -> int:
    """The index of an interface; ConfigurationError that names those which exist."""
    try:
        return socket.if_nametoindex(name)
    except OSError:
        known = ", ".join(sorted(n for _, n in socket.if_nameindex())) or "none"
        raise ConfigurationError(
            f"there is no interface {name!r} in this network namespace (there are: {known})"
        ) from None


def _ifreq(name: str, request: int) -> bytes:
    interface_index(name)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        return fcntl.ioctl(control, request, struct.pack("16s24x", name.encode()))


def mtu(name: str) -> int:
    """The interface's MTU in octets."""
    value: int = struct.unpack_from("i", _ifreq(name, SIOCGIFMTU), 16)[0]
    return value


def is_up(name: str) -> bool:
    """Whether the interface is administratively up."""
    flags: int = struct.unpack_from("H", _ifreq(name, SIOCGIFFLAGS), 16)[0]
    return bool(flags & IFF_UP)


def hardware_address(name: str) -> tuple[int, bytes]:
    """(ARPHRD type, link-layer address of 6 octets)."""
    family, address = struct.unpack_from("H6s", _ifreq(name, SIOCGIFHWADDR), 16)
    return family, address


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("HH", 4 + len(value), kind) + value + b"\0" * (-len(value) % 4)


def _request(kind: int, flags: int, body: bytes, what: str) -> None:
    """One rtnetlink request and its acknowledgement; OSError whose text says what was being done."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as netlink:
        netlink.settimeout(5)
        netlink.sendto(struct.pack("IHHII", 16 + len(body), kind, flags | NLM_F_REQUEST_ACK, 1, 0) + body, (0, 0))
        while True:
            answer = netlink.recv(65536)
            if struct.unpack_from("H", answer, 4)[0] == NLMSG_ERROR:
                break
    code = -struct.unpack_from("i", answer, 16)[0]
    if code in (errno.EPERM, errno.EACCES):
        hint = "IPv6 may be disabled on it, or it " if what.startswith("adding address") and ":" in what else ""
        raise PermissionError(code, f"{what} failed: {hint}{NEEDS_NET_ADMIN}")
    if code:
        raise OSError(code, f"{what} failed: {os.strerror(code)}")


def set_link(name: str, *, up: bool | None = None, mtu: int = 0, queue_packets: int = 0) -> None:
    """Takes an interface up or down; sets its MTU and the length of its transmit queue when they are not 0."""
    attributes = b""
    if mtu:
        attributes += _attribute(IFLA_MTU, struct.pack("I", mtu))
    if queue_packets:
        attributes += _attribute(IFLA_TXQLEN, struct.pack("I", queue_packets))
    flags, change = (0, 0) if up is None else (IFF_UP if up else 0, IFF_UP)
    body = struct.pack("BxHiII", socket.AF_UNSPEC, 0, interface_index(name), flags, change) + attributes
    _request(RTM_NEWLINK, 0, body, f"changing interface {name}")


def parse_interface(
    address: str,
) -> tuple[int, bytes, int, ipaddress.IPv4Interface | ipaddress.IPv6Interface]:
    """(AF_*, packed address, prefix length, parsed) of "10.0.0.1/24" or "fd00::1/64"; ConfigurationError if it is none."""
    try:
        parsed = ipaddress.ip_interface(address)
    except ValueError as error:
        raise ConfigurationError(
            f"{address!r} is no address with a prefix length, like 10.0.0.1/24 ({error})"
        ) from None
    family = socket.AF_INET if parsed.version == 4 else socket.AF_INET6
    return family, parsed.ip.packed, parsed.network.prefixlen, parsed


def add_address(name: str, address: str) -> None:
    """Gives an interface an address ("10.0.0.1/24", "fd00::1/64"), usable at once (no duplicate address detection)."""
    _change_address(RTM_NEWADDR, NLM_F_CREATE_REPLACE, name, address, f"adding address {address} to {name}")
    if is_up(name):
        wait_local(address)


def wait_local(address: str, timeout_s: float = 1.0) -> bool:
    """Waits until the kernel takes packets to an address as its own; False if it does not come to that.

    A new IPv6 address gets its route a little later, from a work queue, even without duplicate address detection.
    """
    deadline = time.monotonic() + timeout_s
    while not is_local(address):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.001)
    return True


def is_local(address: str) -> bool:
    """Whether this network namespace would keep a packet to an address for itself."""
    family, packed, _, _ = parse_interface(address)
    body = struct.pack("BBBBBBBBI", family, 8 * len(packed), 0, 0, 0, 0, 0, 0, 0) + _attribute(RTA_DST, packed)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as netlink:
        netlink.settimeout(5)
        netlink.sendto(struct.pack("IHHII", 16 + len(body), RTM_GETROUTE, NLM_F_REQUEST, 1, 0) + body, (0, 0))
        answer = netlink.recv(65536)
    # struct rtmsg: the type is its eighth octet. No route at all is an error message.
    return bool(struct.unpack_from("H", answer, 4)[0] == RTM_NEWROUTE and answer[16 + 7] == RTN_LOCAL)


def remove_address(name: str, address: str) -> None:
    """Takes an address away; OSError(EADDRNOTAVAIL) if it is not there."""
    _change_address(RTM_DELADDR, 0, name, address, f"removing address {address} from {name}")


def _change_address(kind: int, flags: int, name: str, address: str, what: str) -> None:
    family, packed, prefix, _ = parse_interface(address)
    body = struct.pack(
        "BBBBi", family, prefix, IFA_F_NODAD if family == socket.AF_INET6 else 0, 0, interface_index(name)
    )
    body += _attribute(IFA_LOCAL, packed) + _attribute(IFA_ADDRESS, packed)
    _request(kind, flags, body, what)


def add_route(destination: str, name: str, *, gateway: str = "", source: str = "") -> None:
    """Routes a prefix ("10.1.0.0/16") to an interface, by way of a gateway if one is given."""
    try:
        network = ipaddress.ip_network(destination)
    except ValueError as error:
        raise ConfigurationError(f"{destination!r} is no prefix, like 10.1.0.0/16 ({error})") from None
    family = socket.AF_INET if network.version == 4 else socket.AF_INET6
    scope = RT_SCOPE_UNIVERSE if gateway or network.version == 6 else RT_SCOPE_LINK
    body = struct.pack("BBBBBBBBI", family, network.prefixlen, 0, 0, RT_TABLE_MAIN, RTPROT_BOOT, scope, RTN_UNICAST, 0)
    body += _attribute(RTA_DST, network.network_address.packed) + _attribute(
        RTA_OIF, struct.pack("i", interface_index(name))
    )
    if gateway:
        body += _attribute(RTA_GATEWAY, ipaddress.ip_address(gateway).packed)
    if source:
        body += _attribute(RTA_PREFSRC, ipaddress.ip_address(source).packed)
    _request(RTM_NEWROUTE, NLM_F_CREATE_REPLACE, body, f"routing {destination} to {name}")
