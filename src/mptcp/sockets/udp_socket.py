"""A socket of the stack over UDP that goes by the addresses outside: those of UDP sockets, IPv4 or IPv6.

To connect to (host, port) is to find the stack whose UDP socket is on that host (``UdpStack.outer_port`` says at which
UDP port), and to connect to TCP ``port`` of its virtual address. Names of such sockets are shown as the program gave
them: outer host, TCP port. Virtual addresses work as they are, and are shown as they are.
"""

from __future__ import annotations

import errno
import socket as std
import weakref
from typing import TYPE_CHECKING, cast

from mptcp.core.multipath.config import ConnectionConfig
from mptcp.core.units import MILLISECOND, SECOND
from mptcp.errors import HostUnreachable, to_errno
from mptcp.info import Endpoint
from mptcp.links.udp_frames import split_virtual
from mptcp.sockets.address import SocketAddress, any_endpoint, from_endpoint, os_error
from mptcp.sockets.socket import Socket
from mptcp.sockets.state import CLOSED

if TYPE_CHECKING:
    from mptcp.links.udp_node import Introduction
    from mptcp.sockets.udp import UdpStack
    from mptcp.sockets.user import UserStack

#: RFC 8305 §3 waits 50 ms ("Resolution Delay") for the preferred family; we, for the preferred address of ours.
PREFERENCE_DELAY_US = 50 * MILLISECOND
#: How often it is looked meanwhile whether that has a path, too.
LOOK_US = 2 * MILLISECOND
#: A peer that does not answer is given up after this time, whatever the socket's timeout.
SEARCH_US = 10 * SECOND


class Search:
    """For the stack behind a UDP endpoint. All with the pump's lock."""

    __slots__ = ("_deadline_us", "_introduction", "_source", "_stack", "_until_us", "remote")

    def __init__(self, stack: UdpStack, remote: Endpoint, source: UdpSocket) -> None:
        self._stack, self._source = stack, source
        self.remote = remote  # as the program has it
        self._until_us = 0
        now = stack.pump.clock()
        self._deadline_us = now + SEARCH_US
        self._introduction: Introduction = stack.introduce(remote, self._look_again)
        stack.pump.alarm(source, self._deadline_us)

    def _look_again(self) -> None:
        self._stack.pump.alarm(self._source, self._stack.pump.clock())

    def is_over(self) -> bool:
        """Found, by the best of our addresses if it does not take long; or not there."""
        introduction, now = self._introduction, self._stack.pump.clock()
        if not introduction.is_done:
            if now >= self._deadline_us:
                introduction.failed("nobody answers there")
            return introduction.is_done
        if not introduction.address:
            return True
        if not self._until_us:
            self._until_us = now + PREFERENCE_DELAY_US
        if now >= self._until_us or self._stack.has_best_path(introduction.address):
            return True
        self._stack.pump.alarm(self._source, now + LOOK_US)
        return False

    def result(self) -> Endpoint:
        """The virtual endpoint. HostUnreachable."""
        remote, introduction = self.remote, self._introduction
        if not introduction.address:
            raise HostUnreachable(
                f"no mptcp stack could be reached at {remote.host} port {self._stack.outer_port(remote)} by UDP:"
                f" {introduction.error}"
            )
        self._stack.learn(remote, introduction.address)
        return Endpoint(introduction.address, remote.port)


class UdpSocket(Socket):
    """``Socket`` of a ``UdpStack``."""

    __slots__ = ("_failure", "_goes_on", "_names", "_search", "_shows_outer")

    def __init__(self, stack: UserStack, family: int, proto: int, config: ConnectionConfig) -> None:
        super().__init__(stack, family, proto, config)
        self._search: Search | None = None
        self._goes_on = (
            False  # the search was begun by a connect that did not wait: it is for ``handle_ready`` to go on
        )
        self._failure: OSError | None = None  # of a search that nobody waited for
        self._shows_outer = family == std.AF_INET
        self._names: dict[Endpoint, Endpoint] | None = None  # as they were when first shown (RFC 6897 §4.2.2)

    @property
    def _udp_stack(self) -> UdpStack:
        return cast("UdpStack", self._stack)

    # --- connecting --------------------------------------------------------------------------------------------------
    def _connect(self, remote: Endpoint) -> None:
        self._check_open()
        connection = self._connection
        begins = self._listeners is None and (
            connection is None or (connection.state is CLOSED and not self._connecting)
        )
        if begins and split_virtual(remote.address) is None:
            self._shows_outer = True
            if self._family == std.AF_INET6 and self._options.v6_only and remote.family == 4:
                raise os_error(errno.ENETUNREACH)
            remote = self._find(remote)
        super()._connect(remote)

    def _find(self, remote: Endpoint) -> Endpoint:
        """The virtual endpoint behind an outer one; waits as ``connect`` does."""
        self._raise_failure()
        search = self._search
        if search is None:
            if remote.is_unspecified or not remote.port:
                raise os_error(errno.ECONNREFUSED)
            known = self._udp_stack.known(remote)
            if known is not None:
                return known
            self._search = search = Search(self._udp_stack, remote, self)
            self._show()
            if self._timeout == 0:
                self._goes_on = True
                raise os_error(errno.EINPROGRESS)
        elif self._timeout == 0:
            raise os_error(errno.EALREADY)
        self._goes_on = False
        try:
            self._await(search.is_over, 0, self._options.send_timeout_us)
        finally:
            if self._search is search:
                self._search = None
        return search.result()

    def handle_ready(self) -> None:
        search = self._search
        if search is not None and self._goes_on and not self._closed and search.is_over():
            self._search = None
            self._goes_on = False
            before, self._timeout = self._timeout, 0.0
            try:
                super()._connect(search.result())
            except BlockingIOError:
                pass
            except OSError as error:
                self._failure = error
            finally:
                self._timeout = before
        super().handle_ready()

    def _raise_failure(self) -> None:
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _finish_connect(self) -> None:
        self._raise_failure()
        super()._finish_connect()

    def _option(self, level: int, optname: int) -> int | bytes | None:
        if self._failure is not None and (level, optname) == (std.SOL_SOCKET, std.SO_ERROR):
            failure, self._failure = self._failure, None
            return to_errno(failure)
        return super()._option(level, optname)

    # --- conditions ------------------------------------------------------------------------------------------------
    def _is_connected(self) -> bool:
        return self._closed or (self._search is None and super()._is_connected())

    def _is_readable(self) -> bool:
        return self._closed if self._search is not None else super()._is_readable()

    def _is_writable(self) -> bool:
        return self._closed if self._search is not None else super()._is_writable()

    def _show(self) -> None:
        if self._search is not None and self._notifier is not None:
            self._notifier.show(readable=False, writable=False)
        else:
            super()._show()

    # --- names -------------------------------------------------------------------------------------------------------
    def accept_now(self) -> Socket | None:
        accepted = super().accept_now()
        if isinstance(accepted, UdpSocket):
            accepted._shows_outer = self._shows_outer  # whoever has named an outer address is answered with such
        return accepted

    def _bind(self, local: Endpoint) -> None:
        inner = self._udp_stack.inner(local)
        self._shows_outer |= inner != local
        super()._bind(inner)

    def _listen_endpoints(self) -> list[Endpoint]:
        bound = self._bound
        if bound is None or not bound.is_unspecified:
            return super()._listen_endpoints()
        # What comes in is IPv6, whatever carries it. Of two sockets that listen everywhere, one for each family as
        # asyncio's servers have them, the first gets everything, and the other one nothing.
        taken = self._pump.host.listeners.get((bytes(16), bound.port))
        other = cast("weakref.ref[Socket]", taken.owner)() if taken is not None and taken.owner is not None else None
        if other is not None and other._family != self._family:
            return [any_endpoint(std.AF_INET, bound.port)]
        return [any_endpoint(std.AF_INET6, bound.port)]

    def _shown(self, endpoint: Endpoint) -> SocketAddress:
        if not self._shows_outer or endpoint.is_unspecified:
            return from_endpoint(self._family, endpoint)
        if self._names is None:
            self._names = {}
        outer = self._names.get(endpoint)
        if outer is None:
            outer = Endpoint(self._udp_stack.outer_address(endpoint.address) or endpoint.address, endpoint.port)
            self._names[endpoint] = outer
        if self._family == std.AF_INET:
            return outer.host, outer.port
        return from_endpoint(self._family, outer)
