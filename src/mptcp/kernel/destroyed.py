"""TCP sockets of a namespace that have ended, as sock_diag tells everybody who asks: no privilege, and no reason."""

from __future__ import annotations

import errno
import struct
from typing import Final, Self

from mptcp.info import Endpoint
from mptcp.kernel.diag import SOCK_DIAG_BY_FAMILY
from mptcp.kernel.layout import AF_INET, AF_INET6, unmapped
from mptcp.kernel.namespace import NetNamespace
from mptcp.kernel.netlink import NETLINK_ADD_MEMBERSHIP, NETLINK_SOCK_DIAG, SOL_NETLINK, messages, open_socket, receive
from mptcp.kernel.pm_events import EventsLost, grow_receive_buffer

_GROUPS: Final = (1, 3)  # SKNLGRP_INET_TCP_DESTROY, SKNLGRP_INET6_TCP_DESTROY
#: For notices that nobody has read yet.
BUFFER_BYTES: Final = 1 << 20
#: Datagrams read at one wake-up.
_MAX_READ: Final = 1024
#: ``struct inet_diag_msg`` up to the addresses: family, state, timer, retransmits, ports, source, destination.
_MESSAGE: Final = struct.Struct("!4BHH16s16s")


def parse_destroyed(payload: memoryview) -> tuple[Endpoint, Endpoint] | None:
    """(local, remote) of the socket; None if it is not one of IP."""
    if len(payload) < _MESSAGE.size:
        return None
    family, _, _, _, local_port, remote_port, source, destination = _MESSAGE.unpack_from(payload)
    if family not in {AF_INET, AF_INET6}:
        return None
    size = 4 if family == AF_INET else 16
    return Endpoint(unmapped(source[:size]), local_port), Endpoint(unmapped(destination[:size]), remote_port)


class DestroyedSockets:
    """Tells which TCP sockets of a namespace have ended. OSError where the system does not say."""

    __slots__ = ("_socket",)

    def __init__(self, namespace: NetNamespace | None = None) -> None:
        self._socket = open_socket(NETLINK_SOCK_DIAG, namespace or NetNamespace())
        try:
            self._socket.setblocking(False)
            grow_receive_buffer(self._socket, BUFFER_BYTES)
            for group in _GROUPS:
                self._socket.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)
        except BaseException:
            self._socket.close()
            raise

    def fileno(self) -> int:
        """Readable when ``read`` may have something."""
        return self._socket.fileno()

    def read(self) -> list[tuple[Endpoint, Endpoint]]:
        """(local, remote) of each that has ended since, without waiting. EventsLost if some are missing."""
        found: list[tuple[Endpoint, Endpoint]] = []
        for _ in range(_MAX_READ):
            try:
                data = receive(self._socket)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                raise EventsLost from None
            if data is None:
                continue
            told = (parse_destroyed(m.payload) for m in messages(data) if m.kind == SOCK_DIAG_BY_FAMILY)
            found += filter(None, told)
        return found

    def close(self) -> None:
        """Lets go of it; twice is as good as once."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
