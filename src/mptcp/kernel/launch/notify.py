"""Seccomp user notification: installing a filter, and the listener at which its notifications arrive (seccomp_unotify(2)).

The kernel says how large its structures are (SECCOMP_GET_NOTIF_SIZES); longer ones than are known here are taken, and
what they have at their end is ignored.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from dataclasses import dataclass
from typing import Final

from mptcp.errors import NotSupportedError
from mptcp.info import Support
from mptcp.kernel.launch.filter import SECCOMP_RET_USER_NOTIF, own_architecture

SECCOMP_SET_MODE_FILTER: Final = 1
SECCOMP_GET_ACTION_AVAIL: Final = 2
SECCOMP_GET_NOTIF_SIZES: Final = 3
SECCOMP_FILTER_FLAG_SPEC_ALLOW: Final = 1 << 2
SECCOMP_FILTER_FLAG_NEW_LISTENER: Final = 1 << 3
SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV: Final = 1 << 5
SECCOMP_USER_NOTIF_FLAG_CONTINUE: Final = 1
SECCOMP_ADDFD_FLAG_SETFD: Final = 1
SECCOMP_ADDFD_FLAG_SEND: Final = 2
SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP: Final = 1
PR_SET_NO_NEW_PRIVS: Final = 38

#: id, pid, flags; struct seccomp_data: number, architecture, instruction pointer, arguments
_NOTIF: Final = struct.Struct("=QII iIQ6Q")
#: id, value, error, flags
_RESPONSE: Final = struct.Struct("=QqiI")
#: id, flags, descriptor here, descriptor there, its flags
_ADDFD: Final = struct.Struct("=QIIII")
_ID: Final = struct.Struct("=Q")
#: What the kernel asks for is refused beyond this: it would be another kind of answer.
MAX_STRUCTURE: Final = 1024

_libc = ctypes.CDLL(None, use_errno=True)


def _ioctl_number(direction: int, number: int, size: int) -> int:
    """``_IOWR('!', number, size)`` (direction 3) or ``_IOW`` (1); the same on x86_64 and aarch64."""
    return direction << 30 | size << 16 | ord("!") << 8 | number


def _seccomp(operation: int, flags: int, argument: object) -> int:
    result = int(_libc.syscall(ctypes.c_long(own_architecture().seccomp), operation, flags, argument))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"seccomp: {os.strerror(number)}")
    return result


def structure_sizes() -> tuple[int, int]:
    """Octets of the kernel's ``struct seccomp_notif`` and ``struct seccomp_notif_resp``."""
    sizes = (ctypes.c_uint16 * 3)()
    _seccomp(SECCOMP_GET_NOTIF_SIZES, 0, sizes)
    notif, response = sizes[0], sizes[1]
    if not _NOTIF.size <= notif <= MAX_STRUCTURE or not _RESPONSE.size <= response <= MAX_STRUCTURE:
        raise NotSupportedError(
            f"the kernel's seccomp structures have {notif} and {response} octets, which is not known here"
        )
    return notif, response


def notification_support() -> Support:
    """Whether this kernel has seccomp user notification."""
    fix = "Linux 5.9 or newer with CONFIG_SECCOMP_FILTER has it"
    try:
        _seccomp(SECCOMP_GET_ACTION_AVAIL, 0, ctypes.byref(ctypes.c_uint32(SECCOMP_RET_USER_NOTIF)))
        structure_sizes()
    except OSError as error:
        if isinstance(error, NotSupportedError):
            return Support(False, error.strerror or str(error))
        return Support(False, f"this kernel has no seccomp user notification ({error.strerror})", fix)
    return Support(True)


def install(program: bytes) -> int:
    """Puts the calling thread, and all that it starts, under the filter for good; the descriptor of its listener.

    With CAP_SYS_ADMIN programs with the set-user-id bit go on gaining what they gain; without it they no longer do
    (PR_SET_NO_NEW_PRIVS). OSError EBUSY where a supervisor (of a container, or another of ours) listens already.
    """
    buffer = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog
    argument = ctypes.create_string_buffer(struct.pack("@HP", len(program) // 8, ctypes.addressof(buffer)))
    # This is no sandbox: the program keeps its speculation (kernels before 5.16 would slow all of it down).
    flags = SECCOMP_FILTER_FLAG_SPEC_ALLOW | SECCOMP_FILTER_FLAG_NEW_LISTENER | SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
    while True:
        try:
            return _seccomp(SECCOMP_SET_MODE_FILTER, flags, argument)
        except OSError as error:
            if error.errno == errno.EACCES and not _libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
                continue
            if error.errno == errno.EINVAL and flags & SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV:
                flags ^= SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV  # Linux 5.19 has it
                continue
            raise


@dataclass(frozen=True, slots=True)
class Notification:
    """A system call that waits. ``pid`` is the thread's, as seen from here: 0 if it cannot be seen."""

    id: int
    pid: int
    number: int
    architecture: int
    arguments: tuple[int, ...]

    def integer(self, index: int) -> int:
        """An argument as a C ``int``."""
        low = self.arguments[index] & 0xFFFFFFFF
        return low - (1 << 32) if low >> 31 else low


class Listener:
    """The supervisor's end. ``receive``, then exactly one of ``proceed``, ``answer`` and ``give`` for each notification.

    Each raises OSError ENOENT when whoever waited is gone.
    """

    __slots__ = ("_add", "_fd", "_notif_size", "_receive", "_response_size", "_send", "_set_flags", "_valid", "atomic")

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._notif_size, self._response_size = structure_sizes()
        self._receive = _ioctl_number(3, 0, self._notif_size)
        self._send = _ioctl_number(3, 1, self._response_size)
        self._valid = _ioctl_number(1, 2, _ID.size)
        self._add = _ioctl_number(1, 3, _ADDFD.size)
        self._set_flags = _ioctl_number(1, 4, _ID.size)
        #: Whether the kernel adds a descriptor and answers with it in one step (Linux 5.14).
        self.atomic = True

    def fileno(self) -> int:
        return self._fd

    def wake_on_the_same_processor(self) -> bool:
        """Asks for quicker turns between the program and the supervisor (Linux 6.6); False where that is not known."""
        try:
            fcntl.ioctl(self._fd, self._set_flags, SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP)
        except OSError:
            return False
        return True

    def receive(self) -> Notification | None:
        """The next one; waits. None if it was taken back (its thread got a signal or ended)."""
        buffer = bytearray(self._notif_size)
        try:
            fcntl.ioctl(self._fd, self._receive, buffer)
        except InterruptedError:
            return None
        except OSError as error:
            if error.errno == errno.ENOENT:
                return None
            raise
        id, pid, _flags, number, architecture, _pointer, *arguments = _NOTIF.unpack_from(buffer)
        return Notification(id, pid, number, architecture, tuple(arguments))

    def is_waiting(self, id: int) -> bool:
        """Whether it still waits: if so, its pid has been its own all the time."""
        try:
            fcntl.ioctl(self._fd, self._valid, _ID.pack(id))
        except OSError:
            return False
        return True

    def proceed(self, id: int) -> None:
        """The system call goes on as if nobody had asked."""
        self._respond(id, 0, 0, SECCOMP_USER_NOTIF_FLAG_CONTINUE)

    def answer(self, id: int, value: int) -> None:
        """The system call returns ``value`` without having been made."""
        self._respond(id, value, 0, 0)

    def give(self, id: int, fd: int, *, cloexec: bool) -> int:
        """The system call returns a descriptor of what ``fd`` is here; its number there."""
        flags = os.O_CLOEXEC if cloexec else 0
        if self.atomic:
            try:
                return self._add_fd(id, SECCOMP_ADDFD_FLAG_SEND, fd, 0, flags)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                self.atomic = False
        number = self._add_fd(id, 0, fd, 0, flags)
        self.answer(id, number)
        return number

    def replace(self, id: int, fd: int, there: int, *, cloexec: bool) -> None:
        """The program's descriptor ``there`` becomes what ``fd`` is here (as dup2); the system call still waits."""
        self._add_fd(id, SECCOMP_ADDFD_FLAG_SETFD, fd, there, os.O_CLOEXEC if cloexec else 0)

    def _respond(self, id: int, value: int, error: int, flags: int) -> None:
        buffer = bytearray(self._response_size)
        _RESPONSE.pack_into(buffer, 0, id, value, error, flags)
        fcntl.ioctl(self._fd, self._send, buffer)

    def _add_fd(self, id: int, flags: int, fd: int, there: int, fd_flags: int) -> int:
        return int(fcntl.ioctl(self._fd, self._add, bytearray(_ADDFD.pack(id, flags, fd, there, fd_flags))))

    def close(self) -> None:
        """Lets go; watched system calls then fail with ENOSYS."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
