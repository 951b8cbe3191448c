"""What an idle connection costs: 10,000 MPTCP connections, both ends in one process, each after a request and an answer.

python -m benchmarks.memory [CONNECTIONS]
"""

from __future__ import annotations

import gc
import sys
from pathlib import Path

from mptcp.core.multipath.connection import Connection
from mptcp.core.units import MILLISECOND
from mptcp.info import Endpoint
from mptcp.sim.world import World
from mptcp.testing.pair import Pair


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def measure(count: int) -> float:
    """Octets of resident memory per connection end."""
    pair = Pair(paths=1)
    world: World = pair.world
    client, server = pair.client_host, pair.server_host
    listener = server.listen(Endpoint.parse("10.0.0.2", 8080), backlog=count)
    kept: list[Connection] = []
    gc.collect()
    before = resident_bytes()
    for _ in range(count):
        first = client.connect(Endpoint.parse("10.0.0.2", 8080))
        pair.touch()
        world.run(until=world.now + 1000 * MILLISECOND, while_=lambda: not listener.ready)
        second = listener.accept()
        assert second is not None
        kept += (first, second)
        for writer, reader in ((first, second), (second, first)):
            writer.write(b"x" * 100, world.now)
            pair.touch()
            world.run(until=world.now + 50 * MILLISECOND)
            assert reader.read(200) == b"x" * 100
        pair.touch()
        world.run(until=world.now + 100 * MILLISECOND)
    gc.collect()
    assert all(connection.is_multipath for connection in kept)
    return (resident_bytes() - before) / len(kept)


def main() -> int:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 5_000
    each = measure(count)
    print(f"memory: {2 * count:,} idle connections in one process: {each / 1024:.1f} KiB each (target: under 20)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
