"""What a path manager is: told of addresses and subflows, it answers with what to open, close and announce."""

from __future__ import annotations

from abc import ABC
from collections.abc import Sequence
from dataclasses import dataclass, field

from mptcp.info import Endpoint, PathInfo


@dataclass(frozen=True, slots=True)
class OpenSubflow:
    local: Endpoint  # port 0: any
    remote: Endpoint
    backup: bool = False


@dataclass(frozen=True, slots=True)
class CloseSubflow:
    subflow_id: int
    reset: bool = False


@dataclass(frozen=True, slots=True)
class AnnounceAddress:
    local: Endpoint  # port 0: the connection's own port


@dataclass(frozen=True, slots=True)
class WithdrawAddress:
    address: bytes


@dataclass(frozen=True, slots=True)
class SetBackup:
    subflow_id: int
    backup: bool


Action = OpenSubflow | CloseSubflow | AnnounceAddress | WithdrawAddress | SetBackup


@dataclass(slots=True)
class Facts:
    """What a path manager sees, fresh at every call."""

    is_client: bool
    local_addresses: Sequence[bytes]  # of this host, usable by this connection, in order of preference
    remote_endpoints: Sequence[Endpoint]  # the initial one first (unless the peer forbids joins to it), then announced
    initial_local: Endpoint
    initial_remote: Endpoint
    paths: Sequence[PathInfo] = field(default_factory=list)  # open and opening subflows
    now: int = 0


class PathManager(ABC):
    """One instance per connection. Each method returns the actions to take; the default is to do nothing."""

    __slots__ = ()

    name = ""
    #: While True, ``is_needed`` is asked whenever data may have moved.
    watches_data: bool = False

    def on_established(self, facts: Facts) -> Sequence[Action]:
        """The connection may now carry further subflows (fully established)."""
        return ()

    def on_local_address(self, facts: Facts, address: bytes, available: bool) -> Sequence[Action]:
        """An address of this host came or went; what used a vanished one is closed without being asked."""
        return ()

    def on_remote_address(self, facts: Facts, remote: Endpoint) -> Sequence[Action]:
        """The peer announced ``remote``."""
        return ()

    def on_subflow_established(self, facts: Facts, local: Endpoint, remote: Endpoint) -> Sequence[Action]:
        """A further subflow works; the first one is in ``facts.paths`` of ``on_established``."""
        return ()

    def on_subflow_closed(self, facts: Facts, local: Endpoint, remote: Endpoint, reason: str) -> Sequence[Action]:
        """A subflow ended, by either side or by failure; ``facts.paths`` no longer has it."""
        return ()

    def on_subflow_failing(self, facts: Facts, subflow_id: int, timeouts: int) -> Sequence[Action]:
        """A subflow has had ``timeouts`` retransmission timeouts in a row; it is still open."""
        return ()

    def is_needed(self, carried_bytes: int, waiting_bytes: int, now: int) -> bool:
        """Whether to call ``on_needed``: octets of the stream sent and received so far, and those that wait to be sent."""
        return False

    def on_needed(self, facts: Facts) -> Sequence[Action]:
        """What ``is_needed`` has said."""
        return ()

    def on_timer(self, facts: Facts) -> Sequence[Action]:
        """``deadline`` has come."""
        return ()

    def deadline(self) -> int:
        """When to call ``on_timer``; NEVER by default."""
        return 1 << 62
