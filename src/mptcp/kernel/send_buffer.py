"""The send buffer of a connection with several subflows, of a fixed size.

Linux 6.18 puts octets in a wrong place, now and then, while subflows come and go (docs/kernel.md, "A fault of the kernel"):
where it chooses the buffer's size by itself, in about one of six transfers of 200 MB with a hundred changes; with a fixed
size in one of 180. The size here is the one that the kernel would come to by itself.
"""

from __future__ import annotations

import os
import socket
import struct
from pathlib import Path
from typing import Final

from mptcp.kernel.namespace import NetNamespace

_SO_BUF_LOCK: Final = 72  # Linux 5.14
_SO_SNDBUFFORCE: Final = 32
_SEND_BUFFER_LOCKED: Final = 1
#: Where the system does not say (net.ipv4.tcp_wmem).
DEFAULT_BYTES: Final = 4 << 20


def hold_send_buffer(fd: int, namespace: NetNamespace) -> bool:
    """Fixes the send buffer at the largest the kernel would choose, unless the program has chosen one. False without
    CAP_NET_ADMIN in the first user namespace (an ordinary SO_SNDBUF may be far smaller), or where that is not possible."""
    sock = socket.socket(fileno=os.dup(fd))
    try:
        if sock.getsockopt(socket.SOL_SOCKET, _SO_BUF_LOCK) & _SEND_BUFFER_LOCKED:
            return True
        # The kernel doubles what it is told.
        sock.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, struct.pack("i", largest(namespace) // 2))
    except OSError:
        return False
    finally:
        sock.close()
    return True


def largest(namespace: NetNamespace) -> int:
    """What the kernel's own choice is bounded by, in bytes."""
    try:
        with namespace.entered():
            words = Path("/proc/sys/net/ipv4/tcp_wmem").read_text().split()
        return min(max(int(words[2]), 1 << 16), 1 << 30)
    except (OSError, ValueError, IndexError):
        return DEFAULT_BYTES
