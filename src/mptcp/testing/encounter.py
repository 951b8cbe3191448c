"""This stack and the Linux kernel, face to face in a ``Lab``: a stack on the client's links, and connections to it.

::

    with Lab(2) as lab, Encounter(lab, family=6) as encounter:
        exchange, peer = encounter.meet("connect", ours={"send_bytes": 1000}, kernel={"send_bytes": 5})
        exchange.join(); peer.result(); encounter.kernel_counters()["MPJoinAckRx"]
"""

from __future__ import annotations

import contextlib
import os
import socket as std
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from mptcp.core.entropy import Entropy
from mptcp.core.multipath.config import DEFAULT_CONFIG, ConnectionConfig
from mptcp.info import SubflowInfo
from mptcp.links.base import Link
from mptcp.links.faults import FaultLink
from mptcp.links.packet import PacketLink
from mptcp.links.pcap import PcapLink, PcapWriter
from mptcp.links.tun import TunLink
from mptcp.sockets.legacy import LegacyPolicy
from mptcp.sockets.socket import Socket
from mptcp.sockets.user import UserStack
from mptcp.testing.exchange import Exchange
from mptcp.testing.netns import Lab
from mptcp.testing.processes import Peer

#: Names a directory in which every encounter leaves a capture; ``mptcp dump`` prints it.
PCAP_VARIABLE: Final = "MPTCP_TEST_PCAP"
PREFIX: Final = "MPTcpExt"
#: The port on which our listeners listen.
PORT: Final = 8080
#: Octets of one mapping of the kernel's, at most.
MAX_RECORD: Final = 65_535


class Encounter:
    """``paths``: those of the lab that our stack uses; ``family`` 4 or 6, or 46 for both on every link.

    ``link`` "packet" (AF_PACKET on the lab's veths) or "tun" (a TUN device per path in the server's namespace: the
    quickest way to and from the kernel, but no rate can be set and nothing cut on it). With ``faulty`` each link can do
    harm to packets: ``encounter.faults[path]``.
    """

    def __init__(
        self,
        lab: Lab,
        *,
        family: int = 4,
        paths: Sequence[int] = (),
        link: str = "packet",
        config: ConnectionConfig = DEFAULT_CONFIG,
        offload: bool = True,
        faulty: bool = False,
        name: str = "encounter",
    ) -> None:
        self.lab = lab
        self.family = 4 if family == 46 else family
        self.paths = list(paths) or list(range(1, lab.paths + 1))
        self._tun = link == "tun"
        self._writer: PcapWriter | None = None
        self._peers: list[Peer] = []
        self._sockets: list[Socket] = []
        families = (4, 6) if family == 46 else (family,)
        addresses = {path: [self.our_interface(path, f) for f in families] for path in self.paths}
        self.faults: dict[int, FaultLink] = {}
        links: list[Link] = []
        try:
            links.extend(self._link(path, addresses[path], offload) for path in self.paths)
            self._links = dict(zip(self.paths, links, strict=True))
            directory = os.environ.get(PCAP_VARIABLE)
            if directory:
                safe = "".join(c if c.isalnum() or c in "-_" else "-" for c in name)
                self._writer = PcapWriter(Path(directory) / f"{safe}.pcapng")
                links = [PcapLink(one, self._writer) for one in links]
            by_name = {one.name: addresses[path] for one, path in zip(links, self.paths, strict=True)}
            if faulty:
                self.faults = {path: FaultLink(one, Entropy(path)) for path, one in zip(self.paths, links, strict=True)}
                links = list(self.faults.values())
            self.link_names = {path: one.name for one, path in zip(links, self.paths, strict=True)}
            # A bind chooses where the first subflow comes from and no more, as it does on the kernel's side.
            self.stack = UserStack(links, by_name, config=config, legacy_policy=LegacyPolicy(bind="ignore"))
        except BaseException:
            for made in links:
                made.close()
            raise
        self._before = lab.server.counters()

    def _link(self, path: int, addresses: list[str], offload: bool) -> Link:
        if self._tun:
            with self.lab.server.entered():
                kernel = [self.kernel_address(path, f) + ("/24" if f == 4 else "/64") for f in (4, 6)]
                return TunLink(f"t{path}", kernel_addresses=kernel, offload=offload)
        gateways = [self.kernel_address(path, 6 if ":" in address else 4) for address in addresses]
        with self.lab.client.entered():
            return PacketLink(f"c{path}", addresses, gateways=gateways, offload=offload)

    def link(self, path: int) -> Link:
        """The link itself, also where it is wrapped for a capture or for faults."""
        return self._links[path]

    # addresses

    def our_address(self, path: int, family: int = 0) -> str:
        return self._address(path, family or self.family, 1)

    def our_interface(self, path: int, family: int = 0) -> str:
        """Our address with its prefix length."""
        family = family or self.family
        return self._address(path, family, 1) + ("/24" if family == 4 else "/64")

    def kernel_address(self, path: int, family: int = 0) -> str:
        return self._address(path, family or self.family, 2)

    def _address(self, path: int, family: int, host: int) -> str:
        # A TUN device has prefixes of its own: those of the lab are on its veths.
        if self._tun:
            return f"10.78.{path}.{host}" if family == 4 else f"fd78:{path}::{host}"
        return f"10.77.{path}.{host}" if family == 4 else f"fd77:{path}::{host}"

    @property
    def any_address(self) -> str:
        return "0.0.0.0" if self.family == 4 else "::"

    # connections

    def socket(self, config: ConnectionConfig | None = None) -> Socket:
        sock = self.stack.socket(std.AF_INET if self.family == 4 else std.AF_INET6, config=config)
        self._sockets.append(sock)
        return sock

    def connect(
        self, port: int, *, path: int = 1, config: ConnectionConfig | None = None, timeout_s: float = 30
    ) -> Socket:
        """A socket connected from and to the addresses of one path."""
        sock = self.socket(config)
        sock.settimeout(timeout_s)
        sock.bind((self.our_address(path), 0))
        sock.connect((self.kernel_address(path), port))
        return sock

    def listen(self, *, port: int = PORT, config: ConnectionConfig | None = None, backlog: int = 256) -> Socket:
        sock = self.socket(config)
        sock.settimeout(30)
        sock.bind((self.any_address, port))
        sock.listen(backlog)
        return sock

    def accept(self, listener: Socket) -> Socket:
        sock, _ = listener.accept()
        self._sockets.append(sock)
        return sock

    def meet(
        self,
        role: str,
        *,
        ours: Mapping[str, Any] | None = None,
        kernel: Mapping[str, Any] | None = None,
        config: ConnectionConfig | None = None,
    ) -> tuple[Exchange, Peer]:
        """One connection over path 1: our ``role`` is "connect" or "accept"; arguments of Exchange and KernelServer."""
        sock, peer = self.open(role, kernel=kernel, config=config)
        return Exchange(sock, **(ours or {})), peer

    def open(
        self, role: str, *, kernel: Mapping[str, Any] | None = None, config: ConnectionConfig | None = None
    ) -> tuple[Socket, Peer]:
        """As ``meet``, but the socket of our side is given to the caller."""
        options = dict(kernel or {})
        if role == "connect":
            peer = self.lab.server.serve(self.any_address, **options)
            self._peers.append(peer)
            return self.connect(peer.port, config=config), peer
        listener = self.listen(config=config)
        peer = self.lab.server.connect(self.our_address(1), PORT, **options)
        self._peers.append(peer)
        return self.accept(listener), peer

    # counters

    def kernel_counters(self) -> Counter[str]:
        """What the kernel has counted since the encounter began, MPTcpExt counters without that prefix."""
        now = self.lab.server.counters()
        changed: Counter[str] = Counter()
        for name, value in now.items():
            if difference := value - self._before.get(name, 0):
                changed[name.removeprefix(PREFIX)] = difference
        return changed

    def is_spared(self, backup: SubflowInfo, before: SubflowInfo | None = None) -> bool:
        """Whether nothing has gone over it (since ``before``) but what Linux repeats at a backup, too.

        That is what has got no DATA_ACK in time, once for each such occasion; and all, while it has no better subflow that
        answers. Both happens where this process is kept waiting for a processor.
        """
        sent, received = backup.bytes_sent, backup.bytes_received
        if before is not None:
            sent, received = sent - before.bytes_sent, received - before.bytes_received
        counters = self.kernel_counters()
        return not sent and (received <= MAX_RECORD * counters["MPTCPRetrans"] or counters["SubflowStale"] > 0)

    def wait_kernel(self, timeout_s: float = 20.0, **at_least: int) -> Counter[str]:
        """Until the kernel's counters have reached these values; TimeoutError with all that it counted."""
        deadline = time.monotonic() + timeout_s
        while True:
            counters = self.kernel_counters()
            if all(counters[name] >= value for name, value in at_least.items()):
                return counters
            if time.monotonic() > deadline:
                raise TimeoutError(f"the kernel never counted {at_least}, but {dict(counters)}")
            time.sleep(0.01)

    def close(self) -> None:
        """Ends the stack and the peers; the lab stays."""
        for peer in self._peers:
            peer.close()
        for sock in self._sockets:
            with contextlib.suppress(OSError):
                sock.close()
        self.stack.close(0.2)
        if self._writer is not None:
            self._writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
