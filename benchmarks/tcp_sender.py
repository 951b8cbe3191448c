"""What the sending half of TCP costs per record: ``python benchmarks/tcp_sender.py``. Prints microseconds."""

from __future__ import annotations

import time
from collections.abc import Callable

from mptcp.core.tcp.config import TcpConfig
from mptcp.core.tcp.sender import Sender, make_congestion

MSS = 1400
RECORD = 46 * MSS  # the largest multiple below 65,535
ROUNDS = 20_000


def make(window: int = 1 << 30) -> Sender:
    config = TcpConfig(no_delay=True)
    sender = Sender(config, make_congestion(config, MSS), 1, MSS, 0)
    sender.gso_max_bytes = RECORD
    sender.set_window(1 + window)
    sender.congestion.cwnd_bytes = 16 * RECORD
    sender.congestion.ssthresh_bytes = 8 * RECORD
    return sender


def timed(operation: Callable[[], None], count: int) -> float:
    """Microseconds per operation."""
    start = time.perf_counter()
    operation()
    return (time.perf_counter() - start) / count * 1e6


def steady_state(mapped: bool) -> tuple[float, float]:
    """(send, acknowledge): one 64 KiB record per acknowledgement, eight in flight."""
    sender = make()
    view = memoryview(bytes(RECORD))
    mapping = object()
    clock = time.perf_counter
    sending = acking = 0.0
    now = 1000
    outstanding: list[int] = []
    for _ in range(ROUNDS):
        now += 100
        start = clock()
        if mapped:
            sender.send_mapped((view,), RECORD, mapping)
        else:
            sender.write(view)
        record = sender.poll(now)
        sending += clock() - start
        assert record is not None
        outstanding.append(record.end)
        if len(outstanding) == 8:
            ack = outstanding.pop(0)
            start = clock()
            sender.handle_ack(ack, 1 << 30, now, rtt_echo_us=1000)
            acking += clock() - start
        sender.congestion.cwnd_bytes = 16 * RECORD
    return sending / ROUNDS * 1e6, acking / ROUNDS * 1e6


def partial_acks() -> float:
    """Acknowledgements of two segments each, inside 64 KiB records."""
    sender = make()
    for _ in range(8):
        sender.send_mapped((memoryview(bytes(RECORD)),), RECORD, None)
    while sender.poll(1000):
        pass
    acks = range(1 + 2 * MSS, sender.nxt, 2 * MSS)

    def run() -> None:
        for index, ack in enumerate(acks):
            sender.handle_ack(ack, 1 << 30, 2000 + index, rtt_echo_us=1000)

    return timed(run, len(acks))


def sack_storm(records: int) -> float:
    """One of ``records`` one-segment records is lost: each later one gives a SACK block that grows by it."""
    sender = make()
    sender.congestion.cwnd_bytes = records * MSS
    for _ in range(records):
        sender.send_mapped((memoryview(bytes(MSS)),), MSS, None)
    while sender.poll(1000):
        pass

    def run() -> None:
        for index in range(2, records):
            sender.handle_ack(1, 1 << 30, 2000 + index, sack_blocks=((1 + MSS, 1 + index * MSS),), rtt_echo_us=1000)

    return timed(run, records - 2)


def main() -> None:
    for name, mapped in (("stream", False), ("mapped", True)):
        send, acknowledge = min(steady_state(mapped) for _ in range(3))
        print(f"{name + ': queue and poll one 64 KiB record':52} {send:6.2f} µs")
        print(f"{name + ': handle_ack of one 64 KiB record':52} {acknowledge:6.2f} µs")
    print(f"{'handle_ack of two segments inside a record':52} {min(partial_acks() for _ in range(3)):6.2f} µs")
    for records in (100, 1000, 10_000):
        print(f"{f'handle_ack with SACK, {records} records in flight':52} {sack_storm(records):6.2f} µs")


if __name__ == "__main__":
    main()
