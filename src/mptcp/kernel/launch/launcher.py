"""Starting a program under the filter, in this very process: its id, its terminal, its signals and its exit status stay
what the one who started us knows. The supervisor is a process apart, which no ``wait`` of the program finds.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import stat
import sys
from collections.abc import Sequence
from typing import Final, NoReturn

from mptcp.errors import NotSupportedError, PathError
from mptcp.info import Support
from mptcp.kernel.launch import filter as bpf
from mptcp.kernel.launch import notify, options
from mptcp.kernel.launch.caller import Caller
from mptcp.kernel.launch.exceptions import Exceptions
from mptcp.kernel.launch.supervisor import Report, Settings, Supervisor, leave_the_job

#: As shells do it.
EXIT_NOT_EXECUTABLE, EXIT_NOT_FOUND = 126, 127
#: The supervisor is ready within this time, or something is wrong.
READY_TIMEOUT_S: Final = 10.0
_DEFAULT_PATH: Final = "/usr/local/bin:/usr/bin:/bin"

#: What the supervisor says: that it is there and reaches into the program's memory and descriptors, or does not.
_REACHES, _DOES_NOT_REACH, _GO = b"R", b"r", b"g"


class NotExecuted(OSError):
    """The kernel does not execute the program: another processor's, an interpreter that is not there, ..."""


def find_program(name: str) -> str:
    """The file that a shell would execute. OSError ENOENT or EACCES as the shell's 127 and 126."""
    if not name:
        raise FileNotFoundError(errno.ENOENT, "the name of the program is empty")
    if "/" in name:
        candidates = [name]
    else:
        folders = os.environ.get("PATH", _DEFAULT_PATH).split(os.pathsep)
        candidates = [os.path.join(folder or ".", name) for folder in folders]
    closed = ""
    for path in candidates:
        with contextlib.suppress(OSError):
            mode = os.stat(path).st_mode
            if stat.S_ISREG(mode) and os.access(path, os.X_OK):
                return path
            if not stat.S_ISDIR(mode) or "/" in name:
                closed = path
    if closed:
        kind = "is a directory" if os.path.isdir(closed) else "is not executable (chmod +x)"
        raise PermissionError(errno.EACCES, f"{closed} {kind}")
    where = "" if "/" in name else " in PATH"
    raise FileNotFoundError(errno.ENOENT, f"there is no program {name}{where}")


def support() -> Support:
    """Whether programs can be given MPTCP sockets here; if not, why."""
    try:
        bpf.own_architecture()
    except NotSupportedError as error:
        return Support(False, error.strerror or "")
    has_mptcp = mptcp_support()
    return notify.notification_support() if has_mptcp else has_mptcp


def mptcp_support() -> Support:
    """Whether the kernel makes MPTCP sockets in this network namespace."""
    try:
        os.close(options.make_socket(socket.AF_INET, options.IPPROTO_MPTCP))
    except OSError as error:
        if error.errno == errno.ENOPROTOOPT:
            return Support(False, "MPTCP is off here (net.mptcp.enabled = 0)", "sysctl net.mptcp.enabled=1")
        if error.errno in {errno.EPROTONOSUPPORT, errno.EINVAL}:
            return Support(False, "this kernel has no MPTCP", "Linux 5.6 or newer with CONFIG_MPTCP has it")
        return Support(False, f"the kernel makes no MPTCP socket ({error.strerror})")
    return Support(True)


def execute(path: str, arguments: Sequence[str]) -> NoReturn:
    """Becomes the program; NotExecuted if the kernel refuses."""
    with contextlib.suppress(OSError, ValueError, AttributeError):  # it may be closed, or None
        sys.stdout.flush()
    # The interpreter ignores these; a program that is started by a shell does not.
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    try:
        try:
            os.execv(path, list(arguments))
        except OSError as error:
            if error.errno != errno.ENOEXEC:
                raise
        os.execv(
            "/bin/sh", ["/bin/sh", path, *arguments[1:]]
        )  # a script that does not say by what: POSIX has sh run it
    except OSError as error:
        raise NotExecuted(error.errno, error.strerror) from None


def launch(
    path: str, arguments: Sequence[str], excepted: Exceptions, *, verbose: bool = False, log: str = ""
) -> NoReturn:
    """Becomes the program, whose TCP sockets are MPTCP from now on. ``log``: a file for what ``verbose`` shows.

    NotSupportedError where ``excepted`` has addresses and the system lets nobody look into other processes; OSError if a
    file cannot be opened, a supervisor listens already (EBUSY); NotExecuted.
    """
    architecture = bpf.own_architecture()
    watched = tuple(options.refused_options())
    program = bpf.emit(bpf.socket_filter(architecture, watched, addresses=excepted.need_addresses))
    verbose = verbose and _is_open(2)
    log_fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666) if log else -1
    ours, theirs = socket.socketpair()
    try:
        _start_supervisor(ours, theirs, architecture, Settings(excepted, watched), verbose=verbose, log=log_fd)
        theirs.close()
        ours.settimeout(READY_TIMEOUT_S)
        reaches = _hear(ours)
        if excepted.need_addresses and reaches != _REACHES:
            raise NotSupportedError(
                "--except and --except-port need to see where a socket connects to, and this system forbids it "
                "(kernel.yama.ptrace_scope): use --except-program, sysctl kernel.yama.ptrace_scope=0, or CAP_SYS_PTRACE"
            )
        listener = notify.install(program)
        socket.send_fds(ours, [_GO], [listener])
        os.close(listener)
        _hear(ours)
    finally:
        ours.close()
        theirs.close()
        if log_fd >= 0:
            os.close(log_fd)
    execute(path, arguments)


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def _hear(ours: socket.socket) -> bytes:
    try:
        word = ours.recv(1)
    except TimeoutError:
        word = b""
    if not word:
        raise PathError("the supervisor of the program's sockets did not start", errno.EAGAIN)
    return word


def _start_supervisor(
    ours: socket.socket,
    theirs: socket.socket,
    architecture: bpf.Architecture,
    settings: Settings,
    *,
    verbose: bool,
    log: int,
) -> None:
    program = os.getpid()
    middle = os.fork()
    if middle:
        os.waitpid(middle, 0)
        return
    # A grandchild, so that it is nobody's child whom the program could wait for.
    try:
        if os.fork() == 0:
            _supervise(program, ours.fileno(), theirs, architecture, settings, verbose=verbose, log=log)
    finally:
        os._exit(0)


def _supervise(
    program: int,
    known: int,
    theirs: socket.socket,
    architecture: bpf.Architecture,
    settings: Settings,
    *,
    verbose: bool,
    log: int,
) -> None:
    leave_the_job()
    process = os.pidfd_open(program)
    reaches = _reaches(program, known)
    terminal = os.dup(2) if verbose else -1
    _keep_only(theirs.fileno(), process, log, terminal)
    theirs.send(_REACHES if reaches else _DOES_NOT_REACH)
    _, fds, _, _ = socket.recv_fds(theirs, 1, 1)
    if not fds:
        return
    report = Report(*(fd for fd in (terminal, log) if fd >= 0))
    supervisor = Supervisor(notify.Listener(fds[0]), architecture, settings, report)
    if not reaches:
        report.say("options that MPTCP refuses fail: this system lets nobody look into other processes")
    theirs.send(_GO)
    theirs.close()
    supervisor.run(process, terminal)


def _reaches(program: int, known: int) -> bool:
    """Whether memory and descriptors of the program can be reached, tried on what it is now; it has a descriptor ``known``."""
    caller = Caller(program)
    try:
        os.close(caller.duplicate(known))
        caller.memory(0, 0)
    except OSError:
        return False
    return True


def _keep_only(*fds: int) -> None:
    """Closes all other descriptors: pipes and locks of the program's are none of the supervisor's business."""
    kept = sorted({fd for fd in fds if fd >= 0})
    start = 0
    for fd in kept:
        os.closerange(start, fd)
        start = fd + 1
    os.closerange(start, os.sysconf("SC_OPEN_MAX"))
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        if standard not in kept:
            os.dup2(null, standard)
    if null > 2:
        os.close(null)
