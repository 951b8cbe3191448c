"""The kernel's path managers as they are: commands by token, and endpoints, which hold for a whole namespace."""

from __future__ import annotations

import errno
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mptcp.errors import NotSupportedError
from mptcp.info import Endpoint
from mptcp.kernel import sockopt
from mptcp.kernel.addresses import AddressWatch, local_addresses
from mptcp.kernel.endpoints import MAX_ENDPOINTS, Endpoints, Limits
from mptcp.kernel.generic_netlink import GenericFamily
from mptcp.kernel.namespace import NetNamespace
from mptcp.kernel.netlink import NETLINK_ROUTE, NetlinkError, NetlinkSocket
from mptcp.kernel.path_manager import (
    FLAG_BACKUP,
    FLAG_FULLMESH,
    FLAG_SIGNAL,
    FLAG_SUBFLOW,
    PathManagerNetlink,
)
from mptcp.kernel.pm_events import PmEventKind, PmEventSocket
from mptcp.testing import netns

Make = Callable[..., Any]
Wait = Callable[..., None]


@pytest.fixture
def endpoints(lab: netns.Lab) -> Iterator[Endpoints]:
    with NetNamespace(lab.client.fileno()) as namespace:
        made = Endpoints(namespace)
        yield made
        made.close()


def refused(call: Callable[[], object]) -> NetlinkError:
    with pytest.raises(NetlinkError) as caught:
        call()
    return caught.value


# --- endpoints --------------------------------------------------------------------------------------------------------
def test_endpoints(lab: netns.Lab, endpoints: Endpoints) -> None:
    local, local6 = (Endpoint.parse(lab.client_address(2, family)) for family in (4, 6))
    added = endpoints.add(local, FLAG_SUBFLOW | FLAG_BACKUP)
    assert (added.local, added.id, added.backup) == (local, 1, True)
    assert endpoints.add(local6, FLAG_SIGNAL, address_id=77, interface=102).id == 77
    assert [(e.local, e.id, e.flags & 3, e.interface) for e in endpoints.list()] == [
        (local, 1, FLAG_SUBFLOW, 0), (local6, 77, FLAG_SIGNAL, 102),
    ]  # fmt: skip
    endpoints.set_flags(1, FLAG_FULLMESH)
    assert endpoints.list()[0].flags & (FLAG_FULLMESH | FLAG_BACKUP) == FLAG_FULLMESH
    assert refused(lambda: endpoints.add(local)).errno == errno.EEXIST
    assert refused(lambda: endpoints.add(Endpoint.parse("10.1.1.1"), FLAG_SIGNAL | FLAG_FULLMESH)).errno == errno.EINVAL
    endpoints.delete(77)
    assert [e.id for e in endpoints.list()] == [1]
    endpoints.flush()
    assert endpoints.list() == []
    assert refused(lambda: endpoints.delete(5)).errno == errno.EINVAL


def test_there_are_at_most_eight(endpoints: Endpoints) -> None:
    for number in range(MAX_ENDPOINTS):
        endpoints.add(Endpoint.parse(f"10.5.5.{number + 1}"))
    assert refused(lambda: endpoints.add(Endpoint.parse("10.5.5.99"))).errno == errno.ERANGE


def test_limits(endpoints: Endpoints) -> None:
    assert endpoints.limits() == Limits(subflows=2, add_addr_accepted=0)
    endpoints.set_limits(8, 3)
    assert endpoints.limits() == Limits(subflows=8, add_addr_accepted=3)
    error = refused(lambda: endpoints.set_limits(9, 0))
    assert (error.errno, "limit" in error.explanation) == (errno.EINVAL, True)


def test_an_endpoint_changes_every_connection_of_the_namespace(
    lab: netns.Lab, endpoints: Endpoints, make_pair: Make, eventually: Wait
) -> None:
    clients = [
        make_pair(lab.client, lab.server_address(1), server_in=lab.server, bind="")[0] for _ in range(2)
    ]  # fmt: skip

    def subflows() -> list[int]:
        return [
            sum(entry.tcp.state == 1 for entry in sockopt.full_info(client.fileno()).subflows) for client in clients
        ]

    number = endpoints.add(Endpoint.parse(lab.client_address(2))).id
    eventually(lambda: subflows() == [2, 2])
    endpoints.delete(number)
    eventually(lambda: subflows() == [1, 1])


# --- commands ---------------------------------------------------------------------------------------------------------
def test_what_an_unknown_token_gets(lab: netns.Lab) -> None:
    with NetNamespace(lab.client.fileno()) as namespace:
        manager = PathManagerNetlink(namespace)
        local, remote = Endpoint.parse(lab.client_address(2)), Endpoint.parse(lab.server_address(2), 80)
        for call in (
            lambda: manager.announce(1, local, 1),
            lambda: manager.remove(1, 1),
            lambda: manager.create_subflow(1, local, 1, remote),
            lambda: manager.destroy_subflow(1, local, remote),
            lambda: manager.set_flags(1, local, remote, FLAG_BACKUP),
        ):
            error = refused(call)
            assert (error.errno, error.explanation) == (errno.EINVAL, "invalid token")
        manager.close()


def test_many_threads_share_a_socket(lab: netns.Lab, endpoints: Endpoints) -> None:
    endpoints.add(Endpoint.parse("10.5.5.1"))
    answers: list[tuple[int, Limits]] = []

    def ask() -> None:
        answers.extend((len(endpoints.list()), endpoints.limits()) for _ in range(50))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [(1, Limits(2, 0))] * 200


def test_a_family_that_is_not_there(host_namespace: netns.Namespace) -> None:
    with NetNamespace(host_namespace.fileno()) as namespace, pytest.raises(NotSupportedError, match="levitation"):
        GenericFamily("levitation", namespace)


def test_a_request_nobody_knows(host_namespace: netns.Namespace) -> None:
    with NetNamespace(host_namespace.fileno()) as namespace, NetlinkSocket(NETLINK_ROUTE, namespace) as netlink:
        error = refused(lambda: netlink.request(999, bytes(16), what="asking for nonsense"))
        assert error.errno == errno.EOPNOTSUPP
        assert str(error).startswith("[Errno 95] asking for nonsense:")
        # The socket is as good as before.
        assert netlink.dump(18, bytes(16))


# --- events -----------------------------------------------------------------------------------------------------------
def test_listeners_are_told_of_too(host_namespace: netns.Namespace) -> None:
    with NetNamespace(host_namespace.fileno()) as namespace:
        source = PmEventSocket(namespace)
        assert source.read() == []
        with host_namespace.entered(), socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262) as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            port = listener.getsockname()[1]
        events = source.read()
        assert [(e.kind, e.local) for e in events] == [
            (PmEventKind.LISTENER_CREATED, Endpoint.parse("127.0.0.1", port)),
            (PmEventKind.LISTENER_CLOSED, Endpoint.parse("127.0.0.1", port)),
        ]
        source.close()
        source.close()


# --- rtnetlink --------------------------------------------------------------------------------------------------------
def test_addresses_come_and_go(lab: netns.Lab, eventually: Wait) -> None:
    with NetNamespace(lab.client.fileno()) as namespace, AddressWatch(namespace) as watch:
        assert [str(local) for local in local_addresses(namespace)] == [
            "10.77.1.1%c1", "10.77.2.1%c2", "fd77:1::1%c1", "fd77:2::1%c2",
        ]  # fmt: skip
        assert watch.read() == []
        told: list[tuple[str, bool]] = []

        def tells(*expected: tuple[str, bool]) -> None:
            """Linux tells of IPv6 addresses from a worker of its own: a moment later."""
            told.clear()

            def all_told() -> bool:
                told.extend((str(change.local), change.available) for change in watch.read())
                return len(told) >= len(expected)

            eventually(all_told)
            assert set(told) == set(expected)
            assert len(told) == len(expected)

        lab.client.ip("addr add 10.9.9.9/24 dev c1", "addr add fd99::9/64 dev c2 nodad")
        tells(("10.9.9.9%c1", True), ("fd99::9%c2", True))
        lab.client.ip("addr del 10.9.9.9/24 dev c1")
        tells(("10.9.9.9%c1", False))
        lab.client.ip("link set c2 down")
        tells(("10.77.2.1%c2", False), ("fd77:2::1%c2", False), ("fd99::9%c2", False))
        assert {str(local) for local in watch.usable()} == {"10.77.1.1%c1", "fd77:1::1%c1"}


def test_an_address_that_came_and_went_in_one_go_is_no_news(lab: netns.Lab) -> None:
    with NetNamespace(lab.client.fileno()) as namespace, AddressWatch(namespace) as watch:
        lab.client.ip("addr add 10.9.9.9/24 dev c1", "addr del 10.9.9.9/24 dev c1")
        assert watch.read() == []


def test_more_changes_than_fit_are_read_anew(lab: netns.Lab) -> None:
    with NetNamespace(lab.client.fileno()) as namespace, AddressWatch(namespace) as watch:
        watch._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 0)
        lab.client.ip(*(f"addr add 10.9.{i}.9/24 dev c1" for i in range(60)))
        assert len([c for c in watch.read() if c.available]) == 60
