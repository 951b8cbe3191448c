"""What a stack is to a program: the maker of its sockets, and one that says what it cannot do."""

from __future__ import annotations

import socket as std
from abc import ABC, abstractmethod
from types import TracebackType
from typing import TYPE_CHECKING, TypeAlias

from mptcp.info import Support as Support

if TYPE_CHECKING:
    from typing import Self

    from mptcp.core.multipath.config import ConnectionConfig
    from mptcp.info import Endpoint
    from mptcp.sockets.kernel_socket import KernelSocket
    from mptcp.sockets.socket import Socket

    #: What a stack makes: the same interface, over links or over the kernel.
    AnySocket: TypeAlias = "Socket | KernelSocket"


class Stack(ABC):
    """A TCP/MPTCP stack: this package's own over links, or the operating system's."""

    name = ""
    #: Whether its sockets are the operating system's own: ``socket.socket`` objects whose data goes through descriptors.
    has_descriptors = False

    @abstractmethod
    def supports(self, feature: str) -> Support:
        """Whether ``feature`` works on this stack: a socket's method, property or option by its name ("open_subflow",
        "TCP_MULTIPATH_ADD"), "profile:NAME", or a part of one: "half_close" and "reset_subflow" (``close_subflow``),
        "segments" (``open_subflow``), "events" (all of them, at once), "redundancy", "inheritable", "ktls"."""

    @abstractmethod
    def socket(
        self,
        family: int = std.AF_INET,
        type: int = std.SOCK_STREAM,  # noqa: A002 the standard library's name
        proto: int = 0,
        *,
        config: ConnectionConfig | None = None,
    ) -> AnySocket:
        """A new, unconnected socket; OSError (EAFNOSUPPORT, EPROTONOSUPPORT, ...) where there is no such thing."""

    def preferred_local(self, remote: Endpoint) -> Endpoint | None:
        """Where a connection to ``remote`` shall start from if its socket is not bound; None: the stack's own choice."""
        return None

    @abstractmethod
    def close(self) -> None:
        """Ends the stack and everything on it; twice is as good as once."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
