"""UDP ports for a server in another process, which has to be told one."""

from __future__ import annotations

import errno
import random
import socket
from typing import Final

#: Below what Linux, BSD and IANA give to sockets that ask for any port: nobody gets it by chance in the meantime.
PORTS: Final = range(20_000, 32_000)
ATTEMPTS: Final = 100


def unused_udp_port() -> int:
    """One that nothing on this machine uses, on IPv4 or IPv6. OSError (EADDRINUSE) if a hundred others are taken."""
    for port in random.SystemRandom().sample(PORTS, ATTEMPTS):
        try:
            with (
                socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as four,
                socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as six,
            ):
                six.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                four.bind(("", port))
                six.bind(("", port))
        except OSError:
            continue
        return port
    raise OSError(errno.EADDRINUSE, f"{ATTEMPTS} UDP ports of {PORTS.start} to {PORTS.stop - 1} are taken: free some")
