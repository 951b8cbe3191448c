"""A path manager of one's own: the same class, and the same program, on the user-space stack and on the kernel's.

python examples/own_path_manager.py     the kernel's part needs root or user namespaces (ip, nft, tc), and says so
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import mptcp
from mptcp.core.path_managers.base import Action, Facts, OpenSubflow, PathManager, SetBackup
from mptcp.kernel.namespace import NetNamespace
from mptcp.kernel.pm_service import user_space_manager
from mptcp.links.loopback import LoopbackLink
from mptcp.testing import netns


class Standby(PathManager):
    """From the second address a subflow that only waits; when another one ends, it does the work."""

    name = "standby"

    def on_established(self, facts: Facts) -> Sequence[Action]:
        others = [a for a in facts.local_addresses if a != facts.initial_local.address and len(a) == 4]
        if not facts.is_client or not others:
            return ()
        return [OpenSubflow(mptcp.Endpoint(others[0]), facts.initial_remote, backup=True)]

    def on_subflow_closed(
        self, facts: Facts, local: mptcp.Endpoint, remote: mptcp.Endpoint, reason: str
    ) -> Sequence[Action]:
        return [SetBackup(path.id, False) for path in facts.paths if path.backup]


@contextlib.contextmanager
def user_space() -> Iterator[tuple[mptcp.Stack, mptcp.Stack, str]]:
    """Two hosts in this process, two links between them; the address of the second."""
    wifi, wifi_there = LoopbackLink.pair("wifi")
    cell, cell_there = LoopbackLink.pair("cell")
    with (
        mptcp.UserStack([wifi, cell], {wifi.name: ["10.0.1.1"], cell.name: ["10.0.2.1"]}) as near,
        mptcp.UserStack(
            [wifi_there, cell_there], {wifi_there.name: ["10.0.1.2"], cell_there.name: ["10.0.2.2"]}
        ) as far,
    ):
        yield near, far, "10.0.1.2"


@contextlib.contextmanager
def kernel() -> Iterator[tuple[mptcp.Stack, mptcp.Stack, str]]:
    """Two network namespaces, two links between them."""
    with (
        netns.Lab(paths=2, client_kernel=True) as lab,
        NetNamespace(lab.client.fileno()) as client,
        user_space_manager(client),
        mptcp.KernelStack(namespace=lab.client.fileno()) as near,
        mptcp.KernelStack(namespace=lab.server.fileno()) as far,
    ):
        yield near, far, lab.server_address(1)


def echo(listener: mptcp.Socket | mptcp.KernelSocket) -> None:
    with contextlib.suppress(OSError):  # closed
        while True:
            peer, _ = listener.accept()
            with peer:
                while data := peer.recv(65536):
                    peer.sendall(data)


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("it did not happen within 10 s")
        time.sleep(0.01)


def try_on(near: mptcp.Stack, far: mptcp.Stack, host: str) -> None:
    with mptcp.use(far):
        listener = mptcp.create_server(("", 5007))
    threading.Thread(target=echo, args=(listener,), daemon=True).start()
    config = mptcp.ConnectionConfig(path_manager=Standby)
    with mptcp.use(near), mptcp.create_connection((host, 5007), timeout=10, config=config) as sock:

        def usable() -> list[mptcp.SubflowInfo]:
            return [s for s in sock.subflows() if s.state is mptcp.SubflowState.ACTIVE]

        sock.sendall(b"hello")
        sock.recv(100)
        until(lambda: len(usable()) == 2)
        print("  then:", *(f"{s.local.host}{' (backup)' if s.backup else ''}" for s in usable()))
        sock.close_subflow(sock.subflows()[0].id, how=mptcp.RST)
        until(lambda: [s.backup for s in usable()] == [False])
        sock.sendall(b"still here")
        print("  now:", *(s.local.host for s in usable()), sock.recv(100).decode())


def main() -> None:
    netns.become_namespace_root()  # without root: in a user namespace; before there are threads
    print("user-space stack")
    with user_space() as stacks:
        try_on(*stacks)
    print("kernel")
    if reason := netns.needs_namespaces() or netns.needs_kernel_mptcp():
        print(f"  not here: {reason}")
        return
    with kernel() as stacks:
        try_on(*stacks)


if __name__ == "__main__":
    main()
