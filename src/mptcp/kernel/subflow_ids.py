"""Numbers of a connection's subflows that stay, whatever the kernel does with its own.

The kernel numbers subflows from 1, but it tells the number only after a subflow has been opened, sets that of a dead
initial one to 0, tells none at all before Linux 6.5, and names subflows in its events by their addresses. So numbers are
ours: mostly the same as the kernel's, given out when a subflow is asked for or first seen. The low eight bits of the
numbers in use differ (draft-hesmans-mptcp-socket-03 has one octet for them), and are 0 for none.
"""

from __future__ import annotations

import threading
from typing import Final

from mptcp.forking import freed_in_child
from mptcp.info import Endpoint
from mptcp.kernel.sockopt import MAX_SUBFLOWS, SubflowEntry

#: Of subflows that are over, so many are remembered: their last event may still be on its way.
MAX_PAST: Final = 64
INITIAL: Final = 1


class _Known:
    __slots__ = ("kernel_id", "local", "number", "remote")

    def __init__(self, number: int, local: Endpoint, remote: Endpoint, kernel_id: int) -> None:
        self.number, self.local, self.remote, self.kernel_id = number, local, remote, kernel_id

    def fits(self, local: Endpoint, remote: Endpoint) -> bool:
        return self.remote == remote and (
            self.local == local or (not self.local.port and self.local.address == local.address)
        )


class SubflowIds:
    """Of one connection. Any thread may ask."""

    __slots__ = ("_by_kernel_id", "_by_number", "_lock", "_next", "_past")

    def __init__(self) -> None:
        self._by_number: dict[int, _Known] = {}
        self._by_kernel_id: dict[int, int] = {}
        self._past: list[_Known] = []
        self._next = INITIAL
        self._lock = freed_in_child(threading.Lock())

    def expect(self, local: Endpoint, remote: Endpoint) -> int:
        """The number of a subflow that is about to be opened; ``local.port`` may be 0 as long as nobody knows it."""
        with self._lock:
            return self._add(local, remote, 0)

    def see(self, entry: SubflowEntry) -> int:
        """The number of a subflow that the kernel lists (not of one without addresses)."""
        number = self._by_kernel_id.get(entry.id)
        if number is not None:
            return number
        with self._lock:
            return self._find_or_add(entry.local, entry.remote, entry.id)

    def number(self, local: Endpoint, remote: Endpoint) -> int:
        """The number of the subflow with these addresses and ports: one that lives, else one that did, else a new one."""
        with self._lock:
            known = self._find(local, remote)
            if known is None:
                known = next((past for past in reversed(self._past) if past.fits(local, remote)), None)
            return known.number if known is not None else self._add(local, remote, 0)

    def find(self, local: Endpoint, remote: Endpoint) -> int | None:
        """The number of a living (or expected) subflow with these addresses and ports."""
        with self._lock:
            known = self._find(local, remote)
            return known.number if known is not None else None

    def endpoints(self, number: int) -> tuple[Endpoint, Endpoint] | None:
        """(local, remote) of a living subflow."""
        known = self._by_number.get(number)
        return (known.local, known.remote) if known is not None else None

    def forget(self, number: int) -> None:
        """That subflow is over."""
        with self._lock:
            self._forget(number)

    def withdraw(self, number: int) -> None:
        """That subflow, just expected, was never asked of the kernel; its number may be given out again."""
        with self._lock:
            self._by_number.pop(number, None)
            if self._next == number + 1:
                self._next = number

    def living(self) -> list[int]:
        """The numbers in use, in order."""
        with self._lock:
            return sorted(self._by_number)

    # --- inside ------------------------------------------------------------------------------------------------------
    def _forget(self, number: int) -> None:
        known = self._by_number.pop(number, None)
        if known is not None:
            self._by_kernel_id.pop(known.kernel_id, None)
            self._past = [*self._past[1 - MAX_PAST :], known]

    def _find(self, local: Endpoint, remote: Endpoint) -> _Known | None:
        expected: _Known | None = None
        for known in self._by_number.values():
            if known.local == local and known.remote == remote:
                return known
            if expected is None and known.fits(local, remote):
                expected = known
        if expected is not None:
            expected.local = local
        return expected

    def _find_or_add(self, local: Endpoint, remote: Endpoint, kernel_id: int) -> int:
        known = self._find(local, remote)
        if known is not None and kernel_id and known.kernel_id not in {0, kernel_id}:
            # The same addresses and ports again: that one is over.
            self._forget(known.number)
            known = None
        if known is None:
            return self._add(local, remote, kernel_id)
        self._name(known, kernel_id)
        return known.number

    def _add(self, local: Endpoint, remote: Endpoint, kernel_id: int) -> int:
        if len(self._by_number) >= MAX_SUBFLOWS:
            self._forget(min(self._by_number))
        taken = {number & 0xFF for number in self._by_number}
        number = self._next
        # With more than 255 at a time nothing in one octet can be different.
        while len(taken) < 0xFF and (
            number & 0xFF in taken or not number & 0xFF or (number > 1 and number & 0xFF == 1)
        ):
            number += 1
        self._next = number + 1
        known = self._by_number[number] = _Known(number, local, remote, 0)
        self._name(known, kernel_id)
        return number

    def _name(self, known: _Known, kernel_id: int) -> None:
        if kernel_id:
            known.kernel_id = kernel_id
            self._by_kernel_id[kernel_id] = known.number
