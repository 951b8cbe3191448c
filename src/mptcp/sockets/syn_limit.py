"""TCP_SYNCNT: Linux has the option for no MPTCP socket, so an attempt to connect is ended from here."""

from __future__ import annotations

import contextlib
import socket as std
import weakref
from typing import TYPE_CHECKING

from mptcp.kernel.monitor import Monitor

if TYPE_CHECKING:
    from mptcp.sockets.kernel_socket import KernelSocket

#: ``tcpi_state`` of an attempt without an answer (TCP_SYN_SENT).
_SYN_SENT = 2


class SynLimit:
    """Of one attempt. When it has ``expired``, whoever waits for the descriptor wakes, and SO_ERROR is ETIMEDOUT."""

    __slots__ = ("__weakref__", "_socket", "expired")

    def __init__(self, sock: KernelSocket, monitor: Monitor, limit_s: float) -> None:
        self._socket = weakref.ref(sock)
        self.expired = False
        monitor.call_later(limit_s, self._end)

    def _end(self) -> None:
        sock = self._socket()
        if sock is None:
            return
        with sock.event_lock, contextlib.suppress(OSError):  # it has just been closed, or was refused
            if sock.is_trying(self) and std.socket.getsockopt(sock, std.IPPROTO_TCP, std.TCP_INFO, 1)[0] == _SYN_SENT:
                self.expired = True
                std.socket.shutdown(sock, std.SHUT_RDWR)
