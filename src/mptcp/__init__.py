"""Multipath TCP for Python: one API, and a TCP and MPTCP stack in user space beneath it.

The public names; they are imported when first used, so that a part of the package costs no more than it needs.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mptcp.core.multipath.config import ConnectionConfig as ConnectionConfig
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
    from mptcp.sockets.aio import open_connection as open_connection
    from mptcp.sockets.aio import start_server as start_server
    from mptcp.sockets.base import Stack as Stack
    from mptcp.sockets.base import Support as Support
    from mptcp.sockets.create import create_connection as create_connection
    from mptcp.sockets.create import create_server as create_server
    from mptcp.sockets.create import current_stack as current_stack
    from mptcp.sockets.create import set_default_stack as set_default_stack
    from mptcp.sockets.create import socket as socket
    from mptcp.sockets.create import use as use
    from mptcp.sockets.loop import EventLoop as EventLoop
    from mptcp.sockets.loop import LoopMixin as LoopMixin
    from mptcp.sockets.socket import Socket as Socket
    from mptcp.sockets.tls import SSLContext as SSLContext
    from mptcp.sockets.tls import TlsSocket as TlsSocket
    from mptcp.sockets.tls import create_default_context as create_default_context
    from mptcp.sockets.tls import wrap_socket as wrap_socket
    from mptcp.sockets.user import UserStack as UserStack

_HOME = {
    "mptcp.core.multipath.config": ("ConnectionConfig",),
    "mptcp.core.tcp.config": ("TcpConfig",),
    "mptcp.errors": (
        "ConfigurationError", "ConnectionAborted", "ConnectionFailed", "ConnectionRefused", "ConnectionTimedOut",
        "ConnectionWasReset", "HostUnreachable", "MptcpError", "NetworkUnreachable", "NotSupportedError", "PathError",
    ),
    "mptcp.info": ("ConnectionInfo", "Endpoint", "PathInfo", "SubflowInfo", "SubflowState"),
    "mptcp.sockets.aio": ("open_connection", "start_server"),
    "mptcp.sockets.base": ("Stack", "Support"),
    "mptcp.sockets.create": (
        "create_connection", "create_server", "current_stack", "set_default_stack", "socket", "use",
    ),
    "mptcp.sockets.loop": ("EventLoop", "LoopMixin"),
    "mptcp.sockets.socket": ("Socket",),
    "mptcp.sockets.tls": ("SSLContext", "TlsSocket", "create_default_context", "wrap_socket"),
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
