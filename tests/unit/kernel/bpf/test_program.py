"""The system call: its number, its refusals."""

import ctypes
import errno
import os
from types import SimpleNamespace

import pytest

from mptcp.errors import NotSupportedError, PathError
from mptcp.info import Endpoint
from mptcp.kernel.bpf import option_table, program, subflow_options
from mptcp.kernel.bpf.subflow_options import SubflowOptions


def machine(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(machine=name))


def answer(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Every system call fails with that error."""

    def refuse(*_: object) -> int:
        ctypes.set_errno(number)
        return -1

    monkeypatch.setattr(program, "_libc", SimpleNamespace(syscall=refuse))


def test_numbers_of_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    if ctypes.sizeof(ctypes.c_void_p) != 8:
        pytest.skip("this Python has 32 bits")
    for name, number in (("x86_64", 321), ("aarch64", 280)):
        machine(monkeypatch, name)
        assert program.system_call() == number
    machine(monkeypatch, "vax")
    with pytest.raises(NotSupportedError, match="not known on vax"):
        program.system_call()
    told = SubflowOptions().supports()
    assert not told
    assert "vax" in told.reason


def test_a_program_of_32_bits_has_other_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, "x86_64")
    monkeypatch.setattr(ctypes, "sizeof", lambda _: 4)
    with pytest.raises(NotSupportedError, match="32-bit"):
        program.system_call()


@pytest.mark.parametrize(
    ("number", "kind", "words"),
    [
        (errno.EPERM, PermissionError, "CAP_BPF and CAP_PERFMON"),
        (errno.ENOSYS, NotSupportedError, "no BPF"),
        (errno.ENOMEM, OSError, "making a map: "),
    ],
)
def test_refusals(monkeypatch: pytest.MonkeyPatch, number: int, kind: type[OSError], words: str) -> None:
    machine(monkeypatch, "x86_64")
    answer(monkeypatch, number)
    with pytest.raises(kind, match=words) as caught:
        program.Cell(8, "cell")
    assert caught.value.errno == (errno.EOPNOTSUPP if kind is NotSupportedError else number)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EINVAL])
def test_what_the_verifier_refuses_is_not_supported(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    machine(monkeypatch, "x86_64")
    answer(monkeypatch, number)
    with pytest.raises(NotSupportedError, match="does not take the program: it does not say why"):
        program.load(bytes(8), 1, "program")


def test_arguments_that_cannot_be() -> None:
    """Nothing of the kernel is asked for these."""
    options = SubflowOptions()
    v4, v6 = Endpoint.parse("10.0.0.1", 1), Endpoint.parse("fd00::1", 1)
    for local, remote, level, name, value in (
        (v4, v4, -1, 1, b"1234"),
        (v4, v4, 6, 1 << 31, b"1234"),
        (v4, v4, 6, 1, bytes(option_table.MAX_VALUE + 1)),
    ):
        with pytest.raises(PathError) as caught:
            options.set(local, remote, level, name, value)
        assert caught.value.errno == errno.EINVAL
    with pytest.raises(PathError, match="octet"):
        options.get(v4, v4, 6, 1, 0)
    with pytest.raises(PathError, match=r"SO_RCVLOWAT.*the connection's") as caught:
        options.set(v6, v6, 1, 18, b"1234")
    assert caught.value.errno == errno.ENOPROTOOPT


def test_the_table_has_each_option_once() -> None:
    numbers = [(option.level, option.name) for option in option_table.OPTIONS]
    assert len(set(numbers)) == len(numbers)
    assert all(option_table.find(*number) for number in numbers)
    assert option_table.find(6, 9999) is None
    assert all(0 < option.size <= option_table.MAX_VALUE for option in option_table.OPTIONS)


def test_offsets_that_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel's description that is broken is no support, not a crash while assembling."""

    class Types:
        def find(self, name: str, kind: int) -> int:
            return 1

        def member(self, structure: str, name: str) -> int:
            return 40_000

    monkeypatch.setattr(subflow_options.btf, "read", Types)
    monkeypatch.setattr(subflow_options, "_offsets", subflow_options._offsets.__wrapped__)
    end = Endpoint.parse("10.0.0.1", 1)
    with pytest.raises(NotSupportedError, match="cannot be right"):
        SubflowOptions().get(end, end, 6, 1)
