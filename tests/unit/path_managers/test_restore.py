"""The path manager that only opens again what was lost."""

from mptcp.core.path_managers.base import Facts, OpenSubflow
from mptcp.core.path_managers.restore import Restore
from mptcp.core.units import NEVER, SECOND
from mptcp.info import Endpoint, PathInfo

FIRST, SECOND_ADDRESS = Endpoint.parse("10.0.0.1"), Endpoint.parse("10.0.1.1")
SERVER, FURTHER = Endpoint.parse("10.0.0.2", 80), Endpoint.parse("10.0.1.2", 80)
STAYS = PathInfo(1, Endpoint(FIRST.address, 1000), SERVER)


def facts(now: int = 0, *, client: bool = True, addresses: tuple[Endpoint, ...] = (FIRST, SECOND_ADDRESS)) -> Facts:
    local = [endpoint.address for endpoint in addresses]
    return Facts(client, local, [SERVER, FURTHER], STAYS.local, SERVER, [STAYS], now)


def lose(manager: Restore, now: int = 0, reason: str = "timeout", *, client: bool = True) -> None:
    manager.on_subflow_closed(facts(now, client=client), Endpoint(SECOND_ADDRESS.address, 2000), FURTHER, reason)


def test_it_opens_nothing_of_its_own_accord() -> None:
    manager = Restore()
    assert manager.on_established(facts()) == ()
    assert list(manager.on_local_address(facts(), SECOND_ADDRESS.address, True)) == []
    assert list(manager.on_remote_address(facts(), FURTHER)) == []
    assert manager.deadline() == NEVER


def test_what_failed_is_opened_again_with_back_off() -> None:
    manager = Restore()
    now = 0
    for tries in range(6):
        lose(manager, now)
        assert manager.deadline() == now + (SECOND << tries)
        now = manager.deadline()
        assert manager.on_timer(facts(now)) == [OpenSubflow(Endpoint(SECOND_ADDRESS.address), FURTHER)]
        assert manager.deadline() == NEVER
    lose(manager, now)
    assert manager.deadline() == NEVER


def test_what_somebody_closed_stays_closed() -> None:
    for reason in ("local", "peer", "refused"):
        manager = Restore()
        lose(manager, reason=reason)
        assert manager.deadline() == NEVER


def test_an_address_that_comes_back_brings_its_subflow_back_at_once() -> None:
    manager = Restore()
    lose(manager, reason="address-removed")
    assert manager.on_timer(facts(SECOND, addresses=(FIRST,))) == []
    again = manager.on_local_address(facts(2 * SECOND), SECOND_ADDRESS.address, True)
    assert again == [OpenSubflow(Endpoint(SECOND_ADDRESS.address), FURTHER)]


def test_an_address_announced_again_does_so_too() -> None:
    manager = Restore()
    lose(manager)
    assert manager.on_remote_address(facts(1), FURTHER) == [OpenSubflow(Endpoint(SECOND_ADDRESS.address), FURTHER)]


def test_the_side_that_accepted_opens_nothing() -> None:
    manager = Restore()
    lose(manager, client=False)
    assert manager.deadline() == NEVER
    assert manager.on_local_address(facts(client=False), SECOND_ADDRESS.address, True) == ()
