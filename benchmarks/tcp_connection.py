"""Two TCP connections back to back in memory, one sending to the other: MB/s, and microseconds per segment.

``python benchmarks/tcp_connection.py [--profile]``. The time is that of both ends together: poll, arrival, delivery,
read, acknowledgement.
"""

from __future__ import annotations

import cProfile
import pstats
import sys
import time

from mptcp.core.tcp.config import TcpConfig
from mptcp.core.tcp.connection import Connection
from mptcp.core.wire.segment import Segment
from mptcp.testing.tcp_pair import TcpPair

BURST = 64


def transfer(pair: TcpPair, total: int, chunk: bytes, costs: list[float]) -> int:
    """Sends ``total`` octets; adds to ``costs`` [poll data, arrival of data, read, poll ACK, arrival of ACK]."""
    client, server, now = pair.client, pair.server, pair.now
    buffer = bytearray(1 << 22)
    clock = time.perf_counter
    segments = received = 0
    client.write(chunk)
    while received < total:
        if client.writable_bytes >= len(chunk):
            client.write(chunk)
        t0 = clock()
        burst: list[Segment] = []
        while len(burst) < BURST and (segment := client.poll_segment(now)) is not None:
            burst.append(segment)
        t1 = clock()
        for segment in burst:
            server.handle_segment(segment, now)
        t2 = clock()
        received += server.read_into(buffer)
        server.window_update(now)
        t3 = clock()
        answers = drain(server, now)
        t4 = clock()
        now += 100
        for segment in answers:
            client.handle_segment(segment, now)
        t5 = clock()
        for index, cost in enumerate((t1 - t0, t2 - t1, t3 - t2, t4 - t3, t5 - t4)):
            costs[index] += cost
        segments += len(burst)
        costs[5] += len(answers)
        if not burst and not answers:
            now = max(now, min(client.poll_deadline(), server.poll_deadline()))
            client.handle_timeout(now)
            server.handle_timeout(now)
    pair.now = now
    return segments


def drain(connection: Connection, now: int) -> list[Segment]:
    result: list[Segment] = []
    while (segment := connection.poll_segment(now)) is not None:
        result.append(segment)
    return result


def measure(segment_bytes: int, total: int) -> None:
    mtu = segment_bytes + 52 if segment_bytes <= 1460 else 1500
    config = TcpConfig(receive_buffer_bytes=4 << 20, receive_buffer_max_bytes=4 << 20)
    pair = TcpPair(config, mtu=mtu, gso_max_bytes=0 if segment_bytes <= 1460 else segment_bytes).connect()
    chunk = bytes(1 << 20)
    costs = [0.0] * 6
    transfer(pair, total // 10, chunk, [0.0] * 6)
    start = time.perf_counter()
    segments = transfer(pair, total, chunk, costs)
    elapsed = time.perf_counter() - start
    acks = int(costs[5]) or 1
    print(
        f"{segment_bytes:>6} octets: {total / elapsed / 1e6:9.0f} MB/s, {elapsed / segments * 1e6:6.2f} us per segment"
        f" (poll {costs[0] / segments * 1e6:.2f}, arrival {costs[1] / segments * 1e6:.2f},"
        f" read {costs[2] / segments * 1e6:.2f}); per ACK: poll {costs[3] / acks * 1e6:.2f},"
        f" arrival {costs[4] / acks * 1e6:.2f}; {segments / acks:.0f} segments per ACK"
    )


def main() -> None:
    if "--profile" in sys.argv:
        profile = cProfile.Profile()
        profile.enable()
        measure(1460, 30_000_000)
        profile.disable()
        pstats.Stats(profile).sort_stats("tottime").print_stats(25)
        return
    for _ in range(2):
        measure(1460, 60_000_000)
        measure(64_000, 3_000_000_000)


if __name__ == "__main__":
    main()
