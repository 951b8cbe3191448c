"""A program under the filter, whose system calls the test answers."""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Callable, Iterator

import pytest

from mptcp.kernel.launch import filter as bpf
from mptcp.kernel.launch import launcher, notify
from mptcp.kernel.launch.notify import Listener, Notification

#: What a watched program may do and how long it may take.
Work = Callable[[], object]
TIMEOUT_S = 10


class Watched:
    """A child process that runs ``work`` under a filter; ``result`` is what it returned, as text."""

    def __init__(self, work: Work, program: bytes) -> None:
        ours, theirs = socket.socketpair()
        self._output, output = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                listener = notify.install(program)
                socket.send_fds(theirs, [b"x"], [listener])
                os.close(listener)
                theirs.recv(1)  # so that the listener is not closed before
                os.write(output, repr(work()).encode())
            except BaseException as error:  # noqa: BLE001
                os.write(output, repr(error).encode())
            finally:
                os._exit(0)
        os.close(output)
        theirs.close()
        self._ours = ours
        _, fds, _, _ = socket.recv_fds(ours, 1, 1)
        self.listener = Listener(fds[0])
        ours.send(b"x")

    def next(self) -> Notification:
        """The next system call that waits."""
        while True:
            ready, _, _ = select.select([self.listener], [], [], TIMEOUT_S)
            assert ready, f"nothing came; {self.result() if self._ended() else 'the program still runs'}"
            if (notification := self.listener.receive()) is not None:
                return notification

    def _ended(self) -> bool:
        return bool(select.select([self._output], [], [], 0)[0])

    def result(self) -> str:
        """What it returned; waits for it."""
        parts = []
        while select.select([self._output], [], [], TIMEOUT_S)[0] and (part := os.read(self._output, 65536)):
            parts.append(part)
        return b"".join(parts).decode()

    def close(self) -> None:
        self._ours.close()
        self.listener.close()
        os.close(self._output)
        os.kill(self.pid, 9)
        os.waitpid(self.pid, 0)


@pytest.fixture
def loopback() -> None:
    """127.0.0.1 and ::1 can be connected to."""
    for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        try:
            with socket.create_server((address, 0), family=family) as server, socket.socket(family) as client:
                client.settimeout(TIMEOUT_S)
                client.connect(server.getsockname())
        except OSError as error:
            pytest.skip(f"{address} cannot be reached ({error.strerror}): ip link set lo up")


@pytest.fixture
def watch() -> Iterator[Callable[..., Watched]]:
    """Runs a function in a child under the filter: ``watch(work, options, addresses=...)``."""
    if not (able := notify.notification_support()):
        pytest.skip(able.reason)
    if not (able := launcher.mptcp_support()):
        pytest.skip(able.reason)
    children: list[Watched] = []

    def run(work: Work, options: tuple[tuple[int, int], ...] = (), *, addresses: bool = False) -> Watched:
        program = bpf.emit(bpf.socket_filter(bpf.own_architecture(), options, addresses=addresses))
        children.append(Watched(work, program))
        return children[-1]

    yield run
    for child in children:
        child.close()
