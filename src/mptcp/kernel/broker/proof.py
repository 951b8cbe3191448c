"""What a descriptor that a client has sent is: its own MPTCP connection in the broker's network namespace, or nothing.

Every fact is the kernel's answer about the socket itself. The descriptor is kept no longer than one request takes: while
somebody has it open, the client's own close does not end the connection.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
import struct
from dataclasses import dataclass
from typing import Final

from mptcp.errors import NotSupportedError, PathError
from mptcp.info import Endpoint
from mptcp.kernel import layout, sockopt
from mptcp.kernel.broker.policy import Peer
from mptcp.kernel.namespace import NetNamespace

_IPPROTO_MPTCP: Final = 262
_SO_NETNS_COOKIE: Final = 71
_SO_PEERGROUPS: Final = 59
_SIOCGSKNS: Final = 0x894C
_CREDENTIALS: Final = struct.Struct("=iII")
_COOKIE: Final = struct.Struct("=Q")
_MAX_GROUPS: Final = 256  # what ``socket.getsockopt`` has room for
#: What a user or group looks like that our user namespace has no number for (kernel.overflowuid, overflowgid).
_OVERFLOW: Final = 65534
_MEMBER_STATES: Final = frozenset(
    {layout.ESTABLISHED, layout.SYN_SENT, layout.SYN_RECV, layout.FIN_WAIT1, layout.FIN_WAIT2, layout.CLOSE_WAIT}
)


@dataclass(frozen=True, slots=True)
class Proof:
    """A connection that its holder has shown. ``fd`` is open while the request lasts."""

    fd: int
    token: int
    inode: int
    uid: int  # who made the socket
    is_v4: bool  # its family has no room for IPv6

    def subflows(self) -> list[tuple[Endpoint, Endpoint]]:
        """(local, remote) of every subflow that lives, or tries to."""
        return [
            (entry.local, entry.remote)
            for entry in sockopt.full_info(self.fd).subflows
            if entry.tcp.state in _MEMBER_STATES
        ]


class NamespaceMark:
    """Tells sockets of one network namespace from all others."""

    __slots__ = ("_cookie", "_identity")

    def __init__(self, namespace: NetNamespace) -> None:
        self._identity = namespace.identity
        with namespace.entered(), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as own:
            self._cookie = _cookie(own)

    def has(self, sock: socket.socket) -> bool:
        """Whether a socket belongs to the namespace. False where the kernel does not say."""
        if self._cookie is not None:
            return _cookie(sock) == self._cookie
        # Linux < 5.14: the namespace itself, which the kernel opens for those with CAP_NET_ADMIN over it.
        try:
            fd = fcntl.ioctl(sock.fileno(), _SIOCGSKNS)
        except OSError:
            return False
        try:
            status = os.fstat(fd)
        finally:
            os.close(fd)
        return (status.st_dev, status.st_ino) == self._identity


def _cookie(sock: socket.socket) -> int | None:
    try:
        value = sock.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, _COOKIE.size)
    except OSError:
        return None
    return _COOKIE.unpack(value)[0] if len(value) == _COOKIE.size else None


def examine(fd: int, mark: NamespaceMark) -> Proof:
    """PathError or NotSupportedError, with a sentence, unless it is a connected MPTCP socket of the namespace.

    ``fd`` stays the caller's.
    """
    status = os.fstat(fd)
    if not stat.S_ISSOCK(status.st_mode):
        raise PathError("the descriptor is no socket: send that of the MPTCP connection", errno.ENOTSOCK)
    sock = socket.socket(fileno=fd)
    try:
        if sock.family not in {socket.AF_INET, socket.AF_INET6} or sock.type != socket.SOCK_STREAM:
            raise PathError("the descriptor is no TCP socket: send that of the MPTCP connection", errno.EPROTOTYPE)
        if not mark.has(sock):
            raise PathError(
                "the socket belongs to another network namespace: run a broker there (mptcp broker --socket ...)",
                errno.EXDEV,
            )
        # Options of level SOL_MPTCP mean something on MPTCP sockets only.
        if sock.getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL) != _IPPROTO_MPTCP or not sockopt.is_mptcp(fd):
            raise NotSupportedError("the socket is TCP, or fell back to it: there is nothing to steer")
        token = sockopt.mptcp_info(fd).token
        if not token:
            raise PathError("the socket is not connected: connect it first", errno.ENOTCONN)
        return Proof(fd, token, status.st_ino, status.st_uid, sock.family == socket.AF_INET)
    finally:
        sock.detach()


def peer_of(sock: socket.socket) -> Peer:
    """Who has connected a Unix socket, at the moment of connect. PathError if our system has no number for that user."""
    pid, uid, gid = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    gids = {gid}
    with contextlib.suppress(OSError):  # Linux < 4.13, or more groups than there is room for: the first one counts
        data = sock.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 4 * _MAX_GROUPS)
        gids.update(number for (number,) in struct.iter_unpack("=I", data[: len(data) & ~3]))
    # Whoever has no number here looks like this one, and must not pass for the user or group that really is it.
    if uid == _OVERFLOW and not _knows_everybody("/proc/self/uid_map"):
        raise PathError("users of another user namespace have no number here: run a broker in theirs", errno.EACCES)
    if _OVERFLOW in gids and not _knows_everybody("/proc/self/gid_map"):
        gids.discard(_OVERFLOW)
    return Peer(pid, uid, frozenset(gids))


def _knows_everybody(path: str) -> bool:
    try:
        with open(path) as table:
            return sum(int(line.split()[2]) for line in table) >= (1 << 32) - 1
    except (OSError, ValueError, IndexError):
        return False
