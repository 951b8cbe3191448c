"""Whose a socket is: processes by the inode of a socket they have open, as far as this process may look."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection
from pathlib import Path
from typing import Final, NamedTuple

_PROC: Final = Path("/proc")
#: Processes that share one socket, as far as they are told.
MAX_HOLDERS: Final = 8


class Process(NamedTuple):
    pid: int
    name: str

    def __str__(self) -> str:
        return f"{self.name} ({self.pid})"


def holders(inodes: Collection[int], proc: Path = _PROC) -> dict[int, list[Process]]:
    """Which processes have the sockets with these inodes open. Those of other users are only seen by root."""
    wanted = {f"socket:[{inode}]": inode for inode in inodes if inode}
    found: dict[int, list[Process]] = {}
    if not wanted:
        return found
    for pid in sorted(int(name) for name in _names(proc) if name.isdecimal()):
        process: Process | None = None
        mine: set[int] = set()
        for descriptor in _names(proc / str(pid) / "fd"):
            try:
                inode = wanted.get(os.readlink(proc / str(pid) / "fd" / descriptor))
            except OSError:
                continue
            if inode is None or inode in mine:
                continue
            mine.add(inode)
            process = process or Process(pid, process_name(pid, proc))
            of_socket = found.setdefault(inode, [])
            if len(of_socket) < MAX_HOLDERS:
                of_socket.append(process)
    return found


def process_name(pid: int, proc: Path = _PROC) -> str:
    """The name of a process as ``ps`` shows it; "?" if it is gone. No control characters, whatever it calls itself."""
    name = ""
    with contextlib.suppress(OSError):
        name = (proc / str(pid) / "comm").read_bytes().decode("utf-8", "replace").strip()
    return "".join(c if c.isprintable() else "?" for c in name) or "?"


def _names(directory: Path) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:
        return []
