"""``mptcp run PROGRAM`` as a process among processes: users, namespaces, signals, the terminal, the command line."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import (
    IPPROTO_MPTCP,
    LAUNCH,
    PROTOCOL,
    SOURCE,
    TIMEOUT_S,
    Machine,
    Nobody,
    comm,
    is_mapped,
    need,
    until,
)


def test_without_any_privilege(machine: Machine) -> None:
    need("setpriv")
    dropped = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")
    program = "import socket\nprint(socket.socket().getsockopt(1, 38))\nprint(open('/proc/self/status').read())\n"
    status, output, said = machine.run(sys.executable, "-c", program, before=dropped)
    text = output.decode()
    assert (status, text.split()[0]) == (0, str(IPPROTO_MPTCP)), said
    assert "CapEff:\t0000000000000000" in text
    assert "NoNewPrivs:\t1" in text
    status, output, _ = machine.run(sys.executable, "-c", program)
    assert "NoNewPrivs:\t0" in output.decode(), "who is privileged keeps set-user-id programs"


def test_as_an_ordinary_user(nobody: Nobody, machine: Machine) -> None:
    need("curl")
    status, output, said = nobody.run("curl", "-sS", machine.url("file.bin"))
    assert (status, output) == (0, (machine.folder / "file.bin").read_bytes()), said
    assert machine.is_multipath == [True]


def test_a_namespace_out_of_reach_keeps_tcp(nobody: Nobody) -> None:
    """A browser's sandbox: a user and a network namespace that whoever has no privilege cannot enter from outside."""
    need("curl", "unshare")
    status, _, said = nobody.run("unshare", "-Urn", "curl", "-sS", "http://127.0.0.1/")
    if "unshare" in said:
        pytest.skip(f"user namespaces are forbidden here: {said}")
    assert status == 7, "the loopback device of the new namespace is down"
    assert "socket stays TCP: entering the network namespace" in said


def test_a_socket_belongs_to_the_user_who_asked(machine: Machine) -> None:
    if not is_mapped(65534):
        pytest.skip("there is only one user in this user namespace")
    script = (
        "import os, socket\nos.setgid(65534); os.setuid(65534)\nsock = socket.socket()\nstatus = os.fstat(sock.fileno())\n"
        "print(sock.getsockopt(1, 38), status.st_uid, status.st_gid)\n"
    )
    assert machine.run(sys.executable, "-c", script)[1] == b"262 65534 65534\n"


def test_a_socket_belongs_to_the_namespace_of_who_asked(machine: Machine) -> None:
    script = (
        "import ctypes, socket\nlibc = ctypes.CDLL(None, use_errno=True)\nassert libc.unshare(0x40000000) == 0\n"
        "stream, datagram = socket.socket(), socket.socket(type=socket.SOCK_DGRAM)\n"
        "cookies = [s.getsockopt(1, 71, 8) for s in (stream, datagram)]\n"
        "print(stream.getsockopt(1, 38), cookies[0] == cookies[1])\n"
    )
    assert machine.run(sys.executable, "-c", script)[1] == b"262 True\n"


def test_without_standard_files(machine: Machine) -> None:
    script = f"import os\nos.write(os.open('result', os.O_WRONLY | os.O_CREAT), repr(sorted(os.listdir('/proc/self/fd'))).encode())\n{PROTOCOL}"
    closed = 'exec "$@" <&- >&- 2>&-'
    plain = machine.namespace.popen("sh", "-c", closed, "sh", sys.executable, "-c", script, cwd=machine.folder)
    plain.wait(TIMEOUT_S)
    expected = (machine.folder / "result").read_text()
    (machine.folder / "result").unlink()
    machine.run(sys.executable, "-c", script, before=("sh", "-c", closed, "sh"))
    assert (machine.folder / "result").read_text() == expected


def test_the_exit_status_is_the_programs(machine: Machine) -> None:
    assert machine.run("sh", "-c", "exit 42")[0] == 42
    assert machine.run("sh", "-c", "kill -TERM $$")[0] == -signal.SIGTERM
    with machine.start("sleep", "60") as process:
        until(lambda: comm(process.pid) == "sleep")
        process.send_signal(signal.SIGINT)
        assert process.wait(TIMEOUT_S) == -signal.SIGINT


def test_the_program_finds_what_it_would_find_without_us(machine: Machine) -> None:
    """Process, group, session, descriptors, signals, environment, children."""
    script = (
        "import os, signal, sys\n"
        "same = [os.getpgrp() == int(sys.argv[1] or 0) or True, os.getsid(0) != os.getpid()]\n"
        "print(sorted(os.listdir('/proc/self/fd'))[:-1], os.getcwd(), sorted(os.environ), same)\n"
        "status = open('/proc/self/status').read().splitlines()\n"
        # SigQ counts what is queued for all of the user's processes.
        "names = ('SigPnd', 'SigBlk', 'SigIgn', 'SigCgt', 'Shd', 'Uid', 'Cap', 'Groups')\n"
        "print([line for line in status if line.startswith(names)])\n"
        "try:\n    print(os.waitpid(-1, os.WNOHANG))\nexcept ChildProcessError:\n    print('no children')\n"
    )
    # Python changes SIGPIPE and SIGXFSZ at its start, in the same way each time.
    environment = {**os.environ, "MPTCP_SOURCE": SOURCE}
    command = (sys.executable, "-c", script, "0")
    with machine.namespace.popen(*command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment, cwd=machine.folder) as process:  # fmt: skip
        expected = process.communicate(timeout=TIMEOUT_S)[0]
    status, output, said = machine.run(*command)
    assert (status, said) == (0, "")
    assert output == expected
    assert b"no children" in output
    ignored = machine.run("grep", "SigIgn", "/proc/self/status")[1]
    assert ignored == machine.plain("grep", "SigIgn", "/proc/self/status")


def test_ctrl_c_at_the_terminal(machine: Machine) -> None:
    """It reaches the program, as without us, and not the supervisor: what the program does afterwards still works."""
    script = (
        "import signal, socket, time\n"
        "def handler(*_): print('interrupted', socket.socket().getsockopt(1, 38), flush=True); raise SystemExit(3)\n"
        "signal.signal(signal.SIGINT, handler)\nprint('ready', flush=True)\ntime.sleep(60)\n"
    )
    need("setsid")
    environment = {**os.environ, "MPTCP_SOURCE": SOURCE, "MPTCP_QUIET": "1"}
    terminal, theirs = pty.openpty()
    process = machine.namespace.popen(
        "setsid", "--ctty", sys.executable, "-c", LAUNCH, sys.executable, "-c", script,
        stdin=theirs, stdout=theirs, stderr=theirs, env=environment,
    )  # fmt: skip
    os.close(theirs)
    shown = b""

    def reads(word: bytes) -> bool:
        nonlocal shown
        if select.select([terminal], [], [], 0)[0]:
            with contextlib.suppress(OSError):  # EIO: the other end is closed
                shown += os.read(terminal, 4096)
        return word in shown

    until(lambda: reads(b"ready"))
    os.write(terminal, b"\x03")
    until(lambda: reads(b"interrupted 262"))
    assert process.wait(TIMEOUT_S) == 3
    os.close(terminal)


def supervisors(mark: str) -> list[int]:
    """Processes whose command line has ``mark``."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            if mark.encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
    return found


def test_the_supervisor_ends_with_the_last_process(machine: Machine) -> None:
    mark = f"mark-{os.urandom(8).hex()}"
    with machine.start("sh", "-c", "sleep 60 & echo $!; exec >&- 2>&-", mark, MPTCP_QUIET="1") as process:
        assert process.stdout is not None
        last = int(process.stdout.readline())
        assert process.wait(TIMEOUT_S) == 0
        until(lambda: len(supervisors(mark)) == 1)  # sleep has become sleep
        (supervisor,) = supervisors(mark)
        # It is nobody's child who could be waited for, in a session of its own, and holds none of the program's files.
        assert os.getsid(supervisor) == supervisor
        files = {os.readlink(f"/proc/{supervisor}/fd/{number}") for number in range(3)}
        assert files == {os.devnull}
        for polite in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
            os.kill(supervisor, polite)
        os.kill(last, signal.SIGKILL)
        until(lambda: not supervisors(mark))


def test_a_daemon_keeps_its_supervisor_and_lets_go_of_the_terminal(machine: Machine) -> None:
    log = machine.folder / "log"
    release = machine.folder / "release"
    script = (
        "import os, socket, time\n"
        "if os.fork(): raise SystemExit\n"
        f"os.setsid(); [os.close(n) for n in range(3)]\nwhile not os.path.exists({str(release)!r}): time.sleep(0.01)\n"
        f"open({str(machine.folder / 'result')!r}, 'w').write(str(socket.socket().getsockopt(1, 38)) + '.')\n"
    )
    # The end of standard error comes although the daemon and its supervisor live on.
    status, _, said = machine.run(sys.executable, "-c", script, MPTCP_LOG=str(log))
    assert (status, said) == (0, "")
    release.touch()
    result = machine.folder / "result"
    until(lambda: result.exists() and result.read_text().endswith("."))
    assert result.read_text() == f"{IPPROTO_MPTCP}."
    until(lambda: log.read_text().endswith("(IPv4) is MPTCP\n"))


def test_mptcp_switched_off_while_the_program_runs(machine: Machine) -> None:
    script = f"{PROTOCOL}\ninput()\n{PROTOCOL}\n"
    environment = {**os.environ, "MPTCP_SOURCE": SOURCE}
    process = machine.namespace.popen(
        sys.executable, "-c", LAUNCH, sys.executable, "-c", script,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment,
    )  # fmt: skip
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"262\n"
        machine.namespace.sysctl("net.mptcp.enabled", 0)
        output, errors = process.communicate(b"\n", timeout=TIMEOUT_S)
    assert output == b"6\n"
    assert b"socket stays TCP: Protocol not available" in errors


def cli(machine: Machine, *arguments: str) -> tuple[int, str, str]:
    environment = {**os.environ, "PYTHONPATH": SOURCE}
    with machine.namespace.popen(
        sys.executable, "-m", "mptcp", "run", *arguments,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, cwd=machine.folder,
    ) as process:  # fmt: skip
        output, errors = process.communicate(timeout=TIMEOUT_S)
    return process.returncode, output.decode(), errors.decode()


def test_the_command(machine: Machine) -> None:
    script = machine.folder / "script.py"
    script.write_text(f"import sys\n{PROTOCOL}\nprint(sys.argv[1:])\n")
    status, output, said = cli(machine, "-v", "--stack", "kernel", "--except-port", "22", str(script), "-v", "x")
    assert (status, output) == (0, "262\n['-v', 'x']\n")
    assert "is MPTCP" in said
    (machine.folder / "ours.py").write_text(PROTOCOL)
    assert cli(machine, "--stack", "kernel", "-m", "ours") == (0, "262\n", "")
    name = Path(os.path.realpath(sys.executable)).name
    assert cli(machine, "--except-program", name, sys.executable, "-c", PROTOCOL)[1] == "6\n"


def test_without_mptcp_the_program_runs_all_the_same_unless_the_user_is_strict(machine: Machine) -> None:
    machine.namespace.sysctl("net.mptcp.enabled", 0)
    status, output, said = cli(machine, sys.executable, "-c", PROTOCOL)
    assert (status, output) == (0, "6\n")
    assert said.count("\n") == 1
    assert "MPTCP is off here (net.mptcp.enabled = 0) (sysctl net.mptcp.enabled=1)" in said
    status, output, said = cli(machine, "--strict", sys.executable, "-c", PROTOCOL)
    assert (status, output) == (1, "")
    assert "MPTCP is off here" in said
