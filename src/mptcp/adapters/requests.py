"""requests over MPTCP.

session = mptcp.adapters.requests.Session()
print(session.get("http://server.example/").text)
"""

from __future__ import annotations

from typing import Any

import requests
import requests.adapters

from mptcp.adapters.urllib3 import PoolManager


class HTTPAdapter(requests.adapters.HTTPAdapter):
    """To be mounted: ``session.mount("https://", HTTPAdapter())``. Proxies are reached as ever, by the kernel's TCP."""

    def init_poolmanager(self, connections: int, maxsize: int, block: bool = False, **pool_kwargs: Any) -> None:
        self._pool_connections = connections
        self._pool_maxsize = maxsize
        self._pool_block = block
        self.poolmanager = PoolManager(num_pools=connections, maxsize=maxsize, block=block, **pool_kwargs)


class Session(requests.Session):
    """``requests.Session`` with the adapter mounted for http and https."""

    def __init__(self) -> None:
        super().__init__()
        for prefix in ("http://", "https://"):
            self.mount(prefix, HTTPAdapter())
