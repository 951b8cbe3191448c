"""The path managers by name."""

from __future__ import annotations

from collections.abc import Callable

from mptcp.core.path_managers.backup import Backup
from mptcp.core.path_managers.base import PathManager
from mptcp.core.path_managers.fullmesh import FullMesh
from mptcp.core.path_managers.ndiffports import Ndiffports
from mptcp.core.path_managers.none import NoSubflows
from mptcp.core.path_managers.on_demand import OnDemand
from mptcp.core.path_managers.restore import Restore

#: name -> how one is made for a connection.
PATH_MANAGERS: dict[str, Callable[[], PathManager]] = {
    "fullmesh": FullMesh,
    "backup": Backup,
    "ndiffports": Ndiffports,
    "on-demand": OnDemand,
    "restore": Restore,
    "none": NoSubflows,
}
