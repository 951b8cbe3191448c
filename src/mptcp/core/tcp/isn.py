"""Initial sequence numbers that nobody can guess (RFC 6528)."""

from __future__ import annotations

import hashlib

from mptcp.core.entropy import Entropy
from mptcp.core.wire.sequence import MASK32
from mptcp.info import Endpoint


class InitialSequenceNumbers:
    """RFC 6528 §3: ``ISN = M + F(localip, localport, remoteip, remoteport, secretkey)``; one per host."""

    __slots__ = ("_secret",)

    def __init__(self, entropy: Entropy) -> None:
        self._secret = entropy.octets(32)

    def number(self, local: Endpoint, remote: Endpoint, now: int) -> int:
        """For a connection of these four that starts now (microseconds). M ticks every 4 microseconds."""
        text = b"%b%d>%b%d" % (local.address, local.port, remote.address, remote.port)
        hashed = hashlib.blake2b(text, key=self._secret, digest_size=4).digest()
        return (now // 4 + int.from_bytes(hashed, "big")) & MASK32
