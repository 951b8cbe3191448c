"""Everything this package raises, as one tree; each leaf is also the ``OSError`` a socket program expects.

::

    MptcpError
    ├── ConfigurationError (ValueError)      a wrong argument or setting
    ├── NotSupportedError (OSError)          EOPNOTSUPP: this stack or this connection cannot do that
    ├── PathError (OSError)                  an operation on a subflow or an address failed
    └── ConnectionFailed (OSError)           the connection ended in another way than by close
        ├── ConnectionRefused                ECONNREFUSED: the peer answered the SYN with RST
        ├── ConnectionTimedOut               ETIMEDOUT: no answer, user timeout, keepalive
        ├── ConnectionWasReset               ECONNRESET: RST, MP_FASTCLOSE, or data lost with its subflow
        ├── ConnectionAborted                ECONNABORTED: ended by this side before it was accepted or used
        ├── HostUnreachable                  EHOSTUNREACH: ICMP said so, or there is no usable path
        └── NetworkUnreachable               ENETUNREACH: no route, or ICMP said so

The core never raises for what a peer sends; it keeps the error and the layer above raises it to the caller who asks.
``to_errno`` is the one table from error to number.
"""

import errno


class MptcpError(Exception):
    """Base of all errors of this package."""


class ConfigurationError(MptcpError, ValueError):
    """A setting or an argument that cannot work; the message says which and why."""


class _OsError(MptcpError, OSError):
    code = 0

    def __init__(self, message: str = "") -> None:
        OSError.__init__(self, self.code, message or errno.errorcode.get(self.code, "error"))


class NotSupportedError(_OsError):
    code = errno.EOPNOTSUPP


class PathError(_OsError):
    """``code`` may be set per instance: EADDRNOTAVAIL, EINVAL, EADDRINUSE, ..."""

    code = errno.EINVAL

    def __init__(self, message: str = "", code: int = errno.EINVAL) -> None:
        self.code = code
        super().__init__(message)


class ConnectionFailed(_OsError):
    code = errno.ECONNRESET


class ConnectionRefused(ConnectionFailed, ConnectionRefusedError):
    code = errno.ECONNREFUSED


class ConnectionTimedOut(ConnectionFailed, TimeoutError):
    code = errno.ETIMEDOUT


class ConnectionWasReset(ConnectionFailed, ConnectionResetError):
    code = errno.ECONNRESET


class ConnectionAborted(ConnectionFailed, ConnectionAbortedError):
    code = errno.ECONNABORTED


class HostUnreachable(ConnectionFailed):
    code = errno.EHOSTUNREACH


class NetworkUnreachable(ConnectionFailed):
    code = errno.ENETUNREACH


def to_errno(error: BaseException) -> int:
    """The errno of any error of this package (or of the system), EIO if it has none."""
    number = getattr(error, "errno", None)
    return number if isinstance(number, int) and number else errno.EIO
