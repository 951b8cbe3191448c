"""Opens nothing of its own accord: what was lost is opened again, and that is all."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mptcp.core.path_managers.base import Action, Facts, OpenSubflow
from mptcp.core.path_managers.fullmesh import FullMesh
from mptcp.core.units import NEVER
from mptcp.info import Endpoint


class Restore(FullMesh):
    """For connections whose subflows somebody else decides on, a program or the kernel: a failed subflow is opened again
    between the same addresses, with the back-off of ``FullMesh``, and at once when its address comes back."""

    __slots__ = ()

    name = "restore"

    def on_established(self, facts: Facts) -> Sequence[Action]:
        return ()

    def on_local_address(self, facts: Facts, address: bytes, available: bool) -> Sequence[Action]:
        return self._again(facts, lambda pair: pair[0] == address) if available and facts.is_client else ()

    def on_remote_address(self, facts: Facts, remote: Endpoint) -> Sequence[Action]:
        return self._again(facts, lambda pair: pair[1] == remote) if facts.is_client else ()

    def on_timer(self, facts: Facts) -> Sequence[Action]:
        return self._again(facts, lambda pair: self._retry[pair][0] <= facts.now)

    def _again(self, facts: Facts, chosen: Callable[[tuple[bytes, Endpoint]], bool]) -> list[Action]:
        """What was lost and is ``chosen``, where both addresses can still be used."""
        used = {(path.local.address, path.remote) for path in facts.paths}
        actions: list[Action] = []
        for pair in [pair for pair in self._retry if chosen(pair)]:
            local, remote = pair
            self._retry[pair] = (NEVER, self._retry[pair][1], self._retry[pair][2])
            usable = local in facts.local_addresses and pair not in used
            if usable and len(actions) < self.limit - len(facts.paths):
                actions.append(OpenSubflow(Endpoint(local, 0), remote, local in self.backup_addresses))
        return actions
