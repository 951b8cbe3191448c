"""The packet filter, run by an interpreter of the instructions it uses, and checked by the kernel's verifier."""

import ipaddress
import socket
from collections.abc import Sequence

import pytest

from mptcp.links import _bpf
from mptcp.links._bpf import Instruction, program

OURS = ("10.77.1.1", "10.77.1.9", "fd77:1::1", "fd77:1::a:9", "fd99::7")


def ip(text: str) -> bytes:
    return ipaddress.ip_address(text).packed


def run(instructions: Sequence[Instruction], frame: bytes, packet_type: int) -> bool:
    """Whether a filter lets a frame pass; a load beyond the frame rejects it, as in the kernel."""
    counter = accumulator = 0
    while True:
        code, jump_true, jump_false, k = instructions[counter]
        counter += 1
        match code:
            case 0x20 | 0x28 | 0x30:
                size = {0x20: 4, 0x28: 2, 0x30: 1}[code]
                if k == 0xFFFFF004:
                    accumulator = packet_type
                elif k + size > len(frame):
                    return False
                else:
                    accumulator = int.from_bytes(frame[k : k + size], "big")
            case 0x05:
                counter += k
            case 0x15:
                counter += jump_true if accumulator == k else jump_false
            case 0x06:
                return k > 0
            case _:
                raise AssertionError(f"unexpected instruction {code:#x}")


def frame(ethertype: int, destination: str) -> bytes:
    packed = ip(destination)
    body = bytes(16) + packed if len(packed) == 4 else bytes(24) + packed
    return bytes(12) + ethertype.to_bytes(2, "big") + body + bytes(20)


@pytest.mark.parametrize(
    ("ethertype", "destination", "expected"),
    [
        (0x0800, "10.77.1.1", True),
        (0x0800, "10.77.1.9", True),
        (0x0800, "10.77.1.2", False),
        (0x0800, "255.255.255.255", False),
        (0x86DD, "fd77:1::1", True),
        (0x86DD, "fd77:1::a:9", True),
        (0x86DD, "fd99::7", True),
        (0x86DD, "fd99::1", False),
        (0x86DD, "fd77:1::2", False),
        (0x86DD, "fd77:2::1", False),
        (0x86DD, "ff02::1", True),
        (0x86DD, "ff02::1:ff00:1", True),  # solicited-node groups of our addresses
        (0x86DD, "ff02::1:ff0a:9", True),
        (0x86DD, "ff02::1:ff00:2", False),
        (0x86DD, "ff02::2", False),
        (0x0806, "10.0.0.1", True),
        (0x88CC, "10.77.1.1", False),
    ],
)
def test_only_what_is_for_us(ethertype: int, destination: str, expected: bool) -> None:
    instructions = program([ip(a) for a in OURS])
    for packet_type in (0, 1, 2):  # to this host, broadcast, multicast
        assert run(instructions, frame(ethertype, destination), packet_type) is expected
    for packet_type in (3, 4):  # to another host, outgoing
        assert not run(instructions, frame(ethertype, destination), packet_type)


def test_short_frames_are_rejected() -> None:
    instructions = program([ip(a) for a in OURS])
    for length in range(34):
        assert not run(instructions, frame(0x0800, "10.77.1.1")[:length], 0)


def test_families_without_an_address_are_silent() -> None:
    only_ipv6 = program([ip("fd77:1::1")])
    assert not run(only_ipv6, frame(0x0806, "10.0.0.1"), 0)
    assert not run(only_ipv6, frame(0x0800, "10.77.1.1"), 0)
    only_ipv4 = program([ip("10.77.1.1")])
    assert not run(only_ipv4, frame(0x86DD, "ff02::1"), 0)


@pytest.mark.parametrize("count", [0, 1, 64])
def test_the_kernel_accepts_the_program(count: int) -> None:
    addresses = [ip(f"10.0.0.{i}") for i in range(count)] + [ip(f"fd00::{i:x}") for i in range(count)]
    assert len(addresses) <= _bpf.MAX_ADDRESSES
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        _bpf.attach(sock, program(addresses))
        _bpf.attach(sock, program(addresses[:1]))  # replaces the first


def test_the_longest_program_fits() -> None:
    addresses = [ip(f"fd00:{i:x}::1") for i in range(_bpf.MAX_ADDRESSES)]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        _bpf.attach(sock, program(addresses))
