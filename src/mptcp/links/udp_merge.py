"""Datagrams that the kernel has put together (UDP_GRO), as few large packets: what a device with LRO would give."""

from __future__ import annotations

from functools import lru_cache
from struct import Struct
from typing import Final

from mptcp.links.udp_frames import HEADER_BYTES

_IP: Final = HEADER_BYTES
_TCP: Final = _IP + 40
_SEQ, _ACK = _TCP + 4, _TCP + 8
_FLAGS: Final = _TCP + 13
_PSH_FIN: Final = 0x09
_MERGEABLE: Final = (0x10, 0x18)  # ACK, ACK and PSH
_LONG = Struct("!I")


def merge(data: memoryview, size: int, start: int) -> tuple[memoryview, int, int]:
    """(inner packet, gso_size, where the next frame starts) from the frame at ``start`` on.

    Frames of ``size`` octets (the last may be shorter) with IPv6 and TCP inside are merged as long as they differ in
    nothing but what cutting a super-segment makes different: sequence numbers that follow each other; on the last,
    length, PSH and FIN. Checksums are partial in all of them: nobody has to look. The result is a copy.
    """
    total = len(data)
    end = min(start + size, total)
    first = bytes(data[start : min(start + HEADER_BYTES + 40 + 60, end)])
    header_end = _TCP + (first[_TCP + 12] >> 4) * 4 if len(first) > _TCP + 20 else 0
    if (
        end == total
        or not _TCP + 20 <= header_end < size
        or first[_IP] >> 4 != 6
        or first[_IP + 6] != 6
        or first[_FLAGS] not in _MERGEABLE
        or (first[_IP + 4] << 8 | first[_IP + 5]) != size - HEADER_BYTES - 40
    ):
        return memoryview(bytes(data[start + HEADER_BYTES : end])), 0, end
    payload = size - header_end
    before, after = first[:_SEQ], first[_ACK:header_end]
    seq = _LONG.unpack_from(first, _SEQ)[0]
    parts: list[bytes | bytearray | memoryview] = [b"", data[start + header_end : end]]
    at, flags = end, first[_FLAGS]
    if not flags & _PSH_FIN:
        whole = (total - at) // size
        for lead, number, rest in _shape(header_end, payload).iter_unpack(data[at : at + whole * size]):
            seq = seq + payload & 0xFFFFFFFF
            if number != seq or lead != before or rest != after:
                seq = seq - payload & 0xFFFFFFFF
                break
            parts.append(data[at + header_end : at + size])
            at += size
        head = bytes(data[at : min(at + header_end, total)])
        last_end = min(at + size, total)
        if at + header_end < total and _is_last(head, before, after, seq + payload & 0xFFFFFFFF, last_end - at):
            flags = head[_FLAGS]
            parts.append(data[at + header_end : last_end])
            at = last_end
    if len(parts) == 2:
        return memoryview(bytes(data[start + HEADER_BYTES : end])), 0, end
    header = bytearray(first[HEADER_BYTES:header_end])
    # What one buffer holds is less than what the length field can say.
    length = sum(map(len, parts)) + len(header) - 40
    header[4], header[5] = length >> 8, length & 0xFF
    header[_FLAGS - HEADER_BYTES] = flags
    parts[0] = header
    return memoryview(b"".join(parts)), payload, at


@lru_cache(maxsize=64)
def _shape(header_end: int, payload: int) -> Struct:
    """What comes before the sequence number, the number, and what comes behind it, of frames one after the other."""
    return Struct(f"!{_SEQ}sI{header_end - _ACK}s{payload}x")


def _is_last(head: bytes, before: bytes, after: bytes, seq: int, length: int) -> bool:
    """Whether a frame that is not like those before it can be their end."""
    # Flags stand at _FLAGS and the checksum at _TCP + 16 of the frame, in ``after`` at 5 and 8.
    return (
        _LONG.unpack_from(head, _SEQ)[0] == seq
        and head[: _IP + 4] == before[: _IP + 4]
        and (head[_IP + 4] << 8 | head[_IP + 5]) == length - HEADER_BYTES - 40
        and head[_IP + 6 : _SEQ] == before[_IP + 6 :]
        and head[_ACK:_FLAGS] == after[:5]
        and not (head[_FLAGS] ^ after[5]) & ~_PSH_FIN
        and head[_FLAGS + 1 : _TCP + 16] == after[6:8]
        and head[_TCP + 18 :] == after[10:]
    )
