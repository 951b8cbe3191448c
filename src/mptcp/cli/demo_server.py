"""The demo's far end: a stock HTTP server of the standard library on the kernel's MPTCP socket.

Run as a script in a network namespace, with one argument, a JSON object: ``namespace`` (an open descriptor of it),
``directory``, ``address``. It imports nothing of this package and prints ``{"event": "listening", "port": N}``.
"""

import ctypes
import functools
import http.server
import json
import os
import signal
import socket
import sys
from typing import Any

IPPROTO_MPTCP = 262
CLONE_NEWNET = 0x40000000
PR_SET_PDEATHSIG = 1


class Handler(http.server.SimpleHTTPRequestHandler):
    """Files, and no log lines among the JSON."""

    def log_message(self, format: str, *args: object) -> None:
        """Silent."""


class Server(http.server.ThreadingHTTPServer):
    """What ``python -m http.server`` runs, on another kind of socket."""

    def __init__(self, address: tuple[str, int], handler: Any) -> None:
        super().__init__(address, handler, bind_and_activate=False)
        self.socket.close()
        self.socket = socket.socket(self.address_family, socket.SOCK_STREAM, IPPROTO_MPTCP)
        # bbr and others do not keep a short queue short; what the demo shows should not depend on the machine's choice.
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")
        self.socket.bind(address)
        self.server_address = self.socket.getsockname()
        self.server_activate()


def main(namespace: int, directory: str, address: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if libc.setns(namespace, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns: " + os.strerror(ctypes.get_errno()))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the demo, which ends this process
    server = Server((address, 0), functools.partial(Handler, directory=directory))
    print(json.dumps({"event": "listening", "port": server.server_address[1]}), flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
