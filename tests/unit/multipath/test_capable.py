"""The MP_CAPABLE handshake (RFC 8684 §3.1), packet by packet."""

import pytest

from mptcp.core.multipath.config import ConnectionConfig
from mptcp.core.multipath.connection_state import ConnectionState
from mptcp.core.multipath.keys import idsn_of, token_of
from mptcp.core.wire.mptcp_options import (
    FLAG_CHECKSUM,
    FLAG_EXTENSIBLE,
    FLAG_HMAC_SHA256,
    Dss,
    MpCapable,
)
from mptcp.core.wire.segment import ACK, SYN
from mptcp.testing import builders
from mptcp.testing.peer import PEER_KEY, ScriptedPeer
from mptcp.testing.scripted import ScriptedHost


def test_token_and_idsn_are_the_two_ends_of_the_sha256_of_the_key() -> None:  # RFC 8684 §3.1
    # SHA-256 of eight zero octets: af5570f5 a1810b7a f78caf4b c70a660f 0df51e42 baf91d4d e5b2328d e0e83dfc
    assert token_of(0) == 0xAF5570F5
    assert idsn_of(0) == 0xE5B2328DE0E83DFC


def test_version_0_uses_sha1() -> None:  # RFC 6824 §3.1
    # SHA-1 of eight zero octets: 05fe405753166f125559e7c9ac558654f107c7e9
    assert token_of(0, version=0) == 0x05FE4057
    assert idsn_of(0, version=0) == 0xAC558654F107C7E9


def test_client_sends_no_key_in_its_syn_and_both_in_the_ack() -> None:  # RFC 8684 §3.1
    host = ScriptedHost()
    connection = host.connect()
    (syn,) = host.sends()
    assert syn.options.mptcp == (MpCapable(1, FLAG_HMAC_SHA256),)
    host.receives(builders.syn_ack(MpCapable(1, FLAG_HMAC_SHA256, PEER_KEY), ack=syn.seq + 1))
    (ack,) = host.sends()
    assert ack.flags == ACK
    assert ack.options.mptcp == (MpCapable(1, FLAG_HMAC_SHA256, connection.local_key, PEER_KEY),)
    assert connection.state is ConnectionState.ESTABLISHED
    assert connection.is_multipath


def test_first_data_repeats_the_keys_with_the_length() -> None:  # RFC 8684 §3.1
    host = ScriptedHost()
    connection = host.connect()
    peer = ScriptedPeer.accepts(host)
    connection.write(b"hello", host.now)
    host.poll()
    (data,) = peer.takes()
    assert data.payload == b"hello"
    assert data.options.mptcp == (MpCapable(1, FLAG_HMAC_SHA256, connection.local_key, PEER_KEY, 5),)


def test_after_the_first_data_ack_data_carries_dss() -> None:  # RFC 8684 §3.1
    host = ScriptedHost()
    connection = host.connect()
    peer = ScriptedPeer.accepts(host)
    connection.write(b"hello", host.now)
    host.poll()
    peer.takes()
    peer.data_ack += 5
    peer.acknowledges()
    connection.write(b"again", host.now)
    host.poll()
    (data,) = [s for s in peer.takes() if s.length]
    (option,) = data.options.mptcp
    assert isinstance(option, Dss)
    assert (option.dsn, option.ssn, option.length) == ((idsn_of(connection.local_key) + 6) & (1 << 64) - 1, 6, 5)


def test_server_answers_with_its_key_and_learns_the_clients_from_the_third_ack() -> None:  # RFC 8684 §3.1
    host = ScriptedHost()
    listener = host.listen(80)
    host.receives(builders.syn(MpCapable()), to_port=80)
    (syn_ack,) = host.sends()
    assert syn_ack.flags == SYN | ACK
    (capable,) = syn_ack.options.mptcp
    assert isinstance(capable, MpCapable)
    assert capable.sender_key is not None
    host.receives(
        builders.ack(
            MpCapable(1, FLAG_HMAC_SHA256, PEER_KEY, capable.sender_key), seq=builders.PEER_ISN + 1, ack=syn_ack.seq + 1
        )
    )
    connection = listener.accept()
    assert connection is not None
    assert connection.remote_key == PEER_KEY
    assert connection.token == token_of(capable.sender_key)
    assert connection.is_multipath


def test_third_ack_lost_data_with_mp_capable_establishes() -> None:  # RFC 8684 §3.1
    host = ScriptedHost()
    listener = host.listen(80)
    host.receives(builders.syn(MpCapable()), to_port=80)
    (syn_ack,) = host.sends()
    key = syn_ack.options.mptcp[0].sender_key  # type: ignore[union-attr]
    option = MpCapable(1, FLAG_HMAC_SHA256, PEER_KEY, key, 4)
    host.receives(builders.data(b"data", option, seq=builders.PEER_ISN + 1, ack=syn_ack.seq + 1))
    connection = listener.accept()
    assert connection is not None
    assert connection.is_multipath
    assert connection.read(10) == b"data"
    (ack,) = host.sends()
    # RFC 8684 §3.1: "The receiver will acknowledge this data at the connection level with a Data ACK, as if a DSS option
    # has been received."
    assert ack.options.mptcp == (Dss((idsn_of(PEER_KEY) + 5) & (1 << 64) - 1, True),)


def test_mp_capable_data_repeated_by_segmentation_is_one_mapping() -> None:  # RFC 8684 §3.1
    host = ScriptedHost()
    listener = host.listen(80)
    host.receives(builders.syn(MpCapable()), to_port=80)
    (syn_ack,) = host.sends()
    key = syn_ack.options.mptcp[0].sender_key  # type: ignore[union-attr]
    option = MpCapable(1, FLAG_HMAC_SHA256, PEER_KEY, key, 8)
    seq = builders.PEER_ISN + 1
    host.receives(builders.data(b"data", option, seq=seq, ack=syn_ack.seq + 1))
    host.receives(builders.data(b"more", option, seq=seq + 4, ack=syn_ack.seq + 1))
    connection = listener.accept()
    assert connection is not None
    assert connection.read(10) == b"datamore"


@pytest.mark.parametrize(
    ("option", "counter"),
    [
        (MpCapable(flags=FLAG_HMAC_SHA256 | FLAG_EXTENSIBLE), "B flag"),  # "MUST be silently ignored"
        (MpCapable(flags=0), "no algorithm"),  # "MUST be treated as invalid and ignored"
        (None, "no option"),
    ],
)
def test_syn_without_usable_mp_capable_gets_regular_tcp(option: MpCapable | None, counter: str) -> None:  # §3.1
    host = ScriptedHost()
    host.listen(80)
    host.receives(builders.syn(*([option] if option else [])), to_port=80)
    (syn_ack,) = host.sends()
    # RFC 8684 §3.1: "If a SYN does not contain an MP_CAPABLE option, the SYN/ACK MUST NOT contain one in response."
    assert syn_ack.options.mptcp == ()


def test_syn_of_a_later_version_is_answered_with_ours() -> None:  # RFC 8684 §3.1
    host = ScriptedHost()
    host.listen(80)
    host.receives(builders.syn(MpCapable(version=2)), to_port=80)
    (syn_ack,) = host.sends()
    (capable,) = syn_ack.options.mptcp
    assert isinstance(capable, MpCapable)
    assert capable.version == 1


@pytest.mark.parametrize(
    "answer",
    [
        None,
        MpCapable(0, FLAG_HMAC_SHA256, PEER_KEY),
        MpCapable(1, 0, PEER_KEY),
        MpCapable(1, FLAG_HMAC_SHA256 | FLAG_EXTENSIBLE, PEER_KEY),
    ],
)
def test_syn_ack_without_usable_mp_capable_means_regular_tcp(answer: MpCapable | None) -> None:  # RFC 8684 §3.1
    host = ScriptedHost()
    connection = host.connect()
    (syn,) = host.sends()
    host.receives(builders.syn_ack(*([answer] if answer else []), ack=syn.seq + 1))
    (ack,) = host.sends()
    assert ack.options.mptcp == ()
    assert not connection.is_multipath
    assert connection.fallback_reason
    connection.write(b"plain", host.now)
    host.poll()
    (data,) = host.sends()
    assert data.payload == b"plain"
    assert data.options.mptcp == ()


def test_third_ack_without_mp_capable_means_regular_tcp() -> None:  # RFC 8684 §3.1
    host = ScriptedHost()
    listener = host.listen(80)
    host.receives(builders.syn(MpCapable()), to_port=80)
    (syn_ack,) = host.sends()
    host.receives(builders.ack(seq=builders.PEER_ISN + 1, ack=syn_ack.seq + 1))
    connection = listener.accept()
    assert connection is not None
    assert not connection.is_multipath
    host.receives(builders.data(b"plain", seq=builders.PEER_ISN + 1, ack=syn_ack.seq + 1))
    assert connection.read(10) == b"plain"


def test_third_ack_with_the_wrong_key_means_regular_tcp() -> None:
    host = ScriptedHost()
    listener = host.listen(80)
    host.receives(builders.syn(MpCapable()), to_port=80)
    (syn_ack,) = host.sends()
    option = MpCapable(1, FLAG_HMAC_SHA256, PEER_KEY, 0xBAD)
    host.receives(builders.ack(option, seq=builders.PEER_ISN + 1, ack=syn_ack.seq + 1))
    connection = listener.accept()
    assert connection is not None
    assert not connection.is_multipath
    assert host.counters["capable_bad_key"] == 1


def test_checksums_are_used_if_either_side_requires_them() -> None:  # RFC 8684 §3.1
    host = ScriptedHost()
    connection = host.connect()
    peer = ScriptedPeer.accepts(host, checksum=True)
    assert connection.checksum
    connection.write(b"hello", host.now)
    host.poll()
    (data,) = peer.takes()
    (capable,) = data.options.mptcp
    assert isinstance(capable, MpCapable)
    # "the initiator will set A=1 in the ACK"
    assert capable.flags & FLAG_CHECKSUM
    assert capable.checksum is not None


def test_syns_without_answer_lose_mp_capable_at_last() -> None:  # RFC 8684 §3.1, §3.9.3
    host = ScriptedHost()
    connection = host.connect(options=ConnectionConfig(capable_syns=3))
    carried = [bool(s.options.mptcp) for s in host.sends()]
    host.advance(30_000_000)
    carried += [bool(s.options.mptcp) for s in host.sends()]
    assert carried[:5] == [True, True, True, False, False]
    seq = next(iter(connection.subflows_by_id.values())).tcp.iss
    host.receives(builders.syn_ack(ack=seq + 1))
    assert connection.state is ConnectionState.ESTABLISHED
    assert "SYN" in connection.fallback_reason
    again = host.connect()
    assert all(not s.options.mptcp for s in host.sends() if s.flags == SYN)
    assert "short while ago" in again.fallback_reason


def test_version_0_client_sends_its_key_in_the_syn() -> None:  # RFC 6824 §3.1
    host = ScriptedHost()
    connection = host.connect(options=ConnectionConfig(version=0))
    (syn,) = host.sends()
    assert syn.options.mptcp == (MpCapable(0, FLAG_HMAC_SHA256, connection.local_key),)
    host.receives(builders.syn_ack(MpCapable(0, FLAG_HMAC_SHA256, PEER_KEY), ack=syn.seq + 1))
    (ack,) = host.sends()
    assert ack.options.mptcp == (MpCapable(0, FLAG_HMAC_SHA256, connection.local_key, PEER_KEY),)
    assert connection.remote_idsn == idsn_of(PEER_KEY, 0)
    connection.write(b"hello", host.now)
    host.poll()
    (data,) = host.sends()
    (option,) = data.options.mptcp
    assert isinstance(option, Dss)  # version 0 has no MP_CAPABLE with data
    assert option.dsn == (idsn_of(connection.local_key, 0) + 1) & (1 << 64) - 1


def test_keys_are_unguessable_and_unique() -> None:  # RFC 8684 §3.1
    host = ScriptedHost(seed=5)
    keys = {host.connect(port=1000 + i).local_key for i in range(50)}
    assert len(keys) == 50
    assert ScriptedHost(seed=5).connect(port=1000).local_key in keys
    assert ScriptedHost(seed=6).connect(port=1000).local_key not in keys
