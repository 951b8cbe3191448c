"""Every MPTCP option (TCP option kind 30), of RFC 8684 (version 1) and RFC 6824 (version 0).

Values are frozen or slotted classes, one per subtype; ``parse`` and ``emit`` translate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

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
