"""One UDP path: from one of our sockets to one of a peer's. What is known of it, its pings, and its MTU."""

from __future__ import annotations

from enum import Enum
from typing import Final

from mptcp.core.units import MILLISECOND, NEVER, SECOND
from mptcp.links import udp_frames as frames
from mptcp.links.udp_node import Peer

#: Pings of one path that wait for their answer.
MAX_PINGS: Final = 32
#: A probe of the path MTU that fails this often has shown that the path is narrower (RFC 8899 §5.1.2: MAX_PROBES).
MAX_PROBE_FAILURES: Final = 3
#: A probe on a path from which nothing at all comes is repeated this often.
MAX_PROBE_TRIES: Final = 8
#: RFC 8899 §5.1.1: PMTU_RAISE_TIMER, after which a larger size is tried again.
RAISE_US: Final = 600 * SECOND
#: A ping is given up after this time, or four round-trip times; a repeated one later.
PING_US: Final = 200 * MILLISECOND
#: The same where nothing is known of the round-trip time yet.
FIRST_PING_US: Final = 500 * MILLISECOND
#: What is tried when the largest size does not pass, as lengths of the outer packet: common links and tunnels.
PLATEAUS: Final = (32_000, 16_384, 9_000, 4_352, 1_500, 1_492, 1_460, 1_420, 1_400, 1_380)


class Purpose(Enum):
    """Why a ping was sent."""

    KEEPALIVE = "keepalive"
    PROBE = "probe"  # of the path MTU
    CHALLENGE = "challenge"  # of an endpoint from which a frame with the right tag came


class Ping:
    """A ping that was not answered yet; ``deadline`` NEVER: it was given up, but the answer would still tell something."""

    __slots__ = ("deadline", "length", "purpose", "sent_us", "where")

    def __init__(self, purpose: Purpose, where: bytes, length: int, now: int, deadline: int) -> None:
        self.purpose, self.where, self.length = purpose, where, length
        self.sent_us, self.deadline = now, deadline


class Path:
    """``mtu``: the longest inner packet; ``where``: the peer's confirmed endpoint (``struct sockaddr``).

    Confirmed means that something which cannot be guessed was sent there and came back.
    """

    __slots__ = (
        "address", "challenged_us", "greeted_us", "header", "heard_us", "is_fragmented", "is_initiator", "limit",
        "mtu", "number", "partial_header", "peer", "pings", "probe_failures", "probe_tries", "raise_at",
        "sent_us", "sizes", "srtt_us", "tags", "unanswered", "where",
    )  # fmt: skip

    def __init__(self, address: bytes, peer: Peer, number: int, where: bytes, tag: int, now: int) -> None:
        self.address, self.peer, self.number, self.where = address, peer, number, where
        self.set_tag(tag)
        self.tags: tuple[int, ...] = ()  # those the peer sends with
        self.is_initiator = False  # we have said hello: keeping the path alive is our business
        self.mtu = self.limit = frames.BASE_MTU
        self.is_fragmented = False  # the way there does not carry 1,280 octets in one piece
        self.heard_us = self.sent_us = self.greeted_us = now
        self.challenged_us = -SECOND
        self.srtt_us = 0
        self.pings: dict[bytes, Ping] | None = None
        self.unanswered = 0  # keepalives in a row
        self.sizes: list[int] | None = None  # of inner packets, being tried now
        self.probe_failures = self.probe_tries = 0
        self.raise_at = NEVER

    def set_tag(self, tag: int) -> None:
        """The tag that the peer wants to see in what we send."""
        self.header = frames.header(frames.DATA, tag)
        self.partial_header = frames.header(frames.DATA, tag, frames.PARTIAL_CHECKSUM)

    @property
    def tag(self) -> int:
        return int.from_bytes(self.header[4:8], "big")

    @property
    def ping_timeout_us(self) -> int:
        first = max(PING_US, 4 * self.srtt_us) if self.srtt_us else FIRST_PING_US
        return first << min(self.probe_tries, 3)

    def add_ping(self, nonce: bytes, ping: Ping) -> bool:
        pings = self.pings
        if pings is None:
            pings = self.pings = {}
        if len(pings) >= MAX_PINGS:
            late = next((known for known, other in pings.items() if other.deadline == NEVER), None)
            if late is None:
                return False
            del pings[late]
        pings[nonce] = ping
        return True

    def sample_rtt(self, rtt_us: int) -> None:
        # RFC 6298 §2.3, with alpha 1/8
        self.srtt_us = rtt_us if not self.srtt_us else (7 * self.srtt_us + rtt_us) // 8

    # --- the path MTU (RFC 8899) --------------------------------------------------------------------------------------
    def set_limit(self, limit: int, *, is_raise: bool = False) -> bool:
        """The longest inner packet that this machine believes in; used until it proves too long, unless a smaller one
        has been proved already (``is_raise``). Whether to probe it."""
        self.is_fragmented = limit < frames.BASE_MTU
        self.limit = max(limit, frames.BASE_MTU)
        if not is_raise or self.mtu > self.limit:
            self.mtu = self.limit
        self.raise_at = NEVER
        self.probe_failures = self.probe_tries = 0
        # RFC 8899 §5.2: the base is confirmed by the handshake; a size above it is searched for.
        self.sizes = [self.limit] if self.limit > frames.BASE_MTU else None
        return self.sizes is not None

    def narrow(self, limit: int, now: int) -> None:
        """The system says that no more than ``limit`` fits."""
        self.is_fragmented = limit < frames.BASE_MTU
        self.mtu = max(min(limit, self.mtu), frames.BASE_MTU)
        self.sizes = None
        self.raise_at = now + RAISE_US

    def probe_passed(self, size: int, now: int) -> None:
        """An answer, perhaps a late one, to a probe of ``size`` octets inside."""
        if not self.mtu <= size <= self.limit:
            return
        self.mtu = size
        self.sizes = [larger for larger in self.sizes or () if larger > size] or None
        self.raise_at = now + RAISE_US if size < self.limit else NEVER

    def probes_failed(self, was_heard: bool, overhead: int, now: int) -> bool:
        """No probe of ``sizes`` was answered in time; ``was_heard``: other frames were. ``overhead``: of the outer
        headers. Whether to send ``sizes`` (perhaps others now) again."""
        sizes = self.sizes
        if sizes is None:
            return False
        self.probe_tries += 1
        self.probe_failures += was_heard
        # Where nothing is heard at all, lost probes say nothing of sizes.
        if self.probe_failures < MAX_PROBE_FAILURES and self.probe_tries < MAX_PROBE_TRIES:
            return True
        is_proof = self.probe_failures >= MAX_PROBE_FAILURES
        self.probe_failures = self.probe_tries = 0
        self.sizes = None
        if is_proof and self.limit in sizes:
            if self.mtu == self.limit:
                self.mtu = frames.BASE_MTU  # data must pass while the search goes on
            # All at once: the largest that arrives is it, and one round-trip time finds it.
            candidates = [plateau - overhead for plateau in PLATEAUS]
            self.sizes = [size for size in candidates if self.mtu < size < self.limit] or None
        if self.sizes is None:
            self.raise_at = now + RAISE_US
        return self.sizes is not None
