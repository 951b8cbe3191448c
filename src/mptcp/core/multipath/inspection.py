"""Snapshots of connections and subflows for users."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mptcp.core.congestion.base import INFINITE_SSTHRESH
from mptcp.core.multipath.subflow import Subflow
from mptcp.core.units import NEVER
from mptcp.info import ConnectionInfo, SubflowInfo

if TYPE_CHECKING:
    from mptcp.core.multipath.connection import Connection


def connection_info(connection: Connection) -> ConnectionInfo:
    sender, receiver = connection.data_sender, connection.data_receiver
    infos = connection.subflows()
    multipath = connection.is_multipath
    return ConnectionInfo(
        is_multipath=multipath,
        fallback_reason=connection.fallback_reason,
        token=connection.token,
        remote_token=connection.remote_token if multipath else 0,
        version=connection.version if multipath else -1,
        checksum=connection.checksum and multipath,
        state=connection.state.value,
        bytes_sent=sum(i.bytes_sent for i in infos),
        bytes_acked=sum(i.bytes_acked for i in infos),
        bytes_received=receiver.bytes_received if multipath else sum(i.bytes_received for i in infos),
        bytes_retransmitted=sum(i.bytes_retransmitted for i in infos),
        receive_window_bytes=receiver.window() if multipath else 0,
        send_window_bytes=max(0, sender.window_room),
        send_buffered_bytes=connection.buffered_bytes,
        receive_buffered_bytes=connection.readable_bytes,
        missed_events=connection.missed_events,
        subflows=infos,
    )


def subflow_info(subflow: Subflow) -> SubflowInfo:
    tcp, sender = subflow.tcp, subflow.tcp.sender
    ssthresh = sender.congestion.ssthresh_bytes
    return SubflowInfo(
        id=subflow.id,
        local=tcp.local,
        remote=tcp.remote,
        local_address_id=subflow.local_id,
        remote_address_id=subflow.remote_id,
        state=subflow.state,
        initial=subflow.id == subflow.connection.initial_id,
        backup=subflow.path.backup,
        srtt_us=sender.rtt.srtt_us,
        rttvar_us=sender.rtt.rttvar_us,
        rtt_min_us=0 if sender.rtt.min_us == NEVER else sender.rtt.min_us,
        rto_us=sender.rtt.rto_us,
        mss_bytes=sender.mss,
        cwnd_bytes=sender.congestion.cwnd_bytes,
        ssthresh_bytes=0 if ssthresh >= INFINITE_SSTHRESH else ssthresh,
        in_flight_bytes=sender.in_flight_bytes,
        bytes_sent=sender.bytes_sent,
        bytes_acked=sender.bytes_acked,
        bytes_received=tcp.receiver.bytes_received,
        bytes_retransmitted=sender.bytes_retransmitted,
        bytes_reinjected=subflow.bytes_reinjected,
        segments_sent=sender.segments_sent,
        segments_received=tcp.segments_received,
        retransmissions=sender.retransmissions,
        timeouts=sender.timeouts,
        congestion_control=sender.congestion.name,
        interface=str(subflow.interface),
        close_reason=subflow.close_reason,
        weight=subflow.path.weight,
        bytes_copied=subflow.bytes_copied,
    )
