"""The features, each with what it takes to see that it works. A probe returns if it does; it raises the stack's error,
or ``NoEffect``."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import socket as std
import struct
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import mptcp
from mptcp.core.multipath.events import EventKind
from mptcp.info import Endpoint
from mptcp.sockets import structures
from mptcp.sockets.profiles import PROFILES
from mptcp.testing.features.scene import (
    ANNOUNCE,
    CLOSE,
    ECHO,
    PRIORITY,
    WITHDRAW,
    NoEffect,
    Scene,
    linger_reset,
)

TCP = std.IPPROTO_TCP

Trial = Callable[[Scene], Any]


@dataclass(frozen=True)
class Probe:
    section: str
    item: str
    trial: Trial
    feature: str = ""  # what ``Stack.supports`` calls it; "" where it has no such name


PROBES: list[Probe] = []


def probe(section: str, item: str, feature: str = "") -> Callable[[Trial], Trial]:
    def add(trial: Trial) -> Trial:
        PROBES.append(Probe(section, item, trial, feature))
        return trial

    return add


def expect(condition: object, what: str = "the answer is wrong") -> None:
    if not condition:
        raise NoEffect(what)


# --- RFC 6897 §5.3 --------------------------------------------------------------------------------------------------------
BASIC = "Basic API (RFC 6897 §5.3)"


@probe(BASIC, "TCP_MULTIPATH_ENABLE, read")
def enable_read(scene: Scene) -> Any:
    sock = scene.connect()
    expect(sock.getsockopt(TCP, mptcp.TCP_MULTIPATH_ENABLE) == 1)
    return sock


@probe(BASIC, "TCP_MULTIPATH_ENABLE, off before connect")
def enable_off(scene: Scene) -> Any:
    sock = scene.socket()
    sock.setsockopt(TCP, mptcp.TCP_MULTIPATH_ENABLE, 0)
    scene.connect(sock)
    expect(not sock.is_multipath)
    return sock


@probe(BASIC, "TCP_MULTIPATH_BIND before connect, TCP_MULTIPATH_ADD during the connection")
def add(scene: Scene) -> Any:
    sock = scene.socket()
    first, second = (Endpoint.parse(text) for text in scene.local)
    sock.setsockopt(TCP, mptcp.TCP_MULTIPATH_BIND, structures.pack_addresses([first]))
    scene.connect(sock)
    expect({address[0] for address in sock.local_addresses()} == {scene.local[0]})
    time.sleep(0.1)
    expect(scene.active(sock) == 1, "a subflow from another address was opened")
    sock.setsockopt(TCP, mptcp.TCP_MULTIPATH_ADD, structures.pack_addresses([second]))
    expect({address[0] for address in sock.local_addresses()} == set(scene.local))
    return sock


@probe(BASIC, "TCP_MULTIPATH_REMOVE, during the connection", "TCP_MULTIPATH_REMOVE")
def remove(scene: Scene) -> Any:
    sock, _ = scene.two_subflows()
    sock.setsockopt(TCP, mptcp.TCP_MULTIPATH_REMOVE, structures.pack_addresses([Endpoint.parse(scene.local[1])]))
    scene.until(lambda: scene.active(sock) == 1)
    scene.tell(sock, ECHO)
    return sock


@probe(BASIC, "TCP_MULTIPATH_SUBFLOWS")
def subflow_list(scene: Scene) -> Any:
    sock = scene.connect()
    expect(len(sock.getsockopt(TCP, mptcp.TCP_MULTIPATH_SUBFLOWS, 1024)) >= 32)
    return sock


@probe(BASIC, "TCP_MULTIPATH_CONNID")
def connection_id(scene: Scene) -> Any:
    sock = scene.connect()
    expect(struct.unpack("=I", sock.getsockopt(TCP, mptcp.TCP_MULTIPATH_CONNID, 4))[0] == sock.connection_id != 0)
    return sock


@probe(BASIC, "names of the first subflow, after it has gone")
def names(scene: Scene) -> Any:
    sock, _ = scene.two_subflows()
    before = sock.getsockname(), sock.getpeername()
    sock.close_subflow(next(s.id for s in sock.subflows() if s.initial), reset=True)
    scene.until(lambda: scene.active(sock) == 1)
    scene.tell(sock, ECHO)
    expect((sock.getsockname(), sock.getpeername()) == before)
    return sock


@probe(BASIC, "fate sharing with the first subflow", "fate_sharing")
def fate(scene: Scene) -> Any:
    sock = scene.connect()
    sock.fate_sharing = True
    expect(sock.fate_sharing)
    return sock


# --- draft-hesmans-mptcp-socket -------------------------------------------------------------------------------------------
ENHANCED = "Enhanced API (draft-hesmans-mptcp-socket §3)"


@probe(ENHANCED, "MPTCP_GET_SUB_IDS")
def sub_ids(scene: Scene) -> Any:
    sock = scene.connect()
    expect(structures.unpack_sub_ids(sock.getsockopt(TCP, mptcp.MPTCP_GET_SUB_IDS, 64))[0][0] == 1)
    return sock


@probe(ENHANCED, "MPTCP_GET_SUB_TUPLE")
def sub_tuple(scene: Scene) -> Any:
    sock = scene.connect()
    found = mptcp.SubflowTuple.unpack(sock.getsockopt(TCP, mptcp.MPTCP_GET_SUB_TUPLE, b"\1" + bytes(99)))
    expect((found.local.host, found.remote.host) == (scene.local[0], scene.remote[0]))
    return sock


@probe(ENHANCED, "MPTCP_OPEN_SUB_TUPLE", "MPTCP_OPEN_SUB_TUPLE")
def open_tuple(scene: Scene) -> Any:
    sock = scene.connect()
    wanted = mptcp.SubflowTuple(Endpoint.parse(scene.local[1]), Endpoint.parse(scene.remote[1], scene.port))
    sock.getsockopt(TCP, mptcp.MPTCP_OPEN_SUB_TUPLE, wanted.pack())
    scene.until(lambda: scene.active(sock) == 2)
    return sock


@probe(ENHANCED, "open_subflow as a backup, by an interface", "open_subflow")
def open_backup(scene: Scene) -> Any:
    sock = scene.connect()
    names = {index: name for index, name in scene.stack.interfaces() if name != "lo"}  # type: ignore[attr-defined]
    chosen = sorted(names.values())[1]
    number = sock.open_subflow((scene.remote[1], scene.port), (scene.local[1], 0), backup=True, interface=chosen)
    scene.until(lambda: scene.active(sock) == 2)
    expect(next(s for s in sock.subflows() if s.id == number).backup)
    return sock


@probe(ENHANCED, "MPTCP_CLOSE_SUB_ID, with FIN", "MPTCP_CLOSE_SUB_ID")
def close_fin(scene: Scene) -> Any:
    sock, number = scene.two_subflows()
    sock.setsockopt(TCP, mptcp.MPTCP_CLOSE_SUB_ID, structures.pack_close_sub_id(number))
    scene.until(lambda: scene.active(sock) == 1)
    return sock


@probe(ENHANCED, "MPTCP_CLOSE_SUB_ID, with RST", "reset_subflow")
def close_rst(scene: Scene) -> Any:
    sock, number = scene.two_subflows()
    sock.setsockopt(TCP, mptcp.MPTCP_CLOSE_SUB_ID, structures.pack_close_sub_id(number, mptcp.RST))
    scene.until(lambda: scene.active(sock) == 1)
    return sock


@probe(ENHANCED, "half close of one subflow (SHUT_WR)", "half_close")
def half_close(scene: Scene) -> Any:
    sock, number = scene.two_subflows()
    sock.close_subflow(number, how=std.SHUT_WR)
    scene.until(lambda: scene.active(sock) == 1)
    return sock


@probe(ENHANCED, "set_backup (MP_PRIO)", "set_backup")
def set_backup(scene: Scene) -> Any:
    sock, number = scene.two_subflows()
    sock.set_backup(number, True)
    scene.until(lambda: next(s for s in sock.subflows() if s.id == number).backup)
    return sock


@probe(ENHANCED, "MPTCP_SUB_GETSOCKOPT: TCP_INFO")
def sub_info(scene: Scene) -> Any:
    sock = scene.connect()
    content, length = ctypes.create_string_buffer(256), ctypes.c_uint(256)
    asked = structures.pack_sub_sockopt(1, TCP, std.TCP_INFO, ctypes.addressof(content), ctypes.addressof(length))
    sock.getsockopt(TCP, mptcp.MPTCP_SUB_GETSOCKOPT, asked)
    expect(length.value >= 104 and struct.unpack_from("=I", content.raw, 16)[0] > 500)
    return sock


@probe(ENHANCED, "MPTCP_SUB_SETSOCKOPT: IP_TOS, IPV6_TCLASS", "set_subflow_option")
def sub_tos(scene: Scene) -> Any:
    sock = scene.connect()
    option = (std.IPPROTO_IP, std.IP_TOS) if scene.family == 4 else (std.IPPROTO_IPV6, std.IPV6_TCLASS)
    sock.set_subflow_option(1, *option, 0x28)
    expect(sock.get_subflow_option(1, *option) == 0x28)
    return sock


@probe(ENHANCED, "MPTCP_SUB_SETSOCKOPT: TCP_CONGESTION", "MPTCP_SUB_SETSOCKOPT")
def sub_congestion(scene: Scene) -> Any:
    sock = scene.connect()
    sock.set_subflow_option(1, TCP, std.TCP_CONGESTION, b"reno")
    scene.until(lambda: "reno" in sock.subflows()[0].congestion_control)
    return sock


# --- events ---------------------------------------------------------------------------------------------------------------
EVENTS = "Events (draft-hesmans-mptcp-socket §4)"


def wait_event(scene: Scene, stream: Any, kind: EventKind) -> Any:
    found: list[Any] = []

    def came() -> bool:
        while not found and (event := stream.poll()) is not None:
            if event.kind is kind:
                found.append(event)
        return bool(found)

    scene.until(came, f"no event {kind.value}")
    return found[0]


def two_heard_of(scene: Scene) -> tuple[Any, Any]:
    """A connection with two subflows, and its events, once both have been told: who only looks now and then may be late."""
    sock, _ = scene.two_subflows()
    stream = sock.events()
    for _ in range(2):
        wait_event(scene, stream, EventKind.SUBFLOW_ESTABLISHED)
    return sock, stream


@probe(EVENTS, "connection and subflow established")
def event_established(scene: Scene) -> Any:
    sock = scene.connect()
    stream = sock.events()
    wait_event(scene, stream, EventKind.ESTABLISHED)
    wait_event(scene, stream, EventKind.SUBFLOW_ESTABLISHED)
    return sock


@probe(EVENTS, "subflow closed by the peer")
def event_closed(scene: Scene) -> Any:
    sock, stream = two_heard_of(scene)
    scene.tell(sock, CLOSE)
    wait_event(scene, stream, EventKind.SUBFLOW_CLOSED)
    return sock


@probe(EVENTS, "... with the reason")
def event_reason(scene: Scene) -> Any:
    sock, stream = two_heard_of(scene)
    scene.tell(sock, CLOSE)
    expect(wait_event(scene, stream, EventKind.SUBFLOW_CLOSED).reason not in ("", "unknown"), "no reason is told")
    return sock


@probe(EVENTS, "address announced by the peer", "events")
def event_announced(scene: Scene) -> Any:
    sock = scene.connect()
    stream = sock.events()
    scene.tell(sock, ANNOUNCE)
    expect(wait_event(scene, stream, EventKind.ADDRESS_ANNOUNCED).remote.host == scene.remote[1])
    return sock


@probe(EVENTS, "address withdrawn by the peer")
def event_removed(scene: Scene) -> Any:
    sock = scene.connect()
    stream = sock.events()
    scene.tell(sock, ANNOUNCE)
    scene.tell(sock, WITHDRAW)
    wait_event(scene, stream, EventKind.ADDRESS_REMOVED)
    return sock


@probe(EVENTS, "priority changed by the peer")
def event_priority(scene: Scene) -> Any:
    sock, stream = two_heard_of(scene)
    scene.tell(sock, PRIORITY)
    expect(wait_event(scene, stream, EventKind.PRIORITY_CHANGED).backup)
    return sock


@probe(EVENTS, "as ancillary data of recvmsg (MPTCP_EVENTS)")
def event_ancillary(scene: Scene) -> Any:
    sock = scene.socket()
    sock.setsockopt(TCP, mptcp.MPTCP_EVENTS, 1 << structures.EVENT_NUMBERS[EventKind.ESTABLISHED])
    scene.connect(sock)
    sock.sendall(ECHO)
    _, ancillary, _, _ = sock.recvmsg(1, 4096)
    expect(any(kind == mptcp.MPTCP_EVENTS for _, kind, _ in ancillary), "no ancillary data")
    return sock


# --- RFC 6897 appendix A ----------------------------------------------------------------------------------------------------
ADVANCED = "Advanced API (RFC 6897 Appendix A)"


@probe(ADVANCED, "usage and statistics of each subflow (REQ6)", "usage")
def usage(scene: Scene) -> Any:
    sock = scene.connect()
    expect(sum(use.bytes_sent for use in sock.usage()) > 0)
    return sock


@probe(ADVANCED, "a wanted number of subflows (REQ7)", "wanted_subflows")
def wanted(scene: Scene) -> Any:
    sock = scene.connect()
    sock.wanted_subflows = 2
    scene.until(lambda: scene.active(sock) == 2)
    return sock


@probe(ADVANCED, "when subflows are set up (REQ10)")
def setup(scene: Scene) -> Any:
    sock = scene.socket()
    sock.set_subflow_setup("at-once")
    scene.connect(sock)
    scene.until(lambda: scene.active(sock) >= 2)
    return sock


@probe(ADVANCED, "expected octets, duration, rate (REQ9)")
def expected(scene: Scene) -> Any:
    sock = scene.socket()
    sock.expect(bytes=10_000)
    scene.connect(sock)
    expect(sock.expected.bytes == 10_000)
    return sock


@probe(ADVANCED, "a path manager in Python (REQ10)", "set_path_manager")
def path_manager(scene: Scene) -> Any:
    sock = scene.connect()
    sock.set_path_manager("fullmesh")
    scene.until(lambda: scene.active(sock) >= 2)
    return sock


@probe(ADVANCED, "a scheduler a connection (REQ11)", "set_scheduler")
def scheduler(scene: Scene) -> Any:
    sock = scene.connect()
    sock.set_scheduler("round-robin")
    expect(sock.scheduler == "round-robin")
    return sock


@probe(ADVANCED, "weights of subflows (REQ11)", "set_weight")
def weights(scene: Scene) -> Any:
    sock = scene.connect()
    sock.set_scheduler("weighted")
    sock.set_weight(1, 3)
    expect(sock.subflows()[0].weight == 3)
    return sock


@probe(ADVANCED, "redundancy (REQ12)", "redundancy")
def redundancy(scene: Scene) -> Any:
    sock = scene.connect()
    sock.redundancy = "all"
    expect(sock.redundancy == "all")
    return sock


def _profile(name: str) -> Trial:
    def trial(scene: Scene) -> Any:
        sock = scene.socket()
        sock.profile = name
        scene.connect(sock)
        expect(sock.profile == name)
        return sock

    return trial


for _name in PROFILES:
    probe(ADVANCED, f"profile {_name} (REQ8)", f"profile:{_name}")(_profile(_name))


# --- SCTP -------------------------------------------------------------------------------------------------------------------
SCTP = "SCTP's names (RFC 6458)"


@probe(SCTP, "sctp_bindx before connect")
def bindx(scene: Scene) -> Any:
    sock = scene.socket()
    mptcp.sctp_bindx(sock, [(scene.local[0], 0)], mptcp.SCTP_BINDX_ADD_ADDR)
    scene.connect(sock)
    expect(sock.getsockname()[0] == scene.local[0])
    return sock


@probe(SCTP, "sctp_connectx")
def connectx(scene: Scene) -> Any:
    sock = scene.socket()
    mptcp.sctp_connectx(sock, [(scene.remote[0], scene.port), (scene.remote[1], scene.port)])
    scene.tell(sock, ECHO)
    return sock


@probe(SCTP, "sctp_getladdrs, sctp_getpaddrs")
def getaddrs(scene: Scene) -> Any:
    sock = scene.connect()
    expect(mptcp.sctp_getpaddrs(sock)[0][0] == scene.remote[0])
    expect(scene.local[0] in {address[0] for address in mptcp.sctp_getladdrs(sock)})
    return sock


# --- the socket -------------------------------------------------------------------------------------------------------------
SOCKET = "The socket"


@probe(SOCKET, "sendmsg, MSG_PEEK, recv_into")
def messages(scene: Scene) -> Any:
    sock = scene.connect()
    sock.sendmsg([ECHO])
    expect(sock.recv(1, std.MSG_PEEK) == ECHO)
    buffer = bytearray(1)
    expect(sock.recv_into(buffer) == 1 and buffer == ECHO)
    return sock


@probe(SOCKET, "sendfile")
def sendfile(scene: Scene) -> Any:
    sock = scene.connect()
    with tempfile.TemporaryFile() as file:
        file.write(ECHO * 3)
        file.seek(0)
        expect(sock.sendfile(file) == 3)
    got = b""
    while len(got) < 3:
        got += sock.recv(3)
    return sock


@probe(SOCKET, "asyncio streams")
def streams(scene: Scene) -> None:
    async def talk() -> bytes:
        reader, writer = await mptcp.open_connection(scene.remote[0], scene.port)
        writer.write(ECHO)
        answer = await reader.readexactly(1)
        writer.close()
        await writer.wait_closed()
        return answer

    with mptcp.use(scene.stack):
        expect(asyncio.run(talk()) == ECHO)


@probe(SOCKET, "one thread reads while another writes; close wakes both")
def threads(scene: Scene) -> None:
    sock = scene.connect()
    ended = threading.Event()

    def read() -> None:
        try:
            while sock.recv(1):
                pass
        except OSError:
            pass
        ended.set()

    threading.Thread(target=read, daemon=True).start()
    sock.sendall(ECHO)
    sock.shutdown(std.SHUT_RDWR)
    sock.close()
    expect(ended.wait(5), "the reader still waits")


@probe(SOCKET, "its descriptor carries the octets (passing it to another process)")
def descriptor(scene: Scene) -> Any:
    sock = scene.connect()
    copy = os.dup(sock.fileno())
    try:
        sock.settimeout(1)
        os.write(copy, ECHO)
        expect(sock.recv(1) == ECHO)
    except TimeoutError:
        raise NoEffect("the descriptor tells when to read and write, nothing else") from None
    finally:
        os.close(copy)
    return sock


@probe(SOCKET, "TCP_USER_TIMEOUT", "TCP_USER_TIMEOUT")
def user_timeout(scene: Scene) -> Any:
    sock = scene.connect()
    sock.setsockopt(TCP, std.TCP_USER_TIMEOUT, 5000)
    expect(sock.getsockopt(TCP, std.TCP_USER_TIMEOUT) == 5000)
    return sock


class Finding(NamedTuple):
    """``answer``: "yes", the name of an errno, or "no" where the call was taken and nothing came of it; ``said``: why.
    ``supported``: what ``Stack.supports`` says; None where it has no name for it."""

    answer: str
    said: str = ""
    supported: bool | None = None


def run(scene: Scene, chosen: Probe) -> Finding:
    supported = bool(scene.stack.supports(chosen.feature)) if chosen.feature else None
    sock = None
    try:
        sock = chosen.trial(scene)
    except NoEffect as error:
        return Finding("no", str(error), supported)
    except OSError as error:
        number = error.errno or 0
        # Of the two names for one number, the one that the drafts use.
        name = "EOPNOTSUPP" if number == errno.EOPNOTSUPP else errno.errorcode.get(number, type(error).__name__)
        return Finding(name, (error.strerror or str(error)).strip(), supported)
    finally:
        if sock is not None:
            linger_reset(sock)
    return Finding("yes", "", supported)


def run_all(scene: Scene) -> dict[str, Finding]:
    """Every probe, each on a connection of its own."""
    return {chosen.item: run(scene, chosen) for chosen in PROBES}
