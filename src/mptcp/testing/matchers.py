"""Matchers for segments that say what differs: ``assert host.sends() == [is_tcp(flags=SYN | ACK, mss=1460)]``.

A matcher equals the segments it accepts. ``expect`` gives the readable message; in a plain ``==`` of lists the
representation of the matcher that failed last shows the reason.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from mptcp.core.wire.mptcp_options import MptcpOption
from mptcp.core.wire.segment import ACK, AE, CWR, ECE, FIN, PSH, RST, SYN, URG, Segment

_FLAG_NAMES = (
    (FIN, "FIN"), (SYN, "SYN"), (RST, "RST"), (PSH, "PSH"), (ACK, "ACK"), (URG, "URG"), (ECE, "ECE"), (CWR, "CWR"),
    (AE, "AE"),
)  # fmt: skip


def flag_text(flags: int) -> str:
    """ "SYN|ACK"; "none" without any."""
    return "|".join(name for flag, name in _FLAG_NAMES if flags & flag) or "none"


def describe(segment: Segment) -> str:
    """One line: flags, numbers, length, options."""
    options = repr(segment.options)
    return f"[{flag_text(segment.flags)}] seq={segment.seq} ack={segment.ack} len={segment.length} {options}"


class Matcher(ABC):
    """``mismatch(segment)`` is empty for a match, else a sentence on what differs. ``a & b``, ``a | b``, ``~a``."""

    __slots__ = ("_last",)

    def __init__(self) -> None:
        self._last = ""

    @abstractmethod
    def mismatch(self, segment: Segment) -> str: ...

    @abstractmethod
    def describe(self) -> str: ...

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Segment):
            return self is other
        self._last = self.mismatch(other)
        return not self._last

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<{self.describe()}{f': {self._last}' if self._last else ''}>"

    def __and__(self, other: Matcher) -> Matcher:
        return AllOf(self, other)

    def __or__(self, other: Matcher) -> Matcher:
        return AnyOf(self, other)

    def __invert__(self) -> Matcher:
        return Not(self)


class AllOf(Matcher):
    __slots__ = ("_parts",)

    def __init__(self, *parts: Matcher) -> None:
        super().__init__()
        self._parts = parts

    def mismatch(self, segment: Segment) -> str:
        return "; ".join(filter(None, (part.mismatch(segment) for part in self._parts)))

    def describe(self) -> str:
        return " and ".join(part.describe() for part in self._parts)


class AnyOf(Matcher):
    __slots__ = ("_parts",)

    def __init__(self, *parts: Matcher) -> None:
        super().__init__()
        self._parts = parts

    def mismatch(self, segment: Segment) -> str:
        reasons = [part.mismatch(segment) for part in self._parts]
        return "" if not all(reasons) else " / ".join(reasons)

    def describe(self) -> str:
        return " or ".join(part.describe() for part in self._parts)


class Not(Matcher):
    __slots__ = ("_part",)

    def __init__(self, part: Matcher) -> None:
        super().__init__()
        self._part = part

    def mismatch(self, segment: Segment) -> str:
        return "" if self._part.mismatch(segment) else f"is {self._part.describe()}, and should not be"

    def describe(self) -> str:
        return f"not ({self._part.describe()})"


class Field(Matcher):
    """One value of a segment, compared with the expected one."""

    __slots__ = ("_expected", "_get", "_name", "_show")

    def __init__(
        self, name: str, get: Callable[[Segment], object], expected: object, show: Callable[[object], str] = repr
    ) -> None:
        super().__init__()
        self._name = name
        self._get = get
        self._expected = expected
        self._show = show

    def mismatch(self, segment: Segment) -> str:
        found = self._get(segment)
        if found == self._expected:
            return ""
        return f"{self._name} is {self._show(found)}, not {self._show(self._expected)}"

    def describe(self) -> str:
        return f"{self._name} {self._show(self._expected)}"


class Satisfies(Matcher):
    """A predicate with a name."""

    __slots__ = ("_name", "_predicate")

    def __init__(self, name: str, predicate: Callable[[Segment], bool]) -> None:
        super().__init__()
        self._name = name
        self._predicate = predicate

    def mismatch(self, segment: Segment) -> str:
        return "" if self._predicate(segment) else f"not {self._name}: {describe(segment)}"

    def describe(self) -> str:
        return self._name


def _show_flags(value: object) -> str:
    return flag_text(value) if isinstance(value, int) else repr(value)


def is_tcp(
    *,
    flags: int | None = None,
    seq: int | None = None,
    ack: int | None = None,
    window: int | None = None,
    length: int | None = None,
    payload: bytes | None = None,
    mss: int | None = None,
    window_scale: int | None = None,
    sack_permitted: bool | None = None,
    sack_blocks: Sequence[tuple[int, int]] | None = None,
    timestamp_echo: int | None = None,
    mptcp: MptcpOption | type | Iterable[MptcpOption | type] | None = None,
    ecn: int | None = None,
) -> Matcher:
    """A segment with these values; what is not given does not matter. PSH is not looked at unless ``flags`` has it.

    ``mptcp``: an option or the class of one (or several): each must be there; ``()`` means that there is none.
    """
    parts: list[Matcher] = []
    if flags is not None:
        mask = ~0 if flags & PSH else ~PSH
        parts.append(Field("flags", lambda s: s.flags & mask, flags, _show_flags))
    if seq is not None:
        parts.append(Field("seq", lambda s: s.seq, seq & 0xFFFFFFFF))
    if ack is not None:
        parts.append(Field("ack", lambda s: s.ack, ack & 0xFFFFFFFF))
    if window is not None:
        parts.append(Field("window", lambda s: s.window, window))
    if length is not None:
        parts.append(Field("length", lambda s: s.length, length))
    if payload is not None:
        parts.append(Field("payload", lambda s: s.payload, payload))
    if mss is not None:
        parts.append(Field("mss", lambda s: s.options.mss, mss))
    if window_scale is not None:
        parts.append(Field("window scale", lambda s: s.options.window_scale, window_scale))
    if sack_permitted is not None:
        parts.append(Field("SACK permitted", lambda s: s.options.sack_permitted, sack_permitted))
    if sack_blocks is not None:
        parts.append(Field("SACK blocks", lambda s: s.options.sack_blocks, tuple(sack_blocks)))
    if timestamp_echo is not None:
        parts.append(Field("timestamp echo", lambda s: s.options.timestamp_echo, timestamp_echo))
    if ecn is not None:
        parts.append(Field("ECN", lambda s: s.ecn, ecn))
    if mptcp is not None:
        wanted = tuple(mptcp) if isinstance(mptcp, Iterable) else (mptcp,)
        parts.extend(has_mptcp(option) for option in wanted)
        if not wanted:
            parts.append(Field("MPTCP options", lambda s: s.options.mptcp, ()))
    return AllOf(*parts) if len(parts) != 1 else parts[0]


def has_mptcp(wanted: MptcpOption | type) -> Matcher:
    """One of its MPTCP options is ``wanted``, or is of that class."""
    if isinstance(wanted, type):
        return Satisfies(wanted.__name__, lambda s: any(isinstance(option, wanted) for option in s.options.mptcp))
    return Satisfies(repr(wanted), lambda s: wanted in s.options.mptcp)


def is_syn(**fields: Any) -> Matcher:
    return is_tcp(flags=SYN, **fields)


def is_syn_ack(**fields: Any) -> Matcher:
    return is_tcp(flags=SYN | ACK, **fields)


def is_ack(**fields: Any) -> Matcher:
    """A pure acknowledgement: no payload, no other flag."""
    return is_tcp(flags=ACK, length=0, **fields)


def is_data(**fields: Any) -> Matcher:
    return Satisfies("with data", lambda s: s.length > 0) & is_tcp(**fields)


def is_fin(**fields: Any) -> Matcher:
    return is_tcp(flags=FIN | ACK, **fields)


def is_rst(**fields: Any) -> Matcher:
    return Satisfies("RST", lambda s: bool(s.flags & RST)) & is_tcp(**fields)


def expect(segments: Sequence[Segment], *matchers: Matcher) -> None:
    """AssertionError, with all segments and the first difference, unless each matcher accepts its segment in turn."""
    problem = ""
    for index, (segment, matcher) in enumerate(zip(segments, matchers, strict=False)):
        reason = matcher.mismatch(segment)
        if reason:
            problem = f"segment {index}: {reason}"
            break
    if not problem and len(segments) != len(matchers):
        problem = f"{len(segments)} segments instead of {len(matchers)}"
    if problem:
        lines = [problem, "segments:", *(f"  {describe(segment)}" for segment in segments)]
        lines += ["expected:", *(f"  {matcher.describe()}" for matcher in matchers)]
        raise AssertionError("\n".join(lines))
