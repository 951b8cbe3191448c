"""The other end of one subflow, played by a test: it keeps the numbers, and sends only what it is told to.

::

    host = ScriptedHost()
    listener = host.listen(80)
    peer = ScriptedPeer.connects(host, 80)     # MP_CAPABLE handshake, fully established after the first data
    peer.sends(b"hello")                       # mapped with DSS
    second = peer.joins(address="10.0.1.2")    # MP_JOIN handshake of a second subflow
"""

from __future__ import annotations

from mptcp.core.multipath.keys import idsn_of, join_hmac, token_of
from mptcp.core.multipath.mapping import dss_checksum
from mptcp.core.wire.mptcp_options import (
    FLAG_CHECKSUM,
    FLAG_HMAC_SHA256,
    Dss,
    MpCapable,
    MpJoinSyn,
    MpJoinSynAck,
    MptcpOption,
)
from mptcp.core.wire.segment import ACK, FIN, PSH, SYN, Segment
from mptcp.info import Endpoint
from mptcp.testing import builders
from mptcp.testing.builders import DEFAULT_WINDOW, PEER_ISN
from mptcp.testing.matchers import describe, flag_text
from mptcp.testing.scripted import PEER_ADDRESS, PEER_PORT, ScriptedHost

PEER_KEY = 0x0123456789ABCDEF
PEER_NONCE = 0x11223344
MASK32 = 0xFFFFFFFF


class ScriptedPeer:
    """One subflow as its far end sees it. ``seq``: next number to send; ``ack``: next expected from the host.

    Data numbers are shared by the subflows of a connection, through ``parent``.
    """

    def __init__(
        self,
        host: ScriptedHost,
        local: Endpoint,
        remote: Endpoint,
        *,
        key: int | None = PEER_KEY,
        isn: int = PEER_ISN,
        parent: ScriptedPeer | None = None,
    ) -> None:
        self.host = host
        self.local = local  # the peer's own end
        self.remote = remote  # the host's end
        self.key = key  # None: regular TCP
        self.host_key: int | None = None
        self.isn = isn
        self.seq = isn
        self.ack = 0
        self.checksum = False
        self.parent = parent
        self.data_seq = 0 if key is None else idsn_of(key) + 1  # next data sequence number to send
        self.data_ack = 0  # next expected from the host
        self.address_id = 0
        self.window = DEFAULT_WINDOW

    # --- handshakes -------------------------------------------------------------------------------------------------
    @classmethod
    def connects(
        cls,
        host: ScriptedHost,
        port: int = 80,
        *,
        key: int | None = PEER_KEY,
        checksum: bool = False,
        local: Endpoint | None = None,
    ) -> ScriptedPeer:
        """Opens a connection to a port that the host listens on; ``key`` None: without MPTCP."""
        peer = cls(host, local or Endpoint.parse(PEER_ADDRESS, PEER_PORT), Endpoint(host.local.address, port), key=key)
        flags = FLAG_HMAC_SHA256 | (FLAG_CHECKSUM if checksum else 0)
        peer.send_segment(builders.syn(*(() if key is None else (MpCapable(flags=flags),)), seq=peer.seq))
        peer.seq += 1
        answer = peer._taken(SYN | ACK)
        peer.ack = answer.seq + 1
        capable = next((o for o in answer.options.mptcp if isinstance(o, MpCapable)), None)
        if key is None or capable is None:
            peer.key = None
            peer.send_segment(builders.ack(seq=peer.seq, ack=peer.ack))
            return peer
        peer._learn(capable)
        peer.send_segment(builders.ack(MpCapable(1, flags, key, peer.host_key), seq=peer.seq, ack=peer.ack))
        return peer

    @classmethod
    def accepts(cls, host: ScriptedHost, *, key: int | None = PEER_KEY, checksum: bool = False) -> ScriptedPeer:
        """Answers the SYN that the host has just sent; ``key`` None: without MPTCP."""
        entry = next(sent for sent in host.sends_to() if sent.segment.flags & (SYN | ACK) == SYN)
        peer = cls(host, entry.destination, entry.source, key=key)
        peer.ack = entry.segment.seq + 1
        offered = next((o for o in entry.segment.options.mptcp if isinstance(o, MpCapable)), None)
        flags = FLAG_HMAC_SHA256 | (FLAG_CHECKSUM if checksum else 0)
        options = (MpCapable(1, flags, key),) if key is not None and offered is not None else ()
        peer.send_segment(builders.syn_ack(*options, seq=peer.seq, ack=peer.ack))
        peer.seq += 1
        third = peer._taken(ACK)
        if options:
            capable = next(o for o in third.options.mptcp if isinstance(o, MpCapable))
            peer._learn(capable)
        else:
            peer.key = None
        return peer

    def joins(
        self,
        *,
        address: str,
        port: int = PEER_PORT + 1,
        address_id: int = 1,
        backup: bool = False,
        remote: Endpoint | None = None,
    ) -> ScriptedPeer:
        """Opens a further subflow of this connection, from that address; all three messages of MP_JOIN and the ACK
        that follows."""  # fmt: skip
        assert self.key is not None
        assert self.host_key is not None
        peer = ScriptedPeer(self.host, Endpoint.parse(address, port), remote or self.remote, key=self.key, parent=self)
        peer.host_key, peer.checksum, peer.address_id = self.host_key, self.checksum, address_id
        token = token_of(self.host_key)
        peer.send_segment(builders.syn(MpJoinSyn(token, PEER_NONCE, address_id, backup), seq=peer.seq))
        peer.seq += 1
        answer = peer._taken(SYN | ACK)
        peer.ack = answer.seq + 1
        join = next(o for o in answer.options.mptcp if isinstance(o, MpJoinSynAck))
        # RFC 8684 §3.2: the MAC of each side is keyed with its own key first, over its own nonce first.
        assert join.hmac == join_hmac(self.host_key, self.key, join.nonce, PEER_NONCE)[:8], "HMAC of the SYN/ACK"
        own = join_hmac(self.key, self.host_key, PEER_NONCE, join.nonce)
        peer.send_segment(builders.ack(builders.mp_join_ack(own), seq=peer.seq, ack=peer.ack))
        return peer

    def _learn(self, capable: MpCapable) -> None:
        assert capable.sender_key is not None, "no key in MP_CAPABLE"
        self.host_key = capable.sender_key
        self.checksum = bool(capable.flags & FLAG_CHECKSUM)
        self.data_ack = idsn_of(capable.sender_key) + 1

    # --- afterwards -------------------------------------------------------------------------------------------------
    @property
    def connection(self) -> ScriptedPeer:
        """The peer of the first subflow, which keeps the data-level numbers."""
        return self if self.parent is None else self.parent.connection

    def sends(self, payload: bytes, *, data_fin: bool = False, flags: int = ACK | PSH) -> None:
        """Data, mapped if this is MPTCP, with acknowledgements of both levels."""
        if self.key is None:
            self.send_segment(builders.data(payload, seq=self.seq, ack=self.ack, flags=flags))
        else:
            top = self.connection
            ssn = (self.seq - self.isn) & MASK32
            length = len(payload) + data_fin
            total = dss_checksum(top.data_seq, ssn, length, (payload,)) if self.checksum else None
            option = builders.dss(
                data_ack=top.data_ack, dsn=top.data_seq, ssn=ssn, length=length, checksum=total, data_fin=data_fin
            )
            top.data_seq += length
            self.send_segment(builders.data(payload, option, seq=self.seq, ack=self.ack, flags=flags))
        self.seq += len(payload)

    def acknowledges(self, *options: MptcpOption) -> None:
        """A pure acknowledgement of all that was taken, with a data acknowledgement unless other options are given."""
        if not options and self.key is not None:
            options = (builders.dss(data_ack=self.connection.data_ack),)
        self.send_segment(builders.ack(*options, seq=self.seq, ack=self.ack, window=self.window))

    def finishes(self) -> None:
        """FIN of the subflow."""
        self.send_segment(builders.fin(seq=self.seq, ack=self.ack))
        self.seq += 1

    def resets(self, *options: MptcpOption) -> None:
        self.send_segment(builders.rst(*options, seq=self.seq))

    def send_segment(self, segment: Segment) -> None:
        """Any segment, from this end to the host's."""
        self.host.receives(segment, source=self.local, destination=self.remote)

    def takes(self) -> list[Segment]:
        """What the host has sent on this subflow since last asked; in-order data counts as received on both levels."""
        self.host.poll()
        mine = [s for s in self.host.sent if s.source == self.remote and s.destination == self.local]
        self.host.sent = [s for s in self.host.sent if s.source != self.remote or s.destination != self.local]
        segments = [entry.segment for entry in mine]
        for segment in segments:
            if segment.seq == self.ack & MASK32 and not segment.flags & SYN:
                self.ack += segment.length + (segment.flags & FIN)
            for option in segment.options.mptcp:
                if isinstance(option, Dss) and option.dsn is not None:
                    top = self.connection
                    mask = 0xFFFFFFFFFFFFFFFF if option.dsn_wide else MASK32
                    if option.dsn == top.data_ack & mask:
                        top.data_ack += option.length
        return segments

    def _taken(self, flags: int) -> Segment:
        segments = self.takes()
        for segment in segments:
            if segment.flags & ~PSH == flags:
                return segment
        raise AssertionError(f"expected {flag_text(flags)}, the host has sent {[describe(s) for s in segments]}")
