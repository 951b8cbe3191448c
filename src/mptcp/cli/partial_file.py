"""A download on disk that can be interrupted at any octet: the part itself, and beside it what proves it is the same file.

``NAME.part`` holds the octets so far, ``NAME.part.json`` the URL and the server's validator. Both go when the download
is complete and ``NAME`` takes their place.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
from pathlib import Path

from mptcp.errors import ConfigurationError

#: Larger notes are not ours.
MAX_NOTE_BYTES = 64 * 1024
HASH_CHUNK_BYTES = 1 << 20


class PartialFile:
    """``open`` it, ``append`` to it, ``finish`` it. Whatever happens in between, the part is a prefix of the file."""

    __slots__ = ("_descriptor", "note", "part", "size", "target")

    def __init__(self, target: Path) -> None:
        self.target = target
        self.part = target.with_name(target.name + ".part")
        self.note = target.with_name(target.name + ".part.json")
        self.size = 0
        self._descriptor = -1

    def open(self) -> None:
        """Opens or creates the part. ConfigurationError if another process is at it; OSError as the system says."""
        self._descriptor = os.open(self.part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._descriptor)
            self._descriptor = -1
            raise ConfigurationError(f"another process is writing {self.part}") from None
        self.size = os.lseek(self._descriptor, 0, os.SEEK_END)

    def validator(self, url: str) -> str:
        """The validator that goes with the octets on disk; "" when they cannot be continued (another URL, no note)."""
        try:
            with self.note.open("rb") as stream:
                note = json.loads(stream.read(MAX_NOTE_BYTES))
        except (OSError, ValueError):
            return ""
        if not isinstance(note, dict) or note.get("url") != url:
            return ""
        validator = note.get("validator")
        # What stands in a file becomes a header line: nothing but printable characters may get there.
        return validator if isinstance(validator, str) and validator.isascii() and validator.isprintable() else ""

    def restart(self, url: str, validator: str) -> None:
        """Empties the part and notes what it is going to be a part of; without a validator it cannot be continued."""
        os.ftruncate(self._descriptor, 0)
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        self.size = 0
        if validator:
            self.note.write_text(json.dumps({"url": url, "validator": validator}), encoding="utf-8")
        else:
            self.note.unlink(missing_ok=True)

    def append(self, data: memoryview) -> None:
        while data:
            written = os.write(self._descriptor, data)
            self.size += written
            data = data[written:]

    def sha256(self) -> str:
        """Of what is on disk now."""
        digest = hashlib.sha256()
        offset = 0
        while chunk := os.pread(self._descriptor, HASH_CHUNK_BYTES, offset):
            digest.update(chunk)
            offset += len(chunk)
        return digest.hexdigest()

    def finish(self) -> None:
        """The part becomes the file."""
        os.replace(self.part, self.target)
        self.note.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """Leaves the part where it is; an empty one goes."""
        if self._descriptor >= 0:
            if self.size == 0:
                with contextlib.suppress(OSError):
                    if self.part.stat().st_size == 0:
                        self.part.unlink()
                        self.note.unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = -1
