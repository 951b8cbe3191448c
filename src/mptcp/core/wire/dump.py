"""One line of text per packet, much as tcpdump writes them; every TCP and MPTCP option with all its fields."""

from __future__ import annotations

import ipaddress
from typing import Final

from mptcp.core.wire import icmp, ip, mptcp_options, tcp
from mptcp.core.wire import options as tcp_options
from mptcp.core.wire.checksum import pseudo_sum, verify_tcp
from mptcp.core.wire.ip import IpHeader
from mptcp.core.wire.mptcp_options import (
    AddAddr,
    Dss,
    MpCapable,
    MpExperimental,
    MpFail,
    MpFastclose,
    MpJoinAck,
    MpJoinSyn,
    MpJoinSynAck,
    MpPrio,
    MptcpOption,
    MpTcprst,
    MpUnknown,
    RemoveAddr,
)
from mptcp.core.wire.segment import ACK, SYN, Options, Segment

#: Flows of which a ``Dumper`` remembers where their numbers start; the oldest is forgotten first.
MAX_FLOWS: Final = 4096

#: Octets of the longest packet that a header can describe: what a capture claims beyond is not believed.
MAX_PACKET: Final = 40 + 65535

_FLAG_LETTERS: Final = ((0x01, "F"), (0x02, "S"), (0x04, "R"), (0x08, "P"), (0x10, "."), (0x20, "U"), (0x40, "E"),
                        (0x80, "W"), (0x100, "e"))  # fmt: skip

_RST_REASONS: Final = (
    "unspecified", "MPTCP-specific", "lack of resources", "administratively prohibited", "too much outstanding data",
    "unacceptable performance", "middlebox interference",
)  # fmt: skip

_Flow = tuple[bytes, int, bytes, int]


class Dumper:
    """Prints packets of a capture in their order.

    ``relative``: sequence numbers count from the first one seen of each flow. ``verbose``: fields of the IP header and
    whether the checksum is right.
    """

    __slots__ = ("_starts", "relative", "verbose")

    def __init__(self, relative: bool = True, verbose: bool = False) -> None:
        self.relative = relative
        self.verbose = verbose
        self._starts: dict[_Flow, int] = {}

    def line(self, data: bytes | memoryview, length: int = 0) -> str:
        """The text for one IP packet, whatever its octets are. Never raises.

        ``length``: octets that the packet had, where a capture with a snap length has kept but the first of them.
        """
        view = memoryview(data)
        captured = len(view)
        if captured < length:
            view = memoryview(bytes(view) + bytes(min(length, MAX_PACKET) - captured))
        header = ip.parse(view)
        if captured < length and (header is None or captured < header.transport_offset):
            return f"[truncated capture, {captured} of {length} octets: {bytes(view[: min(captured, 20)]).hex()}]"
        if header is None:
            shown = bytes(view[:20]).hex()
            return f"[malformed IP packet, {len(view)} octets: {shown}{'...' if len(view) > 20 else ''}]"
        prefix = f"IP{'6' if header.version == 6 else ''} {self._ip_fields(header)}"
        source, destination = _host(header.source), _host(header.destination)
        routing = ""
        if header.segments or header.segments_left:
            path = ",".join(_host(segment) for segment in header.segments)
            routing = f"srcrt (segleft={header.segments_left}, [{path}]) "
        octets = header.end - header.transport_offset
        if header.is_fragment:
            where = f"frag (0x{header.identification:x}|{header.fragment_offset}+{octets}) "
            return f"{prefix}{source} > {destination}: {routing}{where}proto {header.protocol}, length {octets}"
        if header.protocol == ip.TCP:
            return prefix + self._tcp(view, captured, header, source, destination, routing)
        if header.protocol in (ip.ICMP, ip.ICMPV6):
            if captured < header.end:
                return f"{prefix}{source} > {destination}: {routing}ICMP [truncated capture], length {octets}"
            return f"{prefix}{source} > {destination}: {routing}{_icmp(view, header)}, length {octets}"
        return f"{prefix}{source} > {destination}: {routing}proto {header.protocol}, length {octets}"

    def _ip_fields(self, header: IpHeader) -> str:
        if not self.verbose:
            return ""
        fragment = f", id {header.identification}, flags [{'DF' if header.dont_fragment else 'none'}]"
        return (
            f"({'tos' if header.version == 4 else 'class'} 0x{header.traffic_class:x}, "
            f"{'ttl' if header.version == 4 else 'hlim'} {header.hop_limit}"
            f"{fragment if header.version == 4 else ''}, length {header.end}) "
        )

    def _tcp(
        self, view: memoryview, captured: int, header: IpHeader, source: str, destination: str, routing: str
    ) -> str:
        start, end = header.transport_offset, header.end
        if end - start < tcp.HEADER_OCTETS:
            return f"{source} > {destination}: {routing}[truncated TCP header, {end - start} octets]"
        if captured < start + tcp.HEADER_OCTETS and captured < end:
            return f"{source} > {destination}: {routing}TCP [truncated capture], length {end - start}"
        source_port = view[start] << 8 | view[start + 1]
        destination_port = view[start + 2] << 8 | view[start + 3]
        head = f"{source}.{source_port} > {destination}.{destination_port}: {routing}"
        header_octets = view[start + 12] >> 4 << 2
        if not tcp.HEADER_OCTETS <= header_octets <= end - start:
            return f"{head}[bad TCP header length {header_octets}]"
        flags = (view[start + 12] & 1) << 8 | view[start + 13]
        seq = int.from_bytes(view[start + 4 : start + 8], "big")
        ack = int.from_bytes(view[start + 8 : start + 12], "big")
        length = end - start - header_octets
        flow = (header.source, source_port, header.final_destination, destination_port)
        back = (flow[2], flow[3], flow[0], flow[1])
        seq_start = self._start(flow, seq if flags & SYN else seq - 1 & 0xFFFFFFFF, bool(flags & SYN))
        ack_start = self._start(back, ack - 1 & 0xFFFFFFFF, False) if flags & ACK else 0
        # As tcpdump does, a SYN shows the number itself; all that follow count from it.
        shown_seq = seq if flags & SYN else seq - seq_start & 0xFFFFFFFF
        parts = [f"Flags [{flag_letters(flags)}]"]
        if self.verbose:
            verdict = "truncated capture"
            if captured >= end:
                right = verify_tcp(view, start, end, pseudo_sum(header.source, header.final_destination, ip.TCP))
                verdict = "correct" if right else "incorrect"
            checksum = int.from_bytes(view[start + 16 : start + 18], "big")
            parts.append(f"cksum 0x{checksum:04x} ({verdict})")
        if length or flags & 0x07:
            parts.append(f"seq {shown_seq}:{shown_seq + length & 0xFFFFFFFF}" if length else f"seq {shown_seq}")
        if flags & ACK:
            parts.append(f"ack {ack - ack_start & 0xFFFFFFFF}")
        parts.append(f"win {view[start + 14] << 8 | view[start + 15]}")
        if flags & 0x20:
            parts.append(f"urg {view[start + 18] << 8 | view[start + 19]}")
        if captured < start + header_octets and captured < end:
            parts.append("options [truncated capture]")
        elif header_octets > tcp.HEADER_OCTETS:
            texts = _walk(view, start + tcp.HEADER_OCTETS, start + header_octets, flags, ack_start)
            parts.append(f"options [{','.join(texts)}]")
        parts.append(f"length {length}")
        return head + ", ".join(parts)

    def _start(self, flow: _Flow, number: int, is_syn: bool) -> int:
        """The number that counts as 0 in ``flow``."""
        if not self.relative:
            return 0
        start = self._starts.get(flow)
        if start is None or is_syn:
            if len(self._starts) >= MAX_FLOWS and flow not in self._starts:
                del self._starts[next(iter(self._starts))]
            self._starts[flow] = start = number
        return start


def format_packet(data: bytes | memoryview, *, verbose: bool = False) -> str:
    """One line for one IP packet, with numbers as on the wire."""
    return Dumper(relative=False, verbose=verbose).line(data)


def format_segment(segment: Segment) -> str:
    """One line for a segment that is not in a packet."""
    parts = [f"Flags [{flag_letters(segment.flags)}]", f"seq {segment.seq}"]
    if segment.flags & ACK:
        parts.append(f"ack {segment.ack}")
    parts.append(f"win {segment.window}")
    texts = option_texts(segment.options)
    if texts:
        parts.append(f"options [{','.join(texts)}]")
    parts.append(f"length {segment.length}")
    return ", ".join(parts)


def flag_letters(flags: int) -> str:
    """TCP flags as tcpdump's letters: ``S.`` is SYN and ACK."""
    return "".join(letter for bit, letter in _FLAG_LETTERS if flags & bit) or "none"


def _host(address: bytes) -> str:
    return str(ipaddress.ip_address(address))


def _walk(view: memoryview, position: int, end: int, flags: int, sack_start: int) -> list[str]:
    """The options in the order in which they are there, padding included."""
    texts = []
    while position < end:
        kind = view[position]
        if kind == tcp_options.NOP:
            texts.append("nop")
            position += 1
            continue
        if kind == tcp_options.END:
            texts.append("eol")
            break
        length = view[position + 1] if position + 1 < end else 0
        if length < 2 or position + length > end:
            texts.append(f"[bad option {kind}: length {length} of {end - position}]")
            break
        option = tcp_options.parse(view, position, position + length, flags)
        if option is not None:
            texts += option_texts(option, sack_start)
        position += length
    return texts


def option_texts(options: Options, sack_start: int = 0) -> list[str]:
    """A text for each option; SACK edges count from ``sack_start``."""
    texts = []
    if options.mss is not None:
        texts.append(f"mss {options.mss}")
    if options.sack_permitted:
        texts.append("sackOK")
    if options.timestamp_value is not None:
        texts.append(f"TS val {options.timestamp_value} ecr {options.timestamp_echo}")
    if options.window_scale is not None:
        texts.append(f"wscale {options.window_scale}")
    if options.sack_blocks:
        blocks = "".join(
            f"{{{left - sack_start & 0xFFFFFFFF}:{right - sack_start & 0xFFFFFFFF}}}"
            for left, right in options.sack_blocks
        )
        texts.append(f"sack {len(options.sack_blocks)} {blocks}")
    if options.user_timeout is not None:
        unit = "min" if options.user_timeout & 0x8000 else "s"
        texts.append(f"uto {options.user_timeout & 0x7FFF}{unit}")
    if options.fast_open is not None:
        texts.append(f"tfo cookie {options.fast_open.hex()}" if options.fast_open else "tfo cookiereq")
    for kind, content in options.unknown:
        texts.append(f"unknown-{kind} 0x{content.hex()}" if content else f"unknown-{kind}")
    texts += [mptcp_text(option) for option in options.mptcp]
    return texts


def mptcp_text(option: MptcpOption) -> str:
    """``mptcp``, the option's length, its name and its fields."""
    return f"mptcp {mptcp_options.length(option)} {_mptcp_fields(option)}"


def _mptcp_fields(option: MptcpOption) -> str:
    match option:
        case Dss():
            text = "dss"
            if option.data_fin:
                text += " fin"
            if option.data_ack is not None:
                text += f" ack{8 if option.data_ack_wide else 4} {option.data_ack}"
            if option.dsn is not None:
                text += f" seq{8 if option.dsn_wide else 4} {option.dsn} subseq {option.ssn} len {option.length}"
                if option.checksum is not None:
                    text += f" csum 0x{option.checksum:04x}"
            return text
        case MpCapable():
            letters = "".join(chr(ord("A") + bit) for bit in range(8) if option.flags & 0x80 >> bit)
            text = f"capable v{option.version} [{letters}]"
            keys = [f"0x{key:016x}" for key in (option.sender_key, option.receiver_key) if key is not None]
            if keys:
                text += f" {{{','.join(keys)}}}"
            if option.data_length is not None:
                text += f" len {option.data_length}"
            if option.checksum is not None:
                text += f" csum 0x{option.checksum:04x}"
            return text
        case MpJoinSyn():
            backup = " backup" if option.backup else ""
            return f"join{backup} id {option.address_id} token 0x{option.token:08x} nonce 0x{option.nonce:08x}"
        case MpJoinSynAck():
            backup = " backup" if option.backup else ""
            return f"join{backup} id {option.address_id} hmac 0x{option.hmac.hex()} nonce 0x{option.nonce:08x}"
        case MpJoinAck():
            return f"join hmac 0x{option.hmac.hex()}"
        case AddAddr():
            text = f"add-addr{' v0' if option.version == 0 else ''}{' echo' if option.echo else ''}"
            text += f" id {option.address_id} {_host(option.address)}"
            if option.port is not None:
                text += f" port {option.port}"
            return text if option.hmac is None else f"{text} hmac 0x{option.hmac.hex()}"
        case RemoveAddr():
            return f"rem-addr id {' '.join(map(str, option.address_ids))}"
        case MpPrio():
            text = "prio backup" if option.backup else "prio"
            return text if option.address_id is None else f"{text} id {option.address_id}"
        case MpFail():
            return f"fail seq {option.dsn}"
        case MpFastclose():
            return f"fast-close key 0x{option.receiver_key:016x}"
        case MpTcprst():
            reason = _RST_REASONS[option.reason] if option.reason < len(_RST_REASONS) else "unknown"
            flags = f" flags 0x{option.flags:x}" if option.flags else ""
            return f"tcprst{' transient' if option.transient else ''}{flags} reason {option.reason} ({reason})"
        case MpExperimental():
            return f"experimental flags 0x{option.flags:x} 0x{option.content.hex()}"
        case MpUnknown():
            return f"unknown-{option.subtype} 0x{option.content.hex()}"


def _icmp(view: memoryview, header: IpHeader) -> str:
    name = "ICMP" if header.protocol == ip.ICMP else "ICMP6"
    start = header.transport_offset
    if header.end - start < 8:
        return f"{name} [truncated]"
    error = icmp.parse(view, header)
    if error is None:
        return f"{name} type {view[start]} code {view[start + 1]}"
    quoted = (
        f"{_host(error.source)}.{error.source_port} > {_host(error.destination)}.{error.destination_port} "
        f"tcp seq {error.seq}"
    )
    mtu = f" (mtu {error.mtu})" if error.kind is icmp.IcmpKind.PACKET_TOO_BIG else ""
    return f"{name} {error.kind.value}{mtu} for {quoted}"
