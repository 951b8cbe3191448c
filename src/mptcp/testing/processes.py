"""A peer in a process of its own: started with JSON, heard by lines of JSON, always ended."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, Self


class Peer:
    """A running peer script. ``results`` grows by one dict a finished connection; see ``kernel_peer.Transfer``."""

    __slots__ = ("_changed", "_errors", "_process", "_reader", "events", "port")

    def __init__(self, script: str, arguments: Mapping[str, Any], pass_fds: Sequence[int] = ()) -> None:
        self.port = 0
        self.events: list[dict[str, Any]] = []
        self._changed = threading.Condition()
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  (closed with the peer)
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", script, json.dumps(arguments)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, pass_fds=tuple(pass_fds),
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with self._changed:
                self.events.append(json.loads(line))
                self._changed.notify_all()
        self._process.wait()
        with self._changed:
            self.events.append({"event": "ended", "status": self._process.returncode})
            self._changed.notify_all()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def results(self) -> list[dict[str, Any]]:
        """What the finished connections reported, in the order in which they ended."""
        with self._changed:
            return [event for event in self.events if event["event"] == "done"]

    def wait_event(self, name: str, timeout_s: float = 30.0, count: int = 1) -> dict[str, Any]:
        """The ``count``-th event of that name; TimeoutError, or RuntimeError with its last words if the peer ended."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while True:
                found = [event for event in self.events if event["event"] == name]
                if len(found) >= count:
                    return found[count - 1]
                if self.events and self.events[-1]["event"] == "ended":
                    raise RuntimeError(f"the peer ended before it was {name!r}: {self._last_words()}")
                left = deadline - time.monotonic()
                if left <= 0 or not self._changed.wait(left):
                    raise TimeoutError(f"the peer was not {name!r} within {timeout_s} s; it said {self.events}")

    def result(self, timeout_s: float = 60.0) -> dict[str, Any]:
        """The report of the first connection: received, sent, sha256, error, is_mptcp, info, longest_gap_s, ..."""
        return self.wait_event("done", timeout_s)

    def wait_results(self, count: int, timeout_s: float = 60.0) -> list[dict[str, Any]]:
        """The reports of ``count`` connections."""
        self.wait_event("done", timeout_s, count)
        return self.results

    def enough(self) -> None:
        """To a ``kernel_peer`` with ``send_bytes`` UNTIL_ENOUGH: it sends no more than it has begun."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"enough\n")
        self._process.stdin.flush()

    def _last_words(self) -> str:
        self._errors.seek(0)
        return self._errors.read().decode(errors="replace")[-2000:].strip()

    def close(self) -> None:
        """Ends the process, at once."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._reader.join(5)
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream is not None:
                stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
