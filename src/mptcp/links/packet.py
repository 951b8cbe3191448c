"""AF_PACKET: an Ethernet interface on which this stack owns addresses that the kernel does not have."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import socket
import struct
import sys
import time
from collections.abc import Sequence
from typing import Final

from mptcp.core.counters import Counters
from mptcp.core.packet import Packet
from mptcp.core.wire.offload import finish
from mptcp.core.wire.segment import CWR
from mptcp.errors import ConfigurationError
from mptcp.links import _bpf, _netdev
from mptcp.links._bpf import solicited_node
from mptcp.links._buffers import ReceiveBuffers
from mptcp.links.base import Link, ReceivedPacket
from mptcp.links.neighbours import Neighbours, multicast_hardware
from mptcp.links.tun import (
    GSO_ECN,
    GSO_MAX_BYTES,
    GSO_TCPV4,
    GSO_TCPV6,
    IOV_MAX,
    NEEDS_CSUM,
    NO_OFFLOAD_HEADER,
    TCP_CHECKSUM_OFFSET,
    VNET_HEADER,
    VNET_HEADER_LENGTH,
)

SOL_PACKET: Final = 263
PACKET_ADD_MEMBERSHIP, PACKET_DROP_MEMBERSHIP, PACKET_STATISTICS = 1, 2, 6
PACKET_AUXDATA, PACKET_VNET_HDR, PACKET_IGNORE_OUTGOING = 8, 15, 23
PACKET_MR_MULTICAST: Final = 0
TP_STATUS_CSUMNOTREADY, TP_STATUS_CSUM_VALID = 0x08, 0x80
ETH_P_ALL: Final = 3
ARPHRD_ETHER: Final = 1
SO_RCVBUFFORCE: Final = 33
ETHERNET: Final = 14
#: Receive buffer asked of the kernel: what may arrive while Python is busy elsewhere.
RECEIVE_BUFFER_BYTES: Final = 8 * 1024 * 1024
_LITTLE = sys.byteorder == "little"
_IPV4, _ARP, _IPV6 = 0x0800, 0x0806, 0x86DD


class PacketLink(Link):
    """An Ethernet interface, used past the kernel's IP stack.

    ``addresses`` ("10.77.1.1/24", "fd77:1::1/64") are the stack's: the link answers ARP and neighbour solicitations
    for them, with the interface's hardware address, and finds the hardware addresses of its neighbours. They must not
    be addresses of the kernel, which would answer with RST. ``gateways`` are default next hops, one per family.
    ``offload`` exchanges super-segments and partial checksums with the kernel (PACKET_VNET_HDR) where that is possible.
    While a neighbour is being asked for its address up to 32 packets wait for it; a request is repeated with the next
    packet to it, at most once a second.

    Raises PermissionError where CAP_NET_RAW is missing, ConfigurationError for an interface or address that cannot work.
    """

    __slots__ = (
        "_buffers",
        "_index", "_neighbours", "_next_timeout_us", "_sock", "_vnet",
        "counters", "gso_max_bytes", "interface", "mtu", "name",
    )  # fmt: skip

    def __init__(
        self,
        interface: str,
        addresses: Sequence[str] = (),
        *,
        gateways: Sequence[str] = (),
        mtu: int = 0,
        offload: bool = True,
        receive_buffer_bytes: int = RECEIVE_BUFFER_BYTES,
        counters: Counters | None = None,
    ) -> None:
        self.name = self.interface = interface
        self.counters = Counters() if counters is None else counters
        self._index = _netdev.interface_index(interface)
        kind, hardware = _netdev.hardware_address(interface)
        if kind != ARPHRD_ETHER:
            raise ConfigurationError(f"{interface} is no Ethernet interface (type {kind}): use a TUN link instead")
        device_mtu = _netdev.mtu(interface)
        if mtu and not 68 <= mtu <= device_mtu:
            raise ConfigurationError(f"an MTU of {mtu} does not fit {interface}, which has {device_mtu}")
        self.mtu = mtu or device_mtu
        self._neighbours = Neighbours(hardware, self.counters)
        self._next_timeout_us = 0
        self._buffers = ReceiveBuffers()
        try:
            # Protocol 0: nothing is received before the filter stands and the socket is bound.
            self._sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
        except PermissionError as error:
            raise PermissionError(
                error.errno,
                f"a packet socket on {interface} needs CAP_NET_RAW in this network namespace: run as root, "
                "inside `unshare -Urn`, or give the interpreter the capability with setcap",
            ) from None
        try:
            self._vnet = self._configure_socket(offload, receive_buffer_bytes)
            self.gso_max_bytes = GSO_MAX_BYTES if self._vnet else 0
            for gateway in gateways:
                self.set_gateway(gateway)
            for address in addresses:
                self._add(address)
            self._filter()
            self._sock.bind((interface, ETH_P_ALL))
        except BaseException:
            self._sock.close()
            raise

    def _configure_socket(self, offload: bool, receive_buffer_bytes: int) -> bool:
        sock = self._sock
        try:
            sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, receive_buffer_bytes)
        except OSError:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        with contextlib.suppress(OSError):  # Linux 4.20; the filter drops them anyway
            sock.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
        if offload:
            try:
                sock.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
                return True
            except OSError:
                self.counters.bump("packet_offload_refused")  # a kernel without PACKET_VNET_HDR: no super-segments
        sock.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
        return False

    # addresses

    @property
    def addresses(self) -> list[str]:
        """The stack's addresses on this link, with prefix lengths."""
        return [str(interface) for interface in self._neighbours.addresses.values()]

    def add_address(self, address: str) -> None:
        """One more address of the stack ("10.77.1.9/24")."""
        self._add(address)
        self._filter()

    def _add(self, address: str) -> None:
        *_, interface = _netdev.parse_interface(address)
        self._neighbours.add_address(interface)
        if interface.version == 6:
            self._membership(PACKET_ADD_MEMBERSHIP, interface.ip.packed)

    def remove_address(self, address: str) -> None:
        """The link no longer answers for an address (with or without prefix length) and receives nothing for it."""
        *_, interface = _netdev.parse_interface(address)
        if interface.ip.packed in self._neighbours.addresses:
            self._neighbours.remove_address(interface.ip.packed)
            if interface.version == 6:
                self._membership(PACKET_DROP_MEMBERSHIP, interface.ip.packed)
            self._filter()

    def _membership(self, option: int, address: bytes) -> None:
        # Solicitations for us are sent to a multicast group, which the hardware may filter away.
        group = multicast_hardware(solicited_node(address))
        with contextlib.suppress(OSError):
            self._sock.setsockopt(SOL_PACKET, option, struct.pack("iHH8s", self._index, PACKET_MR_MULTICAST, 6, group))

    def _filter(self) -> None:
        _bpf.attach(self._sock, _bpf.program(list(self._neighbours.addresses)))

    def set_gateway(self, address: str) -> None:
        """The default next hop of its address family."""
        try:
            self._neighbours.set_gateway(ipaddress.ip_address(address).packed)
        except ValueError:
            raise ConfigurationError(f"the gateway {address!r} is no address") from None

    def neighbours(self) -> dict[str, str]:
        """Neighbours and their hardware addresses ("" while unknown)."""
        return self._neighbours.known()

    def dropped_by_kernel(self) -> int:
        """Packets the kernel dropped since the last call because the receive buffer was full."""
        drops: int = struct.unpack("=II", self._sock.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))[1]
        return drops

    # the data path

    def fileno(self) -> int:
        return self._sock.fileno()

    def receive(self, limit: int = 64) -> list[ReceivedPacket]:
        if not self._vnet:
            return self._receive_without_offload(limit)
        received: list[ReceivedPacket] = []
        handled = 0
        buffers, recv_into = self._buffers, self._sock.recv_into
        while handled < limit:
            data = buffers.view
            try:
                length = recv_into(data)
            except BlockingIOError:
                break
            except OSError as error:
                if not self._survives(error):
                    break
                handled += 1
                continue
            handled += 1
            if length < VNET_HEADER_LENGTH + ETHERNET + 20:
                self.counters.bump("packet_receive_short")  # less than an IP header
                continue
            ethertype = data[22] << 8 | data[23]
            if (ethertype == _ARP or (ethertype == _IPV6 and data[30] == 58)) and self._for_the_link(
                ethertype, data[VNET_HEADER_LENGTH + ETHERNET : length]
            ):
                continue
            gso_size = 0
            if data[1]:
                gso_size = data[4] | data[5] << 8 if _LITTLE else data[4] << 8 | data[5]
            is_valid = data[0] & 3 != 0
            received.append((buffers.take(VNET_HEADER_LENGTH + ETHERNET, length), gso_size, is_valid))
        if handled != len(received):
            self._serve_neighbours()
        return received

    def _receive_without_offload(self, limit: int) -> list[ReceivedPacket]:
        received: list[ReceivedPacket] = []
        handled = 0
        buffers, recvmsg_into = self._buffers, self._sock.recvmsg_into
        while handled < limit:
            data = buffers.view
            try:
                length, ancillary, _, _ = recvmsg_into((data,), 64)
            except BlockingIOError:
                break
            except OSError as error:
                if not self._survives(error):
                    break
                handled += 1
                continue
            handled += 1
            if length < ETHERNET + 20:
                self.counters.bump("packet_receive_short")  # less than an IP header
                continue
            status = struct.unpack_from("=I", ancillary[0][2])[0] if ancillary else 0
            ethertype = data[12] << 8 | data[13]
            if (ethertype == _ARP or (ethertype == _IPV6 and data[20] == 58)) and self._for_the_link(
                ethertype, data[ETHERNET:length]
            ):
                continue
            # A packet from this machine may come with its checksum still to be completed; the kernel says so here.
            is_valid = status & (TP_STATUS_CSUMNOTREADY | TP_STATUS_CSUM_VALID) != 0
            received.append((buffers.take(ETHERNET, length), 0, is_valid))
        if handled != len(received):
            self._serve_neighbours()
        return received

    def _survives(self, error: OSError) -> bool:
        """Counts what recv complained of; True: there may be more behind it."""
        # EINVAL: a super-segment of a kind that vnet headers cannot describe; ENETDOWN: said once, when it goes down.
        self.counters.bump(f"packet_receive_{errno.errorcode.get(error.errno or 0, 'error').lower()}")
        return error.errno in (errno.EINVAL, errno.ENETDOWN)

    def _for_the_link(self, ethertype: int, body: memoryview) -> bool:
        """Whether a frame was ARP or neighbour discovery, which never reach the stack."""
        if ethertype == _ARP:
            self._neighbours.handle_arp(body, time.monotonic_ns() // 1000)
            return True
        if len(body) > 40 and 133 <= body[40] <= 137:
            if 135 <= body[40] <= 136:
                self._neighbours.handle_nd(body, time.monotonic_ns() // 1000)
            return True
        return False

    def send(self, packets: Sequence[Packet]) -> int:
        now = time.monotonic_ns() // 1000
        lookup = self._neighbours.lookup
        unknown = False
        for taken, packet in enumerate(packets):
            header = packet.header
            destination = bytes(header[16:20] if header[0] >> 4 == 4 else header[24:40])
            ethernet = lookup(destination, now)
            if not ethernet:
                self._neighbours.wait(destination, packet)
                unknown = True
            elif not self._transmit(ethernet, packet):
                return taken
        if unknown or now >= self._next_timeout_us:
            self._next_timeout_us = now + 1_000_000
            self._neighbours.handle_timeout(now)
            self._serve_neighbours()
        return len(packets)

    def _transmit(self, ethernet: bytes, packet: Packet) -> bool:
        """False: the socket is full; everything else has been sent, or dropped and counted."""
        if not self._vnet:
            return self._transmit_finished(ethernet, packet)
        header = packet.header
        gso_size = packet.gso_size
        if gso_size:
            too_long = len(header) + gso_size > self.mtu
            kind = GSO_TCPV4 if header[0] >> 4 == 4 else GSO_TCPV6
            if header[packet.transport_offset + 13] & CWR:
                kind |= GSO_ECN  # CWR goes on the first segment only
            vnet = VNET_HEADER.pack(
                NEEDS_CSUM,
                kind,
                ETHERNET + len(header),
                gso_size,
                ETHERNET + packet.transport_offset,
                TCP_CHECKSUM_OFFSET,
            )
        else:
            too_long = packet.length > self.mtu
            vnet = NO_OFFLOAD_HEADER
            if packet.checksum_partial:
                start = ETHERNET + packet.transport_offset
                vnet = VNET_HEADER.pack(NEEDS_CSUM, 0, ETHERNET + len(header), 0, start, TCP_CHECKSUM_OFFSET)
        if too_long:
            self.counters.bump("packet_send_too_long")  # longer than the MTU
            return True
        payloads = packet.payloads
        if len(payloads) > IOV_MAX - 3:
            payloads = (b"".join(payloads),)
        try:
            self._sock.sendmsg((vnet, ethernet, header, *payloads))
        except OSError as error:
            return self._not_sent(error)
        return True

    def _transmit_finished(self, ethernet: bytes, packet: Packet) -> bool:
        for number, data in enumerate(finish(packet)):
            if len(data) > self.mtu:
                self.counters.bump("packet_send_too_long")  # longer than the MTU
                continue
            try:
                self._sock.sendmsg((ethernet, data))
            except OSError as error:
                if self._not_sent(error):
                    continue
                if not number:
                    return False
                # A part of a super-segment is on its way; the rest is lost, as in any full queue.
                self.counters.bump("packet_send_queue_full")
                return True
        return True

    def _not_sent(self, error: OSError) -> bool:
        """False: offer it again; True: dropped and counted."""
        if error.errno == errno.EAGAIN:
            return False
        # ENOBUFS: the interface's queue was full and the kernel has dropped it; ENETDOWN, ENXIO: down, or gone.
        name = "queue_full" if error.errno == errno.ENOBUFS else errno.errorcode.get(error.errno or 0, "error").lower()
        self.counters.bump(f"packet_send_{name}")
        return True

    def _serve_neighbours(self) -> None:
        """Sends what the neighbour cache wants sent: answers, requests, and packets that waited for an address."""
        lead = (NO_OFFLOAD_HEADER,) if self._vnet else ()
        for frame in self._neighbours.poll_frames():
            try:
                self._sock.sendmsg((*lead, frame))
            except OSError as error:
                if not self._not_sent(error):
                    self.counters.bump("packet_send_queue_full")
        for ethernet, packet in self._neighbours.poll_released():
            if not self._transmit(ethernet, packet):
                self.counters.bump("packet_send_queue_full")

    def close(self) -> None:
        self._sock.close()
