"""The C structures of the socket options: ``sockaddr``, RFC 6897's lists, and those of draft-hesmans-mptcp-socket-03.

All in the byte order and with the alignment of a 64-bit Linux machine, as a C program would pass them. The draft puts
``addrs[0]`` before ``if_idx``; its examples reserve ``sizeof`` plus two addresses for it, which is exactly what the
structure takes if the addresses stand where ``addrs`` points to and the fields after them follow, aligned. So it is
read and written here.
"""

from __future__ import annotations

import errno
import socket as std
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mptcp.core.multipath.events import Event, EventKind
from mptcp.core.wire import ip
from mptcp.errors import PathError
from mptcp.info import Endpoint

SOCKADDR_IN_BYTES = 16
SOCKADDR_IN6_BYTES = 28
#: Addresses in one list: what is longer is no list of a host's addresses.
MAX_ADDRESSES = 256

#: ``how`` of MPTCP_CLOSE_SUB_ID, besides SHUT_RD, SHUT_WR and SHUT_RDWR.
RST = 3

_IN = struct.Struct("=H2s4s8x")
_IN6 = struct.Struct("=H2sI16sI")
_CLOSE = struct.Struct("=B3xi")
_SUB_SOCKOPT = struct.Struct("=B3xii4xQQ")  # id, level, optname, optval, optlen (a pointer, or u32 and padding)
_EVENT = struct.Struct("=HHIQhBBI")


def _invalid(text: str, code: int = errno.EINVAL) -> PathError:
    return PathError(text, code)


# --- struct sockaddr --------------------------------------------------------------------------------------------------
def pack_sockaddr(endpoint: Endpoint) -> bytes:
    """``struct sockaddr_in`` (16 octets) or ``sockaddr_in6`` (28)."""
    port = endpoint.port.to_bytes(2, "big")
    if len(endpoint.address) == 4:
        return _IN.pack(std.AF_INET, port, endpoint.address)
    return _IN6.pack(std.AF_INET6, port, 0, endpoint.address, 0)


def unpack_sockaddr(data: bytes, offset: int = 0) -> tuple[Endpoint, int]:
    """The endpoint at ``offset``, and how many octets it takes. PathError: EINVAL (too short), EAFNOSUPPORT."""
    if len(data) < offset + 2:
        raise _invalid("a socket address is missing")
    (family,) = struct.unpack_from("=H", data, offset)
    if family == std.AF_INET:
        if len(data) < offset + SOCKADDR_IN_BYTES:
            raise _invalid("a struct sockaddr_in has 16 octets")
        _, port, address = _IN.unpack_from(data, offset)
        return Endpoint(address, int.from_bytes(port, "big")), SOCKADDR_IN_BYTES
    if family == std.AF_INET6:
        if len(data) < offset + SOCKADDR_IN6_BYTES:
            raise _invalid("a struct sockaddr_in6 has 28 octets")
        _, port, _, address, _ = _IN6.unpack_from(data, offset)
        return Endpoint(address, int.from_bytes(port, "big")), SOCKADDR_IN6_BYTES
    raise _invalid(f"address family {family} is neither AF_INET nor AF_INET6", errno.EAFNOSUPPORT)


def pack_addresses(endpoints: Iterable[Endpoint]) -> bytes:
    """For TCP_MULTIPATH_ADD, _REMOVE and _BIND: one after the other, both families in any order."""
    return b"".join(map(pack_sockaddr, endpoints))


def unpack_addresses(data: bytes) -> list[Endpoint]:
    """PathError EINVAL if the list is empty, too long or cut short."""
    result: list[Endpoint] = []
    offset = 0
    while offset < len(data):
        endpoint, size = unpack_sockaddr(data, offset)
        result.append(endpoint)
        offset += size
        if len(result) > MAX_ADDRESSES:
            raise _invalid(f"a list has at most {MAX_ADDRESSES} addresses")
    if not result:
        raise _invalid("the list of addresses is empty")
    return result


def pack_pairs(pairs: Iterable[tuple[Endpoint, Endpoint]]) -> bytes:
    """What TCP_MULTIPATH_SUBFLOWS gives: local and remote address of one subflow after the other."""
    return b"".join(pack_sockaddr(local) + pack_sockaddr(remote) for local, remote in pairs)


def unpack_pairs(data: bytes) -> list[tuple[Endpoint, Endpoint]]:
    flat = unpack_addresses(data) if data else []
    return list(zip(flat[::2], flat[1::2], strict=True))


# --- struct mptcp_sub_ids ---------------------------------------------------------------------------------------------
def pack_sub_ids(subflows: Sequence[tuple[int, bool]]) -> bytes:
    """``struct mptcp_sub_ids``: (id, low_prio) of each. ``low_prio`` is the ninth bit of two octets."""
    body = b"".join(bytes((number & 0xFF, int(low))) for number, low in subflows[:255])
    return bytes((len(body) >> 1, 0)) + body


def unpack_sub_ids(data: bytes) -> list[tuple[int, bool]]:
    count = data[0] if data else 0
    if len(data) < 2 + 2 * count:
        raise _invalid("struct mptcp_sub_ids is shorter than its sub_count says")
    return [(data[2 + 2 * i], bool(data[3 + 2 * i] & 1)) for i in range(count)]


# --- struct mptcp_sub_tuple -------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class SubflowTuple:
    """``struct mptcp_sub_tuple``. ``interface``: ``if_idx``, 0: the default. ``id``: an output when opening."""

    local: Endpoint
    remote: Endpoint
    id: int = 0
    backup: bool = False
    interface: int = 0
    ipv6_srh: int = 0  # where the Segment Routing Header lies in memory; 0: none

    def pack(self, with_srh: bool = False) -> bytes:
        """As ``getsockopt(MPTCP_OPEN_SUB_TUPLE)`` takes it; ``with_srh``: in the draft's Segment Routing form (§3.6)."""
        body = bytes((self.id & 0xFF, int(self.backup))) + pack_sockaddr(self.local) + pack_sockaddr(self.remote)
        body += bytes(-len(body) % 4) + struct.pack("=i", self.interface)
        if with_srh or self.ipv6_srh:
            body += bytes(-len(body) % 8) + struct.pack("=Q", self.ipv6_srh)
        return body

    @classmethod
    def unpack(cls, data: bytes) -> SubflowTuple:
        """PathError EINVAL for a structure cut short or for addresses of two families. ``if_idx`` and the pointer may
        be left out, as by programs written for the structure without them."""
        if len(data) < 2:
            raise _invalid("a struct mptcp_sub_tuple begins with id and prio")
        local, size = unpack_sockaddr(data, 2)
        remote, more = unpack_sockaddr(data, 2 + size)
        if size != more:
            raise _invalid("both addresses of a subflow are of the same family")
        interface = pointer = 0
        end = -(-(2 + size + more) // 4) * 4
        if len(data) >= end + 4:
            (interface,) = struct.unpack_from("=i", data, end)
            end = -(-(end + 4) // 8) * 8
            if len(data) >= end + 8:
                (pointer,) = struct.unpack_from("=Q", data, end)
        return cls(local, remote, data[0], bool(data[1]), interface, pointer)


def pack_segment_routing(segments: Sequence[str | bytes]) -> bytes:
    """``struct ipv6_sr_hdr`` as the draft's figure 11 makes it: the last entry of the path, the first of the list, is
    left zero for the destination."""
    packed = [Endpoint.parse(s).address if isinstance(s, str) else s for s in segments]
    return ip.emit_segment_routing(packed, bytes(16), 0)


def unpack_segment_routing(data: bytes) -> tuple[bytes, ...]:
    """The segments before the destination, in the order of travel. PathError EINVAL."""
    if len(data) < 8 or len(data) < 8 + 8 * data[1]:
        raise _invalid("the Segment Routing Header is cut short")
    count = data[1] >> 1
    if data[2] != ip.SEGMENT_ROUTING or data[1] & 1 or count < 2 or data[4] != count - 1 or data[3] != data[4]:
        # RFC 8754 §2: type 4, a list without TLVs, and at its source all of it still to be visited
        raise _invalid("a Segment Routing Header has type 4, and segments_left = first_segment = segments - 1")
    entries = [bytes(data[8 + 16 * i : 24 + 16 * i]) for i in range(count)]
    return tuple(reversed(entries[1:]))


# --- the others -------------------------------------------------------------------------------------------------------
def pack_close_sub_id(subflow_id: int, how: int = std.SHUT_RDWR) -> bytes:
    return _CLOSE.pack(subflow_id & 0xFF, how)


def unpack_close_sub_id(data: bytes) -> tuple[int, int]:
    if len(data) < _CLOSE.size:
        raise _invalid(f"a struct mptcp_close_sub_id has {_CLOSE.size} octets")
    number, how = _CLOSE.unpack_from(data)
    return number, how


def pack_sub_sockopt(subflow_id: int, level: int, optname: int, optval: int, optlen: int) -> bytes:
    """``struct mptcp_sub_getsockopt`` or ``_setsockopt``. ``optval``: address of the value; ``optlen``: address of its
    length for the former, the length itself for the latter."""
    return _SUB_SOCKOPT.pack(subflow_id & 0xFF, level, optname, optval, optlen)


def unpack_sub_sockopt(data: bytes) -> tuple[int, int, int, int, int]:
    if len(data) < _SUB_SOCKOPT.size:
        raise _invalid(f"a struct mptcp_sub_getsockopt or _setsockopt has {_SUB_SOCKOPT.size} octets")
    number, level, optname, optval, optlen = _SUB_SOCKOPT.unpack_from(data)
    return number, level, optname, optval, optlen


# --- events as ancillary data -----------------------------------------------------------------------------------------
#: Numbers of the kinds in ``struct mptcp_event``; the bit of one in a subscription is ``1 << number``.
EVENT_NUMBERS = {kind: number for number, kind in enumerate(EventKind, 1)}
_KINDS = {number: kind for kind, number in EVENT_NUMBERS.items()}
ALL_EVENTS = sum(1 << number for number in _KINDS)

#: Of a reason only so many octets go into the structure.
MAX_REASON_BYTES = 128


def pack_event(event: Event) -> bytes:
    """u16 kind, u16 length of the reason, u32 if_idx, u64 at_us, s16 address id, u8 subflow, u8 backup, u32 missed; then
    two socket addresses of 28 octets (family 0: none), then the reason."""
    reason = event.reason.encode()[:MAX_REASON_BYTES]
    head = _EVENT.pack(
        EVENT_NUMBERS[event.kind], len(reason), event.interface, event.at_us, event.address_id,
        max(event.subflow_id, 0) & 0xFF, int(event.backup), event.missed & 0xFFFFFFFF,
    )  # fmt: skip
    ends = b"".join(
        (pack_sockaddr(end) if end is not None else b"").ljust(SOCKADDR_IN6_BYTES, b"\0")
        for end in (event.local, event.remote)
    )
    return head + ends + reason


def unpack_event(data: bytes) -> Event:
    if len(data) < _EVENT.size + 2 * SOCKADDR_IN6_BYTES:
        raise _invalid("a struct mptcp_event is cut short")
    number, length, interface, at_us, address_id, subflow, backup, missed = _EVENT.unpack_from(data)
    if number not in _KINDS:
        raise _invalid(f"there is no event number {number}")
    ends: list[Endpoint | None] = []
    for index in range(2):
        start = _EVENT.size + index * SOCKADDR_IN6_BYTES
        ends.append(unpack_sockaddr(data, start)[0] if data[start : start + 2] != b"\0\0" else None)
    start = _EVENT.size + 2 * SOCKADDR_IN6_BYTES
    reason = data[start : start + length].decode(errors="replace")
    return Event(
        _KINDS[number], at_us, subflow or -1, ends[0], ends[1], address_id, bool(backup), reason, interface, missed
    )
