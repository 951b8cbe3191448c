"""Which part a subflow has in its handshake."""

from enum import Enum


class Role(Enum):
    CAPABLE_CLIENT = "capable-client"
    CAPABLE_SERVER = "capable-server"
    JOIN_CLIENT = "join-client"
    JOIN_SERVER = "join-server"
