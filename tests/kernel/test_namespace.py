"""Network namespaces by name, path and descriptor, and what is allowed in them."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mptcp.kernel import features
from mptcp.kernel.namespace import NetNamespace
from mptcp.testing.netns import Namespace


def inode() -> int:
    return os.stat("/proc/thread-self/ns/net").st_ino


def test_by_descriptor_and_by_path(host_namespace: Namespace) -> None:
    before = inode()
    fd = host_namespace.fileno()
    for source in (fd, f"/proc/self/fd/{fd}", Path(f"/proc/self/fd/{fd}")):
        with NetNamespace(source) as namespace:
            with namespace.entered():
                assert inode() == os.fstat(fd).st_ino != before
            assert namespace.identity == (os.fstat(fd).st_dev, os.fstat(fd).st_ino)
            assert not namespace.is_own
        assert inode() == before
    os.fstat(fd)  # the caller's descriptor is still the caller's


def test_ones_own() -> None:
    before = inode()
    namespace = NetNamespace()
    with namespace.entered():
        assert inode() == before
    assert namespace.is_own
    assert namespace.identity[1] == before
    namespace.close()
    namespace.close()


def test_what_is_no_namespace(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="ip netns list"):
        NetNamespace("no-such-namespace")
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="no network namespace") as caught:
        NetNamespace(tmp_path / "file")
    assert caught.value.errno == errno.EINVAL
    with pytest.raises(OSError) as caught:
        NetNamespace(99_999)
    assert caught.value.errno == errno.EBADF


def test_a_closed_one_cannot_be_entered(host_namespace: Namespace) -> None:
    namespace = NetNamespace(host_namespace.fileno())
    namespace.close()
    with pytest.raises(OSError, match="closed"), namespace.entered():
        pass


def test_features_of_the_namespace(host_namespace: Namespace) -> None:
    namespace = NetNamespace(host_namespace.fileno())
    assert features.mptcp(namespace)
    assert features.steering(namespace), "the tests are root in their namespaces"
    host_namespace.sysctl("net.mptcp.enabled", 0)
    off = features.mptcp(namespace)
    assert not off
    assert "enabled" in off.reason
    assert "sysctl" in off.fix
    assert features.counters(namespace)["MPCapableSYNTX"] == 0
    assert features.sysctl("no_such_setting", namespace) is None


def test_path_manager_by_either_setting(host_namespace: Namespace) -> None:
    namespace = NetNamespace(host_namespace.fileno())
    assert features.path_manager(namespace) == "kernel"
    told = features.user_space_manager(namespace)
    assert not told
    assert "sysctl" in told.fix
    host_namespace.sysctl("net.mptcp.pm_type", 1)
    assert features.path_manager(namespace) == "userspace"
    assert features.user_space_manager(namespace)


def test_without_the_capability(host_namespace: Namespace) -> None:
    """A process that is root of a namespace of its own has no say in this one."""
    fd = host_namespace.fileno()
    program = (
        "import sys; from mptcp.kernel import features; from mptcp.kernel.namespace import NetNamespace\n"
        "with NetNamespace(int(sys.argv[1])) as namespace: told = features.steering(namespace)\n"
        "print(bool(told), features.steering(NetNamespace()).ok, told.fix)"
    )
    source = str(Path(features.__file__).parents[2])
    done = subprocess.run(
        ["unshare", "-Urn", sys.executable, "-c", program, str(fd)],
        check=False, capture_output=True, text=True, pass_fds=(fd,), timeout=30, env={**os.environ, "PYTHONPATH": source},
    )  # fmt: skip
    if "unshare" in done.stderr:
        pytest.skip(f"user namespaces cannot be nested here: {done.stderr.strip()}")
    assert done.stdout.startswith("False True"), done.stderr
    assert "mptcp broker" in done.stdout
