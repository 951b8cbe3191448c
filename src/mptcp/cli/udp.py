"""``--link udp``: from the command line to a stack over UDP, and what the verbs show of it."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult

from mptcp.cli.connections import Stack, capture
from mptcp.cli.link_option import DEFAULT_LINK, LinkSpec, parse_links
from mptcp.core.multipath.config import DEFAULT_CONFIG, ConnectionConfig
from mptcp.core.path_managers.fullmesh import FullMesh
from mptcp.errors import ConfigurationError
from mptcp.info import Endpoint, SubflowInfo
from mptcp.links.base import Link
from mptcp.links.pcap import PcapLink
from mptcp.links.udp import UdpLink
from mptcp.sockets.create import create_server, use
from mptcp.sockets.udp import UdpStack, usable_addresses

if TYPE_CHECKING:
    from mptcp.sockets.base import AnySocket

#: The TCP port, inside, at which files are served: the UDP port outside may be any, and a NAT may change it.
SERVICE_PORT = 8000


def links_for(parts: SplitResult, given: Sequence[str]) -> list[LinkSpec]:
    """``--link`` for a URL: ``mptcp://`` goes over UDP, and needs none."""
    specs = parse_links(given or ["udp" if parts.scheme == "mptcp" else DEFAULT_LINK])
    if (parts.scheme == "mptcp") != (specs[0].kind == "udp"):
        raise ConfigurationError("mptcp:// and --link udp belong together: mptcp get --link udp mptcp://HOST:PORT/PATH")
    return specs


class UdpCliStack(Stack):
    """``connect`` takes the UDP endpoint of the other stack and leads to its file service."""

    def __init__(self, stack: UdpStack, exits: contextlib.ExitStack) -> None:
        super().__init__(stack, [ipaddress.ip_address(link.local.host) for link in stack.links], exits)
        self.udp = stack

    def connect(self, address: tuple[str, int], timeout: float | None = None) -> AnySocket:
        return self.udp.connect_udp(address, SERVICE_PORT, timeout)

    def listen(self, port: int) -> AnySocket:
        with use(self.udp):
            return create_server(("::", SERVICE_PORT), family=socket.AF_INET6)

    def url(self, address: Any, port: int) -> str:
        host = f"[{address}]" if address.version == 6 else str(address)
        return f"mptcp://{host}:{port}/"

    def snapshot(self, sock: Any) -> list[SubflowInfo]:
        """The subflows, with the UDP endpoints that carry them instead of virtual addresses."""
        result = []
        for info in sock.subflows():
            local, remote = self.udp.outer(info.local, info.remote)
            result.append(replace(info, local=local, remote=remote))
        return result


def open_udp(
    specs: Sequence[LinkSpec], *, port: int = 0, towards: str = "", pcap: Path | None = None, backup: Sequence[str] = ()
) -> UdpCliStack:
    """What ``--link udp...`` asks for. ``port`` where a link names none; ``towards``: the host to be reached, if any.

    ConfigurationError, or OSError with a sentence (a port that is in use).
    """
    addresses, ports, mtu = _addresses(specs, port, towards)
    chosen: set[bytes] = set()
    config = _config(addresses, backup, chosen)
    with contextlib.ExitStack() as exits:
        writer = exits.enter_context(capture(pcap)) if pcap is not None else None

        def wrap(link: UdpLink) -> Link:
            return PcapLink(link, writer) if writer is not None else link

        stack = UdpStack(
            addresses, ports, peer_port=_peer_port(specs), wrap=wrap, config=config, link_options={"mtu": mtu}
        )
        for text, link in zip(addresses, stack.links, strict=True):
            if text.partition("%")[0] in backup:
                chosen.add(Endpoint.parse(link.address).address)
        return UdpCliStack(stack, exits.pop_all())


def _addresses(specs: Sequence[LinkSpec], port: int, towards: str) -> tuple[list[str], int, int]:
    """(addresses of the sockets, their port, MTU)."""
    addresses = [text for spec in specs for text in spec.locals]
    if not addresses:
        if towards:
            addresses = usable_addresses(_resolve(towards))
        else:
            addresses = list(dict.fromkeys([*usable_addresses(), *usable_addresses("127.0.0.1")]))
    if not addresses:
        raise ConfigurationError("this machine has no address: name one, like --link udp:127.0.0.1")
    ports = {spec.port for spec in specs if spec.port} or {port}
    if len(ports) > 1:
        raise ConfigurationError("--link udp: all sockets have one port, several were given")
    return addresses, ports.pop(), max(spec.mtu for spec in specs)


def _peer_port(specs: Sequence[LinkSpec]) -> int:
    ports = {spec.peer_port for spec in specs if spec.peer_port}
    if len(ports) > 1:
        raise ConfigurationError("--link udp: peers are at one port, several were given")
    return ports.pop() if ports else 0


def _resolve(host: str) -> str:
    found = socket.getaddrinfo(host, None, 0, socket.SOCK_DGRAM)
    return str(found[0][4][0]).partition("%")[0]


def _config(addresses: Sequence[str], backup: Sequence[str], chosen: set[bytes]) -> ConnectionConfig:
    """``chosen``: the virtual addresses of ``backup``, known once the sockets are open."""
    own = {text.partition("%")[0] for text in addresses}
    for text in backup:
        try:
            ipaddress.ip_address(text)
        except ValueError:
            raise ConfigurationError(f"--backup {text!r} is no address") from None
        if text not in own:
            raise ConfigurationError(f"--backup {text}: no --link has that address")
    if not backup:
        return DEFAULT_CONFIG
    return DEFAULT_CONFIG.changed(path_manager=lambda: FullMesh(DEFAULT_CONFIG.max_subflows, frozenset(chosen)))
