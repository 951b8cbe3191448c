"""The assembler, octet by octet (RFC 9669)."""

import struct
import sys

import pytest

from mptcp.kernel.bpf.instructions import MAX_INSTRUCTIONS, R0, R1, R2, R6, R8, R10, Assembler

pytestmark = pytest.mark.skipif(
    sys.byteorder != "little", reason="the expected octets are those of little-endian machines"
)


def test_each_instruction() -> None:
    code = Assembler()
    code.move(R0, -1)
    code.copy(R6, R1)
    code.add(R2, 64)
    code.load(1, R1, R6, 18)
    code.load(2, R1, R6, -2)
    code.load(4, R1, R6, 0)
    code.load(8, R1, R6, 8)
    code.store(8, R10, -16, R0)
    code.store_number(4, R8, 4, 7)
    code.call(49)
    code.exit()
    expected = [
        "b7 00 0000 ffffffff", "bf 16 0000 00000000", "07 02 0000 40000000", "71 61 1200 00000000",
        "69 61 feff 00000000", "61 61 0000 00000000", "79 61 0800 00000000", "7b 0a f0ff 00000000",
        "62 08 0400 07000000", "85 00 0000 31000000", "95 00 0000 00000000",
    ]  # fmt: skip
    assert code.assemble() == bytes.fromhex("".join(expected))


def test_jumps_count_from_the_next_instruction() -> None:
    code = Assembler()
    code.label("start")
    code.jump("==", R1, 5, "end")
    code.jump_registers("!=", R1, R2, "end")
    code.jump(">", R1, 6, "start")
    code.go("end")
    code.label("end")
    code.exit()
    expected = [
        "15 01 0300 05000000",
        "5d 21 0200 00000000",
        "25 01 fdff 06000000",
        "05 00 0000 00000000",
        "95" + "00" * 7,
    ]
    assert code.assemble() == bytes.fromhex("".join(expected))


def test_the_address_of_a_map_takes_two() -> None:
    code = Assembler()
    code.jump("!=", R1, 0, "after")
    code.load_map_value(R8, 33)
    code.label("after")
    code.exit()
    octets = code.assemble()
    assert octets[8:24] == bytes.fromhex("18 28 0000 21000000 0000 0000 00000000")
    assert struct.unpack_from("<h", octets, 2) == (2,)


def test_increment_goes_through_a_register() -> None:
    one, other = Assembler(), Assembler()
    one.increment(4, R8, 60, R1)
    other.load(4, R1, R8, 60)
    other.add(R1, 1)
    other.store(4, R8, 60, R1)
    assert one.assemble() == other.assemble()


def test_what_cannot_be_encoded() -> None:
    code = Assembler()
    code.go("nowhere")
    with pytest.raises(ValueError, match="no label 'nowhere'"):
        code.assemble()
    code.label("nowhere")
    with pytest.raises(ValueError, match="two labels"):
        code.label("nowhere")
    with pytest.raises(ValueError, match="R0 to R10"):
        code.move(11, 0)
    for wrong in ((R0, 1 << 31), (R0, -(1 << 31) - 1)):
        code = Assembler()
        code.move(*wrong)
        with pytest.raises(ValueError, match="32"):
            code.assemble()
    code = Assembler()
    for _ in range(MAX_INSTRUCTIONS + 1):
        code.exit()
    with pytest.raises(ValueError, match="at most"):
        code.assemble()
