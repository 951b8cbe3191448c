"""Address ids: the initial address has 0, the others 1 to 255."""

from __future__ import annotations

import errno

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from mptcp.errors import PathError
from mptcp.info import Endpoint
from mptcp.kernel.address_ids import MAX_ADDRESSES, AddressIds

INITIAL = Endpoint.parse("10.0.0.1")


def address(number: int, port: int = 0) -> Endpoint:
    return Endpoint((0x0A010000 + number).to_bytes(4, "big"), port)


def test_an_address_keeps_its_id() -> None:
    ids = AddressIds(INITIAL.address)
    assert ids.take(INITIAL) == 0
    assert [ids.take(address(1)), ids.take(address(2)), ids.take(address(1))] == [1, 2, 1]
    assert (ids.get(address(2)), ids.get(address(3))) == (2, None)
    assert (ids.local(2), ids.local(9)) == (address(2), None)


def test_a_port_of_ones_own_makes_another_address_of_it() -> None:
    ids = AddressIds(INITIAL.address)
    assert [ids.take(address(1)), ids.take(address(1, 80))] == [1, 2]
    assert ids.of_address(address(1).address) == [1, 2]
    assert ids.take(Endpoint(INITIAL.address, 80)) == 3


def test_a_withdrawn_id_is_used_again_last_of_all() -> None:
    ids = AddressIds(INITIAL.address)
    ids.forget(ids.take(address(1)))
    assert ids.take(address(1)) == 2
    ids.give_back(ids.take(address(3)))
    assert ids.take(address(4)) == 3
    ids.forget(0)
    assert ids.get(INITIAL) == 0


def test_what_the_kernel_says_holds() -> None:
    ids = AddressIds(INITIAL.address)
    ids.take(address(1))
    ids.learn([(address(7), 1), (INITIAL, 5), (address(8), 0), (address(9), 256)])
    assert (ids.get(address(7)), ids.get(address(1)), ids.get(INITIAL)) == (1, None, 0)
    assert ids.get(address(8)) is None
    assert ids.get(address(9)) is None
    assert ids.take(address(1)) == 2


def test_there_are_255() -> None:
    ids = AddressIds(INITIAL.address)
    assert [ids.take(address(n)) for n in range(1, 256)] == list(range(1, 256))
    with pytest.raises(PathError) as caught:
        ids.take(address(256))
    assert caught.value.errno == errno.ENOBUFS
    ids.forget(100)
    assert ids.take(address(256)) == 100


class Ids(RuleBasedStateMachine):
    """No two addresses ever have the same id, whatever is taken, learned and forgotten."""

    def __init__(self) -> None:
        super().__init__()
        self.ids = AddressIds(INITIAL.address)

    @rule(number=st.integers(0, 300), port=st.sampled_from([0, 80]))
    def take(self, number: int, port: int) -> None:
        known = self.ids.get(address(number, port))
        try:
            taken = self.ids.take(address(number, port))
        except PathError:
            assert len(self.ids) == MAX_ADDRESSES + 1
            return
        assert known in {None, taken}

    @rule(number=st.integers(-1, 300), identity=st.integers(-1, 300))
    def learn(self, number: int, identity: int) -> None:
        self.ids.learn([(address(number), identity)])

    @rule(identity=st.integers(-1, 300))
    def forget(self, identity: int) -> None:
        self.ids.forget(identity)

    @invariant()
    def distinct(self) -> None:
        held = [local for number in range(256) if (local := self.ids.local(number)) is not None]
        assert len(held) == len(self.ids) == len(set(held))
        assert self.ids.get(INITIAL) == 0


TestIds = Ids.TestCase
TestIds.settings = settings(max_examples=20, stateful_step_count=30, deadline=None)
