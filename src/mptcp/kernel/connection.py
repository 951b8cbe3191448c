"""One connection of the kernel's: read, steered through a ``Control``, heard of through a ``Monitor``.

What the kernel asks of whoever steers a connection is done here: address ids are given out and learned, subflows keep
their numbers, an address whose entry the kernel has forgotten is registered again before it is withdrawn, and what can
only be done once the peer has shown that options pass waits for that.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from mptcp.errors import NotSupportedError, PathError
from mptcp.info import ConnectionInfo, Endpoint, SubflowInfo, Support
from mptcp.kernel import sockopt
from mptcp.kernel.address_ids import INITIAL, AddressIds
from mptcp.kernel.connection_events import ConnectionEvents
from mptcp.kernel.control import NOT_YET, Control
from mptcp.kernel.layout import ESTABLISHED
from mptcp.kernel.monitor import Monitor
from mptcp.kernel.namespace import NetNamespace
from mptcp.kernel.path_manager import PathManagerNetlink
from mptcp.kernel.reading import SUBFLOW_STATES, Reading, Surroundings, surroundings_of
from mptcp.kernel.segment_routing import SegmentRoute, SegmentRoutes, free_port
from mptcp.kernel.send_buffer import hold_send_buffer
from mptcp.kernel.subflow_ids import SubflowIds

#: Subflows of one connection, unless its owner says otherwise; the kernel itself has no limit under the user-space path
#: manager, but counts them in one octet.
MAX_SUBFLOWS: Final = 8
HALF_CLOSED: Final = "one direction of the connection has been shut down: the kernel opens no further subflow then"

#: Subflows asked for before the connection is fully established, and callers who wait for that.
MAX_WISHES: Final = 64
#: Whether it is, is looked at after so many seconds, each time twice as many up to the second figure.
USABLE_S: Final = (0.001, 1.0)


class KernelConnection(ConnectionEvents):
    """A connection from its establishment on (``lock`` guards it, one operation at a time); ``fd`` is its socket and stays the caller's, who calls ``close`` before he
    closes that. Any thread may call anything. Errors of steering are those of ``control``'s table, and

    - EINVAL for a subflow that is not there,
    - EOPNOTSUPP on a connection that is plain TCP, with the reason,
    - ENOBUFS where a limit is reached.
    """

    #: Whether the send buffer is fixed before there is a second subflow (``send_buffer.py`` says why).
    holds_send_buffer = True

    def __init__(
        self,
        fd: int,
        namespace: NetNamespace,
        control: Control,
        monitor: Monitor,
        *,
        accepted: bool | None = None,
        lock: threading.RLock | None = None,
    ) -> None:
        self._namespace, self._control = namespace, control
        surroundings: Surroundings = surroundings_of(namespace)
        ids = SubflowIds()
        reading = Reading(fd, namespace, ids=ids, surroundings=surroundings, accepted=accepted)
        #: Limit of subflows at a time.
        self.max_subflows = MAX_SUBFLOWS
        self._holds_buffer = False
        self._usable = False
        self._usable_after_s = USABLE_S[0]
        self._watches_usable = False
        self._wishes: list[Callable[[], None]] = []
        #: Called with the ends of a subflow that the program itself is about to close, with the lock held.
        self.on_own_close: Callable[[Endpoint, Endpoint], None] | None = None
        self._segment_routes: SegmentRoutes | None = None
        self._routed: dict[int, SegmentRoute] = {}
        super().__init__(fd, monitor, reading, ids, surroundings, lock)
        self._address_ids = AddressIds(self.initial_local.address)

    # --- reading -----------------------------------------------------------------------------------------------------
    @property
    def is_multipath(self) -> bool:
        """Whether it is MPTCP now."""
        return self.token != 0 and sockopt.is_mptcp(self._fd)

    @property
    def fallback_reason(self) -> str:
        """Why it is plain TCP, as far as that is known; "" while it is MPTCP."""
        return self._reading.fallback_reason

    def info(self) -> ConnectionInfo:
        """The connection and its subflows, now."""
        info = self._reading.connection()
        info.missed_events = self.missed_events
        return info

    def subflows(self) -> list[SubflowInfo]:
        """The subflows there are now, by their numbers."""
        return self._reading.subflows()

    def supports(self, operation: str) -> Support:
        """Whether an operation of ``control.OPERATIONS`` can be done on this connection, as far as that is known."""
        if operation == "events":
            return self._monitor.supports()
        if not self.is_multipath:
            return Support(False, f"this connection is plain TCP: {self.fallback_reason}")
        return self._control.supports(operation)

    # --- subflows ----------------------------------------------------------------------------------------------------
    def open_subflow(
        self,
        local: Endpoint,
        remote: Endpoint,
        *,
        backup: bool = False,
        interface: int = 0,
        segments: Sequence[bytes] = (),
        wait: bool = False,
    ) -> int:
        """Opens a subflow; its number. Whether it comes to anything its events will say (SUBFLOW_ESTABLISHED, or
        SUBFLOW_CLOSED with the reason).

        ``local.port`` 0: any. ``interface``: an index, 0: as routed. ``segments``: packed IPv6 addresses that its packets
        visit (``segment_routing``, whose errors these may be); it takes CAP_NET_ADMIN of this process. Before the
        connection is fully established: EAGAIN, or with ``wait`` it is opened when it is. ECONNREFUSED where the peer has
        said, in an event of the kernel's, that it takes no joins at its first address.
        """
        self._check_remote(remote)
        self._check_interface(interface)
        with self.lock:
            self._check_multipath()
            # RFC 8684 §3.1, flag C: "the receiver MUST NOT try to open any additional subflows toward this address"
            if self.denies_join_to_initial and remote == self.initial_remote:
                raise PathError("the peer accepts no further subflows to its initial address", errno.ECONNREFUSED)
            self._check_room()
            if segments and not local.port:
                local = Endpoint(local.address, free_port(local.address, self._namespace))
            number = self.ids.expect(local, remote)
            self._pending[number] = False
            try:
                if segments:
                    self._route(number, local, remote, segments, interface)
                self._create_now(number, local, remote, backup, interface)
            except PathError as error:
                if not wait or error.errno != errno.EAGAIN:
                    self._forget_pending(number)
                    raise
                self._unroute(number)
                try:
                    self._wish(lambda: self._create_late(number, local, remote, backup, interface, segments))
                except PathError:
                    self._forget_pending(number)
                    raise
            except BaseException:
                self._forget_pending(number)
                raise
            return number

    def close_subflow(self, number: int, reset: bool = False, *, reason: str = "") -> None:
        """Closes one subflow: FIN, or RST (which works under any path manager). ``reason``: what its event will say."""
        with self.lock, _no_such_subflow(number):
            self._check_multipath()
            local, remote = self._ends(number)
            self._closing[number] = reason or ("closed" if reset else "local")
            if not reason and self.on_own_close is not None:
                self.on_own_close(local, remote)
            try:
                if reset:
                    self._control.reset_subflow(self._fd, self.token, local, remote)
                else:
                    self._control.destroy_subflow(self._fd, self.token, local, remote)
            except BaseException:
                self._closing.pop(number, None)
                raise
            self._changed_by_us()

    def set_backup(self, number: int, backup: bool) -> None:
        """Tells the peer (MP_PRIO) to use a subflow only where no other works, or as any other. Obeyed both ways."""
        with self.lock, _no_such_subflow(number):
            self._check_multipath()
            local, remote = self._ends(number)
            self._control.set_backup(self._fd, self.token, local, remote, backup)
            self._changed_by_us()

    def set_subflow_option(self, number: int, level: int, name: int, value: bytes) -> None:
        """setsockopt on one subflow; errors of setsockopt."""
        unknown: PathError | None = None
        with self.lock, _no_such_subflow(number):
            self._check_multipath()
            local, remote = self._ends(number)
            try:
                self._control.set_subflow_option(self._fd, self.token, local, remote, level, name, value)
            except PathError as error:
                # setsockopt says ENOENT, too, of a congestion control that is not there.
                named = (level, name) == (socket.IPPROTO_TCP, socket.TCP_CONGESTION)
                if not named or error.errno != errno.ENOENT or number not in self._look():
                    raise
                unknown = error
        if unknown is not None:
            raise unknown

    def get_subflow_option(self, number: int, level: int, name: int, size: int) -> bytes:
        """getsockopt on one subflow: up to ``size`` octets. TCP_INFO needs no privilege."""
        with self.lock, _no_such_subflow(number):
            self._check_multipath()
            local, remote = self._ends(number)
            if (level, name) == (socket.IPPROTO_TCP, socket.TCP_INFO):
                return sockopt.subflow_tcp_info(self._fd, local, remote)[:size]
            return self._control.get_subflow_option(self._fd, self.token, local, remote, level, name, size)

    # --- addresses ---------------------------------------------------------------------------------------------------
    def add_address(self, local: Endpoint, interface: int = 0) -> int:
        """Announces a local address to the peer (ADD_ADDR); its id. ``local.port`` 0: the connection's port; another needs
        an MPTCP listener there.

        The initial address is known to the peer: EINVAL without another port.
        """
        if local in {Endpoint(self.initial_local.address), self.initial_local}:
            raise PathError(f"the peer knows {local.host}: the connection began there", errno.EINVAL)
        self._check_interface(interface)
        with self.lock:
            self._check_multipath()

            def announce(number: int) -> None:
                self._control.announce(self._fd, self.token, local, number, interface)

            return self._with_id(local, announce)

    def remove_address(self, address: bytes) -> None:
        """Withdraws a local address (REMOVE_ADDR) and closes the subflows from it. EADDRNOTAVAIL if it is none of the
        connection's."""
        with self.lock:
            self._check_multipath()
            numbers = self._address_ids.of_address(address)
            from_here = [n for n in self._look() if (ends := self.ids.endpoints(n)) and ends[0].address == address]
            if not numbers and not from_here:
                raise PathError(f"{Endpoint(address).host} is no address of this connection", errno.EADDRNOTAVAIL)
            if not numbers:
                # The peer opened those subflows, and the kernel gave the id.
                self._learn_ids()
                numbers = self._address_ids.of_address(address)
            self._closing.update(dict.fromkeys(from_here, "address-removed"))
            for number in numbers:
                self._withdraw(number)
            self._changed_by_us()

    def address_ids(self) -> dict[Endpoint, int]:
        """The local addresses the path manager keeps for this connection, and their ids. Needs no privilege."""
        with self.lock:
            self._learn_ids()
            return {local: n for n in range(256) if (local := self._address_ids.local(n)) is not None}

    # --- when further subflows are possible --------------------------------------------------------------------------
    @property
    def is_usable(self) -> bool:
        """The connection is fully established (RFC 8684 §3.1): further subflows are possible."""
        if not self._usable and self._looks_usable():
            with self.lock:
                self.note_usable()
        return self._usable

    def expect_subflows(self) -> None:
        """Further subflows are going to come, of this side or of the peer: what has to be done before the second one."""
        with self.lock:
            self._hold_send_buffer()

    def when_usable(self, call: Callable[[], None]) -> None:
        """Calls once, as soon as further subflows are possible: now, or from the monitor's thread. ENOBUFS beyond
        MAX_WISHES callers who wait."""
        if self.is_usable:
            call()
        else:
            self._wish(call)

    def note_usable(self) -> None:
        """With the lock."""
        self._usable = True
        self._hold_send_buffer()
        if self._wishes and not self._watches_usable:
            self._watches_usable = True
            self._monitor.call_later(0.0, self._grant)

    def note_fell_back(self) -> None:
        """With the lock."""
        self._wishes.clear()

    def note_gone(self, number: int) -> None:
        """With the lock."""
        self._unroute(number)

    def _unroute(self, number: int) -> None:
        route = self._routed.pop(number, None)
        if route is not None and self._segment_routes is not None:
            with contextlib.suppress(OSError):
                self._segment_routes.remove(route)

    def close(self) -> None:
        """Before the socket is closed: no further events, wishes are forgotten. Twice is as good as once."""
        with self.lock:
            self._wishes.clear()
            self._routed.clear()
            if self._segment_routes is not None:
                self._segment_routes.close()
        self.stop()

    # --- inside, with the lock ---------------------------------------------------------------------------------------
    def _create(self, number: int, local: Endpoint, remote: Endpoint, backup: bool, interface: int) -> None:
        def create(address_id: int) -> None:
            self._control.create_subflow(
                self._fd, self.token, local, address_id, remote, backup=backup, interface=interface
            )

        self._hold_send_buffer()
        self._with_id(local, create)
        if number in self._pending:
            self._pending[number] = True
        self.note_usable()
        self._look()
        self._changed_by_us()

    def _create_now(self, number: int, local: Endpoint, remote: Endpoint, backup: bool, interface: int) -> None:
        try:
            self._create(number, local, remote, backup, interface)
        except PathError as error:
            if error.errno != errno.EAGAIN or not self.is_usable:
                raise
            # The peer's first data may have come since the kernel said so: what it says now counts.
            try:
                self._create(number, local, remote, backup, interface)
            except PathError as again:
                if again.errno != errno.EAGAIN:
                    raise
                raise PathError(HALF_CLOSED, errno.ENOTCONN) from None

    def _hold_send_buffer(self) -> None:
        if self.holds_send_buffer and not self._holds_buffer and self.token:
            self._holds_buffer = True
            hold_send_buffer(self._fd, self._namespace)

    def _create_late(
        self, number: int, local: Endpoint, remote: Endpoint, backup: bool, interface: int, segments: Sequence[bytes]
    ) -> None:
        """As wished for earlier: an error has nobody to go to but the events."""
        with self.lock:
            if self.is_ended:
                return  # the descriptor may be another socket's by now
            try:
                if segments:
                    self._route(number, local, remote, segments, interface)
                self._create(number, local, remote, backup, interface)
            except OSError as error:
                self._closing[number] = error.strerror or str(error)
                self._gone(number)
                self._tell_news()

    def _with_id(self, local: Endpoint, act: Callable[[int], None]) -> int:
        """``act`` with the address's id; where the kernel keeps another one, with that."""
        return self._address_ids.using(local, act, self._learn_ids)

    def _withdraw(self, number: int) -> None:
        local = self._address_ids.local(number)
        try:
            self._control.remove(self._fd, self.token, number)
        except PathError as error:
            if error.errno != errno.ENXIO or local is None:
                raise
            # Closing a subflow by FIN makes the kernel forget its address; only what it knows can be withdrawn.
            if number != INITIAL:
                self._control.announce(self._fd, self.token, local, number)
                self._control.remove(self._fd, self.token, number)
        self._address_ids.forget(number)

    def _learn_ids(self) -> None:
        with contextlib.suppress(OSError):
            netlink = PathManagerNetlink(self._namespace)
            try:
                self._address_ids.learn((kept.local, kept.id) for kept in netlink.addresses(self.token))
            finally:
                netlink.close()

    def _look(self) -> set[int]:
        """Gives numbers to what the kernel lists now, but for what is dead: those."""
        listed = sockopt.full_info(self._fd).subflows
        return {self.ids.see(entry) for entry in listed if entry.tcp.state in SUBFLOW_STATES}

    def _ends(self, number: int) -> tuple[Endpoint, Endpoint]:
        ends = self.ids.endpoints(number) if number in self._look() else None
        if ends is None:
            raise PathError("no such subflow", errno.ENOENT)
        return ends

    def _route(self, number: int, local: Endpoint, remote: Endpoint, segments: Sequence[bytes], interface: int) -> None:
        if self._segment_routes is None:
            self._segment_routes = SegmentRoutes(self._namespace)
        self._routed[number] = self._segment_routes.add(local, remote, segments, interface=interface)

    def _forget_pending(self, number: int) -> None:
        self.note_gone(number)
        self._pending.pop(number, None)
        self.ids.withdraw(number)

    def _changed_by_us(self) -> None:
        self._reading.invalidate()
        if self._monitor.is_polling:
            self.synchronise()

    def _wish(self, call: Callable[[], None]) -> None:
        with self.lock:
            if len(self._wishes) >= MAX_WISHES:
                raise PathError(f"{MAX_WISHES} callers wait for the connection already: {NOT_YET}", errno.ENOBUFS)
            self._wishes.append(call)
            if not self._watches_usable:
                self._watches_usable = True
                self._usable_after_s = USABLE_S[0]
                self._monitor.call_later(self._usable_after_s, self._grant)

    def _grant(self) -> None:
        """In the monitor's thread: does what was wished for, if it is possible now."""
        if not self._usable and not self._looks_usable():
            self._usable_after_s = min(2 * self._usable_after_s, USABLE_S[1])
            if not self.is_ended and self._wishes:
                self._monitor.call_later(self._usable_after_s, self._grant)
            else:
                self._watches_usable = False
            return
        with self.lock:
            self._usable, self._watches_usable = True, False
            wishes, self._wishes = self._wishes, []
        for call in wishes:
            call()

    def _looks_usable(self) -> bool:
        with contextlib.suppress(OSError):
            for entry in sockopt.full_info(self._fd).subflows:
                if entry.tcp.state == ESTABLISHED:
                    told = self._surroundings.lookup(entry.local, entry.remote)
                    if told is not None and told.fully_established:
                        return True
        return False

    def _check_multipath(self) -> None:
        if self.is_ended:
            raise PathError("the connection is over", errno.ENOTCONN)
        try:
            token = sockopt.mptcp_info(self._fd).token
        except NotSupportedError:
            raise NotSupportedError(f"this connection is plain TCP: {self.fallback_reason}") from None
        if token != self.token:
            raise PathError("the connection is over", errno.ENOTCONN)

    def _check_room(self) -> None:
        if len(self._look() | self._pending.keys()) >= self.max_subflows:
            raise PathError(f"a connection has at most {self.max_subflows} subflows", errno.ENOBUFS)

    def _check_remote(self, remote: Endpoint) -> None:
        if not remote.port:
            raise PathError("the remote end of a subflow needs a port", errno.EADDRNOTAVAIL)
        if remote.is_unspecified:
            raise PathError("the remote end of a subflow needs an address", errno.EADDRNOTAVAIL)

    def _check_interface(self, interface: int) -> None:
        if interface:
            try:
                with self._namespace.entered():
                    socket.if_indextoname(interface)
            except (OSError, OverflowError):
                raise PathError(f"there is no interface with index {interface}", errno.ENODEV) from None


@contextlib.contextmanager
def _no_such_subflow(number: int) -> Iterator[None]:
    try:
        yield
    except PathError as error:
        if error.errno != errno.ENOENT:
            raise
        raise PathError(f"the connection has no subflow {number}", errno.EINVAL) from None
