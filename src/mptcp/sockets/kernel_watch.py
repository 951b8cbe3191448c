"""Which sockets of the kernel's stack have to be looked after though their programs ask for nothing: those with more than
one subflow, as soon as the kernel tells of the second."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from typing import TYPE_CHECKING

from mptcp.kernel import sockopt
from mptcp.kernel.monitor import Notice, Subscriber
from mptcp.kernel.pm_events import PmEvent, PmEventKind

if TYPE_CHECKING:
    from mptcp.sockets.kernel_socket import KernelSocket


class Watch(Subscriber):
    """Of one stack. A socket costs an entry in a set until its connection gets a second subflow, if it ever does."""

    def __init__(self) -> None:
        self.inbox: deque[Notice] = deque()
        self._lock = threading.Lock()
        self._nameless: weakref.WeakSet[KernelSocket] = weakref.WeakSet()  # their tokens are not known yet
        self._by_token: weakref.WeakValueDictionary[int, KernelSocket] = weakref.WeakValueDictionary()

    def note(self, sock: KernelSocket) -> None:
        """It connects, or has been accepted."""
        with self._lock:
            self._nameless.add(sock)

    def work(self) -> None:
        while True:
            try:
                notice = self.inbox.popleft()
            except IndexError:
                return
            if isinstance(notice, PmEvent) and notice.kind is PmEventKind.SUBFLOW_ESTABLISHED:
                sock = self._find(notice.token)
                if sock is not None:
                    sock.look_after()

    def _find(self, token: int) -> KernelSocket | None:
        """The socket of a connection: one reading each, for those that nobody has asked for before."""
        with self._lock:
            sock = self._by_token.pop(token, None)
            if sock is not None:
                return sock
            nameless, self._nameless = self._nameless, weakref.WeakSet()
            for sock in nameless:
                try:
                    found = sockopt.mptcp_info(sock.fileno()).token
                except OSError:
                    continue  # closed, or plain TCP
                if found:
                    self._by_token[found] = sock
                else:
                    self._nameless.add(sock)
            return self._by_token.pop(token, None)
