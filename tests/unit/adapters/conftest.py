"""Two stacks in one process, joined by a link or in one network namespace; a certificate that the client trusts."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import trustme

import mptcp
from mptcp.links.loopback import LoopbackLink
from mptcp.testing import netns


@dataclass
class Stacks:
    client: mptcp.UserStack | mptcp.KernelStack
    server: mptcp.UserStack | mptcp.KernelStack
    host: str = "10.0.0.2"
    host6: str = "fd00::2"


@pytest.fixture(scope="session")
def namespaces() -> None:
    """Network namespaces can be made; where only a user namespace may, this process moves into one for good."""
    reason = netns.needs_namespaces()
    if reason and not netns.become_namespace_root():
        pytest.skip(reason)
    if reason := netns.needs_kernel_mptcp():
        pytest.skip(reason)


@pytest.fixture(params=["user", "kernel"])
def stacks(request: pytest.FixtureRequest) -> Iterator[Stacks]:
    """Of either kind."""
    if request.param == "kernel":
        request.getfixturevalue("namespaces")
        with netns.Namespace("host") as namespace:
            addresses = ("10.0.0.1/24", "10.0.0.2/24", "fd00::1/64", "fd00::2/64")
            namespace.ip("link set lo up", *(f"addr add {address} dev lo" for address in addresses))
            # Somewhere nobody answers; on lo the whole network is ours.
            namespace.nft("table ip t { chain c { type filter hook input priority 0; ip daddr 10.0.0.77 drop; }\n}")
            namespace.sysctl("net.ipv4.tcp_congestion_control", "reno")
            with (
                mptcp.KernelStack(namespace=namespace.fileno()) as kernel_client,
                mptcp.KernelStack(namespace=namespace.fileno()) as kernel_server,
            ):
                yield Stacks(kernel_client, kernel_server)
        return
    near, far = LoopbackLink.pair()
    with (
        mptcp.UserStack([near], ["10.0.0.1", "fd00::1"], seed=1) as client,
        mptcp.UserStack([far], ["10.0.0.2", "fd00::2"], seed=2) as server,
    ):
        yield Stacks(client, server)


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    return trustme.CA(key_type=trustme.KeyType.ECDSA)


@pytest.fixture(scope="session")
def server_tls(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("10.0.0.2", "fd00::2", "server", key_type=trustme.KeyType.ECDSA).configure_cert(context)
    return context


@pytest.fixture(scope="session")
def client_tls(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context
