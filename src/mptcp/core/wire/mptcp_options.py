"""Every MPTCP option (TCP option kind 30), of RFC 8684 (version 1) and RFC 6824 (version 0).

Values are frozen or slotted classes, one per subtype; ``parse`` and ``emit`` translate.
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct
from typing import Final

from mptcp.core.wire.segment import ACK, SYN

MP_CAPABLE, MP_JOIN, DSS, ADD_ADDR, REMOVE_ADDR, MP_PRIO, MP_FAIL, MP_FASTCLOSE, MP_TCPRST = range(9)
MP_EXPERIMENTAL: Final = 0xF

# RFC 8684 §3.1: the flags of MP_CAPABLE
FLAG_CHECKSUM, FLAG_EXTENSIBLE, FLAG_DENY_JOIN_INITIAL, FLAG_HMAC_SHA256 = 0x80, 0x40, 0x20, 0x01

# RFC 8684 §3.6: reasons in MP_TCPRST
(
    RST_UNSPECIFIED,
    RST_MPTCP_SPECIFIC,
    RST_LACK_OF_RESOURCES,
    RST_ADMINISTRATIVELY_PROHIBITED,
    RST_TOO_MUCH_OUTSTANDING_DATA,
    RST_UNACCEPTABLE_PERFORMANCE,
    RST_MIDDLEBOX_INTERFERENCE,
) = range(7)


@dataclass(frozen=True, slots=True)
class MpCapable:
    """MP_CAPABLE: length 4 (v1 SYN), 12 (SYN/ACK, v0 SYN), 20 (third ACK), 22 or 24 (with data, v1)."""

    version: int = 1
    flags: int = FLAG_HMAC_SHA256
    sender_key: int | None = None
    receiver_key: int | None = None
    data_length: int | None = None
    checksum: int | None = None


@dataclass(frozen=True, slots=True)
class MpJoinSyn:
    """MP_JOIN on a SYN: length 12."""

    token: int
    nonce: int
    address_id: int
    backup: bool = False


@dataclass(frozen=True, slots=True)
class MpJoinSynAck:
    """MP_JOIN on a SYN/ACK: length 16; ``hmac`` is the leftmost 64 bits, 8 octets."""

    hmac: bytes
    nonce: int
    address_id: int
    backup: bool = False


@dataclass(frozen=True, slots=True)
class MpJoinAck:
    """MP_JOIN on the third ACK: length 24; ``hmac`` is 20 octets (the leftmost 160 bits)."""

    hmac: bytes


class Dss:
    """Data Sequence Signal: data acknowledgement, mapping, DATA_FIN. The hot one, hence no dataclass.

    ``data_ack`` and ``dsn`` are wire numbers of 8 octets if ``data_ack_wide``/``dsn_wide``, else 4. ``ssn`` is
    relative to the start of the subflow. ``dsn is None`` means no mapping. ``checksum`` is None when not in use.
    """

    __slots__ = ("checksum", "data_ack", "data_ack_wide", "data_fin", "dsn", "dsn_wide", "length", "ssn")

    def __init__(
        self,
        data_ack: int | None = None,
        data_ack_wide: bool = False,
        dsn: int | None = None,
        dsn_wide: bool = False,
        ssn: int = 0,
        length: int = 0,
        checksum: int | None = None,
        data_fin: bool = False,
    ) -> None:
        self.data_ack = data_ack
        self.data_ack_wide = data_ack_wide
        self.dsn = dsn
        self.dsn_wide = dsn_wide
        self.ssn = ssn
        self.length = length
        self.checksum = checksum
        self.data_fin = data_fin

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Dss) and all(getattr(self, n) == getattr(other, n) for n in self.__slots__)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Dss({', '.join(f'{n}={getattr(self, n)!r}' for n in self.__slots__)})"


@dataclass(frozen=True, slots=True)
class AddAddr:
    """ADD_ADDR: ``hmac`` (8 octets) is absent in an echo and in version 0."""

    address_id: int
    address: bytes
    port: int | None = None
    echo: bool = False
    hmac: bytes | None = None
    version: int = 1


@dataclass(frozen=True, slots=True)
class RemoveAddr:
    address_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class MpPrio:
    """MP_PRIO: version 1 has no address id; version 0 may name one."""

    backup: bool
    address_id: int | None = None


@dataclass(frozen=True, slots=True)
class MpFail:
    dsn: int


@dataclass(frozen=True, slots=True)
class MpFastclose:
    receiver_key: int


@dataclass(frozen=True, slots=True)
class MpTcprst:
    reason: int
    transient: bool = False
    flags: int = 0  # the U, V, W bits, kept as they came


@dataclass(frozen=True, slots=True)
class MpExperimental:
    """Subtype 0xF: ``flags`` is the low four bits, ``experiment_id`` 16 bits in version 1's registry form."""

    flags: int
    content: bytes


@dataclass(frozen=True, slots=True)
class MpUnknown:
    """A subtype, or a length, that no RFC gives: kept as it came."""

    subtype: int
    content: bytes  # all octets after kind and length, the subtype's octet included


MptcpOption = (
    MpCapable
    | MpJoinSyn
    | MpJoinSynAck
    | MpJoinAck
    | Dss
    | AddAddr
    | RemoveAddr
    | MpPrio
    | MpFail
    | MpFastclose
    | MpTcprst
    | MpExperimental
    | MpUnknown
)

KIND: Final = 30

# The flags of DSS (RFC 8684 §3.3, Figure 9)
DSS_ACK, DSS_ACK_WIDE, DSS_MAP, DSS_MAP_WIDE, DSS_FIN = 0x01, 0x02, 0x04, 0x08, 0x10

_TWO_KEYS = Struct("!QQ")
_JOIN_SYN = Struct("!BII")
_JOIN_SYN_ACK = Struct("!B8sI")
_MAP_TAIL = Struct("!IH")

_JOIN_LENGTHS: Final = {SYN: 12, SYN | ACK: 16, ACK: 24}


def parse(data: memoryview | bytes, start: int, length: int, flags: int, version: int = 1) -> MptcpOption:
    """The MPTCP option whose kind octet is at ``start`` and that has ``length`` octets, kind and length included.

    ``flags`` are those of the TCP header: they, the length and the version nibble decide between shapes. ``version`` 0
    refuses what only RFC 8684 has (a HMAC or an echo in ADD_ADDR, MP_TCPRST). The one shape that both versions could
    claim, an ADD_ADDR without HMAC, is told apart by itself: RFC 6824 has an IPVer nibble of 4 or 6 there, in both of
    which the E bit of RFC 8684 is 0, and without E RFC 8684 demands a HMAC. What fits no figure is ``MpUnknown``.
    Total: returns for any octets; the caller has made sure that they are all there and ``length`` >= 2.
    """
    if length < 3:
        return MpUnknown(-1, b"")
    first = data[start + 2]
    subtype = first >> 4
    option: MptcpOption | None = None
    if subtype == DSS:
        option = _parse_dss(data, start, length)
    elif subtype == MP_CAPABLE:
        option = _parse_capable(data, start, length, flags)
    elif subtype == MP_JOIN:
        option = _parse_join(data, start, length, flags)
    elif subtype == ADD_ADDR:
        option = _parse_add_addr(data, start, length, version)
    elif subtype == REMOVE_ADDR:
        if length > 3:
            option = RemoveAddr(tuple(data[start + 3 : start + length]))
    elif subtype == MP_PRIO:
        if length == 3:
            option = MpPrio(bool(first & 1))
        elif length == 4:
            # RFC 6824 §3.3.8: "This option can also be applied to other subflows than the one on which it is sent, by
            # setting the optional Address ID field." RFC 8684 took that away; its length tells it.
            option = MpPrio(bool(first & 1), data[start + 3])
    elif subtype == MP_FAIL:
        if length == 12:
            option = MpFail(int.from_bytes(data[start + 4 : start + 12], "big"))
    elif subtype == MP_FASTCLOSE:
        if length == 12:
            option = MpFastclose(int.from_bytes(data[start + 4 : start + 12], "big"))
    elif subtype == MP_TCPRST:
        if length == 4 and version:
            option = MpTcprst(data[start + 3], bool(first & 1), first & 0xE)
    elif subtype == MP_EXPERIMENTAL:
        option = MpExperimental(first & 0xF, bytes(data[start + 3 : start + length]))
    return MpUnknown(subtype, bytes(data[start + 2 : start + length])) if option is None else option


def _parse_dss(data: memoryview | bytes, start: int, length: int) -> Dss | None:
    flags = data[start + 3] if length > 3 else 0
    position = start + 4
    end = start + length
    data_ack: int | None = None
    dsn: int | None = None
    checksum: int | None = None
    ssn = data_length = 0
    # RFC 8684 §3.3: "The flags "a" and "m" only have meaning if the corresponding "A" or "M" flags are set; otherwise,
    # they will be ignored."
    ack_wide = flags & (DSS_ACK | DSS_ACK_WIDE) == DSS_ACK | DSS_ACK_WIDE
    map_wide = flags & (DSS_MAP | DSS_MAP_WIDE) == DSS_MAP | DSS_MAP_WIDE
    need = (8 if ack_wide else 4) if flags & DSS_ACK else 0
    if flags & DSS_MAP:
        need += 14 if map_wide else 10
    # RFC 8684 §3.3: "The presence of the checksum can be inferred from the length of the option."
    surplus = length - 4 - need
    if surplus != 0 and not (surplus == 2 and flags & DSS_MAP):
        return None
    if flags & DSS_ACK:
        width = 8 if ack_wide else 4
        data_ack = int.from_bytes(data[position : position + width], "big")
        position += width
    if flags & DSS_MAP:
        width = 8 if map_wide else 4
        dsn = int.from_bytes(data[position : position + width], "big")
        ssn, data_length = _MAP_TAIL.unpack_from(data, position + width)
        if surplus:
            checksum = data[end - 2] << 8 | data[end - 1]
    return Dss(data_ack, ack_wide, dsn, map_wide, ssn, data_length, checksum, bool(flags & DSS_FIN))


def _parse_capable(data: memoryview | bytes, start: int, length: int, flags: int) -> MpCapable | None:
    if length < 4:
        return None
    version = data[start + 2] & 0xF
    # RFC 8684 §3.1: "The contents of the option are determined by the SYN and ACK flags of the packet, along with the
    # option's Length field." RFC 6824 §3.1 (version 0): the SYN carries the sender's key already.
    phase = flags & (SYN | ACK)
    if phase == SYN:
        if length != (4 if version else 12):
            return None
    elif phase == SYN | ACK:
        if length != 12:
            return None
    elif phase != ACK or not (length == 20 or (version and length in (22, 24))):
        return None
    sender_key: int | None = None
    receiver_key: int | None = None
    data_length: int | None = None
    checksum: int | None = None
    if length >= 20:
        sender_key, receiver_key = _TWO_KEYS.unpack_from(data, start + 4)
        if length >= 22:
            data_length = data[start + 20] << 8 | data[start + 21]
        if length == 24:
            checksum = data[start + 22] << 8 | data[start + 23]
    elif length == 12:
        sender_key = int.from_bytes(data[start + 4 : start + 12], "big")
    return MpCapable(version, data[start + 3], sender_key, receiver_key, data_length, checksum)


def _parse_join(data: memoryview | bytes, start: int, length: int, flags: int) -> MptcpOption | None:
    if length != _JOIN_LENGTHS.get(flags & (SYN | ACK)):
        return None
    backup = bool(data[start + 2] & 1)
    if length == 12:
        address_id, token, nonce = _JOIN_SYN.unpack_from(data, start + 3)
        return MpJoinSyn(token, nonce, address_id, backup)
    if length == 16:
        address_id, hmac, nonce = _JOIN_SYN_ACK.unpack_from(data, start + 3)
        return MpJoinSynAck(hmac, nonce, address_id, backup)
    return MpJoinAck(bytes(data[start + 4 : start + 24]))


def _parse_add_addr(data: memoryview | bytes, start: int, length: int, version: int) -> AddAddr | None:
    nibble = data[start + 2] & 0xF
    echo = bool(nibble & 1)
    hmac: bytes | None = None
    end = start + length
    if length in (8, 10, 20, 22):
        if (echo and version == 0) or (not echo and nibble != (4 if length < 12 else 6)):
            return None
    elif length in (16, 18, 28, 30) and not echo and version:
        # RFC 8684 §3.4.1, Figure 12: "Truncated HMAC (8 octets, if E=0)"
        hmac = bytes(data[end - 8 : end])
        end -= 8
    else:
        return None
    address_length = 4 if end - start < 12 else 16
    address_end = start + 4 + address_length
    port = data[address_end] << 8 | data[address_end + 1] if address_end < end else None
    return AddAddr(
        data[start + 3], bytes(data[start + 4 : address_end]), port, echo, hmac, 1 if echo or hmac is not None else 0
    )


def length(option: MptcpOption) -> int:
    """Octets on the wire: kind and length included, padding not."""
    match option:
        case Dss():
            octets = 4
            if option.data_ack is not None:
                octets += 8 if option.data_ack_wide else 4
            if option.dsn is not None:
                octets += (14 if option.dsn_wide else 10) + (0 if option.checksum is None else 2)
            return octets
        case MpCapable():
            if option.sender_key is None:
                return 4
            if option.receiver_key is None:
                return 12
            if option.data_length is None:
                return 20
            return 22 if option.checksum is None else 24
        case MpJoinSyn() | MpFail() | MpFastclose():
            return 12
        case MpJoinSynAck():
            return 16
        case MpJoinAck():
            return 24
        case AddAddr():
            return 4 + len(option.address) + (0 if option.port is None else 2) + (0 if option.hmac is None else 8)
        case RemoveAddr():
            return 3 + len(option.address_ids)
        case MpPrio():
            return 3 if option.address_id is None else 4
        case MpTcprst():
            return 4
        case MpExperimental():
            return 3 + len(option.content)
        case MpUnknown():
            return 2 + len(option.content)


def padded_length(option: MptcpOption) -> int:
    """Octets that the option takes in a segment: ``emit`` fills up to a multiple of four."""
    return length(option) + 3 & ~3


def emit(option: MptcpOption) -> bytes:
    """The option's octets, followed by NOPs up to a multiple of four, as Linux lays them out."""
    if isinstance(option, Dss):
        return _emit_dss(option)
    content = _content(option)
    count = len(content) + 2
    return bytes((KIND, count)) + content + b"\x01\x01\x01"[: -count & 3]


def _emit_dss(dss: Dss) -> bytes:
    flags = DSS_FIN if dss.data_fin else 0
    parts = b""
    if dss.data_ack is not None:
        flags |= DSS_ACK | DSS_ACK_WIDE if dss.data_ack_wide else DSS_ACK
        parts = dss.data_ack.to_bytes(8 if dss.data_ack_wide else 4, "big")
    count = 4 + len(parts)
    if dss.dsn is not None:
        flags |= DSS_MAP | DSS_MAP_WIDE if dss.dsn_wide else DSS_MAP
        parts += dss.dsn.to_bytes(8 if dss.dsn_wide else 4, "big") + _MAP_TAIL.pack(dss.ssn, dss.length)
        count = 4 + len(parts)
        if dss.checksum is None:
            parts += b"\x01\x01"
        else:
            parts += dss.checksum.to_bytes(2, "big")
            count += 2
    return bytes((KIND, count, DSS << 4, flags)) + parts


def _content(option: MptcpOption) -> bytes:
    """Everything after kind and length."""
    match option:
        case MpCapable():
            content = bytes((MP_CAPABLE << 4 | option.version, option.flags))
            for value, width in (
                (option.sender_key, 8), (option.receiver_key, 8), (option.data_length, 2), (option.checksum, 2),
            ):  # fmt: skip
                if value is None:
                    break
                content += value.to_bytes(width, "big")
            return content
        case MpJoinSyn():
            head = bytes((MP_JOIN << 4 | option.backup,))
            return head + _JOIN_SYN.pack(option.address_id, option.token, option.nonce)
        case MpJoinSynAck():
            assert len(option.hmac) == 8
            head = bytes((MP_JOIN << 4 | option.backup,))
            return head + _JOIN_SYN_ACK.pack(option.address_id, option.hmac, option.nonce)
        case MpJoinAck():
            assert len(option.hmac) == 20
            return bytes((MP_JOIN << 4, 0)) + option.hmac
        case AddAddr():
            assert len(option.address) in (4, 16)
            if option.version == 0:
                # RFC 6824 §3.4.1, Figure 12: IPVer is 4 or 6
                nibble = 4 if len(option.address) == 4 else 6
                assert option.hmac is None
                assert not option.echo
            else:
                nibble = int(option.echo)
                assert option.echo == (option.hmac is None)
            content = bytes((ADD_ADDR << 4 | nibble, option.address_id)) + option.address
            if option.port is not None:
                content += option.port.to_bytes(2, "big")
            return content if option.hmac is None else content + option.hmac
        case RemoveAddr():
            assert option.address_ids
            return bytes((REMOVE_ADDR << 4, *option.address_ids))
        case MpPrio():
            head = bytes((MP_PRIO << 4 | option.backup,))
            return head if option.address_id is None else head + bytes((option.address_id,))
        case MpFail():
            return bytes((MP_FAIL << 4, 0)) + option.dsn.to_bytes(8, "big")
        case MpFastclose():
            return bytes((MP_FASTCLOSE << 4, 0)) + option.receiver_key.to_bytes(8, "big")
        case MpTcprst():
            return bytes((MP_TCPRST << 4 | option.flags & 0xE | option.transient, option.reason))
        case MpExperimental():
            return bytes((MP_EXPERIMENTAL << 4 | option.flags,)) + option.content
        case MpUnknown():
            return option.content
        case Dss():
            return _emit_dss(option)[2 : length(option)]
