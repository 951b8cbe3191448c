"""``--stack kernel``: what ``mptcp get`` and ``mptcp serve`` use where no link is named."""

from __future__ import annotations

import enum
import errno
import ipaddress
import os
import socket
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mptcp.cli.connections import StackInUse
from mptcp.cli.link_option import Address
from mptcp.core.multipath.config import DEFAULT_CONFIG, ConnectionConfig
from mptcp.core.path_managers.fullmesh import FullMesh
from mptcp.errors import ConfigurationError, NotSupportedError
from mptcp.sockets.create import create_connection, create_server, use
from mptcp.sockets.kernel import KernelStack

if TYPE_CHECKING:
    from mptcp.sockets.base import AnySocket

#: Where a server is that nobody but this machine reaches.
_LOCALHOST: Final = ipaddress.ip_address("127.0.0.1")


class StackName(enum.StrEnum):
    """Whose MPTCP it is."""

    KERNEL = "kernel"
    USER = "user"


def choose(stack: StackName | None, scheme: str, link: Sequence[str], pcap: Path | None) -> StackName:
    """The stack for a URL's scheme and these options: ours if something asks for it, else the kernel's.

    ConfigurationError if ``stack`` is the kernel's and something asks for ours.
    """
    for given, what in ((scheme == "mptcp", "an mptcp:// URL"), (bool(link), "--link"), (pcap is not None, "--pcap")):
        if given and stack is StackName.KERNEL:
            raise ConfigurationError(f"{what} is for the user-space stack: use --stack user, or leave it out")
        if given:
            return StackName.USER
    return stack or StackName.KERNEL


class KernelInUse(StackInUse):
    """The kernel's stack. Where connections can be steered, each gets a full mesh of subflows; elsewhere they are the
    business of the namespace's own path manager (``ip mptcp endpoint``)."""

    def __init__(self, backup: Sequence[str] = ()) -> None:
        """``backup``: addresses of this host. ConfigurationError for others, NotSupportedError if nobody can steer."""
        self.kernel_stack = KernelStack()
        try:
            found = [ipaddress.ip_address(packed) for packed in self.kernel_stack.local_addresses()]
            self.kernel_stack.config = _config(self.kernel_stack, found, backup)
        except BaseException:
            self.kernel_stack.close()
            raise
        super().__init__(found or [_LOCALHOST])

    def connect(self, address: tuple[str, int], timeout: float | None = None) -> AnySocket:
        with use(self.kernel_stack):
            return create_connection(address, timeout)

    def listen(self, port: int) -> AnySocket:
        try:
            with use(self.kernel_stack):
                if socket.has_dualstack_ipv6():
                    return create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
                return create_server(("0.0.0.0", port))
        except OSError as error:
            number = error.errno or errno.EINVAL
            helps = ": name another one with --port" if number in {errno.EACCES, errno.EADDRINUSE} else ""
            raise OSError(number, f"port {port}: {os.strerror(number)}{helps}") from None

    def shown(self, program: str) -> AbstractContextManager[None]:
        """``mptcp ls`` sees the kernel's connections without that."""
        return nullcontext()

    def close(self) -> None:
        self.kernel_stack.close()


def _config(stack: KernelStack, addresses: Sequence[Address], backup: Sequence[str]) -> ConnectionConfig:
    chosen = set()
    for text in backup:
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            raise ConfigurationError(f"--backup {text!r} is no address") from None
        if address not in addresses:
            raise ConfigurationError(f"--backup {text}: this host has no such address")
        chosen.add(address.packed)
    steering = stack.supports("open_subflow")
    if chosen and not steering:
        raise NotSupportedError(f"--backup: {steering.reason}: {steering.fix}")
    if not steering:
        return DEFAULT_CONFIG
    return DEFAULT_CONFIG.changed(path_manager=lambda: FullMesh(DEFAULT_CONFIG.max_subflows, frozenset(chosen)))
