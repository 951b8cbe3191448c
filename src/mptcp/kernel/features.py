"""What this kernel has and what this process may do in a namespace: each answer a ``Support`` with its reason and fix."""

from __future__ import annotations

import fcntl
import os
import socket
from pathlib import Path
from typing import Final

from mptcp.errors import NotSupportedError
from mptcp.info import Support
from mptcp.kernel.namespace import NetNamespace

IPPROTO_MPTCP: Final = 262
#: linux/capability.h
CAP_NET_ADMIN: Final = 12
CAP_NET_RAW: Final = 13
CAP_SYS_ADMIN: Final = 21
CAP_PERFMON: Final = 38
CAP_BPF: Final = 39

_SYSCTLS: Final = Path("/proc/sys/net/mptcp")
_IPV6: Final = Path("/proc/sys/net/ipv6/conf/all")
_BTF: Final = Path("/sys/kernel/btf/vmlinux")
#: ioctls of a namespace (linux/nsfs.h) and the inode of the first user namespace (linux/proc_ns.h).
_NS_GET_USERNS: Final = 0xB701
_NS_GET_PARENT: Final = 0xB702
_INITIAL_USER_NAMESPACE: Final = 0xEFFFFFFD
#: User namespaces nest 32 deep at most.
_MAX_DEPTH: Final = 33

KERNEL_MANAGER: Final = "kernel"
USER_SPACE_MANAGER: Final = "userspace"


def sysctl(name: str, namespace: NetNamespace) -> str | None:
    """``net.mptcp.<name>`` in a namespace; None where this kernel has no such setting."""
    with namespace.entered():
        try:
            return (_SYSCTLS / name).read_text().strip()
        except OSError:
            return None


def path_manager(namespace: NetNamespace) -> str:
    """Which path manager new connections of a namespace get: KERNEL_MANAGER, USER_SPACE_MANAGER or the name of another."""
    name = sysctl("path_manager", namespace)
    if name is None:  # before Linux 6.15: a number
        name = USER_SPACE_MANAGER if sysctl("pm_type", namespace) == "1" else KERNEL_MANAGER
    return name


def set_path_manager(namespace: NetNamespace, name: str) -> None:
    """New connections of the namespace get this path manager. OSError: EPERM without CAP_NET_ADMIN there, EOPNOTSUPP where
    the kernel has no choice."""
    with namespace.entered():
        if (_SYSCTLS / "path_manager").exists():
            (_SYSCTLS / "path_manager").write_text(name)
        elif (_SYSCTLS / "pm_type").exists():
            (_SYSCTLS / "pm_type").write_text("1" if name == USER_SPACE_MANAGER else "0")
        else:
            raise NotSupportedError("this kernel has no user-space path manager: use Linux 5.19 or later")


def counters(namespace: NetNamespace) -> dict[str, int]:
    """The MPTCP counters of a namespace (``MPTcpExt`` of /proc/net/netstat): "MPJoinSynTx", ...; empty without MPTCP."""
    with namespace.entered():
        try:
            text = Path("/proc/thread-self/net/netstat").read_text()
        except OSError:
            return {}
    return parse_counters(text)


def parse_counters(text: str) -> dict[str, int]:
    """Those of /proc/net/netstat that are MPTCP's; whatever else is in the text is passed over."""
    lines = [line.split() for line in text.splitlines() if line.startswith("MPTcpExt:")]
    found: dict[str, int] = {}
    for names, values in zip(lines[::2], lines[1::2], strict=False):
        found.update(
            (name, int(value)) for name, value in zip(names[1:], values[1:], strict=False) if value.isdecimal()
        )
    return found


def has_capability(capability: int, namespace: NetNamespace | None = None) -> bool:
    """Whether this thread has a capability where it counts: in the user namespace that owns ``namespace``, or, without
    one, in the first user namespace."""
    if not _effective(capability):
        return False
    if namespace is None:
        return os.stat("/proc/thread-self/ns/user").st_ino == _INITIAL_USER_NAMESPACE
    own = os.stat("/proc/thread-self/ns/user")
    fd = namespace.duplicate_fd()
    try:
        # From the owner upwards; an owner above ours is not shown to us (EPERM), and nothing is allowed there.
        for request in (_NS_GET_USERNS, *[_NS_GET_PARENT] * _MAX_DEPTH):
            try:
                above = fcntl.ioctl(fd, request)
            except OSError:
                return False
            os.close(fd)
            fd = above
            if os.fstat(fd).st_ino == own.st_ino:
                return True
        return False
    finally:
        os.close(fd)


def _effective(capability: int) -> bool:
    for line in Path("/proc/thread-self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> capability & 1)
    return False


def mptcp(namespace: NetNamespace) -> Support:
    """Whether sockets made in the namespace can be MPTCP."""
    if not _SYSCTLS.is_dir():
        return Support(False, "this kernel has no MPTCP", "use Linux 5.6 or later, built with CONFIG_MPTCP")
    if sysctl("enabled", namespace) == "0":
        return Support(False, "MPTCP is switched off (net.mptcp.enabled=0)", "sysctl -w net.mptcp.enabled=1")
    try:
        with namespace.entered():
            socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_MPTCP).close()
    except OSError as error:
        return Support(False, f"MPTCP sockets cannot be made: {error.strerror}", "look for a seccomp or LSM policy")
    return Support(True)


def steering(namespace: NetNamespace) -> Support:
    """Whether this process may steer connections and hear their events by itself (tier T1)."""
    if has_capability(CAP_NET_ADMIN, namespace):
        return Support(True)
    return Support(
        False,
        "steering connections and hearing their events needs CAP_NET_ADMIN in the network namespace",
        "run `mptcp broker` as root, or give the program the capability (setcap cap_net_admin+ep), or run it under "
        "`unshare -Urn`",
    )


def user_space_manager(namespace: NetNamespace) -> Support:
    """Whether new connections of the namespace can be steered one by one: its path manager is the user-space one."""
    name = path_manager(namespace)
    if name == USER_SPACE_MANAGER:
        return Support(True)
    if sysctl("path_manager", namespace) is not None:
        fix = "sysctl -w net.mptcp.path_manager=userspace, before the sockets are made"
    elif sysctl("pm_type", namespace) is not None:
        fix = "sysctl -w net.mptcp.pm_type=1, before the sockets are made"
    else:
        return Support(False, "this kernel has no user-space path manager", "use Linux 5.19 or later")
    return Support(False, f"connections of this namespace get the path manager {name!r}, which steers them itself", fix)


def segment_routing(namespace: NetNamespace) -> Support:
    """Whether this process can put a Segment Routing Header into a subflow's packets."""
    with namespace.entered():
        disabled, has_segments = (_IPV6 / "disable_ipv6", (_IPV6 / "seg6_enabled").exists())
        try:
            off = disabled.read_text().strip() != "0"
        except OSError:
            return Support(False, "this kernel has no IPv6", "Segment Routing is IPv6's: use a kernel with CONFIG_IPV6")
    if off:
        return Support(False, "IPv6 is switched off", "sysctl -w net.ipv6.conf.all.disable_ipv6=0")
    if not has_segments:
        return Support(False, "this kernel has no Segment Routing", "use one built with CONFIG_IPV6_SEG6_LWTUNNEL")
    if not has_capability(CAP_NET_ADMIN, namespace):
        return Support(
            False,
            "Segment Routing needs CAP_NET_ADMIN in the network namespace, of this process: the broker changes no routes",
            "give the program the capability (setcap cap_net_admin+ep), or run it under `unshare -Urn`",
        )
    return Support(True)


def subflow_options(namespace: NetNamespace) -> Support:
    """Whether options of a single subflow can be set and read (tier T2: a BPF iterator)."""
    if not _BTF.exists():
        return Support(False, "this kernel does not describe its types", "use one built with CONFIG_DEBUG_INFO_BTF")
    missing = [
        name for name, number in (("CAP_BPF", CAP_BPF), ("CAP_PERFMON", CAP_PERFMON)) if not has_capability(number)
    ]
    if missing:
        return Support(
            False,
            f"options of one subflow need {' and '.join(missing)} in the first user namespace",
            "run `mptcp broker` as root, or give the program the capabilities",
        )
    return Support(True)
