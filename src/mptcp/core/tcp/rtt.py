"""Round-trip time and retransmission timeout of one connection: RFC 6298, with the many samples of RFC 7323 §4."""

from __future__ import annotations

from mptcp.core.units import NEVER, SECOND

#: RFC 6298 §5.7: the timeout after a SYN had to be retransmitted.
SYN_LOST_RTO_US = 3 * SECOND
#: A minimum is forgotten when it is between one and two of these old (RFC 8985 §6.2 step 1 wants it to be windowed).
MIN_RTT_WINDOW_US = 150 * SECOND
#: Fraction bits of the smoothed values, so that small gains are not lost to rounding.
_SHIFT = 10


class RttEstimator:
    """Smoothed RTT, its variation, its windowed minimum and the RTO; everything in integer microseconds.

    ``rto_us`` is without back-off, ``timeout_us`` with it: what the timer is set to.
    """

    __slots__ = (
        "_current_min_us", "_earlier_min_us", "_rto_max_us", "_rto_min_us", "_srtt", "_variation", "_window_start_us",
        "backoff", "latest_us", "min_us", "rto_us", "rttvar_us", "samples", "srtt_us", "timeout_us",
    )  # fmt: skip

    def __init__(self, rto_initial_us: int, rto_min_us: int, rto_max_us: int) -> None:
        self._rto_min_us = rto_min_us
        self._rto_max_us = max(rto_max_us, rto_min_us)
        # RFC 6298 §2.1: "Until a round-trip time (RTT) measurement has been made for a segment sent between the
        # sender and receiver, the sender SHOULD set RTO <- 1 second"
        self.rto_us = self.timeout_us = min(rto_initial_us, self._rto_max_us)
        self.backoff = 0  # how often the timeout has doubled
        self.samples = 0
        self.srtt_us = 0  # 0: no sample yet
        self.rttvar_us = 0
        self.latest_us = 0
        self.min_us = NEVER  # NEVER: no sample yet
        self._srtt = 0  # the smoothed values, with fraction
        self._variation = 0
        self._current_min_us = NEVER
        self._earlier_min_us = NEVER
        self._window_start_us = 0

    def on_sample(self, rtt_us: int, now: int, expected_samples: int = 1) -> None:
        """One measurement, of octets that were sent once (Karn's algorithm) or told apart by timestamps.

        ``expected_samples`` is how many of them one round trip gives (RFC 7323 appendix G).
        """
        if rtt_us < 1:
            rtt_us = 1
        self.latest_us = rtt_us
        scaled = rtt_us << _SHIFT
        if not self.samples:
            # RFC 6298 §2.2: "SRTT <- R, RTTVAR <- R/2"
            srtt = scaled
            variation = scaled >> 1
        else:
            # RFC 6298 §2.3: "RTTVAR <- (1 - beta) * RTTVAR + beta * |SRTT - R'|; SRTT <- (1 - alpha) * SRTT + alpha
            # * R'", alpha=1/8 and beta=1/4; RFC 7323 appendix G: "alpha' = alpha / ExpectedSamples"
            srtt = self._srtt
            difference = scaled - srtt
            variation = self._variation
            variation += ((difference if difference > 0 else -difference) - variation) // (4 * expected_samples)
            srtt += difference // (8 * expected_samples)
        self._srtt = srtt
        self._variation = variation
        self.samples += 1
        self.srtt_us = srtt_us = (srtt >> _SHIFT) or 1
        self.rttvar_us = variation >> _SHIFT
        # RFC 6298 §2.4: "Whenever RTO is computed, if it is less than 1 second, then the RTO SHOULD be rounded up to 1
        # second." Linux instead never lets the variation term fall below 200 ms; we do that (TcpConfig.rto_min_us).
        rto = variation >> (_SHIFT - 2)
        if rto < self._rto_min_us:
            rto = self._rto_min_us
        rto += srtt_us
        if rto > self._rto_max_us:
            rto = self._rto_max_us
        self.rto_us = self.timeout_us = rto
        self.backoff = 0
        # the windowed minimum: of this period and of the one before
        if now - self._window_start_us > MIN_RTT_WINDOW_US:
            self._window_start_us = now
            self._earlier_min_us = self._current_min_us
            self._current_min_us = rtt_us
            self.min_us = min(rtt_us, self._earlier_min_us)
        elif rtt_us < self._current_min_us:
            self._current_min_us = rtt_us
            if rtt_us < self.min_us:
                self.min_us = rtt_us

    def on_timeout(self) -> None:
        """The retransmission timer has expired."""
        # RFC 6298 §5.5: "The host MUST set RTO <- RTO * 2 ("back off the timer")." §2.5: "A maximum value MAY be
        # placed on RTO provided it is at least 60 seconds."
        self.backoff += 1
        self.timeout_us = min(self.timeout_us * 2, self._rto_max_us)

    def on_syn_timeout(self) -> None:
        """A SYN had to be sent again before it was acknowledged."""
        # RFC 6298 §5.7: "If the timer expires awaiting the ACK of a SYN segment and the TCP implementation is using
        # an RTO less than 3 seconds, the RTO MUST be re-initialized to 3 seconds when data transmission begins"
        if not self.samples:
            self.rto_us = self.timeout_us = min(max(self.rto_us, SYN_LOST_RTO_US), self._rto_max_us)

    def reset_backoff(self) -> None:
        """The timeout turned out to be spurious."""
        self.backoff = 0
        self.timeout_us = self.rto_us
