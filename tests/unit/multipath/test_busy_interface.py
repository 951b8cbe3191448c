"""A link that takes no more: octets stay in the stream, where another path may take them."""

import pytest

from mptcp.info import Endpoint
from mptcp.testing import connected
from mptcp.testing.peer import ScriptedPeer
from mptcp.testing.scripted import ScriptedHost


def test_data_goes_over_the_interface_that_is_free() -> None:
    host, peer, connection = connected.server()
    host.add_interface("10.0.9.1")
    second = peer.joins(address="10.0.1.2", remote=Endpoint.parse("10.0.9.1", 80))
    second.takes()
    host.host.set_interface_busy(0, True)
    connection.write(b"over the second", host.now)
    assert peer.takes() == []
    assert [bytes(s.payload) for s in second.takes()] == [b"over the second"]


@pytest.mark.parametrize("multipath", [True, False])
def test_what_a_busy_interface_held_up_goes_once_it_is_free(multipath: bool) -> None:
    host = ScriptedHost()
    connection = host.connect(options=connected.QUIET.changed(multipath=multipath))
    peer = ScriptedPeer.accepts(host, key=1 if multipath else None)
    peer.takes()
    host.host.set_interface_busy(0, True)
    connection.write(b"held", host.now)
    assert peer.takes() == []
    host.host.set_interface_busy(0, False)
    assert [bytes(s.payload) for s in peer.takes()] == [b"held"]


def test_no_more_than_there_is_room_for_is_given_in_one_round() -> None:
    host, peer, connection = connected.client()
    mss = connection.subflows()[0].mss_bytes
    host.host.set_interface_busy(0, False, 2 * mss)
    connection.write(bytes(5 * mss), host.now)
    assert sum(s.length for s in peer.takes()) == 2 * mss
    host.host.set_interface_busy(0, False, 2 * mss)
    assert sum(s.length for s in peer.takes()) == 2 * mss
    assert connection.info().send_buffered_bytes == 5 * mss
