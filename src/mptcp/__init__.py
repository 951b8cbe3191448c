"""Multipath TCP (RFC 8684) for Python: one API over the kernel's MPTCP and over a stack of our own in user space.

``create_connection``, ``create_server``, ``open_connection``, ``start_server`` and ``socket`` are those of the standard
library and asyncio. On Linux they need no set-up and no privilege: sockets are the kernel's (``KernelStack``), MPTCP
where both ends have it, else TCP, with the reason in ``fallback_reason``. ``with use(stack):`` chooses another stack:
``UserStack`` over links of one's own, ``UdpStack`` over UDP.

The names below are imported when first used, so that a part of the package costs no more than it needs.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mptcp.core.multipath.config import ConnectionConfig as ConnectionConfig
    from mptcp.core.multipath.events import Event as Event
    from mptcp.core.multipath.events import EventKind as EventKind
    from mptcp.core.schedulers.base import Redundancy as Redundancy
    from mptcp.core.tcp.config import TcpConfig as TcpConfig
    from mptcp.errors import ConfigurationError as ConfigurationError
    from mptcp.errors import ConnectionAborted as ConnectionAborted
    from mptcp.errors import ConnectionFailed as ConnectionFailed
    from mptcp.errors import ConnectionRefused as ConnectionRefused
    from mptcp.errors import ConnectionTimedOut as ConnectionTimedOut
    from mptcp.errors import ConnectionWasReset as ConnectionWasReset
    from mptcp.errors import HostUnreachable as HostUnreachable
    from mptcp.errors import MptcpError as MptcpError
    from mptcp.errors import NetworkUnreachable as NetworkUnreachable
    from mptcp.errors import NotSupportedError as NotSupportedError
    from mptcp.errors import PathError as PathError
    from mptcp.info import ConnectionInfo as ConnectionInfo
    from mptcp.info import Endpoint as Endpoint
    from mptcp.info import PathInfo as PathInfo
    from mptcp.info import SubflowInfo as SubflowInfo
    from mptcp.info import SubflowState as SubflowState
    from mptcp.info import Support as Support
    from mptcp.sockets.advanced import SubflowUsage as SubflowUsage
    from mptcp.sockets.aio import open_connection as open_connection
    from mptcp.sockets.aio import start_server as start_server
    from mptcp.sockets.base import Stack as Stack
    from mptcp.sockets.create import create_connection as create_connection
    from mptcp.sockets.create import create_server as create_server
    from mptcp.sockets.create import current_stack as current_stack
    from mptcp.sockets.create import set_default_stack as set_default_stack
    from mptcp.sockets.create import socket as socket
    from mptcp.sockets.create import use as use
    from mptcp.sockets.events import MPTCP_EVENTS as MPTCP_EVENTS
    from mptcp.sockets.events import EventStream as EventStream
    from mptcp.sockets.hesmans import MPTCP_CLOSE_SUB_ID as MPTCP_CLOSE_SUB_ID
    from mptcp.sockets.hesmans import MPTCP_GET_SUB_IDS as MPTCP_GET_SUB_IDS
    from mptcp.sockets.hesmans import MPTCP_GET_SUB_TUPLE as MPTCP_GET_SUB_TUPLE
    from mptcp.sockets.hesmans import MPTCP_OPEN_SUB_TUPLE as MPTCP_OPEN_SUB_TUPLE
    from mptcp.sockets.hesmans import MPTCP_SUB_GETSOCKOPT as MPTCP_SUB_GETSOCKOPT
    from mptcp.sockets.hesmans import MPTCP_SUB_SETSOCKOPT as MPTCP_SUB_SETSOCKOPT
    from mptcp.sockets.kernel import KernelStack as KernelStack
    from mptcp.sockets.kernel_socket import KernelSocket as KernelSocket
    from mptcp.sockets.legacy import LegacyPolicy as LegacyPolicy
    from mptcp.sockets.loop import EventLoop as EventLoop
    from mptcp.sockets.loop import LoopMixin as LoopMixin
    from mptcp.sockets.multipath_options import TCP_MULTIPATH_ADD as TCP_MULTIPATH_ADD
    from mptcp.sockets.multipath_options import TCP_MULTIPATH_BIND as TCP_MULTIPATH_BIND
    from mptcp.sockets.multipath_options import TCP_MULTIPATH_CONNID as TCP_MULTIPATH_CONNID
    from mptcp.sockets.multipath_options import TCP_MULTIPATH_ENABLE as TCP_MULTIPATH_ENABLE
    from mptcp.sockets.multipath_options import TCP_MULTIPATH_REMOVE as TCP_MULTIPATH_REMOVE
    from mptcp.sockets.multipath_options import TCP_MULTIPATH_SUBFLOWS as TCP_MULTIPATH_SUBFLOWS
    from mptcp.sockets.options import IPPROTO_MPTCP as IPPROTO_MPTCP
    from mptcp.sockets.policy import Policy as Policy
    from mptcp.sockets.policy import Rule as Rule
    from mptcp.sockets.profiles import Expectation as Expectation
    from mptcp.sockets.profiles import Profile as Profile
    from mptcp.sockets.profiles import Setup as Setup
    from mptcp.sockets.sctp import SCTP_BINDX_ADD_ADDR as SCTP_BINDX_ADD_ADDR
    from mptcp.sockets.sctp import SCTP_BINDX_REM_ADDR as SCTP_BINDX_REM_ADDR
    from mptcp.sockets.sctp import sctp_bindx as sctp_bindx
    from mptcp.sockets.sctp import sctp_connectx as sctp_connectx
    from mptcp.sockets.sctp import sctp_freeladdrs as sctp_freeladdrs
    from mptcp.sockets.sctp import sctp_freepaddrs as sctp_freepaddrs
    from mptcp.sockets.sctp import sctp_getladdrs as sctp_getladdrs
    from mptcp.sockets.sctp import sctp_getpaddrs as sctp_getpaddrs
    from mptcp.sockets.socket import Socket as Socket
    from mptcp.sockets.structures import RST as RST
    from mptcp.sockets.structures import SubflowTuple as SubflowTuple
    from mptcp.sockets.tls import KernelTlsSocket as KernelTlsSocket
    from mptcp.sockets.tls import SSLContext as SSLContext
    from mptcp.sockets.tls import TlsSocket as TlsSocket
    from mptcp.sockets.tls import create_default_context as create_default_context
    from mptcp.sockets.tls import wrap_socket as wrap_socket
    from mptcp.sockets.udp import UdpStack as UdpStack
    from mptcp.sockets.user import UserStack as UserStack

__version__ = "0.1.0"

_HOME = {
    "mptcp.core.multipath.config": ("ConnectionConfig",),
    "mptcp.core.multipath.events": ("Event", "EventKind"),
    "mptcp.core.schedulers.base": ("Redundancy",),
    "mptcp.core.tcp.config": ("TcpConfig",),
    "mptcp.errors": (
        "ConfigurationError", "ConnectionAborted", "ConnectionFailed", "ConnectionRefused", "ConnectionTimedOut",
        "ConnectionWasReset", "HostUnreachable", "MptcpError", "NetworkUnreachable", "NotSupportedError", "PathError",
    ),
    "mptcp.info": ("ConnectionInfo", "Endpoint", "PathInfo", "SubflowInfo", "SubflowState", "Support"),
    "mptcp.sockets.advanced": ("SubflowUsage",),
    "mptcp.sockets.aio": ("open_connection", "start_server"),
    "mptcp.sockets.base": ("Stack",),
    "mptcp.sockets.create": (
        "create_connection", "create_server", "current_stack", "set_default_stack", "socket", "use",
    ),
    "mptcp.sockets.events": ("MPTCP_EVENTS", "EventStream"),
    "mptcp.sockets.hesmans": (
        "MPTCP_CLOSE_SUB_ID", "MPTCP_GET_SUB_IDS", "MPTCP_GET_SUB_TUPLE", "MPTCP_OPEN_SUB_TUPLE",
        "MPTCP_SUB_GETSOCKOPT", "MPTCP_SUB_SETSOCKOPT",
    ),
    "mptcp.sockets.kernel": ("KernelStack",),
    "mptcp.sockets.kernel_socket": ("KernelSocket",),
    "mptcp.sockets.legacy": ("LegacyPolicy",),
    "mptcp.sockets.loop": ("EventLoop", "LoopMixin"),
    "mptcp.sockets.multipath_options": (
        "TCP_MULTIPATH_ADD", "TCP_MULTIPATH_BIND", "TCP_MULTIPATH_CONNID", "TCP_MULTIPATH_ENABLE",
        "TCP_MULTIPATH_REMOVE", "TCP_MULTIPATH_SUBFLOWS",
    ),
    "mptcp.sockets.options": ("IPPROTO_MPTCP",),
    "mptcp.sockets.policy": ("Policy", "Rule"),
    "mptcp.sockets.profiles": ("Expectation", "Profile", "Setup"),
    "mptcp.sockets.sctp": (
        "SCTP_BINDX_ADD_ADDR", "SCTP_BINDX_REM_ADDR", "sctp_bindx", "sctp_connectx", "sctp_freeladdrs",
        "sctp_freepaddrs", "sctp_getladdrs", "sctp_getpaddrs",
    ),
    "mptcp.sockets.socket": ("Socket",),
    "mptcp.sockets.structures": ("RST", "SubflowTuple"),
    "mptcp.sockets.tls": ("KernelTlsSocket", "SSLContext", "TlsSocket", "create_default_context", "wrap_socket"),
    "mptcp.sockets.udp": ("UdpStack",),
    "mptcp.sockets.user": ("UserStack",),
}  # fmt: skip

_NAMES = {name: module for module, names in _HOME.items() for name in names}

__all__ = sorted(_NAMES)  # noqa: PLE0605 the table above is the list


def __getattr__(name: str) -> object:
    module = _NAMES.get(name)
    if module is None:
        raise AttributeError(f"module 'mptcp' has no attribute {name!r}")
    value = getattr(import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *_NAMES]
