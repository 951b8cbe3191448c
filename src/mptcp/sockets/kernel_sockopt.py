"""setsockopt and getsockopt of a socket of the kernel's stack: the drafts' options, and what Linux refuses on MPTCP sockets."""

from __future__ import annotations

import errno
import socket as std
from abc import abstractmethod
from typing import TYPE_CHECKING, Any, cast

from mptcp.kernel import sockopt
from mptcp.sockets import options as opt
from mptcp.sockets.address import os_error
from mptcp.sockets.kernel_options import MAX_SYN_RETRIES, REFUSAL_ERRNOS, REFUSED_BY_LINUX, Treatment, refused
from mptcp.sockets.kernel_strategies import KernelStrategies
from mptcp.sockets.multipath_options import EXTENDED_OPTIONS

if TYPE_CHECKING:
    from typing_extensions import Buffer

#: Options set before the connection that are set again if the socket has to become one of the other protocol.
MAX_KEPT_OPTIONS = 128


class KernelOptions(KernelStrategies):
    """Stands before ``socket.socket``, whose methods do what is left."""

    __slots__ = ()

    # In the slots of the socket:
    _kept: dict[tuple[int, int], int | bytes]
    _only_tcp: str
    _options: dict[tuple[int, int], int]
    _pending: bool

    @abstractmethod
    def _is_mptcp_descriptor(self) -> bool: ...

    @abstractmethod
    def _is_aware(self) -> bool:
        """The program has asked for MPTCP."""

    @abstractmethod
    def _become(self, multipath: bool, reason: str) -> None:
        """With the lock, before there is a connection: the descriptor is MPTCP, or TCP for that reason."""

    @abstractmethod
    def _attempt_failed(self, number: int) -> None:
        """A connect has failed with that errno."""

    def setsockopt(self, level: int, optname: int, value: int | Buffer | None, optlen: int | None = None) -> None:
        """As ``socket.socket``, and the options of RFC 6897 and of draft-hesmans-mptcp-socket; docs/kernel.md lists those
        that Linux refuses on MPTCP sockets, with what becomes of them."""
        if value is None:
            super().setsockopt(level, optname, None, cast(int, optlen))
            return
        plain = value if isinstance(value, int) else bytes(memoryview(value))
        if _is_extended(level, optname):
            with self.event_lock:
                self._check_open()
                self._set_extended(level, optname, plain)
            return
        try:
            super().setsockopt(level, optname, plain)
        except OSError as error:
            if error.errno not in REFUSAL_ERRNOS or not self._is_mptcp_descriptor():
                raise
            with self.event_lock:
                self._set_refused(level, optname, plain, error)
            return
        self._keep_option(level, optname, plain)

    def _set_refused(self, level: int, optname: int, value: int | bytes, error: OSError) -> None:
        """With the lock: Linux does not take this option on an MPTCP socket."""
        entry = REFUSED_BY_LINUX.get((level, optname))
        if entry is not None and entry.treatment is Treatment.KEPT:
            self._options[level, optname] = opt.to_int(value)
            return
        if (level, optname) == (std.IPPROTO_TCP, std.TCP_SYNCNT):
            number = opt.to_int(value)
            if not 1 <= number <= MAX_SYN_RETRIES:
                raise os_error(errno.EINVAL)
            self._options[level, optname] = number
            return
        if entry is not None and not self._is_aware() and not self._has_connection() and not self._listening:
            # A program that does not know of MPTCP means what TCP has: it gets TCP.
            self._only_tcp = f"{entry.name} was set, which only TCP has"
            self._become(False, self._only_tcp)
            self.setsockopt(level, optname, value)
            return
        raise refused(level, optname, error) from None

    def getsockopt(self, level: int, optname: int, buflen: int | Buffer = 0) -> Any:
        """As ``socket.socket``. The drafts' options whose structure is input and output take a buffer that holds it
        instead of its size; one that can be written to has the result in it afterwards, as in C."""
        if not _is_extended(level, optname):
            return self._get_plain(level, optname, buflen)
        with self.event_lock:
            self._check_open()
            return opt.answer(buflen, lambda argument: self._get_extended(level, optname, argument))

    def _get_plain(self, level: int, optname: int, buflen: Any) -> Any:
        kept = self._options.get((level, optname))
        if kept is None:
            try:
                value: int | bytes = cast(Any, super()).getsockopt(level, optname, buflen)
                if self._pending and value and (level, optname) == (std.SOL_SOCKET, std.SO_ERROR):
                    self._attempt_failed(value if isinstance(value, int) else int.from_bytes(value, "little"))
                return value
            except OSError as error:
                if error.errno not in REFUSAL_ERRNOS or not self._is_mptcp_descriptor():
                    raise
                entry = REFUSED_BY_LINUX.get((level, optname))
                if entry is None or entry.treatment is Treatment.REFUSED:
                    raise refused(level, optname, error) from None
                kept = self._path_mtu() if entry.name.endswith("_MTU") else entry.default
        return kept.to_bytes(4, "little", signed=True)[:buflen] if buflen else kept

    def _path_mtu(self) -> int:
        sizes = [entry.tcp.pmtu for entry in sockopt.full_info(self.fileno()).subflows if entry.tcp.pmtu]
        if not sizes:
            raise os_error(errno.ENOTCONN)
        return min(sizes)

    def _keep_option(self, level: int, optname: int, value: int | bytes) -> None:
        if self._connection is None and (len(self._kept) < MAX_KEPT_OPTIONS or (level, optname) in self._kept):
            self._kept[level, optname] = value
        if (level, optname) in ((std.SOL_SOCKET, std.SO_SNDBUF), (std.SOL_SOCKET, std.SO_RCVBUF)):
            changes = opt.tcp_changes(level, optname, value) or {}
            self._config = self._config.changed(tcp=self._config.tcp.changed(**changes))


def _is_extended(level: int, optname: int) -> bool:
    if level == std.IPPROTO_TCP:
        return optname in EXTENDED_OPTIONS
    return (level, optname) == (std.SOL_SOCKET, std.SO_BINDTODEVICE)
