"""Which sockets of the kernel's stack have to be looked after though their programs do not call: those whose connections
have more than one subflow, as soon as the kernel tells of the second, and those for which a path manager was chosen before
a connect that did not block, as soon as it has succeeded."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from typing import TYPE_CHECKING

from mptcp.forking import freed_in_child
from mptcp.kernel import sockopt
from mptcp.kernel.monitor import Notice, Subscriber
from mptcp.kernel.pm_events import PmEvent, PmEventKind

if TYPE_CHECKING:
    from mptcp.sockets.kernel_socket import KernelSocket


class Watch(Subscriber):
    """Of one stack. A socket costs an entry in a set until its connection gets a second subflow, if it ever does."""

    def __init__(self) -> None:
        self.inbox: deque[Notice] = deque()
        self._lock = freed_in_child(threading.Lock())
        self._nameless: weakref.WeakSet[KernelSocket] = weakref.WeakSet()  # their tokens are not known yet
        self._waiting: weakref.WeakSet[KernelSocket] = weakref.WeakSet()  # for their path managers
        self._by_token: weakref.WeakValueDictionary[int, KernelSocket] = weakref.WeakValueDictionary()

    def note(self, sock: KernelSocket) -> None:
        """It connects, or has been accepted."""
        with self._lock:
            self._nameless.add(sock)
            if sock.wants_manager:
                self._waiting.add(sock)

    def work(self) -> None:
        while True:
            try:
                notice = self.inbox.popleft()
            except IndexError:
                return
            if not isinstance(notice, PmEvent):
                continue
            if notice.kind is PmEventKind.SUBFLOW_ESTABLISHED:
                sock = self._find(notice.token)
            elif notice.kind is PmEventKind.ESTABLISHED and len(self._waiting):
                sock = self._find(notice.token, self._waiting)
            else:
                continue
            if sock is not None:
                sock.look_after()

    def _find(self, token: int, only: weakref.WeakSet[KernelSocket] | None = None) -> KernelSocket | None:
        """The socket of a connection, if it is one of ``only``, and it is forgotten here: one reading each, for those that
        nobody has asked for before."""
        with self._lock:
            if token not in self._by_token:
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
            found_sock = self._by_token.get(token)
            if found_sock is None or (only is not None and found_sock not in only):
                return None
            del self._by_token[token]
            self._waiting.discard(found_sock)
            return found_sock
