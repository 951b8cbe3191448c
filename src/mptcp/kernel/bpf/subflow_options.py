"""Options of one subflow, which has no descriptor: a program in the kernel visits the TCP sockets of a namespace and
calls setsockopt or getsockopt on the one with the subflow's addresses and ports (Linux 5.16; BPF iterator).

The program is loaded once; what it is to do is in a map, so a call costs as much as a visit. The kernel refuses what BPF
cannot do and what is a wrong value with the same number; here the first is ENOPROTOOPT, the second EINVAL.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import threading
from functools import cache
from typing import Final, NamedTuple, Self

from mptcp.errors import NotSupportedError, PathError
from mptcp.forking import freed_in_child
from mptcp.info import Endpoint, Support
from mptcp.kernel import features
from mptcp.kernel.bpf import btf
from mptcp.kernel.bpf.instructions import R0, R1, R2, R3, R4, R5, R7, R8, Assembler
from mptcp.kernel.bpf.option_table import INTEGER_BYTES, MAX_VALUE, SOL_SOCKET, SOL_TCP, find
from mptcp.kernel.bpf.program import Cell, SocketVisitor, system_call
from mptcp.kernel.namespace import NetNamespace

#: What the map holds: local port (host order), remote port (network order), level, name, size of the value, SET or GET;
#: both addresses as IPv6 has them (IPv4 mapped), whether they are IPv4; how many sockets were found, the helper's result.
_REQUEST: Final = struct.Struct("=H2sIIII4x16s16sIIq")
_LOCAL_PORT, _REMOTE_PORT, _LEVEL, _NAME, _SIZE, _OPERATION = 0, 2, 4, 8, 12, 16
_LOCAL, _REMOTE, _IS_IPV4, _FOUND, _RESULT = 24, 40, 56, 60, 64
_VALUE: Final = _REQUEST.size
_GET, _SET = 0, 1
#: The structures have some 100 octets; an instruction has room for 15 bits.
_MAX_OFFSET: Final = 4096
_MAPPED: Final = bytes(10) + b"\xff\xff"

#: enum bpf_func_id (linux/bpf.h)
_BPF_SETSOCKOPT: Final = 49
_BPF_GETSOCKOPT: Final = 57
#: Sockets in these states are no whole ones: TIME_WAIT, and one for which only a SYN has come.
_TIME_WAIT: Final = 6
_NEW_SYN_RECEIVED: Final = 12


class _Offsets(NamedTuple):
    """Where the kernel keeps what the program looks at."""

    function: int  # number of ``bpf_iter_tcp``
    sk_common: int
    family: int
    state: int
    local_port: int
    remote_port: int
    local_v4: int
    remote_v4: int
    local_v6: int
    remote_v6: int


@cache
def _offsets() -> _Offsets:
    types = btf.read()
    names = (
        "skc_family", "skc_state", "skc_num", "skc_dport", "skc_rcv_saddr", "skc_daddr", "skc_v6_rcv_saddr",
        "skc_v6_daddr",
    )  # fmt: skip
    members = [types.member("bpf_iter__tcp", "sk_common"), *(types.member("sock_common", name) for name in names)]
    if max(members) > _MAX_OFFSET:
        raise btf.BtfError("the kernel's description of its sockets cannot be right")
    return _Offsets(types.find("bpf_iter_tcp", btf.KIND_FUNC), *members)


class SubflowOptions:
    """``setsockopt`` and ``getsockopt`` for single subflows (any TCP connection, in fact) of one network namespace.

    Any thread may call. Errors: PermissionError without the capabilities; NotSupportedError where the kernel cannot do it
    at all; PathError with ENOENT (no such subflow), ENOPROTOOPT (BPF cannot set or read this option), EINVAL (not this
    value), and what setsockopt itself says.
    """

    __slots__ = ("_cell", "_lock", "_namespace", "_owner", "_visitor")

    def __init__(self, namespace: NetNamespace | None = None) -> None:
        self._namespace = namespace or NetNamespace()
        self._lock = freed_in_child(threading.Lock())
        self._cell: Cell | None = None
        self._visitor: SocketVisitor | None = None
        self._owner = 0  # the process that loaded the program

    def set(self, local: Endpoint, remote: Endpoint, level: int, name: int, value: bytes) -> None:
        """``value`` as for setsockopt; it holds until the whole connection is given that option."""
        if len(value) > MAX_VALUE:
            raise PathError(f"an option of one subflow has at most {MAX_VALUE} octets")
        option = find(level, name)
        if (level, name) == (SOL_SOCKET, socket.SO_RCVLOWAT):
            # Some kernels would take the subflow for a connection here.
            raise _error(errno.ENOPROTOOPT, _SET, level, name)
        size = option.size if option is not None else INTEGER_BYTES
        self._call(_SET, local, remote, level, name, value[:size], min(len(value), size))

    def get(self, local: Endpoint, remote: Endpoint, level: int, name: int, size: int = 4) -> bytes:
        """Up to ``size`` octets, as many as the option has."""
        if size <= 0:
            raise PathError("an option has at least one octet")
        option = find(level, name)
        length = option.size if option is not None else INTEGER_BYTES
        return self._call(_GET, local, remote, level, name, b"", length)[:size]

    def supports(self) -> Support:
        """Whether this process may, and this kernel can."""
        try:
            system_call()
        except NotSupportedError as error:
            return Support(False, str(error), "")
        return features.subflow_options(self._namespace)

    def close(self) -> None:
        """Lets go of it; twice is as good as once."""
        with self._lock:
            self._forget()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- inside ------------------------------------------------------------------------------------------------------
    def _call(
        self, operation: int, local: Endpoint, remote: Endpoint, level: int, name: int, value: bytes, size: int
    ) -> bytes:
        for number, what in ((level, "a level"), (name, "the name of an option")):
            if not 0 <= number < 1 << 31:
                raise PathError(f"{number} is not {what}")
        with self._lock:
            result, content = self._run(operation, local, remote, level, name, value, size)
            if result == -errno.EINVAL and not self._is_known(operation, local, remote, level, name):
                result = -errno.ENOPROTOOPT
        if result:
            raise _error(-result, operation, level, name)
        return content[:size]

    def _run(
        self, operation: int, local: Endpoint, remote: Endpoint, level: int, name: int, value: bytes, size: int
    ) -> tuple[int, bytes]:
        """(0 or -errno, the value). With the lock."""
        cell, visitor = self._loaded()
        cell.write(_emit(operation, local, remote, level, name, size) + value)
        with self._namespace.entered():
            visitor.visit()
        content = cell.read()
        *_, found, result = _REQUEST.unpack_from(content)
        if not found:
            raise PathError(f"there is no subflow from {local} to {remote}", errno.ENOENT)
        return result, content[_VALUE:]

    def _is_known(self, operation: int, local: Endpoint, remote: Endpoint, level: int, name: int) -> bool:
        """Whether EINVAL was for the value: one that BPF can set, or at least read."""
        if operation == _GET:
            return False  # there is nothing wrong with how it was read
        option = find(level, name)
        if option is not None and option.can_set and not option.can_get:
            return True
        # Older kernels lack some of what the table has.
        result, _ = self._run(_GET, local, remote, level, name, b"", option.size if option else INTEGER_BYTES)
        return result == 0

    def _loaded(self) -> tuple[Cell, SocketVisitor]:
        if self._owner != os.getpid():
            self._forget()  # after a fork parent and child would write to one map
        if self._cell is None or self._visitor is None:
            offsets = _offsets()
            self._owner = os.getpid()
            self._cell = Cell(_VALUE + MAX_VALUE, "subflow_option")
            try:
                self._visitor = SocketVisitor(_assemble(offsets, self._cell.fd), offsets.function, "subflow_option")
            except BaseException:
                self._forget()
                raise
        return self._cell, self._visitor

    def _forget(self) -> None:
        cell, visitor, self._cell, self._visitor = self._cell, self._visitor, None, None
        for opened in (visitor, cell):
            if opened is not None:
                opened.close()


def _emit(operation: int, local: Endpoint, remote: Endpoint, level: int, name: int, size: int) -> bytes:
    is_v4 = len(local.address) == 4
    if is_v4 != (len(remote.address) == 4):
        raise PathError(f"{local} and {remote} are not of the same family")
    addresses = (_MAPPED + end.address if is_v4 else end.address for end in (local, remote))
    try:
        return _REQUEST.pack(
            local.port, remote.port.to_bytes(2, "big"), level, name, size, operation, *addresses, is_v4, 0, 0
        )
    except (struct.error, OverflowError):
        raise PathError(f"{local} and {remote} are no addresses with ports") from None


def _assemble(at: _Offsets, map_fd: int) -> bytes:
    code = Assembler()
    code.load(8, R7, R1, at.sk_common)
    code.jump("==", R7, 0, "out")  # after the last socket
    code.load_map_value(R8, map_fd)
    code.load(1, R1, R7, at.state)
    code.jump("==", R1, _TIME_WAIT, "out")
    code.jump("==", R1, _NEW_SYN_RECEIVED, "out")

    def compare(size: int, place: int, wanted: int) -> None:
        code.load(size, R1, R7, place)
        code.load(size, R2, R8, wanted)
        code.jump_registers("!=", R1, R2, "out")

    compare(2, at.local_port, _LOCAL_PORT)
    compare(2, at.remote_port, _REMOTE_PORT)
    code.load(2, R1, R7, at.family)
    code.jump("==", R1, socket.AF_INET6, "IPv6")
    code.jump("!=", R1, socket.AF_INET, "out")
    code.load(4, R1, R8, _IS_IPV4)
    code.jump("==", R1, 0, "out")
    compare(4, at.local_v4, _LOCAL + 12)
    compare(4, at.remote_v4, _REMOTE + 12)
    code.go("found")

    code.label("IPv6")  # of IPv4-mapped addresses, too
    for word in range(0, 16, 4):
        compare(4, at.local_v6 + word, _LOCAL + word)
        compare(4, at.remote_v6 + word, _REMOTE + word)

    code.label("found")
    code.increment(4, R8, _FOUND, R1)
    code.copy(R1, R7)
    code.load(4, R2, R8, _LEVEL)
    code.load(4, R3, R8, _NAME)
    code.copy(R4, R8)
    code.add(R4, _VALUE)
    code.load(4, R5, R8, _SIZE)
    # The verifier wants to see that the value is inside the map.
    code.jump("==", R5, 0, "no value")
    code.jump(">", R5, MAX_VALUE, "out")
    code.load(4, R0, R8, _OPERATION)
    code.jump("==", R0, _GET, "get")
    code.call(_BPF_SETSOCKOPT)
    code.go("called")
    code.label("get")
    code.call(_BPF_GETSOCKOPT)
    code.label("called")
    code.store(8, R8, _RESULT, R0)
    code.label("out")
    code.move(R0, 0)
    code.exit()

    code.label("no value")
    code.store_number(8, R8, _RESULT, -errno.EINVAL)
    code.go("out")
    return code.assemble()


def _error(number: int, operation: int, level: int, name: int) -> OSError:
    known = find(level, name)
    option = known.label if known is not None else f"option {name} of level {level}"
    verb = "read" if operation == _GET else "set"
    if number == errno.ENOPROTOOPT:
        why = f" ({known.note})" if known is not None and known.note else ""
        return PathError(f"{option} cannot be {verb} for one subflow{why}", number)
    if number == errno.EINVAL:
        return PathError(f"{option} does not take this value", number)
    if number == errno.ENOENT and (level, name) == (SOL_TCP, socket.TCP_CONGESTION):
        return PathError("the kernel has no congestion control of that name (loaded)", number)
    return PathError(f"{option} cannot be {verb} for this subflow: {os.strerror(number)}", number)
