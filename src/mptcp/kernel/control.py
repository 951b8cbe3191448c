"""What needs a privilege, of one connection: by ourselves (``DirectControl``) or through the broker.

Every operation takes ``fd``, the connection's MPTCP socket (the proof that it is ours, for whoever acts in our place),
and ``token``, its local token. Errors are ``OSError``s whose number says what happened, the same whoever acts:

========== ===========================================================================================================
EPERM      the privilege is missing, or the broker's policy says no
EOPNOTSUPP the connection has the in-kernel path manager, or is not MPTCP; or this kernel cannot do it
ENOTCONN   the kernel knows no such connection (any more)
EAGAIN     the connection is not fully established yet (RFC 8684 §3.1): after some data has been exchanged
EEXIST     the path manager keeps that address with another id, or that id for another address
ENXIO      the path manager keeps no address with that id
ENOENT     there is no such subflow
EADDRNOTAVAIL, EADDRINUSE, ENETUNREACH, ENODEV, EINVAL   as of ``bind`` and ``connect``
========== ===========================================================================================================
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final, Never

from mptcp.errors import NotSupportedError, PathError
from mptcp.forking import freed_in_child
from mptcp.info import Endpoint, Support
from mptcp.kernel import features, sockopt
from mptcp.kernel.diag import Diag
from mptcp.kernel.namespace import NetNamespace
from mptcp.kernel.netlink import NetlinkError
from mptcp.kernel.path_manager import FLAG_BACKUP, PathManagerNetlink
from mptcp.kernel.pm_events import PmEventSocket, PmEventSource

if TYPE_CHECKING:
    from mptcp.kernel.bpf.subflow_options import SubflowOptions

#: The operations, as ``Control.supports`` and a broker's policy name them.
OPERATIONS: Final = (
    "announce",
    "remove",
    "create_subflow",
    "destroy_subflow",
    "reset_subflow",
    "set_backup",
    "set_subflow_option",
    "get_subflow_option",
    "events",
)
#: Those that ask for the user-space path manager.
STEERING: Final = frozenset({"announce", "remove", "create_subflow", "destroy_subflow", "set_backup"})

NEEDS_USER_SPACE_MANAGER: Final = (
    "this connection is steered by the in-kernel path manager: set net.mptcp.path_manager=userspace before the socket is "
    "made (a server: before the connection is accepted)"
)
NOT_YET: Final = "the connection is not fully established yet: exchange some data first"


class Control(ABC):
    """Steers connections of one namespace. Any thread may call; nothing here waits for the peer."""

    __slots__ = ()

    @abstractmethod
    def announce(self, fd: int, token: int, local: Endpoint, address_id: int, interface: int = 0) -> None:
        """ADD_ADDR: tells the peer of an address of this host. ``local.port`` 0: the connection's own port."""

    @abstractmethod
    def remove(self, fd: int, token: int, address_id: int) -> None:
        """REMOVE_ADDR, and FIN on each subflow from that address."""

    @abstractmethod
    def create_subflow(
        self,
        fd: int,
        token: int,
        local: Endpoint,
        local_id: int,
        remote: Endpoint,
        *,
        backup: bool = False,
        interface: int = 0,
    ) -> None:
        """Sends the SYN of a subflow; whether the peer takes it, its event will say."""

    @abstractmethod
    def destroy_subflow(self, fd: int, token: int, local: Endpoint, remote: Endpoint) -> None:
        """FIN on the subflow with exactly these addresses and ports."""

    @abstractmethod
    def reset_subflow(self, fd: int, token: int, local: Endpoint, remote: Endpoint) -> None:
        """RST on that subflow, under any path manager."""

    @abstractmethod
    def set_backup(self, fd: int, token: int, local: Endpoint, remote: Endpoint, backup: bool) -> None:
        """MP_PRIO on that subflow."""

    @abstractmethod
    def set_subflow_option(
        self, fd: int, token: int, local: Endpoint, remote: Endpoint, level: int, name: int, value: bytes
    ) -> None:
        """setsockopt on one subflow; errors of setsockopt."""

    @abstractmethod
    def get_subflow_option(
        self, fd: int, token: int, local: Endpoint, remote: Endpoint, level: int, name: int, size: int
    ) -> bytes:
        """getsockopt on one subflow: up to ``size`` octets."""

    @abstractmethod
    def event_source(self) -> PmEventSource:
        """A new source of the kernel's events; whoever asked closes it."""

    @abstractmethod
    def supports(self, operation: str) -> Support:
        """Whether one of ``OPERATIONS`` can be done, as far as that does not depend on the connection."""

    @abstractmethod
    def close(self) -> None:
        """Lets go of everything; twice is as good as once."""


class DirectControl(Control):
    """With this process's own privileges. What an operation needs is opened when it is first asked for."""

    __slots__ = ("_diag", "_lock", "_namespace", "_options", "_path_manager", "_pid")

    def __init__(self, namespace: NetNamespace | None = None) -> None:
        self._namespace = namespace or NetNamespace()
        self._lock = freed_in_child(threading.Lock())
        self._pid = os.getpid()
        self._path_manager: PathManagerNetlink | None = None
        self._diag: Diag | None = None
        self._options: SubflowOptions | None = None

    def announce(self, fd: int, token: int, local: Endpoint, address_id: int, interface: int = 0) -> None:
        with explained():
            self._pm().announce(token, local, address_id, 0, interface)

    def remove(self, fd: int, token: int, address_id: int) -> None:
        with explained():
            self._pm().remove(token, address_id)

    def create_subflow(
        self,
        fd: int,
        token: int,
        local: Endpoint,
        local_id: int,
        remote: Endpoint,
        *,
        backup: bool = False,
        interface: int = 0,
    ) -> None:
        with explained():
            self._pm().create_subflow(token, local, local_id, remote, FLAG_BACKUP if backup else 0, interface)

    def destroy_subflow(self, fd: int, token: int, local: Endpoint, remote: Endpoint) -> None:
        with explained():
            try:
                self._pm().destroy_subflow(token, local, remote)
            except NetlinkError as error:
                if error.errno != errno.ESRCH or len(local.address) != 4 or len(remote.address) != 4:
                    raise
                # An IPv6 socket's connection to an IPv4-mapped address is only found by mapped addresses.
                self._pm().destroy_subflow(token, mapped(local), mapped(remote))

    def reset_subflow(self, fd: int, token: int, local: Endpoint, remote: Endpoint) -> None:
        check_own(fd, local, remote)
        with explained():
            self._sock_diag().destroy(local, remote, os.fstat(fd).st_ino)

    def set_backup(self, fd: int, token: int, local: Endpoint, remote: Endpoint, backup: bool) -> None:
        with explained():
            self._pm().set_flags(token, local, remote, FLAG_BACKUP if backup else 0)

    def set_subflow_option(
        self, fd: int, token: int, local: Endpoint, remote: Endpoint, level: int, name: int, value: bytes
    ) -> None:
        check_own(fd, local, remote)
        self._subflow_options().set(local, remote, level, name, value)

    def get_subflow_option(
        self, fd: int, token: int, local: Endpoint, remote: Endpoint, level: int, name: int, size: int
    ) -> bytes:
        check_own(fd, local, remote)
        return self._subflow_options().get(local, remote, level, name, size)

    def event_source(self) -> PmEventSource:
        with explained():
            return PmEventSocket(self._namespace)

    def supports(self, operation: str) -> Support:
        if operation not in OPERATIONS:
            return Support(False, f"there is no operation {operation!r}", f"one of {', '.join(OPERATIONS)}")
        if operation in {"set_subflow_option", "get_subflow_option"}:
            return features.subflow_options(self._namespace)
        steering = features.steering(self._namespace)
        return features.user_space_manager(self._namespace) if steering and operation in STEERING else steering

    def close(self) -> None:
        with self._lock:
            self._forget()

    # --- inside ------------------------------------------------------------------------------------------------------
    def _pm(self) -> PathManagerNetlink:
        with self._lock:
            self._notice_fork()
            if self._path_manager is None:
                self._path_manager = PathManagerNetlink(self._namespace)
            return self._path_manager

    def _sock_diag(self) -> Diag:
        with self._lock:
            self._notice_fork()
            if self._diag is None:
                self._diag = Diag(self._namespace)
            return self._diag

    def _subflow_options(self) -> SubflowOptions:
        from mptcp.kernel.bpf.subflow_options import SubflowOptions

        with self._lock:
            self._notice_fork()
            if self._options is None:
                self._options = SubflowOptions(self._namespace)
            return self._options

    def _notice_fork(self) -> None:
        # Parent and child would take each other's answers from a socket they share.
        if self._pid != os.getpid():
            self._pid = os.getpid()
            self._forget()

    def _forget(self) -> None:
        for opened in (self._path_manager, self._diag, self._options):
            if opened is not None:
                opened.close()
        self._path_manager = self._diag = self._options = None


class NoControl(Control):
    """Nobody who could: each operation fails with the reason."""

    __slots__ = ("_why",)

    def __init__(self, why: Support) -> None:
        self._why = why

    def _refuse(self, *_: Any, **__: Any) -> Never:
        raise PermissionError(errno.EPERM, f"{self._why.reason}: {self._why.fix}")

    announce = remove = create_subflow = destroy_subflow = reset_subflow = set_backup = _refuse
    set_subflow_option = get_subflow_option = event_source = _refuse

    def supports(self, operation: str) -> Support:
        return self._why

    def close(self) -> None:
        """There is nothing to let go of."""


def find_control(namespace: NetNamespace | None = None) -> Control:
    """The way there is: by ourselves with CAP_NET_ADMIN, else the broker, else one whose operations say what is missing."""
    namespace = namespace or NetNamespace()
    own = features.steering(namespace)
    if own:
        return DirectControl(namespace)
    from mptcp.kernel.broker.client import BrokerControl, broker_path

    path = broker_path()
    return BrokerControl(path) if path else NoControl(own)


def check_own(fd: int, local: Endpoint, remote: Endpoint) -> None:
    """PathError ENOENT if the socket has no subflow with these addresses and ports."""
    if all((entry.local, entry.remote) != (local, remote) for entry in sockopt.full_info(fd).subflows):
        raise PathError(f"this connection has no subflow from {local} to {remote}", errno.ENOENT)


def mapped(endpoint: Endpoint) -> Endpoint:
    """An IPv4 endpoint as an IPv4-mapped IPv6 one."""
    return Endpoint(bytes(10) + b"\xff\xff" + endpoint.address, endpoint.port)


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """The kernel's refusals as the errors of this module's table."""
    try:
        yield
    except NetlinkError as error:
        raise explain(error) from None


def explain(error: NetlinkError) -> OSError:
    """What the kernel's number and sentence mean here."""
    said = error.explanation
    message = error.strerror or str(error)
    match error.errno:
        case errno.EPERM:
            return PermissionError(errno.EPERM, f"{message}: it needs CAP_NET_ADMIN in the network namespace")
        case errno.ENOTCONN:
            return PathError(NOT_YET, errno.EAGAIN)
        case errno.ESRCH:
            return PathError(message, errno.ENOENT)
        case errno.EADDRNOTAVAIL:
            return PathError(f"{message}: it has to be an address of this host", errno.EADDRNOTAVAIL)
        case errno.EOPNOTSUPP:
            return NotSupportedError(message)
        case errno.EINVAL if "userspace PM not selected" in said:
            return NotSupportedError(NEEDS_USER_SPACE_MANAGER)
        case errno.EINVAL if "invalid token" in said:
            return PathError("the kernel knows no such connection: it is over, or in another namespace", errno.ENOTCONN)
        case errno.EINVAL if "did not match" in said:
            return PathError(message, errno.EEXIST)
        case errno.EINVAL if "subflow not found" in said:
            return PathError(message, errno.ENOENT)  # it ended since it was looked at
        case errno.EINVAL if "not found" in said:
            return PathError(message, errno.ENXIO)
        case _:
            return PathError(message, error.errno or errno.EINVAL)
