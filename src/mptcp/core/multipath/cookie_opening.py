"""Passive opens without a half-open connection (``tcp.syn_cookies``): a SYN answered with a cookie, and the acknowledgement
that brings it back.

Either time a connection is made from the same facts, so that both have the same numbers, keys and options: the first
is asked for its SYN/ACK and forgotten, the second stays.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mptcp.core.multipath import keys, opening
from mptcp.core.multipath.listener import Listener
from mptcp.core.tcp import handshake, syn_cookies
from mptcp.core.tcp.syn_cookies import PERIOD_US, Cookie
from mptcp.core.units import NEVER
from mptcp.core.wire.segment import Segment
from mptcp.info import Endpoint

if TYPE_CHECKING:
    from mptcp.core.multipath.connection import Connection
    from mptcp.core.multipath.environment import Environment
    from mptcp.core.tcp.config import TcpConfig


def answer(
    environment: Environment, listener: Listener, local: Endpoint, remote: Endpoint, syn: Segment, now: int
) -> list[tuple[Segment, TcpConfig]]:
    """The SYN/ACK, and the settings it is sent with. Nothing of it is kept."""
    cookie = environment.cookies.make(local, remote, syn, listener.config.tcp.timestamps, now)
    connection = accept(environment, listener, cookie, local, remote, now)
    answers = [(segment, subflow.tcp.config) for subflow, segment in connection.poll_segments(now)]
    environment.forget(connection)
    listener.cookies += 1
    if listener.cookie_at < now - now % PERIOD_US:
        listener.cookie_before = listener.cookie_at
    listener.cookie_at = now
    environment.counters.bump("syn_cookie_sent")  # a SYN while there are too many half-open connections
    return answers


def accept_syn(
    environment: Environment, listener: Listener, local: Endpoint, remote: Endpoint, syn: Segment, now: int
) -> Connection:
    """A connection that is kept. It may be a SYN that was answered with a cookie before, and comes again: as long as that
    can be, it gets the same answer, for either may be the one that is acknowledged."""
    if not _are_good(listener, now):
        return opening.accept(environment, listener.config, local, remote, syn, now)
    cookie = environment.cookies.make(local, remote, syn, listener.config.tcp.timestamps, now)
    return accept(environment, listener, cookie, local, remote, now)


def is_ambiguous(listener: Listener, now: int) -> bool:
    """Whether a SYN that comes now may be one that was answered in the period before, with another number. It can only be
    answered with a cookie: what is kept would refuse the acknowledgement of the first answer with RST.

    SYNs come again within half a period, and so the cookies of this half make nothing ambiguous in the next period.
    """
    begin = now - now % PERIOD_US
    earlier = listener.cookie_at if listener.cookie_at < begin else listener.cookie_before
    return now - begin < PERIOD_US // 2 and begin - earlier <= PERIOD_US // 2


def check(
    environment: Environment, listener: Listener, local: Endpoint, remote: Endpoint, ack: Segment, now: int
) -> Cookie | None:
    """What ``ack`` brings back; None if that is no cookie of ours."""
    if not _are_good(listener, now):
        return None
    return environment.cookies.check(local, remote, ack, listener.config.tcp.timestamps, now)


def is_early(
    environment: Environment, listener: Listener, local: Endpoint, remote: Endpoint, ack: Segment, now: int
) -> bool:
    """Whether to say nothing to ``ack``, which follows a third packet that has not been taken."""
    if not _are_good(listener, now) or not environment.cookies.is_early(local, remote, ack, now):
        return False
    environment.counters.bump("syn_cookie_early")  # a segment of a connection that has yet to begin; it comes again
    return True


def lacks_key(environment: Environment, ack: Segment) -> bool:
    """Whether to wait for another segment: the one with the client's key is late, or will be sent again."""
    if not syn_cookies.lacks_key(ack):
        return False
    environment.counters.bump("data_before_key")
    return True


def accept(
    environment: Environment, listener: Listener, cookie: Cookie, local: Endpoint, remote: Endpoint, now: int
) -> Connection:
    """The connection in SYN-RECEIVED; its SYN/ACK waits to be sent."""
    config = listener.config
    if environment.is_token_taken(keys.token_of(cookie.key)):
        config = config.changed(multipath=False)  # RFC 8684 §3.1: no two connections have one token
    environment.cookie = cookie
    try:
        connection = opening.accept(environment, config, local, remote, cookie.syn, now)
    finally:
        environment.cookie = None
    for subflow in connection.subflows_by_id.values():
        subflow.tcp.timestamps.offset = cookie.clock_offset
    return connection


def _are_good(listener: Listener, now: int) -> bool:
    """Whether cookies that this listener has sent can still come back."""
    return now < listener.cookie_at + 2 * PERIOD_US


def establish(connection: Connection, ack: Segment, now: int) -> None:
    """Its SYN/ACK has left long ago, and is acknowledged now."""
    connection.environment.counters.bump("syn_cookie_accepted")  # a cookie has come back
    for subflow in list(connection.subflows_by_id.values()):
        handshake.make_syn(subflow.tcp, now)
        subflow.tcp.syn_sent_at = NEVER
        subflow.tcp.handle_segment(ack, now)
