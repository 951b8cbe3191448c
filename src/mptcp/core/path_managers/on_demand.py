"""Further subflows when they pay: after so much data, after so long, or when the connection is saturated (REQ10)."""

from __future__ import annotations

from collections.abc import Sequence

from mptcp.core.path_managers.base import Action, Facts, PathManager
from mptcp.core.path_managers.fullmesh import FullMesh
from mptcp.core.units import KIB, NEVER
from mptcp.info import Endpoint

#: Less than this is through before a further subflow could help: about five round trips of slow start.
AFTER_BYTES = 256 * KIB


class OnDemand(PathManager):
    """Holds another path manager back until one of the conditions is true; from then on it is that one.

    ``after_bytes``: sent or received; ``after_us``: since the connection was established; ``saturated_us``: for so long
    there has always been something waiting to be sent; NEVER: that condition does not count.
    """

    # RFC 6897 §4.5: "It may make sense for multiple paths to be brought into operation only after a given period of time,
    # or if the connection is saturated."
    __slots__ = ("_after_bytes", "_after_us", "_due_at", "_inner", "_saturated_us", "_waiting_since", "watches_data")

    name = "on-demand"

    def __init__(
        self,
        inner: PathManager | None = None,
        *,
        after_bytes: int = AFTER_BYTES,
        after_us: int = NEVER,
        saturated_us: int = NEVER,
    ) -> None:
        self._inner = inner or FullMesh()
        self._after_bytes = after_bytes
        self._after_us = after_us
        self._saturated_us = saturated_us
        self._due_at = NEVER
        self._waiting_since = NEVER
        self.watches_data = True

    @property
    def limit(self) -> int:
        return getattr(self._inner, "limit", 0)

    def is_needed(self, carried_bytes: int, waiting_bytes: int, now: int) -> bool:
        if carried_bytes >= self._after_bytes:
            return True
        if self._saturated_us < NEVER:
            if not waiting_bytes:
                self._waiting_since = NEVER
            elif self._waiting_since == NEVER:
                self._waiting_since = now
            else:
                return now - self._waiting_since >= self._saturated_us
        return False

    def on_needed(self, facts: Facts) -> Sequence[Action]:
        """Also for an application that asks for further subflows itself."""
        if not self.watches_data:
            return ()
        self.watches_data = False
        self._due_at = NEVER
        return self._inner.on_established(facts)

    def on_established(self, facts: Facts) -> Sequence[Action]:
        if not self.watches_data or not facts.is_client:
            # Announcements cost one packet, and it is the peer that decides when to use them.
            self.watches_data = False
            return self._inner.on_established(facts)
        if self._after_us < NEVER:
            self._due_at = facts.now + self._after_us
        return ()

    def on_local_address(self, facts: Facts, address: bytes, available: bool) -> Sequence[Action]:
        if self.watches_data and facts.paths:
            return ()
        return self._inner.on_local_address(facts, address, available)

    def on_remote_address(self, facts: Facts, remote: Endpoint) -> Sequence[Action]:
        return () if self.watches_data else self._inner.on_remote_address(facts, remote)

    def on_subflow_established(self, facts: Facts, local: Endpoint, remote: Endpoint) -> Sequence[Action]:
        return self._inner.on_subflow_established(facts, local, remote)

    def on_subflow_closed(self, facts: Facts, local: Endpoint, remote: Endpoint, reason: str) -> Sequence[Action]:
        if self.watches_data and not facts.paths:
            self._inner.on_subflow_closed(facts, local, remote, reason)
            return self.on_needed(facts)  # the only path is gone: that is demand enough
        return self._inner.on_subflow_closed(facts, local, remote, reason)

    def on_subflow_failing(self, facts: Facts, subflow_id: int, timeouts: int) -> Sequence[Action]:
        if self.watches_data:
            return self.on_needed(facts) if timeouts > 1 else ()
        return self._inner.on_subflow_failing(facts, subflow_id, timeouts)

    def on_timer(self, facts: Facts) -> Sequence[Action]:
        if self._due_at <= facts.now:
            return self.on_needed(facts)
        return self._inner.on_timer(facts)

    def deadline(self) -> int:
        return min(self._due_at, self._inner.deadline())
