"""The host's addresses, and how they come and go (rtnetlink). Needs no privilege.

MPTCP in the kernel takes no notice when an address or a link goes away: whoever steers connections has to.
"""

from __future__ import annotations

import errno
import struct
from dataclasses import dataclass
from typing import Final, NamedTuple, Self

from mptcp.info import Endpoint
from mptcp.kernel.namespace import NetNamespace
from mptcp.kernel.netlink import (
    NETLINK_ADD_MEMBERSHIP,
    NETLINK_ROUTE,
    SOL_NETLINK,
    Message,
    NetlinkSocket,
    attributes,
    messages,
    open_socket,
    receive,
    text,
    unsigned,
)
from mptcp.kernel.pm_events import grow_receive_buffer

RTM_NEWLINK: Final = 16
RTM_DELLINK: Final = 17
RTM_GETLINK: Final = 18
RTM_NEWADDR: Final = 20
RTM_DELADDR: Final = 21
RTM_GETADDR: Final = 22
_GROUPS: Final = (1, 5, 9)  # RTNLGRP_LINK, RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV6_IFADDR

_IFLA_IFNAME: Final = 3
_IFA_ADDRESS: Final = 1
_IFA_LOCAL: Final = 2
_IFA_FLAGS: Final = 8

IFF_UP: Final = 0x1
IFF_RUNNING: Final = 0x40  # has carrier, too

#: ``LocalAddress.flags`` (IFA_F_*, linux/if_addr.h).
FLAG_TEMPORARY: Final = 0x01
FLAG_DAD_FAILED: Final = 0x08
FLAG_DEPRECATED: Final = 0x20
FLAG_TENTATIVE: Final = 0x40

SCOPE_LINK: Final = 253
SCOPE_HOST: Final = 254

#: As many addresses of a namespace are looked after; what is beyond is left out.
MAX_LOCAL_ADDRESSES: Final = 4096
MAX_INTERFACES: Final = 4096
#: For changes that nobody has read yet.
BUFFER_BYTES: Final = 1 << 20
#: Datagrams read at one wake-up.
_MAX_READ: Final = 256

#: ``struct ifaddrmsg``: family, prefix length, flags, scope, interface.
_ADDRESS: Final = struct.Struct("=4BI")
#: ``struct ifinfomsg``: family, type, index, flags, change.
_LINK: Final = struct.Struct("=BxHiII")


@dataclass(frozen=True, slots=True)
class LocalAddress:
    """``interface`` is the index, ``name`` its name; ``scope`` as of rtnetlink (0: global)."""

    address: bytes
    interface: int
    name: str
    flags: int = 0
    prefix: int = 0
    scope: int = 0

    @property
    def is_usable(self) -> bool:
        """A subflow to another host can start here, as far as the address decides it: global, and no duplicate."""
        return self.scope < SCOPE_LINK and not self.flags & (FLAG_TENTATIVE | FLAG_DAD_FAILED)

    def __str__(self) -> str:
        return f"{Endpoint(self.address).host}%{self.name}"


class AddressChange(NamedTuple):
    """A usable address came (its link is up, with carrier) or went."""

    local: LocalAddress
    available: bool


class _Link(NamedTuple):
    name: str
    working: bool


class AddressTable:
    """Addresses and links as messages of rtnetlink tell of them. What is no such message changes nothing."""

    __slots__ = ("_addresses", "_links")

    def __init__(self) -> None:
        self._addresses: dict[tuple[int, bytes], LocalAddress] = {}
        self._links: dict[int, _Link] = {}

    def handle(self, message: Message) -> None:
        if message.kind in {RTM_NEWLINK, RTM_DELLINK}:
            self._handle_link(message)
        elif message.kind in {RTM_NEWADDR, RTM_DELADDR}:
            self._handle_address(message)

    def usable(self) -> dict[tuple[int, bytes], LocalAddress]:
        """What a subflow can start from now, by interface and address, in the system's order."""
        found = {}
        for key, local in self._addresses.items():
            link = self._links.get(local.interface)
            if link is not None and link.working and local.is_usable:
                found[key] = local if local.name == link.name else _renamed(local, link.name)
        return found

    def _handle_link(self, message: Message) -> None:
        if len(message.payload) < _LINK.size:
            return
        _, _, index, flags, _ = _LINK.unpack_from(message.payload)
        if message.kind == RTM_DELLINK:
            self._links.pop(index, None)
        elif index in self._links or len(self._links) < MAX_INTERFACES:
            name = text(dict(attributes(message.payload[_LINK.size :])).get(_IFLA_IFNAME))
            self._links[index] = _Link(name, bool(flags & IFF_UP) and bool(flags & IFF_RUNNING))

    def _handle_address(self, message: Message) -> None:
        if len(message.payload) < _ADDRESS.size:
            return
        _, prefix, flags, scope, index = _ADDRESS.unpack_from(message.payload)
        fields = dict(attributes(message.payload[_ADDRESS.size :]))
        value = fields.get(_IFA_LOCAL, fields.get(_IFA_ADDRESS))
        if value is None or len(value) not in {4, 16}:
            return
        address = bytes(value)
        if message.kind == RTM_DELADDR:
            self._addresses.pop((index, address), None)
        elif (index, address) in self._addresses or len(self._addresses) < MAX_LOCAL_ADDRESSES:
            flags = unsigned(fields.get(_IFA_FLAGS)) or flags
            link = self._links.get(index)
            self._addresses[index, address] = LocalAddress(
                address, index, link.name if link else "", flags, prefix, scope
            )


class AddressWatch:
    """Tells which usable addresses come and go, from the moment it is made. OSError without rtnetlink."""

    __slots__ = ("_namespace", "_socket", "_table", "_usable")

    def __init__(self, namespace: NetNamespace | None = None) -> None:
        self._namespace = namespace or NetNamespace()
        self._socket = open_socket(NETLINK_ROUTE, self._namespace)
        try:
            self._socket.setblocking(False)
            grow_receive_buffer(self._socket, BUFFER_BYTES)
            for group in _GROUPS:
                self._socket.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)
            self._table = _dumped(self._namespace)
        except BaseException:
            self._socket.close()
            raise
        self._usable = self._table.usable()

    def fileno(self) -> int:
        """Readable when ``read`` may have something."""
        return self._socket.fileno()

    def usable(self) -> list[LocalAddress]:
        """The usable addresses as of the last ``read``."""
        return list(self._usable.values())

    def read(self) -> list[AddressChange]:
        """What has changed since, without waiting. An overflow is answered by asking for everything."""
        for _ in range(_MAX_READ):
            try:
                data = receive(self._socket)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self._table = _dumped(self._namespace)
                continue
            if data is not None:
                for message in messages(data):
                    self._table.handle(message)
        before, self._usable = self._usable, self._table.usable()
        gone = [AddressChange(local, False) for key, local in before.items() if key not in self._usable]
        return gone + [AddressChange(local, True) for key, local in self._usable.items() if key not in before]

    def close(self) -> None:
        """Lets go of it; twice is as good as once."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def local_addresses(namespace: NetNamespace | None = None) -> list[LocalAddress]:
    """The addresses of a namespace that a subflow to another host can start from now, in the system's order."""
    return list(_dumped(namespace or NetNamespace()).usable().values())


def _dumped(namespace: NetNamespace) -> AddressTable:
    table = AddressTable()
    with NetlinkSocket(NETLINK_ROUTE, namespace) as netlink:
        for kind, body in ((RTM_GETLINK, _LINK), (RTM_GETADDR, _ADDRESS)):
            for message in netlink.dump(kind, bytes(body.size), what="addresses of this host"):
                table.handle(message)
    return table


def _renamed(local: LocalAddress, name: str) -> LocalAddress:
    return LocalAddress(local.address, local.interface, name, local.flags, local.prefix, local.scope)
