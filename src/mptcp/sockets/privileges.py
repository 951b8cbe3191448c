"""What only privileged users may do on TCP, and so on a subflow: low ports, and the options behind CAP_NET_ADMIN."""

from __future__ import annotations

import errno
import socket as std

from mptcp.errors import PathError

CAP_NET_BIND_SERVICE = 10
CAP_NET_ADMIN = 12

#: Where the system does not say (``net.ipv4.ip_unprivileged_port_start``).
FIRST_UNPRIVILEGED_PORT = 1024

_SO_SNDBUFFORCE, _SO_RCVBUFFORCE, _SO_MARK, _IP_TRANSPARENT = 32, 33, 36, 19

#: Options that TCP refuses to users without CAP_NET_ADMIN, as (level, option); a force is else the plain option.
ADMINISTRATIVE = frozenset(
    {
        (std.SOL_SOCKET, _SO_SNDBUFFORCE),
        (std.SOL_SOCKET, _SO_RCVBUFFORCE),
        (std.SOL_SOCKET, _SO_MARK),
        (std.IPPROTO_IP, _IP_TRANSPARENT),
    }
)
FORCES = {
    (std.SOL_SOCKET, _SO_SNDBUFFORCE): (std.SOL_SOCKET, std.SO_SNDBUF),
    (std.SOL_SOCKET, _SO_RCVBUFFORCE): (std.SOL_SOCKET, std.SO_RCVBUF),
}


def has_capability(number: int) -> bool:
    """Whether this thread has the capability in effect, in the user namespace it lives in."""
    try:
        with open("/proc/thread-self/status", "rb") as status:
            for line in status:
                if line.startswith(b"CapEff:"):
                    return bool(int(line.split()[1], 16) >> number & 1)
    except (OSError, ValueError):
        pass
    return False


def first_unprivileged_port() -> int:
    try:
        with open("/proc/sys/net/ipv4/ip_unprivileged_port_start", "rb") as setting:
            return int(setting.read())
    except (OSError, ValueError):
        return FIRST_UNPRIVILEGED_PORT


def check_port(port: int) -> None:
    """PathError EACCES for a privileged port without the privilege (draft-hesmans-mptcp-socket-03 §6)."""
    if port and port < first_unprivileged_port() and not has_capability(CAP_NET_BIND_SERVICE):
        raise PathError(
            f"port {port} is privileged: use one from {first_unprivileged_port()} on, or CAP_NET_BIND_SERVICE",
            errno.EACCES,
        )


def check_option(level: int, optname: int) -> tuple[int, int]:
    """(level, option) that is meant. PathError EPERM for an option that needs CAP_NET_ADMIN without it."""
    if (level, optname) in ADMINISTRATIVE and not has_capability(CAP_NET_ADMIN):
        raise PathError("this option needs CAP_NET_ADMIN, on TCP and on a subflow", errno.EPERM)
    return FORCES.get((level, optname), (level, optname))
