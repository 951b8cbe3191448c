"""What ``mptcp run PROGRAM`` costs: a socket(2) call, any other system call, and a transfer.

    python -m benchmarks.launch [--rounds N] [--seconds S]

Each row is the same small program, without ``mptcp run`` and under it, in turns, so that a change in the machine's speed
hits both alike. The program of "transfer" asks for MPTCP by itself when it runs without, so that nothing but the supervision
differs; it sends to the kernel's MPTCP over the loopback device of a namespace of its own. Of calls the least of the rounds is
shown, of transfers the medians, and the median of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

import mptcp
from mptcp.kernel.launch import launcher
from mptcp.testing.netns import Namespace, become_namespace_root, needs_kernel_mptcp, needs_namespaces

SOURCE = str(Path(mptcp.__file__).parents[1])
UNDER = (
    f"import sys; sys.path.insert(0, {SOURCE!r})\n"
    "from mptcp.kernel.launch import launcher; from mptcp.kernel.launch.exceptions import Exceptions\n"
    "launcher.launch(sys.argv[1], sys.argv[1:], Exceptions.parse(sys.argv[-1].split() if sys.argv[-1] != '-' else []))"
)

CALLS = """
import json, os, socket, sys, time
def cost(call, count):
    start = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - start) / count * 1e6
close, stream = os.close, lambda: close(socket.socket().detach())
sock = socket.socket()
(a, b), block = socket.socketpair(), bytes(1024)
print(json.dumps({
    "socket() and close()": cost(stream, 3000),
    "setsockopt(TCP_NODELAY)": cost(lambda: sock.setsockopt(6, 1, 1), 100_000),
    "getppid()": cost(os.getppid, 300_000),
    "1 KiB through a socket pair": cost(lambda: (a.send(block), b.recv(1024)), 30_000) / 2,
    "protocol": socket.socket().getsockopt(1, 38),
}))
"""

TRANSFER = """
import json, socket, sys, time
port, size, seconds, protocol = (float(word) for word in sys.argv[1:5])
sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, int(protocol))
sock.connect(("127.0.0.1", int(port)))
assert sock.getsockopt(6, 43) == 1
block = bytes(int(size))
sent, end = 0, time.perf_counter() + seconds
start, cpu = time.perf_counter(), time.process_time()
while (now := time.perf_counter()) < end:
    sock.sendall(block)
    sent += len(block)
cpu = time.process_time() - cpu
print(json.dumps({"gbit": sent * 8 / (now - start) / 1e9, "cpu": cpu * 1e3 / (sent / (1 << 30))}))
"""


def run(namespace: Namespace, program: str, *arguments: object, under: bool, excepted: str = "-") -> dict[str, float]:
    """What the program reports."""
    command = [sys.executable, "-c", program, *map(str, arguments), excepted]
    if under:
        command = [sys.executable, "-c", UNDER, *command]
    with namespace.popen(*command, stdout=subprocess.PIPE) as process:
        output = process.communicate(timeout=120)[0]
    if process.returncode:
        raise RuntimeError(f"the program ended with {process.returncode}")
    report: dict[str, float] = json.loads(output)
    return report


def calls(namespace: Namespace, rounds: int) -> None:
    rows: dict[str, dict[str, list[float]]] = {}
    for _ in range(rounds):
        for column, under, excepted in (
            ("without", False, "-"),
            ("under mptcp run", True, "-"),
            ("with --except", True, "10.0.0.0/8"),
        ):
            report = run(namespace, CALLS, under=under, excepted=excepted)
            if report.pop("protocol") != (262 if under else 6):
                raise RuntimeError("the program's sockets are not what they are to be")
            for name, value in report.items():
                rows.setdefault(name, {}).setdefault(column, []).append(value)
    print(f"{'microseconds a call':28} {'without':>10} {'under mptcp run':>16} {'with --except':>14}")
    for name, columns in rows.items():
        without, under, excepted = (min(values) for values in columns.values())
        print(f"{name:28} {without:10.2f} {under:16.2f} {excepted:14.2f}")


def transfers(namespace: Namespace, rounds: int, seconds: float) -> None:
    print(f"\n{'transfer':36} {'without':>10} {'under mptcp run':>16} {'ratio':>8}")
    for size in (65536, 1 << 20):
        reports: dict[bool, list[dict[str, float]]] = {False: [], True: []}
        for turn in range(rounds):
            for supervised in (False, True) if turn % 2 else (True, False):
                server = namespace.serve("127.0.0.1", digest=False)
                protocol = 0 if supervised else 262
                reports[supervised].append(
                    run(namespace, TRANSFER, server.port, size, seconds, protocol, under=supervised)
                )
                server.close()
        for key, unit in (("gbit", "Gbit/s"), ("cpu", "ms of CPU per GiB")):
            without, under = ([report[key] for report in reports[supervised]] for supervised in (False, True))
            ratio = statistics.median(b / a for a, b in zip(without, under, strict=True))
            label = f"{size >> 10} KiB buffers, {unit}"
            print(f"{label:36} {statistics.median(without):10.1f} {statistics.median(under):16.1f} {ratio:8.3f}")


def main() -> int:
    parser = argparse.ArgumentParser(description="what mptcp run costs")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each transfer")
    options = parser.parse_args()
    if needs_namespaces() and not become_namespace_root():
        print(f"cannot measure: {needs_namespaces()}", file=sys.stderr)
        return 1
    reason = needs_kernel_mptcp() or launcher.support().reason
    if reason:
        print(f"cannot measure: {reason}", file=sys.stderr)
        return 1
    with Namespace("launch") as namespace:
        namespace.ip("link set lo up")
        namespace.sysctl("net.ipv4.tcp_congestion_control", "reno")
        calls(namespace, options.rounds)
        transfers(namespace, options.rounds, options.seconds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
