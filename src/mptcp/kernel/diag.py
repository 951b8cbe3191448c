"""sock_diag: every MPTCP connection of a namespace and its subflows, whosever they are, without privilege.

Subflows are TCP sockets whose "upper layer protocol" is MPTCP. What one needs CAP_NET_ADMIN for is said where it stands.
"""

from __future__ import annotations

import errno
import struct
from dataclasses import dataclass
from typing import Final, Self

from mptcp.errors import NotSupportedError, PathError
from mptcp.info import Endpoint
from mptcp.kernel.layout import AF_INET, AF_INET6, LISTEN, TIME_WAIT, MptcpInfo, TcpInfo, unmapped
from mptcp.kernel.namespace import NetNamespace
from mptcp.kernel.netlink import (
    NETLINK_SOCK_DIAG,
    Message,
    NetlinkError,
    NetlinkSocket,
    attribute,
    attributes,
    text,
    unsigned,
)

SOCK_DIAG_BY_FAMILY: Final = 20
SOCK_DESTROY: Final = 21

#: ``DiagSubflow.flags`` (MPTCP_SUBFLOW_FLAG_*, linux/mptcp.h): REM is what the peer, LOC what this side asked for.
FLAG_MCAP_REM: Final = 1 << 0
FLAG_MCAP_LOC: Final = 1 << 1
FLAG_JOIN_REM: Final = 1 << 2
FLAG_JOIN_LOC: Final = 1 << 3
FLAG_BACKUP_REM: Final = 1 << 4
FLAG_BACKUP_LOC: Final = 1 << 5
FLAG_FULLY_ESTABLISHED: Final = 1 << 6
FLAG_CONNECTED: Final = 1 << 7
FLAG_MAPPING_VALID: Final = 1 << 8

_IPPROTO_TCP: Final = 6
_IPPROTO_MPTCP: Final = 262
_IPPROTO_RAW: Final = 255  # sdiag_protocol is one octet: larger ones are told by INET_DIAG_REQ_PROTOCOL
_INET_DIAG_INFO: Final = 2
_INET_DIAG_REQ_PROTOCOL: Final = 3
_INET_DIAG_CONG: Final = 4
_INET_DIAG_ULP_INFO: Final = 19
_INET_ULP_INFO_NAME: Final = 1
_INET_ULP_INFO_MPTCP: Final = 3
_SUBFLOW_TOKEN_REM: Final = 1
_SUBFLOW_TOKEN_LOC: Final = 2
_SUBFLOW_FLAGS: Final = 8
_SUBFLOW_ID_REM: Final = 9
_SUBFLOW_ID_LOC: Final = 10

#: What is asked for: ``tcp_info`` or ``mptcp_info``, and the congestion control's name.
_EXTENSIONS: Final = 1 << (_INET_DIAG_INFO - 1) | 1 << (_INET_DIAG_CONG - 1)
_ALL_STATES: Final = 0xFFF
_OF_SUBFLOWS: Final = _ALL_STATES & ~(1 << LISTEN | 1 << TIME_WAIT)

#: ``struct inet_diag_req_v2``: family, protocol, extensions, padding, states; then ``struct inet_diag_sockid``.
_REQUEST: Final = struct.Struct("=BBBxI")
#: ``struct inet_diag_sockid``: ports (network order), addresses, interface, cookie.
_SOCKID: Final = struct.Struct("=2s2s16s16sI8s")
_ANY_COOKIE: Final = b"\xff" * 8
#: No such socket, or another one (the cookie differs).
_GONE: Final = frozenset({errno.ENOENT, errno.ESTALE})
#: ``struct inet_diag_msg``: family, state, timer, retransmits, the sockid; expires, rqueue, wqueue, uid, inode.
_MESSAGE: Final = struct.Struct("=4B48s5I")


@dataclass(frozen=True, slots=True)
class MptcpSocket:
    """One MPTCP socket. ``state`` as ``TcpInfo.state``; queues in bytes; ``info`` is None if the kernel gave none.

    ``inode`` is that of the descriptor (0 after the program has closed it); of a listening socket ``receive_queue`` is how
    many connections wait for accept, ``send_queue`` how many may.
    """

    state: int
    local: Endpoint
    remote: Endpoint
    uid: int
    inode: int
    receive_queue: int
    send_queue: int
    info: MptcpInfo | None

    @property
    def token(self) -> int:
        return self.info.token if self.info is not None else 0


@dataclass(frozen=True, slots=True)
class DiagSubflow:
    """One subflow. ``inode`` is its connection's; ``interface`` the index it is bound to, 0: the route's choice.

    ``token_remote`` and ``token_local`` are 0 where that side's token is not known yet; ``flags``: FLAG_*.
    """

    state: int
    local: Endpoint
    remote: Endpoint
    uid: int
    inode: int
    interface: int
    congestion_control: str
    token_local: int
    token_remote: int
    flags: int
    local_id: int
    remote_id: int
    tcp: TcpInfo | None
    family: int
    sockid: bytes  # ``struct inet_diag_sockid``: what names it to the kernel

    @property
    def backup(self) -> bool:
        """Either side wants other subflows to be used before this one."""
        return bool(self.flags & (FLAG_BACKUP_LOC | FLAG_BACKUP_REM))

    @property
    def is_join(self) -> bool:
        """Opened by MP_JOIN: not the initial subflow."""
        return bool(self.flags & (FLAG_JOIN_LOC | FLAG_JOIN_REM))

    @property
    def fully_established(self) -> bool:
        return bool(self.flags & FLAG_FULLY_ESTABLISHED)


@dataclass(frozen=True, slots=True)
class _Entry:
    """What every answer has, of whatever protocol."""

    family: int
    state: int
    sockid: bytes
    local: Endpoint
    remote: Endpoint
    interface: int
    receive_queue: int
    send_queue: int
    uid: int
    inode: int
    found: dict[int, memoryview]


class Diag:
    """Asks about the sockets of one namespace. Any thread may; answers are snapshots. OSError without sock_diag."""

    __slots__ = ("_netlink",)

    def __init__(self, namespace: NetNamespace | None = None) -> None:
        self._netlink = NetlinkSocket(NETLINK_SOCK_DIAG, namespace)

    def mptcp_sockets(self) -> list[MptcpSocket]:
        """Every MPTCP socket: listening, connected, and what still closes after its program has let it go."""
        found: dict[tuple[object, ...], MptcpSocket] = {}
        for family in (AF_INET, AF_INET6):
            body = _request(family, _IPPROTO_MPTCP, _ALL_STATES)
            for message in self._listed(body, "MPTCP sockets"):
                sock = parse_mptcp_socket(message.payload)
                if sock is not None:
                    found[sock.local, sock.remote, sock.inode, sock.token] = sock
        return list(found.values())

    def mptcp_socket(self, token: int) -> MptcpSocket | None:
        """The connection with that local token."""
        # The kernel looks an MPTCP socket up by the first word of the cookie.
        cookie = struct.pack("=II", token, 0xFFFFFFFF)
        body = _request(AF_INET, _IPPROTO_MPTCP, _ALL_STATES, _SOCKID.pack(b"", b"", b"", b"", 0, cookie))
        for payload in self._lookup(body, "looking up an MPTCP socket"):
            sock = parse_mptcp_socket(payload)
            if sock is not None and sock.token == token:
                return sock
        return None

    def subflows(self, inode: int | None = None) -> list[DiagSubflow]:
        """The subflows of every connection, or of the one whose descriptor has that inode (``os.fstat(fd).st_ino``)."""
        subflows: list[DiagSubflow] = []
        for family in (AF_INET, AF_INET6):
            body = _request(family, _IPPROTO_TCP, _OF_SUBFLOWS)
            for message in self._listed(body, "subflows"):
                subflow = parse_subflow(message.payload)
                if subflow is not None and (inode is None or subflow.inode == inode):
                    subflows.append(subflow)
        return subflows

    def tcp_connections(self) -> set[tuple[Endpoint, Endpoint]]:
        """(local, remote) of every TCP connection, MPTCP or not."""
        found = set()
        for family in (AF_INET, AF_INET6):
            for message in self._listed(_request(family, _IPPROTO_TCP, _OF_SUBFLOWS), "TCP connections"):
                entry = _entry(message.payload)
                if entry is not None:
                    found.add((entry.local, entry.remote))
        return found

    def subflow(self, local: Endpoint, remote: Endpoint, interface: int = 0) -> DiagSubflow | None:
        """The one subflow with these addresses and ports, looked up (whatever the number of sockets); None: no such one."""
        family = AF_INET if len(remote.address) == 4 else AF_INET6
        body = _request(family, _IPPROTO_TCP, _ALL_STATES, sockid(local, remote, interface))
        for payload in self._lookup(body, "looking up a subflow"):
            subflow = parse_subflow(payload)
            if subflow is not None and (subflow.local, subflow.remote) == (local, remote):
                return subflow
        return None

    def destroy(self, local: Endpoint, remote: Endpoint, inode: int | None = None) -> None:
        """Ends one subflow with RST, under any path manager. Needs CAP_NET_ADMIN (NetlinkError EPERM).

        PathError (ENOENT) if there is no such subflow, or not of the connection whose descriptor has that inode: no other
        socket is ever touched.
        """
        subflow = self.subflow(local, remote)
        if subflow is None:
            # A lookup does not find what is bound to an interface unless it names it.
            subflow = next((s for s in self.subflows() if (s.local, s.remote) == (local, remote)), None)
        if subflow is None or inode not in {None, subflow.inode}:
            raise PathError(f"there is no subflow from {local} to {remote}", errno.ENOENT)
        body = _REQUEST.pack(subflow.family, _IPPROTO_TCP, 0, _ALL_STATES) + subflow.sockid
        try:
            self._netlink.request(SOCK_DESTROY, body, what=f"resetting the subflow from {local} to {remote}")
        except NetlinkError as error:
            if error.errno not in _GONE:
                raise
            # It has ended since it was looked up.
            raise PathError(f"there is no subflow from {local} to {remote}", errno.ENOENT) from None

    def _listed(self, body: bytes, what: str) -> list[Message]:
        try:
            return self._netlink.dump(SOCK_DIAG_BY_FAMILY, body, what=f"listing {what}")
        except NetlinkError as error:
            if error.errno in {errno.ENOENT, errno.EINVAL, errno.EOPNOTSUPP}:
                raise NotSupportedError(
                    f"this kernel does not list {what} (CONFIG_MPTCP, CONFIG_INET_MPTCP_DIAG; modprobe mptcp_diag)"
                ) from None
            raise

    def _lookup(self, body: bytes, what: str) -> list[memoryview]:
        try:
            return [message.payload for message in self._netlink.request(SOCK_DIAG_BY_FAMILY, body, what=what)]
        except NetlinkError as error:
            if error.errno in _GONE:
                return []
            raise

    def close(self) -> None:
        """Lets go of it; twice is as good as once."""
        self._netlink.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def sockid(local: Endpoint, remote: Endpoint, interface: int = 0) -> bytes:
    """``struct inet_diag_sockid`` of a connection, whatever its cookie."""
    return _SOCKID.pack(
        local.port.to_bytes(2, "big"), remote.port.to_bytes(2, "big"), local.address, remote.address, interface,
        _ANY_COOKIE,
    )  # fmt: skip


def _request(family: int, protocol: int, states: int, identity: bytes = bytes(_SOCKID.size)) -> bytes:
    body = _REQUEST.pack(family, min(protocol, _IPPROTO_RAW), _EXTENSIONS, states) + identity
    if protocol > _IPPROTO_RAW:
        body += attribute(_INET_DIAG_REQ_PROTOCOL, struct.pack("=I", protocol))
    return body


def parse_mptcp_socket(payload: memoryview) -> MptcpSocket | None:
    """From the answer about an MPTCP socket; None if it is none."""
    entry = _entry(payload)
    if entry is None:
        return None
    info = entry.found.get(_INET_DIAG_INFO)
    return MptcpSocket(
        entry.state, entry.local, entry.remote, entry.uid, entry.inode, entry.receive_queue, entry.send_queue,
        MptcpInfo.parse(info) if info is not None else None,
    )  # fmt: skip


def parse_subflow(payload: memoryview) -> DiagSubflow | None:
    """From the answer about a TCP socket; None if that is not a subflow."""
    entry = _entry(payload)
    if entry is None:
        return None
    protocol = dict(attributes(entry.found.get(_INET_DIAG_ULP_INFO, memoryview(b""))))
    if text(protocol.get(_INET_ULP_INFO_NAME)) != "mptcp":
        return None
    told = dict(attributes(protocol.get(_INET_ULP_INFO_MPTCP, memoryview(b""))))
    info = entry.found.get(_INET_DIAG_INFO)
    return DiagSubflow(
        state=entry.state,
        local=entry.local,
        remote=entry.remote,
        uid=entry.uid,
        inode=entry.inode,
        interface=entry.interface,
        congestion_control=text(entry.found.get(_INET_DIAG_CONG)),
        token_local=unsigned(told.get(_SUBFLOW_TOKEN_LOC)) or 0,
        token_remote=unsigned(told.get(_SUBFLOW_TOKEN_REM)) or 0,
        flags=unsigned(told.get(_SUBFLOW_FLAGS)) or 0,
        local_id=unsigned(told.get(_SUBFLOW_ID_LOC)) or 0,
        remote_id=unsigned(told.get(_SUBFLOW_ID_REM)) or 0,
        tcp=TcpInfo.parse(info) if info is not None else None,
        family=entry.family,
        sockid=entry.sockid,
    )


def _entry(payload: memoryview) -> _Entry | None:
    if len(payload) < _MESSAGE.size:
        return None
    family, state, _, _, identity, _, receive_queue, send_queue, uid, inode = _MESSAGE.unpack_from(payload)
    local_port, remote_port, source, destination, interface, _ = _SOCKID.unpack(identity)
    if family not in {AF_INET, AF_INET6}:
        return None
    size = 4 if family == AF_INET else 16
    local = Endpoint(unmapped(source[:size]), int.from_bytes(local_port, "big"))
    remote = Endpoint(unmapped(destination[:size]), int.from_bytes(remote_port, "big"))
    found = dict(attributes(payload[_MESSAGE.size :]))
    return _Entry(family, state, identity, local, remote, interface, receive_queue, send_queue, uid, inode, found)
