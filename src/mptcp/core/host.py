"""A host: addresses and ports on one side, connections on the other, and the packets between them."""

from __future__ import annotations

import errno
import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from mptcp.core.counters import Counters
from mptcp.core.entropy import Entropy
from mptcp.core.multipath import cookie_opening, joining, keys, opening
from mptcp.core.multipath.config import DEFAULT_CONFIG, ConnectionConfig
from mptcp.core.multipath.connection import Connection
from mptcp.core.multipath.emission import Emission, Interface, flow_key
from mptcp.core.multipath.environment import Environment, Route
from mptcp.core.multipath.fallback import FailureCache
from mptcp.core.multipath.listener import Listener
from mptcp.core.multipath.local_addresses import LocalAddresses
from mptcp.core.multipath.subflow import Subflow
from mptcp.core.packet import Packet
from mptcp.core.tcp.departure import reset_for
from mptcp.core.tcp.isn import InitialSequenceNumbers
from mptcp.core.tcp.syn_cookies import Cookie, SynCookies
from mptcp.core.tcp.time_wait import may_be_replaced
from mptcp.core.units import NEVER
from mptcp.core.wire import checksum, icmp, ip
from mptcp.core.wire import tcp as tcp_wire
from mptcp.core.wire.mptcp_options import RST_MPTCP_SPECIFIC, MpJoinSyn, MpTcprst
from mptcp.core.wire.segment import ACK, NO_OPTIONS, RST, SYN, Options, Segment
from mptcp.errors import NetworkUnreachable, PathError
from mptcp.info import Endpoint

#: RST and similar answers that wait for the link; more are dropped and counted.
MAX_REPLIES = 256
#: Packets from this host to itself that wait for their turn.
MAX_LOCAL_PACKETS = 4096
#: The ephemeral ports (RFC 6335 §6 gives 49152 on; Linux starts at 32768, and so do we).
FIRST_EPHEMERAL, LAST_EPHEMERAL = 32768, 60999


@dataclass(frozen=True, slots=True)
class HostConfig:
    """``connection`` is what connections get that ask for nothing else."""

    connection: ConnectionConfig = DEFAULT_CONFIG
    max_connections: int = 1 << 20  # passive opens beyond are refused


class Host(Environment):
    """Order of calls: ``handle_packet`` for whatever came in (as many as there are), ``handle_timeout`` when
    ``poll_deadline`` has come, and after either, or after verbs of connections, ``poll_packets`` and ``poll_ready``.
    """

    def __init__(self, entropy: Entropy, config: HostConfig | None = None) -> None:
        self.entropy = entropy
        self.config = config or HostConfig()
        self.counters = Counters()
        self.now = 0
        self.failures = FailureCache()
        self.races: list[Connection] = []
        self.interfaces: list[Interface] = []
        self.connections: dict[Connection, None] = {}
        self.listeners: dict[tuple[bytes, int], Listener] = {}
        self._addresses: dict[bytes, int] = {}  # address -> interface
        self._hidden: set[bytes] = set()
        self._flows: dict[bytes, Subflow] = {}
        self._tokens: dict[int, Connection] = {}
        self._marked: list[Connection] = []
        self._held: dict[Connection, None] = {}  # would send, were their interfaces not busy
        self._ready: dict[Connection | Listener, None] = {}
        self._replies: list[tuple[int, Packet]] = []
        self._local: list[tuple[int, memoryview, int]] = []
        self._timers: list[tuple[int, int, Connection]] = []
        self._timer_count = 0
        self._isns = InitialSequenceNumbers(entropy.child("isn"))
        self.cookies = SynCookies(entropy.child("syn cookies"))
        self.cookie: Cookie | None = None
        self._identification = entropy.bits(16)
        self._next_port = FIRST_EPHEMERAL + entropy.below(LAST_EPHEMERAL - FIRST_EPHEMERAL)
        self._port_users: dict[int, int] = {}  # local port -> how many subflows

    # --- interfaces and addresses -----------------------------------------------------------------------------------
    def add_interface(self, name: str, mtu: int, gso_max_bytes: int = 0) -> int:
        """The index under which packets of this interface come and go."""
        self.interfaces.append(Interface(name, mtu, gso_max_bytes))
        return len(self.interfaces) - 1

    def set_interface_up(self, index: int, up: bool, now: int) -> None:
        """Down: its addresses cannot be used, and subflows from them are closed."""
        self.now = now
        interface = self.interfaces[index]
        if interface.is_up == up:
            return
        interface.is_up = up
        for address in [a for a, i in self._addresses.items() if i == index]:
            self._tell_connections(address, up, now, interface_down=not up)
        if not up:
            self._break_pinned(index)

    def set_interface_busy(self, index: int, busy: bool, room: int = NEVER) -> None:
        """Busy: the link has not taken yet what it was given last. Until it is free again subflows on it send nothing:
        octets wait in the stream, for whichever path is free first, and not in the queue of a slow one. ``room``:
        octets of data after which this has to be called again; then ``poll_packets`` has more, perhaps."""
        interface = self.interfaces[index]
        interface.is_busy = busy
        interface.room = room
        if self._held and not busy:
            for connection in self._held:
                self.mark(connection)
            self._held.clear()

    def is_busy(self, interface: int) -> bool:
        return self.interfaces[interface].is_busy

    def has_room(self, interface: int) -> bool:
        return self.interfaces[interface].room > 0 and not self.interfaces[interface].is_busy

    def use_room(self, interface: int, length: int) -> None:
        self.interfaces[interface].room -= length

    def hold(self, connection: Connection) -> None:
        self._held[connection] = None

    def add_address(self, address: str, interface: int, now: int, hidden: bool = False) -> None:
        """Packets to ``address`` are ours from now on, and connections may use it. A hidden one is neither announced
        nor used unless an application names it."""
        self.now = now
        packed = Endpoint.parse(address).address
        self._addresses[packed] = interface
        if hidden:
            self._hidden.add(packed)
        else:
            self._hidden.discard(packed)
        self._tell_connections(packed, True, now)

    def remove_address(self, address: str, now: int) -> None:
        self.now = now
        packed = Endpoint.parse(address).address
        if packed not in self._addresses:
            raise PathError(f"{address} is not an address of this host")
        self._tell_connections(packed, False, now)
        del self._addresses[packed]
        self._hidden.discard(packed)

    def _break_pinned(self, interface: int) -> None:
        """Subflows that were to leave by this interface although their address is on another."""
        for connection in list(self.connections):
            for subflow in connection.open_subflows():
                if subflow.pinned and subflow.interface == interface:
                    subflow.close_reason = "interface-down"
                    connection.break_subflow(subflow, None)

    def _tell_connections(self, address: bytes, available: bool, now: int, interface_down: bool = False) -> None:
        for connection in list(self.connections):
            if not connection.is_multipath:
                continue
            connection.paths.local_address(address, available, now, interface_down)

    # --- what connections need (Environment) --------------------------------------------------------------------------
    def mark(self, connection: Connection) -> None:
        if not connection.marked:
            connection.marked = True
            self._marked.append(connection)
            self._ready[connection] = None

    def new_key(self, version: int) -> int:
        if self.cookie is not None:
            return self.cookie.key
        return keys.new_key(self.entropy, self._tokens, version)

    def register_token(self, token: int, connection: Connection) -> None:
        self._tokens[token] = connection

    def is_token_taken(self, token: int) -> bool:
        return token in self._tokens

    def release_token(self, token: int) -> None:
        self._tokens.pop(token, None)

    def register(self, subflow: Subflow) -> None:
        local, remote = subflow.tcp.local, subflow.tcp.remote
        self._flows[flow_key(remote, local)] = subflow
        self._port_users[local.port] = self._port_users.get(local.port, 0) + 1
        is_local = remote.address in self._addresses and not subflow.segments
        subflow.emission = Emission(local, remote, subflow.interface, is_local, subflow.segments)

    def release(self, subflow: Subflow) -> None:
        local, remote = subflow.tcp.local, subflow.tcp.remote
        if self._flows.pop(flow_key(remote, local), None) is not None:
            users = self._port_users[local.port] - 1
            if users:
                self._port_users[local.port] = users
            else:
                del self._port_users[local.port]

    def route(self, local: bytes, interface: int = -1) -> Route | None:
        index = self._addresses.get(local)
        if index is not None and interface >= 0:
            index = interface if interface < len(self.interfaces) else None
        if index is None or not self.interfaces[index].is_up:
            return None
        facts = self.interfaces[index]
        return Route(index, facts.mtu, facts.gso_max_bytes)

    def local_addresses(self) -> Sequence[bytes]:
        hidden = self._hidden
        return [a for a, i in self._addresses.items() if self.interfaces[i].is_up and a not in hidden]

    def interface_of(self, address: bytes) -> int:
        return self._addresses.get(address, -1)

    def new_port(self, local: bytes, remote: Endpoint, preferred: int = 0) -> int:
        if preferred and flow_key(remote, Endpoint(local, preferred)) not in self._flows:
            return preferred
        span = LAST_EPHEMERAL - FIRST_EPHEMERAL + 1
        listening = {number for _, number in self.listeners}
        for _ in range(span):
            port = self._next_port
            self._next_port = FIRST_EPHEMERAL + (port + 1 - FIRST_EPHEMERAL) % span
            # RFC 8684 §3.9.1: "an implementation SHOULD reserve ephemeral ports across all local IP addresses"
            if port not in self._port_users and port not in listening:
                return port
        for port in range(FIRST_EPHEMERAL, LAST_EPHEMERAL + 1):  # all in use: the same port to another peer will do
            if flow_key(remote, Endpoint(local, port)) not in self._flows and port not in listening:
                return port
        return 0

    def new_isn(self, local: Endpoint, remote: Endpoint, now: int) -> int:
        if self.cookie is not None:
            return self.cookie.isn
        return self._isns.number(local, remote, now)

    def mptcp_failed(self, connection: Connection, now: int) -> None:
        self.failures.failed(connection.remote.address, self._addresses.get(connection.local.address, -1), now)

    def mptcp_worked(self, connection: Connection) -> None:
        self.failures.worked(connection.remote.address, self._addresses.get(connection.local.address, -1))

    # --- verbs ----------------------------------------------------------------------------------------------------------
    def connect(
        self, remote: Endpoint, now: int, *, local: Endpoint | None = None, options: ConnectionConfig | None = None
    ) -> Connection:
        """Opens a connection. NetworkUnreachable if no local address fits, PathError for an unusable ``local``."""
        self.now = now
        config = options or self.config.connection
        source = local.address if local is not None and not local.is_unspecified else None
        port = local.port if local is not None else 0
        if source is None:
            policy = None
            if config.multipath and (config.local_addresses is not None or config.excluded_addresses):
                policy = LocalAddresses(config.local_addresses, config.excluded_addresses)
            usable = self.local_addresses() if policy is None else policy.usable(self)
            candidates = [a for a in usable if len(a) == len(remote.address)]
            if not candidates:
                if policy is not None:
                    raise PathError(f"no address that may be used can reach {remote.host}", errno.EADDRNOTAVAIL)
                raise NetworkUnreachable(f"this host has no address from which {remote.host} could be reached")
            source = candidates[0]
            if policy is not None and not port:
                port = policy.port(source)
        elif self.route(source) is None:
            raise PathError(f"{Endpoint(source).host} is not a usable address of this host", errno.EADDRNOTAVAIL)
        if port and flow_key(remote, Endpoint(source, port)) in self._flows:
            raise PathError(f"port {port} is already connected to {remote}", errno.EADDRINUSE)
        port = port or self.new_port(source, remote)
        if not port:
            raise PathError("no local port is free", errno.EADDRNOTAVAIL)
        learned = config.multipath and self.failures.should_avoid(remote.address, self._addresses[source], now)
        if learned:
            config = config.changed(multipath=False)
        connection = opening.connect(self, config, Endpoint(source, port), remote, now)
        if learned:
            connection.note_learned()
        elif config.multipath and config.race_plain_us < NEVER and (local is None or not local.port):
            connection.race_at = now + config.race_plain_us
        self.connections[connection] = None
        return connection

    def listen(
        self, local: Endpoint, now: int, *, backlog: int = 128, options: ConnectionConfig | None = None
    ) -> Listener:
        """Port 0 chooses one; an unspecified address means all of its family. PathError if that is taken."""
        self.now = now
        if not local.is_unspecified and self.route(local.address) is None:
            raise PathError(f"{local.host} is not a usable address of this host", errno.EADDRNOTAVAIL)
        port = local.port or self.new_port(local.address, Endpoint(bytes(len(local.address)), 0))
        for address, other in self.listeners:
            same_family = len(address) == len(local.address)
            if other == port and same_family and (address == local.address or not any(address) or local.is_unspecified):
                raise PathError(f"port {port} is already listened on", errno.EADDRINUSE)
        listener = Listener(Endpoint(local.address, port), backlog, options or self.config.connection)
        self.listeners[local.address, port] = listener
        return listener

    def close_listener(self, listener: Listener, now: int) -> None:
        self.now = now
        self.listeners.pop((listener.local.address, listener.local.port), None)
        listener.close(now)

    # --- what comes in --------------------------------------------------------------------------------------------------
    def handle_packet(
        self, interface: int, data: memoryview, now: int, gso_size: int = 0, checksum_valid: bool = False
    ) -> None:
        """One IP packet. Never raises for what is in it."""
        self.now = now
        size = len(data)
        if (
            size >= 40 and data[0] == 0x45 and data[9] == 6 and not (data[6] & 0x3F or data[7])
            and (end := data[2] << 8 | data[3]) <= size and int.from_bytes(data[:20], "big") % 65535 == 0
        ):  # fmt: skip
            # The ordinary case: IPv4 without options, not a fragment.
            offset = 20
            flow = bytes(data[12:24])
            source = flow[:4]
            destination = flow[4:8]
            ecn = data[1] & 3
        else:
            header = ip.parse(data)
            if header is None:
                self.counters.bump("ip_malformed")
                return
            source, destination = header.source, header.destination
            offset, end, ecn = header.transport_offset, header.end, header.ecn
            if header.is_fragment:
                self.counters.bump("ip_fragment")
                return
            if header.segments_left:
                self.counters.bump("ip_segments_left")
                return
            if header.protocol != ip.TCP:
                self._handle_other(data, header, checksum_valid, now)
                return
            if end - offset < 20:
                self.counters.bump("tcp_malformed")
                return
            flow = source + destination + bytes(data[offset : offset + 4])
        subflow = self._flows.get(flow)
        if subflow is None and destination not in self._addresses:
            self.counters.bump("ip_not_ours")
            return
        if not checksum_valid and not checksum.verify_tcp(
            data, offset, end, checksum.pseudo_sum(source, destination, 6)
        ):
            self.counters.bump("tcp_bad_checksum")
            return
        segment = tcp_wire.parse(data, offset, end)
        if segment is None:
            self.counters.bump("tcp_malformed")
            return
        segment.ecn = ecn
        segment.mss = gso_size
        if subflow is not None:
            tcp = subflow.tcp
            if tcp.is_over and segment.flags & (SYN | ACK | RST) == SYN and self._reuse(subflow, segment, now):
                self._handle_new(flow, source, destination, segment, now)
                return
            connection = subflow.connection
            tcp.handle_segment(segment, now)
            if not connection.marked:
                self.mark(connection)
            return
        self._handle_new(flow, source, destination, segment, now)

    def _reuse(self, subflow: Subflow, syn: Segment, now: int) -> bool:
        """A SYN may end TIME-WAIT, or take the place of what is CLOSED (``time_wait``)."""
        if not may_be_replaced(subflow.tcp, syn):
            return False
        self.counters.bump("time_wait_reused")
        subflow.connection.drop(subflow)
        return True

    def _handle_new(self, flow: bytes, source: bytes, destination: bytes, segment: Segment, now: int) -> None:
        """A segment for no subflow there is."""
        if self.route(destination) is None:
            self.counters.bump("interface_down")  # a packet for an address of ours that cannot be used now
            return
        ports = flow[-4:]
        remote = Endpoint(source, ports[0] << 8 | ports[1])
        local = Endpoint(destination, ports[2] << 8 | ports[3])
        kind = segment.flags & (SYN | ACK | RST)
        if kind == SYN and remote.port and local.port:
            for option in segment.options.mptcp:
                if isinstance(option, MpJoinSyn):
                    self._handle_join(local, remote, segment, option, now)
                    return
        listener = None
        if kind in (SYN, ACK) and remote.port and local.port:
            anywhere = self.listeners.get((bytes(len(destination)), local.port))
            listener = self.listeners.get((destination, local.port), anywhere)
        if listener is not None and not listener.is_closed:
            if kind == SYN:
                self._handle_syn(listener, local, remote, segment, now)
                return
            cookie = cookie_opening.check(self, listener, local, remote, segment, now)
            if cookie is not None:
                if not self._is_full(listener) and not cookie_opening.lacks_key(self, segment):
                    connection = self._take(listener, cookie_opening.accept(self, listener, cookie, local, remote, now))
                    cookie_opening.establish(connection, segment, now)
                return
            if cookie_opening.is_early(self, listener, local, remote, segment, now):
                return
        self.counters.bump("no_connection")
        self._reply_reset(local, remote, segment, NO_OPTIONS)

    def _handle_syn(self, listener: Listener, local: Endpoint, remote: Endpoint, syn: Segment, now: int) -> None:
        if self._is_full(listener):
            return
        if opening.must_ignore(syn):
            self.counters.bump("syn_extensible_ignored")
            return
        if not (listener.is_crowded or cookie_opening.is_ambiguous(listener, now)):
            self._take(listener, cookie_opening.accept_syn(self, listener, local, remote, syn, now))
            return
        for answer, config in cookie_opening.answer(self, listener, local, remote, syn, now):
            self._reply(local, remote, answer, config.hop_limit, config.traffic_class)

    def _is_full(self, listener: Listener) -> bool:
        if not listener.is_full and len(self.connections) < self.config.max_connections:
            return False
        # RFC 9293 §3.10.7.2 allows to drop it: the peer tries again, and by then there may be room
        listener.overflows += 1
        self.counters.bump("listen_overflow")
        return True

    def _take(self, listener: Listener, connection: Connection) -> Connection:
        """One that began with a SYN to ``listener``."""
        connection.owner = listener
        self.connections[connection] = None
        listener.half_open[connection] = None
        return connection

    def forget(self, connection: Connection) -> None:
        for subflow in connection.subflows_by_id.values():
            self.release(subflow)
        self.release_token(connection.token)
        self._marked.remove(connection)
        self._ready.pop(connection, None)

    def _handle_join(self, local: Endpoint, remote: Endpoint, segment: Segment, join: MpJoinSyn, now: int) -> None:
        # RFC 8684 §3.2: "Demultiplexing subflow SYNs MUST be done using the token; this is unlike traditional TCP"
        connection = self._tokens.get(join.token)
        if connection is None:
            # "If the token is unknown ... the receiver will send back a reset (RST) signal ... containing an MP_TCPRST
            # option (Section 3.6) with an "MPTCP specific error" reason code."
            self.counters.bump("join_unknown_token")
            refusal: MpTcprst | None = MpTcprst(RST_MPTCP_SPECIFIC)
        else:
            refusal = joining.accept_join(connection, local, remote, segment, join, now)
        if refusal is not None:
            self.counters.bump("join_refused")
            self._reply_reset(local, remote, segment, Options(mptcp=(refusal,)))

    def _handle_other(self, data: memoryview, header: ip.IpHeader, checksum_valid: bool, now: int) -> None:
        if header.protocol not in (ip.ICMP, ip.ICMPV6):
            self.counters.bump("ip_other_protocol")
            return
        error = icmp.parse(data, header)
        if error is None:
            self.counters.bump("icmp_ignored")
            return
        # It quotes a packet of ours: source and destination are those of our packet.
        subflow = self._flows.get(
            flow_key(Endpoint(error.destination, error.destination_port), Endpoint(error.source, error.source_port))
        )
        if subflow is None:
            self.counters.bump("icmp_unrelated")
            return
        subflow.tcp.handle_icmp(error, now)
        self.mark(subflow.connection)

    def _reply_reset(self, local: Endpoint, remote: Endpoint, segment: Segment, options: Options) -> None:
        reset = reset_for(segment, options)
        if reset is not None:
            self._reply(local, remote, reset, 64, 0)

    def _reply(self, local: Endpoint, remote: Endpoint, answer: Segment, hop_limit: int, traffic_class: int) -> None:
        """A segment of no connection."""
        if len(self._replies) >= MAX_REPLIES:
            self.counters.bump("reply_dropped")
            return
        index = self._addresses.get(local.address, -1)
        packet = self._emit(Emission(local, remote, index), answer, hop_limit, traffic_class)
        if remote.address in self._addresses:
            self._deliver_later(index, packet)
        elif index >= 0:
            self._replies.append((index, packet))

    # --- time -----------------------------------------------------------------------------------------------------------
    def poll_deadline(self) -> int:
        """When ``handle_timeout`` is to be called; NEVER."""
        timers = self._timers
        while timers:
            when, _, connection = timers[0]
            if connection.armed_us == when:
                return when
            heapq.heappop(timers)
        return NEVER

    def handle_timeout(self, now: int) -> None:
        """Whatever was to happen by ``now``."""
        self.now = now
        timers = self._timers
        while timers and timers[0][0] <= now:
            when, _, connection = heapq.heappop(timers)
            if connection.armed_us != when:
                continue
            connection.armed_us = NEVER
            if connection.poll_deadline() <= now:
                connection.handle_timeout(now)
            self.mark(connection)

    def _arm(self, connection: Connection) -> None:
        # A deadline that moves later, as at every acknowledgement, costs nothing: the timer looks again when it fires.
        deadline = connection.poll_deadline()
        if deadline < connection.armed_us:
            connection.armed_us = deadline
            self._timer_count += 1
            heapq.heappush(self._timers, (deadline, self._timer_count, connection))

    # --- what goes out --------------------------------------------------------------------------------------------------
    def poll_packets(self, now: int) -> list[tuple[int, Packet]]:
        """(interface, packet), in order: everything that may be sent now."""
        self.now = now
        out, self._replies = self._replies, []
        emit = self._emit
        while self._marked or self._local:
            marked, self._marked = self._marked, []
            for connection in marked:
                connection.marked = False
                for subflow, segment in connection.poll_segments(now):
                    emission = subflow.emission
                    assert isinstance(emission, Emission)
                    config = subflow.tcp.config
                    packet = emit(emission, segment, config.hop_limit, config.traffic_class)
                    if emission.is_local:
                        self._deliver_later(emission.interface, packet)
                    else:
                        out.append((emission.interface, packet))
                self._settle(connection)
            if self._local:
                packets, self._local = self._local, []
                for interface, data, gso_size in packets:
                    self.handle_packet(interface, data, now, gso_size, True)
        return out

    def _deliver_later(self, interface: int, packet: Packet) -> None:
        """A packet of this host to itself: it comes in once the round of sending is over."""
        if len(self._local) >= MAX_LOCAL_PACKETS:
            self.counters.bump("local_packet_dropped")  # as a full queue would
            return
        self._local.append((interface, memoryview(bytes(packet)), packet.gso_size))

    def _settle(self, connection: Connection) -> None:
        owner = connection.owner
        if isinstance(owner, Listener):
            if owner.promote(connection):
                connection.owner = None
                self._ready[owner] = None
            elif connection not in owner.half_open:
                connection.owner = None
        if connection.is_finished:
            self.connections.pop(connection, None)
            connection.armed_us = NEVER
            return
        self._arm(connection)

    def poll_ready(self) -> list[Connection | Listener]:
        """Those whose state, readability, writability or events may have changed since the last call.

        It may be asked before ``poll_packets`` as well: what has been read by then needs no window update of its own.
        """
        if not self._ready:
            return []
        ready, self._ready = self._ready, {}
        return list(ready)

    def _emit(self, emission: Emission, segment: Segment, hop_limit: int, traffic_class: int) -> Packet:
        header = tcp_wire.emit(segment, emission.source_port, emission.destination_port, emission.pseudo, partial=True)
        length = segment.length
        transport = len(header) + length
        if segment.ecn:
            traffic_class = traffic_class & 0xFC | segment.ecn
        if emission.is_v6:
            ip_header = ip.emit_ipv6(
                emission.source, emission.destination, transport, hop_limit=hop_limit, traffic_class=traffic_class,
                segments=emission.segments,
            )  # fmt: skip
        else:
            self._identification = (self._identification + 1) & 0xFFFF
            ip_header = ip.emit_ipv4(
                emission.source, emission.destination, transport, identification=self._identification,
                hop_limit=hop_limit, traffic_class=traffic_class,
            )  # fmt: skip
        offset = len(ip_header)
        mss = segment.mss
        return Packet(
            ip_header + header, segment.payloads, offset + transport, offset, mss if 0 < mss < length else 0, True
        )
