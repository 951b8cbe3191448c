"""The system call ``bpf``: a map, a program that visits the TCP sockets of a network namespace, a visit."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import struct
from typing import Final

from mptcp.errors import NotSupportedError

#: Its number by ``os.uname().machine``, for programs of 64 bits (asm/unistd.h).
SYSCALLS: Final = {"x86_64": 321, "aarch64": 280}
#: What is in a refusal: the end of the verifier's log is where it says why.
LOG_BYTES: Final = 1 << 16
LOG_TAIL: Final = 1000

#: BPF_* commands, types (linux/bpf.h)
_MAP_CREATE: Final = 0
_MAP_LOOKUP: Final = 1
_MAP_UPDATE: Final = 2
_PROG_LOAD: Final = 5
_LINK_CREATE: Final = 28
_ITER_CREATE: Final = 33
_MAP_TYPE_ARRAY: Final = 2
_PROG_TYPE_TRACING: Final = 26
_TRACE_ITER: Final = 28

#: Leading members of ``union bpf_attr`` for each command.
_OF_MAP: Final = struct.Struct("=IIIIIII16s")
_OF_ENTRY: Final = struct.Struct("=I4xQQQ")
_OF_PROGRAM: Final = struct.Struct("=IIQQIIQII16sIIIIQIIQIIII")
_OF_LINK: Final = struct.Struct("=IIII")
_OF_ITERATOR: Final = struct.Struct("=II")

NEEDS_CAPABILITIES: Final = (
    "programs in the kernel need CAP_BPF and CAP_PERFMON in the first user namespace: run `mptcp broker` as root, or give "
    "the program the capabilities"
)

_libc = ctypes.CDLL(None, use_errno=True)


def system_call() -> int:
    """The number of ``bpf`` on this machine. NotSupportedError where it is not known."""
    machine = os.uname().machine
    number = SYSCALLS.get(machine)
    if number is None or ctypes.sizeof(ctypes.c_void_p) != 8:
        raise NotSupportedError(
            f"the system call bpf is not known on {machine} with {8 * ctypes.sizeof(ctypes.c_void_p)}-bit programs: it is "
            f"on {' and '.join(SYSCALLS)}"
        )
    return number


def call(command: int, attributes: bytes, what: str) -> int:
    """One command; a descriptor, or 0. PermissionError with what is needed; other errors with ``what`` before them."""
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    result: int = _libc.syscall(system_call(), command, buffer, len(attributes))
    if result < 0:
        number = ctypes.get_errno()
        if number == errno.EPERM:
            raise PermissionError(errno.EPERM, f"{what}: {NEEDS_CAPABILITIES}")
        if number == errno.ENOSYS:
            raise NotSupportedError(f"{what}: this kernel has no BPF (CONFIG_BPF_SYSCALL)")
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


class Cell:
    """An array of one entry of ``size`` octets that a program in the kernel and this process both read and write."""

    __slots__ = ("_buffer", "_key", "fd", "size")

    def __init__(self, size: int, name: str) -> None:
        self.size = size
        self._key = ctypes.c_uint32(0)
        self._buffer = ctypes.create_string_buffer(size)
        self.fd = call(
            _MAP_CREATE, _OF_MAP.pack(_MAP_TYPE_ARRAY, 4, size, 1, 0, 0, 0, name.encode()[:15]), "making a map"
        )

    def write(self, content: bytes) -> None:
        """``content``, and zeros after it. ValueError if it is too long."""
        if len(content) > self.size:
            raise ValueError(f"there is room for {self.size} octets")
        self._buffer.raw = content.ljust(self.size, b"\0")
        call(_MAP_UPDATE, self._entry(), "writing to a map")

    def read(self) -> bytes:
        call(_MAP_LOOKUP, self._entry(), "reading from a map")
        return self._buffer.raw

    def close(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def _entry(self) -> bytes:
        return _OF_ENTRY.pack(self.fd, ctypes.addressof(self._key), ctypes.addressof(self._buffer), 0)


class SocketVisitor:
    """A program that the kernel runs once for every TCP socket of a namespace, whenever ``visit`` is called.

    ``code``: assembled instructions; ``function``: the BTF number of ``bpf_iter_tcp``. What the kernel's verifier has to
    say about the program is in the error.
    """

    __slots__ = ("_link", "_program")

    def __init__(self, code: bytes, function: int, name: str) -> None:
        self._link = -1
        self._program = load(code, function, name)
        try:
            self._link = call(_LINK_CREATE, _OF_LINK.pack(self._program, 0, _TRACE_ITER, 0), "making an iterator")
        except BaseException:
            self.close()
            raise

    def visit(self) -> None:
        """The sockets of the namespace in which the calling thread is."""
        iterator = call(_ITER_CREATE, _OF_ITERATOR.pack(self._link, 0), "starting an iterator")
        try:
            while True:
                try:
                    if not os.read(iterator, 4096):
                        return
                except BlockingIOError:
                    continue  # a million sockets have been visited without a word of the program: it goes on from there
        finally:
            os.close(iterator)

    def close(self) -> None:
        """Twice is as good as once."""
        program, link, self._program, self._link = self._program, self._link, -1, -1
        for fd in (link, program):
            if fd >= 0:
                os.close(fd)


def load(code: bytes, function: int, name: str) -> int:
    """The descriptor of a program. NotSupportedError, with the verifier's words, if this kernel does not take it."""
    octets = ctypes.create_string_buffer(code, len(code))
    licence = ctypes.create_string_buffer(b"GPL")  # some of the kernel's functions ask for it
    log = ctypes.create_string_buffer(LOG_BYTES)

    def attributes(verbose: bool) -> bytes:
        return _OF_PROGRAM.pack(
            _PROG_TYPE_TRACING, len(code) // 8, ctypes.addressof(octets), ctypes.addressof(licence), verbose,
            LOG_BYTES * verbose, ctypes.addressof(log) * verbose, 0, 0, name.encode()[:15], 0, _TRACE_ITER, 0, 0, 0, 0, 0, 0,
            0, function, 0, 0,
        )  # fmt: skip

    what = "loading a program into the kernel"
    try:
        return call(_PROG_LOAD, attributes(False), what)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EINVAL, errno.E2BIG):
            raise
    # Writing the log costs more than the check itself: only a refusal is worth it.
    with contextlib.suppress(OSError):
        return call(_PROG_LOAD, attributes(True), what)
    said = log.value.decode("utf-8", "replace").strip()[-LOG_TAIL:]
    raise NotSupportedError(f"this kernel does not take the program: {said or 'it does not say why'}")
