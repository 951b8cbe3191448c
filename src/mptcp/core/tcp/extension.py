"""The extension point of TCP: what a protocol above may add to one connection. MPTCP is built on it; TCP knows no more."""

from __future__ import annotations

from abc import ABC, abstractmethod
from enum import Enum
from typing import TYPE_CHECKING

from mptcp.core.wire.mptcp_options import MptcpOption
from mptcp.core.wire.segment import Segment

if TYPE_CHECKING:
    from mptcp.core.tcp.record import Record


class Verdict(Enum):
    """What is to happen to a segment after the extension has looked at its options."""

    ACCEPT = "accept"
    DROP = "drop"  # as if it had never arrived
    RESET = "reset"  # the connection is to be reset; ``reset_options`` gives the options of that RST


class Extension(ABC):
    """One per TCP connection. TCP calls it synchronously; it may call TCP's plain verbs but never ``handle_*``."""

    # --- what is sent -------------------------------------------------------------------------------------------
    @abstractmethod
    def syn_options(self) -> tuple[MptcpOption, ...]:
        """For our SYN or SYN/ACK (also each time it is retransmitted; TCP tells ``handle_syn_timeout`` before)."""

    @abstractmethod
    def ack_options(self, room: int) -> tuple[MptcpOption, ...]:
        """For a pure acknowledgement; ``room`` is what is left of the 40 octets after TCP's own, SACK excepted:
        TCP fits as many SACK blocks as remain."""

    @property
    def claims_whole_ack(self) -> bool:
        """The next pure acknowledgement needs all 40 octets: TCP leaves its timestamps out of it."""
        return False

    @abstractmethod
    def data_options(self, record: Record, room: int) -> tuple[MptcpOption, ...]:
        """For a segment that carries ``record`` (data or FIN), first time or retransmitted."""

    @abstractmethod
    def reset_options(self) -> tuple[MptcpOption, ...]:
        """For our RST."""

    @property
    @abstractmethod
    def data_overhead_bytes(self) -> int:
        """The most option octets ``data_options`` will use; TCP makes its segments that much smaller."""

    @property
    @abstractmethod
    def wants_to_send(self) -> bool:
        """Data waits above that only a closed window holds back (TCP then keeps its persist timer)."""

    @abstractmethod
    def receive_window(self) -> int:
        """Octets to advertise beyond what is acknowledged (at data level). TCP scales, and never shrinks it."""

    @property
    def repeats_syn_ack(self) -> bool:
        """A SYN/ACK is sent again when time has passed, not only when the SYN comes again."""
        return True

    # --- what comes in ------------------------------------------------------------------------------------------
    @abstractmethod
    def handle_syn_options(self, segment: Segment, now: int) -> Verdict:
        """The peer's SYN or SYN/ACK; before TCP acts on it."""

    @abstractmethod
    def handle_options(self, segment: Segment, now: int) -> Verdict:
        """Every acceptable later segment, before its acknowledgement and data are processed."""

    @abstractmethod
    def handle_data(self, ssn: int, payload: memoryview, now: int) -> None:
        """``payload`` is next in order; ``ssn`` counts from 1 at the first octet after the SYN."""

    @abstractmethod
    def handle_fin(self, now: int) -> None:
        """The peer's FIN is next in order: no more data on this subflow."""

    # --- what happens -------------------------------------------------------------------------------------------
    @abstractmethod
    def handle_established(self, now: int) -> None: ...

    @abstractmethod
    def handle_acked(self, una_ssn: int, now: int) -> None:
        """The peer acknowledged everything before ``una_ssn`` (counted as in ``handle_data``)."""

    @abstractmethod
    def handle_timeout(self, now: int) -> None:
        """A retransmission timeout (RTO) has fired for data."""

    @abstractmethod
    def handle_syn_timeout(self, count: int, now: int) -> None:
        """Our SYN or SYN/ACK is about to be sent again, for the ``count``-th time."""

    @abstractmethod
    def handle_reset(self, segment: Segment, now: int) -> None:
        """An acceptable RST has arrived; ``handle_closed`` follows."""

    @abstractmethod
    def handle_closed(self, error: Exception | None, now: int) -> None:
        """The connection is over (also when it goes to TIME-WAIT): None after an orderly close."""
