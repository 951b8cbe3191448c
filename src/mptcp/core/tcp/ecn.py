"""Explicit congestion notification (RFC 3168): the state of a connection that has agreed to use it."""

from __future__ import annotations

from mptcp.core.wire.segment import CE, CWR, ECE


class Ecn:
    """The receiving side of a connection whose SYNs agreed on ECN: echo CE until CWR comes.

    The sending side is ``Sender.cwr_pending``, and ECT(0) on new data (``departure``).
    """

    __slots__ = ("ce_received", "echo")

    def __init__(self) -> None:
        self.echo = False
        self.ce_received = 0

    def handle_data(self, ecn: int, flags: int) -> None:
        """A segment with data arrived, with these bits in its IP header and TCP flags."""
        # RFC 3168 §6.1.3: "After the receipt of the CWR packet, acknowledgments for subsequent non-CE data packets do
        # not have the ECN-Echo flag set."
        if flags & CWR:
            self.echo = False
        if ecn == CE:
            self.ce_received += 1
            self.echo = True

    def data_flags(self) -> int:
        """ECE while it has to be repeated, for every acknowledgement."""
        return ECE if self.echo else 0
