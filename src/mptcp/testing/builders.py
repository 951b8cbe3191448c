"""Short functions that make segments and packets for tests: ``syn(mp_join(token=7))``, ``data(b"x", seq=1, ack=1)``.

Segments come with the peer's initial sequence number and window by default; every field can be given.
"""

from __future__ import annotations

from mptcp.core.wire import checksum, ip, tcp
from mptcp.core.wire.mptcp_options import (
    FLAG_HMAC_SHA256,
    AddAddr,
    Dss,
    MpCapable,
    MpFail,
    MpFastclose,
    MpJoinAck,
    MpJoinSyn,
    MpJoinSynAck,
    MpPrio,
    MptcpOption,
    MpTcprst,
    RemoveAddr,
)
from mptcp.core.wire.segment import ACK, FIN, NOT_ECT, PSH, RST, SYN, Options, Payload, Segment
from mptcp.info import Endpoint

#: Initial sequence number of a scripted peer: just below the wrap, so that every test crosses it.
PEER_ISN = 0xFFFFFFF0
DEFAULT_WINDOW = 0xFFFF
TCP_PROTOCOL = 6


def segment(
    *mptcp: MptcpOption,
    flags: int = ACK,
    seq: int = 0,
    ack: int = 0,
    window: int = DEFAULT_WINDOW,
    payload: Payload = b"",
    mss: int | None = None,
    window_scale: int | None = None,
    sack_permitted: bool = False,
    sack_blocks: tuple[tuple[int, int], ...] = (),
    timestamp: tuple[int, int] | None = None,
    unknown: tuple[tuple[int, bytes], ...] = (),
    ecn: int = NOT_ECT,
    urgent_pointer: int = 0,
) -> Segment:
    """Any segment. ``timestamp`` is (value, echo); numbers are taken modulo 2**32."""
    options = Options(
        mss=mss,
        window_scale=window_scale,
        sack_permitted=sack_permitted,
        sack_blocks=sack_blocks,
        timestamp_value=timestamp[0] if timestamp else None,
        timestamp_echo=timestamp[1] if timestamp else 0,
        mptcp=mptcp,
        unknown=unknown,
    )
    payloads = (memoryview(payload),) if len(payload) else ()
    return Segment(
        seq & 0xFFFFFFFF, ack & 0xFFFFFFFF, flags, window, options, payloads, len(payload), ecn, urgent_pointer
    )


def syn(
    *mptcp: MptcpOption,
    seq: int = PEER_ISN,
    window: int = DEFAULT_WINDOW,
    mss: int | None = 1460,
    window_scale: int | None = None,
    sack_permitted: bool = False,
    timestamp: tuple[int, int] | None = None,
    payload: Payload = b"",
    flags: int = SYN,
) -> Segment:
    return segment(
        *mptcp,
        flags=flags,
        seq=seq,
        window=window,
        mss=mss,
        window_scale=window_scale,
        sack_permitted=sack_permitted,
        timestamp=timestamp,
        payload=payload,
    )


def syn_ack(
    *mptcp: MptcpOption,
    ack: int,
    seq: int = PEER_ISN,
    window: int = DEFAULT_WINDOW,
    mss: int | None = 1460,
    window_scale: int | None = None,
    sack_permitted: bool = False,
    timestamp: tuple[int, int] | None = None,
) -> Segment:
    """``ack``: the initial sequence number of the host under test, plus one."""
    return segment(
        *mptcp,
        flags=SYN | ACK,
        seq=seq,
        ack=ack,
        window=window,
        mss=mss,
        window_scale=window_scale,
        sack_permitted=sack_permitted,
        timestamp=timestamp,
    )


def ack(
    *mptcp: MptcpOption,
    seq: int,
    ack: int,
    window: int = DEFAULT_WINDOW,
    sack_blocks: tuple[tuple[int, int], ...] = (),
    timestamp: tuple[int, int] | None = None,
) -> Segment:
    return segment(*mptcp, flags=ACK, seq=seq, ack=ack, window=window, sack_blocks=sack_blocks, timestamp=timestamp)


def data(
    payload: Payload,
    *mptcp: MptcpOption,
    seq: int,
    ack: int,
    window: int = DEFAULT_WINDOW,
    flags: int = ACK | PSH,
    timestamp: tuple[int, int] | None = None,
) -> Segment:
    return segment(*mptcp, flags=flags, seq=seq, ack=ack, window=window, payload=payload, timestamp=timestamp)


def fin(*mptcp: MptcpOption, seq: int, ack: int, window: int = DEFAULT_WINDOW, payload: Payload = b"") -> Segment:
    return segment(*mptcp, flags=FIN | ACK, seq=seq, ack=ack, window=window, payload=payload)


def rst(*mptcp: MptcpOption, seq: int = 0, ack: int | None = None) -> Segment:
    """With ``ack``: the form that answers a segment without ACK."""
    return segment(*mptcp, flags=RST if ack is None else RST | ACK, seq=seq, ack=ack or 0, window=0)


def mp_capable(
    sender_key: int | None = None,
    receiver_key: int | None = None,
    *,
    version: int = 1,
    flags: int = FLAG_HMAC_SHA256,
    data_length: int | None = None,
    checksum: int | None = None,
) -> MpCapable:
    """Without keys: that of a version 1 SYN; with one: of a SYN/ACK; with both: of the third ACK."""
    return MpCapable(version, flags, sender_key, receiver_key, data_length, checksum)


def mp_join(*, token: int, nonce: int = 0x01020304, address_id: int = 1, backup: bool = False) -> MpJoinSyn:
    return MpJoinSyn(token, nonce, address_id, backup)


def mp_join_syn_ack(*, hmac: bytes, nonce: int, address_id: int = 0, backup: bool = False) -> MpJoinSynAck:
    """``hmac``: the whole one or its first 8 octets."""
    return MpJoinSynAck(hmac[:8], nonce, address_id, backup)


def mp_join_ack(hmac: bytes) -> MpJoinAck:
    """``hmac``: the whole one or its first 20 octets."""
    return MpJoinAck(hmac[:20])


def dss(
    *,
    data_ack: int | None = None,
    dsn: int | None = None,
    ssn: int = 0,
    length: int = 0,
    checksum: int | None = None,
    data_fin: bool = False,
    wide: bool = True,
) -> Dss:
    """``wide``: numbers of 8 octets, else 4; they are cut to that size here."""
    mask = 0xFFFFFFFFFFFFFFFF if wide else 0xFFFFFFFF
    return Dss(
        None if data_ack is None else data_ack & mask,
        wide and data_ack is not None,
        None if dsn is None else dsn & mask,
        wide and dsn is not None,
        ssn & 0xFFFFFFFF,
        length,
        checksum,
        data_fin,
    )


def add_addr(
    address: str, address_id: int, *, port: int | None = None, echo: bool = False, hmac: bytes | None = None
) -> AddAddr:
    return AddAddr(address_id, Endpoint.parse(address).address, port, echo, hmac)


def remove_addr(*address_ids: int) -> RemoveAddr:
    return RemoveAddr(address_ids)


def mp_prio(backup: bool) -> MpPrio:
    return MpPrio(backup)


def mp_fail(dsn: int) -> MpFail:
    return MpFail(dsn)


def mp_fastclose(receiver_key: int) -> MpFastclose:
    return MpFastclose(receiver_key)


def mp_tcprst(reason: int, transient: bool = False) -> MpTcprst:
    return MpTcprst(reason, transient)


def packet(content: Segment, source: Endpoint, destination: Endpoint, *, hop_limit: int = 64) -> bytes:
    """The whole IP packet (IPv4 or IPv6 by the addresses), checksums complete."""
    pseudo = checksum.pseudo_sum(source.address, destination.address, TCP_PROTOCOL)
    transport = tcp.emit(content, source.port, destination.port, pseudo, partial=False)
    length = len(transport) + content.length
    if source.family == 4:
        header = ip.emit_ipv4(
            source.address, destination.address, length, hop_limit=hop_limit, traffic_class=content.ecn
        )
    else:
        header = ip.emit_ipv6(
            source.address, destination.address, length, hop_limit=hop_limit, traffic_class=content.ecn
        )
    return b"".join((header, transport, *content.payloads))


def parse_packet(octets: bytes) -> tuple[Segment, Endpoint, Endpoint]:
    """(segment, source, destination) of a TCP packet; ValueError if it is none."""
    view = memoryview(octets)
    header = ip.parse(view)
    if header is None or header.protocol != TCP_PROTOCOL:
        raise ValueError("no TCP packet")
    offset = header.transport_offset
    content = tcp.parse(view, offset, header.end)
    if content is None:
        raise ValueError("malformed TCP header")
    content.ecn = header.ecn
    source_port, destination_port = view[offset] << 8 | view[offset + 1], view[offset + 2] << 8 | view[offset + 3]
    return content, Endpoint(header.source, source_port), Endpoint(header.destination, destination_port)
