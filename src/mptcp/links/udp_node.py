"""Who we are to our peers over UDP, and who they are to us: identities, keys, cookies, known endpoints."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from mptcp.core.counters import Counters
from mptcp.core.entropy import Entropy
from mptcp.core.units import SECOND
from mptcp.info import Endpoint
from mptcp.links import udp_frames as frames

if TYPE_CHECKING:
    from mptcp.links.udp_paths import Paths

#: Peers (other nodes) that are known at a time; further ones are refused.
MAX_PEERS: Final = 4096
#: Sockets known of one peer, and endpoints of each.
MAX_PEER_SOCKETS: Final = 32
MAX_SOCKET_ENDPOINTS: Final = 4
#: Paths to one peer, over all sockets of ours.
MAX_PEER_PATHS: Final = 128
#: A peer without a path is forgotten after this time, or as soon as its place is needed.
PEER_IDLE_US: Final = 3600 * SECOND
#: A peer that has never proved anything is forgotten after this time.
PEER_UNPROVEN_US: Final = 30 * SECOND
#: A cookie is good until the end of the period after the one it was made in.
COOKIE_PERIOD_US: Final = 30 * SECOND


def monotonic_us() -> int:
    return time.monotonic_ns() // 1000


class Peer:
    """Another node: the key we share with it, and where its sockets are."""

    __slots__ = ("endpoints", "is_proven", "key", "node", "paths", "used_us")

    def __init__(self, node: bytes, key: bytes, now: int) -> None:
        self.node, self.key = node, key
        self.endpoints: dict[int, list[Endpoint]] = {}  # socket number -> where it can be reached, best first
        self.is_proven = False  # it has shown that it has the key
        self.paths = 0
        self.used_us = now

    def learn(self, number: int, endpoint: Endpoint, *, first: bool = False) -> None:
        """The best one ``first``: then the oldest of too many is forgotten."""
        known = self.endpoints.get(number)
        if known is None:
            if len(self.endpoints) >= MAX_PEER_SOCKETS:
                return
            known = self.endpoints[number] = []
        if first:
            if endpoint in known:
                known.remove(endpoint)
            known.insert(0, endpoint)
            del known[MAX_SOCKET_ENDPOINTS:]
        elif endpoint not in known and len(known) < MAX_SOCKET_ENDPOINTS:
            known.append(endpoint)

    def knows(self, endpoint: Endpoint) -> bool:
        return any(endpoint in endpoints for endpoints in self.endpoints.values())


class Introduction:
    """The search for the node behind some UDP endpoints: the first that answers ends it. ``on_done`` is called when it
    is over, with the node's lock, by whoever has noticed."""

    __slots__ = ("_done", "_on_done", "address", "error", "started_us")

    def __init__(self, now: int, on_done: Callable[[], None] = lambda: None) -> None:
        self.started_us = now
        self._on_done = on_done
        self.address = b""  # the inner address of the socket that answered
        self.error = ""
        self._done = threading.Event()

    @property
    def is_done(self) -> bool:
        return self._done.is_set()

    def found(self, address: bytes) -> None:
        if not self.is_done:
            self.address = address
            self._done.set()
            self._on_done()

    def failed(self, reason: str) -> None:
        if not self.is_done:
            self.error = reason
            self._done.set()
            self._on_done()

    def wait(self, timeout: float) -> bool:
        """Up to ``timeout`` seconds; whether it is over."""
        return self._done.wait(timeout)


class UdpNode:
    """One per stack: what its UDP links have in common.

    Nothing here is secret to those who can read our packets: as with TCP, only those who cannot are kept from
    interfering. Its number is random and new for every node, so no two of them ever have an address in common.
    """

    __slots__ = (
        "_cookie_secret", "_numbers", "clock", "counters", "entropy", "identity", "lock", "max_peers", "peers", "sockets",
    )  # fmt: skip

    def __init__(
        self,
        *,
        seed: bytes | int | None = None,
        counters: Counters | None = None,
        clock: Callable[[], int] = monotonic_us,
        max_peers: int = MAX_PEERS,
    ) -> None:
        """``seed``: for reproducible tests; None: from the operating system."""
        self.entropy = Entropy(os.urandom(32) if seed is None else seed).child("udp")
        self.identity = self.entropy.octets(frames.NODE_BYTES)
        self._cookie_secret = self.entropy.octets(32)
        self.counters = Counters() if counters is None else counters
        self.clock = clock
        self.lock = threading.RLock()  # held for everything but data on paths that exist
        self.max_peers = max_peers
        self.peers: dict[bytes, Peer] = {}
        self.sockets: list[Paths] = []
        self._numbers = 0

    def add_socket(self, paths: Paths) -> int:
        """The number of a new socket of this node."""
        with self.lock:
            self.sockets.append(paths)
            self._numbers += 1
            return self._numbers

    def remove_socket(self, paths: Paths) -> None:
        """It is closed."""
        with self.lock:
            if paths in self.sockets:
                self.sockets.remove(paths)

    # --- cookies ------------------------------------------------------------------------------------------------------
    def cookie(self, where: bytes, hello: frames.Hello, now: int, *, periods_ago: int = 0) -> bytes:
        """What proves, when it comes back, that ``where`` receives what is sent to it. Nothing is remembered for it."""
        period = (now // COOKIE_PERIOD_US - periods_ago).to_bytes(8, "big", signed=True)
        return frames.mac(
            self._cookie_secret, b"cookie", period, hello.nonce, hello.node, hello.tag.to_bytes(4, "big"), where
        )

    def is_cookie_good(self, where: bytes, hello: frames.Hello, now: int) -> bool:
        return any(hello.cookie == self.cookie(where, hello, now, periods_ago=ago) for ago in (0, 1))

    # --- peers --------------------------------------------------------------------------------------------------------
    def add_peer(self, node: bytes, key: bytes, now: int) -> Peer | None:
        """A peer that was not known; None: there are too many, and none of them can be forgotten."""
        if len(self.peers) >= self.max_peers:
            self.forget_idle(now, pressed=True)
            if len(self.peers) >= self.max_peers:
                self.counters.bump("udp_peers_full")  # a new peer was refused
                return None
        peer = self.peers[node] = Peer(node, key, now)
        return peer

    def forget_idle(self, now: int, *, pressed: bool = False) -> None:
        """Peers without paths that have not been heard of for long; ``pressed``: also those that just have no path."""
        for node, peer in list(self.peers.items()):
            patience = PEER_IDLE_US if peer.is_proven and not pressed else PEER_UNPROVEN_US
            if not peer.paths and now - peer.used_us > patience:
                del self.peers[node]

    # --- finding ------------------------------------------------------------------------------------------------------
    def introduce(self, wheres: list[bytes], on_done: Callable[[], None] = lambda: None) -> Introduction:
        """Says hello from every socket to every endpoint (``struct sockaddr``) it can reach; may be called by any thread."""
        now = self.clock()
        introduction = Introduction(now, on_done)
        with self.lock:
            greeted = False
            for where in wheres:
                for paths in self.sockets:
                    if paths.can_reach(where):
                        greeted |= paths.greet(where, now, introduction=introduction)
            if not greeted:
                introduction.failed("no link has an address of that family, or too many hellos wait already")
        for paths in self.sockets:
            paths.wake()
        return introduction
