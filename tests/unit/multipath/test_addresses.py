"""ADD_ADDR, REMOVE_ADDR, MP_PRIO (RFC 8684 §3.4, §3.3.8) and what the path manager makes of them."""

import pytest

from mptcp.core.multipath import local_addresses
from mptcp.core.multipath.config import ConnectionConfig
from mptcp.core.multipath.keys import add_addr_hmac
from mptcp.core.wire.mptcp_options import AddAddr, MpCapable, MpJoinSyn, MpPrio, MpTcprst, RemoveAddr
from mptcp.core.wire.segment import ACK, RST, SYN
from mptcp.errors import PathError
from mptcp.info import Endpoint
from mptcp.testing import builders, connected
from mptcp.testing.peer import ScriptedPeer
from mptcp.testing.scripted import ScriptedHost


def announcement(peer: ScriptedPeer, address: str, address_id: int, port: int | None = None) -> AddAddr:
    assert peer.key is not None
    assert peer.host_key is not None
    packed = Endpoint.parse(address).address
    return AddAddr(address_id, packed, port, False, add_addr_hmac(peer.key, peer.host_key, address_id, packed, port))


def test_announcement_is_echoed_without_hmac() -> None:
    # RFC 8684 §3.4.1: "will send the same option back to the sender, but not including the HMAC and with E=1"
    _, peer, _ = connected.client()
    peer.acknowledges(announcement(peer, "10.0.9.2", 7))
    echoes = [o for s in peer.takes() for o in s.options.mptcp if isinstance(o, AddAddr)]
    assert echoes == [AddAddr(7, Endpoint.parse("10.0.9.2").address, None, True, None)]


def test_announcement_with_a_wrong_hmac_is_ignored() -> None:
    # RFC 8684 §3.4.1: "it SHOULD silently ignore the option"
    host, peer, connection = connected.client(ConnectionConfig())
    peer.takes()
    host.sends()
    peer.acknowledges(AddAddr(7, Endpoint.parse("10.0.9.2").address, None, False, bytes(8)))
    assert peer.takes() == []
    assert [s for s in host.sends() if s.flags & SYN] == []
    assert host.counters["add_addr_bad_hmac"] == 1
    assert connection.is_multipath


@pytest.mark.parametrize("port", [None, 8443])
def test_full_mesh_joins_an_announced_address(port: int | None) -> None:
    # RFC 8684 §3.4.1: "If no port is specified, MPTCP SHOULD attempt to connect to the specified address on the same port"
    host, peer, _ = connected.client(ConnectionConfig())
    host.sends()
    peer.acknowledges(announcement(peer, "10.0.9.2", 7, port))
    joins = [s for s in host.sends_to() if s.segment.flags == SYN]
    assert {(s.source.host, s.destination) for s in joins} == {
        ("10.0.0.1", Endpoint.parse("10.0.9.2", port or 80)), ("10.0.1.1", Endpoint.parse("10.0.9.2", port or 80)),
    }  # fmt: skip
    assert all(isinstance(s.segment.options.mptcp[0], MpJoinSyn) for s in joins)


@pytest.mark.parametrize("address", ["0.0.0.0", "224.0.0.1", "255.255.255.255", "127.0.0.1", "10.0.0.1"])
def test_announcements_of_impossible_addresses_lead_nowhere(address: str) -> None:  # RFC 8684 §5
    host, peer, _ = connected.client(ConnectionConfig())
    host.sends()
    peer.acknowledges(announcement(peer, address, 7))
    assert [s for s in host.sends() if s.flags & SYN] == []
    assert host.counters["add_addr_implausible"] == 1


def test_a_flood_of_announcements_is_bounded() -> None:
    host, peer, connection = connected.client(ConnectionConfig())
    for number in range(1, 200):
        peer.acknowledges(announcement(peer, f"10.9.{number}.2", number))
        peer.takes()
    assert host.counters["add_addr_limit"] == 199 - connection.config.max_remote_addresses
    assert len(connection.open_subflows()) <= connection.config.max_subflows


def test_an_address_id_stays_with_its_address() -> None:
    # RFC 8684 §3.4.1: "the address MUST be the same as the address previously assigned to this Address ID"
    host, peer, _ = connected.client()
    peer.acknowledges(announcement(peer, "10.0.9.2", 7))
    peer.acknowledges(announcement(peer, "10.0.8.2", 7))
    assert host.counters["add_addr_changed"] == 1


def test_we_announce_until_echoed() -> None:
    # RFC 8684 §3.4.1: "the lack of this type of "echo" can indicate to the initial ADD_ADDR sender that the ADD_ADDR needs
    # to be retransmitted."
    host, peer, connection = connected.server()
    host.add_interface("10.0.5.1")
    address_id = connection.add_address(Endpoint.parse("10.0.5.1"), host.now)
    assert peer.host_key is not None
    assert peer.key is not None
    packed = Endpoint.parse("10.0.5.1").address
    expected = AddAddr(
        address_id, packed, None, False, add_addr_hmac(peer.host_key, peer.key, address_id, packed, None)
    )
    sent = [o for s in peer.takes() for o in s.options.mptcp if isinstance(o, AddAddr)]
    assert sent == [expected]
    host.advance(host.now + 2_500_000)
    again = [o for s in peer.takes() for o in s.options.mptcp if isinstance(o, AddAddr)]
    assert again == [expected]
    peer.acknowledges(AddAddr(address_id, packed, None, True))
    host.advance(host.now + 60_000_000)
    assert [o for s in peer.takes() for o in s.options.mptcp if isinstance(o, AddAddr)] == []


def test_announcements_that_are_never_echoed_end() -> None:
    host, peer, connection = connected.server()
    host.add_interface("10.0.5.1")
    connection.add_address(Endpoint.parse("10.0.5.1"), host.now)
    host.poll()
    host.advance(host.now + 600_000_000)
    sent = [o for s in peer.takes() for o in s.options.mptcp if isinstance(o, AddAddr)]
    assert len(sent) == 1 + connection.config.announce_retries


@pytest.mark.parametrize("port", [None, 4430])
def test_ipv6_announcement_takes_an_acknowledgement_of_its_own(port: int | None) -> None:
    host = ScriptedHost()
    listener = host.listen(80, options=connected.QUIET)
    host.receives(builders.syn(MpCapable(), timestamp=(1000, 0)), to_port=80)
    (syn_ack,) = host.sends()
    (capable,) = syn_ack.options.mptcp
    assert isinstance(capable, MpCapable)
    third = MpCapable(1, 1, 7, capable.sender_key, 1)
    seq, ack = builders.PEER_ISN + 1, syn_ack.seq + 1
    host.receives(builders.data(b"x", third, seq=seq, ack=ack, timestamp=(1001, 0)))
    connection = listener.accept()
    assert connection is not None
    host.add_interface("fd00::5")
    host.sends()
    connection.write(b"data that leaves no room", host.now)
    connection.add_address(Endpoint.parse("fd00::5", port or 0), host.now)
    carrying = [s for s in host.sends() if any(isinstance(o, AddAddr) for o in s.options.mptcp)]
    assert [s.length for s in carrying] == [0]
    # 32 octets with the port: no room for timestamps
    assert (carrying[0].options.timestamp_value is None) == (port is not None)


def test_server_announces_its_other_addresses_and_opens_nothing() -> None:
    host = ScriptedHost()
    host.add_interface("10.0.5.1")
    listener = host.listen(80)
    peer = ScriptedPeer.connects(host, 80)
    peer.sends(b"x")
    assert listener.accept() is not None
    sent = [o for s in peer.takes() for o in s.options.mptcp if isinstance(o, AddAddr)]
    assert [o.address for o in sent] == [Endpoint.parse("10.0.5.1").address]
    assert [s for s in host.sends() if s.flags & SYN] == []


def test_a_hidden_address_is_announced_once_it_is_named_and_not_before() -> None:
    # RFC 6897 §7: "MPTCP might advertise those addresses to the other connection endpoint, which could learn IP addresses of
    # interfaces that are not visible otherwise"
    host = ScriptedHost()
    index = host.add_interface("10.0.5.1")
    host.host.add_address("10.0.5.9", index, host.now, hidden=True)
    listener = host.listen(80)
    peer = ScriptedPeer.connects(host, 80)
    peer.sends(b"x")
    connection = listener.accept()
    assert connection is not None
    host.host.add_address("10.0.5.8", index, host.now, hidden=True)  # nor one that comes later
    host.advance(host.now + 60_000_000)
    visible, hidden = (Endpoint.parse(name).address for name in ("10.0.5.1", "10.0.5.9"))
    assert {o.address for s in peer.takes() for o in s.options.mptcp if isinstance(o, AddAddr)} == {visible}
    local_addresses.add_local(connection, Endpoint(hidden), host.now)
    host.advance(host.now + 1_000_000)
    assert {o.address for s in peer.takes() for o in s.options.mptcp if isinstance(o, AddAddr)} == {hidden}


def test_removed_address_is_first_probed_then_reset() -> None:
    # RFC 8684 §3.4.2: "The receipt of REMOVE_ADDR SHOULD first trigger the sending of a TCP keepalive on the path"
    host, peer, connection = connected.server()
    second = peer.joins(address="10.0.1.2", address_id=3)
    second.takes()
    peer.acknowledges(RemoveAddr((3,)))
    (probe,) = second.takes()
    assert (probe.flags, probe.length, probe.seq) == (ACK, 0, (second.ack - 1) & 0xFFFFFFFF)
    host.advance(host.now + 10_000_000)
    resets = [s for s in second.takes() if s.flags & RST]
    assert len(resets) == 1
    assert len(connection.subflows()) == 1


def test_removed_address_that_still_answers_is_kept() -> None:
    # RFC 8684 §3.4.2: "if a response is received, the path SHOULD NOT be removed"
    host, peer, connection = connected.server()
    second = peer.joins(address="10.0.1.2", address_id=3)
    second.takes()
    peer.acknowledges(RemoveAddr((3,)))
    for _ in range(20):
        if second.takes():
            second.acknowledges()
        host.advance(host.now + 500_000)
    assert len(connection.subflows()) == 2


def test_what_was_under_way_when_an_address_was_removed_is_no_answer() -> None:
    # RFC 8684 §3.4.2: "SHOULD first trigger the sending of a TCP keepalive on the path"
    host, peer, connection = connected.server()
    second = peer.joins(address="10.0.1.2", address_id=3)
    second.takes()
    peer.acknowledges(RemoveAddr((3,)))
    second.acknowledges()
    host.advance(host.now + 10_000_000)
    assert len(connection.subflows()) == 1


def test_removal_of_an_unknown_address_is_ignored() -> None:
    # RFC 8684 §3.8: "Remove request for unknown Address ID: silently ignore"
    host, peer, connection = connected.server()
    peer.acknowledges(RemoveAddr((99, 98)))
    assert host.counters["remove_addr_unknown"] == 2
    assert len(connection.subflows()) == 1


def test_removing_an_address_of_ours_closes_its_subflows_and_tells_the_peer() -> None:  # RFC 8684 §3.4.2
    host, peer, connection = connected.client()
    connection.open_subflow(Endpoint.parse("10.0.1.1"), connection.remote, host.now)
    host.poll()
    host.host.remove_address("10.0.1.1", host.now)
    assert [o for s in peer.takes() for o in s.options.mptcp if isinstance(o, RemoveAddr)] == [RemoveAddr((1,))]
    assert [s.local.host for s in connection.subflows()] == ["10.0.0.1"]


def test_mp_prio_changes_where_data_goes() -> None:  # RFC 8684 §3.3.8
    host, peer, connection = connected.server()
    second = peer.joins(address="10.0.1.2")
    second.takes()
    second.acknowledges()
    peer.acknowledges(MpPrio(True))
    connection.write(bytes(1000), host.now)
    assert sum(s.length for s in peer.takes()) == 0
    assert sum(s.length for s in second.takes()) == 1000
    second.acknowledges()
    peer.acknowledges(MpPrio(False))
    second.acknowledges(MpPrio(True))
    connection.write(bytes(1000), host.now)
    assert sum(s.length for s in peer.takes()) == 1000


def test_set_backup_sends_mp_prio_on_that_subflow() -> None:
    host, peer, connection = connected.server()
    second = peer.joins(address="10.0.1.2")
    second.takes()
    connection.set_backup(2, True, host.now)
    assert [o for s in second.takes() for o in s.options.mptcp if isinstance(o, MpPrio)] == [MpPrio(True)]
    assert [o for s in peer.takes() for o in s.options.mptcp if isinstance(o, MpPrio)] == []


def test_what_cannot_be_done_says_why() -> None:
    host, peer, connection = connected.client()
    with pytest.raises(PathError, match="not a usable address"):
        connection.open_subflow(Endpoint.parse("10.99.0.1"), connection.remote, host.now)
    with pytest.raises(PathError, match="different families"):
        connection.open_subflow(Endpoint.parse("10.0.1.1"), Endpoint.parse("fd00::1", 80), host.now)
    with pytest.raises(PathError, match="no subflow has the id 77"):
        connection.close_subflow(77, host.now)
    with pytest.raises(PathError, match="never used nor announced"):
        connection.remove_address(Endpoint.parse("10.99.0.1").address, host.now)
    del peer


def test_a_lost_subflow_is_opened_again_with_back_off() -> None:
    host, peer, connection = connected.client(ConnectionConfig())
    (syn,) = [s for s in host.sends_to() if s.segment.flags == SYN]
    host.receives(
        builders.rst(MpTcprst(2, True), ack=syn.segment.seq + 1), source=syn.destination, destination=syn.source,
        interface=1,
    )  # fmt: skip
    assert len(connection.subflows()) == 1
    host.advance(host.now + 900_000)
    assert [s for s in host.sends() if s.flags == SYN] == []
    host.advance(host.now + 200_000)
    assert len([s for s in host.sends() if s.flags == SYN]) == 1
    del peer


def test_a_join_refused_for_good_is_not_tried_again() -> None:
    # RFC 8684 §3.9.3: "if an MP_JOIN fails, it SHOULD NOT attempt to connect to the same IP address and port during the
    # lifetime of the connection, unless the other host refreshes the information with another ADD_ADDR option."
    host, peer, connection = connected.client(ConnectionConfig())
    (syn,) = [s for s in host.sends_to() if s.segment.flags == SYN]
    host.receives(
        builders.rst(MpTcprst(3), ack=syn.segment.seq + 1), source=syn.destination, destination=syn.source, interface=1
    )
    host.advance(host.now + 120_000_000)
    assert [s for s in host.sends() if s.flags == SYN] == []
    peer.acknowledges(announcement(peer, syn.destination.host, 4, syn.destination.port))
    assert [s for s in host.sends() if s.flags == SYN] != []
    del connection
