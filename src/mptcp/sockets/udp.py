"""The user-space stack over UDP: no privilege, through NATs, to other such stacks."""

from __future__ import annotations

import errno
import socket as std
import time
from collections.abc import Callable, Sequence
from typing import Any

from mptcp.core.multipath.config import ConnectionConfig
from mptcp.core.units import SECOND
from mptcp.errors import ConfigurationError, HostUnreachable
from mptcp.info import Endpoint
from mptcp.links._addresses import local_addresses
from mptcp.links.base import Link
from mptcp.links.udp import UdpLink
from mptcp.links.udp_node import Introduction, UdpNode
from mptcp.links.udp_socket import endpoint_of, sockaddr
from mptcp.sockets.socket import Socket
from mptcp.sockets.udp_socket import PREFERENCE_DELAY_US, UdpSocket
from mptcp.sockets.user import UserStack

#: Seconds that a peer has to answer.
REACH_TIMEOUT_S = 10.0
#: RFC 8305 §5: "Connection Attempt Delay", the seconds between attempts to reach the addresses of one name.
ATTEMPT_DELAY_S = 0.25
#: Hosts whose UDP port is known, and endpoints whose virtual address is; the oldest make room.
MAX_KNOWN = 4096


class UdpStack(UserStack):
    """``with UdpStack(["192.0.2.1", "2001:db8::1"], 4000) as stack: ...``: one UDP socket, one path, an address.

    ``addresses`` are this machine's, each as text, or with the interface that shall carry it ("192.0.2.1%wlan0"); none:
    ``usable_addresses()``. ``port`` is the UDP port of all of them; 0: any. Other stacks are found by the outer address
    that a program connects to (``outer_port``), or with ``reach``; their virtual addresses work like any other of
    AF_INET6. ``peer_port``: the UDP port of other stacks; 0: the TCP port that is connected to. ``wrap`` puts links
    around links (captures, faults). Other arguments: ``UserStack``'s and, in ``link_options``, ``UdpLink``'s.
    """

    _socket_class = UdpSocket

    def __init__(
        self,
        addresses: Sequence[str] | None = None,
        port: int = 0,
        *,
        node: UdpNode | None = None,
        peer_port: int = 0,
        wrap: Callable[[UdpLink], Link] = lambda link: link,
        link_options: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        self.node = node or UdpNode()
        self.peer_port = peer_port
        self._ports: dict[bytes, int] = {}  # outer host -> the UDP port at which a stack was reached last
        self._virtual: dict[Endpoint, bytes] = {}  # UDP endpoint -> virtual address
        self.links: list[UdpLink] = []
        try:
            for text in usable_addresses() if addresses is None else addresses:
                address, _, device = text.partition("%")
                settings = {"device": device, **(link_options or {})}
                try:
                    link = UdpLink(address, port, node=self.node, name=f"udp-{address}", **settings)
                except OSError as error:
                    raise OSError(error.errno, f"UDP {address} port {port}: {error.strerror}") from error
                self.links.append(link)
            inner = {link.name: link.addresses for link in self.links}
            super().__init__([wrap(link) for link in self.links], inner, **options)
        except BaseException:
            for link in self.links:
                link.close()
            raise
        self._by_address = {Endpoint.parse(link.address).address: link for link in self.links}

    @property
    def virtual_addresses(self) -> list[str]:
        """Those of this stack, one per UDP socket, in the order of the addresses."""
        return [link.address for link in self.links]

    def reach(self, host: str, port: int, timeout: float | None = REACH_TIMEOUT_S) -> str:
        """The virtual address of the stack that listens on that UDP endpoint; waits up to ``timeout`` seconds for it.

        A name's addresses are tried one after the other, a quarter of a second apart; the first that answers it is.
        OSError: the name is not known (gaierror), nobody answers (EHOSTUNREACH), no address of ours fits.
        """
        self.pump.check()
        deadline = time.monotonic() + (timeout if timeout is not None else 3600.0)
        found = std.getaddrinfo(host, port, 0, std.SOCK_DGRAM)
        wheres = list(dict.fromkeys(_where(family, target) for family, *_, target in found))
        introductions: list[Introduction] = []
        for where in wheres:
            introductions.append(self.node.introduce([where]))
            until = min(time.monotonic() + ATTEMPT_DELAY_S, deadline)
            while time.monotonic() < until and not introductions[-1].is_done and not _first(introductions):
                introductions[-1].wait(max(0.001, min(0.02, until - time.monotonic())))
            if _first(introductions):
                break
        while not _first(introductions):
            running = [introduction for introduction in introductions if not introduction.is_done]
            left = deadline - time.monotonic()
            if not running or left <= 0:
                reasons = "; ".join(dict.fromkeys(i.error for i in introductions if i.error)) or "nobody answers there"
                raise HostUnreachable(f"no mptcp stack could be reached at {host} port {port} by UDP: {reasons}")
            running[0].wait(min(0.05, left))
            self.pump.check()
        found_address = _first(introductions)
        until = min(time.monotonic() + PREFERENCE_DELAY_US / SECOND, deadline)
        while not self.has_best_path(found_address) and time.monotonic() < until:
            time.sleep(0.001)
        with self.pump.lock:
            for where, introduction in zip(wheres, introductions, strict=False):
                if introduction.address:
                    self._remember(endpoint_of(where), introduction.address)
        return Endpoint(found_address).host

    # --- by outer addresses --------------------------------------------------------------------------------------------
    def outer_port(self, remote: Endpoint) -> int:
        """The UDP port of the stack that is meant by ``remote``, an outer host with a TCP port: the ``peer_port``; else
        the TCP port, if a stack was reached there, or nowhere on that host; else where one was reached last."""
        if self.peer_port:
            return self.peer_port
        if remote in self._virtual:
            return remote.port
        return self._ports.get(remote.address, remote.port)

    def known(self, remote: Endpoint) -> Endpoint | None:
        """With the lock: the virtual endpoint of ``remote``, if there is a path to it."""
        address = self._virtual.get(Endpoint(remote.address, self.outer_port(remote)))
        if address is None or not any(link.has_path(address) for link in self.links):
            return None
        return Endpoint(address, remote.port)

    def introduce(self, remote: Endpoint, on_done: Callable[[], None]) -> Introduction:
        """With the lock: the search for the stack that is meant by ``remote``."""
        return self.node.introduce([sockaddr(Endpoint(remote.address, self.outer_port(remote)))], on_done)

    def learn(self, remote: Endpoint, address: bytes) -> None:
        """With the lock: the stack that is meant by ``remote`` has this virtual address."""
        self._remember(Endpoint(remote.address, self.outer_port(remote)), address)

    def _remember(self, where: Endpoint, address: bytes) -> None:
        self._virtual.pop(where, None)
        self._virtual[where] = address
        self._ports.pop(where.address, None)
        self._ports[where.address] = where.port
        tables: tuple[dict[Any, Any], ...] = (self._virtual, self._ports)
        for table in tables:
            if len(table) > MAX_KNOWN:
                del table[next(iter(table))]

    def inner(self, local: Endpoint) -> Endpoint:
        """Of an outer address of this stack the virtual one; any other is given back as it is."""
        for link in self.links:
            if link.local.address == local.address and not local.is_unspecified:
                return Endpoint(Endpoint.parse(link.address).address, local.port)
        return local

    def outer_address(self, virtual: bytes) -> bytes | None:
        """The outer address behind a virtual one of this stack or of a peer; None: it is not known."""
        own = self._by_address.get(virtual)
        if own is not None:
            return own.local.address
        found = next((link.endpoint(virtual) for link in self.links if link.has_path(virtual)), None)
        return found.address if found is not None else None

    def has_best_path(self, address: bytes) -> bool:
        """Whether the first of our addresses that fits is among those with a path: all said hello at the same time, and
        which is answered first is chance."""
        with self.node.lock:
            known = next((link.endpoint(address) for link in self.links if link.has_path(address)), None)
            fitting = (link for link in self.links if known is None or link.local.family == known.family)
            first = next(fitting, None)
            return first is None or first.has_path(address)

    def connect_udp(
        self,
        address: tuple[str, int],
        port: int,
        timeout: float | None = None,
        *,
        config: ConnectionConfig | None = None,
    ) -> Socket:
        """A connected socket: to TCP ``port`` of the stack at the UDP endpoint ``address``. OSError as of ``connect``."""
        virtual = self.reach(*address, timeout=REACH_TIMEOUT_S if timeout is None else timeout)
        sock = self.socket(std.AF_INET6, config=config)
        try:
            sock.settimeout(timeout)
            sock.connect((virtual, port))
        except BaseException:
            sock.close()
            raise
        return sock

    def rebind(self, link: str, address: str = "", port: int = 0) -> None:
        """The UDP socket of ``link`` (its name) goes on from another address of this machine ("": whichever the system
        chooses): peers follow, virtual addresses and subflows stay. OSError as of ``bind``."""
        with self.pump.lock:
            self.pump.check()
            for candidate in self.links:
                if candidate.name == link:
                    candidate.rebind(address, port)
                    return
        raise ConfigurationError(f"no link is called {link!r}: there are {', '.join(each.name for each in self.links)}")

    def outer(self, local: Endpoint, remote: Endpoint) -> tuple[Endpoint, Endpoint]:
        """The UDP endpoints that carry what goes between two virtual ones; what is not known is given back as it is."""
        link = self._by_address.get(local.address)
        if link is None:
            return local, remote
        return link.local, link.endpoint(remote.address) or remote

    def preferred_local(self, remote: Endpoint) -> Endpoint | None:
        """The first of our addresses that has a path to ``remote``."""
        for address, link in self._by_address.items():
            if link.has_path(remote.address):
                return Endpoint(address)
        return None


def usable_addresses(towards: str = "") -> list[str]:
    """This machine's addresses for paths to other machines, the one the system would use for ``towards`` (an address)
    first; without any, or towards a loopback address, those of loopback."""
    known = local_addresses()
    if not towards or (not Endpoint.parse(towards).address.startswith(b"\x7f") and towards != "::1"):
        usable = [str(local.network.ip) for local in known if local.is_usable]
        if usable:
            best = _source_for(towards) if towards else ""
            return sorted(dict.fromkeys(usable), key=lambda address: address != best)
    return list(dict.fromkeys(str(local.network.ip) for local in known if local.is_loopback))


def _source_for(towards: str) -> str:
    """The address the system would send from."""
    family = std.AF_INET6 if ":" in towards else std.AF_INET
    with std.socket(family, std.SOCK_DGRAM) as probe:
        try:
            probe.connect((towards, 9))
        except OSError:
            return ""
        return str(probe.getsockname()[0]).partition("%")[0]


def _where(family: int, target: tuple[Any, ...]) -> bytes:
    if family not in (std.AF_INET, std.AF_INET6):
        raise ConfigurationError(f"UDP to {target} is not possible: {errno.errorcode[errno.EAFNOSUPPORT]}")
    return sockaddr(Endpoint.parse(str(target[0]), int(target[1])), target[3] if len(target) > 3 else 0)


def _first(introductions: Sequence[Any]) -> bytes:
    for introduction in introductions:
        if introduction.address:
            address: bytes = introduction.address
            return address
    return b""
