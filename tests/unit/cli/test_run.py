"""``mptcp run``: an unmodified program, its arguments, its exit status, and what goes wrong."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from mptcp.cli import app
from mptcp.testing.ports import unused_udp_port


@pytest.fixture
def site(tmp_path: Path) -> Path:
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "file.bin").write_bytes(os.urandom(100_000))
    return folder


def run(site: Path, *arguments: str) -> int:
    return app.run(["run", f"--link=loopback:{site}", *arguments])


def test_a_script_fetches_over_mptcp_and_its_socket_is_ours(site: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, socket, urllib.request, pathlib\n"
        "assert __name__ == '__main__'\n"
        "data = urllib.request.urlopen(sys.argv[1]).read()\n"
        "pathlib.Path(sys.argv[2]).write_bytes(data)\n"
        "sock = socket.create_connection(('10.99.1.1', 8000))\n"
        "pathlib.Path(sys.argv[3]).write_text(f'{type(sock).__module__} {sock.is_multipath} {sys.argv[4:]}')\n"
        "sock.close()\n"
    )
    url = "http://10.99.1.1:8000/file.bin"
    assert run(site, str(script), url, str(tmp_path / "got"), str(tmp_path / "note"), "--link", "x", "-h") == 0
    assert (tmp_path / "got").read_bytes() == (site / "file.bin").read_bytes()
    assert (tmp_path / "note").read_text() == "mptcp.sockets.socket True ['--link', 'x', '-h']"
    assert socket.socket.__module__ == "socket"


def test_a_module_with_arguments(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ours.py").write_text("import sys, pathlib\npathlib.Path('out').write_text(repr(sys.argv[1:]))\n")
    monkeypatch.chdir(tmp_path)
    assert run(site, "-m", "ours", "--bind", "0.0.0.0", "80") == 0
    assert (tmp_path / "out").read_text() == "['--bind', '0.0.0.0', '80']"


def test_a_module_that_the_command_line_has_imported_too_runs_without_a_warning(site: Path) -> None:
    command = [sys.executable, "-m", "mptcp", "run", f"--link=loopback:{site}", "-m", "http.server", "--", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "--directory" in done.stdout


def test_the_exit_status_and_the_traceback_are_the_programs(site: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("import sys\nsys.exit(7)\n")
    with pytest.raises(SystemExit) as ended:
        run(site, str(script))
    assert ended.value.code == 7
    script.write_text("def f():\n    raise OSError('no such luck')\nf()\n")
    command = [sys.executable, "-m", "mptcp", "run", f"--link=loopback:{site}", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback (most recent call last):\n  File ")
    assert done.stderr.endswith("OSError: no such luck\n")
    assert "runpy" not in done.stderr


def test_a_profile_and_a_policy(site: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import socket, sys, pathlib\n"
        "sock = socket.create_connection(('10.99.1.1', 8000))\n"
        "pathlib.Path(sys.argv[1]).write_text(f'{sock.scheduler} {sock.is_multipath}')\n"
        "sock.close()\n"
    )
    assert run(site, "--profile", "interactive", str(script), str(tmp_path / "out")) == 0
    assert (tmp_path / "out").read_text() == "earliest-completion True"
    policy = tmp_path / "policy.toml"
    policy.write_text("enable = false\n")
    assert run(site, "--policy", str(policy), str(script), str(tmp_path / "out")) == 0
    assert (tmp_path / "out").read_text() == "lowest-rtt False"


@pytest.mark.parametrize(("host", "bind"), [("127.0.0.1", "0.0.0.0"), ("::1", "::")])
def test_two_unmodified_programs_over_udp(site: Path, tmp_path: Path, host: str, bind: str) -> None:
    """As ordinary users: http.server in one process, urllib in another; UDP port and TCP port differ."""
    port = unused_udp_port()
    server = subprocess.Popen(
        [
            sys.executable, "-m", "mptcp", "run", f"--link=udp:{host},port={port}", "-m", "http.server", "--bind", bind,
            "--directory", str(site), "8000",
        ],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    try:
        assert server.stdout is not None
        assert b"Serving HTTP" in server.stdout.readline()
        script = tmp_path / "script.py"
        script.write_text(
            "import sys, urllib.request, pathlib\n"
            "pathlib.Path(sys.argv[2]).write_bytes(urllib.request.urlopen(sys.argv[1], timeout=60).read())\n"
        )
        url = f"http://{host if ':' not in host else f'[{host}]'}:8000/file.bin"
        assert app.run(["run", f"--link=udp:{host},peers={port}", str(script), url, str(tmp_path / "got")]) == 0
        assert (tmp_path / "got").read_bytes() == (site / "file.bin").read_bytes()
    finally:
        server.terminate()
        server.communicate()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "a program to run is missing"),
        (["/nowhere/script.py"], "there is no /nowhere/script.py"),
        (["--profile", "sideways", __file__], "no profile is called 'sideways'"),
        (["--policy", "/nowhere", __file__], "No such file"),
        (["--link", "udp:127.0.0.1,peers=1", "--link", "udp:127.0.0.2,peers=2", __file__], "several were given"),
        (["--except", "example.org", "sh"], "--except takes an address or a network"),
        (["--except-port", "ssh", "sh"], "--except-port takes a port or a range"),
        (["--except", "10.0.0.0/8", __file__], "--except is for --stack kernel"),
        (["-v", "-m", "json.tool"], "-v is for --stack kernel"),
        (["--link", "tun:x=10.0.0.1/24", "sh"], "--link is for --stack user"),
        (["--stack", "kernel", "--pcap", "x", __file__], "--pcap is for --stack user"),
        (["--stack", "sideways", "sh"], "sideways"),
    ],
)
def test_wrong_command_lines(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(["run", *arguments]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("program", "status", "says"),
    [
        ("no-such-program", 127, "there is no program no-such-program in PATH"),
        ("/nowhere/program", 127, "there is no program /nowhere/program"),
        ("", 127, "the name of the program is empty"),
        ("./closed", 126, "./closed is not executable (chmod +x)"),
        ("closed", 126, "/closed is not executable (chmod +x)"),
        (".", 127, "there is no program ."),
        ("/", 126, "/ is a directory"),
    ],
)
def test_programs_that_cannot_be_executed(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    program: str,
    status: int,
    says: str,
) -> None:
    """As shells do it: 127 for what is not there, 126 for what cannot be executed."""
    (tmp_path / "closed").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert app.run(["run", program]) == status
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "status", "output"),
    [("echo $1 $#", 0, b"one 2\n"), ("#!/nowhere/sh\n", 126, b""), ("#!/bin/sh\nexit 9", 9, b"")],
)
def test_a_program_is_executed_as_a_shell_does(tmp_path: Path, text: str, status: int, output: bytes) -> None:
    """Also where its sockets cannot be made MPTCP; a script without ``#!`` is one for sh."""
    script = tmp_path / "script"
    script.write_text(text)
    script.chmod(0o755)
    command = [sys.executable, "-m", "mptcp", "run", str(script), "one", "two"]
    done = subprocess.run(command, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (status, output)
