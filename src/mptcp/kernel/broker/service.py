"""The broker itself: accepts clients on its socket, and gives each a session."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import socket
import stat
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from mptcp.errors import ConfigurationError, PathError
from mptcp.kernel.addresses import AddressWatch, LocalAddress
from mptcp.kernel.broker import protocol
from mptcp.kernel.broker.limits import Accounts
from mptcp.kernel.broker.policy import Peer, Policy
from mptcp.kernel.broker.proof import NamespaceMark, peer_of
from mptcp.kernel.broker.protocol import Answer
from mptcp.kernel.broker.relay import Relay
from mptcp.kernel.broker.session import Resources, Session
from mptcp.kernel.control import Control, DirectControl
from mptcp.kernel.diag import Diag
from mptcp.kernel.namespace import NetNamespace
from mptcp.kernel.pm_events import PmEventSocket

#: Clients that have connected and are not accepted yet.
BACKLOG: Final = 128
#: Everybody may connect: what each may have done, the policy says.
SOCKET_MODE: Final = 0o666
#: Of the socket's path: the kernel has no room for more (unix(7)).
MAX_PATH: Final = 107
#: Sessions that are still busy when the broker stops get so long.
STOP_S: Final = 2.0
#: How long nobody is accepted when there are no descriptors or threads left.
_BREATH_S: Final = 0.1

log = logging.getLogger("mptcp.broker")


class Broker:
    """Serves on a listening Unix socket of type SOCK_SEQPACKET with ``run``, in the network namespace it is made in.

    ``control``, ``open_events`` and ``addresses`` are for tests; without them this process acts itself, with CAP_NET_ADMIN.
    """

    __slots__ = (
        "_accounts", "_addresses", "_control", "_listener", "_lock", "_policy", "_relay", "_resources", "_sessions",
        "_stopping", "_wake_r", "_wake_w",
    )  # fmt: skip

    def __init__(
        self,
        listener: socket.socket,
        policy: Policy,
        *,
        control: Control | None = None,
        open_events: Callable[[], PmEventSocket] = PmEventSocket,
        addresses: Callable[[], Sequence[LocalAddress]] | None = None,
    ) -> None:
        self._listener = listener
        self._policy = policy
        self._control = control or DirectControl()
        self._accounts = Accounts()
        self._lock = threading.Lock()
        self._sessions: dict[Session, threading.Thread] = {}
        self._stopping = threading.Event()
        self._relay = Relay(open_events, _connections)
        self._addresses = _HostAddresses()
        self._resources = Resources(
            lambda: self._policy, self._control, self._relay, NamespaceMark(NetNamespace()), self._accounts,
            addresses or self._addresses, self._stopping,
        )  # fmt: skip
        self._wake_r, self._wake_w = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        listener.setblocking(False)

    @property
    def clients(self) -> int:
        """How many there are now."""
        return self._accounts.total

    def set_policy(self, policy: Policy) -> None:
        """Holds from the next request on, of clients that are there, too. Safe in a signal handler."""
        self._policy = policy

    def stop(self) -> None:
        """Ends ``run``. Safe in a signal handler and from any thread."""
        self._stopping.set()
        with contextlib.suppress(OSError):
            os.write(self._wake_w, b"x")

    def run(self) -> None:
        """Until ``stop``; then every client has been let go."""
        self._relay.start()
        poll = select.poll()
        poll.register(self._wake_r, select.POLLIN)
        poll.register(self._listener, select.POLLIN)
        try:
            while not self._stopping.is_set():
                poll.poll()
                while not self._stopping.is_set() and self._accept():
                    pass
        finally:
            self._close()

    def _accept(self) -> bool:
        try:
            sock, _ = self._listener.accept()
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno in {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}:
                self._log(-1, f"no client can be accepted: {error.strerror}")
                self._take_breath()
                return True
            if error.errno in {errno.ECONNABORTED, errno.EINTR, errno.EPROTO}:
                return True
            raise
        sock.setblocking(True)
        try:
            peer = peer_of(sock)
        except OSError as error:
            self._turn_away(sock, "a client", -1, error.errno or errno.EACCES, error.strerror or "")
            return True
        rule = self._policy.rule_for(peer)
        if rule is None:
            self._turn_away(sock, str(peer), -1, errno.EPERM, "the broker's policy says no: no rule is for this client")
            return True
        reason = self._accounts.admit(
            peer.uid, limit=rule.max_clients, total=self._policy.max_clients, rate_per_s=rule.rate_per_s,
            burst=rule.burst, now=time.monotonic(),
        )  # fmt: skip
        if reason:
            self._turn_away(sock, str(peer), peer.uid, errno.EBUSY, reason)
            return True
        self._start(sock, peer)
        return True

    def _start(self, sock: socket.socket, peer: Peer) -> None:
        session = Session(sock, peer, self._resources)
        thread = threading.Thread(target=self._serve, args=(session,), name=f"mptcp-broker-{peer.pid}", daemon=True)
        with self._lock:
            self._sessions[session] = thread
        try:
            thread.start()
        except RuntimeError:
            self._forget(session)
            self._turn_away(sock, str(peer), peer.uid, errno.EAGAIN, "the broker has no more threads")
            self._take_breath()

    def _take_breath(self) -> None:
        # Not by waiting for the event: `stop`, in a signal handler of this very thread, would wait for the event's lock.
        select.select([self._wake_r], [], [], _BREATH_S)

    def _serve(self, session: Session) -> None:
        try:
            session.run()
        finally:
            self._forget(session)

    def _forget(self, session: Session) -> None:
        with self._lock:
            del self._sessions[session]
        self._accounts.leave(session.peer.uid)

    def _turn_away(self, sock: socket.socket, name: str, uid: int, number: int, reason: str) -> None:
        self._log(uid, f"{name}: turned away: {reason}")
        with sock, contextlib.suppress(OSError):
            sock.setblocking(False)
            protocol.send(sock, Answer.refusal(0, 0, number, reason).emit())
            # What it has sent already must not be left unread: the kernel would answer it by a reset, before our answer.
            sock.shutdown(socket.SHUT_RDWR)
            while (message := protocol.receive(sock, 1)).data:
                message.close()

    def _log(self, uid: int, line: str) -> None:
        more = self._accounts.may_log(uid, time.monotonic())
        if more is not None:
            log.warning("%s%s", line, more)

    def _close(self) -> None:
        with self._lock:
            sessions = dict(self._sessions)
        for session in sessions:
            session.interrupt()
        deadline = time.monotonic() + STOP_S
        for thread in sessions.values():
            thread.join(max(0.0, deadline - time.monotonic()))
        self._relay.close()
        self._control.close()
        self._addresses.close()
        self._listener.close()
        for fd in (self._wake_r, self._wake_w):
            os.close(fd)


class _HostAddresses:
    """The addresses of this host, now. They are not all asked for each time: a host may have thousands."""

    __slots__ = ("_lock", "_watch")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._watch: AddressWatch | None = None

    def __call__(self) -> Sequence[LocalAddress]:
        with self._lock:
            watch, self._watch = self._watch or AddressWatch(), None
            try:
                watch.read()
            except OSError:
                watch.close()
                raise
            self._watch = watch
            return watch.usable()

    def close(self) -> None:
        with self._lock:
            if self._watch is not None:
                self._watch.close()
                self._watch = None


def _connections() -> dict[int, int]:
    with Diag() as diag:
        return {sock.token: sock.inode for sock in diag.mptcp_sockets()}


def listen(path: str | os.PathLike[str]) -> socket.socket:
    """A listening socket at ``path``, to which everybody may connect; its directory is made if there is none.

    PathError EADDRINUSE if a broker listens there already; what a dead one has left behind is replaced.
    """
    place = Path(path)
    if len(os.fsencode(place)) > MAX_PATH:
        raise ConfigurationError(f"the path of a socket has at most {MAX_PATH} octets: {place}")
    place.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    status = place.parent.stat()
    if status.st_mode & 0o022 and not status.st_mode & stat.S_ISVTX:
        raise ConfigurationError(f"{place.parent} can be changed by others, who could put a broker of theirs there")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    try:
        _remove_stale(place)
        try:
            listener.bind(str(place))
        except OSError as error:
            raise PathError(f"listening at {place}: {error.strerror}", error.errno or errno.EINVAL) from None
        place.chmod(SOCKET_MODE)
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def _remove_stale(place: Path) -> None:
    try:
        mode = place.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise PathError(f"{place} is there already, and no socket", errno.EEXIST)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
        probe.settimeout(STOP_S)
        try:
            probe.connect(str(place))
        except ConnectionRefusedError:
            place.unlink()
            return
        except TimeoutError:  # one that is busy
            pass
    raise PathError(f"a broker listens at {place} already", errno.EADDRINUSE)
