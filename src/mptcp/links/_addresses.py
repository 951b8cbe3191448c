"""The addresses that this machine has, and on which interface each is (rtnetlink; no privilege needed)."""

from __future__ import annotations

import ipaddress
import socket
import struct
from dataclasses import dataclass
from typing import Final

from mptcp.errors import ConfigurationError
from mptcp.links import _netdev

RTM_NEWADDR, RTM_GETADDR, NLMSG_DONE = 20, 22, 3
NLM_F_DUMP: Final = 0x300
IFA_ADDRESS, IFA_LOCAL, IFA_FLAGS = 1, 2, 8
RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR = 0x10, 0x100
IFA_F_TENTATIVE_OR_BAD: Final = 0x40 | 0x08 | 0x20  # tentative, DAD failed, deprecated
RT_SCOPE_UNIVERSE: Final = 0


@dataclass(frozen=True, slots=True)
class LocalAddress:
    """One address of this machine. ``scope`` is the kernel's: 0 for those that reach beyond the link."""

    interface: str
    network: ipaddress.IPv4Interface | ipaddress.IPv6Interface
    scope: int

    @property
    def is_loopback(self) -> bool:
        return self.network.ip.is_loopback

    @property
    def is_usable(self) -> bool:
        """For paths to other machines."""
        return self.scope == RT_SCOPE_UNIVERSE and not self.is_loopback and not self.network.ip.is_link_local


def local_addresses() -> list[LocalAddress]:
    """All of them, of interfaces that are up, in the kernel's order."""
    found: list[LocalAddress] = []
    up: dict[str, bool] = {}
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as netlink:
        netlink.settimeout(5)
        flags = _netdev.NLM_F_REQUEST | NLM_F_DUMP
        netlink.sendto(struct.pack("=IHHII", 24, RTM_GETADDR, flags, 1, 0) + bytes(8), (0, 0))
        while True:
            answer = netlink.recv(1 << 17)
            at = 0
            while at + 16 <= len(answer):
                length, kind = struct.unpack_from("=IH", answer, at)
                if kind in (NLMSG_DONE, _netdev.NLMSG_ERROR) or length < 16:
                    return found
                if kind == RTM_NEWADDR:
                    address = _parse(answer[at + 16 : at + length])
                    if address is not None:
                        if address.interface not in up:
                            up[address.interface] = _netdev.is_up(address.interface)
                        if up[address.interface]:
                            found.append(address)
                at += length + 3 & ~3


def _parse(body: bytes) -> LocalAddress | None:
    family, prefix, flags, scope, index = struct.unpack_from("=BBBBI", body)
    attributes: dict[int, bytes] = {}
    at = 8
    while at + 4 <= len(body):
        length, kind = struct.unpack_from("=HH", body, at)
        if length < 4:
            break
        attributes[kind] = body[at + 4 : at + length]
        at += length + 3 & ~3
    if IFA_FLAGS in attributes:
        flags = struct.unpack("=I", attributes[IFA_FLAGS])[0]
    packed = attributes.get(IFA_LOCAL) or attributes.get(IFA_ADDRESS)
    if family not in (socket.AF_INET, socket.AF_INET6) or packed is None or flags & IFA_F_TENTATIVE_OR_BAD:
        return None
    try:
        name = socket.if_indextoname(index)
    except OSError:
        return None  # gone meanwhile
    return LocalAddress(name, ipaddress.ip_interface(f"{ipaddress.ip_address(packed)}/{prefix}"), scope)


class AddressWatch:
    """Readable when an address of this machine has come or gone. Needs no privilege; where a system keeps it from
    ordinary users nevertheless, ``fileno`` is -1 and nothing ever changes."""

    __slots__ = ("_sock",)

    def __init__(self) -> None:
        self._sock: socket.socket | None = None
        sock = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
        )
        try:
            sock.bind((0, RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR))
        except OSError:
            sock.close()
            return
        self._sock = sock

    def fileno(self) -> int:
        return -1 if self._sock is None else self._sock.fileno()

    def changed(self) -> bool:
        """Whether something has changed since the last call."""
        result = False
        if self._sock is None:
            return False
        for _ in range(64):
            try:
                result |= bool(self._sock.recv(1 << 14))
            except BlockingIOError:
                break
            except OSError:
                result = True  # ENOBUFS: so much that it did not fit
        return result

    def close(self) -> None:
        if self._sock is not None:
            self._sock.close()


def interface_of(address: str) -> str:
    """The name of the interface that has ``address`` (or, on loopback, its prefix); ConfigurationError if none has."""
    wanted = ipaddress.ip_address(address)
    known = local_addresses()
    for local in known:
        if local.network.ip == wanted or (local.is_loopback and wanted in local.network.network):
            return local.interface
    have = ", ".join(str(local.network.ip) for local in known) or "none"
    raise ConfigurationError(f"{address} is no address of this machine (it has {have})")
