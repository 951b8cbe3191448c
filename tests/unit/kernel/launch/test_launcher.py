"""Finding the program, what the system can do, and what happens when the supervisor does not come."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

import pytest

from mptcp.errors import NotSupportedError, PathError
from mptcp.info import Support
from mptcp.kernel.launch import filter as bpf
from mptcp.kernel.launch import launcher, notify, options
from mptcp.kernel.launch.exceptions import Exceptions


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """PATH is "first:second" below it."""
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path}/first:{tmp_path}/second:{tmp_path}/nowhere")
    return tmp_path


def put(path: Path, mode: int) -> str:
    path.write_text("#!/bin/sh\n")
    path.chmod(mode)
    return str(path)


def test_the_first_that_can_be_executed_is_found(folder: Path) -> None:
    put(folder / "first" / "tool", 0o644)
    second = put(folder / "second" / "tool", 0o755)
    (folder / "first" / "folder").mkdir()
    assert launcher.find_program("tool") == second
    assert launcher.find_program(second) == second
    with pytest.raises(FileNotFoundError, match="no program folder in PATH"):
        launcher.find_program("folder")


def test_an_empty_word_in_path_is_the_working_directory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(folder / "tool", 0o755)
    monkeypatch.chdir(folder)
    with pytest.raises(FileNotFoundError):
        launcher.find_program("tool")
    monkeypatch.setenv("PATH", ":/nowhere")
    assert launcher.find_program("tool") == "./tool"


def test_without_path_there_is_a_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PATH")
    assert launcher.find_program("sh").endswith("/sh")


@pytest.mark.parametrize(
    ("number", "reason", "fix"),
    [
        (errno.ENOPROTOOPT, "MPTCP is off here", "sysctl net.mptcp.enabled=1"),
        (errno.EPROTONOSUPPORT, "this kernel has no MPTCP", "5.6"),
        (errno.EINVAL, "this kernel has no MPTCP", "5.6"),
        (errno.EMFILE, "makes no MPTCP socket (Too many open files)", ""),
    ],
)
def test_why_there_is_no_mptcp(monkeypatch: pytest.MonkeyPatch, number: int, reason: str, fix: str) -> None:
    def refuse(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(options, "make_socket", refuse)
    able = launcher.support()
    assert not able
    assert reason in able.reason
    assert fix in able.fix


def test_an_unknown_processor_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bpf, "ARCHITECTURES", {})
    assert "not for" in launcher.support().reason


def test_without_notification_there_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "mptcp_support", lambda: Support(True))
    monkeypatch.setattr(notify, "notification_support", lambda: Support(False, "no seccomp", "a kernel"))
    assert launcher.support() == Support(False, "no seccomp", "a kernel")


class Stopped(Exception):
    """The program would be executed now."""


@pytest.fixture
def stops(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Nothing is installed in this process and nothing executed; what would have been installed."""
    installed: list[bytes] = []

    def install(program: bytes) -> int:
        installed.append(program)
        return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    def execute(path: str, arguments: Sequence[str]) -> NoReturn:
        raise Stopped(path, *arguments)

    monkeypatch.setattr(notify, "install", install)
    monkeypatch.setattr(launcher, "execute", execute)
    return installed


@pytest.mark.parametrize("reaches", [True, False])
def test_where_nobody_may_look_into_processes(
    stops: list[bytes], monkeypatch: pytest.MonkeyPatch, reaches: bool
) -> None:
    """kernel.yama.ptrace_scope: without it the program still runs, but not with exceptions that need it."""
    monkeypatch.setattr(launcher, "_reaches", lambda *_: reaches)
    with pytest.raises(Stopped):
        launcher.launch("/bin/true", ["true"], Exceptions.parse(programs=["x"]))
    assert len(stops) == 1
    for excepted in (Exceptions.parse(["127.0.0.1"]), Exceptions.parse(ports=["22"])):
        with pytest.raises(Stopped if reaches else NotSupportedError, match="true" if reaches else r"ptrace_scope"):
            launcher.launch("/bin/true", ["true"], excepted)
    assert len(stops) == (3 if reaches else 1), "no filter is installed that cannot be taken away again"


def test_a_supervisor_that_does_not_start(stops: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise OSError(errno.EPERM, "setsid")

    monkeypatch.setattr(launcher, "leave_the_job", fail)
    with pytest.raises(PathError, match="did not start") as failed:
        launcher.launch("/bin/true", ["true"], Exceptions())
    assert failed.value.errno == errno.EAGAIN
    assert stops == []


def test_a_log_that_cannot_be_opened(stops: list[bytes]) -> None:
    with pytest.raises(FileNotFoundError):
        launcher.launch("/bin/true", ["true"], Exceptions(), log="/nowhere/log")
    assert stops == []


def in_child(work: Callable[[], object]) -> str:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.dup2(writing, 100)
            text = repr(work())
        except BaseException as error:  # noqa: BLE001
            text = repr(error)
        os.write(100, text.encode())
        os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with open(reading) as pipe:
        return pipe.read()


def test_the_supervisor_keeps_only_what_it_needs() -> None:
    def work() -> object:
        a, b = socket.socketpair()
        launcher._keep_only(a.fileno(), 100, -1)
        numbers = {int(name) for name in os.listdir("/proc/self/fd")}
        null = {os.readlink(f"/proc/self/fd/{number}") for number in range(3)}
        try:
            os.fstat(b.fileno())
            return "the other end is open"
        except OSError:
            return {a.fileno(), 100, 0, 1, 2} <= numbers, len(numbers) <= 6, null

    assert in_child(work) == repr((True, True, {os.devnull}))


def test_reaching_is_tried_on_the_program_itself() -> None:
    assert launcher._reaches(os.getpid(), 0) in {True, False}
    assert not launcher._reaches(os.getpid(), 99_999), "no such descriptor"
