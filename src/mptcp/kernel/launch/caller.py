"""What /proc and pidfd_getfd(2) tell of a thread whose system call waits.

Everything is OSError once it is gone or out of reach; what was read is its own if its notification is still valid after.
"""

from __future__ import annotations

import ctypes
import os
from typing import Final

SYS_PIDFD_GETFD: Final = 438  # on every architecture

#: A process with more descriptors is not searched for copies of one.
MAX_SEARCHED_DESCRIPTORS: Final = 16_384
#: As much is read of one file of /proc.
MAX_PROC_OCTETS: Final = 4 << 20
_READ: Final = 1 << 14

_libc = ctypes.CDLL(None, use_errno=True)


class Caller:
    """One thread, by its id."""

    __slots__ = ("pid",)

    def __init__(self, pid: int) -> None:
        if pid <= 0:
            raise ProcessLookupError("the process is in a namespace of processes that cannot be seen from here")
        self.pid = pid

    def name(self) -> str:
        """Its name as ``ps`` shows it, fit for a terminal."""
        raw = self._read("comm").rstrip(b"\n").decode("utf-8", "replace")
        return "".join(letter if letter.isprintable() else "?" for letter in raw)

    def program_names(self) -> set[str]:
        """What its program may be called by: the file that is executed, and the name of a script."""
        path = os.readlink(f"/proc/{self.pid}/exe").removesuffix(" (deleted)")
        return {path.rpartition("/")[2], self.name()}

    def network_namespace(self) -> tuple[int, int]:
        """(device, inode) of its network namespace."""
        status = os.stat(f"/proc/{self.pid}/ns/net")
        return status.st_dev, status.st_ino

    def owner(self) -> tuple[int, int]:
        """The user and group that files, and sockets, it makes belong to (fsuid, fsgid)."""
        status = self._read("status")
        return self._field(status, b"Uid:", 3), self._field(status, b"Gid:", 3)

    def process(self) -> int:
        """The id of its process."""
        return self._field(self._read("status"), b"Tgid:", 0)

    def duplicate(self, fd: int) -> int:
        """A descriptor here of what its ``fd`` is there. PermissionError where ptrace(2) would be refused."""
        process = os.pidfd_open(self.process())
        try:
            duplicate = int(_libc.syscall(ctypes.c_long(SYS_PIDFD_GETFD), process, fd, 0))
            if duplicate < 0:
                number = ctypes.get_errno()
                raise OSError(number, f"pidfd_getfd: {os.strerror(number)}")
            return duplicate
        finally:
            os.close(process)

    def memory(self, address: int, length: int) -> bytes:
        """Octets of its memory; fewer at the end of what it has. PermissionError where ptrace(2) would be refused."""
        fd = os.open(f"/proc/{self.pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
        try:
            # Beyond what a file offset can be there is no memory of a program.
            return os.pread(fd, length, address) if address < 1 << 63 else b""
        finally:
            os.close(fd)

    def is_cloexec(self, fd: int) -> bool:
        """Whether its descriptor is closed by exec."""
        for line in self._read(f"fdinfo/{fd}").splitlines():
            if line.startswith(b"flags:"):
                return bool(int(line[6:], 8) & os.O_CLOEXEC)
        return False

    def descriptors(self) -> dict[int, str]:
        """What each of its descriptors is ("socket:[4711]", "anon_inode:[eventpoll]", a path). OSError if there are too many."""
        folder = f"/proc/{self.pid}/fd"
        names = os.listdir(folder)
        if len(names) > MAX_SEARCHED_DESCRIPTORS:
            raise OSError(f"it has more than {MAX_SEARCHED_DESCRIPTORS} descriptors")
        found = {}
        for name in names:
            try:
                found[int(name)] = os.readlink(f"{folder}/{name}")
            except FileNotFoundError:
                continue  # another thread has closed it
        return found

    def epoll_registrations(self, epoll: int, fd: int) -> list[tuple[int, int]]:
        """(events, data) of each registration of ``fd`` in one of its epoll descriptors."""
        found = []
        for line in self._read(f"fdinfo/{epoll}").splitlines():
            # tfd:        5 events:       19 data:                5  pos:0 ino:1 sdev:8
            words = line.split()
            if len(words) >= 6 and words[0::2][:3] == [b"tfd:", b"events:", b"data:"] and int(words[1]) == fd:
                found.append((int(words[3], 16), int(words[5], 16)))
        return found

    def _field(self, status: bytes, label: bytes, column: int) -> int:
        """A number of a line of /proc/PID/status."""
        start = status.find(b"\n" + label) + 1
        words = status[start + len(label) :].partition(b"\n")[0].split()
        if not start or len(words) <= column:
            raise ProcessLookupError(f"/proc/{self.pid}/status has no {label.decode()}")
        return int(words[column])

    def _read(self, name: str) -> bytes:
        fd = os.open(f"/proc/{self.pid}/{name}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            # Each of these files is written as a whole when it is first read: a short read is the end.
            text = part = os.read(fd, _READ)
            while len(part) == _READ and len(text) < MAX_PROC_OCTETS:
                part = os.read(fd, _READ)
                text += part
            return text
        finally:
            os.close(fd)
