"""The default path manager: a subflow from every local address to every address of the peer, up to a limit."""

from __future__ import annotations

from collections.abc import Sequence

from mptcp.core.path_managers.base import Action, AnnounceAddress, Facts, OpenSubflow, PathManager, SetBackup
from mptcp.core.units import NEVER, SECOND
from mptcp.info import Endpoint

#: A pair of addresses that fails is tried again after 1, 2, 4, ... seconds, this many times.
MAX_RETRIES = 6
#: A subflow that has lived so long makes the count begin anew.
PROVEN_US = 10 * SECOND

#: After these the pair of addresses is left alone: the peer has refused, or somebody closed it on purpose.
FINAL_REASONS = frozenset(
    {"refused", "local", "peer", "reset-1", "reset-3", "reset-6", "middlebox", "checksum", "protocol"}
)

#: These are somebody's wish. The others may pass, and when there is no other path they are tried again like any failure.
WISHED = frozenset({"refused", "local", "peer"})


class FullMesh(PathManager):
    """The client opens, the server announces its further addresses; a lost subflow is opened again with back-off.

    ``limit`` counts all subflows of the connection. One address pair gets one subflow. Subflows from one of
    ``backup_addresses`` (packed) are only for when no other works. With ``standby`` that is so of every subflow that is
    opened while there is a regular one.
    """

    __slots__ = ("_retry", "backup_addresses", "limit", "standby")

    name = "fullmesh"

    def __init__(self, limit: int = 8, backup_addresses: frozenset[bytes] = frozenset(), standby: bool = False) -> None:
        self.limit = limit
        self.standby = standby
        self.backup_addresses = backup_addresses
        # pair -> (when to try again, how often so far, when it worked again)
        self._retry: dict[tuple[bytes, Endpoint], tuple[int, int, int]] = {}

    def on_established(self, facts: Facts) -> Sequence[Action]:
        if facts.is_client:
            first = [path for path in facts.paths if path.local.address in self.backup_addresses and not path.backup]
            return [*(SetBackup(path.id, True) for path in first), *self._missing(facts)]
        return [
            AnnounceAddress(Endpoint(address, 0))
            for address in facts.local_addresses
            if address != facts.initial_local.address
        ]

    def on_local_address(self, facts: Facts, address: bytes, available: bool) -> Sequence[Action]:
        if not available:
            return ()
        for pair in [pair for pair in self._retry if pair[0] == address]:
            del self._retry[pair]
        if facts.is_client:
            return self._missing(facts)
        return [AnnounceAddress(Endpoint(address, 0))] if address != facts.initial_local.address else ()

    def on_remote_address(self, facts: Facts, remote: Endpoint) -> Sequence[Action]:
        for pair in [pair for pair in self._retry if pair[1] == remote]:
            del self._retry[pair]
        return self._missing(facts) if facts.is_client else ()

    def on_subflow_established(self, facts: Facts, local: Endpoint, remote: Endpoint) -> Sequence[Action]:
        known = self._retry.get((local.address, remote))
        if known is not None:
            self._retry[local.address, remote] = (NEVER, known[1], facts.now)
        return ()

    def on_subflow_closed(self, facts: Facts, local: Endpoint, remote: Endpoint, reason: str) -> Sequence[Action]:
        if facts.is_client and len(self._retry) < 64:
            _, tries, worked = self._retry.get((local.address, remote), (NEVER, 0, NEVER))
            if facts.now - worked > PROVEN_US:
                tries = 0
            if reason in FINAL_REASONS and (facts.paths or reason in WISHED):
                # RFC 8684 §3.9.3: "if an MP_JOIN fails, it SHOULD NOT attempt to connect to the same IP address and port
                # during the lifetime of the connection, unless the other host refreshes the information with another
                # ADD_ADDR option."
                tries = MAX_RETRIES
            when = facts.now + (SECOND << tries) if tries < MAX_RETRIES else NEVER
            self._retry[local.address, remote] = (when, tries + 1, NEVER)
        return ()

    def on_timer(self, facts: Facts) -> Sequence[Action]:
        due = [pair for pair, (when, _, _) in self._retry.items() if when <= facts.now]
        actions = self._missing(facts, frozenset(due))
        for pair in due:
            self._retry[pair] = (NEVER, self._retry[pair][1], NEVER)
        return actions

    def deadline(self) -> int:
        return min((when for when, _, _ in self._retry.values()), default=NEVER) if self._retry else NEVER

    def _missing(self, facts: Facts, again: frozenset[tuple[bytes, Endpoint]] = frozenset()) -> list[Action]:
        room = self.limit - len(facts.paths)
        used = {(path.local.address, path.remote) for path in facts.paths}
        standby = self.standby and any(not path.backup and not path.stale for path in facts.paths)
        actions: list[Action] = []
        for local in facts.local_addresses:
            for remote in facts.remote_endpoints:
                pair = (local, remote)
                if len(actions) >= room:
                    return actions
                if len(local) != len(remote.address) or pair in used or (pair in self._retry and pair not in again):
                    continue
                used.add(pair)
                actions.append(OpenSubflow(Endpoint(local, 0), remote, standby or local in self.backup_addresses))
        return actions
