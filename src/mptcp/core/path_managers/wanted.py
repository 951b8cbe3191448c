"""So many subflows, no more and no fewer (REQ7: "a change in the number of subflows in use")."""

from __future__ import annotations

from collections.abc import Sequence

from mptcp.core.path_managers.base import Action, CloseSubflow, Facts, OpenSubflow
from mptcp.core.path_managers.fullmesh import FullMesh
from mptcp.info import Endpoint, PathInfo


class Wanted(FullMesh):
    """Different pairs of addresses first; if there are fewer than are wanted, several subflows between the same ones.

    Those beyond the number are closed, the worst first: stale ones, backups, the slowest. A server opens none (its peer
    is behind whatever is on the way); it announces its addresses, and closes what is too many.
    """

    __slots__ = ()

    name = "wanted"

    def on_established(self, facts: Facts) -> Sequence[Action]:
        excess = len(facts.paths) - self.limit
        if excess > 0:
            worst = sorted(facts.paths, key=_goodness)[:excess]
            return [CloseSubflow(path.id) for path in worst]
        return super().on_established(facts)

    def _missing(self, facts: Facts, again: frozenset[tuple[bytes, Endpoint]] = frozenset()) -> list[Action]:
        actions = super()._missing(facts, again)
        room = self.limit - len(facts.paths) - len(actions)
        pairs = [
            (local, remote)
            for local in facts.local_addresses
            for remote in facts.remote_endpoints
            if len(local) == len(remote.address) and ((local, remote) not in self._retry or (local, remote) in again)
        ]
        for index in range(room if pairs else 0):
            local, remote = pairs[index % len(pairs)]
            actions.append(OpenSubflow(Endpoint(local, 0), remote, local in self.backup_addresses))
        return actions


def _goodness(path: PathInfo) -> tuple[bool, bool, bool, int, int]:
    return not path.stale, not path.backup, path.srtt_us > 0, -path.srtt_us, -path.id
