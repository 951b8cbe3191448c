"""The one source of randomness of a host: seeded, so that the same seed gives the same packets."""

import hashlib


class Entropy:
    """A deterministic stream of unpredictable bytes (BLAKE2b in counter mode).

    ``seed`` is any byte string or integer. A simulation passes a fixed one; a runtime passes ``os.urandom(32)``, and
    then keys and initial sequence numbers are as hard to guess as the seed.
    """

    __slots__ = ("_counter", "_key", "_pool")

    def __init__(self, seed: bytes | int) -> None:
        if isinstance(seed, int):
            seed = seed.to_bytes((seed.bit_length() + 8) // 8, "big", signed=True)
        self._key = hashlib.blake2b(seed, digest_size=32).digest()
        self._counter = 0
        self._pool = b""

    def octets(self, count: int) -> bytes:
        """``count`` random octets."""
        while len(self._pool) < count:
            block = hashlib.blake2b(self._counter.to_bytes(8, "big"), key=self._key, digest_size=64).digest()
            self._counter += 1
            self._pool += block
        result, self._pool = self._pool[:count], self._pool[count:]
        return result

    def bits(self, count: int) -> int:
        """An integer of ``count`` random bits."""
        octets = (count + 7) // 8
        return int.from_bytes(self.octets(octets), "big") >> (8 * octets - count)

    def below(self, limit: int) -> int:
        """An integer, uniform over ``0 <= n < limit``."""
        bits = (limit - 1).bit_length()
        if bits == 0:
            return 0
        while True:
            value = self.bits(bits)
            if value < limit:
                return value

    def fraction(self) -> float:
        """A float, uniform over ``0 <= x < 1``."""
        return self.bits(53) / (1 << 53)

    def child(self, name: str) -> "Entropy":
        """An independent stream for one part of a system, so that a change in one part leaves the others alone."""
        return Entropy(self._key + name.encode())
