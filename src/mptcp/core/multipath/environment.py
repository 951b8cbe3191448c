"""What a connection needs of the host it lives on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mptcp.core.counters import Counters
from mptcp.core.entropy import Entropy
from mptcp.core.tcp.syn_cookies import Cookie, SynCookies
from mptcp.info import Endpoint

if TYPE_CHECKING:
    from mptcp.core.multipath.connection import Connection
    from mptcp.core.multipath.events import Event
    from mptcp.core.multipath.subflow import Subflow


@dataclass(frozen=True, slots=True)
class Route:
    """How packets from one local address leave: interface, its MTU, the largest super-segment it takes (0: none)."""

    interface: int
    mtu: int
    gso_max_bytes: int


class Environment(ABC):
    """The host, as its connections see it."""

    entropy: Entropy
    counters: Counters
    now: int  # of the call that is being carried out
    races: list[Connection]  # connects that a plain one races at present; some may have ended
    cookies: SynCookies
    cookie: Cookie | None  # while a connection is made for one: its number and key are the cookie's
    observer: Callable[[Connection, Event], None] | None = None  # hears of every event, besides the connection's user

    @abstractmethod
    def mark(self, connection: Connection) -> None:
        """``connection`` has something to send, a new deadline, or news for its user."""

    @abstractmethod
    def is_busy(self, interface: int) -> bool:
        """The link there takes nothing at the moment."""

    @abstractmethod
    def has_room(self, interface: int) -> bool:
        """Data may be given to subflows there: the link is not busy, and has not been given a great deal at once."""

    @abstractmethod
    def use_room(self, interface: int, length: int) -> None:
        """``length`` octets of data have been given to a subflow there."""

    @abstractmethod
    def hold(self, connection: Connection) -> None:
        """``connection`` is to be marked once a busy interface is free."""

    @abstractmethod
    def new_key(self, version: int) -> int:
        """A key whose token no connection of this host has."""

    @abstractmethod
    def register_token(self, token: int, connection: Connection) -> None: ...

    @abstractmethod
    def is_token_taken(self, token: int) -> bool: ...

    @abstractmethod
    def forget(self, connection: Connection) -> None:
        """One that has just been made and is not wanted: as if it had never been."""

    @abstractmethod
    def release_token(self, token: int) -> None: ...

    @abstractmethod
    def register(self, subflow: Subflow) -> None:
        """Packets for its addresses and ports now reach ``subflow``."""

    @abstractmethod
    def release(self, subflow: Subflow) -> None: ...

    @abstractmethod
    def route(self, local: bytes, interface: int = -1) -> Route | None:
        """None: ``local`` is no usable address of this host. ``interface``: leave by that one, not by the address's."""

    @abstractmethod
    def local_addresses(self) -> Sequence[bytes]:
        """Usable ones, in the order they were added; hidden ones are not among them."""

    @abstractmethod
    def interface_of(self, address: bytes) -> int:
        """The interface an address of this host is on, up or not; -1: it is none."""

    @abstractmethod
    def new_port(self, local: bytes, remote: Endpoint, preferred: int = 0) -> int:
        """A free local port for a subflow to ``remote``; 0 if there is none."""

    @abstractmethod
    def new_isn(self, local: Endpoint, remote: Endpoint, now: int) -> int: ...

    @abstractmethod
    def mptcp_failed(self, connection: Connection, now: int) -> None:
        """SYNs with MP_CAPABLE were not answered, one without was."""

    @abstractmethod
    def mptcp_worked(self, connection: Connection) -> None:
        """Options pass in both directions."""
