"""Addresses announced and withdrawn, priorities changed, by either side (RFC 8684 §3.3.8, §3.4)."""

from collections.abc import Callable

import pytest

from mptcp.core.multipath.config import DEFAULT_CONFIG
from mptcp.sockets.socket import Socket
from mptcp.testing.encounter import PORT, Encounter
from mptcp.testing.exchange import Exchange, wait_subflows, wait_until
from mptcp.testing.kernel_peer import UNTIL_ENOUGH, pattern_sha256

pytestmark = pytest.mark.usefixtures("kernel_mptcp")

MIB = 1 << 20
Make = Callable[..., Encounter]


def idle(encounter: Encounter, role: str, **kernel: object) -> tuple[Socket, object]:
    """A connection whose peer echoes, after one exchange: fully established at both ends."""
    sock, peer = encounter.open(role, kernel={"echo": True, **kernel})
    sock.sendall(b"hello")
    assert sock.recv(5) == b"hello"
    return sock, peer


def finish(sock: Socket, peer: object, size: int = 2 * MIB) -> None:
    """All subflows left carry ``size`` octets there and back, exactly; then both ends close."""
    exchange = Exchange(sock, send_bytes=size).join()
    assert exchange.error is None
    assert exchange.got(size)
    result = peer.result()  # type: ignore[attr-defined]
    assert (result["received"], result["error"]) == (size + 5, "")


@pytest.mark.parametrize("port", [0, 4444], ids=["its own port", "another port"])
@pytest.mark.parametrize("family", [4, 6])
def test_kernel_announces_and_we_join(make_encounter: Make, family: int, port: int) -> None:  # RFC 8684 §3.4.1
    # An IPv6 address with port and HMAC needs 32 octets: beside timestamps there are 28, and Linux leaves it out.
    config = DEFAULT_CONFIG.changed(tcp=DEFAULT_CONFIG.tcp.changed(timestamps=not (port and family == 6)))
    encounter = make_encounter(2, family=family, config=config)
    encounter.lab.server.mptcp_endpoint(encounter.kernel_address(2), "signal", id=7, port=port, dev="s2")
    sock, peer = idle(encounter, "connect")
    # Both of our addresses, to both of the kernel's.
    infos = wait_subflows(sock, 4)
    assert {(i.local.host, i.remote.host) for i in infos} == {
        (encounter.our_address(a), encounter.kernel_address(b)) for a in (1, 2) for b in (1, 2)
    }
    announced = [i for i in infos if i.remote.host == encounter.kernel_address(2)]
    assert {i.remote_address_id for i in announced} == {7}
    assert not port or {i.remote.port for i in announced} == {port}
    finish(sock, peer)
    counters = encounter.kernel_counters()
    assert counters["AddAddrTx"] == counters["EchoAdd"] == 1
    assert counters["MPJoinAckRx"] == 3
    assert counters["MPJoinPortAckRx"] == (2 if port else 0)
    assert counters["MPJoinAckHMacFailure"] == 0


@pytest.mark.parametrize("family", [4, 6])
def test_kernel_withdraws(make_encounter: Make, family: int) -> None:  # RFC 8684 §3.4.2
    encounter = make_encounter(2, family=family)
    encounter.lab.server.mptcp_endpoint(encounter.kernel_address(2), "signal", id=7, dev="s2")
    sock, peer = idle(encounter, "connect")
    wait_subflows(sock, 4)
    encounter.lab.server.mptcp_endpoint_delete(7)
    infos = wait_subflows(sock, 2)
    assert {i.remote.host for i in infos} == {encounter.kernel_address(1)}
    finish(sock, peer)
    assert encounter.kernel_counters()["RmAddrTx"] == 1


@pytest.mark.parametrize("port", [0, 4444], ids=["its own port", "another port"])
@pytest.mark.parametrize("family", [4, 6])
def test_we_announce_and_the_kernel_joins(make_encounter: Make, family: int, port: int) -> None:
    encounter = make_encounter(2, family=family, paths=[1])
    sock, peer = idle(encounter, "accept")
    wait_subflows(sock, 1)
    # An address that comes later, on the same link; nobody need listen on the port: the token finds the connection.
    extra = "10.77.1.9" if family == 4 else "fd77:1::9"
    with encounter.stack.pump.lock:
        encounter.link(1).add_address(extra + ("/24" if family == 4 else "/64"))
    if port:
        announce_with_port(encounter, sock, extra, port)
    else:
        encounter.stack.add_address(extra, encounter.link_names[1])
    infos = wait_subflows(sock, 2)
    assert {(i.local.host, i.local.port) for i in infos} == {(encounter.our_address(1), PORT), (extra, port or PORT)}
    finish(sock, peer)
    counters = encounter.kernel_counters()
    assert counters["AddAddr"] == counters["EchoAddTx"] == 1
    assert counters["PortAdd"] == (1 if port else 0)
    assert counters["MPJoinSynAckRx"] == 1
    assert counters["MPJoinSynAckHMacFailure"] == 0


def announce_with_port(encounter: Encounter, sock: Socket, address: str, port: int) -> None:
    """The address is there first for the host, quietly, so that the path manager does not announce it by itself."""
    stack = encounter.stack
    with stack.pump.lock:
        connections = dict(stack.pump.host.connections)
        stack.pump.host.connections.clear()
        try:
            stack.pump.host.add_address(address, 0, stack.pump.clock())
        finally:
            stack.pump.host.connections.update(connections)
    sock.add_address(address, port)


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("role", ["connect", "accept"])
def test_we_withdraw(make_encounter: Make, role: str, family: int) -> None:
    encounter = make_encounter(2, family=family)
    sock, peer = idle(encounter, role)
    wait_subflows(sock, 2)
    encounter.stack.remove_address(encounter.our_address(2))
    counters = encounter.wait_kernel(RmAddr=1)
    (left,) = wait_subflows(sock, 1)
    assert left.local.host == encounter.our_address(1)
    finish(sock, peer)
    assert counters["RmAddrDrop"] == 0


@pytest.mark.parametrize("role", ["connect", "accept"])
def test_we_withdraw_the_first_address(make_encounter: Make, role: str) -> None:
    """Identifier 0 is the address of the first subflow."""
    encounter = make_encounter(2)
    sock, peer = idle(encounter, role)
    wait_subflows(sock, 2)
    encounter.stack.remove_address(encounter.our_address(1))
    encounter.wait_kernel(RmAddr=1)
    (left,) = wait_subflows(sock, 1)
    assert left.local.host == encounter.our_address(2)
    finish(sock, peer)


@pytest.mark.parametrize("role", ["connect", "accept"])
def test_we_change_the_priority(make_encounter: Make, role: str) -> None:  # RFC 8684 §3.3.8
    encounter = make_encounter(2)
    sock, peer = idle(encounter, role)
    second = next(s for s in wait_subflows(sock, 2) if not s.initial)
    sock.set_backup(second.id, True)
    encounter.wait_kernel(MPPrioRx=1)
    before = next(s for s in sock.subflows() if s.id == second.id)
    exchange = Exchange(sock, send_bytes=4 * MIB, receive_bytes=4 * MIB, half_close=False, end="hold").join()
    assert exchange.got(4 * MIB)
    after = next(s for s in sock.subflows() if s.id == second.id)
    assert after.backup
    assert encounter.is_spared(after, before)
    sock.set_backup(second.id, False)
    encounter.wait_kernel(MPPrioRx=2)
    exchange = Exchange(sock, send_bytes=8 * MIB).join()
    assert exchange.got(8 * MIB)
    assert exchange.info is not None
    peer.result()  # type: ignore[attr-defined]


def test_kernel_changes_the_priority(make_encounter: Make) -> None:
    encounter = make_encounter(2)
    encounter.lab.server.mptcp_endpoint(encounter.kernel_address(2), "signal", id=7, dev="s2")
    sock, peer = idle(encounter, "connect")
    wait_subflows(sock, 4)
    concerned = {s.id for s in sock.subflows() if s.remote_address_id == 7}
    encounter.lab.server.mptcp_endpoint_change(7, "backup")
    # Linux says it on the first subflow of that address that it finds.
    wait_until(lambda: any(s.backup for s in sock.subflows()), 20, "MP_PRIO")
    assert {s.id for s in sock.subflows() if s.backup} < concerned
    assert encounter.kernel_counters()["MPPrioTx"] == 1
    encounter.lab.server.mptcp_endpoint_change(7, "nobackup")
    wait_until(lambda: not any(s.backup for s in sock.subflows()), 20, "MP_PRIO again")
    finish(sock, peer)


def test_families_mix(make_encounter: Make) -> None:
    """A connection over IPv4 gets a subflow over IPv6, to an address without port that the kernel announces."""
    encounter = make_encounter(1, family=46)
    encounter.lab.server.mptcp_endpoint(encounter.kernel_address(1, 6), "signal", id=6, dev="s1")
    peer = encounter.lab.server.serve("::", echo=True)
    sock = encounter.connect(peer.port)
    sock.sendall(b"hello")
    assert sock.recv(5) == b"hello"
    infos = wait_subflows(sock, 2)
    assert sorted(i.local.family for i in infos) == [4, 6]
    finish(sock, peer)


@pytest.mark.parametrize("direction", ["send", "receive"])
def test_addresses_come_and_go_during_a_transfer(make_encounter: Make, direction: str) -> None:
    encounter = make_encounter(2)
    for path in (1, 2):
        encounter.lab.set_rate(path, 200)
    we_send = direction == "send"
    exchange, peer = encounter.meet(
        "connect",
        ours={"send_bytes": UNTIL_ENOUGH * we_send, "subflows": 2},
        kernel={"send_bytes": UNTIL_ENOUGH * (not we_send), "seed": 2},
    )
    exchange.wait_moved(4 * MIB)
    for round_ in range(4):
        encounter.stack.remove_address(encounter.our_address(2))
        encounter.wait_kernel(RmAddr=round_ + 1)
        encounter.stack.add_address(encounter.our_address(2), encounter.link_names[2])
        wait_subflows(exchange.sock, 2)
    exchange.wait_moved(exchange.moved + 4 * MIB)
    (exchange if we_send else peer).enough()
    exchange.join()
    result = peer.result()
    assert exchange.got(result["sent"], 2)
    assert (result["received"], result["sha256"]) == (exchange.sent, pattern_sha256(exchange.sent))
