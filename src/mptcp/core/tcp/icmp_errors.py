"""ICMP errors about a connection: believed only if they quote what is outstanding (RFC 1122 §4.2.3.9, RFC 5927)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mptcp.core.tcp import timers
from mptcp.core.tcp.states import OPENING, State
from mptcp.core.wire.icmp import IcmpError, IcmpKind
from mptcp.core.wire.sequence import MASK32, unwrap32
from mptcp.errors import ConnectionFailed, ConnectionRefused, HostUnreachable, NetworkUnreachable

if TYPE_CHECKING:
    from mptcp.core.tcp.connection import Connection


def handle_icmp(connection: Connection, error: IcmpError, now: int) -> None:
    counters = connection.counters
    state = connection.state
    if state in (State.CLOSED, State.LISTEN, State.TIME_WAIT):
        counters.bump("icmp_for_closed_connection")  # about a connection that is over
        return
    sender = connection.sender
    if state in OPENING:
        plausible = error.seq == connection.iss & MASK32
    else:
        # RFC 5927 §4.1: what is quoted must be outstanding, SND.UNA =< SEG.SEQ < SND.NXT
        plausible = sender.una <= unwrap32(error.seq, sender.una) < sender.nxt
    if not plausible:
        counters.bump("icmp_bad_sequence")  # quotes nothing that is outstanding: forged or late
        return
    if error.kind is IcmpKind.PACKET_TOO_BIG:
        handle_too_big(connection, error, now)
        return
    failure = as_failure(error)
    if failure is None:
        # RFC 1122 §4.2.3.9: time exceeded and parameter problem are soft errors
        counters.bump("icmp_soft")
        return
    if state is State.SYN_SENT:
        # RFC 1122 §4.2.3.9 counts network and host unreachable as soft errors, to be waited out. Linux ends an attempt
        # to connect with them (RFC 5461 §4.1 tells why many do); we do, so that the next address can be tried.
        counters.bump("icmp_hard")
        connection.end(failure, now)
        return
    # RFC 5927 §5.2: hard errors are treated as soft ones in the synchronized states: anyone could have sent them. What
    # they said is told to the application if the connection fails anyway.
    counters.bump("icmp_soft")
    connection.soft_error = failure


def handle_too_big(connection: Connection, error: IcmpError, now: int) -> None:
    if not connection.config.path_mtu_discovery or connection.state in OPENING:
        connection.counters.bump("icmp_too_big_ignored")  # path MTU discovery is off, or the handshake not done
        return
    path_mtu = connection.path_mtu
    if path_mtu.handle_too_big(error.mtu, 0, now):
        connection.counters.bump("path_mtu_reduced")  # a router told a smaller MTU
        # RFC 1191 §6.5: what was too large is sent again at once, without a reduction of the congestion window
        connection.sender.handle_path_mtu(connection.send_mss, now)
        timers.refresh_slow(connection)


def as_failure(error: IcmpError) -> ConnectionFailed | None:
    """The error an application knows; None: nothing to end an attempt for."""
    match error.kind:
        case IcmpKind.PORT_UNREACHABLE | IcmpKind.PROTOCOL_UNREACHABLE:
            return ConnectionRefused(f"ICMP: {error.kind.value}")
        case IcmpKind.NETWORK_UNREACHABLE:
            return NetworkUnreachable(f"ICMP: {error.kind.value}")
        case IcmpKind.HOST_UNREACHABLE | IcmpKind.PROHIBITED | IcmpKind.SOURCE_ROUTE_FAILED:
            return HostUnreachable(f"ICMP: {error.kind.value}")
        case _:
            return None
