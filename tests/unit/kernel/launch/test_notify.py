"""The listener against the kernel: every answer there is, and what happens when nobody waits any more."""

from __future__ import annotations

import errno
import os
import signal
import socket
import time
from collections.abc import Callable

import pytest

from mptcp.errors import NotSupportedError
from mptcp.kernel.launch import filter as bpf
from mptcp.kernel.launch import notify
from mptcp.kernel.launch.options import IPPROTO_MPTCP, make_socket

from .conftest import Watched

Watch = Callable[..., Watched]
SO_PROTOCOL = 38


def make_stream(kind: int = 0) -> tuple[int, int, bool]:
    """(protocol, descriptor flags, blocking) of a new socket."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | kind)
    flags = os.get_inheritable(sock.fileno())
    return sock.getsockopt(socket.SOL_SOCKET, SO_PROTOCOL), int(flags), os.get_blocking(sock.fileno())


def test_what_a_notification_tells(watch: Watch) -> None:
    child = watch(lambda: make_stream(socket.SOCK_NONBLOCK))
    asked = child.next()
    assert asked.pid == child.pid
    assert asked.number == bpf.own_architecture().socket
    assert asked.architecture == bpf.own_architecture().audit
    assert [asked.integer(index) for index in range(3)] == [2, 1 | bpf.SOCK_NONBLOCK | bpf.SOCK_CLOEXEC, 0]
    assert child.listener.is_waiting(asked.id)
    child.listener.proceed(asked.id)
    assert child.result() == f"({socket.IPPROTO_TCP}, 0, False)"


def test_an_argument_is_an_int() -> None:
    asked = notify.Notification(1, 1, 1, 1, (0xFFFF_FFFF_FFFF_FFFF, 0x1_0000_0005, 0x7FFF_FFFF, 0x8000_0000, 0, 0))
    assert [asked.integer(index) for index in range(4)] == [-1, 5, 0x7FFF_FFFF, -0x8000_0000]


@pytest.mark.parametrize("atomic", [True, False])
@pytest.mark.parametrize("cloexec", [True, False])
def test_a_descriptor_is_given(watch: Watch, atomic: bool, cloexec: bool) -> None:
    child = watch(make_stream)
    child.listener.atomic = atomic  # False: as with Linux 5.9 to 5.13
    asked = child.next()
    fd = make_socket(socket.AF_INET, IPPROTO_MPTCP)
    number = child.listener.give(asked.id, fd, cloexec=cloexec)
    os.close(fd)
    assert number > 2
    assert child.result() == f"({IPPROTO_MPTCP}, {int(not cloexec)}, True)"


def test_a_number_is_the_answer(watch: Watch) -> None:
    def work() -> int:
        a, _ = socket.socketpair()
        return a.setsockopt(6, 12, 1) or 77

    child = watch(work, ((6, 12),))
    child.listener.answer(child.next().id, 0)
    assert child.result() == "77"


def test_a_descriptor_is_replaced_while_the_call_waits(watch: Watch) -> None:
    def work() -> int:
        sock = socket.socket()
        sock.setsockopt(6, 18, 1000)
        return sock.getsockopt(socket.SOL_SOCKET, SO_PROTOCOL)

    child = watch(work, ((6, 18),))
    child.listener.proceed(child.next().id)
    asked = child.next()
    fd = make_socket(socket.AF_INET, IPPROTO_MPTCP)
    child.listener.replace(asked.id, fd, asked.integer(0), cloexec=True)
    os.close(fd)
    child.listener.answer(asked.id, 0)
    assert child.result() == str(IPPROTO_MPTCP)


def test_who_has_ended_waits_no_more(watch: Watch) -> None:
    child = watch(make_stream)
    asked = child.next()
    os.kill(child.pid, signal.SIGKILL)
    assert child.result() == ""
    deadline = time.monotonic() + 10
    while child.listener.is_waiting(asked.id) and time.monotonic() < deadline:
        time.sleep(0.001)
    for answer in (
        lambda: child.listener.proceed(asked.id),
        lambda: child.listener.answer(asked.id, 0),
        lambda: child.listener.give(asked.id, 0, cloexec=True),
        lambda: child.listener.replace(asked.id, 0, 9, cloexec=True),
    ):
        with pytest.raises(FileNotFoundError):
            answer()


def test_a_full_table_of_descriptors_is_the_programs_own_error(watch: Watch) -> None:
    import resource

    def work() -> object:
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
        return make_stream()

    child = watch(work)
    asked = child.next()
    fd = make_socket(socket.AF_INET, IPPROTO_MPTCP)
    with pytest.raises(OSError) as refused:
        child.listener.give(asked.id, fd, cloexec=True)
    os.close(fd)
    assert refused.value.errno == errno.EMFILE
    child.listener.proceed(asked.id)
    assert child.result() == "OSError(24, 'Too many open files')"


def test_signals_do_not_disturb_a_call_that_is_being_answered(watch: Watch) -> None:
    """SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV: as Go's preemption signals, without SA_RESTART, all the time."""

    def work() -> object:
        signal.signal(signal.SIGUSR1, lambda *_: None)
        signal.siginterrupt(signal.SIGUSR1, True)
        return make_stream()

    child = watch(work)
    asked = child.next()
    for _ in range(20):
        os.kill(child.pid, signal.SIGUSR1)
    fd = make_socket(socket.AF_INET, IPPROTO_MPTCP)
    child.listener.give(asked.id, fd, cloexec=True)
    os.close(fd)
    assert child.result() == f"({IPPROTO_MPTCP}, 0, True)"


def test_a_second_listener_is_refused(watch: Watch) -> None:
    def work() -> object:
        program = bpf.emit(bpf.socket_filter(bpf.own_architecture()))
        try:
            return notify.install(program)
        except OSError as error:
            return errno.errorcode[error.errno or 0]

    assert watch(work).result() == "'EBUSY'"


def test_without_a_supervisor_the_call_fails(watch: Watch) -> None:
    """What docs/run.md says of a supervisor that was killed."""
    go, going = os.pipe()

    def work() -> object:
        os.read(go, 1)
        return make_stream()

    child = watch(work)
    child.listener.close()
    os.write(going, b"x")
    assert child.result() == f"OSError({errno.ENOSYS}, 'Function not implemented')"
    os.close(go)
    os.close(going)


def test_the_sizes_of_structures_are_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    if not (able := notify.notification_support()):
        pytest.skip(able.reason)
    notif, response = notify.structure_sizes()
    assert notif >= 80
    assert response >= 24

    def says(notif: int, response: int) -> None:
        def kernel(operation: int, _flags: int, sizes: object) -> int:
            assert operation == notify.SECCOMP_GET_NOTIF_SIZES
            sizes[0], sizes[1], sizes[2] = notif, response, 64  # type: ignore[index]
            return 0

        monkeypatch.setattr(notify, "_seccomp", kernel)

    says(96, 32)
    assert notify.structure_sizes() == (96, 32)
    listener = notify.Listener(-1)
    assert listener._receive == 3 << 30 | 96 << 16 | 0x2100
    for wrong in ((79, 24), (80, 23), (0, 0), (65535, 24)):
        says(*wrong)
        with pytest.raises(NotSupportedError, match="octets"):
            notify.structure_sizes()


def test_a_kernel_without_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def kernel(*_: object) -> int:
        raise OSError(errno.EINVAL, "seccomp: Invalid argument")

    monkeypatch.setattr(notify, "_seccomp", kernel)
    able = notify.notification_support()
    assert not able
    assert "no seccomp user notification" in able.reason
    assert "5.9" in able.fix
