"""What a program that knows nothing of MPTCP means by what it does (RFC 6897 §4), and how that is overruled (§5.3)."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from mptcp.core.multipath.config import ConnectionConfig
from mptcp.core.multipath.local_addresses import MAX_LISTED_ADDRESSES
from mptcp.core.units import KIB
from mptcp.errors import PathError
from mptcp.info import Endpoint

#: SO_SNDBUF or SO_RCVBUF below this is taken for a wish not to use MPTCP (RFC 6897 §4.4.3).
MIN_MULTIPATH_BUFFER_BYTES = 16 * KIB

BOUND = "the socket is bound to one address and TCP_MULTIPATH_ENABLE was not set (RFC 6897 §4.2.1)"
DEVICE = "the socket is bound to a device and TCP_MULTIPATH_ENABLE was not set (RFC 6897 §4.2.1)"
SMALL_BUFFERS = "the buffers are too small for several paths and TCP_MULTIPATH_ENABLE was not set (RFC 6897 §4.4.3)"
DISABLED = "TCP_MULTIPATH_ENABLE was set to 0"


@dataclass(frozen=True, slots=True)
class LegacyPolicy:
    """The local policy of a stack for sockets of programs that have not said what they want of MPTCP."""

    #: What a bind to a specific address or a device does. "disable": it turns MPTCP off where MPTCP was not asked for,
    #: else it restricts MPTCP to it, as RFC 6897 has it. "restrict": always the latter. "ignore": it only chooses where
    #: the first subflow comes from, as Linux has it.
    bind: Literal["disable", "restrict", "ignore"] = "disable"
    min_buffer_bytes: int = MIN_MULTIPATH_BUFFER_BYTES  # 0: no lower bound
    fate_sharing: bool = False  # RFC 6897 §4.2.2: "SHOULD be controlled by a local policy"


@dataclass(frozen=True, slots=True)
class MultipathSettings:
    """What one socket has been told of MPTCP before its connection. Shared by all that were told nothing."""

    aware: bool = False  # made as an MPTCP socket: with IPPROTO_MPTCP, a configuration, or a function of this package
    enabled: bool | None = None  # TCP_MULTIPATH_ENABLE; None: never set
    listed: tuple[Endpoint, ...] = ()  # TCP_MULTIPATH_ADD
    excluded: tuple[bytes, ...] = ()  # TCP_MULTIPATH_REMOVE
    device: str = ""  # SO_BINDTODEVICE
    fate_sharing: bool | None = None  # None: as the policy says
    events: int = 0  # which events ``recvmsg`` gives, a bit for each kind

    def changed(self, **changes: Any) -> MultipathSettings:
        return replace(self, **changes)

    def with_added(self, wanted: Sequence[Endpoint]) -> MultipathSettings:
        """These local addresses may be used. PathError ENOBUFS."""
        new = {e.address for e in wanted}
        listed = (*(e for e in self.listed if e.address not in new), *wanted)
        if len(listed) > MAX_LISTED_ADDRESSES:
            raise PathError(f"a connection takes {MAX_LISTED_ADDRESSES} addresses", errno.ENOBUFS)
        return self.changed(listed=listed, excluded=tuple(a for a in self.excluded if a not in new))

    def with_removed(self, unwanted: Sequence[Endpoint]) -> MultipathSettings:
        """These may not. PathError ENOBUFS."""
        gone = {e.address for e in unwanted}
        excluded = tuple(dict.fromkeys((*self.excluded, *gone)))
        if len(excluded) > MAX_LISTED_ADDRESSES:
            raise PathError("too many addresses are excluded already", errno.ENOBUFS)
        return self.changed(listed=tuple(e for e in self.listed if e.address not in gone), excluded=excluded)


DEFAULT_SETTINGS = MultipathSettings()
AWARE_SETTINGS = MultipathSettings(aware=True)


def permitted(settings: MultipathSettings, bound: Endpoint | None, device: Sequence[Endpoint]) -> list[Endpoint]:
    """The local addresses the application has named, by bind, by device or by ADD, without those it has removed."""
    result: list[Endpoint] = []
    if bound is not None and not bound.is_unspecified:
        result.append(Endpoint(bound.address))
    result += [e for e in device if e not in result]
    # A port that ADD names replaces "any" of the same address.
    named = {e.address for e in settings.listed}
    result = [e for e in result if e.address not in named] + list(settings.listed)
    if bound is not None and not bound.is_unspecified:
        result.sort(key=lambda e: e.address != bound.address)
    return [e for e in result if e.address not in settings.excluded]


def connection_config(
    config: ConnectionConfig,
    settings: MultipathSettings,
    policy: LegacyPolicy,
    bound: Endpoint | None,
    device: Sequence[Endpoint],
) -> ConnectionConfig:
    """``config`` as it applies to a connection or listener that begins now. ``device``: the addresses of the one the
    socket is bound to."""
    reason = ""
    if settings.enabled is False:
        # RFC 6897 §5.3.2: "In that case, MPTCP MUST NOT be used on that connection."
        reason = DISABLED
    elif settings.enabled is None:
        if not config.multipath:
            return config
        if not settings.aware and not settings.listed:
            specific = bound is not None and not bound.is_unspecified
            tcp = config.tcp
            if policy.bind == "disable" and (specific or settings.device):
                # RFC 6897 §4.2.1: "The binding to a specific address or interface implies that the application is not
                # aware of MPTCP and will disable the use of MPTCP on this connection."
                reason = BOUND if specific else DEVICE
            elif min(tcp.send_buffer_bytes, tcp.receive_buffer_max_bytes) < policy.min_buffer_bytes:
                # RFC 6897 §4.4.3: "An MPTCP implementation MAY set a lower bound for send and receive buffers and treat
                # a small buffer size request as an implicit request not to use MPTCP."
                reason = SMALL_BUFFERS
    if reason:
        return config.changed(multipath=False, disabled_reason=reason)
    fate = policy.fate_sharing if settings.fate_sharing is None else settings.fate_sharing
    changes: dict[str, object] = {}
    if not config.multipath:
        changes["multipath"] = True
    if fate != config.fate_sharing and (fate or settings.fate_sharing is not None):
        changes["fate_sharing"] = fate
    if policy.bind == "ignore" and not settings.listed:
        bound, device = None, ()
    named = permitted(settings, bound, device)
    if named or settings.listed or (settings.device and policy.bind != "ignore"):
        # RFC 6897 §5.3.2: "MPTCP MUST respect the application's choice and only use addresses that are explicitly
        # provided by the application."
        changes["local_addresses"] = tuple(named)
    if settings.excluded:
        changes["excluded_addresses"] = settings.excluded
    return config.changed(**changes) if changes else config
