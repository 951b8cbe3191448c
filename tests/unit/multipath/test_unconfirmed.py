"""What a client sends before the peer has shown that it knows both keys (RFC 8684 §3.1)."""

from mptcp.core.multipath.connection_state import ConnectionState
from mptcp.core.wire.mptcp_options import Dss, MpCapable, MpFastclose
from mptcp.errors import ConnectionWasReset
from mptcp.testing import connected
from mptcp.testing.peer import ScriptedPeer
from mptcp.testing.scripted import ScriptedHost


def test_data_fin_without_any_data_follows_the_repeated_key() -> None:
    # A server that has heard nothing but the third ACK stays silent, so that the DATA_FIN must not wait for it.
    host = ScriptedHost()
    connection = host.connect(options=connected.QUIET)
    peer = ScriptedPeer.accepts(host)
    peer.takes()
    connection.close(host.now)
    key, fin = peer.takes()
    assert any(isinstance(o, MpCapable) and o.sender_key == connection.local_key for o in key.options.mptcp)
    assert any(isinstance(o, Dss) and o.data_fin and o.length == 1 for o in fin.options.mptcp)


def test_fastclose_follows_the_repeated_key() -> None:  # RFC 8684 §3.5, option A
    host = ScriptedHost()
    connection = host.connect(options=connected.QUIET.changed(fastclose_by_reset=False))
    peer = ScriptedPeer.accepts(host)
    peer.takes()
    connection.abort(host.now)
    key, close = peer.takes()
    assert any(isinstance(o, MpCapable) for o in key.options.mptcp)
    assert any(isinstance(o, MpFastclose) for o in close.options.mptcp)


def test_a_client_whose_first_subflow_is_reset_at_once_hears_of_it_at_once() -> None:
    """Nobody can join a connection whose key the peer has not got: waiting for a path would be in vain."""
    host = ScriptedHost()
    connection = host.connect()
    peer = ScriptedPeer.accepts(host)
    peer.resets()
    assert connection.state is ConnectionState.CLOSED
    assert isinstance(connection.error, ConnectionWasReset)
