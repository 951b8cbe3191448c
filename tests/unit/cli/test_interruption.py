"""Ctrl-C, SIGTERM and SIGHUP: every verb ends in good order, with a status that says by what."""

from __future__ import annotations

import importlib.abc
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import NoReturn

import pytest

from mptcp import __main__
from mptcp.cli.interruption import Terminated, signals_interrupt, status_of


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_what_tidies_up_does_so_at_the_first_signal_and_the_second_is_the_systems(
    number: signal.Signals, status: int
) -> None:
    before = signal.signal(number, signal.SIG_DFL)
    during = []

    def end_in_the_middle() -> None:
        with signals_interrupt():
            try:
                os.kill(os.getpid(), number)
            finally:
                during.append(signal.getsignal(number))

    try:
        with pytest.raises(Terminated) as interruption:
            end_in_the_middle()
        assert during == [signal.SIG_DFL]
        assert status_of(interruption.value) == status
        assert status_of(KeyboardInterrupt()) == 130
    finally:
        signal.signal(number, before)


def test_what_the_caller_wants_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals_interrupt():
            os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_handler_that_a_verb_has_set_stays() -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        with signals_interrupt():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


def test_other_threads_hear_no_signals() -> None:
    failed: list[BaseException] = []

    def work() -> None:
        try:
            with signals_interrupt():
                pass
        except BaseException as error:  # noqa: BLE001
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert failed == []


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)], ids=str
)
def test_a_verb_that_waits_ends_with_one_line(number: signal.Signals, status: int) -> None:
    program = (
        "import signal, sys; signal.signal(signal.SIGHUP, signal.SIG_DFL); signal.signal(signal.SIGTERM, signal.SIG_DFL); "
        "signal.signal(signal.SIGINT, signal.default_int_handler); from mptcp.__main__ import main; sys.exit(main())"
    )  # as on a terminal, whatever the tests were started with
    command = [sys.executable, "-c", program, "events", "--stack", "user", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["event"] == "listening"
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (status, "", "mptcp: interrupted\n")


def test_ctrl_c_while_the_command_line_is_imported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Impatient(importlib.abc.MetaPathFinder):
        def find_spec(self, name: str, path: Sequence[str] | None, target: object = None) -> NoReturn:
            raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "mptcp.cli.app", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Impatient()])
    assert __main__.main() == 130
    assert capsys.readouterr() == ("", "mptcp: interrupted\n")
