"""Address ids of one connection (RFC 8684 §3.4): with the user-space path manager whoever steers it gives them out."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping
from typing import Final

from mptcp.errors import PathError

INITIAL: Final = 0
#: One octet, and 0 is the initial subflow's address.
MAX_ADDRESSES: Final = 255


class AddressIds:
    """Which id each local address has. The address of the initial subflow has 0, the others 1 to 255.

    An address keeps its id for the life of the connection (the peer may remember it), until ``forget``. Ids are given out
    in order, the longest unused ones last: one that has just been withdrawn may still be on its way to the peer.
    """

    __slots__ = ("_by_address", "_last")

    def __init__(self, initial: bytes, known: Mapping[bytes, int] | None = None) -> None:
        self._by_address: dict[bytes, int] = {initial: INITIAL}
        self._last = 0
        for address, number in (known or {}).items():
            self.learn(address, number)

    def __len__(self) -> int:
        return len(self._by_address)

    def get(self, address: bytes) -> int | None:
        """The id of an address, if it has one."""
        return self._by_address.get(address)

    def address(self, number: int) -> bytes | None:
        """The address with an id."""
        return next((address for address, known in self._by_address.items() if known == number), None)

    def take(self, address: bytes) -> int:
        """The id of an address, a new one if it has none. PathError ENOBUFS when all are taken."""
        number = self._by_address.get(address)
        if number is None:
            number = self._by_address[address] = self._free()
        return number

    def learn(self, address: bytes, number: int) -> None:
        """The kernel has given this id to this address (the peer opened a subflow to it)."""
        if not INITIAL < number <= MAX_ADDRESSES or self._by_address.get(address) == INITIAL:
            return
        holder = self.address(number)
        if holder is not None:
            del self._by_address[holder]
        self._by_address[address] = number

    def learn_all(self, pairs: Iterable[tuple[bytes, int]]) -> None:
        for address, number in pairs:
            self.learn(address, number)

    def forget(self, address: bytes) -> None:
        """The id is free again; that of the initial address never is."""
        if self._by_address.get(address):
            del self._by_address[address]

    def _free(self) -> int:
        used = set(self._by_address.values())
        for step in range(1, MAX_ADDRESSES + 1):
            number = (self._last + step - 1) % MAX_ADDRESSES + 1
            if number not in used:
                self._last = number
                return number
        raise PathError(f"a connection has at most {MAX_ADDRESSES} further addresses", errno.ENOBUFS)
