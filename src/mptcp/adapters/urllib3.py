"""urllib3 over MPTCP: a ``PoolManager`` whose connections are sockets of the stack in use.

from mptcp.adapters.urllib3 import PoolManager
print(PoolManager().request("GET", "http://server.example/").data)
"""

from __future__ import annotations

import socket as std
from typing import Any, cast

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import ConnectTimeoutError, NameResolutionError, NewConnectionError
from urllib3.util.ssl_ import create_urllib3_context, resolve_cert_reqs

from mptcp.sockets.create import create_connection
from mptcp.sockets.tls import adopt_context


class MptcpConnection(HTTPConnection):
    """One HTTP connection."""

    def _new_conn(self) -> std.socket:
        return _connect(self)


class MptcpTlsConnection(HTTPSConnection):
    """One HTTPS connection."""

    def _new_conn(self) -> std.socket:
        return _connect(self)

    def connect(self) -> None:
        if self.ssl_context is None:
            reqs = resolve_cert_reqs(self.cert_reqs)
            self.ssl_context = create_urllib3_context(cert_reqs=reqs)
            if not (self.ca_certs or self.ca_cert_dir or self.ca_cert_data):
                self.ssl_context.load_default_certs()
        adopt_context(self.ssl_context)
        super().connect()


class MptcpConnectionPool(HTTPConnectionPool):
    ConnectionCls = MptcpConnection


class MptcpTlsConnectionPool(HTTPSConnectionPool):
    ConnectionCls = MptcpTlsConnection


class PoolManager(urllib3.PoolManager):
    """``urllib3.PoolManager``, over the stack in use when a connection is made."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.pool_classes_by_scheme = {"http": MptcpConnectionPool, "https": MptcpTlsConnectionPool}


def _connect(connection: HTTPConnection) -> std.socket:
    """What urllib3's own ``_new_conn`` does, with its exceptions."""
    host = connection._dns_host
    try:
        timeout: Any = connection.timeout
        arguments = {} if timeout is urllib3.Timeout.DEFAULT_TIMEOUT else {"timeout": timeout}
        sock = create_connection((host, connection.port), source_address=connection.source_address, **arguments)
        for option in connection.socket_options or ():
            sock.setsockopt(*option)
    except std.gaierror as error:
        raise NameResolutionError(connection.host, connection, error) from error
    except TimeoutError as error:
        message = f"Connection to {connection.host} timed out. (connect timeout={connection.timeout})"
        raise ConnectTimeoutError(connection, message) from error
    except OSError as error:
        raise NewConnectionError(connection, f"Failed to establish a new connection: {error}") from error
    return cast(std.socket, sock)  # one of this package's own has the methods
