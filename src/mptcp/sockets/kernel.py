"""The stack of the operating system: MPTCP sockets of Linux, and TCP's where it has none, with the reason."""

from __future__ import annotations

import errno
import os
import socket as std
import threading
from collections.abc import Collection, Sequence

from mptcp.core.multipath.config import DEFAULT_CONFIG, ConnectionConfig
from mptcp.errors import ConfigurationError, NotSupportedError, PathError
from mptcp.forking import freed_in_child
from mptcp.info import Endpoint, Support
from mptcp.kernel import features
from mptcp.kernel.addresses import local_addresses
from mptcp.kernel.connection import KernelConnection
from mptcp.kernel.control import OPERATIONS, Control, find_control
from mptcp.kernel.endpoints import Endpoints
from mptcp.kernel.managing import ManagedConnection
from mptcp.kernel.monitor import Monitor
from mptcp.kernel.namespace import NetNamespace
from mptcp.kernel.path_manager import FLAG_IMPLICIT, FLAG_SIGNAL
from mptcp.kernel.turns import Managing
from mptcp.kernel.watchdog import FailurePolicy
from mptcp.sockets.address import os_error
from mptcp.sockets.base import Stack
from mptcp.sockets.kernel_socket import KernelSocket
from mptcp.sockets.kernel_strategies import (
    NO_REDUNDANCY,
    NO_SCHEDULER,
    NO_WEIGHTS,
    profile_support,
)
from mptcp.sockets.kernel_watch import Watch
from mptcp.sockets.legacy import LegacyPolicy
from mptcp.sockets.options import IPPROTO_MPTCP
from mptcp.sockets.policy import Policy
from mptcp.sockets.profiles import profile_known
from mptcp.sockets.supported import is_known, refused_option, unknown

DEFAULT_FAILURE_POLICY = FailurePolicy()

#: What Linux has for no connection, and what would.
_USER_STACK = "use the user-space stack (UserStack)"
_MISSING = {
    "half_close": Support(False, "Linux closes a subflow for both directions only", _USER_STACK),
    "set_weight": Support(False, NO_WEIGHTS, _USER_STACK),
    "set_scheduler": Support(False, NO_SCHEDULER, _USER_STACK),
    "redundancy": Support(False, NO_REDUNDANCY, _USER_STACK),
    "fate_sharing": Support(False, "Linux keeps a connection whose first subflow has ended", _USER_STACK),
    "ktls": Support(False, "a subflow's upper layer protocol is MPTCP", "use TCP, or TLS by OpenSSL as ssl does it"),
}

#: Methods and options of a socket -> the operation of ``kernel.control`` they need.
_NEEDS = {
    "open_subflow": "create_subflow",
    "close_subflow": "destroy_subflow",
    "set_backup": "set_backup",
    "add_address": "announce",
    "add_addresses": "announce",
    "remove_address": "remove",
    "remove_addresses": "remove",
    "bind_addresses": "announce",
    "set_subflow_option": "set_subflow_option",
    "get_subflow_option": "get_subflow_option",
    "MPTCP_OPEN_SUB_TUPLE": "create_subflow",
    "MPTCP_CLOSE_SUB_ID": "destroy_subflow",
    "MPTCP_SUB_SETSOCKOPT": "set_subflow_option",
    "MPTCP_SUB_GETSOCKOPT": "get_subflow_option",
    "TCP_MULTIPATH_ADD": "announce",
    "TCP_MULTIPATH_REMOVE": "remove",
    "TCP_MULTIPATH_BIND": "announce",
    "reset_subflow": "reset_subflow",
    "set_path_manager": "create_subflow",
    "wanted_subflows": "create_subflow",
    "set_subflow_setup": "create_subflow",
    "segments": "create_subflow",
}


class KernelStack(Stack):
    """``with mptcp.use(mptcp.KernelStack()): ...``; without ``use``, a stack of this kind is the process's own.

    ``namespace``: a network namespace (a name, a path, a descriptor) for its sockets; None: the process's. ``config``: what
    connections start with, as far as Linux has it. ``hidden``: addresses that are neither announced nor used unless a
    program names them. ``legacy_policy``, ``policy``: as of ``UserStack``. ``control``: who does what needs a privilege;
    None: this process with CAP_NET_ADMIN, else the broker. ``failure_policy``: what is done about dead subflows and lost
    ones, with the privilege to; None: nothing.
    """

    name = "kernel"
    has_descriptors = True

    def __init__(
        self,
        *,
        namespace: int | str | os.PathLike[str] | None = None,
        config: ConnectionConfig = DEFAULT_CONFIG,
        hidden: Sequence[str] = (),
        legacy_policy: LegacyPolicy | None = None,
        policy: Policy | None = None,
        control: Control | None = None,
        failure_policy: FailurePolicy | None = DEFAULT_FAILURE_POLICY,
    ) -> None:
        _check_config(config)
        self.namespace = NetNamespace(namespace)
        self.config = config
        self.hidden = frozenset(_parse(text).address for text in hidden)
        self.policy = policy if policy is not None else Policy.from_environment()
        self.legacy_policy = legacy_policy or self.policy.legacy
        if self.legacy_policy.fate_sharing:
            raise NotSupportedError(f"fate_sharing: {_MISSING['fate_sharing'].reason}")
        self._legacy_given = legacy_policy
        self._lock = freed_in_child(threading.Lock())
        self._control = self._given_control = control
        self._pid = os.getpid()
        self._monitor: Monitor | None = None
        self.failure_policy = failure_policy
        self._managing: Managing | None = None
        self._watch: Watch | None = None
        self._hears_events: bool | None = None  # None: nobody has needed to know
        self._closed = False

    def __repr__(self) -> str:
        where = f" in {self.namespace.name}" if self.namespace.name else ""
        return f"<KernelStack{where}>"

    def set_policy(self, policy: Policy) -> None:
        """For connections and listeners that begin from now on; a ``legacy_policy`` given to the stack stays."""
        self.policy = policy
        self.legacy_policy = self._legacy_given or policy.legacy

    # --- what there is -----------------------------------------------------------------------------------------------
    @property
    def multipath(self) -> Support:
        """Whether new sockets can be MPTCP; if not, they are TCP."""
        return features.mptcp(self.namespace)

    @property
    def scheduler(self) -> str:
        """The name of the namespace's scheduler."""
        return features.sysctl("scheduler", self.namespace) or "default"

    @property
    def path_manager(self) -> str:
        """The name of the path manager that new connections of the namespace get."""
        return features.path_manager(self.namespace)

    @property
    def control(self) -> Control:
        with self._lock:
            if self._pid != os.getpid():
                # The parent's threads are not here, and its netlink sockets are the parent's to read.
                self._pid = os.getpid()
                self._monitor = self._managing = self._control = self._watch = self._hears_events = None
                if self._given_control is not None:
                    self._control = self._given_control
            if self._control is None:
                if self._closed:
                    raise os_error(errno.ENETDOWN)
                self._control = find_control(self.namespace)
            return self._control

    @property
    def monitor(self) -> Monitor:
        control = self.control
        with self._lock:
            if self._monitor is None:
                if self._closed:
                    raise os_error(errno.ENETDOWN)
                self._monitor = Monitor(self.namespace, control)
            return self._monitor

    def check_steering(self, what: str, operation: str, connection: KernelConnection | None = None) -> None:
        """OSError where connections cannot be steered: EPERM without the privilege, EOPNOTSUPP under another path manager."""
        support = connection.supports(operation) if connection is not None else self.control.supports(operation)
        if not support:
            number = errno.EOPNOTSUPP if features.steering(self.namespace) else errno.EPERM
            raise PathError(f"{what}: {support.reason}: {support.fix}", number)

    def check_restriction(self, allowed: Collection[bytes], *, listening: bool) -> None:
        """NotSupportedError where the in-kernel path manager would use other addresses than these for a connection, or for
        those that a listening socket accepts: it asks nobody, and knows no connection that is restricted."""
        if features.path_manager(self.namespace) != features.KERNEL_MANAGER:
            return
        endpoints = Endpoints(self.namespace)
        try:
            # Who accepts announces; subflows it opens towards a client's port, where nobody listens, come to nothing.
            used = FLAG_SIGNAL if listening else ~FLAG_IMPLICIT
            others = [e.local.host for e in endpoints.list() if e.flags & used and e.local.address not in allowed]
        except OSError:
            return  # no path manager at all
        finally:
            endpoints.close()
        if others:
            raise NotSupportedError(
                f"the in-kernel path manager of this namespace would use {', '.join(others)}, too: remove these endpoints "
                "(ip mptcp endpoint), or set net.mptcp.path_manager=userspace"
            )

    def start_managing(self, managed: ManagedConnection, token: int) -> None:
        """From now on it has its turns."""
        monitor = self.monitor
        with self._lock:
            if self._managing is None:
                self._managing = Managing(monitor)
            managing = self._managing
        managing.add(managed, token)

    def stop_managing(self, managed: ManagedConnection, token: int) -> None:
        """Before its socket is closed."""
        with self._lock:
            managing = self._managing
        if managing is not None:
            managing.remove(managed, token)

    def supports(self, feature: str) -> Support:
        """Of a method or an option of its sockets, of "events", "profile:NAME", "half_close", "redundancy", ...

        What depends on the connection is judged as for one that begins now.
        """
        if feature in _MISSING:
            return _MISSING[feature]
        if feature.startswith("profile:"):
            name = feature.removeprefix("profile:")
            return profile_known(name) and profile_support(name)
        operation = self.operation_of(feature)
        if not operation and not is_known(feature):
            return unknown(feature)
        if not (multipath := self.multipath):
            return multipath if operation or feature in ("multipath_enabled", "is_multipath") else Support(True)
        if feature == "events":
            return self.monitor.supports()
        if feature == "segments" and not (routing := features.segment_routing(self.namespace)):
            return routing
        return self.control.supports(operation) if operation else refused_option(feature)

    @staticmethod
    def operation_of(feature: str) -> str:
        """The operation of ``kernel.control`` that a method or an option of a socket needs; "": none."""
        return _NEEDS.get(feature, feature if feature in OPERATIONS else "")

    # --- sockets -----------------------------------------------------------------------------------------------------
    def socket(
        self,
        family: int = std.AF_INET,
        type: int = std.SOCK_STREAM,  # noqa: A002 the standard library's name
        proto: int = 0,
        *,
        config: ConnectionConfig | None = None,
        fileno: int | None = None,
    ) -> KernelSocket:
        """``proto`` 0 or IPPROTO_TCP: MPTCP as the stack's ``config`` says, and as RFC 6897 §4 has it for programs that do
        not know of MPTCP. IPPROTO_MPTCP, or a ``config`` of its own: the program does, so that a bind to one address only
        restricts MPTCP to it.

        ``fileno``: the descriptor of a stream socket, MPTCP or not, that becomes this object's.
        """
        if self._closed:
            raise os_error(errno.ENETDOWN)
        if fileno is not None:
            return KernelSocket(fileno=fileno, stack=self)
        if family not in (std.AF_INET, std.AF_INET6):
            raise os_error(errno.EAFNOSUPPORT)
        if type & ~(std.SOCK_NONBLOCK | std.SOCK_CLOEXEC) != std.SOCK_STREAM:
            raise os_error(errno.ESOCKTNOSUPPORT)
        if proto not in (0, -1, std.IPPROTO_TCP, IPPROTO_MPTCP):
            raise os_error(errno.EPROTONOSUPPORT)
        if config is not None:
            _check_config(config)
        return KernelSocket(family, type, proto, stack=self, config=config)

    def prepare(self) -> None:
        """Before a connection begins: where the kernel's events can be heard, they are from now on."""
        if self._hears_events is None:
            self._hears_events = bool(self.control.supports("events"))
        if self._hears_events:
            monitor = self.monitor  # it listens from its making on
            if self.failure_policy is not None:
                with self._lock:
                    if self._watch is None:
                        self._watch = Watch()
                        monitor.subscribe_all(self._watch)

    def note(self, sock: KernelSocket) -> None:
        """A connection of this socket begins, or has begun."""
        if self._watch is not None:
            self._watch.note(sock)

    @property
    def looks_after(self) -> bool:
        """Whether dead subflows are closed, and lost ones opened again, where the program has chosen no path manager."""
        return self._watch is not None

    def open_connection(self, fd: int, accepted: bool, lock: threading.RLock) -> KernelConnection:
        """What reads and steers the connection with that descriptor."""
        return KernelConnection(fd, self.namespace, self.control, self.monitor, accepted=accepted, lock=lock)

    # --- interfaces and addresses ------------------------------------------------------------------------------------
    def interfaces(self) -> list[tuple[int, str]]:
        """(``if_idx``, name) of every interface, as ``socket.if_nameindex`` gives them."""
        with self.namespace.entered():
            return std.if_nameindex()

    def interface_index(self, interface: str | int) -> int:
        """``if_idx`` of a name; 0 for 0 or "". PathError ENODEV."""
        if not interface:
            return 0
        there = self.interfaces()
        for index, name in there:
            if interface in (index, name):
                return index
        names = ", ".join(f"{index} {name!r}" for index, name in there)
        raise PathError(f"no interface is {interface!r}: there are {names}", errno.ENODEV)

    def addresses_of(self, interface: str) -> list[Endpoint]:
        """The usable addresses of an interface; hidden ones are not among them."""
        found = local_addresses(self.namespace)
        return [Endpoint(a.address) for a in found if a.name == interface and a.address not in self.hidden]

    def local_addresses(self, hidden: bool = False) -> list[bytes]:
        """The host's addresses that subflows can start from; with ``hidden``, those that must be named as well."""
        return [a.address for a in local_addresses(self.namespace) if hidden or a.address not in self.hidden]

    # --- end ---------------------------------------------------------------------------------------------------------
    def close(self) -> None:
        """No new sockets; those there are live on, without events and steering."""
        with self._lock:
            self._closed = True
            monitor, self._monitor = self._monitor, None
            control, self._control = self._control, None
        if monitor is not None:
            monitor.close()
        if control is not None:
            control.close()
        self.namespace.close()


def _check_config(config: ConnectionConfig) -> None:
    """NotSupportedError for what Linux has for no connection, or for a namespace only."""
    for name, why in (
        ("scheduler", NO_SCHEDULER),
        ("version", "Linux speaks version 1"),
        ("checksum", "set net.mptcp.checksum_enabled for the namespace"),
        ("deny_join_initial", "set net.mptcp.allow_join_initial_addr_port for the namespace"),
        ("fate_sharing", _MISSING["fate_sharing"].reason),
        ("close_timeout_us", "set net.mptcp.close_timeout for the namespace"),
    ):
        if getattr(config, name) != getattr(DEFAULT_CONFIG, name):
            raise NotSupportedError(f"ConnectionConfig.{name}: {why}")
    if config.redundancy is not DEFAULT_CONFIG.redundancy:
        raise NotSupportedError(NO_REDUNDANCY)


def _parse(text: str) -> Endpoint:
    try:
        return Endpoint.parse(text.partition("/")[0])
    except ValueError as error:
        raise ConfigurationError(f"hidden: {text!r} is no address") from error


_default: KernelStack | None = None
_default_pid = 0
_default_lock = freed_in_child(threading.Lock())


def default_stack() -> KernelStack:
    """The process's own: what ``current_stack`` is where no other is in use. A forked child has one of its own."""
    global _default, _default_pid
    with _default_lock:
        if _default is None or _default_pid != os.getpid():
            _default, _default_pid = KernelStack(), os.getpid()
        return _default
