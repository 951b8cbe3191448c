"""The little of systemd's protocols that a service needs: sockets it is started with, "ready", priorities in the journal."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
from collections.abc import MutableMapping
from typing import Final

from mptcp.errors import ConfigurationError

#: The first descriptor that is passed (sd_listen_fds(3)).
LISTEN_FDS_START: Final = 3
_VARIABLES: Final = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")
#: Logging's levels as the journal counts them (sd-daemon(3)).
_PRIORITIES: Final = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6), (0, 7))


def activated_socket(environ: MutableMapping[str, str] = os.environ) -> socket.socket | None:
    """The listening socket this process was started with (socket activation); None if it was not.

    ConfigurationError if it was started with another kind, or with several.
    """
    pid, count = environ.get("LISTEN_PID", ""), environ.get("LISTEN_FDS", "")
    for variable in _VARIABLES:  # not for our children
        environ.pop(variable, None)
    if pid != str(os.getpid()) or not count.isdecimal() or count == "0":
        return None
    if count != "1":
        raise ConfigurationError(f"the broker listens on one socket: the unit passes {count}")
    try:
        listener = socket.socket(fileno=LISTEN_FDS_START)
    except OSError as error:
        raise ConfigurationError(f"LISTEN_FDS promises a socket, but: {error.strerror}") from None
    listener.set_inheritable(False)
    check_listener(listener)
    return listener


def check_listener(listener: socket.socket) -> None:
    """ConfigurationError unless it is what clients of the broker connect to."""
    listening = listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    if listener.family != socket.AF_UNIX or listener.type != socket.SOCK_SEQPACKET or not listening:
        raise ConfigurationError("the broker listens on a Unix socket of type SOCK_SEQPACKET (ListenSequentialPacket=)")


def notify(state: str, environ: MutableMapping[str, str] = os.environ) -> bool:
    """Tells the service manager ("READY=1", "STOPPING=1", ...); whether there is one that could be told."""
    address = environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        sock.connect("\0" + address[1:] if address.startswith("@") else address)
        sock.sendall(state.encode())
        return True
    return False


class JournalFormatter(logging.Formatter):
    """Lines that begin with their priority, as the journal takes them from standard error."""

    def format(self, record: logging.LogRecord) -> str:
        priority = next(number for level, number in _PRIORITIES if record.levelno >= level)
        return "\n".join(f"<{priority}>{line}" for line in super().format(record).splitlines())


def log_formatter(environ: MutableMapping[str, str] = os.environ) -> logging.Formatter:
    """For lines on standard error: the journal's where that is what reads it, else with the time."""
    device, _, inode = environ.get("JOURNAL_STREAM", "").partition(":")
    with contextlib.suppress(OSError, ValueError):
        status = os.fstat(sys.stderr.fileno())
        if (str(status.st_dev), str(status.st_ino)) == (device, inode):
            return JournalFormatter("%(message)s")
    return logging.Formatter("%(asctime)s %(levelname)s %(message)s")
