"""A TUN device: IP packets to and from the kernel of this machine, up to 64 KiB each with segmentation offload."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import sys
from collections.abc import Sequence
from typing import Final

from mptcp.core.counters import Counters
from mptcp.core.packet import Packet
from mptcp.core.wire.offload import finish, split
from mptcp.core.wire.segment import CWR
from mptcp.errors import ConfigurationError
from mptcp.links import _netdev
from mptcp.links._buffers import ReceiveBuffers
from mptcp.links.base import Link, ReceivedPacket

TUNSETIFF: Final = 0x400454CA
TUNSETOFFLOAD: Final = 0x400454D0
IFF_TUN, IFF_NO_PI, IFF_VNET_HDR = 0x0001, 0x1000, 0x4000
TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6, TUN_F_TSO_ECN = 0x01, 0x02, 0x04, 0x08

#: struct virtio_net_hdr, in the machine's byte order: flags, gso_type, hdr_len, gso_size, csum_start, csum_offset.
VNET_HEADER: Final = struct.Struct("=BBHHHH")
VNET_HEADER_LENGTH: Final = 10
NEEDS_CSUM, DATA_VALID = 1, 2
GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_ECN = 0, 1, 4, 0x80
TCP_CHECKSUM_OFFSET: Final = 16
NO_OFFLOAD_HEADER: Final = bytes(VNET_HEADER_LENGTH)

#: Largest TCP payload of a super-segment: 65,535 less 20 (IPv4 header) and 60 (TCP header with all options).
GSO_MAX_BYTES: Final = 65_455
#: Buffers one writev takes (IOV_MAX); a packet of more views is joined.
IOV_MAX: Final = 1024
_LITTLE = sys.byteorder == "little"


class TunLink(Link):
    """A TUN device whose other side is the kernel's IP stack.

    ``kernel_addresses`` ("10.77.1.2/24", "fd77:1::2/64") are what the *kernel* gets on the device; the stack's own
    addresses are any others of these prefixes (or of ``routes``, prefixes that the kernel shall send here). ``name``
    may hold ``%d``. Without ``offload`` packets are whole IP packets of at most ``mtu`` octets with complete
    checksums, in both directions; without ``segmentation_offload`` alone, only ``send`` cuts (the device still completes
    checksums), and each packet on the wire is one write. ``queue_packets`` is the length of the device's transmit queue (kernel to us).

    Raises PermissionError where CAP_NET_ADMIN is missing, FileNotFoundError where /dev/net/tun is,
    ConfigurationError for arguments that cannot work. The device vanishes with ``close``.
    """

    __slots__ = ("_buffers", "_cuts", "_fd", "_offload", "counters", "gso_max_bytes", "mtu", "name")

    def __init__(
        self,
        name: str = "mptcp%d",
        *,
        kernel_addresses: Sequence[str] = (),
        routes: Sequence[str] = (),
        mtu: int = 1500,
        offload: bool = True,
        segmentation_offload: bool = True,
        queue_packets: int = 1000,
        counters: Counters | None = None,
    ) -> None:
        if not 0 < len(name.encode()) < 16 or "/" in name or name.split() != [name]:
            raise ConfigurationError(f"{name!r} cannot name an interface: 1 to 15 octets, no slash, no space")
        if not 68 <= mtu <= 65_535:
            raise ConfigurationError(f"a TUN device cannot have an MTU of {mtu}: 68 to 65535 octets")
        self.counters = Counters() if counters is None else counters
        self.mtu = mtu
        self._offload = offload
        self._cuts = not segmentation_offload
        self.gso_max_bytes = GSO_MAX_BYTES if offload else 0
        self._buffers = ReceiveBuffers()
        self._fd = _open_device()
        try:
            self.name = self._create(name)
            _netdev.set_link(self.name, up=True, mtu=mtu, queue_packets=queue_packets)
            for address in kernel_addresses:
                _netdev.add_address(self.name, address)
            for prefix in routes:
                _netdev.add_route(prefix, self.name)
        except BaseException:
            self.close()
            raise

    def _create(self, name: str) -> str:
        flags = IFF_TUN | IFF_NO_PI | (IFF_VNET_HDR if self._offload else 0)
        try:
            answer = fcntl.ioctl(self._fd, TUNSETIFF, struct.pack("16sH14x", name.encode(), flags))
        except OSError as error:
            if error.errno == errno.EPERM:
                raise PermissionError(
                    errno.EPERM, f"creating the TUN device {name} {_netdev.NEEDS_NET_ADMIN}"
                ) from None
            if error.errno in (errno.EBUSY, errno.EEXIST, errno.EINVAL):
                raise ConfigurationError(
                    f"the interface name {name} is in use: close its owner, or choose another (mptcp%d numbers itself)"
                ) from error
            raise
        if self._offload:
            try:
                fcntl.ioctl(self._fd, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN)
            except OSError:
                # An old kernel: it then gives us complete segments, and still takes ours large.
                self.counters.bump("tun_offload_refused")
        os.set_blocking(self._fd, False)
        return answer[:16].split(b"\0", 1)[0].decode()

    def fileno(self) -> int:
        return self._fd

    def add_kernel_address(self, address: str) -> None:
        """One more address ("10.77.1.3/24") for the kernel's side of the device."""
        _netdev.add_address(self.name, address)

    def set_up(self, up: bool) -> None:
        """Takes the device up or down, as ``ip link set`` does; packets sent while it is down are dropped."""
        _netdev.set_link(self.name, up=up)

    def receive(self, limit: int = 64) -> list[ReceivedPacket]:
        received: list[ReceivedPacket] = []
        fd, readv, buffers, skip = self._fd, os.readv, self._buffers, VNET_HEADER_LENGTH if self._offload else 0
        while len(received) < limit:
            data = buffers.view
            try:
                length = readv(fd, (data,))
            except BlockingIOError:
                break
            except OSError as error:
                # EIO, EBADFD: the device is down or was deleted by somebody else. The pump must not die of it.
                self.counters.bump(f"tun_receive_{errno.errorcode.get(error.errno or 0, 'error').lower()}")
                break
            if length <= skip:
                self.counters.bump("tun_receive_short")  # nothing behind the vnet header
                break
            if not skip:
                received.append((buffers.take(0, length), 0, False))
            elif data[1]:
                size = data[4] | data[5] << 8 if _LITTLE else data[4] << 8 | data[5]
                is_valid = data[0] & 3 != 0
                received.append((buffers.take(VNET_HEADER_LENGTH, length), size, is_valid))
            else:
                is_valid = data[0] & 3 != 0
                received.append((buffers.take(VNET_HEADER_LENGTH, length), 0, is_valid))
        return received

    def send(self, packets: Sequence[Packet]) -> int:
        fd, writev, offload, mtu = self._fd, os.writev, self._offload, self.mtu
        for taken, packet in enumerate(packets):
            if not offload:
                if not self._send_finished(packet):
                    return taken
                continue
            header = packet.header
            gso_size = packet.gso_size
            if gso_size and self._cuts:
                if not self._send_pieces(packet):
                    return taken
                continue
            if gso_size:
                too_long = len(header) + gso_size > mtu or packet.length > 65_535 + 40
                kind = GSO_TCPV4 if header[0] >> 4 == 4 else GSO_TCPV6
                if header[packet.transport_offset + 13] & CWR:
                    kind |= GSO_ECN  # CWR goes on the first segment only
                vnet = VNET_HEADER.pack(
                    NEEDS_CSUM, kind, len(header), gso_size, packet.transport_offset, TCP_CHECKSUM_OFFSET
                )
            else:
                too_long = packet.length > mtu
                if packet.checksum_partial:
                    vnet = VNET_HEADER.pack(NEEDS_CSUM, 0, len(header), 0, packet.transport_offset, TCP_CHECKSUM_OFFSET)
                else:
                    vnet = NO_OFFLOAD_HEADER
            if too_long:
                self.counters.bump("tun_send_too_long")  # longer than the MTU
                continue
            payloads = packet.payloads
            if len(payloads) > IOV_MAX - 2:
                payloads = (b"".join(payloads),)
            try:
                writev(fd, (vnet, header, *payloads))
            except OSError as error:
                if error.errno in (errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM):
                    return taken
                self._dropped(error)
        return len(packets)

    def _send_pieces(self, packet: Packet) -> bool:
        """Cut here, checksums completed by the device. False: it is full and the packet must be offered again."""
        fd, writev = self._fd, os.writev
        if len(packet.header) + packet.gso_size > self.mtu:
            self.counters.bump("tun_send_too_long")  # longer than the MTU
            return True
        vnet = VNET_HEADER.pack(NEEDS_CSUM, 0, len(packet.header), 0, packet.transport_offset, TCP_CHECKSUM_OFFSET)
        sent = False
        for header, part in split(packet):
            try:
                writev(fd, (vnet, header, part))
            except OSError as error:
                if error.errno in (errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM):
                    if not sent:
                        return False
                    self.counters.bump("tun_send_queue_full")  # part of a super-segment is on its way; the rest is lost
                    return True
                self._dropped(error)
            sent = True
        return True

    def _send_finished(self, packet: Packet) -> bool:
        """Without offload: cut and completed here. False: the device is full and the packet must be offered again."""
        for number, data in enumerate(finish(packet)):
            if len(data) > self.mtu:
                self.counters.bump("tun_send_too_long")  # longer than the MTU
                continue
            try:
                os.write(self._fd, data)
            except OSError as error:
                if error.errno in (errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM):
                    if not number:
                        return False
                    # A part of a super-segment is on its way; the rest is lost, as in any full queue.
                    self.counters.bump("tun_send_queue_full")
                    return True
                self._dropped(error)
        return True

    def _dropped(self, error: OSError) -> None:
        # EIO: the interface is down; EINVAL: the kernel found the headers wrong. A network would drop it, too.
        self.counters.bump(f"tun_send_{errno.errorcode.get(error.errno or 0, 'error').lower()}")

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _open_device() -> int:
    try:
        return os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        raise FileNotFoundError(
            errno.ENOENT, "there is no /dev/net/tun: load the module with `modprobe tun`, or use an AF_PACKET link"
        ) from None
    except PermissionError as error:
        raise PermissionError(
            error.errno,
            "/dev/net/tun may not be opened by this user: run as root; UDP (--link udp) and the kernel's stack "
            "(--stack kernel) need no privilege",
        ) from None
