"""Two stacks in one process, joined by a link; a certificate that the client trusts."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import trustme

import mptcp
from mptcp.links.loopback import LoopbackLink


@dataclass
class Stacks:
    client: mptcp.UserStack
    server: mptcp.UserStack
    host: str = "10.0.0.2"
    host6: str = "fd00::2"


@pytest.fixture
def stacks() -> Iterator[Stacks]:
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
