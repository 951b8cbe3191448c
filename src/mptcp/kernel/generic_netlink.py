"""Generic netlink: a family of commands by its name, with its multicast groups."""

from __future__ import annotations

import errno
import struct
from typing import Final

from mptcp.errors import NotSupportedError
from mptcp.kernel.namespace import NetNamespace
from mptcp.kernel.netlink import (
    NETLINK_GENERIC,
    NetlinkError,
    NetlinkSocket,
    attribute,
    attributes,
    text,
    unsigned,
)

_GENL_ID_CTRL: Final = 16
_CTRL_CMD_GETFAMILY: Final = 3
_CTRL_ATTR_FAMILY_ID: Final = 1
_CTRL_ATTR_FAMILY_NAME: Final = 2
_CTRL_ATTR_MCAST_GROUPS: Final = 7
_CTRL_ATTR_MCAST_GRP_NAME: Final = 1
_CTRL_ATTR_MCAST_GRP_ID: Final = 2
_GENL_HEADER: Final = struct.Struct("=BBH")
GENL_HEADER_SIZE: Final = _GENL_HEADER.size


class GenericFamily:
    """One generic netlink family. NotSupportedError if the kernel has none of this name."""

    __slots__ = ("_socket", "_version", "groups", "id", "name")

    def __init__(self, name: str, namespace: NetNamespace | None = None, version: int = 1) -> None:
        self.name, self._version = name, version
        #: Multicast groups by name.
        self.groups: dict[str, int] = {}
        self.id = 0
        self._socket = NetlinkSocket(NETLINK_GENERIC, namespace)
        try:
            self._resolve()
        except BaseException:
            self._socket.close()
            raise

    def _resolve(self) -> None:
        body = _GENL_HEADER.pack(_CTRL_CMD_GETFAMILY, 1, 0) + attribute(
            _CTRL_ATTR_FAMILY_NAME, self.name.encode() + b"\0"
        )
        try:
            answers = self._socket.request(_GENL_ID_CTRL, body, what=f"generic netlink {self.name}")
        except NetlinkError as error:
            if error.errno == errno.ENOENT:
                raise NotSupportedError(f"this kernel has no {self.name} in generic netlink (CONFIG_MPTCP)") from None
            raise
        for answer in answers:
            for kind, value in attributes(answer.payload[GENL_HEADER_SIZE:]):
                if kind == _CTRL_ATTR_FAMILY_ID:
                    self.id = unsigned(value) or 0
                elif kind == _CTRL_ATTR_MCAST_GROUPS:
                    for _, group in attributes(value):
                        inner = dict(attributes(group))
                        number = unsigned(inner.get(_CTRL_ATTR_MCAST_GRP_ID))
                        if number is not None:
                            self.groups[text(inner.get(_CTRL_ATTR_MCAST_GRP_NAME))] = number
        if not self.id:
            raise NetlinkError(errno.EPROTO, "an answer without an id", f"generic netlink {self.name}")

    def command(self, command: int, *inner: bytes, what: str = "") -> list[memoryview]:
        """Gives one command and waits for the acknowledgement; the attributes of each answer. NetlinkError if refused."""
        body = _GENL_HEADER.pack(command, self._version, 0) + b"".join(inner)
        return [answer.payload[GENL_HEADER_SIZE:] for answer in self._socket.request(self.id, body, what=what)]

    def dump(self, command: int, *inner: bytes, what: str = "") -> list[memoryview]:
        """All that a command lists: the attributes of each answer."""
        body = _GENL_HEADER.pack(command, self._version, 0) + b"".join(inner)
        return [answer.payload[GENL_HEADER_SIZE:] for answer in self._socket.dump(self.id, body, what=what)]

    def close(self) -> None:
        self._socket.close()
