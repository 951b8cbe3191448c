"""What the codec costs: microseconds per operation, the best of several runs. ``PYTHONPATH=src python benchmarks/wire.py``."""

from __future__ import annotations

import timeit
from collections.abc import Callable

from mptcp.core.packet import Packet
from mptcp.core.wire import checksum, ip, offload, tcp
from mptcp.core.wire.mptcp_options import Dss
from mptcp.core.wire.segment import ACK, NO_OPTIONS, PSH, Options, Segment

REPEAT = 7
SOURCE, DESTINATION = bytes((10, 0, 0, 1)), bytes((10, 0, 0, 2))
SOURCE6, DESTINATION6 = bytes(15) + b"\x01", bytes(15) + b"\x02"


def microseconds(function: Callable[[], object]) -> float:
    number = max(1, int(0.02 / max(1e-7, timeit.timeit(function, number=1))))
    return min(timeit.repeat(function, number=number, repeat=REPEAT)) / number * 1e6


def shapes() -> list[tuple[str, Options]]:
    def timestamped(*dss: Dss) -> Options:
        return Options(timestamp_value=123456, timestamp_echo=654321, mptcp=dss)

    blocks = ((1000, 2000),)
    return [
        ("no options", NO_OPTIONS),
        ("TS", timestamped()),
        ("TS, DSS ack 4", timestamped(Dss(7))),
        ("TS, DSS ack 8", timestamped(Dss(7, True))),
        ("TS, DSS ack 4, map 4", timestamped(Dss(7, False, 9, False, 1, 1400))),
        ("TS, DSS ack 8, map 8", timestamped(Dss(7, True, 9, True, 1, 1400))),
        ("TS, DSS ack 8, map 8, checksum", timestamped(Dss(7, True, 9, True, 1, 1400, 0xBEEF))),
        ("TS, SACK, DSS ack 8", Options(timestamp_value=1, sack_blocks=blocks, mptcp=(Dss(7, True),))),
    ]


def main() -> None:
    pseudo = checksum.pseudo_sum(SOURCE, DESTINATION, 6)
    print(f"{'TCP header and options':34}{'parse':>8}{'emit, partial':>15}{'emit, full':>12}   us")
    for name, options in shapes():
        segment = Segment(1, 2, ACK, 3, options)
        view = memoryview(tcp.emit(segment, 80, 8080, pseudo, partial=False))
        end = len(view)

        def parse(view: memoryview = view, end: int = end) -> object:
            return tcp.parse(view, 0, end)

        def emit(segment: Segment = segment, partial: bool = True) -> object:
            return tcp.emit(segment, 80, 8080, pseudo, partial=partial)

        def emit_full(segment: Segment = segment) -> object:
            return tcp.emit(segment, 80, 8080, pseudo, partial=False)

        print(f"{name:34}{microseconds(parse):8.2f}{microseconds(emit):15.2f}{microseconds(emit_full):12.2f}")

    print(f"\n{'IP header':34}{'parse':>8}{'emit':>15}   us")
    head4 = memoryview(ip.emit_ipv4(SOURCE, DESTINATION, 0))
    head6 = memoryview(ip.emit_ipv6(SOURCE6, DESTINATION6, 0))
    routed = memoryview(ip.emit_ipv6(SOURCE6, DESTINATION6, 0, segments=(SOURCE6,)))
    emitted = microseconds(lambda: ip.emit_ipv4(SOURCE, DESTINATION, 1400))
    print(f"{'IPv4':34}{microseconds(lambda: ip.parse(head4)):8.2f}{emitted:15.2f}")
    emitted = microseconds(lambda: ip.emit_ipv6(SOURCE6, DESTINATION6, 1400))
    print(f"{'IPv6':34}{microseconds(lambda: ip.parse(head6)):8.2f}{emitted:15.2f}")
    emitted = microseconds(lambda: ip.emit_ipv6(SOURCE6, DESTINATION6, 1400, segments=(SOURCE6,)))
    print(f"{'IPv6 with SRH':34}{microseconds(lambda: ip.parse(routed)):8.2f}{emitted:15.2f}")

    print(f"\n{'checksum':34}{'us':>8}{'ns/octet':>15}")
    for octets in (40, 576, 1460, 9000, 60000):
        view = memoryview(bytes(range(1, 251)) * (octets // 250 + 1))[:octets]
        cost = microseconds(lambda view=view: checksum.add(view))  # type: ignore[misc]
        print(f"{octets:>8} octets{'':19}{cost:8.2f}{cost * 1000 / octets:15.2f}")

    payload = bytes(range(250)) * 240
    segment = Segment(1, 2, ACK | PSH, 3, shapes()[5][1], (payload,))
    transport = tcp.emit(segment, 80, 8080, pseudo, partial=True)
    total = len(transport) + len(payload)
    head = ip.emit_ipv4(SOURCE, DESTINATION, total)
    packet = Packet(head + transport, (payload,), 20 + total, 20, 1400, True)
    pieces = offload.finish(packet)
    received = [(memoryview(piece), 0, False) for piece in pieces]
    print(f"\n{'offload, per 1,400-octet segment':34}{'us':>8}")
    print(f"{'cut':34}{microseconds(lambda: offload.finish(packet)) / len(pieces):8.2f}")
    print(f"{'coalesce, verifying':34}{microseconds(lambda: offload.coalesce(received)) / len(pieces):8.2f}")
    valid = [(view, size, True) for view, size, _ in received]
    print(f"{'coalesce, checksum known':34}{microseconds(lambda: offload.coalesce(valid)) / len(pieces):8.2f}")


if __name__ == "__main__":
    main()
