"""The filter, run by a small interpreter of classic BPF for each system call and argument that matters."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mptcp.errors import NotSupportedError
from mptcp.kernel.launch import filter as bpf
from mptcp.kernel.launch.filter import ARCHITECTURES, Architecture, Assembler, Instruction

X86_64, AARCH64 = ARCHITECTURES["x86_64"], ARCHITECTURES["aarch64"]
AUDIT_ARCH_I386, X32_BIT = 0x40000003, 0x40000000
NOTIFY, ALLOW = bpf.SECCOMP_RET_USER_NOTIF, bpf.SECCOMP_RET_ALLOW
CLOEXEC, NONBLOCK = bpf.SOCK_CLOEXEC, bpf.SOCK_NONBLOCK
OPTIONS = ((6, 31), (6, 18), (1, 60), (0, 2))


def interpret(program: list[Instruction], data: bytes) -> tuple[int, set[int]]:
    """What the program says about a ``struct seccomp_data``, and the offsets it has read."""
    accumulator = 0
    at = 0
    read = set()
    while True:
        instruction = program[at]
        at += 1
        match instruction.code:
            case 0x20:  # LD W ABS
                (accumulator,) = struct.unpack_from("=I", data, instruction.k)
                read.add(instruction.k)
            case 0x15:  # JEQ K
                at += instruction.then if accumulator == instruction.k else instruction.otherwise
            case 0x54:  # AND K
                accumulator &= instruction.k
            case 0x06:  # RET K
                return instruction.k, read
            case other:
                raise AssertionError(f"instruction {other:#x} is not known")


def seccomp_data(audit: int, number: int, *arguments: int) -> bytes:
    padded = [*arguments, *(0xDEAD_BEEF_DEAD_BEEF for _ in range(6 - len(arguments)))]
    return struct.pack("=iIQ6Q", number - (1 << 32) if number >> 31 else number, audit, 0x7FFF_1234_5678, *padded)


def verdict(program: list[Instruction], audit: int, number: int, *arguments: int) -> int:
    return interpret(program, seccomp_data(audit, number, *arguments))[0]


both = pytest.mark.parametrize("architecture", [X86_64, AARCH64], ids=lambda architecture: architecture.name)


@both
@pytest.mark.parametrize("family", [2, 10])
@pytest.mark.parametrize("kind", [1, 1 | CLOEXEC, 1 | NONBLOCK, 1 | CLOEXEC | NONBLOCK])
@pytest.mark.parametrize("protocol", [0, 6])
def test_tcp_streams_are_asked_about(architecture: Architecture, family: int, kind: int, protocol: int) -> None:
    program = bpf.socket_filter(architecture)
    assert verdict(program, architecture.audit, architecture.socket, family, kind, protocol) == NOTIFY


@both
@pytest.mark.parametrize(
    "arguments",
    [
        (1, 1, 0),  # AF_UNIX
        (16, 3, 0),  # AF_NETLINK
        (40, 1, 0),  # AF_VSOCK
        (2, 2, 0),  # SOCK_DGRAM
        (2, 2 | CLOEXEC, 17),
        (2, 3, 6),  # SOCK_RAW
        (2, 5, 0),  # SOCK_SEQPACKET
        (2, 1, 262),  # is MPTCP already
        (2, 1, 132),  # SCTP
        (2, 1 | 0x10, 0),  # a bit that the kernel does not know: EINVAL is its business
        (2, 0, 0),
        (0xFFFF_FFFF, 1, 0),
    ],
)
def test_other_sockets_pass(architecture: Architecture, arguments: tuple[int, ...]) -> None:
    program = bpf.socket_filter(architecture, OPTIONS, addresses=True)
    assert verdict(program, architecture.audit, architecture.socket, *arguments) == ALLOW


@both
def test_arguments_are_ints_for_the_kernel_and_the_filter(architecture: Architecture) -> None:
    garbage = 0xABCD_EF01 << 32
    program = bpf.socket_filter(architecture)
    assert verdict(program, architecture.audit, architecture.socket, garbage | 2, garbage | 1, garbage | 6) == NOTIFY


@both
def test_other_abis_pass_untouched(architecture: Architecture) -> None:
    program = bpf.socket_filter(architecture, OPTIONS, addresses=True)
    for number in (architecture.socket, architecture.connect, architecture.setsockopt, 359, 281):
        assert verdict(program, AUDIT_ARCH_I386, number, 2, 1, 0) == ALLOW
        assert verdict(program, architecture.audit, number | X32_BIT, 2, 1, 0) == ALLOW
    other = AARCH64 if architecture is X86_64 else X86_64
    assert verdict(program, other.audit, architecture.socket, 2, 1, 0) == ALLOW


@both
def test_only_the_options_asked_for_are_asked_about(architecture: Architecture) -> None:
    program = bpf.socket_filter(architecture, OPTIONS)
    for level in (0, 1, 6, 41, 284):
        for name in range(70):
            expected = NOTIFY if (level, name) in OPTIONS else ALLOW
            assert verdict(program, architecture.audit, architecture.setsockopt, 5, level, name) == expected
    assert verdict(bpf.socket_filter(architecture), architecture.audit, architecture.setsockopt, 5, 6, 31) == ALLOW


@both
def test_connect_and_bind_are_asked_about_only_if_addresses_matter(architecture: Architecture) -> None:
    for number in (architecture.connect, architecture.bind):
        assert verdict(bpf.socket_filter(architecture, OPTIONS), architecture.audit, number, 3, 0, 16) == ALLOW
        assert verdict(bpf.socket_filter(architecture, addresses=True), architecture.audit, number, 3, 0, 16) == NOTIFY


@both
def test_what_is_not_watched_is_decided_by_its_number_alone(architecture: Architecture) -> None:
    """Then the kernel decides once, when the filter is installed, and reading and writing cost nothing more."""
    program = bpf.socket_filter(architecture, OPTIONS, addresses=True)
    watched = {architecture.socket, architecture.connect, architecture.bind, architecture.setsockopt}
    for number in set(range(500)) - watched:
        action, read = interpret(program, seccomp_data(architecture.audit, number))
        assert action == ALLOW
        assert read <= {bpf.NUMBER, bpf.ARCHITECTURE}


@given(
    st.sampled_from([X86_64.audit, AUDIT_ARCH_I386, AARCH64.audit]),
    st.sampled_from([41, 42, 49, 54, 0, 1, 41 | X32_BIT]),
    st.sampled_from([0, 1, 2, 10, 6, 41]),
    st.sampled_from([0, 1, 2, 6, 31, 1 | CLOEXEC, 1 | NONBLOCK, 1 | CLOEXEC | 64]),
    st.sampled_from([0, 6, 17, 18, 31, 60, 262]),
)
def test_it_says_what_a_predicate_says(audit: int, number: int, first: int, second: int, third: int) -> None:
    program = bpf.socket_filter(X86_64, OPTIONS, addresses=True)
    expected = audit == X86_64.audit and (
        number in {42, 49}
        or (number == 41 and first in {2, 10} and second & ~(CLOEXEC | NONBLOCK) == 1 and third in {0, 6})
        or (number == 54 and (second, third) in OPTIONS)
    )
    assert verdict(program, audit, number, first, second, third) == (NOTIFY if expected else ALLOW)


def test_the_program_as_octets() -> None:
    assert bpf.emit([Instruction(0x15, 0xC000003E, 0, 9)]) == b"\x15\x00\x00\x09\x3e\x00\x00\xc0"
    program = bpf.socket_filter(X86_64)
    assert len(bpf.emit(program)) == 8 * len(program)


def test_the_assembler_finds_wrong_jumps() -> None:
    backwards = Assembler()
    backwards.label("here")
    backwards.load(0)
    backwards.jump_if(1, then="here")
    nowhere = Assembler()
    nowhere.jump_if(1, then="there")
    far = Assembler()
    far.jump_if(1, then="far")
    for _ in range(256):
        far.load(0)
    far.label("far")
    far.give(ALLOW)
    for program in (backwards, nowhere, far):
        with pytest.raises(ValueError, match=r"jump|no label"):
            program.instructions()
    with pytest.raises(ValueError, match="twice"):
        backwards.label("here")
    long = Assembler()
    for _ in range(bpf.MAX_INSTRUCTIONS + 1):
        long.load(0)
    with pytest.raises(ValueError, match="more than"):
        long.instructions()


def test_other_machines_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class Machine:
        machine = "vax"

    monkeypatch.setattr(bpf.os, "uname", Machine)
    with pytest.raises(NotSupportedError, match="not for vax"):
        bpf.own_architecture()
