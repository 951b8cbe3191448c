"""The seccomp filter (classic BPF): which system calls wait for the supervisor's answer; all others pass at once.

It looks at registers only, and at the low 32 bits of arguments, as the kernel does with an ``int``. Other ABIs of the
same processor (i386, x32) pass untouched.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from mptcp.errors import NotSupportedError

# <linux/bpf_common.h>
BPF_LD_W_ABS: Final = 0x20
BPF_JEQ_K: Final = 0x15
BPF_AND_K: Final = 0x54
BPF_RET_K: Final = 0x06

# <linux/seccomp.h>
SECCOMP_RET_USER_NOTIF: Final = 0x7FC00000
SECCOMP_RET_ALLOW: Final = 0x7FFF0000
#: Offsets in ``struct seccomp_data``, little-endian.
NUMBER, ARCHITECTURE, ARGUMENTS = 0, 4, 16

AF_INET: Final = 2
AF_INET6: Final = 10
SOCK_STREAM: Final = 1
SOCK_NONBLOCK: Final = 0o4000
SOCK_CLOEXEC: Final = 0o2000000
IPPROTO_TCP: Final = 6

#: The kernel takes no longer program (BPF_MAXINSNS).
MAX_INSTRUCTIONS: Final = 4096
#: A conditional jump goes forward by so many instructions at most.
MAX_JUMP: Final = 255


@dataclass(frozen=True, slots=True)
class Architecture:
    """The numbers of a processor's own ABI: AUDIT_ARCH_*, and of the system calls that are watched or made."""

    name: str
    audit: int
    socket: int
    connect: int
    bind: int
    setsockopt: int
    seccomp: int


ARCHITECTURES: Final[Mapping[str, Architecture]] = {
    "x86_64": Architecture("x86_64", 0xC000003E, 41, 42, 49, 54, 317),
    "aarch64": Architecture("aarch64", 0xC00000B7, 198, 203, 200, 208, 277),
}


def own_architecture() -> Architecture:
    """That of this process; NotSupportedError where the filter does not know it."""
    machine = os.uname().machine
    if struct.calcsize("P") != 8:
        raise NotSupportedError(f"this is a 32-bit Python on {machine}: use a 64-bit one")
    try:
        return ARCHITECTURES[machine]
    except KeyError:
        raise NotSupportedError(
            f"the numbers of system calls are known for {' and '.join(ARCHITECTURES)}, not for {machine}"
        ) from None


@dataclass(frozen=True, slots=True)
class Instruction:
    """One ``struct sock_filter``; ``then`` and ``otherwise`` are how many instructions a jump leaves out."""

    code: int
    k: int
    then: int = 0
    otherwise: int = 0

    def emit(self) -> bytes:
        return struct.pack("=HBBI", self.code, self.then, self.otherwise, self.k)


class Assembler:
    """Instructions with labels: jumps go forward, to what ``label`` names later."""

    __slots__ = ("_labels", "_lines")

    def __init__(self) -> None:
        self._lines: list[tuple[int, int, str, str]] = []  # code, k, label if equal, label if not ("": the next one)
        self._labels: dict[str, int] = {}

    def load(self, offset: int) -> None:
        """The accumulator becomes a 32-bit word of ``struct seccomp_data``."""
        self._lines.append((BPF_LD_W_ABS, offset, "", ""))

    def load_argument(self, index: int) -> None:
        self.load(ARGUMENTS + 8 * index)

    def mask(self, bits: int) -> None:
        self._lines.append((BPF_AND_K, bits, "", ""))

    def jump_if(self, value: int, then: str = "", otherwise: str = "") -> None:
        self._lines.append((BPF_JEQ_K, value, then, otherwise))

    def give(self, action: int) -> None:
        """Ends the program with this action."""
        self._lines.append((BPF_RET_K, action, "", ""))

    def label(self, name: str) -> None:
        """The next instruction's name."""
        if name in self._labels:
            raise ValueError(f"label {name} is there twice")
        self._labels[name] = len(self._lines)

    def instructions(self) -> list[Instruction]:
        """The program; ValueError if a jump goes nowhere, backwards or too far."""
        if len(self._lines) > MAX_INSTRUCTIONS:
            raise ValueError(f"{len(self._lines)} instructions are more than {MAX_INSTRUCTIONS}")
        return [
            Instruction(code, k, self._distance(at, then), self._distance(at, otherwise))
            for at, (code, k, then, otherwise) in enumerate(self._lines)
        ]

    def _distance(self, at: int, label: str) -> int:
        if not label:
            return 0
        if label not in self._labels:
            raise ValueError(f"no label {label}")
        distance = self._labels[label] - at - 1
        if not 0 <= distance <= MAX_JUMP:
            raise ValueError(f"the jump from {at} to {label} is {distance} instructions long")
        return distance


def socket_filter(
    architecture: Architecture, options: Iterable[tuple[int, int]] = (), *, addresses: bool = False
) -> list[Instruction]:
    """The filter: socket(2) for TCP streams, setsockopt(2) of ``options`` (level, name), bind and connect if ``addresses``."""
    levels: dict[int, list[int]] = {}
    for level, name in options:
        levels.setdefault(level, []).append(name)
    program = Assembler()
    program.load(ARCHITECTURE)
    program.jump_if(architecture.audit, otherwise="allow")
    program.load(NUMBER)
    program.jump_if(architecture.socket, then="socket")
    if addresses:
        program.jump_if(architecture.connect, then="notify")
        program.jump_if(architecture.bind, then="notify")
    if levels:
        program.jump_if(architecture.setsockopt, then="setsockopt")
    program.give(SECCOMP_RET_ALLOW)

    program.label("socket")
    program.load_argument(0)
    program.jump_if(AF_INET, then="type")
    program.jump_if(AF_INET6, otherwise="allow")
    program.label("type")
    program.load_argument(1)
    # Any other bit is an error, which the kernel will find.
    program.mask(0xFFFFFFFF ^ (SOCK_CLOEXEC | SOCK_NONBLOCK))
    program.jump_if(SOCK_STREAM, otherwise="allow")
    program.load_argument(2)
    program.jump_if(0, then="notify")
    program.jump_if(IPPROTO_TCP, then="notify", otherwise="allow")

    if levels:
        program.label("setsockopt")
        program.load_argument(1)
        for level in levels:
            program.jump_if(level, then=f"level {level}")
        program.give(SECCOMP_RET_ALLOW)
        for level, names in levels.items():
            program.label(f"level {level}")
            program.load_argument(2)
            for name in names:
                program.jump_if(name, then="notify")
            program.give(SECCOMP_RET_ALLOW)

    program.label("notify")
    program.give(SECCOMP_RET_USER_NOTIF)
    program.label("allow")
    program.give(SECCOMP_RET_ALLOW)
    return program.instructions()


def emit(program: Sequence[Instruction]) -> bytes:
    """The program as an array of ``struct sock_filter``."""
    return b"".join(instruction.emit() for instruction in program)
