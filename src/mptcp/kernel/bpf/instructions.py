"""BPF instructions (RFC 9669): an assembler with labels, as small as its one program needs it.

::

    code = Assembler()
    code.load(8, R7, R1, 8)  # r7 = *(u64 *)(r1 + 8)
    code.jump("==", R7, 0, "out")
    ...
    code.label("out")
    code.move(R0, 0)
    code.exit()
    octets = code.assemble()
"""

from __future__ import annotations

import struct
import sys
from typing import Final

R0, R1, R2, R3, R4, R5, R6, R7, R8, R9, R10 = range(11)

#: The verifier takes a million; nobody here comes near this.
MAX_INSTRUCTIONS: Final = 4096

_INSTRUCTION: Final = struct.Struct("=BBhi")
#: RFC 9669 §3.1: the registers' order in their octet is that of the machine.
_DESTINATION_SHIFT, _SOURCE_SHIFT = (0, 4) if sys.byteorder == "little" else (4, 0)

#: RFC 9669 §3: classes, sources, modes, sizes.
_LDX, _ST, _STX, _JMP, _ALU64 = 0x01, 0x02, 0x03, 0x05, 0x07
_IMMEDIATE, _REGISTER = 0x00, 0x08
_MEM = 0x60
_SIZES: Final = {1: 0x10, 2: 0x08, 4: 0x00, 8: 0x18}
_ADD, _AND, _MOV = 0x00, 0x50, 0xB0
_CALL, _EXIT, _JA = 0x80, 0x90, 0x00
_CONDITIONS: Final = {"==": 0x10, ">": 0x20, ">=": 0x30, "!=": 0x50, "<": 0xA0, "<=": 0xB0}
_LD_IMM64 = 0x18
_PSEUDO_MAP_VALUE = 2


class Assembler:
    """Instructions in the order they are asked for. ValueError for what cannot be encoded."""

    __slots__ = ("_instructions", "_jumps", "_labels")

    def __init__(self) -> None:
        self._instructions: list[tuple[int, int, int, int, int]] = []
        self._jumps: list[tuple[int, str]] = []
        self._labels: dict[str, int] = {}

    def label(self, name: str) -> None:
        """Jumps to ``name`` come here."""
        if name in self._labels:
            raise ValueError(f"there are two labels {name!r}")
        self._labels[name] = len(self._instructions)

    def move(self, destination: int, value: int) -> None:
        """A number, sign-extended from 32 bits."""
        self._emit(_ALU64 | _MOV | _IMMEDIATE, destination, immediate=value)

    def copy(self, destination: int, source: int) -> None:
        """A register."""
        self._emit(_ALU64 | _MOV | _REGISTER, destination, source)

    def add(self, destination: int, value: int) -> None:
        """A number."""
        self._emit(_ALU64 | _ADD | _IMMEDIATE, destination, immediate=value)

    def increment(self, size: int, pointer: int, offset: int, scratch: int) -> None:
        """One more in memory, by way of a register."""
        self.load(size, scratch, pointer, offset)
        self.add(scratch, 1)
        self.store(size, pointer, offset, scratch)

    def load(self, size: int, destination: int, pointer: int, offset: int) -> None:
        """``size`` octets at ``pointer`` + ``offset``, without sign."""
        self._emit(_LDX | _MEM | _SIZES[size], destination, pointer, offset)

    def store(self, size: int, pointer: int, offset: int, source: int) -> None:
        """The lower ``size`` octets of a register."""
        self._emit(_STX | _MEM | _SIZES[size], pointer, source, offset)

    def store_number(self, size: int, pointer: int, offset: int, value: int) -> None:
        """``size`` octets of a number."""
        self._emit(_ST | _MEM | _SIZES[size], pointer, 0, offset, value)

    def jump(self, condition: str, register: int, value: int, target: str) -> None:
        """If the register (64 bits, without sign) compares so with a number."""
        self._jump(_JMP | _CONDITIONS[condition] | _IMMEDIATE, register, 0, value, target)

    def jump_registers(self, condition: str, left: int, right: int, target: str) -> None:
        """If the registers compare so."""
        self._jump(_JMP | _CONDITIONS[condition] | _REGISTER, left, right, 0, target)

    def go(self, target: str) -> None:
        """Always."""
        self._jump(_JMP | _JA, 0, 0, 0, target)

    def call(self, helper: int) -> None:
        """A function of the kernel: arguments in R1 to R5, which are lost, the result in R0."""
        self._emit(_JMP | _CALL, 0, immediate=helper)

    def exit(self) -> None:
        """Returns R0."""
        self._emit(_JMP | _EXIT, 0)

    def load_map_value(self, destination: int, map_fd: int) -> None:
        """The address of the value in an array of one entry; two instructions."""
        self._emit(_LD_IMM64, destination, _PSEUDO_MAP_VALUE, immediate=map_fd)
        self._emit(0, 0)

    def assemble(self) -> bytes:
        """The octets, with every jump at its target."""
        instructions = list(self._instructions)
        if len(instructions) > MAX_INSTRUCTIONS:
            raise ValueError(f"a program has at most {MAX_INSTRUCTIONS} instructions")
        for place, target in self._jumps:
            if target not in self._labels:
                raise ValueError(f"there is no label {target!r}")
            code, destination, source, _, immediate = instructions[place]
            # RFC 9669 §4.3: the offset counts from the instruction after the jump.
            instructions[place] = (code, destination, source, self._labels[target] - place - 1, immediate)
        try:
            return b"".join(
                _INSTRUCTION.pack(code, destination << _DESTINATION_SHIFT | source << _SOURCE_SHIFT, offset, immediate)
                for code, destination, source, offset, immediate in instructions
            )
        except struct.error as error:
            raise ValueError(f"an offset has 16 bits, a number 32: {error}") from None

    def _jump(self, code: int, left: int, right: int, value: int, target: str) -> None:
        self._jumps.append((len(self._instructions), target))
        self._emit(code, left, right, 0, value)

    def _emit(self, code: int, destination: int, source: int = 0, offset: int = 0, immediate: int = 0) -> None:
        if not (R0 <= destination <= R10 and R0 <= source <= R10):
            raise ValueError("the registers are R0 to R10")
        self._instructions.append((code, destination, source, offset, immediate))
