"""One path, and a second one only once the first has failed: what radios and meters that cost money ask for."""

from __future__ import annotations

from collections.abc import Sequence

from mptcp.core.path_managers.base import Action, Facts
from mptcp.core.path_managers.fullmesh import FullMesh
from mptcp.info import Endpoint

#: Retransmission timeouts in a row after which a subflow has failed, though nobody has closed it.
FAILED_TIMEOUTS = 2


class Backup(FullMesh):
    """Break before make, or nearly: the next pair of addresses is tried when the only subflow times out or ends."""

    __slots__ = ()

    name = "backup"

    def on_established(self, facts: Facts) -> Sequence[Action]:
        return () if facts.is_client else super().on_established(facts)

    def on_local_address(self, facts: Facts, address: bytes, available: bool) -> Sequence[Action]:
        actions = super().on_local_address(facts, address, available)
        return self._one(facts, actions) if facts.is_client else actions

    def on_remote_address(self, facts: Facts, remote: Endpoint) -> Sequence[Action]:
        return self._one(facts, super().on_remote_address(facts, remote))

    def on_subflow_failing(self, facts: Facts, subflow_id: int, timeouts: int) -> Sequence[Action]:
        if timeouts < FAILED_TIMEOUTS or not facts.is_client or len(facts.paths) > 1:
            return ()
        return self._missing(facts)[:1]

    def on_subflow_closed(self, facts: Facts, local: Endpoint, remote: Endpoint, reason: str) -> Sequence[Action]:
        super().on_subflow_closed(facts, local, remote, reason)
        return self._one(facts, self._missing(facts)) if facts.is_client else ()

    def on_timer(self, facts: Facts) -> Sequence[Action]:
        return self._one(facts, super().on_timer(facts))

    @staticmethod
    def _one(facts: Facts, actions: Sequence[Action]) -> Sequence[Action]:
        """Nothing while a subflow is there, else the first."""
        return () if facts.paths else actions[:1]
