"""Network namespaces as a laboratory: two hosts joined by several links, whose kernel is a peer for this stack.

::

    with Lab(paths=2, rate_mbit=(100, 100)) as lab:
        server = lab.server.serve(send_bytes=1 << 20)              # the kernel's MPTCP, in a process of its own
        with lab.client.entered():
            links = [PacketLink(f"c{i}", [lab.client_interface(i)]) for i in (1, 2)]
        ...
        lab.blackhole(1)
        print(server.result(), lab.server.counters()["MPTcpExtMPJoinSynRx"])

Path ``i`` (from 1) is a veth pair: ``c<i>`` with 10.77.i.1/24 and fd77:i::1/64 in the client namespace, ``s<i>`` with
10.77.i.2/24 and fd77:i::2/64 in the server's. Namespaces have no name and no process: they live as long as somebody
holds them open, so nothing is left behind, whatever happens to the test. Needs root (or a user namespace, which
``become_namespace_root`` enters), and the programs ``ip``, ``nft``, ``tc`` and ``nsenter``.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from mptcp.links import _netdev
from mptcp.testing import kernel_peer
from mptcp.testing.processes import Peer

CLONE_NEWNET: Final = 0x40000000
CLONE_NEWUSER: Final = 0x10000000
PROGRAMS: Final = ("ip", "nft", "nsenter", "tc")

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def needs_namespaces() -> str:
    """Why this process cannot make namespaces (a sentence, for a test's skip reason); "" when it can."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        return f"the programs {', '.join(missing)} are not installed (iproute2, nftables, util-linux)"
    try:
        with Namespace() as namespace:
            namespace.ip("link set lo up")
    except (OSError, subprocess.SubprocessError) as error:
        return f"network namespaces cannot be made here ({error}): run as root or under `unshare -Urn`"
    return ""


def needs_kernel_mptcp() -> str:
    """Why the kernel cannot be an MPTCP peer; "" when it can."""
    if not Path("/proc/sys/net/mptcp/enabled").exists():
        return "this kernel has no MPTCP (CONFIG_MPTCP)"
    return ""


def needs_tun() -> str:
    """Why no TUN device can be opened; "" when it can."""
    try:
        os.close(os.open("/dev/net/tun", os.O_RDWR))
    except OSError as error:
        return f"/dev/net/tun cannot be opened ({error.strerror})"
    return ""


def become_namespace_root() -> bool:
    """Moves this process, for good, into a user namespace of its own in which it may make network namespaces.

    Does nothing where that is possible already. False where the system forbids it. Call it early: a process with more
    than one thread cannot move.
    """
    if not needs_namespaces():
        return True
    uid, gid = os.getuid(), os.getgid()
    if _libc.unshare(CLONE_NEWUSER | CLONE_NEWNET):
        return False
    try:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
        Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
    except OSError:
        return False
    return not needs_namespaces()


class Namespace:
    """One network namespace, held by a file descriptor."""

    __slots__ = ("_fd", "_peers", "name")

    def __init__(self, name: str = "namespace") -> None:
        self.name = name
        self._peers: list[Peer] = []
        saved = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            _check(_libc.unshare(CLONE_NEWNET), "making a network namespace")
            try:
                self._fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            finally:
                _check(_libc.setns(saved, CLONE_NEWNET), "returning to the first network namespace")
        finally:
            os.close(saved)

    def fileno(self) -> int:
        return self._fd

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """The calling thread is inside: sockets and TUN devices made here belong to this namespace ever after."""
        saved = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            _check(_libc.setns(self._fd, CLONE_NEWNET), f"entering {self.name}")
            try:
                yield
            finally:
                _check(_libc.setns(saved, CLONE_NEWNET), f"leaving {self.name}")
        finally:
            os.close(saved)

    def run(self, *command: str, stdin: str = "", check: bool = True, extra: Sequence[int] = ()) -> str:
        """Runs a program inside and returns its output; its standard error is in the exception if it fails."""
        done = subprocess.run(
            ["nsenter", f"--net=/proc/self/fd/{self._fd}", *command],
            check=False, input=stdin, capture_output=True, text=True, pass_fds=(self._fd, *extra), timeout=30,
        )  # fmt: skip
        if check and done.returncode:
            text = " ".join(command) + (f" <<< {stdin!r}" if stdin else "")
            raise OSError(f"in {self.name}: {text}: {(done.stderr or done.stdout).strip()}")
        return done.stdout

    def popen(self, *command: str, **options: Any) -> subprocess.Popen[bytes]:
        """Starts a program inside (tcpdump, for instance); the caller ends it."""
        return subprocess.Popen(
            ["nsenter", f"--net=/proc/self/fd/{self._fd}", *command], pass_fds=(self._fd,), **options
        )

    def ip(self, *lines: str, family: int = 0, extra: Sequence[int] = ()) -> str:
        """Runs lines of ``ip`` commands ("link set lo up") in one process; ``family`` 6 as with ``ip -6``."""
        words = ["ip", f"-{family}"] if family else ["ip"]
        return self.run(*words, "-batch", "-", stdin="\n".join(lines) + "\n", extra=extra)

    def nft(self, rules: str) -> None:
        """Loads nftables rules."""
        self.run("nft", "-f", "-", stdin=rules + "\n")

    def sysctl(self, name: str, value: str | int | None = None) -> str:
        """Reads ("net.mptcp.enabled"), or writes if there is a value; returns what holds afterwards."""
        path = Path("/proc/sys") / name.replace(".", "/")
        with self.entered():
            if value is not None:
                path.write_text(str(value))
            return path.read_text().strip()

    def counters(self) -> dict[str, int]:
        """The kernel's counters, named as ``nstat`` does: "MPTcpExtMPCapableSYNRX", "TcpRetransSegs", ..."""
        with self.entered():
            texts = [Path("/proc/thread-self/net/" + name).read_text() for name in ("netstat", "snmp")]
        counters: dict[str, int] = {}
        for text in texts:
            lines = text.splitlines()
            for names, values in zip(lines[::2], lines[1::2], strict=True):
                prefix, _, rest = names.partition(": ")
                counters.update(zip((prefix + n for n in rest.split()), map(int, values.split()[1:]), strict=True))
        return counters

    # MPTCP of the kernel

    def mptcp_limits(self, *, subflows: int, add_addr_accepted: int) -> None:
        self.run("ip", "mptcp", "limits", "set", "subflow", str(subflows), "add_addr_accepted", str(add_addr_accepted))

    def mptcp_endpoint(self, address: str, *flags: str, id: int = 0, port: int = 0, dev: str = "") -> None:
        """Adds an endpoint; ``flags`` of ``ip mptcp``: signal, subflow, backup, fullmesh."""
        words = ["ip", "mptcp", "endpoint", "add", address]
        for name, value in (("dev", dev), ("id", id), ("port", port)):
            if value:
                words += [name, str(value)]
        self.run(*words, *flags)

    def mptcp_endpoint_change(self, id: int, *flags: str) -> None:
        """Changes flags of an endpoint: "backup", "nobackup"."""
        self.run("ip", "mptcp", "endpoint", "change", "id", str(id), *flags)

    def mptcp_endpoint_delete(self, id: int, address: str = "") -> None:
        """Removes an endpoint; the address is needed with id 0 only."""
        self.run("ip", "mptcp", "endpoint", "delete", "id", str(id), *([address] if address else []))

    # peers

    def serve(self, address: str = "0.0.0.0", port: int = 0, **options: Any) -> Peer:
        """A listening kernel socket in a process of its own; see ``KernelServer`` for the options."""
        return KernelServer(self, address, port, **options)

    def connect(self, address: str, port: int, **options: Any) -> Peer:
        """A connecting kernel socket in a process of its own; see ``KernelClient``."""
        return KernelClient(self, address, port, **options)

    def _spawn(self, **arguments: Any) -> Peer:
        peer = Peer(kernel_peer.__file__, {"namespace": self._fd, **arguments}, (self._fd,))
        self._peers.append(peer)
        return peer

    def close(self) -> None:
        """Ends the peers and lets go of the namespace."""
        for peer in self._peers:
            peer.close()
        self._peers.clear()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def KernelServer(namespace: Namespace, address: str = "0.0.0.0", port: int = 0, **options: Any) -> Peer:  # noqa: N802
    """A kernel socket that listens in ``namespace``; ``.port`` is known when this returns.

    Options: ``protocol`` ("mptcp" or "tcp"), ``connections`` (how many to serve, 1; 0: all), ``send_bytes`` and ``seed`` (of
    ``kernel_peer.pattern``; UNTIL_ENOUGH of it: until ``Peer.enough``), ``echo``, ``receive_bytes`` (-1: until FIN), ``half_close`` (True: FIN as soon as all is
    sent), ``fastclose_after`` (octets received, then RST), ``end`` ("close", "fastclose", "hold"), ``pause_s``,
    ``congestion`` ("reno"), ``rcvbuf``, ``sndbuf``, ``nodelay``, ``chunk``, ``digest`` (False: no SHA-256, for speed).
    """
    peer = namespace._spawn(role="serve", address=address, port=port, **options)
    peer.port = int(peer.wait_event("listening")["port"])
    return peer


def KernelClient(namespace: Namespace, address: str, port: int, **options: Any) -> Peer:  # noqa: N802
    """A kernel socket that connects; options of ``KernelServer``, and ``bind`` (a local address)."""
    return namespace._spawn(role="connect", address=address, port=port, **options)


class Lab:
    """Two hosts, ``client`` and ``server``, and ``paths`` links between them.

    ``rate_mbit`` limits each path both ways (0: no limit), ``queue_ms`` is how much the limiter queues.
    ``client_kernel`` False: the client's kernel has no addresses, this stack owns them by way of AF_PACKET.
    """

    __slots__ = ("_ready", "client", "client_kernel", "mtu", "paths", "server")

    def __init__(
        self,
        paths: int = 2,
        *,
        client_kernel: bool = False,
        rate_mbit: Sequence[float] = (),
        queue_ms: int = 50,
        mtu: int = 1500,
    ) -> None:
        if not 1 <= paths <= 99:
            raise ValueError(f"a lab has 1 to 99 paths, not {paths}")
        self.paths, self.mtu, self.client_kernel = paths, mtu, client_kernel
        self.client = Namespace("client")
        try:
            self.server = Namespace("server")
        except BaseException:
            self.client.close()
            raise
        try:
            self._configure()
            for path, rate in enumerate(rate_mbit, 1):
                if rate:
                    self.set_rate(path, rate, queue_ms=queue_ms)
            self.wait_ready()
        except BaseException:
            self.close()
            raise

    def _configure(self) -> None:
        for namespace in (self.client, self.server):
            for name, value in (
                ("net.ipv4.conf.all.rp_filter", 0),
                ("net.ipv4.conf.default.rp_filter", 0),
                ("net.ipv6.conf.all.accept_dad", 0),
                ("net.ipv6.conf.default.accept_dad", 0),
                ("net.ipv6.conf.default.router_solicitations", 0),
                ("net.ipv4.tcp_congestion_control", "reno"),
            ):
                with contextlib.suppress(OSError):  # a kernel without IPv6 lacks some of them
                    namespace.sysctl(name, value)
        if not self.client_kernel:
            with contextlib.suppress(OSError):
                self.client.sysctl("net.ipv6.conf.default.disable_ipv6", 1)
        far = self.server.fileno()
        client, client6 = ["link set lo up"], []
        server = ["link set lo up"]
        for i in range(1, self.paths + 1):
            # Different indices at the two ends: then the kernel reports carrier at once (linkwatch_urgent_event), else
            # it may take a second.
            client.append(
                f"link add c{i} index {100 + i} mtu {self.mtu} type veth "
                f"peer name s{i} index {200 + i} mtu {self.mtu} netns /proc/self/fd/{far}"
            )
            if self.client_kernel:
                client.append(f"addr add {self.client_address(i)}/24 dev c{i}")
                client.append(f"addr add {self.client_address(i, 6)}/64 dev c{i} nodad")
            server.append(f"addr add {self.server_address(i)}/24 dev s{i}")
            server.append(f"addr add {self.server_address(i, 6)}/64 dev s{i} nodad")
            server.append(f"link set s{i} up")
            client.append(f"link set c{i} up")
        if self.client_kernel:
            # Any source may reach any of the server's addresses, by its own link.
            for i in range(1, self.paths + 1):
                client.append(f"rule add from {self.client_address(i)} table {i}")
                client.append(f"route add default via {self.server_address(i)} dev c{i} table {i}")
                client6.append(f"rule add from {self.client_address(i, 6)} table {i}")
                client6.append(f"route add default via {self.server_address(i, 6)} dev c{i} table {i}")
        self.client.ip(*client, extra=(far,))
        self.server.ip(*server)
        if client6:
            self.client.ip(*client6, family=6)

    def wait_ready(self, timeout_s: float = 20.0) -> None:
        """Until every link has carrier and its queue takes packets (the kernel needs up to a second for it)."""
        deadline = time.monotonic() + timeout_s
        while True:
            lines = [
                line
                for namespace, letter in ((self.client, "c"), (self.server, "s"))
                for line in namespace.run("ip", "-o", "link").splitlines()
                if line.split(": ")[1].startswith(letter)
            ]
            if all("state UP" in line and "qdisc noop " not in line and "NO-CARRIER" not in line for line in lines):
                break
            if time.monotonic() > deadline:
                raise TimeoutError("the veth links did not come up: " + "; ".join(lines))
            time.sleep(0.02)
        if Path("/proc/sys/net/ipv6").exists():
            with self.server.entered():
                _netdev.wait_local(self.server_address(self.paths, 6))
            if self.client_kernel:
                with self.client.entered():
                    _netdev.wait_local(self.client_address(self.paths, 6))

    # addresses

    def client_address(self, path: int, family: int = 4) -> str:
        return f"10.77.{path}.1" if family == 4 else f"fd77:{path}::1"

    def server_address(self, path: int, family: int = 4) -> str:
        return f"10.77.{path}.2" if family == 4 else f"fd77:{path}::2"

    def client_interface(self, path: int, family: int = 4) -> str:
        """The client's address with its prefix length, as ``PacketLink`` takes it."""
        return self.client_address(path, family) + ("/24" if family == 4 else "/64")

    # what happens to a path

    def set_rate(self, path: int, mbit: float, *, queue_ms: int = 50) -> None:
        """Limits a path both ways by a token bucket; 0 lifts the limit."""
        for namespace, device in ((self.client, f"c{path}"), (self.server, f"s{path}")):
            namespace.run("tc", "qdisc", "del", "dev", device, "root", check=False)
            if mbit:
                burst = max(16_000, int(mbit * 1e6 / 8 * 0.002))  # two milliseconds: a bucket that bursts little
                namespace.run(
                    "tc", "qdisc", "add", "dev", device, "root", "tbf",
                    "rate", f"{int(mbit * 1_000_000)}bit", "burst", str(burst), "latency", f"{queue_ms}ms",
                )  # fmt: skip

    def set_link(self, path: int, up: bool, *, side: str = "server") -> None:
        """Takes one end of a path down or up."""
        namespace, device = (self.client, f"c{path}") if side == "client" else (self.server, f"s{path}")
        namespace.ip(f"link set {device} {'up' if up else 'down'}")

    def blackhole(self, path: int, *, direction: str = "both") -> None:
        """Silently drops everything on a path: "both", "to_server" or "to_client" (netdev hooks of the server's end)."""
        rules = f"table netdev hole{path} {{\n"
        for hook in ("ingress",) * (direction != "to_client") + ("egress",) * (direction != "to_server"):
            rules += f"chain {hook} {{ type filter hook {hook} device s{path} priority -500; policy drop; }}\n"
        self.heal(path)
        self.server.nft(rules + "}\n")

    def heal(self, path: int) -> None:
        """Ends ``blackhole``."""
        self.server.run("nft", "delete", "table", "netdev", f"hole{path}", check=False)

    def strip_mptcp(self, *, syn_only: bool = False, data_only: bool = False, path: int = 0) -> None:
        """Overwrites MPTCP options with NOPs, in both directions, as some middleboxes do (RFC 8684 §3.7).

        ``syn_only``: in SYN and SYN/ACK only; ``data_only``: in everything but those; ``path`` 0: on all paths.
        """
        match = "tcp flags & syn == syn " if syn_only else "tcp flags & syn == 0 " if data_only else ""
        text = "table inet strip {\n"
        for hook, word in (("prerouting", "iifname"), ("postrouting", "oifname")):
            device = f"{word} s{path} " if path else ""
            text += (
                f"chain {hook} {{ type filter hook {hook} priority -500; {device}{match}reset tcp option mptcp; }}\n"
            )
        self.stop_stripping()
        self.server.nft(text + "}\n")

    def stop_stripping(self) -> None:
        """Ends ``strip_mptcp``."""
        self.server.run("nft", "delete", "table", "inet", "strip", check=False)

    def close(self) -> None:
        """Ends every peer; the namespaces vanish, with their links and rules, when the last socket in them is closed."""
        self.client.close()
        self.server.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
