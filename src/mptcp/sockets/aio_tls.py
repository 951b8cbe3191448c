"""TLS in an event loop: asyncio's own TLS protocol between an application's protocol and a transport of this package."""

from __future__ import annotations

import asyncio
import ssl
from asyncio.sslproto import SSLProtocol
from dataclasses import dataclass
from typing import Any, cast


@dataclass(frozen=True, slots=True)
class TlsArguments:
    """``ssl=`` and what belongs to it, of ``create_connection`` and ``create_server``."""

    context: ssl.SSLContext
    server_side: bool
    server_hostname: str | None = None
    handshake_timeout: float | None = None
    shutdown_timeout: float | None = None

    def wrap(
        self, loop: asyncio.AbstractEventLoop, protocol: asyncio.BaseProtocol, waiter: asyncio.Future[None] | None
    ) -> SSLProtocol:
        """The protocol to give to the transport; ``waiter`` ends with the handshake."""
        return SSLProtocol(
            cast(Any, loop), protocol, self.context, cast(Any, waiter), self.server_side, self.server_hostname,
            ssl_handshake_timeout=cast(Any, self.handshake_timeout), ssl_shutdown_timeout=self.shutdown_timeout,
        )  # fmt: skip


def tls_arguments(
    context: ssl.SSLContext | bool | None,
    server_side: bool,
    server_hostname: str | None,
    handshake_timeout: float | None,
    shutdown_timeout: float | None,
) -> TlsArguments | None:
    """None without TLS; ValueError and TypeError as asyncio raises them."""
    if context is None or context is False:
        for name, given in (("ssl_handshake_timeout", handshake_timeout), ("ssl_shutdown_timeout", shutdown_timeout)):
            if given is not None:
                raise ValueError(f"{name} is only meaningful with ssl")
        if server_hostname is not None:
            raise ValueError("server_hostname is only meaningful with ssl")
        return None
    if context is True:
        if server_side:
            raise TypeError("ssl argument must be an SSLContext for a server")
        context = ssl.create_default_context()
    if not isinstance(context, ssl.SSLContext):
        raise TypeError(f"ssl argument must be an SSLContext or None, not {type(context).__name__}")
    return TlsArguments(context, server_side, server_hostname, handshake_timeout, shutdown_timeout)
