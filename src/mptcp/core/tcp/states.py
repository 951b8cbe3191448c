"""The states of a TCP connection and the only transitions between them (RFC 9293 §3.3.2)."""

from __future__ import annotations

from enum import Enum
from typing import Final


class State(Enum):
    """RFC 9293 §3.3.2. LISTEN is the short time between the creation of a passive connection and its SYN."""

    CLOSED = "CLOSED"
    LISTEN = "LISTEN"
    SYN_SENT = "SYN-SENT"
    SYN_RECEIVED = "SYN-RECEIVED"
    ESTABLISHED = "ESTABLISHED"
    FIN_WAIT_1 = "FIN-WAIT-1"
    FIN_WAIT_2 = "FIN-WAIT-2"
    CLOSE_WAIT = "CLOSE-WAIT"
    CLOSING = "CLOSING"
    LAST_ACK = "LAST-ACK"
    TIME_WAIT = "TIME-WAIT"


_S = State

#: From each state, where a connection may go. Every change of state goes through ``Connection.become``, which checks.
TRANSITIONS: Final[dict[State, frozenset[State]]] = {
    _S.CLOSED: frozenset({_S.LISTEN, _S.SYN_SENT}),
    _S.LISTEN: frozenset({_S.SYN_RECEIVED, _S.SYN_SENT, _S.CLOSED}),
    _S.SYN_SENT: frozenset({_S.ESTABLISHED, _S.SYN_RECEIVED, _S.CLOSED}),
    _S.SYN_RECEIVED: frozenset({_S.ESTABLISHED, _S.FIN_WAIT_1, _S.CLOSED}),
    _S.ESTABLISHED: frozenset({_S.FIN_WAIT_1, _S.CLOSE_WAIT, _S.CLOSED}),
    _S.FIN_WAIT_1: frozenset({_S.FIN_WAIT_2, _S.CLOSING, _S.TIME_WAIT, _S.CLOSED}),
    _S.FIN_WAIT_2: frozenset({_S.TIME_WAIT, _S.CLOSED}),
    _S.CLOSE_WAIT: frozenset({_S.LAST_ACK, _S.CLOSED}),
    _S.CLOSING: frozenset({_S.TIME_WAIT, _S.CLOSED}),
    _S.LAST_ACK: frozenset({_S.CLOSED}),
    _S.TIME_WAIT: frozenset({_S.CLOSED}),
}

#: Both sides have each other's initial sequence number, confirmed (RFC 9293 §3.5.3).
SYNCHRONIZED: Final = frozenset(
    {_S.ESTABLISHED, _S.FIN_WAIT_1, _S.FIN_WAIT_2, _S.CLOSE_WAIT, _S.CLOSING, _S.LAST_ACK, _S.TIME_WAIT}
)

#: The handshake is not finished.
OPENING: Final = frozenset({_S.LISTEN, _S.SYN_SENT, _S.SYN_RECEIVED})

#: The peer's data is taken in (its FIN has not been reached).
RECEIVING: Final = frozenset({_S.ESTABLISHED, _S.FIN_WAIT_1, _S.FIN_WAIT_2})

#: What was written may (still) have to be sent, our FIN included.
SENDING: Final = frozenset({_S.ESTABLISHED, _S.CLOSE_WAIT, _S.FIN_WAIT_1, _S.CLOSING, _S.LAST_ACK})

#: The application may still write.
WRITABLE: Final = frozenset({_S.SYN_SENT, _S.SYN_RECEIVED, _S.ESTABLISHED, _S.CLOSE_WAIT})
