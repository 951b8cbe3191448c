"""The network namespace a stack works in. A socket belongs for ever to the namespace its thread was in when it was made."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from typing import Self

CLONE_NEWNET: Final = 0x40000000
#: Where ``ip netns add`` keeps its namespaces.
NAMED: Final = Path("/run/netns")
_OWN: Final = "/proc/thread-self/ns/net"

_libc = ctypes.CDLL(None, use_errno=True)


class NetNamespace:
    """A network namespace held open by a descriptor.

    ``source``: None (the one the calling thread is in; ``entered`` costs nothing then), the name of one that
    ``ip netns`` made, a path ("/proc/123/ns/net"), or the descriptor of one (it is duplicated). OSError (ENOENT,
    EACCES, EINVAL) if it is none.
    """

    __slots__ = ("_fd", "name")

    def __init__(self, source: int | str | os.PathLike[str] | None = None) -> None:
        self._fd = -1
        self.name = ""  # for messages; empty for the own one
        if source is None:
            return
        if isinstance(source, int):
            self.name = f"descriptor {source}"
            self._fd = os.dup(source)
        else:
            path = os.fspath(source)
            self.name = path
            self._fd = _open(path)
        try:
            self._check_kind()
        except BaseException:
            self.close()
            raise

    @property
    def is_own(self) -> bool:
        """Whether this is just where the calling thread is."""
        return not self.name

    @property
    def identity(self) -> tuple[int, int]:
        """(device, inode): equal for all that is the same namespace."""
        status = os.stat(_OWN) if self.is_own else os.fstat(self._open_fd())
        return status.st_dev, status.st_ino

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """The calling thread is inside; what it opens belongs to this namespace. PermissionError without CAP_SYS_ADMIN."""
        if self.is_own:
            yield
            return
        target = self._open_fd()
        saved = os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _set(target, f"entering the network namespace {self.name}")
            try:
                yield
            finally:
                _set(saved, "returning to the first network namespace")
        finally:
            os.close(saved)

    def duplicate_fd(self) -> int:
        """A new descriptor of the namespace, for whoever wants one; the caller closes it."""
        return os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC) if self.is_own else os.dup(self._open_fd())

    def duplicate(self) -> NetNamespace:
        """Another one for the same namespace, with a life of its own."""
        if self.is_own:
            return NetNamespace()
        copy = NetNamespace(self._open_fd())
        copy.name = self.name
        return copy

    def close(self) -> None:
        """Lets go of it; twice is as good as once."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        # A descriptor that nobody can close any more would keep the namespace, with all its links, until the program ends.
        self.close()

    def _open_fd(self) -> int:
        if self._fd < 0:
            raise OSError(errno.EBADF, f"the network namespace {self.name} has been closed")
        return self._fd

    def _check_kind(self) -> None:
        # Namespaces of all kinds live on one file system: entering one of another kind would fail later, and unclearly.
        with contextlib.suppress(OSError):
            if os.fstat(self._fd).st_dev == os.stat(_OWN).st_dev:
                return
        raise OSError(errno.EINVAL, f"{self.name} is no network namespace")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"NetNamespace({self.name or 'own'})"


def _open(path: str) -> int:
    place = path if "/" in path else str(NAMED / path)
    try:
        return os.open(place, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        where = "" if "/" in path else f" in {NAMED} (`ip netns list` shows those that have a name)"
        if isinstance(error, PermissionError):
            text = f"the network namespace {path} may not be opened: {error.strerror}; run it as root"
        else:
            text = f"there is no network namespace {path}{where}: {error.strerror}"
        raise OSError(error.errno, text) from None


def _set(fd: int, what: str) -> None:
    if _libc.setns(fd, CLONE_NEWNET):
        number = ctypes.get_errno()
        hint = "; it needs CAP_SYS_ADMIN there and here" if number == errno.EPERM else ""
        raise OSError(number, f"{what}: {os.strerror(number)}{hint}")
