"""Several subflows between the same two addresses, told apart by their ports: for networks that spread flows over links."""

from __future__ import annotations

from collections.abc import Sequence

from mptcp.core.path_managers.base import Action, Facts, OpenSubflow, PathManager
from mptcp.core.units import NEVER, SECOND
from mptcp.info import Endpoint

#: A subflow that ends is replaced after 1, 2, 4, ... seconds, this many times.
MAX_RETRIES = 6


class Ndiffports(PathManager):
    """The client opens ``count - 1`` more from the address of the first subflow to that of the peer's."""

    __slots__ = ("_again_at", "_tries", "limit")

    name = "ndiffports"

    def __init__(self, count: int = 2) -> None:
        if count < 1:
            raise ValueError("a connection has at least one subflow")
        self.limit = count
        self._again_at = NEVER
        self._tries = 0

    def on_established(self, facts: Facts) -> Sequence[Action]:
        return self._missing(facts)

    def on_subflow_established(self, facts: Facts, local: Endpoint, remote: Endpoint) -> Sequence[Action]:
        self._tries = 0
        return ()

    def on_subflow_closed(self, facts: Facts, local: Endpoint, remote: Endpoint, reason: str) -> Sequence[Action]:
        if facts.is_client and reason not in ("local", "refused", "middlebox") and self._tries < MAX_RETRIES:
            self._again_at = min(self._again_at, facts.now + (SECOND << self._tries))
            self._tries += 1
        return ()

    def on_timer(self, facts: Facts) -> Sequence[Action]:
        self._again_at = NEVER
        return self._missing(facts)

    def deadline(self) -> int:
        return self._again_at

    def _missing(self, facts: Facts) -> list[Action]:
        local = facts.initial_local.address
        # Where the peer allows no joins to its initial address, one that it has announced has to do.
        remote = next((end for end in facts.remote_endpoints if len(end.address) == len(local)), None)
        if not facts.is_client or remote is None or local not in facts.local_addresses:
            return []
        return [OpenSubflow(Endpoint(local, 0), remote)] * max(0, self.limit - len(facts.paths))
