"""From ``--link`` to a stack that connects and listens: what the verbs share."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from mptcp.cli.file_server import FileServer
from mptcp.cli.link_option import Address, LinkSpec
from mptcp.cli.shown import shown
from mptcp.core.multipath.config import DEFAULT_CONFIG, ConnectionConfig
from mptcp.core.path_managers.fullmesh import FullMesh
from mptcp.errors import ConfigurationError
from mptcp.info import SubflowInfo
from mptcp.links.base import Link
from mptcp.links.loopback import LoopbackLink
from mptcp.links.packet import PacketLink
from mptcp.links.pcap import PcapLink, PcapWriter
from mptcp.links.tun import TunLink
from mptcp.sockets.create import create_connection, create_server, use
from mptcp.sockets.user import UserStack

if TYPE_CHECKING:
    from mptcp.sockets.base import AnySocket

#: Seconds that the last octets of closed connections get when a command ends.
DRAIN_S = 1.0
#: The stack of ``--link loopback`` and the one that serves it.
LOOPBACK_ADDRESSES = (("10.99.1.2", "10.99.1.1"), ("10.99.2.2", "10.99.2.1"))
LOOPBACK_PORT = 8000


class StackInUse(ABC):
    """What a verb connects and listens with, as a context manager that ends it. ``addresses``: where it can be reached."""

    def __init__(self, addresses: Sequence[Address]) -> None:
        self.addresses = list(addresses)

    @abstractmethod
    def connect(self, address: tuple[str, int], timeout: float | None = None) -> AnySocket:
        """A connected socket; OSError as the standard library's, ``timeout`` in seconds (None: for ever)."""

    @abstractmethod
    def listen(self, port: int) -> AnySocket:
        """A socket that listens on that port of every address."""

    @abstractmethod
    def shown(self, program: str) -> contextlib.AbstractContextManager[None]:
        """Meanwhile it can be looked at by ``mptcp ls``, under the name of ``program``."""

    @abstractmethod
    def close(self) -> None:
        """Ends everything on it."""

    def snapshot(self, sock: Any) -> list[SubflowInfo]:
        """The subflows of a socket, as they are to be shown."""
        infos: list[SubflowInfo] = sock.subflows()
        return infos

    def url(self, address: Address, port: int) -> str:
        """Where a client finds what listens on that port of one of our addresses."""
        host = f"[{address}]" if address.version == 6 else str(address)
        return f"http://{host}:{port}/"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Stack(StackInUse):
    """A stack of this package over links, and what serves it."""

    def __init__(
        self, stack: UserStack, addresses: Sequence[Address], exits: contextlib.ExitStack | None = None
    ) -> None:
        super().__init__(addresses)
        self.user_stack = stack
        self._exits = exits or contextlib.ExitStack()

    def connect(self, address: tuple[str, int], timeout: float | None = None) -> AnySocket:
        with use(self.user_stack):
            return create_connection(address, timeout)

    def listen(self, port: int) -> AnySocket:
        versions = {address.version for address in self.addresses}
        with use(self.user_stack):
            if 6 in versions:
                return create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=4 in versions)
            return create_server(("0.0.0.0", port))

    def shown(self, program: str) -> contextlib.AbstractContextManager[None]:
        return shown(self.user_stack, program)

    def close(self) -> None:
        try:
            self.user_stack.close(DRAIN_S)
        finally:
            self._exits.close()


def stack_on(
    links: Sequence[Link], addresses: Sequence[Sequence[str]], config: ConnectionConfig = DEFAULT_CONFIG
) -> Stack:
    """A stack over ``links``; ``addresses`` ("10.0.1.2/24") are those of each of them."""
    by_link = {link.name: list(texts) for link, texts in zip(links, addresses, strict=True)}
    plain = [ipaddress.ip_interface(text).ip for texts in addresses for text in texts]
    try:
        return Stack(UserStack(links, by_link, config=config), plain)
    except BaseException:
        for link in links:
            link.close()
        raise


def open_stack(specs: Sequence[LinkSpec], *, pcap: Path | None = None, backup: Sequence[str] = ()) -> Stack:
    """What ``--link``, ``--pcap`` and ``--backup`` ask for. ConfigurationError, or PermissionError with a sentence."""
    if specs[0].kind == "loopback":
        specs = [_loopback_spec(specs[0], ours) for ours, _ in LOOPBACK_ADDRESSES]
    config = _config(specs, backup)
    with contextlib.ExitStack() as exits:
        kept = exits.enter_context(contextlib.ExitStack())  # what ends with the stack
        writer = kept.enter_context(capture(pcap)) if pcap is not None else None
        links: list[Link] = []
        far: list[Link] = []
        for spec in specs:
            link, other = _open_link(spec)
            exits.callback(link.close)
            if other is not None:
                far.append(other)
                exits.callback(other.close)
            links.append(PcapLink(link, writer) if writer is not None else link)
        if far:
            kept.enter_context(_served(far, Path(specs[0].name)))
        stack = stack_on(links, [[str(address) for address in spec.addresses] for spec in specs], config)
        exits.pop_all()  # from here on the stack closes its links
        return Stack(stack.user_stack, stack.addresses, kept)


@contextlib.contextmanager
def capture(path: Path) -> Iterator[PcapWriter]:
    """What ``--pcap`` writes. ConfigurationError if there can be no such file; one that ends early is said at the end."""
    try:
        writer = PcapWriter(path)
    except OSError as error:
        raise ConfigurationError(f"--pcap {path}: {error.strerror}") from None
    try:
        yield writer
    finally:
        writer.close()
        if writer.failure is not None:
            print(f"mptcp: --pcap {path} is not complete: {writer.failure.strerror}", file=sys.stderr)


def _config(specs: Sequence[LinkSpec], backup: Sequence[str]) -> ConnectionConfig:
    if not backup:
        return DEFAULT_CONFIG
    own = {interface.ip for spec in specs for interface in spec.addresses}
    chosen = set()
    for text in backup:
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            raise ConfigurationError(f"--backup {text!r} is no address") from None
        if address not in own:
            raise ConfigurationError(f"--backup {text}: no --link has that address")
        chosen.add(address.packed)
    addresses = frozenset(chosen)
    return DEFAULT_CONFIG.changed(path_manager=lambda: FullMesh(DEFAULT_CONFIG.max_subflows, addresses))


def _open_link(spec: LinkSpec) -> tuple[Link, Link | None]:
    """The link, and its far end if that is ours as well."""
    addresses = [str(address) for address in spec.addresses]
    if spec.kind == "tun":
        peers = [str(peer) for peer in spec.peers]
        return TunLink(spec.name, kernel_addresses=peers, mtu=spec.mtu or 1500), None
    if spec.kind == "packet":
        return PacketLink(spec.name, addresses, gateways=[str(g) for g in spec.gateways], mtu=spec.mtu), None
    return LoopbackLink.pair(f"loopback-{addresses[0].partition('/')[0]}-")


def _loopback_spec(spec: LinkSpec, address: str) -> LinkSpec:
    if not Path(spec.name).is_dir():
        raise ConfigurationError(f"--link loopback: {spec.name} is no directory to serve")
    return LinkSpec("loopback", spec.name, (ipaddress.ip_interface(f"{address}/24"),))


@contextlib.contextmanager
def _served(links: Sequence[Link], directory: Path) -> Iterator[None]:
    """A second stack in this process that serves ``directory`` at http://10.99.1.1:8000/."""
    with stack_on(links, [[theirs] for _, theirs in LOOPBACK_ADDRESSES]) as stack:
        server = FileServer(stack.listen(LOOPBACK_PORT), directory, say=lambda line: None)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            server.server_close()
            thread.join(5)
