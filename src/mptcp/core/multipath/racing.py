"""A connect that gets no answer with MPTCP races one without (in the manner of RFC 6555): the first to answer is kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mptcp.core.multipath.connection_state import ConnectionState
from mptcp.core.multipath.creation import create_subflow
from mptcp.core.multipath.fallback import FallbackReason, become_plain
from mptcp.core.multipath.role import Role
from mptcp.core.units import MILLISECOND, NEVER
from mptcp.info import Endpoint

if TYPE_CHECKING:
    from mptcp.core.multipath.connection import Connection

#: Races of one host at a time: when many connects at once get no answer, more packets are no help.
MAX_RACES = 16

#: A race that should have begun so long ago tells that this host is slow, not the peer.
LATE_US = 50 * MILLISECOND


def start(connection: Connection, now: int) -> None:
    """``race_at`` has come: if nobody has answered yet, a SYN without MP_CAPABLE goes out from a port of its own."""
    # As RFC 6555 §4.2 has it for IPv6 and IPv4: middleboxes that drop SYNs with unknown options cost a moment then, not
    # the seconds of several retransmissions.
    late = now - connection.race_at
    connection.race_at = NEVER
    if connection.state is not ConnectionState.CONNECTING or connection.plain is not None or not connection.is_client:
        return
    environment = connection.environment
    environment.races = [c for c in environment.races if c.rival is not None and not c.is_closing]
    if late > LATE_US or len(environment.races) >= MAX_RACES:
        connection.counters.bump("race_put_off")
        connection.race_at = now + connection.config.race_plain_us
        return
    port = environment.new_port(connection.local.address, connection.remote)
    if not port or environment.route(connection.local.address) is None:
        return
    local = Endpoint(connection.local.address, port)
    rival = create_subflow(connection, Role.CAPABLE_CLIENT, local, connection.remote, now, multipath=False)
    rival.tcp.open(now)
    connection.rival = rival
    environment.races.append(connection)
    connection.counters.bump("race_started")
    connection.touch()


def settle(connection: Connection, now: int) -> None:
    """Looks who has won, if anybody has."""
    rival = connection.rival
    if rival is None:
        return
    if connection.state is not ConnectionState.CONNECTING or connection.plain is not None:
        connection.rival = None
        rival.tcp.abort(now)
        connection.forget_rival()
        connection.counters.bump("race_won_by_mptcp")
        return
    others = [s for s in connection.open_subflows() if s is not rival]
    if rival.tcp.is_established:
        connection.rival = None
        connection.fallback = FallbackReason.LOST_RACE
        connection.counters.bump("fallback_lost_race")
        connection.local = rival.tcp.local
        connection.initial_id = rival.id
        become_plain(connection, rival)
        for other in others:
            other.tcp.abort(now)
        if connection.data_sender.fin_dsn >= 0:
            rival.tcp.shutdown_write(now)
        # Learned as any other failure: the next connect does not try in vain.
        connection.environment.mptcp_failed(connection, now)
    elif rival.tcp.is_over:
        connection.rival = None
        if not others:
            connection.end(rival.tcp.error, now)
