"""Links against the kernel: addresses resolved and answered for, packets both ways, super-segments whole both ways."""

from __future__ import annotations

import contextlib
import hashlib
import os
import select
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mptcp.core.entropy import Entropy
from mptcp.core.packet import Packet
from mptcp.core.wire import checksum, ip, tcp
from mptcp.core.wire.segment import ACK, CWR, FIN, PSH, RST, SYN, Options, Segment
from mptcp.errors import ConfigurationError
from mptcp.info import Endpoint
from mptcp.links.base import Link, ReceivedPacket
from mptcp.links.faults import Fault, FaultKind, FaultLink
from mptcp.links.packet import PacketLink
from mptcp.links.pcap import PcapLink, PcapWriter
from mptcp.links.tun import TunLink
from mptcp.testing.kernel_peer import pattern
from mptcp.testing.netns import Lab

MakeLab = Callable[..., Lab]
MSS = 1400
#: Far beyond what any answer takes, on a machine that is busy with other things.
PATIENCE_S = 20.0


def receive(link: Link, timeout_s: float = PATIENCE_S) -> list[ReceivedPacket]:
    """What comes next; empty after the timeout."""
    deadline = time.monotonic() + timeout_s
    while (left := deadline - time.monotonic()) > 0:
        if select.select([link], [], [], left)[0] and (received := link.receive()):
            return list(received)
    return []


def receive_until(link: Link, wanted: Callable[[ip.IpHeader, memoryview], bool]) -> ReceivedPacket:
    """The first packet that is ``wanted``: a kernel says more than it is asked (who listens to which group, for one)."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        for received in receive(link, 0.5):
            header = ip.parse(received[0])
            if header is not None and wanted(header, received[0]):
                return received
    pytest.fail("the packet did not arrive")


def is_echo_reply(header: ip.IpHeader, data: memoryview) -> bool:
    return header.protocol in (1, 58) and data[header.transport_offset] in (0, 129)


def echo_request(source: str, destination: str, number: int) -> Packet:
    """An ICMP or ICMPv6 echo request."""
    ends = Endpoint.parse(source), Endpoint.parse(destination)
    is_ipv4 = ends[0].family == 4
    body = bytes([8 if is_ipv4 else 128, 0, 0, 0, 0, 7]) + number.to_bytes(2, "big") + b"ping" * 10
    pseudo = 0 if is_ipv4 else checksum.pseudo_sum(ends[0].address, ends[1].address, 58) + len(body)
    total = checksum.complement(checksum.fold(pseudo + checksum.add(body)))
    body = body[:2] + total.to_bytes(2, "big") + body[4:]
    if is_ipv4:
        header = ip.emit_ipv4(ends[0].address, ends[1].address, len(body), protocol=1)
    else:
        header = ip.emit_ipv6(ends[0].address, ends[1].address, len(body), next_header=58)
    return Packet(header + body, (), len(header) + len(body))


class BareTcp:
    """One connection made by hand: enough TCP to move data over a link without loss, and nothing more."""

    def __init__(self, link: Link, local: str, remote: str, port: int, *, mss: int = MSS) -> None:
        self.link, self.mss = link, mss
        self.local, self.remote = Endpoint.parse(local, 40_000), Endpoint.parse(remote, port)
        self.seq, self.ack = 0xFFFFF000, 0
        self.received = bytearray()
        self.sizes: list[tuple[int, int, bool]] = []  # (payload octets, gso_size, checksum_valid) of what came in
        self.una = self.seq
        self.finished = False

    def emit(self, flags: int, payload: bytes = b"", options: Options | None = None) -> Packet:
        segment = Segment(self.seq, self.ack, flags, 0xFFFF, options or Options(), (payload,) if payload else ())
        pseudo = checksum.pseudo_sum(self.local.address, self.remote.address, 6)
        transport = tcp.emit(segment, self.local.port, self.remote.port, pseudo, partial=True)
        length = len(transport) + len(payload)
        emit = ip.emit_ipv4 if self.local.family == 4 else ip.emit_ipv6
        header = emit(self.local.address, self.remote.address, length)
        self.seq = (self.seq + segment.sequence_length) & 0xFFFFFFFF
        gso_size = self.mss if len(payload) > self.mss else 0
        return Packet(header + transport, segment.payloads, len(header) + length, len(header), gso_size, True)

    def send(self, flags: int, payload: bytes = b"", options: Options | None = None) -> None:
        packet = self.emit(flags, payload, options)
        while not self.link.send([packet]):
            select.select([], [self.link], [], 1)

    def handle(self, data: memoryview, gso_size: int, checksum_valid: bool) -> Segment | None:
        header = ip.parse(data)
        if header is None or header.protocol != 6 or header.source != self.remote.address:
            return None
        if not checksum_valid:
            pseudo = checksum.pseudo_sum(header.source, header.destination, 6)
            assert checksum.verify_tcp(data, header.transport_offset, header.end, pseudo)
        segment = tcp.parse(data, header.transport_offset, header.end)
        assert segment is not None
        assert not segment.flags & RST
        if segment.flags & SYN:
            self.ack = (segment.seq + 1) & 0xFFFFFFFF
        elif segment.seq == self.ack and segment.sequence_length:
            self.received += segment.payload
            self.sizes.append((segment.length, gso_size, checksum_valid))
            self.ack = (self.ack + segment.sequence_length) & 0xFFFFFFFF
            self.finished = bool(segment.flags & FIN)
        self.una = segment.ack
        return segment

    def pump(self, timeout_s: float = PATIENCE_S) -> list[Segment]:
        """Handles what comes in, and acknowledges data."""
        before = self.ack
        handled = [self.handle(*packet) for packet in receive(self.link, timeout_s)]
        if self.ack != before and before:
            self.send(ACK)
        return [segment for segment in handled if segment is not None]

    def connect(self) -> None:
        self.send(SYN, options=Options(mss=self.mss, window_scale=8))
        deadline = time.monotonic() + PATIENCE_S
        while not self.ack:
            assert time.monotonic() < deadline, "no SYN/ACK"
            if not self.pump(1.2) and not self.ack:
                self.seq = (self.seq - 1) & 0xFFFFFFFF
                self.send(SYN, options=Options(mss=self.mss, window_scale=8))
        self.send(ACK)


@pytest.fixture(params=["tun", "packet"])
def kind(request: pytest.FixtureRequest) -> str:
    if request.param == "tun":
        request.getfixturevalue("tun")
    return str(request.param)


class Setup:
    """A link whose other side is the kernel of a namespace: ours is .1, the kernel's .2 (10.77.1.0/24, fd77:1::/64)."""

    def __init__(self, kind: str, lab: Lab, offload: bool) -> None:
        self.kind, self.server = kind, lab.server
        if kind == "tun":
            lab.server.ip("addr flush dev s1")
            self.near = lab.server  # where our device is
            with self.near.entered():
                self.link: TunLink | PacketLink = TunLink(
                    kernel_addresses=["10.77.1.2/24", "fd77:1::2/64"], offload=offload
                )
        else:
            self.near = lab.client
            with self.near.entered():
                self.link = PacketLink("c1", ["10.77.1.1/24", "fd77:1::1/64"], offload=offload)


@pytest.fixture(params=[True, False], ids=["offload", "plain"])
def setup(request: pytest.FixtureRequest, make_lab: MakeLab, kind: str) -> Iterator[Setup]:
    setup = Setup(kind, make_lab(1), request.param)
    yield setup
    setup.link.close()


ADDRESSES = {4: ("10.77.1.1", "10.77.1.2"), 6: ("fd77:1::1", "fd77:1::2")}


@pytest.mark.parametrize("family", [4, 6])
def test_kernel_answers_ping(setup: Setup, family: int) -> None:
    link = setup.link
    ours, theirs = ADDRESSES[family]
    assert link.send([echo_request(ours, theirs, i) for i in range(3)]) == 3
    answers: list[int] = []
    deadline = time.monotonic() + PATIENCE_S
    while len(answers) < 3 and time.monotonic() < deadline:
        for data, _, _ in receive(link, 0.5):
            header = ip.parse(data)
            assert header is not None
            if is_echo_reply(header, data):
                assert header.source == Endpoint.parse(theirs).address
                answers.append(data[header.transport_offset + 7])
    assert answers == [0, 1, 2]


@pytest.mark.parametrize("family", [4, 6])
def test_kernel_sends_to_us(setup: Setup, family: int) -> None:
    """The kernel resolves our address first, on an Ethernet: the link has to answer."""
    link, server = setup.link, setup.server
    with server.entered():
        sock = socket.socket(socket.AF_INET if family == 4 else socket.AF_INET6, socket.SOCK_DGRAM)
    with sock:
        sock.sendto(b"hello", (ADDRESSES[family][0], 99))
        data, _, _ = receive_until(link, lambda header, _: header.protocol == 17)
    header = ip.parse(data)
    assert header is not None
    assert bytes(data[header.transport_offset + 8 : header.end]) == b"hello"


@pytest.mark.parametrize("family", [4, 6])
def test_data_to_the_kernel(setup: Setup, family: int) -> None:
    """Super-segments where the link takes them, and byte-exact in any case; the kernel finds no wrong checksum."""
    link, server = setup.link, setup.server
    ours, theirs = ADDRESSES[family]
    peer = server.serve("::" if family == 6 else "0.0.0.0", protocol="tcp", rcvbuf=4_000_000)
    connection = BareTcp(link, ours, theirs, peer.port)
    connection.connect()
    content = pattern(1_000_000)
    size = min(link.gso_max_bytes or MSS, 60_000)
    for start in range(0, len(content), size):
        # CWR (RFC 3168) on a super-segment is for its first piece only: a device is told by GSO_ECN.
        connection.send(ACK | PSH | (CWR if start == 0 else 0), content[start : start + size])
        while (connection.seq - connection.una) & 0xFFFFFFFF > 100_000:
            assert connection.pump(), "no acknowledgement"
    connection.send(FIN | ACK)
    deadline = time.monotonic() + PATIENCE_S
    while not connection.finished and time.monotonic() < deadline:
        connection.pump(0.5)
    result = peer.result()
    assert (result["received"], result["error"]) == (len(content), "")
    assert result["sha256"] == hashlib.sha256(content).hexdigest()
    assert server.counters()["TcpInCsumErrors"] == 0
    assert link.counters == {}
    if link.gso_max_bytes:
        # The kernel got them whole: far fewer segments than 1,000,000 / 1,400.
        assert server.counters()["TcpInSegs"] < 100


@pytest.mark.parametrize("family", [4, 6])
def test_data_from_the_kernel(setup: Setup, family: int) -> None:
    link, server = setup.link, setup.server
    ours, theirs = ADDRESSES[family]
    peer = server.serve("::" if family == 6 else "0.0.0.0", protocol="tcp", send_bytes=500_000)
    connection = BareTcp(link, ours, theirs, peer.port)
    connection.connect()
    deadline = time.monotonic() + PATIENCE_S
    while not connection.finished and time.monotonic() < deadline:
        connection.pump(0.5)
    connection.send(FIN | ACK)
    assert bytes(connection.received) == pattern(500_000)
    if link.gso_max_bytes:
        assert max(size for size, _, _ in connection.sizes) > 4 * MSS
        assert {gso_size for size, gso_size, _ in connection.sizes if size > MSS} == {MSS}
        assert all(valid for _, _, valid in connection.sizes)
    assert peer.result()["error"] == ""


def test_interface_down_is_counted_not_raised(setup: Setup) -> None:
    link = setup.link
    link.send([echo_request(*ADDRESSES[4], 1)])
    receive_until(link, is_echo_reply)
    setup.near.ip(f"link set {link.name} down")
    assert link.send([echo_request(*ADDRESSES[4], 1)]) == 1
    assert link.receive() == []
    assert link.counters["tun_send_eio" if setup.kind == "tun" else "packet_send_enetdown"] == 1
    setup.near.ip(f"link set {link.name} up")
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        assert link.send([echo_request(*ADDRESSES[4], 1)]) == 1
        if receive(link, 0.2):
            return
    pytest.fail("the link does not work again")


def test_longer_than_the_mtu_is_dropped_and_counted(setup: Setup) -> None:
    link = setup.link
    link.send([echo_request(*ADDRESSES[4], 1)])
    receive_until(link, is_echo_reply)  # the neighbour is known now
    connection = BareTcp(link, *ADDRESSES[4], 9)
    packet = connection.emit(ACK, bytes(1390))
    packet.header = bytes(packet.header) + bytes(200)
    packet.length += 200
    assert link.send([packet]) == 1
    assert link.counters == {f"{setup.kind}_send_too_long": 1}


def test_only_our_packets_come_up(make_lab: MakeLab) -> None:
    """Neither what the interface sends itself nor what is for other addresses is received."""
    lab = make_lab(1, client_kernel=True)
    with lab.client.entered():
        link = PacketLink("c1", ["10.77.1.9/24"])
        ours = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with lab.server.entered():
        theirs = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with ours, theirs:
        ours.sendto(b"out", (lab.server_address(1), 7))
        theirs.sendto(b"kernel's", (lab.client_address(1), 7))
        theirs.sendto(b"ours", ("10.77.1.9", 7))
        received = [bytes(data[28:]) for data, _, _ in receive(link)]
        assert received == [b"ours"]
        link.remove_address("10.77.1.9")
        link.add_address("10.77.1.10/24")
        theirs.sendto(b"no longer", ("10.77.1.9", 7))
        theirs.sendto(b"again", ("10.77.1.10", 7))
        assert [bytes(data[28:]) for data, _, _ in receive(link)] == [b"again"]
        assert link.addresses == ["10.77.1.10/24"]
    link.close()


def test_neighbour_that_does_not_answer(make_lab: MakeLab) -> None:
    """It is asked for again with a later packet, but only once a second."""
    lab = make_lab(1)
    with lab.client.entered():
        link = PacketLink("c1", ["10.77.1.1/24"])
    with lab.server.entered():
        listener = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0806))
    with listener:
        listener.setblocking(False)
        requests: list[bytes] = []
        began = time.monotonic()
        while len(requests) < 2:
            assert time.monotonic() < began + PATIENCE_S
            link.send([echo_request("10.77.1.1", "10.77.1.77", 1)])
            time.sleep(0.1)
            with contextlib.suppress(BlockingIOError):
                requests.append(listener.recv(100))
    assert time.monotonic() - began >= 1
    assert {request[:6] + request[38:42] for request in requests} == {b"\xff" * 6 + bytes([10, 77, 1, 77])}
    assert link.neighbours() == {"10.77.1.77": ""}
    link.close()


def test_gateway(make_lab: MakeLab) -> None:
    """A destination beyond the network is reached by way of the gateway, which forwards to its own other address."""
    lab = make_lab(1)
    lab.server.ip("addr add 192.0.2.1/32 dev lo")
    with lab.client.entered():
        link = PacketLink("c1", ["10.77.1.1/24"], gateways=["10.77.1.2"])
    link.send([echo_request("10.77.1.1", "192.0.2.1", 5)])
    [(data, _, _)] = receive(link)
    header = ip.parse(data)
    assert header is not None
    assert header.source == Endpoint.parse("192.0.2.1").address
    assert list(link.neighbours()) == ["10.77.1.2"]
    link.close()


def test_capture_is_read_by_tshark(setup: Setup, tmp_path: Path) -> None:
    if shutil.which("tshark") is None:
        pytest.skip("tshark is not installed")
    link, server = setup.link, setup.server
    path = tmp_path / "capture.pcapng"
    peer = server.serve("0.0.0.0", protocol="tcp", send_bytes=20_000)
    with PcapWriter(path) as writer:
        captured = PcapLink(link, writer)
        captured.comment("the first packet")
        connection = BareTcp(captured, *ADDRESSES[4], peer.port)
        connection.connect()
        connection.send(ACK | PSH, pattern(10_000))
        deadline = time.monotonic() + PATIENCE_S
        while not connection.finished and time.monotonic() < deadline:
            connection.pump(0.5)
        connection.send(FIN | ACK)
    fields = [
        "frame.comment",
        "frame.packet_flags_direction",
        "tcp.checksum.status",
        "tcp.len",
        "ip.len",
        "_ws.malformed",
        "tcp.seq",
    ]
    words = [word for field in fields for word in ("-e", field)]
    done = subprocess.run(
        ["tshark", "-r", str(path), "-o", "tcp.check_checksum:TRUE", "-Y", "tcp", "-T", "fields", *words],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert rows[0][0] == "the first packet"
    assert {row[2] for row in rows} == {"1"}, "wrong checksums"
    if link.gso_max_bytes or setup.kind == "tun":
        # Without vnet headers a packet socket shows what a device has merged, and does not say of what pieces.
        assert max(int(row[4]) for row in rows) <= 1500
    for direction, octets in (("1", 20_000), ("2", 10_000)):
        sent = [(int(row[6]), int(row[3])) for row in rows if row[1] in (direction, f"0x0000000{direction}")]
        # The kernel repeats what we are late to acknowledge.
        assert len({position for seq, length in sent for position in range(seq, seq + length)}) == octets
    assert {row[5] for row in rows} == {""}


def test_corruption_is_seen_by_the_kernel(setup: Setup) -> None:
    link, server = setup.link, setup.server
    peer = server.serve("0.0.0.0", protocol="tcp")
    faulty = FaultLink(link, Entropy(1))
    connection = BareTcp(faulty, *ADDRESSES[4], peer.port)
    connection.connect()
    faulty.outgoing.append(Fault(FaultKind.CORRUPT, when=lambda data: len(data) == 40 + MSS, limit=3))
    connection.send(ACK | PSH, pattern(7000))
    deadline = time.monotonic() + PATIENCE_S
    while server.counters()["TcpInCsumErrors"] < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert server.counters()["TcpInCsumErrors"] == 3


def test_tun_name_in_use(lab: Lab, tun: None) -> None:
    with lab.server.entered():
        first = TunLink("mptcp7")
        assert first.name == "mptcp7"
        with pytest.raises(ConfigurationError, match="mptcp7 is in use"):
            TunLink("mptcp7")
        first.close()
        TunLink("mptcp7").close()


def test_tun_routes(lab: Lab, tun: None) -> None:
    with lab.server.entered():
        link = TunLink(kernel_addresses=["10.99.0.1/32"], routes=["10.98.0.0/16", "fd98::/32"], mtu=1400)
    assert link.mtu == 1400
    link.send([echo_request("10.98.7.7", "10.99.0.1", 3)])
    receive_until(link, is_echo_reply)
    assert "fd98::/32" in lab.server.run("ip", "-6", "route")
    link.close()
    assert "fd98::/32" not in lab.server.run("ip", "-6", "route")


def test_any_frame_is_survived(lab: Lab) -> None:
    """Random Ethernet frames, most of them looking like something: counted or handed up, nothing raised."""
    with lab.client.entered():
        link = PacketLink("c1", ["10.77.1.1/24", "fd77:1::1/64"])
    with lab.server.entered():
        wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        wire.bind(("s1", 0))
    entropy = Entropy(11)
    fd77 = Endpoint.parse("fd77:1::1").address
    starts = (
        b"\x08\x06" + bytes.fromhex("0001080006040001"),
        b"\x08\x06" + bytes.fromhex("0001080006040002"),
        b"\x08\x00\x45" + bytes(8) + b"\x06" + bytes(6) + bytes([10, 77, 1, 1]),
        b"\x86\xdd\x60\0\0\0\0\x20\x3a\xff" + fd77[:15] + b"\x02" + fd77 + b"\x87\0",
        b"\x86\xdd\x60\0\0\0\0\x20\x3a\xff" + fd77[:15] + b"\x02" + fd77 + b"\x88\0",
        b"\x86\xdd" + bytes(24) + fd77,
        b"\x86\xdd",
    )
    with wire:
        for number in range(1500):
            start = starts[number % len(starts)]
            wire.send(b"\xff" * 12 + start + entropy.octets(entropy.below(80)))
            if number % 20 == 19:
                for data, gso_size, _ in receive(link, 0.01):
                    assert len(data) >= 20
                    assert gso_size == 0
    assert link.counters["nd_malformed"] > 100
    assert link.send([echo_request("10.77.1.1", "10.77.1.2", 9)]) == 1
    receive_until(link, is_echo_reply)
    link.close()


def test_without_privilege_the_error_says_what_to_do(lab: Lab) -> None:
    """A child gives up its privileges inside the namespace and tries."""
    if Path("/proc/self/uid_map").read_text().split()[2] == "1":
        pytest.skip("this user namespace has one user only, so privileges cannot be given up")
    here, there = os.pipe()
    child = os.fork()
    if not child:
        try:
            with lab.server.entered():
                os.setgroups([])
                os.setuid(65_534)
                for make in (lambda: PacketLink("s1", ["10.77.1.9/24"]), lambda: TunLink("mptcp8")):
                    try:
                        make().close()
                    except OSError as error:
                        os.write(there, f"{type(error).__name__}: {error}\n".encode())
        finally:
            os._exit(0)
    os.close(there)
    with open(here) as stream:
        lines = stream.read().splitlines()
    os.waitpid(child, 0)
    assert lines[0].startswith("PermissionError")
    assert "CAP_NET_RAW" in lines[0]
    assert "run as root" in lines[0]
    assert lines[1].startswith(("PermissionError", "FileNotFoundError"))
    assert "run as root" in lines[1] or "modprobe tun" in lines[1]
