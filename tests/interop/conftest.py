"""What every test against the kernel needs: a laboratory of namespaces, or a reason why there is none."""

from collections.abc import Callable, Iterator

import pytest

from mptcp.testing import netns
from mptcp.testing.encounter import Encounter

HERE = __file__.rpartition("/")[0]


@pytest.fixture(scope="session")
def namespaces() -> None:
    """Network namespaces can be made; where only a user namespace may, this process moves into one for good."""
    reason = netns.needs_namespaces()
    if reason and not netns.become_namespace_root():
        pytest.skip(reason)


@pytest.fixture
def make_lab(namespaces: None) -> Iterator[Callable[..., netns.Lab]]:
    """Builds laboratories (arguments of ``Lab``) that are torn down after the test, whatever happened."""
    labs: list[netns.Lab] = []

    def make(*args: object, **options: object) -> netns.Lab:
        labs.append(netns.Lab(*args, **options))  # type: ignore[arg-type]
        return labs[-1]

    yield make
    for lab in labs:
        lab.close()


@pytest.fixture
def lab(make_lab: Callable[..., netns.Lab]) -> netns.Lab:
    """Two paths without rate limits; the client's addresses are this stack's, by way of AF_PACKET."""
    return make_lab(2)


@pytest.fixture
def make_encounter(
    make_lab: Callable[..., netns.Lab], request: pytest.FixtureRequest
) -> Iterator[Callable[..., Encounter]]:
    """Builds a stack of ours that faces the kernel (arguments of ``Encounter``): in a lab, or with ``paths`` a new one.

    The kernel accepts up to eight subflows and announced addresses; its defaults are 2 and 0.
    """
    made: list[Encounter] = []

    def make(lab: netns.Lab | int = 2, **options: object) -> Encounter:
        if isinstance(lab, int):
            lab = make_lab(lab)
        lab.server.mptcp_limits(subflows=8, add_addr_accepted=8)
        if options.get("link") == "tun" and (reason := netns.needs_tun()):
            pytest.skip(reason)
        made.append(Encounter(lab, name=request.node.name, **options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for encounter in made:
        encounter.close()


@pytest.fixture(scope="session")
def kernel_mptcp(namespaces: None) -> None:
    """The kernel can be an MPTCP peer."""
    if reason := netns.needs_kernel_mptcp():
        pytest.skip(reason)


@pytest.fixture(scope="session")
def tun(namespaces: None) -> None:
    """TUN devices can be opened."""
    if reason := netns.needs_tun():
        pytest.skip(reason)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if str(item.path).startswith(HERE):
            item.add_marker(pytest.mark.interop)
