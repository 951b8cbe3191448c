"""What the broker keeps of root's privileges, and gives away for good: all but two or three capabilities."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import pwd
from collections.abc import Collection
from pathlib import Path
from typing import Any, Final

from mptcp.errors import ConfigurationError
from mptcp.kernel.features import CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON

#: What the broker works with: steering and events; options of one subflow, where the system lets it have these two.
NEEDED: Final = frozenset({CAP_NET_ADMIN, CAP_BPF, CAP_PERFMON})
NAMES: Final = {CAP_NET_ADMIN: "CAP_NET_ADMIN", CAP_BPF: "CAP_BPF", CAP_PERFMON: "CAP_PERFMON"}

_PR_SET_KEEPCAPS: Final = 8
_PR_CAPBSET_DROP: Final = 24
_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_CAP_AMBIENT: Final = 47
_PR_CAP_AMBIENT_CLEAR_ALL: Final = 4
_CAPABILITY_VERSION_3: Final = 0x20080522
_MAX_CAPABILITY: Final = 63

_libc = ctypes.CDLL(None, use_errno=True)
_prctl: Any = _libc.prctl
_prctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong)


class _Header(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


class _Data(ctypes.Structure):
    _fields_ = [("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32)]


def permitted() -> frozenset[int]:
    """The capabilities this thread may have in effect."""
    return _capabilities("CapPrm:")


def bounding() -> frozenset[int]:
    """Those it, or a program it executes, could ever get."""
    return _capabilities("CapBnd:")


def drop(keep: Collection[int] = NEEDED, user: str = "") -> frozenset[int]:
    """Gives away all capabilities but ``keep``, for this process and all it executes; which are left.

    ``user``: become that user (and no group but its own) too. To be called before there are threads: each has its own
    capabilities. PermissionError if the system does not let it.
    """
    kept = permitted().intersection(keep)
    # Without CAP_SETPCAP they stay in the bounding set; no_new_privs bars the way to them.
    with contextlib.suppress(OSError):
        for capability in bounding().difference(keep):
            _control(_PR_CAPBSET_DROP, capability)
    if user:
        _become(user)
    with contextlib.suppress(OSError):  # Linux < 4.3 has no ambient ones
        _control(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    _set_capabilities(kept)
    _control(_PR_SET_NO_NEW_PRIVS, 1)
    return kept


def find_user(user: str) -> pwd.struct_passwd:
    """Of the system's list. ConfigurationError if it has no such user."""
    try:
        return pwd.getpwnam(user)
    except (KeyError, ValueError):
        raise ConfigurationError(f"there is no user {user!r} on this system") from None


def _become(user: str) -> None:
    entry = find_user(user)
    _control(_PR_SET_KEEPCAPS, 1)
    os.setgroups([])
    os.setresgid(entry.pw_gid, entry.pw_gid, entry.pw_gid)
    os.setresuid(entry.pw_uid, entry.pw_uid, entry.pw_uid)


def _capabilities(kind: str) -> frozenset[int]:
    for line in Path("/proc/thread-self/status").read_text().splitlines():
        if line.startswith(kind):
            bits = int(line.split()[1], 16)
            return frozenset(number for number in range(_MAX_CAPABILITY + 1) if bits >> number & 1)
    raise OSError(errno.ENOSYS, f"/proc does not tell {kind}")


def _set_capabilities(capabilities: Collection[int]) -> None:
    bits = sum(1 << number for number in capabilities)
    data = (_Data * 2)(*[_Data(half, half, 0) for half in (bits & 0xFFFFFFFF, bits >> 32)])
    if _libc.capset(ctypes.byref(_Header(_CAPABILITY_VERSION_3, 0)), data):
        number = ctypes.get_errno()
        raise OSError(number, f"giving up capabilities: {os.strerror(number)}")


def _control(option: int, argument: int) -> None:
    if _prctl(option, argument, 0, 0, 0):
        number = ctypes.get_errno()
        raise OSError(number, f"giving up privileges: {os.strerror(number)}")
