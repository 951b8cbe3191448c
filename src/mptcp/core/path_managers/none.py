"""No further subflows by themselves (REQ10: "never"); the application and the peer may still open some."""

from __future__ import annotations

from mptcp.core.path_managers.base import PathManager


class NoSubflows(PathManager):
    """Opens nothing, announces nothing."""

    __slots__ = ()

    name = "none"
