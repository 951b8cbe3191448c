"""A second subflow of the kernel's, opened by hand and closed again, between two network namespaces of this process.

python examples/second_subflow.py     as root, or by anybody where the system allows user namespaces; needs ip, nft, tc

On a real network the two stacks are two machines, each with net.mptcp.path_manager=userspace and CAP_NET_ADMIN or
`mptcp broker`: then `mptcp.create_connection` does, without any stack of one's own.
"""

import sys
import threading

import mptcp
from mptcp.testing.netns import Lab, become_namespace_root, needs_kernel_mptcp, needs_namespaces


def echo(listener: mptcp.Socket | mptcp.KernelSocket) -> None:
    # The listening socket stays open: the kernel takes joins only while it does.
    while True:
        peer, _ = listener.accept()
        with peer:
            while data := peer.recv(65536):
                peer.sendall(data)


def wait_for(events: mptcp.EventStream, kind: mptcp.EventKind) -> None:
    while event := events.get(timeout=10):
        print(f"  {event.kind.value} {event.local or ''} {event.reason}".rstrip())
        if event.kind is kind:
            return


def show(sock: mptcp.Socket | mptcp.KernelSocket, when: str) -> None:
    print(f"{when}:")
    for s in sock.subflows():
        backup = ", backup" if s.backup else ""
        print(f"  subflow {s.id}: {s.local} > {s.remote}, {s.state.value}{backup}")


def main() -> None:
    become_namespace_root()  # without root: in a user namespace
    if reason := needs_namespaces() or needs_kernel_mptcp():
        sys.exit(reason)
    with Lab(paths=2, client_kernel=True) as lab:
        for namespace in (lab.client, lab.server):
            namespace.sysctl("net.mptcp.path_manager", "userspace")  # before Linux 6.15: net.mptcp.pm_type, 1
        near, far = mptcp.KernelStack(namespace=lab.client.fileno()), mptcp.KernelStack(namespace=lab.server.fileno())
        with mptcp.use(far):
            listener = mptcp.create_server(("", 5007))
        threading.Thread(target=echo, args=(listener,), daemon=True).start()

        with near, far, mptcp.use(near), mptcp.create_connection((lab.server_address(1), 5007), timeout=10) as sock:
            print(f"multipath: {sock.is_multipath} {sock.fallback_reason}".rstrip())
            events = sock.events()
            sock.sendall(b"hello")
            sock.recv(100)
            show(sock, "first")

            number = sock.open_subflow((lab.server_address(2), 5007), (lab.client_address(2), 0), backup=True)
            while (event := events.get(timeout=10)) and event.subflow_id != number:
                pass
            sock.sendall(b"over either")
            sock.recv(100)
            show(sock, "opened")

            sock.close_subflow(number)
            wait_for(events, mptcp.EventKind.SUBFLOW_CLOSED)
            show(sock, "closed")


if __name__ == "__main__":
    main()
