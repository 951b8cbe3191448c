"""Two stacks in one process, joined by two in-process links: an echo over Multipath TCP, without any privilege.

python examples/echo.py
"""

import threading

import mptcp
from mptcp.links.loopback import LoopbackLink

wifi, wifi_there = LoopbackLink.pair("wifi")
cell, cell_there = LoopbackLink.pair("cell")
client = mptcp.UserStack([wifi, cell], {wifi.name: ["10.0.0.1/24"], cell.name: ["10.0.1.1/24"]})
server = mptcp.UserStack([wifi_there, cell_there], {wifi_there.name: ["10.0.0.2/24"], cell_there.name: ["10.0.1.2/24"]})


def serve(listener: mptcp.Socket) -> None:
    peer, address = listener.accept()
    print(f"server: connection from {address[0]}, multipath: {peer.is_multipath}")
    with peer:
        while data := peer.recv(65536):
            peer.sendall(data)


with client, server:
    listener = server.socket()
    listener.bind(("", 5007))
    listener.listen()
    thread = threading.Thread(target=serve, args=(listener,))
    thread.start()
    with client.socket() as sock:
        sock.settimeout(10)
        sock.connect(("10.0.0.2", 5007))
        sock.sendall(b"hello, twice")
        print("client:", sock.recv(100).decode())
        for subflow in sock.subflows():
            print(f"client: subflow {subflow.id}: {subflow.local} > {subflow.remote}, {subflow.state.value}")
    thread.join()
    listener.close()
