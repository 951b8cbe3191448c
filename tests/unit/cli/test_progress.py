"""What the display shows: on a terminal of 80 columns, without a terminal, and at the end of a demo."""

import io

import pytest
from rich.console import Console

from mptcp.cli import demo_result
from mptcp.cli.demo_result import DemoResult, PathResult
from mptcp.cli.progress import TransferDisplay
from mptcp.info import Endpoint, SubflowInfo, SubflowState


def info(identity: int, received: int, backup: bool = False) -> SubflowInfo:
    local, remote = Endpoint.parse(f"10.77.{identity}.1", 54321), Endpoint.parse("10.77.1.2", 8000)
    state = SubflowState.ACTIVE
    return SubflowInfo(identity, local, remote, 0, 0, state, backup=backup, bytes_received=received, srtt_us=12_300)


def console(width: int = 80, terminal: bool = True) -> Console:
    return Console(file=io.StringIO(), width=width, force_terminal=terminal, color_system=None)


def printed(target: Console) -> str:
    assert isinstance(target.file, io.StringIO)
    return target.file.getvalue()


def test_a_line_per_subflow_fits_80_columns() -> None:
    now = [0]
    display = TransferDisplay("file.bin", console=console(), clock_us=lambda: now[0])
    received = [0, 0]
    display.watch(lambda: [info(1, received[0]), info(2, received[1], backup=True)])
    display.total = 10 << 20
    for tenth in range(11):
        now[0] = tenth * 100_000
        received[:] = [tenth * 100_000, 0]
        display.done = sum(received)
        picture = display.render()
    target = console()
    target.print(picture)
    lines = printed(target).splitlines()
    assert "976.6 KiB of 10.0 MiB" in lines[0]
    assert "8.0 Mbit/s" in lines[0]
    first, second = (line.split() for line in lines[2:4])
    assert first == ["10.77.1.1", "→", "10.77.1.2", "active", "8.0", "Mbit/s", "976.6", "KiB", "12.3", "ms"]
    assert second == ["10.77.2.1", "→", "10.77.1.2", "backup", "0", "bit/s", "0", "B", "12.3", "ms"]
    assert all(len(line) <= 80 and "…" not in line for line in lines)


def test_unknown_length_and_a_note() -> None:
    display = TransferDisplay("file.bin", console=console())
    display.note = "a path is cut"
    target = console()
    target.print(display.render())
    assert "a path is cut" in printed(target)


def test_without_a_terminal_it_is_a_line_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    real = [100.0]
    monkeypatch.setattr("mptcp.cli.progress.time.monotonic", lambda: real[0])
    target = console(200, terminal=False)
    with TransferDisplay("file.bin", console=target) as display:
        display.watch(lambda: [info(1, 500)])
        for _ in range(25):
            real[0] += 0.1
            display.tick()
    assert len(printed(target).splitlines()) == 2
    assert printed(target).startswith("file.bin: 0 B")


def test_the_first_line_has_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    real = [100.0]
    monkeypatch.setattr("mptcp.cli.progress.time.monotonic", lambda: real[0])
    target = console(200, terminal=False)
    display = TransferDisplay("file.bin", console=target, clock_us=lambda: round(real[0] * 1e6))
    display.watch(lambda: [info(1, round((real[0] - 100) * 125_000))])
    while not printed(target):
        real[0] += 0.1
        display.tick()
    assert printed(target).endswith("; 10.77.1.1: 1.0 Mbit/s active\n")


def test_quiet_says_nothing() -> None:
    target = console()
    with TransferDisplay("file.bin", console=target, quiet=True) as display:
        display.watch(lambda: [info(1, 500)])
        display.tick()
        display.unwatch()
    assert printed(target) == ""
    assert display.log.tracks[0].bytes == 500


def test_a_connection_that_is_gone_keeps_its_figures() -> None:
    def gone() -> list[SubflowInfo]:
        raise OSError(107, "not connected")

    display = TransferDisplay("file.bin", console=console())
    display.watch(lambda: [info(1, 500)])
    display.refresh()
    display.watch(gone)
    display.refresh()
    assert display.log.tracks[0].bytes == 500


def result(**changes: object) -> DemoResult:
    paths = [PathResult("path 1", 60e6, 56e6, 20 << 20, True), PathResult("path 2", 40e6, 37e6, 44 << 20)]
    values: dict[str, object] = {
        "peer": "somebody", "size_bytes": 64 << 20, "sha256": "ab" * 32, "expected_sha256": "ab" * 32, "seconds": 10.0,
        "before_cut_bits": 93e6, "after_cut_bits": 36e6, "longest_stall_s": 0.266, "paths": paths,
        "peer_counters": {"fallbacks": 0},
    }  # fmt: skip
    return DemoResult(**{**values, **changes})  # type: ignore[arg-type]


def test_end_of_the_demo() -> None:
    target = console()
    demo_result.print_result(result(), target)
    text = printed(target)
    assert "SHA-256 verified" in text
    for expected in ("path 1 (cut half-way)", "20.0 MiB (31 %)", "93.0 Mbit/s", "1.66 ×", "36.0 Mbit/s", "266 ms"):
        assert expected in text
    assert "…" not in text
    assert result().as_dict()["verified"] is True


def test_a_wrong_file_is_not_verified() -> None:
    target = console()
    wrong = result(sha256="cd" * 32)
    demo_result.print_result(wrong, target)
    assert "SHA-256 differs" in printed(target)
    assert wrong.as_dict()["verified"] is False
    assert result(sha256="", expected_sha256="").is_verified is False
