"""Connections ready for a test: a scripted host and its scripted peer, with the handshakes behind them."""

from mptcp.core.multipath.config import ConnectionConfig
from mptcp.core.multipath.connection import Connection
from mptcp.core.path_managers.base import PathManager
from mptcp.testing.peer import ScriptedPeer
from mptcp.testing.scripted import ScriptedHost

#: Opens and announces nothing by itself.
QUIET = ConnectionConfig(path_manager=PathManager)


def server(
    config: ConnectionConfig = QUIET, *, checksum: bool = False
) -> tuple[ScriptedHost, ScriptedPeer, Connection]:
    """The host listened, the peer connected and has sent one octet, which is read and acknowledged."""
    host = ScriptedHost()
    listener = host.listen(80, options=config)
    peer = ScriptedPeer.connects(host, 80, checksum=checksum)
    peer.sends(b"x")
    connection = listener.accept()
    assert connection is not None
    assert connection.read(1) == b"x"
    peer.takes()
    return host, peer, connection


def client(
    config: ConnectionConfig = QUIET, *, checksum: bool = False
) -> tuple[ScriptedHost, ScriptedPeer, Connection]:
    """The host connected, has a second address 10.0.1.1, and the peer has shown that options pass."""
    host = ScriptedHost()
    host.add_interface("10.0.1.1")
    connection = host.connect(options=config)
    peer = ScriptedPeer.accepts(host, checksum=checksum)
    peer.acknowledges()
    peer.takes()
    return host, peer, connection
