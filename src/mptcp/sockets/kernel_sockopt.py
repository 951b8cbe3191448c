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

    @abstractmethod
    def _take_expiry(self) -> bool:
        """TCP_SYNCNT has ended a connect, and nobody has been told of it."""

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
        opt.check_family(cast(Any, self).family, level)  # TCP would not have it either
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
        known = entry is not None or self._is_of_tcp(level, optname, value)
        if known and not self._is_aware() and not self._has_connection() and not self._listening:
            # A program that does not know of MPTCP means what TCP has: it gets TCP.
            name = entry.name if entry is not None else f"option {optname} of level {level}"
            self._only_tcp = f"{name} was set, which only TCP has"
            self._become(False, self._only_tcp)
            self.setsockopt(level, optname, value)
            return
        raise refused(level, optname, error) from None

    def _is_of_tcp(self, level: int, optname: int, value: int | bytes) -> bool:
        """Whether a TCP socket takes an option that is in no table."""
        with self._stack.namespace.entered(), std.socket(cast(Any, self).family) as sock:
            try:
                sock.setsockopt(level, optname, value)
            except OSError:
                return False
        return True

    def _set_again(
        self, fresh: std.socket, protocol: int
    ) -> tuple[dict[tuple[int, int], int | bytes], dict[tuple[int, int], int]]:
        """Gives the options to a socket of the other protocol: those it has now, and those that are only kept or imitated
        on it."""
        kept: dict[tuple[int, int], int | bytes] = {}
        imitated: dict[tuple[int, int], int] = {}
        for (level, option), value in {**self._kept, **self._options}.items():
            try:
                fresh.setsockopt(level, option, value)
                kept[level, option] = value
            except OSError as error:
                if error.errno not in REFUSAL_ERRNOS or protocol != opt.IPPROTO_MPTCP:
                    raise
                entry = REFUSED_BY_LINUX.get((level, option))
                if entry is None or entry.treatment is Treatment.REFUSED:
                    raise refused(level, option, error) from None
                imitated[level, option] = opt.to_int(value)
        return kept, imitated

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
                if self._pending and (level, optname) == (std.SOL_SOCKET, std.SO_ERROR):
                    return self._error_of_attempt(value)
                return value
            except OSError as error:
                if error.errno not in REFUSAL_ERRNOS or not self._is_mptcp_descriptor():
                    raise
                opt.check_family(cast(Any, self).family, level, errno.EOPNOTSUPP)
                entry = REFUSED_BY_LINUX.get((level, optname))
                if entry is None or entry.treatment is Treatment.REFUSED:
                    raise refused(level, optname, error) from None
                kept = self._path_mtu() if entry.name.endswith("_MTU") else entry.default
        return kept.to_bytes(4, "little", signed=True)[:buflen] if buflen else kept

    def _error_of_attempt(self, value: int | bytes) -> int | bytes:
        """SO_ERROR while a connect is on its way: what the kernel says, and what TCP_SYNCNT adds."""
        number = value if isinstance(value, int) else int.from_bytes(value, "little")
        if self._take_expiry():
            number = errno.ETIMEDOUT
        elif number:
            self._attempt_failed(number)
        return number if isinstance(value, int) else number.to_bytes(len(value), "little")

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
