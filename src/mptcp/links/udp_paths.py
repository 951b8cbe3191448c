"""All paths of one UDP socket of ours: how they begin, prove themselves, move and end. No system calls here.

Order of calls: ``handle_*`` for what came in, ``handle_timeout`` when ``deadline`` has come, verbs, then ``poll_*``. All
with the node's lock held.

**Beginning.** The initiator's hello is answered with a cookie, which the responder does not remember; the second hello
brings it back and proves that the initiator is where it seems to be; the welcome brings back the hello's nonce, which
proves the same of the responder. Then both have a path. Until an endpoint is confirmed in this way nothing longer
than what came from it is sent to it.

**Moving.** A frame with the right tag from another endpoint is taken (the tag is 32 bits that were sent to the peer
only; what TCP makes of it is TCP's business), but answers go to the old endpoint until a ping sent to the new one has
come back with a proof that whoever is there has the key of the two nodes. So a NAT may forget and a host may move, and
nobody else can pull a path to himself.

**Ending.** Paths that are silent for ``SILENCE_US`` are forgotten. The initiator pings often enough to keep NATs open,
so a path that works is not silent.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from mptcp.core.packet import Packet
from mptcp.core.units import MILLISECOND, NEVER, SECOND
from mptcp.info import Endpoint
from mptcp.links import udp_frames as frames
from mptcp.links.udp_node import MAX_PEER_PATHS, Introduction, Peer, UdpNode
from mptcp.links.udp_path import Path, Ping, Purpose
from mptcp.links.udp_socket import DISCOVER, MAY_FRAGMENT, PROBE, endpoint_of, sockaddr

#: Cookies that one hello of ours answers at once: further ones wait for its timer.
MAX_COOKIES: Final = 4
#: Paths of one socket.
MAX_PATHS: Final = 4096
#: Hellos of one socket that wait for their answer.
MAX_GREETINGS: Final = 64
#: Packets that wait for a path to one address, and addresses they wait for.
MAX_WAITING_PACKETS: Final = 16
MAX_WAITING_ADDRESSES: Final = 64
#: Answers to frames with an unknown tag, per second.
MAX_UNKNOWN_RATE: Final = 100
#: A hello is repeated after this time, the next one after twice, all others after four times as long, ...
HELLO_US: Final = 250 * MILLISECOND
#: ... and given up when this has passed.
HELLO_PATIENCE_US: Final = 8 * SECOND
#: The initiator sends something at least this often. RFC 4787 §4.3 lets no NAT forget in less than 2 minutes; many do
#: after 30 seconds.
KEEPALIVE_US: Final = 20 * SECOND
#: A keepalive without an answer is repeated after this time; after three a new hello is said.
KEEPALIVE_RETRY_US: Final = 2 * SECOND
KEEPALIVES_BEFORE_HELLO: Final = 3
#: A path on which nothing comes for so long is forgotten.
SILENCE_US: Final = 180 * SECOND
#: Between two challenges of one path.
CHALLENGE_US: Final = 100 * MILLISECOND
#: How often all paths are looked at.
SWEEP_US: Final = 10 * SECOND
#: A path whose silence exceeds this gives way when there are too many.
IDLE_US: Final = 60 * SECOND


class _Greeting:
    """A hello of ours."""

    __slots__ = (
        "cookie", "cookies", "deadline", "introduction", "key", "nonce", "peer", "sent_us", "started_us", "tag", "target", "tries", "where",
    )  # fmt: skip

    def __init__(
        self, nonce: bytes, where: bytes, tag: int, target: bytes, introduction: Introduction | None, now: int
    ) -> None:
        self.nonce, self.where, self.tag = nonce, where, tag
        self.target = target  # the node that should be there; b"": whoever is
        self.introduction = introduction
        self.cookie, self.key = frames.NO_COOKIE, frames.NO_KEY
        self.peer: Peer | None = None
        self.tries = self.cookies = 0
        self.started_us = self.sent_us = self.deadline = now


class Paths:
    """``address``: the inner address of this socket. ``measure(where)``: the longest inner packet that the system
    believes to fit there, 0 if it knows no way. ``wake()``: ``deadline`` has become earlier, from another thread."""

    def __init__(
        self,
        node: UdpNode,
        local: Endpoint,
        measure: Callable[[bytes], int],
        *,
        wake: Callable[[], None] = lambda: None,
        keepalive_us: int = KEEPALIVE_US,
        max_paths: int = MAX_PATHS,
    ) -> None:
        self.node, self.local = node, local
        self.wake = wake
        self.counters = node.counters
        self.keepalive_us = keepalive_us
        self.max_paths = max_paths
        self.by_address: dict[bytes, Path] = {}
        self.by_tag: dict[int, Path] = {}
        self.deadline = NEVER
        self._measure = measure
        self._overhead = (28 if len(local.address) == 4 else 48) + frames.HEADER_BYTES
        self._greetings: dict[bytes, _Greeting] = {}
        self._waiting: dict[bytes, list[Packet]] = {}
        self._pinged: dict[Path, None] = {}  # those with pings that wait for their answer
        self._initiated: dict[Path, None] = {}
        self._frames: list[tuple[bytes, bytes, int]] = []
        self._released: list[Packet] = []
        self._unreachable: list[Packet] = []
        self._sweep_at = NEVER
        self._unknown_second = 0
        self._unknown_count = 0
        self.number = node.add_socket(self)
        self.address = frames.virtual_address(node.identity, self.number)

    # --- what goes out ------------------------------------------------------------------------------------------------
    def poll_frames(self) -> list[tuple[bytes, bytes, int]]:
        """(where, datagram, mode of the socket) to be sent."""
        out, self._frames = self._frames, []
        return out

    def poll_released(self) -> list[Packet]:
        """Packets whose path is there now."""
        out, self._released = self._released, []
        return out

    def poll_unreachable(self) -> list[Packet]:
        """Packets to which no path could be found."""
        out, self._unreachable = self._unreachable, []
        return out

    # --- verbs --------------------------------------------------------------------------------------------------------
    def can_reach(self, where: bytes) -> bool:
        """Whether it is an endpoint of our family."""
        return (len(where) == len(sockaddr(self.local))) and bool(where)

    def greet(self, where: bytes, now: int, *, target: bytes = b"", introduction: Introduction | None = None) -> bool:
        """Says hello to an endpoint; False: too many are waiting for an answer. ``target``: the node it should be."""
        for greeting in self._greetings.values():
            if greeting.where == where and introduction is None and greeting.target == target:
                return True
        if len(self._greetings) >= MAX_GREETINGS:
            self.counters.bump("udp_greetings_full")  # too many hellos wait for an answer
            return False
        nonce = self.node.entropy.octets(frames.NONCE_BYTES)
        greeting = _Greeting(nonce, where, self._new_tag(), target, introduction, now)
        self._greetings[nonce] = greeting
        self._send_hello(greeting, now)
        return True

    def _new_tag(self) -> int:
        while True:
            tag = self.node.entropy.bits(32)
            if tag and tag not in self.by_tag and all(g.tag != tag for g in self._greetings.values()):
                return tag

    def want(self, packet: Packet, now: int) -> None:
        """A packet for an address to which there is no path: it waits for one, or is unreachable."""
        destination = bytes(packet.header[24:40])
        waiting = self._waiting.get(destination)
        if waiting is not None:
            if len(waiting) < MAX_WAITING_PACKETS:
                waiting.append(packet)
            else:
                self.counters.bump("udp_waiting_overflow")  # too many packets wait for one path
            return
        named = frames.split_virtual(destination)
        peer = self.node.peers.get(named[0]) if named is not None else None
        if peer is None or named is None or len(self._waiting) >= MAX_WAITING_ADDRESSES:
            self._unreachable.append(packet)
            return
        greeted = False
        for endpoint in peer.endpoints.get(named[1], ()):
            if len(endpoint.address) == len(self.local.address):
                greeted |= self.greet(sockaddr(endpoint), now, target=peer.node)
        if greeted:
            self._waiting[destination] = [packet]
        else:
            self._unreachable.append(packet)

    def announce_move(self, now: int) -> None:
        """Our own endpoint has changed: the peers are told, by pings that they will challenge."""
        for path in list(self.by_address.values()):
            # There may be no network yet: a ping that is not answered is soon followed by the next one.
            path.unanswered = 1
            self._ping(path, Purpose.KEEPALIVE, path.where, now)
            self._start_probing(path, now)

    def handle_too_long(self, where: bytes, length: int, now: int) -> Path | None:
        """The system has refused a datagram of ``length`` octets; the path that it was for is narrower now."""
        path = next((path for path in self.by_address.values() if path.where == where), None)
        if path is None:
            return None
        inner = length - frames.HEADER_BYTES
        limit = self._measure(where)
        path.narrow(limit if 0 < limit < inner else min(path.mtu, inner - 1), now)
        return path

    # --- what comes in ------------------------------------------------------------------------------------------------
    def handle_frame(self, kind: int, tag: int, data: memoryview, where: bytes, now: int) -> None:
        """A frame of any kind but DATA; its magic and version are right."""
        match kind:
            case frames.HELLO:
                self._handle_hello(data, where, now)
                return
            case frames.COOKIE:
                self._handle_cookie(data, where, now)
                return
            case frames.WELCOME:
                self._handle_welcome(data, where, now)
                return
            case frames.UNKNOWN:
                self._handle_unknown(data, where, now)
                return
        path = self.by_tag.get(tag)
        if path is None:
            self.handle_unknown_tag(tag, where, len(data), now)
            return
        if kind == frames.PING:
            nonce = frames.parse_ping(data)
            if nonce is None:
                self.counters.bump("udp_malformed")
                return
            pong = frames.emit_pong(path.tag, nonce, len(data), path.peer.key, self.address)
            self._frames.append((where, pong, DISCOVER))
            if where == path.where:
                path.heard_us = path.sent_us = now
            else:
                self.handle_stray(path, where, len(data), now)
        elif kind == frames.PONG:
            self._handle_pong(path, data, where, now)
        else:
            self.counters.bump("udp_malformed")  # no frame of this protocol

    def handle_unknown_tag(self, tag: int, where: bytes, length: int, now: int) -> None:
        """Whoever sent that believes in a path that is not there (any more)."""
        self.counters.bump("udp_unknown_tag")  # a frame for no path there is
        second = now // SECOND
        if second != self._unknown_second:
            self._unknown_second, self._unknown_count = second, 0
        answer = frames.emit_unknown(tag)
        if self._unknown_count < MAX_UNKNOWN_RATE and length >= len(answer):
            self._unknown_count += 1
            self._frames.append((where, answer, DISCOVER))

    def handle_stray(self, path: Path, where: bytes, length: int, now: int) -> None:
        """A frame with the tag of ``path`` from another endpoint: has the peer moved?"""
        self.counters.bump("udp_stray")  # a known peer's frame from another endpoint than the one confirmed
        if now - path.challenged_us >= CHALLENGE_US and length >= frames.PONG_BYTES:
            path.challenged_us = now
            self._ping(path, Purpose.CHALLENGE, where, now)

    def _handle_hello(self, data: memoryview, where: bytes, now: int) -> None:
        hello = frames.Hello.parse(data)
        if hello is None:
            # Shorter than it must be: an answer would be longer than what asked for it.
            self.counters.bump("udp_hello_malformed")
            return
        node = self.node
        if hello.node == node.identity:
            self.counters.bump("udp_hello_self")  # said by a socket of ours to another
            for paths in node.sockets:
                greeting = paths._greetings.get(hello.nonce)
                if greeting is not None:
                    paths._give_up(greeting, "that is this very stack", now)
            return
        if hello.cookie == frames.NO_COOKIE or not node.is_cookie_good(where, hello, now):
            cookie = node.cookie(where, hello, now)
            self._frames.append((where, frames.emit_cookie(hello.nonce, node.identity, cookie), DISCOVER))
            return
        peer = node.peers.get(hello.node)
        key = peer.key if peer is not None else hello.key
        if key == frames.NO_KEY or (hello.key not in (frames.NO_KEY, key)) or not hello.proves(key):
            self.counters.bump("udp_hello_unproven")  # it claims to be a node without having its key
            return
        address = frames.virtual_address(hello.node, hello.number)
        path = self.by_address.get(address)
        if path is None and not self._has_room(peer, now):
            return
        if peer is None:
            peer = node.add_peer(hello.node, key, now)
            if peer is None:
                return
        peer.is_proven = True
        peer.used_us = now
        if path is None:
            path = self._add(address, peer, hello.number, where, hello.tag, self._new_tag(), now)
            probe = True
        else:
            probe = path.where != where
            self._move(path, where, now)
            path.set_tag(hello.tag)
        peer.learn(hello.number, endpoint_of(where))
        welcome = frames.Welcome(
            hello.nonce, node.identity, self.number, path.tags[-1], endpoint_of(where), self._listed(where)
        )
        self._frames.append((where, welcome.emit(peer.key), DISCOVER))
        path.heard_us = path.sent_us = now
        if probe:
            self._start_probing(path, now)
        self._release(address)

    def _handle_cookie(self, data: memoryview, where: bytes, now: int) -> None:
        parsed = frames.parse_cookie(data)
        greeting = self._greetings.get(parsed[0]) if parsed is not None else None
        if parsed is None or greeting is None or greeting.where != where:
            self.counters.bump("udp_unexpected_answer")  # to no hello of ours, or from elsewhere
            return
        _, identity, cookie = parsed
        node = self.node
        if greeting.target and greeting.target != identity:
            # Another node has taken its place: restarted, most likely.
            self.counters.bump("udp_other_node")
            self._give_up(greeting, "another stack answers there now", now)
            return
        peer = node.peers.get(identity)
        if peer is None:
            peer = node.add_peer(identity, node.entropy.octets(frames.KEY_BYTES), now)
            if peer is None:
                self._give_up(greeting, "too many peers", now)
                return
            peer.learn(0, endpoint_of(where))  # 0: not known yet which of its sockets it is
        greeting.peer = peer
        greeting.cookie = cookie
        # The key goes only to where we have found the peer, and to where it says itself that it is: a stranger who
        # claims to be it does not get it.
        greeting.key = peer.key if peer.knows(endpoint_of(where)) else frames.NO_KEY
        greeting.cookies += 1
        if greeting.cookies <= MAX_COOKIES:  # a responder that likes none of its own cookies must not keep us talking
            greeting.tries = 0
            self._send_hello(greeting, now)

    def _handle_welcome(self, data: memoryview, where: bytes, now: int) -> None:
        welcome = frames.Welcome.parse(data)
        greeting = self._greetings.get(welcome.nonce) if welcome is not None else None
        if welcome is None or greeting is None or greeting.where != where or greeting.peer is None:
            self.counters.bump("udp_unexpected_answer")
            return
        peer = greeting.peer
        if welcome.node != peer.node or not welcome.proves(peer.key):
            self.counters.bump("udp_welcome_unproven")  # it claims to be a node without having its key
            return
        del self._greetings[greeting.nonce]
        peer.is_proven = True
        peer.used_us = now
        peer.endpoints.pop(0, None)
        peer.learn(welcome.number, endpoint_of(where), first=True)
        for number, endpoint in welcome.listed:
            peer.learn(number, endpoint)
        address = frames.virtual_address(welcome.node, welcome.number)
        path = self.by_address.get(address)
        if path is None:
            if not self._has_room(peer, now):
                self._disappoint(peer.node)
                return
            path = self._add(address, peer, welcome.number, where, welcome.tag, greeting.tag, now)
        else:
            self._move(path, where, now)
            path.set_tag(welcome.tag)
            self._add_tag(path, greeting.tag)
        path.is_initiator = True
        self._initiated[path] = None
        path.sample_rtt(max(1, now - greeting.sent_us))
        path.heard_us, path.unanswered = now, 0
        self._start_probing(path, now)
        self._arm(now + self.keepalive_us)
        if greeting.introduction is not None:
            greeting.introduction.found(address)
        self._release(address)
        self._disappoint(peer.node)

    def _handle_pong(self, path: Path, data: memoryview, where: bytes, now: int) -> None:
        parsed = frames.parse_pong(data)
        ping = path.pings.get(parsed[0]) if parsed is not None and path.pings else None
        if parsed is None or ping is None:
            self.counters.bump("udp_unexpected_answer")
            return
        nonce, length, proof = parsed
        if length != ping.length or not frames.pong_proves(nonce, length, proof, path.peer.key, path.address):
            self.counters.bump("udp_pong_unproven")  # an answer to a ping from somebody without the key
            return
        assert path.pings is not None
        del path.pings[nonce]
        path.unanswered = 0
        if where == path.where or where == ping.where:
            path.heard_us = now
        match ping.purpose:
            case Purpose.CHALLENGE:
                # The answer must come from where the question went: then frames reach it there.
                if where == ping.where:
                    self._move(path, where, now)
                    path.sample_rtt(max(1, now - ping.sent_us))
                    self._start_probing(path, now)
            case Purpose.PROBE:
                path.probe_passed(length - frames.HEADER_BYTES, now)
            case Purpose.KEEPALIVE:
                path.sample_rtt(max(1, now - ping.sent_us))

    def _handle_unknown(self, data: memoryview, where: bytes, now: int) -> None:
        tag = frames.parse_unknown(data)
        for path in self._initiated:
            if path.where == where and path.tag == tag:
                if now - path.greeted_us >= SECOND:
                    path.greeted_us = now
                    self.counters.bump("udp_forgotten_by_peer")  # it does not know a path of ours: hello again
                    self.greet(where, now, target=path.peer.node)
                return
        self.counters.bump("udp_unexpected_answer")

    # --- paths --------------------------------------------------------------------------------------------------------
    def _has_room(self, peer: Peer | None, now: int) -> bool:
        if peer is not None and peer.paths >= MAX_PEER_PATHS:
            self.counters.bump("udp_paths_full")
            return False
        if len(self.by_address) >= self.max_paths:
            oldest = min(self.by_address.values(), key=lambda path: path.heard_us)
            if now - oldest.heard_us < IDLE_US:
                self.counters.bump("udp_paths_full")  # a new path was refused
                return False
            self._drop(oldest)
        return True

    def _add(self, address: bytes, peer: Peer, number: int, where: bytes, tag: int, receive_tag: int, now: int) -> Path:
        path = Path(address, peer, number, where, tag, now)
        self.by_address[address] = path
        self._add_tag(path, receive_tag)
        peer.paths += 1
        if self._sweep_at == NEVER:
            self._sweep_at = now + SWEEP_US
        self._arm(self._sweep_at)
        return path

    def _add_tag(self, path: Path, tag: int) -> None:
        # The one before it may still be in frames on their way.
        for old in path.tags[:-1]:
            self.by_tag.pop(old, None)
        path.tags = (*path.tags[-1:], tag)
        self.by_tag[tag] = path

    def _move(self, path: Path, where: bytes, now: int) -> None:
        if path.where != where:
            self.counters.bump("udp_path_moved")  # a peer has proved to be at another endpoint
            path.where = where
            path.peer.learn(path.number, endpoint_of(where), first=True)

    def _drop(self, path: Path) -> None:
        del self.by_address[path.address]
        for tag in path.tags:
            self.by_tag.pop(tag, None)
        self._initiated.pop(path, None)
        self._pinged.pop(path, None)
        path.peer.paths -= 1

    def _listed(self, where: bytes) -> list[tuple[int, Endpoint]]:
        """Our other sockets, as far as whoever is at ``where`` may be able to reach them."""
        is_near = _is_loopback(endpoint_of(where))
        listed = []
        for paths in self.node.sockets:
            local = paths.local
            if paths is not self and not local.is_unspecified and (is_near or not _is_loopback(local)):
                listed.append((paths.number, local))
        return listed[: frames.MAX_ENDPOINTS]

    def _release(self, address: bytes) -> None:
        self._released += self._waiting.pop(address, ())

    def _disappoint(self, node: bytes) -> None:
        """What waits for sockets of ``node`` that no hello looks for any more is unreachable."""
        if self._waiting and not any(greeting.target == node for greeting in self._greetings.values()):
            for address in [a for a in self._waiting if a[6:14] == node]:
                self._unreachable += self._waiting.pop(address)

    def _start_probing(self, path: Path, now: int, *, is_raise: bool = False) -> None:
        # The system's idea of the path is where the search begins: it knows its own links, and what ICMP told it.
        limit = self._measure(path.where)
        if limit and path.set_limit(limit, is_raise=is_raise):
            self._probe(path, now)

    def _probe(self, path: Path, now: int) -> None:
        for size in path.sizes or ():
            self._ping(path, Purpose.PROBE, path.where, now, size + frames.HEADER_BYTES)

    def _ping(self, path: Path, purpose: Purpose, where: bytes, now: int, length: int = frames.PONG_BYTES) -> None:
        nonce = self.node.entropy.octets(frames.NONCE_BYTES)
        deadline = now + path.ping_timeout_us
        if not path.add_ping(nonce, Ping(purpose, where, length, now, deadline)):
            return
        self._frames.append(
            (where, frames.emit_ping(path.tag, nonce, length), PROBE if length > frames.PONG_BYTES else DISCOVER)
        )
        if where == path.where:
            path.sent_us = now
        self._pinged[path] = None
        self._arm(deadline)

    # --- time ---------------------------------------------------------------------------------------------------------
    def _arm(self, deadline: int) -> None:
        self.deadline = min(self.deadline, deadline)

    def _send_hello(self, greeting: _Greeting, now: int) -> None:
        hello = frames.Hello(
            greeting.nonce, self.node.identity, self.number, greeting.tag, greeting.cookie, greeting.key
        )
        secret = greeting.peer.key if greeting.peer is not None else b""
        # Should even 1,280 octets be too long for the way there, the system may fragment.
        self._frames.append((greeting.where, hello.emit(secret), MAY_FRAGMENT))
        greeting.sent_us = now
        greeting.deadline = min(now + (HELLO_US << min(greeting.tries, 2)), greeting.started_us + HELLO_PATIENCE_US)
        greeting.tries += 1
        self._arm(greeting.deadline)

    def _give_up(self, greeting: _Greeting, reason: str, now: int) -> None:
        self._greetings.pop(greeting.nonce, None)
        introduction = greeting.introduction
        # One of several hellos of an introduction has failed; the last one ends it.
        if introduction is not None and not any(
            other.introduction is introduction for paths in self.node.sockets for other in paths._greetings.values()
        ):
            introduction.failed(reason)
        if greeting.target:
            if reason != _SILENT:
                for path in [
                    p for p in self._initiated if p.where == greeting.where and p.peer.node == greeting.target
                ]:
                    self._drop(path)
            self._disappoint(greeting.target)

    def handle_timeout(self, now: int) -> None:
        """What was to happen by ``now``."""
        self.deadline = NEVER
        for greeting in list(self._greetings.values()):
            if greeting.deadline > now:
                self._arm(greeting.deadline)
            elif now - greeting.started_us >= HELLO_PATIENCE_US:
                self.counters.bump("udp_hello_unanswered")  # a hello was given up
                self._give_up(greeting, _SILENT, now)
            else:
                self._send_hello(greeting, now)
        for path in list(self._pinged):
            self._check_pings(path, now)
        for path in self._initiated:
            self._keep_alive(path, now)
        if now >= self._sweep_at:
            self._sweep(now)
        self._arm(self._sweep_at)

    def _check_pings(self, path: Path, now: int) -> None:
        pings = path.pings or {}
        probed_us = -1
        for nonce, ping in list(pings.items()):
            if ping.deadline > now:
                self._arm(ping.deadline)
            elif ping.purpose is Purpose.PROBE and ping.where == path.where:
                ping.deadline = NEVER
                probed_us = ping.sent_us
            else:
                del pings[nonce]
        if probed_us >= 0 and path.probes_failed(path.heard_us >= probed_us, self._overhead, now):
            self._probe(path, now)
            # On an idle path only the answer to a short one tells a loss by length from any other.
            self._ping(path, Purpose.KEEPALIVE, path.where, now)
        if all(ping.deadline == NEVER for ping in pings.values()):
            self._pinged.pop(path, None)

    def _keep_alive(self, path: Path, now: int) -> None:
        due = path.sent_us + (KEEPALIVE_RETRY_US if path.unanswered else self.keepalive_us)
        if due <= now:
            self._ping(path, Purpose.KEEPALIVE, path.where, now)
            path.sent_us = now
            path.unanswered += 1
            if path.unanswered > KEEPALIVES_BEFORE_HELLO and now - path.greeted_us >= self.keepalive_us:
                path.greeted_us = now
                self.greet(path.where, now, target=path.peer.node)
            due = now + KEEPALIVE_RETRY_US
        self._arm(due)

    def _sweep(self, now: int) -> None:
        for path in list(self.by_address.values()):
            if now - path.heard_us > SILENCE_US:
                self.counters.bump("udp_path_silent")  # nothing has come on a path for long: it is forgotten
                self._drop(path)
                continue
            path.peer.used_us = now
            if path.raise_at <= now:
                self._start_probing(path, now, is_raise=True)
        self.node.forget_idle(now)
        self._sweep_at = now + SWEEP_US if self.by_address else NEVER


_SILENT = "nobody answers there"


def _is_loopback(endpoint: Endpoint) -> bool:
    return endpoint.address[0] == 127 if len(endpoint.address) == 4 else endpoint.address == bytes(15) + b"\1"
