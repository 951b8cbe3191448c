"""What happens when a deadline of a connection has come: one place for all of its timers (RFC 9293 §3.10.8)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from mptcp.core.tcp import handshake
from mptcp.core.tcp.keepalive import Keepalive, KeepaliveAction
from mptcp.core.tcp.sender import TimeoutKind
from mptcp.core.tcp.states import State
from mptcp.core.tcp.user_timeout import UserTimeout
from mptcp.core.units import NEVER
from mptcp.errors import ConnectionTimedOut

if TYPE_CHECKING:
    from mptcp.core.tcp.connection import Connection

#: After ``close`` nobody waits for the result any more: fewer timeouts in a row, and probes without answer, are enough.
ORPHAN_RETRIES: Final = 8


def handle_timeout(connection: Connection, now: int) -> None:
    ack = connection.receiver.ack
    if ack.deadline <= now:
        ack.handle_timeout()
    if connection.is_established and connection.sender.deadline <= now:
        handle_sender_timeout(connection, now)
    if connection.slow_at <= now:
        handle_slow_timeout(connection, now)
    if connection.timer <= now:
        handle_state_timeout(connection, now)


def handle_sender_timeout(connection: Connection, now: int) -> None:
    """Retransmission, probe and reordering timers are the sender's; whether to give up is decided here."""
    sender = connection.sender
    kind = sender.handle_timeout(now)
    if kind is TimeoutKind.RTO:
        retries = connection.config.data_retries
        if connection.orphan:
            retries = min(retries, ORPHAN_RETRIES)
        if sender.consecutive_timeouts > retries:
            # RFC 9293 §3.8.3 (MUST-20): "When the number of transmissions of the same segment reaches a threshold R2
            # greater than R1, close the connection."
            # data_retries timeouts in a row
            give_up(connection, "retransmission_limit", "the peer does not acknowledge", now)
            return
        path_mtu = connection.path_mtu
        if connection.config.path_mtu_discovery:
            longest = min(sender.nxt - sender.una, sender.mss) + path_mtu.mtu - connection.send_mss
            if path_mtu.handle_timeouts(sender.consecutive_timeouts, longest, now):
                connection.counters.bump("path_mtu_black_hole")  # large packets vanish: smaller ones from now on
                sender.handle_path_mtu(connection.send_mss, now)
                refresh_slow(connection)
        extension = connection.extension
        if extension is not None:
            extension.handle_timeout(now)
    elif kind is TimeoutKind.PERSIST and connection.orphan and sender.unanswered_probes > ORPHAN_RETRIES:
        # a peer that answers may keep its window closed for as long as it likes (RFC 9293 §3.8.6.1), one that does
        # not answer, to nobody, may not
        # closed by us, and the peer does not answer window probes
        give_up(connection, "probe_limit", "the peer does not answer", now)


def handle_slow_timeout(connection: Connection, now: int) -> None:
    """The lazy timers: keep-alive, user timeout, path MTU."""
    sender = connection.sender
    outstanding = sender.una < sender.nxt
    user_timeout = connection.user_timeout
    if (
        user_timeout is not None
        and user_timeout.deadline <= now
        and user_timeout.handle_timeout(sender.una < sender.end, now)
    ):
        # RFC 5482: not acknowledged for user_timeout_us
        give_up(connection, "user_timeout", "not acknowledged within the user timeout", now)
        return
    keepalive = connection.keepalive
    if keepalive is not None and keepalive.deadline <= now:
        action = keepalive.handle_timeout(connection.last_received_us, outstanding, now)
        if action is KeepaliveAction.GIVE_UP:
            # RFC 9293 §3.8.4: no answer to any probe
            give_up(connection, "keepalive_timeout", "no answer to keep-alive probes", now)
            return
        if action is KeepaliveAction.PROBE:
            connection.probe_wanted = True
    path_mtu = connection.path_mtu
    if path_mtu.raise_at <= now and path_mtu.handle_raise(sender.nxt, now):
        connection.counters.bump("path_mtu_raised")  # a larger packet size is tried again
        connection.update_mss()
    refresh_slow(connection)


def handle_state_timeout(connection: Connection, now: int) -> None:
    state = connection.state
    connection.timer = NEVER
    if state is State.SYN_SENT or state is State.SYN_RECEIVED:
        handshake.handle_timeout(connection, now)
    elif state is State.TIME_WAIT:
        # RFC 9293 §3.10.8: "If the time-wait timeout expires on a connection, delete the TCB, enter the CLOSED state"
        connection.end(None, now)
    elif state is State.FIN_WAIT_2:
        connection.counters.bump("fin_wait_2_timeout")  # closed by us, and the FIN of the peer never came
        connection.end(None, now)


def give_up(connection: Connection, counter: str, reason: str, now: int) -> None:
    """No more to be hoped for from the peer. The RST tells it, should it still be there."""
    connection.counters.bump(counter)
    connection.abort(now, connection.soft_error or ConnectionTimedOut(reason))


def arm_slow(connection: Connection, now: int) -> None:
    """Keep-alive and user timeout as the configuration says, from ``now``."""
    config = connection.config
    if not connection.is_established:
        return
    connection.keepalive = Keepalive(config, now) if config.keepalive else None
    if config.user_timeout_us == NEVER:
        connection.user_timeout = None
    else:
        connection.user_timeout = UserTimeout(config.user_timeout_us)
        if connection.sender.una < connection.sender.end:
            connection.user_timeout.handle_first_sent(now)
    refresh_slow(connection)


def refresh_slow(connection: Connection) -> None:
    """The earliest of the lazy deadlines."""
    deadline = connection.path_mtu.raise_at
    if connection.keepalive is not None:
        deadline = min(deadline, connection.keepalive.deadline)
    if connection.user_timeout is not None:
        deadline = min(deadline, connection.user_timeout.deadline)
    connection.slow_at = deadline
