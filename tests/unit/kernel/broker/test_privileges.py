"""What the broker gives away, it does not get back. Each test in a child of its own."""

import os
import socket
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from mptcp.errors import ConfigurationError
from mptcp.kernel.broker import privileges
from mptcp.kernel.broker.privileges import NEEDED, bounding, drop, permitted
from mptcp.kernel.features import CAP_NET_ADMIN, CAP_NET_RAW

CAP_SETPCAP = 8

needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or CAP_NET_ADMIN not in permitted(), reason="only root has privileges to give away"
)


def in_child(work: Callable[[], None]) -> None:
    pid = os.fork()
    if not pid:
        try:
            work()
            os._exit(0)
        except BaseException:  # noqa: BLE001
            traceback.print_exc()
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def status(name: str) -> str:
    lines = Path("/proc/thread-self/status").read_text().splitlines()
    return next(line.split()[1] for line in lines if line.startswith(name + ":"))


@needs_root
def test_all_but_what_is_needed_is_gone_for_good() -> None:
    def work() -> None:
        before = permitted()
        kept = drop()
        assert kept == before & NEEDED == permitted()
        assert status("CapEff") == status("CapPrm")
        assert int(status("CapInh"), 16) == int(status("CapAmb"), 16) == 0
        assert status("NoNewPrivs") == "1"
        assert bounding() <= NEEDED
        for get_back in (lambda: privileges._set_capabilities({*kept, CAP_NET_RAW}), lambda: os.chroot("/")):
            with pytest.raises(PermissionError):
                get_back()
        with pytest.raises(PermissionError):
            socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        # Nor does a program that it executes, root or not.
        assert not os.system(
            "test $((0x$(sed -n 's/^CapPrm:[[:space:]]*//p' /proc/self/status) & ~0xc000001000)) -eq 0"
        )
        assert drop() == kept  # twice is as good as once

    in_child(work)


@needs_root
def test_another_user_keeps_what_is_needed() -> None:
    def work() -> None:
        kept = drop(user="nobody")
        assert os.getresuid() == (os.geteuid(),) * 3
        assert os.geteuid() != 0
        assert os.getgroups() == []
        assert CAP_NET_ADMIN in kept == permitted()
        with pytest.raises(PermissionError):
            os.setuid(0)

    if not _has_user(65534):
        pytest.skip("this user namespace has no other users")
    in_child(work)


def _has_user(uid: int) -> bool:
    lines = Path("/proc/self/uid_map").read_text().splitlines()
    return any(first <= uid < first + count for first, _, count in (map(int, line.split()) for line in lines))


@needs_root
def test_who_cannot_change_the_bounding_set_drops_the_rest() -> None:
    def work() -> None:
        privileges._set_capabilities({CAP_NET_ADMIN, CAP_NET_RAW})
        assert drop() == permitted() == {CAP_NET_ADMIN}
        assert status("NoNewPrivs") == "1"

    in_child(work)


def test_without_privileges_there_is_nothing_to_keep() -> None:
    def work() -> None:
        privileges._set_capabilities(())
        assert drop() == frozenset()
        assert status("NoNewPrivs") == "1"

    in_child(work)


def test_a_user_that_does_not_exist() -> None:
    with pytest.raises(ConfigurationError, match="no user 'no such user'"):
        privileges._become("no such user")


def test_names() -> None:
    assert set(privileges.NAMES) == NEEDED
