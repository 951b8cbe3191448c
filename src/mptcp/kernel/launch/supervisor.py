"""The process beside the program that answers its system calls, until the last process of the program has ended.

It belongs to no terminal and to no job: signals of the keyboard, of job control and of whoever ends the program do not
reach it. Whatever goes wrong here, the system call goes on as if nobody had asked: the socket is TCP then.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import socket
from dataclasses import dataclass
from typing import Final

from mptcp.kernel.launch import exceptions, options
from mptcp.kernel.launch.caller import Caller
from mptcp.kernel.launch.exceptions import Exceptions
from mptcp.kernel.launch.filter import SOCK_CLOEXEC, SOCK_NONBLOCK, Architecture
from mptcp.kernel.launch.notify import Listener, Notification
from mptcp.kernel.launch.options import IPPROTO_MPTCP, SOL_SOCKET
from mptcp.kernel.launch.replacement import SO_PROTOCOL, NotReplaceable, is_fresh_mptcp, replace_with_tcp
from mptcp.kernel.namespace import NetNamespace

#: One line of the report; longer ones are cut (PIPE_BUF: so long a line is written whole).
MAX_LINE: Final = 4096
#: So many sockets are known as ours; older ones then count as the program's own, and are never made TCP.
MAX_KNOWN_SOCKETS: Final = 65_536
_FAMILIES: Final = {socket.AF_INET: "IPv4", socket.AF_INET6: "IPv6"}

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Settings:
    """``exceptions`` keep TCP; ``watched`` are the options (level, name) that MPTCP refuses."""

    exceptions: Exceptions
    watched: tuple[tuple[int, int], ...] = ()


class Report:
    """Lines for the user (``-v``, ``--log``). Never waits: what nobody reads is counted, and the number told later."""

    __slots__ = ("_fds", "_missed")

    def __init__(self, *fds: int) -> None:
        self._fds = list(fds)
        self._missed = dict.fromkeys(fds, 0)

    def __bool__(self) -> bool:
        return bool(self._fds)

    def say(self, line: str) -> None:
        for fd in self._fds[:]:
            text = f"mptcp run: {line}"
            if self._missed[fd]:
                text += f" ({self._missed[fd]} lines before this one are missing)"
            try:
                if not select.select((), (fd,), (), 0)[1]:
                    self._missed[fd] += 1
                    continue
                os.write(fd, text.encode("utf-8", "replace")[: MAX_LINE - 1] + b"\n")
                self._missed[fd] = 0
            except (OSError, ValueError):  # closed at the other end; beyond what select knows
                self.let_go(fd)

    def let_go(self, fd: int) -> None:
        """Nothing more is written there."""
        if fd in self._fds:
            self._fds.remove(fd)
            os.close(fd)


class Supervisor:
    """Answers one listener's notifications. ``run`` returns when nobody is left who could ask."""

    __slots__ = (
        "_architecture", "_changes_owner", "_known", "_listener", "_namespace", "_owner", "_report", "_settings",
    )  # fmt: skip

    def __init__(self, listener: Listener, architecture: Architecture, settings: Settings, report: Report) -> None:
        self._listener = listener
        self._architecture = architecture
        self._settings = settings
        self._report = report
        self._namespace = NetNamespace().identity
        # Inodes of the sockets that were made here: a program that asks for MPTCP by itself is left alone.
        self._known: dict[int, None] = {}
        self._owner = (os.geteuid(), os.getegid())
        # Only a privileged program can have other users' processes: without privilege no set-user-id bit counts.
        self._changes_owner = os.geteuid() == 0

    def run(self, program: int = -1, terminal: int = -1) -> None:
        """``program``: a pidfd; once that process has ended nothing more is written to ``terminal``."""
        self._listener.wake_on_the_same_processor()
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        if program >= 0:
            poll.register(program, select.POLLIN)
        while True:
            for fd, events in poll.poll():
                if fd == program:
                    poll.unregister(program)
                    self._report.let_go(terminal)
                elif events & select.POLLIN:
                    notification = self._listener.receive()
                    if notification is not None:
                        self.handle(notification)
                else:
                    return

    def handle(self, notification: Notification) -> None:
        """Answers one notification, whatever happens."""
        try:
            if self._decide(notification):
                return
        except FileNotFoundError:
            pass  # the thread has gone; or there is no /proc
        except Exception as error:  # noqa: BLE001  whoever waits must be answered
            self._explain(notification, f"goes on as it is: {error}")
        with contextlib.suppress(OSError):  # nobody waits any more
            self._listener.proceed(notification.id)

    def _decide(self, notification: Notification) -> bool:
        """Whether the system call has been answered."""
        if notification.number == self._architecture.socket:
            return self._socket(notification)
        if notification.number == self._architecture.setsockopt:
            return self._option(notification)
        self._address(notification)
        return False

    # socket(2)

    def _socket(self, notification: Notification) -> bool:
        caller = Caller(notification.pid)
        excepted = self._settings.exceptions.programs
        if excepted and (names := caller.program_names() & excepted):
            self._explain(notification, f"socket stays TCP: {min(names)} is excepted")
            return False
        family, kind = notification.integer(0), notification.integer(1)
        try:
            fd = self._make(caller, family)
        except OSError as error:
            self._explain(notification, f"socket stays TCP: {error.strerror or error}")
            return False
        try:
            if kind & SOCK_NONBLOCK:
                os.set_blocking(fd, False)
            self._remember(fd)
            number = self._listener.give(notification.id, fd, cloexec=bool(kind & SOCK_CLOEXEC))
        finally:
            os.close(fd)
        if self._report:
            self._explain(notification, f"socket {number} ({_FAMILIES[socket.AddressFamily(family)]}) is MPTCP")
        return True

    def _remember(self, fd: int) -> None:
        inode = os.fstat(fd).st_ino
        self._known.pop(inode, None)
        self._known[inode] = None
        if len(self._known) > MAX_KNOWN_SOCKETS:
            del self._known[next(iter(self._known))]

    def _is_ours(self, sock: socket.socket) -> bool:
        """Whether it is an MPTCP socket that was made here."""
        return (
            os.fstat(sock.fileno()).st_ino in self._known and sock.getsockopt(SOL_SOCKET, SO_PROTOCOL) == IPPROTO_MPTCP
        )

    def _make(self, caller: Caller, family: int) -> int:
        """An MPTCP socket as the caller would have made it: in its network namespace, and its user's."""
        if caller.network_namespace() != self._namespace:
            with NetNamespace(f"/proc/{caller.pid}/ns/net") as namespace, namespace.entered():
                return self._make_as_owner(caller, family)
        return self._make_as_owner(caller, family)

    def _make_as_owner(self, caller: Caller, family: int) -> int:
        owner = caller.owner() if self._changes_owner else self._owner
        if owner == self._owner:
            return options.make_socket(family, IPPROTO_MPTCP)
        _libc.setfsgid(owner[1])
        _libc.setfsuid(owner[0])
        try:
            return options.make_socket(family, IPPROTO_MPTCP)
        finally:
            _libc.setfsuid(self._owner[0])
            _libc.setfsgid(self._owner[1])

    # setsockopt(2)

    def _option(self, notification: Notification) -> bool:
        caller = Caller(notification.pid)
        fd, key = notification.integer(0), (notification.integer(1), notification.integer(2))
        name = options.option_name(*key)
        with self._duplicate(caller, fd, notification) as old:
            if not self._is_ours(old):
                return False
            if key[0] == options.SOL_IPV6 and old.family == socket.AF_INET:
                return False  # TCP would not have it either: the kernel says so
            fresh = is_fresh_mptcp(old)
            if key in options.PASSING_WISHES or (key in options.MARKS and not fresh):
                self._listener.answer(notification.id, 0)
                self._explain(notification, f"socket {fd}: {name} is ignored, MPTCP does not have it")
                return True
            if not fresh:
                self._explain(notification, f"socket {fd}: {name} fails, MPTCP does not have it (--except-program)")
                return False
            self._replace(notification, caller, fd, old, f"{name} is for TCP only")
        return False

    # connect(2), bind(2)

    def _address(self, notification: Notification) -> None:
        caller = Caller(notification.pid)
        fd, length = notification.integer(0), notification.integer(2)
        if length <= 0:
            return
        raw = caller.memory(notification.arguments[1], min(length, exceptions.MAX_SOCKADDR))
        place = exceptions.parse_sockaddr(raw)
        if place is None or not self._settings.exceptions.match_address(*place):
            return
        with self._duplicate(caller, fd, notification) as old:
            where = f"{place[0]} port {place[1]} is excepted"
            if not self._is_ours(old):
                return
            if is_fresh_mptcp(old):
                self._replace(notification, caller, fd, old, where)
            else:
                self._explain(notification, f"socket {fd} stays MPTCP, although {where}: it has been bound before")

    def _duplicate(self, caller: Caller, fd: int, notification: Notification) -> socket.socket:
        duplicate = caller.duplicate(fd)
        try:
            # Its pid could have become another process's in the meantime.
            if not self._listener.is_waiting(notification.id):
                raise FileNotFoundError
            return socket.socket(fileno=duplicate)
        except BaseException:
            os.close(duplicate)
            raise

    def _replace(self, notification: Notification, caller: Caller, fd: int, old: socket.socket, why: str) -> None:
        try:
            replace_with_tcp(self._listener, notification, caller, fd, old)
        except NotReplaceable as error:
            self._explain(notification, f"socket {fd} stays MPTCP, although {why}: {error}")
        else:
            self._explain(notification, f"socket {fd} is TCP now: {why}")

    def _explain(self, notification: Notification, what: str) -> None:
        if not self._report:
            return
        try:
            name = Caller(notification.pid).name()
        except (OSError, ValueError):
            name = "process"
        self._report.say(f"{name}[{notification.pid}]: {what}")


def leave_the_job() -> None:
    """Makes this process one that no terminal, no job control and no polite signal ends: without it sockets would fail."""
    os.setsid()
    os.chdir("/")
    kept = {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD, signal.SIGSEGV, signal.SIGBUS}
    for number in signal.valid_signals() - kept:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
