"""The kernel's description of its own types (BTF): where a member is in a structure, which number a function has.

Read from /sys/kernel/btf/vmlinux, which has megabytes, once in a process. Whatever is in the file, what comes out is an
answer or a ``BtfError``.
"""

from __future__ import annotations

import errno
import struct
import sys
from array import array
from pathlib import Path
from typing import Final

from mptcp.errors import NotSupportedError

VMLINUX: Final = Path("/sys/kernel/btf/vmlinux")
#: The description of a kernel with everything in it has some 10 MB.
MAX_BYTES: Final = 64 << 20

_MAGIC: Final = 0xEB9F
#: magic, version, flags, length of the header; offset and length of the types, offset and length of the strings
_HEADER: Final = struct.Struct("=HBBIIIII")

#: BTF_KIND_* (linux/btf.h)
KIND_STRUCT: Final = 4
KIND_UNION: Final = 5
KIND_FUNC: Final = 12
_KIND_TYPEDEF: Final = 8
_QUALIFIERS: Final = frozenset({_KIND_TYPEDEF, 9, 10, 11, 18})  # typedef, volatile, const, restrict, type tag
#: Words (of four octets) of a type, and of each of its members; every kind there is has its entry.
_FIXED: Final = dict.fromkeys(range(1, 20), 3) | {1: 4, 3: 6, 14: 4, 17: 4}
_PER_MEMBER: Final = {4: 3, 5: 3, 6: 2, 13: 2, 15: 3, 19: 3}
#: A member may be in an anonymous structure in an anonymous union ...: in so many of them at most.
_MAX_STRUCTURES: Final = 256
_MAX_QUALIFIERS: Final = 16


class BtfError(NotSupportedError):
    """The description is missing, is none, or does not have what is looked for."""


class Btf:
    """The types in ``data``. BtfError if it is no BTF of this machine's byte order."""

    __slots__ = ("_offsets", "_strings", "_words")

    def __init__(self, data: bytes) -> None:
        if len(data) < _HEADER.size:
            raise BtfError(f"a description of types has a header of {_HEADER.size} octets")
        magic, version, _, header, type_offset, type_length, string_offset, string_length = _HEADER.unpack_from(data)
        if magic != _MAGIC or version != 1:
            raise BtfError(f"this is no description of types (BTF 1) in {sys.byteorder}-endian order")
        types, strings = header + type_offset, header + string_offset
        if types + type_length > len(data) or strings + string_length > len(data) or type_length % 4:
            raise BtfError("the description of types is cut short")
        # Type 0 is void and is not in the file.
        self._words = memoryview(data[types : types + type_length]).cast("I")
        self._strings = data[strings : strings + string_length]
        self._offsets = self._index()

    def _index(self) -> array[int]:
        """Where each type begins: the only way to its number is to count."""
        words, end = self._words, len(self._words)
        fixed = [_FIXED.get(kind, 0) for kind in range(32)]
        per_member = [_PER_MEMBER.get(kind, 0) for kind in range(32)]
        offsets = array("I", [0])
        append = offsets.append
        offset = 0
        while offset + 3 <= end:
            append(offset)
            info = words[offset + 1]
            kind = info >> 24 & 31
            size = fixed[kind]
            if not size:
                raise BtfError(f"types of kind {kind} are not known here")
            offset += size + per_member[kind] * (info & 0xFFFF)
        if offset != end:
            raise BtfError("the last type is cut short")
        return offsets

    def __len__(self) -> int:
        return len(self._offsets)

    def find(self, name: str, kind: int) -> int:
        """The number of the first type of that name and kind."""
        text = name.encode() + b"\0"
        words, strings, offsets = self._words, self._strings, self._offsets
        # Names are kept once each, but a name may also be the end of a longer one.
        places = set()
        place = strings.find(text)
        while place >= 0:
            if not place or not strings[place - 1]:
                places.add(place)
            place = strings.find(text, place + 1)
        if places:
            for number in range(1, len(offsets)):
                offset = offsets[number]
                if words[offset] in places and words[offset + 1] >> 24 & 31 == kind:
                    return number
        raise BtfError(f"this kernel has no {_NAMES.get(kind, 'type')} {name}")

    def member(self, structure: str, name: str) -> int:
        """The offset in octets of a member, in anonymous structures inside, too."""
        found = self._member(self.find(structure, KIND_STRUCT), name.encode(), set())
        if found is None:
            raise BtfError(f"struct {structure} of this kernel has no member {name}")
        if found % 8:
            raise BtfError(f"{name} in struct {structure} of this kernel is a bit field")
        return found // 8

    def _member(self, number: int, name: bytes, seen: set[int]) -> int | None:
        """The offset in bits. ``seen``: structures that have been looked through, or are being."""
        if number in seen or len(seen) > _MAX_STRUCTURES:
            return None
        seen.add(number)
        words = self._words
        offset = self._offsets[number]
        info = words[offset + 1]
        for member in range(offset + 3, offset + 3 + 3 * (info & 0xFFFF), 3):
            bits = words[member + 2]
            if info >> 31:  # the upper octet is the size of a bit field
                bits &= 0xFFFFFF
            own = self._name(words[member])
            if own == name:
                return bits
            if not own:
                inner = self._structure(words[member + 1])
                inside = None if inner is None else self._member(inner, name, seen)
                if inside is not None:
                    return bits + inside
        return None

    def _structure(self, number: int) -> int | None:
        """The structure or union that a type is, past qualifiers; None: it is something else."""
        for _ in range(_MAX_QUALIFIERS):
            if not 0 < number < len(self._offsets):
                return None
            offset = self._offsets[number]
            kind = self._words[offset + 1] >> 24 & 31
            if kind in (KIND_STRUCT, KIND_UNION):
                return number
            if kind not in _QUALIFIERS:
                return None
            number = self._words[offset + 2]
        return None

    def _name(self, offset: int) -> bytes:
        end = self._strings.find(b"\0", offset)
        return self._strings[offset:end] if end >= 0 else b"\xff"


_NAMES: Final = {KIND_STRUCT: "structure", KIND_UNION: "union", KIND_FUNC: "function"}


def read(path: Path = VMLINUX) -> Btf:
    """The running kernel's. BtfError if it has none."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        if error.errno == errno.ENOENT:
            raise BtfError(f"this kernel does not describe its types ({path}): CONFIG_DEBUG_INFO_BTF is off") from None
        raise BtfError(f"the kernel's types cannot be read: {path}: {error.strerror}") from None
    if len(data) > MAX_BYTES:
        raise BtfError(f"{path} has more than {MAX_BYTES >> 20} MiB")
    return Btf(data)
