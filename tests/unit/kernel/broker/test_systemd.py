"""Socket activation, readiness, the journal; and the unit files."""

import configparser
import logging
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from mptcp.errors import ConfigurationError
from mptcp.kernel.broker import service, systemd
from mptcp.kernel.broker.client import DEFAULT_SOCKET

UNITS = Path(__file__).parents[4] / "packaging" / "systemd"

#: Puts a socket where systemd does, then says what the broker makes of it.
ACTIVATE = """
import os, socket, sys
from mptcp.errors import ConfigurationError
from mptcp.kernel.broker import systemd
kind, path, count = getattr(socket, sys.argv[1]), sys.argv[2], sys.argv[3]
sock = socket.socket(socket.AF_UNIX, kind)
sock.bind(path)
if sys.argv[4] == "listen":
    sock.listen()
fd = sock.detach()
if fd != 3:
    os.dup2(fd, 3)
environ = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": count, "LISTEN_FDNAMES": "x", "OTHER": "y"}
try:
    found = systemd.activated_socket(environ)
    print(found.fileno() if found else None, os.get_inheritable(3), environ)
except ConfigurationError as error:
    print(error)
"""


def activate(path: Path, kind: str = "SOCK_SEQPACKET", count: str = "1", listen: str = "listen") -> str:
    done = subprocess.run(
        [sys.executable, "-c", ACTIVATE, kind, str(path), count, listen],
        capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    return done.stdout.strip()


def test_a_socket_that_was_passed_is_taken(tmp_path: Path) -> None:
    assert activate(tmp_path / "s") == "3 False {'OTHER': 'y'}"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"kind": "SOCK_STREAM"}, "type SOCK_SEQPACKET (ListenSequentialPacket=)"),
        ({"listen": "no"}, "type SOCK_SEQPACKET"),
        ({"count": "2"}, "the unit passes 2"),
    ],
)
def test_a_socket_of_another_kind_is_refused(tmp_path: Path, options: dict[str, str], reason: str) -> None:
    assert reason in activate(tmp_path / "s", **options)


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"LISTEN_FDS": "1"},
        {"LISTEN_PID": "1", "LISTEN_FDS": "1"},
        {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "0"},
        {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "x"},
    ],
)
def test_what_was_passed_to_somebody_else_is_left_alone(environ: dict[str, str]) -> None:
    assert systemd.activated_socket(environ) is None
    assert not environ


def test_a_promise_without_a_socket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with (tmp_path / "file").open("w") as file:
        monkeypatch.setattr(systemd, "LISTEN_FDS_START", file.fileno())
        with pytest.raises(ConfigurationError, match="LISTEN_FDS promises a socket"):
            systemd.activated_socket({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"})


@pytest.mark.parametrize("abstract", [False, True])
def test_the_service_manager_is_told(tmp_path: Path, abstract: bool) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        name = f"@mptcp-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
        manager.bind(name.replace("@", "\0"))
        manager.settimeout(10)
        assert systemd.notify("READY=1", {"NOTIFY_SOCKET": name})
        assert manager.recv(100) == b"READY=1"


def test_without_a_service_manager_nobody_is_told(tmp_path: Path) -> None:
    for environ in ({}, {"NOTIFY_SOCKET": "vsock:1:2"}, {"NOTIFY_SOCKET": str(tmp_path / "none")}):
        assert not systemd.notify("READY=1", environ)


def record(level: int, text: str) -> logging.LogRecord:
    return logging.LogRecord("mptcp.broker", level, __file__, 1, text, None, None)


def test_lines_for_the_journal_have_their_priority(capfd: pytest.CaptureFixture[str]) -> None:
    status = os.fstat(sys.stderr.fileno())
    formatter = systemd.log_formatter({"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"})
    assert formatter.format(record(logging.WARNING, "refused\nreally")) == "<4>refused\n<4>really"
    assert formatter.format(record(logging.ERROR, "x")) == "<3>x"
    assert formatter.format(record(logging.INFO, "x")) == "<6>x"
    assert formatter.format(record(logging.DEBUG, "x")) == "<7>x"


@pytest.mark.parametrize("stream", ["", "1:2", "nonsense", "::"])
def test_lines_for_a_terminal_have_the_time(stream: str) -> None:
    line = systemd.log_formatter({"JOURNAL_STREAM": stream}).format(record(logging.WARNING, "refused"))
    assert line.endswith(" WARNING refused")
    assert line[0].isdigit()


# the unit files


def unit(name: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(UNITS / name)
    return parser


def test_the_units_say_what_the_code_does() -> None:
    listening = unit("mptcp-broker.socket")["Socket"]
    assert listening["ListenSequentialPacket"] == DEFAULT_SOCKET
    assert int(listening["SocketMode"], 8) == service.SOCKET_MODE
    assert int(listening["Backlog"]) == service.BACKLOG
    assert int(listening["DirectoryMode"], 8) & 0o022 == 0
    running = unit("mptcp-broker.service")["Service"]
    assert running["Type"] == "notify"
    assert running["NoNewPrivileges"] == "yes"
    assert running["CapabilityBoundingSet"] == running["AmbientCapabilities"]
    from mptcp.kernel.broker.privileges import NAMES

    assert set(running["CapabilityBoundingSet"].split()) == set(NAMES.values())


def test_systemd_takes_the_units(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    for name in ("mptcp-broker.service", "mptcp-broker.socket"):
        text = (UNITS / name).read_text().replace("/usr/bin/mptcp", shutil.which("true") or "/bin/true")
        (tmp_path / name).write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *map(str, sorted(tmp_path.iterdir()))],
        check=False,
        capture_output=True,
        text=True,
    )
    assert "mptcp-broker" not in done.stderr, done.stderr
    assert done.returncode == 0
