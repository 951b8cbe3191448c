"""Address ids of one connection (RFC 8684 §3.4): with the user-space path manager whoever steers it gives them out."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from typing import Final

from mptcp.errors import PathError
from mptcp.info import Endpoint

INITIAL: Final = 0
#: One octet, and 0 is the initial subflow's address.
MAX_ADDRESSES: Final = 255


class AddressIds:
    """Which id each local address has: the initial subflow's has 0, the others 1 to 255.

    As in the kernel, an address with a port that was asked for is another than the same one with any port (port 0). An
    address keeps its id for the life of the connection, until ``forget``. Ids are given out in order, those that were
    in use lately last: a withdrawn one may still be on its way to the peer. Not locked.
    """

    __slots__ = ("_by_local", "_last")

    def __init__(self, initial: bytes) -> None:
        self._by_local: dict[Endpoint, int] = {Endpoint(initial): INITIAL}
        self._last = 0

    def __len__(self) -> int:
        return len(self._by_local)

    def get(self, local: Endpoint) -> int | None:
        """The id of an address, if it has one."""
        return self._by_local.get(local)

    def of_address(self, address: bytes) -> list[int]:
        """Every id of an address, whatever the port."""
        return [number for local, number in self._by_local.items() if local.address == address]

    def local(self, number: int) -> Endpoint | None:
        """The address with an id."""
        return next((local for local, known in self._by_local.items() if known == number), None)

    def take(self, local: Endpoint) -> int:
        """The id of an address, a new one if it has none. PathError ENOBUFS when all are taken."""
        number = self._by_local.get(local)
        if number is None:
            number = self._by_local[local] = self._free()
        return number

    def using(self, local: Endpoint, act: Callable[[int], None], learn: Callable[[], None]) -> int:
        """``act`` with the address's id; where the kernel keeps another one (PathError EEXIST), with that, after ``learn``.
        The id."""
        fresh = local not in self._by_local
        number = self.take(local)
        try:
            act(number)
        except PathError as error:
            if error.errno != errno.EEXIST:
                if fresh:
                    self.give_back(number)
                raise
            if number != INITIAL:
                self.forget(number)
            learn()
            number = self.take(local)
            act(number)
        return number

    def learn(self, pairs: Iterable[tuple[Endpoint, int]]) -> None:
        """The kernel has given these ids to these addresses (for a subflow that the peer opened, say)."""
        for local, number in pairs:
            if INITIAL < number <= MAX_ADDRESSES and self._by_local.get(local) != INITIAL:
                holder = self.local(number)
                if holder is not None:
                    del self._by_local[holder]
                self._by_local[local] = number

    def forget(self, number: int) -> None:
        """The id is free again; that of the initial address never is."""
        local = self.local(number)
        if number != INITIAL and local is not None:
            del self._by_local[local]

    def give_back(self, number: int) -> None:
        """That id, just taken, was never told to anybody."""
        self.forget(number)
        if number == self._last:
            self._last -= 1

    def _free(self) -> int:
        used = set(self._by_local.values())
        for step in range(MAX_ADDRESSES):
            number = (self._last + step) % MAX_ADDRESSES + 1
            if number not in used:
                self._last = number
                return number
        raise PathError(f"a connection has at most {MAX_ADDRESSES} further addresses", errno.ENOBUFS)
