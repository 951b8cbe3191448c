"""TCP options: from octets to ``Options`` and back.

``parse`` is faithful, not judging: it returns what is there, also where only a SYN may carry it (MSS, window scale,
SACK permitted) and a shift above 14; TCP applies the rules that depend on its state. ``emit`` lays options out as Linux
does, every part in words of four octets: that is what middleboxes and hosts have fast paths for.
"""

from __future__ import annotations

from struct import Struct
from typing import Final

from mptcp.core.wire import mptcp_options
from mptcp.core.wire.mptcp_options import Dss, MptcpOption
from mptcp.core.wire.segment import NO_OPTIONS, Options

END, NOP, MSS, WINDOW_SCALE, SACK_PERMITTED, SACK, TIMESTAMP = 0, 1, 2, 3, 4, 5, 8
USER_TIMEOUT, MPTCP, FAST_OPEN = 28, 30, 34

#: Octets of options that a TCP header can hold (data offset 15).
MAX_OCTETS: Final = 40
#: SACK blocks that fit (RFC 2018 §3).
MAX_SACK_BLOCKS: Final = 4

_NOP_NOP_TIMESTAMP: Final = 0x0101080A
_NOP_NOP: Final = 0x0101
_NOP_NOP_SACK: Final = 0x010105
_SACK_LENGTHS: Final = frozenset((10, 18, 26, 34))

_TIMESTAMP_FIRST = Struct("!III")
_TIMESTAMP_AND_NEXT = Struct("!IIII")
_PAIR = Struct("!II")
_WORD = Struct("!I")
_BLOCKS = tuple(Struct(f"!{2 * count}I") for count in range(MAX_SACK_BLOCKS + 1))

_DSS_HEAD: Final = mptcp_options.KIND << 24 | mptcp_options.DSS << 12


def _dss_shapes() -> dict[int, tuple[int, Struct, bool, bool, bool, bool, bool]]:
    """The DSS options with a data acknowledgement, by their first four octets.

    -> (octets of all options with NOP NOP TS before it, what follows the four octets, wide acknowledgement,
    mapping, wide DSN, checksum, DATA_FIN).
    """
    shapes = {}
    for fin in (False, True):
        for ack_wide in (False, True):
            ack_format, ack_octets = ("Q", 8) if ack_wide else ("I", 4)
            flags = 0x01 | ack_wide << 1 | fin << 4
            head = _DSS_HEAD | (4 + ack_octets) << 16 | flags
            shapes[head] = (16 + ack_octets, Struct(f"!{ack_format}"), ack_wide, False, False, False, fin)
            for dsn_wide in (False, True):
                dsn_format, dsn_octets = ("Q", 8) if dsn_wide else ("I", 4)
                unpack = Struct(f"!{ack_format}{dsn_format}IHH")
                for checksum in (False, True):
                    count = 4 + ack_octets + dsn_octets + 6 + 2 * checksum
                    head = _DSS_HEAD | count << 16 | flags | 0x04 | dsn_wide << 3
                    shapes[head] = (12 + (count + 3 & ~3), unpack, ack_wide, True, dsn_wide, checksum, fin)
    return shapes


_DSS_SHAPES: Final = _dss_shapes()

# What ``emit`` packs in one go: NOP NOP TS, the DSS head, its numbers. By [wide acknowledgement][wide DSN].
_EMIT_ACK = (Struct("!IIIII"), Struct("!IIIIQ"))
_EMIT_MAP = ((Struct("!IIIIIIIHH"), Struct("!IIIIIQIHH")), (Struct("!IIIIQIIHH"), Struct("!IIIIQQIHH")))
_ACK_HEADS = (_DSS_HEAD | 8 << 16 | 0x01, _DSS_HEAD | 12 << 16 | 0x03)


def _hot(value: int, echo: int, mptcp: tuple[MptcpOption, ...]) -> Options:
    """``Options`` of a segment in the middle of a connection, in half the time the constructor takes."""
    options = Options.__new__(Options)
    options.mss = options.window_scale = options.user_timeout = options.fast_open = None
    options.sack_permitted = False
    options.sack_blocks = options.unknown = ()
    options.timestamp_value = value
    options.timestamp_echo = echo
    options.mptcp = mptcp
    return options


def parse(data: memoryview | bytes, start: int, end: int, flags: int, mptcp_version: int = 1) -> Options | None:
    """The options in ``data[start:end]``; None if one is cut short or two contradict each other.

    ``flags``: those of the TCP header. ``mptcp_version``: see ``mptcp_options.parse``. An option of a known kind with a
    length its RFC does not give is kept as unknown. Total: never raises while ``end`` <= ``len(data)``.
    """
    size = end - start
    if size <= 0:
        return NO_OPTIONS
    if size == 12:
        head, value, echo = _TIMESTAMP_FIRST.unpack_from(data, start)
        if head == _NOP_NOP_TIMESTAMP:
            return _hot(value, echo, ())
    elif size >= 20:
        head, value, echo, dss_head = _TIMESTAMP_AND_NEXT.unpack_from(data, start)
        if head == _NOP_NOP_TIMESTAMP:
            shape = _DSS_SHAPES.get(dss_head)
            if shape is not None and shape[0] == size:
                _, layout, ack_wide, mapped, dsn_wide, with_checksum, fin = shape
                if not mapped:
                    dss = Dss(layout.unpack_from(data, start + 16)[0], ack_wide, None, False, 0, 0, None, fin)
                    return _hot(value, echo, (dss,))
                ack, dsn, ssn, length, tail = layout.unpack_from(data, start + 16)
                if with_checksum:
                    return _hot(value, echo, (Dss(ack, ack_wide, dsn, dsn_wide, ssn, length, tail, fin),))
                if tail == _NOP_NOP:
                    return _hot(value, echo, (Dss(ack, ack_wide, dsn, dsn_wide, ssn, length, None, fin),))
            elif dss_head >> 8 == _NOP_NOP_SACK:
                options = _parse_sack(data, start, size, dss_head & 0xFF, value, echo)
                if options is not None:
                    return options
    return _parse_any(data, start, end, flags, mptcp_version)


def _parse_sack(data: memoryview | bytes, start: int, size: int, length: int, value: int, echo: int) -> Options | None:
    """NOP NOP TS, NOP NOP SACK of ``length`` octets, a data acknowledgement or nothing; None if it is not just that."""
    blocks_end = 14 + length
    if length not in _SACK_LENGTHS or blocks_end > size:
        return None
    mptcp: tuple[MptcpOption, ...] = ()
    if blocks_end < size:
        # Another option has four octets at least, unless it is padding or cut short.
        if size - blocks_end < 8:
            return None
        shape = _DSS_SHAPES.get(_WORD.unpack_from(data, start + blocks_end)[0])
        if shape is None or shape[3] or shape[0] - 12 != size - blocks_end:
            return None
        ack = shape[1].unpack_from(data, start + blocks_end + 4)[0]
        mptcp = (Dss(ack, shape[2], None, False, 0, 0, None, shape[6]),)
    edges = _BLOCKS[length >> 3].unpack_from(data, start + 16)
    options = _hot(value, echo, mptcp)
    options.sack_blocks = tuple(zip(edges[::2], edges[1::2], strict=True))
    return options


def _parse_any(data: memoryview | bytes, start: int, end: int, flags: int, mptcp_version: int) -> Options | None:
    seen: dict[int, bytes] = {}  # octets of each option that may come once, to find contradictions
    mss: int | None = None
    window_scale: int | None = None
    sack_permitted = False
    sack_blocks: tuple[tuple[int, int], ...] = ()
    value: int | None = None
    echo = 0
    user_timeout: int | None = None
    fast_open: bytes | None = None
    mptcp: list[MptcpOption] = []
    unknown: list[tuple[int, bytes]] = []
    position = start
    while position < end:
        kind = data[position]
        if kind == NOP:
            position += 1
            continue
        if kind == END:
            break
        # RFC 9293 §3.1 (MUST-7): "TCP implementations MUST be prepared to handle an illegal option length (e.g.,
        # zero)": the whole segment is malformed then, since nothing behind it can be trusted.
        if position + 1 >= end:
            return None
        length = data[position + 1]
        after = position + length
        if length < 2 or after > end:
            return None
        if kind == MPTCP:
            mptcp.append(mptcp_options.parse(data, position, length, flags, mptcp_version))
            position = after
            continue
        content = bytes(data[position + 2 : after])
        position = after
        if kind == TIMESTAMP and length == 10:
            value, echo = _PAIR.unpack(content)
        elif kind == SACK and length in _SACK_LENGTHS:
            edges = _BLOCKS[length >> 3].unpack(content)
            sack_blocks = tuple(zip(edges[::2], edges[1::2], strict=True))
        elif kind == MSS and length == 4:
            mss = content[0] << 8 | content[1]
        elif kind == WINDOW_SCALE and length == 3:
            window_scale = content[0]
        elif kind == SACK_PERMITTED and length == 2:
            sack_permitted = True
        elif kind == FAST_OPEN and (length == 2 or (6 <= length <= 18 and not length & 1)):
            # RFC 7413 §4.1.1: the cookie has 4 to 16 octets, an even number of them; none is a request
            fast_open = content
        elif kind == USER_TIMEOUT and length == 4:
            user_timeout = content[0] << 8 | content[1]
        else:
            # RFC 9293 §3.1 (MUST-6): "A TCP implementation MUST [...] ignore without error any TCP Option it does not
            # implement, assuming that the option has a length field."
            unknown.append((kind, content))
            continue
        if seen.setdefault(kind, content) != content:
            return None
    return Options(
        mss=mss,
        window_scale=window_scale,
        sack_permitted=sack_permitted,
        sack_blocks=sack_blocks,
        timestamp_value=value,
        timestamp_echo=echo,
        user_timeout=user_timeout,
        fast_open=fast_open,
        mptcp=tuple(mptcp),
        unknown=tuple(unknown),
    )


def emit(options: Options, flags: int) -> bytes:
    """The octets, a multiple of four and at most ``MAX_OCTETS``: more is a bug of the caller (``length`` tells)."""
    if options is NO_OPTIONS:
        return b""
    # SYNs, and what a segment in the middle of a connection rarely has, take the general way.
    if flags & 0x02 or options.sack_blocks or options.timestamp_value is None or not _is_hot(options):
        return _emit_any(options)
    mptcp = options.mptcp
    if not mptcp:
        return _TIMESTAMP_FIRST.pack(_NOP_NOP_TIMESTAMP, options.timestamp_value, options.timestamp_echo)
    dss = mptcp[0]
    if len(mptcp) > 1 or dss.__class__ is not Dss or dss.data_ack is None:
        return _emit_any(options)
    ack_wide = dss.data_ack_wide
    head = _ACK_HEADS[ack_wide] | dss.data_fin << 4
    if dss.dsn is None:
        return _EMIT_ACK[ack_wide].pack(
            _NOP_NOP_TIMESTAMP, options.timestamp_value, options.timestamp_echo, head, dss.data_ack
        )
    dsn_wide = dss.dsn_wide
    head += 0xE0004 + 0x8 if dsn_wide else 0xA0004
    tail = dss.checksum
    if tail is None:
        tail = _NOP_NOP
    else:
        head += 0x20000
    return _EMIT_MAP[ack_wide][dsn_wide].pack(
        _NOP_NOP_TIMESTAMP,
        options.timestamp_value,
        options.timestamp_echo,
        head,
        dss.data_ack,
        dss.dsn,
        dss.ssn,
        dss.length,
        tail,
    )


def _is_hot(options: Options) -> bool:
    return (
        options.mss is None
        and options.window_scale is None
        and not options.sack_permitted
        and options.user_timeout is None
        and options.fast_open is None
        and not options.unknown
    )


def _emit_any(options: Options) -> bytes:
    parts: list[bytes] = []
    if options.mss is not None:
        parts.append(bytes((MSS, 4)) + options.mss.to_bytes(2, "big"))
    if options.timestamp_value is not None:
        parts.append(b"\x04\x02\x08\x0a" if options.sack_permitted else b"\x01\x01\x08\x0a")
        parts.append(_PAIR.pack(options.timestamp_value, options.timestamp_echo))
    elif options.sack_permitted:
        parts.append(b"\x01\x01\x04\x02")
    if options.window_scale is not None:
        parts.append(bytes((NOP, WINDOW_SCALE, 3, options.window_scale)))
    blocks = options.sack_blocks
    if blocks:
        parts.append(bytes((NOP, NOP, SACK, 2 + 8 * len(blocks))))
        parts += [_PAIR.pack(left, right) for left, right in blocks]
    if options.user_timeout is not None:
        parts.append(bytes((USER_TIMEOUT, 4)) + options.user_timeout.to_bytes(2, "big"))
    if options.fast_open is not None:
        parts.append(_padded(FAST_OPEN, options.fast_open))
    for kind, content in options.unknown:
        parts.append(_padded(kind, content))
    for option in options.mptcp:
        parts.append(mptcp_options.emit(option))
    octets = b"".join(parts)
    assert len(octets) <= MAX_OCTETS, f"{len(octets)} octets of options: {options}"
    return octets


def _padded(kind: int, content: bytes) -> bytes:
    count = len(content) + 2
    return bytes((kind, count)) + content + b"\x01\x01\x01"[: -count & 3]


def length(options: Options) -> int:
    """Octets that ``emit`` will make of ``options``."""
    octets = 0
    if options.mss is not None:
        octets += 4
    if options.timestamp_value is not None:
        octets += 12
    elif options.sack_permitted:
        octets += 4
    if options.window_scale is not None:
        octets += 4
    if options.sack_blocks:
        octets += 4 + 8 * len(options.sack_blocks)
    if options.user_timeout is not None:
        octets += 4
    if options.fast_open is not None:
        octets += len(options.fast_open) + 5 & ~3
    for _, content in options.unknown:
        octets += len(content) + 5 & ~3
    for option in options.mptcp:
        octets += mptcp_options.padded_length(option)
    return octets
