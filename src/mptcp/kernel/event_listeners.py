"""Who listens to the path-manager events of a namespace: without anybody there, the user-space path manager does nothing."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Final

from mptcp.kernel.diag import SOCK_DIAG_BY_FAMILY
from mptcp.kernel.generic_netlink import GenericFamily
from mptcp.kernel.namespace import NetNamespace
from mptcp.kernel.netlink import NETLINK_GENERIC, NETLINK_SOCK_DIAG, NetlinkSocket, attributes
from mptcp.kernel.path_manager import EVENT_GROUP, FAMILY

_AF_NETLINK: Final = 16
_SHOW_GROUPS: Final = 2
_NETLINK_DIAG_GROUPS: Final = 1
#: ``struct netlink_diag_req``: family, protocol, padding, inode, what to show, cookie.
_REQUEST: Final = struct.Struct("=BBHIIII")
#: ``struct netlink_diag_msg``: family, type, protocol, state, port, destination's port and group, inode, cookie.
_MESSAGE: Final = struct.Struct("=4B6I")
_ANY: Final = 0xFFFFFFFF


def event_listeners(namespace: NetNamespace) -> list[int] | None:
    """The inodes of the sockets that are members of the group; None if that cannot be known here."""
    try:
        family = GenericFamily(FAMILY, namespace)
    except OSError:
        return None
    family.close()
    group = family.groups.get(EVENT_GROUP)
    if group is None:
        return None
    try:
        with NetlinkSocket(NETLINK_SOCK_DIAG, namespace) as netlink:
            body = _REQUEST.pack(_AF_NETLINK, NETLINK_GENERIC, 0, 0, _SHOW_GROUPS, _ANY, _ANY)
            payloads = [m.payload for m in netlink.dump(SOCK_DIAG_BY_FAMILY, body, what="listing netlink sockets")]
    except OSError:  # CONFIG_NETLINK_DIAG is a module that may be missing
        return _from_proc(namespace, group)
    # The kernel may name a member twice.
    return list(dict.fromkeys(inode for payload in payloads if (inode := member(payload, group)) is not None))


def member(payload: memoryview, group: int) -> int | None:
    """The inode of the socket that an answer tells of, if it is a member of ``group`` (counted from 1)."""
    if len(payload) < _MESSAGE.size:
        return None
    groups = bytes(dict(attributes(payload[_MESSAGE.size :])).get(_NETLINK_DIAG_GROUPS, b""))
    octet, bit = divmod(group - 1, 8)
    if octet >= len(groups) or not groups[octet] >> bit & 1:
        return None
    inode: int = _MESSAGE.unpack_from(payload)[7]
    return inode


def _from_proc(namespace: NetNamespace, group: int) -> list[int] | None:
    """From /proc/net/netlink, which shows the first 32 groups."""
    if group > 32:
        return None
    with namespace.entered():
        try:
            lines = Path("/proc/thread-self/net/netlink").read_text().splitlines()[1:]
        except OSError:
            return None
    found = []
    for line in lines:
        words = line.split()
        try:
            if int(words[1]) == NETLINK_GENERIC and int(words[3], 16) >> group - 1 & 1:
                found.append(int(words[9]))
        except (IndexError, ValueError):
            continue
    return found
