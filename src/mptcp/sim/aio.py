"""Sockets and asyncio in virtual time: the same program that runs over a TUN device runs here, hours in seconds.

    world = World(seed=1)
    client, server = world.add_host("client"), world.add_host("server")
    ...                                     # interfaces and paths, as ever
    near, far = SimStack(client), SimStack(server)

    async def main() -> None:
        with mptcp.use(far):
            await asyncio.start_server(serve, "server", 80)
        with mptcp.use(near):
            reader, writer = await asyncio.open_connection("server", 80)

    run(world, main())

Nothing here waits, and computing takes no time. Names are those of the world's hosts. ``run_in_executor`` calls at once.
A task that waits for what can never happen ends the run with ``Deadlock``. Blocking sockets work, too, one at a time.
"""

from __future__ import annotations

import asyncio
import errno
import math
import socket as std
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar, TypeVarTuple, Unpack, cast

from mptcp.core.multipath.config import DEFAULT_CONFIG, ConnectionConfig
from mptcp.core.units import NEVER, SECOND
from mptcp.errors import ConfigurationError, NotSupportedError
from mptcp.info import Endpoint
from mptcp.runtime.aio import LoopDriver
from mptcp.runtime.pump import Pump
from mptcp.runtime.waiting import Source
from mptcp.sim.world import SimHost, World
from mptcp.sockets.address import os_error
from mptcp.sockets.loop import LoopMixin
from mptcp.sockets.user import UserStack

if TYPE_CHECKING:
    from mptcp.core.host import Host
    from mptcp.core.multipath.connection import Connection
    from mptcp.core.multipath.listener import Listener

_Result = TypeVar("_Result")
_Arguments = TypeVarTuple("_Arguments")


class Deadlock(RuntimeError):
    """Everybody waits, and nothing is left to happen in the world."""


def run(world: World, main: Coroutine[Any, Any, _Result]) -> _Result:
    """As ``asyncio.run``, in the world's time."""
    with asyncio.Runner(loop_factory=lambda: SimLoop(world)) as runner:
        return runner.run(main)


class SimStack(UserStack):
    """The sockets of a host in a world. ``close`` it before the world is left, as any stack."""

    def __init__(self, host: SimHost, *, config: ConnectionConfig = DEFAULT_CONFIG) -> None:
        self.host = host
        self._set_up(SimPump(host), config)

    def __repr__(self) -> str:
        return f"<SimStack of {self.host.name}>"

    def _interface(self, link: str) -> int:
        for index, interface in enumerate(self.pump.host.interfaces):
            if interface.name == link:
                return index
        raise ConfigurationError(f"no interface is called {link!r}")


class SimPump(Pump):
    """A pump without links: the world carries the packets and calls the timers."""

    def __init__(self, host: SimHost) -> None:
        world = host.world
        super().__init__(cast("Host", host.stack), (), lambda: world.clock.now, background=False)
        self.sim_host = host
        self.world = world
        host.observer = self._observe

    def _observe(self, item: Connection | Listener) -> None:
        with self.lock:
            self.tell_owner(item)

    def flush(self) -> int:
        now = self.world.clock.now
        if self.orphans:
            self.close_orphans(now)
        self.sim_host.touch()
        return now

    def poll(self) -> None:
        self.flush()
        self.world.advance(self.world.clock.now, _never)

    def wait(self, source: Source, ready: Callable[[], bool], deadline: int = NEVER) -> bool:
        """The world goes on until ``ready()``; OSError EDEADLK if nothing is left to happen in it."""
        self.flush()
        world = self.world
        if not world.advance(deadline, lambda: not ready()) and not ready():
            raise os_error(errno.EDEADLK, Deadlock("nothing is left to happen in this world"))
        if self.unusable:
            self.check()
        return ready()

    def alarm(self, source: Source, at_us: int) -> None:
        def ring() -> None:
            with self.lock:
                source.handle_ready()
            self.sim_host.touch()

        self.world.clock.at(at_us, ring)

    def _new_loop_driver(self, loop: asyncio.AbstractEventLoop) -> LoopDriver:
        return SimDriver(self, loop)


class SimDriver(LoopDriver):
    """Tells an event loop of news; nothing needs to be driven."""

    __slots__ = ()

    def _begin(self) -> None:
        pump = self.pump
        if not isinstance(self.loop, SimLoop) or not isinstance(pump, SimPump) or self.loop.world is not pump.world:
            raise NotSupportedError("this stack lives in a simulated world: use the event loop of that world (SimLoop)")

    def stand_by(self) -> bool:
        return False


class SimLoop(LoopMixin, asyncio.BaseEventLoop):
    """An event loop whose time is a world's."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world
        self._selector = _Selector(self)
        self._clock_resolution = 1 / SECOND

    def time(self) -> float:
        """Seconds since the world began."""
        return self.world.clock.now / SECOND

    def is_idle(self) -> bool:
        """Whether no callback is due: time may go on."""
        return not cast(Any, self)._ready

    async def getaddrinfo(
        self, host: Any, port: Any, *, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0,  # noqa: A002
    ) -> list[Any]:  # fmt: skip
        """Addresses, and names of hosts of the world."""
        number = std.getservbyname(port) if isinstance(port, str) and not port.isdecimal() else int(port or 0)
        found = [end for end in self._endpoints(host) if family in (0, _FAMILY[end.family])]
        if not found:
            raise std.gaierror(std.EAI_NONAME, f"no host of this world is called {host!r}")
        return [
            (_FAMILY[e.family], std.SOCK_STREAM, std.IPPROTO_TCP, "",
             (e.host, number) if e.family == 4 else (e.host, number, 0, 0)) for e in found
        ]  # fmt: skip

    def _endpoints(self, host: Any) -> list[Endpoint]:
        if host is None:
            return [Endpoint(bytes(4)), Endpoint(bytes(16))]
        name = host.decode() if isinstance(host, bytes) else str(host)
        for one in self.world.hosts:
            if one.name == name:
                return [Endpoint(address) for port in one.ports.values() for address in port.addresses]
        try:
            return [Endpoint.parse(name)]
        except ValueError:
            return []

    def run_in_executor(
        self, executor: Any, func: Callable[[Unpack[_Arguments]], _Result], *args: *_Arguments
    ) -> asyncio.Future[_Result]:
        """Calls at once: a thread has no place in virtual time."""
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:  # noqa: BLE001 that is what a future is for
            future.set_exception(error)
        return future

    def add_reader(self, fd: Any, callback: Callable[[Unpack[_Arguments]], Any], *args: *_Arguments) -> None:
        raise NotSupportedError("a real descriptor has no place in virtual time")

    def add_writer(self, fd: Any, callback: Callable[[Unpack[_Arguments]], Any], *args: *_Arguments) -> None:
        raise NotSupportedError("a real descriptor has no place in virtual time")

    def _process_events(self, event_list: list[object]) -> None:
        return

    def _write_to_self(self) -> None:
        return


class _Selector:
    """Where asyncio's loop would wait, the world goes on."""

    def __init__(self, loop: SimLoop) -> None:
        self._loop = loop

    def select(self, timeout: float | None) -> list[object]:
        loop = self._loop
        world = loop.world
        until = NEVER if timeout is None else world.clock.now + max(0, math.ceil(timeout * SECOND - 0.001))
        if timeout is not None and timeout <= 0:
            world.advance(until, _never)
        elif not world.advance(until, loop.is_idle):
            raise Deadlock("every task waits, and nothing is left to happen in this world")
        return []


def _never() -> bool:
    return False


_FAMILY = {4: std.AF_INET, 6: std.AF_INET6}
