"""UDP: the stack's IP packets inside datagrams, between two of our stacks, over any network, by an ordinary user.

**Addresses.** Each link is one UDP socket on one address of this machine, and has one virtual IPv6 address of its own
below fd6d:7074:6370::/48: the node's random number, then the socket's. All links of a stack share a ``UdpNode``. To the
stack above a peer looks like a host with one address per UDP socket, whatever NATs lie between, and those addresses stay
the same when endpoints change. Sockets above are therefore AF_INET6; what carries them may be IPv4 or IPv6.

**Frames** are described in ``udp_frames``, how paths begin, move and end in ``udp_paths``, the path MTU in
``udp_path``. What is sent to an endpoint that is not confirmed is never longer than what came from it.

**Not a VPN.** Nothing is encrypted, and whoever can read the datagrams can forge them: as with TCP. Use TLS above. Those
who cannot read them have to guess 32 bits for a frame that is looked at, and 128 to pull a path elsewhere.

**ECN** is not carried from outer to inner headers or back (RFC 6040 §4.1: "compatibility mode").
"""

from __future__ import annotations

import errno
import select
from collections.abc import Sequence
from struct import Struct
from typing import Final

from mptcp.core.packet import Packet
from mptcp.core.units import NEVER, SECOND
from mptcp.core.wire import icmp
from mptcp.core.wire.icmp import IcmpKind
from mptcp.core.wire.offload import coalesce, split
from mptcp.core.wire.segment import Payload
from mptcp.errors import ConfigurationError
from mptcp.info import Endpoint
from mptcp.links import _addresses, _netdev
from mptcp.links import udp_frames as frames
from mptcp.links.base import Link, ReceivedPacket
from mptcp.links.udp_merge import merge
from mptcp.links.udp_node import UdpNode
from mptcp.links.udp_path import Path
from mptcp.links.udp_paths import KEEPALIVE_US, Paths
from mptcp.links.udp_socket import (
    DISCOVER,
    MAX_DATAGRAM,
    MAX_SEGMENTS,
    MAY_FRAGMENT,
    RECEIVE_BATCH,
    SLOT_BYTES,
    DatagramSocket,
    Timer,
    can_bind,
    endpoint_of,
)

#: The largest TCP payload of a super-segment: 65,535 less a TCP header with all options.
GSO_MAX_BYTES: Final = 65_475
#: Socket buffers asked of the kernel, which gives ordinary users no more than net.core.rmem_max and wmem_max.
BUFFER_BYTES: Final = 4 * 1024 * 1024
#: The MTU of a link that is bound to no address in particular: of Ethernet.
DEFAULT_MTU: Final = 1500
#: Buffers one sendmsg takes (IOV_MAX); a packet of more views is joined.
IOV_MAX: Final = 1024
#: Packets of this length are large enough as they are.
COALESCE_BELOW: Final = 9000
#: Calls of recvmmsg in one ``receive``.
MAX_BATCHES: Final = 16
#: ICMP errors of the link's own that wait for the stack to read them.
MAX_INJECTED: Final = 256
#: How often a link whose address is gone tries to go on from another one.
ROAM_US: Final = 1 * SECOND

_HEAD: Final = frames.HEADER
_FIRST: Final = frames.MAGIC << 8 | frames.VERSION << 4
_KIND = Struct("!H")
#: What sending says when our own address or the way out is gone, rather than the peer.
_GONE: Final = (errno.EINVAL, errno.EADDRNOTAVAIL, errno.ENETUNREACH, errno.ENETDOWN, errno.ENODEV, errno.ENXIO)


class UdpLink(Link):
    """One UDP socket, on ``local`` ("192.0.2.1", "2001:db8::1"; "0.0.0.0" or "::": whichever the system chooses).

    ``port`` 0: any; a server needs one that its clients know. ``mtu``: of inner packets; 0: what the interface
    carries. ``device`` ties the socket to an interface: the way a host with several networks and no policy routing
    uses each of them (no privilege needed since Linux 5.7). ``offload`` False does without UDP_SEGMENT and UDP_GRO.
    ``roam``: when the machine has lost the address, the link goes on from whichever it has.

    OSError as of ``bind``; ConfigurationError for an address or MTU that cannot work. Other nodes are found by
    ``node.introduce``, or ``UdpStack.reach``.
    """

    __slots__ = (
        "_backlog", "_blocked", "_epoll", "_injected", "_options", "_paths", "_roamed_us", "_sock", "_timer", "_timer_at", "_watch",
        "counters", "gso_max_bytes", "mtu", "name", "node", "roam",
    )  # fmt: skip

    def __init__(
        self,
        local: str = "0.0.0.0",
        port: int = 0,
        *,
        node: UdpNode | None = None,
        name: str = "",
        mtu: int = 0,
        device: str = "",
        offload: bool = True,
        roam: bool = True,
        keepalive_us: int = KEEPALIVE_US,
        buffer_bytes: int = BUFFER_BYTES,
    ) -> None:
        try:
            endpoint = Endpoint.parse(local, port)
        except ValueError:
            raise ConfigurationError(f"{local!r} is no address to open a UDP socket on") from None
        if mtu and not frames.BASE_MTU <= mtu <= MAX_DATAGRAM - frames.HEADER_BYTES:
            raise ConfigurationError(
                f"an MTU of {mtu} cannot be carried by UDP: {frames.BASE_MTU} to {MAX_DATAGRAM - frames.HEADER_BYTES}"
            )
        self.node = node or UdpNode()
        self.counters = self.node.counters
        self.roam = roam
        self._options = (device, buffer_bytes, offload)
        self._backlog: list[tuple[Path, list[Payload | bytearray], int]] = []
        self._injected: list[bytes] = []
        self._blocked = False
        self._roamed_us = -ROAM_US
        device_mtu = self._device_mtu(endpoint)
        self._sock = DatagramSocket(endpoint, device=device, buffer_bytes=buffer_bytes, offload=offload)
        self._epoll = select.epoll()
        self._timer = Timer()
        self._timer_at = NEVER
        self._epoll.register(self._sock.fileno(), select.EPOLLIN)
        self._epoll.register(self._timer.fileno(), select.EPOLLIN)
        self._watch = _addresses.AddressWatch()
        if self._watch.fileno() >= 0:
            self._epoll.register(self._watch.fileno(), select.EPOLLIN)
        outer = 48 if self._sock.is_v6 else 28
        self.mtu = mtu or max(min(device_mtu - outer, MAX_DATAGRAM) - frames.HEADER_BYTES, frames.BASE_MTU)
        self.gso_max_bytes = GSO_MAX_BYTES
        self._paths = Paths(self.node, self._sock.local, self._measure, wake=self._wake, keepalive_us=keepalive_us)
        self.name = name or f"udp{self._paths.number}"

    @staticmethod
    def _device_mtu(local: Endpoint) -> int:
        if local.is_unspecified:
            return DEFAULT_MTU
        try:
            return _netdev.mtu(_addresses.interface_of(local.host))
        except OSError:  # a system that does not show its interfaces to everybody
            return DEFAULT_MTU

    # --- what the layers above may want to know -----------------------------------------------------------------------
    @property
    def address(self) -> str:
        """The virtual address that the stack has on this link."""
        return Endpoint(self._paths.address).host

    @property
    def addresses(self) -> list[str]:
        return [self.address]

    @property
    def local(self) -> Endpoint:
        """Where the UDP socket is bound."""
        return self._paths.local

    @property
    def has_gso(self) -> bool:
        """Whether the kernel cuts super-datagrams for us."""
        return self._sock.has_gso

    def paths(self) -> list[tuple[str, Endpoint, int, int]]:
        """(the peer's virtual address, its UDP endpoint, MTU of inner packets, smoothed round-trip time in
        microseconds, 0: unknown) of every path."""
        with self.node.lock:
            return [
                (Endpoint(p.address).host, endpoint_of(p.where), p.mtu, p.srtt_us)
                for p in self._paths.by_address.values()
            ]

    def has_path(self, address: bytes) -> bool:
        """Whether there is a confirmed path to that virtual address (packed)."""
        return address in self._paths.by_address

    def endpoint(self, address: bytes) -> Endpoint | None:
        """The UDP endpoint behind that virtual address (packed), as far as this link knows."""
        path = self._paths.by_address.get(address)
        return endpoint_of(path.where) if path is not None else None

    def _measure(self, where: bytes) -> int:
        """The longest inner packet that the system believes to fit there; 0: it knows no way."""
        outer = self._sock.path_mtu(where)
        if not outer:
            return 0
        return min(self.mtu, min(outer - (48 if self._sock.is_v6 else 28), MAX_DATAGRAM) - frames.HEADER_BYTES)

    # --- what comes in ------------------------------------------------------------------------------------------------
    def fileno(self) -> int:
        return self._epoll.fileno()

    def receive(self, limit: int = 64) -> list[ReceivedPacket]:
        now = self.node.clock()
        received: list[ReceivedPacket] = []
        if now >= self._timer_at:
            self._handle_timer(now)
        if self._injected:
            received += [(memoryview(packet), 0, False) for packet in self._injected]
            self._injected.clear()
        if self._blocked:
            self._unblock(now)
        busy = False
        quiet = True
        for _ in range(MAX_BATCHES):  # a flood of frames that are no packets must not keep us here for ever
            if len(received) >= limit:
                break
            try:
                batch = self._sock.receive()
            except OSError as error:
                # ECONNREFUSED and the like: ICMP about something we sent. TCP finds out by itself.
                self.counters.bump(f"udp_receive_{errno.errorcode.get(error.errno or 0, 'error').lower()}")
                break
            quiet &= not batch
            for data, size, where in batch:
                busy |= self._take(data, size, where, now, received)
            if len(batch) < RECEIVE_BATCH:
                break
        if quiet and self._watch.changed():
            # It was not a datagram that made us readable. While datagrams come our address is well.
            busy |= self._heed_addresses(now)
        if busy:
            with self.node.lock:
                self._serve(now)
        if len(received) > 2 and len(received[0][0]) < COALESCE_BELOW:
            # What the kernel has not put together, because it cannot or because the sender's has not cut it.
            return coalesce(received)
        return received

    def _take(self, data: memoryview, size: int, where: bytes, now: int, received: list[ReceivedPacket]) -> bool:
        """The frames of one buffer. True: the paths have something to send, perhaps."""
        by_tag = self._paths.by_tag
        total = len(data)
        at = 0
        busy = False
        while at < total:
            end = min(at + size, total)
            length = end - at
            if length < frames.HEADER_BYTES:
                self.counters.bump("udp_malformed")
                break
            magic, version_kind, flags, tag = _HEAD.unpack_from(data, at)
            if magic != frames.MAGIC or version_kind >> 4 != frames.VERSION:
                self.counters.bump("udp_other_protocol")  # not ours, or of another version
                at = end
                continue
            if version_kind & 15:
                with self.node.lock:
                    self._paths.handle_frame(version_kind & 15, tag, data[at:end], where, now)
                busy = True
                at = end
                continue
            path = by_tag.get(tag)
            if path is None or path.where != where:
                busy = True
                with self.node.lock:
                    if path is None:
                        self._paths.handle_unknown_tag(tag, where, length, now)
                        at = end
                        continue
                    self._paths.handle_stray(path, where, length, now)
            else:
                path.heard_us = now
            # A peer may send from its own address only, whatever it may have.
            if length < frames.HEADER_BYTES + 40 or data[at + 8] >> 4 != 6 or data[at + 16 : at + 32] != path.address:
                self.counters.bump("udp_not_its_address")
                at = end
                continue
            if flags & frames.PARTIAL_CHECKSUM:
                packet, gso_size, at = merge(data, size, at)
                received.append((packet, gso_size, True))
            else:
                received.append((memoryview(bytes(data[at + frames.HEADER_BYTES : end])), 0, False))
                at = end
        return busy

    # --- what goes out ------------------------------------------------------------------------------------------------
    def send(self, packets: Sequence[Packet]) -> int:
        now = self.node.clock()
        if self._blocked and not self._unblock(now):
            return 0
        by_address = self._paths.by_address
        taken = 0
        missing = False
        for packet in packets:
            header = packet.header
            if header[0] >> 4 != 6:
                self.counters.bump("udp_send_not_ipv6")  # virtual addresses are IPv6
                taken += 1
                continue
            path = by_address.get(bytes(header[24:40]))
            if path is None:
                missing = True
                with self.node.lock:
                    self._paths.want(packet, now)
            elif not self._transmit(path, packet, now):
                break
            taken += 1
        self._flush(now)
        if missing:
            with self.node.lock:
                self._serve(now)
        return taken

    def _transmit(self, path: Path, packet: Packet, now: int) -> bool:
        """False: the socket is full and has taken nothing of it."""
        header, gso_size = packet.header, packet.gso_size
        if (len(header) + gso_size if gso_size else packet.length) > path.mtu:
            self._too_big(bytes(header), path.mtu)
            return True
        path.sent_us = now
        lead = path.partial_header if packet.checksum_partial else path.header
        if gso_size:
            return self._transmit_pieces(path, packet, lead, now)
        length = frames.HEADER_BYTES + packet.length
        payloads = packet.payloads
        if len(payloads) > IOV_MAX - 2:
            payloads = (b"".join(payloads),)
        return self._send_datagram(path, [lead, header, *payloads], length, now)

    def _send_datagram(self, path: Path, parts: list[Payload | bytearray], length: int, now: int) -> bool:
        sock = self._sock
        if path.is_fragmented:
            if not self._flush(now):
                return False
            sock.set_mode(MAY_FRAGMENT)
            try:
                return self._send_parts(path, parts, 0, now)
            finally:
                sock.set_mode(DISCOVER)
        if length <= SLOT_BYTES:
            if sock.queue(path.where, parts, length):
                return True
            if not self._flush(now):
                return False
            if sock.queue(path.where, parts, length):
                return True
        elif sock.queued and not self._flush(now):
            return False
        return self._send_parts(path, parts, 0, now)

    def _transmit_pieces(self, path: Path, packet: Packet, lead: bytes, now: int) -> bool:
        """A super-segment, in as few system calls as it takes."""
        pieces = split(packet)
        sock = self._sock
        size = frames.HEADER_BYTES + len(packet.header) + packet.gso_size
        if sock.queued and not self._flush(now):
            return False
        if sock.has_gso and not path.is_fragmented:
            count = max(1, min(MAX_SEGMENTS, MAX_DATAGRAM // size))
        else:
            count = 1
        for start in range(0, len(pieces), count):
            parts: list[Payload | bytearray] = []
            chunk = pieces[start : start + count]
            for header, part in chunk:
                parts += (lead + header, part)
            if count == 1:
                done = self._send_datagram(path, parts, sum(map(len, parts)), now)
            else:
                done = self._send_parts(path, parts, size, now)
            if not done:
                if not start:
                    return False
                # It has been taken as a whole: what is left of it waits here.
                self._backlog.append((path, parts, size if count > 1 else 0))
                for later in range(start + count, len(pieces), count):
                    parts = []
                    for header, part in pieces[later : later + count]:
                        parts += (lead + header, part)
                    self._backlog.append((path, parts, size if count > 1 else 0))
                return True
        return True

    def _send_parts(self, path: Path, parts: list[Payload | bytearray], segment_bytes: int, now: int) -> bool:
        """One system call. False: the socket is full; an error drops the datagrams and is counted."""
        try:
            self._sock.send(path.where, parts, segment_bytes)
        except OSError as error:
            if error.errno == errno.EAGAIN:
                self._block()
                return False
            if segment_bytes and error.errno in (errno.EIO, errno.EINVAL, errno.EOPNOTSUPP) and can_bind(self.local):
                # The device or the kernel cannot cut datagrams: from now on each goes by itself.
                self.counters.bump("udp_gso_refused")
                self._sock.has_gso = False
                for i in range(0, len(parts), 2):
                    if not self._send_parts(path, parts[i : i + 2], 0, now):
                        self._backlog += [(path, parts[j : j + 2], 0) for j in range(i, len(parts), 2)]
                        break
                return True
            first = b"".join(bytes(part[:128]) for part in parts[:2])
            length = segment_bytes or sum(map(len, parts))
            self._failed(error, path.where, length, first[frames.HEADER_BYTES :], now)
        return True

    def _flush(self, now: int) -> bool:
        """What is queued goes out; False: the socket is full."""
        while self._sock.queued:
            sock = self._sock  # another one after an error that made the link move
            try:
                sock.flush()
            except OSError as error:
                if error.errno == errno.EAGAIN:
                    self._block()
                    return False
                where, length, first = sock.skip()
                self._failed(error, where, length, first[frames.HEADER_BYTES :], now)
        return True

    def _failed(self, error: OSError, where: bytes, length: int, inner: bytes, now: int) -> None:
        """A datagram was refused; ``inner``: the first octets of the packet in it."""
        # By errno; the datagram is lost.
        self.counters.bump(f"udp_send_{errno.errorcode.get(error.errno or 0, 'error').lower()}")
        if error.errno == errno.EMSGSIZE:
            with self.node.lock:
                path = self._paths.handle_too_long(where, length, now)
            if path is not None:
                self._too_big(inner, path.mtu)
        elif error.errno in _GONE and self._roam(now):
            return
        elif error.errno not in (errno.ENOBUFS, errno.ENOMEM):
            self._inject(IcmpKind.HOST_UNREACHABLE, inner)

    def _block(self) -> None:
        if not self._blocked:
            self._blocked = True
            self._epoll.modify(self._sock.fileno(), select.EPOLLIN | select.EPOLLOUT)

    def _unblock(self, now: int) -> bool:
        """Tries what the socket has not taken; whether it has now."""
        self._blocked = False
        backlog, self._backlog = self._backlog, []
        if self._flush(now):
            for i, (path, parts, segment_bytes) in enumerate(backlog):
                if not self._send_parts(path, parts, segment_bytes, now):
                    self._backlog = backlog[i:] + self._backlog
                    break
        else:
            self._backlog = backlog
        if not self._blocked:
            self._epoll.modify(self._sock.fileno(), select.EPOLLIN)
        return not self._blocked

    # --- errors that routers would tell -------------------------------------------------------------------------------
    def _too_big(self, packet: bytes, mtu: int) -> None:
        """The path is narrower than the link: the stack hears of it as from any router."""
        self.counters.bump("udp_too_big")  # a packet was longer than its path's MTU: the stack was told
        self._inject(IcmpKind.PACKET_TOO_BIG, packet, mtu)

    def _inject(self, kind: IcmpKind, packet: bytes, mtu: int = 0) -> None:
        if len(packet) < 60 or packet[0] >> 4 != 6 or len(self._injected) >= MAX_INJECTED:
            return
        self._injected.append(icmp.emit(kind, packet, self._paths.address, mtu=mtu))
        self._wake()

    # --- time, and what the paths want --------------------------------------------------------------------------------
    def _wake(self) -> None:
        """``receive`` is wanted soon. Needs no lock."""
        self._timer_at = 0
        self._timer.set(0)

    def _handle_timer(self, now: int) -> None:
        with self.node.lock:
            self._timer.clear()
            self._timer_at = NEVER
            if self._paths.deadline <= now:
                self._paths.handle_timeout(now)
            self._serve(now)

    def _serve(self, now: int) -> None:
        """With the node's lock: sends what the paths want sent."""
        paths, sock = self._paths, self._sock
        for packet in paths.poll_released():
            path = paths.by_address.get(bytes(packet.header[24:40]))
            if path is not None and not self._transmit(path, packet, now):
                self.counters.bump("udp_send_queue_full")  # a packet that had waited for its path met a full socket
        self._flush(now)
        for where, datagram, mode in paths.poll_frames():
            try:
                sock.set_mode(mode)
                sock.send(where, [datagram])
            except OSError as error:
                # Lost, as on the way: whoever wants an answer asks again.
                self.counters.bump(f"udp_control_{errno.errorcode.get(error.errno or 0, 'error').lower()}")
                if error.errno in _GONE and self._roam(now):
                    sock = self._sock
        sock.set_mode(DISCOVER)
        for packet in paths.poll_unreachable():
            self.counters.bump("udp_unreachable")  # no path to that virtual address could be found
            self._inject(IcmpKind.HOST_UNREACHABLE, bytes(packet.header))
        deadline = paths.deadline
        if deadline < self._timer_at:
            self._timer_at = deadline
            self._timer.set(deadline - now)

    # --- moving -------------------------------------------------------------------------------------------------------
    def _heed_addresses(self, now: int) -> bool:
        """An address of this machine has come or gone. Whether the paths have something to say of it."""
        if not self.local.is_unspecified:
            # IPv6 goes on sending from an address that is gone: there may be no error to learn it from.
            return self._roam(now)
        with self.node.lock:
            self._paths.announce_move(now)
        return True

    def _roam(self, now: int) -> bool:
        """Our address may be gone: then the link goes on from whichever the machine has. Whether it does."""
        if not self.roam or now - self._roamed_us < ROAM_US or self.local.is_unspecified or can_bind(self.local):
            return False
        self._roamed_us = now
        self.counters.bump("udp_roamed")  # the machine has lost the link's address: another one is used
        self.rebind()
        return True

    def rebind(self, local: str = "", port: int = 0) -> None:
        """Goes on from another address ("": whichever the system chooses) and port; paths and subflows are kept.

        OSError as of ``bind``: then nothing has changed. Not while another thread uses the link: a stack's ``rebind``
        sees to that.
        """
        unspecified = "::" if self._sock.is_v6 else "0.0.0.0"
        endpoint = Endpoint.parse(local or unspecified, port)
        if len(endpoint.address) != len(self.local.address):
            raise ConfigurationError(f"{local} is of another address family than the link's other addresses")
        device, buffer_bytes, offload = self._options
        sock = DatagramSocket(
            endpoint, device=device if local else "", buffer_bytes=buffer_bytes, offload=offload and self._sock.has_gso
        )
        with self.node.lock:
            old, self._sock = self._sock, sock
            self._epoll.unregister(old.fileno())
            self._epoll.register(sock.fileno(), select.EPOLLIN)
            old.close()
            self._blocked = False
            self._backlog.clear()
            self._paths.local = sock.local
            self._paths.announce_move(self.node.clock())
        self._wake()

    def close(self) -> None:
        if self._timer.fileno() >= 0:
            self.node.remove_socket(self._paths)
            self._timer.close()
            self._watch.close()
            self._epoll.close()
            self._sock.close()
