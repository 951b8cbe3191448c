"""A classic BPF program for a packet socket: only frames for the given addresses, and neighbour discovery, come up."""

from __future__ import annotations

import ctypes
import errno
import socket
import struct
from collections.abc import Sequence
from typing import Final

SO_ATTACH_FILTER: Final = 26
LD_WORD, LD_HALF, LD_BYTE = 0x20, 0x28, 0x30  # BPF_LD | BPF_{W,H,B} | BPF_ABS
JUMP, JUMP_EQUAL, RETURN = 0x05, 0x15, 0x06
SKF_PKTTYPE: Final = 0xFFFFF000 + 4  # SKF_AD_OFF + SKF_AD_PKTTYPE
PACKET_OTHERHOST, PACKET_OUTGOING = 3, 4
ETHERTYPE_IPV4, ETHERTYPE_ARP, ETHERTYPE_IPV6 = 0x0800, 0x0806, 0x86DD
ACCEPT_BYTES: Final = 0x40000
#: Addresses one program may name: some 2,000 instructions (of 4,096) if no two IPv6 addresses share a prefix.
MAX_ADDRESSES: Final = 128
ALL_NODES: Final = bytes.fromhex("ff020000000000000000000000000001")

Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, k


def solicited_node(address: bytes) -> bytes:
    """The solicited-node multicast address of an IPv6 address (RFC 4291 §2.7.1)."""
    return bytes.fromhex("ff0200000000000000000001ff") + address[13:]


def program(addresses: Sequence[bytes]) -> list[Instruction]:
    """The instructions for these packed addresses."""
    accept: Instruction = (RETURN, 0, 0, ACCEPT_BYTES)
    reject: Instruction = (RETURN, 0, 0, 0)
    ipv4 = [a for a in addresses if len(a) == 4]
    ipv6 = [a for a in addresses if len(a) == 16]
    groups = dict.fromkeys([*(solicited_node(a) for a in ipv6), *([ALL_NODES] if ipv6 else [])])

    match4: list[Instruction] = [(LD_WORD, 0, 0, 30)]
    for address in ipv4:
        match4 += [(JUMP_EQUAL, 0, 1, int.from_bytes(address, "big")), accept]
    match4.append(reject)
    match6: list[Instruction] = []
    by_prefix: dict[bytes, list[int]] = {}
    for address in (*ipv6, *groups):
        by_prefix.setdefault(address[:12], []).append(int.from_bytes(address[12:], "big"))
    for prefix, endings in by_prefix.items():
        tail: list[Instruction] = [(LD_WORD, 0, 0, 50)]
        for ending in endings:
            tail += [(JUMP_EQUAL, 0, 1, ending), accept]
        tail.append(reject)
        for i, word in enumerate(struct.unpack("!3I", prefix)):
            # Another word: on to the next prefix, past three instructions for each word that is left and the tail.
            match6 += [(LD_WORD, 0, 0, 38 + 4 * i), (JUMP_EQUAL, 1, 0, word), (JUMP, 0, 0, 3 * (2 - i) + len(tail))]
        match6 += tail
    match6.append(reject)

    return [
        (LD_BYTE, 0, 0, SKF_PKTTYPE),
        (JUMP_EQUAL, 1, 0, PACKET_OUTGOING),
        (JUMP_EQUAL, 0, 1, PACKET_OTHERHOST),
        reject,
        (LD_HALF, 0, 0, 12),
        (JUMP_EQUAL, 0, 1, ETHERTYPE_ARP),
        accept if ipv4 else reject,
        (JUMP_EQUAL, 2, 0, ETHERTYPE_IPV4),
        (JUMP_EQUAL, 2, 0, ETHERTYPE_IPV6),
        reject,
        (JUMP, 0, 0, 1),
        (JUMP, 0, 0, len(match4)),
        *match4,
        *match6,
    ]


def attach(sock: socket.socket, instructions: Sequence[Instruction]) -> None:
    """Attaches a program to a socket, in place of the one it had; OSError(ENOMEM) if the system allows none so long."""
    code = b"".join(struct.pack("HBBI", *instruction) for instruction in instructions)
    buffer = ctypes.create_string_buffer(code, len(code))
    # struct sock_fprog: a count and a pointer; the kernel copies the program during the call.
    filter_program = struct.pack("HP", len(instructions), ctypes.addressof(buffer))
    try:
        sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, filter_program)
    except OSError as error:
        if error.errno == errno.ENOMEM:
            raise OSError(
                errno.ENOMEM,
                "no room for a packet filter of so many addresses: raise net.core.optmem_max, or use fewer",
            ) from None
        raise
