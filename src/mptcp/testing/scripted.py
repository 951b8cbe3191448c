"""A host under test, and a test that plays its whole network: packets in, packets out, time by hand.

::

    host = ScriptedHost()
    listener = host.listen(80)
    host.receives(syn(mp_capable()), to_port=80)
    assert host.sends() == [is_syn_ack(mptcp=MpCapable)]
"""

from __future__ import annotations

from typing import NamedTuple

from mptcp.core.entropy import Entropy
from mptcp.core.host import Host, HostConfig
from mptcp.core.multipath.config import ConnectionConfig
from mptcp.core.multipath.connection import Connection
from mptcp.core.multipath.listener import Listener
from mptcp.core.wire.offload import finish
from mptcp.core.wire.segment import Segment
from mptcp.info import Endpoint
from mptcp.testing.builders import packet, parse_packet

HOST_ADDRESS, PEER_ADDRESS = "10.0.0.1", "10.0.0.2"
PEER_PORT = 40_000


class SentSegment(NamedTuple):
    """What the host has sent, and where to."""

    time_us: int
    interface: int
    source: Endpoint
    destination: Endpoint
    segment: Segment


class ScriptedHost:
    """A ``Host`` with one interface and address (more with ``add_interface``), driven by a script.

    Time stands still except in ``at_us`` arguments and ``advance``; timers that come due on the way are run. A segment
    goes from ``peer`` to the host's own end of the conversation, both learnt from the last segment seen unless given.
    """

    def __init__(self, *, seed: int = 0, config: HostConfig | None = None, address: str = HOST_ADDRESS) -> None:
        self.now = 0
        self.host = Host(Entropy(seed)) if config is None else Host(Entropy(seed), config)
        self.sent: list[SentSegment] = []
        self.peer = Endpoint.parse(PEER_ADDRESS, PEER_PORT)
        self.local = Endpoint.parse(address)
        self.add_interface(address)

    def add_interface(self, *addresses: str, mtu: int = 1500, gso_max_bytes: int = 0) -> int:
        index = self.host.add_interface(f"if{len(addresses)}", mtu, gso_max_bytes)
        for address in addresses:
            self.host.add_address(address, index, self.now)
        self._poll()
        return index

    # --- the application's side -------------------------------------------------------------------------------------
    def connect(
        self, remote: str = PEER_ADDRESS, port: int = 80, *, options: ConnectionConfig | None = None
    ) -> Connection:
        connection = self.host.connect(Endpoint.parse(remote, port), self.now, options=options)
        self._poll()
        return connection

    def listen(self, port: int = 80, *, options: ConnectionConfig | None = None, backlog: int = 128) -> Listener:
        local = Endpoint(self.local.address, port)
        listener = self.host.listen(local, self.now, backlog=backlog, options=options)
        self.local = local
        return listener

    def poll(self) -> None:
        """Collects what an application's call has caused (``connection.write(...)``)."""
        self._poll()

    # --- the network's side -----------------------------------------------------------------------------------------
    def receives(
        self,
        content: Segment | bytes,
        *,
        at_us: int | None = None,
        after_us: int = 0,
        source: Endpoint | None = None,
        destination: Endpoint | None = None,
        to_port: int | None = None,
        interface: int = 0,
    ) -> None:
        """A segment, or the octets of any packet, arrives: at a time, or so much later than now."""
        self.advance(self.now + after_us if at_us is None else at_us)
        if isinstance(content, Segment):
            if source is not None:
                self.peer = source
            if destination is not None:
                self.local = destination
            if to_port is not None:
                self.local = Endpoint(self.local.address, to_port)
            content = packet(content, self.peer, self.local)
        # A fresh buffer, as a link would give.
        self.host.handle_packet(interface, memoryview(bytearray(content)), self.now)
        self._poll()

    def advance(self, to_us: int) -> None:
        """Lets time pass until then; what comes due happens when it is due."""
        assert to_us >= self.now, f"it is {self.now} us already"
        while (deadline := self.host.poll_deadline()) <= to_us:
            self.now = max(self.now, deadline)
            self.host.handle_timeout(self.now)
            self._poll()
        self.now = to_us
        self._poll()

    def sends(self) -> list[Segment]:
        """The segments sent since this was last asked, in order, super-segments cut."""
        return [entry.segment for entry in self.sends_to()]

    def sends_to(self) -> list[SentSegment]:
        """The same with time, interface and endpoints."""
        self._poll()
        sent, self.sent = self.sent, []
        if sent:
            self.local, self.peer = sent[-1].source, sent[-1].destination
        return sent

    @property
    def counters(self) -> dict[str, int]:
        return self.host.counters

    def _poll(self) -> None:
        for interface, out in self.host.poll_packets(self.now):
            for octets in finish(out):
                segment, source, destination = parse_packet(octets)
                self.sent.append(SentSegment(self.now, interface, source, destination, segment))
        self.host.poll_ready()
