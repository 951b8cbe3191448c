"""Two real, rate-limited paths with the kernel as peer: what both carry together, against each of them alone.

    python -m benchmarks.aggregation [--seconds S]      (as root, or anywhere user namespaces are allowed)

Links are veth pairs with a token bucket both ways, which queues 50 ms; the kernel uses reno. Goodput is what the
receiver's application got, from its first octet on, without the first 0.3 s (slow start).
"""

from __future__ import annotations

import argparse
import socket
import sys
import time
from collections.abc import Sequence

from mptcp.testing import netns
from mptcp.testing.encounter import Encounter
from mptcp.testing.exchange import LINGER_ZERO, Exchange, wait_subflows

SETTLE_S = 0.3
RATES = ((100, 100), (100, 20))


def goodput(rates: Sequence[float], paths: Sequence[int], role: str, direction: str, seconds: float) -> float:
    """Mbit/s over ``paths``."""
    size = int(sum(rates[path - 1] for path in paths) * 1e6 / 8 * (seconds + 3 * SETTLE_S))
    with netns.Lab(len(rates), rate_mbit=rates) as lab:
        lab.server.mptcp_limits(subflows=8, add_addr_accepted=8)
        with Encounter(lab, paths=paths) as encounter:
            kernel = {"send_bytes": size * (direction == "receive"), "half_close": False, "end": "hold"}
            if role == "connect":
                peer = lab.server.serve("0.0.0.0", **kernel)
                sock = encounter.connect(peer.port, path=paths[0])
            else:
                listener = encounter.listen()
                lab.server.connect(encounter.our_address(paths[0]), 8080, **kernel)
                sock = encounter.accept(listener)
            exchange = Exchange(
                sock,
                send_bytes=size * (direction == "send"),
                subflows=len(paths),
                chunk=16_384,  # so finely is counted what has been sent
                end="hold",
                timeout_s=seconds + 30,
            )
            wait_subflows(sock, len(paths))
            time.sleep(SETTLE_S)

            def moved() -> int:
                # What we have sent counts when the peer has acknowledged it at the data level.
                return exchange.received if direction == "receive" else exchange.sent - sock.info().send_buffered_bytes

            start, first = time.monotonic(), moved()
            time.sleep(seconds)
            rate = (moved() - first) * 8 / (time.monotonic() - start) / 1e6
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_ZERO)  # the rest is of no interest
            sock.close()
            return rate


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--seconds", type=float, default=2.0, help="how long each figure is measured")
    options = parser.parse_args(arguments)
    why = netns.needs_kernel_mptcp() or ("" if netns.become_namespace_root() else netns.needs_namespaces())
    if why:
        print(f"not measured: {why}")
        return 0
    print(f"{'Mbit/s':>12} {'our role':>8} {'we':>8} {'path 1':>8} {'path 2':>8} {'sum':>8} {'both':>8} {'of sum':>7}")
    for rates in RATES:
        for role in ("connect", "accept"):
            for direction in ("send", "receive"):
                one, two = (goodput(rates, (path,), role, direction, options.seconds) for path in (1, 2))
                both = goodput(rates, (1, 2), role, direction, options.seconds)
                print(
                    f"{rates[0]:>6} + {rates[1]:<3} {role:>8} {direction:>8} {one:8.1f} {two:8.1f} {one + two:8.1f} "
                    f"{both:8.1f} {both / (one + two):7.3f}",
                    flush=True,
                )
    return 0


if __name__ == "__main__":
    sys.exit(main())
