"""Socket options: which exist, what they mean for a connection's settings, and their limits."""

from __future__ import annotations

import errno
import socket as std
import struct
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from mptcp.core.congestion.balia import BALIA
from mptcp.core.congestion.base import CongestionFactory
from mptcp.core.congestion.cubic import Cubic
from mptcp.core.congestion.lia import LIA
from mptcp.core.congestion.newreno import NewReno
from mptcp.core.congestion.olia import OLIA
from mptcp.core.congestion.wvegas import WVEGAS
from mptcp.core.tcp.config import DEFAULT_TCP_CONFIG, TcpConfig
from mptcp.core.units import KIB, MILLISECOND, NEVER, SECOND
from mptcp.errors import NotSupportedError
from mptcp.sockets.address import os_error

if TYPE_CHECKING:
    from typing_extensions import Buffer

#: The smallest buffers one may ask for, as on Linux.
MIN_SEND_BUFFER_BYTES = 4608
MIN_RECEIVE_BUFFER_BYTES = 2304
#: The largest: what one misled program may take of the memory of its process.
MAX_BUFFER_BYTES = 1024 * 1024 * KIB

IPPROTO_MPTCP = 262
TCP_IS_MPTCP = 43

#: Congestion controls by the names Linux gives them.
CONGESTION_CONTROLS: dict[str, CongestionFactory] = {
    "cubic": Cubic, "reno": NewReno, "lia": LIA, "olia": OLIA, "balia": BALIA, "wvegas": WVEGAS,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class SocketOptions:
    """What a socket keeps that is no business of its connection. Shared by all that have changed nothing."""

    reuse_address: bool = False
    linger: tuple[bool, int] = (False, 0)  # on, seconds
    receive_low_water: int = 1
    receive_timeout_us: int = NEVER  # SO_RCVTIMEO: blocking calls fail with EAGAIN after it
    send_timeout_us: int = NEVER
    v6_only: bool = False
    defer_accept_us: int = 0  # TCP_DEFER_ACCEPT

    def changed(self, **changes: Any) -> SocketOptions:
        return replace(self, **changes)


DEFAULT_SOCKET_OPTIONS = SocketOptions()


@dataclass(frozen=True, slots=True)
class _Number:
    """An integer option that is one field of ``TcpConfig``: ``field = value * unit``."""

    field: str
    unit: int = 1
    lowest: int = 0
    highest: int = (1 << 31) - 1
    flag: bool = False  # any non-zero value means on
    zero: int | None = None  # what the field is when the option is 0
    clamp: bool = False  # a value out of range is brought into it instead of refused
    resets: bool = False  # -1 means the default
    mask: int = -1  # bits that an option can set


_TCP, _SOL, _IP, _IP6 = std.IPPROTO_TCP, std.SOL_SOCKET, std.IPPROTO_IP, std.IPPROTO_IPV6

#: (level, option) -> the field behind it. The limits are Linux's.
_NUMBERS: dict[tuple[int, int], _Number] = {
    (_SOL, std.SO_KEEPALIVE): _Number("keepalive", flag=True),
    (_TCP, std.TCP_NODELAY): _Number("no_delay", flag=True),
    (_TCP, std.TCP_CORK): _Number("cork", flag=True),
    (_TCP, std.TCP_QUICKACK): _Number("quick_ack", flag=True),
    (_TCP, std.TCP_MAXSEG): _Number("max_segment_bytes", lowest=88, highest=32767, zero=0),
    (_TCP, std.TCP_KEEPIDLE): _Number("keepalive_idle_us", SECOND, 1, 32767),
    (_TCP, std.TCP_KEEPINTVL): _Number("keepalive_interval_us", SECOND, 1, 32767),
    (_TCP, std.TCP_KEEPCNT): _Number("keepalive_count", lowest=1, highest=127),
    (_TCP, std.TCP_SYNCNT): _Number("syn_retries", lowest=1, highest=127),
    (_TCP, std.TCP_LINGER2): _Number("fin_wait_2_us", SECOND, lowest=-1, highest=120, clamp=True),
    (_TCP, std.TCP_USER_TIMEOUT): _Number("user_timeout_us", MILLISECOND, zero=NEVER),
    (_SOL, std.SO_SNDBUF): _Number(
        "send_buffer_bytes", lowest=MIN_SEND_BUFFER_BYTES, highest=MAX_BUFFER_BYTES, clamp=True
    ),
    (_SOL, std.SO_RCVBUF): _Number(
        "receive_buffer_bytes", lowest=MIN_RECEIVE_BUFFER_BYTES, highest=MAX_BUFFER_BYTES, clamp=True
    ),
    # RFC 3168 §5: the last two bits are not the application's.
    (_IP, std.IP_TOS): _Number("traffic_class", highest=255, mask=0xFC),
    (_IP6, std.IPV6_TCLASS): _Number("traffic_class", highest=255, mask=0xFC, resets=True),
    (_IP, std.IP_TTL): _Number("hop_limit", lowest=1, highest=255, resets=True),
    (_IP6, std.IPV6_UNICAST_HOPS): _Number("hop_limit", lowest=1, highest=255, resets=True),
}


def check_family(family: int, level: int, number: int = errno.ENOPROTOOPT) -> None:
    """OSError with that errno for an option of IPv6 where there is IPv4, as on Linux; the reverse is no error."""
    if level == _IP6 and family == std.AF_INET:
        raise OSError(number, "IPv4 has no options of IPv6: use IP_TOS and IP_TTL, which act on IPv6 as well")


def tcp_changes(level: int, option: int, value: int | bytes) -> dict[str, object] | None:
    """The fields of ``TcpConfig`` that an option changes, with their new values; None: no such option.

    OSError EINVAL where the value is out of its limits.
    """
    if level == _TCP and option == std.TCP_CONGESTION:
        if isinstance(value, int):
            raise os_error(errno.EINVAL)
        factory = CONGESTION_CONTROLS.get(bytes(value).partition(b"\0")[0].decode("ascii", "replace"))
        if factory is None:
            raise os_error(errno.ENOENT)
        return {"congestion": factory}
    number = _NUMBERS.get((level, option))
    if number is None:
        return None
    given = to_int(value)
    if number.flag:
        return {number.field: bool(given)}
    if given == 0 and number.zero is not None:
        return {number.field: number.zero}
    if given == -1 and number.resets:
        return {number.field: getattr(DEFAULT_TCP_CONFIG, number.field)}
    if number.clamp:
        given = min(max(given, number.lowest), number.highest)
    elif not number.lowest <= given <= number.highest:
        raise os_error(errno.EINVAL)
    changes: dict[str, object] = {number.field: (given & number.mask) * number.unit}
    if number.field == "fin_wait_2_us" and given < 0:
        changes[number.field] = 0
    elif number.field == "receive_buffer_bytes":
        changes["receive_buffer_max_bytes"] = given  # socket(7): who sets it does not want it tuned
    return changes


def differences(config: TcpConfig) -> list[tuple[int, int, int | bytes]]:
    """(level, option, value) of what ``config`` has that the defaults have not, as ``setsockopt`` takes it.

    NotSupportedError for a field that no option of IPv4 and TCP has: only this package's own stack knows those.
    """
    known = {number.field: (key, number) for key, number in reversed(_NUMBERS.items())}
    result: list[tuple[int, int, int | bytes]] = []
    for item in fields(config):
        value = getattr(config, item.name)
        if value == getattr(DEFAULT_TCP_CONFIG, item.name):
            continue
        if item.name == "congestion":
            result.append((_TCP, std.TCP_CONGESTION, congestion_name(value).encode()))
        elif item.name in known:
            (level, option), number = known[item.name]
            none = number.zero is not None and value == number.zero
            result.append((level, option, 0 if none else int(value) // number.unit))
        elif item.name == "receive_buffer_max_bytes":
            result.append((_SOL, std.SO_RCVBUF, int(value)))
        else:
            raise NotSupportedError(f"TcpConfig.{item.name}: the kernel's stack has no option for it")
    return result


def answer(buflen: int | Buffer, ask: Callable[[int | bytes], int | bytes | None]) -> int | bytes:
    """What ``getsockopt(..., buflen)`` returns. ``ask`` gets the size of the buffer, or its content where there is one, and
    gives None for an option that does not exist. A buffer that can be written to gets the result, too."""
    buffer: Buffer | None = None
    content = b""
    if not isinstance(buflen, int):
        buffer, content = buflen, bytes(memoryview(buflen))
        buflen = len(content)
    if not 0 <= buflen <= 1024 and buffer is None:
        raise os_error(errno.EINVAL)
    value = ask(buflen if buffer is None else content)
    if buffer is not None and isinstance(value, bytes):
        if not (view := memoryview(buffer).cast("B")).readonly:
            view[: min(len(view), len(value))] = value[: len(view)]
        return value[:buflen]
    if isinstance(value, bytes) and not buflen and len(value) == 4:
        return int.from_bytes(value, "little")
    if value is None:
        raise os_error(errno.ENOPROTOOPT)
    if isinstance(value, int):
        return value.to_bytes(4, "little", signed=True)[:buflen] if buflen else value
    if not buflen:
        # The system writes the first four octets of the structure into an integer.
        return int.from_bytes(value[:4], "little", signed=True)
    return value[:buflen]


def tcp_value(level: int, option: int, config: TcpConfig) -> int | bytes | None:
    """What ``getsockopt`` answers from the settings; None: no such option."""
    if level == _TCP and option == std.TCP_CONGESTION:
        return congestion_name(config.congestion).encode().ljust(16, b"\0")
    number = _NUMBERS.get((level, option))
    if number is None:
        return None
    value: Any = getattr(config, number.field)
    if number.zero is not None and value == number.zero:
        return 0
    return int(value) // number.unit


def congestion_name(factory: CongestionFactory | None) -> str:
    if factory is None:
        return "cubic"
    for name, known in CONGESTION_CONTROLS.items():
        if known is factory:
            return name
    return str(getattr(factory, "name", "") or getattr(factory, "__name__", "custom"))


def socket_changes(level: int, option: int, value: int | bytes) -> dict[str, object] | None:
    """As ``tcp_changes``, for the fields of ``SocketOptions``."""
    if level == _IP6 and option == std.IPV6_V6ONLY:
        return {"v6_only": bool(to_int(value))}
    if level == _TCP and option == std.TCP_DEFER_ACCEPT:
        return {"defer_accept_us": max(0, to_int(value)) * SECOND}
    if level != _SOL:
        return None
    match option:
        case std.SO_REUSEADDR:
            return {"reuse_address": bool(to_int(value))}
        case std.SO_REUSEPORT if to_int(value):
            raise NotSupportedError("SO_REUSEPORT shares a port between processes; this stack lives in one")
        case std.SO_RCVLOWAT:
            return {"receive_low_water": max(1, to_int(value))}
        case std.SO_LINGER:
            on, seconds = _unpack("ii", value)
            return {"linger": (bool(on), max(0, seconds))}
        case std.SO_RCVTIMEO:
            return {"receive_timeout_us": _timeval(value)}
        case std.SO_SNDTIMEO:
            return {"send_timeout_us": _timeval(value)}
        case _:
            return None


def socket_value(level: int, option: int, options: SocketOptions) -> int | bytes | None:
    if level == _IP6 and option == std.IPV6_V6ONLY:
        return int(options.v6_only)
    if level == _TCP and option == std.TCP_DEFER_ACCEPT:
        return options.defer_accept_us // SECOND
    if level != _SOL:
        return None
    match option:
        case std.SO_REUSEADDR:
            return int(options.reuse_address)
        case std.SO_REUSEPORT:
            return 0
        case std.SO_RCVLOWAT:
            return options.receive_low_water
        case std.SO_LINGER:
            return struct.pack("ii", *options.linger)
        case std.SO_RCVTIMEO:
            return _pack_timeval(options.receive_timeout_us)
        case std.SO_SNDTIMEO:
            return _pack_timeval(options.send_timeout_us)
        case _:
            return None


def to_int(value: int | bytes) -> int:
    """An integer, also when it comes as the octets of one."""
    if isinstance(value, int):
        return value
    return int(_unpack("i", value)[0])


def _unpack(form: str, value: int | bytes) -> tuple[int, ...]:
    if isinstance(value, int) or len(value) < struct.calcsize(form):
        raise os_error(errno.EINVAL)
    return struct.unpack_from(form, value)


def _timeval(value: int | bytes) -> int:
    seconds, microseconds = _unpack("ll", value)
    if not 0 <= microseconds < SECOND:
        raise os_error(errno.EDOM)
    if seconds < 0:
        return 0
    return (seconds * SECOND + microseconds) or NEVER  # socket(7): zero means never


def _pack_timeval(time_us: int) -> bytes:
    return struct.pack("ll", *divmod(0 if time_us >= NEVER else time_us, SECOND))
