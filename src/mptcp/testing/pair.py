"""Two hosts joined by one or more simulated paths: connect, transfer, close, in virtual time.

::

    pair = Pair(paths=2, conditions=Conditions(rate_bps=50 * MBIT, delay_us=10_000))
    pair.connect()
    assert pair.transfer(1_000_000).is_exact
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mptcp.core.host import Host
from mptcp.core.multipath.config import DEFAULT_CONFIG, ConnectionConfig
from mptcp.core.multipath.connection import Connection
from mptcp.core.units import MILLISECOND, SECOND
from mptcp.info import Endpoint
from mptcp.sim.applications import BulkReceiver, BulkSender
from mptcp.sim.conditions import Conditions
from mptcp.sim.network import Path
from mptcp.sim.world import DEFAULT_MTU, Port, SimHost, World

SERVER_PORT = 80
IDEAL = Conditions(delay_us=5 * MILLISECOND)


class Pair:
    """A client with an interface for each of ``paths``, 10.0.N.1 (or fd00:0:0:N::1), and a server.

    The server has one address, 10.0.0.2, that all paths lead to; or, unless ``single_homed_server``, an interface on
    each path, 10.0.N.2, with the first of which the client connects.
    """

    def __init__(
        self,
        *,
        seed: bytes | int = 0,
        paths: int = 1,
        conditions: Conditions | Sequence[Conditions] = IDEAL,
        client_options: ConnectionConfig = DEFAULT_CONFIG,
        server_options: ConnectionConfig = DEFAULT_CONFIG,
        single_homed_server: bool = True,
        ipv6: bool = False,
        mtu: int = DEFAULT_MTU,
        gso_max_bytes: int = 0,
        trace: bool = False,
        keep_packets: int = 0,
    ) -> None:
        self.world = World(seed, trace=trace, keep_packets=keep_packets)
        self.client_host = self.world.add_host("client")
        self.server_host = self.world.add_host("server")
        self.client_ports: list[Port] = []
        self.server_ports: list[Port] = []
        self.paths: list[Path] = []
        for index in range(paths):
            prefix = f"fd00:0:0:{index}::" if ipv6 else f"10.0.{index}."
            client_port = self.client_host.add_interface(prefix + "1", mtu=mtu, gso_max_bytes=gso_max_bytes)
            if single_homed_server and index:
                server_port = self.server_ports[0]
            else:
                server_port = self.server_host.add_interface(prefix + "2", mtu=mtu, gso_max_bytes=gso_max_bytes)
            this = conditions if isinstance(conditions, Conditions) else conditions[index]
            self.client_ports.append(client_port)
            self.server_ports.append(server_port)
            self.paths.append(self.world.join(client_port, server_port, this, name=f"path{index}"))
        self._client_options = client_options
        self._server_options = server_options
        self.listener = self.server_host.listen(
            Endpoint(self.server_ports[0].addresses[0], SERVER_PORT), options=server_options
        )
        self._client: Connection | None = None
        self._server: Connection | None = None

    @property
    def now(self) -> int:
        return self.world.now

    @property
    def client(self) -> Connection:
        assert self._client is not None, "connect() first"
        return self._client

    @property
    def server(self) -> Connection:
        assert self._server is not None, "connect() first"
        return self._server

    def start(self) -> Connection:
        """The client's SYN goes out when the world runs next."""
        self._client = self.client_host.connect(
            Endpoint(self.server_ports[0].addresses[0], SERVER_PORT), options=self._client_options
        )
        return self.client

    def connect(self, *, subflows: int = 0, timeout_us: int = 60 * SECOND) -> tuple[Connection, Connection]:
        """Both ends, established; with ``subflows``, runs on until the client has as many active ones. AssertionError
        if that does not come about."""
        self.start()

        def waiting() -> bool:
            if self._server is None:
                self._server = self.listener.accept()
            return self._server is None and self.client.error is None

        self.run(while_=waiting, for_us=timeout_us)
        assert self._server is not None, f"not accepted; client: {self.client.error!r}"
        if subflows:
            self.run(while_=lambda: self.active_subflows() < subflows, for_us=timeout_us)
            assert self.active_subflows() >= subflows, f"{self.active_subflows()} active subflows"
        return self.client, self.server

    def active_subflows(self) -> int:
        return sum(info.state.value == "active" for info in self.client.subflows())

    def run(self, *, for_us: int = 600 * SECOND, while_: Callable[[], bool] | None = None) -> int:
        """At most so long."""
        self.touch()
        return self.world.run(until=self.world.now + for_us, while_=while_)

    def touch(self) -> None:
        """After calls to a connection from outside."""
        self.client_host.touch()
        self.server_host.touch()

    def transfer(self, total: int, *, from_client: bool = True, limit_us: int = 600 * SECOND) -> BulkReceiver:
        """Sends ``total`` octets and the end of the stream one way; the receiver says whether they came exact, and
        when (``progress``). Once for each direction of a connection."""
        source, destination = self._ends(from_client)
        sender = BulkSender(source[0], source[1], total)
        receiver = BulkReceiver(destination[0], destination[1], keep_open=True)
        destination[0].attach(destination[1], receiver)
        source[0].attach(source[1], sender)
        self.run(
            while_=lambda: not receiver.ended and source[1].error is None and destination[1].error is None,
            for_us=limit_us,
        )
        return receiver

    def drain(self, idle_us: int = SECOND) -> None:
        """Runs until everything that is under way has settled."""
        self.run(for_us=idle_us)

    def close(self, limit_us: int = 300 * SECOND) -> None:
        """Both sides close; runs until neither host keeps a connection (TIME-WAIT included) or time is up."""
        self.client.close(self.now)
        self.server.close(self.now)
        stacks = (self.client_host.stack, self.server_host.stack)
        self.run(while_=lambda: any(isinstance(stack, Host) and stack.connections for stack in stacks), for_us=limit_us)

    def _ends(self, from_client: bool) -> tuple[tuple[SimHost, Connection], tuple[SimHost, Connection]]:
        client, server = (self.client_host, self.client), (self.server_host, self.server)
        return (client, server) if from_client else (server, client)
