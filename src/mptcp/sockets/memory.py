"""Octets that a C structure points to: read and written in this process's memory, with EFAULT instead of a crash."""

from __future__ import annotations

import ctypes
import errno
import os

from mptcp.errors import NotSupportedError, PathError

#: What an option's value may have.
MAX_VALUE_BYTES = 65536


class _Vector(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]


def read(address: int, length: int) -> bytes:
    """PathError: EFAULT (no such memory), EINVAL (too long)."""
    if not 0 <= length <= MAX_VALUE_BYTES:
        raise PathError(f"a value has at most {MAX_VALUE_BYTES} octets")
    buffer = ctypes.create_string_buffer(length)
    _transfer("process_vm_readv", ctypes.addressof(buffer), address, length)
    return buffer.raw


def write(address: int, data: bytes) -> None:
    buffer = ctypes.create_string_buffer(data, len(data)) if data else ctypes.create_string_buffer(1)
    _transfer("process_vm_writev", ctypes.addressof(buffer), address, len(data))


def _transfer(name: str, ours: int, theirs: int, length: int) -> None:
    if not length:
        return
    call = getattr(ctypes.CDLL(None, use_errno=True), name, None)
    if call is None:
        raise NotSupportedError(f"structures with pointers need {name}(), which this system has not")
    call.restype = ctypes.c_ssize_t
    call.argtypes = [
        ctypes.c_int, ctypes.POINTER(_Vector), ctypes.c_ulong, ctypes.POINTER(_Vector), ctypes.c_ulong, ctypes.c_ulong,
    ]  # fmt: skip
    near, far = _Vector(ours, length), _Vector(theirs, length)
    done = call(os.getpid(), ctypes.byref(near), 1, ctypes.byref(far), 1, 0)
    if done < 0 and ctypes.get_errno() in (errno.ENOSYS, errno.EPERM):
        raise NotSupportedError(f"structures with pointers need {name}(), which this process may not call")
    if done != length:
        raise PathError("a pointer in the structure leads nowhere", errno.EFAULT)
